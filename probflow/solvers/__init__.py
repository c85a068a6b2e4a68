"""Solvers, one file per family, and their registry."""

from probflow.solvers import chain, exponential, runge_kutta
from probflow.solvers.registry import (
    Solver,
    get_solver,
    register,
    solver_names,
    solvers,
    unregister,
)

__all__ = [
    "Solver",
    "chain",
    "exponential",
    "get_solver",
    "register",
    "runge_kutta",
    "solver_names",
    "solvers",
    "unregister",
]
