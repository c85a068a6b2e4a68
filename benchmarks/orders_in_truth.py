"""Orders of samplers as they are published, and with what they need to have them.

Integration error (RMS over coordinates) on a two-dimensional mixture with exact score, sigma/alpha
from 10 to 0.1, even steps in log-SNR, float64, against Dormand-Prince of order 8 at 1e-13. The rows
"as published" are probflow's solvers with options that give the numbers of diffusers' schedulers to
1e-10 (``pytest -m peers tests/adapters/test_diffusers_peers.py``).

    python benchmarks/orders_in_truth.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import probflow as pf
from probflow.integrate import run_plan
from probflow.studies import estimate_order

STEPS = (8, 16, 32, 64, 128, 256, 512)
TARGET = pf.GaussianMixture(
    [0.2, 0.3, 0.1, 0.4],
    [[-1.0, -0.8], [1.1, -0.5], [-0.7, 1.2], [0.9, 1.0]],
    stds=[[0.4, 0.5], [0.5, 0.35], [0.45, 0.4], [0.6, 0.5]],
)
PROCESS = pf.VE(sigma_max=10.0)
GRID = pf.grids.log_snr(-math.log(10.0), -math.log(0.1), "lambda")
EULER, LOWER = {"start": "euler"}, {"final": "lower"}


class Case(NamedTuple):
    """One method, as published and as it should be."""

    method: str
    claim: int
    solver: str
    published: dict[str, Any] | None
    why: str


CASES = [
    Case("DDIM, Euler in sigma, DPM-Solver-1", 1, "ddim", None, ""),
    Case("Heun in sigma (EDM)", 2, "edm-heun", None, ""),
    Case("DPM2 in sigma, KDPM2", 2, "edm-dpm2", None, ""),
    Case("DPM-Solver++ 2S", 2, "dpm-solver++-2s", None, ""),
    Case("DPM-Solver++ 2M", 2, "dpm-solver++-2m", LOWER, "last step lowered: no harm"),
    Case(
        "DPM-Solver++ 3M", 3, "dpm-solver++-3m", {"factor": 1.0, **EULER, **LOWER},
        "second difference without its factor 2",
    ),
    Case(
        "DPM-Solver 3M", 3, "dpm-solver-3m", {"factor": 1.0, **EULER, **LOWER},
        "second difference without its factor 2",
    ),
    Case("DPM-Solver-3, single-step", 3, "dpm-solver-3", None, ""),
    Case("UniPC-2 (bh2)", 3, "unipc-2", LOWER, "last step of order 1"),
    Case("UniPC-3 (bh2)", 4, "unipc-3", {**EULER, **LOWER}, "Euler start, last steps lowered"),
    Case(
        "DEIS-3 of diffusers", 3, "exponential-ab3", {**EULER, **LOWER},
        "Euler start, last steps lowered; the polynomials are in log-SNR",
    ),
    Case("LMS-4", 4, "lms-4", EULER, "Euler start"),
    Case("iPNDM-3", 3, "ipndm-3", {"weights": "constant"}, "constant weights"),
    Case("iPNDM-4", 4, "ipndm-4", {"weights": "constant"}, "constant weights"),
    Case(
        "PNDM", 4, "pndm", {"start": "heun", "weights": "constant"}, "constant weights, Heun start"
    ),
]  # fmt: skip


def starts() -> Tensor:
    """States of the true law at the first time."""
    t = GRID.times(PROCESS, 1)[0]
    generator = torch.Generator().manual_seed(2)
    return TARGET.sample(64, float(PROCESS.alpha(t)), float(PROCESS.sigma(t)), generator=generator)


def exact() -> Tensor:
    """Where the flow takes them."""
    times = torch.as_tensor(GRID.times(PROCESS, 1).copy())
    ode = pf.ProbabilityFlowODE(PROCESS, TARGET.model(PROCESS))
    return pf.odeint(ode, starts(), times, method="dopri8", rtol=1e-13, atol=1e-13)[-1]


def errors(solver: pf.Solver, x: Tensor, reached: Tensor) -> list[float]:
    """RMS errors at all step counts."""
    model, result = TARGET.model(PROCESS), []
    for steps in STEPS:
        plan = solver.plan(PROCESS, GRID.times(PROCESS, steps), "eps")
        with torch.no_grad():
            result.append(float((run_plan(plan, model, x) - reached).square().mean().sqrt()))
    return result


def row(case: Case, kind: str, options: dict[str, Any], x: Tensor, reached: Tensor) -> str:
    """One line of the table."""
    solver = pf.get_solver(case.solver, **options)
    e = errors(solver, x, reached)
    estimate = estimate_order(STEPS, e, claim=case.claim, floor=2e-14)
    local = ", ".join(f"{math.log2(a / b):.2f}" for a, b in zip(e[-4:], e[-3:], strict=False))
    text = ", ".join(f"{key}={value!r}" for key, value in options.items())
    name = f"`{case.solver}`" + (f" ({text})" if text else "")
    return (
        f"| {case.method} | {kind} | {name} | {case.claim} | {e[0]:.1e} | {e[2]:.1e} | {e[-1]:.1e} "
        f"| {local} | {estimate.verdict} | {case.why if kind == 'as published' else ''} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    torch.set_num_threads(1)
    x, reached = starts(), exact()
    print(
        "| method | form | solver | claim | e(8) | e(32) | e(512) | local orders | verdict | why |"
    )
    print("|---|---|---|---:|---:|---:|---:|---|---|---|")
    for case in CASES:
        if case.published is not None:
            print(row(case, "as published", case.published, x, reached), flush=True)
        print(row(case, "right", {}, x, reached), flush=True)


if __name__ == "__main__":
    main()
