"""The order of rk5 and edm-rk5, with 40 digits.

Dormand and Prince made the leading error term of their formula small, so that the next one covers
it until the error is near rounding in float64. Here the solvers' own plans run in arithmetic of
mpmath: on evenly spaced times each weight is a rational number times the step length, to rounding,
and takes its exact value.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

mpmath = pytest.importorskip("mpmath")

import probflow as pf  # noqa: E402
from probflow.plan import Combination, Register, X  # noqa: E402
from probflow.studies import estimate_order  # noqa: E402

mpf = mpmath.mpf
WEIGHTS, MEANS, VARIANCES = (
    [mpf(v) for v in row] for row in (("0.35", "0.65"), ("-1.2", "0.8"), ("0.09", "0.2025"))
)
COUNTS = (16, 32, 64, 128, 256)


def fraction(value: float, largest: int) -> mpf:
    """The rational number that a float was."""
    found = Fraction(value).limit_denominator(largest)
    assert float(found) == pytest.approx(value, rel=1e-11, abs=1e-13)
    return mpf(found.numerator) / found.denominator


def posterior(x: mpf, alpha: mpf, sigma: mpf) -> mpf:
    """E[x0 | x] of the mixture."""
    variances = [alpha**2 * v + sigma**2 for v in VARIANCES]
    logs = [
        mpmath.log(w) - (x - alpha * m) ** 2 / (2 * v) - mpmath.log(v) / 2
        for w, m, v in zip(WEIGHTS, MEANS, variances, strict=True)
    ]
    shares = [mpmath.exp(value - max(logs)) for value in logs]
    means = [
        m + alpha * own / v * (x - alpha * m)
        for m, own, v in zip(MEANS, VARIANCES, variances, strict=True)
    ]
    return sum(s * m for s, m in zip(shares, means, strict=True)) / sum(shares)


def flow(x: mpf, source: tuple[mpf, mpf], goal: tuple[mpf, mpf]) -> mpf:
    """The exact flow: it keeps the distribution function."""

    def cdf(y: mpf, level: tuple[mpf, mpf]) -> mpf:
        alpha, sigma = level
        return sum(
            w * mpmath.ncdf((y - alpha * m) / mpmath.sqrt(alpha**2 * v + sigma**2))
            for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True)
        )

    wanted, low, high = cdf(x, source), mpf(-4), mpf(4)
    for _ in range(130):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle, goal) < wanted else (low, middle)
    return low


def run(
    name: str, process: pf.Process, ends: tuple[float, float], count: int, x: mpf, slope: Callable
) -> mpf:
    """The plan's last state, its weights read as x or h times a rational number."""
    times = np.linspace(*ends, count + 1)
    plan = pf.get_solver(name).plan(process, times)
    h = (mpf(ends[1]) - mpf(ends[0])) / count
    start = mpf(ends[0])
    for step in plan.steps:
        values = {X: x}

        def combine(combination: Combination, values: dict[Register, mpf] = values) -> mpf:
            total = mpf(0)
            for register, weight in combination:
                scale = mpf(1) if register.kind != "f" else h
                total += scale * fraction(weight / float(scale), 200_000) * values[register]
            return total

        for index, stage in enumerate(step.stages):
            u = combine(stage.input)
            time = start + h * fraction((stage.time - step.start) / float(h), 100)
            values[Register("u", index)], values[Register("f", index)] = u, slope(u, time)
        x, start = combine(step.update), start + h
    return x


def edm(x: mpf, t: mpf) -> mpf:
    """eps of EDM, dx/dt there."""
    return (x - posterior(x, mpf(1), t)) / t


def matching(x: mpf, t: mpf) -> mpf:
    """Velocity of flow matching: eps - x0."""
    x0 = posterior(x, 1 - t, t)
    return (x - (1 - t) * x0) / t - x0


@pytest.mark.parametrize(
    ("name", "process", "ends", "slope", "level"),
    [
        ("rk5", pf.FlowMatching(), (0.5, 0.375), matching, lambda t: (1 - mpf(t), mpf(t))),
        ("edm-rk5", pf.EDM(), (2.0, 0.5), edm, lambda t: (mpf(1), mpf(t))),
    ],
    ids=["rk5", "edm-rk5"],
)
def test_order_5(
    name: str, process: pf.Process, ends: tuple[float, float], slope: Callable, level: Callable
) -> None:
    with mpmath.workdps(40):
        starts = [mpf("-1.5"), mpf("-0.3"), mpf("0.4"), mpf("1.7")]
        exact = [flow(x, level(ends[0]), level(ends[1])) for x in starts]
        errors = []
        for count in COUNTS:
            gaps = [
                run(name, process, ends, count, x, slope) - y
                for x, y in zip(starts, exact, strict=True)
            ]
            errors.append(float(mpmath.sqrt(sum(gap**2 for gap in gaps) / len(gaps))))
    estimate = estimate_order(COUNTS, errors, claim=5, floor=1e-30)
    assert estimate.verdict == "consistent", (estimate.reason, errors)
    assert np.log2([a / b for a, b in pairwise(errors)])[-1] == pytest.approx(5, abs=0.05)
