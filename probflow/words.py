"""Options looked at: what to say of words and numbers that are none of the allowed ones."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np

__all__ = [
    "UnfitError",
    "check_choice",
    "check_flags",
    "check_hook",
    "check_real",
    "check_whole",
    "dictionary",
    "is_real",
    "near",
    "no_option",
    "several",
]


class UnfitError(TypeError, ValueError):
    """A value of a kind that cannot be used, where torchsde raises ``ValueError``.

    It is one, too, so that programs that catch what torchsde raises go on.
    """


def near(word: object, allowed: Iterable[str], count: int = 3) -> str:
    """``"; near names: ..."``, at most ``count`` of the allowed ones; empty if none is near."""
    spelled = {_plain(name): name for name in allowed}
    found = difflib.get_close_matches(_plain(word), spelled, n=count, cutoff=0.5)
    return f"; near names: {', '.join(spelled[name] for name in found)}" if found else ""


def _plain(word: object) -> str:
    return str(word).strip().lower().replace("_", "-")


def dictionary(options: Any, argument: str = "options") -> dict[str, Any]:
    """A copy of the options, empty for ``None``; ``TypeError`` unless they are a mapping."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{argument}: need a dictionary, got {options!r}")
    return dict(options or {})


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the allowed ones; it says which are near."""
    allowed = tuple(allowed)
    if value not in allowed:
        names = [one for one in allowed if isinstance(one, str)]
        hint = near(value, names) if isinstance(value, str) else ""
        every = ", ".join(map(str, allowed))
        raise ValueError(f"{name}: got {value!r}{hint}{';' if hint else ','} allowed are {every}")


def check_flags(settings: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise ``TypeError`` for one of the names that stands for neither a truth value nor None."""
    for name, value in settings.items():
        if name in names and not isinstance(value, (bool, np.bool_, type(None))):
            raise TypeError(f"{name}: need True or False, got {value!r}")


def check_hook(name: str, value: Any, kind: str = "a function") -> None:
    """Raise ``TypeError`` unless ``value`` is None or can be called; ``kind`` says what is due."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: need {kind}, got {value!r}")


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number from ``least`` to ``most``.

    Raises
    ------
    TypeError
        If it is no integer (True and False are none).
    ValueError
        If it lies outside.
    """
    whole = type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
    if whole and least <= int(value) <= (math.inf if most is None else most):
        return int(value)
    allowed = f">= {least}" if most is None else f"from {least} to {most}"
    if whole:
        raise ValueError(f"{name}: need a whole number {allowed}, got {value}")
    raise TypeError(f"{name}: need a whole number {allowed}, got {value!r}")


def is_real(value: Any) -> bool:
    """Whether it is a real number, or an array or tensor of one without dimensions; no bool is."""
    if getattr(value, "ndim", None) == 0:
        try:
            value = value.item()
        except RuntimeError:  # a tensor without a number: on the device "meta", under vmap
            return False
    return isinstance(value, Real) and not isinstance(value, bool)


def check_real(
    name: str, value: Any, interval: str = "(-inf, inf)", *, kind: str = "a number"
) -> float:
    """Return ``value`` as a float if it is a real number of an interval.

    Parameters
    ----------
    name
        The argument.
    value
        What was given: as :func:`is_real` says.
    interval
        Such as ``"[0, 1)"``; a square bracket stands where the end itself is allowed.
    kind
        What is allowed, in words, where that is more than a number.

    Returns
    -------
    float
        The number.

    Raises
    ------
    TypeError
        If it is no real number.
    ValueError
        If it lies outside, as NaN does.
    """
    if not is_real(value):
        raise TypeError(f"{name}: need {kind}, got {value!r}")
    number = float(value)
    low, high, allowed = _interval(interval)
    inside = low < number < high
    if inside or (number == low and "[" in interval) or (number == high and "]" in interval):
        return number
    raise ValueError(f"{name}: need {allowed}, got {number}")


@functools.cache
def _interval(text: str) -> tuple[float, float, str]:
    """Ends of an interval, and its numbers in words."""
    low, high = (float(end) for end in text[1:-1].split(","))
    size = "finite number" if text.endswith("inf)") else "number"
    if high < math.inf:
        return low, high, f"a number in {text}"
    if low == -math.inf:
        return low, high, f"a {size}"
    return low, high, f"a {size} {'>=' if '[' in text else '>'} {low:g}"


def several(name: str, value: Any, one: Any = ()) -> list[Any]:
    """An argument as a list; what is of the type ``one`` stands for itself alone.

    Raises
    ------
    TypeError
        If it is neither that nor a collection.
    """
    if isinstance(value, one):
        return [value]
    if not isinstance(value, Iterable):
        kinds = [kind.__name__ for kind in get_args(one) or ([one] if one else [])]
        alone = f"a {' or '.join(kinds)}, or " if kinds else ""
        raise TypeError(f"{name}: need {alone}several in a list, got {value!r}")
    return list(value)


def no_option(owner: str, name: object, allowed: Iterable[str], argument: str = "options") -> str:
    """What to say of an option that ``owner`` does not have."""
    allowed = tuple(allowed)
    every = ", ".join(allowed) or "none"
    return f"{argument}: {owner} has no option {name!r}{near(name, allowed)}; allowed: {every}"
