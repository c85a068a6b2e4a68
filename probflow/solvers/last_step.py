r"""Plans for grids that end without noise, or begin without data: what front ends ask for.

A grid of diffusers or k-diffusion ends at sigma = 0, where log-SNR is infinite. Some solvers have a
step to it (Euler in sigma, DPM-Solver++, UniPC), others have none, or one that leaves noise in the
result. A grid of a flow model may begin at alpha = 0 as well, where log-SNR is minus infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import hypot
from typing import Any

import numpy as np

from probflow.plan import Plan, Point, prediction_weights
from probflow.solvers.registry import Solver, get_solver

__all__ = ["START_ALPHA", "plan_to_data"]

#: Where a grid begins at alpha = 0 and the solver cannot: alpha^2 = 2^-24, as for models of zero
#: terminal SNR in diffusers.
START_ALPHA = 2.0**-12


def plan_to_data(
    solver: Solver, process: Any, times: Sequence[float], prediction: str | None = None
) -> Plan:
    """The solver's plan on times of which the last may have sigma = 0, and the first alpha = 0.

    To sigma = 0 the solver makes its own step if that is finite, draws no noise, evaluates the
    model before the end only, and maps the exact outputs to the exact data; otherwise the last step
    is a DDIM step, which returns the model's x0. Where a solver has no finite step from alpha = 0,
    it starts at alpha = :data:`START_ALPHA`.

    Parameters
    ----------
    solver
        The solver.
    process
        The noising process.
    times
        n + 1 decreasing process times.
    prediction
        The model's prediction type; by default the solver's own.

    Raises
    ------
    ValueError
        As :meth:`~probflow.solvers.registry.Solver.plan`.
    """
    times = [float(t) for t in times]
    if len(times) > 1 and process.alpha(times[0]) == 0:
        try:
            return _to_data(solver, process, times, prediction)
        except ValueError:  # no finite weights; any other error comes again
            lambda_ = np.log(START_ALPHA) - 0.5 * np.log1p(-(START_ALPHA**2))
            start = float(process.t(lambda_))
            if not start > times[1]:
                raise
            times[0] = start
    return _to_data(solver, process, times, prediction)


def _to_data(solver: Solver, process: Any, times: list[float], prediction: str | None) -> Plan:
    if len(times) < 2 or process.sigma(times[-1]) > 0:
        return solver.plan(process, times, prediction)
    # The steps before the last; with one step, one half as long, for the sake of its errors.
    head = times[:-1] if len(times) > 2 else [times[0], 0.5 * (times[0] + times[1])]
    steps = solver.plan(process, head, prediction)
    try:
        plan = solver.plan(process, times, prediction)
    except ValueError:  # the step to sigma = 0 has a weight that is not finite
        plan = None
    if plan is not None and _denoises(plan, process):
        return plan
    last = get_solver("ddim").plan(process, times[-2:], steps.prediction)
    before = steps.steps if len(times) > 2 else ()
    return replace(steps, steps=(*before, *last.steps))


def _denoises(plan: Plan, process: Any) -> bool:
    """Whether the last step maps outputs that are exact to data that is exact, without noise."""
    clean, noise, size = 0.0, 0.0, 0.0  # the update's parts along x0 and eps
    for register, weight in plan.steps[-1].update:
        step = plan.steps[-1 - register.age]
        if register.kind == "z":
            clean, noise, size = clean, noise + abs(weight), size + abs(weight)
            continue
        time = step.start if register.kind == "x" else step.stages[register.index].time
        point = Point.many(process, [time])[0]
        if point.sigma == 0:
            return False
        of = (
            prediction_weights(process, plan.prediction, point)
            if register.kind == "f"
            else (point.alpha, point.sigma)
        )
        clean, noise = clean + weight * of[0], noise + weight * of[1]
        size += abs(weight) * hypot(*of)
    end = float(process.alpha(plan.times[-1]))
    return abs(clean - end) < 1e-9 * size and abs(noise) < 1e-9 * size
