"""What a solver function sees of a step, and what it leaves behind: the step as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np

from probflow.plan.columns import Column, Number, Split, column, expm1, log
from probflow.plan.linear import Linear, as_tuple, as_tuples, code, is_one, named
from probflow.plan.points import COORDINATES, Point, Points
from probflow.plan.steps import Combination, Stage, Step


@dataclass
class Tracing:
    """What the steps of a plan share while they are made.

    Attributes
    ----------
    name, function
        Name and step function of the solver.
    process, grid, memory
        Noising process or ``None``, points of the grid, number of earlier steps that are seen.
    predictions
        Prediction types of the model and of the solver's equation.
    coordinates
        Those of the solver's equation.
    evaluations
        For each stage, an array of shape (4, steps): the register of its input, as a code, and the
        weights of input and output in the solver's prediction type, and 1/scale of the input.
    """

    name: str
    function: Callable[[StepBuilder], Linear]
    process: Any
    grid: Points
    memory: int
    predictions: tuple[str, str]
    coordinates: str
    evaluations: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._points: dict[int, Point] = {}
        self.scale = COORDINATES[self.coordinates]
        self.converts = self.predictions[0] != self.predictions[1]
        self.scales = self.predictions[1] == "score"  # the only one that scales with the state

    def weights(self, at: Point) -> tuple[Number, Number]:
        """Weights of input and output of the model in the solver's prediction type."""
        factor = self.scale(at) if self.scales else 1.0
        of_input, of_output = at.conversion(self.predictions) if self.converts else (0.0, 1.0)
        return of_input * factor, of_output * factor

    def point(self, number: Any) -> Point:
        """A point of the grid, or many."""
        if isinstance(number, Column):
            return self.grid[number]
        if number not in self._points:
            self._points[number] = self.grid[number]
        return self._points[number]

    @cached_property
    def lambda_min(self) -> float:
        """Log-SNR of the noisiest time, may be -inf."""
        with np.errstate(divide="ignore"):
            return float(self.process.lambda_(self.process.t_max))


class StepBuilder:
    """What a solver function sees of one step, from time ``t`` to time ``s``.

    Or of many steps at once: its numbers are then columns with an entry for each, see
    :mod:`probflow.plan.columns`.

    Attributes
    ----------
    t, s : Point
        Start and stop of the step (noise to data: ``s.t < t.t``).
    x : Linear
        The state, in the solver's coordinates.
    outputs : sequence of Linear
        The model outputs of this step so far.
    number : int or Column
        Number of steps before this one.
    """

    __slots__ = (
        "_age",
        "_noises",
        "_previous",
        "_stages",
        "_update",
        "number",
        "outputs",
        "s",
        "t",
        "tracing",
    )

    def __init__(self, tracing: Tracing, number: Any, age: int = 0) -> None:
        self.tracing, self.number, self._age = tracing, number, age
        self.t, self.s = tracing.point(number), tracing.point(number + 1)
        self.outputs: Any = _Stored(tracing, number, age) if age else []
        self._previous: list[StepBuilder] | None = None
        # Of each stage its input, point and tangent.
        self._stages: list[tuple[dict[int, Number], Point, dict[int, Number]]] = []
        self._noises: list[tuple[Number, Number]] = []

    @property
    def x(self) -> Linear:
        """The state, in the solver's coordinates."""
        return Linear({code("x", 0, self._age): 1.0}, None, 1.0 / self.tracing.scale(self.t))

    @property
    def previous(self) -> list[StepBuilder]:
        """The steps before this one, newest first, as many as the solver's memory holds.

        ``previous[0].t`` is the grid point before ``t`` and ``previous[0].outputs[0]`` the model
        output stored there.
        """
        if self._previous is None:
            first = self.number[0] if isinstance(self.number, Column) else self.number
            self._previous = [
                StepBuilder(self.tracing, self.number - back, self._age + back)
                for back in range(1, min(self.tracing.memory, first) + 1)
            ]
        return self._previous

    @property
    def steps(self) -> int:
        """Number of steps in all."""
        return len(self.tracing.grid) - 1

    @property
    def remaining(self) -> Any:
        """Number of steps from this one on: 1 in the last step."""
        return self.steps - self.number

    @property
    def following(self) -> Point | None:
        """The grid point after ``s``; ``None`` in the last step."""
        return self.tracing.point(self.number + 2) if self.remaining > 1 else None

    @property
    def end(self) -> Point:
        """The last point of the grid."""
        return self.tracing.point(self.steps)

    def at(self, t: Number) -> Point:
        """The point at process time ``t``."""
        return Point.at(self.tracing.process, t)

    def at_lambda(self, lambda_: Number) -> Point:
        """The point with log-SNR ``lambda_``."""
        t = self.tracing.process.t(np.asarray(lambda_))
        return self.at(column(t) if isinstance(lambda_, Column) else float(t))

    def at_neg_log_ab(self, neg_log_ab: Number) -> Point:
        """The point with this ``-ln(ab)``."""
        return self.at_lambda(-0.5 * log(expm1(neg_log_ab)))

    @property
    def lambda_min(self) -> float:
        """Log-SNR of the noisiest time of the process, may be -inf."""
        return self.tracing.lambda_min

    def model(self, state: Linear, at: Point) -> Linear:
        """Evaluate the model at ``state`` and time ``at``, in the solver's prediction type.

        The conversion from the model's own prediction type is linear in (input, output), so it
        becomes weights when the step is finished. ``result.input`` is the evaluated state as a
        register: referring to it, rather than to the sum that made it, tells the exact laws that
        the rest of the step depends on it alone.
        """
        tracing, index = self.tracing, len(self._stages)
        scale = tracing.scale(at)
        terms = state.scaled(scale)
        register = code("u", index)
        if len(terms) == 1:
            [(own, weight)] = terms.items()
            if (named(own).kind != "f" or not tracing.converts) and is_one(weight):
                register = own  # the input is a register
        if index == len(tracing.evaluations):
            tracing.evaluations.append(np.full((4, self.steps), np.nan))
        evaluation = tracing.evaluations[index]
        for row, value in enumerate((register, *tracing.weights(at), 1.0 / scale)):
            evaluation[row, self.number] = value
        self._stages.append((terms, at, {}))
        result = Linear({code("f", index): 1.0}, (register, scale))
        self.outputs.append(result)
        return result

    def jvp(self, state: Linear, at: Point, tangent: Linear) -> tuple[Linear, Linear]:
        """:meth:`model`, and its derivative along ``tangent``: a Jacobian-vector product."""
        tangent = tangent * self.tracing.scale(at)
        output = self.model(state, at)
        index = len(self._stages) - 1
        terms, _, _ = self._stages[index]
        self._stages[index] = terms, at, tangent.scaled()
        of_input, of_output = self.tracing.weights(at)
        return output, Linear({code("j", index): of_output}) + tangent * of_input

    def noise(self, start: Number = 0.0, stop: Number = 1.0) -> Linear:
        """Unit normal of the sub-interval from fraction ``start`` to ``stop`` of the step."""
        length = self.s.t - self.t.t
        interval = (
            self.t.t if start == 0.0 else self.t.t + start * length,
            self.s.t if stop == 1.0 else self.t.t + stop * length,
        )
        if interval not in self._noises:
            self._noises.append(interval)
        return Linear({code("z", self._noises.index(interval)): 1.0})

    def finish(self, update: Linear) -> StepBuilder:
        """Take the new state that the solver function returns."""
        self._update = update.scaled(self.tracing.scale(self.s))
        return self

    def combinations(self, terms: dict[int, Number]) -> list[Combination]:
        """Terms of the solver in the model's own prediction type, for each of the steps."""
        found: dict[int, Number] = {}
        for register, weight in terms.items():
            for own, factor in self._meaning(register):
                found[own] = found.get(own, 0.0) + weight * factor
        found = {register: weight for register, weight in found.items() if weight}
        if not isinstance(self.number, Column):
            return [as_tuple(found)]
        if not all(np.isfinite(weight).all() for weight in found.values()):
            raise OverflowError("a weight is not finite")
        return as_tuples(found, len(self.number))

    def _meaning(self, register: int) -> tuple[tuple[int, Number], ...]:
        """A register of the solver's equation in those of the plan."""
        kind, index, age = named(register)
        tracing = self.tracing
        is_output = kind == "f" and (tracing.converts or tracing.scales)
        if not is_output and (kind != "u" or age == 0):
            return ((register, 1.0),)
        values = tracing.evaluations[index][:, self.number - age]
        seen, of_input, of_output, unscale = (
            values.view(Column) if isinstance(self.number, Column) else values.tolist()
        )
        if not seen >= 0:  # no such evaluation, which the plan will find
            return ((register, 1.0),)
        own = named(int(seen))
        state = code(own.kind, own.index, own.age + age)
        return ((register, of_output), (state, of_input)) if is_output else ((state, unscale),)

    def done(self) -> Iterator[tuple[int, Step]]:
        """The steps as data, each with its number."""
        stages = [
            map(Stage, self.combinations(terms), self._each(at.t), self.combinations(tangent))
            for terms, at, tangent in self._stages
        ]
        noises = [zip(*map(self._each, interval), strict=True) for interval in self._noises]
        numbers, none = self._each(self.number), repeat(())
        steps = map(
            Step,
            self._each(self.t.t),
            self._each(self.s.t),
            zip(*stages, strict=True) if stages else none,
            zip(*noises, strict=True) if noises else none,
            self.combinations(self._update),
        )
        return zip(numbers, steps, strict=True)

    def _each(self, value: Any) -> list[Any]:
        """A number of each step."""
        if isinstance(self.number, Column):
            return np.broadcast_to(value, len(self.number)).tolist()
        return [value]


class _Stored(Sequence[Linear]):
    """The model outputs of an earlier step."""

    def __init__(self, tracing: Tracing, number: Any, age: int) -> None:
        self._tracing, self._number, self._age = tracing, number, age

    def __len__(self) -> int:
        if isinstance(self._number, Column):
            raise Split(self._number)
        return sum(not np.isnan(e[0, self._number]) for e in self._tracing.evaluations)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int) or index < 0:
            return [self[i] for i in range(len(self))][index]
        input_ = code("u", index, self._age), 1.0
        return Linear({code("f", index, self._age): 1.0}, input_)

    def __iter__(self) -> Iterator[Linear]:
        return (self[index] for index in range(len(self)))
