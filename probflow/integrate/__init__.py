"""Running plans on tensors: the loop, noise, sampling."""

from probflow.integrate.loop import NonFiniteError, run_plan
from probflow.integrate.noise import BrownianPath, SeededNoise
from probflow.integrate.sample import sample

__all__ = [
    "BrownianPath",
    "NonFiniteError",
    "SeededNoise",
    "run_plan",
    "sample",
]
