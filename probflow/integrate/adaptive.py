r"""Adaptive steps in log-SNR with an embedded pair (Lu et al. 2022, arXiv 2206.00927, appendix C).

A step of length h in log-SNR is tried, and taken if the distance of the pair's two results,
measured in units of ``atol + rtol max(|x|, |x'|)``, is at most 1. Its norm E is the root mean
square over each sample and the largest over the samples; the next length is
:math:`0.9\,E^{-1/p}\,h`, p the order of the result that is kept. With ``per_sample`` every sample
has its own E, and its own steps.

Weights are floats, made on the host for the length at hand. A step that is tried waits for the
device once, for E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.loop import MaxStepsError, NonFiniteError, StepSizeError
from probflow.models import Model
from probflow.plan import Combination, Register, Stage, Step
from probflow.solvers.embedded import Attempt, EmbeddedPair
from probflow.words import check_hook, check_real, check_whole

__all__ = ["PairRun", "integrate_pair"]

_X = Register("x")
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_SHORTEST = 1e-10  # in log-SNR


@dataclass
class PairRun:
    """A run and its counts.

    Attributes
    ----------
    states
        States at the output times reached so far, the first one included.
    nfe
        Number of model evaluations (of whole batches).
    accepted, rejected
        Number of steps of each sample, or of all samples together (one entry).
    steps
        Ends of the accepted steps, with the first time, where all samples share them.
    """

    states: list[Tensor]
    nfe: int = 0
    accepted: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def integrate_pair(
    pair: EmbeddedPair,
    model: Model,
    y0: Tensor,
    times: Sequence[float],
    *,
    rtol: float,
    atol: float,
    first_step: float = 0.05,
    max_num_steps: int = 10_000,
    per_sample: bool = False,
    callback: Callable[[int, float, Tensor], None] | None = None,
    run: PairRun | None = None,
) -> PairRun:
    """States at the ``times``, on each of which a step ends.

    Parameters
    ----------
    pair
        The method.
    model
        Of any prediction type.
    y0
        State at ``times[0]``, (batch, ...). Half precision is carried in float32.
    times
        Strictly monotone process times, in either direction, of finite log-SNR.
    rtol, atol
        Tolerances, >= 0, not both 0.
    first_step
        Length of the first step in log-SNR, > 0 (the paper's is 0.05).
    max_num_steps
        Largest number of steps tried, of each sample.
    per_sample
        Steps of its own for every sample, so that none depends on the batch it is in.
    callback
        Called after each step with (number of the step, its end, state); not with ``per_sample``.
    run
        Filled while the run goes on, so that a caller has the counts of a run that fails.

    Returns
    -------
    PairRun
        ``run``, or a new one; its states have shape and dtype of ``y0``.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before the model is called.
    NonFiniteError, StepSizeError, MaxStepsError
        If the end is not reached; the message names step and time.
    """
    _check(pair, model, y0, times, rtol, atol, first_step, max_num_steps)
    check_hook("callback", callback)
    if per_sample and callback is not None:
        raise ValueError("callback: not available with per_sample, where no step serves all")
    run = PairRun([]) if run is None else run
    loop = _Loop(pair, model, y0, times[0], rtol, atol, first_step, max_num_steps, per_sample, run)
    run.states.append(y0)
    run.steps += times[:1] if not per_sample else []
    for end in times[1:]:
        loop.advance(end, callback)
        run.states.append(loop.x.to(y0.dtype))
    return run


class _Loop:
    """The samples' positions on the host, their states on the device.

    Without ``per_sample`` all share one position, and lists have one entry.
    """

    def __init__(
        self,
        pair: EmbeddedPair,
        model: Model,
        y0: Tensor,
        t0: float,
        rtol: float,
        atol: float,
        first_step: float,
        max_num_steps: int,
        per_sample: bool,
        run: PairRun,
    ) -> None:
        self.pair, self.model, self.process, self.run = pair, model, model.process, run
        self.rtol, self.atol, self.most, self.per_sample = rtol, atol, max_num_steps, per_sample
        self.narrow = y0.dtype
        self.x = y0.to(torch.promote_types(y0.dtype, torch.float32))
        count = len(y0) if per_sample else 1
        self.t, self.lambda_ = [t0] * count, [float(self.process.lambda_(t0))] * count
        self.h = [first_step] * count
        run.accepted, run.rejected = [0] * count, [0] * count
        self.first: Tensor | None = None  # the model's output at t and x, where it is known

    def advance(self, end: float, callback: Any) -> None:
        """Try steps until all samples are at ``end``."""
        last = float(self.process.lambda_(end))
        while True:
            moving = [i for i, t in enumerate(self.t) if t != end]
            if not moving:
                return
            self._check_count(moving)
            stops = {i: self._stop(i, end, last) for i in moving}
            attempts = self._attempts(stops)
            after, error, outputs = self._evaluate(attempts)
            errors = error.tolist()  # the one wait for the device
            accepted = [i for i in moving if errors[i] <= 1.0]
            for i in moving:
                self._next_length(i, errors[i], stops[i], outputs[0])
            if accepted:
                self.x = self._where(accepted, after)
                self.first = None
            else:
                self.first = outputs[0]
            if accepted and not self.per_sample:
                self.run.steps.append(self.t[0])
                if callback is not None:
                    callback(self.run.accepted[0] - 1, self.t[0], self.x.to(self.narrow))

    def _stop(self, i: int, end: float, last: float) -> tuple[float, float]:
        """Time and log-SNR at which the next step of sample ``i`` is to end."""
        left = last - self.lambda_[i]
        h = self.h[i]
        if h >= abs(left) * (1.0 - 1e-12):
            return end, last
        if 2.0 * h > abs(left):  # two equal steps instead of a whole one and a sliver
            h = 0.5 * abs(left)
        stop = self.lambda_[i] + math.copysign(h, left)
        return float(self.process.t(stop)), stop

    def _attempts(self, stops: dict[int, tuple[float, float]]) -> list[Attempt]:
        """The step of each sample, made once for those that share it."""
        made: dict[tuple[float, float], Attempt] = {}
        attempts = []
        for i, t in enumerate(self.t):
            stop = stops[i][0] if i in stops else t
            if (t, stop) not in made:
                if t == stop:
                    attempt = _standing(t, self.pair.nfe)
                else:
                    attempt = self.pair.attempt(self.process, t, stop, self.model.prediction)
                made[t, stop] = attempt
            attempts.append(made[t, stop])
        return attempts

    def _evaluate(self, attempts: list[Attempt]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Result, error of each sample (or the largest), and the model's outputs."""
        known: dict[Register, Tensor] = {_X: self.x}
        outputs: list[Tensor] = []
        for j in range(self.pair.nfe):
            state = self._combine([a.step.stages[j].input for a in attempts], known)
            known[Register("u", j)] = state
            if j or self.first is None:
                outputs.append(self._call(state, [a.step.stages[j].time for a in attempts]))
            else:
                outputs.append(self.first)
            known[Register("f", j)] = outputs[j]
        after = self._combine([a.step.update for a in attempts], known)
        with torch.no_grad():
            error = self._combine([a.error for a in attempts], known)
            scale = torch.maximum(self.x.abs(), after.abs()).mul_(self.rtol).add_(self.atol)
            rows = (error / scale.clamp_min_(torch.finfo(scale.dtype).tiny)).flatten(1)
            norms = torch.linalg.vector_norm(rows, dim=1) / math.sqrt(max(1, rows.shape[1]))
        return after, norms if self.per_sample else norms.max().reshape(1), outputs

    def _combine(self, combinations: list[Combination], known: dict[Register, Tensor]) -> Tensor:
        """The combination of each sample, whose weights differ where their steps do."""
        weights: dict[Register, list[float]] = {}
        for i, combination in enumerate(combinations):
            for register, weight in combination:
                weights.setdefault(register, [0.0] * len(combinations))[i] = weight
        total: Tensor | None = None
        for register, column in weights.items():
            term = known[register] * self._column(column)
            total = term if total is None else total + term
        return torch.zeros_like(self.x) if total is None else total

    def _column(self, values: list[float]) -> float | Tensor:
        if not self.per_sample:
            return values[0]
        column = torch.tensor(values, dtype=torch.float64, device="cpu")
        column = column.to(self.x.dtype.to_real())
        return column.to(self.x.device).view(-1, *(1,) * (self.x.ndim - 1))

    def _call(self, x: Tensor, times: list[float]) -> Tensor:
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        if self.per_sample:
            t = torch.tensor(times, dtype=dtype, device="cpu").to(x.device)
        else:
            t = torch.full((), times[0], dtype=dtype, device=x.device)
        self.run.nfe += 1
        return self.model(x.to(self.narrow), t).to(x.dtype)

    def _where(self, accepted: list[int], after: Tensor) -> Tensor:
        if not self.per_sample:
            return after
        mask = torch.zeros(len(self.t), dtype=torch.bool, device="cpu")
        mask[accepted] = True
        return torch.where(mask.to(after.device).view(-1, *(1,) * (after.ndim - 1)), after, self.x)

    def _next_length(self, i: int, error: float, stop: tuple[float, float], first: Tensor) -> None:
        """Go to the end of a step that is accepted; choose the length of the next."""
        taken = abs(stop[1] - self.lambda_[i])
        if error <= 1.0:
            grow = _SAFETY * max(error, 1e-12) ** (-1.0 / self.pair.order)
            proposed = taken * min(_GROW, max(_SHRINK, grow))
            # A step that was cut to land somewhere says little about the length of the next.
            self.h[i] = max(proposed, self.h[i]) if taken < self.h[i] else proposed
            self.t[i], self.lambda_[i] = stop
            self.run.accepted[i] += 1
            return
        self.run.rejected[i] += 1
        place = self._place(i)
        if not math.isfinite(error):
            before = self.x[i] if self.per_sample else self.x
            if not (self.run.accepted[i] or bool(torch.isfinite(before).all())):
                who = f", sample {i}" if self.per_sample else ""
                raise NonFiniteError(f"{self.pair.name}: NaN or infinity in the initial state{who}")
            outputs = first[i] if self.per_sample else first
            if not bool(torch.isfinite(outputs).all()):
                raise NonFiniteError(f"{self.pair.name}: NaN or infinity in the model at {place}")
            self.h[i] = _SHRINK * taken
        else:
            shrink = _SAFETY * error ** (-1.0 / self.pair.order)
            self.h[i] = taken * min(0.9, max(_SHRINK, shrink))
        if self.h[i] < _SHORTEST:
            if math.isfinite(error):
                raise StepSizeError(
                    f"rtol, atol: {self.pair.name} cannot meet them at {place}, with steps down "
                    f"to {self.h[i]:.1g} in log-SNR"
                )
            raise NonFiniteError(f"{self.pair.name}: NaN or infinity in the model after {place}")

    def _check_count(self, moving: list[int]) -> None:
        for i in moving:
            if self.run.accepted[i] + self.run.rejected[i] >= self.most:
                raise MaxStepsError(
                    f"max_num_steps: {self.most} steps were not enough; {self.pair.name} stopped "
                    f"at {self._place(i)}, with steps of {self.h[i]:.3g} in log-SNR"
                )

    def _place(self, i: int) -> str:
        place = f"step {self.run.accepted[i]}, t = {self.t[i]:g}"
        return f"{place}, sample {i}" if self.per_sample else place


def _standing(t: float, nfe: int) -> Attempt:
    """The step of a sample that waits for the others."""
    here = ((_X, 1.0),)
    return Attempt(Step(t, t, (Stage(here, t),) * nfe, (), here), ())


def _check(
    pair: EmbeddedPair,
    model: Any,
    y0: Any,
    times: Sequence[float],
    rtol: float,
    atol: float,
    first_step: float,
    max_num_steps: int,
) -> None:
    if not isinstance(y0, Tensor):
        raise TypeError(f"y0: need a tensor, got {type(y0).__name__}")
    if not y0.is_floating_point():
        raise TypeError(f"y0: need a floating-point tensor, got {y0.dtype}")
    if y0.ndim < 1 or len(y0) < 1:
        raise ValueError(f"y0: need shape (batch, ...), got {tuple(y0.shape)}")
    check_real("rtol", rtol, "[0, inf)")
    check_real("atol", atol, "[0, inf)")
    if rtol == atol == 0.0:
        raise ValueError("rtol, atol: one of them must be > 0")
    check_real("first_step", first_step, "(0, inf)")
    check_whole("max_num_steps", max_num_steps, 1)
    model.process.check_times(list(times), "t")
    for time in times:
        if not math.isfinite(float(model.process.lambda_(time))):
            raise ValueError(
                f"t: {pair.name} integrates in log-SNR, which is infinite at t = {time:g} "
                "(alpha = 0 or sigma = 0): start or end elsewhere"
            )
