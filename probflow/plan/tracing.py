"""A solver function run over a grid: its scalars become a plan."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import numpy as np

from probflow.plan.builder import StepBuilder
from probflow.plan.linear import Linear
from probflow.plan.points import Between, Point
from probflow.plan.steps import Plan


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

    Returns
    -------
    Plan
        A step for each interval.

    Raises
    ------
    ValueError
        If the solver cannot take a step (the message names it), or as :class:`Plan`.
    """
    points = Point.many(process, times)
    between = Between(process)
    previous: list[StepBuilder] = []
    steps = []
    with _uncollected():
        if process is not None:
            between.prepare(*_scout(step_function, points, memory, between))
        for number, (t, s) in enumerate(pairwise(points)):
            try:
                builder = StepBuilder(
                    points,
                    number,
                    predictions=(prediction, native),
                    coordinates=coordinates,
                    previous=previous,
                    between=between,
                )
                steps.append(builder.finish(step_function(builder)))
            except (OverflowError, ZeroDivisionError):
                raise ValueError(
                    f"{name}: a weight is not finite on the step from t = {t.t:g} to {s.t:g}, "
                    "where the process has no finite log-SNR (alpha = 0 or sigma = 0): start or "
                    "end the grid elsewhere"
                ) from None
            if memory:
                previous = [builder, *previous][:memory]
                for step in previous:
                    step.grow_old()
        return Plan(name, prediction, tuple(steps))


class _Nothing(Linear):
    """What a solver gets instead of a combination while its intermediate times are noted."""

    __slots__ = ()

    def __add__(self, other: object) -> _Nothing:
        return self

    __radd__ = __sub__ = __mul__ = __rmul__ = __truediv__ = __add__

    def __neg__(self) -> _Nothing:
        return self


_NOTHING = _Nothing({})


class _Enough(Exception):
    """All points that were expected are asked for."""


class _Scout(StepBuilder):
    """A step that only notes the intermediate times and log-SNRs that a solver asks for.

    A point asked for is half way between those of the grid, but for its log-SNR. Where a solver
    asks for further times that depend on more of it, the notes are wrong, which costs time only.
    After as many points as expected the rest of the step is left out.
    """

    def __init__(
        self,
        points: list[Point],
        number: int,
        previous: list[StepBuilder],
        between: Between,
        expected: int,
    ) -> None:
        self._place(points, number, previous)
        self._between, self._left = between, expected
        self._middle: Point | None = None
        self.x = _NOTHING
        self.outputs: list[Linear] = []
        self.points: list[Point] = []
        self.times: list[float] = []
        self.lambdas: list[float] = []

    def _half_way(self) -> Point:
        t, s = self.t, self.s
        return Point(
            0.5 * (t.t + s.t),
            0.5 * (t.alpha + s.alpha),
            0.5 * (t.sigma + s.sigma),
            0.5 * (t.lambda_ + s.lambda_),
            0.5 * (t.neg_log_ab + s.neg_log_ab),
        )

    def _note(self, notes: list[float], place: float) -> Point:
        notes.append(place)
        self._left -= 1
        if self._left == 0:
            raise _Enough
        if self._middle is None:
            self._middle = self._half_way()
        return self._middle

    def at(self, t: float) -> Point:
        return self._note(self.times, t)

    def at_lambda(self, lambda_: float) -> Point:
        middle = self._note(self.lambdas, lambda_)
        middle.lambda_ = lambda_  # so that places which depend on it are right
        return middle

    def model(self, state: Linear, at: Point) -> Linear:
        self.outputs.append(self.x)
        self.points.append(at)
        return self.x

    def jvp(self, state: Linear, at: Point, tangent: Linear) -> tuple[Linear, Linear]:
        return self.model(state, at), self.x

    def noise(self, start: float = 0.0, stop: float = 1.0) -> Linear:
        return self.x


def _scout(
    step_function: Callable[[StepBuilder], Linear],
    points: list[Point],
    memory: int,
    between: Between,
) -> tuple[list[float], list[float]]:
    """The intermediate times and log-SNRs that a solver asks for, as far as that can be foretold.

    Ends if the first step with a full memory asks for none. A one-step method asks for as many in
    each step as in the first.
    """
    times: list[float] = []
    lambdas: list[float] = []
    previous: list[StepBuilder] = []
    expected = 0
    for number in range(len(points) - 1):
        step = _Scout(points, number, previous, between, expected)
        # _Enough, or an error due to the stand-ins, or one that comes again in the tracing.
        with suppress(Exception):
            step_function(step)
        asked = len(step.times) + len(step.lambdas)
        if number == memory and not asked:
            break
        if memory == 0:
            expected = expected or asked
        times += step.times
        lambdas += step.lambdas
        previous = [step, *previous][:memory]
    return times, lambdas


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
