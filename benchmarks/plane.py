"""The two tables of errors in docs/solvers.md: fixed steps and adaptive ones, in the plane.

A mixture of four normal laws with exact score on the linear VP process, float64, 32 samples of the
true law at the noisy end, against Dormand-Prince of order 8 at 1e-13.

    python benchmarks/plane.py
"""

from __future__ import annotations

import math
from typing import Any

import torch
from orders_in_truth import TARGET
from torch import Tensor

import probflow as pf
from probflow.integrate import run_plan

PROCESS = pf.VP.linear()
GRID = pf.grids.log_snr(3.0, 0.01, "neg_log_ab")
STEPS = (8, 32, 512)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("pndm", {}),
    ("pndm", {"weights": "constant"}),
    ("pndm", {"weights": "constant", "start": "heun"}),
    ("unipc-1", {}),
    ("unipc-4", {}),
    ("exponential-ab4-v", {}),
    ("dpm-solver-fast", {}),
    ("dpm-solver-fast", {"remainder": 1}),
    ("strang", {}),
    ("edm-rk4", {}),
    ("rk5", {}),
]
MODEL = TARGET.model(PROCESS)


def start_and_end(first: float, last: float) -> tuple[Tensor, Tensor]:
    """Samples of the true law at a time, and where the exact flow takes them."""
    generator = torch.Generator().manual_seed(0)
    levels = float(PROCESS.alpha(first)), float(PROCESS.sigma(first))
    x = TARGET.sample(32, *levels, generator=generator)
    ode = pf.ProbabilityFlowODE(PROCESS, MODEL)
    times = torch.tensor([first, last], dtype=torch.float64)
    return x, pf.odeint(ode, x, times, method="dopri8", rtol=1e-13, atol=1e-13)[-1]


def fixed() -> None:
    """Root mean square errors with fixed steps; those below 1e-14 are rounding."""
    times = GRID.times(PROCESS, 1)
    x, exact = start_and_end(float(times[0]), float(times[-1]))
    print("| solver | 8 steps | 32 | 512 | local order to 512 |")
    print("| --- | --- | --- | --- | --- |")
    for name, options in CASES:
        solver = pf.get_solver(name, **options)

        def error(steps: int, solver: pf.Solver = solver) -> float:
            plan = solver.plan(PROCESS, GRID.times(PROCESS, steps), "eps")
            return float((run_plan(plan, MODEL, x) - exact).square().mean().sqrt())

        errors = [error(steps) for steps in STEPS]
        cells = [f"{e:.1e}" if e > 1e-14 else "rounding" for e in errors]
        order = math.log2(error(256) / errors[-1])
        text = "".join(
            f', `{key}="{v}"`' if v != 1 else f", `{key}=1`" for key, v in options.items()
        )
        shown = f"{order:.2f}" if errors[-1] > 1e-13 else ""
        print(f"| `{name}`{text} | {' | '.join(cells)} | {shown} |")


def adaptive() -> None:
    """Largest errors of adaptive steps in log-SNR, from t = 1 to 0.001."""
    x, exact = start_and_end(1.0, 0.001)
    ode = pf.ProbabilityFlowODE(PROCESS, MODEL)
    print("\n| tolerance | `dpm-solver-12` | NFE | `dpm-solver-23` | NFE |")
    print("| --- | --- | --- | --- | --- |")
    for exponent in range(2, 7):
        tolerance, cells = 10.0**-exponent, []
        for name in ("dpm-solver-12", "dpm-solver-23"):
            ends = [1.0, 0.001]
            run = pf.solve_ode(ode, x, ends, method=name, rtol=tolerance, atol=tolerance)
            cells += [f"{float((run.y[-1] - exact).abs().max()):.1e}", str(run.nfe)]
        print(f"| 1e-{exponent} | {' | '.join(cells)} |")


if __name__ == "__main__":
    with torch.no_grad():
        fixed()
        adaptive()
