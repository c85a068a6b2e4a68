"""Fixed steps: the times of a call, the loop, and finding where a run went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.loop import NonFiniteError, all_finite, first_bad
from probflow.sde.methods import Memory, Method
from probflow.sde.noise import Query
from probflow.sde.system import System

__all__ = ["Trajectory", "check_finite", "node_times", "run_fixed", "step_grid"]


@dataclass(frozen=True)
class Trajectory:
    """States at the output times, the memory at the last, and the times of the steps taken."""

    states: list[Tensor]
    memory: Memory
    grid: list[float]


def step_grid(times: Sequence[float], step: float) -> list[float]:
    """``times[0] + k step`` and all ``times``, increasing.

    A multiple within rounding of an output time (1e-6 of the times, as in float32, and at most 1%
    of a step) is that time.
    """
    slack = min(1e-6 * max(abs(times[0]), abs(times[-1])), 1e-2 * step)
    origin, grid, k = times[0], [times[0]], 1
    for stop in times[1:]:
        while (tick := origin + k * step) < stop - slack:
            grid.append(tick)
            k += 1
        grid.append(stop)
        if tick <= stop + slack:
            k += 1
    return grid


def node_times(
    starts: Sequence[float], stops: Sequence[float], nodes: Sequence[float], y: Tensor
) -> list[tuple[Tensor, ...]]:
    """For each step the times of its nodes, 0-d, as one tensor made at once.

    They have the dtype of ``y``, at least float32.
    """
    values = [
        start if c == 0.0 else stop if c == 1.0 else start + c * (stop - start)
        for start, stop in zip(starts, stops, strict=True)
        for c in nodes
    ]
    dtype = torch.promote_types(y.dtype, torch.float32)
    flat = torch.tensor(values, dtype=dtype, device=y.device).unbind(0)
    width = len(nodes)
    return [flat[k : k + width] for k in range(0, len(flat), width)]


def run_fixed(
    sde: System,
    method: Method,
    grid: Sequence[float],
    outputs: Sequence[float],
    y: Tensor,
    memory: Memory,
    query: Query,
) -> Trajectory:
    """Step through ``grid``, which contains all ``outputs``. Nothing here waits for the device."""
    states, wanted = [y], set(outputs)
    step = method.step
    rows = node_times(grid[:-1], grid[1:], method.nodes, y)
    for row, (start, stop) in zip(rows, pairwise(grid), strict=True):
        if method.start is None:
            y = step(sde, row, stop - start, y, query(start, stop))
        else:
            y, memory = step(sde, row, stop - start, y, query(start, stop), memory)
        if stop in wanted:
            states.append(y)
        if start == grid[0]:
            sde = sde.later()
    return Trajectory(states, memory, list(grid))


def check_finite(
    states: Sequence[Tensor],
    sde: System,
    method: Method,
    grid: Sequence[float],
    memory: Memory,
    query: Query,
    sign: float,
) -> None:
    """Look at the last state; if it is not finite, repeat the run and name step and time.

    ``sign`` is -1 where the run's clock is s = -t.

    Raises
    ------
    NonFiniteError
        If the last state has NaN or infinity.
    """
    if all_finite(states[-1].detach()):
        return
    y, count = states[0].detach(), len(grid) - 1
    with torch.no_grad():
        if not all_finite(y):
            raise NonFiniteError(
                f"{method.name}: NaN or infinity in the initial state y0{first_bad(y)}"
            )
        rows = node_times(grid[:-1], grid[1:], method.nodes, y)
        begins = node_times(grid[:-1], grid[1:], (0.0,), y)
        for k, (start, stop) in enumerate(pairwise(grid)):
            noise = query(start, stop)
            if method.start is None:
                after = method.step(sde, rows[k], stop - start, y, noise)
            else:
                after, memory = method.step(sde, rows[k], stop - start, y, noise, memory)
            if not all_finite(after):
                what, sample = _culprit(sde, begins[k][0], y, noise, after)
                raise NonFiniteError(
                    f"{method.name}: NaN or infinity in {what} at step {k} of {count}, from t = "
                    f"{sign * start:g} to {sign * stop:g}{sample}"
                )
            y = after
    raise NonFiniteError(
        f"{method.name}: the run ended in NaN or infinity, but a repetition did not: drift or "
        "diffusion is not a function of its arguments, or the Brownian motion not of its times"
    )


def _culprit(sde: System, t: Tensor, y: Tensor, noise: Any, after: Tensor) -> tuple[str, str]:
    """What is not finite in a step that ends in ``after``, and its first sample."""
    w = noise if isinstance(noise, Tensor) else noise[0]
    if not all_finite(w):
        return "the Brownian increment", first_bad(w)
    drift, diffusion = sde.f_and_g_prod(t, y, w)
    if not all_finite(drift):
        return "the drift f", first_bad(drift)
    if not all_finite(diffusion):
        return "the diffusion g", first_bad(diffusion)
    return "the state, though drift and diffusion at its start were finite,", first_bad(after)
