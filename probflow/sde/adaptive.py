r"""Adaptive steps, with a PI controller.

The error of a step is estimated by taking it once whole and once in halves, or by a step of lower
order that begins with the same evaluations (:attr:`probflow.sde.methods.Method.lower`). The noise
is a function of time, so that a rejected step and its successors see the same path: what was drawn
is refined, never drawn anew (Gaines and Lyons 1997, SIAM J. Appl. Math. 57, 1455-1484).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.loop import NonFiniteError, all_finite, first_bad
from probflow.sde.loop import Trajectory, node_times
from probflow.sde.methods import Memory, Method
from probflow.sde.noise import Query
from probflow.sde.system import System

__all__ = ["Tolerances", "run_adaptive"]


@dataclass(frozen=True)
class Tolerances:
    """Relative and absolute tolerance, first and smallest step, kind of error estimate."""

    rtol: float
    atol: float
    first_step: float
    dt_min: float
    embedded: bool = False

    def error(self, one: Tensor, other: Tensor) -> float:
        """Root mean square of the difference, in units of the tolerance; waits for the device."""
        if not one.numel():
            return 0.0
        one, other = one.detach(), other.detach()
        scale = torch.maximum(one.abs(), other.abs()).mul_(self.rtol).add_(self.atol)
        # Where both tolerances vanish, an exact step has error 0 and any other is too long.
        ratio = (one - other) / scale.clamp_min(torch.finfo(scale.dtype).tiny)
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


@dataclass(frozen=True)
class Attempt:
    """A step: its end, the estimate beside it, and the times at which its parts end."""

    y: Tensor
    memory: Memory
    beside: Tensor
    ends: tuple[float, ...]


def run_adaptive(
    sde: System,
    method: Method,
    tolerances: Tolerances,
    times: Sequence[float],
    y: Tensor,
    memory: Memory,
    query: Query,
    sign: float = 1.0,
    start_name: str = "initial state y0",
) -> Trajectory:
    """Integrate with steps that meet the tolerances, landing on each of ``times``.

    Waits for the device once per attempted step; never evaluates outside ``times``. ``start_name``
    is what messages call ``y``.

    Warns
    -----
    UserWarning
        Once, if steps of ``dt_min`` were accepted although their error was too large.

    Raises
    ------
    NonFiniteError
        If a step of the smallest length ends in NaN or infinity.
    """
    attempt = _embedded if tolerances.embedded else _halved
    order = method.embedded_order if tolerances.embedded else method.strong_order
    control = Controller(order(sde.noise_type))
    length, states, grid, worst = tolerances.first_step, [y], [times[0]], 0.0
    accepted = forced = 0
    # Without dt_min steps end where their halves would have no length.
    shortest = max(tolerances.dt_min, 4.0 * math.ulp(max(map(abs, times))))
    for output in times[1:]:
        while (start := grid[-1]) < output:
            rest = output - start
            # Land on the output; two equal steps rather than a long and a tiny one.
            if rest <= 1.0001 * length:
                stop = output
            else:
                stop = start + (length if rest > 2.0 * length else 0.5 * rest)
            smallest = length <= shortest or _middle(start, stop) in (start, stop)
            step = attempt(sde, method, start, stop, y, memory, query)
            error, sde = tolerances.error(step.beside, step.y), sde.later()
            if smallest and not math.isfinite(error):
                begun = all_finite(states[0].detach())
                bad = (step.y, step.beside) if begun else states[:1]
                sample = next(filter(None, map(first_bad, bad)), "")
                if type(sde) is not System:
                    sample = ""  # an adjoint's state has none
                if not begun:
                    raise NonFiniteError(
                        f"{method.name}: NaN or infinity in the {start_name}{sample}"
                    )
                raise NonFiniteError(
                    f"{method.name}: NaN or infinity in the adaptive step from t = "
                    f"{sign * start:g} to {sign * stop:g}, even at the smallest length "
                    f"{shortest:.3g} (dt_min = {tolerances.dt_min:g}){sample}"
                )
            if error <= 1.0 or smallest:
                if error > 1.0:
                    forced, worst = forced + 1, max(worst, error)
                accepted += 1
                y, memory = step.y, step.memory
                grid += step.ends
                # A step cut short by an output says nothing against the length before it.
                proposal = (stop - start) * control.accepted(error)
                length = max(length, proposal) if stop == output and error <= 1.0 else proposal
            else:
                length = (stop - start) * control.rejected(error)
                memory = tuple(x.clone() for x in memory)  # held for longer than one attempt
            length = max(length, shortest)
        states.append(y)
    if forced:
        warnings.warn(
            f"dt_min: {forced} of {accepted} steps were accepted at the smallest "
            f"allowed length {shortest:g} with errors up to {worst:.3g} times the "
            "tolerance; lower dt_min, or raise rtol and atol",
            stacklevel=4,
        )
    return Trajectory(states, memory, grid)


def _middle(start: float, stop: float) -> float:
    return start + 0.5 * (stop - start)


def _halved(
    sde: System,
    method: Method,
    start: float,
    stop: float,
    y: Tensor,
    memory: Memory,
    query: Query,
) -> Attempt:
    """A step in halves, beside it the whole one."""
    middle = _middle(start, stop)
    ends = (start, start, middle), (stop, middle, stop)
    rows = node_times(*ends, method.nodes, y)
    if method.nodes[0] == 0.0:  # the whole step and its first half begin alike
        rows[1] = (rows[0][0], *rows[1][1:])
    shared = sde.sharing(rows[0][0], y)

    def advance(sde: System, row: Any, a: float, b: float, y: Tensor, memory: Memory) -> Any:
        return _advance(method, sde, row, b - a, y, query(a, b), memory)

    whole, _ = advance(shared, rows[0], start, stop, y, memory)
    half, between = advance(shared, rows[1], start, middle, y, memory)
    halves, after = advance(sde, rows[2], middle, stop, half, between)
    return Attempt(halves, after, whole, (middle, stop))


def _embedded(
    sde: System,
    method: Method,
    start: float,
    stop: float,
    y: Tensor,
    memory: Memory,
    query: Query,
) -> Attempt:
    """A step, beside it one of lower order from the same evaluations."""
    assert method.lower is not None
    (row,) = node_times([start], [stop], method.nodes, y)
    h, noise, shared = stop - start, query(start, stop), sde.sharing(row[0], y)
    w = noise if isinstance(noise, Tensor) else noise[0]
    after, later = _advance(method, shared, row, h, y, noise, memory)
    held = () if method.start is None else (memory,)
    return Attempt(after, later, method.lower(shared, row, h, y, w, *held), (stop,))


def _advance(
    method: Method, sde: System, row: Any, h: float, y: Tensor, noise: Any, memory: Memory
) -> tuple[Tensor, Memory]:
    if method.start is None:
        return method.step(sde, row, h, y, noise), memory
    return method.step(sde, row, h, y, noise, memory)
