"""Linear combinations of registers, as a solver's equation writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from threading import Lock

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


@cache
def _older(register: int) -> int:
    kind, index, age = _REGISTERS[register]
    return code(kind, index, age + 1)


class Linear:
    """A linear combination of registers, given by their codes, as a solver's equation writes it.

    Supports ``+``, ``-``, multiplication and division by floats. Model outputs also carry
    ``input``: the register at which the model was evaluated.

    Parameters
    ----------
    terms
        Weight of each register, by code.
    input
        Code and weight of the register at which a model output was evaluated.
    factor
        Of all weights.
    """

    __slots__ = ("_factor", "_input", "_terms")

    def __init__(
        self,
        terms: dict[int, float],
        input: tuple[int, float] | None = None,
        factor: float = 1.0,
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
    def of(terms: Mapping[Register, float]) -> Linear:
        """The combination with these weights, a mapping of :class:`Register` to float."""
        return Linear({code(*register): weight for register, weight in terms.items()})

    @property
    def terms(self) -> dict[Register, float]:
        """Weight of each register."""
        return {_REGISTERS[register]: weight for register, weight in self._weights().items()}

    def _weights(self) -> dict[int, float]:
        if self._factor != 1.0:
            factor = self._factor
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

    def __mul__(self, factor: float) -> Linear:
        if isinstance(factor, Linear):
            raise TypeError("a solver step is linear: the product of two registers is not allowed")
        return Linear(self._terms, None, self._factor * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Linear:
        return Linear(self._terms, None, self._factor / float(divisor))

    def __sub__(self, other: Linear) -> Linear:
        return self + other * -1.0

    def __neg__(self) -> Linear:
        return self * -1.0

    @staticmethod
    def sum(weights: Sequence[float], combinations: Sequence[Linear]) -> Linear:
        """The sum of weight times combination, faster than term by term.

        Parameters
        ----------
        weights, combinations
            As many of each.

        Returns
        -------
        Linear
            The sum.

        Raises
        ------
        ValueError
            If there are not as many.
        """
        terms: dict[int, float] = {}
        for weight, combination in zip(weights, combinations, strict=True):
            if weight:
                weight *= combination._factor
                for register, w in combination._terms.items():
                    if register in terms:
                        terms[register] += weight * w
                    else:
                        terms[register] = weight * w
        return Linear(terms)

    def combination(self, scale: float = 1.0) -> Combination:
        """The terms times ``scale`` as a tuple: zero weights are left out, 1 +- 1e-15 is 1.

        Parameters
        ----------
        scale
            Of all weights.

        Returns
        -------
        Combination
            (register, weight) pairs.
        """
        names, factor, pairs = _REGISTERS, self._factor * scale, []
        for register, weight in self._terms.items():
            weight *= factor
            if weight:
                pairs.append((names[register], 1.0 if _BELOW_1 <= weight < _ABOVE_1 else weight))
        return tuple(pairs)

    def aged(self) -> Linear:
        """The same :class:`Linear`, seen from one step later."""
        older = _older
        terms = {older(register): weight for register, weight in self._terms.items()}
        seen = self._input and (older(self._input[0]), self._input[1])
        return Linear(terms, seen, self._factor)
