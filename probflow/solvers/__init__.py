"""Solvers, one file per family, and their registry."""

from probflow.solvers import chain, exponential, runge_kutta
from probflow.solvers.registry import (
    Solver,
    all_solvers,
    get_solver,
    register,
    solver_names,
    unregister,
)

__all__ = [
    "Solver",
    "all_solvers",
    "chain",
    "exponential",
    "get_solver",
    "register",
    "runge_kutta",
    "solver_names",
    "unregister",
]
