"""Other libraries: probflow's solvers as methods of torchdiffeq and torchsde.

Only these modules know the other libraries' insides; they are imported where they are used. (For a
method that torchdiffeq alone has, ``odeint_adjoint`` calls it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probflow.solvers import Solver, get_solver
from probflow.words import dictionary

__all__ = ["register", "solver_with_plan", "spellings", "unregister"]


def register() -> None:
    """Make probflow's solvers methods of torchdiffeq and torchsde themselves.

    Afterwards ``torchdiffeq.odeint`` and ``odeint_adjoint`` know the deterministic solvers and
    ``torchsde.sdeint`` the stochastic ones, by name and alias, with hyphens or underscores. Names
    that those libraries have already keep their meaning. Calling it again adds the solvers that
    were registered since.

    Raises
    ------
    RuntimeError
        If the library's version keeps its solvers where probflow does not find them.

    Examples
    --------
    >>> import torch, torchdiffeq, probflow as pf
    >>> pf.register()
    >>> process = pf.VP.linear()
    >>> ode = pf.ProbabilityFlowODE(process, pf.Gaussian([0.0], [[1.0]]))
    >>> t = torch.linspace(1.0, 0.01, 11)
    >>> torchdiffeq.odeint(ode, torch.ones(4, 1), t, method="accelerated-ode").shape
    torch.Size([11, 4, 1])
    >>> pf.unregister()
    """
    from probflow.adapters import torchdiffeq, torchsde

    torchdiffeq.register()
    torchsde.register()


def unregister() -> None:
    """Take back :func:`register`: both libraries are as before."""
    from probflow.adapters import torchdiffeq, torchsde

    torchdiffeq.unregister()
    torchsde.unregister()


def spellings(solver: Solver) -> list[str]:
    """Name and aliases of a solver, with hyphens and with underscores."""
    names = (solver.name, *solver.aliases)
    return [*names, *(name.replace("-", "_") for name in names if "-" in name)]


def solver_with_plan(
    solver: Any, options: Mapping[str, Any] | None = None, argument: str = "options"
) -> Solver:
    """A solver of the registry for a front end that has its own grid.

    Raises
    ------
    TypeError
        If the options, which the front end calls ``argument``, are not a mapping.
    ValueError
        For an unknown name or option, or a method that chooses its steps while it runs.
    """
    from probflow.ode.options import TABLEAUS

    spelled = str(solver).strip().lower().replace("-", "_")
    if spelled == "fors" or spelled.startswith("rejection"):
        raise ValueError(
            f"solver: {solver!r} calls the network until it accepts, and has no grid; take "
            "pf.rejection_sample with a model of your network"
        )
    method = TABLEAUS.get(spelled)
    if method is not None and method.adaptive:
        raise ValueError(
            f"solver: {solver!r} chooses its steps while it runs and has no grid; take a solver of "
            "pf.solver_names(), or pf.odeint with a model of your network"
        )
    return get_solver(solver, **dictionary(options, argument))
