"""The built-in study: what the founding paper claims, measured on a mixture and on real data."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from probflow.grids import Grid
from probflow.integrate.sample import sample
from probflow.processes import VP
from probflow.solvers import Solver, get_solver
from probflow.studies.cells import Curve
from probflow.studies.config import digits
from probflow.studies.measure import Settings
from probflow.studies.runner import make_curves
from probflow.studies.shown import Images
from probflow.targets import GaussianMixture

__all__ = ["builtin_curves", "digit_images", "mixture"]

DETERMINISTIC = (
    "ddim",
    "vanilla-ode",
    "accelerated-ode",
    "accelerated-ode-multistep",
    "heun",
    "dpm-solver-2",
)
STOCHASTIC = ("ddpm", "accelerated-sde", "accelerated-sde-readme", "accelerated-sde-half-noise")
NFE_BUDGETS = (5, 10, 20)


def mixture() -> GaussianMixture:
    """The 1-D two-component mixture of the built-in study."""
    target = GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[0.30, 0.45])
    target.name = "mixture-1d"
    return target


def builtin_curves(seed: int = 0) -> list[Curve]:
    """Curves of the built-in study: (a) the 1-D mixture, (b) the digits."""
    line = {
        "targets": [mixture()],
        # Uniform log-SNR with fixed ends: there every solver is in its asymptotic range, and
        # slopes in T carry no logarithm.
        "grid": Grid("log-snr", 3.0, -math.log(0.99), "neg_log_ab"),
        "steps": (8, 16, 32, 64, 128, 256, 512),
        "process": None,
        "settings": Settings(seed),
    }
    # At -ln ab = 0.5 the flow of the digits is smooth; nearer to the data a few samples that
    # change to another digit decide the mean (docs/real-data.md).
    real = {
        "targets": [digits()],
        "grid": Grid("log-snr", 5.0, 0.5, "neg_log_ab"),
        "process": None,
    }
    flow = {"steps": (8, 16, 32, 64, 128, 256), "settings": Settings(seed, samples=96)}
    path = {"steps": (8, 16, 32, 64, 128), "settings": Settings(seed, samples=384)}
    # Eight scores a step and path, or two Jacobians of 64 x 64: fewer paths.
    costly = {**path, "settings": Settings(seed, samples=32)}
    lay_out = [
        (STOCHASTIC, "path-kl", line),
        ((*STOCHASTIC, *DETERMINISTIC), "tv", line),
        (DETERMINISTIC, "strong", {**real, **flow}),
        (STOCHASTIC[:1], "path-kl", {**real, **path}),
        (STOCHASTIC[1:], "path-kl", {**real, **costly}),
    ]
    return [
        curve
        for names, measure, rest in lay_out
        for curve in make_curves(solvers=names, measures=(measure,), **rest)  # type: ignore[arg-type]
    ]


def steps_for(solver: Solver, budget: int, grid: Grid) -> tuple[int, int]:
    """Most steps of a solver whose plan takes at most ``budget`` evaluations, and its evaluations.

    These are fewer than the budget where the last of them would not pay for a step.
    """
    process = VP.linear()

    def nfe(steps: int) -> int:
        return solver.plan(process, grid.times(process, steps)).nfe

    steps = budget
    while steps > 1 and nfe(steps) > budget:
        steps -= 1
    return steps, nfe(steps)


def digit_images(count: int = 6, seed: int = 0, budgets: tuple[int, ...] = NFE_BUDGETS) -> Images:
    """Generated digits per solver, ``count`` for each NFE budget, all from the same noise."""
    target, process = digits(), VP.linear()
    grid = Grid("log-snr", float(process.neg_log_ab(1.0)), 1e-3, "neg_log_ab")
    pictures: dict[str, np.ndarray] = {}
    calls: dict[str, tuple[int, ...]] = {}
    for name in (*STOCHASTIC[:2], *DETERMINISTIC, "dpm-solver++-2m"):
        solver = get_solver(name)
        row: list[np.ndarray] = []
        plans = [steps_for(solver, budget, grid) for budget in budgets]
        for steps, _ in plans:
            x: Tensor = sample(
                target,
                (count, 64),
                solver,
                steps,
                process=process,
                grid=grid,
                seed=seed,
            )
            row += list(x.reshape(-1, 8, 8).double().numpy())
        pictures[name] = np.stack(row)
        calls[name] = tuple(nfe for _, nfe in plans)
    groups = tuple(f"at most {budget} NFE" for budget in budgets)
    return Images(target.name, grid.label, groups, pictures, -1.0, 1.0, nfe=calls)
