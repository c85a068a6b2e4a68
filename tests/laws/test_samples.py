"""Distances of sample sets against closed forms and definitions, and their standard errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from probflow.laws.distances import gaussian_w2
from probflow.laws.samples import (
    SAMPLE_DISTANCES,
    bandwidth,
    directions,
    energy,
    frechet,
    mmd,
    sliced_w2,
)

DISTANCES = {**SAMPLE_DISTANCES, "mmd": functools.partial(mmd, width=1.3)}
every = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every
def test_metric(distance: Callable) -> None:
    """0 for the same set, symmetric, the same in any order of the samples."""
    x, y = normal(40, 3), 1.5 * normal(40, 3, 1) + 0.2
    assert distance(x, x)[0] == pytest.approx(0.0, abs=1e-7)
    assert distance(x, y)[0] == pytest.approx(distance(y, x)[0], rel=1e-12)
    assert distance(x.flip(0), y)[0] == pytest.approx(distance(x, y)[0], rel=1e-12)


def test_on_the_line_against_scipy() -> None:
    """scipy has the energy distance of two sets, and W1; W2 by its definition."""
    x, y = normal(57, 1), 0.7 * normal(57, 1, 1) - 0.3
    flat = x[:, 0].numpy(), y[:, 0].numpy()
    assert energy(x, y)[0] == pytest.approx(stats.energy_distance(*flat), rel=1e-10)
    gaps = np.sort(flat[0]) - np.sort(flat[1])
    assert sliced_w2(x, y)[0] == pytest.approx(np.sqrt(np.mean(gaps**2)), rel=1e-12)


def test_shifts_have_their_size() -> None:
    """A shift by v: Frechet is |v|, sliced W2 the root mean square of v along the directions."""
    x, v = normal(64, 5), torch.tensor([0.3, -0.2, 0.0, 1.0, 0.5], dtype=torch.float64)
    assert frechet(x, x + v)[0] == pytest.approx(float(v.norm()), rel=1e-6)
    wanted = float((directions(5) @ v).square().mean().sqrt())
    assert sliced_w2(x, x + v)[0] == pytest.approx(wanted, rel=1e-12)
    assert wanted == pytest.approx(float(v.norm()) / math.sqrt(5), rel=0.2)


def test_frechet_is_the_distance_of_the_normal_laws() -> None:
    x, y = (
        normal(200, 3),
        normal(200, 3, 1)
        @ torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.6, -0.3], [0.2, 0.0, 1.4]], dtype=torch.float64),
    )
    a, b = (np.cov(s.numpy().T) for s in (x, y))
    shift = (x.mean(0) - y.mean(0)).numpy()
    square = shift @ shift + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet(x, y)[0] == pytest.approx(math.sqrt(square), rel=1e-9)
    moments = (part for s in (x[:, :1], y[:, :1]) for part in (s.mean(0), s.var(0)))
    on_the_line = gaussian_w2(*(part.numpy() for part in moments))
    assert frechet(x[:, :1], y[:, :1])[0] == pytest.approx(on_the_line, rel=1e-9)


def test_mmd_of_normal_laws() -> None:
    """E k(X, Y) of N(m, s^2) is known; the sets' value lies within its own errors."""
    width, n = 1.3, 3000
    x, y = normal(n, 1), 0.6 * normal(n, 1, 1) + 0.5

    def mean(shift: float, variance: float) -> float:
        total = width**2 + variance
        return width / math.sqrt(total) * math.exp(-0.5 * shift**2 / total)

    exact = math.sqrt(mean(0, 2.0) + mean(0, 2 * 0.36) - 2 * mean(0.5, 1.36))
    value, error = mmd(x, y, width)
    assert abs(value - exact) < 4 * error < 0.2 * exact
    plain = np.exp(-0.5 * (x.numpy() - y.numpy().T) ** 2 / width**2)
    own = [np.exp(-0.5 * (s.numpy() - s.numpy().T) ** 2 / width**2).mean() for s in (x, y)]
    assert value == pytest.approx(math.sqrt(sum(own) - 2 * plain.mean()), rel=1e-9)


@every
def test_errors_by_groups_are_those_of_leaving_out(distance: Callable) -> None:
    x, y = normal(43, 2), 1.4 * normal(43, 2, 1) + 0.5  # 43 is no multiple of ten
    rests = [torch.arange(43) % 10 != g for g in range(10)]
    left = np.array([distance(x[rest], y[rest])[0] for rest in rests])
    assert distance(x, y)[1] == pytest.approx(3 * left.std(), rel=1e-9)


@every
def test_standard_errors_are_right(distance: Callable) -> None:
    """Over 60 pairs of sets that are clearly different."""
    pairs = [(normal(200, 2, s), 1.3 * normal(200, 2, 1000 + s) + 0.7) for s in range(60)]
    values, errors = np.array([distance(x, y) for x, y in pairs]).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.35)


def test_directions_and_bandwidth() -> None:
    assert directions(1).tolist() == [[1.0]]
    torch.testing.assert_close(directions(7).norm(dim=1), torch.ones(64, dtype=torch.float64))
    assert directions(7).equal(directions(7))
    x = normal(50, 2)
    assert bandwidth(3 * x) == pytest.approx(3 * bandwidth(x))


def test_sets_larger_than_a_chunk(monkeypatch) -> None:
    x, y = normal(50, 2), normal(50, 2, 1) + 0.3
    whole = energy(x, y)
    monkeypatch.setattr("probflow.laws.samples._ROWS", 7)
    assert energy(x, y) == pytest.approx(whole, rel=1e-12)
