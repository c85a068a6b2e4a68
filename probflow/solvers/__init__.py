"""Solvers, one file per family, and their registry."""

from probflow.solvers import chain, exponential, multistep, provable, runge_kutta, singlestep
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
    "multistep",
    "provable",
    "register",
    "runge_kutta",
    "singlestep",
    "solver_names",
    "unregister",
]
