"""Wall times of the plans of a study, and their file.

What is timed is the tensor loop on the target's exact model, as :func:`probflow.sample` runs it
once its plan is made: float64 like every cell, one thread of torch, the noises drawn inside. The
plans of one target take turns, so that whatever else the machine does falls on all of them alike.

``timings.jsonl`` has one line a timing (:mod:`probflow.studies.lines`): the ``key`` of the plan,
made like that of a cell, and the keys of the ``cells`` that were measured of it, so that no plan is
given the time of another of the same name. Times are taken anew, all of them, whenever a study asks
for some: only those of one machine in one state can be compared. A resumed study that asks for none
keeps those whose keys are its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from probflow.studies.lines import Damaged, OtherFormat, replacing, seal, unseal
from probflow.studies.rows import NEW_TIMINGS, TIMINGS, Timing

__all__ = ["BATCH", "FORMAT", "Timed", "keep_timings", "read_timings", "time_curves"]
__all__ += ["write_timings"]

TargetKey = Callable[[Curve], str]

#: Number of samples that are run at once.
BATCH = 128
FORMAT = "probflow-timings/2"
#: It had no keys of cells: which plan of a name was timed, nobody knows.
OLD_FORMAT = "probflow-timings/1"

_FIELDS = [field.name for field in dataclasses.fields(Timing)]


@dataclass(frozen=True)
class Timed:
    """A timing and what it is of.

    Parameters
    ----------
    key
        Hash of the plan and of what else its time depends on, but for the machine.
    cells
        Keys of the cells that were measured of that plan.
    timing
        The times.
    """

    key: str
    cells: tuple[str, ...]
    timing: Timing


@dataclass(frozen=True)
class _Plan:
    """A plan of some curves: one of them, its number of steps, the keys of its cells."""

    curve: Curve
    steps: int
    cells: tuple[str, ...]


def _plans(curves: Iterable[Curve], target_key: TargetKey) -> dict[str, _Plan]:
    """The different plans of the curves by their keys, in their order."""
    plans: dict[str, _Plan] = {}
    for curve in curves:
        for steps in curve.steps:
            task = Task(curve, steps, (*curve.measures, "timing"), target_key(curve))
            keys = cell_keys(task)
            key = keys.pop("timing", "")
            known = plans.get(key, _Plan(curve, steps, ()))
            cells = tuple(dict.fromkeys((*known.cells, *keys.values())))
            plans[key] = replace(known, cells=cells)
    return plans


# Measuring --------------------------------------------------------------------------------------


def time_curves(
    curves: Sequence[Curve], repeats: int, target_key: TargetKey, *, progress: bool = False
) -> list[Timed]:
    """Time every plan of the curves, in this process; each once, whatever its measures.

    Plans that cannot be made or run are left out: the rows of the study say why.

    Parameters
    ----------
    curves
        What a study consists of.
    repeats
        Runs of each plan, >= 1, after one that is not counted.
    target_key
        The digest of a curve's target.
    progress
        Show a progress bar of runs.

    Returns
    -------
    list of Timed
        One for each plan that could be run.
    """
    torch.set_num_threads(1)
    groups: dict[int, dict[str, _Plan]] = {}
    for key, plan in _plans(curves, target_key).items():
        groups.setdefault(id(plan.curve.target), {})[key] = plan
    total = sum(map(len, groups.values())) * (repeats + 1)
    timed: list[Timed] = []
    with tqdm(total=total, unit="run", disable=not progress) as bar, torch.no_grad():
        for group in groups.values():
            runs: list[tuple[str, _Run]] = []
            for key, plan in group.items():
                try:
                    run = _Run(plan.curve, plan.steps)
                    run()
                except LASTING:
                    total -= repeats
                    bar.total = total
                else:
                    runs.append((key, run))
                bar.update()
            seconds = np.empty((repeats, len(runs)))
            for repeat in range(repeats):
                for index, (_, run) in enumerate(runs):
                    seconds[repeat, index] = run()
                    bar.update()
            timed += [
                Timed(key, group[key].cells, run.timing(group[key].curve, seconds[:, index]))
                for index, (key, run) in enumerate(runs)
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
        start = Point.at(process, self.plan.times[0])
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


def write_timings(folder: Path, timed: Iterable[Timed]) -> None:
    """Put ``timings.jsonl`` in the place of an earlier one, whole or not at all.

    Parameters
    ----------
    folder
        Where it lies.
    timed
        What :func:`time_curves` returned.

    Raises
    ------
    OSError
        If it cannot be written; the earlier one stays.
    """
    with replacing(folder / TIMINGS, folder / NEW_TIMINGS) as file:
        for item in timed:
            file.write(seal(FORMAT, dataclasses.asdict(item)).encode())


def read_timings(folder: Path, notify: Callable[[str], None]) -> dict[str, Timed]:
    """The timings of a folder by key; none if it has none.

    Those of the earlier format, which does not say of which cells they are, are left out.

    Parameters
    ----------
    folder
        Where they lie.
    notify
        Called with a sentence for everything that was left out.

    Returns
    -------
    dict
        :class:`Timed` by key.

    Raises
    ------
    ValueError
        If the file holds lines that are no timings, or timings of another format.
    """
    path = folder / TIMINGS
    found: dict[str, Timed] = {}
    damaged, old = [], 0
    for number, line in enumerate(_lines(path), 1):
        try:
            content = unseal(line, FORMAT, ("key", "cells", "timing"), "timing")
            timing = Timing(*(content["timing"][name] for name in _FIELDS))
            found[content["key"]] = Timed(content["key"], tuple(content["cells"]), timing)
        except Damaged:
            damaged.append(str(number))
        except ValueError as problem:
            if not isinstance(problem, OtherFormat) or problem.found != OLD_FORMAT:
                raise ValueError(f"{path}, line {number}: {problem}") from None
            old += 1
    if damaged:
        notify(f"{path}: damaged in line {', '.join(damaged)}; what stood there is left out")
    if old:
        notify(
            f"{path}: {old} times of an earlier version, which do not say of which cells they are, "
            "are left out; take them anew (timing, --timing)"
        )
    return found


def keep_timings(
    folder: Path,
    curves: Sequence[Curve],
    target_key: TargetKey,
    notify: Callable[[str], None],
) -> tuple[Timing, ...]:
    """The timings of a folder that belong to plans of the curves, in their order.

    In the file they are noted to be of the curves' cells, too.

    Parameters
    ----------
    folder, notify
        As those of :func:`read_timings`.
    curves, target_key
        As those of :func:`time_curves`.

    Returns
    -------
    tuple of Timing
        None if the folder has none.

    Raises
    ------
    ValueError, OSError
        If the file cannot be read, or not be written.
    """
    found = read_timings(folder, notify)
    if not found:
        return ()
    plans = {key: plan for key, plan in _plans(curves, target_key).items() if key in found}
    noted = {
        key: replace(found[key], cells=tuple(dict.fromkeys((*found[key].cells, *plan.cells))))
        for key, plan in plans.items()
    }
    if any(noted[key] != found[key] for key in noted):
        write_timings(folder, {**found, **noted}.values())
    return tuple(item.timing for item in noted.values())


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from file
    except FileNotFoundError:
        return
