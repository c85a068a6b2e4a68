r"""Adams-Bashforth methods on any grid.

.. math:: y' = y + \int_t^s p(u)\,du,

with p the polynomial through the latest ``order`` slopes. The weights are those of the grid as it
is, so that the order holds on every grid (Hairer, Norsett, Wanner, Solving ODEs I, section III.5).
The first steps are Runge-Kutta steps of at least the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from probflow.integrate.loop import NonFiniteError
from probflow.ode.problem import Problem
from probflow.ode.steps import combine, rk_step, time_tensors
from probflow.tableaus import DOPRI5, DOPRI8, RK4, Tableau

__all__ = ["MAX_ORDER", "adams_weights", "integrate_adams"]

MAX_ORDER = 7  # order 8 grows exponentially on a rotation already at h |f'| = 0.05
DEFAULT_ORDER = 4  # the higher the order, the shorter the steps must be for stability


def adams_weights(nodes: Sequence[float], stop: float) -> list[float]:
    """Weights of the slopes at ``nodes`` (latest first) for a step from ``nodes[0]`` to ``stop``.

    The state changes by ``(stop - nodes[0]) * sum_j weights[j] * slopes[j]``.
    """
    h = stop - nodes[0]
    u = (np.asarray(nodes) - nodes[0]) / h
    powers = np.vander(u, increasing=True).T
    moments = 1.0 / np.arange(1, len(u) + 1)
    return np.linalg.solve(powers, moments).tolist()


def starter(order: int) -> Tableau:
    """Runge-Kutta method of the first steps."""
    return RK4 if order <= 4 else DOPRI5 if order == 5 else DOPRI8


def integrate_adams(
    problem: Problem,
    order: int,
    grid: Sequence[float],
    outputs: Sequence[Sequence[float]],
    *,
    interpolation: str = "dense",
    perturb: bool = False,
    on_step: Callable[[float, Tensor, float], None] | None = None,
    check_finite: bool = True,
) -> Tensor:
    """States at the first time and the outputs, (1 + outputs, ...).

    With ``perturb`` the function is evaluated inside the steps, not at their ends.

    Raises
    ------
    NonFiniteError
        If the last state is not finite.
    """
    y, first = problem.y0, starter(order)
    times = time_tensors(grid, y, problem.time_dtype)

    def inside(t: Tensor, other: Tensor) -> Tensor:
        return torch.nextafter(t, other) if perturb else t

    slopes: list[Tensor] = []
    nodes: list[float] = []
    states, known = [y], None
    for number, (start, stop) in enumerate(pairwise(grid)):
        h = stop - start
        if on_step is not None:
            on_step(start, y, h)
        if known is None or perturb:
            known = problem(inside(times[number], times[number + 1]), y)
        slope = known
        slopes, nodes, known = [slope, *slopes[: order - 1]], [start, *nodes[: order - 1]], None
        if len(slopes) == order:
            after = combine(y, slopes, adams_weights(nodes, stop), h)
        else:
            inner = [stop if c == 1.0 else start + c * h for c in first.c]
            stage_times = time_tensors(inner, y, problem.time_dtype)
            stage_times = [inside(t, times[number]) for t in stage_times]
            after, _ = rk_step(problem, first, y, stage_times, h, slope)
        for theta in outputs[number]:
            if theta == 1.0:
                states.append(after)
            elif interpolation == "linear":
                states.append(y + theta * (after - y))
            else:
                if known is None:
                    known = problem(inside(times[number + 1], times[number]), after)
                states.append(_hermite(y, slope, after, known, theta, h))
        y = after
    if check_finite and not bool(torch.isfinite(y.detach()).all()):
        raise NonFiniteError(
            "explicit_adams: the run ended in NaN or infinity; func returned it, or the steps are "
            f"too long for the small region of stability of order {order}"
        )
    return torch.stack(states)


def _hermite(
    y: Tensor, slope: Tensor, after: Tensor, slope_after: Tensor, theta: float, h: float
) -> Tensor:
    rise = theta * theta * (3.0 - 2.0 * theta)
    value = torch.lerp(y, after, rise)
    value = value + slope * (h * theta * (1.0 - theta) ** 2)
    return value - slope_after * (h * theta * theta * (1.0 - theta))
