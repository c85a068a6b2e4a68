"""Numbers of diffusers' schedulers beyond discrete schedules with a call a step, in float64.

As in ``test_diffusers_peers.py``, the stock scheduler gets noise levels in float64: those of
``ProbflowScheduler`` with the same configuration, which ``test_diffusers.py`` compares.
"""

from __future__ import annotations

import importlib

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("torchsde")

import diffusers
from test_diffusers_peers import Wide, network

import probflow as pf
from probflow.diffusers import ProbflowScheduler
from probflow.integrate import run_plan
from probflow.solvers.last_step import plan_to_data

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

DOUBLE = torch.float64
NORMALS = torch.randn(40, 5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
X, NOISES = NORMALS[0], NORMALS[1:]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
EULER_START, LOWER = {"start": "euler"}, {"final": "lower"}


class Given:
    """Normals one after the other, as the stock scheduler gets them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._rest = iter(NOISES)

    def __call__(self, start: float, stop: float) -> torch.Tensor:
        return next(self._rest)


def levels_of(other, steps: int, **given) -> tuple:
    """Noise levels of the same configuration, and their process times in float64."""
    levels = ProbflowScheduler.from_config(other.config).noise_levels
    return levels, levels.grid(steps, **given)


def ours(solver, levels, times: list[float]) -> torch.Tensor:
    model = pf.Model(lambda x, t: levels.sign * network(x), levels.process, levels.prediction)
    plan = plan_to_data(solver, levels.process, times, levels.prediction)
    return run_plan(plan, model, X, noise=Given() if plan.stochastic else None)


def theirs(other, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **options) -> torch.Tensor:
    """What a pipeline does, without casts to float32."""
    module, drawn = importlib.import_module(type(other).__module__), iter(NOISES)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(drawn))
    y = x.as_subclass(Wide)
    torch.set_default_dtype(DOUBLE)
    try:
        for t in other.timesteps:
            scaled = other.scale_model_input(y, t) if hasattr(other, "scale_model_input") else y
            y = other.step(network(scaled), t, y, return_dict=False, **options)[0].as_subclass(Wide)
    finally:
        torch.set_default_dtype(torch.float32)
    return y.as_subclass(torch.Tensor)


def check(result: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((result - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error < 1e-10


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=DOUBLE)


def inner_twice(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values[:1], values[1:-1].repeat_interleave(2), values[-1:]])


@pytest.mark.parametrize(
    ("name", "solver", "config", "options"),
    [
        ("FlowMatchEulerDiscrete", "euler", {"shift": 3.0}, {}),
        ("FlowMatchHeunDiscrete", "heun", {"shift": 3.0}, {}),
        ("LTXEulerAncestralRF", "euler-ancestral-rf", {}, {}),
        ("LTXEulerAncestralRF", "euler-ancestral-rf", {"eta": 0.4, "s_noise": 0.9}, {}),
        ("DPMSolverMultistep", "dpm-solver++-2m", FLOW, {}),
        ("DPMSolverMultistep", "sde-dpm-solver++-2m", {"algorithm_type": "sde-dpmsolver++"}, {}),
        ("DPMSolverMultistep", "dpm-solver++-3m", {"solver_order": 3}, {"factor": 1.0, **LOWER}),
        ("UniPCMultistep", "unipc-2", {"solver_order": 2}, LOWER),
        ("UniPCMultistep", "unipc-3", {"solver_order": 3}, LOWER),
    ],
)
def test_flows(name: str, solver: str, config: dict, options: dict, monkeypatch) -> None:
    if name.startswith("LTX"):
        options = config
    elif not name.startswith("Flow"):
        config = {**FLOW, **config}
    other = getattr(diffusers, f"{name}Scheduler")(**config)
    other.set_timesteps(10)
    levels, times = levels_of(other, 10)
    if name.startswith("UniPC") or "s_noise" in options:
        times[0] = 0.999  # UniPC cannot begin at 1, and moves it; nor can a law that is not exact
    other.sigmas = tensor(times)
    if "Heun" in name:
        other.sigmas = torch.cat([inner_twice(tensor(times)), tensor([0.0])])
    expected = theirs(other, X, monkeypatch)
    chosen = pf.get_solver(solver)
    start = EULER_START if "start" in chosen.options else {}
    check(ours(chosen.with_options(**start, **options), levels, times), expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "solver", "config", "options"),
    [
        ("EDMEuler", "edm-euler", {}, {}),
        ("EDMDPMSolverMultistep", "dpm-solver++-2m", {}, {}),
        (
            "EDMDPMSolverMultistep",
            "dpm-solver++-3m",
            {"solver_order": 3},
            {"factor": 1.0, **EULER_START, **LOWER},
        ),
        ("EDMDPMSolverMultistep", "sde-dpm-solver++-2m", {"algorithm_type": "sde-dpmsolver++"}, {}),
        ("CosineDPMSolverMultistep", "sde-dpm-solver++-1", {"solver_order": 1}, {}),
        ("CosineDPMSolverMultistep", "sde-dpm-solver++-2m", {"sigma_data": 0.7}, {}),
    ],
)
def test_edm(name: str, solver: str, config: dict, options: dict, kind: str, monkeypatch) -> None:
    other = getattr(diffusers, f"{name}Scheduler")(prediction_type=kind, **config)
    other.set_timesteps(10)
    levels, times = levels_of(other, 10)
    other.sigmas = tensor(times)
    if name.startswith("Cosine"):  # the increments of a Brownian tree
        drawn = iter(NOISES)
        other.noise_sampler = lambda sigma, after: next(drawn)
    # Their state is data plus sigma times noise, and the data of ours is divided by sigma_data.
    factor = float(levels.process.alpha(times[0])) / levels.data_scale
    expected = theirs(other, X / factor, monkeypatch)
    result = ours(pf.get_solver(solver, **options), levels, times) * levels.data_scale
    check(result, expected)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_with_eta(eta: float, monkeypatch) -> None:
    other = diffusers.DDIMScheduler(clip_sample=False)
    other.set_timesteps(10)
    levels, times = levels_of(other, 10)
    ab = levels.process.ab(torch.arange(levels.count, dtype=DOUBLE))
    other.alphas_cumprod, other.final_alpha_cumprod = ab, tensor(1.0)
    check(
        ours(pf.get_solver("ddim-eta", eta=eta), levels, times),
        theirs(other, X, monkeypatch, eta=eta),
    )


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (3, 4), (4, 3)])
@pytest.mark.parametrize("tau", [0.0, 0.7])
@pytest.mark.parametrize("final", ["keep", "lower"])
@pytest.mark.parametrize("on", ["data", "noise"])
def test_sa_solver(
    on: str, predictor: int, corrector: int, tau: float, final: str, monkeypatch
) -> None:
    orders = {"predictor_order": predictor, "corrector_order": corrector}
    other = diffusers.SASolverScheduler(
        tau_func=lambda t: tau,
        lower_order_final=final == "lower",
        algorithm_type=f"{on}_prediction",
        **orders,
    )
    other.set_timesteps(10)
    levels, times = levels_of(other, 10)
    times[-1] = 0.0  # theirs ends at the first level of training
    process = levels.process
    other.sigmas = tensor(process.sigma(tensor(times)) / process.alpha(tensor(times)))
    name, options = (
        ("sa-solver", {"variant": "published"}) if on == "data" else ("sa-solver-eps", {})
    )
    solver = pf.get_solver(name, predictor=predictor, corrector=corrector, tau=tau)
    solver = solver.with_options(**EULER_START, final=final, **options)
    check(ours(solver, levels, times), theirs(other, X, monkeypatch))


def test_dpm_solver_sde() -> None:
    """On one Brownian path: increments over halves of steps and over whole ones."""
    other = diffusers.DPMSolverSDEScheduler(use_exponential_sigmas=True)
    other.set_timesteps(10)
    levels, times = levels_of(other, 10)
    process = levels.process
    sigmas = tensor(process.sigma(tensor(times)) / process.alpha(tensor(times)))
    other.sigmas = inner_twice(sigmas)
    path = pf.BrownianNoiseSampler(X, float(sigmas[-2]), float(sigmas[0]), seed=4)
    other.noise_sampler = path
    lambdas = -sigmas[:-1].log()
    middles = (lambdas[:-1] + (lambdas[1:] - lambdas[:-1]) * 0.5).neg().exp()
    known = torch.cat([lambdas.neg().exp(), middles])

    class OnPath:
        """The same increments for process times, at the same levels to the last bit."""

        def __call__(self, start: float, stop: float) -> torch.Tensor:
            rho = [float(process.sigma(t) / process.alpha(t)) for t in (start, stop)]
            return path(*(known[int((known - r).abs().argmin())] for r in rho))

        def restart(self) -> None:
            pass

    y = X / float(process.alpha(times[0]))
    torch.set_default_dtype(DOUBLE)
    try:
        for t in other.timesteps:
            y = other.step(network(other.scale_model_input(y, t)), t, y, return_dict=False)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    model = pf.Model(lambda x, t: network(x), process, levels.prediction)
    plan = plan_to_data(pf.get_solver("dpm-solver++-sde-stock"), process, times, "eps")
    check(run_plan(plan, model, X, noise=OnPath()), y)


@pytest.mark.parametrize(
    ("order", "solver", "algorithm"),
    [
        (2, "dpm-solver++-2s", "dpmsolver++"),
        (2, "dpm-solver-2", "dpmsolver"),
        (3, "dpm-solver++-3s", "dpmsolver++"),
        (3, "dpm-solver-3", "dpmsolver"),
    ],
)
def test_single_steps_on_levels_even_in_log_snr(
    order: int, solver: str, algorithm: str, monkeypatch
) -> None:
    """Theirs take levels of the grid for the stages: at 1/2, or at 1/3 and 2/3, of such steps."""
    other = diffusers.DPMSolverSinglestepScheduler(
        solver_order=order, algorithm_type=algorithm, use_exponential_sigmas=True,
        final_sigmas_type="sigma_min", lower_order_final=False,
    )  # fmt: skip
    other.set_timesteps(4 * order)
    levels, times = levels_of(other, 4 * order)
    process = levels.process
    other.sigmas = tensor(process.sigma(tensor(times)) / process.alpha(tensor(times)))
    chosen = pf.get_solver(solver, **({"inner": "midpoint"} if order == 3 else {}))
    check(ours(chosen, levels, times[::order]), theirs(other, X, monkeypatch))


SINGLESTEP = {
    "dpmsolver": "dpm-solver-singlestep-stock",
    "dpmsolver++": "dpm-solver++-singlestep-stock",
    "sde-dpmsolver++": "sde-dpm-solver++-singlestep-stock",
}


@pytest.mark.parametrize("curve", ["linspace", "karras"])
@pytest.mark.parametrize("end", ["sigma_min", "zero"])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", SINGLESTEP)
def test_single_steps_spread_over_any_levels(
    algorithm: str, kind: str, lower: bool, end: str, curve: str, monkeypatch
) -> None:
    """Every order, and every rest of the number of steps."""
    if algorithm == "dpmsolver" and end == "zero":
        pytest.skip("refused there")
    for order, steps in [(1, 5), *((2, n) for n in (1, 2, 9, 10)), *((3, n) for n in range(1, 13))]:
        other = diffusers.DPMSolverSinglestepScheduler(
            solver_order=order, algorithm_type=algorithm, solver_type=kind,
            lower_order_final=lower, final_sigmas_type=end, use_karras_sigmas=curve == "karras",
        )  # fmt: skip
        other.set_timesteps(steps)
        levels, times = levels_of(other, steps)
        process = levels.process
        other.sigmas = tensor(process.sigma(tensor(times)) / process.alpha(tensor(times)))
        options = {"order": order, "solver_type": kind, "final": "lower" if lower else "keep"}
        solver = pf.get_solver(SINGLESTEP[algorithm], **options)
        check(ours(solver, levels, times), theirs(other, X, monkeypatch))


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("end", ["sigma_min", "zero"])
def test_wrong_sign_of_the_third_order_of_stochastic_steps(
    end: str, kind: str, steps: int, monkeypatch
) -> None:
    """In the weight of the second derivative 1/2 is subtracted where it has to be added."""
    other = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=3, solver_type=kind, final_sigmas_type=end
    )
    other.set_timesteps(steps)
    levels, times = levels_of(other, steps)
    process = levels.process
    other.sigmas = tensor(process.sigma(tensor(times)) / process.alpha(tensor(times)))
    expected = theirs(other, X, monkeypatch)
    options = {"factor": 1.0, "solver_type": kind, **EULER_START, **(LOWER if steps < 15 else {})}
    right = pf.get_solver("sde-dpm-solver++-3m", **options)
    check(ours(right.with_options(variant="diffusers"), levels, times), expected)
    assert float((ours(right, levels, times) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [10, 20])
def test_lowered_end_of_the_second_order_of_stochastic_steps(steps: int, monkeypatch) -> None:
    other = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min"
    )
    other.set_timesteps(steps)
    levels, times = levels_of(other, steps)
    process = levels.process
    other.sigmas = tensor(process.sigma(tensor(times)) / process.alpha(tensor(times)))
    solver = pf.get_solver("sde-dpm-solver++-2m", **(LOWER if steps < 15 else {}))
    check(ours(solver, levels, times), theirs(other, X, monkeypatch))
