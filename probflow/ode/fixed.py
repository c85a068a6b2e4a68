"""Fixed-step methods: grids, the runs over them, and a stepper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from probflow.integrate.grid import host_times, refine
from probflow.integrate.loop import NonFiniteError, all_finite
from probflow.integrate.transforms import transformed
from probflow.ode.adaptive import AcceptedStep, step_limit
from probflow.ode.problem import Problem, host_outputs, traced
from probflow.ode.saved import Stepper
from probflow.ode.steps import (
    Run,
    at_end,
    inward,
    on_grid,
    real_dtype,
    rk_step,
    run_checkpointed,
    run_steps,
    stage_times,
    time_tensors,
)
from probflow.tableaus import Tableau

__all__ = ["FixedStepper", "fixed_grid", "integrate_on", "locate", "refined"]


Grid = list[float] | Tensor  # times of the steps; a tensor where they carry gradients
Outputs = Sequence[Sequence[float | Tensor]]  # for each step the fractions of it to return


def fixed_grid(func: Any, y0: Any, t: Any, options: Mapping[str, Any]) -> tuple[Grid, Outputs, str]:
    """Grid of a call, the fractions of each step at which a state is wanted, and how to get them.

    Without ``interp`` every output time is on the grid. With it the grid is torchdiffeq's: steps of
    ``step_size`` from the first time on, or what ``grid_constructor`` returns, and a state inside
    a step is interpolated. Where ``t`` carries gradients so does the grid, by the same rule.

    Raises
    ------
    ValueError
        For a grid that does not run from the first output to the last.
    """
    interp = options.get("interp")
    if interp not in (None, "linear", "cubic"):
        raise ValueError(f"interp: got {interp!r}, allowed are 'linear' and 'cubic'")
    way = "linear" if interp == "linear" else "dense"
    own = [name for name in ("step_size", "grid_constructor") if options.get(name) is not None]
    if traced(t) and not own:
        if not transformed():
            host_outputs(t)  # checks them
        return t, [[1.0]] * (len(t) - 1), way
    if torch.compiler.is_compiling() and isinstance(t, Tensor):
        raise ValueError(
            f"{own[0]}: a compiled graph cannot read t, a tensor, to count the steps to take; "
            f"give t as numbers, or leave {own[0]} out, with the times of all steps as t"
            if own
            else "t: a compiled graph cannot read it"
        )
    outputs = host_outputs(t)
    grid, made = refined(func, y0, t, outputs, options, through=interp is None)
    wanted: list[tuple[float | Tensor, ...]] = [()] * (len(grid) - 1)
    number, sign = 0, 1.0 if outputs[-1] > outputs[0] else -1.0
    points = _moved(grid, made, t, outputs, interp is None) if traced(t) else None
    for place, time in enumerate(outputs[1:-1], 1):
        while sign * grid[number + 1] < sign * time:  # no bisect: a graph cannot hold it
            number += 1
        start, stop = grid[number], grid[number + 1]
        if points is not None and interp is not None:
            fraction = (t[place] - points[number]) / (points[number + 1] - points[number])
        else:
            fraction = 1.0 if time == stop else (time - start) / (stop - start)
        wanted[number] += (fraction,)
    if wanted:
        wanted[-1] += (1.0,)
    return grid if points is None else points, wanted, way


def refined(
    func: Any, y0: Any, t: Any, outputs: list[float], options: Mapping[str, Any], *, through: bool
) -> tuple[list[float], Any]:
    """The grid that ``step_size`` or ``grid_constructor`` makes, and what the latter returned.

    Parameters
    ----------
    func, y0, t
        What the constructor is called with.
    outputs
        The times of ``t``: the grid where there is neither option.
    through
        Whether the steps of a ``step_size`` begin anew at every output, and the outputs are put
        into the constructor's grid.

    Raises
    ------
    TypeError, ValueError
        For options that do not fit, or a grid that does not run from the first output to the last.
    """
    step, constructor = options.get("step_size"), options.get("grid_constructor")
    if step is not None and constructor is not None:
        raise ValueError("step_size, grid_constructor: give one of them, not both")
    if constructor is not None and not callable(constructor):
        raise TypeError(f"grid_constructor: need a function of (func, y0, t), got {constructor!r}")
    if len(outputs) == 1:
        return outputs, None
    if step is not None:
        ends = outputs if through else [outputs[0], outputs[-1]]
        return refine(ends, step, "step_size"), None
    if constructor is None:
        return outputs, None
    times = t
    if not isinstance(t, Tensor):
        times = torch.tensor(outputs, dtype=torch.float64, device="cpu")
    made = constructor(func, y0, times)
    grid = host_times(made.detach() if isinstance(made, Tensor) else made, "grid_constructor")
    if grid[0] != outputs[0] or grid[-1] != outputs[-1]:
        raise ValueError(
            "grid_constructor: the grid must run from t[0] to t[-1], "
            f"{outputs[0]!r} to {outputs[-1]!r}, got {grid[0]!r} to {grid[-1]!r}"
        )
    if through:
        grid = sorted({*grid, *outputs}, reverse=outputs[-1] < outputs[0])
    return grid, made


def _moved(grid: list[float], made: Any, t: Tensor, outputs: list[float], through: bool) -> Tensor:
    """The grid as a tensor that moves with the times as the rule of :func:`refined` says.

    Steps of one length lie at fixed distances from the time before them at which they began; a
    constructor's times move as its tensor does.
    """
    ends = outputs if through else [outputs[0], outputs[-1]]
    known = dict(zip(outputs, t.unbind(0), strict=True))
    known = {time: known[time] for time in ends}
    if isinstance(made, Tensor) and made.requires_grad:
        known |= dict(zip(made.detach().tolist(), made.to(t.dtype).unbind(0), strict=True))
    points: list[Tensor] = []
    base, value = t[0], outputs[0]
    for time in grid:
        if time in known:
            base, value = known[time], time
        points.append(
            base + (time - value) if made is None else known.get(time, t.new_tensor(time))
        )
    return torch.stack(points)


def integrate_on(
    problem: Problem,
    tableau: Tableau,
    grid: Grid,
    outputs: Outputs,
    *,
    interpolation: str = "dense",
    perturb: bool = False,
    gradients: str = "direct",
    check_finite: bool = True,
    on_step: Callable[[float, Tensor, float], None] | None = None,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """States at the first time and the outputs, (1 + outputs, ...), of a run over a grid.

    ``on_step`` is called with (t, y, h) before each step, but not with checkpoints, where
    ``report`` is told of the number of steps that have been taken since the last time.

    Raises
    ------
    NonFiniteError
        If the last state is not finite, naming the first bad step; found by a repeated run.
    """
    y0 = problem.y0
    run = on_grid(
        tableau, grid, outputs, y0, problem.time_dtype, interpolation=interpolation, perturb=perturb
    )
    if gradients == "checkpoint" and torch.is_grad_enabled():
        if report is not None:
            problem.observer = _counting(
                report, len(run.lengths), _evaluations(tableau, run, False)
            )
        last, _, states = run_checkpointed(problem, tableau, y0, run)
        problem.observer = None  # in the backward pass the steps are taken again
        result = torch.stack([y0, *states])
    elif torch.is_grad_enabled() or transformed():
        last, kept = _walk(problem, tableau, y0, run, grid, [y0], on_step)
        result = torch.stack(kept)
    else:
        result = y0.new_empty((1 + sum(map(len, outputs)), *y0.shape))
        places = _Places(result)
        places.append(y0)
        last, _ = _walk(problem, tableau, y0, run, grid, places, on_step)
    if check_finite:
        check_last(problem, tableau, last, _again(problem, tableau, run))
    return result


def check_last(problem: Problem, tableau: Tableau, last: Tensor, steps: Iterable[Any]) -> None:
    """Look at the last state; if it is not finite, take the ``steps`` and :func:`locate` why."""
    if not all_finite(last.detach()):
        locate(
            problem, tableau.name, steps,
            f"the state grew beyond {problem.y0.dtype}, or a repeated run differs: the function "
            "is not one of its arguments alone",
        )  # fmt: skip


class _Places:
    """A list whose entries go straight into a tensor made before, so that none is held twice."""

    def __init__(self, result: Tensor) -> None:
        self._places = iter(result.unbind(0))

    def append(self, state: Tensor) -> None:
        next(self._places).copy_(state)


def _walk(
    problem: Problem, tableau: Tableau, y: Tensor, run: Run, grid: Any, states: Any, on_step: Any
) -> tuple[Tensor, Any]:
    if on_step is None:
        # The first two steps go through the problem, which checks the function's outputs: together
        # they have as many as a step with its dense output.
        y, first, _ = run_steps(problem, tableau, y, run.part(0, 2), states=states)
        before, rest = problem.nfe, run.part(2, len(run.lengths))
        y, _, _ = run_steps(problem.direct, tableau, y, rest, first, states)
        if problem.direct is not problem:
            problem.nfe = before + _evaluations(tableau, rest, first is not None)
        return y, states
    first = None
    floats = grid.detach().tolist() if isinstance(grid, Tensor) else grid
    for number, (start, stop) in enumerate(pairwise(floats)):
        on_step(start, y, stop - start)
        part = run.part(number, number + 1)
        y, first, _ = run_steps(problem, tableau, y, part, first, states)
    return y, states


def _evaluations(tableau: Tableau, run: Run, known: bool) -> int:
    """How often a run calls the function; ``known``: its first stage is there already."""
    if run.times and len(run.times[0]) == tableau.stages:  # no dense output anywhere
        repeated = len(run.times) - 1 if tableau.fsal else 0
        return len(run.times) * tableau.stages - repeated - known
    count = 0
    for outputs in run.outputs:
        inside = not all(map(at_end, outputs))
        stages = len(tableau.dense) if inside else tableau.stages
        count += stages - known
        known = stages > tableau.closing
    return count


def _counting(report: Callable[[int], None], steps: int, evaluations: int) -> Callable[..., None]:
    """Reports steps, seeing the evaluations of all of them alone."""
    seen = 0

    def observe(t: Tensor, output: Tensor) -> None:
        nonlocal seen
        before, seen = seen, seen + 1
        count = seen * steps // evaluations - before * steps // evaluations
        if count:
            report(count)

    return observe


def _again(problem: Problem, tableau: Tableau, run: Run) -> Iterator[None]:
    y, first = problem.y0, None
    for number in range(len(run.lengths)):
        y, first, _ = run_steps(problem, tableau, y, run.part(number, number + 1), first)
        yield


def locate(problem: Problem, name: str, steps: Iterable[Any], otherwise: str) -> NoReturn:
    """Say where a run became NaN or infinite, by repeating it with a flag for each evaluation.

    Parameters
    ----------
    problem
        Function and initial state.
    name
        The method.
    steps
        Takes the steps, one an iteration.
    otherwise
        What to say if every output was finite.

    Raises
    ------
    NonFiniteError
        Always.
    """
    problem.check_start()
    flags: list[Tensor] = []
    times: list[Tensor] = []
    counts: list[int] = []

    def observe(t: Tensor, output: Tensor) -> None:
        flags.append(problem.finite(output))
        times.append(t)

    problem.observer = observe
    try:
        with torch.no_grad():
            for _ in steps:
                counts.append(len(times))
    finally:
        problem.observer = None
    good = torch.stack(flags)
    bad = (~good.all(1)).tolist()
    if True not in bad:
        raise NonFiniteError(f"{name}: {otherwise}")
    place = bad.index(True)
    sample = problem.sample(good[place].tolist().index(False))
    step = next(number for number, count in enumerate(counts) if place < count)
    raise NonFiniteError(
        f"{name}: func returned NaN or infinity in step {step} of {len(counts)}, "
        f"t = {float(times[place]):g}{sample}"
    )


class FixedStepper(Stepper):
    """One solution, advanced in steps of one length.

    Parameters
    ----------
    problem
        What to integrate.
    tableau
        The Runge-Kutta method.
    step_size
        Length of the steps, > 0.
    t0, end
        Start and end.
    perturb
        Evaluate inside the steps, not at their ends.

    Raises
    ------
    ValueError
        Unless ``step_size`` > 0.
    """

    def __init__(
        self,
        problem: Problem,
        tableau: Tableau,
        step_size: float,
        t0: float,
        end: float,
        perturb: bool = False,
    ) -> None:
        if not step_size > 0.0:
            raise ValueError(f"step_size: need a positive step, got {step_size!r}")
        self.problem, self.tableau, self.h, self.perturb = problem, tableau, step_size, perturb
        self.t, self.y, self.start, self.end = t0, problem.y0, t0, end
        self.accepted = self.rejected = 0
        self._first: Tensor | None = None
        self._good: Tensor | None = None
        self._starts: list[float] = []  # of the steps looked at
        self._on_step = problem.callback("callback_step")

    def step(self, limit: float | None = None) -> Any:
        """Advance by one step, shortened where it would pass ``limit`` (by default the end).

        Parameters
        ----------
        limit
            A time between the stepper's and the end.

        Returns
        -------
        AcceptedStep
            What was done; of Adams-Bashforth an :class:`~probflow.ode.adams.AdamsStep`.

        Raises
        ------
        TypeError, ValueError
            For a limit that is no number, or elsewhere.
        NonFiniteError
            At the end, if a state on the way was NaN or infinite.
        """
        limit = step_limit(limit, self.t, self.start, self.end)
        left = limit - self.t
        h = math.copysign(self.h, left)
        stop = limit if abs(left) <= self.h * (1 + 1e-6) else self.t + h
        if self._on_step is not None:
            self._on_step(self.t, self.y, stop - self.t)
        start, done = self.t, self.advance(stop)
        self._look(start)
        if stop == self.end:
            self._report()
        return done

    def _look(self, start: float) -> None:
        """Count on the device the steps after which each sample is finite."""
        if transformed() or not self.y.numel():
            return
        finite = self.problem.finite(self.y.detach())
        self._good = finite.long() if self._good is None else self._good + finite
        self._starts.append(start)

    def _report(self) -> None:
        """Raise if a state was not finite; waits for the device."""
        if self._good is None or transformed():
            return
        # A state that is NaN or infinite never becomes finite again: steps add to it.
        counts, looks = self._good.tolist(), len(self._starts)
        first = min(counts)
        if first < looks:
            raise NonFiniteError(
                f"{self.method}: the state became NaN or infinite in step "
                f"{self.accepted - looks + first}, which began at t = {self._starts[first]:g}"
                + self.problem.sample(counts.index(first))
            )

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`Stepper.state_dict`; NaN and infinity are not saved but raise."""
        self._report()
        return super().state_dict()

    def advance(self, stop: Any) -> Any:
        """Take one step to the time ``stop``, and return it, as :meth:`step` does."""
        tableau, start, y = self.tableau, self.t, self.y
        times = self._times(tableau, start, stop)
        known = None if self.perturb else self._first
        after, stages = rk_step(self.problem, tableau, y, times, self._length(start, stop), known)
        done = AcceptedStep(self.problem, tableau, start, stop, y, after, stages, times)
        self._first = stages[tableau.closing] if tableau.fsal else None
        self._go_on(stop, after)
        return done

    def _go_on(self, stop: Any, after: Tensor) -> None:
        self.t, self.y = stop, after
        self.accepted += 1

    def _length(self, start: Any, stop: Any) -> Any:
        h = stop - start
        return h.to(real_dtype(self.y)) if isinstance(h, Tensor) else h

    def _times(self, tableau: Tableau, start: Any, stop: Any) -> Sequence[Tensor]:
        """Times of the stages of a step, inside it with ``perturb``."""
        nodes = stage_times(tableau.c, start, stop)
        times = time_tensors(nodes, self.problem.y0, self.problem.time_dtype)
        if not self.perturb:
            return times
        return inward(torch.stack(tuple(times))[None], tableau.c)[0].unbind(0)

    def _state(self) -> dict[str, Any]:
        return {
            "t": self.t,
            "y": self.y,
            "first": self._first,
            "h": self.h,
            "accepted": self.accepted,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.t, self.y, self._first, self.h = (state[k] for k in ("t", "y", "first", "h"))
        self.accepted, self._good, self._starts = state["accepted"], None, []
