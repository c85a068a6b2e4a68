"""Errors of the founding paper's samplers along axes other than T: the tables of docs/studies.md.

python benchmarks/axes.py [--samples 2000] [--points 1000] [--only AXIS ...]
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


def low_rank(d: int) -> pf.GaussianMixture:
    """Three components, each with its own long direction, none along a coordinate or another's."""
    turned = np.random.default_rng(0).standard_normal((6, max(DIMENSIONS)))[:, :d]
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    covariances = [0.2 * np.eye(d) + 0.8 * np.outer(long, long) for long in turned[:3]]
    return pf.GaussianMixture([0.3, 0.3, 0.4], 1.5 * turned[3:], covariances)


def normal_law(d: int) -> pf.Gaussian:
    """A normal law of correlation 0.8^|i - j|."""
    index = np.arange(d)
    return pf.Gaussian(np.zeros(d), 0.3 * 0.8 ** np.abs(index[:, None] - index))


def show(label: str, result: Scan) -> None:
    """One line of a table: each error with its value of the axis, towards the asymptote."""
    errors = " | ".join(
        f"{value:g}: {row.error:.2e}" + (f" ± {row.se:.1e}" if row.se > 0 else "")
        for value, row in zip(result.values, result.rows, strict=True)
    )
    interval = f"{result.slope:.2f} [{result.low:.2f}, {result.high:.2f}]"
    text = result.reason if np.isnan(result.slope) else interval
    solver, steps, measure = (getattr(result.rows[0], k) for k in ("solver", "steps", "measure"))
    print(f"| {label} | `{solver}`, {measure}, T = {steps} | {errors} | {text} |", flush=True)


def dimension(samples: int, points: int) -> None:
    """The founding paper's samplers in 1 to 32 dimensions (1 to 1024 for normal laws)."""
    for family in (independent, equicorrelated, markov, one_direction):
        for solver, measure in (("accelerated-sde", "path-kl"), ("accelerated-ode", "kl")):
            result = scan("dimension", DIMENSIONS, family, solver, 64, measure)
            show(family.__name__, result)
    for family in (two_covariances, low_rank):
        for solver, measure in (
            ("accelerated-sde", "path-kl"),
            ("accelerated-sde-half-noise", "path-kl"),
            ("ddpm", "path-kl"),
            ("accelerated-ode", "kl"),
            ("accelerated-ode", "tv"),
        ):
            options = {"samples": samples * (1 if measure == "path-kl" else 2)}
            result = scan("dimension", DIMENSIONS, family, solver, 64, measure, **options)
            show(family.__name__, result)
    result = scan(
        "dimension", DIMENSIONS, independent, "accelerated-ode", 64, "tv", samples=samples
    )
    show("independent", result)
    few = [1, 2, 3, 4, 6, 8]
    for family in (two_covariances, low_rank):
        result = scan("dimension", few, family, "accelerated-sde", 32, "chi2", samples=points)
        show(family.__name__, result)
    many = [4**k for k in range(6)]
    for solver in ("accelerated-sde", "accelerated-ode"):
        show("normal_law", scan("dimension", many, normal_law, solver, 64, "kl"))


def score(**_: int) -> None:
    """Errors of the score, by a shift and by waves."""
    for solver, axis, first in (
        ("rk4", "score", 0.001),
        ("rk4", "jacobian", 0.001),
        ("accelerated-sde", "score", 0.012),
        ("accelerated-sde", "jacobian", 0.16),
    ):
        sizes = [first * 2**k for k in range(6)]
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


def ends(**_: int) -> None:
    """N(0, I) in the place of the law at the start; the data in that of the law at the end."""
    starts = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    show("initial", scan("initial", starts, LINE, "rk4", 128))
    stops = [0.0005 * 4**k for k in range(6)]
    show("early", scan("early", stops, LINE, "rk4", 128))


def smoothness(**_: int) -> None:
    """Both components of the mixture as narrow as s."""
    lengths = [0.025 * 2**k for k in range(5)]
    show("smoothness", scan("smoothness", lengths, narrow, "accelerated-ode", 512))
    lengths, deep = [0.0125, *lengths], pf.grids.log_snr(3.0, 1e-6, unit="neg_log_ab")
    for measure in ("tv", "w2"):
        show(
            "smoothness to sigma = 0.001",
            scan("smoothness", lengths, narrow, "ddim", 256, measure, grid=deep),
        )


def narrow(s: float) -> pf.GaussianMixture:
    """The mixture with both standard deviations s."""
    return pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[s, s])


PARTS = {part.__name__: part for part in (dimension, score, ends, smoothness)}


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--points", type=int, default=1000, help="of the ratios in chi2")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    for name in arguments.only:
        PARTS[name](samples=arguments.samples, points=arguments.points)


if __name__ == "__main__":
    main()
