"""What must hold for every registered solver, and identities between solvers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from thinned import thinned
from torch import Tensor

import probflow as pf
from probflow.integrate import run_plan
from probflow.plan import Linear, Point, StepBuilder, prediction_weights
from probflow.processes import Process
from probflow.solvers import unregister

ALL = pf.all_solvers()
INTEGRATORS = [s for s in ALL if s.family in ("chain", "exponential")]
PROCESSES: list[Process] = [pf.VP.linear(), pf.VP.cosine(), pf.VE(), pf.EDM(), pf.FlowMatching()]
TARGET = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 2, dtype=torch.float64, generator=GENERATOR)


def by_name(solver: pf.Solver) -> str:
    return solver.name


class Noise:
    """Given tensors, in the order of the calls."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors, self._next = tensors, iter(tensors)

    def __call__(self, start: float, stop: float) -> Tensor:
        return next(self._next)

    def restart(self) -> None:
        self._next = iter(self._tensors)


def silence(x: Tensor, n: int) -> Noise:
    return Noise(*[torch.zeros_like(x)] * (3 * n))


def random_noise(x: Tensor, n: int) -> Noise:
    generator = torch.Generator().manual_seed(5)
    return Noise(*torch.randn(3 * n, *x.shape, dtype=x.dtype, generator=generator))


def run(
    solver: pf.Solver | str,
    process: Process,
    times: np.ndarray | list[float],
    x: Tensor,
    model: Callable[[Tensor, Tensor], Tensor] | pf.Model,
    prediction: str = "eps",
    noise: Noise | None = None,
) -> Tensor:
    plan = pf.get_solver(solver).plan(process, times, prediction)
    wrapped = model if isinstance(model, pf.Model) else pf.Model(model, process, prediction)
    return run_plan(plan, wrapped, x, noise=noise or silence(x, len(plan.steps)))


def grid(process: Process, steps: int) -> np.ndarray:
    return pf.grids.log_snr().times(process, steps)


def nothing(x: Tensor, t: Tensor) -> Tensor:
    return 0 * x


# Exactness ---------------------------------------------------------------------------------


def on_processes(solvers: list[pf.Solver]) -> list[Any]:
    """Each solver on each process; in ordinary runs on one or two."""
    cases = [(solver, process) for solver in solvers for process in PROCESSES]
    return thinned(cases, lambda case: f"{case[0].name}-{case[1]!r}")


@pytest.mark.parametrize(("solver", "process"), on_processes(INTEGRATORS))
def test_zero_score_scales_by_the_signal(solver: pf.Solver, process: Process) -> None:
    """With no score only the linear part is left: x is multiplied by alpha'/alpha, exactly.

    To v-prediction this is a flow with x0 = x/alpha, and v larger than x by rho; so is rounding.
    """
    times = grid(process, 7)
    rho = float(process.sigma(times[0]) / process.alpha(times[0]))
    rtol = 1e-13 * max(1.0, rho) if solver.prediction == "v" else 1e-13
    for stop in range(2, 8):
        result = run(solver, process, times[:stop], X, nothing)
        ratio = float(process.alpha(times[stop - 1]) / process.alpha(times[0]))
        torch.testing.assert_close(result, ratio * X, rtol=rtol, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    "solver", [s for s in ALL if s.family == "exponential" and not s.stochastic], ids=by_name
)
def test_one_point_target_is_exact_at_any_step_count(solver: pf.Solver, process: Process) -> None:
    """eps and x0 are constant along the flow to a single point, so all stages lie on it.

    Rounding is measured against the largest term, alpha'/alpha times the first state.
    """
    point = torch.tensor([0.7, -1.2], dtype=torch.float64)

    def on_flow(t: float) -> Tensor:
        return float(process.alpha(t)) * point + float(process.sigma(t)) * X

    for steps in (1, 2, 3, 20):
        for times in (grid(process, steps), pf.grids.uniform().times(process, steps)):
            growth = float(process.alpha(times).max() / process.alpha(times[0]))
            allowed = 1e-13 * growth * float(on_flow(times[0]).abs().max())
            plan = solver.plan(process, times)
            stages = iter([stage.time for step in plan.steps for stage in step.stages])

            def constant(x: Tensor, t: Tensor, stages: Iterator = stages, atol: float = allowed):
                at = Point.many(process, [next(stages)])[0]
                torch.testing.assert_close(x, on_flow(at.t), rtol=0, atol=atol)
                of_x0, of_eps = prediction_weights(process, solver.prediction, at)
                return of_x0 * point + of_eps * X

            result = run_plan(
                plan, pf.Model(constant, process, solver.prediction), on_flow(times[0])
            )
            torch.testing.assert_close(result, on_flow(times[-1]), rtol=0, atol=allowed)


@pytest.mark.parametrize("process", [pf.VP.linear(), pf.EDM(), pf.FlowMatching()], ids=repr)
@pytest.mark.parametrize(
    "solver", [s for s in ALL if s.family == "exponential" and not s.stochastic], ids=by_name
)
def test_last_step_to_no_noise_finds_the_point(solver: pf.Solver, process: Process) -> None:
    point = torch.tensor([0.7, -1.2], dtype=torch.float64)

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return (x - process.alpha(t)[:, None] * point) / process.sigma(t)[:, None]

    x = float(process.alpha(0.9)) * point + float(process.sigma(0.9)) * X
    result = run(solver, process, [0.9, 0.5, 0.1, 0.0], x, eps)
    # On eps the rounding of the first step (1e-14) times the corrector's weights (30) times X.
    rtol = 1e-11 if solver.name.startswith("unipc") and solver.prediction == "eps" else 1e-12
    torch.testing.assert_close(result, point.expand_as(X), rtol=rtol, atol=0)


# Consistency -------------------------------------------------------------------------------


#: Their noise belongs to a number of steps, not to a length of time: there is no SDE for h -> 0.
#: Two intervals forward and one back are the reverse SDE of eta = 1, but the last step is the ODE.
#: So it is with noise in DPM-Solver-fast. diffusers draws noises of single steps apart.
NO_LIMIT = {"edm-churn", "two-interval", "two-interval-2", "li-jiao"}
NO_LIMIT |= {"dpm-solver-fast-ancestral", "sde-dpm-solver++-singlestep-stock"}
WITH_LIMIT = [s for s in ALL if s.name not in NO_LIMIT]


def eta_at(solver: pf.Solver, process: Process, t: float) -> float:
    """eta of the reverse SDE (0: the ODE) that a solver solves, at a time."""
    rho = float(process.sigma(t) / process.alpha(t))
    return solver.eta(rho) if callable(solver.eta) else solver.eta


@pytest.mark.parametrize(("solver", "process"), on_processes(WITH_LIMIT))
def test_small_steps_follow_the_exact_drift(solver: pf.Solver, process: Process) -> None:
    """(x_n - x_0)/(n h) tends to the velocity (or the reverse SDE's drift) as h, with n = 3."""
    t = 0.5
    x = float(process.alpha(t)) * X[:2] + float(process.sigma(t)) * X[2:4]
    model = TARGET.model(process, "score")
    drift = float(process.drift(t)) * x
    part = (1 + eta_at(solver, process, t)) / 2
    drift = drift - part * float(process.diffusion(t)) ** 2 * model(x, t)

    def error(h: float) -> float:
        times = t - h * np.arange(4)
        moved = run(solver, process, times, x, model, "score")
        slope = (moved - x) / (times[3] - times[0])
        return float((slope - drift).abs().max() / drift.abs().max())

    coarse, fine = error(1e-3), error(1e-4)
    assert fine < 0.02
    # First order in h, or nearly exact already.
    assert fine < 0.2 * coarse or fine < 1e-8


@pytest.mark.parametrize(
    ("solver", "process"), on_processes([s for s in WITH_LIMIT if s.stochastic])
)
def test_small_steps_have_the_exact_variance(solver: pf.Solver, process: Process) -> None:
    """The noise of a step has variance eta g^2 |h| (1 + O(h))."""
    t = 0.5

    def error(h: float) -> float:
        plan = solver.plan(process, [t, t - h], "score")
        x = torch.zeros(1, 1, dtype=torch.float64)
        count = len(plan.steps[0].noises)
        variance = 0.0
        for j in range(count):
            unit = Noise(*[torch.full_like(x, float(i == j)) for i in range(count)])
            moved = run(solver, process, [t, t - h], x, nothing, "score", unit)
            variance += float(moved) ** 2
        exact = eta_at(solver, process, t) * float(process.diffusion(t)) ** 2
        return abs(variance / (h * exact) - 1)

    # Where the coefficient of h happens to be small, h^2 shows: C h + D h^2.
    assert error(1e-4) < 0.02
    assert error(1e-4) < 0.3 * error(1e-3) or error(1e-4) < 1e-8


@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_noises_cover_the_step_once(solver: pf.Solver) -> None:
    process = pf.VP.linear()
    steps = solver.plan(process, grid(process, 4)).steps
    if solver.name == "dpm-solver-fast-ancestral":
        assert not steps[-1].noises
        steps = steps[:-1]
    if solver.name in ("two-interval", "two-interval-2", "li-jiao"):
        steps = [step for step in steps[:-1] if step.noises]  # where there is an overshoot
        assert steps
    for step in steps:
        # edm-churn cannot add noise at the process's noisiest time, where this grid starts.
        silent = solver.name == "edm-churn" and step.start == process.t_max
        assert bool(step.noises) == (solver.stochastic and not silent)
        if step.noises:
            ends = sorted(step.noises, reverse=True)
            assert ends[0][0] == step.start
            assert ends[-1][1] == step.stop
            assert all(a[1] == b[0] for a, b in pairwise(ends))


# Equivalences ------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [pf.VE(), pf.EDM(), pf.FlowMatching()], ids=repr)
@pytest.mark.parametrize(
    "solver", [s for s in INTEGRATORS if "deis-tab" not in s.name], ids=by_name
)
def test_every_process_is_vp_after_scaling(solver: pf.Solver, process: Process) -> None:
    """The run on VE, EDM and flow matching is the VP run at the same log-SNRs, rescaled.

    Not with polynomials in process time, which are others in another time.
    """
    vp = pf.VP.linear(0.1, 40.0)
    times = pf.grids.log_snr(-3.0, 2.5, "lambda").times(process, 6)
    vp_times = vp.t(process.lambda_(times))
    norm = np.hypot(process.alpha(times), process.sigma(times))
    noise = random_noise(X, 6)
    ours = run(solver, process, times, float(norm[0]) * X, TARGET.model(process), "eps", noise)
    noise = random_noise(X, 6)
    theirs = run(solver, vp, vp_times, X, TARGET.model(vp), "eps", noise)
    torch.testing.assert_close(ours / float(norm[-1]), theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("solver", "process"), on_processes(ALL))
def test_the_prediction_type_of_the_model_does_not_matter(
    solver: pf.Solver, process: Process
) -> None:
    times = grid(process, 5)
    x = X * process.prior_std(times[0])
    results = [
        run(solver, process, times, x, TARGET.model(process, p), p, random_noise(X, 5))
        for p in ("eps", "x0", "v", "score", "velocity")
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-9, atol=1e-10 * float(x.abs().max()))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pf.get_solver("ddim"), pf.get_solver("edm-euler")),
        (pf.get_solver("ddim"), pf.get_solver("dpm-solver-1")),
        (pf.get_solver("dpm-solver-2", r1=1.0), pf.get_solver("edm-heun")),
    ],
    ids=["ddim is euler in sigma", "alias", "dpm-solver-2 with r1 = 1 is heun in sigma"],
)
def test_identities(one: pf.Solver, other: pf.Solver, process: Process) -> None:
    times = pf.grids.uniform().times(process, 9)
    x = X * process.prior_std(times[0])
    results = [run(solver, process, times, x, TARGET.model(process)) for solver in (one, other)]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


def test_dpm_solver_pp_2m_of_one_step_is_ddim() -> None:
    process = pf.VP.linear()
    results = [
        run(solver, process, [0.9, 0.6], X, TARGET.model(process))
        for solver in ("dpm-solver++-2m", "ddim", "accelerated-ode-arcsin")
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(results[2], results[1], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("solver", ["accelerated-ode", "accelerated-ode-multistep"])
def test_accelerated_ode_starts_with_a_vanilla_step(solver: str) -> None:
    process = pf.VP.linear()
    times = [0.9, 0.8]
    ours, vanilla = (
        run(name, process, times, X, TARGET.model(process)) for name in (solver, "vanilla-ode")
    )
    torch.testing.assert_close(ours, vanilla, rtol=0, atol=0)


# Literal formulas of the discrete chain, t = 0 .. 999 -------------------------------------------

DDPM = pf.VP.from_betas(np.linspace(1e-4, 0.02, 1000))
AB = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LEVELS = [999, 800, 500, 200, 20, 0]


def literal(step: Callable[..., Tensor], noises: int) -> Tensor:
    """Run ``step(y, score, ab, ab', noises, memory)`` down LEVELS with exact scores."""
    y, memory = X.clone(), {}
    source = random_noise(X, len(LEVELS))
    for t, s in pairwise(LEVELS):
        z = [source(t, s) for _ in range(noises)]

        def score(y: Tensor, t: int = t) -> Tensor:
            return TARGET.score(y, math.sqrt(AB[t]), math.sqrt(1 - AB[t]))

        y = step(y, score, AB[t], AB[s], z, memory)
    return y


def check_literal(solver: str, step: Callable[..., Tensor], noises: int = 0) -> None:
    ours = run(solver, DDPM, LEVELS, X, TARGET.model(DDPM), noise=random_noise(X, len(LEVELS)))
    torch.testing.assert_close(ours, literal(step, noises), rtol=1e-10, atol=1e-11)


def test_ddpm_posterior_is_ddim_with_eta_1() -> None:
    def ddim_eta_1(y: Tensor, score: Callable, ab: float, ab1: float, z: list, _: dict) -> Tensor:
        eps = -math.sqrt(1 - ab) * score(y)
        sigma = math.sqrt((1 - ab1) / (1 - ab)) * math.sqrt(1 - ab / ab1)
        x0 = (y - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
        return math.sqrt(ab1) * x0 + math.sqrt(1 - ab1 - sigma**2) * eps + sigma * z[0]

    check_literal("ddpm-posterior", ddim_eta_1, 1)


def test_ddpm_is_that_of_the_paper() -> None:
    def step(y: Tensor, score: Callable, ab: float, ab1: float, z: list, _: dict) -> Tensor:
        alpha = ab / ab1
        return (y + (1 - alpha) * score(y) + math.sqrt(1 - alpha) * z[0]) / math.sqrt(alpha)

    check_literal("ddpm", step, 1)


def test_accelerated_sde_is_that_of_the_paper() -> None:
    def step(y: Tensor, score: Callable, ab: float, ab1: float, z: list, _: dict) -> Tensor:
        alpha = ab / ab1
        middle = y + math.sqrt((1 - alpha) / 2) * z[0]
        drift = (1 - alpha) * score(middle)
        return (middle + drift + math.sqrt((1 - alpha) / 2) * z[1]) / math.sqrt(alpha)

    check_literal("accelerated-sde", step, 2)


def test_accelerated_ode_is_that_of_the_paper() -> None:
    def step(y: Tensor, score: Callable, ab: float, ab1: float, _: list, memory: dict) -> Tensor:
        alpha, s = ab / ab1, score(y)
        update = y + (1 - alpha) / 2 * s
        if memory:
            up = memory["ab"] / memory["ab1"]  # alpha of the step before
            back = math.sqrt(up) * (y - (1 - up) / 2 * s)
            difference = s - math.sqrt(up) * memory["score"](back)
            update = update + (1 - alpha) ** 2 / (4 * (1 - up)) * difference
        memory.update(ab=ab, ab1=ab1, score=score)
        return update / math.sqrt(alpha)

    check_literal("accelerated-ode", step)


def test_accelerated_ode_arcsin_is_the_authors_expression() -> None:
    r"""C is the weight of eps_before - eps in sqrt(ab') INT eps drho, eps affine in ab.

    With rho = sqrt(1/ab - 1), ab = 1/(1 + rho^2), so INT ab drho = arctan(rho) = pi/2 -
    arcsin(sqrt(ab)), and INT (ab(rho) - ab_t) drho from rho_t to rho' is
    arcsin(sqrt(ab_t)) - arcsin(sqrt(ab')) - ab_t (rho' - rho_t), over ab_before - ab_t.
    """

    def step(y: Tensor, score: Callable, ab: float, ab1: float, _: list, memory: dict) -> Tensor:
        eps = -math.sqrt(1 - ab) * score(y)
        rho, rho1 = math.sqrt((1 - ab) / ab), math.sqrt((1 - ab1) / ab1)
        new = math.sqrt(ab1 / ab) * y + math.sqrt(ab1) * (rho1 - rho) * eps
        if memory:
            arcs = math.asin(math.sqrt(ab1)) - math.asin(math.sqrt(ab))
            weight = math.sqrt(ab1) / (ab - memory["ab"]) * (ab * (rho1 - rho) + arcs)
            new = new + weight * (memory["eps"] - eps)
        memory.update(ab=ab, eps=eps)
        return new

    check_literal("accelerated-ode-arcsin", step)


# Counting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "velocity"])
@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_declared_nfe_is_counted_nfe(solver: pf.Solver, prediction: str) -> None:
    process, calls = pf.VP.linear(), []

    def count(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return 0 * x

    plan = solver.plan(process, grid(process, 9), prediction)
    run_plan(plan, pf.Model(count, process, prediction), X, noise=silence(X, 9))
    tangents = sum(bool(stage.tangent) for step in plan.steps for stage in step.stages)
    assert len(calls) == plan.nfe - tangents == sum(len(step.stages) for step in plan.steps)
    assert calls == [stage.time for step in plan.steps for stage in step.stages]
    *later, last = [step.nfe for step in plan.steps[solver.memory :]]
    assert set(later) == {solver.nfe}
    assert last == (2 if solver.name.startswith("dpm-solver-fast") else solver.nfe)
    assert plan.memory <= solver.memory
    assert plan.stochastic == solver.stochastic
    assert (plan.solver, plan.prediction) == (solver.name, prediction)


@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_memory_is_needed(solver: pf.Solver) -> None:
    """A declared memory is used: either registers of earlier steps, or their times."""
    process = pf.VP.linear()
    last = solver.plan(process, [0.95, 0.9, 0.7, 0.5, 0.3]).steps[-1]
    other = solver.plan(process, [0.93, 0.8, 0.75, 0.5, 0.3]).steps[-1]
    assert (last == other) == (solver.memory == 0)


# The registry ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_metadata(solver: pf.Solver) -> None:
    assert "=" in solver.equation
    assert len(solver.reference) > 5
    assert solver.family in ("ode", "exponential", "chain", "sde")
    assert set(solver.orders) <= {"tv", "strong", "path-kl", "certificate"}
    assert "strong" in solver.orders or solver.stochastic
    assert "path-kl" not in solver.orders or solver.stochastic
    assert "strong" not in solver.orders or solver.eta is not None
    assert solver.order("kl") == 2 * solver.orders["tv"]
    assert solver.order("w2") == solver.orders["tv"]
    for name in (solver.name, *solver.aliases):
        assert name == name.lower().strip()
        assert "_" not in name
        for spelling in (name, name.replace("-", "_"), f" {name.upper()} "):
            assert pf.get_solver(spelling) is solver
    assert pf.get_solver(solver) is solver
    assert pf.get_solver(solver.function) is solver


def test_names_are_unique() -> None:
    names = pf.solver_names(aliases=True)
    assert len(set(names)) == len(names)
    assert set(pf.solver_names()) == {s.name for s in ALL}


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("ddmi", "ddim"), ("acelerated-ode", "accelerated-ode"), ("dpm_solver_4", "dpm-solver-2")],
)
def test_near_misses_are_named(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"solver: no solver is named '{wrong}'; near.*{near}"):
        pf.get_solver(wrong)


def test_what_is_no_solver() -> None:
    with pytest.raises(ValueError, match=r"no solver is named 'qqqq' \(all: probflow\.solver_na"):
        pf.get_solver("qqqq")
    for wrong in (3, None, lambda step: step.x):
        with pytest.raises(TypeError, match="solver: need a name, a Solver or a registered"):
            pf.get_solver(wrong)


def test_samplers_that_are_no_steps_say_what_they_are() -> None:
    for name, here in (
        ("FORS", "pf.rejection_sample"),
        ("restart", "pf.grids.restart"),
        ("dpm-solver-23", "pf.sample"),
    ):
        with pytest.raises(ValueError, match=f"solver: {name.lower()} .*{re.escape(here)}"):
            pf.get_solver(name)


def test_options() -> None:
    solver = pf.get_solver("dpm-solver-2", r1=0.75)
    assert dict(solver.options) == {"r1": 0.75}
    assert dict(pf.get_solver("dpm-solver-2").options) == {"r1": 0.5}
    with pytest.raises(ValueError, match="no option 'r2'; near names: r1; allowed: r1"):
        pf.get_solver("dpm-solver-2", r2=1)
    with pytest.raises(ValueError, match="ddim has no option 'eta'; allowed: none"):
        pf.get_solver("ddim", eta=1)
    for name, option in (
        ("ddim-eta", "eta"),
        ("dpm-solver++-sde-stock", "eta"),
        ("dpm2-ancestral", "s_noise"),
        ("edm-churn", "S_churn"),
    ):
        for wrong in ("a", None, [1.0]):
            with pytest.raises(TypeError, match=f"{option}: {re.escape(name)} needs a number, got"):
                pf.get_solver(name, **{option: wrong})
    assert pf.get_solver("ddim-eta", eta=np.float32(0.5)).options["eta"] == 0.5
    for r1 in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"r1: need a number in \(0, 1\], got"):
            pf.get_solver("dpm-solver-2", r1=r1).plan(pf.VP.linear(), [0.9, 0.5])


@pytest.fixture
def mine() -> Iterator[pf.Solver]:
    @pf.register_solver(
        "My_Euler",
        reference="here",
        prediction="eps",
        coordinates="ve",
        orders={"tv": 1},
        aliases=["mine_too"],
    )
    def my_euler(step: StepBuilder, scale: float = 1.0) -> Linear:
        """y' = y + scale (rho' - rho) eps."""
        return step.x + scale * (step.s.rho - step.t.rho) * step.model(step.x, step.t)

    yield pf.get_solver("my-euler")
    unregister("my-euler")


def test_a_solver_of_ones_own(mine: pf.Solver) -> None:
    assert mine.name == "my-euler"
    assert pf.get_solver("mine-too") is mine
    assert mine in pf.all_solvers()
    assert dict(mine.options) == {"scale": 1.0}
    process = pf.EDM()
    model = TARGET.model(process)
    ours, ddim = (pf.sample(model, (8, 2), s, 10, seed=0) for s in ("My_Euler", "ddim"))
    torch.testing.assert_close(ours, ddim, rtol=1e-5, atol=1e-5)
    still = pf.sample(model, (8, 2), pf.get_solver(mine, scale=0.0), 10, seed=0)
    torch.testing.assert_close(
        still, pf.sample(model, (8, 2), mine.with_options(scale=0), 1, seed=0)
    )


def test_unregistered_solvers_are_gone(mine: pf.Solver) -> None:
    unregister("mine_too")
    try:
        for name in ("my-euler", "mine-too"):
            with pytest.raises(ValueError, match="no solver is named"):
                pf.get_solver(name)
    finally:
        pf.register_solver("my-euler", reference="h", prediction="eps", orders={})(mine.function)


def test_registration_errors() -> None:
    def register(name: str, **changes: object) -> None:
        fields = {"reference": "here", "prediction": "eps", "orders": {"tv": 1}, **changes}

        def step(step: StepBuilder) -> Linear:
            """x' = x."""
            return step.x

        pf.register_solver(name, **fields)(step)

    with pytest.raises(ValueError, match="name: a solver named 'DDIM' exists already"):
        register("DDIM")
    with pytest.raises(ValueError, match="a solver named 'dpmpp_2m' exists already"):
        register("dpmpp_2m")
    with pytest.raises(ValueError, match="a solver named 'heun' exists already"):
        register("new", aliases=("heun",))
    with pytest.raises(ValueError, match="prediction: got 'noise', allowed are"):
        register("new", prediction="noise")
    with pytest.raises(ValueError, match="coordinates: got 'polar', allowed are"):
        register("new", coordinates="polar")
    with pytest.raises(ValueError, match="new: the step function needs a docstring"):
        pf.register_solver("new", reference="", prediction="eps", orders={})(lambda step: step.x)
    assert "new" not in pf.solver_names()
