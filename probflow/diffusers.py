"""probflow inside diffusers; see :mod:`probflow.adapters.diffusers`. Needs diffusers.

>>> from probflow.diffusers import ProbflowScheduler                        # doctest: +SKIP
>>> pipe.scheduler = ProbflowScheduler.from_config(pipe.scheduler.config)   # doctest: +SKIP
"""

from probflow.adapters.diffusers import (
    ProbflowScheduler,
    ProbflowSchedulerOutput,
    SchedulerMixin,  # where a saved pipeline is loaded, its base class is looked for in this module
)
from probflow.adapters.pipelines import from_pipeline, from_unet

__all__ = [
    "ProbflowScheduler",
    "ProbflowSchedulerOutput",
    "SchedulerMixin",
    "from_pipeline",
    "from_unet",
]
