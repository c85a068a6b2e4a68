"""probflow's own deterministic solvers on a grid of times: the plan route of ``odeint``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.grid import host_times, run_grid, with_options
from probflow.models import Model
from probflow.ode.fixed import refined
from probflow.ode.options import native_methods
from probflow.ode.problem import Layout
from probflow.problems import ProbabilityFlowODE, ReverseSDE
from probflow.solvers import Solver, all_solvers, get_solver
from probflow.words import dictionary

__all__ = ["adjoint_rule", "check_function", "integrate"]

_GRID = ("step_size", "grid_constructor")
_OPTIONS = (*_GRID, "check_finite")


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
    """Integrate with one of probflow's deterministic solvers; arguments as :func:`odeint`."""
    settings = dictionary(options)
    check = settings.pop("check_finite", True)
    own = {name: settings.pop(name) for name in _GRID if name in settings}
    solver = with_options(solver, settings, _OPTIONS)
    check_function(func, solver)
    if torch.compiler.is_compiling() and isinstance(t, Tensor):
        raise ValueError("t: a compiled graph cannot read a tensor; give the times as numbers")
    outputs = host_times(t, "t")
    if isinstance(y0, tuple):
        return _integrate_tuple(solver, func, y0, t, options)
    if not isinstance(y0, Tensor):
        raise TypeError(f"y0: need a tensor or a tuple of tensors, got {type(y0).__name__}")
    grid, _ = refined(func, y0, t, outputs, own, through=True)
    if _structured(func):
        return run_grid(solver, func.process, func.model, y0, grid, outputs, check_finite=check)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        return func(time, x)

    return run_grid(solver, None, velocity, y0, grid, outputs, check_finite=check)


def _integrate_tuple(solver: Solver, func: Any, y0: tuple, t: Any, options: Any) -> tuple:
    """Integrate a tuple of tensors as one flat vector, as torchdiffeq does."""
    if _structured(func):
        raise TypeError("y0: the state of a ProbabilityFlowODE is one tensor, got a tuple")
    if not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise TypeError("y0: need a tensor or a tuple of tensors")
    layout = Layout(y0)

    def flat_func(time: Tensor, flat: Tensor) -> Tensor:
        return layout.join(func(time, layout.split(flat)))

    return layout.split(integrate(solver, flat_func, layout.join(y0), t, options), before=1)
