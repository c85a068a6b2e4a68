"""The pictures of the gallery: rate plots of small studies, made when the documentation is built.

    python docs/mkdocs/gallery.py [FOLDER]

Errors are exact laws' (quadrature, no samples), so the pictures are the same each time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import probflow as pf
from probflow.studies.runner import Study

PROCESS = pf.VP.linear()
LINE = pf.GaussianMixture([0.35, 0.65], [-1.2, 0.8], stds=[0.30, 0.45])
ENDS = 3.0, -math.log(0.99)
EVEN = pf.grids.log_snr(*ENDS, unit="neg_log_ab")
UNEVEN = pf.grids.exponential(*ENDS, unit="neg_log_ab")


def _study(names: list[str], steps: list[int], measure: str, grid: pf.grids.Grid = EVEN) -> Study:
    return pf.study(LINE, names, steps, measure, grid=grid, process=PROCESS)


def _published() -> Study:
    """UniPC and DPM-Solver++ 3M with their order, and as published."""
    solvers = []
    for name, options in (
        ("unipc-3", {"start": "euler", "final": "lower"}),
        ("dpm-solver++-3m", {"factor": 1.0, "start": "euler", "final": "lower"}),
    ):
        right = pf.get_solver(name)
        published = replace(pf.get_solver(name, **options), name=f"{name} as published")
        solvers += [right, published]
    steps = [16, 32, 64, 128, 256, 512]
    return pf.study(LINE, solvers, steps, "strong", grid=EVEN, process=PROCESS)


#: File name (also the study's place on the page) and the study.
STUDIES: dict[str, Callable[[], Study]] = {
    "ode-tv": lambda: _study(
        ["vanilla-ode", "ddim", "accelerated-ode", "dpm-solver++-2m", "unipc-3", "rk4"],
        [8, 16, 32, 64, 128, 256],
        "tv",
    ),
    "sde-path": lambda: _study(
        ["ddpm", "accelerated-sde-readme", "accelerated-sde", "accelerated-sde-half-noise"],
        [8, 16, 32, 64, 128],
        "path-kl",
    ),
    "sde-tv": lambda: _study(
        ["ddpm", "accelerated-sde", "accelerated-sde-half-noise", "accelerated-sde-jvp"],
        [8, 16, 32, 64, 128],
        "tv",
    ),
    "published": _published,
    "uneven": lambda: _study(
        ["ddim", "accelerated-ode", "accelerated-ode-arcsin", "dpm-solver++-2m"],
        [16, 32, 64, 128, 256, 512],
        "tv",
        UNEVEN,
    ),
    "certificate": lambda: _study(
        ["two-interval", "two-interval-2"], [8, 16, 32, 64, 128], "certificate"
    ),
}


def draw(folder: Path) -> list[Path]:
    """Measure the studies and save their pictures as SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, study in STUDIES.items():
        files.append(folder / f"{name}.svg")
        study().plot(files[-1])
    return files


if __name__ == "__main__":
    for file in draw(Path(sys.argv[1] if len(sys.argv) > 1 else "gallery")):
        print(file)
