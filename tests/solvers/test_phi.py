"""Weights of exponential integrators against arithmetic with 60 digits."""

from __future__ import annotations

import math

import pytest

mpmath = pytest.importorskip("mpmath")

from probflow.solvers.phi import adams, moments, phi  # noqa: E402

SIZES = [0.0, *(10.0 ** (e / 4) for e in range(-48, 6)), 4.9, 5.0, 5.1, 25.0, 50.0]
ARGUMENTS = sorted({sign * size for size in SIZES for sign in (1.0, -1.0)})


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_phi(k: int) -> None:
    with mpmath.workdps(60):
        for z in ARGUMENTS:
            exact = mpmath.hyp1f1(1, k + 1, mpmath.mpf(z)) / mpmath.factorial(k)
            assert abs(phi(k, z) / exact - 1) < 1e-14, z


def weights(nodes: list[float], z: float = 0.0) -> list[float]:
    return adams(nodes, moments(len(nodes), z))


def exact_adams(nodes: list[float], z: float) -> list[mpmath.mpf]:
    """Polynomials in exact arithmetic, moments from hypergeometric functions."""
    moments = [mpmath.hyp1f1(1, k + 2, mpmath.mpf(z)) / (k + 1) for k in range(len(nodes))]
    weights = []
    for j, node in enumerate(nodes):
        others = [mpmath.mpf(n) for m, n in enumerate(nodes) if m != j]
        coefficients = [mpmath.mpf(1)]
        for other in others:
            coefficients = [
                (high - other * low) / (mpmath.mpf(node) - other)
                for high, low in zip([0, *coefficients], [*coefficients, 0], strict=True)
            ]
        weights.append(sum(c * m for c, m in zip(coefficients, moments, strict=True)))
    return weights


@pytest.mark.parametrize(
    "nodes",
    [
        [0.0],
        [0.0, -1.0],
        [0.0, -1e-3],
        [0.0, -1.0, -2.0, -3.0],
        [0.0, -0.7, -0.9, -13.0],
        [0.0, -20.0, -20.1, -300.0],
    ],
    ids=str,
)
def test_adams_bashforth_on_any_grid(nodes: list[float]) -> None:
    with mpmath.workdps(60):
        for z in ARGUMENTS:
            for weight, exact in zip(weights(nodes, z), exact_adams(nodes, z), strict=True):
                assert abs(weight / exact - 1) < 2e-14, z


def test_adams_moulton() -> None:
    """With the node 1 the terms differ in sign: the error is measured against the largest."""
    nodes = [1.0, 0.0, -0.8, -2.1]
    with mpmath.workdps(60):
        for z in ARGUMENTS:
            exact = exact_adams(nodes, z)
            size = max(abs(e) for e in exact)
            for weight, value in zip(weights(nodes, z), exact, strict=True):
                assert abs(weight - value) < 1e-14 * size, z


def test_classical_weights() -> None:
    assert weights([0.0]) == [1.0]
    assert weights([0.0, -1.0, -2.0]) == pytest.approx([23 / 12, -16 / 12, 5 / 12], rel=1e-15)
    assert weights([0.0, -1.0, -2.0, -3.0]) == pytest.approx(
        [55 / 24, -59 / 24, 37 / 24, -9 / 24], rel=1e-15
    )
    assert weights([1.0, 0.0]) == [0.5, 0.5]
    assert math.fsum(weights([0.0, -0.4, -1.1], 2.0)) == pytest.approx(phi(1, 2.0), rel=1e-15)
