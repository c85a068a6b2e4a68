"""Adaptive Runge-Kutta steps for a whole batch: the stepper.

Times and lengths are Python floats. A step that is tried costs one wait for the device, for its
error; states, stages and errors stay there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.loop import NonFiniteError
from probflow.ode.control import Control, error_norm, positive, scaled, seventh_order
from probflow.ode.problem import Problem
from probflow.ode.result import MaxStepsError, StepSizeError
from probflow.ode.saved import Stepper
from probflow.ode.steps import (
    combine,
    dense_value,
    extended,
    rk_step,
    stage_times,
    time_tensors,
    weighted,
)
from probflow.tableaus import Tableau
from probflow.words import check_real

__all__ = ["AcceptedStep", "AdaptiveStepper"]


@dataclass
class AcceptedStep:
    """A step that was taken, with what its dense output needs."""

    problem: Problem
    tableau: Tableau
    start: float
    stop: float
    before: Tensor
    after: Tensor
    stages: list[Tensor]
    times: Sequence[Tensor]

    def fraction(self, t: float) -> float:
        """Position of ``t`` in the step, from 0 to 1."""
        return (t - self.start) / (self.stop - self.start)

    def state(self, t: float) -> Tensor:
        """State at ``t`` within the step."""
        if t == self.stop:
            return self.after
        return dense_value(
            self.tableau, self.before, self.complete(), self.fraction(t), self.stop - self.start
        )

    def slope(self, t: float) -> Tensor:
        """Derivative of the dense output at ``t``."""
        weights = self.tableau.dense_slopes(self.fraction(t))
        return weighted(self.complete(), weights)

    def cut(self, t: float) -> Tensor:
        """State after a step of the method from the start to ``t``."""
        if t == self.start:
            return self.before
        times = stage_times(self.tableau.c, self.start, t)
        tensors = time_tensors(times, self.before, self.problem.time_dtype)
        h = t - self.start
        return rk_step(self.problem, self.tableau, self.before, tensors, h, self.stages[0])[0]

    def complete(self) -> list[Tensor]:
        """The stages, with those that only the dense output needs."""
        h = self.stop - self.start
        return extended(
            self.problem, self.tableau, self.before, self.after, self.times, h, self.stages
        )


class AdaptiveStepper(Stepper):
    """One solution, advanced step by step.

    Parameters
    ----------
    problem
        Function and state.
    tableau
        A method with an error estimate.
    control
        Tolerances and bounds.
    t0
        Time of ``problem.y0``.
    end
        Where the integration ends at the latest: no evaluation lies beyond it. May be infinite.
    """

    def __init__(
        self, problem: Problem, tableau: Tableau, control: Control, t0: float, end: float
    ) -> None:
        self.problem, self.tableau, self.control = problem, tableau, control
        self.t, self.y, self.start, self.end = t0, problem.y0, t0, end
        self.sign = -1.0 if end < t0 else 1.0
        self.h: float | None = None  # length of the next step, > 0
        self.first: Tensor | None = None
        self.errors: list[float] = []
        self.accepted = self.rejected = 0
        self._stages: list[Tensor] = []  # of the last step
        self._jumped = t0 in control.jump_t
        self._norm = error_norm(problem, control.norm)
        # Times to land on, in order; True where the function jumps.
        marks = [(time, False) for time in control.step_t] + [(t, True) for t in control.jump_t]
        self._marks = sorted((self.sign * t, jump) for t, jump in marks)
        names = ("callback_step", "callback_accept_step", "callback_reject_step")
        self._tried, self._taken, self._refused = (problem.callback(name) for name in names)

    # One step -----------------------------------------------------------------------------------

    def step(self, limit: float | None = None) -> AcceptedStep:
        """Advance by one accepted step, at most up to ``limit`` (by default the end).

        Parameters
        ----------
        limit
            A time between the stepper's and the end.

        Returns
        -------
        AcceptedStep
            What was done.

        Raises
        ------
        NonFiniteError, StepSizeError, MaxStepsError
            If that is not possible.
        """
        limit = step_limit(limit, self.t, self.start, self.end)
        if self.first is None:
            self.first = self._first_stage()
        self._stages = []  # large: let them go before new ones are made
        if self.h is None:
            length = self._first_length(limit)
            self.h = min(max(length, self.control.min_step), self.control.max_step)
        while True:
            if self.accepted + self.rejected >= self.control.max_num_steps:
                raise MaxStepsError(
                    f"max_num_steps: {self.control.max_num_steps} steps did not reach "
                    f"{limit:g}; stopped at t = {self.t:g} with steps of {self.h:.3g}"
                    + self._too_fine()
                )
            done = self._try(limit)
            if done is not None:
                return done

    def _try(self, limit: float) -> AcceptedStep | None:
        assert self.h is not None
        control, start = self.control, self.t
        stop, clipped, jump = self._stop(limit)
        h = stop - start
        if self._tried is not None:
            self._tried(start, self.y, h)
        times = self._times(start, stop, jump)
        func = self.problem.direct
        after, stages = rk_step(func, self.tableau, self.y, times, h, self.first)
        if func is not self.problem:
            self.problem.nfe += self.tableau.stages - 1  # the first is known
        error = self._error(after, stages, h)
        # The length tried may exceed the smallest one by the rounding of the times.
        shortest = min(abs(h), self.h) <= control.min_step
        accept = error <= 1.0 or (shortest and math.isfinite(error))
        errors = [error, *self.errors] if math.isfinite(error) else [error]
        factor = control.factor(errors, self.tableau.error_order)
        proposed = min(max(abs(h) * factor, control.min_step), control.max_step)
        if not accept:
            self.rejected += 1
            if self._refused is not None:
                self._refused(start, self.y, h)
            if not math.isfinite(error):
                self._explain_non_finite(abs(h), stages)
            self.h = proposed
            self.first = stages[0].clone()  # held for longer than one step's stages
            return None
        if self._taken is not None:
            self._taken(start, self.y, h)
        done = AcceptedStep(self.problem, self.tableau, start, stop, self.y, after, stages, times)
        self.accepted += 1
        # A step that was cut to land somewhere says little about the length of the next.
        self.h = max(proposed, self.h) if clipped else proposed
        self.errors = [error, *self.errors[:1]]
        self.t, self.y = stop, after
        self.first, self._stages, self._jumped = None, stages, jump
        return done

    def _stop(self, limit: float) -> tuple[float, bool, bool]:
        """End of the next step, whether it was cut for it, and whether the function jumps there.

        Raises
        ------
        StepSizeError
            For a length that the times cannot resolve, unless it reaches the next time to land on.
        """
        assert self.h is not None
        target, jump = limit, False
        for time, jumps in self._marks:
            if time > self.sign * self.t:
                if time <= self.sign * limit:
                    target, jump = self.sign * time, jumps
                break
        left, h = abs(target - self.t), self.h
        if h >= left * (1.0 - 1e-12):
            return target, h > left, jump
        # The length as it was proposed: rounded to the times it might never become shorter.
        if h < 4.0 * math.ulp(max(abs(self.t), h)):
            raise StepSizeError(
                f"t: the step size fell below the resolution of the times at t = {self.t!r}, step "
                f"{self.accepted}, with steps of {h:.3g}{self._worst()}; the function may be "
                "singular there"
            )
        if 2.0 * h > left:  # two equal steps instead of a whole one and a sliver
            h = 0.5 * left
            return self.t + self.sign * h, True, False
        return self.t + self.sign * h, False, False

    def _times(self, start: float, stop: float, jump: bool) -> Sequence[Tensor]:
        times = stage_times(self.tableau.c, start, stop)
        tensors = time_tensors(times, self.y, self.problem.time_dtype)
        if jump:
            tensors = [
                torch.nextafter(t, tensors[0]) if c == 1.0 else t
                for t, c in zip(tensors, self.tableau.c, strict=True)
            ]
        return tensors

    def _first_stage(self) -> Tensor:
        """f(t, y): known from the step before, unless the function jumps here."""
        if len(self._stages) > self.tableau.closing and not self._jumped:
            return self._stages[self.tableau.closing]
        return self._evaluate(self.t, self.y)

    def _evaluate(self, t: float, y: Tensor) -> Tensor:
        (time,) = time_tensors([t], y, self.problem.time_dtype)
        if self._jumped:
            time = torch.nextafter(time, time + self.sign)
        return self.problem(time, y)

    def _error(self, after: Tensor, stages: list[Tensor], h: float) -> float:
        """Estimated error in units of the tolerance; the one wait for the device."""
        if torch.is_grad_enabled():  # switching costs as much as an operation
            with torch.no_grad():
                return self._error(after, stages, h)
        control, y = self.control, self.y
        norms = []
        for weights in self.tableau.error:
            error = weighted(stages, weights, h)
            norms.append(self._norm(scaled(error, control.rtol, control.atol, y, after)))
        if len(norms) == 1:
            return float(norms[0])
        return float(seventh_order(*norms))

    @torch.no_grad()
    def _worst(self) -> str:
        """The sample with the largest error in the step that is too short to be taken again."""
        assert self.h is not None
        y, h = self.y, self.sign * self.h
        times = self._times(self.t, self.t + h, False)
        after, stages = rk_step(self.problem, self.tableau, y, times, h, self.first)
        error = scaled(
            weighted(stages, self.tableau.error[0], h), self.control.rtol, self.control.atol,
            y, after,
        ).abs()  # fmt: skip
        if error.ndim == 0 or not error.numel():
            return ""
        largest = torch.where(torch.isfinite(error), error, torch.inf).argmax()
        flags = torch.zeros_like(error).reshape(-1).index_fill(0, largest, torch.nan)
        return self.problem.first_bad(flags.reshape(error.shape))

    def _too_fine(self) -> str:
        """Words for a tolerance that a function in half precision cannot meet but by tiny steps."""
        dtype, rtol = self.problem.dtype, self.control.rtol
        eps = torch.finfo(dtype).eps
        if dtype is self.problem.wide or not isinstance(rtol, float) or rtol >= eps:
            return ""
        return (
            f"; func works in {dtype}, whose numbers are {eps:.2g} apart, so that its rounding is "
            f"an error of many times rtol = {rtol:g}: steps are short everywhere"
        )

    @torch.no_grad()
    def _first_length(self, limit: float) -> float:
        """Hairer, Norsett, Wanner, Solving ODEs I, section II.4."""
        control, left = self.control, min(abs(limit - self.t), abs(self.end - self.t))
        if control.first_step is not None:
            return control.first_step
        assert self.first is not None
        scale = positive((self.y.abs() * control.rtol).add_(control.atol), control.atol)
        of_state, of_slope = torch.stack(
            [self._norm(self.y / scale), self._norm(self.first / scale)]
        ).tolist()
        if not math.isfinite(of_state + of_slope):
            self._explain_start(of_state, of_slope)
        h0 = 1e-6 if min(of_state, of_slope) < 1e-5 else 0.01 * of_state / of_slope
        h0 = min(h0, left)
        point = combine(self.y, [self.first], [1.0], self.sign * h0)
        change = self._evaluate(self.t + self.sign * h0, point) - self.first
        of_change = float(self._norm(change / scale)) / h0
        worst = max(of_slope, of_change)
        if not math.isfinite(worst):
            return h0
        order = self.tableau.error_order + 1
        h1 = max(1e-6, h0 * 1e-3) if worst <= 1e-15 else (0.01 / worst) ** (1.0 / order)
        return min(100.0 * h0, h1, control.max_step)

    def _explain_start(self, of_state: float, of_slope: float) -> None:
        """Raise for norms of the initial state and slope that are not both finite."""
        assert self.first is not None
        self.problem.check_start()
        if not bool(torch.isfinite(self.first).all()):
            raise NonFiniteError(
                f"func: returned NaN or infinity at the initial state, t = {self.t:g}"
                + self.problem.first_bad(self.first)
            )
        raise NonFiniteError(
            "rtol, atol: the initial state and its slope are so many tolerances large that their "
            f"norms overflow ({of_state:g} and {of_slope:g}), or norm returned NaN"
        )

    def _explain_non_finite(self, h: float, stages: list[Tensor]) -> None:
        """Raise if a smaller step cannot help: y0 or the first stage is not finite."""
        self.problem.check_start()
        if not bool(torch.isfinite(stages[0]).all()):
            raise NonFiniteError(
                f"func: returned NaN or infinity at t = {self.t:g}, after {self.accepted} steps"
                + self.problem.first_bad(stages[0])
            )
        resolution = 1e-12 * max(abs(self.t), abs(h))
        if h * self.control.dfactor <= max(resolution, 1e-300):
            places = (self.problem.first_bad(stage) for stage in stages)
            raise NonFiniteError(
                f"func: returned NaN or infinity right after t = {self.t:g}, step "
                f"{self.accepted}, with steps down to {h:.3g}" + next(filter(None, places), "")
            )

    # Saving -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`Stepper.state_dict`; the first slope is part of it."""
        if self.first is None and self.accepted:
            self.first = self._first_stage()
        return super().state_dict()

    def _state(self) -> dict[str, Any]:
        return {
            "t": self.t,
            "y": self.y,
            "first": self.first,
            "h": self.h,
            "jumped": self._jumped,
            "errors": list(self.errors),
            "accepted": self.accepted,
            "rejected": self.rejected,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.t, self.y, self.first, self.h = (state[k] for k in ("t", "y", "first", "h"))
        self.errors, self._jumped, self._stages = list(state["errors"]), state["jumped"], []
        self.accepted, self.rejected = state["accepted"], state["rejected"]


def step_limit(limit: float | None, t: float, start: float, end: float) -> float:
    """How far a step from ``t`` may go, of a solution from ``start`` to ``end``.

    Raises
    ------
    TypeError, ValueError
        If the end is reached, or ``limit`` is no number or does not lie ahead.
    """
    if t == end:
        raise ValueError(f"limit: the solution has reached its end, t = {end:g}")
    if limit is None:
        return end
    limit = check_real("limit", limit, "[-inf, inf]")
    sign = 1.0 if end > start else -1.0
    if sign * limit <= sign * t:
        raise ValueError(f"limit: need a time between t = {t:g} and {end:g}, got {limit:g}")
    return sign * min(sign * limit, sign * end)
