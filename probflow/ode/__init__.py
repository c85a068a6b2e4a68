"""Ordinary differential equations: torchdiffeq's calls and more."""

from probflow.ode.odeint import odeint

__all__ = ["odeint"]
