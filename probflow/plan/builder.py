"""What a solver function sees of a step, and what it leaves behind: the step as data."""

from __future__ import annotations

import math
from dataclasses import replace

from probflow.plan.linear import Linear, code
from probflow.plan.points import COORDINATES, Between, Point
from probflow.plan.steps import Stage, Step

_STATE = code("x")


class StepBuilder:
    """What a solver function sees of one step, from time ``t`` to time ``s``.

    Parameters
    ----------
    points
        All times of the grid.
    number
        That of the step, 0 for the first.
    predictions
        Prediction type of the model, and that in which the solver is written.
    coordinates
        Those of the solver, as for :func:`~probflow.plan.trace`.
    previous
        Earlier steps, the newest first.
    between
        Makes points between those of the grid.

    Attributes
    ----------
    t, s : Point
        Start and stop of the step (noise to data: ``s.t < t.t``).
    x : Linear
        The state, in the solver's coordinates.
    previous : list of StepBuilder
        The finished steps before this one, newest first; ``previous[0].t`` is the grid point
        before ``t`` and ``previous[0].outputs[0]`` the model output stored there.
    outputs, points : list of Linear, list of Point
        The model outputs of this step so far, and where they were evaluated.
    number : int
        Number of steps before this one.
    """

    __slots__ = (
        "_between",
        "_converts",
        "_grid",
        "_noises",
        "_predictions",
        "_scale",
        "_scales",
        "_stages",
        "number",
        "outputs",
        "points",
        "previous",
        "s",
        "t",
        "x",
    )

    def __init__(
        self,
        points: list[Point],
        number: int,
        *,
        predictions: tuple[str, str],
        coordinates: str,
        previous: list[StepBuilder],
        between: Between,
    ) -> None:
        self._place(points, number, previous)
        self._between = between
        self._predictions, self._scale = predictions, COORDINATES[coordinates]
        self._converts = predictions[0] != predictions[1]
        self._scales = predictions[1] == "score"  # the only prediction that scales with the state
        self.x = Linear({_STATE: 1.0}, None, 1.0 / self._scale(self.t))
        self.outputs: list[Linear] = []
        self.points: list[Point] = []
        self._stages: list[Stage] = []
        self._noises: dict[tuple[float, float], int] = {}

    def _place(self, points: list[Point], number: int, previous: list[StepBuilder]) -> None:
        """Where in the grid the step is."""
        self.t, self.s = points[number], points[number + 1]
        self.previous, self.number, self._grid = previous, number, points

    @property
    def steps(self) -> int:
        """Number of steps in all."""
        return len(self._grid) - 1

    @property
    def remaining(self) -> int:
        """Number of steps from this one on: 1 in the last step."""
        return self.steps - self.number

    @property
    def following(self) -> Point | None:
        """The grid point after ``s``; ``None`` in the last step."""
        return self._grid[self.number + 2] if self.remaining > 1 else None

    @property
    def end(self) -> Point:
        """The last point of the grid."""
        return self._grid[-1]

    def grow_old(self) -> None:
        """Be one step further in the past."""
        self.x = self.x.aged()
        self.outputs = [output.aged() for output in self.outputs]

    def at(self, t: float) -> Point:
        """The :class:`Point` at the process time ``t``, a float."""
        return self._between.at(t)

    def at_lambda(self, lambda_: float) -> Point:
        """The :class:`Point` with the log-SNR ``lambda_``, a float."""
        return self._between.at_lambda(lambda_)

    def at_neg_log_ab(self, neg_log_ab: float) -> Point:
        """The :class:`Point` with this ``-ln(ab)``, a float > 0."""
        return self.at_lambda(-0.5 * math.log(math.expm1(neg_log_ab)))

    @property
    def lambda_min(self) -> float:
        """Log-SNR of the noisiest time of the process, may be -inf."""
        return self._between.lambda_min

    def model(self, state: Linear, at: Point) -> Linear:
        """Evaluate the model at ``state`` and time ``at``, in the solver's prediction type.

        The conversion from the model's own prediction type is linear in (input, output), so it
        becomes weights. ``result.input`` is the evaluated state as a register: referring to it,
        rather than to the sum that made it, tells the exact laws that the rest of the step
        depends on it alone.

        Parameters
        ----------
        state
            Where, in the solver's coordinates.
        at
            When.

        Returns
        -------
        Linear
            The output.
        """
        scale, index = self._scale(at), len(self._stages)
        combination = state.combination(scale)
        self._stages.append(Stage(combination, at.t))
        if len(combination) == 1 and combination[0][1] == 1.0:  # the input is a register
            register = code(*combination[0][0])
        else:
            register = code("u", index)
        of_input, of_output, factor = self._weights(at)
        terms = {code("f", index): of_output}
        if of_input != 0.0:
            terms[register] = of_input
        result = Linear(terms, (register, scale), factor)
        self.outputs.append(result)
        self.points.append(at)
        return result

    def _weights(self, at: Point) -> tuple[float, float, float]:
        """Weights of input and output in the solver's prediction type, and a factor of both."""
        factor = self._scale(at) if self._scales else 1.0
        return (*at.conversion(self._predictions), factor) if self._converts else (0.0, 1.0, factor)

    def jvp(self, state: Linear, at: Point, tangent: Linear) -> tuple[Linear, Linear]:
        """:meth:`model`, and its derivative along ``tangent``: a Jacobian-vector product.

        Parameters
        ----------
        state, at
            As those of :meth:`model`.
        tangent
            The direction, in the solver's coordinates.

        Returns
        -------
        tuple of Linear
            Output and derivative.
        """
        tangent = tangent * self._scale(at)
        output = self.model(state, at)
        index = len(self._stages) - 1
        along = tangent.combination()
        self._stages[index] = replace(self._stages[index], tangent=along)
        of_input, of_output, factor = self._weights(at)
        derivative = Linear({code("j", index): of_output * factor})
        return output, derivative + tangent * (of_input * factor)

    def noise(self, start: float = 0.0, stop: float = 1.0) -> Linear:
        """Unit normal of the sub-interval from fraction ``start`` to ``stop`` of the step.

        Parameters
        ----------
        start, stop
            Fractions of the step in [0, 1]; the whole step by default.

        Returns
        -------
        Linear
            The same register for the same interval.
        """
        length = self.s.t - self.t.t
        interval = (
            self.t.t if start == 0.0 else self.t.t + start * length,
            self.s.t if stop == 1.0 else self.t.t + stop * length,
        )
        index = self._noises.setdefault(interval, len(self._noises))
        return Linear({code("z", index): 1.0})

    def finish(self, update: Linear) -> Step:
        """The :class:`Step` that ends with the state ``update``, in the solver's coordinates."""
        return Step(
            self.t.t,
            self.s.t,
            tuple(self._stages),
            tuple(self._noises),
            update.combination(self._scale(self.s)),
        )
