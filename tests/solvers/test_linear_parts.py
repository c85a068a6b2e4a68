"""Every step and stage of the exponential SDE methods is exact for a constant model output.

With x0 (or eps) constant the reverse SDE is linear, and stages and update lie on one path of it:
the factors of x, the sums of the weights of outputs, all variances and covariances are known.
Each weight enters one of these, so that none can be wrong unseen, those of the starts included. The
general tests of laws leave out solvers of many variables; here they are as cheap as the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
from mutants import mutant, places
from refused import MANY_VARIABLES
from scipy.integrate import quad

import probflow as pf
from probflow.plan import Plan, Point, Register, X

VP = pf.VP.linear()
TIMES = [0.9, 0.75, 0.55, 0.4, 0.3, 0.22]
FAMILIES = (
    *("sde-exponential-", "sde-dpm-solver", "dpm-solver++-sde", "seeds-", "sa-", "er-sde-"),
    *("sde-lms-", "sde-deis-"),
)
SOLVERS = [
    s
    for s in pf.all_solvers()
    if s.name.startswith(FAMILIES) and not s.name.endswith(("-stock", "-ancestral", "-v"))
]
#: Of v they are exact where x0 and eps turn v rigidly.
TURNING = [s for s in pf.all_solvers() if s.name.startswith("sde-") and s.name.endswith("-v")]


def with_eta(solver: pf.Solver, eta: float) -> pf.Solver:
    if "tau" in solver.options:
        return solver.with_options(tau=math.sqrt(eta))
    if "phi" in solver.options:
        return solver.with_options(phi=lambda rho: rho ** (1 + eta))
    return solver.with_options(eta=eta)


def exact(plan: Plan, eta: float, t: float, u: float) -> tuple[float, float, float]:
    """Factors of x and of the constant output, and the variance, from time t to u."""
    start, stop = Point.many(VP, [t, u])
    h = stop.lambda_ - start.lambda_
    if plan.prediction == "eps":
        growth = -(1 + eta) * stop.sigma * math.expm1(h)
        return stop.alpha / start.alpha, growth, eta * stop.sigma**2 * math.expm1(2 * h)
    decay = stop.sigma / start.sigma * math.exp(-eta * h)
    pull = -stop.alpha * math.expm1(-(1 + eta) * h)
    return decay, pull, -(stop.sigma**2) * math.expm1(-2 * eta * h)


def mistakes(plan: Plan, eta: float) -> list[str]:
    """What is not exact in the plan, to 1e-10."""
    found = []

    def compare(what: str, got: float, wanted: float) -> None:
        if abs(got - wanted) > 1e-10:
            found.append(f"{what}: {got}, exact is {wanted}")

    for number, step in enumerate(plan.steps):
        points = [(stage.time, stage.input) for stage in step.stages] + [(step.stop, step.update)]
        noises: list[dict[Register, float]] = []
        for index, (time, combination) in enumerate(points):
            factor, outputs, variance = exact(plan, eta, step.start, time)
            weights = dict(combination)
            noise = {r: w for r, w in weights.items() if r.kind == "z"}
            where = f"step {number}, part {index}"
            compare(f"{where}, x", weights[X], factor)
            given = sum(w for r, w in weights.items() if r.kind == "f")
            compare(f"{where}, outputs", given, outputs)
            compare(f"{where}, variance", sum(w**2 for w in noise.values()), variance)
            for (before, _), other in zip(points, noises, strict=False):
                shared = sum(w * other.get(r, 0.0) for r, w in noise.items())
                carried = exact(plan, eta, before, time)[0]
                until = exact(plan, eta, step.start, before)[2]
                compare(f"{where}, covariance", shared, carried * until)
            noises.append(noise)
    return found


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_a_constant_output_is_integrated_exactly(solver: pf.Solver, eta: float) -> None:
    plan = with_eta(solver, eta).plan(VP, TIMES, solver.prediction)
    assert mistakes(plan, eta) == []


@pytest.mark.parametrize("name", sorted(MANY_VARIABLES))
def test_a_wrong_weight_is_a_mistake(name: str) -> None:
    solver = with_eta(pf.get_solver(name), 1.0)
    for place in places(solver):
        plan = mutant(solver, place, 1.1).plan(VP, TIMES)
        assert mistakes(plan, 1.0), place


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("solver", TURNING, ids=lambda s: s.name)
def test_a_rigid_turn_is_integrated_exactly(solver: pf.Solver, eta: float) -> None:
    """Outputs that turn rigidly add up to the integral; others count (1 + eta) L as in the ODE."""
    options = {"start": "euler"} if "start" in solver.options else {}
    plan = solver.with_options(eta=eta, **options).plan(VP, TIMES, "v")
    ode = pf.get_solver(solver.name.removeprefix("sde-"), **options).plan(VP, TIMES, "v")
    angles = [math.atan2(VP.sigma(t), VP.alpha(t)) for t in TIMES]
    for number, (step, of_ode) in enumerate(zip(plan.steps, ode.steps, strict=True)):
        t, s = angles[number : number + 2]

        def left(u: float, s: float = s) -> float:
            return (math.cos(u) / math.cos(s)) ** eta

        def integral(turned: Callable[[float], float], left=left, t=t, s=s) -> float:
            return (1 + eta) * quad(lambda u: left(u) * turned(u - t), t, s, epsabs=1e-13)[0]

        weights, without = dict(step.update), dict(of_ode.update)
        of_x, of_v, variance = weights[X], 0.0, 0.0
        for register, weight in weights.items():
            if register.kind == "z":
                variance += weight**2
            if register.kind == "f":
                turn = angles[number - register.age] - t
                of_x -= weight * math.sin(turn)
                of_v += weight * math.cos(turn)
                if register.age:
                    ratio = (1 + eta) * left(angles[number - register.age])
                    assert weight == pytest.approx(ratio * without[register], rel=1e-12)
        assert of_x == pytest.approx(left(t) - integral(math.sin), abs=1e-12)
        assert of_v == pytest.approx(integral(math.cos), abs=1e-12)
        assert variance == pytest.approx(1 - left(t) ** 2, abs=1e-12)


@pytest.mark.parametrize("eta", [0.05, 0.5, 1.5])
def test_a_turn_from_alpha_0_is_integrated_exactly(eta: float) -> None:
    """cos^eta has no derivative there; the weights are right to rounding all the same."""
    process, stop = pf.FlowMatching(), 0.5
    for name in ("sde-exponential-ab1-v", "sde-exponential-ab3-v"):
        plan = pf.get_solver(name, eta=eta).plan(process, [1.0, stop, 0.3], "v")
        last = dict(plan.steps[1].update)  # nothing is left of outputs at alpha = 0
        assert last.get(Register("f", 0, 1), 0.0) == 0.0
    length, size = mpmath.atan2(1 - stop, stop), math.hypot(stop, 1 - stop)  # pi/2 - theta
    weights = dict(
        pf.get_solver("sde-exponential-ab1-v", eta=eta)
        .plan(process, [1.0, stop], "v")
        .steps[0]
        .update
    )
    for register, turned in ((X, lambda u: -mpmath.sin(u)), (Register("f", 0), mpmath.cos)):
        exact = -(1 + eta) * mpmath.quad(
            lambda u, turned=turned: (mpmath.sin(u) / mpmath.sin(length)) ** eta * turned(-u),
            [0, length],
        )
        assert weights[register] == pytest.approx(float(exact) * size, abs=1e-13)
