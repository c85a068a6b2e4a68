r"""A sampler as data: the scalars of every step, known before the first model call.

A :class:`Plan` is a tuple of :class:`Step`; a step is a few :class:`Stage` (model evaluations,
each at a linear combination of registers) and an update (another combination). Registers are

======  ===========================================================================
``x``   the state at the start of the step
``u``   the input of stage i, where it is not ``x`` itself
``f``   the raw model output of stage i
``j``   the derivative of that output along the stage's tangent, if it has one
``z``   noise j: a unit normal that belongs to a sub-interval of the step
======  ===========================================================================

and the same of earlier steps (``age`` 1 is the previous step), which is how multistep methods
remember. Plans hold floats only: no tensors, no torch. They are made by tracing a solver, a
function written like its equation, with :class:`StepBuilder`; what interprets them is in
``integrate`` (tensors), ``laws`` (exact laws) and ``describe`` (tableaus).
"""

from probflow.plan.builder import StepBuilder
from probflow.plan.linear import Linear
from probflow.plan.points import (
    COORDINATES,
    PREDICTIONS,
    Point,
    conversion,
    prediction_weights,
)
from probflow.plan.steps import Combination, Plan, Register, Stage, Step, X
from probflow.plan.tracing import trace

__all__ = [
    "COORDINATES",
    "PREDICTIONS",
    "Combination",
    "Linear",
    "Plan",
    "Point",
    "Register",
    "Stage",
    "Step",
    "StepBuilder",
    "X",
    "conversion",
    "prediction_weights",
    "trace",
]
