"""Densities by log-determinants, against the line's quadrature and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import DETERMINISTIC, MIXTURE, NARROW, PLANE, VP, name, plan

import probflow as pf
from probflow.laws import Refusal, density_samples, gaussian_law
from probflow.laws.distances import gaussian_kl
from probflow.laws.gaussian import true_law
from probflow.laws.line import map_distances


def within(samples: np.ndarray, exact: float) -> bool:
    return abs(samples.mean() - exact) < 4 * samples.std(ddof=1) / math.sqrt(len(samples))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)
def test_on_the_line(solver: pf.Solver) -> None:
    made = plan(solver, 8)
    samples = density_samples(made, VP, MIXTURE, 4000, generator=seeded(5))
    exact = map_distances(made, VP, MIXTURE)
    assert within(samples["tv"], exact["tv"])
    assert within(samples["kl"], exact["kl"])


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)
def test_kl_of_a_normal_target(solver: pf.Solver) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    target = pf.Gaussian([1.0, 0.0, -1.0], turn @ np.diag([0.5, 0.3, 0.8]) @ turn.T)
    made = plan(solver, 12)
    law, true = gaussian_law(made, VP, target), true_law(VP, target, made.times[-1])
    exact = gaussian_kl(true.mean, true.variance, law.mean, law.variance)
    samples = density_samples(made, VP, target, 4000, generator=seeded(6))
    assert within(samples["kl"], exact)
    assert samples["kl"].min() >= 0


def test_samples_are_exact_ratios() -> None:
    """The density of y is that of x over det J, point by point, for an affine map."""
    target = pf.Gaussian([0.3, -0.2], [0.5, 0.2])
    made = plan("vanilla-ode", 10)
    law, true = gaussian_law(made, VP, target), true_law(VP, target, made.times[-1])
    first = true_law(VP, target, made.times[0])
    point = float(VP.alpha(made.times[0])), float(VP.sigma(made.times[0]))
    x = target.sample(50, *point, generator=seeded(2)).numpy()
    y = law.mean + (x - first.mean) * np.sqrt(law.variance / first.variance)

    def log_density(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return -0.5 * ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum(1)

    ratio = log_density(true.mean, true.variance) - log_density(law.mean, law.variance)
    samples = density_samples(made, VP, target, 50, generator=seeded(2))
    np.testing.assert_allclose(samples["tv"], 0.5 * np.abs(np.expm1(ratio)), rtol=1e-9)


def test_draws_do_not_depend_on_the_plan() -> None:
    tv = [
        density_samples(plan(s, n), VP, PLANE, 400, generator=seeded(0))["tv"]
        for s, n in (("ddim", 16), ("ddim", 32), ("ddim", 16))
    ]
    np.testing.assert_array_equal(tv[0], tv[2])
    assert np.corrcoef(tv[0], tv[1])[0, 1] > 0.8


def test_refusals() -> None:
    with pytest.raises(Refusal, match="ddpm is stochastic"):
        density_samples(plan("ddpm", 4), VP, PLANE, 8, generator=seeded(0))
    with pytest.raises(Refusal, match=r"heun with 2 steps: det J changes sign at \d+ of 500"):
        density_samples(plan("heun", 2), VP, NARROW, 500, generator=seeded(0))
