"""Integration error inside diffusers by grid: stock schedulers and ProbflowScheduler.

Stable Diffusion's noise levels, a mixture of four normal laws in the plane with its exact noise
prediction at every time that a scheduler tells. The error is the root mean square distance from
where the exact flow takes the same states, with 10, 20, 40 and 80 steps, to no noise or to the
least noise level of the training. Needs the extra "diffusers".

    python benchmarks/diffusers_grids.py
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from orders_in_truth import TARGET
from torch import Tensor

import probflow as pf
from probflow.diffusers import ProbflowScheduler

STEPS = (10, 20, 40, 80)
LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO, LEAST = {"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}
KARRAS, EXPONENTIAL = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}
GRIDS: dict[str, dict[str, Any]] = {
    "`linspace`, to 0": ZERO,
    "Karras, to 0": KARRAS | ZERO,
    "exponential, to 0": EXPONENTIAL | ZERO,
    "Karras, to the least level": KARRAS | LEAST,
    "exponential, to the least level": EXPONENTIAL | LEAST,
}
STOCK = {
    "stock DPM-Solver++ 2M": DPMSolverMultistepScheduler(**LEVELS, solver_order=2),
    "stock UniPC 3": UniPCMultistepScheduler(**LEVELS, solver_order=3),
}
OURS = ("dpm-solver++-2m", "dpm-solver++-3m", "unipc-3")


def start() -> tuple[pf.Model, Tensor, dict[str, Tensor]]:
    """The exact noise prediction, states of the noisy end, and where the flow takes them."""
    process = ProbflowScheduler(**LEVELS).noise_levels.process
    (first, last) = (float(process.sigma(t) / process.alpha(t)) for t in (process.start, 0.0))
    alpha = float(process.alpha(process.start))
    x = TARGET.sample(256, alpha, first * alpha, generator=torch.Generator().manual_seed(0))
    # The same flow with alpha = 1 and sigma as its time, which reaches 0.
    ode = pf.ProbabilityFlowODE(pf.EDM(), TARGET)
    times = [first, last, 0.0]
    _, least, none = pf.odeint(ode, x / alpha, times, method="dopri8", rtol=1e-10, atol=1e-10)
    return TARGET.model(process), x, {"sigma_min": least * (1 + last**2) ** -0.5, "zero": none}


def error(scheduler: Any, steps: int, model: pf.Model, x: Tensor, exact: Tensor) -> float:
    """RMS distance per coordinate after a run as a pipeline makes it."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, float(t)), t, x).prev_sample
    return float((x - exact).square().mean().sqrt())


@torch.no_grad()
def main() -> None:
    """Print the table."""
    model, x, exact = start()
    names = [*STOCK, *(f"`{name}`" for name in OURS)]
    print("| grid | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for grid, settings in GRIDS.items():
        stock = [type(s).from_config(s.config, **settings) for s in STOCK.values()]
        ours = [ProbflowScheduler.from_config(stock[0].config, solver=name) for name in OURS]
        wanted, cells = exact[settings["final_sigmas_type"]], []
        for scheduler in (*stock, *ours):
            found = [error(scheduler, steps, model, x, wanted) for steps in STEPS]
            cells.append(", ".join(f"{value:.1e}".replace("e-0", "e-") for value in found))
        print(f"| {grid} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
