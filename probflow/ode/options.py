"""The general methods by name, and the options each of them has."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probflow.tableaus import TABLEAUS
from probflow.words import dictionary, no_option

__all__ = [
    "ADAMS",
    "GRADIENTS",
    "allowed_options",
    "backward_options",
    "checked_options",
    "native_methods",
    "stepper_options",
]

ADAMS = "explicit_adams"

_CALL = ("args", "kwargs", "strict")
_OUTPUT = ("return_info", "gradients", "progress")  # of a whole solve
_GRID = ("grid_constructor", "interp", "perturb", "norm", "check_finite")
_ADAPTIVE = (
    "first_step",
    "min_step",
    "max_step",
    "safety",
    "ifactor",
    "dfactor",
    "max_num_steps",
    "step_t",
    "jump_t",
    "norm",
    "dtype",
    "controller",
)
_FLAGS = ("return_info", "strict", "progress", "check_finite", "perturb", "per_sample")
GRADIENTS = ("direct", "checkpoint", "reversible")


def native_methods() -> tuple[str, ...]:
    """Names of the general methods for ``func(t, y)``."""
    return (*TABLEAUS, ADAMS)


def allowed_options(method: str) -> tuple[str, ...]:
    """Options of a native method in a whole solve."""
    if method == ADAMS:
        return ("max_order", "step_size", *_GRID, *_OUTPUT, *_CALL)
    if TABLEAUS[method].adaptive:
        return (*_ADAPTIVE, "per_sample", *_OUTPUT, *_CALL)
    return ("step_size", *_GRID, *_OUTPUT, *_CALL)


def stepper_options(method: str) -> tuple[str, ...]:
    """Options of a native method that is advanced step by step."""
    return (*(_ADAPTIVE if TABLEAUS[method].adaptive else ("step_size",)), *_CALL)


def backward_options(method: str) -> tuple[str, ...]:
    """Options of a native method that solves an adjoint equation backwards."""
    other = ("per_sample", "gradients", "return_info", "args", "kwargs")
    return tuple(name for name in allowed_options(method) if name not in other)


def checked_options(
    method: str,
    options: Mapping[str, Any] | None,
    allowed: Sequence[str],
    argument: str = "options",
) -> dict[str, Any]:
    """The options as a dictionary, without those that are ``None``.

    Raises
    ------
    TypeError, ValueError
        For options that are not allowed (with ``strict=False`` a warning instead), and for flags
        that are neither true nor false.
    """
    settings = dictionary(options, argument)
    for name in [name for name in settings if name not in allowed]:
        text = no_option(method, name, allowed, argument)
        if name == "check_finite" and "controller" in allowed:
            if settings.pop(name) is not False:
                continue  # an adaptive method looks at every step
            text = (
                f"{argument}: check_finite=False does nothing for {method}, whose step lengths "
                "come from the error of each step, so that NaN or infinity stops it; leave it out"
            )
        if settings.get("strict", True):
            raise ValueError(text)
        warnings.warn(text, stacklevel=4)
        settings.pop(name, None)
    for name in _FLAGS:
        if not isinstance(settings.get(name, False), (bool, np.bool_, type(None))):
            raise TypeError(f"{name}: need True or False, got {settings[name]!r}")
    norm = settings.get("norm")
    if norm is not None and not callable(norm) and argument == "options":
        raise TypeError(f"norm: need a function of the error, got {norm!r}")
    return {name: value for name, value in settings.items() if value is not None}
