"""Adaptive steps in log-SNR as a method of ``odeint``: the way to embedded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from probflow.integrate.adaptive import PairRun, integrate_pair
from probflow.integrate.grid import host_times
from probflow.integrate.loop import NonFiniteError, SolveError
from probflow.ode.options import checked_options
from probflow.ode.plans import check_function
from probflow.ode.result import ODEResult, Status
from probflow.problems import ProbabilityFlowODE
from probflow.solvers.embedded import EmbeddedPair

__all__ = ["solve_pair"]

_OPTIONS = ("first_step", "max_num_steps", "per_sample", "return_info", "strict")


def solve_pair(
    pair: EmbeddedPair,
    func: Any,
    y0: Any,
    t: Any,
    *,
    rtol: Any,
    atol: Any,
    options: Mapping[str, Any] | None = None,
    event_fn: Any = None,
    throw: bool = True,
) -> ODEResult:
    """Solve with an embedded pair; arguments as :func:`probflow.solve_ode`.

    Options are ``first_step`` (in log-SNR), ``max_num_steps``, ``per_sample``, ``return_info`` and
    ``strict``.

    Raises
    ------
    TypeError, ValueError
        For arguments and options that do not fit.
    NonFiniteError, StepSizeError, MaxStepsError
        If the end is not reached, unless ``throw`` is false.
    """
    check_function(func)
    if not isinstance(func, ProbabilityFlowODE):
        raise TypeError(
            f"func: {pair.name} steps in the log-SNR of a diffusion, so it needs a "
            "pf.ProbabilityFlowODE, not a plain function"
        )
    if event_fn is not None:
        raise ValueError(f"event_fn: {pair.name} does not look for events; use dopri5")
    settings = checked_options(pair.name, options, _OPTIONS)
    for name in ("return_info", "strict"):
        settings.pop(name, None)
    times = host_times(t, "t")
    run = PairRun([])
    error: Exception | None = None
    try:
        integrate_pair(pair, func.model, y0, times, rtol=rtol, atol=atol, run=run, **settings)
    except (SolveError, NonFiniteError) as stopped:
        if throw:
            raise
        error = stopped
    missing = [torch.full_like(y0, torch.nan)] * (len(times) - len(run.states))
    status = Status.SUCCESS
    if error is not None:
        status = next(s for s in Status if s > 0 and isinstance(error, s.error))
    counts: Any = [run.accepted, run.rejected]
    if settings.get("per_sample"):
        counts = [torch.tensor(count, device=y0.device) for count in counts]
    else:
        counts = [count[0] for count in counts]
    return ODEResult(
        t=t,
        y=torch.stack([*run.states, *missing]),
        nfe=run.nfe,
        accepted=counts[0],
        rejected=counts[1],
        status=status,
        message=status.message if error is None else str(error),
        steps=tuple(run.steps),
    )
