"""Plans made ready to run: the loop over steps of one shape, written out as a Python generator.

A plan's steps have few different shapes (which registers go where). Each shape becomes a small
generator, with the weights as data, so that a run costs what a careful hand-written loop costs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, add, mul

from probflow.plan import Combination, Plan, Register, Step

__all__ = ["Kernel", "Program", "Stretch", "combined", "compiled"]

_LONGEST = 3  # steps of a cycle

States = Generator[Tensor, None, Tensor]
Kernel = Callable[..., States]  # see _kernel

Sum = tuple[tuple[Register, bool], ...]  # (register, weight is 1)
# Stages, (input, tangent) each, by model call; and the update.
Shape = tuple[tuple[tuple[tuple[Sum, Sum], ...], ...], Sum]
# Of a step: its shape, number of noises, and the registers that are wanted of it later.
Kind = tuple[Shape, int, frozenset[Register]]


def _shape(step: Step, sizes: Sequence[int]) -> Shape:
    def of(combination: Combination) -> Sum:
        return tuple((register, weight == 1.0) for register, weight in combination)

    stages = iter([(of(stage.input), of(stage.tangent)) for stage in step.stages])
    return tuple(tuple(next(stages) for _ in range(size)) for size in sizes), of(step.update)


def _rounds(step: Step) -> tuple[int, ...]:
    """Numbers of successive evaluations of a step that do not wait for one another."""
    sizes: list[int] = []
    first, alone = 0, True
    for number, stage in enumerate(step.stages):
        waits = any(
            register.age == 0 and register.kind in ("f", "j") and register.index >= first
            for register, _ in stage.input
        )
        if alone or waits or stage.tangent:
            sizes.append(1)
            first, alone = number, bool(stage.tangent)
        else:
            sizes[-1] += 1
    return tuple(sizes)


@lru_cache(maxsize=256)
def _kernel(kinds: tuple[Kind, ...], past: tuple[tuple[Register, int], ...]) -> Kernel:
    """Write out the loop over steps that repeat a cycle of kinds as a generator and compile it.

    The generator is ``steps(x, model, rows, noise, past, each)``; it yields the state after each
    step if ``each`` is true, and returns the last. A row is (*weights that are not 1, *noise
    intervals, *times of the calls) of a cycle; stages that share a call stand one after the other
    in its batch. ``past`` names the registers that steps of the plan refer to later, and for how
    many steps. Their tensors come from the kernel before, and go to the next, in the generator's
    argument ``past``: ages 1, 2, .. of the first, then of the next register.
    """
    row = _Row()
    body = [line for kind in kinds for line in _step(kind, past, row)]
    targets = f"({', '.join([*row.weights, *row.intervals, *row.times])},)" if row else "()"
    head, end = ["def steps(x, model, rows, noise, past, each):"], []
    if past:
        old = ", ".join(_old(past))
        head += [f"    {old}, = past", "    past.clear()"]  # it would hold on to them
        end.append(f"    past[:] = {old},")
    head.append(f"    for {targets} in rows:")
    lines = [*head, *(f"        {line}" for line in body), *end, "    return x"]
    scope: dict[str, Any] = {"mul": mul, "add": add, "cat": torch.cat, "jvp": _jvp}
    exec("\n".join(lines), scope)
    return scope["steps"]


class _Row:
    """Names of what a kernel is given for each cycle of steps."""

    def __init__(self) -> None:
        self.weights: list[str] = []
        self.intervals: list[str] = []
        self.times: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.weights or self.intervals or self.times)

    @staticmethod
    def new(names: list[str], letter: str) -> str:
        """The next name in a list."""
        names.append(f"{letter}{len(names)}")
        return names[-1]


def _old(past: tuple[tuple[Register, int], ...]) -> list[str]:
    return [f"{register}_{age}" for register, ages in past for age in range(1, ages + 1)]


def combined(terms: Iterable[tuple[Tensor, float]]) -> Tensor:
    """A combination of tensors, with the operations of the kernels and in their order.

    Parameters
    ----------
    terms
        (tensor, weight) pairs, at least one.

    Returns
    -------
    Tensor
        The sum of weight times tensor; the tensor itself if there is one, of weight 1.
    """
    (total, weight), *rest = terms
    if weight != 1.0:
        total = mul(total, weight)
    elif rest:
        (second, weight), *rest = rest
        total = add(total, second, alpha=weight)
    for tensor, weight in rest:
        total = total.add_(tensor, alpha=weight)
    return total


def _step(kind: Kind, past: tuple[tuple[Register, int], ...], row: _Row) -> list[str]:
    """The lines of a step; what they need of a row is added to it."""
    (calls, last), noises, keep = kind
    names: dict[Register, str] = {}

    def weight() -> str:
        return row.new(row.weights, "w")

    def name(register: Register) -> str:
        if register.age:
            return f"{register._replace(age=0)}_{register.age}"
        return names.get(register, str(register))

    def expression(combination: Sum) -> str:  # as in :func:`combined`
        (first, one), rest = combination[0], combination[1:]
        text = name(first)
        if not one:
            text = f"mul({text}, {weight()})"
        elif rest:
            (second, unit), rest = rest[0], rest[1:]
            text = f"add({text}, {name(second)}, alpha={1.0 if unit else weight()})"
        for register, unit in rest:
            text += f".add_({name(register)}, alpha={1.0 if unit else weight()})"
        return text

    body = [f"z{index} = noise(*{row.new(row.intervals, 'i')})" for index in range(noises)]
    done = [f"z{index}" for index in range(noises)]
    index = 0
    for stages in calls:
        first = index
        tangents = []
        for point, tangent in stages:
            text = expression(point)
            if text.isidentifier():
                names[Register("u", index)] = text
            else:
                body.append(f"u{index} = {text}")
                done.append(f"u{index}")
            done.append(f"f{index}")
            if tangent:
                done.append(f"j{index}")
                tangents.append(expression(tangent))
            index += 1
        time = row.new(row.times, "t")
        inputs = [name(Register("u", number)) for number in range(first, index)]
        if tangents:
            given = f"{inputs[0]}, {tangents[0]}, {time}"
            body.append(f"f{first}, j{first} = jvp(model, {given})")
        elif len(inputs) == 1:
            body.append(f"f{first} = model({inputs[0]}, {time})")
        else:
            outputs = ", ".join(f"f{number}" for number in range(first, index))
            joined = f"model(cat(({', '.join(inputs)})), {time})"
            body.append(f"{outputs} = {joined}.chunk({len(inputs)})")
    new = []
    for register, ages in past:
        new.append(name(register) if register in keep else "None")
        new += [f"{register}_{age}" for age in range(1, ages)]
    body.append(f"{', '.join(['x', *_old(past)])} = {', '.join([expression(last), *new])}")
    if done:  # nothing is held on to while the next step calls the model
        body.append(f"del {', '.join(done)}")
    return [*body, "if each:", "    yield x"]


def _jvp(
    model: Callable[[Tensor, Tensor], Tensor], x: Tensor, tangent: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Model output at x and its derivative along the tangent, in one pass."""
    try:
        # Strict: an output that is detached from x would have the derivative 0 without a word.
        f, j, *_ = torch.func.jvp(lambda u: model(u, t), (x,), (tangent,), strict=True)
    except RuntimeError as error:  # of which NotImplementedError is one
        model(x, t)  # a model that fails by itself says why
        raise TypeError(
            "model: this solver needs a Jacobian-vector product, and forward-mode differentiation "
            f"of the model failed: {error}"
        ) from error
    return f, j


@dataclass(frozen=True)
class Stretch:
    """Steps that repeat a cycle: kernel and, in columns, weights and noise intervals of cycles."""

    kernel: Kernel
    cycles: int
    calls: int  # of the model, in a cycle
    weights: Sequence[Sequence[float]]
    intervals: Sequence[Sequence[tuple[float, float]]]

    def rows(self, times: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
        """Rows for the kernel; ``times`` has one tensor per call of the model."""
        columns = *self.weights, *self.intervals, *[iter(times)] * self.calls
        return zip(*columns) if columns else repeat((), self.cycles)  # noqa: B905

    def noises(self, row: Sequence[Any]) -> Sequence[tuple[float, float]]:
        """The noise intervals in a row."""
        return row[len(self.weights) :][: len(self.intervals)]


@dataclass(frozen=True)
class Program:
    """A plan made ready to run.

    Its first step is a stretch, whose outputs are checked; the steps from it on with the first
    ``held`` outputs are another, in which the model's memory is watched.
    """

    stretches: list[Stretch]
    times: np.ndarray  # of all evaluations
    distinct: np.ndarray  # the times without repetitions
    places: list[int]  # of the evaluations' times in ``distinct``
    calls: list[int]  # how many of them share each call of the model
    past: int  # tensors of earlier steps that are kept
    held: int  # most outputs of the model that are held at once; one of them may be the state


def _stretch(kernel: Kernel, calls: int, cycles: Sequence[Sequence[Step]]) -> Stretch:
    weights = [
        [
            w
            for step in cycle
            for combination in step.combinations()
            for _, w in combination
            if w != 1.0
        ]
        for cycle in cycles
    ]
    intervals = [[interval for step in cycle for interval in step.noises] for cycle in cycles]
    return Stretch(
        kernel,
        len(cycles),
        calls,
        tuple(zip(*weights, strict=True)),
        tuple(zip(*intervals, strict=True)),
    )


def _cycles(kinds: Sequence[Kind], starts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of steps that repeat a cycle: first step, steps of a cycle, number of cycles.

    A stretch begins at each of the ``starts`` at least; one step that repeats is a cycle, too.
    """
    for first, stop in pairwise(starts):
        while first < stop:
            repeated = {}
            for size in range(1, _LONGEST + 1):
                last = first + size
                while last < stop and kinds[last] == kinds[last - size]:
                    last += 1
                repeated[size] = (last - first) // size
            size = max(repeated, key=lambda n: n * repeated[n] if n == 1 or repeated[n] > 1 else 0)
            yield first, size, repeated[size]
            first += size * repeated[size]


def _compile(plan: Plan, parallel: bool) -> Program:
    wanted: list[set[Register]] = [set() for _ in plan.steps]
    ages: dict[Register, int] = {}  # of the plan's registers, for how many steps
    for number, step in enumerate(plan.steps):
        for combination in step.combinations():
            for register, _ in combination:
                if register.age:
                    own = register._replace(age=0)
                    wanted[number - register.age].add(own)
                    ages[own] = max(ages.get(own, 0), register.age)
    past, memory = tuple(sorted(ages.items())), max(ages.values(), default=0)
    kept = [sum(register.kind in ("f", "j") for register in registers) for registers in wanted]
    held = 1 + max(
        step.nfe + sum(kept[max(0, number - memory) : number])
        for number, step in enumerate(plan.steps)
    )
    sizes = [_rounds(step) if parallel else (1,) * len(step.stages) for step in plan.steps]
    known: dict[Kind, Kind] = {}  # the same objects, for the sake of comparisons
    kinds = [
        known.setdefault(kind, kind)
        for kind in (
            (_shape(step, sizes[n]), len(step.noises), frozenset(wanted[n]))
            for n, step in enumerate(plan.steps)
        )
    ]
    ends = accumulate(map(len, sizes))
    watched = next((n for n, end in enumerate(ends, 1) if end >= max(2, held)), 0)
    starts = sorted({0, 1, min(watched, len(kinds)), len(kinds)})
    stretches = [
        _stretch(
            _kernel(tuple(kinds[first : first + size]), past),
            sum(map(len, sizes[first : first + size])),
            [plan.steps[first + size * n :][:size] for n in range(count)],
        )
        for first, size, count in _cycles(kinds, starts)
    ]
    times = [stage.time for step in plan.steps for stage in step.stages]
    distinct = {time: place for place, time in enumerate(dict.fromkeys(times))}
    return Program(
        stretches=stretches,
        times=np.array(times),
        distinct=np.array(list(distinct)),
        places=[distinct[time] for time in times],
        calls=[size for each in sizes for size in each],
        past=sum(ages.values()),
        held=held,
    )


_COMPILED: dict[tuple[int, bool], tuple[weakref.ref[Plan], Program]] = {}


def compiled(plan: Plan, parallel: bool = False) -> Program:
    """:func:`_compile`, remembered while the plan lives (by identity: equal plans are rare).

    With ``parallel``, evaluations that do not wait for one another share a call of the model.
    """
    key = id(plan), parallel
    if key not in _COMPILED:
        forget = weakref.ref(plan, lambda _: _COMPILED.pop(key, None))
        _COMPILED[key] = forget, _compile(plan, parallel)
    return _COMPILED[key][1]
