"""A plan inside a function that is compiled as one graph (``torch.compile(fullgraph=True)``).

The plan is made while the graph is traced, and is a constant of it: its weights are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.evaluations import checked, rounded, with_kwargs
from probflow.integrate.kernels import combined
from probflow.models import Model
from probflow.plan import Combination, Plan
from probflow.processes import Process
from probflow.solvers import Solver

__all__ = ["states_in_graph"]

Sum = tuple[tuple[str, int, float], ...]  # (register, age, weight)
Steps = tuple[tuple[tuple[Sum, ...], Sum], ...]  # inputs of the model, update


def states_in_graph(
    solver: Solver,
    process: Process | None,
    model: Any,
    x: Tensor,
    grid: Sequence[float],
    make: Callable[..., Plan],
) -> list[Tensor]:
    """States at all times of the grid, in the dtype of ``x``.

    Parameters
    ----------
    solver, process, grid
        A deterministic solver, and what its plan is made of.
    model, x
        As those of :func:`~probflow.integrate.loop.run_plan`.
    make
        Makes the plan, of (solver, process, grid, prediction).

    Raises
    ------
    ValueError
        For solvers that need more of the model than its outputs.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    own = model if isinstance(model, Model) else None
    times, memory, steps = _constants(solver, process, own, grid, make, wide)
    times, name = times.to(x.device), "func" if own is None else "model"
    rows = (times if own is None else times[:, None].expand(-1, len(x))).unbind(0)
    evaluate = checked(model if own is None else with_kwargs(own, None), None, name)
    if wide != x.dtype:
        evaluate = rounded(evaluate, x.dtype, wide, name)
    call, state, states = 0, x.to(wide), [x]
    past: list[dict[str, Tensor]] = []
    for points, update in steps:
        now = {"x": state}
        for number, point in enumerate(points):
            now[f"u{number}"] = _sum(point, now, past)
            now[f"f{number}"] = evaluate(now[f"u{number}"], rows[call])
            call += 1
        state = _sum(update, now, past)
        past = [now, *past][:memory]
        states.append(state.to(x.dtype))
    return states


def _sum(combination: Sum, now: dict[str, Tensor], past: list[dict[str, Tensor]]) -> Tensor:
    return combined([((past[age - 1] if age else now)[name], w) for name, age, w in combination])


def _constants(
    solver: Solver,
    process: Process | None,
    model: Model | None,
    grid: Sequence[float],
    make: Callable[..., Plan],
    dtype: torch.dtype,
) -> tuple[Tensor, int, Steps]:
    """Times of all evaluations as the model takes them, the plan's memory, and its steps."""

    def named(combination: Combination) -> Sum:
        return tuple((str(r._replace(age=0)), r.age, float(weight)) for r, weight in combination)

    plan = make(solver, process, grid, None if model is None else model.prediction)
    if any(stage.tangent for step in plan.steps for stage in step.stages):
        raise ValueError(f"method: {plan.solver} takes derivatives, and makes no compiled graph")
    every = [stage.time for step in plan.steps for stage in step.stages]
    if model is None:
        times = torch.tensor(every, dtype=dtype.to_real(), device="cpu")
    else:
        times = model.own_times(every, dtype)
    steps = tuple(
        (tuple(named(stage.input) for stage in step.stages), named(step.update))
        for step in plan.steps
    )
    return times, plan.memory, steps


# What torch.compiler.assume_constant_result does, without the compiler, which is slow to load.
setattr(_constants, "_dynamo_marked_constant", True)  # noqa: B010
