"""The tensor loop: run a plan on a model.

A plan's steps have few different shapes (which registers go where), so each shape is written out
once as a small Python function, with the weights as arguments; a run then costs what a careful
hand-written loop costs. Weights are Python floats, times one tensor made before the first step,
and nothing inside the loop waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probflow.integrate.noise import NoiseSource
from probflow.models import Model, check_output
from probflow.plan import Plan, Point, Register, Step, conversion

__all__ = ["NonFiniteError", "run_plan"]

Callback = Callable[[int, float, Tensor], None]
Evaluate = Callable[[Tensor, Tensor], Tensor]


class NonFiniteError(ValueError):
    """The model returned NaN or infinity; the message names step and time."""


# Step shapes -----------------------------------------------------------------------------------

Shape = tuple[tuple[tuple[Register, bool], ...], ...]  # per combination: (register, weight is 1)


def _shape(step: Step) -> Shape:
    return tuple(
        tuple((register, weight == 1.0) for register, weight in combination)
        for combination in step.combinations()
    )


@lru_cache(maxsize=256)
def _kernel(shape: Shape, keep: tuple[Register, ...]) -> Callable[..., tuple[Tensor, tuple]]:
    """Write out a step of the given shape as a function and compile it.

    The function is ``step(x, model, t, w, z, past) -> (new x, registers to keep)``: ``t`` holds
    the stage times, ``w`` the weights in order, ``z`` the noises, and ``past[a - 1]`` the
    registers kept ``a`` steps ago, by name.
    """
    weights = iter(range(sum(len(combination) for combination in shape)))
    names: dict[Register, str] = {}

    def name(register: Register) -> str:
        if register.age:
            return f"past[{register.age - 1}]['{register._replace(age=0)}']"
        if register.kind == "z":
            return f"z[{register.index}]"
        return names.get(register, str(register))

    def expression(combination: Sequence[tuple[Register, bool]]) -> str:
        terms = [(name(register), one, next(weights)) for register, one in combination]
        (first, one, w), rest = terms[0], terms[1:]
        if not one:
            text = f"mul({first}, w[{w}])"
        elif rest:
            (second, _, w2), rest = rest[0], rest[1:]
            text = f"add({first}, {second}, alpha=w[{w2}])"
        else:
            return first
        return text + "".join(f".add_({register}, alpha=w[{k}])" for register, _, k in rest)

    lines = []
    for index, combination in enumerate(shape[:-1]):
        text = expression(combination)
        if text.isidentifier():
            names[Register("u", index)] = text
        else:
            lines.append(f"u{index} = {text}")
        lines.append(
            f"f{index} = model({names.get(Register('u', index), f'u{index}')}, t[{index}])"
        )
    kept = ", ".join(f"'{register}': {name(register)}" for register in keep)
    lines.append(
        f"return {expression(shape[-1])}, {{{kept}}}"
        if keep
        else f"return {expression(shape[-1])}, None"
    )
    source = "def step(x, model, t, w, z, past):\n    " + "\n    ".join(lines)
    scope: dict[str, Any] = {"mul": torch.mul, "add": torch.add}
    exec(source, scope)
    return scope["step"]


@dataclass(frozen=True)
class _Program:
    """A plan made ready to run."""

    kernels: list[Callable[..., Any]]
    weights: list[tuple[float, ...]]
    memory: int


def _compile(plan: Plan) -> _Program:
    memory = plan.memory
    wanted: list[set[Register]] = [set() for _ in plan.steps]
    if memory:
        for number, step in enumerate(plan.steps):
            for combination in step.combinations():
                for register, _ in combination:
                    if register.age:
                        wanted[number - register.age].add(register._replace(age=0))
    kernels, weights = [], []
    for step, keep in zip(plan.steps, wanted, strict=True):
        kernels.append(_kernel(_shape(step), tuple(sorted(keep))))
        weights.append(tuple(w for combination in step.combinations() for _, w in combination))
    return _Program(kernels, weights, memory)


# Running ---------------------------------------------------------------------------------------


def run_plan(
    plan: Plan,
    model: Model | Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    noise: NoiseSource | None = None,
    trajectory: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
    threshold: Callable[[Tensor, float], Tensor] | None = None,
    checkpoint: bool = False,
    check_finite: bool = True,
) -> Tensor:
    """Run a plan from the state ``x`` at its first time.

    Parameters
    ----------
    plan
        The steps; its prediction type must be the model's.
    model
        A :class:`~probflow.models.Model`, or for a plain ODE a function ``f(x, t)`` with a 0-d
        tensor t.
    x
        State, (batch, ...). Half-precision states are carried in float32 and rounded for the
        model and at the end.
    noise
        Where a stochastic plan draws from.
    trajectory
        Return the states at all n + 1 times, shape (n + 1, batch, ...), instead of the last.
    callback
        Called after each step with (number of the step, its stop time, state).
    progress
        Show a progress bar of model evaluations.
    threshold
        Hook ``threshold(x0, t)`` applied to the x0 prediction of every evaluation (as dynamic
        thresholding does); needs a :class:`Model`.
    checkpoint
        Recompute each step in the backward pass instead of storing its intermediates.
    check_finite
        Look at the final state once; if it is not finite, run again with a flag per evaluation
        (gathered on the device, read at the end) and report the first bad step and time.

    Returns
    -------
    Tensor
        Final state, or all states if ``trajectory``; dtype and device of ``x``.

    Raises
    ------
    TypeError, ValueError
        For an argument or a model output that does not fit.
    NonFiniteError
        If the model returns NaN or infinity.
    """
    _check_arguments(plan, model, x, noise, threshold)
    if noise is not None:
        noise.restart()
    run = _Run(plan, model, x, threshold)
    states = run.states(noise, callback=callback, progress=progress, checkpoint=checkpoint)
    if trajectory:
        collected = [x, *(state.to(x.dtype) for state in states)]
        final, result = collected[-1], torch.stack(collected)
    else:
        for final in states:  # noqa: B007 - the last state is the result
            pass
        result = final = final.to(x.dtype)
    if check_finite and not bool(torch.isfinite(final).all()):
        _locate_failure(plan, model, x, noise, threshold)
    return result


class _Run:
    """One run of a plan: times on the device, the model as the kernels call it."""

    def __init__(
        self, plan: Plan, model: Any, x: Tensor, threshold: Callable[..., Tensor] | None
    ) -> None:
        self.plan, self.x = plan, x
        self.program = _compile(plan)
        wide = torch.promote_types(x.dtype, torch.float32)
        stage_times = [stage.time for step in plan.steps for stage in step.stages]
        if isinstance(model, Model):
            times = model.own_times(stage_times, x.dtype).to(x.device)
            rows = times[:, None].expand(-1, len(x)).unbind(0)
            evaluate = _with_kwargs(model)
        else:
            real = torch.promote_types(wide.to_real(), torch.float32)
            rows = torch.tensor(stage_times, dtype=real, device=x.device).unbind(0)
            evaluate = model
        if threshold is not None:
            evaluate = _Thresholded(evaluate, model, plan, stage_times, threshold)
        if wide != x.dtype:
            evaluate = _rounded(evaluate, x.dtype, wide)
        self.evaluate, self.rows, self.wide = evaluate, rows, wide

    def states(
        self,
        noise: NoiseSource | None,
        *,
        callback: Callback | None = None,
        progress: bool = False,
        checkpoint: bool = False,
        observe: Callable[[Tensor], None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the state after each step (in the wide dtype)."""
        x, evaluate, position, past = self.x.to(self.wide), self.evaluate, 0, ()
        memory = self.program.memory
        steps: Iterable[Any] = zip(
            self.plan.steps, self.program.kernels, self.program.weights, strict=True
        )
        bar = tqdm(total=self.plan.nfe, unit="nfe", desc=self.plan.solver) if progress else None
        try:
            first: Evaluate | None = _checked(evaluate, observe)
            for number, (step, kernel, weights) in enumerate(steps):
                count = len(step.stages)
                t = self.rows[position : position + count]
                position += count
                z = [noise(*interval) for interval in step.noises] if step.noises else ()
                call = first or evaluate
                if checkpoint:
                    x, kept = _checkpointed(kernel, x, call, t, weights, z, past)
                else:
                    x, kept = kernel(x, call, t, weights, z, past)
                if observe is None:
                    first = None
                if memory:
                    past = (kept, *past[: memory - 1])
                if callback is not None:
                    callback(number, step.stop, x.to(self.x.dtype))
                if bar is not None:
                    bar.update(count)
                yield x
        finally:
            if bar is not None:
                bar.close()


def _checkpointed(kernel: Callable[..., Any], *arguments: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(kernel, *arguments, use_reentrant=False)


def _with_kwargs(model: Model) -> Evaluate:
    function, kwargs = model.function, model.kwargs
    return (lambda x, t: function(x, t, **kwargs)) if kwargs else function


def _rounded(evaluate: Evaluate, narrow: torch.dtype, wide: torch.dtype) -> Evaluate:
    return lambda x, t: evaluate(x.to(narrow), t).to(wide)


def _checked(evaluate: Evaluate, observe: Callable[[Tensor], None] | None) -> Evaluate:
    def call(x: Tensor, t: Tensor) -> Tensor:
        output = evaluate(x, t)
        check_output(output, x)
        if observe is not None:
            observe(output)
        return output

    return call


class _Thresholded:
    """Model whose x0 prediction passes through a hook; called in the plan's order."""

    def __init__(
        self,
        evaluate: Evaluate,
        model: Model,
        plan: Plan,
        stage_times: Sequence[float],
        threshold: Callable[[Tensor, float], Tensor],
    ) -> None:
        self._evaluate, self._threshold, self._position = evaluate, threshold, 0
        points = Point.many(model.process, stage_times)
        self._rows = [
            (
                point.t,
                conversion(model.process, plan.prediction, "x0", point),
                conversion(model.process, "x0", plan.prediction, point),
            )
            for point in points
        ]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        time, (to_c, to_d), (from_c, from_d) = self._rows[self._position]
        self._position = (self._position + 1) % len(self._rows)
        x0 = self._threshold(float(to_c) * x + float(to_d) * self._evaluate(x, t), time)
        check_output(x0, x)
        return float(from_c) * x + float(from_d) * x0


def _locate_failure(
    plan: Plan, model: Any, x: Tensor, noise: NoiseSource | None, threshold: Any
) -> None:
    """Repeat a run that ended in NaN or infinity, with a flag per model output and state."""
    if noise is not None:
        noise.restart()
    flags = [torch.isfinite(x).all()]
    places = ["the initial state"]
    outputs: list[Tensor] = []
    run = _Run(plan, model, x, threshold)
    with torch.no_grad():
        states = run.states(
            noise, observe=lambda output: outputs.append(torch.isfinite(output).all())
        )
        for number, state in enumerate(states):
            step = plan.steps[number]
            flags += [*outputs, torch.isfinite(state).all()]
            places += [
                f"the model's output at step {number} of {len(plan.steps)}, t = {stage.time:g}"
                for stage in step.stages
            ]
            places.append(
                f"the state after step {number} of {len(plan.steps)}, t = {step.stop:g}, though "
                "the model's outputs there were finite (overflow)"
            )
            outputs.clear()
    good = torch.stack(flags).tolist()
    if all(good):
        raise NonFiniteError(
            f"{plan.solver}: the run ended in NaN or infinity, but a repetition did not: the model "
            "is not a function of its arguments"
        )
    raise NonFiniteError(f"{plan.solver}: NaN or infinity in {places[good.index(False)]}")


def _check_arguments(
    plan: Plan, model: Any, x: Any, noise: NoiseSource | None, threshold: Any
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: need a tensor, got {type(x).__name__}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"x: need a floating-point tensor, got {x.dtype}")
    if isinstance(model, Model):
        if x.ndim < 1:
            raise ValueError("x: need shape (batch, ...), got a 0-d tensor")
        if model.prediction != plan.prediction:
            raise ValueError(
                f"plan: made for a model of {plan.prediction}, but this one predicts "
                f"{model.prediction}"
            )
    elif threshold is not None:
        raise TypeError("threshold: needs a Model, which says what x0 is; got a plain function")
    if plan.stochastic and noise is None:
        raise ValueError(f"noise: {plan.solver} is stochastic; give a seed, a generator or noise")
