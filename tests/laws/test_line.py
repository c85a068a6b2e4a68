"""Exact laws on the line: closed forms, refinement, reference numbers, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from cases import (
    ALL,
    EXPONENTIAL,
    LOG_SNR,
    MIXTURE,
    NARROW,
    NORMAL,
    VP,
    Draws,
    name,
    plan,
)
from thinned import thinned

import probflow as pf
from probflow.integrate import run_plan
from probflow.laws import GaussianLaw, Refusal, distances_1d, gaussian_law, line_law
from probflow.laws.distances import gaussian_kl, gaussian_w2
from probflow.laws.gaussian import true_law
from probflow.laws.line import inverse_of_inner, law_distances, map_distances, true_log_density
from probflow.laws.registers import ExactModel, kernels
from probflow.studies.measure import FLOORS, FLOORS_STOCHASTIC


def normal_tv(q: GaussianLaw, p: GaussianLaw) -> float:
    """TV of two normal laws on the line, from the points where the densities cross."""
    with mpmath.workdps(40):
        mq, vq, mp, vp = (mpmath.mpf(float(v[0])) for v in (q.mean, q.variance, p.mean, p.variance))
        a, b = 1 / vp - 1 / vq, -2 * (mp / vp - mq / vq)
        c = mp**2 / vp - mq**2 / vq + mpmath.log(vp / vq)
        root = mpmath.sqrt(b * b - 4 * a * c)
        gaps = [0]
        for x in sorted([(-b - root) / (2 * a), (-b + root) / (2 * a)]):
            left = mpmath.ncdf((x - mq) / mpmath.sqrt(vq))
            gaps.append(left - mpmath.ncdf((x - mp) / mpmath.sqrt(vp)))
        return float(sum(abs(y - x) for x, y in zip(gaps, [*gaps[1:], 0], strict=True)) / 2)


@pytest.mark.parametrize("steps", [4, 64])
@pytest.mark.parametrize("solver", ALL, ids=name)
def test_normal_target_has_the_law_of_its_moments(solver: pf.Solver, steps: int) -> None:
    """Two engines, one law. TV of stochastic plans loses tails of 1e-12, W2 is second order."""
    if solver.name == "sde-dpm-solver++-singlestep-stock" and steps == 4:
        pytest.skip("so narrow a law that its density is 0 in float64 where the true one is not")
    made = plan(solver, steps)
    law, true = gaussian_law(made, VP, NORMAL), true_law(VP, NORMAL, made.times[-1])
    moments = true.mean, true.variance, law.mean, law.variance
    got = distances_1d(made, VP, NORMAL)
    assert got["tv"] == pytest.approx(normal_tv(true, law), rel=1e-8, abs=1e-12)
    assert got["kl"] == pytest.approx(gaussian_kl(*moments), rel=1e-8, abs=1e-16)
    tolerance = 3e-5 if solver.stochastic else 1e-8
    assert got["w2"] == pytest.approx(gaussian_w2(*moments), rel=tolerance, abs=1e-13)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++-2m", "midpoint", "edm-heun"])
@pytest.mark.parametrize("steps", [1, 2])
def test_coarse_maps_count_the_mass_outside_their_image(solver: str, steps: int) -> None:
    """With one step DDIM contracts so much that 1 % of the true law lies beyond 8.5 deviations."""
    made = plan(solver, steps)
    law, true = gaussian_law(made, VP, NORMAL), true_law(VP, NORMAL, made.times[-1])
    moments = true.mean, true.variance, law.mean, law.variance
    got = map_distances(made, VP, NORMAL)
    assert got["tv"] == pytest.approx(normal_tv(true, law), rel=1e-9)
    assert got["kl"] == pytest.approx(gaussian_kl(*moments), rel=1e-9)


@pytest.mark.parametrize("solver", ["accelerated-sde", "euler-maruyama"])
def test_coarse_kernels_have_a_finite_kl(solver: str) -> None:
    """Kernels are cut off at 8.5 deviations; where nothing arrives there is no true mass either."""
    made = plan(solver, 2)
    law, true = gaussian_law(made, VP, NORMAL), true_law(VP, NORMAL, made.times[-1])
    exact = gaussian_kl(true.mean, true.variance, law.mean, law.variance)
    assert law_distances(made, VP, NORMAL)["kl"] == pytest.approx(exact, rel=1e-9)


def test_kl_is_infinite_where_true_mass_is_out_of_reach() -> None:
    got = law_distances(plan("ddpm-posterior", 1), VP, NORMAL)
    assert got["kl"] == math.inf
    assert 0.5 < got["tv"] < 1


@pytest.mark.parametrize("solver", thinned(ALL, name))
def test_ranges_and_inequalities(solver: pf.Solver) -> None:
    """TV in [0, 1], KL >= 2 TV^2 (Pinsker), and the law has mass 1."""
    for steps in (8, 32):
        made = plan(solver, steps)
        got = distances_1d(made, VP, MIXTURE)
        assert 0 < got["tv"] <= 1
        assert got["kl"] >= 2 * got["tv"] ** 2
        if solver.stochastic:
            law = line_law(made, VP, MIXTURE)
            assert law.density.min() >= 0
            assert law.density.sum() * law.dx == pytest.approx(1, abs=1e-10)


# From the section "Reference numbers" of the notes on measuring: -ln ab uniform from 3 to -ln 0.99.
REFERENCE = {
    "ddpm": {8: 2.826e-1, 32: 1.034e-1, 256: 1.333e-2},
    "accelerated-sde": {8: 2.049e-1, 32: 4.430e-2, 256: 3.629e-3},
    "vanilla-ode": {8: 2.117e-1, 32: 6.404e-2, 256: 8.237e-3},
    "ddim": {8: 1.420e-1, 32: 5.258e-2, 256: 7.282e-3},
}


@pytest.mark.parametrize("solver", REFERENCE)
def test_reference_numbers(solver: str) -> None:
    """An independent program's TV on the same mixture, to the four digits given."""
    for steps, tv in REFERENCE[solver].items():
        got = distances_1d(plan(solver, steps, grid=EXPONENTIAL), VP, MIXTURE)["tv"]
        assert got == pytest.approx(tv, rel=5e-4)


@pytest.mark.parametrize(("solver", "steps"), [("vanilla-ode", 16), ("heun", 32), ("rk4", 16)])
def test_map_quadrature_converges(solver: str, steps: int) -> None:
    made = plan(solver, steps)
    coarse, fine = (map_distances(made, VP, MIXTURE, points=n) for n in (4001, 16001))
    for measure in ("tv", "kl", "strong"):
        assert coarse[measure] == pytest.approx(fine[measure], rel=5e-6)


@pytest.mark.parametrize(
    "solver",
    ["ddpm", "accelerated-sde", "accelerated-sde-half-noise", "accelerated-sde-jvp"],
)
def test_kernel_quadrature_converges(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finer grids between the steps change the law by less than 1e-8 of its error."""
    made = plan(solver, 32)
    coarse = law_distances(made, VP, MIXTURE)
    monkeypatch.setattr("probflow.laws.line.RESOLVE_KERNEL", 3.3)
    monkeypatch.setattr("probflow.laws.line.RESOLVE_DENSITY", 0.2)
    fine = law_distances(made, VP, MIXTURE)
    for measure in ("tv", "kl", "w2"):
        assert coarse[measure] == pytest.approx(fine[measure], rel=1e-8)


def quantile_w2(made: pf.plan.Plan) -> float:
    """W2 of a stochastic plan's law by Gauss-Legendre sums over levels and bisection.

    The plan's distribution function is the mixture of its last kernel's, which are normal.
    """
    before = line_law(pf.plan.Plan(made.solver, made.prediction, made.steps[:-1]), VP, MIXTURE)
    [kernel] = kernels(made.steps[-1])
    x = torch.from_numpy(before.x)[:, None]
    means = kernel.means(x, ExactModel(made, VP, MIXTURE))[0][:, 0]
    weights = torch.from_numpy(before.density * before.dx)
    time = made.times[-1]
    levels = float(VP.alpha(time)), float(VP.sigma(time))
    nodes, node_weights = np.polynomial.legendre.leggauss(160)
    y = torch.from_numpy(3.5 * nodes)[:, None]  # points of the true law, out to +- 3.5
    log_cdf, log_sf = (v[:, 0] for v in MIXTURE._log_tails(y, *levels))
    low, high = torch.full_like(log_cdf, -5.0), torch.full_like(log_cdf, 5.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        z = (middle[:, None] - means) / kernel.std
        cdf = (weights * torch.special.ndtr(z)).sum(1)
        sf = (weights * torch.special.ndtr(-z)).sum(1)
        below = torch.where(log_cdf < log_sf, cdf < log_cdf.exp(), sf > log_sf.exp())
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    q = MIXTURE.log_prob(y, *levels).exp()
    square = (torch.from_numpy(3.5 * node_weights) * q * (low - y[:, 0]) ** 2).sum()
    return math.sqrt(float(square))


@pytest.mark.slow  # 3 s each
@pytest.mark.parametrize("steps", [8, 64])
def test_w2_of_a_stochastic_plan_by_quantiles(steps: int) -> None:
    made = plan("ddpm", steps)
    assert law_distances(made, VP, MIXTURE)["w2"] == pytest.approx(quantile_w2(made), rel=3e-5)


@pytest.mark.parametrize(
    "solver",
    [
        "ddpm",
        "accelerated-sde",
        "accelerated-sde-half-noise",
        "accelerated-sde-jvp",
        "accelerated-sde-3",
    ],
)
def test_law_against_samples(solver: str) -> None:
    """Shares of samples in bins against the law's masses: chi^2 at 4 standard deviations."""
    n, made = 40_000, plan(solver, 8)
    generator = torch.Generator().manual_seed(2)
    start = float(VP.alpha(made.times[0])), float(VP.sigma(made.times[0]))
    x = MIXTURE.sample(n, *start, generator=generator)
    y = run_plan(made, MIXTURE.model(VP), x, noise=Draws(shape=(n, 1))).numpy()[:, 0]
    law = line_law(made, VP, MIXTURE)
    cumulative = np.concatenate([[0], np.cumsum(law.density[1:] + law.density[:-1]) * law.dx / 2])
    edges = np.interp(np.linspace(0, 1, 41)[1:-1], cumulative, law.x)
    counts = np.bincount(np.searchsorted(edges, y), minlength=40)
    chi2 = float(((counts - n / 40) ** 2 / (n / 40)).sum())
    assert abs(chi2 - 39) < 4 * math.sqrt(2 * 39)


@pytest.mark.parametrize(
    "solver", ["ddpm", "accelerated-sde", "accelerated-sde-half-noise", "heun"]
)
def test_the_prediction_type_does_not_matter(solver: str) -> None:
    results = [
        distances_1d(plan(solver, 8, p), VP, MIXTURE)
        for p in ("eps", "x0", "v", "score", "velocity")
    ]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-8)


# What round-off leaves: the floors of probflow.studies.measure ---------------------------------


def test_floor_of_the_kernel_quadrature() -> None:
    """DDPM with sigma^2 = beta is exact on N(0, 1): all that is measured is round-off."""
    for steps in (8, 128):
        got = law_distances(plan("ddpm-beta", steps), VP, pf.Gaussian([0.0], 1.0))
        got["chi2"] = 0.5 * math.sqrt(got["chi2"])  # as the measure of that name
        assert all(got[measure] < floor for measure, floor in FLOORS_STOCHASTIC.items())
        assert got["error"] == 0


@pytest.mark.slow  # 10 s
def test_floor_of_maps() -> None:
    got = map_distances(plan("rk4", 4096), VP, MIXTURE)
    assert all(got[measure] < FLOORS[measure] for measure in got)


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "steps"), [("heun", 1), ("dpm-solver-2", 4), ("midpoint", 2)])
def test_maps_that_fold_are_refused(solver: str, steps: int) -> None:
    with pytest.raises(Refusal, match=f"{solver} with {steps} steps is no increasing map"):
        map_distances(plan(solver, steps), VP, NARROW)


def test_overflow_is_refused() -> None:
    made = plan("ddim", 2)
    steps = tuple(replace(s, update=tuple((r, 1e200 * w) for r, w in s.update)) for s in made.steps)
    with pytest.raises(Refusal, match="ddim with 2 steps overflows"):
        map_distances(replace(made, steps=steps), VP, MIXTURE)


def test_lost_mass_is_refused() -> None:
    with pytest.raises(Refusal, match=r"ddpm with 1 steps: the quadrature loses mass"):
        line_law(plan("ddpm", 1), VP, NARROW)


def test_kernels_too_narrow_to_resolve_are_refused() -> None:
    made = plan("ddpm", 3, grid=pf.grids.log_snr(1e-9, 1e-11, "neg_log_ab"))
    with pytest.raises(Refusal, match=r"resolving its kernel .* end the grid at a higher noise"):
        line_law(made, VP, MIXTURE)


def test_half_noise_that_folds_is_refused() -> None:
    """Exact scores do not fold it, since b <= v; a step with twice the score's weight does."""
    made = plan("accelerated-sde-half-noise", 1, "score")
    [kernel] = kernels(made.steps[0])
    wrong = replace(kernel, b=3 * kernel.b)
    with pytest.raises(Refusal, match="map of its noise is not increasing"):
        inverse_of_inner(wrong, ExactModel(made, VP, NORMAL), -3.0, 3.0)


def test_deterministic_plans_are_maps() -> None:
    with pytest.raises(Refusal, match="ddim is deterministic: it is a map; use map_distances"):
        line_law(plan("ddim", 4), VP, MIXTURE)
    with pytest.raises(Refusal, match="ddpm is stochastic: it is a kernel, not a map"):
        map_distances(plan("ddpm", 4), VP, MIXTURE)


def test_only_the_line() -> None:
    plane = pf.Gaussian([0.0, 0.0], 1.0)
    for law in (map_distances, line_law):
        with pytest.raises(Refusal, match="a 1-D law was asked for, but gaussian-2d has 2"):
            law(plan("ddim", 4), VP, plane)


def test_true_density_keeps_the_shape() -> None:
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    values = true_log_density(VP, MIXTURE, LOG_SNR.times(VP, 1)[0], x)
    assert values.shape == (2, 3)
