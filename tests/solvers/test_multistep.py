"""Multistep and single-step exponential integrators: identities, published forms, options."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import probflow as pf
from probflow.integrate import run_plan
from probflow.processes import Process

TARGET = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
X = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
VP = pf.VP.linear()
UNIFORM = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")  # uniform in log-SNR
PROCESSES: list[Process] = [VP, pf.VE(), pf.EDM(), pf.FlowMatching()]


def run(solver: pf.Solver | str, times: np.ndarray, process: Process = VP) -> Tensor:
    plan = pf.get_solver(solver).plan(process, times, "eps")
    return run_plan(plan, TARGET.model(process), X * process.prior_std(times[0]))


# Identities --------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pf.get_solver("dpm-solver++-3m"), pf.get_solver("exponential-ab3-x0")),
        (pf.get_solver("dpm-solver-3m"), pf.get_solver("exponential-ab3")),
        (pf.get_solver("dpm-solver-3"), pf.get_solver("exponential-rk3", c2=1 / 3, c3=2 / 3)),
        (pf.get_solver("ipndm-2"), pf.get_solver("lms-2")),
        (pf.get_solver("ipndm-4"), pf.get_solver("deis-rhoab3")),
        (pf.get_solver("edm-heun"), pf.get_solver("dpm-solver-2", r1=1.0)),
    ],
    ids=lambda s: s.name,
)
def test_identities_on_any_grid(one: pf.Solver, other: pf.Solver, process: Process) -> None:
    times = pf.grids.uniform().times(process, 10)
    size = float(run(one, times, process).abs().max())
    torch.testing.assert_close(
        run(one, times, process), run(other, times, process), rtol=0, atol=1e-10 * size
    )


def test_ipndm_as_published_is_dpm_solver_2m_where_log_snr_is_uniform() -> None:
    published = pf.get_solver("ipndm-2", weights="constant")
    times = UNIFORM.times(VP, 10)
    torch.testing.assert_close(run(published, times), run("dpm-solver-2m", times))
    other = pf.grids.uniform(3.0, 0.01, "neg_log_ab").times(VP, 10)
    assert (run(published, other) - run("dpm-solver-2m", other)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name", ["deis-tab1", "lms-2", "exponential-ab2", "exponential-ab2-x0", "dpm-solver-2m"]
)
def test_one_step_of_a_two_step_method_is_ddim(name: str) -> None:
    torch.testing.assert_close(run(name, [0.9, 0.6]), run("ddim", [0.9, 0.6]))


def test_polynomials_in_t_are_polynomials_in_rho_where_these_are_the_same() -> None:
    """The time of EDM is rho."""
    times = pf.grids.karras().times(pf.EDM(), 10)
    for deis, lms in (("deis-tab1", "lms-2"), ("deis-tab2", "lms-3"), ("deis-tab3", "lms-4")):
        ours, theirs = run(deis, times, pf.EDM()), run(lms, times, pf.EDM())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_polynomials_in_t_are_exponential_where_time_is_log_snr() -> None:
    """The time of VE is affine in log-SNR."""
    process = pf.VE()
    times = pf.grids.karras().times(process, 10)
    for deis, exponential in (("deis-tab1", "exponential-ab2"), ("deis-tab3", "exponential-ab4")):
        ours, theirs = run(deis, times, process), run(exponential, times, process)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * float(theirs.abs().max()))


@pytest.mark.parametrize("form", ["eps", "x0"])
def test_dpm_solver_2m_is_the_taylor_form_of_the_exponential_method(form: str) -> None:
    """The exact weight of the stored output is S h phi_2/r; 2M has phi_1/2 for phi_2."""
    exact = pf.get_solver("exponential-ab2" if form == "eps" else "exponential-ab2-x0")
    taylor = pf.get_solver("dpm-solver-2m" if form == "eps" else "dpm-solver++-2m")
    times = pf.grids.uniform().times(VP, 10)
    lambdas = VP.lambda_(times)
    stored = pf.plan.Register("f", 0, 1)
    weights = [
        [dict(step.update)[stored] for step in solver.plan(VP, times, form).steps[1:]]
        for solver in (exact, taylor)
    ]
    for step, (of_exact, of_taylor) in enumerate(zip(*weights, strict=True), start=1):
        z = (lambdas[step + 1] - lambdas[step]) * (1 if form == "eps" else -1)
        ratio = 0.5 * (np.expm1(z) / z) / ((np.expm1(z) - z) / z**2)
        assert of_taylor / of_exact == pytest.approx(ratio, rel=1e-9)


# UniPC, literally ---------------------------------------------------------------------------


def literal_unipc(times: np.ndarray, order: int, variant: str) -> Tensor:
    """Predict, evaluate, correct, keeping all states; the systems are solved as in the paper."""
    lambdas, alphas, sigmas = (f(times) for f in (VP.lambda_, VP.alpha, VP.sigma))
    model = TARGET.model(VP, "x0")

    def x0(x: Tensor, i: int) -> Tensor:
        return model(x, torch.full((len(x),), float(times[i]), dtype=torch.float64))

    def advance(x: Tensor, i: int, known: list[Tensor], count: int, new: Tensor | None) -> Tensor:
        """From i to i + 1, with ``known[i], known[i - 1], ...`` and perhaps the new output."""
        h = lambdas[i + 1] - lambdas[i]
        big = -np.expm1(-h) if variant == "bh2" else h
        nodes = [(lambdas[i - m] - lambdas[i]) / h for m in range(1, count)]
        slopes = [(known[i - m] - known[i]) / r for m, r in enumerate(nodes, start=1)]
        if new is not None:
            nodes.append(1.0)
            slopes.append(new - known[i])
        x = sigmas[i + 1] / sigmas[i] * x - alphas[i + 1] * np.expm1(-h) * known[i]
        if not nodes:
            return x
        # moments of theta^k, k >= 1, under exp(-(1 - theta) h), by quadrature
        u, w = np.polynomial.legendre.leggauss(30)
        u, w = 0.5 * (u + 1), 0.5 * w * np.exp(-0.5 * h * (1 - u))
        right = [h / big * float(w @ u**k) for k in range(1, len(nodes) + 1)]
        left = [[r ** (k - 1) for r in nodes] for k in range(1, len(nodes) + 1)]
        solved = len(nodes) > 1 or variant == "vary"
        rho = np.linalg.solve(left, right) if solved else [0.5]
        return x + alphas[i + 1] * big * sum(r * d for r, d in zip(rho, slopes, strict=True))

    x, known = X, [x0(X, 0)]
    for i in range(len(times) - 1):
        count = min(order, i + 1)
        predicted = advance(x, i, known, count, None)
        if i == len(times) - 2:
            return predicted
        known.append(x0(predicted, i + 1))
        x = advance(x, i, known, count, known[-1])
    raise AssertionError


@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc_is_that_of_the_paper(order: int, variant: str) -> None:
    times = pf.grids.karras().times(VP, 10)
    options = {"variant": variant} | ({"start": "euler"} if order > 2 else {})
    ours = run(pf.get_solver(f"unipc-{order}", **options), times)
    torch.testing.assert_close(ours, literal_unipc(times, order, variant), rtol=0, atol=1e-9)


# Options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", pf.all_solvers(), ids=lambda s: s.name)
def test_options_are_checked(solver: pf.Solver) -> None:
    names = {"start", "final", "variant", "weights", "solver_type", "variable", "inner"}
    for option in {*names, "remainder"} & set(solver.options):
        wrong = solver.with_options(**{option: "middle"})
        with pytest.raises(ValueError, match=f"{option}: got 'middle', allowed are"):
            wrong.plan(VP, UNIFORM.times(VP, 6))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exponential-rk2", {"c2": 0.0}, r"c2: need a number in \(0, 1\]"),
        ("exponential-rk3", {"c3": 2.0}, r"c3: need a number in \(0, 1\]"),
        ("exponential-rk3", {"c2": 2 / 3}, "c2, c3: no method of order 3"),
        ("exponential-rk3", {"c2": 0.5, "c3": 0.5}, "c2, c3: no method of order 3"),
        ("dpm-solver-3", {"r1": 0.7}, "r1: must lie between 0 and 2/3"),
        ("dpm-solver++-3s", {"r1": 0.0}, "r1: must lie between 0 and 2/3"),
        ("dpm-solver++-2s", {"r1": 1.5}, r"r1: need a number in \(0, 1\]"),
    ],
)
def test_fractions_are_checked(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.get_solver(name, **options).plan(VP, [0.9, 0.5])


@pytest.mark.parametrize(
    ("name", "extra"),
    [("exponential-ab3", 1), ("lms-4", 4), ("deis-tab3", 4), ("ab4", 4), ("unipc-3", 2)],
)
def test_a_start_of_low_order_costs_no_more_evaluations(name: str, extra: int) -> None:
    times = UNIFORM.times(VP, 10)
    assert pf.get_solver(name).plan(VP, times).nfe == 10 + extra
    assert pf.get_solver(name, start="euler").plan(VP, times).nfe == 10


def test_lowered_final_orders() -> None:
    """The last step is a DDIM step, the one before of order 2."""
    times = UNIFORM.times(VP, 10)
    usual, lower = (
        pf.get_solver("dpm-solver-3m", final=f).plan(VP, times) for f in ("keep", "lower")
    )
    assert lower.steps[:8] == usual.steps[:8]
    assert {r.age for r, _ in lower.steps[8].update} == {0, 1}
    assert {r.age for r, _ in lower.steps[9].update} == {0}


@pytest.mark.parametrize("name", ["dpm-solver-3m", "dpm-solver++-3m"])
def test_published_dpm_solver_3m_lacks_a_factor(name: str) -> None:
    published = pf.get_solver(name, factor=1.0)
    [estimate] = pf.studies.check_order(published, "strong")
    assert (estimate.claim, estimate.verdict) == (2, "consistent")
    assert estimate.order == pytest.approx(2, abs=0.1)
    [estimate] = pf.studies.check_order(replace(published, leaves=lambda options: 3), "strong")
    assert (estimate.claim, estimate.verdict) == (3, "slower")


@pytest.mark.parametrize("process", [VP, pf.EDM(), pf.FlowMatching()], ids=repr)
def test_the_last_step_to_no_noise_is_a_ddim_step(process: Process) -> None:
    """Where log-SNR is infinite no polynomial in it can be integrated."""
    times = [0.9, 0.7, 0.5, 0.3, 0.1, 0.0]
    for name in ("exponential-ab3", "dpm-solver-3m", "dpm-solver-2m", "dpm-solver-3"):
        last = pf.get_solver(name).plan(process, times, "eps").steps[-1]
        ddim = pf.get_solver("ddim").plan(process, times, "eps").steps[-1]
        assert dict(last.update) == pytest.approx(dict(ddim.update), rel=1e-13)
