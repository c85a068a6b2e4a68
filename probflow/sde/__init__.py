"""Stochastic differential equations: torchsde's calls and more."""

from probflow.sde.sdeint import sdeint

__all__ = ["sdeint"]
