"""Adaptive steps for each sample of a batch: own length, own acceptance, own status.

All bookkeeping lies on the device. A step that is tried costs one wait, for three numbers: whether
any sample still runs, and which outputs were passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.ode.control import Control, error_norm, positive, scaled, seventh_order
from probflow.ode.problem import BAD_START, Problem, host_outputs
from probflow.ode.result import Status
from probflow.ode.steps import combine, rk_step, stage_times, weighted
from probflow.tableaus import Tableau

__all__ = ["PerSample", "Taken"]

#: Told of the steps that were accepted: the states before them (batch, ...), the stages, their
#: times (batch,), and the steps' signed lengths (batch, 1, ...), 0 for samples that took none.
Taken = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], Tensor], None]

_TINY = 1e-300
_BOOKS = ("t", "h", "errors", "next", "accepted", "rejected", "status")


class PerSample:
    """Integrate every row of a batch by itself.

    Parameters
    ----------
    problem
        Function and state, made with ``per_sample``; the function gets times (batch,).
    tableau
        A method with an error estimate.
    control
        Tolerances and bounds; ``step_t`` and ``jump_t`` are not used.
    times
        Output times, (m, batch), float64, monotone down each column.
    taken
        Called after every try in which a sample took a step.
    """

    def __init__(
        self,
        problem: Problem,
        tableau: Tableau,
        control: Control,
        times: Tensor,
        taken: Taken | None = None,
    ) -> None:
        self.problem, self.tableau, self.control, self.times = problem, tableau, control, times
        self.taken = taken
        y = problem.y0
        self.y, self.t, self.end = y, times[0].clone(), times[-1]
        self.sign = torch.where(self.end >= self.t, 1.0, -1.0).to(times.dtype)
        self.norm = error_norm(problem, control.norm)
        batch = len(y)
        self.accepted = torch.zeros(batch, dtype=torch.int64, device=y.device)
        self.rejected = torch.zeros_like(self.accepted)
        self.status = torch.where(_finite(y), int(Status.RUNNING), int(Status.NON_FINITE))
        # As if the steps before had met the error that is aimed at: they count for nothing.
        self.errors = times.new_full((2, batch), control.safety ** (tableau.error_order + 1))
        self.outputs: list[Tensor] = [y] + [
            torch.full_like(y, torch.nan) for _ in range(len(times) - 1)
        ]

    def _rows(self, values: Tensor) -> Tensor:
        """(batch,) numbers, broadcast against the state, in its dtype."""
        return values.to(self.y.dtype.to_real()).reshape(-1, *(1,) * (self.y.ndim - 1))

    def _evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        return self.problem(t.to(self.problem.time_dtype), y)

    def run(self, checkpointed: bool = False) -> None:
        """Integrate to the end of every sample, or until it fails.

        ``checkpointed``: with memory O(sqrt(steps)) for the backward pass, in segments of 1, 2, 3,
        ... steps, whose number need not be known.
        """
        if len(self.times) == 1:
            self.status.fill_(int(Status.SUCCESS))
            return
        self.first = self._evaluate(self.t, self.y)
        self.h = self._first_lengths().detach()  # lengths have no derivatives, forward ones either
        self.next = torch.ones_like(self.accepted)  # the output that each sample looks for
        running, size = 1, 1
        while running:
            running = self._segment(size) if checkpointed else self._try()
            size += 1

    def _segment(self, size: int) -> int:
        """Try some steps, whose graph is not kept: they are tried again for their gradients."""
        from torch.utils.checkpoint import checkpoint

        books, running = {name: getattr(self, name) for name in _BOOKS}, 1

        def tries(y: Tensor, first: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
            nonlocal running
            vars(self).update(books, y=y, first=first, outputs=list(outputs))
            for _ in range(size):
                running = self._try()
                if not running:
                    break
            return self.y, self.first, *self.outputs

        self.y, self.first, *self.outputs = checkpoint(
            tries, self.y, self.first, *self.outputs, use_reentrant=False
        )
        return running

    def _try(self) -> int:
        control, tableau, before, start = self.control, self.tableau, self.y, self.t
        active = self.status == int(Status.RUNNING)
        left = (self.end - start).abs()
        h = self.h.clamp(control.min_step, control.max_step)
        landing = h >= left * (1.0 - 1e-12)
        # Two equal steps instead of a whole one and a sliver; no step for samples at their end.
        cut = torch.where(landing, left, torch.where(2.0 * h > left, 0.5 * left, h))
        taken = torch.where(active, cut, 0.0)
        stop = torch.where(landing & active, self.end, start + self.sign * taken)
        length = self._rows(self.sign * taken)
        columns = [time.to(self.problem.time_dtype) for time in stage_times(tableau.c, start, stop)]
        after, stages = rk_step(self.problem, tableau, before, columns, length, self.first)
        error = self._error(before, after, stages, length).detach()
        finite = torch.isfinite(error)
        small = torch.where(finite, error, torch.inf)
        tiny = ~landing & (h < 4.0 * torch.finfo(h.dtype).eps * torch.maximum(start.abs(), h))
        accept = active & (stop != start) & ((small <= 1.0) | ((h <= control.min_step) & finite))
        proposed = (taken * self._factor(small)).clamp(control.min_step, control.max_step)
        cut_short = accept & (taken < h)
        proposed = torch.where(cut_short, torch.maximum(proposed, h), proposed)
        self.h = torch.where(active, proposed, self.h)
        self.errors = torch.where(accept, torch.stack([small, self.errors[0]]), self.errors)
        self.accepted = self.accepted + accept
        self.rejected = self.rejected + (active & ~accept)

        done = accept & (stop == self.end)
        self._judge(active, accept, done, finite, tiny, stages[0])
        passed = accept & (self.sign * self.times <= self.sign * stop)  # (m, batch)
        count = passed.sum(0)
        now = torch.where(accept, count, self.next)
        lowest = torch.where(accept, self.next, len(self.times)).min()
        running, low, high = torch.stack(
            [(self.status == int(Status.RUNNING)).any().to(now.dtype), lowest, now.max()]
        ).tolist()
        mask = self._rows(accept).bool()
        if self.taken is not None and low < len(self.times):
            # A stage of a step that was rejected need not be finite.
            self.taken(before, [torch.where(mask, k, 0.0) for k in stages], columns, length * mask)
        for i in range(len(stages), len(tableau.dense)):
            if not (high > low or i == tableau.closing):
                break
            point = after if i == tableau.closing else combine(before, stages, tableau.a[i], length)
            stages.append(self.problem(columns[i], point))
        for j in range(low, high):
            here = accept & (self.next <= j) & (j < now)
            state = self._state(j, start, stop, taken, before, after, stages, length)
            self.outputs[j] = torch.where(self._rows(here).bool(), state, self.outputs[j])
        self.next = now
        self.t = torch.where(accept, stop, start)
        self.y = torch.where(mask, after, before)
        self.first = torch.where(mask, stages[tableau.closing], self.first)
        return int(running)

    @torch.no_grad()
    def _error(self, before: Tensor, after: Tensor, stages: list[Tensor], h: Tensor) -> Tensor:
        control = self.control
        norms = [
            self.norm(
                scaled(weighted(stages, w).mul_(h), control.rtol, control.atol, before, after)
            ).to(self.times.dtype)
            for w in self.tableau.error
        ]
        if len(norms) == 1:
            return norms[0]
        return seventh_order(*norms)

    def _factor(self, error: Tensor) -> Tensor:
        """:meth:`Control.factor` for each sample; infinite errors shrink the step most."""
        control, k = self.control, self.tableau.error_order + 1
        history = torch.stack([error, *self.errors]).clamp_min(1e-12)
        factor = torch.ones_like(error)
        for values, share in zip(history, control.shares, strict=True):
            if share != 0.0:
                factor = factor * (control.safety**share * values ** (-share / k))
        factor = _rough(factor)
        lowest = torch.full_like(error, control.dfactor)
        if control.controller[0] == control.controller[2] == 0.0:
            lowest = torch.where(error < 1.0, 1.0, lowest)
        highest = torch.where(error > 1.0, 0.9, control.ifactor)  # repeated steps are shorter
        factor = torch.minimum(torch.maximum(factor, lowest), highest)
        factor = torch.where(error == 0.0, control.ifactor, factor)
        return torch.where(torch.isfinite(error), factor, control.dfactor)

    def _judge(
        self,
        active: Tensor,
        accept: Tensor,
        done: Tensor,
        finite: Tensor,
        tiny: Tensor,
        first: Tensor,
    ) -> None:
        """Samples that reached their end, or cannot."""
        tries = self.accepted + self.rejected
        stuck = active & ~accept
        status = self.status
        status = torch.where(active & (tries >= self.control.max_num_steps), 1, status)
        status = torch.where(stuck & tiny, torch.where(finite, 3, 2), status)
        status = torch.where(stuck & ~_finite(first), 2, status)
        self.status = torch.where(done, 0, status)

    def _state(
        self,
        j: int,
        start: Tensor,
        stop: Tensor,
        taken: Tensor,
        before: Tensor,
        after: Tensor,
        stages: list[Tensor],
        h: Tensor,
    ) -> Tensor:
        """States of all samples at output j, wherever in the step each one meets it."""
        theta = (self.times[j] - start).abs() / taken.clamp_min(_TINY)
        theta = theta.clamp(0.0, 1.0)
        value = before
        for k, coefficients in zip(stages, self.tableau.dense, strict=True):
            weight = torch.zeros_like(theta)
            for coefficient in reversed(coefficients):
                weight = (weight + coefficient) * theta
            value = value + k * (h * self._rows(weight))
        return torch.where(self._rows(self.times[j] == stop).bool(), after, value)

    @torch.no_grad()
    def _first_lengths(self) -> Tensor:
        """Hairer, Norsett, Wanner, Solving ODEs I, section II.4, for each sample."""
        control, left = self.control, (self.end - self.t).abs()
        if control.first_step is not None:
            return torch.full_like(left, control.first_step)
        scale = positive((self.y.abs() * control.rtol).add_(control.atol), control.atol)
        of_state = self.norm(self.y / scale).to(left.dtype)
        of_slope = self.norm(self.first / scale).to(left.dtype)
        h0 = 0.01 * of_state / of_slope
        h0 = torch.where(torch.minimum(of_state, of_slope) < 1e-5, 1e-6, h0)
        h0 = torch.where(torch.isfinite(h0), torch.minimum(h0, left), left)
        point = combine(self.y, [self.first], [1.0], self._rows(self.sign * h0))
        change = self._evaluate(self.t + self.sign * h0, point) - self.first
        of_change = self.norm(change / scale).to(left.dtype) / h0.clamp_min(_TINY)
        worst = torch.maximum(of_slope, of_change)
        h1 = _rough((0.01 / worst.clamp_min(1e-15)) ** (1.0 / (self.tableau.error_order + 1)))
        h1 = torch.where(worst <= 1e-15, torch.maximum(1e-3 * h0, torch.full_like(h0, 1e-6)), h1)
        best = torch.minimum(100.0 * h0, h1).clamp_max(control.max_step)
        return torch.where(torch.isfinite(best), best, h0)

    # Result -------------------------------------------------------------------------------------

    def failure(self) -> tuple[Status, str]:
        """How the first sample ended that did not reach its end, in words; SUCCESS if all did."""
        codes = self.status.tolist()
        failed = [sample for sample, code in enumerate(codes) if code != int(Status.SUCCESS)]
        if not failed:
            return Status.SUCCESS, Status.SUCCESS.message
        sample, count = failed[0], f"{len(failed)} of {len(codes)} samples failed"
        status = Status(codes[sample])
        if not bool(torch.isfinite(self.problem.y0[sample]).all()):
            return status, f"{BAD_START}, sample {sample} ({count})"
        return status, (
            f"{count}, first sample {sample} at t = {float(self.t[sample]):g} after "
            f"{int(self.accepted[sample])} steps: {status.message}"
        )


def _finite(rows: Tensor) -> Tensor:
    """Whether all numbers of a sample are finite, (batch,)."""
    flags = torch.isfinite(rows)
    return flags.flatten(1).all(1) if rows.ndim > 1 else flags


def _rough(powers: Tensor) -> Tensor:
    """Powers with eight bits, all that step lengths need.

    The last bit of a power depends on how many are taken at once (processors have other code for a
    few), and so would a sample's steps on the size of its batch.
    """
    return powers.to(torch.bfloat16).to(powers.dtype)


def per_sample_times(t: Any, y0: Tensor) -> Tensor:
    """Output times (m, batch) of the samples, from (m,) or (m, batch).

    Raises
    ------
    TypeError, ValueError
        If they are no times, do not fit the batch or are not monotone.
    """
    dtype = torch.float32 if y0.device.type == "mps" else torch.float64
    if isinstance(t, np.ndarray) and t.ndim == 2:
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    if not (isinstance(t, Tensor) and t.ndim == 2):
        column = torch.tensor(host_outputs(t), dtype=torch.float64, device="cpu").to(dtype)
        return column[:, None].expand(-1, len(y0)).to(y0.device)
    times = t.detach().to(device=y0.device, dtype=dtype)
    if times.shape[1] != len(y0):
        raise ValueError(
            f"t: times of samples need shape (m, batch) with batch {len(y0)}, got {tuple(t.shape)}"
        )
    gaps = times.diff(dim=0)
    ordered = (gaps > 0).all(0) | (gaps < 0).all(0)
    if not bool((ordered & torch.isfinite(times).all(0)).all()):
        raise ValueError("t: the times of each sample must be finite and strictly monotone")
    return times
