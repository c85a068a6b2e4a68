"""Fixed-step methods: grids, the runs over them, and a stepper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.grid import host_times, refine
from probflow.integrate.loop import NonFiniteError, all_finite
from probflow.ode.adaptive import AcceptedStep, step_limit
from probflow.ode.problem import Problem
from probflow.ode.steps import Run, on_grid, rk_step, run_checkpointed, run_steps, time_tensors
from probflow.tableaus import Tableau

__all__ = ["FixedStepper", "fixed_grid", "integrate_on"]


def fixed_grid(
    func: Any, y0: Any, t: Any, outputs: Sequence[float], options: dict[str, Any]
) -> tuple[list[float], list[Sequence[float]], str]:
    """Grid of a call, the fractions of each step at which a state is wanted, and how to get them.

    Without ``interp`` every output time is on the grid. With it the grid is torchdiffeq's: steps of
    ``step_size`` from the first time on, or what ``grid_constructor`` returns, and a state inside
    a step is interpolated.

    Raises
    ------
    ValueError
        For a grid that does not run from the first output to the last.
    """
    step, constructor = options.get("step_size"), options.get("grid_constructor")
    interp = options.get("interp")
    if interp not in (None, "linear", "cubic"):
        raise ValueError(f"interp: got {interp!r}, allowed are 'linear' and 'cubic'")
    if step is not None and constructor is not None:
        raise ValueError("step_size, grid_constructor: give one of them, not both")
    if len(outputs) == 1:
        return list(outputs), [], "dense"
    grid = list(outputs)
    if step is not None:
        grid = refine(outputs if interp is None else [outputs[0], outputs[-1]], step, "step_size")
    elif constructor is not None:
        times = t if isinstance(t, Tensor) else torch.tensor(outputs, dtype=torch.float64)
        grid = host_times(constructor(func, y0, times), "grid_constructor")
        if grid[0] != outputs[0] or grid[-1] != outputs[-1]:
            raise ValueError(
                "grid_constructor: the grid must run from t[0] to t[-1], "
                f"{outputs[0]:g} to {outputs[-1]:g}, got {grid[0]:g} to {grid[-1]:g}"
            )
        if interp is None:
            grid = sorted({*grid, *outputs}, reverse=outputs[-1] < outputs[0])
    wanted: list[Sequence[float]] = [()] * (len(grid) - 1)
    number, sign = 0, 1.0 if outputs[-1] > outputs[0] else -1.0
    for time in outputs[1:-1]:
        while sign * grid[number + 1] < sign * time:  # no bisect: a graph cannot hold it
            number += 1
        start, stop = grid[number], grid[number + 1]
        fraction = 1.0 if time == stop else (time - start) / (stop - start)
        wanted[number] = [*wanted[number], fraction]
    wanted[-1] = [*wanted[-1], 1.0]
    return grid, wanted, "linear" if interp == "linear" else "dense"


def integrate_on(
    problem: Problem,
    tableau: Tableau,
    grid: Sequence[float] | Tensor,
    outputs: Sequence[Sequence[float]],
    *,
    interpolation: str = "dense",
    perturb: bool = False,
    gradients: str = "direct",
    check_finite: bool = True,
    on_step: Callable[[float, Tensor, float], None] | None = None,
) -> Tensor:
    """States at the first time and the outputs, (1 + outputs, ...), of a run over a grid.

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
        last, _, states = run_checkpointed(problem, tableau, y0, run)
        result = torch.stack([y0, *states])
    elif torch.is_grad_enabled() or torch.compiler.is_compiling():
        last, kept = _walk(problem, tableau, y0, run, grid, [y0], on_step)
        result = torch.stack(kept)
    else:
        result = y0.new_empty((1 + sum(map(len, outputs)), *y0.shape))
        places = _Places(result)
        places.append(y0)
        last, _ = _walk(problem, tableau, y0, run, grid, places, on_step)
    if check_finite and not all_finite(last.detach()):
        _locate(problem, tableau, run, grid)
    return result


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
    for number, (start, stop) in enumerate(pairwise(grid)):
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
        inside = any(theta != 1.0 for theta in outputs)
        stages = len(tableau.dense) if inside else tableau.stages
        count += stages - known
        known = stages > tableau.closing
    return count


def _locate(problem: Problem, tableau: Tableau, run: Run, grid: Any) -> None:
    """Repeat a run that ended in NaN or infinity, with a flag for each evaluation."""
    flags = [torch.isfinite(problem.y0).all()]
    times: list[Tensor] = []

    def observed(t: Tensor, y: Tensor) -> Tensor:
        output = problem(t, y)
        flags.append(torch.isfinite(output).all())
        times.append(t)
        return output

    with torch.no_grad():
        counts, y, first = [], problem.y0, None
        for number in range(len(run.lengths)):
            y, first, _ = run_steps(observed, tableau, y, run.part(number, number + 1), first)
            counts.append(len(times))
    good = torch.stack(flags).tolist()
    if all(good):
        raise NonFiniteError(
            f"{tableau.name}: the state grew beyond {problem.y0.dtype}, or a repeated run differs: "
            "the function is not one of its arguments alone"
        )
    bad = good.index(False) - 1
    if bad < 0:
        raise NonFiniteError("y0: the initial state holds NaN or infinity")
    step = next(number for number, count in enumerate(counts) if bad < count)
    raise NonFiniteError(
        f"{tableau.name}: func returned NaN or infinity in step {step} of {len(counts)}, "
        f"t = {float(times[bad]):g}"
    )


class FixedStepper:
    """One solution, advanced in steps of one length; parameters as the adaptive stepper's."""

    def __init__(
        self, problem: Problem, tableau: Tableau, step_size: float, t0: float, end: float
    ) -> None:
        if not step_size > 0.0:
            raise ValueError(f"step_size: need a positive step, got {step_size!r}")
        self.problem, self.tableau, self.h = problem, tableau, step_size
        self.t, self.y, self.start, self.end = t0, problem.y0, t0, end
        self.accepted = self.rejected = 0
        self._first: Tensor | None = None
        self._on_step = problem.callback("callback_step")

    def step(self, limit: float | None = None) -> AcceptedStep:
        """Advance by one step, shortened where it would pass ``limit`` (by default the end)."""
        limit = step_limit(limit, self.t, self.start, self.end)
        left = limit - self.t
        h = math.copysign(self.h, left)
        stop = limit if abs(left) <= self.h * (1 + 1e-6) else self.t + h
        if self._on_step is not None:
            self._on_step(self.t, self.y, stop - self.t)
        c = self.tableau.c
        times = time_tensors(
            [stop if ci == 1.0 else self.t + ci * (stop - self.t) for ci in c],
            self.y,
            self.problem.time_dtype,
        )
        after, stages = rk_step(
            self.problem, self.tableau, self.y, times, stop - self.t, self._first
        )
        done = AcceptedStep(self.problem, self.tableau, self.t, stop, self.y, after, stages, times)
        fsal = self.tableau.fsal
        self._first = stages[self.tableau.closing] if fsal else None
        self.t, self.y = stop, after
        self.accepted += 1
        return done

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, as numbers and tensors."""
        return {
            "t": self.t,
            "y": self.y,
            "first": self._first,
            "h": self.h,
            "accepted": self.accepted,
            "nfe": self.problem.nfe,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.t, self.y, self._first, self.h = (state[k] for k in ("t", "y", "first", "h"))
        self.accepted, self.problem.nfe = state["accepted"], state["nfe"]
