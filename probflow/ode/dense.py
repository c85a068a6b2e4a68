"""Solutions as functions of time."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.ode.adaptive import AcceptedStep
from probflow.ode.problem import Problem

__all__ = ["DenseOutput"]


class DenseOutput:
    """The solution at any time of the interval, by the method's own interpolant.

    Parameters
    ----------
    problem
        What was integrated.
    steps
        The steps accepted, one after the other; none where the interval is empty.
    t0
        Where they begin.

    Attributes
    ----------
    order
        Declared order: the error made in a step is O(h**(order + 1)), wherever in it; that is the
        interpolant's order, or the method's where it is lower. Over the interval errors are
        O(h**(order + 1)), but no better than the method's own.
    t0, t1
        Ends of the interval.
    """

    def __init__(self, problem: Problem, steps: Sequence[AcceptedStep], t0: float) -> None:
        self._problem, self._steps = problem, list(steps)
        self.t0, self.t1 = t0, self._steps[-1].stop if self._steps else t0
        self._sign = -1.0 if self.t1 < t0 else 1.0
        self._stops = [self._sign * step.stop for step in self._steps]
        tableau = self._steps[0].tableau if self._steps else None
        self.order = min(tableau.order, tableau.dense_order) if tableau else 0

    def __call__(self, t: Any) -> Any:
        """State at ``t``, a number or 0-d tensor: \\*y0.shape; at times (m,): (m, \\*y0.shape).

        Gradients with respect to ``t`` are the interpolant's slopes.

        Raises
        ------
        TypeError, ValueError
            For what is no real time; for a time outside the interval.
        """
        try:
            times = t
            if not isinstance(t, Tensor):
                times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            times = None
        if times is None or times.is_complex():
            raise TypeError(f"t: need a number or a tensor of times, got {t!r}")
        states = [self._state(time) for time in times.reshape(-1).unbind(0)]
        result = self._problem.result(torch.stack(states))
        if times.ndim:
            return result
        return tuple(part[0] for part in result) if isinstance(result, tuple) else result[0]

    def _state(self, time: Tensor) -> Tensor:
        t = float(time.detach())
        low, high = sorted((self.t0, self.t1))
        slack = 1e-6 * (high - low)  # times given in float32
        if not low - slack <= t <= high + slack:
            raise ValueError(f"t: {t:g} lies outside the solution's [{low:g}, {high:g}]")
        t = min(max(t, low), high)
        if not self._steps:
            return self._problem.y0
        number = min(bisect.bisect_left(self._stops, self._sign * t), len(self._steps) - 1)
        step = self._steps[number]
        state = step.state(t)
        if time.requires_grad:
            slope = step.slope(t)
            state = state + slope * (time - time.detach()).to(slope.device)
        return state
