"""Solutions as functions of time, and events on them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from probflow.ode.adaptive import AcceptedStep
from probflow.ode.problem import Problem
from probflow.ode.result import MaxStepsError
from probflow.ode.steps import rk_step, time_tensors

__all__ = ["DenseOutput", "find_event"]


class DenseOutput:
    """The solution at any time of the interval, by the method's own interpolant.

    Attributes
    ----------
    order
        Declared order: the interpolant's error in a step is O(h**(order + 1)).
    t0, t1
        Ends of the interval.
    """

    def __init__(self, problem: Problem, steps: Sequence[AcceptedStep], t0: float) -> None:
        self._problem, self._steps = problem, list(steps)
        self.t0, self.t1 = t0, self._steps[-1].stop if self._steps else t0
        self._sign = -1.0 if self.t1 < t0 else 1.0
        self._stops = [self._sign * step.stop for step in self._steps]
        self.order = self._steps[0].tableau.dense_order if self._steps else 0

    def __call__(self, t: Any) -> Any:
        """State at ``t``, a number or 0-d tensor: \\*y0.shape; at times (m,): (m, \\*y0.shape).

        Gradients with respect to ``t`` are the interpolant's slopes.

        Raises
        ------
        ValueError
            For a time outside the interval.
        """
        times = torch.as_tensor(t, dtype=torch.float64) if not isinstance(t, Tensor) else t
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


def find_event(
    stepper: Any, event_fn: Callable[[Tensor, Any], Tensor], max_steps: int
) -> tuple[float, Tensor]:
    """Time and state at which ``event_fn(t, y)`` changes its sign first.

    The step in which it does is searched on its dense output; a shorter step of the method itself
    to the time found, and one Newton correction, give both to the method's accuracy.

    Raises
    ------
    MaxStepsError
        If no sign changes within the allowed steps.
    """
    problem: Problem = stepper.problem
    event = _combined(problem, event_fn, stepper.t, stepper.y)
    if event(stepper.t, stepper.y) <= 0.0:
        return stepper.t, stepper.y
    for _ in range(max_steps):
        try:
            done = stepper.step()
        except MaxStepsError:
            break
        if event(done.stop, done.after) <= 0.0:
            return _refined(done, event)
    raise MaxStepsError(
        f"event_fn: no change of sign in {max_steps} steps, up to t = {stepper.t:g}"
    )


def _combined(
    problem: Problem, event_fn: Callable[[Tensor, Any], Tensor], t: float, y: Tensor
) -> Callable[[float, Tensor], float]:
    """The event function as a float that is positive before any of its components changes sign."""

    @torch.no_grad()
    def values(t: float, y: Tensor) -> Tensor:
        (time,) = time_tensors([t], y, problem.time_dtype)
        value = event_fn(time, problem.state(y))
        if not isinstance(value, Tensor):
            raise TypeError(f"event_fn: must return a tensor, returned {type(value).__name__}")
        return value.detach().reshape(-1)

    signs = torch.sign(values(t, y))
    return lambda t, y: float((values(t, y) * signs).min())


def _refined(done: AcceptedStep, event: Callable[[float, Tensor], float]) -> tuple[float, Tensor]:
    h = done.stop - done.start

    def at(theta: float) -> float:
        return event(done.start + theta * h, done.state(done.start + theta * h))

    with torch.no_grad():
        zero = _root(at)
        side = 1e-3
        low, high = max(zero - side, 0.0), min(zero + side, 1.0)
        slope = (at(high) - at(low)) / (high - low)
        state = _step_to(done, done.start + zero * h)
        miss = event(done.start + zero * h, state)
        if slope != 0.0 and math.isfinite(slope):
            better = zero - miss / slope
            if abs(better - zero) < side and 0.0 < better <= 1.0:
                zero = better
    t = done.start + zero * h
    return t, _step_to(done, t)


def _root(function: Callable[[float], float]) -> float:
    """Zero in (0, 1] of a function that is positive at 0 and not positive at 1."""
    start, stop = function(0.0), function(1.0)
    if start <= 0.0:  # the event of a moment ago, not yet left behind
        return 0.0
    if stop == 0.0:  # perhaps a constant that says stop: where it says so first
        low, high = 0.0, 1.0
        while high - low > 1e-15:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if function(middle) > 0.0 else (low, middle)
        return high
    return float(brentq(function, 0.0, 1.0, xtol=1e-15, rtol=8.9e-16))


def _step_to(done: AcceptedStep, t: float) -> Tensor:
    """State after a step of the method from the start of ``done`` to ``t``."""
    h = t - done.start
    if h == 0.0:
        return done.before
    times = [done.start + c * h for c in done.tableau.c]
    tensors = time_tensors(times, done.before, done.problem.time_dtype)
    return rk_step(done.problem, done.tableau, done.before, tensors, h, done.stages[0])[0]
