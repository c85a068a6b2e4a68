from __future__ import annotations

import copy
import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from tiny_pipelines import flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl, unet

import probflow as pf
from probflow.adapters.stock_configs import REFUSED
from probflow.diffusers import ProbflowScheduler, from_pipeline, from_unet
from probflow.integrate import SeededNoise, run_plan
from probflow.integrate.noise import normals
from probflow.plan import Plan, Register

pytestmark = pytest.mark.peers

DOUBLE = torch.float64
#: All but those that take derivatives of the model, which cannot be served one call at a time.
SOLVERS = [name for name in pf.solver_names() if name != "accelerated-sde-jvp"]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def model_for(scheduler: ProbflowScheduler) -> pf.Model:
    """A smooth function in the place of a network, defined at every noise level."""
    levels = scheduler.noise_levels

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.7 * x - 0.2) + 0.3 * torch.sin(0.01 * t)[:, None]

    return pf.Model(network, levels.process, levels.prediction, time=levels.told)


def calls(plan: Plan) -> list[float]:
    return [stage.time for step in plan.steps for stage in step.stages]


def loop(scheduler: ProbflowScheduler, x: torch.Tensor, **options: object) -> torch.Tensor:
    """What a pipeline does; the model is told times in float64."""
    model = model_for(scheduler)
    for t, time in zip(scheduler.timesteps, calls(scheduler.plan), strict=True):
        assert float(t) == pytest.approx(float(scheduler.noise_levels.told(time)), rel=1e-6)
        x = scheduler.step(model(x, time), t, x, **options).prev_sample
    return x


class Draws:
    """Draws 1, 2, .. of a seed, as the scheduler makes them."""

    def __init__(self, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._source = SeededNoise(seed, shape, dtype)
        self.restart()

    def __call__(self, start: float, stop: float) -> torch.Tensor:
        return self._source(start, stop)

    def restart(self) -> None:
        self._source.restart()
        self._source()


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    return stable_diffusion(tmp_path_factory.mktemp("tokenizer"))


# Noise processes ---------------------------------------------------------------------------------

DISCRETE = [
    "DDIM",
    "DDIMParallel",
    "DDPM",
    "DDPMParallel",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSDE",
    "DPMSolverSinglestep",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2AncestralDiscrete",
    "KDPM2Discrete",
    "LCM",
    "LMSDiscrete",
    "PNDM",
    "SASolver",
    "TCD",
    "UniPCMultistep",
    "UnCLIP",
    "CogVideoXDDIM",
    "CogVideoXDPM",
]


def stock(name: str, **options: object):
    pytest.importorskip("torchsde")
    return getattr(diffusers, f"{name}Scheduler")(**options)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_schedulers_keep_their_noise_process(name: str) -> None:
    other = stock(name)
    ours = ProbflowScheduler.from_config(other.config)
    assert torch.allclose(ours.alphas_cumprod, other.alphas_cumprod.float(), rtol=3e-5, atol=5e-7)
    assert ours.config.num_train_timesteps == other.config.num_train_timesteps
    assert not ours.config.clip_sample


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize(
    "name", ["DDIM", "DDPM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "LMSDiscrete"]
)
@pytest.mark.parametrize("steps", [7, 20])
def test_timesteps_and_sigmas_are_those_of_the_stock_scheduler(
    name: str, spacing: str, steps: int
) -> None:
    other = stock(name, timestep_spacing=spacing, beta_schedule="scaled_linear")
    ours = ProbflowScheduler.from_config(other.config)
    other.set_timesteps(steps)
    ours.set_timesteps(steps)
    assert torch.allclose(ours.timesteps.to(DOUBLE), other.timesteps.to(DOUBLE), atol=1e-4)
    if name in ("EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        # Stock interpolates sigma linearly where a timestep is fractional; here it is log-SNR.
        whole = ours.timesteps == ours.timesteps.round()
        whole = torch.cat([whole, torch.tensor([True])])
        assert torch.allclose(ours.sigmas[whole], other.sigmas[whole].float(), rtol=1e-3)


@pytest.mark.parametrize("curve", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep"])
def test_sigma_curves_are_those_of_the_stock_scheduler_and_timesteps_exact(
    name: str, curve: str
) -> None:
    other = stock(name, **{f"use_{curve}_sigmas": True})
    ours = ProbflowScheduler.from_config(other.config)
    other.set_timesteps(12)
    ours.set_timesteps(12)
    assert torch.allclose(ours.sigmas, other.sigmas.float(), rtol=1e-3)
    levels = ours.noise_levels
    told = np.array(ours._run.times[:-1])
    rho = np.exp(-levels.process.lambda_(told))
    assert np.allclose(rho, ours.sigmas[:-1].numpy(), rtol=1e-6)  # what the model is told is true
    assert (told != told.round()).sum() > 8


@pytest.mark.parametrize(
    "options",
    [{}, {"shift": 3.0}, {"shift": 3.0, "shift_terminal": 0.1}, {"use_karras_sigmas": True}],
)
def test_flow_matching_sigmas_are_those_of_the_stock_scheduler(options: dict) -> None:
    other = FlowMatchEulerDiscreteScheduler(**options)
    ours = ProbflowScheduler.from_config(other.config, solver="euler")
    assert ours.config.prediction_type == "flow_prediction"
    other.set_timesteps(9)
    ours.set_timesteps(9)
    assert torch.allclose(ours.sigmas, other.sigmas, atol=1e-6)
    assert torch.allclose(ours.timesteps, other.timesteps, atol=1e-3)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifting(kind: str, karras: bool) -> None:
    other = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, use_karras_sigmas=karras
    )
    ours = ProbflowScheduler.from_config(other.config, solver="euler")
    sigmas = np.linspace(1.0, 1 / 6, 6)
    for s in (other, ours):
        s.set_timesteps(sigmas=sigmas, mu=0.8)
    assert torch.allclose(ours.sigmas, other.sigmas, atol=1e-6)
    with pytest.raises(ValueError, match="mu: needed"):
        ours.set_timesteps(6)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep"])
def test_flow_sigmas_of_the_solvers_for_both(name: str) -> None:
    other = stock(name, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    ours = ProbflowScheduler.from_config(other.config, solver="euler")
    other.set_timesteps(8)
    ours.set_timesteps(8)
    assert torch.allclose(ours.sigmas, other.sigmas, atol=2e-6)


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep"])
def test_edm_schedulers_keep_sigmas_and_noise_conditioning(name: str) -> None:
    other = stock(name)
    ours = ProbflowScheduler.from_config(other.config)
    other.set_timesteps(8)
    ours.set_timesteps(8)
    assert torch.allclose(ours.sigmas, other.sigmas, rtol=1e-5)
    assert torch.allclose(ours.timesteps, other.timesteps.float(), atol=1e-6)


def test_continuous_timesteps_of_stable_video_diffusion() -> None:
    other = EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    ours = ProbflowScheduler.from_config(other.config)
    other.set_timesteps(8)
    ours.set_timesteps(8)
    assert torch.allclose(ours.sigmas, other.sigmas, rtol=1e-5)
    assert torch.allclose(ours.timesteps, other.timesteps.float(), atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_networks_are_read_as_the_stock_scheduler_reads_them(kind: str) -> None:
    other = EDMEulerScheduler(prediction_type=kind)
    ours = ProbflowScheduler.from_config(other.config, solver="ddim")
    other.set_timesteps(6)
    ours.set_timesteps(6)

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(1.3 * x + 0.2)

    noise = normal(4, 3, dtype=DOUBLE)
    sigma = other.sigmas[0].double()
    theirs, mine = noise * sigma, noise * sigma / (sigma**2 + 0.25).sqrt()
    for t, u in zip(other.timesteps, ours.timesteps, strict=True):
        theirs = other.step(network(other.scale_model_input(theirs, t)), t, theirs).prev_sample
        mine = ours.step(network(mine), u, mine).prev_sample
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_zero_terminal_snr() -> None:
    other = EulerDiscreteScheduler(
        rescale_betas_zero_snr=True, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    ours = ProbflowScheduler.from_config(other.config, solver="ddim", timestep_spacing="trailing")
    assert torch.allclose(ours.alphas_cumprod, other.alphas_cumprod, atol=1e-6)
    assert float(ours.alphas_cumprod[-1]) == 2.0**-24
    ours.set_timesteps(10)
    assert float(ours.timesteps[0]) == 999
    assert torch.isfinite(loop(ours, normal(8, 2))).all()


def test_defaults_of_the_other_class_count_and_its_default_clipping_does_not() -> None:
    heun = ProbflowScheduler.from_config(HeunDiscreteScheduler().config)
    assert (heun.config.beta_start, heun.config.beta_end) == (0.00085, 0.012)
    assert not ProbflowScheduler.from_config(DDPMScheduler().config).config.clip_sample
    assert ProbflowScheduler.from_config(DDPMScheduler(clip_sample=True).config).config.clip_sample


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize(
    ("name", "solver"),
    [("EulerDiscrete", "ddim"), ("HeunDiscrete", "edm-heun"), ("LMSDiscrete", "lms-4")],
)
def test_stock_starts_from_a_shorter_state(name: str, solver: str, spacing: str) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = stock(name, timestep_spacing=spacing, **betas)
    ours = ProbflowScheduler.from_config(theirs.config, solver=solver)
    target = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
    model = target.model(ours.noise_levels.process).as_prediction("eps")

    def run(scheduler, x: torch.Tensor) -> torch.Tensor:
        for t in scheduler.timesteps:
            output = model(scheduler.scale_model_input(x, t), float(t))
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return x

    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    z = normal(500, 2, dtype=DOUBLE)
    expected = run(theirs, z * float(theirs.init_noise_sigma))
    sigma = float(theirs.sigmas.max())
    shorter = 1.0 if spacing == "leading" else sigma / math.hypot(sigma, 1.0)
    torch.testing.assert_close(run(ours, z * shorter), expected, rtol=0, atol=1e-5)
    if spacing != "leading":
        ours.set_timesteps(20)
        off = (run(ours, z) - expected).square().mean().sqrt() / expected.std()
        assert 0.001 < float(off) < 0.002


@pytest.mark.parametrize("name", ["SCM", "CMStochasticIterative"])
def test_unknown_noise_processes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="noise process"):
        ProbflowScheduler.from_config(stock(name).config)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_schedulers_say_why_and_what_to_take(name: str) -> None:
    take = "pf.encode" if "Inverse" in name else "pf.sample"
    with pytest.raises(ValueError, match=f"{name}Scheduler cannot be .*; take {take}"):
        ProbflowScheduler.from_config(stock(name).config)
    text = (Path(__file__).parents[2] / "docs/diffusers.md").read_text()
    assert f"`{name}Scheduler`" in text


def test_the_network_of_ipndm_as_a_model() -> None:
    process = pf.VP.linear()
    target = pf.GaussianMixture([1, 2], [[-1.0], [1.5]], stds=[0.4, 0.7])
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    told = 2 * torch.atan(sigma / alpha) / torch.pi
    torch.testing.assert_close(torch.cos(told * torch.pi / 2), alpha)
    x = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v, eps = (target.model(process).predict(x, t, kind) for kind in ("v", "eps"))
    stock_eps = x * sigma[:, None] + v * alpha[:, None]  # IPNDMScheduler.step
    torch.testing.assert_close(stock_eps, eps)


def test_saved_configurations_of_stock_schedulers(tmp_path) -> None:
    HeunDiscreteScheduler(prediction_type="v_prediction").save_pretrained(tmp_path)
    ours = ProbflowScheduler.from_pretrained(tmp_path, solver="lms-3")
    assert ours.config.prediction_type == "v_prediction"
    assert ours.config.beta_start == 0.00085
    assert ours.config.solver == "lms-3"


# Grids -------------------------------------------------------------------------------------------


def test_the_last_step_ends_where_it_is_told_to() -> None:
    for options, sigma in (
        ({"final_sigmas_type": "zero"}, 0.0),
        ({"final_sigmas_type": "sigma_min"}, 0.01),
        ({"set_alpha_to_one": False}, 0.01),
    ):
        ours = ProbflowScheduler(**options)
        ours.set_timesteps(10)
        assert len(ours.timesteps) == 10
        assert float(ours.sigmas[-1]) == pytest.approx(sigma, rel=1e-3)
        assert (ours.sigmas.diff() < 0).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_no_solver_leaves_noise_behind(name: str) -> None:
    # With an exact constant x0, every solver ends at it, whatever it does on the way.
    ours = ProbflowScheduler(solver=name, prediction_type="sample", seed=1)
    ours.set_timesteps(6)
    x, data = normal(4, 2, dtype=DOUBLE), torch.tensor([0.3, -0.7], dtype=DOUBLE).expand(4, 2)
    for t in ours.timesteps:
        x = ours.step(data, t, x, return_dict=False)[0]
    assert torch.allclose(x, data, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 300, 700])
def test_any_number_of_steps(steps: int) -> None:
    ours = ProbflowScheduler()
    ours.set_timesteps(steps)
    assert len(ours.timesteps) == steps
    assert (ours.timesteps.diff() < 0).all()


def test_custom_timesteps_and_sigmas() -> None:
    ours = ProbflowScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    times = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    ours.set_timesteps(timesteps=times)
    assert ours.timesteps.tolist() == times
    assert ours.num_inference_steps == 10
    levels = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    ours.set_timesteps(sigmas=levels)
    assert np.allclose(ours.sigmas.numpy(), levels, atol=5e-4)  # 14.6146 are trained
    assert len(ours.timesteps) == 10


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"solver": "dpm-solver-2mm"}, {}, "near names"),
        ({"solver": "dopri5"}, {}, "chooses its steps"),
        ({"solver": "dpm-solver-23"}, {}, "chooses its steps itself .* serves pf.sample"),
        ({"solver": "lms-4", "solver_options": {"stort": 1}}, {}, "has no option"),
        ({"prediction_type": "eps"}, {}, "prediction_type"),
        ({"timestep_spacing": "middle"}, {}, "timestep_spacing"),
        ({"beta_schedule": "cubic"}, {}, "beta_schedule"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, {}, "choose one"),
        ({"beta_start": -1.0}, {}, "beta"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps"),
        ({}, {"num_inference_steps": 2.5}, "num_inference_steps"),
        ({}, {}, "num_inference_steps"),
        ({"timestep_spacing": "trailing"}, {"num_inference_steps": 1001}, "at most 1000"),
        ({"timestep_spacing": "leading"}, {"num_inference_steps": 600}, "would start"),
        ({}, {"num_inference_steps": 5, "mu": 0.5}, "mu: shifts"),
        ({}, {"timesteps": [10, 20]}, "decrease"),
        ({}, {"timesteps": [2000, 20]}, "outside"),
        ({"final_sigmas_type": "sigma_min"}, {"timesteps": [20, 0]}, "two levels"),
        ({}, {"sigmas": [500.0, 1.0, 0.0]}, "outside"),
        ({}, {"timesteps": [3], "sigmas": [1.0, 0.0]}, "not both"),
        ({"use_karras_sigmas": True}, {"timesteps": [20, 10]}, "karras"),
    ],
)
def test_errors_name_the_argument(options: dict, call: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ProbflowScheduler(**options).set_timesteps(**call)


def test_derivatives_are_refused_at_once_with_what_to_take() -> None:
    with pytest.raises(ValueError, match=r"derivatives .* pf.diffusers.from_pipeline\(pipe\)"):
        ProbflowScheduler(solver="accelerated-sde-jvp")


def test_errors_of_step() -> None:
    ours = ProbflowScheduler()
    x = normal(2, 3)
    with pytest.raises(ValueError, match="call set_timesteps"):
        ours.step(x, 999, x)
    ours.set_timesteps(2)
    with pytest.raises(ValueError, match="shape"):
        ours.step(x[:1], ours.timesteps[0], x)
    with pytest.raises(ValueError, match="no step begins"):
        ours.step(x, 500, x)
    with pytest.raises(ValueError, match="eta"):
        ours.step(x, ours.timesteps[0], x, eta=0.5)
    loop(ours, normal(2, 2))
    with pytest.raises(ValueError, match="set_timesteps again"):
        ours.step(x, ours.timesteps[0], x)
    ours.set_timesteps(2)
    for arguments, options, message in (
        ((None, 999, x), {}, "model_output: need a tensor of floats, got NoneType"),
        ((x, 999, [1.0]), {}, "sample: need a tensor of floats, got list"),
        ((x, 999, x), {"generator": 3}, "generator: need a torch.Generator .* got 3"),
        ((x, 999, x), {"generator": [None, 3]}, "generator: need a torch.Generator"),
    ):
        with pytest.raises(TypeError, match=message):
            ours.step(*arguments, **options)
    with pytest.raises(TypeError, match=r"solver_options: need a dictionary, got \[1\]"):
        ProbflowScheduler(solver_options=[1])
    with pytest.raises(TypeError, match="eta: ddim-eta needs a number, got 'a'"):
        ProbflowScheduler(solver="ddim-eta", solver_options={"eta": "a"})
    with pytest.raises(ValueError, match="no argument 'solvr'"):
        ProbflowScheduler.from_config(DDIMScheduler().config, solvr="ddim")


# A pipeline's loop is the plan's -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_makes_the_steps_of_its_plan(name: str, kind: str) -> None:
    ours = ProbflowScheduler(solver=name, prediction_type=kind, seed=3)
    ours.set_timesteps(7)
    fed = normal(5, 2, dtype=DOUBLE)
    result = loop(ours, fed)
    noise = Draws(3, (5, 2), DOUBLE)
    x = fed
    first = dict(ours.plan.steps[0].stages[0].input)
    if first != {Register("x"): 1.0}:
        # The pipeline's state is what the model is fed: take back what the step does before.
        for index in range(len(ours.plan.steps[0].noises)):
            drawn = noise(0.0, 1.0)
            x = x - first.get(Register("z", index), 0.0) * drawn
        x = x / first[Register("x")]
        noise.restart()
    expected = run_plan(
        ours.plan, model_for(ours), x, noise=noise if ours.plan.stochastic else None
    )
    assert torch.allclose(result, expected, rtol=0, atol=1e-11 * max(1.0, expected.abs().max()))


@pytest.mark.parametrize(
    "name", ["ddim", "edm-heun", "dpm-solver++-2m", "unipc-3", "ddpm-posterior"]
)
def test_unconditional_pipelines(name: str) -> None:
    for kind, other in ((DDIMPipeline, DDIMScheduler()), (DDPMPipeline, DDPMScheduler())):
        pipe = kind(unet(), other)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config, solver=name, seed=5)
        generator = torch.Generator().manual_seed(7)
        images = pipe(batch_size=2, generator=generator, num_inference_steps=6, output_type="np")
        plan = pipe.scheduler.plan
        with torch.no_grad():
            noise = Draws(5, (2, 3, 8, 8), torch.float32) if plan.stochastic else None
            x = run_plan(plan, from_pipeline(pipe), normal(2, 3, 8, 8, seed=7), noise=noise)
        expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        assert np.allclose(images.images, expected, atol=2e-6)


PROMPTS = ["a cat", "the dog on the moon"]


def latents_of(pipe, **options: object) -> torch.Tensor:
    options = {"num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "latent", **options}
    return pipe(PROMPTS, **options).images


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", ["dpm-solver++-2m", "edm-heun", "deis-tab3", "accelerated-ode"])
def test_text_to_image(sd: StableDiffusionPipeline, name: str, batched: bool) -> None:
    sd.scheduler = ProbflowScheduler.from_config(sd.scheduler.config, solver=name)
    x = normal(2, 4, 8, 8)
    result = latents_of(sd, latents=x)
    model = from_pipeline(sd, PROMPTS, guidance_scale=3.0, batched=batched)
    with torch.no_grad():
        expected = run_plan(sd.scheduler.plan, model, x)
    assert (result - expected).abs().max() < 2e-4 * expected.std()


@pytest.mark.parametrize("name", ["ddim", "unipc-3", "lms-4", "exponential-rk3", "accelerated-sde"])
def test_image_to_image_begins_with_its_own_start(sd: StableDiffusionPipeline, name: str) -> None:
    pipe = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ProbflowScheduler.from_config(sd.scheduler.config, solver=name, seed=2)
    image = normal(2, 4, 8, 8, seed=1)  # already latents
    fed = []

    def keep(pipe, number, t, tensors):
        fed.append(tensors["latents"])
        return {}

    result = latents_of(
        pipe,
        image=image,
        strength=0.5,
        callback_on_step_end=keep,
        generator=torch.Generator().manual_seed(4),
        num_inference_steps=8,
    )
    scheduler = pipe.scheduler
    assert scheduler.begin_index == 4 * scheduler.order
    plan = scheduler.plan
    assert len(plan.steps) == 4
    assert len(fed) == plan.nfe
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    alpha, sigma = (
        float(level(plan.times[0]))
        for level in (scheduler.noise_levels.process.alpha, scheduler.noise_levels.process.sigma)
    )
    before = dict(plan.steps[0].stages[0].input).get(Register("z", 0), 0.0)
    x = alpha * image + (sigma**2 + before**2) ** 0.5 * noise
    draws = Draws(2, (2, 4, 8, 8), torch.float32)
    if before:
        x = x - before * draws(0.0, 1.0)
        draws.restart()
    with torch.no_grad():
        expected = run_plan(
            plan,
            from_pipeline(pipe, PROMPTS, guidance_scale=3.0),
            x,
            noise=draws if plan.stochastic else None,
        )
    assert (result - expected).abs().max() < 2e-4 * expected.std()


def test_inpainting_keeps_the_known_part_and_uses_it(sd: StableDiffusionPipeline) -> None:
    pipe = StableDiffusionInpaintPipeline(**sd.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ProbflowScheduler.from_config(sd.scheduler.config, solver="dpm-solver++-2m")
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    x, mask = normal(2, 4, 8, 8, seed=2), torch.zeros(2, 1, 16, 16)

    def painted(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(6)
        return latents_of(
            pipe, image=image, mask_image=mask, strength=1.0, latents=x, height=16, width=16,
            generator=generator,
        )  # fmt: skip

    known = painted(mask, x)
    assert torch.equal(painted(mask, 2 * x), known)
    free = painted(mask + 1, x)
    sd.scheduler = copy.deepcopy(pipe.scheduler)
    expected = latents_of(sd, latents=x)
    assert (free - expected).abs().max() < 2e-4 * expected.std()
    mask[..., 8:] = 1
    mixed = painted(mask, x)
    assert torch.equal(mixed[..., :4], known[..., :4])
    # The free half has seen the known one.
    assert (mixed[..., 4:] - free[..., 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ddim", "edm-heun"])
def test_edited_latents_are_the_state(sd: StableDiffusionPipeline, name: str) -> None:
    sd.scheduler = ProbflowScheduler.from_config(sd.scheduler.config, solver=name)
    x, edit = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=9)

    def change(pipe, number, t, tensors):
        edited = number == 3 * pipe.scheduler.order - 1
        return {"latents": tensors["latents"] + edit} if edited else {}

    result = latents_of(sd, latents=x, callback_on_step_end=change)
    model, times = from_pipeline(sd, PROMPTS, guidance_scale=3.0), sd.scheduler._run.times
    with torch.no_grad():
        solver = pf.get_solver(name)
        x = run_plan(solver.plan(model.process, times[:4], "eps"), model, x) + edit
        expected = run_plan(solver.plan(model.process, times[3:], "eps"), model, x)
    assert (result - expected).abs().max() < 2e-4 * expected.std()


@pytest.mark.parametrize("name", ["euler", "heun", "dpm-solver++-2m", "unipc-3"])
def test_stable_diffusion_3(name: str) -> None:
    pipe = stable_diffusion_3()
    pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config, solver=name)
    texts = {
        "encoder_hidden_states": normal(2, 5, 16, seed=1),
        "pooled_projections": normal(2, 16, seed=2),
    }
    empty = {key: 0.1 * value for key, value in texts.items()}
    x = normal(2, 4, 8, 8)
    result = pipe(
        prompt_embeds=texts["encoder_hidden_states"],
        pooled_prompt_embeds=texts["pooled_projections"],
        negative_prompt_embeds=empty["encoder_hidden_states"],
        negative_pooled_prompt_embeds=empty["pooled_projections"],
        num_inference_steps=5, guidance_scale=3.0, latents=x, output_type="latent",
    ).images  # fmt: skip
    model = from_unet(
        pipe.transformer, pipe.scheduler, guidance_scale=3.0, unconditional=empty, **texts
    )
    with torch.no_grad():
        expected = run_plan(pipe.scheduler.plan, model, x)
    assert (result - expected).abs().max() < 2e-4 * expected.std()


def test_stable_diffusion_xl_with_two_experts(tmp_path) -> None:
    pipe = stable_diffusion_xl(tmp_path)
    pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config, solver="unipc-3")
    x = normal(2, 4, 8, 8)
    result = latents_of(pipe, latents=x)
    model = from_pipeline(pipe, PROMPTS, guidance_scale=3.0)
    with torch.no_grad():
        expected = run_plan(pipe.scheduler.plan, model, x)
    assert (result - expected).abs().max() < 2e-4 * expected.std()
    # The first expert stops early; its latents are those of the plan there.
    half = latents_of(pipe, latents=x, denoising_end=0.5)
    done = int((pipe.scheduler.timesteps >= 500).sum())
    with torch.no_grad():
        states = run_plan(pipe.scheduler.plan, model, x, trajectory=True)
    assert (half - states[done]).abs().max() < 2e-4 * states[done].std()


def test_stable_diffusion_3_with_a_prompt() -> None:
    pipe = stable_diffusion_3()
    encoded = [normal(1, 5, 16, seed=1), normal(1, 5, 16, seed=2), normal(1, 16), normal(1, 16)]
    asked = {}

    def encode_prompt(prompt, prompt_2, prompt_3, device=None, negative_prompt=None):
        asked.update(prompt=prompt, negative_prompt=negative_prompt)
        return tuple(encoded)

    pipe.encode_prompt = encode_prompt
    model = from_pipeline(pipe, "a cat", guidance_scale=2.0, negative_prompt="a dog")
    assert asked == {"prompt": "a cat", "negative_prompt": "a dog"}
    direct = from_unet(
        pipe.transformer,
        pipe.scheduler,
        guidance_scale=2.0,
        unconditional={"encoder_hidden_states": encoded[1], "pooled_projections": encoded[3]},
        encoder_hidden_states=encoded[0],
        pooled_projections=encoded[2],
    )
    x = normal(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x, 0.4), direct(x, 0.4))


def test_flux_with_its_shift_by_resolution() -> None:
    pipe = flux()
    call = {
        "prompt_embeds": normal(1, 5, 16, seed=1), "pooled_prompt_embeds": normal(1, 16, seed=2),
        "num_inference_steps": 4, "height": 16, "width": 16, "output_type": "latent",
        "latents": normal(1, 16, 16),
    }  # fmt: skip
    theirs = pipe(**call).images
    pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config, solver="euler")
    assert torch.allclose(pipe(**call).images, theirs, atol=1e-5)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("embeds", [False, True])
def test_flux_as_a_model(embeds: bool, guided: bool) -> None:
    pipe = flux(embeds)
    text, pooled, no_text, no_pooled = (
        normal(1, *s, seed=i) for i, s in enumerate(((5, 16), (16,)) * 2)
    )
    latents = normal(1, 4, 8, 12)
    call = {
        "prompt_embeds": text, "pooled_prompt_embeds": pooled, "num_inference_steps": 4,
        "height": 16, "width": 24, "output_type": "latent", "guidance_scale": 2.5,
        "latents": pipe._pack_latents(latents, 1, 4, 8, 12),
    }  # fmt: skip
    if guided:
        call |= {"negative_prompt_embeds": no_text, "negative_pooled_prompt_embeds": no_pooled}
        call |= {"true_cfg_scale": 3.0}
    pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config, solver="dpm-solver++-2m")
    packed = pipe(**call).images
    theirs = pipe._unpack_latents(packed, 16, 24, pipe.vae_scale_factor)

    def encode_prompt(prompt, prompt_2=None, device=None, num_images_per_prompt=1):
        return (text, pooled, None) if prompt == "a cat" else (no_text, no_pooled, None)

    pipe.encode_prompt = encode_prompt
    guidance = {"guidance": 2.5} if embeds else {}
    model = from_pipeline(pipe, "a cat", guidance_scale=3.0 if guided else 1.0, **guidance)
    with torch.no_grad():
        ours = run_plan(pipe.scheduler.plan, model, latents)
    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
    with pytest.raises(ValueError, match="x: height and width must be even, got 7 and 8"):
        model(normal(1, 4, 7, 8), 0.5)
    if embeds:
        model = from_pipeline(pipe, "a cat")
        with pytest.raises(ValueError, match="guidance: the network is told"):
            model(latents, 0.5)


def test_half_precision_states_are_computed_in_single() -> None:
    ours = ProbflowScheduler(solver="dpm-solver++-2m")
    ours.set_timesteps(4)
    x = normal(3, 2).to(torch.bfloat16)
    out = ours.step(x, ours.timesteps[0], x)
    assert out.prev_sample.dtype == torch.bfloat16
    assert ours._run.walk._past[0][Register("f", 0)].dtype == torch.float32


# State, copies, seeds ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unipc-3", "exponential-rk3", "accelerated-sde", "ddpm"])
def test_copies_in_mid_run_go_on_alike(name: str) -> None:
    ours = ProbflowScheduler(solver=name, seed=4)
    ours.set_timesteps(6)
    x, model = normal(3, 2, dtype=DOUBLE), model_for(ours)

    def go_on(scheduler: ProbflowScheduler, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        for t in scheduler.timesteps[first:last]:
            x = scheduler.step(model(x, float(t)), t, x).prev_sample
        return x

    middle = go_on(ours, x, 0, 4)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    expected = go_on(ours, middle, 4, 99)
    for other in copies:
        assert other.step_index == 4
        assert torch.equal(go_on(other, middle, 4, 99), expected)


def test_save_and_load(tmp_path, sd: StableDiffusionPipeline) -> None:
    ours = ProbflowScheduler(
        solver="unipc-3", solver_options={"variant": "bh1"}, seed=6, use_karras_sigmas=True
    )
    ours.save_pretrained(tmp_path / "alone")
    again = ProbflowScheduler.from_pretrained(tmp_path / "alone")
    assert dict(again.config)["solver_options"] == {"variant": "bh1"}
    ours.set_timesteps(5)
    again.set_timesteps(5)
    assert again.plan == ours.plan
    sd.scheduler = ProbflowScheduler.from_config(sd.scheduler.config, solver="lms-3")
    sd.save_pretrained(tmp_path / "pipe")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert isinstance(loaded.scheduler, ProbflowScheduler)
    assert loaded.scheduler.config.solver == "lms-3"
    stock_again = DDIMScheduler.from_config(loaded.scheduler.config)
    assert stock_again.config.beta_end == 0.012


def test_a_solver_object_goes_into_the_configuration() -> None:
    solver = pf.get_solver("dpm-solver++-3m", factor=1.0)
    ours = ProbflowScheduler(solver=solver)
    assert ours.config.solver == "dpm-solver++-3m"
    assert ours.config.solver_options["factor"] == 1.0
    again = ProbflowScheduler.from_config(ours.config)
    for s in (ours, again):
        s.set_timesteps(5)
    assert again.plan == ours.plan


def even(name: str) -> bool:
    """Whether every step but the last makes the same number of model calls."""
    ours = ProbflowScheduler(solver=name)
    ours.set_timesteps(5)
    return len({len(step.stages) for step in ours.plan.steps[:-1]}) == 1


@pytest.mark.parametrize("name", [name for name in SOLVERS if even(name) and name != "li-jiao"])
def test_slices_of_the_timesteps(name: str) -> None:
    ours = ProbflowScheduler(solver=name, seed=8)
    ours.set_timesteps(6)
    x = normal(3, 2, dtype=DOUBLE)
    begin = 2 * ours.order
    for scheduler, with_index in ((ours, True), (copy.deepcopy(ours), False)):
        if with_index:
            scheduler.set_begin_index(begin)
        y, model = x, model_for(scheduler)
        for t, time in zip(
            scheduler.timesteps[begin:],
            [s.time for step in scheduler._run.rest(begin).steps for s in step.stages],
            strict=True,
        ):
            y = scheduler.step(model(y, time), t, y).prev_sample
        assert len(scheduler.plan.steps) == 4
        assert scheduler.plan == ours.plan
        if with_index:
            expected = y
    assert torch.equal(y, expected)


def test_most_solvers_can_be_sliced() -> None:
    assert {name for name in SOLVERS if not even(name)} <= {"accelerated-ode", "pndm"}


def test_slices_that_cannot_be_right_are_refused() -> None:
    ours = ProbflowScheduler(solver="lms-4", solver_options={"start": "runge-kutta"})
    ours.set_timesteps(6)
    assert len(ours.timesteps) > 6  # the start has more calls
    ours.set_begin_index(0)
    with pytest.raises(ValueError, match="start='euler'"):
        ours.set_begin_index(3)
    heun = ProbflowScheduler(solver="edm-heun")
    heun.set_timesteps(6)
    with pytest.raises(ValueError, match="begin_index"):
        heun.set_begin_index(3)
    accelerated = ProbflowScheduler(solver="accelerated-ode")
    accelerated.set_timesteps(6)
    with pytest.raises(ValueError, match="accelerated-ode-multistep"):
        accelerated.set_begin_index(4)
    rounds = ProbflowScheduler(solver="li-jiao")
    rounds.set_timesteps(6)
    with pytest.raises(ValueError, match="li-jiao plans all steps together, and cannot begin with"):
        rounds.set_begin_index(3)


def test_seeds_do_not_depend_on_the_batch() -> None:
    def samples(count: int, first: int) -> torch.Tensor:
        ours = ProbflowScheduler(solver="ddpm-posterior", seed=11, first_sample=first)
        ours.set_timesteps(5)
        return loop(ours, ours.initial_noise((count, 2)))

    everything = samples(6, 0)
    assert torch.equal(samples(2, 0), everything[:2])
    assert torch.equal(samples(3, 2), everything[2:5])
    assert not torch.equal(everything[0], everything[1])


def test_seed_gives_the_sample_of_probflow() -> None:
    ours = ProbflowScheduler(solver="ddpm-posterior", seed=12, final_sigmas_type="sigma_min")
    ours.set_timesteps(5)
    result = loop(ours, ours.initial_noise((4, 2)))
    model = model_for(ours)
    expected = pf.sample(model, (4, 2), "ddpm-posterior", grid=ours._run.times, seed=12)
    assert torch.allclose(result, expected, atol=1e-6)
    draw = normals(12, torch.arange(4), torch.tensor([0]), 2)[0]
    assert torch.equal(ours.initial_noise((4, 2)), draw)


def test_generators_one_or_one_for_each_sample() -> None:
    def run(x: torch.Tensor, generator: object) -> torch.Tensor:
        ours = ProbflowScheduler(solver="ddpm")
        ours.set_timesteps(4)
        return loop(ours, x, generator=generator)

    x = normal(3, 2)
    each = run(x, [torch.Generator().manual_seed(i) for i in range(3)])
    for i in range(3):
        alone = run(x[i : i + 1], torch.Generator().manual_seed(i))
        assert torch.allclose(each[i], alone[0])
    again = run(x, torch.Generator().manual_seed(5))
    assert torch.equal(run(x, torch.Generator().manual_seed(5)), again)


def test_two_threads_with_one_configuration() -> None:
    config = DDIMScheduler().config

    def run(number: int) -> torch.Tensor:
        ours = ProbflowScheduler.from_config(config, solver="unipc-3")
        ours.set_timesteps(8)
        return loop(ours, normal(4, 2, seed=number))

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, range(6)))
    assert all(torch.equal(run(i), result) for i, result in enumerate(together))


def test_noising() -> None:
    ours = ProbflowScheduler()
    other = DDPMScheduler()
    x, noise, t = normal(3, 4), normal(3, 4, seed=1), torch.tensor([0, 500, 999])
    for name in ("add_noise", "get_velocity"):
        assert torch.allclose(getattr(ours, name)(x, noise, t), getattr(other, name)(x, noise, t),
                              atol=2e-5)  # fmt: skip
    assert torch.equal(ours.scale_noise(x, t, noise), ours.add_noise(x, noise, t))
    flow = ProbflowScheduler(prediction_type="flow_prediction")
    mixed = flow.scale_noise(x, torch.tensor([250.0]), noise)
    assert torch.allclose(mixed, 0.75 * x + 0.25 * noise)
    assert len(ours) == 1000
    assert torch.equal(ours.scale_model_input(x, 3), x)


def test_clipping_is_that_of_the_stock_scheduler() -> None:
    for options in ({"clip_sample": True}, {"clip_sample": False, "thresholding": True}):
        other = DDIMScheduler(**options)
        ours = ProbflowScheduler.from_config(other.config, solver="ddim")
        other.set_timesteps(5)
        ours.set_timesteps(5)
        x = 3 * normal(2, 3, 4, 4, dtype=DOUBLE)
        y = x
        for t in other.timesteps:
            # Stock DDIM uses the unclipped eps: made equal by use_clipped_model_output.
            x = other.step(torch.sin(2 * x), t, x, use_clipped_model_output=True).prev_sample
            y = ours.step(torch.sin(2 * y), t, y).prev_sample
        assert torch.allclose(x, y, atol=2e-4)


# Models ------------------------------------------------------------------------------------------


def test_models_of_networks_serve_adaptive_solvers_and_likelihoods() -> None:
    network = unet()
    model = from_unet(network, DDPMScheduler())
    x = normal(2, 3, 8, 8)
    z = pf.encode(model, 0.1 * x, "heun", 3)
    assert torch.isfinite(z).all()
    assert model.process.start == 999.0
    with torch.no_grad():
        direct = network(x, torch.tensor([3.5, 3.5])).sample
    assert torch.allclose(model(x, 3.5), direct, atol=1e-6)


def test_conditioning_that_does_not_fit_is_refused(sd: StableDiffusionPipeline) -> None:
    text = normal(1, 8, 16)
    with pytest.raises(ValueError, match="unconditional"):
        from_unet(sd.unet, sd.scheduler, guidance_scale=2.0, encoder_hidden_states=text)
    with pytest.raises(ValueError, match="unconditional: needs the names"):
        from_unet(
            sd.unet, sd.scheduler, guidance_scale=2.0, encoder_hidden_states=text, unconditional={}
        )
    model = from_unet(sd.unet, sd.scheduler, encoder_hidden_states=normal(3, 8, 16))
    with pytest.raises(ValueError, match="first dimension"):
        model(normal(2, 4, 8, 8), 10.0)
    with pytest.raises(TypeError, match="scheduler"):
        from_unet(sd.unet, "ddim")
    with pytest.raises(ValueError, match="takes none"):
        from_pipeline(DDPMPipeline(unet(), DDPMScheduler()), "a cat")


def test_large_noise_before_the_first_call_is_in_the_initial_state() -> None:
    ours = ProbflowScheduler(solver="accelerated-sde")
    assert ours.init_noise_sigma == 1.0
    ours.set_timesteps(5)
    weights = dict(ours.plan.steps[0].stages[0].input)
    added = weights[Register("z", 0)]
    assert ours.init_noise_sigma == pytest.approx((1 + added**2) ** 0.5)
    plain = ProbflowScheduler(solver="ddpm")
    plain.set_timesteps(5)
    assert plain.init_noise_sigma == 1.0


def test_blocks_of_the_documentation_run(sd: StableDiffusionPipeline) -> None:
    page = Path(__file__).parents[2] / "docs" / "diffusers.md"
    pipe = copy.copy(sd)
    pipe.set_progress_bar_config(disable=True)
    namespace: dict[str, object] = {"pipe": pipe}
    blocks = re.findall(
        r"^```py\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
    for name in ("latents", "noise", "back"):
        assert torch.isfinite(namespace[name]).all()  # type: ignore[call-overload]
