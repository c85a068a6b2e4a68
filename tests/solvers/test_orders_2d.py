"""Strong orders in the plane, on three families of grids, against a tight flow.

The reference is independent of all solvers measured: Dormand-Prince of order 8, tolerance 1e-13.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import probflow as pf
from probflow.grids import Grid
from probflow.integrate import run_plan
from probflow.studies import estimate_order

TARGET = pf.GaussianMixture(
    [0.2, 0.3, 0.1, 0.4],
    [[-1.0, -0.8], [1.1, -0.5], [-0.7, 1.2], [0.9, 1.0]],
    stds=[[0.4, 0.5], [0.5, 0.35], [0.45, 0.4], [0.6, 0.5]],
)
PROCESS = pf.VP.linear()
ENDS = (3.0, -math.log(0.99), "neg_log_ab")
GRIDS = {
    "log-snr": pf.grids.log_snr(*ENDS),
    "karras": pf.grids.karras(start=ENDS[0], end=ENDS[1], unit=ENDS[2], rho=7.0),
    "uniform": pf.grids.uniform(*ENDS),
}
FAMILIES = (
    "exponential-", "dpm-solver", "lms-", "ipndm-", "pndm", "deis-", "ab", "unipc-", "edm-", "rk",
    "strang",
)  # fmt: skip
SOLVERS = [s for s in pf.all_solvers() if s.name.startswith(FAMILIES) and not s.stochastic]
FLOOR = 2e-14  # what rounding leaves of the finest errors


def step_counts(solver: pf.Solver) -> tuple[int, ...]:
    """Methods with a long memory come late to their order, above all in uniform time."""
    first = 8 if solver.memory < 2 else 16 if solver.orders["strong"] < 4 else 32
    return tuple(first * 2**k for k in range(6))


def starts() -> Tensor:
    """States of the true law at the first time."""
    t = GRIDS["log-snr"].times(PROCESS, 1)[0]
    generator = torch.Generator().manual_seed(2)
    return TARGET.sample(24, float(PROCESS.alpha(t)), float(PROCESS.sigma(t)), generator=generator)


@cache
def flow() -> Tensor:
    """Where the exact flow takes them."""
    times = torch.as_tensor(GRIDS["log-snr"].times(PROCESS, 1).copy())
    ode = pf.ProbabilityFlowODE(PROCESS, TARGET.model(PROCESS))
    return pf.odeint(ode, starts(), times, method="dopri8", rtol=1e-13, atol=1e-13)[-1]


def by_name(solver: pf.Solver) -> str:
    return solver.name


def error(solver: pf.Solver, grid: Grid, steps: int) -> float:
    plan = solver.plan(PROCESS, grid.times(PROCESS, steps), "eps")
    with torch.no_grad():
        reached = run_plan(plan, TARGET.model(PROCESS), starts())
    return float((reached - flow()).square().mean().sqrt())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.orders["strong"] < 5], ids=by_name)
def test_strong_order(solver: pf.Solver, grid: str) -> None:
    counts = step_counts(solver)
    errors = [error(solver, GRIDS[grid], steps) for steps in counts]
    order = solver.orders["strong"]
    estimate = estimate_order(counts, errors, claim=order, floor=np.full(len(counts), 2e-13))
    assert estimate.verdict == "consistent", (estimate.reason, errors)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.orders["strong"] == 5], ids=by_name)
def test_strong_order_5(solver: pf.Solver, grid: str) -> None:
    """Their errors come to rounding before the other terms are gone, so that no window is left.

    What is left to see: the local orders above 20 floors end nearest to 5, and nothing denies it.
    """
    counts = (32, 48, 64, 96, 128, 192, 256) if solver.memory else (16, 24, 32, 48, 64, 96)
    errors = np.array([error(solver, GRIDS[grid], steps) for steps in counts])
    estimate = estimate_order(counts, errors, claim=5, floor=np.full(len(counts), FLOOR))
    assert estimate.verdict in ("consistent", "inconclusive"), (estimate.reason, errors)
    usable = errors > 20 * FLOOR
    local = -np.diff(np.log(errors[usable])) / np.diff(np.log(np.array(counts)[usable]))
    assert round(local[-1]) == 5, errors
