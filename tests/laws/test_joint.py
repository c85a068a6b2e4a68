"""Laws of plans whose state is three variables or more."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import MIXTURE, NORMAL, VP, Draws, plan

import probflow as pf
from probflow.integrate import run_plan
from probflow.laws import Refusal, distances_1d, gaussian_law, joint, line_law
from probflow.laws.distances import tv_on_grid
from probflow.laws.joint import joint_law
from probflow.laws.pair import pair_law
from probflow.laws.quadrature import true_log_density
from probflow.laws.variables import TooManyVariables, holdings, unroll
from probflow.plan import Linear, Plan, StepBuilder
from probflow.solvers import Solver

#: One variable, then pairs: what the other engines know better.
FEWER = ["accelerated-sde", "sde-exponential-ab2", "dpm-solver++-sde", "er-sde-2", "sde-heun"]
MORE = [
    *("er-sde-3", "sa-solver", "sde-dpm-solver++-3m", "sde-exponential-ab3"),
    *("sde-exponential-rk3", "sde-exponential-rk4", "seeds-3"),
]
TWO = [name for name in MORE if name != "sa-solver"]  # older variables at a time


def tv(made: Plan) -> tuple[float, float]:
    """TV from the true law, and the estimate of what it is wrong by, relative to it."""
    law = joint_law(made, VP, MIXTURE)
    true = np.exp(true_log_density(VP, MIXTURE, made.times[-1], law.x))
    value = tv_on_grid(true, law.density, law.dx)
    return value, law.error / value


# Structure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("accelerated-sde", [0] * 9),
        ("sde-exponential-ab2", [0, 1, 1, 1, 0]),
        ("sde-heun", [0, 1, 1, 1, 1]),  # given u, the next state is a function of x
        ("sde-dpm-solver++-3m", [0, 1, 1, 2, 2, 0]),  # its start takes a stage
        ("sa-solver", [0, 1, 2, 1, 2, 3, 0]),
        ("seeds-3", [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]),
        ("sde-exponential-rk4", [0, *[1, 1] * 4]),  # stages 2 and 4 have no noise of their own
    ],
)
def test_how_many_older_variables_are_held(name: str, held: list[int]) -> None:
    assert [len(h.keep) for h in holdings(unroll(plan(name, 4)), name)] == held


def test_an_output_at_a_mixture_of_old_and_new_is_held_through_its_input() -> None:
    """u = x + z, v = u + f(x); x' = v + f(v): v is held, or what it is of."""

    def step(step: StepBuilder) -> Linear:
        noise = 0.3 * step.noise()
        first = step.model(step.x + noise, step.t)
        inner = step.model(step.x + 0.1 * first, step.t)
        return step.x + 0.1 * step.model(step.x + 0.1 * inner + noise, step.t)

    made = Solver("mine", step, "here", "eps", stochastic=True).plan(VP, [0.9, 0.8, 0.7])
    law, exact = joint_law(made, VP, NORMAL), gaussian_law(made, VP, NORMAL)
    mean = float(law.x @ law.density * law.dx)
    assert mean == pytest.approx(float(exact.mean[0]), rel=1e-9)
    variance = float((law.x - mean) ** 2 @ law.density * law.dx)
    assert variance == pytest.approx(float(exact.variance[0]), rel=1e-9)


# Numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEWER)
def test_pairs_and_single_variables_are_special_cases(name: str) -> None:
    """Two engines, one law, as nearly as this one says that it knows it."""
    made = plan(name, 16)
    got, error = tv(made)
    assert error < 1e-3
    assert got == pytest.approx(distances_1d(made, VP, MIXTURE)["tv"], rel=max(error, 1e-8))


@pytest.mark.parametrize("name", MORE)
def test_normal_target_has_the_law_of_its_moments(name: str) -> None:
    """As nearly as that: no variable is bent, so that few nodes are exact."""
    made = plan(name, 8)
    exact, law = gaussian_law(made, VP, NORMAL), line_law(made, VP, NORMAL)
    mean, variance = exact.mean[0], exact.variance[0]
    density = np.exp(-((law.x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    gap = 0.5 * float(np.abs(law.density - density).sum() * law.dx)
    assert gap < max(law.error, 1e-9)
    assert law.error < 1e-4


@pytest.mark.parametrize(
    "name", [n if n == "seeds-3" else pytest.param(n, marks=pytest.mark.slow) for n in TWO]
)
def test_the_error_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finer grids and more nodes move the law by no more than its own estimate."""
    made = plan(name, 12)
    usual, error = tv(made)
    assert error < 0.1
    monkeypatch.setattr(joint, "RESOLVE_KERNEL", 2.8)
    monkeypatch.setattr(joint, "RESOLVE_DENSITY", 0.2)
    monkeypatch.setattr(joint, "NODES", joint.NODES | {1: (16,), 2: (11, 11)})
    assert usual == pytest.approx(tv(made)[0], rel=max(error, 1e-7))


@pytest.mark.slow  # 2 minutes
@pytest.mark.parametrize("name", MORE)
def test_law_against_samples(name: str) -> None:
    """Shares of samples in bins against the law's masses: chi^2 at 4 standard deviations."""
    n, bins, made = 400_000, 100, plan(name, 16)
    start = float(VP.alpha(made.times[0])), float(VP.sigma(made.times[0]))
    x = MIXTURE.sample(n, *start, generator=torch.Generator().manual_seed(5))
    y = run_plan(made, MIXTURE.model(VP), x, noise=Draws(shape=(n, 1))).numpy()[:, 0]
    law = line_law(made, VP, MIXTURE)
    cumulative = np.concatenate([[0], np.cumsum(law.density[1:] + law.density[:-1]) * law.dx / 2])
    edges = np.interp(np.linspace(0, 1, bins + 1)[1:-1], cumulative, law.x)
    counts = np.bincount(np.searchsorted(edges, y), minlength=bins)
    chi2 = float(((counts - n / bins) ** 2 / (n / bins)).sum())
    assert abs(chi2 - (bins - 1)) < 4 * math.sqrt(2 * (bins - 1))


# Refusals ----------------------------------------------------------------------------------------


def test_too_many_variables_are_refused() -> None:
    def many(step: StepBuilder) -> Linear:
        x0 = step.model(step.x, step.t)
        for before in step.previous:
            x0 = x0 + 0.1 * (x0 - before.outputs[0])
        return 0.9 * step.x + 0.1 * x0 + 0.1 * step.noise()

    solver = Solver("many", many, "here", "x0", stochastic=True, memory=6)
    with pytest.raises(TooManyVariables, match=r"many: .* depends on 5 random variables at once"):
        line_law(plan(solver, 9), VP, MIXTURE)


def test_a_law_that_is_not_resolved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "FEWER_NODES", joint.FEWER_NODES | {1: (1,), 2: (1, 1)})
    message = r"seeds-3 with 5 steps: the joint law of its variables .* take more steps"
    with pytest.raises(Refusal, match=message):
        distances_1d(plan("seeds-3", 5), VP, MIXTURE)


def test_a_last_step_that_folds_is_refused() -> None:
    """x' = f(u) with u = x + z, and f not increasing: the density has several branches."""

    def step(step: StepBuilder) -> Linear:
        noise = step.noise()
        return step.x + 4.0 * step.model(step.x + noise, step.t) - noise

    made = Solver("mine", step, "here", "x0", stochastic=True).plan(VP, [0.9, 0.8, 0.7])
    with pytest.raises(Refusal, match="makes a density too sharp for the grid"):
        joint_law(made, VP, MIXTURE)


def test_other_refusals() -> None:
    with pytest.raises(Refusal, match="ddim draws no noise: it is a map; use map_distances"):
        joint_law(plan("ddim", 4), VP, MIXTURE)
    with pytest.raises(Refusal, match="a 1-D law was asked for"):
        joint_law(plan("seeds-3", 4), VP, pf.Gaussian([0.0, 0.0], 1.0))
    made = plan("sde-exponential-ab3", 3, grid=pf.grids.log_snr(1e-9, 1e-11, "neg_log_ab"))
    with pytest.raises(Refusal, match=r"sde-exponential-ab3: resolving the kernels .* would take"):
        joint_law(made, VP, MIXTURE)
    assert pair_law(plan("sde-exponential-ab2", 4), VP, MIXTURE).error == 0.0
