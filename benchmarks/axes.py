"""Errors of the founding paper's samplers along axes other than T: the tables of docs/studies.md.

python benchmarks/axes.py [--samples 2000] [--points 400]
"""

from __future__ import annotations

import argparse

import numpy as np

import probflow as pf
from probflow.studies.axes import Scan, scan
from probflow.studies.perturbed import Product, ScoreError, correlated

DIMENSIONS = (1, 2, 4, 8, 16, 32)


LINE = pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[0.30, 0.45])
NORMAL = pf.Gaussian([0.3], [0.5])
GRID = pf.grids.log_snr(3.0, -np.log(0.99), unit="neg_log_ab")


def independent(d: int) -> Product:
    """d independent copies of the mixture."""
    return correlated(LINE, d)


def equicorrelated(d: int) -> Product:
    """The mixture's copies with correlation 1/2 between all, along the principal axes."""
    return correlated(LINE, d, 0.5)


def markov(d: int) -> Product:
    """Correlation 0.8^|i - j|, along the principal axes."""
    return correlated(LINE, d, 0.8, decay=True)


def one_direction(d: int) -> Product:
    """The mixture in one direction, the same normal law in all others."""
    return Product([LINE, *[NORMAL] * (d - 1)])


def two_covariances(d: int) -> pf.GaussianMixture:
    """Two components with different full covariances: no product in any coordinates."""
    index = np.arange(d)
    decay = np.abs(index[:, None] - index)
    covariances = [0.3 * 0.8**decay, 0.5 * (-0.5) ** decay]
    means = np.stack([-np.ones(d), np.ones(d)]) / d**0.5
    return pf.GaussianMixture([0.4, 0.6], means, covariances)


def show(label: str, result: Scan) -> None:
    """One line of a table."""
    errors = " | ".join(f"{row.error:.2e}" for row in result.rows)
    interval = f"{result.slope:.2f} [{result.low:.2f}, {result.high:.2f}]"
    text = result.reason if np.isnan(result.slope) else interval
    solver, steps, measure = (getattr(result.rows[0], k) for k in ("solver", "steps", "measure"))
    print(f"| {label} | `{solver}`, {measure}, T = {steps} | {errors} | {text} |", flush=True)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--points", type=int, default=400, help="of the ratios in chi2")
    arguments = parser.parse_args()
    print("dimension", *DIMENSIONS)
    for family in (independent, equicorrelated, markov, one_direction):
        name = family.__name__
        result = scan("dimension", DIMENSIONS, family, "accelerated-sde", 64, "path-kl")
        show(name, result)
        result = scan("dimension", DIMENSIONS, family, "accelerated-ode", 64, "kl")
        show(name, result)
    for family in (independent, two_covariances):
        options = {"samples": arguments.samples}
        result = scan("dimension", DIMENSIONS, family, "accelerated-ode", 64, "tv", **options)
        show(family.__name__, result)
    few = [1, 2, 3, 4, 6, 8]
    print("dimension", *few)
    options = {"samples": arguments.points}
    result = scan("dimension", few, two_covariances, "accelerated-sde", 32, "chi2", **options)
    show("two_covariances", result)
    for solver, axis, first in (
        ("rk4", "score", 0.001),
        ("rk4", "jacobian", 0.001),
        ("accelerated-sde", "score", 0.012),
        ("accelerated-sde", "jacobian", 0.16),
    ):
        sizes = [first * 2**k for k in range(6)]
        print(axis, *sizes)
        show(axis, scan(axis, sizes, LINE, solver, 64 if solver == "rk4" else 1024))
    waves = [0.01 * 2**k for k in range(6)]
    print("Jacobian at L2 size 0.01", *waves)
    for solver, steps in (("rk4", 256), ("accelerated-sde", 1024)):
        errors = [
            pf.study(ScoreError(LINE, 0.01, wave), solver, [steps], grid=GRID).rows[0].error
            for wave in waves
        ]
        print(
            f"| `{solver}` | " + " | ".join(f"{error:.2e}" for error in errors) + " |", flush=True
        )
    starts = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    print("initial", *starts)
    show("initial", scan("initial", starts, LINE, "rk4", 128))
    ends = [0.0005 * 4**k for k in range(6)]
    print("early", *ends)
    show("early", scan("early", ends, LINE, "rk4", 128))
    lengths = [0.025 * 2**k for k in range(5)]
    print("smoothness", *lengths)
    for solver in ("ddim", "accelerated-ode"):
        result = scan(
            "smoothness",
            lengths,
            lambda s: pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[s, s]),
            solver,
            512,
        )
        show("smoothness", result)


if __name__ == "__main__":
    main()
