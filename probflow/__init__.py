"""probflow: diffusion sampling as ODE/SDE integration, with measured orders of convergence."""

from probflow import grids
from probflow._version import __version__
from probflow.adapters import register, unregister
from probflow.integrate import BrownianPath, NonFiniteError, sample
from probflow.models import Model
from probflow.ode import odeint
from probflow.problems import ProbabilityFlowODE, ReverseSDE
from probflow.processes import EDM, VE, VP, FlowMatching
from probflow.sde import sdeint
from probflow.solvers import Solver, all_solvers, get_solver, solver_names
from probflow.solvers.registry import register as register_solver
from probflow.solvers.registry import unregister as unregister_solver
from probflow.studies import study
from probflow.targets import Empirical, Gaussian, GaussianMixture

__all__ = [
    "EDM",
    "VE",
    "VP",
    "BrownianPath",
    "Empirical",
    "FlowMatching",
    "Gaussian",
    "GaussianMixture",
    "Model",
    "NonFiniteError",
    "ProbabilityFlowODE",
    "ReverseSDE",
    "Solver",
    "__version__",
    "all_solvers",
    "get_solver",
    "grids",
    "odeint",
    "register",
    "register_solver",
    "sample",
    "sdeint",
    "solver_names",
    "study",
    "unregister",
    "unregister_solver",
]
