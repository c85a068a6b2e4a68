"""Solvers, one file per family, and their registry."""

from probflow.solvers import (
    adams,
    ancestral,
    chain,
    churn,
    exponential,
    multistep,
    provable,
    reverse_sde,
    rotation,
    runge_kutta,
    singlestep,
    stochastic_adams,
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
    "adams",
    "all_solvers",
    "ancestral",
    "chain",
    "churn",
    "exponential",
    "find_pair",
    "get_solver",
    "multistep",
    "provable",
    "register",
    "reverse_sde",
    "rotation",
    "runge_kutta",
    "singlestep",
    "solver_names",
    "stochastic_adams",
    "unipc",
    "unregister",
]
