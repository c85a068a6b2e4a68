r"""Plans for grids that end without noise, or begin without data: what front ends ask for.

A grid of diffusers or k-diffusion ends at sigma = 0, where log-SNR is infinite. Some solvers have a
step to it (Euler in sigma, DPM-Solver++, UniPC), others have none, or one that leaves noise in the
result. A grid of a flow model may begin at alpha = 0 as well, where log-SNR is minus infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import hypot, log, log1p
from typing import Any

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
    is a DDIM step, which returns the model's x0. Where a solver has no such step from alpha = 0
    either, it starts at alpha = :data:`START_ALPHA`.

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

    Returns
    -------
    Plan
        With the solver's name and ``len(times) - 1`` steps.

    Raises
    ------
    ValueError
        As :meth:`~probflow.solvers.registry.Solver.plan`.
    """
    times = [float(t) for t in times]
    if len(times) > 1 and process.alpha(times[0]) == 0:
        with suppress(ValueError):  # no finite weights; any other error comes again
            plan = _to_data(solver, process, times, prediction)
            if _exact(plan, process, 0):
                return plan
        times[0] = float(process.t(log(START_ALPHA) - 0.5 * log1p(-(START_ALPHA**2))))
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
    if plan is not None and _exact(plan, process, len(times) - 2):
        used = any(r.kind == "z" for c in plan.steps[-1].combinations() for r, _ in c)
        last = plan.steps[-1] if used else replace(plan.steps[-1], noises=())
        return replace(plan, steps=(*plan.steps[:-1], last))
    ddim = get_solver("ddim").plan(process, times[-2:], steps.prediction)
    before = steps.steps if len(times) > 2 else ()
    return replace(steps, steps=(*before, *ddim.steps))


def _exact(plan: Plan, process: Any, number: int) -> bool:
    """Whether a step maps exact states and outputs, and its own noise, to the exact state."""
    clean, noise, drawn, size = 0.0, 0.0, 0.0, 0.0  # the update's parts along x0, eps and Z
    for register, weight in plan.steps[number].update:
        step = plan.steps[number - register.age]
        if register.kind == "z":
            if register.age or process.sigma(plan.steps[number].stop) == 0:
                return False
            drawn = hypot(drawn, weight)
            continue
        time = step.start if register.kind == "x" else step.stages[register.index].time
        point = Point.at(process, time)
        if point.sigma == 0:
            return False
        of = (
            prediction_weights(process, plan.prediction, point)
            if register.kind == "f"
            else (point.alpha, point.sigma)
        )
        clean, noise = clean + weight * of[0], noise + weight * of[1]
        size += abs(weight) * hypot(*of)
    stop = plan.steps[number].stop
    noise = hypot(noise, drawn) if drawn else noise
    wrong = abs(clean - float(process.alpha(stop))), abs(noise - float(process.sigma(stop)))
    return max(wrong) < 1e-9 * size
