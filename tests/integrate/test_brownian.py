"""Brownian motion: a pure function of its arguments, and Brownian.

Statistical tests have fixed seeds and a level of 1e-6 each, about 5 standard errors; there are less
than a hundred of them, so that the total level is below 1e-4.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchsde
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import probflow as pf
from probflow.integrate import interval as interval_module
from probflow.integrate import levy

DOUBLE = torch.float64
AREAS = ("none", "space-time", "davie", "foster")
LEVEL = 1e-6
Z = stats.norm.isf(LEVEL / 2)


def motion(n: int = 20_000, t1: float = 2.0, seed: int = 1, **options: Any) -> pf.BrownianInterval:
    return pf.BrownianInterval(0.0, t1, (n, 1), DOUBLE, entropy=seed, **options)


def check_variance(values: Tensor, variance: float) -> None:
    """Two-sided chi-square test of centred normals."""
    statistic, n = float(values.square().sum()) / variance, values.numel()
    p = 2 * min(stats.chi2.cdf(statistic, n), stats.chi2.sf(statistic, n))
    assert p > LEVEL, (statistic / n, variance)


def check_independent(a: Tensor, b: Tensor) -> None:
    """No correlation of normals, nor of their squares."""
    a, b = a.flatten() / a.std(), b.flatten() / b.std()
    bound = Z / math.sqrt(len(a))
    assert abs(float((a * b).mean())) < bound
    assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) < 2 * bound * 1.05


def area_of(bm: pf.BrownianInterval, a: float, b: float) -> tuple[Tensor, Tensor]:
    w, u = bm(a, b, return_U=True)
    return w, u / (b - a) - 0.5 * w


# Signatures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["BrownianInterval", "BrownianPath", "BrownianTree", "ReverseBrownian"]
)
def test_signatures_are_torchsdes(name: str) -> None:
    for of in ("__init__", "__call__"):
        ours, theirs = (getattr(getattr(lib, name), of) for lib in (pf, torchsde))
        mine = [
            (p.name, p.default)
            for p in inspect.signature(ours).parameters.values()
            if p.kind is not p.KEYWORD_ONLY
        ]
        assert mine == [(p.name, p.default) for p in inspect.signature(theirs).parameters.values()]


def test_signature_of_like_is_torchsdes() -> None:
    ours, theirs = (
        [
            (p.name, p.default)
            for p in inspect.signature(lib.brownian_interval_like).parameters.values()
        ]
        for lib in (pf, torchsde)
    )
    assert ours == theirs
    y = torch.zeros(3, 2, dtype=DOUBLE)
    bm = pf.brownian_interval_like(y, 0.5, 2.0, entropy=3, levy_area_approximation="foster")
    assert (bm.shape, bm.size(), bm.dtype, bm.device) == ((3, 2), (3, 2), DOUBLE, y.device)
    assert bm.levy_area_approximation == "foster"


def test_attributes() -> None:
    w0 = torch.zeros(3, 2, dtype=DOUBLE)
    kinds = [pf.BrownianPath(0.0, w0), pf.BrownianTree(0.0, w0), motion(3)]
    for bm in (*kinds, pf.ReverseBrownian(kinds[2])):
        assert isinstance(bm, pf.BaseBrownian)
        assert (bm.dtype, bm.device, bm.levy_area_approximation) == (DOUBLE, w0.device, "none")
        assert bm.shape == bm.size()
        assert type(bm).__name__ in repr(bm)


# A pure function ---------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=6),
    st.randoms(),
    st.sampled_from(AREAS),
    st.sampled_from([None, 0.1, 0.37, 3.0]),
    st.sampled_from([0, 1, 5, 45, None]),
)
def test_neither_order_nor_cache_matter(
    queries: list, random: Any, area: str, dt: float | None, cache_size: int | None
) -> None:
    def fresh(**options: Any) -> pf.BrownianInterval:
        return motion(3, dt=dt, levy_area_approximation=area, **options)

    one, other = fresh(), fresh(cache_size=cache_size)
    expected = [(q, one(*q, return_U=True, return_A=True)) for q in queries]
    random.shuffle(expected)
    for q, result in expected:
        for x, y in zip(other(*q, return_U=True, return_A=True), result, strict=True):
            assert y is None if x is None else torch.equal(x, y)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("dt", [None, 0.125])
def test_a_sample_is_the_same_in_every_batch(area: str, dt: float | None) -> None:
    def values(n: int, first: int) -> list[Tensor]:
        bm = pf.BrownianInterval(
            0, 1, (n, 3, 2), DOUBLE, entropy=5, dt=dt, levy_area_approximation=area,
            first_sample=first,
        )  # fmt: skip
        return [bm(0.2, 0.9), bm(0.25, 0.5)] + [
            x for x in bm(0.1, 0.3, True, True)[1:] if x is not None
        ]

    for whole, part in zip(values(7, 0), values(2, 3), strict=True):
        assert torch.equal(whole[3:5], part)


def test_precision_and_time_types() -> None:
    single = pf.BrownianInterval(0.0, 2.0, (50, 1), torch.float32, entropy=1)
    half = pf.BrownianInterval(0.0, 2.0, (50, 1), torch.bfloat16, entropy=1)
    double = motion(50)
    for a, b in ((0.0, 2.0), (0.1, 0.5), (0.5, 0.75)):
        assert single(a, b).dtype == torch.float32
        assert (single(a, b) - double(a, b)).abs().max() < 1e-4
        assert torch.equal(half(a, b), single(a, b).bfloat16())
    assert torch.equal(double(torch.tensor(0.5), torch.tensor([1.0])), double(0.5, 1))


def test_entropy_none_follows_the_global_generator() -> None:
    def draw() -> Tensor:
        return pf.BrownianInterval(size=(3, 2))(0.0, 1.0)

    torch.manual_seed(4)
    first, second = draw(), draw()
    torch.manual_seed(4)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


def test_results_are_the_callers_to_write_on() -> None:
    bm = motion(3, dt=0.5, levy_area_approximation="space-time")
    for q in ((0.0, 2.0), (0.5, 1.0), (0.3, 1.7)):
        first = [x.clone() for x in bm(*q, return_U=True)]
        for x in bm(*q, return_U=True):
            x.zero_()
        assert all(torch.equal(x, y) for x, y in zip(bm(*q, return_U=True), first, strict=True))


# Additivity --------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, 0.1, 0.03, 0.7]))
def test_increments_and_integrals_add_up(a: float, b: float, c: float, dt: float | None) -> None:
    """In either direction: U(a, c) = U(a, b) + (c - b) W(a, b) + U(b, c)."""
    bm = motion(4, t1=1.0, dt=dt, levy_area_approximation="space-time")
    (w1, u1), (w2, u2), (w, u) = (bm(s, t, return_U=True) for s, t in ((a, b), (b, c), (a, c)))
    torch.testing.assert_close(w1 + w2, w, rtol=0, atol=1e-12)
    # A time counts as the border of a leaf if it is within 1/16 of the leaf.
    torch.testing.assert_close(u1 + (c - b) * w1 + u2, u, rtol=0, atol=1e-5)
    assert torch.equal(bm(c, a), -w)
    plain = motion(4, t1=1.0, dt=dt)
    torch.testing.assert_close(plain(a, b) + plain(b, c), plain(a, c), rtol=0, atol=1e-12)


def test_areas_turn_with_time() -> None:
    bm = pf.BrownianInterval(size=(4, 3), entropy=1, levy_area_approximation="foster")
    forwards, backwards = (bm(*q, return_A=True)[1] for q in ((0.2, 0.7), (0.7, 0.2)))
    assert torch.equal(forwards, -backwards)
    assert torch.equal(forwards, -forwards.mT)
    assert not torch.equal(forwards, bm(0.2, 0.8, return_A=True)[1])


def test_one_time_counts_from_the_start() -> None:
    bm = motion(5)
    assert torch.equal(bm(0.7), bm(0.0, 0.7))
    assert (bm(0.7, 0.7) == 0).all()
    w0 = torch.ones(5, 1, dtype=DOUBLE)
    for other in (pf.BrownianPath(0.0, w0, entropy=1), pf.BrownianTree(0.0, w0, entropy=1)):
        torch.testing.assert_close(other(0.7), w0 + other(0.0, 0.7))
        assert torch.equal(other(0.0), w0)


# The law -----------------------------------------------------------------------------------

SPANS = [(0.0, 2.0), (0.0, 1.0), (0.3, 0.31), (1 / 3, 1.7), (0.999, 1.001), (1.95, 2.0)]


@pytest.mark.parametrize("dt", [None, 0.07])
@pytest.mark.parametrize("span", SPANS)
def test_laws_of_increments_and_areas(span: tuple[float, float], dt: float | None) -> None:
    h = span[1] - span[0]
    w = motion(dt=dt)(*span)
    check_variance(w, h)
    assert stats.kstest((w / math.sqrt(h)).flatten().numpy(), "norm").pvalue > LEVEL
    w, area = area_of(motion(dt=dt, levy_area_approximation="space-time"), *span)
    check_variance(w, h)
    check_variance(area, h / 12)
    check_independent(w, area)


@pytest.mark.parametrize("area", ["none", "space-time"])
@pytest.mark.parametrize("dt", [None, 0.3])
def test_disjoint_intervals_are_independent(area: str, dt: float | None) -> None:
    bm = motion(seed=2, dt=dt, levy_area_approximation=area)
    ends = [0.0, 0.2, 0.5, 1 / 3 + 0.5, 1.0, 1.3, 2.0]
    if area == "none":
        parts = [bm(a, b) for a, b in pairwise(ends)]
    else:
        parts = [x for a, b in pairwise(ends) for x in area_of(bm, a, b)]
    for i, a in enumerate(parts):
        for b in parts[:i]:
            check_independent(a, b)


@pytest.mark.parametrize(("a", "t", "b"), [(0.0, 0.7, 2.0), (0.4, 0.5, 1.1), (0.25, 0.5, 0.75)])
def test_bridges(a: float, t: float, b: float) -> None:
    """Given its ends, W(t) has mean on the chord and variance (t - a)(b - t)/(b - a)."""
    bm = motion(seed=3, dt=0.11)
    bridge = bm(a, t) - (t - a) / (b - a) * bm(a, b)
    check_variance(bridge, (t - a) * (b - t) / (b - a))
    check_independent(bridge, bm(a, b))


@pytest.mark.parametrize("h", [1e-3, 1e-5, 1e-7])
def test_short_steps(h: float) -> None:
    bm = motion(5_000, seed=3)
    for a in (0.12345, 1.0 - h / 2, 2 / 3):
        check_variance(bm(a, a + h), h)


@pytest.mark.parametrize("area", ["none", "space-time"])
def test_times_inside_leaves_have_the_exact_law(area: str) -> None:
    """No linear interpolation: with leaves of 1/4, times in different leaves are Brownian."""
    bm = motion(t1=1.0, tol=0.25, levy_area_approximation=area)
    for a, b in ((0.0, 0.1), (0.1, 0.4), (0.35, 0.9), (0.6, 0.8), (0.95, 1.0)):
        check_variance(bm(a, b), b - a)
    check_independent(bm(0.1, 0.4), bm(0.4, 0.6))
    if area == "space-time":
        w, h = area_of(bm, 0.1, 0.6)
        check_variance(h, 0.5 / 12)
        check_independent(w, h)


def test_samples_elements_and_seeds_are_independent() -> None:
    bm = pf.BrownianInterval(0, 1, (2000, 3), DOUBLE, entropy=5, dt=0.1)
    z = torch.stack([bm(0.1 * k, 0.1 * k + 0.1) for k in range(6)])
    check_independent(z[:, 1:], z[:, :-1])
    check_independent(z[..., 1:], z[..., :-1])
    other = pf.BrownianInterval(0, 1, (2000, 3), DOUBLE, entropy=6, dt=0.1)
    check_independent(z[0], other(0.0, 0.1))
    source = pf.integrate.SeededNoise(5, (2000, 3), DOUBLE)
    for _ in range(6):
        check_independent(source(), z[0])
        check_independent(source(), bm(0.0, 1.0))


def test_w_and_h_are_those_of_a_fine_path() -> None:
    """H by its definition, as a Riemann sum over a fine partition of the same motion."""
    n, h = 256, 2.0
    bm = motion(50, levy_area_approximation="space-time", dt=h / n)
    path = torch.stack([bm(0.0, h * k / n) for k in range(n + 1)])
    trapezoid = (path[1:] + path[:-1]).mean(0) / 2 - 0.5 * path[-1]
    _, area = area_of(bm, 0.0, h)
    # What the trapezoidal rule leaves out has variance h^3/(12 n^2) / h^2.
    check_variance(area - trapezoid, h / 12 / n**2)


def test_split_and_join_are_exact() -> None:
    """The parts of a split have their own covariance and join to the whole, for any ratio."""
    generator = torch.Generator().manual_seed(0)
    for r in (0.5, 0.1, 0.93):
        h = 1.7
        z = torch.randn(4, 100_000, dtype=DOUBLE, generator=generator)
        whole = (z[0] * math.sqrt(h), z[1] * math.sqrt(h / 12))
        std = math.sqrt(levy.spread(h, r, 2))
        left, right = levy.split(whole, r, (std * z[2], std * z[3]))
        joined = levy.join(left, right, r * h, (1 - r) * h)
        for x, y in zip(joined, whole, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-13)
        for x, y in zip(levy.without(whole, left, h, r * h), right, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
        parts = (*left, *right)
        for x, variance in zip(parts, (r, r / 12, 1 - r, (1 - r) / 12), strict=True):
            check_variance(x, h * variance)
        for i, x in enumerate(parts):
            for y in parts[:i]:
                check_independent(x, y)


@pytest.mark.parametrize("area", ["davie", "foster"])
def test_levy_area_has_mean_0_and_variance_h2_over_4(area: str) -> None:
    bm = pf.BrownianInterval(0, 1, (40_000, 2), DOUBLE, entropy=4, levy_area_approximation=area)
    h = 0.6
    w, a = bm(0.2, 0.8, return_A=True)
    a = a[:, 0, 1]
    n = len(a)
    assert abs(float(a.mean())) < Z * h / 2 / math.sqrt(n)
    # The fourth moment of Levy's area is 5 h^4/16, five times the squared variance.
    assert abs(float(a.square().mean()) / (h**2 / 4) - 1) < Z * math.sqrt(4 / n)
    for x in (w[:, 0], w[:, 1]):
        assert abs(float((a * x).mean())) < Z * h**1.5 / 2 / math.sqrt(n)


def test_conditional_variance_of_fosters_area_is_that_of_fine_paths() -> None:
    """Given W and H: E (A - mean)^2 and its product with H_1^2 agree with a fine simulation."""
    n, steps, h = 20_000, 64, 1.0
    z = torch.randn(
        steps, n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)
    ) * math.sqrt(h / steps)
    path = torch.cat([torch.zeros(1, n, 2, dtype=DOUBLE), z.cumsum(0)])
    middle = (path[1:] + path[:-1]) / 2
    area = (middle[..., 0] * z[..., 1] - middle[..., 1] * z[..., 0]).sum(0) / 2
    w, big = path[-1], middle.mean(0) - path[-1] / 2
    fine = (area - (big[:, 0] * w[:, 1] - w[:, 0] * big[:, 1])) ** 2
    law = h**2 / 20 + h / 5 * big.square().sum(1)
    excess = fine - law
    # 1/steps^2-terms are missing from the fine path: 1/12 (1 - 1/steps).
    for weight in (torch.ones(n, dtype=DOUBLE), big[:, 0] ** 2 * 12):
        x = excess * weight
        error = float(x.std()) / math.sqrt(n)
        assert abs(float(x.mean())) < Z * error + h**2 / 12 / steps * 2


# Costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", ["none", "space-time"])
@pytest.mark.parametrize("shape", [(2, 1), (2, 50_000)])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("refine", [1, 4])
def test_a_sweep_makes_one_normal_for_each_step(
    area: str, shape: tuple, backwards: bool, refine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    class Counted(interval_module.Normals):
        def _of(self, draws: Tensor) -> Tensor:
            nonlocal made
            made += len(draws)
            return super()._of(draws)

    monkeypatch.setattr(interval_module, "Normals", Counted)
    n = 100 * refine
    bm = pf.BrownianInterval(
        0.0, 2.0, shape, DOUBLE, entropy=1, dt=0.02, levy_area_approximation=area
    )
    steps = [(2 * k / n, 2 * (k + 1) / n) for k in range(n)]
    for a, b in reversed(steps) if backwards else steps:
        bm(a, b)
    # What is finer than dt is known for a sweep by its third step; the path to the first two, and
    # again to the third, costs one normal for each level.
    assert n <= made <= n + (0 if refine == 1 else 3 * math.log2(2 * n))


@pytest.mark.parametrize("area", ["none", "space-time"])
@pytest.mark.parametrize("shape", [(2,), (2, 50_000)])
@pytest.mark.parametrize("backwards", [False, True])
def test_results_of_a_sweep_are_the_callers(
    area: str, shape: tuple[int, ...], backwards: bool
) -> None:
    """What is written on a step's increment shows neither in later steps nor in the motion."""
    for n in (1, 5, 8):
        bm, exact = (
            pf.BrownianInterval(
                0.0, 2.0, shape, DOUBLE, entropy=7, dt=2.0 / n, levy_area_approximation=area
            )
            for _ in range(2)
        )
        for k in range(n)[:: -1 if backwards else 1]:
            a, b = 2.0 * k / n, 2.0 * (k + 1) / n
            w = bm(a, b)
            assert w.is_contiguous()
            assert torch.equal(w, alone(exact, a, b)[0])
            w.fill_(torch.nan)
        assert torch.equal(bm(0.0, 2.0), exact(0.0, 2.0))


def alone(bm: pf.BrownianInterval, a: float, b: float) -> tuple:
    """A query that belongs to no sweep: W and U."""
    bm._sweeps, bm._new_sweep = [], lambda *_: None
    return bm(a, b, return_U=True)


def test_a_step_in_single_precision_gives_whole_cells() -> None:
    for n in (50, 100, 1000, 3):
        dt = torch.tensor(1 / n, dtype=torch.float32)
        bm = pf.BrownianInterval(size=(2,), entropy=1, dt=dt)
        exact = pf.BrownianInterval(size=(2,), entropy=1, dt=1 / n)
        assert torch.equal(bm(0.0, 1 / n), exact(0.0, 1 / n))
        assert bm._tree.leaves >> bm._tree.inner == n


def test_many_tiny_steps() -> None:
    bm = pf.BrownianInterval(0.0, 1.0, (1,), DOUBLE, entropy=0)
    total = sum(float(bm(k * 1e-8, (k + 1) * 1e-8)) for k in range(300))
    assert total == pytest.approx(float(bm(0.0, 3e-6)), abs=1e-12)
    bm = pf.BrownianInterval(0.0, 1.0, (1,), DOUBLE, entropy=0, dt=1e-5)
    total = sum(float(bm(k / 1e5, (k + 1) / 1e5)) for k in range(100_000))
    assert total == pytest.approx(float(bm(0.0, 1.0)), abs=1e-9)


# The other classes -------------------------------------------------------------------------


def test_a_path_has_no_end() -> None:
    bm = pf.BrownianPath(1.0, torch.zeros(20_000, 1, dtype=DOUBLE), entropy=3)
    check_variance(bm(6.0), 5.0)
    check_variance(bm(1.5, 2.5), 1.0)
    check_independent(bm(1.0, 3.7), bm(3.7, 60.0))
    torch.testing.assert_close(bm(2.0, 7.0) + bm(7.0, 40.0), bm(2.0, 40.0))
    assert torch.equal(bm(7.0, 2.0), -bm(2.0, 7.0))
    later = pf.BrownianPath(1.0, torch.zeros(20_000, 1, dtype=DOUBLE), entropy=3)
    later(1000.0), later(-1000.0)
    assert torch.equal(later(2.0, 7.0), bm(2.0, 7.0))
    assert torch.equal(later(-7.0, -2.0), bm(-7.0, -2.0))


def test_a_path_has_no_beginning() -> None:
    w0 = torch.full((20_000, 1), 0.3, dtype=DOUBLE)
    bm = pf.BrownianPath(1.0, w0, entropy=3)
    assert torch.equal(bm(1.0), w0)
    assert torch.equal(bm(1.0 - 1e-12), w0)
    check_variance(bm(-4.0) - w0, 5.0)
    check_variance(bm(0.25, 1.75), 1.5)
    check_independent(bm(-2.0, 1.0), bm(1.0, 4.0))
    check_independent(bm(-60.0, -1.3), bm(-1.3, 1.0))
    torch.testing.assert_close(bm(2.0) - bm(-3.0), bm(-3.0, 2.0))
    torch.testing.assert_close(bm(-9.0, -3.5) + bm(-3.5, 4.0), bm(-9.0, 4.0))
    assert torch.equal(bm(4.0, -3.0), -bm(-3.0, 4.0))
    assert bm.check_time(-5.0) == -5.0


@pytest.mark.parametrize("area", ["none", "space-time"])
def test_ends_can_be_given(area: str) -> None:
    w = torch.tensor([[1.0], [2.0]], dtype=DOUBLE)
    bm = pf.BrownianInterval(0, 2, W=w, H=w if area != "none" else None, entropy=1,
                             levy_area_approximation=area)  # fmt: skip
    torch.testing.assert_close(bm(0.0, 0.3) + bm(0.3, 2.0), w)
    if area != "none":
        torch.testing.assert_close(area_of(bm, 0.0, 2.0)[1], w)
    tree = pf.BrownianTree(0.0, w, 2.0, 3 * w, entropy=1)
    torch.testing.assert_close(tree(2.0), 3 * w)


def test_reversed_motions() -> None:
    bm = motion(4, levy_area_approximation="space-time")
    back = pf.ReverseBrownian(bm)
    for x, y in zip(back(-0.7, -0.2, True), bm(0.2, 0.7, True), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(ValueError, match="tb: a reversed motion"):
        back(-0.7)


class Linear(torch.nn.Module):
    noise_type = "diagonal"

    def __init__(self, sde_type: str) -> None:
        super().__init__()
        self.sde_type = sde_type

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * y


class Rotation(Linear):
    """General noise, so that log_ode asks for A."""

    noise_type = "general"

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([0.5 * y, 0.2 * y.flip(-1)], dim=-1)


@pytest.mark.parametrize(
    ("sde", "method", "area"),
    [
        (Linear("ito"), "euler", "none"),
        (Linear("ito"), "srk", "space-time"),
        (Linear("stratonovich"), "reversible_heun", "none"),
        (Rotation("stratonovich"), "log_ode", "foster"),
    ],
)
def test_serves_torchsde(sde: Linear, method: str, area: str) -> None:
    y0 = torch.ones(2000, 2, dtype=DOUBLE)
    bm = pf.BrownianInterval(0, 1, (2000, 2), DOUBLE, entropy=1, dt=1 / 32,
                             levy_area_approximation=area)  # fmt: skip
    ts = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    coarse, fine = (
        torchsde.sdeint(sde, y0, ts, bm=bm, method=method, dt=dt)[-1] for dt in (1 / 16, 1 / 32)
    )
    assert (coarse - fine).square().mean().sqrt() < 0.1
    if isinstance(sde, Linear) and sde.noise_type == "diagonal":
        rate = -1.125 if sde.sde_type == "ito" else -1.0
        exact = torch.exp(rate + 0.5 * bm(0.0, 1.0))
        assert (fine - exact).square().mean().sqrt() < 0.1


# k-diffusion -------------------------------------------------------------------------------


def test_noise_sampler() -> None:
    x = torch.zeros(4000, 2)
    sampler = pf.BrownianNoiseSampler(x, 0.03, 14.6, seed=1)
    noise = sampler(torch.tensor(5.0), torch.tensor(2.0))
    check_variance(noise.double(), 1.0)
    check_independent(noise, sampler(2.0, 1.0))
    first, second = sampler(5.0, 3.0), sampler(3.0, 2.0)
    torch.testing.assert_close(noise * math.sqrt(3.0), first * math.sqrt(2.0) + second)
    assert torch.equal(noise, pf.BrownianNoiseSampler(x, 0.03, 14.6, seed=1, cpu=True)(5.0, 2.0))
    logs = pf.BrownianNoiseSampler(x, 0.03, 14.6, seed=1, transform=lambda s: s.log())
    check_variance(logs(5.0, 2.0).double(), 1.0)


def test_noise_sampler_with_a_seed_for_each_sample() -> None:
    x = torch.zeros(3, 2)
    noise = pf.BrownianNoiseSampler(x, 0.1, 10.0, seed=[4, 9, 4])(5.0, 2.0)
    assert torch.equal(noise[0], noise[2])
    alone = pf.BrownianNoiseSampler(x[:1], 0.1, 10.0, seed=9)(5.0, 2.0)
    assert torch.equal(noise[1:2], alone)
    with pytest.raises(ValueError, match="seed: need a whole number, or one for each of 3"):
        pf.BrownianNoiseSampler(x, 0.1, 10.0, seed=[1])


# Messages ----------------------------------------------------------------------------------

MADE = motion(2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pf.BrownianInterval(1, 1, (2,)), ValueError, "t0, t1: need t0 < t1, got 1, 1"),
        (lambda: pf.BrownianInterval(0, math.inf, (2,)), ValueError, "t1: need a finite"),
        (lambda: pf.BrownianInterval("a", 1, (2,)), TypeError, "t0: need a number"),
        (lambda: pf.BrownianInterval(0, 1), ValueError, "size: needed where neither W nor H"),
        (lambda: pf.BrownianInterval(0, 1, (2,), entropy=-1), ValueError, "entropy: need a whole"),
        (lambda: pf.BrownianInterval(0, 1, (2,), entropy=1.5), TypeError, "entropy: need a whole"),
        (lambda: pf.BrownianInterval(0, 1, (2,), dt=0), ValueError, "dt, tol: need dt > 0"),
        (lambda: pf.BrownianInterval(0, 1, (2,), tol=-1), ValueError, "dt, tol: need dt > 0"),
        (lambda: pf.BrownianInterval(0, 1, (2,), cache_size=-1), ValueError, "cache_size: need"),
        (lambda: pf.BrownianInterval(0, 1, (2,), torch.int64), TypeError, "dtype: need a floating"),
        (lambda: pf.BrownianInterval(0, 1, W=3), TypeError, "W: need a floating-point tensor, got"),
        (
            lambda: pf.BrownianInterval(0, 1, (2,), W=torch.zeros(3)),
            ValueError,
            r"W: need shape \(2,\), torch.float32 on cpu, got \(3,\)",
        ),
        (lambda: pf.BrownianInterval(0, 1, H=torch.zeros(3)), ValueError, "H: without levy_area"),
        (
            lambda: pf.BrownianInterval(0, 1, (2,), levy_area_approximation="space_time"),
            ValueError,
            "levy_area_approximation: need one of none, .*near names: space-time",
        ),
        (lambda: MADE.check_time(2.1), ValueError, r"t: 2.1 lies outside the motion's \[0, 2\]"),
        (lambda: MADE(math.nan, 1.0), ValueError, "t: need a finite number"),
        (lambda: MADE(torch.zeros(2), 1.0), TypeError, "t: need a number or a tensor of one"),
        (lambda: pf.BrownianPath(0.0, torch.zeros(2))(math.inf), ValueError, "t: need a finite"),
        (lambda: pf.BrownianPath(0.0, 3), TypeError, "w0: need a floating-point tensor"),
        (lambda: pf.BrownianTree(0.0, torch.zeros(2).long()), TypeError, "w0: need a floating"),
    ],
)  # fmt: skip
def test_messages(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_rounded_ends_are_forgiven() -> None:
    bm = pf.BrownianInterval(0.1, 0.3, (2,), entropy=1)
    stop = torch.tensor(0.3)  # 0.30000001192...
    assert torch.equal(bm(0.1, stop), bm(0.1, 0.3))
    assert torch.equal(bm(0.1 - 1e-9, 0.2), bm(0.1, 0.2))


@pytest.mark.parametrize("area", ["none", "space-time"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(
    ("cells", "shape"),
    [(1, (3,)), (7, (5, 2)), (100, (4, 3)), (75, ()), (9, (2, 50_000)), (48, (3, 5000))],
)
def test_a_sweep_gives_what_single_queries_give(
    area: str, dtype: torch.dtype, cells: int, shape: tuple
) -> None:
    """Small motions are made level by level, large ones depth first: the same to the last bit."""

    def made(h: float = 2.0 / cells) -> pf.BrownianInterval:
        return pf.BrownianInterval(
            0.0, 2.0, shape, dtype, entropy=3, dt=h, levy_area_approximation=area
        )

    single, there, back, finer, uneven = made(), made(), made(), made(), made(1.9 / cells)
    steps = [(2.0 * k / cells, 2.0 * (k + 1) / cells) for k in range(cells)]
    expected = [alone(single, *step) for step in steps]
    results = [there(*step, return_U=True) for step in steps]
    reverse = [back(*step, return_U=True) for step in steps[::-1]][::-1]
    for one, *others in zip(expected, results, reverse, strict=True):
        for other in others:
            for x, y in zip(one, other, strict=True):
                assert y is None if x is None else torch.equal(x, y)
    # From any step on, in halves of steps, and with a last step that is shorter.
    for first in range(1, min(cells - 2, 8)):
        late = made()
        for step, one in zip(steps[first : first + 4], expected[first:], strict=False):
            assert torch.equal(late(*step), one[0])
        late = made()
        for step, one in zip(
            steps[-first - 4 : -first][::-1], expected[:-first][::-1], strict=False
        ):
            assert torch.equal(late(*step), one[0])
    for a, b in steps[cells // 3 :]:
        middle = 0.5 * (a + b)
        for step in ((a, middle), (middle, b)):
            assert torch.equal(finer(*step), alone(single, *step)[0])
    h = 1.9 / cells
    again = made(h)
    for k in range(cells + 1):
        step = k * h, min(2.0, (k + 1) * h)
        assert torch.equal(uneven(*step), alone(again, *step)[0])
    # Out of order.
    assert torch.equal(there(0.1, 1.3), single(0.1, 1.3))
    assert torch.equal(there(0.7), single(0.7))


def test_a_sweep_goes_on_in_another_mode_thread_or_copy() -> None:
    steps = [(k / 64, (k + 1) / 64) for k in range(64)]
    bm, exact = (pf.BrownianInterval(size=(2, 3), entropy=3, dt=1 / 64) for _ in range(2))
    expected = [alone(exact, *step)[0] for step in steps]
    with torch.inference_mode():
        results = [bm(*step) for step in steps[:5]]
    results += [bm(*step) for step in steps[5:9]]
    other = pickle.loads(pickle.dumps(copy.deepcopy(bm)))
    results += [other(*step) for step in steps[9:20]]
    assert all(map(torch.equal, results, expected))

    def whole() -> list[Tensor]:
        return [shared(*step) for step in steps]

    shared = pf.BrownianInterval(size=(2, 3), entropy=3, dt=1 / 64)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(whole) for _ in range(4)]:
            assert all(map(torch.equal, future.result(), expected))


@pytest.mark.parametrize("area", ["none", "space-time"])
@pytest.mark.parametrize("odd", [1, 5, 125])
def test_one_entropy_is_one_path_for_doubled_steps(area: str, odd: int) -> None:
    motions = [
        pf.BrownianInterval(0.0, 2.0, (3,), DOUBLE, entropy=4, dt=dt, levy_area_approximation=area)
        for dt in ([None] if odd == 125 else []) + [2.0 / (odd * n) for n in (1, 2, 16, 64)]
    ]
    generator = torch.Generator().manual_seed(0)
    # Any step of the coarsest leaves is far longer than 2^-16 of the shortest dt.
    times = torch.randint(1, 2**10, (20,), generator=generator).double() / 2**9
    for t in times.tolist():
        first, *others = [motion(0.0, t, return_U=True) for motion in motions]
        for other in others:
            for one, two in zip(first, other, strict=True):
                if one is not None:
                    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    sweep = motions[-1]
    h = 2.0 / (odd * 64)
    total = sum(sweep(k * h, (k + 1) * h) for k in range(odd * 64))
    torch.testing.assert_close(total, motions[0](0.0, 2.0), rtol=0, atol=1e-12)


def test_a_tree_stands_still_outside_its_interval_and_warns() -> None:
    tree = pf.BrownianTree(0.1, torch.zeros(3), t1=14.0, entropy=1)
    with pytest.warns(UserWarning, match=r"t: 0 lies outside the motion's \[0.1, 14\]"):
        outside = tree(0.0, 5.0)
    assert torch.equal(outside, tree(0.1, 5.0))


@pytest.mark.parametrize("times", [(0.0, 5.0), (5.0, 500.5), (torch.tensor(0.0), 500.5)])
def test_an_interval_stands_still_outside_and_warns_as_torchsdes(times) -> None:
    kwargs = {"size": (3,), "entropy": 1, "levy_area_approximation": "space-time"}
    ours = pf.BrownianInterval(0.3, 500.0, **kwargs)
    clamped = [min(max(float(t), 0.3), 500.0) for t in times]
    with pytest.warns(UserWarning, match=r"lies outside the motion's \[0.3, 500\]"):
        outside = ours(*times, return_U=True)
    for one, two in zip(outside, ours(*clamped, return_U=True), strict=True):
        assert torch.equal(one, two)
    theirs = torchsde.BrownianInterval(0.3, 500.0, **kwargs)
    with pytest.warns(UserWarning, match="Should have t"):
        outside = theirs(*times)
    assert torch.equal(outside, theirs(*clamped))
    with pytest.warns(UserWarning, match="lies outside"):
        nothing = ours(0.1, 0.2)
    assert torch.equal(nothing, torch.zeros(3))


@pytest.mark.parametrize("area", ["davie", "foster"])
def test_the_levy_area_does_not_depend_on_the_rounding_of_times(area: str) -> None:
    kwargs = {"size": (2, 3), "dtype": DOUBLE, "entropy": 3, "levy_area_approximation": area}
    for dt in (None, 0.1):
        bm = pf.BrownianInterval(0.0, 1.0, dt=dt, **kwargs)
        area_of = bm(0.3, 0.4, return_A=True)[1]
        for ta, tb in ((0.3 + 1e-16, 0.4), (0.1 + 0.1 + 0.1, 0.4 - 1e-15), (0.3, 0.4 + 1e-13)):
            torch.testing.assert_close(bm(ta, tb, return_A=True)[1], area_of, rtol=0, atol=1e-7)
        single = torch.tensor([0.3, 0.4])
        if dt:  # a leaf is longer than the rounding to float32
            torch.testing.assert_close(bm(*single, return_A=True)[1], area_of, rtol=0, atol=1e-7)
        other = bm(0.3 + 1e-6, 0.4, return_A=True)[1]
        assert (other - area_of).abs().max() > 1e-3
    halves = pf.BrownianInterval(0.0, 1.0, dt=0.05, **kwargs)
    torch.testing.assert_close(halves(0.3, 0.4, return_A=True)[1], area_of, rtol=0, atol=1e-12)


def test_diffusers_cosine_scheduler_runs_with_probflow_as_torchsde(monkeypatch) -> None:
    pytest.importorskip("diffusers")
    from diffusers import CosineDPMSolverMultistepScheduler
    from diffusers.schedulers import scheduling_dpmsolver_sde as home  # of its noise sampler

    monkeypatch.setattr(home, "torchsde", pf)
    scheduler = CosineDPMSolverMultistepScheduler()
    scheduler.set_timesteps(4)
    x = torch.ones(1, 2, 3)
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    with pytest.warns(UserWarning, match=r"t: 0 lies outside the motion's \[0.3, 500\]"):
        x = scheduler.step(0.1 * x, scheduler.timesteps[-1], x).prev_sample
    assert x.isfinite().all()


def test_motions_share_no_memory_with_the_tensors_given() -> None:
    w0 = torch.zeros(3)
    path, tree = pf.BrownianPath(0.0, w0, entropy=1), pf.BrownianTree(0.0, w0, entropy=1)
    before = path(0.5), tree(0.5)
    w0.add_(7.0)
    assert torch.equal(path(0.5), before[0])
    assert torch.equal(tree(0.5), before[1])
    sampler = pf.BrownianNoiseSampler(torch.zeros(1, 2), 0.1, 10.0, seed=1)
    with pytest.raises(ValueError, match="need two different noise levels"):
        sampler(1.0, 1.0)


@pytest.mark.parametrize("dt", [None, 0.25])
def test_a_motion_first_asked_within_a_transform_stays_a_function(dt: float | None) -> None:
    times = [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0), (0.1, 0.7)]

    def square(x: torch.Tensor) -> torch.Tensor:
        return sum((bm(a, b) * x).square().sum() for a, b in times)

    grad, one = torch.func.grad, torch.ones(())
    for within, x in (
        (grad(square), one),
        (grad(grad(square)), one),
        (torch.func.vmap(square), torch.ones(2)),
    ):
        bm, exact = (pf.BrownianInterval(size=(3, 2), entropy=5, dt=dt) for _ in range(2))
        within(x)
        for a, b in times:
            assert torch.equal(bm(a, b), exact(a, b))
