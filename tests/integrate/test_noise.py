"""Noise: a pure function of its keys, and normal; the Brownian path: Brownian.

Statistical tests have fixed seeds and bounds at the level of 1e-4 or beyond (about 4 to 5
standard errors), so that passing means something and failing would, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probflow.integrate import BrownianPath, SeededNoise
from probflow.integrate import noise as noise_module
from probflow.integrate.noise import GeneratorNoise, PathNoise, normals

LEVEL = 1e-4


def draw(n: int, *arguments: object, **options: object) -> torch.Tensor:
    source = SeededNoise(*arguments, **options)
    return torch.stack([source(1.0, 0.5) for _ in range(n)])


# A pure function ---------------------------------------------------------------------------


def test_a_sample_is_the_same_in_every_batch() -> None:
    whole = draw(5, 3, (12, 2, 5))
    alone = draw(5, 3, (1, 2, 5), first_sample=7)
    assert torch.equal(whole[:, 7:8], alone)
    chunks = [draw(5, 3, (4, 2, 5), first_sample=i) for i in (0, 4, 8)]
    assert torch.equal(whole, torch.cat(chunks, dim=1))
    assert torch.equal(whole.reshape(5, 12, 10), draw(5, 3, (12, 10)))


@pytest.mark.parametrize("block", [1, 100, 2**16, 2**22])
def test_the_block_size_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(70, 1, (3, 7))
    path = BrownianPath(1, (3, 7), 0.0, 1.0).value(0.3)
    monkeypatch.setattr(noise_module, "_BLOCK", block)
    assert torch.equal(draw(70, 1, (3, 7)), expected)
    assert torch.equal(BrownianPath(1, (3, 7), 0.0, 1.0).value(0.3), path)


def test_the_keys_are_what_counts() -> None:
    samples, draws = torch.tensor([5, 0, 9]), torch.tensor([4, 1])
    some = normals(11, samples, draws, 6, torch.float64)
    every = normals(11, torch.arange(10), torch.arange(5), 6, torch.float64)
    assert torch.equal(some, every[draws][:, samples])
    source = SeededNoise(11, (10, 6), torch.float64)
    for number in range(5):
        assert torch.equal(source(0.3, 0.1), every[number])


def test_the_last_element_of_an_odd_count() -> None:
    """The pair's second half is cut, never shared with the next sample."""
    assert normals(0, torch.arange(2), torch.arange(1), 5).shape == (1, 2, 5)
    assert normals(0, torch.arange(2), torch.arange(1), 1).shape == (1, 2, 1)


def test_restart() -> None:
    source = SeededNoise(4, (2, 3))
    first = [source(0, 1) for _ in range(3)]
    source.restart()
    assert all(torch.equal(source(0, 1), z) for z in first)
    generator = torch.Generator().manual_seed(1)
    torch.randn(3, generator=generator)
    stateful = GeneratorNoise(generator, (2, 3), torch.float32, "cpu")
    first = [stateful(0, 1) for _ in range(3)]
    stateful.restart()
    assert all(torch.equal(stateful(0, 1), z) for z in first)
    assert not torch.equal(first[0], first[1])


def test_float32_is_rounded_float64() -> None:
    single, double = (draw(40, 2, (500, 100), dtype) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    # The angle is known to 2 pi 2^-24; the radius to 2^-24 of itself.
    assert (single - double).abs().max() < 3e-6
    small = double.abs() < 1e-3
    assert (single - double)[small].abs().max() < 3e-6


def test_seeds_are_whole_numbers() -> None:
    assert torch.equal(draw(1, np.int64(3), (2, 2)), draw(1, 3, (2, 2)))
    assert not torch.equal(draw(1, 2**63 - 1, (2, 2)), draw(1, 0, (2, 2)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SeededNoise(-1, (2,)), ValueError, r"seed: need a whole number in \[0, 2\*\*63"),
        (lambda: SeededNoise(2**63, (2,)), ValueError, "seed: need"),
        (lambda: SeededNoise(1.0, (2,)), TypeError, "seed: need a whole number"),
        (lambda: SeededNoise(True, (2,)), TypeError, "seed: need a whole number"),
        (lambda: SeededNoise("a", (2,)), TypeError, "seed: need a whole number"),
        (lambda: SeededNoise(1, (2,), first_sample=-1), ValueError, "first_sample: need a whole"),
        (lambda: SeededNoise(1, (2,), first_sample=1.5), TypeError, "first_sample: need a whole"),
        (lambda: draw(1, 1, (2,), torch.float16), TypeError, "normals are float32 or float64"),
        (lambda: draw(1, 1, (2,), torch.complex64), TypeError, "normals are float32 or float64"),
        (lambda: BrownianPath(-1, (2,), 0, 1), ValueError, "seed: need"),
        (lambda: BrownianPath(1, (2,), 1, 1), ValueError, "t0, t1: need two different finite"),
        (lambda: BrownianPath(1, (2,), 0, math.inf), ValueError, "t0, t1: need two different"),
        (lambda: BrownianPath(1, (2,), 0, 1, depth=0), ValueError, "depth: need 1 <= depth <= 40"),
        (lambda: BrownianPath(1, (2,), 0, 1, depth=41), ValueError, "depth: need 1 <= depth"),
        (lambda: BrownianPath(1, (2,), 0, 1).value(1.1), ValueError, "t: 1.1 lies outside the"),
        (lambda: BrownianPath(1, (2,), 0, 1)(0.5, -0.1), ValueError, "t: -0.1 lies outside"),
        (lambda: BrownianPath(1, (2,), 0, 1).value(math.nan), ValueError, "t: nan lies outside"),
        (
            lambda: BrownianPath(1, (2,), 0, 1, depth=8)(0.5, 0.55),
            ValueError,
            r"less than 16 cells of the path \(0.00390625 each\).*depth > 8",
        ),
    ],
)
def test_messages(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# Normality ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345])
def test_normals_are_normal(seed: int) -> None:
    z = normals(seed, torch.arange(1000), torch.arange(5), 200, torch.float64).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > LEVEL
    n = len(z)
    assert abs(z.mean()) < 4.5 / math.sqrt(n)
    assert abs(z.var() - 1) < 4.5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4.5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4.5 * math.sqrt(96 / n)


def test_tails_to_5_sigma() -> None:
    """Counts beyond 3, 4, 4.5 and 5 in 2e7 draws; 11.5 are expected beyond 5."""
    counts = dict.fromkeys((3.0, 4.0, 4.5, 5.0), 0)
    n = 0
    for first in range(0, 20_000, 2000):
        z = normals(7, torch.arange(first, first + 2000), torch.arange(1), 1000).abs()
        n += z.numel()
        for level in counts:
            counts[level] += int((z > level).sum())
    for level, count in counts.items():
        p = 2 * stats.norm.sf(level)
        assert stats.binomtest(count, n, p).pvalue > LEVEL, (level, count, n * p)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation in standard errors of independent normals."""
    a, b = a.flatten().double(), b.flatten().double()
    return float(abs((a * b).mean()) * math.sqrt(len(a)))


def test_no_correlation_across_samples_draws_elements_and_seeds() -> None:
    z = normals(3, torch.arange(300), torch.arange(30), 64, torch.float64)
    half = 32
    pairs = {
        "samples": (z[:, 1:], z[:, :-1]),
        "samples further": (z[:, 64:], z[:, :-64]),
        "draws": (z[1:], z[:-1]),
        "elements": (z[..., 1:], z[..., :-1]),
        "halves of Box-Muller": (z[..., :half], z[..., half:]),
        "sample and draw": (z[1:, :-1], z[:-1, 1:]),
        "seeds": (z, normals(4, torch.arange(300), torch.arange(30), 64, torch.float64)),
        "neighbours of seed": (z[:, 1:], normals(4, torch.arange(299), torch.arange(30), 64)),
        "high seeds": (z, normals(3 + 2**40, torch.arange(300), torch.arange(30), 64)),
    }
    for name, (a, b) in pairs.items():
        assert correlation(a, b) < 4.5, name
        assert correlation(a**2 - 1, b**2 - 1) / 2 < 4.5, name  # nor do the sizes correlate
        assert correlation(a.abs() - math.sqrt(2 / math.pi), b) < 4.5, name


def test_halves_of_box_muller_are_independent() -> None:
    """The pair is rotation invariant: angle uniform, square radius exponential, independent."""
    z = normals(5, torch.arange(2000), torch.arange(1), 200, torch.float64)[0]
    a, b = z[:, :100].flatten().numpy(), z[:, 100:].flatten().numpy()
    angle, square = np.arctan2(b, a), a**2 + b**2
    assert stats.kstest(angle, "uniform", args=(-np.pi, 2 * np.pi)).pvalue > LEVEL
    assert stats.kstest(square, "expon", args=(0, 2)).pvalue > LEVEL
    bins = [np.digitize(stats.norm.cdf(v), np.linspace(0, 1, 11)[1:-1]) for v in (a, b)]
    table = np.histogram2d(*bins, bins=10)[0]
    assert stats.chi2_contingency(table).pvalue > LEVEL


def test_every_tensor_is_its_own() -> None:
    """No two of 600 000 values coincide: no key collides with another."""
    z = normals(1, torch.arange(200), torch.arange(30), 100, torch.float64).flatten()
    assert len(z.unique()) > len(z) - 3


# The Brownian path -------------------------------------------------------------------------


def many(seed: int = 0, n: int = 6_000, **options: object) -> BrownianPath:
    return BrownianPath(seed, (n, 1), 0.0, 2.0, **options)


def check_variance(values: torch.Tensor, variance: float) -> None:
    """Two-sided chi-square test of the variance of centred normals."""
    statistic, n = float((values**2).sum()) / variance, values.numel()
    p = 2 * min(stats.chi2.cdf(statistic, n), stats.chi2.sf(statistic, n))
    assert p > LEVEL, (float(values.var()), variance)


@pytest.mark.parametrize(
    ("a", "b"), [(0.0, 2.0), (0.0, 1.0), (0.3, 0.31), (1 / 3, 1.7), (0.999, 1.001), (1.9, 2.0)]
)
def test_increments_have_the_variance_of_their_length(a: float, b: float) -> None:
    increments = many()(a, b)
    check_variance(increments, b - a)
    assert stats.kstest((increments / math.sqrt(b - a)).flatten().numpy(), "norm").pvalue > LEVEL


@pytest.mark.parametrize("h", [1e-3, 1e-5, 1e-7])
def test_increments_of_short_steps(h: float) -> None:
    """No loss inside the cells of the tree, e.g. at the end of a Karras grid."""
    path = many(3)
    for a in (0.12345, 1.0 - h / 2, 2 / 3):
        check_variance(path(a, a + h), h)


def test_increments_of_disjoint_intervals_are_independent() -> None:
    path = many(1)
    ends = [0.0, 0.2, 0.5, 1 / 3 + 0.5, 1.0, 1.3, 2.0]
    increments = [path(a, b) / math.sqrt(b - a) for a, b in pairwise(ends)]
    for i, a in enumerate(increments):
        for b in increments[:i]:
            assert correlation(a, b) < 4.5


@pytest.mark.parametrize(("a", "t", "b"), [(0.0, 0.7, 2.0), (0.4, 0.5, 1.1), (0.25, 0.5, 0.75)])
def test_bridges(a: float, t: float, b: float) -> None:
    """Given its ends, W(t) has mean on the chord and variance (t - a)(b - t)/(b - a)."""
    path = many(2)
    chord = torch.lerp(path.value(a), path.value(b), (t - a) / (b - a))
    bridge = path.value(t) - chord
    check_variance(bridge, (t - a) * (b - t) / (b - a))
    assert correlation(bridge, path(a, b)) < 4.5 * math.sqrt(2)


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=8), st.randoms())
def test_the_path_is_a_pure_function_of_time(times: list[float], random: object) -> None:
    one, other = (BrownianPath(9, (2, 3), 0.0, 2.0) for _ in range(2))
    expected = {t: one.value(t).clone() for t in times}
    shuffled = list(times)
    random.shuffle(shuffled)
    for t in shuffled:
        assert torch.equal(other.value(t), expected[t])


@settings(max_examples=50)
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_increments_add_up(a: float, b: float, c: float) -> None:
    path = BrownianPath(9, (2, 3), 0.0, 1.0, depth=40)
    if min(abs(a - b), abs(b - c), abs(a - c)) < 1e-9:
        return
    torch.testing.assert_close(path(a, b) + path(b, c), path(a, c), rtol=0, atol=1e-14)
    assert torch.equal(path(a, b), -path(b, a))


def test_the_path_is_continuous_across_cells() -> None:
    path = BrownianPath(0, (500,), 0.0, 1.0, depth=10)
    for t in (0.5, 0.25, 0.375, 3 / 1024):
        below, at, above = (path.value(t + d) for d in (-1e-12, 0.0, 1e-12))
        assert (below - at).abs().max() < 1e-9
        assert (above - at).abs().max() < 1e-9


def test_path_samples_do_not_depend_on_the_batch() -> None:
    whole = BrownianPath(5, (6, 2), 0.0, 1.0)(0.2, 0.9)
    part = BrownianPath(5, (2, 2), 0.0, 1.0, first_sample=3)(0.2, 0.9)
    assert torch.equal(whole[3:5], part)


def test_path_samples_are_independent() -> None:
    z = torch.stack(
        [BrownianPath(5, (2000, 3), 0.0, 1.0)(0.1 * k, 0.1 * k + 0.1) for k in range(6)]
    )
    z = z / math.sqrt(0.1)
    assert correlation(z[:, 1:], z[:, :-1]) < 4.5
    assert correlation(z[..., 1:], z[..., :-1]) < 4.5
    other = BrownianPath(6, (2000, 3), 0.0, 1.0)(0.0, 0.1) / math.sqrt(0.1)
    assert correlation(z[0], other) < 4.5


def test_the_path_is_independent_of_seeded_noise_of_the_same_seed() -> None:
    """Initial states and paths share seeds, and must not share normals."""
    source = SeededNoise(5, (4000, 3), torch.float64)
    path = BrownianPath(5, (4000, 3), 0.0, 1.0)
    increments = [path(a, b) for a, b in [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.25, 0.5)]]
    for _ in range(8):
        z = source(0, 1)
        for w in increments:
            assert correlation(z, w / w.std()) < 4.5


def test_ends_in_either_order() -> None:
    up, down = BrownianPath(1, (3,), 0.1, 1.0), BrownianPath(1, (3,), 1.0, 0.1)
    assert torch.equal(up.value(0.4), down.value(0.4))
    assert (up.value(0.1) == 0).all()
    up.value(0.1 - 1e-12)  # rounding at the ends is forgiven
    assert torch.equal(up.value(1.0 + 1e-12), up.value(1.0))


def test_single_precision_paths() -> None:
    single, double = (BrownianPath(1, (50, 2), 0.0, 1.0, d) for d in (torch.float32, torch.float64))
    for t in (0.1, 0.5, 1.0):
        assert single.value(t).dtype == torch.float32
        assert (single.value(t) - double.value(t)).abs().max() < 1e-5


def test_path_noise_is_normalised_and_shared_by_step_counts() -> None:
    path = BrownianPath(1, (6_000, 1), 0.0, 1.0)
    source = PathNoise(path)
    whole, first, second = source(1.0, 0.5), source(1.0, 0.75), source(0.75, 0.5)
    check_variance(whole, 1.0)
    torch.testing.assert_close(whole, (first + second) / math.sqrt(2), rtol=0, atol=1e-12)
    assert correlation(first, second) < 4.5
    assert source(1.0, 0.5).dtype == torch.float64
    assert PathNoise(path, dtype=torch.float32)(1.0, 0.5).dtype == torch.float32
    source.restart()
    assert torch.equal(source(1.0, 0.5), whole)
    # Another clock, as torchsde's, which runs the other way.
    mirrored = PathNoise(lambda a, b: path(-b, -a), lambda t: -t)
    torch.testing.assert_close(mirrored(1.0, 0.5), -whole)
