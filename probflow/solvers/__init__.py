"""Solvers, one file per family, and their registry."""

from probflow.solvers import (
    ancestral,
    chain,
    churn,
    exponential,
    multistep,
    reverse_sde,
    runge_kutta,
    singlestep,
    stochastic_adams,
)
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
    "ancestral",
    "chain",
    "churn",
    "exponential",
    "get_solver",
    "multistep",
    "register",
    "reverse_sde",
    "runge_kutta",
    "singlestep",
    "solver_names",
    "stochastic_adams",
    "unregister",
]
