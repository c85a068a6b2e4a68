"""A solver function run over a grid: its scalars become a plan."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from probflow.plan.builder import StepBuilder, Tracing
from probflow.plan.columns import Column, Split, column
from probflow.plan.linear import Linear
from probflow.plan.points import Points
from probflow.plan.steps import Plan, Step

_MANY = 8  # steps
_FEW = 8  # kinds of them


def trace(
    name: str,
    step_function: Callable[[StepBuilder], Linear],
    process: Any,
    times: Sequence[float] | np.ndarray,
    *,
    native: str,
    prediction: str,
    coordinates: str = "process",
    memory: int = 0,
) -> Plan:
    """Run a solver function over a grid and collect its scalars.

    Parameters
    ----------
    name
        Solver name, for messages.
    step_function
        The solver: maps a :class:`StepBuilder` to the new state.
    process
        Noising process, or ``None`` for a plain ODE.
    times
        n + 1 strictly monotone process times.
    native, prediction
        Prediction type in which the solver is written, and that of the model.
    coordinates
        ``"process"``, ``"vp"`` (state over sqrt(alpha^2 + sigma^2)) or ``"ve"`` (over alpha).
    memory
        How many earlier steps the solver looks at.
    """
    tracing = Tracing(
        name,
        step_function,
        process,
        Points(process, times),
        memory=memory,
        predictions=(prediction, native),
        coordinates=coordinates,
    )
    numbers = range(len(times) - 1)
    # The first steps differ in how many there are before them.
    kinds = [*numbers[:memory], *_together(numbers[memory:])]
    with _uncollected(), np.errstate(all="ignore"):
        sketches = [sketch for kind in kinds for sketch in _sketches(tracing, kind)]
        steps = dict(pair for sketch in sketches for pair in _done(tracing, sketch))
        return Plan(name, prediction, tuple([steps[number] for number in numbers]))


def _sketches(tracing: Tracing, numbers: Any) -> Iterator[StepBuilder]:
    """The steps of these numbers as the solver writes them: those alike at once."""
    step = StepBuilder(tracing, numbers)
    try:
        step.finish(tracing.function(step))
    except Exception as reason:
        for part in _parts(step, reason):
            yield from _sketches(tracing, part)
    else:
        yield step


def _done(tracing: Tracing, step: StepBuilder) -> list[tuple[int, Step]]:
    """The steps as data, each with its number."""
    try:
        return list(step.done())
    except Exception as reason:
        parts = _parts(step, reason)
        alike = [sketch for part in parts for sketch in _sketches(tracing, part)]
        return [pair for sketch in alike for pair in _done(tracing, sketch)]


def _parts(step: StepBuilder, reason: Exception) -> list[Any]:
    """What to do with steps that failed together: those alike at once, or each alone, with floats.

    Each alone also says best what is wrong, so that the reason counts for a single step only.
    """
    numbers = step.number
    if not isinstance(numbers, Column):
        if isinstance(reason, (OverflowError, ZeroDivisionError)):
            raise ValueError(
                f"{step.tracing.name}: a weight is not finite on the step from t = {step.t.t:g} to "
                f"{step.s.t:g}, where the process has no finite log-SNR (alpha = 0 or sigma = 0): "
                "start or end the grid elsewhere"
            ) from None
        raise reason
    if isinstance(reason, Split):
        kinds = np.unique(reason.values)
        if 1 < len(kinds) <= _FEW:
            return [part for kind in kinds for part in _together(numbers[reason.values == kind])]
    return numbers.tolist()


def _together(numbers: Any) -> list[Any]:
    """Many steps as a column, whose cost hardly depends on its length; a few each alone."""
    return [column(numbers)] if len(numbers) > _MANY else list(map(int, numbers))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: a plan is so many tuples that it would set off a full one.

    That looks at every object of the process, which takes longer than the plan, and finds nothing.
    What is made goes to the oldest generation, where collections would have brought it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() == 0:
                gc.freeze()
                gc.unfreeze()
            gc.enable()
