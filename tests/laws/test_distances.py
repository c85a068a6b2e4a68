"""Distances on grids and between normal laws, against closed forms and 40-digit arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from probflow.laws.distances import (
    excess,
    gaussian_kl,
    gaussian_tv,
    gaussian_w2,
    kl_on_grid,
    tv_on_grid,
    w2_on_grid,
)

mpmath.mp.dps = 40


@pytest.mark.parametrize("sign", [1, -1])
def test_excess_over_16_decades(sign: int) -> None:
    ell = sign * np.logspace(-14, 2, 400)
    exact = np.array([float(mpmath.expm1(mpmath.mpf(v)) - mpmath.mpf(v)) for v in ell])
    np.testing.assert_allclose(excess(ell), exact, rtol=1e-11)


@given(st.floats(-700, 700))
def test_excess_is_not_negative(ell: float) -> None:
    assert excess(np.array(ell)) >= 0


def test_excess_at_the_ends() -> None:
    np.testing.assert_array_equal(excess([0.0, -math.inf]), [0.0, math.inf])


def normal(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


GRID = np.linspace(-12, 12, 4001)
DX = GRID[1] - GRID[0]


@pytest.mark.parametrize("shift", [1.0, 1e-2, 1e-4, 1e-6])
def test_distances_of_shifted_normals(shift: float) -> None:
    q, p = normal(GRID, 0, 1), normal(GRID, shift, 1)
    log_ratio = shift * (GRID - shift / 2)
    assert tv_on_grid(q, p, DX) == pytest.approx(2 * ndtr(shift / 2) - 1, rel=1e-9)
    assert kl_on_grid(q, p, log_ratio, DX) == pytest.approx(shift**2 / 2, rel=1e-12)
    assert w2_on_grid(q, p, GRID) == pytest.approx(shift, rel=1e-5)


@pytest.mark.parametrize("ratio", [1.5, 1.01, 1.0001])
def test_distances_of_scaled_normals(ratio: float) -> None:
    """TV has two kinks; the densities cross at x^2 = 2 ln(r) r^2/(r^2 - 1)."""
    q, p = normal(GRID, 0, 1), normal(GRID, 0, ratio)
    log_ratio = 0.5 * GRID**2 * (1 - ratio**-2) - math.log(ratio)
    cross = mpmath.sqrt(2 * mpmath.log(ratio) * ratio**2 / (mpmath.mpf(ratio) ** 2 - 1))
    tv = float(2 * (mpmath.ncdf(cross) - mpmath.ncdf(cross / ratio)))
    one = np.ones(1)
    kl = gaussian_kl(0 * one, one, 0 * one, ratio**2 * one)
    assert tv_on_grid(q, p, DX) == pytest.approx(tv, rel=1e-8)
    assert kl_on_grid(q, p, log_ratio, DX) == pytest.approx(kl, rel=1e-9)
    assert w2_on_grid(q, p, GRID) == pytest.approx(ratio - 1, rel=1e-4)


def test_laws_apart() -> None:
    """TV tends to 1 and KL stays finite where densities underflow."""
    q, p = normal(GRID, -4, 0.05), normal(GRID, 4, 0.05)
    log_ratio = ((GRID + 4) ** 2 - (GRID - 4) ** 2) / (2 * 0.05**2)
    assert tv_on_grid(q, p, DX) == pytest.approx(1, abs=1e-12)
    assert kl_on_grid(q, p, log_ratio, DX) == pytest.approx(64 / (2 * 0.05**2), rel=1e-10)


def test_identical_laws() -> None:
    q = normal(GRID, 0, 1)
    assert tv_on_grid(q, q, DX) == 0
    assert kl_on_grid(q, q, 0 * q, DX) == 0
    assert w2_on_grid(q, q, GRID) < 1e-9  # rounding of the masses over small densities


means = st.floats(-3, 3)
variances = st.floats(1e-3, 1e3)


@given(means, variances, means, variances)
def test_gaussian_distances(mq: float, vq: float, mp: float, vp: float) -> None:
    arguments = [np.array([v]) for v in (mq, vq, mp, vp)]
    ratio = mpmath.mpf(vq) / vp
    shift = (mpmath.mpf(mq) - mp) ** 2
    kl = (ratio - 1 - mpmath.log(ratio) + shift / vp) / 2
    w2 = mpmath.sqrt(shift + (mpmath.sqrt(vq) - mpmath.sqrt(vp)) ** 2)
    assert gaussian_kl(*arguments) == pytest.approx(float(kl), rel=1e-9, abs=1e-26)
    # Below 1e-150 squares underflow.
    assert gaussian_w2(*arguments) == pytest.approx(float(w2), rel=1e-12, abs=1e-150)


@pytest.mark.parametrize("gap", [10.0**-k for k in range(1, 9)])
def test_small_gaussian_kl_keeps_its_digits(gap: float) -> None:
    zero, one = np.zeros(1), np.ones(1)
    var = np.array([1 + gap])
    exact = mpmath.mpf(float(var[0])) - 1
    exact = (exact - mpmath.log(1 + exact)) / 2
    assert gaussian_kl(zero, var, zero, one) == pytest.approx(float(exact), rel=1e-7)


@given(
    st.floats(-3, 3),
    st.floats(0.01, 100),
    st.one_of(st.just(0.0), st.floats(-12, 1).map(lambda k: 10.0**k)),
    st.one_of(st.just(0.0), st.floats(-12, 0).map(lambda k: -0.99 * 10.0**k), st.floats(0, 9)),
)
def test_gaussian_tv_against_40_digits(mean: float, var: float, shift: float, e: float) -> None:
    """Half the integral of the modulus, between the points where the densities cross."""
    laws = [np.array([v]) for v in (mean, var, mean + shift, var * (1 + e))]
    a, v, b, w = (mpmath.mpf(float(x[0])) for x in laws)
    if v == w:
        crossings = [(a + b) / 2]
    else:
        crossings = mpmath.polyroots(
            [1 / v - 1 / w, 2 * (b / w - a / v), a**2 / v - b**2 / w + mpmath.log(v / w)],
            maxsteps=200,
            extraprec=200,
        )
    at = sorted(mpmath.re(c) for c in crossings)
    gaps = [
        mpmath.ncdf((x - b) / mpmath.sqrt(w)) - mpmath.ncdf((x - a) / mpmath.sqrt(v)) for x in at
    ]
    exact = sum(abs(y - x) for x, y in pairwise([0, *gaps, 0])) / 2
    assert gaussian_tv(*laws) == pytest.approx(float(exact), abs=1e-15)


def test_gaussian_tv_at_the_ends() -> None:
    zero, one = np.zeros(1), np.ones(1)
    assert gaussian_tv(zero, one, zero, one) == 0
    assert gaussian_tv(zero, one, zero, zero) == 1  # a point
    assert gaussian_tv(zero, one, 50 * one, one) == pytest.approx(1)
    assert gaussian_tv(zero, one, 1e200 * one, one) == pytest.approx(1)
    assert gaussian_tv(zero, one, zero, 1e300 * one) == pytest.approx(1)
    assert math.isnan(gaussian_tv(zero, one, zero, math.inf * one))
