"""probflow's own deterministic solvers on a grid of times: the plan route of ``odeint``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probflow.integrate.grid import host_times, run_grid
from probflow.integrate.loop import NonFiniteError, all_finite
from probflow.integrate.transforms import transformed
from probflow.models import Model
from probflow.ode.fixed import refined
from probflow.ode.options import checked_options, native_methods
from probflow.ode.problem import BAD_START, Layout
from probflow.ode.result import ODEResult, Status
from probflow.problems import ProbabilityFlowODE, ReverseSDE
from probflow.solvers import Solver, all_solvers, get_solver

__all__ = ["adjoint_rule", "check_function", "integrate"]

_GRID = ("step_size", "grid_constructor")
_OPTIONS = (*_GRID, "check_finite", "return_info", "progress", "strict")


def check_function(func: Any, solver: Solver | None = None) -> None:
    """Raise ``TypeError`` if ``func`` cannot be integrated (by ``solver``), saying what can."""
    if isinstance(func, ReverseSDE):
        raise TypeError(
            "func: a ReverseSDE is integrated by pf.sdeint; for an ODE solver give "
            "pf.ProbabilityFlowODE(sde.process, sde.model)"
        )
    if isinstance(func, Model):
        raise TypeError(
            "func: a Model is a denoiser, called as model(x, t), and not the right-hand side of "
            "an ODE; give pf.ProbabilityFlowODE(model.process, model)"
        )
    if not callable(func):
        raise TypeError(
            f"func: need func(t, y) or a pf.ProbabilityFlowODE, got {type(func).__name__}"
        )
    if solver is not None and solver.needs == "process" and not _structured(func):
        own = [s.name for s in all_solvers() if s.needs == "ode"]
        general = ", ".join(dict.fromkeys((*own, *native_methods())))
        raise TypeError(
            f"func: {solver.name} uses the noise levels of a diffusion, so it needs a "
            "pf.ProbabilityFlowODE, not a plain function. Make one from your network f(x, t): "
            "process = pf.VP.linear(); ode = pf.ProbabilityFlowODE(process, pf.Model(f, process, "
            "prediction='eps')); a network that returns dx/dt has prediction='velocity'. "
            f"Methods for plain functions func(t, y): {general}"
        )


def _structured(func: Any) -> bool:
    return isinstance(func, ProbabilityFlowODE)


def adjoint_rule(solver: Solver) -> Solver:
    """The solver of the augmented adjoint system where ``adjoint_method`` is left out.

    torchdiffeq then reuses ``method``. The augmented system (state, its adjoint, parameter
    gradients) is a plain ODE without noise levels, so a solver that needs a process stands for the
    general method of its order on the same grid: ``euler`` for 1, ``heun`` for 2, ``rk4`` above.
    """
    if solver.needs == "ode":
        return solver
    order = solver.orders.get("strong", solver.orders.get("tv", 1))
    return get_solver("euler" if order <= 1 else "heun" if order <= 2 else "rk4")


def integrate(
    solver: Solver, func: Any, y0: Any, t: Any, options: Mapping[str, Any] | None = None
) -> Any:
    """Integrate with one of probflow's deterministic solvers; arguments as :func:`odeint`.

    With ``return_info`` a pair with the result object, whose ``nfe`` is the plan's.
    """
    settings = checked_options(solver.name, options, (*_OPTIONS, *solver.options))
    own = {name: value for name, value in (options or {}).items() if name in solver.options}
    solver = solver.with_options(**own) if own else solver
    check_function(func, solver)
    info, progress = settings.get("return_info", False), settings.get("progress", False)
    if torch.compiler.is_compiling():
        if isinstance(t, Tensor):
            raise ValueError("t: a compiled graph cannot read a tensor; give the times as numbers")
        if info or progress:
            raise ValueError("return_info, progress: not available in a compiled graph")
    outputs = host_times(t, "t")
    layout: Layout | None = None
    if isinstance(y0, tuple):
        layout = _layout(func, y0)
        func, y0 = _flat(func, layout), layout.join(y0)
    if not isinstance(y0, Tensor):
        raise TypeError(f"y0: need a tensor or a tuple of tensors, got {type(y0).__name__}")
    grid, _ = refined(func, y0, t, outputs, settings, through=True)
    process, prediction = None, None
    if _structured(func):
        process, model, prediction = func.process, func.model, func.model.prediction
    else:

        def model(x: Tensor, time: Tensor) -> Tensor:
            return func(time, x)

    check = settings.get("check_finite", True)
    if len(grid) == 1 and check and not transformed() and not all_finite(y0.detach()):
        raise NonFiniteError(BAD_START)
    known = (info or progress) and len(grid) > 1
    nfe = solver.plan(process, grid, prediction).nfe if known else 0
    if progress:
        with tqdm(total=nfe, desc=solver.name, unit="nfe") as bar:
            states = run_grid(
                solver, process, _shown(model, bar), y0, grid, outputs, check_finite=check
            )
    else:
        states = run_grid(solver, process, model, y0, grid, outputs, check_finite=check)
    y = states if layout is None else layout.split(states, before=1)
    if not info:
        return y
    return y, ODEResult(
        t=t, y=y, nfe=nfe, accepted=len(grid) - 1, rejected=0, status=Status.SUCCESS,
        message=Status.SUCCESS.message, steps=tuple(grid),
    )  # fmt: skip


def _shown(model: Any, bar: Any) -> Any:
    """The model, or function f(x, t), with a bar that is told of each call."""
    function: Any = model.function if isinstance(model, Model) else model

    def call(x: Tensor, time: Tensor, **kwargs: Any) -> Any:
        bar.update(1)
        return function(x, time, **kwargs)

    if not isinstance(model, Model):
        return call
    return Model(call, model.process, model.prediction, time=model.time, kwargs=model.kwargs)


def _layout(func: Any, y0: tuple) -> Layout:
    """How a tuple of tensors lies in one flat vector, as in torchdiffeq."""
    if _structured(func):
        raise TypeError("y0: the state of a ProbabilityFlowODE is one tensor, got a tuple")
    if not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise TypeError("y0: need a tensor or a tuple of tensors")
    return Layout(y0)


def _flat(func: Any, layout: Layout) -> Any:
    return lambda time, flat: layout.join(func(time, layout.split(flat)))
