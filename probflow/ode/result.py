"""What a solve did: status, counts, errors."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probflow.integrate.loop import MaxStepsError, NonFiniteError, SolveError, StepSizeError

__all__ = ["MaxStepsError", "ODEResult", "SolveError", "Status", "StepSizeError"]


class Status(enum.IntEnum):
    """How a solve, or one sample of it, ended."""

    RUNNING = -1
    SUCCESS = 0
    MAX_STEPS = 1
    NON_FINITE = 2
    STEP_SIZE = 3

    @property
    def message(self) -> str:
        """A sentence for people."""
        return _MESSAGES[self]

    @property
    def error(self) -> type[Exception]:
        """The exception that reports it."""
        return {Status.MAX_STEPS: MaxStepsError, Status.NON_FINITE: NonFiniteError}.get(
            self, StepSizeError
        )


_MESSAGES = {
    Status.RUNNING: "the end has not been reached yet",
    Status.SUCCESS: "the end was reached",
    Status.MAX_STEPS: "max_num_steps steps were not enough",
    Status.NON_FINITE: "the function returned NaN or infinity",
    Status.STEP_SIZE: "the step size fell below the resolution of the times",
}


@dataclass(frozen=True)
class ODEResult:
    """Solution of an ODE and how it was found.

    Attributes
    ----------
    t
        Output times, (m,), as given.
    y
        States at ``t``, (m, \\*y0.shape), or a tuple of such; NaN where a solve stopped before.
    nfe
        Number of evaluations of the function (of whole batches).
    accepted, rejected
        Number of steps; with ``per_sample`` int64 tensors (batch,).
    status
        :class:`Status`; with ``per_sample`` an int64 tensor (batch,) of its values.
    message
        What happened, in words.
    event_t
        Time of the event, 0-d, if one was looked for.
    dense
        The solution as a function of time, if it was asked for:
        see :class:`~probflow.ode.dense.DenseOutput`.
    steps
        Ends of the accepted steps, (accepted + 1,) floats, where one grid serves all samples.
    """

    t: Any
    y: Any
    nfe: int
    accepted: int | Tensor
    rejected: int | Tensor
    status: Status | Tensor
    message: str
    event_t: Tensor | None = None
    dense: Callable[[Any], Tensor] | None = None
    steps: tuple[float, ...] = field(default=(), repr=False)

    @property
    def success(self) -> bool:
        """Whether every sample reached the end."""
        if isinstance(self.status, Tensor):
            return bool(torch.all(self.status == int(Status.SUCCESS)))
        return self.status is Status.SUCCESS
