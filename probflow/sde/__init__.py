"""Stochastic differential equations: torchsde's calls and more."""

from probflow.sde import settings
from probflow.sde.base import BaseSDE, SDEIto, SDEStratonovich
from probflow.sde.sdeint import sdeint
from probflow.sde.sdeint_adjoint import sdeint_adjoint

__all__ = ["BaseSDE", "SDEIto", "SDEStratonovich", "sdeint", "sdeint_adjoint", "settings"]
