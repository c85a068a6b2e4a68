"""The general methods by name, and the options each of them has."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import Any

from probflow.tableaus import TABLEAUS

__all__ = ["ADAMS", "GRADIENTS", "checked_options", "native_methods"]

ADAMS = "explicit_adams"

_CALL = ("args", "kwargs", "return_info", "strict", "gradients", "progress", "check_finite")
_FIXED = ("step_size", "grid_constructor", "interp", "perturb", "norm")
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
    "per_sample",
)
GRADIENTS = ("direct", "checkpoint", "reversible")


def native_methods() -> tuple[str, ...]:
    """Names of the general methods for ``func(t, y)``."""
    return (*TABLEAUS, ADAMS)


def allowed_options(method: str) -> tuple[str, ...]:
    """Options of a native method."""
    if method == ADAMS:
        return ("max_order", *_FIXED, *_CALL)
    return (*(_ADAPTIVE if TABLEAUS[method].adaptive else _FIXED), *_CALL)


def checked_options(method: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options as a dictionary, without those that are ``None``.

    Raises
    ------
    TypeError, ValueError
        For options that the method does not have; with ``strict=False`` a warning instead.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options: need a dictionary, got {type(options).__name__}")
    settings = dict(options or {})
    allowed = allowed_options(method)
    for name in sorted(set(settings) - set(allowed)):
        near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.6)
        hint = f"; near: {', '.join(near)}" if near else ""
        text = f"options: {method} has no option {name!r}{hint}; allowed: {', '.join(allowed)}"
        if settings.get("strict", True):
            raise ValueError(text)
        warnings.warn(text, stacklevel=4)
        del settings[name]
    return {name: value for name, value in settings.items() if value is not None}
