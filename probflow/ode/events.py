"""Events: the time at which a function of a solution changes its sign, and how it moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from probflow.integrate.loop import NonFiniteError, all_finite
from probflow.ode.problem import Problem
from probflow.ode.result import MaxStepsError
from probflow.ode.steps import rk_step, stage_times, time_tensors
from probflow.tableaus import TABLEAUS

__all__ = ["check_state", "find_event", "flow", "real", "with_gradients"]


def find_event(
    stepper: Any,
    event_fn: Callable[[Tensor, Any], Tensor],
    max_steps: int,
    report: Callable[[Any], None],
) -> tuple[float, Tensor]:
    """Time and state at which ``event_fn(t, y)`` changes its sign first.

    The step in which it does is searched on its dense output; a shorter step of the method itself
    to the time found, and one Newton correction, give both to the method's accuracy. ``report`` is
    told of every step.

    Raises
    ------
    MaxStepsError
        If no sign changes within the allowed steps.
    NonFiniteError
        If the state or the event function is NaN, or the state infinite.
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
        report(done)
        if event(done.stop, done.after) <= 0.0:
            return _refined(done, event)
    raise MaxStepsError(
        f"event_fn: no change of sign in {max_steps} steps, up to t = {stepper.t:g}"
    )


def check_state(problem: Problem, t: float, y: Tensor) -> None:
    """Raise ``NonFiniteError`` for a state at ``t`` that is not finite; waits for the device."""
    if not all_finite(y.detach()):
        problem.check_start()
        raise NonFiniteError(
            f"func: returned NaN or infinity before t = {t:g}{problem.first_bad(y)}"
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
        if value.is_complex():
            raise TypeError(f"event_fn: must return real numbers, returned {value.dtype}")
        return value.detach().reshape(-1)

    def smallest(t: float, y: Tensor) -> float:
        value = float((values(t, y) * signs).min())
        if math.isnan(value):
            check_state(problem, t, y)
            raise NonFiniteError(f"event_fn: returned NaN at t = {t:g}")
        return value

    signs = torch.sign(values(t, y))
    return smallest


def _refined(done: Any, event: Callable[[float, Tensor], float]) -> tuple[float, Tensor]:
    h = done.stop - done.start

    def at(theta: float) -> float:
        return event(done.start + theta * h, done.state(done.start + theta * h))

    with torch.no_grad():
        zero = _root(at)
        side = 1e-3
        low, high = max(zero - side, 0.0), min(zero + side, 1.0)
        slope = (at(high) - at(low)) / (high - low)
        state = done.cut(done.start + zero * h)
        miss = event(done.start + zero * h, state)
        if slope != 0.0 and math.isfinite(slope):
            better = zero - miss / slope
            if abs(better - zero) < side and 0.0 < better <= 1.0:
                zero = better
    t = done.start + zero * h
    return t, done.cut(t)


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


def with_gradients(
    problem: Problem,
    y0: Any,
    t0: Tensor,
    event_fn: Callable[..., Tensor],
    event_t: Tensor,
    states: Any,
) -> tuple[Tensor, Any]:
    """An event's time and the states at the start and there, with the derivatives of the time.

    First and second derivatives are those of the event of the numerical solution; third ones are
    not complete.
    """
    event_t = event_t.detach()
    if not torch.is_grad_enabled():
        return event_t, states
    first = _first_event(event_fn, problem, t0, y0)
    last = tuple(s[-1] for s in states) if isinstance(states, tuple) else states[-1]
    y = problem.layout.join(last)
    time, state = event_t.clone().requires_grad_(), y.detach().requires_grad_()
    value = first(time, state)
    if not value.requires_grad:  # a constant that says stop
        return event_t, states
    by_t, by_y = torch.autograd.grad(value, (time, state), allow_unused=True)
    slope = problem(event_t.to(problem.time_dtype), y.to(problem.wide))
    rate = torch.zeros_like(event_t) if by_t is None else by_t
    if by_y is not None:
        # of a real number, by a complex state
        change = (by_y.conj() * slope.detach().to(y.dtype)).sum()
        rate = rate + real(change).to(rate)
    if rate == 0.0:  # the solution touches the surface: its time has no derivative
        return event_t, states
    # By how much the time moves, 0 with derivatives. Newton's iteration with the rate of the first
    # point leaves an error of one order more in each round.
    moved, end = torch.zeros_like(event_t), y
    for _ in range(2):
        value = first(event_t + moved, end)
        moved = moved - (value - value.detach()).to(event_t) / rate
        end = flow(problem, y, slope, event_t, moved)
    last = problem.layout.split(end)
    event_t = event_t + moved
    if isinstance(states, tuple):
        ends = zip(states, last, strict=True)
        return event_t, tuple(torch.cat([s[:-1], end[None]]) for s, end in ends)
    return event_t, torch.cat([states[:-1], last[None]])


def flow(problem: Problem, y: Tensor, slope: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """The solution a time ``h`` of 0 after ``t``, right up to second derivatives by ``h``.

    ``slope`` is that at ``t`` and ``y``.
    """
    tableau = TABLEAUS["midpoint"]
    times = time_tensors(stage_times(tableau.c, t, t + h), y, problem.time_dtype)
    wide = y.to(problem.wide)
    return rk_step(problem, tableau, wide, times, h.to(real(wide)), slope)[0].to(y.dtype)


def real(y: Tensor) -> Tensor:
    """The real part of a number that is real but for rounding."""
    return y.real if y.is_complex() else y


def _first_event(
    event_fn: Callable[..., Tensor], problem: Problem, t0: Tensor, y0: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    """The component of the event function that reached zero first, of time and state."""
    with torch.no_grad():
        signs = torch.sign(event_fn(t0.to(problem.time_dtype), y0))

    def value(t: Tensor, y: Tensor) -> Tensor:
        return (event_fn(t.to(problem.time_dtype), problem.layout.split(y)) * signs).min()

    return value
