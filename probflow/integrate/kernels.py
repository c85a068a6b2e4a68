"""Plans made ready to run: the loop over steps of one shape, written out as a Python generator.

A plan's steps have few different shapes (which registers go where). Each shape becomes a small
generator, with the weights as data, so that a run costs what a careful hand-written loop costs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.plan import Combination, Plan, Register, Step

__all__ = ["Kernel", "Program", "Stretch", "compiled"]

States = Generator[Tensor, None, Tensor]
Kernel = Callable[..., States]  # see _kernel

Sum = tuple[tuple[Register, bool], ...]  # (register, weight is 1)
# Stages, (input, tangent) each, by model call; and the update.
Shape = tuple[tuple[tuple[tuple[Sum, Sum], ...], ...], Sum]


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
def _kernel(
    shape: Shape, noises: int, past: tuple[tuple[Register, int], ...], keep: frozenset[Register]
) -> Kernel:
    """Write out the loop over steps of the given shape as a generator and compile it.

    The generator is ``steps(x, model, rows, noise, past, each)``; it yields the state after each
    step if ``each`` is true, and returns the last. A row is (*weights that are not 1, *noise
    intervals, *times of the calls) of a step; stages that share a call stand one after the other
    in its batch. ``past`` names the registers that steps of the plan refer to later, and for how
    many steps; ``keep`` are those that are wanted of this step. Their tensors come from the kernel
    before, and go to the next, in the generator's argument ``past``: ages 1, 2, .. of the first,
    then of the next register.
    """
    weights: list[str] = []
    names: dict[Register, str] = {}

    def weight() -> str:
        weights.append(f"w{len(weights)}")
        return weights[-1]

    def name(register: Register) -> str:
        if register.age:
            return f"{register._replace(age=0)}_{register.age}"
        return names.get(register, str(register))

    def expression(combination: Sum) -> str:
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

    body = [f"z{index} = noise(*i{index})" for index in range(noises)]
    done = [f"z{index}" for index in range(noises)]
    calls, last = shape
    index = 0
    for call, stages in enumerate(calls):
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
        inputs = [name(Register("u", number)) for number in range(first, index)]
        if tangents:
            given = f"{inputs[0]}, {tangents[0]}, t{call}"
            body.append(f"f{first}, j{first} = jvp(model, {given})")
        elif len(inputs) == 1:
            body.append(f"f{first} = model({inputs[0]}, t{call})")
        else:
            outputs = ", ".join(f"f{number}" for number in range(first, index))
            joined = f"model(cat(({', '.join(inputs)})), t{call})"
            body.append(f"{outputs} = {joined}.chunk({len(inputs)})")
    update = expression(last)
    old = [f"{register}_{age}" for register, ages in past for age in range(1, ages + 1)]
    new = []
    for register, ages in past:
        new.append(name(register) if register in keep else "None")
        new += [f"{register}_{age}" for age in range(1, ages)]
    body.append(f"{', '.join(['x', *old])} = {', '.join([update, *new])}")
    if done:  # nothing is held on to while the next step calls the model
        body.append(f"del {', '.join(done)}")
    body += ["if each:", "    yield x"]
    row = [
        *weights,
        *(f"i{index}" for index in range(noises)),
        *(f"t{call}" for call in range(len(calls))),
    ]
    targets = f"({', '.join(row)},)" if row else "()"
    head, end = ["def steps(x, model, rows, noise, past, each):"], []
    if old:
        head += [f"    {', '.join(old)}, = past", "    past.clear()"]  # it would hold on to them
        end.append(f"    past[:] = {', '.join(old)},")
    head.append(f"    for {targets} in rows:")
    lines = [*head, *(f"        {line}" for line in body), *end, "    return x"]
    scope: dict[str, Any] = {"mul": torch.mul, "add": torch.add, "cat": torch.cat, "jvp": _jvp}
    exec("\n".join(lines), scope)
    return scope["steps"]


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
    """Consecutive steps of one shape: their kernel and, in columns, weights and noise intervals."""

    kernel: Kernel
    steps: int
    calls: int  # of the model, per step
    nfe: int  # per step
    weights: Sequence[Sequence[float]]
    intervals: Sequence[Sequence[tuple[float, float]]]

    def rows(self, times: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
        """Rows for the kernel; ``times`` has one tensor per call of the model."""
        columns = *self.weights, *self.intervals, *[iter(times)] * self.calls
        return zip(*columns) if columns else repeat((), self.steps)  # noqa: B905

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


def _stretch(kernel: Kernel, calls: int, steps: Sequence[Step]) -> Stretch:
    weights = [
        [w for combination in step.combinations() for _, w in combination if w != 1.0]
        for step in steps
    ]
    return Stretch(
        kernel,
        len(steps),
        calls,
        steps[0].nfe,
        tuple(zip(*weights, strict=True)),
        tuple(zip(*[step.noises for step in steps], strict=True)),
    )


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
    kernels = [
        _kernel(_shape(step, sizes[n]), len(step.noises), past, frozenset(wanted[n]))
        for n, step in enumerate(plan.steps)
    ]
    ends = accumulate(map(len, sizes))
    watched = next((n for n, end in enumerate(ends, 1) if end >= max(2, held)), 0)
    starts = [
        number
        for number in range(len(kernels))
        if number in (0, 1, watched) or kernels[number] is not kernels[number - 1]
    ]
    stretches = [
        _stretch(kernels[start], len(sizes[start]), plan.steps[start:stop])
        for start, stop in pairwise([*starts, len(kernels)])
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
