"""Sampling: from noise to data with a named solver."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probflow.grids import as_grid
from probflow.integrate.adaptive import integrate_pair
from probflow.integrate.brownian import BaseBrownian
from probflow.integrate.loop import Callback, run_plan
from probflow.integrate.noise import (
    GeneratorNoise,
    NoiseSource,
    PathNoise,
    SeededNoise,
)
from probflow.problems import as_model
from probflow.processes import Process
from probflow.solvers import find_pair, get_solver
from probflow.solvers.embedded import PAIRS

__all__ = ["sample"]


def sample(
    model: Any,
    shape: Sequence[int] | None = None,
    solver: Any = "accelerated-ode-multistep",
    steps: int | None = None,
    *,
    process: Process | None = None,
    grid: Any = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    noise: NoiseSource | BaseBrownian | None = None,
    x: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    first_sample: int = 0,
    trajectory: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
    threshold: Callable[[Tensor, float], Tensor] | None = None,
    gradients: bool = False,
    checkpoint: bool = False,
    parallel: bool = False,
    check_finite: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Draw samples by integrating the probability-flow ODE or the reverse SDE.

    Parameters
    ----------
    model
        A :class:`probflow.Model`, or a target (then ``process`` is needed).
    shape
        (batch, ...); may be left out if ``x`` is given.
    solver
        Name, :class:`probflow.Solver` or registered step function. ``dpm-solver-12``,
        ``dpm-solver-23``, ``dpm-solver++-12`` and ``dpm-solver++-23`` choose their steps by
        ``rtol`` and ``atol``.
    steps
        Number of steps, >= 1 (an explicit grid already says it). Left out for a solver that
        chooses its steps: it takes the ends of the grid, or lands on all times of an explicit one.
    process
        Noising process of a target; a model has its own.
    grid
        A :class:`probflow.grids.Grid`, the name of a kind, or decreasing times; by default the
        process's own kind: Karras for EDM, uniform log-SNR for the others.
    seed
        Fixes initial state and noises: sample i is the same for every batch size and chunking.
    generator
        A ``torch.Generator`` instead of a seed.
    noise
        Source of the noises of the steps: a Brownian motion in process time, such as
        :class:`~probflow.integrate.interval.BrownianInterval`, which couples step counts, or any
        :class:`~probflow.integrate.noise.NoiseSource`.
    x
        Initial state at the grid's first time; by default ``prior_std`` times unit normals.
    dtype, device
        Of the state, where ``x`` is not given. The device defaults to that of the model's
        parameters, else the CPU.
    first_sample
        Index of the first sample of this batch, for sampling in chunks.
    trajectory, callback, progress, threshold, checkpoint, parallel, check_finite
        See :func:`probflow.integrate.loop.run_plan`.
    gradients
        Keep the graph, so that the result can be differentiated.
    rtol, atol, per_sample
        For a solver that chooses its steps: tolerances (by default those of the paper, 0.05 and
        0.0078), and whether each sample has steps of its own; see
        :func:`probflow.integrate.adaptive.integrate_pair`.

    Returns
    -------
    Tensor
        (batch, ...), or (steps + 1, batch, ...) with ``trajectory``: the states at all times.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before any model call.
    NonFiniteError
        If the model returns NaN or infinity.
    StepSizeError, MaxStepsError
        If a solver that chooses its steps does not reach the end.
    """
    model = as_model(model, process)
    recipe = as_grid(model.process.default_grid if grid is None else grid)
    pair = find_pair(solver)
    if pair is None:
        if rtol is not None or atol is not None or per_sample:
            raise ValueError(
                "rtol, atol, per_sample: they are for a solver that chooses its steps "
                f"({', '.join(PAIRS)}), not for {solver!r}"
            )
        times = recipe.times(model.process, steps)
        plan = get_solver(solver).plan(
            model.process, times.tolist(), model.prediction, rises=recipe.rises
        )
    else:
        given = [("steps", steps), ("noise", noise), ("threshold", threshold)]
        given += [("progress", progress or None), ("checkpoint", checkpoint or None)]
        given += [("parallel", parallel or None)]
        wrong = [name for name, value in given if value is not None]
        if wrong:
            raise ValueError(f"{wrong[0]}: not for {pair.name}, which chooses its steps itself")
        times = recipe.times(model.process, None if recipe.kind == "explicit" else 1)
    if seed is not None and generator is not None:
        raise ValueError("seed, generator: give one of them, not both")
    if first_sample and seed is None:
        raise ValueError("first_sample: numbers the samples of a seed; give seed=...")
    if x is None:
        if shape is None:
            raise ValueError("shape: needed where no initial state x is given")
        shape = _check_shape(shape)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: need a floating-point dtype, got {dtype!r}")
        if device is None:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
    else:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: need a tensor, got {type(x).__name__}")
        if shape is not None and _check_shape(shape) != tuple(x.shape):
            raise ValueError(f"shape: {tuple(shape)} is not that of x, {tuple(x.shape)}")
        shape, dtype, device = tuple(x.shape), x.dtype, x.device
    source: Any = None
    wide = torch.promote_types(dtype, torch.float32)
    if seed is not None:
        source = SeededNoise(seed, shape, wide, device, first_sample)
    elif generator is not None:
        source = GeneratorNoise(generator, shape, wide, device)
    if x is None:
        if source is None:
            raise ValueError("seed: give a seed, a generator or an initial state x")
        x = (source() * model.process.prior_std(times[0])).to(dtype)
    if pair is not None:
        with torch.set_grad_enabled(gradients):
            run = integrate_pair(
                pair,
                model,
                x,
                times.tolist(),
                rtol=0.05 if rtol is None else rtol,
                atol=0.0078 if atol is None else atol,
                per_sample=per_sample,
                callback=callback,
            )
        return torch.stack(run.states) if trajectory else run.states[-1]
    if isinstance(noise, BaseBrownian):
        for time in (plan.times[0], plan.times[-1]):
            noise.check_time(time)
        noise = PathNoise(noise, dtype=wide)
    steps_noise = (
        noise if noise is not None else _AfterInitialState(source) if source is not None else None
    )
    with torch.set_grad_enabled(gradients):
        return run_plan(
            plan,
            model,
            x,
            noise=steps_noise if plan.stochastic else None,
            trajectory=trajectory,
            callback=callback,
            progress=progress,
            threshold=threshold,
            checkpoint=checkpoint,
            parallel=parallel,
            check_finite=check_finite,
        )


class _AfterInitialState:
    """A source whose first draw, the initial state, is always made first."""

    def __init__(self, source: NoiseSource) -> None:
        self._source = source

    def __call__(self, start: float, stop: float) -> Tensor:
        return self._source(start, stop)

    def restart(self) -> None:
        """Start again after the draw of the initial state."""
        self._source.restart()
        self._source(0.0, 1.0)


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"shape: need (batch, ...), got {shape!r}") from None
    if not sizes or any(size < 1 for size in sizes):
        raise ValueError(f"shape: need (batch, ...) with positive sizes, got {shape!r}")
    return sizes
