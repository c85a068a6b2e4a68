"""Solvers, one file per family, and their registry."""

from probflow.solvers import (
    chain,
    exponential,
    multistep,
    provable,
    rotation,
    runge_kutta,
    singlestep,
    unipc,
)
from probflow.solvers.registry import (
    Solver,
    all_solvers,
    find_pair,
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
    "find_pair",
    "get_solver",
    "multistep",
    "provable",
    "register",
    "rotation",
    "runge_kutta",
    "singlestep",
    "solver_names",
    "unipc",
    "unregister",
]
