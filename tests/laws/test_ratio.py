"""Density ratios of stochastic plans: means over paths against quadrature and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import LOG_SNR, MIXTURE, PLANE, VP, plan
from scipy import stats

import probflow as pf
from probflow.laws import Refusal, density_samples, distances_1d, line_law
from probflow.laws.distances import chi2_on_grid
from probflow.laws.gaussian import gaussian_law, true_law
from probflow.laws.ratio import PATHS, chi2_samples, ratio_samples
from probflow.plan import Point
from probflow.studies import study
from probflow.studies.measure import Settings, measure
from probflow.studies.perturbed import Product

KERNELS = ["ddpm", "accelerated-sde", "accelerated-sde-half-noise", "accelerated-sde-jvp"]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1) / math.sqrt(len(samples)))


@pytest.mark.parametrize("solver", KERNELS)
def test_ratios_are_those_of_the_quadrature(solver: str) -> None:
    """At every point the mean over many paths is p/q there, within its own error."""
    own = plan(solver, 16)
    n, paths = 12, 4000
    weights = ratio_samples(own, VP, MIXTURE, n, paths, generator=draws())
    [end] = Point.many(VP, [own.times[-1]])
    y = MIXTURE.sample(n, end.alpha, end.sigma, generator=draws())
    law = line_law(own, VP, MIXTURE)
    exact = np.interp(y[:, 0], law.x, law.density) / np.exp(
        MIXTURE.log_prob(y, end.alpha, end.sigma).numpy()
    )
    spread = weights.std(dim=1).numpy() / math.sqrt(paths)
    assert (spread < 0.05).all()
    assert (abs(weights.mean(dim=1).numpy() - exact) < 4 * spread + 1e-3).all()


@pytest.mark.parametrize("solver", KERNELS)
def test_chi2_on_the_line(solver: str) -> None:
    own = plan(solver, 16)
    samples = chi2_samples(own, VP, MIXTURE, 1000, generator=draws())
    exact = distances_1d(own, VP, MIXTURE)["chi2"]
    assert abs(samples.mean() - exact) < 4 * error(samples)
    assert error(samples) < 0.25 * exact


def test_no_bias_where_noise_is_larger_than_the_distance() -> None:
    """ddpm with 32 steps: weights vary by 0.7, the ratio by 0.09. A plain square would say 0.02."""
    own = plan("ddpm", 32)
    samples = np.concatenate(
        [chi2_samples(own, VP, MIXTURE, 250, generator=draws(s)) for s in range(6)]
    )
    exact = distances_1d(own, VP, MIXTURE)["chi2"]
    weights = ratio_samples(own, VP, MIXTURE, 250, PATHS, generator=draws())
    plain = float((weights.mean(dim=1) - 1).square().mean())
    assert plain > 2 * exact
    assert abs(samples.mean() - exact) < 3.5 * error(samples) < 1.5 * exact
    assert samples.min() < 0  # of either sign


@pytest.mark.parametrize("solver", ["ddpm", "accelerated-sde"])
def test_products_multiply(solver: str) -> None:
    """1 + chi^2 of independent coordinates is the product of theirs."""
    other = pf.Gaussian([0.4], [0.3])
    own = plan(solver, 16)
    exact = 1.0
    for factor in (MIXTURE, other):
        exact *= 1 + distances_1d(own, VP, factor)["chi2"]
    samples = chi2_samples(own, VP, Product([MIXTURE, other]), 800, generator=draws())
    assert abs(samples.mean() - (exact - 1)) < 4 * error(samples)
    assert error(samples) < 0.4 * (exact - 1)


def test_normal_laws_have_a_closed_form() -> None:
    target = pf.Gaussian([0.3, -0.2, 0.1], [0.5, 0.2, 1.5])
    own = plan("accelerated-sde", 16)
    law, true = gaussian_law(own, VP, target), true_law(VP, target, own.times[-1])
    p, q = law.variance, true.variance
    assert (2 * q > p).all()
    shift = (law.mean - true.mean) ** 2 / (2 * q - p)
    exact = np.prod(q / np.sqrt(p * (2 * q - p)) * np.exp(shift)) - 1
    samples = chi2_samples(own, VP, target, 1000, generator=draws())
    assert abs(samples.mean() - exact) < 4 * error(samples) < exact


def test_deterministic_plans_by_their_density() -> None:
    own = plan("ddim", 16)
    samples = density_samples(own, VP, MIXTURE, 4000, generator=draws())
    exact = distances_1d(own, VP, MIXTURE)
    assert abs(samples["chi2"].mean() - exact["chi2"]) < 4 * error(samples["chi2"])
    assert exact["tv"] <= 0.5 * math.sqrt(exact["chi2"])


def test_sums_on_a_grid_against_more_digits() -> None:
    x = np.linspace(-12, 12, 4001)
    q, p = stats.norm.pdf(x), stats.norm.pdf(x, 0.3, 1.1)
    ratio = stats.norm.logpdf(x, 0.3, 1.1) - stats.norm.logpdf(x)
    exact = 1 / (1.1 * math.sqrt(2 - 1.21)) * math.exp(0.09 / (2 - 1.21)) - 1
    assert chi2_on_grid(q, p, ratio, x[1] - x[0]) == pytest.approx(exact, rel=1e-10)
    ratio = 1e-9 * x - 0.5e-18
    assert chi2_on_grid(q, q * np.exp(ratio), ratio, x[1] - x[0]) == pytest.approx(1e-18, rel=1e-6)


# As a measure -----------------------------------------------------------------------------------


def test_orders_in_the_plane() -> None:
    """What a total variation has no estimate for: a stochastic solver's marginal law in d dims."""
    result = study(PLANE, "accelerated-sde", (4, 8, 16, 32), "chi2", grid=LOG_SNR, samples=300)
    [estimate] = result.orders()
    assert estimate.claim == 1.0
    assert all(row.status == "ok" and row.se < 0.25 * row.error for row in result.rows)
    assert 0.7 < result.rows[-1].eoc < 1.3
    [tv] = study(PLANE, "ddpm", (8,), "tv").rows
    assert "tv takes the noise of that mean for distance; measure chi2" in tv.status


def test_the_bound_on_tv() -> None:
    for solver in ("ddim", "ddpm"):
        own = plan(solver, 32)
        tv, chi2 = (measure(name, own, VP, MIXTURE, Settings()).error for name in ("tv", "chi2"))
        assert tv <= chi2 < 2 * tv


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("ddim", "ddim is deterministic"),
        ("accelerated-sde-3", "a step with a second noise inside the model"),
        ("sa-solver", "sa-solver: the law of one step is not a product of known kernels"),
    ],
)
def test_refusals(solver: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        ratio_samples(plan(solver, 4), VP, PLANE, 4, 2, generator=draws())


def test_steps_without_noise() -> None:
    grid = pf.grids.explicit([0.9, 0.5, 0.0])  # sigma' = 0: the posterior variance is, too
    own = pf.get_solver("ddpm-posterior").plan(VP, grid.times(VP, 2), "eps")
    with pytest.raises(Refusal, match="a step without noise has no density"):
        ratio_samples(own, VP, PLANE, 4, 2, generator=draws())
