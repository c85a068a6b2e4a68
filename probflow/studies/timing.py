"""Wall times of the plans of a study, and their file.

What is timed is the tensor loop on the target's exact model, as :func:`probflow.sample` runs it
once its plan is made: float64 like every cell, one thread of torch, the noises drawn inside. The
plans of one target take turns, so that whatever else the machine does falls on all of them alike.

``timings.jsonl`` has one line a timing (:mod:`probflow.studies.lines`), with a ``key`` like that of
a cell. Times are taken anew, all of them, whenever a study asks for some: only those of one machine
in one state can be compared. A resumed study that asks for none keeps those whose keys are its own.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probflow.integrate.loop import run_plan
from probflow.integrate.noise import SeededNoise
from probflow.models import Model
from probflow.plan import Plan, Point
from probflow.studies.cells import LASTING, Curve, Task, cell_keys
from probflow.studies.lines import Damaged, seal, unseal
from probflow.studies.rows import NEW_TIMINGS, TIMINGS, Timing

__all__ = ["BATCH", "FORMAT", "kept_timings", "read_timings", "time_curves", "write_timings"]

TargetKey = Callable[[Curve], str]

#: Number of samples that are run at once.
BATCH = 128
FORMAT = "probflow-timings/1"

_FIELDS = [field.name for field in dataclasses.fields(Timing)]


# Measuring --------------------------------------------------------------------------------------


def time_curves(
    curves: Sequence[Curve], repeats: int, *, progress: bool = False
) -> list[tuple[Curve, Timing]]:
    """Time every plan of the curves, in this process; each once, whatever its measures.

    Plans that cannot be made or run are left out: the rows of the study say why.

    Parameters
    ----------
    curves
        What a study consists of.
    repeats
        Runs of each plan, >= 1, after one that is not counted.
    progress
        Show a progress bar of runs.
    """
    torch.set_num_threads(1)
    groups: dict[int, dict[tuple[str, str, int], Curve]] = {}
    for curve in curves:
        group = groups.setdefault(id(curve.target), {})
        for steps in curve.steps:
            group.setdefault((curve.solver.name, curve.grid.label, steps), curve)
    total = sum(map(len, groups.values())) * (repeats + 1)
    timed: list[tuple[Curve, Timing]] = []
    with tqdm(total=total, unit="run", disable=not progress) as bar, torch.no_grad():
        for group in groups.values():
            runs: list[tuple[Curve, _Run]] = []
            for (_, _, steps), curve in group.items():
                try:
                    run = _Run(curve, steps)
                    run()
                except LASTING:
                    total -= repeats
                    bar.total = total
                else:
                    runs.append((curve, run))
                bar.update()
            seconds = np.empty((repeats, len(runs)))
            for repeat in range(repeats):
                for index, (_, run) in enumerate(runs):
                    seconds[repeat, index] = run()
                    bar.update()
            timed += [
                (curve, run.timing(curve, seconds[:, index]))
                for index, (curve, run) in enumerate(runs)
            ]
    return timed


class _Run:
    """A plan, its model, the states from which it starts and its noises, ready to be run."""

    plan: Plan
    model: Model
    x: Tensor
    noise: SeededNoise | None

    def __init__(self, curve: Curve, steps: int) -> None:
        process, self.plan = curve.plan(steps)
        [start] = Point.many(process, [self.plan.times[0]])
        seed = curve.settings.seed
        generator = torch.Generator().manual_seed(seed)
        self.model = curve.target.model(process, self.plan.prediction)
        self.x = curve.target.sample(BATCH, start.alpha, start.sigma, generator=generator)
        stochastic = self.plan.stochastic
        self.noise = SeededNoise(seed, self.x.shape, self.x.dtype) if stochastic else None

    def __call__(self) -> float:
        """Seconds of one run."""
        start = time.perf_counter()
        run_plan(self.plan, self.model, self.x, noise=self.noise)
        return time.perf_counter() - start

    def timing(self, curve: Curve, seconds: np.ndarray) -> Timing:
        """The row of some runs."""
        low, median, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
        names = curve.target.name, curve.solver.name, curve.grid.label
        sizes = len(self.plan.steps), self.plan.nfe
        return Timing(*names, *sizes, median, low, high, len(seconds), BATCH)


# Files ------------------------------------------------------------------------------------------


def write_timings(
    folder: Path, timed: Iterable[tuple[Curve, Timing]], target_key: TargetKey
) -> None:
    """Put ``timings.jsonl`` in the place of an earlier one, whole or not at all.

    Parameters
    ----------
    folder
        Where it lies.
    timed
        What :func:`time_curves` returned.
    target_key
        The digest of a curve's target.

    Raises
    ------
    OSError
        If it cannot be written; the earlier one stays.
    """
    new = folder / NEW_TIMINGS
    try:
        with open(new, "w", encoding="utf-8", newline="\n") as file:
            for curve, timing in timed:
                key = _key(curve, timing.steps, target_key)
                file.write(seal(FORMAT, {"key": key, "timing": dataclasses.asdict(timing)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / TIMINGS)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def read_timings(folder: Path, notify: Callable[[str], None]) -> dict[str, Timing]:
    """The timings of a folder by key; none if it has none.

    Raises
    ------
    ValueError
        If the file holds lines that are no timings, or timings of another format.
    """
    path = folder / TIMINGS
    found: dict[str, Timing] = {}
    damaged = []
    for number, line in enumerate(_lines(path), 1):
        try:
            content = unseal(line, FORMAT, ("key", "timing"), "timing")
            found[content["key"]] = Timing(*(content["timing"][name] for name in _FIELDS))
        except Damaged:
            damaged.append(str(number))
        except ValueError as problem:
            raise ValueError(f"{path}, line {number}: {problem}") from None
    if damaged:
        notify(f"{path}: damaged in line {', '.join(damaged)}; what stood there is left out")
    return found


def kept_timings(
    curves: Sequence[Curve], found: Mapping[str, Timing], target_key: TargetKey
) -> tuple[Timing, ...]:
    """Those of the timings ``found`` that belong to plans of the curves, in their order."""
    if not found:
        return ()
    keys = (_key(curve, steps, target_key) for curve in curves for steps in curve.steps)
    return tuple(found[key] for key in dict.fromkeys(keys) if key in found)


def _key(curve: Curve, steps: int, target_key: TargetKey) -> str:
    """What a timing depends on, but for the machine."""
    return cell_keys(Task(curve, steps, ("timing",), target_key(curve))).get("timing", "")


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from file
    except FileNotFoundError:
        return
