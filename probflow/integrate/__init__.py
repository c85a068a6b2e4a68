"""Running plans on tensors: the loop, noise, sampling."""

from probflow.integrate.loop import NonFiniteError, run_plan
from probflow.integrate.noise import BrownianPath, SeededNoise
from probflow.integrate.odeint import odeint
from probflow.integrate.sample import sample
from probflow.integrate.sdeint import sdeint

__all__ = [
    "BrownianPath",
    "NonFiniteError",
    "SeededNoise",
    "odeint",
    "run_plan",
    "sample",
    "sdeint",
]
