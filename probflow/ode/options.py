"""The general methods by name, and the options each of them has."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from probflow.integrate.grid import is_registered, unknown_method
from probflow.solvers import Solver, find_pair, get_solver
from probflow.tableaus import TABLEAUS
from probflow.words import check_flags, dictionary, no_option

__all__ = [
    "ADAMS",
    "GRADIENTS",
    "MAX_ORDER",
    "allowed_options",
    "backward_options",
    "checked_options",
    "held_by",
    "is_adaptive",
    "native_methods",
    "resolve",
    "stepper_options",
]

ADAMS = "explicit_adams"
MAX_ORDER = 7  # of it: order 8 grows exponentially on a rotation already at h |f'| = 0.05

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

# probflow's solvers in process time that are Runge-Kutta methods for any function.
_GENERAL = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}
_REGISTERED = {general: name for name, general in _GENERAL.items()}
_NATIVE = (*TABLEAUS, ADAMS)


def native_methods() -> tuple[str, ...]:
    """Names of the general methods for ``func(t, y)``."""
    return _NATIVE


def resolve(method: Any) -> tuple[str | None, Solver | None]:
    """Name of the native method, and the registered solver, that ``method`` means, if any."""
    if method is None:
        return "dopri5", None
    key = method.strip().lower().replace("-", "_") if isinstance(method, str) else None
    if key in _NATIVE:
        registered = _REGISTERED.get(key)
        return key, get_solver(registered) if registered else None
    pair = find_pair(method)
    if pair is not None:
        raise ValueError(
            f"method: {pair.name} is one of pf.odeint, pf.solve_ode and pf.sample only"
        )
    if isinstance(method, str) and not is_registered(method):
        from probflow.adapters import torchdiffeq as peer

        if method in peer.own_methods():
            return None, None
        every = (*native_methods(), *(set(peer.own_methods()) - set(native_methods())))
        raise unknown_method(method, every, "torchdiffeq")
    if not (isinstance(method, (str, Solver)) or callable(method)):
        raise TypeError(
            "method: need a name, a Solver or a registered step function, got "
            f"{method!r}; names: {', '.join(native_methods())} and pf.solver_names()"
        )
    solver = get_solver(method)
    if solver.stochastic:
        raise ValueError(
            f"method: {solver.name} is stochastic; integrate the reverse SDE with it: "
            f"pf.sdeint(pf.ReverseSDE(process, model), y0, ts, method={solver.name!r})"
        )
    general = _GENERAL.get(solver.name)
    if general is not None and solver.function is get_solver(solver.name).function:
        return general, solver
    return None, solver


def is_adaptive(method: str) -> bool:
    """Whether a native method chooses its steps."""
    return method != ADAMS and TABLEAUS[method].adaptive


def held_by(method: str) -> int:
    """How many outputs of the function a native method holds at once."""
    return MAX_ORDER + TABLEAUS["dopri8"].stages if method == ADAMS else len(TABLEAUS[method].dense)


def allowed_options(method: str) -> tuple[str, ...]:
    """Options of a native method in a whole solve."""
    if method == ADAMS:
        return ("max_order", "step_size", *_GRID, *_OUTPUT, *_CALL)
    if is_adaptive(method):
        return (*_ADAPTIVE, "per_sample", *_OUTPUT, *_CALL)
    return ("step_size", *_GRID, *_OUTPUT, *_CALL)


def stepper_options(method: str) -> tuple[str, ...]:
    """Options of a native method that is advanced step by step."""
    if method == ADAMS:
        return ("step_size", "perturb", "max_order", *_CALL)
    return (*(_ADAPTIVE if is_adaptive(method) else ("step_size", "perturb")), *_CALL)


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
    check_flags(settings, _FLAGS)
    norm = settings.get("norm")
    if norm is not None and not callable(norm) and argument == "options":
        raise TypeError(f"norm: need a function of the error, got {norm!r}")
    return {name: value for name, value in settings.items() if value is not None}
