"""Runge-Kutta steps on tensors, and runs over a fixed sequence of them.

The same few lines serve fixed grids, adaptive steps, steps of one length for each sample, times
that carry gradients and compiled graphs: a step length is a Python float or a tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.transforms import transformed
from probflow.tableaus import Tableau

__all__ = ["Run", "combine", "dense_value", "rk_step", "run_steps", "stage_times", "time_tensors"]

Func = Callable[[Tensor, Tensor], Tensor]
Stages = list[Tensor]


def combine(
    y: Tensor, stages: Sequence[Tensor], weights: Sequence[Any], h: float | Tensor
) -> Tensor:
    """``y + h * sum_i weights[i] * stages[i]``; weights that are the float 0 cost nothing.

    Weights that are tensors go with an ``h`` that is one.
    """
    total: Any = y
    if isinstance(h, float):
        for k, weight in zip(stages, weights, strict=False):
            if weight != 0.0:
                alpha = h * weight
                total = torch.add(y, k, alpha=alpha) if total is y else total.add_(k, alpha=alpha)
        return total
    total = weighted(stages, weights, in_place=not transformed())
    return y if total is None else torch.addcmul(y, total, h.to(total.dtype))


def weighted(
    stages: Sequence[Tensor], weights: Sequence[Any], h: float = 1.0, in_place: bool = True
) -> Any:
    """``h * sum_i weights[i] * stages[i]``; ``None`` if all weights are the float 0.

    Not ``in_place`` where times differ within a ``torch.func.vmap``: the first stage need not.
    """
    total: Any = None
    for k, weight in zip(stages, weights, strict=False):
        if isinstance(weight, Tensor):
            term = k * weight.to(real_dtype(k))
            total = term if total is None else total + term
        elif weight != 0.0:
            alpha = h * weight
            if total is None:
                total = k * alpha
            else:
                add = total.add_ if in_place else total.add
                total = add(k, alpha=alpha)
    return total


def walk(
    func: Func,
    tableau: Tableau,
    y: Tensor,
    lengths: Sequence[float | Tensor],
    times: Sequence[Sequence[Tensor]],
    first: Tensor | None = None,
) -> tuple[Tensor, Tensor, Stages]:
    """Take steps; return the states before and after the last of them, and its stages.

    ``first`` is the first stage, where it is known.
    """
    # A graph that is compiled is written out anyway.
    if isinstance(lengths[0], float) and not torch.compiler.is_compiling():
        return _written_out(tableau.source)(func, y, lengths, times, first)
    for h, t in zip(lengths, times, strict=True):
        before = y
        stages = [func(t[0], y) if first is None else first]
        for i in range(1, tableau.stages):
            y = combine(before, stages, tableau.a[i], h)
            stages.append(func(t[i], y))
        if not tableau.fsal:
            y = combine(before, stages, tableau.b, h)
        first = stages[-1] if tableau.fsal else None
    return before, y, stages


@lru_cache
def _written_out(source: str) -> Callable[..., tuple[Tensor, Tensor, Stages]]:
    names: dict[str, Any] = {"add": torch.add, "mul": torch.mul}
    exec(compile(source, "<Runge-Kutta steps>", "exec"), names)
    return names["steps"]


def rk_step(
    func: Func,
    tableau: Tableau,
    y: Tensor,
    times: Sequence[Tensor],
    h: float | Tensor,
    first: Tensor | None = None,
) -> tuple[Tensor, Stages]:
    """State after one step, and its stages."""
    return walk(func, tableau, y, (h,), (times,), first)[1:]


def extended(
    func: Func,
    tableau: Tableau,
    y: Tensor,
    after: Tensor,
    times: Sequence[Tensor],
    h: float | Tensor,
    stages: Stages,
) -> Stages:
    """The stages with those appended that only the dense output needs; ``after`` is ``y'``."""
    for i in range(len(stages), len(tableau.dense)):
        point = after if i == tableau.closing else combine(y, stages, tableau.a[i], h)
        stages.append(func(times[i], point))
    return stages


def dense_value(
    tableau: Tableau, y: Tensor, stages: Stages, theta: float | Tensor, h: float | Tensor
) -> Tensor:
    """State at the fraction ``theta`` of a step whose stages are complete."""
    if not isinstance(theta, Tensor):
        return combine(y, stages, tableau.dense_weights(theta), h)
    weights = []
    for coefficients in tableau.dense:
        weight = torch.zeros_like(theta)
        for coefficient in reversed(coefficients):
            weight = (weight + coefficient) * theta
        weights.append(weight)
    return combine(y, stages, weights, h)


def at_end(theta: float | Tensor) -> bool:
    """Whether a fraction of a step is its end; one that is a tensor lies within."""
    return not isinstance(theta, Tensor) and theta == 1.0


def stage_times(c: Sequence[float], start: Any, stop: Any) -> list[Any]:
    """Times of the stages of a step, or of many where the ends are tensors; the ends exactly."""
    return [start if ci == 0.0 else stop if ci == 1.0 else start + ci * (stop - start) for ci in c]


def time_tensors(times: Sequence[Any], like: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
    """0-d tensors on the device of ``like``, without waiting for it, from floats or tensors."""
    if isinstance(times[0], Tensor):
        return [time.to(dtype).to(like.device) for time in times]
    if like.device.type == "cpu":
        return torch.tensor(times, dtype=dtype, device="cpu").unbind(0)
    return [torch.full((), time, dtype=dtype, device=like.device) for time in times]


@dataclass(frozen=True)
class Run:
    """A sequence of steps, known before the first evaluation.

    Attributes
    ----------
    lengths
        Step lengths h: floats, or 0-d tensors where times carry gradients.
    times
        For each step the times of all stages, 0-d tensors.
    outputs
        For each step the fractions (0, 1] of it at which a state is wanted: floats, or within a
        step 0-d tensors where times carry gradients.
    interpolation
        ``"dense"``, the method's own, or ``"linear"``, torchdiffeq's.
    """

    lengths: Sequence[float | Tensor]
    times: Sequence[Sequence[Tensor]]
    outputs: Sequence[Sequence[float | Tensor]]
    interpolation: str = "dense"

    def part(self, start: int, stop: int) -> Run:
        """The steps from ``start`` up to ``stop``."""
        chosen = slice(start, stop)
        return Run(
            self.lengths[chosen], self.times[chosen], self.outputs[chosen], self.interpolation
        )


def on_grid(
    tableau: Tableau,
    grid: Sequence[float] | Tensor,
    outputs: Sequence[Sequence[float | Tensor]],
    like: Tensor,
    dtype: torch.dtype,
    *,
    interpolation: str = "dense",
    perturb: bool = False,
) -> Run:
    """The steps of a tableau on a grid.

    Parameters
    ----------
    grid
        Floats, or a tensor of times (n + 1,) that carries gradients or is traced.
    outputs
        As :class:`Run`.
    like, dtype
        State, for its device, and dtype of the times handed to the function.
    perturb
        Evaluate at the next representable time after the start of a step and before its end
        (for functions with jumps at the grid's times).
    """
    # The stages of the dense output are evaluated in few steps, if at all.
    some = [row for row in outputs if row] if interpolation == "dense" else []
    inside = any(not at_end(theta) for row in some for theta in row)
    c = tableau.c if inside or perturb else tableau.c[: tableau.stages]
    if isinstance(grid, Tensor):
        gaps = grid[1:] - grid[:-1]
        lengths: Sequence[float | Tensor] = gaps.to(real_dtype(like)).unbind(0)
        columns = stage_times(c, grid[:-1], grid[1:])
    else:
        points = torch.tensor(grid, dtype=torch.float64, device="cpu")
        lengths = list(map(operator.sub, grid[1:], grid))
        columns = stage_times(c, points[:-1], points[1:])
    rows = (torch.stack(columns, dim=1) if len(c) > 1 else columns[0]).to(dtype).to(like.device)
    if perturb:
        rows = inward(rows, c)
    every = (rows.reshape(-1) if rows.ndim > 1 else rows).unbind(0)
    times = list(zip(*[iter(every)] * len(c), strict=True))
    return Run(lengths, times, outputs, interpolation)


def real_dtype(like: Tensor) -> torch.dtype:
    """The real dtype of a state's precision."""
    return like.real.dtype if like.is_complex() else like.dtype  # what dynamo can follow


def inward(times: Tensor, c: Sequence[float]) -> Tensor:
    """Stage times (steps, stages), those at a step's ends moved inwards by one number."""
    start, end = times[:, :1], times[:, c.index(1.0) :][:, :1]
    place = torch.tensor(c, device=times.device)
    with torch.no_grad():
        goal = torch.where(place == 0.0, end, torch.where(place == 1.0, start, times))
        moved = torch.nextafter(times, goal)
    return times + (moved - times).detach()


def run_steps(
    func: Func,
    tableau: Tableau,
    y: Tensor,
    run: Run,
    first: Tensor | None = None,
    states: Any = None,
) -> tuple[Tensor, Tensor | None, Any]:
    """Take the steps of a run.

    Parameters
    ----------
    func, tableau, y, run
        What to integrate, how, from where and over which times.
    first
        First stage, where it is known.
    states
        Where to append the states at the run's outputs; by default a new list.

    Returns
    -------
    y
        Last state.
    first
        First stage of the next step, where it is known.
    states
        States at the run's outputs.
    """
    states = [] if states is None else states
    start, count = 0, len(run.lengths)
    stops = [number for number, outputs in enumerate(run.outputs[:-1], 1) if outputs]
    for stop in (*stops, count) if count else ():  # on to the next output without a look between
        lengths, times = run.lengths[start:stop], run.times[start:stop]
        before, y, stages = walk(func, tableau, y, lengths, times, first)
        h, start = lengths[-1], stop
        for theta in run.outputs[stop - 1]:
            if at_end(theta):
                states.append(y)
            elif run.interpolation == "linear":
                weights = [theta * weight for weight in tableau.b]
                states.append(combine(before, stages, weights, h))
            else:
                extended(func, tableau, before, y, times[-1], h, stages)
                states.append(dense_value(tableau, before, stages, theta, h))
        first = stages[tableau.closing] if len(stages) > tableau.closing else None
        del before, stages  # or they would be held beside those of the next step
    return y, first, states


def run_checkpointed(
    func: Func, tableau: Tableau, y: Tensor, run: Run
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """As :func:`run_steps`, with memory O(sqrt(steps)) for the backward pass.

    Segments of about sqrt(n) steps keep only their first state and are run again when their
    gradient is asked for; the gradients are those of the steps taken, to the last digit.
    """
    from torch.utils.checkpoint import checkpoint

    count = len(run.lengths)
    size = max(1, math.isqrt(count))
    first: Tensor | None = None
    states: list[Tensor] = []
    for start in range(0, count, size):
        part = run.part(start, start + size)
        y, first, some = checkpoint(run_steps, func, tableau, y, part, first, use_reentrant=False)
        states += some
    return y, first, states
