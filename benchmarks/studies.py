"""A study of 2 000 small cells on one and on two worker processes: time and memory.

    python benchmarks/studies.py [--cells 2000] [--repeats 1]

Workers are started before the clock. The ratio says whether both are kept busy, on a machine with
two idle cores; on one that others use, too, compare with the plain loops: the same cells, divided
among as many processes in advance, without a runner. Memory is the resident set of the process that
hands out the work (Linux).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import probflow as pf
from probflow.studies.cells import Curve, Task, measure_cells
from probflow.studies.executors import Processes
from probflow.studies.measure import Settings
from probflow.studies.runner import default_grid, make_curves, run_curves

STEPS = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48)
SOLVERS = ("ddim", "heun", "accelerated-ode", "dpm-solver++-2m", "rk4")


def small_curves(cells: int) -> list[Curve]:
    """Total variation of deterministic solvers on mixtures in the plane, 50 samples."""
    rng = np.random.default_rng(0)
    targets = []
    for number in range(max(1, cells // (len(STEPS) * len(SOLVERS)))):
        target = pf.GaussianMixture([1, 2], rng.normal(size=(2, 2)), stds=[0.5, 0.7])
        target.name = f"mixture-{number}"
        targets.append(target)
    return make_curves(
        targets=targets,
        solvers=SOLVERS,
        steps=STEPS,
        measures=("tv",),
        grid=default_grid(),
        process=None,
        settings=Settings(samples=50),
    )


def resident() -> float:
    """Resident memory of this process in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def warm(_: int) -> int:
    """Import everything in a worker."""
    [curve] = small_curves(1)[:1]
    measure_cells(Task(curve, 4, ("tv",)))
    time.sleep(0.5)
    return os.getpid()


def loop(curves: list[Curve]) -> None:
    """The cells of some curves, one after the other."""
    for curve in curves:
        for steps in curve.steps:
            measure_cells(Task(curve, steps, curve.measures))


def run(
    curves: list[Curve], workers: int, out: str | None
) -> tuple[float, float, float, list[float]]:
    """Seconds of the study, of plain loops, of this process's CPU; memory before and after."""
    with Processes(workers) as pool:
        while len(set(pool.map(warm, range(2 * workers)))) < workers:
            pass
        memory = [resident()]
        start, busy = time.perf_counter(), time.process_time()
        folder = None if out is None else Path(out) / str(workers)
        run_curves(curves, executor=pool, out=folder)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        memory.append(resident())
        start = time.perf_counter()
        list(pool.map(loop, [curves[n::workers] for n in range(workers)]))
        return seconds, time.perf_counter() - start, busy, memory


def main() -> None:
    """Print times, the ratio, and the growth of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    curves = small_curves(arguments.cells)
    count = sum(len(curve.steps) for curve in curves)
    run(curves[: len(SOLVERS)], 1, None)  # what is loaded once
    for _ in range(arguments.repeats):
        seconds = {}
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as out:
                seconds[workers], plain, own, memory = run(curves, workers, out)
                size = sum(path.stat().st_size for path in Path(out).rglob("*")) / 2**20
            print(
                f"{count} cells, {workers} workers: {seconds[workers]:.1f} s, "
                f"{1e3 * seconds[workers] / count:.1f} ms a cell, of which "
                f"{1e3 * own / count:.2f} ms of this process; plain loops "
                f"{plain:.1f} s; memory {memory[0]:.0f} -> "
                f"{memory[1]:.0f} MiB, {size:.1f} MiB on disk"
            )
        print(f"two workers are {seconds[1] / seconds[2]:.2f} times as fast as one")


if __name__ == "__main__":
    main()
