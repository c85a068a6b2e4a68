"""Ordinary differential equations: torchdiffeq's calls and more."""

from probflow.ode.adjoint import odeint_adjoint
from probflow.ode.odeint import odeint, odeint_dense, odeint_event, solve_ode
from probflow.ode.result import MaxStepsError, ODEResult, Status, StepSizeError
from probflow.ode.steppers import ode_stepper

__all__ = [
    "MaxStepsError",
    "ODEResult",
    "Status",
    "StepSizeError",
    "ode_stepper",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "solve_ode",
]
