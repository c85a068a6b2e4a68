r"""Adaptive steps: each step once whole and once in halves, with a PI controller.

The noise is a function of time, so that a rejected step and its successors see the same path: what
was drawn is refined, never drawn anew (Gaines and Lyons 1997, SIAM J. Appl. Math. 57, 1455-1484).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.loop import NonFiniteError, first_bad
from probflow.sde.loop import Trajectory, node_times
from probflow.sde.methods import Memory, Method
from probflow.sde.noise import Query
from probflow.sde.system import System

__all__ = ["Tolerances", "run_adaptive"]


@dataclass(frozen=True)
class Tolerances:
    """Relative and absolute tolerance, first and smallest step."""

    rtol: float
    atol: float
    first_step: float
    dt_min: float

    def error(self, whole: Tensor, halves: Tensor) -> float:
        """Root mean square of the difference, in units of the tolerance; waits for the device."""
        if not whole.numel():
            return 0.0
        whole, halves = whole.detach(), halves.detach()
        scale = torch.maximum(whole.abs(), halves.abs()).mul_(self.rtol).add_(self.atol)
        # Where both tolerances vanish, an exact step has error 0 and any other is too long.
        ratio = (whole - halves) / scale.clamp_min(torch.finfo(scale.dtype).tiny)
        return float(ratio.square().mean().sqrt())


class Controller:
    r"""Step lengths from errors: :math:`h' = 0.9\,h\,e_n^{-0.7/k} e_{n-1}^{0.4/k}`.

    PI control with k the order of the local error, strong order plus 1/2 (Ilie, Jackson and Enright
    2015, Numer. Algorithms 68, 791-812; Hairer and Wanner 1996, section IV.2).
    """

    def __init__(self, order: float) -> None:
        self.exponent, self.previous = 1.0 / (order + 0.5), 1.0

    def accepted(self, error: float) -> float:
        """Factor for the step after an accepted one, in [0.2, 2]."""
        error = max(error, 1e-10)
        factor = 0.9 * error ** (-0.7 * self.exponent) * self.previous ** (0.4 * self.exponent)
        self.previous = max(error, 1e-4)
        return min(2.0, max(0.2, factor))

    def rejected(self, error: float) -> float:
        """Factor for the repetition of a rejected step, in [0.1, 0.9]."""
        if not math.isfinite(error):
            return 0.1
        return min(0.9, max(0.1, 0.9 * error**-self.exponent))


def run_adaptive(
    sde: System,
    method: Method,
    tolerances: Tolerances,
    times: Sequence[float],
    y: Tensor,
    memory: Memory,
    query: Query,
    sign: float = 1.0,
) -> Trajectory:
    """Integrate with steps that meet the tolerances, landing on each of ``times``.

    The state follows the half steps. Waits for the device once per attempted step; never evaluates
    outside ``times``.

    Warns
    -----
    UserWarning
        Once, if steps of ``dt_min`` were accepted although their error was too large.

    Raises
    ------
    NonFiniteError
        If a step of the smallest length ends in NaN or infinity.
    """

    def advance(sde: System, row: Any, start: float, stop: float, y: Tensor, memory: Memory) -> Any:
        if method.start is None:
            return method.step(sde, row, stop - start, y, query(start, stop)), memory
        return method.step(sde, row, stop - start, y, query(start, stop), memory)

    control = Controller(method.strong_order(sde.noise_type))
    length, states, grid, forced, worst = tolerances.first_step, [y], [times[0]], 0, 0.0
    for output in times[1:]:
        while (start := grid[-1]) < output:
            rest = output - start
            # Land on the output; two equal steps rather than a long and a tiny one.
            if rest <= 1.0001 * length:
                stop = output
            else:
                stop = start + (length if rest > 2.0 * length else 0.5 * rest)
            middle = start + 0.5 * (stop - start)
            smallest = length <= tolerances.dt_min or middle in (start, stop)
            ends = (start, start, middle), (stop, middle, stop)
            rows = node_times(*ends, method.nodes, y)
            if method.nodes[0] == 0.0:  # the whole step and its first half begin alike
                rows[1] = (rows[0][0], *rows[1][1:])
            shared = sde.sharing(rows[0][0], y)
            whole, _ = advance(shared, rows[0], start, stop, y, memory)
            half, between = advance(shared, rows[1], start, middle, y, memory)
            halves, after = advance(sde, rows[2], middle, stop, half, between)
            error, sde = tolerances.error(whole, halves), sde.later()
            if smallest and not math.isfinite(error):
                raise NonFiniteError(
                    f"{method.name}: NaN or infinity in the adaptive step from t = "
                    f"{sign * start:g} to {sign * stop:g}, even at the smallest length "
                    f"(dt_min = {tolerances.dt_min:g})"
                    # an adjoint's state has no samples
                    + (first_bad(halves) if type(sde) is System else "")
                )
            if error <= 1.0 or smallest:
                if error > 1.0:
                    forced, worst = forced + 1, max(worst, error)
                y, memory = halves, after
                grid += [middle, stop]
                # A step cut short by an output says nothing against the length before it.
                proposal = (stop - start) * control.accepted(error)
                length = max(length, proposal) if stop == output and error <= 1.0 else proposal
            else:
                length = (stop - start) * control.rejected(error)
                memory = tuple(x.clone() for x in memory)  # held for longer than one attempt
            length = max(length, tolerances.dt_min)
        states.append(y)
    if forced:
        warnings.warn(
            f"dt_min: {forced} of {(len(grid) - 1) // 2} steps were accepted at the smallest "
            f"allowed length {tolerances.dt_min:g} with errors up to {worst:.3g} times the "
            "tolerance; lower dt_min, or raise rtol and atol",
            stacklevel=4,
        )
    return Trajectory(states, memory, grid)
