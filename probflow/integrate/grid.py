"""Times of a call and the plan run on them: what ``odeint`` and ``sdeint`` share."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.integrate.graphs import states_in_graph
from probflow.integrate.loop import run_plan
from probflow.integrate.noise import NoiseSource
from probflow.plan import Plan
from probflow.processes import Process
from probflow.solvers import Solver, solver_names
from probflow.words import UnfitError, check_real, near, no_option

__all__ = [
    "check_positive",
    "check_steps",
    "host_times",
    "is_registered",
    "refine",
    "run_grid",
    "unknown_method",
    "with_options",
]

MOST_STEPS = 10**9  # a longer grid is a mistake, and would not fit in memory


def is_registered(name: str) -> bool:
    """Whether a name, in either spelling, is one of probflow's solvers or an alias."""
    return name.strip().lower().replace("_", "-") in solver_names(aliases=True)


def unknown_method(method: str, theirs: Sequence[str], peer: str) -> ValueError:
    """The error for a name that neither probflow nor the peer knows, with near ones."""
    every = (*theirs, *solver_names(aliases=True))
    return ValueError(
        f"method: neither probflow nor {peer} has a method {method!r}{near(method, every, 4)} "
        f"(all: pf.solver_names(); {peer}: {', '.join(theirs)})"
    )


def with_options(solver: Solver, settings: Mapping[str, Any], others: Sequence[str]) -> Solver:
    """The solver with its own options set.

    Raises
    ------
    ValueError
        For an option that is neither its own nor one of ``others``, naming all.
    """
    unknown = sorted(set(settings) - set(solver.options), key=str)
    if unknown:
        raise ValueError(no_option(solver.name, unknown[0], (*others, *solver.options)))
    return solver.with_options(**settings) if settings else solver


def host_times(t: Any, name: str, *, bounded: bool = True) -> list[float]:
    """Times as floats, read to the host once.

    Those after the first may be infinite unless they are to be ``bounded``.

    Raises
    ------
    TypeError
        Unless ``t`` holds floating-point numbers (a sequence may hold whole numbers).
    ValueError
        Unless it is one-dimensional, finite and strictly monotone, and asks for no gradient.
    """
    if isinstance(t, Tensor):
        if not t.is_floating_point():
            raise TypeError(f"{name}: need floating-point times, got a tensor of {t.dtype}")
        if t.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: gradients with respect to times are not formed natively; pass "
                f"{name}.detach(), or for an ODE use pf.odeint_adjoint"
            )
        values = t.detach().tolist()
        shape = tuple(t.shape)
    elif isinstance(t, (list, tuple)) and all(isinstance(time, (int, float)) for time in t):
        values, shape = [float(time) for time in t], (len(t),)  # what a compiled graph can follow
    else:
        try:
            array = np.asarray(t, dtype=np.float64)
        except (TypeError, ValueError):
            raise UnfitError(f"{name}: need a 1-D tensor or sequence of times, got {t!r}") from None
        values, shape = array.tolist(), array.shape
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"{name}: need at least one time in one dimension, got shape {shape}")
    rising = [b > a for a, b in pairwise(values)]
    falling = [b < a for a, b in pairwise(values)]
    finite = all(map(math.isfinite, values if bounded else values[:1]))
    if not finite or not (all(rising) or all(falling)):
        raise ValueError(
            f"{name}: times must be finite and strictly increasing or decreasing, got "
            f"{reprlib.repr(values)}"
        )
    return values


def check_positive(value: Any, name: str, *, zero: bool = False) -> float:
    """A number > 0 (or >= 0), also as a tensor of one element, as a float.

    Raises
    ------
    TypeError, ValueError
        For anything else, and for tensors that ask for gradients.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name}: must not require gradients; pass {name}.detach()")
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.reshape(())
    return check_real(name, value, "[0, inf)" if zero else "(0, inf)")


def check_steps(times: Sequence[float], step: float, name: str) -> None:
    """Raise ``ValueError`` if steps of this length are more than any run can take."""
    span = abs(times[-1] - times[0])
    if span > MOST_STEPS * step:
        raise ValueError(
            f"{name}: steps of {step:g} from {times[0]:g} to {times[-1]:g} would be "
            f"{span / step:.3g}; at most {MOST_STEPS:.0e} are possible"
        )


def refine(times: Sequence[float], step: Any, name: str) -> list[float]:
    """Steps of length ``step`` from each time towards the next, the last one shortened.

    A remainder that the rounding of times to float32 explains makes no step of its own (at most
    1e-6 of the times, and 1% of a step): the last step is longer by it.

    Raises
    ------
    TypeError, ValueError
        Unless ``step`` is a positive and finite number, and not far too small.
    """
    length = check_positive(step, name)
    check_steps(times, length, name)
    grid = [times[0]]
    for start, stop in pairwise(times):
        slack = min(1e-6 * max(abs(start), abs(stop)), 1e-2 * length)
        count = max(1, math.ceil((abs(stop - start) - slack) / length))
        signed = math.copysign(length, stop - start)
        grid += [start + k * signed for k in range(1, count)]
        grid.append(stop)
    return grid


def run_grid(
    solver: Solver,
    process: Process | None,
    model: Any,
    y0: Tensor,
    grid: Sequence[float],
    outputs: Sequence[float],
    noise: NoiseSource | None = None,
    *,
    check_finite: bool = True,
) -> Tensor:
    """States at the ``outputs``, which are among the times of the ``grid``; (m, \\*y0.shape).

    Raises
    ------
    ValueError
        If the grid does not run from the first output to the last, through all others.
    """
    if len(outputs) == 1:
        return torch.stack([y0])
    position = {time: index for index, time in enumerate(grid)}
    wanted = [position.get(time, -1) for time in outputs]
    if -1 in wanted or wanted[0] != 0 or wanted[-1] != len(grid) - 1:
        raise ValueError(
            "grid_constructor: the grid must run from t[0] to t[-1] and contain every time of t"
        )
    if torch.compiler.is_compiling() and noise is None:
        states = states_in_graph(solver, process, model, y0, grid, _plan)
        return torch.stack([states[index] for index in wanted])
    plan = _plan(solver, process, grid, model.prediction if process is not None else None)
    run = partial(run_plan, plan, model, y0, noise=noise, check_finite=check_finite)
    if len(wanted) == len(grid):
        return run(trajectory=True)
    if len(wanted) == 2:
        return torch.stack([y0, run()])
    # A fine grid with few outputs: keep those only.
    numbers, states = {index - 1 for index in wanted}, [y0]

    def collect(number: int, time: float, state: Tensor) -> None:
        if number in numbers:
            states.append(state)

    run(callback=collect)
    return torch.stack(states)


# Plans of recent calls: training and adjoints integrate over the same times again and again, and
# tracing a solver costs about as much as running it on a small state.
_PLANS: dict[Any, Plan] = {}


def _plan(
    solver: Solver, process: Process | None, times: Sequence[float], prediction: str | None
) -> Plan:
    """The plan of a solver on a grid, remembered for the 32 latest (solver, process, grid)."""
    levels = None
    if process is not None:
        process.check_times(times, "t")
        # The levels themselves are part of the key, so that a process that was changed in place
        # does not meet its old plan.
        array = np.asarray(times)
        levels = tuple(np.asarray(f(array)).tobytes() for f in (process.alpha, process.sigma))
    settings = tuple(sorted(solver.options.items()))
    written = (solver.name, solver.function, solver.prediction, solver.coordinates, solver.memory)
    key = (*written, settings, process, levels, tuple(times), prediction)
    plan = _PLANS.pop(key, None)
    if plan is None:
        plan = solver.plan(process, times, prediction)
    _PLANS[key] = plan
    while len(_PLANS) > 32:
        _PLANS.pop(next(iter(_PLANS)), None)
    return plan
