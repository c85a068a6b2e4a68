"""probflow's stochastic solvers as methods of torchsde, and calls passed on to it.

torchsde lists its methods in ``settings.METHODS`` and finds their classes through
``_core.methods.select``. The classes made here call the same native integration as ``pf.sdeint``;
torchsde's time s is minus the process time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torchsde
from torch import Tensor

from probflow.adapters import spellings
from probflow.integrate.grid import refine, run_grid, with_options
from probflow.problems import ReverseSDE
from probflow.sde.plans import check_sde, check_unsupported, path_noise, process_times
from probflow.solvers import Solver, all_solvers

__all__ = ["own_methods", "passed_on", "register", "unregister"]

SUPPORTED = "0.2.6"


def _moved(what: object) -> RuntimeError:
    return RuntimeError(
        f"torchsde {torchsde.__version__} has no {what} where probflow looks for it; "
        f"pf.register() supports torchsde {SUPPORTED}, and pf.sdeint needs no registering"
    )


try:
    from torchsde._core import methods
    from torchsde._core.base_sde import ForwardSDE, RenameMethodsSDE, SDELogqp
    from torchsde._core.base_solver import BaseSDESolver
    from torchsde.settings import LEVY_AREA_APPROXIMATIONS, METHODS, NOISE_TYPES, SDE_TYPES
except ImportError as error:
    raise _moved(error) from error


class ProbflowSDESolver(BaseSDESolver):
    """A probflow solver behind torchsde's solver interface; one subclass per solver."""

    solver: Solver
    # Of the strong order against the exact path nothing is declared; torchsde prints it only.
    strong_order, weak_order = 0.5, 1.0
    sde_type = SDE_TYPES.ito
    noise_types = NOISE_TYPES.all()
    levy_area_approximations = LEVY_AREA_APPROXIMATIONS.all()

    def __init__(self, sde: Any, bm: Any, dt: Any, adaptive: bool, **arguments: Any) -> None:
        self.reverse_sde = _unwrap(sde, self.solver)
        self.solver = with_options(self.solver, arguments.get("options") or {}, ())
        super().__init__(sde=sde, bm=bm, dt=dt, adaptive=adaptive, **arguments)

    def integrate(self, y0: Tensor, ts: Tensor, extra0: Any) -> tuple[Tensor, Any]:
        """States at the times ``ts``, shape (len(ts), *y0.shape); lands on every one of them."""
        if self.adaptive:
            return super().integrate(y0, ts, extra0)
        times = process_times(ts)
        return self._run(y0, refine(times, self.dt, "dt"), times), ()

    def step(self, t0: Any, t1: Any, y0: Tensor, extra0: Any) -> tuple[Tensor, Any]:
        """One step from ``t0`` to ``t1`` in torchsde's time (adaptive stepping calls it)."""
        if self.solver.memory:
            raise ValueError(
                f"adaptive: {self.solver.name} uses the {self.solver.memory} step(s) before, which "
                "adaptive stepping does not keep; use adaptive=False"
            )
        if self.solver.whole_grid:
            raise ValueError(
                f"adaptive: a step of {self.solver.name} depends on the grid as a whole, which "
                "adaptive stepping does not know; use adaptive=False"
            )
        times = [-float(t0), -float(t1)]
        return self._run(y0, times, times)[-1], ()

    def _run(self, y0: Tensor, grid: list[float], outputs: list[float]) -> Tensor:
        sde, noise = self.reverse_sde, path_noise(self.bm, y0, grid)
        return run_grid(self.solver, sde.process, sde.model, y0, grid, outputs, noise)


def _unwrap(sde: Any, solver: Solver) -> ReverseSDE:
    """The user's SDE under torchsde's wrappers."""
    while isinstance(sde, (ForwardSDE, RenameMethodsSDE, SDELogqp)):
        check_unsupported(
            solver, names=isinstance(sde, RenameMethodsSDE), logqp=isinstance(sde, SDELogqp)
        )
        sde = sde._base_sde
    check_sde(sde, solver)
    return sde


_ENTRIES: dict[str, type[ProbflowSDESolver]] = {}
_theirs: list[Callable[..., Any]] = []  # torchsde's select, while ours is in its place


def _select(method: str, sde_type: str) -> Any:
    """``torchsde._core.methods.select`` with probflow's names in front."""
    return _ENTRIES[method] if method in _ENTRIES else _theirs[-1](method, sde_type)


def own_methods() -> tuple[str, ...]:
    """Names of torchsde's own methods."""
    return tuple(name for name in METHODS.all() if name not in _ENTRIES)


def passed_on(sde: Any, y0: Tensor, ts: Any, **arguments: Any) -> Any:
    """Call ``torchsde.sdeint``."""
    return torchsde.sdeint(sde, y0, ts, **arguments)


def register() -> None:
    """Enter the stochastic solvers of probflow's registry; see :func:`probflow.register`."""
    if not hasattr(methods, "select"):
        raise _moved("_core.methods.select")
    unregister()
    taken = METHODS.all()
    for solver in all_solvers():
        if not solver.stochastic:
            continue
        entry = type("ProbflowSDESolver", (ProbflowSDESolver,), {"solver": solver})
        for name in spellings(solver):
            if name not in taken:
                setattr(METHODS, name, name)
                _ENTRIES[name] = entry
    _theirs.append(methods.select)
    methods.select = _select


def unregister() -> None:
    """Remove what :func:`register` entered."""
    for name in _ENTRIES:
        delattr(METHODS, name)
    _ENTRIES.clear()
    if _theirs:
        methods.select = _theirs.pop()
