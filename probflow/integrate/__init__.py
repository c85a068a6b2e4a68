"""Running plans on tensors: the loop, noise, sampling."""

from probflow.integrate.brownian import (
    BaseBrownian,
    BrownianInterval,
    BrownianNoiseSampler,
    BrownianPath,
    BrownianTree,
    ReverseBrownian,
    brownian_interval_like,
)
from probflow.integrate.loop import NonFiniteError, run_plan
from probflow.integrate.noise import SeededNoise
from probflow.integrate.sample import sample

__all__ = [
    "BaseBrownian",
    "BrownianInterval",
    "BrownianNoiseSampler",
    "BrownianPath",
    "BrownianTree",
    "NonFiniteError",
    "ReverseBrownian",
    "SeededNoise",
    "brownian_interval_like",
    "run_plan",
    "sample",
]
