"""What pipelines and loops of users do with a scheduler: the right result, or a clear error."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from test_diffusers import loop, normal
from tiny_pipelines import stable_diffusion, stable_diffusion_xl, unet

import probflow as pf
from probflow.diffusers import ProbflowScheduler, from_pipeline, from_unet
from probflow.integrate import run_plan

pytestmark = pytest.mark.peers

DOUBLE = torch.float64
FLOW = {"prediction_type": "flow_prediction"}


def started(steps: int = 4, **options: object) -> ProbflowScheduler:
    scheduler = ProbflowScheduler(**{"solver": "dpm-solver++-2m", **options})
    scheduler.set_timesteps(steps)
    return scheduler


# The order of calls ------------------------------------------------------------------------------


def test_timesteps_out_of_order_are_refused() -> None:
    scheduler, x = started(), normal(2, 3)
    first, second, third, _ = scheduler.timesteps
    y = scheduler.step(x, first, x).prev_sample
    for wrong in (first, third, 999, 12.5):
        with pytest.raises(ValueError, match=r"timestep: the next .* is 666, number 1, got"):
            scheduler.step(x, wrong, y)
    y = scheduler.step(x, second, y).prev_sample  # the errors changed nothing
    other = started()
    z = other.step(x, first, x).prev_sample
    assert torch.equal(other.step(x, second, z).prev_sample, y)
    with pytest.raises(ValueError, match=r"timestep: need one number, got shape \(2,\)"):
        scheduler.step(x, scheduler.timesteps[:2], y)
    with pytest.raises(ValueError, match="timestep: need one number, got None"):
        started().step(x, None, x)
    sliced = started()
    sliced.set_begin_index(2)
    with pytest.raises(ValueError, match="number 2, got 999"):
        sliced.step(x, 999, x)


@pytest.mark.parametrize(
    "kind", [int, float, np.int64, np.float32, torch.float16, torch.bfloat16, torch.int32, DOUBLE]
)
def test_timesteps_of_any_type(kind: object) -> None:
    scheduler, x = started(), normal(2, 3, dtype=DOUBLE)
    expected, y = x, x
    plain = started()
    for t in plain.timesteps:
        expected = plain.step(torch.sin(expected), t, expected).prev_sample
        told = t.to(kind) if isinstance(kind, torch.dtype) else kind(t)  # type: ignore[operator]
        y = scheduler.step(torch.sin(y), told, y).prev_sample
    assert torch.equal(y, expected)


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "dpm-solver-2", "edm-churn"])
@pytest.mark.parametrize("batch", [1, 4])
def test_another_batch_in_the_middle_of_a_run(solver: str, batch: int) -> None:
    """Refused, unless the plan needs nothing of the calls before: then it is served."""
    scheduler = started(solver=solver)
    x, other = torch.ones(2, 3), torch.ones(batch, 3)
    scheduler.step(x, scheduler.timesteps[0], x)
    if solver == "ddim":
        assert scheduler.step(other, scheduler.timesteps[1], other).prev_sample.shape == (batch, 3)
        return
    message = rf"sample: need the shape \(2, 3\) .* {solver} still needs, got \({batch}, 3\)"
    with pytest.raises(ValueError, match=message):
        scheduler.step(other, scheduler.timesteps[1], other)
    scheduler.step(x, scheduler.timesteps[1], x)  # the error changed nothing


def test_reuse_with_other_numbers_of_steps() -> None:
    scheduler, x = started(), normal(2, 3)
    scheduler.step(x, scheduler.timesteps[0], x)
    for steps in (3, 7, 3):  # a run that was left, and runs that were finished
        scheduler.set_timesteps(steps)
        fresh, y, z = started(steps), x, x
        for t in scheduler.timesteps:
            y = scheduler.step(torch.sin(y), t, y).prev_sample
            z = fresh.step(torch.sin(z), t, z).prev_sample
        assert torch.equal(y, z)


@pytest.mark.parametrize("name", ["unipc-3", "exponential-rk3", "ddpm"])
def test_shallow_copies_and_snapshots_keep_their_place(name: str) -> None:
    scheduler = started(5, solver=name, seed=1)
    x = normal(2, 3, dtype=DOUBLE)

    def go_on(scheduler: ProbflowScheduler, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        for t in times:
            x = scheduler.step(torch.sin(x), t, x).prev_sample
        return x

    middle = go_on(scheduler, x, scheduler.timesteps[:4])
    other, snapshot = copy.copy(scheduler), dict(scheduler.__dict__)
    expected = go_on(scheduler, middle, scheduler.timesteps[4:])
    assert torch.equal(go_on(other, middle, other.timesteps[4:]), expected)
    scheduler.__dict__.update(snapshot)  # as panoramas do, view by view
    assert torch.equal(go_on(scheduler, middle, scheduler.timesteps[4:]), expected)


# Arguments of other schedulers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eta": 0.5}, "eta: got 0.5; choose a stochastic solver such as 'ddim-eta'"),
        ({"s_churn": 1.0}, "s_churn: got 1.0; choose solver='edm-churn'"),
        ({"s_noise": 1.1}, "s_noise: got 1.1"),
        ({"variance_noise": torch.zeros(2, 3)}, "variance_noise: got one; give .* a seed"),
        ({"pred_original_sample": torch.zeros(2, 3)}, "pred_original_sample: got one"),
    ],
)
def test_arguments_that_would_change_the_step_are_refused(given: dict, message: str) -> None:
    scheduler, x = started(), normal(2, 3)
    with pytest.raises(ValueError, match=message):
        scheduler.step(x, 999, x, **given)
    with pytest.raises(TypeError, match="step: 'omega' is an argument of another scheduler"):
        scheduler.step(x, 999, x, omega=1.0)
    idle = {"s_churn": 0.0, "s_tmin": 0.1, "variance_noise": None, "prev_timestep": 500}
    expected = started().step(x, 999, x).prev_sample
    result = scheduler.step(x, 999, x, eta=0.0, use_clipped_model_output=True, **idle)
    assert torch.equal(result.prev_sample, expected)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm-solver++-2m"])
def test_tokens_at_another_timestep_stay(name: str) -> None:
    # As LTX's pipelines: tokens of a given frame are told 0, and are no part of the integration.
    stock = FlowMatchEulerDiscreteScheduler()
    scheduler, plain = (ProbflowScheduler.from_config(stock.config, solver=name) for _ in range(2))
    for one in (stock, scheduler, plain):
        one.set_timesteps(5)
    x = normal(2, 5, 3)
    known = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]).expand(2, 5)

    def run(one, tokens: bool) -> torch.Tensor:
        y = x
        for t in one.timesteps:
            if tokens:
                told = torch.minimum(t.expand(2, 1), 1000 * (1 - known))
                given = {"model_output": -torch.sin(y), "per_token_timesteps": told}
            else:
                given = {"model_output": torch.sin(y)}
            new = one.step(timestep=t, sample=y, return_dict=False, **given)[0]
            y = torch.where(known[..., None] == 0, new, y)  # the pipelines do so
        return y

    result, free = run(scheduler, True), known == 0
    assert torch.equal(result[free], run(plain, False)[free])
    assert torch.equal(result[~free], x[~free])
    if name == "euler":
        torch.testing.assert_close(result, run(stock, True))


def test_levels_in_the_place_of_samples_are_refused() -> None:
    scheduler = started()
    with pytest.raises(ValueError, match="sample: got a 0-d tensor"):
        scheduler.scale_model_input(scheduler.sigmas[0], scheduler.timesteps[0])


# Configurations ----------------------------------------------------------------------------------


def test_configurations_made_of_others_keep_their_class() -> None:
    layouts = []
    first = DDIMScheduler(beta_schedule="scaled_linear", beta_end=0.012)
    chain = [first]
    for kind in (DPMSolverMultistepScheduler, DDIMScheduler, EulerDiscreteScheduler):
        chain.append(kind.from_config(chain[-1].config))
    for scheduler in chain:
        ours = ProbflowScheduler.from_config(scheduler.config)
        layouts.append(ours.config.timestep_layout)
        assert ours.config.beta_end == 0.012
    assert layouts == ["ddim", "dpm", "ddim", "euler"]


def test_what_only_the_other_scheduler_knows_is_kept(tmp_path) -> None:
    stock = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3)
    ours = ProbflowScheduler.from_config(stock.config, solver="ddim")
    again = ProbflowScheduler.from_config(ours.config, solver="unipc-3")
    again.save_pretrained(tmp_path)
    loaded = ProbflowScheduler.from_pretrained(tmp_path)
    for scheduler in (ours, again, loaded):
        assert scheduler.config.timestep_layout == "dpm"
        back = DPMSolverMultistepScheduler.from_config(scheduler.config)
        assert (back.config.algorithm_type, back.config.solver_order) == ("sde-dpmsolver++", 3)
    flow = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, shift=3.0)
    assert ProbflowScheduler.from_config(flow.config).config.stochastic_sampling  # Stable Audio 3


def test_changes_of_the_configuration_count(tmp_path) -> None:
    # Stable Diffusion's pipelines set steps_offset to 1 in the scheduler that they are made with.
    components = stable_diffusion(tmp_path).components
    components["scheduler"] = ProbflowScheduler(timestep_spacing="leading", solver="ddim")
    pipe = diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False)
    assert pipe.scheduler.config.steps_offset == 1
    pipe.scheduler.set_timesteps(10)
    assert pipe.scheduler.timesteps[0] == 901
    pipe.scheduler.register_to_config(timestep_spacing="trailing")
    pipe.scheduler.set_timesteps(10)
    assert pipe.scheduler.timesteps[0] == 999


def test_options_belong_to_their_solver() -> None:
    ours = ProbflowScheduler(solver="unipc-3", solver_options={"variant": "bh1"})
    assert ProbflowScheduler.from_config(ours.config, solver="lms-3").config.solver == "lms-3"
    again = ProbflowScheduler.from_config(ours.config, seed=1)
    assert again.config.solver_options == {"variant": "bh1"}
    same = ProbflowScheduler.from_config(ours.config, solver="unipc-3")
    assert same.config.solver_options == {"variant": "bh1"}


def test_keys_that_nobody_knows_are_named_as_diffusers_does(monkeypatch) -> None:
    said = []
    logger = diffusers.configuration_utils.logger
    monkeypatch.setattr(logger, "warning", lambda message: said.append(message))
    config = {**DDIMScheduler().config, "nonsense": 3}
    assert ProbflowScheduler.from_config(config).config.timestep_layout == "ddim"
    assert len(said) == 1
    assert "'nonsense': 3" in said[0]
    said.clear()
    ProbflowScheduler.from_config(DPMSolverMultistepScheduler().config)
    ProbflowScheduler.from_config(
        ProbflowScheduler.from_config(FlowMatchEulerDiscreteScheduler().config).config
    )
    assert said == []


@pytest.mark.parametrize(
    "stock",
    [
        EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ],
)
def test_training_levels_before_set_timesteps(stock) -> None:
    ours = ProbflowScheduler.from_config(stock.config)
    torch.testing.assert_close(ours.timesteps, stock.timesteps, check_dtype=False)
    torch.testing.assert_close(ours.sigmas[: len(stock.sigmas)], stock.sigmas, rtol=1e-3, atol=1e-6)


# Grids and noising -------------------------------------------------------------------------------


def test_one_step_begins_at_the_noisy_end() -> None:
    assert started(1).timesteps.tolist() == [999]
    assert started(1, timestep_layout="ddim").timesteps.tolist() == [999]


def test_flows_that_are_told_other_times_than_their_levels() -> None:
    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    told = np.linspace(1000, 1, 6).astype(np.int64)
    call = {"timesteps": told, "sigmas": told / 1000, "mu": 2.3}  # CogView4
    ours = ProbflowScheduler.from_config(stock.config, solver="euler")
    x, y = normal(2, 3), normal(2, 3)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(**call)
    assert torch.equal(ours.timesteps, stock.timesteps)
    torch.testing.assert_close(ours.sigmas, stock.sigmas)
    data, noise = normal(1, 3, seed=1), normal(1, 3, seed=2)
    at = ours.timesteps[3:4]
    expected = stock.scale_noise(data, at, noise)
    torch.testing.assert_close(ours.scale_noise(data, at, noise), expected)
    for t in stock.timesteps:
        x = stock.step(torch.sin(x + t / 500), t, x).prev_sample
        y = ours.step(torch.sin(y + t / 500), t, y).prev_sample
    torch.testing.assert_close(x, y)
    heun = ProbflowScheduler.from_config(stock.config, solver="heun")
    heun.set_timesteps(**call)
    assert heun.timesteps[::2].tolist() == told.tolist()
    with pytest.raises(ValueError, match="timesteps: need one for each of the 6 sigmas"):
        ours.set_timesteps(**{**call, "timesteps": told[1:]})
    with pytest.raises(ValueError, match="give one of them, not both"):
        ProbflowScheduler().set_timesteps(timesteps=[3], sigmas=[1.0])


def test_noising_in_half_precision_is_computed_in_single() -> None:
    scheduler = started(beta_schedule="scaled_linear")
    data, noise, t = normal(50, 4), normal(50, 4, seed=1), torch.full((50,), 371)
    half = scheduler.add_noise(data.bfloat16(), noise.bfloat16(), t)
    exact = scheduler.add_noise(data.bfloat16().float(), noise.bfloat16().float(), t)
    assert torch.equal(half, exact.bfloat16())


# Models of pipelines -----------------------------------------------------------------------------


def test_channels_beside_the_state() -> None:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    x, more = normal(2, 4, 8, 8), normal(1, 5, 8, 8, seed=3)
    text, empty = normal(1, 6, 16, seed=1), normal(1, 6, 16, seed=2)
    models = [
        from_unet(
            network, DDIMScheduler(), guidance_scale=2.0, batched=batched, concatenated=more,
            encoder_hidden_states=text, unconditional={"encoder_hidden_states": empty},
        )
        for batched in (True, False)
    ]  # fmt: skip
    fed = torch.cat([x, more.expand(2, 5, 8, 8)], dim=1)
    with torch.no_grad():
        with_, without = (
            network(fed, 7.0, encoder_hidden_states=e.expand(2, 6, 16)).sample
            for e in (text, empty)
        )
        for model in models:
            torch.testing.assert_close(
                model(x, 7.0), without + 2.0 * (with_ - without), rtol=1e-4, atol=1e-5
            )
    short = from_unet(
        network, DDIMScheduler(), concatenated=normal(3, 5, 8, 8), encoder_hidden_states=text
    )
    with pytest.raises(ValueError, match="concatenated: its first dimension must be 1 or"):
        short(x, 7.0)


def test_guidance_between_equal_branches_is_refused() -> None:
    pipe = DDIMPipeline(unet(), DDIMScheduler())
    with pytest.raises(ValueError, match="two equal branches; give unconditional"):
        from_pipeline(pipe, guidance_scale=3.0)


def test_class_labels_are_guided_by_another_label() -> None:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, num_class_embeds=4,
        block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    pipe = DDIMPipeline(network, DDIMScheduler())
    model = from_pipeline(
        pipe,
        guidance_scale=3.0,
        class_labels=torch.tensor([1, 2]),
        unconditional={"class_labels": torch.tensor([0])},
    )
    x = normal(2, 3, 8, 8)
    with torch.no_grad():
        with_ = network(x, 9.0, class_labels=torch.tensor([1, 2])).sample
        without = network(x, 9.0, class_labels=torch.tensor([0, 0])).sample
        expected = without + 3.0 * (with_ - without)
        torch.testing.assert_close(model(x, 9.0), expected, rtol=1e-4, atol=1e-5)


def test_networks_that_are_told_the_guidance(tmp_path) -> None:
    pipe = stable_diffusion(tmp_path)
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8).eval()
    pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config, solver="unipc-2")
    x = normal(1, 4, 8, 8)
    latents = pipe(
        "a cat", num_inference_steps=3, guidance_scale=4.0, latents=x, output_type="latent"
    ).images
    model = from_pipeline(pipe, "a cat", guidance_scale=4.0)
    with torch.no_grad():
        expected = run_plan(pipe.scheduler.plan, model, x)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_compiled_networks_are_looked_into(tmp_path) -> None:
    pipe = stable_diffusion(tmp_path)
    plain = from_pipeline(pipe, "a cat", guidance_scale=2.0).function
    pipe.unet = torch.compile(pipe.unet, backend="eager")  # neither its signature nor its truth
    compiled = from_pipeline(pipe, "a cat", guidance_scale=2.0).function
    for key in ("conditioning", "unconditional"):
        expected = getattr(plain, key)["encoder_hidden_states"]
        assert torch.equal(getattr(compiled, key)["encoder_hidden_states"], expected)


@pytest.mark.slow
def test_compiled_networks(tmp_path) -> None:
    pipe = stable_diffusion(tmp_path)
    x = normal(1, 4, 8, 8)
    plain = from_pipeline(pipe, "a cat", guidance_scale=2.0)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config, solver="edm-heun")
    model = from_pipeline(pipe, "a cat", guidance_scale=2.0)
    with torch.no_grad():
        torch.testing.assert_close(model(x, 5.0), plain(x, 5.0))
        result = pipe(
            "a cat", num_inference_steps=2, guidance_scale=2.0, latents=x, output_type="latent"
        ).images
        expected = run_plan(pipe.scheduler.plan, plain, x)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_added_conditions_are_merged(tmp_path) -> None:
    pipe = stable_diffusion_xl(tmp_path)
    model = from_pipeline(pipe, "a cat", added_cond_kwargs={"image_embeds": [normal(1, 1, 4)]})
    assert set(model.function.conditioning["added_cond_kwargs"]) == {
        "text_embeds", "time_ids", "image_embeds",
    }  # fmt: skip


# Latent consistency ------------------------------------------------------------------------------


def test_pipelines_of_latent_consistency(tmp_path) -> None:
    pipe = diffusers.LatentConsistencyModelPipeline(
        **{
            **stable_diffusion(tmp_path).components,
            "scheduler": diffusers.LCMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        },
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8).eval()
    stock = pipe.scheduler
    pipe.scheduler = ProbflowScheduler.from_config(stock.config, solver="dpm-solver++-2m")
    x = normal(1, 4, 8, 8)
    call = {"num_inference_steps": 4, "guidance_scale": 6.0, "original_inference_steps": 25}
    result = pipe("a cat", latents=x, output_type="latent", **call).images
    stock.set_timesteps(4, original_inference_steps=25)
    assert torch.equal(pipe.scheduler.timesteps, stock.timesteps)
    model = from_pipeline(pipe, "a cat", guidance_scale=6.0)
    with torch.no_grad():
        expected = run_plan(pipe.scheduler.plan, model, x)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    for strength in (0.5, 0.83):
        for scheduler in (stock, pipe.scheduler):
            scheduler.set_timesteps(3, original_inference_steps=25, strength=strength)
        assert torch.equal(pipe.scheduler.timesteps, stock.timesteps)
    for scheduler in (stock, pipe.scheduler):
        scheduler.set_timesteps(timesteps=[999, 759, 519, 279], strength=0.5)
    assert torch.equal(pipe.scheduler.timesteps, stock.timesteps)
    with pytest.raises(ValueError, match="original_inference_steps, strength: for timesteps of"):
        ProbflowScheduler().set_timesteps(4, original_inference_steps=50)
    with pytest.raises(ValueError, match="times strength = 12 for this model"):
        pipe.scheduler.set_timesteps(13, original_inference_steps=25, strength=0.5)


# Slices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "steps"), [(0.3, 2), (0.55, 3), (0.97, 5), (1.0, 5)])
def test_slices_where_pipelines_give_sigmas(strength: float, steps: int) -> None:
    # As FluxImg2ImgPipeline: it gives sigmas, and takes the number of calls for that of the steps.
    scheduler = ProbflowScheduler(solver="heun", **FLOW)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.2, 5))
    count = len(scheduler.timesteps)
    assert count == 9  # the last step, to 0, has one call
    assert scheduler.order == 1
    first = int(max(count - min(count * strength, count), 0))
    scheduler.set_begin_index(first * scheduler.order)
    assert len(scheduler.plan.steps) == steps


def test_slices_within_a_step_are_refused_with_what_to_take() -> None:
    scheduler = ProbflowScheduler(solver="heun", **FLOW)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.2, 5))
    match = r"model call 3 of 9; take 2 \(strength 0.722\) or 4 \(strength 0.500\)"
    with pytest.raises(ValueError, match=match):
        scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match=r"model call 12 of 9; take 8 \(strength 0.056\)"):
        scheduler.set_begin_index(12)
    scheduler.set_begin_index(2)
    assert len(scheduler.plan.steps) == 4


# Numbers that make no sense ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_train_timesteps": 0}, ValueError, "num_train_timesteps: need a whole number >= 1"),
        ({"num_train_timesteps": 10.5}, TypeError, "num_train_timesteps: need a whole number"),
        ({"steps_offset": -1}, ValueError, "steps_offset: need a whole number >= 0, got -1"),
        (
            {"trained_betas": []},
            ValueError,
            "trained_betas, num_train_timesteps: need at least two",
        ),
        ({"trained_betas": [0.1, 1.0, 1.0]}, ValueError, r"betas: must lie in \(0, 1\), the last"),
        ({"trained_betas": "many"}, TypeError, "trained_betas: need a sequence of numbers"),
        ({"num_train_timesteps": 1}, ValueError, r"need at least two, got shape \(1,\)"),
        ({"beta_start": "0.1"}, TypeError, "beta_start: need a number, got '0.1'"),
        ({"set_alpha_to_one": "no"}, TypeError, "set_alpha_to_one: need True or False, got 'no'"),
        ({"lambda_min_clipped": math.nan}, ValueError, "lambda_min_clipped: need a number"),
        ({"shift_terminal": "0.1"}, TypeError, "shift_terminal: need a number, got '0.1'"),
        (
            {"variance_type": "small"},
            ValueError,
            "variance_type: got 'small'; near names: fixed_small",
        ),
        ({"max_image_seq_len": 0}, ValueError, "max_image_seq_len: need a whole number >= 1"),
        ({"max_shift": math.nan}, ValueError, "max_shift: need a number"),
        ({"sigma_min": -1.0}, ValueError, "sigma_min: need a number > 0, got -1.0"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, ValueError, "sigma_min, sigma_max: need 0 < min"),
        ({"rho": 0.0}, ValueError, "rho: need a number"),
        ({"shift": "3"}, TypeError, "shift: need a number, got '3'"),
        ({"dynamic_thresholding_ratio": 3.0}, ValueError, r"ratio: need a number in \(0, 1\]"),
        (
            {"shift_terminal": 1.0},
            ValueError,
            r"shift_terminal: need a number in \[0, 1\)",
        ),
        ({"solver": "rejection"}, ValueError, "until it accepts.*take pf.rejection_sample"),
    ],
)
def test_numbers_are_checked(options: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ProbflowScheduler(**options)


def test_begin_index_and_timesteps_of_noising_are_checked() -> None:
    scheduler, x = started(), normal(1, 3)
    with pytest.raises(TypeError, match=r"begin_index: need a whole number, got 1.5"):
        scheduler.set_begin_index(1.5)
    with pytest.raises(ValueError, match=r"begin_index: .* call -1 of 4; take 0"):
        scheduler.set_begin_index(-1)
    with pytest.raises(ValueError, match=r"timesteps: must lie in \[0, 999\], got \[1000\]"):
        scheduler.add_noise(x, x, torch.tensor([1000]))


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"sigmas": [200.0, 1.0]}, "sigmas: 200 lies outside .* 0.0100005 to 157.407, or 0 at"),
        ({}, {"sigmas": [5.0]}, "sigmas: need at least 2, the last for the end"),
        ({}, {"sigmas": [5.0, -1.0]}, "sigmas: -1 lies outside"),  # without a warning from numpy
        ({}, {"sigmas": [9.0, 2.0, 5.0, 1.0]}, "strictly decrease, .* take .* pf.grids.restart"),
        (FLOW, {"sigmas": [0.0]}, r"sigmas: need one above 0, got \[0.0\]"),
        *(
            (
                {**FLOW, "use_dynamic_shifting": True, "time_shift_type": kind},
                {"mu": mu},
                "mu: need",
            )
            for kind, mu in (
                ("exponential", math.nan),
                ("exponential", 1e3),
                ("exponential", "1"),
                ("linear", 0.0),
            )
        ),
        ({**FLOW, "invert_sigmas": True}, {"timesteps": [0, 500]}, "timesteps: give sigmas; with"),
    ],
)
def test_levels_are_checked(options: dict, given: dict, message: str) -> None:
    steps = {} if {"sigmas", "timesteps"} & set(given) else {"num_inference_steps": 4}
    with pytest.raises(ValueError, match=message):
        ProbflowScheduler(**options).set_timesteps(**steps, **given)


def test_tensors_and_generators_are_checked() -> None:
    scheduler, x = started(), normal(3, 2)
    first, whole = scheduler.timesteps[0], torch.zeros(3, 2, dtype=torch.int64)
    two = [torch.Generator(), torch.Generator()]
    with pytest.raises(ValueError, match="generator: need one for each of the 3 samples, got 2"):
        scheduler.step(x, first, x, generator=two)
    with pytest.raises(TypeError, match=r"sample: need a tensor of floats, got torch\.int64"):
        scheduler.step(x, first, whole)
    with pytest.raises(TypeError, match="noise: need a tensor of floats, got float"):
        scheduler.add_noise(x, 1.0, first)
    with pytest.raises(ValueError, match=r"noise, timesteps: do not fit .*\(3, 2\), got .*\(2,\)"):
        scheduler.add_noise(x, x, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="noise, timesteps: do not fit"):
        scheduler.add_noise(x, normal(3, 3), first)
    for shape, dtype in (((), torch.float32), ((2, -1), torch.float32), ((2,), torch.int64)):
        with pytest.raises(ValueError, match="shape, dtype: need"):
            ProbflowScheduler(seed=1).initial_noise(shape, dtype)
    one, many = scheduler.add_noise(x[:1], x, first), scheduler.add_noise(x[:1], x[:1], first)
    torch.testing.assert_close(one[:1], many)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "exp"])
def test_noise_rises_to_zero_terminal_snr(kind: str) -> None:
    """With linear betas 2^-24 is more than some of the ``alphas_cumprod`` before it."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    scheduler = ProbflowScheduler(
        solver="sde-heun", beta_schedule=kind, timestep_spacing="trailing", seed=1, **options
    )
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    assert float(scheduler.alphas_cumprod[-1]) <= 2.0**-24
    process = scheduler.noise_levels.process
    assert (process.beta(np.linspace(0.0, 999.0, 5001)) >= 0).all()
    scheduler.set_timesteps(7)
    assert torch.isfinite(loop(scheduler, normal(4, 2))).all()


def test_times_that_rise_from_noise_to_data() -> None:
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, invert_sigmas=True)
    ours = ProbflowScheduler.from_config(other.config, solver="euler")
    for scheduler in (other, ours):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.1, 6))
    torch.testing.assert_close(ours.timesteps, other.timesteps, rtol=0, atol=1e-3)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (1 + t / 1000)

    theirs = mine = normal(4, 3)
    for t, u in zip(other.timesteps, ours.timesteps, strict=True):
        theirs = other.step(network(theirs, t), t, theirs).prev_sample
        mine = ours.step(network(mine, u), u, mine).prev_sample
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert other.from_config(ours.config).config.invert_sigmas
    x, noise = normal(2, 3), normal(2, 3, seed=1)
    told = ours.timesteps[2:3]
    expected = other.scale_noise(x, other.timesteps[2:3], noise)
    weight = float(told) / 1000  # stock counts this as the part of the noise; it is that of data
    torch.testing.assert_close(expected, weight * noise + (1 - weight) * x)
    torch.testing.assert_close(ours.scale_noise(x, told, noise), weight * x + (1 - weight) * noise)


class Line(torch.nn.Module):
    """A network of flows in the manner of diffusers."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple:
        return (torch.tanh(0.7 * x) * (1 + timestep[:, None] / 1000),)


def test_models_of_flows_sample_on_the_default_grid() -> None:
    model = from_unet(Line(), diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0))
    given = {"seed": 0, "dtype": DOUBLE}
    fine = pf.sample(model, (4, 3), solver="rk4", steps=60, **given)
    for solver, options in (
        ("dpm-solver++-3m", {"steps": 200}),
        ("dpm-solver-23", {"rtol": 1e-6, "atol": 1e-6}),
    ):
        result = pf.sample(model, (4, 3), solver=solver, **options, **given)
        torch.testing.assert_close(result, fine, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"guidance_scale": "3"}, TypeError, "guidance_scale: need a number, got '3'"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale: need a finite number, got nan"),
        ({"batched": "no"}, TypeError, "batched: need True or False, got 'no'"),
        ({"concatenated": 3}, TypeError, "concatenated: need a tensor, got int"),
    ],
)
def test_arguments_of_models_are_checked(options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        from_unet(Line(), DDIMScheduler(), **options)


def test_prompts_are_checked(tmp_path) -> None:
    pipe = stable_diffusion(tmp_path)
    for prompt in (3, [3], {"a": 1}):
        with pytest.raises(TypeError, match="prompt: need a text or one for each sample, got"):
            from_pipeline(pipe, prompt)
    for given in ({"prompt": "a cat"}, {"guidance_scale": 3.0}):
        with pytest.raises(ValueError, match="negative_prompt: it is what guidance leads away"):
            from_pipeline(pipe, negative_prompt="a dog", **given)
    model = from_unet(Line(), DDIMScheduler(), concatenated=torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="concatenated: need shape"):
        pf.sample(model, (2, 3), solver="ddim", steps=2, seed=0)
