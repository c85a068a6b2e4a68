"""Plans made ready to run: the loop over steps of one shape, written out as a Python generator.

A plan's steps have few different shapes (which registers go where). Each shape becomes a small
generator, with the weights as data, so that a run costs what a careful hand-written loop costs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from probflow.plan import Combination, Plan, Register, Step

__all__ = ["Kernel", "Program", "Stretch", "compiled"]

States = Generator[Tensor, None, Tensor]
Kernel = Callable[..., States]  # see _kernel

Sum = tuple[tuple[Register, bool], ...]  # (register, weight is 1)
Shape = tuple[tuple[tuple[Sum, Sum], ...], Sum]  # (input, tangent) per stage, and the update


def _shape(step: Step) -> Shape:
    def of(combination: Combination) -> Sum:
        return tuple((register, weight == 1.0) for register, weight in combination)

    return tuple((of(stage.input), of(stage.tangent)) for stage in step.stages), of(step.update)


@lru_cache(maxsize=256)
def _kernel(shape: Shape, noises: int, keep: tuple[Register, ...] | None) -> Kernel:
    """Write out the loop over steps of the given shape as a generator and compile it.

    The generator is ``steps(x, model, rows, noise, past)``; it yields the state after each step
    and returns the last. A row is (weights that are not 1, noise intervals, stage times) of a
    step; ``past[a - 1]`` holds the registers kept ``a`` steps ago by name (``keep`` is ``None``
    for one-step methods, which keep no past).
    """
    weights: list[str] = []
    names: dict[Register, str] = {}

    def weight() -> str:
        weights.append(f"w{len(weights)}")
        return weights[-1]

    def name(register: Register) -> str:
        if register.age:
            return f"past[{register.age - 1}]['{register._replace(age=0)}']"
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
    stages, last = shape
    for index, (point, tangent) in enumerate(stages):
        text = expression(point)
        if text.isidentifier():
            names[Register("u", index)] = text
        else:
            body.append(f"u{index} = {text}")
            done.append(f"u{index}")
        done.append(f"f{index}")
        u = name(Register("u", index))
        if tangent:
            done.append(f"j{index}")
            call = f"jvp(model, {u}, {expression(tangent)}, t{index})"
            body.append(f"f{index}, j{index} = {call}")
        else:
            body.append(f"f{index} = model({u}, t{index})")
    update = expression(last)
    if keep is None:
        body.append(f"x = {update}")
    else:
        kept = ", ".join(f"'{register}': {name(register)}" for register in keep)
        body += [f"new = {update}", f"past[:] = ({{{kept}}}, *past[:-1])", "x = new", "del new"]
    if done:  # nothing is held on to while the next step calls the model
        body.append(f"del {', '.join(done)}")
    body.append("yield x")
    row = (
        _targets(weights),
        _targets([f"i{index}" for index in range(noises)]),
        _targets([f"t{index}" for index in range(len(stages))]),
    )
    head = f"def steps(x, model, rows, noise, past):\n    for {', '.join(row)} in rows:\n        "
    scope: dict[str, Any] = {"mul": torch.mul, "add": torch.add, "jvp": _jvp}
    exec(head + "\n        ".join(body) + "\n    return x", scope)
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


def _targets(names: Sequence[str]) -> str:
    return f"({', '.join(names)},)" if names else "_"


@dataclass
class Stretch:
    """Consecutive steps of one shape: their kernel and, per step, weights and intervals."""

    kernel: Kernel
    stages: int  # per step
    nfe: int  # per step
    weights: list[tuple[float, ...]]
    intervals: list[tuple[tuple[float, float], ...]]

    def rows(self, times: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
        """Rows for the kernel; ``times`` has one tensor per evaluation of the stretch."""
        per_step = zip(*[iter(times)] * self.stages, strict=True) if self.stages else repeat(())
        return zip(self.weights, self.intervals, per_step, strict=False)


@dataclass(frozen=True)
class Program:
    """A plan made ready to run; the first steps are stretches of their own, to be checked."""

    stretches: list[Stretch]
    times: list[float]  # of all evaluations
    memory: int
    held: int  # most outputs of the model that are held at once; one of them may be the state


def _compile(plan: Plan) -> Program:
    memory = plan.memory
    wanted: list[set[Register]] = [set() for _ in plan.steps]
    if memory:
        for number, step in enumerate(plan.steps):
            for combination in step.combinations():
                for register, _ in combination:
                    if register.age:
                        wanted[number - register.age].add(register._replace(age=0))
    stretches: list[Stretch] = []
    for number, step in enumerate(plan.steps):
        keep = tuple(sorted(wanted[number])) if memory else None
        kernel = _kernel(_shape(step), len(step.noises), keep)
        if number <= memory + 2 or kernel is not stretches[-1].kernel:
            stretches.append(Stretch(kernel, len(step.stages), step.nfe, [], []))
        stretches[-1].weights.append(
            tuple(w for combination in step.combinations() for _, w in combination if w != 1.0)
        )
        stretches[-1].intervals.append(step.noises)
    times = [stage.time for step in plan.steps for stage in step.stages]
    kept = [sum(register.kind in ("f", "j") for register in registers) for registers in wanted]
    held = 1 + max(
        step.nfe + sum(kept[max(0, number - memory) : number])
        for number, step in enumerate(plan.steps)
    )
    return Program(stretches, times, memory, held)


_COMPILED: dict[int, tuple[weakref.ref[Plan], Program]] = {}


def compiled(plan: Plan) -> Program:
    """:func:`_compile`, remembered while the plan lives (by identity: equal plans are rare)."""
    key = id(plan)
    if key not in _COMPILED:
        forget = weakref.ref(plan, lambda _: _COMPILED.pop(key, None))
        _COMPILED[key] = forget, _compile(plan)
    return _COMPILED[key][1]
