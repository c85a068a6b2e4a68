"""Linear combinations of registers, as a solver's equation writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import repeat
from threading import Lock

import numpy as np

from probflow.plan.columns import Column, Number
from probflow.plan.steps import Combination, Register

_REGISTERS: list[Register] = []  # by code: small integers are found much faster than tuples
_LOCK = Lock()

_BELOW_1, _ABOVE_1 = 1.0 - 1e-15, 1.0 + 1e-15


@cache
def code(kind: str, index: int = 0, age: int = 0) -> int:
    """The code of a register."""
    with _LOCK:
        register = Register(kind, index, age)
        if register not in _REGISTERS:
            _REGISTERS.append(register)
        return _REGISTERS.index(register)


def named(register: int) -> Register:
    """The register of a code."""
    return _REGISTERS[register]


def is_one(weight: Number) -> bool:
    """Whether a weight is 1 up to rounding."""
    return _BELOW_1 <= weight < _ABOVE_1


class Linear:
    """A linear combination of registers, given by their codes, as a solver's equation writes it.

    Supports ``+``, ``-``, multiplication and division by numbers: floats, or columns of many steps.
    Model outputs also carry ``input``: the register at which the model was evaluated.
    """

    __slots__ = ("_factor", "_input", "_terms")
    __array_ufunc__ = None  # a column leaves its product with a combination to the combination

    def __init__(
        self,
        terms: dict[int, Number],
        input: tuple[int, Number] | None = None,
        factor: Number = 1.0,
    ) -> None:
        # The factor is multiplied out when needed: most products are summands of a sum.
        self._terms, self._factor, self._input = terms, factor, input

    @property
    def input(self) -> Linear:
        """Where a model output was evaluated; the combination itself if it is none."""
        if self._input is None:
            return self
        register, scale = self._input
        return Linear({register: 1.0}, None, 1.0 / scale)

    @staticmethod
    def of(terms: Mapping[Register, Number]) -> Linear:
        """The combination with these weights."""
        return Linear({code(*register): weight for register, weight in terms.items()})

    @property
    def terms(self) -> dict[Register, Number]:
        """Weight of each register."""
        return {_REGISTERS[register]: weight for register, weight in self._weights().items()}

    def _weights(self) -> dict[int, Number]:
        factor = self._factor
        if isinstance(factor, Column) or factor != 1.0:
            self._terms = {register: factor * w for register, w in self._terms.items()}
            self._factor = 1.0
        return self._terms

    def __add__(self, other: Linear) -> Linear:
        if not isinstance(other, Linear):
            return NotImplemented
        terms, factor = self._weights().copy(), other._factor
        for register, weight in other._terms.items():
            terms[register] = terms.get(register, 0.0) + factor * weight
        return Linear(terms)

    def __mul__(self, factor: Number) -> Linear:
        if isinstance(factor, Linear):
            raise TypeError("a solver step is linear: the product of two registers is not allowed")
        return Linear(self._terms, None, self._factor * _number(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Number) -> Linear:
        return Linear(self._terms, None, self._factor / _number(divisor))

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1.0

    def __neg__(self) -> Linear:
        return self * -1.0

    @staticmethod
    def sum(weights: Sequence[Number], combinations: Sequence[Linear]) -> Linear:
        """The sum of weight times combination, faster than term by term."""
        terms: dict[int, Number] = {}
        for weight, combination in zip(weights, combinations, strict=True):
            if isinstance(weight, Column) or weight:
                weight = weight * combination._factor
                for register, w in combination._terms.items():
                    if register in terms:
                        terms[register] = terms[register] + weight * w
                    else:
                        terms[register] = weight * w
        return Linear(terms)

    def scaled(self, scale: Number = 1.0) -> dict[int, Number]:
        """Weight of each register times ``scale``; zero weights are left out."""
        factor = self._factor * scale
        return {register: w for register, v in self._terms.items() if (w := v * factor)}

    def combination(self, scale: Number = 1.0) -> Combination:
        """The terms times ``scale`` as a tuple: zero weights are left out, 1 +- 1e-15 is 1."""
        return as_tuple(self.scaled(scale))


def as_tuple(terms: Mapping[int, float]) -> Combination:
    """Terms as a combination of a step: 1 +- 1e-15 is 1."""
    names = _REGISTERS
    return tuple([(names[r], 1.0 if _BELOW_1 <= w < _ABOVE_1 else w) for r, w in terms.items()])


def as_tuples(terms: Mapping[int, Number], steps: int) -> list[Combination]:
    """The same for each of many steps."""
    if not terms:
        return [()] * steps
    columns = []
    for register, weight in terms.items():
        values = np.where((weight >= _BELOW_1) & (weight < _ABOVE_1), 1.0, weight)
        weights = np.broadcast_to(values, steps).tolist()
        columns.append(zip(repeat(_REGISTERS[register]), weights, strict=False))
    return list(zip(*columns, strict=True))


def _number(value: Number) -> Number:
    return value if isinstance(value, Column) else float(value)
