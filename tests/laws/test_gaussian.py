"""Moments of plans under a Gaussian target: written-out recursions, axes, and samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import MIXTURE, VP, Draws, name, plan

import probflow as pf
from probflow.integrate import run_plan
from probflow.laws import Refusal, gaussian_law
from probflow.laws.gaussian import true_law

LAMBDAS = np.array([2.0, 0.3, 1e-2])
TARGET = pf.Gaussian([1.0, -2.0, 0.5], LAMBDAS)

RECURSIONS: dict[str, Callable] = {
    "ddpm": lambda V, v, b: ((1 - b / v) ** 2 * V + b) / (1 - b),
    "ddpm-beta": lambda V, v, b: (1 - b / v) ** 2 * V / (1 - b) + b,
    "accelerated-sde": lambda V, v, b: ((1 - b / v) ** 2 * (V + b / 2) + b / 2) / (1 - b),
    "accelerated-sde-readme": lambda V, v, b: (1 - b / v) ** 2 * (V + b / 2) / (1 - b) + b / 2,
    "accelerated-sde-half-noise": lambda V, v, b: (
        ((1 - b / v) ** 2 * V + b * (1 - b / (2 * v)) ** 2) / (1 - b)
    ),
    "accelerated-sde-jvp": lambda V, v, b: (
        ((1 - b / v) ** 2 * V + b * (1 - b / (2 * v)) ** 2) / (1 - b)
    ),
    "accelerated-sde-3": lambda V, v, b: (
        ((1 - b / v) ** 2 * V + b * (1 - b / (2 * v)) ** 2 + b * (b / (3 * v)) ** 2) / (1 - b)
    ),
    "vanilla-ode": lambda V, v, b: (1 - b / (2 * v)) ** 2 * V / (1 - b),
}


@pytest.mark.parametrize("solver", RECURSIONS)
def test_variance_recursions(solver: str) -> None:
    """THEORY, section 2, per eigenvalue lambda with v = ab lambda + 1 - ab."""
    made = plan(solver, 20)
    ab = np.exp(-VP.neg_log_ab(np.array(made.times)))
    V = ab[0] * LAMBDAS + 1 - ab[0]
    for t, s in itertools.pairwise(ab):
        V = RECURSIONS[solver](V, t * LAMBDAS + 1 - t, 1 - t / s)
    np.testing.assert_allclose(gaussian_law(made, VP, TARGET).variance, V, rtol=1e-11)


@pytest.mark.parametrize("solver", pf.all_solvers(), ids=name)
def test_axes_do_not_matter(solver: pf.Solver) -> None:
    """A rotated target has the rotated law."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotated = pf.Gaussian(turn @ [1.0, -2.0, 0.5], turn @ np.diag(LAMBDAS) @ turn.T)
    made = plan(solver, 9)
    law, other = gaussian_law(made, VP, TARGET), gaussian_law(made, VP, rotated)
    np.testing.assert_allclose(other.covariance, turn @ law.covariance @ turn.T, atol=1e-11)
    np.testing.assert_allclose(other.axes @ other.mean, turn @ law.mean, atol=1e-11)


@pytest.mark.parametrize("solver", pf.all_solvers(), ids=name)
def test_moments_of_samples(solver: pf.Solver) -> None:
    """The tensor loop's samples have the law's mean and variance, at 4 standard errors."""
    n, made = 20_000, plan(solver, 7)
    start = true_law(VP, TARGET, made.times[0])
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    x = torch.tensor(start.mean) + torch.tensor(start.variance).sqrt() * noise
    draws = Draws(shape=(n, 3), seed=4)
    y = run_plan(made, TARGET.model(VP), x, noise=draws).numpy()
    law = gaussian_law(made, VP, TARGET)
    z = (y.mean(0) - law.mean) / np.sqrt(law.variance / n)
    ratio = (y.var(0) / law.variance - 1) / math.sqrt(2 / n)
    assert np.abs(np.concatenate([z, ratio])).max() < 4


def test_true_law_is_the_targets_moments() -> None:
    law = true_law(VP, TARGET, 0.4)
    alpha, sigma = float(VP.alpha(0.4)), float(VP.sigma(0.4))
    mean, covariance = TARGET.moments(alpha, sigma)
    np.testing.assert_allclose(law.mean, mean)
    np.testing.assert_allclose(law.covariance, covariance)


def test_beta_variance_is_exact_on_the_standard_normal() -> None:
    for steps in (1, 3, 50):
        made = plan("ddpm-beta", steps)
        law = gaussian_law(made, VP, pf.Gaussian([0.0], 1.0))
        assert law.variance[0] == pytest.approx(1, abs=1e-13)


def test_other_targets_are_refused() -> None:
    with pytest.raises(Refusal, match="moments determine the law of Gaussian targets only"):
        gaussian_law(plan("ddim", 4), VP, MIXTURE)


def test_a_call_at_alpha_0_is_refused() -> None:
    plan = pf.get_solver("exponential-ab1-v").plan(pf.FlowMatching(), [1.0, 0.5], "v")
    with pytest.raises(ValueError, match="the model is called at t = 1, where alpha = 0"):
        gaussian_law(plan, pf.FlowMatching(), pf.Gaussian([0.0], 1.0))
