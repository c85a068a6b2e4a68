"""probflow: diffusion sampling as ODE/SDE integration, with measured orders of convergence."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probflow import grids, kdiffusion
from probflow._version import __version__
from probflow.adapters import register, unregister
from probflow.citations import cite
from probflow.encoding import decode, encode
from probflow.integrate import (
    BaseBrownian,
    BrownianInterval,
    BrownianNoiseSampler,
    BrownianPath,
    BrownianTree,
    NonFiniteError,
    ReverseBrownian,
    brownian_interval_like,
    sample,
)
from probflow.likelihood import LogLikelihood, log_likelihood
from probflow.models import Model
from probflow.ode import (
    MaxStepsError,
    ODEResult,
    StepSizeError,
    ode_stepper,
    odeint,
    odeint_adjoint,
    odeint_dense,
    odeint_event,
    solve_ode,
)
from probflow.problems import ProbabilityFlowODE, ReverseSDE
from probflow.processes import EDM, VE, VP, FlowMatching
from probflow.rejection import RejectionResult, rejection_sample
from probflow.sde import BaseSDE, SDEIto, SDEStratonovich, sdeint, sdeint_adjoint, settings
from probflow.solvers import Solver, all_solvers, get_solver, solver_names
from probflow.solvers.registry import register as register_solver
from probflow.solvers.registry import unregister as unregister_solver
from probflow.studies import study
from probflow.targets import Empirical, Gaussian, GaussianMixture

if TYPE_CHECKING:
    from probflow import diffusers as diffusers

__all__ = [
    "EDM",
    "VE",
    "VP",
    "BaseBrownian",
    "BaseSDE",
    "BrownianInterval",
    "BrownianNoiseSampler",
    "BrownianPath",
    "BrownianTree",
    "Empirical",
    "FlowMatching",
    "Gaussian",
    "GaussianMixture",
    "LogLikelihood",
    "MaxStepsError",
    "Model",
    "NonFiniteError",
    "ODEResult",
    "ProbabilityFlowODE",
    "RejectionResult",
    "ReverseBrownian",
    "ReverseSDE",
    "SDEIto",
    "SDEStratonovich",
    "Solver",
    "StepSizeError",
    "__version__",
    "all_solvers",
    "brownian_interval_like",
    "cite",
    "decode",
    "encode",
    "get_solver",
    "grids",
    "kdiffusion",
    "log_likelihood",
    "ode_stepper",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "register",
    "register_solver",
    "rejection_sample",
    "sample",
    "sdeint",
    "sdeint_adjoint",
    "settings",
    "solve_ode",
    "solver_names",
    "study",
    "unregister",
    "unregister_solver",
]


def __getattr__(name: str) -> Any:
    if name == "diffusers":  # needs a package that need not be there
        return import_module("probflow.diffusers")
    raise AttributeError(f"module 'probflow' has no attribute {name!r}")
