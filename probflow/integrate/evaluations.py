"""The model as the kernels call it: with its conditioning, in its dtype, checked, thresholded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.watch import Watch
from probflow.models import Model, check_output
from probflow.plan import Plan, Point, conversion

__all__ = ["Evaluate", "Thresholded", "checked", "rounded", "watched", "with_kwargs"]

Evaluate = Callable[[Tensor, Tensor], Tensor]


def with_kwargs(model: Model, batch: int | None) -> Evaluate:
    """The model's function with its conditioning, repeated where several evaluations are one call.

    ``batch`` is the size of the batch, or ``None`` where each call has it.
    """
    function, kwargs = model.function, model.kwargs
    if not kwargs:
        return function
    if batch is None:
        return lambda x, t: function(x, t, **kwargs)
    repeated = {1: kwargs}

    def call(x: Tensor, t: Tensor) -> Tensor:
        count = len(x) // batch
        if count not in repeated:
            repeated[count] = {
                name: value.repeat(count, *(1,) * (value.ndim - 1))
                if isinstance(value, Tensor) and value.ndim and len(value) == batch
                else value
                for name, value in kwargs.items()
            }
        return function(x, t, **repeated[count])

    return call


def rounded(evaluate: Evaluate, narrow: torch.dtype, wide: torch.dtype, name: str) -> Evaluate:
    """The model of a state in the wide dtype, evaluated in the narrow one."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        x = x.to(narrow)
        output = evaluate(x, t)
        check_output(output, x, name)
        return output.to(wide)

    return call


def checked(evaluate: Evaluate, observe: Callable[[Tensor], None] | None, name: str) -> Evaluate:
    """The model with a look at each of its outputs."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        output = evaluate(x, t)
        check_output(output, x, name)
        if observe is not None:
            observe(output)
        return output

    return call


def watched(evaluate: Evaluate, watch: Watch) -> Evaluate:
    """The model with outputs that are copied where its memory may be used again."""
    return lambda x, t: watch(evaluate(x, t))


class Thresholded:
    """Model whose x0 prediction passes through a hook; knows a call by its times' tensor."""

    def __init__(
        self,
        evaluate: Evaluate,
        model: Model,
        plan: Plan,
        calls: Sequence[int],
        rows: Sequence[Tensor],
        threshold: Callable[[Tensor, float], Tensor],
    ) -> None:
        self._evaluate, self._threshold = evaluate, threshold
        stage_times = [stage.time for step in plan.steps for stage in step.stages]
        points = iter(Point.many(model.process, stage_times))
        self._weights = {
            id(row): [
                (
                    point.t,
                    conversion(model.process, plan.prediction, "x0", point),
                    conversion(model.process, "x0", plan.prediction, point),
                )
                for point in islice(points, size)
            ]
            for row, size in zip(rows, calls, strict=True)
        }

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The output that the hooked x0 prediction amounts to."""
        output = self._evaluate(x, t)
        check_output(output, x)
        weights = self._weights[id(t)]
        if len(weights) == 1:
            return self._hooked(x, output, weights[0])
        parts = zip(x.chunk(len(weights)), output.chunk(len(weights)), weights, strict=True)
        return torch.cat([self._hooked(*part) for part in parts])

    def _hooked(self, x: Tensor, output: Tensor, weights: Any) -> Tensor:
        time, (to_c, to_d), (from_c, from_d) = weights
        x0 = self._threshold(float(to_c) * x + float(to_d) * output, time)
        check_output(x0, x)
        return float(from_c) * x + float(from_d) * x0
