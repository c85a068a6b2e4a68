"""Steps, stages and plans: floats and tuples, checked when a plan is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from typing import NamedTuple


class Register(NamedTuple):
    """Name of a tensor that a combination refers to; see the module's table."""

    kind: str  # "x", "u", "f", "j" or "z"
    index: int = 0  # type: ignore[assignment]
    age: int = 0  # how many steps ago

    def __str__(self) -> str:
        number = "" if self.kind == "x" else str(self.index)
        return f"{self.kind}{number}" + (f"[-{self.age}]" if self.age else "")


X = Register("x")
Combination = tuple[tuple[Register, float], ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One model evaluation.

    Attributes
    ----------
    input : Combination
        The state at which the model is called.
    time : float
        Process time.
    tangent : Combination
        If there is one, the Jacobian-vector product along it is taken in the same call.
    """

    input: Combination
    time: float
    tangent: Combination = ()

    @property
    def alias(self) -> Register | None:
        """The register that the input *is* (weight 1, nothing else), or ``None``."""
        if len(self.input) == 1 and self.input[0][1] == 1.0:
            return self.input[0][0]
        return None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan.

    Attributes
    ----------
    start, stop : float
        Process times of its ends.
    stages : tuple of Stage
        Its model evaluations, in order.
    noises : tuple
        ``noises[j]`` is the sub-interval (two process times) whose unit normal register z_j is.
    update : Combination
        The new state.
    """

    start: float
    stop: float
    stages: tuple[Stage, ...]
    noises: tuple[tuple[float, float], ...]
    update: Combination

    @property
    def nfe(self) -> int:
        """Number of model evaluations; see :attr:`Plan.nfe`."""
        return sum(2 if stage.tangent else 1 for stage in self.stages)

    def combinations(self) -> tuple[Combination, ...]:
        """All combinations: stage inputs in order, each before its tangent, then the update.

        Returns
        -------
        tuple of Combination
            One or more.
        """
        return tuple(combination for _, combination in self._numbered())

    def _numbered(self) -> list[tuple[int, Combination]]:
        """Combinations, each with the number of stages before it."""
        found = []
        for number, stage in enumerate(self.stages):
            found.append((number, stage.input))
            if stage.tangent:
                found.append((number, stage.tangent))
        return [*found, (len(self.stages), self.update)]


@dataclass(frozen=True)
class Plan:
    """The steps of a solver on a grid, for a model of the given prediction type.

    Attributes
    ----------
    solver : str
        Its name.
    prediction : str
        Prediction type of the model.
    steps : tuple of Step
        From the first time to the last.

    Raises
    ------
    ValueError
        If a combination refers to a register that does not exist at that point, a weight is not
        finite, noises overlap, or the steps do not join.
    """

    solver: str
    prediction: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("plan: need at least 1 step")
        # A step of the layout of the one before, after the same shapes, has the same registers.
        layout, shape, shapes = None, _shape(self.steps[0]), tuple[_Shape, ...]()
        for number, step in enumerate(self.steps):
            before, old = layout, shapes
            layout, weights = _layout(step)
            if layout != before:
                shape, deep = _shape(step), any(r.age > _LOOK_BACK for r in layout[2])
            shapes = (shape, *shapes[:_LOOK_BACK])
            known = layout == before and shapes == old and not deep and math.isfinite(sum(weights))
            wrong = self._misplaced(number, step)
            if not known:
                wrong = wrong or self._mistake(number, step, _available(shapes))
            if wrong:
                raise ValueError(
                    f"plan of {self.solver}, step {number} (t = {step.start:g} -> "
                    f"{step.stop:g}): {wrong}"
                )

    def _misplaced(self, number: int, step: Step) -> str:
        """What is wrong with the times of a step; empty if nothing is."""
        if number and step.start != self.steps[number - 1].stop:
            return "does not start where the step before it stops"
        if not step.noises or step.noises == ((step.start, step.stop),):
            return ""
        intervals = sorted(tuple(sorted(interval)) for interval in step.noises)
        for first, second in pairwise(intervals):
            if second[0] < first[1]:
                return f"noises {first} and {second} overlap"
        low, high = sorted((step.start, step.stop))
        for begin, end in intervals:
            if not low <= begin < end <= high:
                return f"the noise of ({begin:g}, {end:g}) is not of the step"
        return ""

    def _mistake(self, number: int, step: Step, available: list[frozenset[Register]]) -> str:
        """What is wrong with the combinations of a step; empty if nothing is."""
        for stage_number, combination in step._numbered():
            if not combination:
                return "an empty combination"
            registers, weights = zip(*combination)  # noqa: B905
            if available[stage_number].issuperset(registers) and math.isfinite(sum(weights)):
                continue  # the common case, without a look at each of them
            for register, weight in combination:
                if not math.isfinite(weight):
                    return (
                        f"the weight of {register} is {weight}; the process has no finite "
                        "log-SNR there (alpha = 0 or sigma = 0): start or end the grid elsewhere"
                    )
                if register != X and not self._exists(register, number, stage_number):
                    return f"register {register} does not exist there"
        return ""

    def _exists(self, register: Register, number: int, stage_number: int) -> bool:
        kind, index, age = register
        if not 0 <= age <= number:
            return False
        step = self.steps[number - age]
        if kind == "x":
            return index == 0
        if kind == "z":
            return 0 <= index < len(step.noises)
        available = stage_number if age == 0 else len(step.stages)
        if not 0 <= index < available:
            return False
        return kind in ("u", "f") or (kind == "j" and bool(step.stages[index].tangent))

    @property
    def times(self) -> tuple[float, ...]:
        """The grid: n + 1 process times."""
        return (self.steps[0].start, *(step.stop for step in self.steps))

    @property
    def nfe(self) -> int:
        """Number of model evaluations of the whole plan.

        A Jacobian-vector product by forward-mode differentiation carries a second number along
        with each one, so an evaluation with a tangent counts as two.
        """
        return sum(step.nfe for step in self.steps)

    @property
    def rounds(self) -> int:
        """Length of the longest chain of evaluations that wait for one another.

        Equal to ``nfe`` unless a step has evaluations that could run at the same time.
        """
        depths: dict[tuple[str, int, int], int] = {("x", 0, 0): 0}
        for number, step in enumerate(self.steps):

            def depth(combination: Combination, now: int = number) -> int:
                names = [(r.kind, r.index, now - r.age) for r, _ in combination if r.kind != "z"]
                return max((depths[name] for name in names), default=0)

            for index, stage in enumerate(step.stages):
                before = depth(stage.input)
                depths["u", index, number], depths["f", index, number] = before, before + 1
                if stage.tangent:
                    depths["j", index, number] = max(before, depth(stage.tangent)) + 1
            depths["x", 0, number + 1] = depth(step.update)
        return max(depths.values())

    @cached_property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return any(step.noises for step in self.steps)

    @property
    def memory(self) -> int:
        """How many earlier steps a step may refer to (0 for one-step methods)."""
        ages = [r.age for step in self.steps for c in step.combinations() for r, _ in c]
        return max(ages, default=0)


_LOOK_BACK = 4  # steps whose registers are looked up in a table

_Shape = tuple[
    int, tuple[bool, ...]
]  # number of noises, and for each stage whether it has a tangent


_Layout = tuple[int, tuple[int, ...], tuple[Register, ...]]


def _layout(step: Step) -> tuple[_Layout, tuple[float, ...]]:
    """Number of noises, sizes of all combinations, and their registers; and their weights."""
    combinations = [step.update]
    for stage in step.stages:
        combinations += stage.input, stage.tangent
    sizes = tuple(map(len, combinations))
    pairs = chain.from_iterable(combinations)
    registers, weights = zip(*pairs) if any(sizes) else ((), ())  # noqa: B905
    return (len(step.noises), sizes, registers), weights


def _shape(step: Step) -> _Shape:
    return len(step.noises), tuple([stage.tangent != () for stage in step.stages])


@lru_cache(maxsize=4096)
def _available(shapes: tuple[_Shape, ...]) -> list[frozenset[Register]]:
    """Registers before each stage and before the update, of a step and of a few before it."""
    found = set()
    for age, (noises, tangents) in enumerate(shapes):
        found |= {Register("x", 0, age), *(Register("z", j, age) for j in range(noises))}
        if age:
            for i, tangent in enumerate(tangents):
                found |= _of_stage(i, age, tangent)
    before = [frozenset(found)]
    for i, tangent in enumerate(shapes[0][1]):
        before.append(before[-1] | _of_stage(i, 0, tangent))
    return before


def _of_stage(i: int, age: int, tangent: bool) -> set[Register]:
    return {Register(kind, i, age) for kind in ("ufj" if tangent else "uf")}
