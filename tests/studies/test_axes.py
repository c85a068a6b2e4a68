"""Targets that are wrong in one way have the size that they say, and slopes come out as derived."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import probflow as pf
from probflow.plan import Point
from probflow.studies import study
from probflow.studies.axes import scan
from probflow.studies.builtin import mixture
from probflow.studies.measure import Settings, measure
from probflow.studies.perturbed import OtherLaws, Product, ScoreError
from probflow.studies.runner import default_grid

LINE = mixture()
OTHER = pf.Gaussian([0.4], [0.3])
VP = pf.VP.linear()
TWINS = pf.GaussianMixture(
    [0.35, 0.65], [[-1.2, 0.4], [0.8, 0.4]], [[0.09, 0.3], [0.2025, 0.3]]
)  # LINE x OTHER, as a mixture in the plane


def points(d: int, n: int = 5) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_product_is_the_target_that_it_says() -> None:
    product, x = Product([LINE, OTHER]), points(2)
    score, jacobian = product.score_and_jacobian(x, 0.8, 0.6)
    wanted, wanted_jacobian = TWINS.score_and_jacobian(x, 0.8, 0.6)
    torch.testing.assert_close(score, wanted)
    torch.testing.assert_close(product.score(x, 0.8, 0.6), wanted)
    torch.testing.assert_close(jacobian, wanted_jacobian, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(product.log_prob(x, 0.8, 0.6), TWINS.log_prob(x, 0.8, 0.6))
    for one, other in zip(product.moments(0.8, 0.6), TWINS.moments(0.8, 0.6), strict=True):
        np.testing.assert_allclose(one, other)
    draws = product.sample(20000, 0.8, 0.6, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(draws.mean(0), TWINS.moments(0.8, 0.6)[0], atol=0.03)
    assert Product([LINE]).dim == 1
    with pytest.raises(ValueError, match="factors: need targets on the line"):
        Product([TWINS])


@pytest.mark.parametrize(
    ("solver", "name"), [("ddim", "kl"), ("ddim", "strong"), ("ddpm", "path-kl"), ("ddim", "tv")]
)
def test_measures_of_a_product_are_those_of_the_mixture(solver: str, name: str) -> None:
    """Sums over the factors, against samples in the plane."""
    arguments = {"steps": (8,), "measure": name, "grid": default_grid(), "samples": 4000}
    [product] = study(Product([LINE, OTHER]), solver, **arguments).rows
    [plane] = study(TWINS, solver, **arguments).rows
    assert plane.se > 0
    assert (product.se > 0) == (name == "tv")
    assert abs(product.error - plane.error) < 4 * math.hypot(plane.se, product.se)


def test_a_product_of_one_is_its_factor() -> None:
    for name in ("tv", "kl", "w2", "strong"):
        [one] = study(Product([LINE]), "heun", (8,), name).rows
        [other] = study(LINE, "heun", (8,), name).rows
        assert one.error == pytest.approx(other.error, rel=1e-14)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("jacobian", [0.0, 4.0])
def test_a_score_error_has_its_size(d: int, jacobian: float) -> None:
    base = pf.Gaussian(np.zeros(d), 1.0)
    wrong = ScoreError(base, 0.1, jacobian)
    x = base.sample(20000, 0.8, 0.6, generator=torch.Generator().manual_seed(0))
    error = wrong.score(x, 0.8, 0.6) - base.score(x, 0.8, 0.6)
    assert float(error.square().sum(1).mean()) ** 0.5 == pytest.approx(0.1, rel=0.03)
    score, gradient = wrong.score_and_jacobian(x[:50], 0.8, 0.6)
    torch.testing.assert_close(score, wrong.score(x[:50], 0.8, 0.6))
    exact = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda v: wrong.error(v[None])[0][0], v)
            for v in x[:50]
        ]
    )
    right = base.score_and_jacobian(x[:50], 0.8, 0.6)[1]
    torch.testing.assert_close(gradient - right, exact, atol=1e-12, rtol=1e-9)
    slope = wrong.error(x)[1].square().sum((1, 2)).mean() ** 0.5
    assert float(slope) == pytest.approx(jacobian, rel=0.03)
    torch.testing.assert_close(wrong.log_prob(x, 0.8, 0.6), base.log_prob(x, 0.8, 0.6))


@pytest.mark.parametrize("arguments", [(0.0,), (-1.0,), (math.nan,), (1.0, -1.0), (1.0, math.inf)])
def test_score_errors_that_are_none(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"(l2|jacobian): need a finite number >"):
        ScoreError(LINE, *arguments)


def test_a_shift_of_the_score_moves_a_normal_law_as_computed() -> None:
    """With a Gaussian target the mean obeys a linear ODE: W2 is the size of its solution."""
    target, shift = pf.Gaussian([0.0], [1.0]), 0.01
    grid = pf.grids.log_snr(3.0, 0.1, unit="neg_log_ab")
    plan = pf.get_solver("rk4").plan(VP, grid.times(VP, 128), "eps")
    result = measure("w2", plan, VP, ScoreError(target, shift), Settings())
    # For N(0, 1) the score is -x: dx/dB = -x/2 - s/2 with s = -x + shift, so x moves by shift dB/2.
    assert result.error == pytest.approx(shift * (3.0 - 0.1) / 2, rel=1e-5)


def test_other_laws_are_at_their_levels_only() -> None:
    start, stop = (Point.many(VP, [t])[0] for t in (1.0, 0.1))
    laws = OtherLaws(LINE, (start.alpha, start.sigma), (stop.alpha, stop.sigma))
    x, normal = points(1), pf.Gaussian([0.0], 1.0)
    for level, wanted in (
        ((start.alpha, start.sigma), normal.log_prob(x, 1.0, 0.0)),
        ((stop.alpha, stop.sigma), LINE.log_prob(x, 1.0, 0.0)),
        ((0.8, 0.6), LINE.log_prob(x, 0.8, 0.6)),
    ):
        torch.testing.assert_close(laws.log_prob(x, *level), wanted)
        torch.testing.assert_close(laws.score(x, *level), LINE.score(x, *level))
    assert laws.moments(start.alpha, start.sigma)[1] == pytest.approx(1.0)


# Slopes -----------------------------------------------------------------------------------------


def test_errors_of_products_grow_with_the_root_of_the_dimension() -> None:
    for name, power in (("path-kl", 0.5), ("kl", 1.0)):
        solver = "accelerated-sde" if name == "path-kl" else "accelerated-ode"
        result = scan("dimension", (1, 2, 4, 8, 16), lambda d: Product([LINE] * d), solver, 8, name)
        assert result.slope == pytest.approx(power, abs=1e-6)
        assert all(type(x) is float for x in result.x)  # as they are read from a file
        assert result.low < power < result.high
        assert [row.error / result.rows[0].error for row in result.rows] == pytest.approx(
            [d**power for d in result.values]
        )


@pytest.mark.parametrize(
    ("axis", "values", "steps", "power"),
    [
        ("score", [0.001 * 2**k for k in range(5)], 24, 1.0),
        ("jacobian", [0.004 * 2**k for k in range(5)], 24, 1.0),
        ("initial", [3.0, 4.0, 5.0, 6.0, 7.5], 64, 1.0),
        ("early", [0.0005 * 4**k for k in range(5)], 64, 2.0),
    ],
)
def test_slopes_on_the_line(axis: str, values: list[float], steps: int, power: float) -> None:
    """First order in the score's error and in alpha at the start; in sigma^2 at the end."""
    result = scan(axis, values, LINE, "rk4", steps)
    assert result.low < power < result.high
    assert result.high - result.low < 0.4
    assert str(result).startswith(f"rk4, tv, axis {axis}: slope ")
    errors = [row.error for row in result.rows]
    assert errors == sorted(errors, reverse=True)  # towards the limit


def test_the_solvers_own_error_is_a_floor() -> None:
    """With ddim's error beside that of the score, a slope would be neither's: there is none."""
    own = study(LINE, "ddim", (16,), grid=scan_grid()).rows[0].error
    result = scan("score", [0.001 * 4**k for k in range(6)], LINE, "ddim", 16)
    assert {row.floor for row in result.rows} == {own}
    assert math.isnan(result.slope)
    assert f"within 20 times its floor {own:.2g}" in result.reason


def scan_grid() -> pf.grids.Grid:
    return pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")


def test_errors_that_follow_no_power() -> None:
    """Stopped at sigma = 0.1, ddim hardly sees how much narrower than that a component is."""

    def narrow(s: float) -> pf.GaussianMixture:
        return pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[s, s])

    result = scan("smoothness", [0.025 * 2**k for k in range(5)], narrow, "accelerated-ode", 64)
    errors = [row.error for row in result.rows]
    assert errors == sorted(errors)
    assert -0.2 < result.local < 0.0
    assert math.isnan(result.slope)
    assert "no power" in result.reason or "not asymptotic" in result.reason


def test_a_scan_without_a_slope_says_why() -> None:
    few = scan("score", [0.1, 0.2], LINE, "ddim", 8)
    assert math.isnan(few.slope)
    assert "usable points" in str(few)
    none = scan("score", [0.1, 0.2], LINE, "ddim", 8, "path-kl")
    assert "refused: ddim is deterministic" in none.reason


def test_a_reason_names_values_of_the_axis() -> None:
    noisy = scan("dimension", [2, 3], plane_like, "ddim", 8, "kl", samples=4)
    assert re.search(r"the standard error at dimension [23] is \d+ % of the error", noisy.reason)


def plane_like(d: int) -> pf.GaussianMixture:
    return pf.GaussianMixture([1, 2], [[-1.0] * d, [1.0] * d], stds=[0.5, 0.7])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": 3}, "target: need a target or a function of the value on the axis 'score'"),
        ({"values": 0.1}, "values: need several in a list, got 0.1"),
        ({"values": [0.1, "0.2"]}, "values: need a number, got '0.2'"),
        ({"axis": "dimension"}, "target: need a function of the value on the axis 'dimension'"),
        ({"axis": "smoothness"}, "target: need a function of the value on the axis 'smoothness'"),
        ({"target": lambda size: size}, "target: need a target for 0.2, got float"),
    ],
)
def test_kinds(changed: dict, message: str) -> None:
    """One target for every dimension would be a scan of nothing, with the slope 0."""
    arguments = {"axis": "score", "values": [0.1, 0.2], "target": LINE, "solver": "ddim"}
    with pytest.raises(TypeError, match=message):
        scan(**{**arguments, "steps": 8, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"axis": "time"}, "axis: got 'time', allowed are dimension"),
        ({"values": []}, "values: need at least one"),
        ({"values": [1.0, 1.0]}, "values: need different ones, got"),
        ({"values": [0.0, 1.0]}, "values: need a finite number > 0, got 0.0"),
        ({"axis": "dimension", "target": lambda d: LINE}, "target: for d = 3.0 it has 1 coord"),
        ({"grid": pf.grids.uniform()}, "grid: the axis 'initial' needs one with ends in neg_log"),
        ({"process": pf.EDM()}, "process: the axis 'initial' needs a VP process"),
    ],
)
def test_values(changed: dict, message: str) -> None:
    arguments = {"axis": "initial", "values": [3.0, 4.0], "target": LINE, "solver": "ddim"}
    with pytest.raises(ValueError, match=message):
        scan(**{**arguments, "steps": 8, **changed})
