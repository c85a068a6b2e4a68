"""Deterministic solvers against the formulas as published, their options, and more identities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from limits import limit_of_orders
from thinned import thinned
from torch import Tensor

import probflow as pf
from probflow.integrate import run_plan
from probflow.laws.line import map_distances
from probflow.processes import Process
from probflow.studies import assert_order
from probflow.studies.check import STEPS
from probflow.tableaus import BOSH3, DOPRI5, RK4_CLASSIC, Tableau

TARGET = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
X = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
VP = pf.VP.linear()
PROCESSES: list[Process] = [VP, pf.VE(), pf.EDM(), pf.FlowMatching()]


def run(solver: pf.Solver | str, times: np.ndarray, process: Process = VP) -> Tensor:
    plan = pf.get_solver(solver).plan(process, times, "eps")
    return run_plan(plan, TARGET.model(process), X * process.prior_std(times[0]))


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * float(other.abs().max()))


def eps(x: Tensor, t: float) -> Tensor:
    return TARGET.model(VP)(x, t)


def transfer(x: Tensor, e: Tensor, t: float, s: float) -> Tensor:
    """DDIM, as in eq. 11 of the PNDM paper."""
    ab, ab1 = (float(VP.ab(time)) for time in (t, s))
    x0 = (x - (1 - ab) ** 0.5 * e) / ab**0.5
    return ab1**0.5 * x0 + (1 - ab1) ** 0.5 * e


# PNDM --------------------------------------------------------------------------------------


def pseudo_runge_kutta(x: Tensor, e1: Tensor, t: float, s: float) -> Tensor:
    half = 0.5 * (t + s)
    e2 = eps(transfer(x, e1, t, half), half)
    e3 = eps(transfer(x, e2, t, half), half)
    e4 = eps(transfer(x, e3, t, s), s)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6


def pseudo_heun(x: Tensor, e1: Tensor, t: float, s: float) -> Tensor:
    return (e1 + eps(transfer(x, e1, t, s), s)) / 2


SUMS = {
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


@pytest.mark.parametrize(
    ("start", "first", "steps"),
    [("runge-kutta", pseudo_runge_kutta, 3), ("heun", pseudo_heun, 1)],
    ids=["as published", "skip_prk_steps"],
)
def test_pndm_as_published(start: str, first: Callable[..., Tensor], steps: int) -> None:
    times = pf.grids.uniform(0.98, 0.05).times(VP, 10)
    x, known = X, []
    for number, (t, s) in enumerate(pairwise(times.tolist())):
        known = [eps(x, t), *known][:4]
        if number < steps:
            e = first(x, known[0], t, s)
        else:
            e = sum(w * k for w, k in zip(SUMS[len(known)], known, strict=True))
        x = transfer(x, e, t, s)
    same(run(pf.get_solver("pndm", weights="constant", start=start), times), x)


def test_pndm_is_lms_after_its_start() -> None:
    times = pf.grids.karras().times(VP, 10)
    ours, lms = (pf.get_solver(name).plan(VP, times) for name in ("pndm", "lms-4"))
    assert ours.steps[3:] == lms.steps[3:]
    start = pf.get_solver("edm-rk4").plan(VP, times[:4])
    for step, kutta in zip(ours.steps, start.steps, strict=False):
        assert dict(step.update) == pytest.approx(dict(kutta.update), rel=1e-12)
    assert ours.nfe == 19
    assert pf.get_solver("pndm", start="heun").plan(VP, times).nfe == 11


# Exponential Adams methods in other words ------------------------------------------------------


def quadrature(function: Callable[[np.ndarray], np.ndarray], a: float, b: float) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(40)
    return float(0.5 * (b - a) * (weights @ function(0.5 * (a + b) + 0.5 * (b - a) * nodes)))


def lagrange(nodes: list[float], j: int, at: np.ndarray) -> np.ndarray:
    others = [node for m, node in enumerate(nodes) if m != j]
    return np.prod([(at - node) / (nodes[j] - node) for node in others], axis=0) + 0 * at


def test_sa_solver_without_noise_is_unipc() -> None:
    """Predictor of 3, corrector of 4 outputs, tau = 0 (Xue et al. 2023, arXiv 2309.05019)."""
    times = pf.grids.karras().times(VP, 10)
    lambdas, alphas, sigmas = (f(times) for f in (VP.lambda_, VP.alpha, VP.sigma))
    model = TARGET.model(VP, "x0")

    def advance(x: Tensor, i: int, nodes: list[int], known: dict[int, Tensor]) -> Tensor:
        at = [float(lambdas[k]) for k in nodes]
        x = sigmas[i + 1] / sigmas[i] * x
        for j, k in enumerate(nodes):
            weight = quadrature(
                lambda u, j=j: np.exp(u) * lagrange(at, j, u), lambdas[i], lambdas[i + 1]
            )
            x = x + sigmas[i + 1] * weight * known[k]
        return x

    x, known = X, {0: model(X, float(times[0]))}
    assert alphas[0] > 0
    for i in range(10):
        nodes = [k for k in (i, i - 1, i - 2) if k >= 0]
        predicted = advance(x, i, nodes, known)
        if i < 9:
            known[i + 1] = model(predicted, float(times[i + 1]))
            x = advance(x, i, [i + 1, *nodes], known)
    same(run(pf.get_solver("unipc-3", variant="vary", start="euler"), times), predicted)


def test_deis_in_log_rho_is_exponential_adams() -> None:
    """diffusers' DEIS: polynomials in ln(rho), integrated over rho, low orders at the start."""
    times = pf.grids.karras().times(VP, 10)
    rhos = VP.sigma(times) / VP.alpha(times)
    x, known = X, []
    for i, (t, s) in enumerate(pairwise(times.tolist())):
        known = [eps(x, t), *known][:3]
        nodes = [float(np.log(rhos[i - j])) for j in range(len(known))]
        y = x / float(VP.alpha(t))
        for j, e in enumerate(known):
            weight = quadrature(
                lambda u, j=j, nodes=nodes: lagrange(nodes, j, np.log(u)), rhos[i], rhos[i + 1]
            )
            y = y + weight * e
        x = float(VP.alpha(s)) * y
    same(run(pf.get_solver("exponential-ab3", start="euler"), times), x)


def test_res_multistep_is_exponential_ab2() -> None:
    """b1 = phi1 - phi2/c2, b2 = phi2/c2 (Zhang et al. 2023, arXiv 2308.02157), Euler first."""
    times = pf.grids.karras().times(VP, 10)
    lambdas, model = VP.lambda_(times), TARGET.model(VP, "x0")
    y, old = X / float(VP.alpha(times[0])), None
    for i, h in enumerate(np.diff(lambdas)):
        x0 = model(float(VP.alpha(times[i])) * y, float(times[i]))
        one = -np.expm1(-h) / h
        two = 0.0 if old is None else (1 - one) / (lambdas[i - 1] - lambdas[i])
        y = np.exp(-h) * y + h * ((one - two) * x0 + two * (x0 if old is None else old))
        old = x0
    same(run("exponential-ab2-x0", times), float(VP.alpha(times[-1])) * y)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pf.get_solver("dpm-solver-2m", solver_type="heun"), pf.get_solver("exponential-ab2")),
        (pf.get_solver("dpm-solver++-2m", solver_type="heun"), pf.get_solver("exponential-ab2-x0")),
        (pf.get_solver("exponential-ab1-v"), pf.get_solver("exponential-ab1")),
        (pf.get_solver("exponential-ab1-x0"), pf.get_solver("edm-euler")),
    ],
    ids=lambda s: s.name,
)
def test_identities(one: pf.Solver, other: pf.Solver, process: Process) -> None:
    times = pf.grids.uniform().times(process, 10)
    same(run(one, times, process), run(other, times, process))


# The angle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_methods_in_the_angle_begin_and_end_anywhere(order: int) -> None:
    """From alpha = 0 to sigma = 0: exact for one point, and a limit is reached on a mixture."""
    process = pf.FlowMatching()
    name = f"exponential-ab{order}-v"
    point = torch.tensor([0.7, -1.2], dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return X - point

    plan = pf.get_solver(name).plan(process, [1.0, 0.7, 0.5, 0.2, 0.1, 0.0], "velocity")
    ended = run_plan(plan, pf.Model(velocity, process, "velocity"), X)
    torch.testing.assert_close(ended, point.expand_as(X), rtol=1e-12, atol=1e-12)
    exact, mean = TARGET.model(process, "velocity"), torch.as_tensor(TARGET.weights @ TARGET.means)
    model = pf.Model(lambda x, t: x - mean if t[0] == 1 else exact(x, t), process, "velocity")
    ends = [
        run_plan(pf.get_solver(name).plan(process, np.linspace(1, 0, n + 1), "velocity"), model, X)
        for n in (100, 200, 400)
    ]
    first, second = ((a - b).abs().max() for a, b in pairwise(ends))
    assert torch.log2(first / second) > order - 0.3


# Runge-Kutta methods by their tableaus -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tableau"), [("rk3", BOSH3), ("rk4-classic", RK4_CLASSIC), ("rk5", DOPRI5)]
)
def test_fixed_steps_are_those_of_the_tableau(name: str, tableau: Tableau) -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(3 * t) * y - y**2

    t, h = 0.3, 0.1
    slopes: list[Tensor] = []
    for c, row in zip(tableau.c[: tableau.stages], tableau.a[: tableau.stages], strict=True):
        inner = X + h * sum((a * k for a, k in zip(row, slopes, strict=True)), 0 * X)
        slopes.append(func(torch.tensor(t + c * h, dtype=torch.float64), inner))
    expected = X + h * sum(b * k for b, k in zip(tableau.b, slopes, strict=True))
    same(pf.odeint(func, X, [t, t + h], method=name)[-1], expected)
    assert pf.get_solver(name).nfe == sum(
        any(b != 0 for b in tableau.b[i:]) for i in range(len(slopes))
    )


@pytest.mark.parametrize("name", ["edm-rk3", "edm-rk4"])
def test_runge_kutta_in_log_snr(name: str) -> None:
    solver = pf.get_solver(name, variable="log-snr")
    if name == "edm-rk3":
        assert_order(solver, "strong", steps=STEPS[:-1])
    times = pf.grids.uniform().times(VP, 5)
    assert solver.plan(VP, times).steps != pf.get_solver(name).plan(VP, times).steps
    for other in (solver, pf.get_solver(name)):
        last = other.plan(VP, [0.5, 0.1, 0.0], "eps").steps[-1]
        ddim = pf.get_solver("ddim").plan(VP, [0.5, 0.1, 0.0], "eps").steps[-1]
        assert dict(last.update) == pytest.approx(dict(ddim.update), rel=1e-12)


# Options: which order they have ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "order"),
    thinned(
        [
            (pf.get_solver("strang", inner="heun"), 2),
            (pf.get_solver("unipc-1", variant="vary"), 2),
            (pf.get_solver("unipc-2", variant="vary"), 3),
            (pf.get_solver("dpm-solver++-2m", solver_type="heun"), 2),
            (pf.get_solver("dpm-solver-fast", remainder=1), 2),
            (pf.get_solver("dpm-solver-fast", remainder=0), 2),
            (pf.get_solver("pndm", weights="constant"), 2),
            (pf.get_solver("dpm-solver-2", r1=0.3), 2),
            (pf.get_solver("dpm-solver-2", r1=1.0), 2),
            (pf.get_solver("dpm-solver++-2s", r1=1.0), 2),
            (pf.get_solver("dpm-solver-3", r1=0.5), 3),
            (pf.get_solver("dpm-solver++-3s", r1=0.2), 3),
            (pf.get_solver("exponential-rk2", c2=1.0), 2),
            (pf.get_solver("exponential-rk3", c2=1 / 3, c3=2 / 3), 3),
            (pf.get_solver("dpm-solver-3", inner="midpoint"), 3),
            (pf.get_solver("dpm-solver++-3s", inner="midpoint"), 3),
            (pf.get_solver("dpm-solver++-singlestep-stock", order=1), 1),
            (pf.get_solver("dpm-solver++-singlestep-stock", solver_type="heun"), 2),
            (pf.get_solver("dpm-solver-singlestep-stock", final="lower"), 2),
        ],
        lambda case: f"{case[0].name}-{dict(case[0].options)}",
    ),
)
def test_orders_of_options(solver: pf.Solver, order: float) -> None:
    assert_order(replace(solver, orders={"strong": order}), "strong", steps=STEPS[:-1])


@pytest.mark.parametrize(
    ("solver", "order"),
    thinned(
        [
            *((pf.get_solver(name, start="euler"), 2) for name in ("exponential-ab4-x0", "ab4")),
            (pf.get_solver("deis-tab3", start="euler"), 2),
            *(
                (pf.get_solver(name, final="lower"), 2)
                for name in ("dpm-solver++-2m", "deis-tab3", "unipc-2", "unipc-3")
            ),
            (pf.get_solver("dpm-solver++-3m", factor=1.0), 2),
            (pf.get_solver("dpm-solver-3m", factor=1.0, start="euler"), 2),
            (pf.get_solver("ipndm-2", weights="constant"), 2),
            (pf.get_solver("dpm-solver-2m", solver_type="heun"), 2),
            (pf.get_solver("unipc-1", variant="bh1"), 2),
            (pf.get_solver("unipc-2", variant="bh1"), 3),
            (pf.get_solver("edm-rk4", variable="log-snr"), 4),
            (pf.get_solver("dpm-solver++-3m", solver_type="heun", start="euler"), 2),
        ],
        lambda case: f"{case[0].name}-{dict(case[0].options)}",
    ),
)
def test_orders_of_options_that_come_late(solver: pf.Solver, order: float) -> None:
    """What a low start, a lowered end or a missing factor leaves of the order."""
    assert_order(replace(solver, orders={"strong": order}), "strong", steps=STEPS[1:])


@pytest.mark.slow  # 10 s
@pytest.mark.parametrize("name", ["ipndm-3", "ipndm-4"])
def test_constant_weights_leave_order_2(name: str) -> None:
    solver = replace(pf.get_solver(name, weights="constant"), orders={"strong": 2})
    assert_order(solver, "strong", steps=(16, 32, 64, 128, 256, 512, 1024))


@pytest.mark.slow  # 10 s
@pytest.mark.parametrize("variant", ["bh1", "vary"])
def test_variants_of_unipc_3_have_its_order(variant: str) -> None:
    """Its sums of two outputs, where variants differ, are those of its first steps."""
    assert_order(pf.get_solver("unipc-3", variant=variant), "strong", steps=(*STEPS, 512))


@pytest.mark.parametrize("rest", [0, 2])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(
    "name",
    thinned(["dpm-solver++-singlestep-stock", "dpm-solver-singlestep-stock"], str, every=2),
)
def test_order_3_of_steps_that_are_spread(name: str, solver_type: str, rest: int) -> None:
    """Where the number of steps divides or leaves 2.

    Else the last is of order 1 and its error h^2: test_starts.py shows that of lowered ends.
    """
    solver = pf.get_solver(name, order=3, solver_type=solver_type)
    steps = [3 * n + rest for n in (8, 16, 32, 64, 128)]
    assert_order(replace(solver, orders={"strong": 3}), "strong", steps=steps)


@pytest.mark.slow  # 10 s
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_order_3_of_steps_that_are_spread_unevenly(solver_type: str) -> None:
    """The last stage is at 2/3 + O(h) where neighbouring steps are nearly of one length."""
    solver = pf.get_solver("dpm-solver++-singlestep-stock", order=3, solver_type=solver_type)
    steps = [3 * n for n in (8, 16, 32, 64, 128, 256)]
    grid = pf.grids.uniform(3.0, 0.01, "neg_log_ab")
    assert_order(replace(solver, orders={"strong": 3}), "strong", steps=steps, grid=grid)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_variants_of_unipc_4_are_one(prediction: str) -> None:
    """B(h) matters in sums of two outputs, of which there is none but after an Euler start."""
    times = pf.grids.quadratic().times(VP, 12)
    bh1, bh2, vary = (
        [
            pf.get_solver("unipc-4", variant=v, start=start).plan(VP, times, prediction).steps
            for start in ("runge-kutta", "euler")
        ]
        for v in ("bh1", "bh2", "vary")
    )
    assert bh1[0] == bh2[0] == vary[0]
    assert len({bh1[1], bh2[1], vary[1]}) == 3
    assert bh1[1][4:] == bh2[1][4:] == vary[1][4:]


#: Smooth, and of moderate length: with more than one output of the corrector the error is a sum of
#: two of like size, whose local orders have limits before they show an order.
WIDE = pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[0.6, 0.9])
SHORT = pf.grids.log_snr(-1.0, 1.0, "lambda")


@pytest.mark.parametrize(
    ("predictor", "corrector"),
    [
        pytest.param(p, c, marks=[] if (p, c) in ((1, 1), (2, 3), (4, 0)) else pytest.mark.slow)
        for p in range(1, 5)
        for c in range(5)
    ],
)
def test_orders_of_sa_solver_without_noise(predictor: int, corrector: int) -> None:
    """The lesser of the corrector's outputs and the order of what it corrects."""
    order = min(corrector, predictor + 1) if corrector else predictor
    solver = pf.get_solver("sa-solver", predictor=predictor, corrector=corrector, tau=0.0)
    plans = [solver.plan(VP, SHORT.times(VP, n), "eps") for n in (32, 64, 128, 256)]
    errors = [map_distances(plan, VP, WIDE, 1001)["strong"] for plan in plans]
    limit, error = limit_of_orders(errors)
    assert limit == pytest.approx(order, abs=error), errors
    assert error < 0.25, errors


def test_dpm_solver_fast_counts_evaluations() -> None:
    times = pf.grids.log_snr().times(VP, 5)
    third = pf.get_solver("dpm-solver-3").plan(VP, times).steps
    for remainder, lasts in ((2, [2]), (1, [1]), (0, [2, 1])):
        plan = pf.get_solver("dpm-solver-fast", remainder=remainder).plan(VP, times)
        assert [len(step.stages) for step in plan.steps] == [3] * (5 - len(lasts)) + lasts
        assert plan.nfe % 3 == remainder
        assert plan.steps[: 5 - len(lasts)] == third[: 5 - len(lasts)]


@pytest.mark.parametrize("name", ["dpm-solver-2m", "dpm-solver++-2m", "deis-tab1", "deis-tab3"])
def test_the_last_step_lowered_is_a_ddim_step(name: str) -> None:
    times = pf.grids.log_snr().times(VP, 8)
    usual, lower = (pf.get_solver(name, final=f).plan(VP, times) for f in ("keep", "lower"))
    kept = 7 - pf.get_solver(name).memory
    assert usual.steps[:kept] == lower.steps[:kept]
    assert {register.age for register, _ in lower.steps[-1].update} == {0}
    assert {register.age for register, _ in usual.steps[-1].update} > {0}
