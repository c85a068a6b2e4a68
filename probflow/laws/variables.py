r"""A stochastic plan as a chain of random variables, each given those before it.

A plan speaks about registers and noises. What its law needs is the Markov structure: the
*variables* are the states and the model inputs in order of evaluation, and each is

.. math:: v_i = \sum_{j<i} (a_{ij} v_j + b_{ij} f(v_j)) + s_i e_i

with a unit normal :math:`e_i` that is independent of everything before. A noise that enters several
variables is eliminated in favour of the first one: once that is known, so is the noise, up to what
is orthogonal to it (Gram-Schmidt on the weights of the noises). Noise that a stage shares with the
update, multistep memory and noise in a corrector need no cases of their own.

Variables with :math:`s_i = 0` are functions of others. The others are coordinates of a joint
density, and :func:`schedule` finds which of them must be kept when, if two at a time suffice;
:func:`holdings` does it for any number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from probflow.laws.registers import Refusal
from probflow.plan import Combination, Plan, Register, X

__all__ = [
    "Commit",
    "Holding",
    "Symbol",
    "Terms",
    "TooManyVariables",
    "Variable",
    "holdings",
    "schedule",
    "unroll",
]

ROUND_OFF = 1e-13  # of a sum of weights, relative to the terms that cancel


class TooManyVariables(Refusal):
    """More random variables at once than a joint density is carried for."""


class Symbol(NamedTuple):
    """A variable, or the model's output there at a process time."""

    variable: int
    time: float | None = None


@dataclass(frozen=True)
class Variable:
    """A variable: its process time, the terms of its mean and its standard deviation given them."""

    time: float
    terms: tuple[tuple[Symbol, float], ...]
    std: float


class _Weights:
    """A linear combination in which what cancels to round-off is zero."""

    def __init__(self, weights: dict[Any, float] | None = None) -> None:
        self.weights = dict(weights or {})
        self._sizes = {key: abs(weight) for key, weight in self.weights.items()}

    def add(self, other: _Weights, factor: float) -> None:
        for key, weight in other.weights.items():
            total = self.weights.get(key, 0.0) + factor * weight
            size = self._sizes.get(key, 0.0) + abs(factor * weight)
            self._sizes[key] = size
            self.weights[key] = total if abs(total) > ROUND_OFF * size else 0.0

    def nonzero(self) -> dict[Any, float]:
        return {key: weight for key, weight in self.weights.items() if weight != 0.0}


class _Form:
    """A register as a combination of symbols and of noises that are not known yet."""

    def __init__(self, known: dict[Symbol, float], free: dict[tuple[int, int], float]) -> None:
        self.known, self.free = _Weights(known), _Weights(free)

    def add(self, other: _Form, factor: float) -> None:
        self.known.add(other.known, factor)
        self.free.add(other.free, factor)


def unroll(plan: Plan) -> list[Variable]:
    """The variables of a plan: first the start, last the final state."""
    variables = [Variable(plan.times[0], (), 0.0)]
    forms: dict[Register, _Form] = {X: _Form({Symbol(0): 1.0}, {})}

    def named(combination: Combination, time: float) -> int:
        """The variable that a combination is; a new one if need be."""
        form = _Form({}, {})
        for register, weight in combination:
            form.add(forms[register], weight)
        known, free = form.known.nonzero(), form.free.nonzero()
        if not free and len(known) == 1:
            [(symbol, weight)] = known.items()
            if symbol.time is None and abs(weight - 1.0) < ROUND_OFF:
                return symbol.variable
        square = sum(weight**2 for weight in free.values())
        new = len(variables)
        variables.append(Variable(time, tuple(known.items()), square**0.5))
        if free:  # given the new variable, the noise along ``free`` is (new - known)/square
            residual = _Form({Symbol(new): 1.0, **{s: -w for s, w in known.items()}}, {})
            residual.free.add(_Weights(free), -1.0)
            for other in forms.values():
                along = sum(w * other.free.weights.get(key, 0.0) for key, w in free.items())
                if along != 0.0:
                    other.add(residual, along / square)
        return new

    last, memory = 0, plan.memory
    for number, step in enumerate(plan.steps):
        for index in range(len(step.noises)):
            forms[Register("z", index)] = _Form({}, {(number, index): 1.0})
        for index, stage in enumerate(step.stages):
            if stage.tangent:
                raise Refusal(
                    f"{plan.solver}: a Jacobian-vector product makes the noise depend on the "
                    "state; its law is known for steps that are one kernel of one variable"
                )
            variable = named(stage.input, stage.time)
            forms[Register("u", index)] = _Form({Symbol(variable): 1.0}, {})
            forms[Register("f", index)] = _Form({Symbol(variable, stage.time): 1.0}, {})
        last = named(step.update, step.stop)
        forms = {r._replace(age=r.age + 1): f for r, f in forms.items() if r.age < memory}
        forms[X] = _Form({Symbol(last): 1.0}, {})
    if last != len(variables) - 1:  # a last step that changes nothing
        variables.append(Variable(plan.times[-1], ((Symbol(last), 1.0),), 0.0))
    return variables


@dataclass(frozen=True)
class Commit:
    """One step of a joint density: a new coordinate in, old ones out.

    Attributes
    ----------
    normal
        The variable that is normal given the coordinates so far (or the start).
    coordinate
        What becomes a coordinate: ``normal`` itself, or a function of it and ``row``.
    row, column
        The coordinates so far (``None`` where there are fewer).
    keep_row
        Whether ``row`` stays a coordinate; ``column`` never does.
    mixed
        Whether ``coordinate`` depends on ``row``, too.
    """

    normal: int
    coordinate: int
    row: int | None
    column: int | None
    keep_row: bool
    mixed: bool


def roots(variables: list[Variable], variable: int, coordinates: Iterable[int]) -> frozenset[int]:
    """The coordinates (or variables with noise of their own) that a variable is a function of."""
    stop = frozenset(coordinates)

    def walk(index: int) -> frozenset[int]:
        if index not in found:
            v = variables[index]
            found[index] = frozenset({index})
            if index not in stop and v.std == 0.0 and v.terms:
                found[index] = frozenset().union(*(walk(s.variable) for s, _ in v.terms))
        return found[index]

    found: dict[int, frozenset[int]] = {}
    return walk(variable)


def _uses(variables: list[Variable], solver: str) -> tuple[list[int], list[int]]:
    """The last variable that refers to each one, and those with noise that matter (and the start).

    -1 where nothing that matters refers to it.
    """
    end = len(variables) - 1
    last_use = [-1] * end + [end + 1]
    for index in range(end, -1, -1):
        if last_use[index] >= 0:
            for symbol, _ in variables[index].terms:
                last_use[symbol.variable] = max(last_use[symbol.variable], index)
    normals = [i for i, v in enumerate(variables) if last_use[i] >= 0 and (v.std > 0 or not i)]
    if normals[0] != 0:
        raise Refusal(f"{solver}: the final state does not depend on the start")
    return last_use, normals


def schedule(variables: list[Variable], solver: str) -> list[Commit]:
    """The coordinates of a joint density over the variables, at most two at a time.

    Raises
    ------
    TooManyVariables
        If more than two are needed.
    """
    end = len(variables) - 1
    last_use, normals = _uses(variables, solver)
    commits: list[Commit] = []
    held: list[int] = []  # coordinates so far
    for normal, upcoming in pairwise([*normals, end + 1]):
        # What is there before the next noise and is used from then on.
        needed = [i for i in range(upcoming) if last_use[i] >= upcoming]
        sources = {i: roots(variables, i, [*held, normal]) for i in needed}
        functions = [i for i in needed if normal in sources[i] and i != normal]
        coordinate, inputs = normal, frozenset[int]()
        if normal not in needed and len(functions) == 1:
            [function] = functions
            if upcoming > end or sources[function] != {normal}:
                # The noise matters through this function only: that is the coordinate.
                coordinate, inputs = function, sources[function] - {normal}
                sources = {i: roots(variables, i, [*held, normal, coordinate]) for i in needed}
        kept = frozenset[int]().union(*sources.values()) - {coordinate}
        if not kept <= set(held) or len(kept | inputs) > 1:
            raise TooManyVariables(
                f"{solver}: the law of what follows t = {variables[normal].time:g} depends on "
                f"{len(kept | inputs) + 1} random variables at once; quadrature carries two"
            )
        row = next(iter(kept | inputs), held[0] if held else None)
        column = next((i for i in held if i != row), None)
        commits.append(Commit(normal, coordinate, row, column, bool(kept), bool(inputs)))
        held = [coordinate, *kept]
    return commits


# Any number of variables -------------------------------------------------------------------------

Terms = tuple[tuple[Symbol, float], ...]


@dataclass(frozen=True)
class Holding:
    """One step of a joint law: a new variable in, old ones out.

    Attributes
    ----------
    normal
        The variable that is normal given those held so far (or the start).
    keep
        The others that are held from then on, each with its terms in what was held before, and
        those in ``normal``.
    """

    normal: int
    keep: dict[int, tuple[Terms, Terms]]


def holdings(variables: list[Variable], solver: str) -> list[Holding]:
    """Which variables are held after each noise: with them, all that follows is known.

    Raises
    ------
    Refusal
        If the last variable does not depend on the start.
    """
    end = len(variables) - 1
    last_use, normals = _uses(variables, solver)
    found: list[Holding] = []
    held: set[int] = set()
    for normal, upcoming in pairwise([*normals, end + 1]):
        # What is there before the next noise and is used from then on.
        needed = {i for i in range(upcoming) if last_use[i] >= upcoming}
        keep: dict[int, tuple[Terms, Terms]] = {}
        while needed:
            index = max(needed)
            needed.remove(index)
            if index == normal or roots(variables, index, {normal, *needed, *keep}) <= {
                normal,
                *needed,
                *keep,
            }:
                continue
            parts = _parts(variables, index, normal, held)
            if parts is None:  # the model's output at a mixture of old and new: hold what it is of
                needed |= {symbol.variable for symbol, _ in variables[index].terms} - set(keep)
            else:
                keep[index] = parts
        found.append(Holding(normal, keep))
        held = {normal, *keep}
    return found


def _parts(
    variables: list[Variable], variable: int, normal: int, held: set[int]
) -> tuple[Terms, Terms] | None:
    """A variable as terms in what is held plus terms in ``normal``; ``None`` if it is no sum."""
    old: list[tuple[Symbol, float]] = []
    new: list[tuple[Symbol, float]] = []

    def add(symbol: Symbol, weight: float) -> bool:
        of = roots(variables, symbol.variable, {normal, *held})
        if normal not in of:
            old.append((symbol, weight))
        elif of == {normal}:
            new.append((symbol, weight))
        elif symbol.time is not None:
            return False
        else:
            terms = variables[symbol.variable].terms
            return all(add(inner, weight * factor) for inner, factor in terms)
        return True

    return (tuple(old), tuple(new)) if add(Symbol(variable), 1.0) else None
