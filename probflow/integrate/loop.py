"""The tensor loop: run a plan on a model.

The steps themselves are in :mod:`probflow.integrate.kernels`. Weights are Python floats, times one
tensor made before the first step, and nothing inside the loop waits for the device.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probflow.integrate.evaluations import (
    Evaluate,
    Thresholded,
    checked,
    rounded,
    watched,
    with_kwargs,
)
from probflow.integrate.kernels import Kernel, States, Stretch, compiled
from probflow.integrate.noise import NoiseSource
from probflow.integrate.transforms import hidden
from probflow.integrate.watch import Watch
from probflow.models import Model
from probflow.plan import Plan
from probflow.words import check_hook

__all__ = ["MaxStepsError", "NonFiniteError", "SolveError", "StepSizeError", "run_plan"]

Callback = Callable[[int, float, Tensor], None]

_LARGE = 2**14  # elements of a state, from where copying costs more than calling


class NonFiniteError(ValueError):
    """The model returned NaN or infinity; the message names step and time."""


class SolveError(RuntimeError):
    """A solve stopped before its end; the message says where and why."""


class StepSizeError(SolveError):
    """The step size fell below what the times can represent (or the error never fell)."""


class MaxStepsError(SolveError):
    """More steps than ``max_num_steps`` were needed."""


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
    parallel: bool = False,
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
    parallel
        Call the model once for all evaluations that do not wait for one another (``plan.rounds``
        calls of a one-step method instead of ``plan.nfe``), with their states one after the other
        in the batch; needs a :class:`Model` that treats each sample by itself. Of its ``kwargs``,
        tensors whose first size is that of the batch are repeated. The numbers are the same up to
        the rounding of the model's arithmetic in larger batches.
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
    _check_arguments(plan, model, x, noise, threshold, callback, parallel)
    if noise is not None:
        noise.restart()
    run = _Run(plan, model, x, threshold, parallel)
    states = run.states(
        noise, each=trajectory, callback=callback, progress=progress, checkpoint=checkpoint
    )
    if not trajectory:
        [final] = states
        result = final = final.to(x.dtype)
    elif torch.is_grad_enabled() or x.numel() < _LARGE:
        if x.dtype != run.wide:
            states = (state.to(x.dtype) for state in states)
        result = torch.stack([x, *states])
        final = result[-1]
    else:  # each state goes to its place at once, without a second copy of all
        result = x.new_empty((len(plan.steps) + 1, *x.shape))
        places = result.unbind(0)
        places[0].copy_(x)
        for place, state in zip(places[1:], states, strict=True):
            place.copy_(state)
        final = places[-1]
    if check_finite and not all_finite(final.detach()):
        _locate_failure(plan, model, x, noise, threshold)
    return result


def all_finite(x: Tensor) -> bool:
    """Whether all numbers are finite, or hidden by torch.func.vmap; waits for the device."""
    if hidden(x):
        return True
    # NaN and infinity survive a sum, which is much cheaper than a flag per element; where finite
    # numbers overflow it, the flags decide.
    return cmath.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def finite_samples(x: Tensor) -> Tensor:
    """Whether all numbers of a sample are finite, for each sample; a 0-d tensor is one."""
    return torch.isfinite(x).reshape(len(x) if x.ndim else 1, -1).all(1)


def sample_name(number: int) -> str:
    """What messages call a sample, after what is said of it."""
    return f", sample {number}"


def first_bad(x: Tensor) -> str:
    """The first sample that is not finite, as :func:`sample_name`; empty if all are."""
    good = finite_samples(x).tolist() if x.ndim else []
    return sample_name(good.index(False)) if False in good else ""


class _Run:
    """One run of a plan: times on the device, the model as the kernels call it."""

    def __init__(
        self,
        plan: Plan,
        model: Any,
        x: Tensor,
        threshold: Callable[..., Tensor] | None,
        parallel: bool = False,
    ) -> None:
        self.plan, self.x, self.program = plan, x, compiled(plan, parallel)
        wide = torch.promote_types(x.dtype, torch.float32)
        rows: Sequence[Tensor]
        if isinstance(model, Model):
            batch = len(x)
            # Evaluations at one time share a tensor where a model cannot write to it.
            shared = batch > 1 and not parallel
            process_times = self.program.distinct if shared else self.program.times
            times = model.own_times(process_times, x.dtype).to(x.device)
            if parallel:
                rows = [
                    part[:, None].expand(-1, batch).reshape(-1)
                    for part in times.split(self.program.calls)
                ]
            else:
                rows = times[:, None].expand(-1, batch).unbind(0)
                if len(rows) < len(self.program.places):
                    rows = [rows[place] for place in self.program.places]
            evaluate = with_kwargs(model, batch if parallel else None)
        else:
            real = torch.promote_types(wide.to_real(), torch.float32)
            rows = torch.tensor(self.program.times, dtype=real, device=x.device).unbind(0)
            evaluate = model
        self.name = _called(model)
        if wide != x.dtype:
            evaluate = rounded(evaluate, x.dtype, wide, self.name)
        if threshold is not None:
            evaluate = Thresholded(evaluate, model, plan, self.program.calls, rows, threshold)
        self.evaluate, self.rows, self.wide = evaluate, rows, wide

    def states(
        self,
        noise: NoiseSource | None,
        *,
        each: bool = True,
        callback: Callback | None = None,
        progress: bool = False,
        checkpoint: bool = False,
        observe: Callable[[Tensor], None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the state after each step (in the wide dtype), or the last alone."""
        x, evaluate, position, number = self.x.to(self.wide), self.evaluate, 0, 0
        past: list[Any] = [None] * self.program.past
        watch = Watch(self.program.held)
        looked_at = checked(evaluate, observe, self.name)
        bar = tqdm(total=self.plan.nfe, unit="nfe", desc=self.plan.solver) if progress else None
        try:
            for stretch in self.program.stretches:
                call = looked_at if position == 0 or observe is not None else evaluate
                call = watched(call, watch) if watch.copying else call
                count = stretch.calls * stretch.cycles
                rows = stretch.rows(self.rows[position : position + count])
                position += count
                kernel = _checkpointed(stretch) if checkpoint else stretch.kernel
                draw = _fitting(noise, x) if position == count and noise is not None else noise
                looking = callback is not None or bar is not None
                steps = kernel(x, call, rows, draw, past, each or looking)
                if not looking:
                    x = yield from steps
                    continue
                for x in steps:
                    if callback is not None:
                        callback(number, self.plan.steps[number].stop, x.to(self.x.dtype))
                    if bar is not None:
                        bar.update(self.plan.steps[number].nfe)
                    number += 1
                    if each:
                        yield x
            if not each:
                yield x
        finally:
            if bar is not None:
                bar.close()


def _checkpointed(stretch: Stretch) -> Kernel:
    """The kernel, with each cycle of steps recomputed in the backward pass, with its noises."""
    from torch.utils.checkpoint import checkpoint

    def one_row(x: Tensor, model: Evaluate, row: Any, drawn: list, past: list) -> Any:
        past, draws = list(past), iter(drawn)
        states = list(stretch.kernel(x, model, [row], lambda *_: next(draws), past, True))
        return states, past

    def steps(x: Tensor, model: Evaluate, rows: Any, noise: Any, past: list, each: bool) -> States:
        for row in rows:
            drawn = [noise(*interval) for interval in stretch.noises(row)]
            states, past[:] = checkpoint(
                one_row, x, model, row, drawn, tuple(past), use_reentrant=False
            )
            x = states[-1]
            if each:
                yield from states
        return x

    return steps


def _fitting(noise: NoiseSource, x: Tensor) -> Callable[[float, float], Tensor]:
    """The source, with a check of what it returns against the state."""

    def draw(start: float, stop: float) -> Tensor:
        z = noise(start, stop)
        if z.shape != x.shape or z.dtype != x.dtype or z.device != x.device:
            raise ValueError(
                f"noise: must have the state's shape {tuple(x.shape)}, {x.dtype} and {x.device}, "
                f"got {tuple(z.shape)}, {z.dtype} and {z.device}"
            )
        return z

    return draw


def _called(model: Any) -> str:
    """What messages call the function that is evaluated."""
    return "model" if isinstance(model, Model) else "func"


def _locate_failure(
    plan: Plan, model: Any, x: Tensor, noise: NoiseSource | None, threshold: Any
) -> None:
    """Repeat a run that ended in NaN or infinity, with a flag per model output and state."""
    if noise is not None:
        noise.restart()
    who = "the model" if isinstance(model, Model) else "func"
    flags = [finite_samples(x)]
    places = ["the initial state"]
    outputs: list[Tensor] = []
    run = _Run(plan, model, x, threshold)
    with torch.no_grad():
        states = run.states(noise, observe=lambda output: outputs.append(finite_samples(output)))
        for number, state in enumerate(states):
            step = plan.steps[number]
            flags += [*outputs, finite_samples(state)]
            places += [
                f"{who}'s output at step {number} of {len(plan.steps)}, t = {stage.time:g}"
                for stage in step.stages
            ]
            places.append(
                f"the state after step {number} of {len(plan.steps)}, t = {step.stop:g}, though "
                f"{who}'s outputs there were finite (overflow)"
            )
            outputs.clear()
        flags.append(finite_samples(state.to(x.dtype)))
        places.append(f"the final state, rounded to {x.dtype} (overflow)")
    good = torch.stack(flags)
    bad = (~good.all(1)).tolist()
    if True not in bad:
        raise NonFiniteError(
            f"{plan.solver}: the run ended in NaN or infinity, but a repetition did not: "
            f"{who} is not a function of its arguments"
        )
    place = bad.index(True)
    sample = sample_name(good[place].tolist().index(False)) if x.ndim else ""
    raise NonFiniteError(f"{plan.solver}: NaN or infinity in {places[place]}{sample}")


def _check_arguments(
    plan: Plan,
    model: Any,
    x: Any,
    noise: NoiseSource | None,
    threshold: Any,
    callback: Any,
    parallel: bool,
) -> None:
    if not isinstance(parallel, bool):
        raise TypeError(f"parallel: need True or False, got {parallel!r}")
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
    elif not callable(model):
        raise TypeError(f"model: need a Model or a function f(x, t), got {type(model).__name__}")
    elif threshold is not None:
        raise TypeError("threshold: needs a Model, which says what x0 is; got a plain function")
    elif parallel:
        raise TypeError(
            "parallel: needs a Model, called with one time for each sample; got a plain function"
        )
    check_hook("callback", callback)
    check_hook("threshold", threshold)
    if noise is not None and not (callable(noise) and hasattr(noise, "restart")):
        raise TypeError(
            f"noise: need a NoiseSource (callable, with a method restart), got {noise!r}"
        )
    if plan.stochastic and noise is None:
        raise ValueError(f"noise: {plan.solver} is stochastic; give a seed, a generator or noise")
