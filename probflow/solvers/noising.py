"""The forward process as a step: what a rise of time in a grid means."""

from __future__ import annotations

from math import expm1, sqrt
from typing import Any

from probflow.plan import Point, Register, Step, X

__all__ = ["noising"]


def noising(process: Any, start: float, stop: float) -> Step:
    """x' = alpha'/alpha x + sqrt(sigma'^2 - (alpha'/alpha)^2 sigma^2) Z, without a model call.

    From time ``start`` up to ``stop``: exact in law, whatever the length.
    """
    t, s = Point.many(process, [start, stop])
    std = s.sigma * sqrt(-expm1(2 * (s.lambda_ - t.lambda_)))
    return Step(start, stop, (), ((start, stop),), ((X, s.alpha / t.alpha), (Register("z"), std)))
