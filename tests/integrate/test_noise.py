"""Noise: a pure function of its keys, and normal.

Statistical tests have fixed seeds and bounds at the level of 1e-4 or beyond (about 4 to 5
standard errors), so that passing means something and failing would, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from probflow.integrate import BrownianInterval, SeededNoise
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


@pytest.mark.parametrize("block", [2, 100, 2**16, 2**22])
def test_the_block_sizes_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((3, 7), (2, 500)):
        expected = draw(70, 1, shape)
        monkeypatch.setattr(noise_module, "_BLOCK", block)
        monkeypatch.setattr(noise_module, "_CACHE", block)
        assert torch.equal(draw(70, 1, shape), expected)
        monkeypatch.undo()


def test_the_keys_are_what_counts() -> None:
    samples, draws = torch.tensor([5, 0, 9]), torch.tensor([4, 1])
    some = normals(11, samples, draws, 6, torch.float64)
    every = normals(11, torch.arange(10), torch.arange(5), 6, torch.float64)
    assert torch.equal(some, every[draws][:, samples])
    source = SeededNoise(11, (10, 6), torch.float64)
    for number in range(5):
        assert torch.equal(source(0.3, 0.1), every[number])


def test_the_last_element_of_an_odd_count() -> None:
    """Half a pair is cut, never shared with the next sample."""
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
    # The angle is known to some pi 2^-24, and r^2 = -ln u^2 to some 2^-24, absolute near 0.
    radius = torch.stack((double[..., :50], double[..., 50:])).square().sum(0).sqrt()
    radius = torch.cat((radius, radius), dim=-1)
    error = (single - double).abs()
    assert (error <= 5e-7 * radius + 2e-7 / radius).all()
    assert (error < 3e-6).double().mean() > 0.9999


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


# Increments as noise -----------------------------------------------------------------------


def test_path_noise_is_normalised_and_shared_by_step_counts() -> None:
    path = BrownianInterval(0.0, 1.0, (6_000, 1), torch.float64, entropy=1)
    source = PathNoise(path)
    whole, first, second = source(1.0, 0.5), source(1.0, 0.75), source(0.75, 0.5)
    n = whole.numel()
    assert abs(float(whole.square().mean()) - 1) < 4.5 * math.sqrt(2 / n)
    torch.testing.assert_close(whole, (first + second) / math.sqrt(2), rtol=0, atol=1e-12)
    assert correlation(first, second) < 4.5
    assert source(1.0, 0.5).dtype == torch.float64
    assert PathNoise(path, dtype=torch.float32)(1.0, 0.5).dtype == torch.float32
    source.restart()
    assert torch.equal(source(1.0, 0.5), whole)
    # Another clock, as torchsde's, which runs the other way.
    mirrored = PathNoise(lambda a, b: path(-b, -a), lambda t: -t)
    torch.testing.assert_close(mirrored(1.0, 0.5), -whole)
