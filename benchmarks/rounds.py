"""Evaluations of a round in one call: time of a run, one call an evaluation against one a round.

    python benchmarks/rounds.py [--repeats 30] [--device cuda]

The two ways alternate; the smallest time of each is printed, in milliseconds, and their ratio. The
numbers of samples are the same in both. A small model costs what its calls cost, so that fewer of
them help; a large one costs what its arithmetic costs, and a device that is busy already gains
nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import probflow as pf
from probflow.integrate import run_plan
from probflow.integrate.noise import SeededNoise

SOLVERS = [
    ("collocation", {"nodes": 3, "sweeps": 3}),
    ("collocation", {"nodes": 5, "sweeps": 4}),
    ("collocation", {"nodes": 9, "sweeps": 4}),
    ("accelerated-sde-3", {}),
]
STEPS = 4


class Perceptron(nn.Module):
    """Three layers of 256 on 16 numbers."""

    shape = (16,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(17, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 16)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise."""
        return self.layers(torch.cat([x, t[:, None]], dim=1))


class Convolutions(nn.Module):
    """Four 3 x 3 convolutions of 32 channels on images of 16 x 16."""

    shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        inner = [layer for _ in range(2) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.SiLU())]
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1), nn.SiLU(), *inner, nn.Conv2d(32, 3, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise."""
        return self.layers(torch.cat([x, t[:, None, None, None].expand_as(x[:, :1])], dim=1))


def fastest(
    runs: list[Callable[[], object]], repeats: int, wait: Callable[[], None]
) -> list[float]:
    """The smallest time of each run in milliseconds; the runs alternate."""
    best = [float("inf")] * len(runs)
    for repeat in range(repeats + 1):
        for index, run in enumerate(runs):
            wait()
            start = time.perf_counter()
            run()
            wait()
            if repeat:  # the first round makes plans and memory
                best[index] = min(best[index], 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    process = pf.VP.linear()
    print(f"{STEPS} steps on {device}, {torch.get_num_threads()} thread(s)")
    print("| model | batch | solver | NFE | rounds | a call each | a call a round | ratio |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for kind, batches in ((Perceptron, (1, 64)), (Convolutions, (1, 16))):
        torch.manual_seed(0)
        network = kind().to(device).requires_grad_(False)
        model = pf.Model(network, process, prediction="eps")
        for batch in batches:
            for name, options in SOLVERS:
                solver = pf.get_solver(name, **options)
                plan = solver.plan(process, pf.grids.log_snr().times(process, STEPS), "eps")

                shape = (batch, *kind.shape)
                x = torch.randn(shape, device=device)
                noise = SeededNoise(0, shape, x.dtype, device)
                apart = partial(run_plan, plan, model, x, noise=noise)
                together = partial(apart, parallel=True)
                torch.testing.assert_close(apart(), together(), rtol=1e-3, atol=1e-3)
                one, other = fastest([apart, together], arguments.repeats, wait)
                text = ", ".join(f"{key}={value}" for key, value in options.items())
                label = f"`{name}`" + (f" ({text})" if text else "")
                print(
                    f"| {kind.__name__} | {batch} | {label} | {plan.nfe} | {plan.rounds} "
                    f"| {one:.2f} | {other:.2f} | {one / other:.2f} |"
                )


if __name__ == "__main__":
    main()
