"""Numbers of many steps at once, and functions of them.

A solver function is written for one step. Its numbers may as well be columns, with an entry for
each of many steps: arithmetic takes them as it takes floats, and so do the functions of this
module, which on floats are those of :mod:`math`. Where Python asks for one value, as in
``if s.sigma == 0``, and the steps differ in it, they are split into those that have the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "Column",
    "Number",
    "Split",
    "atan2",
    "column",
    "cos",
    "exp",
    "expm1",
    "hypot",
    "isfinite",
    "log",
    "log1p",
    "one_by_one_unless",
    "sin",
    "some",
    "sqrt",
    "tan",
]

Number = Any  # float, or Column


class Split(Exception):
    """One value is asked for, and the steps have several: ``values``, one of each step."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__("the steps differ")
        self.values = values


class Column(np.ndarray):
    """Numbers of many steps, one each, shape (steps,).

    A value, as a float is: ``a += b`` makes another one.
    """

    __iadd__ = np.ndarray.__add__  # type: ignore[assignment]
    __isub__ = np.ndarray.__sub__  # type: ignore[assignment]
    __imul__ = np.ndarray.__mul__  # type: ignore[assignment]
    __itruediv__ = np.ndarray.__truediv__  # type: ignore[assignment]
    __ipow__ = np.ndarray.__pow__  # type: ignore[assignment]

    def _one(self) -> Any:
        values = self.view(np.ndarray).reshape(-1)  # also of a minimum or sum
        if (values == values[0]).all():
            return values[0].item()
        raise Split(values)

    def __bool__(self) -> bool:
        return bool((self != 0)._one())

    def __float__(self) -> float:
        return float(self._one())

    def __int__(self) -> int:
        return int(self._one())

    def __index__(self) -> int:
        return self._one().__index__()

    def __ceil__(self) -> int:
        return int(np.ceil(self))


def column(values: Any) -> Column:
    """The values as a column."""
    return np.asarray(values).view(Column)


def one_by_one_unless(good: Any) -> None:
    """Have the steps looked at one by one, unless it is true of all."""
    if some(~good):
        raise Split(np.arange(len(good)))


def some(truth: Any) -> bool:
    """Whether it is true of a step at least."""
    return bool(truth.view(np.ndarray).any()) if isinstance(truth, Column) else truth


def _of(of_floats: Callable[..., Any], of_columns: Callable[..., Any]) -> Callable[..., Any]:
    def function(*numbers: Number) -> Number:
        for number in numbers:
            if isinstance(number, Column):
                return of_columns(*numbers)
        return of_floats(*numbers)

    function.__name__ = of_floats.__name__
    function.__doc__ = f"``math.{of_floats.__name__}``, of floats or columns."
    return function


atan2 = _of(math.atan2, np.arctan2)
cos = _of(math.cos, np.cos)
exp = _of(math.exp, np.exp)
expm1 = _of(math.expm1, np.expm1)
hypot = _of(math.hypot, np.hypot)
isfinite = _of(math.isfinite, np.isfinite)
log = _of(math.log, np.log)
log1p = _of(math.log1p, np.log1p)
sin = _of(math.sin, np.sin)
sqrt = _of(math.sqrt, np.sqrt)
tan = _of(math.tan, np.tan)
