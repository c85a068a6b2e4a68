"""The numbers of diffusers' schedulers, in float64 over their own timesteps.

A row per pair of schedulers. The stock scheduler's noise levels are replaced by float64 ones and
its casts to float32 are undone, so that what is compared are the formulas.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

import probflow as pf
from probflow.diffusers import ProbflowScheduler
from probflow.integrate import run_plan
from probflow.solvers.last_step import plan_to_data

pytestmark = pytest.mark.peers

DOUBLE = torch.float64
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}


class Row(NamedTuple):
    scheduler: str
    solver: str
    stock: dict = {}  # noqa: RUF012
    options: dict = {}  # noqa: RUF012
    steps: int = 10


EULER_START = {"start": "euler"}
LOWER = {"final": "lower"}
ROWS = [
    Row("DDIM", "ddim", {"clip_sample": False}),
    Row(
        "DDIM",
        "ddim",
        {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"},
    ),
    Row("EulerDiscrete", "ddim"),
    Row("EulerDiscrete", "edm-euler"),
    Row("DDPM", "ddpm-posterior", {"clip_sample": False}),
    Row("HeunDiscrete", "edm-heun"),
    Row("KDPM2Discrete", "edm-dpm2"),
    Row("LMSDiscrete", "lms-4", {}, EULER_START),
    Row("DPMSolverMultistep", "ddim", {"solver_order": 1}),
    Row("DPMSolverMultistep", "dpm-solver++-2m", {"solver_order": 2}),
    Row("DPMSolverMultistep", "dpm-solver++-2m", {"solver_order": 2}, {}, 20),
    Row("DPMSolverMultistep", "dpm-solver++-2m", {"solver_order": 2, **SIGMA_MIN}, LOWER),
    Row("DPMSolverMultistep", "dpm-solver++-2m", {"solver_order": 2, **SIGMA_MIN}, {}, 20),
    Row(
        "DPMSolverMultistep",
        "dpm-solver-2m",
        {"solver_order": 2, "algorithm_type": "dpmsolver", **SIGMA_MIN},
        LOWER,
    ),
    Row(
        "DPMSolverMultistep",
        "dpm-solver++-3m",
        {"solver_order": 3},
        {"factor": 1.0, **EULER_START, **LOWER},
    ),
    Row(
        "DPMSolverMultistep",
        "dpm-solver++-3m",
        {"solver_order": 3, **SIGMA_MIN},
        {"factor": 1.0, **EULER_START},
        20,
    ),
    Row(
        "DPMSolverMultistep",
        "dpm-solver-3m",
        {"solver_order": 3, "algorithm_type": "dpmsolver", **SIGMA_MIN},
        {"factor": 1.0, **EULER_START, **LOWER},
    ),
    *(
        Row(
            "UniPCMultistep",
            f"unipc-{order}",
            {"solver_order": order, "solver_type": variant, **end},
            {
                "variant": variant,
                **(LOWER if order > 1 else {}),
                **(EULER_START if order > 2 else {}),
            },
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
        # To sigma = 0 the stock scheduler with bh1 returns NaN: its B is infinite there.
        for end in (({}, SIGMA_MIN) if variant == "bh2" else (SIGMA_MIN,))
    ),
    *(
        Row(
            "UniPCMultistep",
            f"unipc-{order}-eps",
            {"solver_order": order, "solver_type": variant, "predict_x0": False, **SIGMA_MIN},
            {
                "variant": variant,
                **(LOWER if order > 1 else {}),
                **(EULER_START if order > 2 else {}),
            },
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    ),
    *(
        Row(
            "UniPCMultistep",
            "unipc-3" if predict_x0 else "unipc-3-eps",
            {"solver_order": 3, "predict_x0": predict_x0, "disable_corrector": off, **SIGMA_MIN},
            {"disable_corrector": off, **LOWER, **EULER_START},
        )
        for predict_x0 in (True, False)
        for off in ([0], [0, 1, 5])
    ),
    Row("DEISMultistep", "ddim", {"solver_order": 1}),
    Row("DEISMultistep", "exponential-ab2", {"solver_order": 2}, LOWER),
    Row("DEISMultistep", "exponential-ab2", {"solver_order": 2}, {}, 20),
    Row("DEISMultistep", "exponential-ab3", {"solver_order": 3}, {**EULER_START, **LOWER}),
    Row("DEISMultistep", "exponential-ab3", {"solver_order": 3}, EULER_START, 20),
    Row("EulerAncestralDiscrete", "euler-ancestral"),
    Row("KDPM2AncestralDiscrete", "dpm2-ancestral"),
    *(
        Row(
            "DPMSolverMultistep",
            "dpm-solver++-3m",
            {"solver_order": 3, "solver_type": kind, **SIGMA_MIN},
            {"factor": 1.0, "solver_type": kind, **EULER_START},
            20,
        )
        for kind in ("midpoint", "heun")
    ),
    *(
        Row(
            "DPMSolverMultistep",
            f"{solver}-2m",
            {"solver_order": 2, "solver_type": kind, "algorithm_type": algorithm, **SIGMA_MIN},
            {"solver_type": kind},
            20,
        )
        for solver, algorithm, kind in (
            ("dpm-solver++", "dpmsolver++", "heun"),
            ("dpm-solver", "dpmsolver", "heun"),
            ("sde-dpm-solver++", "sde-dpmsolver++", "heun"),
            ("sde-dpm-solver", "sde-dpmsolver", "heun"),
            ("sde-dpm-solver", "sde-dpmsolver", "midpoint"),
        )
    ),
    Row(
        "DPMSolverMultistep",
        "seeds-1",
        {"solver_order": 1, "algorithm_type": "sde-dpmsolver", **SIGMA_MIN},
    ),
    # Predictions of other kinds, and zero terminal SNR.
    *(
        Row(scheduler, solver, {"prediction_type": kind, **stock}, options, steps)
        for kind in ("v_prediction", "sample")
        for scheduler, solver, stock, options, steps in (
            ("DDIM", "ddim", {"clip_sample": False}, {}, 10),
            ("DDPM", "ddpm-posterior", {"clip_sample": False}, {}, 10),
            ("EulerDiscrete", "ddim", {}, {}, 10),
            ("HeunDiscrete", "edm-heun", {}, {}, 10),
            ("LMSDiscrete", "lms-4", {}, EULER_START, 10),
            ("DPMSolverMultistep", "dpm-solver++-2m", {}, {}, 20),
            ("UniPCMultistep", "unipc-2", {"solver_order": 2}, LOWER, 10),
            ("DEISMultistep", "exponential-ab2", {"solver_order": 2}, {}, 20),
        )
        # Stock Heun and LMS know no model of the data.
        if kind == "v_prediction" or scheduler not in ("HeunDiscrete", "LMSDiscrete")
    ),
    *(
        Row(
            scheduler,
            solver,
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, **stock},
            {},
            20,
        )
        for scheduler, solver, stock in (
            ("DPMSolverMultistep", "dpm-solver++-2m", {"timestep_spacing": "trailing"}),
            ("EulerDiscrete", "ddim", {"timestep_spacing": "trailing"}),
        )
    ),
    Row(
        "DPMSolverMultistep",
        "sde-dpm-solver++-1",
        {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"},
    ),
    Row(
        "DPMSolverMultistep",
        "sde-dpm-solver++-2m",
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    ),
    Row(
        "PNDM",
        "pndm",
        {"skip_prk_steps": True, "steps_offset": 1},
        {"start": "heun", "weights": "constant"},
    ),
]


class Wide(torch.Tensor):
    """A float64 tensor that is not cast to float32."""

    def to(self, *args: object, **kwargs: object) -> torch.Tensor:
        if torch.float32 in args or kwargs.get("dtype") == torch.float32:
            return self
        return super().to(*args, **kwargs)


def network(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.8 * x - 0.1) + 0.1 * x


def stock_run(row: Row, levels, x: torch.Tensor, noises: list, monkeypatch) -> tuple:
    """Result of the stock scheduler, its timesteps at the steps' starts, and where it ends."""
    kind = getattr(diffusers, f"{row.scheduler}Scheduler")
    other = kind(**row.stock)
    module = importlib.import_module(kind.__module__)
    if hasattr(module, "randn_tensor"):
        drawn = iter(noises)
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(drawn))
    other.set_timesteps(row.steps)
    times = np.unique(other.timesteps.double().numpy())[::-1]
    two_calls = hasattr(other, "sigmas_interpol")
    if two_calls:
        times = other.timesteps[::2].double().numpy()
    assert (times == times.round()).all()
    process = levels.process
    other.alphas_cumprod = torch.tensor(process.ab(np.arange(levels.count, dtype=float)))
    other.alphas = torch.cat(
        [other.alphas_cumprod[:1], other.alphas_cumprod[1:] / other.alphas_cumprod[:-1]]
    )
    other.betas = 1 - other.alphas
    if hasattr(other, "final_alpha_cumprod"):
        one = row.stock.get("set_alpha_to_one", row.scheduler != "PNDM")  # their defaults
        other.final_alpha_cumprod = torch.tensor(1.0) if one else other.alphas_cumprod[0]
        end = -1.0 if one else 0.0
    elif hasattr(other, "sigmas"):
        end = -1.0 if float(other.sigmas[-1]) == 0 else 0.0
        rho = np.exp(-process.lambda_(np.append(times, 0.0)))
        rho[-1] = 0.0 if end < 0 else rho[-1]
        rho = torch.tensor(rho)
        if hasattr(other, "sigmas_up"):  # ancestral: half way to sigma_down
            after = rho.roll(-1)
            after[-1] = 0.0
            up = (after**2 * (rho**2 - after**2) / rho**2) ** 0.5
            down = (after**2 - up**2) ** 0.5
            down[-1] = 0.0
            between = rho.log().lerp(down.log(), 0.5).exp()
            between[-2:] = 0.0
            for name, value in (("up", up), ("down", down), ("interpol", between)):
                twice = [value[:1], value[1:].repeat_interleave(2), value[-1:]]
                setattr(other, f"sigmas_{name}", torch.cat(twice))
        elif two_calls:
            middle = (0.5 * (rho.log() + rho.roll(1).log())).exp()
            other.sigmas_interpol = torch.cat(
                [rho[:1], middle[1:].repeat_interleave(2), middle[-1:]]
            )
        if len(other.sigmas) > len(rho):
            rho = torch.cat([rho[:1], rho[1:-1].repeat_interleave(2), rho[-1:]])
        if row.scheduler.startswith("KDPM2"):
            rho = torch.cat([rho, rho[-1:]])[: len(other.sigmas)]
        other.sigmas = rho
    else:
        end = -1.0
    exploding = row.scheduler in (
        "EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete", "EulerAncestralDiscrete",
        "KDPM2AncestralDiscrete",
    )  # fmt: skip
    y = x / x.new_tensor(process.alpha(times[0])) if exploding else x
    y = y.as_subclass(Wide)
    for t in other.timesteps:
        scaled = other.scale_model_input(y, t)
        y = other.step(network(scaled), t, y, return_dict=False)[0].as_subclass(Wide)
    return y.as_subclass(torch.Tensor), times, end


def describe(row: Row) -> str:
    words = [row.scheduler, row.solver, *(str(v) for v in row.stock.values()), str(row.steps)]
    return "-".join(words)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=describe)
def test_numbers_of_the_stock_scheduler(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    if row.solver not in pf.solver_names(aliases=True):
        pytest.skip(f"{row.solver} is not registered")
    solver = pf.get_solver(row.solver)
    if "final" in row.options and "final" not in solver.options:
        pytest.skip(f"{row.solver} has no option final")
    kind = getattr(diffusers, f"{row.scheduler}Scheduler")
    levels = ProbflowScheduler.from_config(kind(**row.stock).config).noise_levels
    generator = torch.Generator().manual_seed(0)
    x, *noises = torch.randn(row.steps + 2, 5, 3, dtype=DOUBLE, generator=generator).unbind(0)
    torch.set_default_dtype(DOUBLE)
    try:
        theirs, times, end = stock_run(row, levels, x, noises, monkeypatch)
    finally:
        torch.set_default_dtype(torch.float32)

    class Given:
        def __call__(self, start: float, stop: float) -> torch.Tensor:
            return next(self.rest)

        def restart(self) -> None:
            self.rest = iter(noises)

    config = {**kind(**row.stock).config, "_class_name": kind.__name__}
    stock = ProbflowScheduler.from_config(config, solver="stock").config
    model = pf.Model(lambda x, t: network(x), levels.process, levels.prediction)
    for name, options in ((row.solver, row.options), (stock.solver, stock.solver_options)):
        chosen = pf.get_solver(name, **options)
        plan = plan_to_data(chosen, levels.process, [*times, end], levels.prediction)
        ours = run_plan(plan, model, x, noise=Given() if plan.stochastic else None)
        error = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
        assert error < 1e-10, name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("DDIM", {"clip_sample": False}, 10),
        ("DPMSolverMultistep", {}, 8),
        ("DPMSolverMultistep", {"solver_order": 3, "timestep_spacing": "trailing"}, 16),
        ("DPMSolverSinglestep", {"solver_order": 3}, 9),
        ("UniPCMultistep", {"disable_corrector": [0], "solver_order": 3}, 9),
        ("DEISMultistep", {"solver_order": 3}, 9),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, 7),
    ],
)
def test_stock_is_the_scheduler_of_the_pipeline(name: str, options: dict, steps: int) -> None:
    """One word changes, and the samples are the same, to the rounding of its sigmas."""
    theirs = getattr(diffusers, f"{name}Scheduler")(**options)
    ours = ProbflowScheduler.from_config(theirs.config, solver="stock")
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(network(y), t, y, return_dict=False)[0]
        results.append(y)
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, "stochastic_sampling: solver"),
        ("DPMSolverMultistep", {"euler_at_final": True}, "euler_at_final: solver 'stock'"),
        ("PNDM", {}, "skip_prk_steps: solver 'stock' has the numbers for True, got False"),
        ("LCM", {}, "'stock' knows no solver with the numbers of LCMScheduler; allowed are DDIM"),
        ("LMSDiscrete", {}, "'stock' cannot tell KDPM2AncestralDiscreteScheduler from"),
        ("SASolver", {}, "tau_func: a function of the timestep"),
        ("DDIM", {}, "clip_sample: solver 'stock' has the numbers for False, got True"),
        ("UniPCMultistep", {"predict_x0": False, "thresholding": True}, "thresholding: solver"),
    ],
)
def test_what_stock_does_not_have_is_named(name: str, options: dict, message: str) -> None:
    config = getattr(diffusers, f"{name}Scheduler")(**options).config
    with pytest.raises(ValueError, match=message):
        ProbflowScheduler.from_config(config, solver="stock")
    for none in (ProbflowScheduler().config, {"foo": 1}):
        with pytest.raises(ValueError, match="needs the configuration of a stock scheduler"):
            ProbflowScheduler.from_config(none, solver="stock")
    with pytest.raises(ValueError, match="'stock' needs the configuration of a scheduler: from_c"):
        ProbflowScheduler(solver="stock")
