"""Solutions that are advanced a step at a time, saved and restored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from probflow.integrate.grid import check_positive
from probflow.ode.adams import AdamsStepper, adams_order
from probflow.ode.adaptive import AdaptiveStepper
from probflow.ode.control import control
from probflow.ode.fixed import FixedStepper
from probflow.ode.options import (
    ADAMS,
    checked_options,
    held_by,
    is_adaptive,
    native_methods,
    resolve,
    stepper_options,
)
from probflow.ode.plans import check_function
from probflow.ode.problem import Problem
from probflow.tableaus import TABLEAUS

__all__ = ["as_float", "fixed_stepper", "ode_stepper"]


def ode_stepper(
    func: Any,
    y0: Any,
    t0: float,
    t1: float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str = "dopri5",
    options: Mapping[str, Any] | None = None,
) -> AdaptiveStepper | FixedStepper:
    """A solution that is advanced step by step, saved and restored.

    Parameters
    ----------
    func, y0, rtol, atol, method, options
        As :func:`~probflow.odeint`, without the options of a whole solve; a fixed-step method has
        ``step_size``, and needs it, ``perturb``, and ``explicit_adams`` also ``max_order``.
    t0, t1
        Start, and the time beyond which no step goes (may be infinite).

    Returns
    -------
    AdaptiveStepper or FixedStepper
        With ``t``, ``state`` (in the form of ``y0``; ``y`` is the solver's own tensor),
        ``accepted``, ``rejected``, ``nfe``, ``step(limit=None)``, ``state_dict()`` and
        ``load_state_dict(state)``. NaN or infinity is an error: in fixed steps, where nothing waits
        for the device, when the end is reached or the state is saved.

    Examples
    --------
    >>> import torch, probflow as pf
    >>> stepper = pf.ode_stepper(lambda t, y: -y, torch.ones(1), 0.0, 1.0)
    >>> while stepper.t < 0.5:
    ...     done = stepper.step(limit=0.5)
    >>> saved = stepper.state_dict()
    >>> saved["t"]
    0.5
    >>> round(float(stepper.state), 4)
    0.6065
    """
    check_function(func)
    name, _ = resolve(method)
    if name is None:
        raise ValueError(
            f"method: no stepper for {method!r}; allowed: {', '.join(native_methods())}"
        )
    settings = checked_options(name, options, stepper_options(name))
    start, end = as_float(t0, "t0"), as_float(t1, "t1")
    if not math.isfinite(start) or math.isnan(end) or start == end:
        raise ValueError(f"t0, t1: need a finite start and another end, got {t0} and {t1}")
    call = settings.get("args", ()), settings.get("kwargs")
    problem = Problem(func, y0, *call, held=held_by(name))
    if is_adaptive(name):
        limits = control(settings, rtol, atol, problem)
        return AdaptiveStepper(problem, TABLEAUS[name], limits, start, end)
    return fixed_stepper(problem, name, settings, start, end)


def fixed_stepper(
    problem: Problem, method: str, settings: Mapping[str, Any], t0: float, end: float
) -> FixedStepper:
    """The stepper of a method with fixed steps, of the option ``step_size``."""
    if "step_size" not in settings:
        raise ValueError(f"step_size: {method} needs it in options")
    step = check_positive(settings["step_size"], "step_size")
    perturb = bool(settings.get("perturb", False))
    if method == ADAMS:
        return AdamsStepper(problem, adams_order(settings), step, t0, end, perturb)
    return FixedStepper(problem, TABLEAUS[method], step, t0, end, perturb)


def as_float(value: Any, name: str) -> float:
    """A time as a float; ``TypeError`` for anything but a number or a 0-d tensor."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: need a number or a 0-d tensor, got {value!r}") from None
