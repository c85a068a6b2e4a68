"""Time of the exact 1-D study: eight solvers, T = 8 .. 256, total variation, one core.

Goal: at most 25 s. Run it with

    python benchmarks/laws.py
"""

from __future__ import annotations

import argparse
import time

import torch

import probflow as pf

SOLVERS = (
    "ddpm",
    "ddim",
    "vanilla-ode",
    "accelerated-ode",
    "accelerated-ode-multistep",
    "accelerated-sde",
    "heun",
    "dpm-solver-2",
)
STEPS = (8, 16, 32, 64, 128, 256)


def main() -> None:
    """Measure each solver and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", default="tv", help="tv, kl, w2, path-kl or strong")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    target = pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[0.30, 0.45])
    grid = pf.grids.log_snr(3.0, 0.01005033585350145, unit="neg_log_ab")
    print("| solver | seconds | verdict |\n| :-- | --: | :-- |")
    total = 0.0
    for name in SOLVERS:
        begin = time.perf_counter()
        study = pf.study(target, [name], STEPS, arguments.measure, grid=grid)
        seconds = time.perf_counter() - begin
        total += seconds
        estimate = study.orders()[0]
        print(f"| {name} | {seconds:.2f} | {estimate.order:.2f}, {estimate.verdict} |")
    print(f"| all | {total:.1f} | |")


if __name__ == "__main__":
    main()
