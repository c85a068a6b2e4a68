"""Studies: solvers x targets x grids x step counts x measures, from cells to orders."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from probflow.grids import Grid, as_grid
from probflow.integrate.noise import check_seed
from probflow.processes import Process
from probflow.solvers import Solver
from probflow.studies.cells import (
    Cell,
    Curve,
    Task,
    cell_keys,
    h_max,
    measure_cells,
    named,
    reference_of,
    unmeasured,
    wants_reference,
)
from probflow.studies.curves import finish_curve
from probflow.studies.executors import Failure, Job, Workers, run_jobs
from probflow.studies.fingerprint import digest
from probflow.studies.folder import PLAIN, TITLE, describe, write_description
from probflow.studies.labels import check_distinct, labelled
from probflow.studies.measure import Settings
from probflow.studies.result import Study
from probflow.studies.rows import MEASURES, PARTIAL, PICTURES, TIMINGS, OrderEstimate, Row, Timing
from probflow.studies.store import Store
from probflow.studies.timing import keep_timings, time_curves, write_timings
from probflow.targets import Target
from probflow.words import check_whole

__all__ = ["Curve", "Study", "StudyInterrupted", "h_max", "make_curves", "run_curves", "study"]


def study(
    targets: Sequence[Target] | Target,
    solvers: Sequence[str | Solver] | str | Solver,
    steps: Sequence[int],
    measure: str | Sequence[str] = "tv",
    *,
    grid: Any = None,
    process: Process | None = None,
    seed: int = 0,
    samples: int = 128,
    reference_steps: int = 256,
    jobs: int = 1,
    progress: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    executor: Executor | None = None,
    timing: int = 0,
) -> Study:
    """Measure solvers on targets and fit orders of convergence.

    Parameters
    ----------
    targets
        One target or several; every run starts from the exact noised law of its target.
    solvers
        One or several names, or :class:`probflow.Solver` objects. Of one name with different
        options, they are called by those, as ``dpm-solver-2 (r1=0.3)``.
    steps
        Increasing step counts, best at least five that span a factor of 8 or more.
    measure
        One or several keys of :data:`~probflow.studies.rows.MEASURES`.
    grid
        A :class:`probflow.grids.Grid`, or the name of one; by default ``-ln ab`` uniform from 3
        to -ln(0.99).
    process
        Noising process; by default ``VP.linear()`` (for the paper's grid, ``VP.paper``).
    seed, samples, reference_steps
        See :class:`~probflow.studies.measure.Settings`.
    jobs
        Number of worker processes; 1 measures in this process. With more, a script needs the
        usual ``if __name__ == "__main__"`` guard.
    progress
        Show a progress bar of cells.
    out
        Folder that keeps every cell as soon as it is measured, in ``cells.partial.jsonl``, and all
        of them in ``cells.jsonl`` at the end (:mod:`probflow.studies.store`).
    resume
        Take from ``out`` the cells that would be measured in the same way again: same weights,
        target, measure, settings and versions. Without it an unfinished study there is refused.
    executor
        A :class:`concurrent.futures.Executor` that measures the cells, in the place of ``jobs``:
        a thread pool, or ``client.get_executor()`` of a dask cluster.
    timing
        Number of runs of each plan whose wall time is taken when all cells are measured, one run at
        a time in this process (:mod:`probflow.studies.timing`); 0 takes none.

    Raises
    ------
    TypeError, ValueError
        For unknown names, or values out of range, before anything is measured.
    OSError
        If a cell cannot be written to ``out``; those before it are kept.
    """
    curves = make_curves(
        targets=[targets] if isinstance(targets, Target) else list(targets),
        solvers=[solvers] if isinstance(solvers, str | Solver) else list(solvers),
        steps=steps,
        measures=[measure] if isinstance(measure, str) else list(measure),
        grid=default_grid() if grid is None else as_grid(grid),
        process=process,
        settings=Settings(seed, samples, reference_steps),
    )
    return run_curves(
        curves,
        jobs=jobs,
        progress=progress,
        out=out,
        resume=resume,
        executor=executor,
        timing=timing,
    )


def default_grid() -> Grid:
    """``-ln ab`` uniform from 3 to -ln(0.99): fixed ends, where slopes in T are clean."""
    return Grid("exponential", 3.0, -math.log(0.99), "neg_log_ab")


def make_curves(
    *,
    targets: Sequence[Target],
    solvers: Sequence[str | Solver],
    steps: Sequence[int],
    measures: Sequence[str],
    grid: Grid,
    process: Process | None,
    settings: Settings,
) -> list[Curve]:
    """Check a study's arguments and lay out its curves."""
    counts = tuple(check_whole("steps", count, 1) for count in steps)
    if not counts or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"steps: need increasing step counts, got {list(steps)}")
    for name in measures:
        if name not in MEASURES:
            raise ValueError(f"measure: got {name!r}, allowed are {', '.join(MEASURES)}")
    if not targets or not solvers or not measures:
        raise ValueError("targets, solvers, measure: need at least one of each")
    for target in targets:
        if not isinstance(target, Target):
            raise TypeError(f"targets: need probflow targets, got {type(target).__name__}")
    names = [target.name for target in targets]
    check_distinct("targets: names must differ", names, "set target.name to tell them apart")
    check_distinct("measure", measures, "once is enough")
    distinct = labelled(solvers)
    check_seed(settings.seed)
    if settings.samples < 2 or settings.reference_steps < 2:
        raise ValueError(
            f"samples, reference_steps: need at least 2, got {settings.samples}, "
            f"{settings.reference_steps}"
        )
    curves = [
        Curve(target, solver, grid, counts, tuple(measures), process, settings)
        for target in targets
        for solver in distinct
    ]
    for count in counts:  # a grid that does not fit the process fails here, before any work
        grid.times(curves[0].process_at(count), count)
    return curves


def run_curves(
    curves: Sequence[Curve],
    *,
    jobs: int = 1,
    progress: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    executor: Executor | None = None,
    timing: int = 0,
    title: str = TITLE,
    layout: str = PLAIN,
    notify: Callable[[str], None] = lambda text: warnings.warn(text, stacklevel=2),
) -> Study:
    """Measure curves; the result is the same for any number and order of workers.

    Arguments are those of :func:`study`; ``notify`` is called with a sentence for everything that
    was repaired in the folder ``out``. ``title`` and ``layout`` are those of the report
    (:class:`~probflow.studies.folder.Description`).

    Raises
    ------
    StudyInterrupted
        On Ctrl-C, with the curves that are complete.
    """
    check_whole("jobs", jobs, 1)
    check_whole("timing", timing, 0)
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            f"executor: need a concurrent.futures.Executor, got {type(executor).__name__}; of a "
            "dask client take client.get_executor()"
        )
    if resume and out is None:
        raise ValueError("resume: needs out, the folder of the study that is to be resumed")
    if jobs > 1 and executor is None:
        _check_picklable(curves)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        store = None
        if out is not None:
            store = stack.enter_context(Store(out, resume=resume, notify=notify))
        run = _Run(curves, store)
        about = describe(curves, title=title, layout=layout)
        if store is not None:
            if not resume:
                (store.folder / PICTURES).unlink(missing_ok=True)  # of the study that is replaced
            write_description(store.folder, replace(about, **run.there()))
        bar = tqdm(total=run.cells, unit="cell", disable=not progress, initial=run.found)
        stack.callback(bar.close)
        workers = Workers.of(jobs, executor)
        stack.callback(workers.close)
        try:
            for task, outcome in run_jobs(run.jobs(), workers):
                if isinstance(task, _Reference):
                    continue
                run.take(task, outcome)
                bar.set_postfix_str(f"{run.failed} failed", refresh=False)
                bar.update(len(run.tasks[task].measures))
            if store is not None:
                store.complete(run.keys())
                write_description(store.folder, about)  # they come first in the file: no keys
            bar.close()
            return replace(run.study(), timings=_timings(run, timing, progress, notify))
        except KeyboardInterrupt:
            raise StudyInterrupted(run.study()) from None


def _timings(
    run: _Run, repeats: int, progress: bool, notify: Callable[[str], None]
) -> tuple[Timing, ...]:
    """The wall times of a study whose cells are measured: new ones, or those that were kept."""
    folder = None if run.store is None else run.store.folder
    if run.store is not None and not run.store.resumed:
        (run.store.folder / TIMINGS).unlink(missing_ok=True)  # of the study that was replaced
    if not repeats:
        if folder is None:
            return ()
        return keep_timings(folder, run.curves, run.target_key, notify)
    timed = time_curves(run.curves, repeats, run.target_key, progress=progress)
    if folder is not None:
        write_timings(folder, timed)
    return tuple(item.timing for item in timed)


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study; ``study`` holds the curves that were finished."""

    def __init__(self, finished: Study) -> None:
        super().__init__(f"interrupted with {len(finished.estimates)} orders measured")
        self.study = finished


@dataclass(frozen=True)
class _Reference:
    """Name of the job that computes a reference: what curves with the same one share."""

    target: int
    process: int
    grid: Grid
    settings: Settings
    eta: Any
    largest: int  # step count, for a path


class _Run:
    """A study on its way: tasks to do, cells of curves that are not complete, finished curves.

    Only incomplete curves hold their cells (with the samples), so memory does not grow with the
    number of cells.
    """

    def __init__(self, curves: Sequence[Curve], store: Store | None) -> None:
        self.curves, self.store = curves, store
        self.tasks: dict[tuple[int, int], Task] = {}  # by curve and steps
        self.cells = sum(len(c.steps) * len(c.measures) for c in curves)
        self.found = self.failed = 0
        self._open: list[dict[tuple[str, int], Cell]] = [{} for _ in curves]
        self._done: dict[int, tuple[list[Row], list[OrderEstimate]]] = {}
        self._keys: dict[tuple[int, str, int], str] = {}  # by curve, measure and steps
        self._targets: dict[int, str] = {}
        for index, curve in enumerate(curves):
            key = "" if store is None else self.target_key(curve)
            # Fine grids take longest: they go first, so that no worker is left with one at the end.
            for steps in reversed(curve.steps):
                self._plan_task(index, Task(curve, steps, curve.measures, key))

    def _plan_task(self, index: int, task: Task) -> None:
        missing = list(task.measures)
        if self.store is not None and len(self.store):
            for name, key in cell_keys(task).items():
                cell = self.store.get(key)
                if cell is not None:
                    missing.remove(name)
                    self.found += 1
                    self._add(index, cell)
        if missing:
            self.tasks[index, task.steps] = replace(task, measures=tuple(missing))

    def target_key(self, curve: Curve) -> str:
        """Digest of a curve's target, computed once."""
        name = id(curve.target)
        if name not in self._targets:
            self._targets[name] = digest(curve.target)
        return self._targets[name]

    def there(self) -> dict[str, Any]:
        """The keys of the cells that need not be measured, and the size of the unfinished file."""
        assert self.store is not None
        size = (self.store.folder / PARTIAL).stat().st_size
        return {"found": tuple(sorted(self._keys.values())), "offset": size}

    def keys(self) -> list[str]:
        """The keys of all cells, in the study's order."""
        return [
            self._keys[index, name, steps]
            for index, curve in enumerate(self.curves)
            for name in curve.measures
            for steps in curve.steps
        ]

    def jobs(self) -> list[Job]:
        """The tasks, and the references that some of them need."""
        first: dict[_Reference, Job] = {}
        jobs = []
        for name, task in self.tasks.items():
            reference = None
            if "strong" in task.measures and wants_reference(task.curve):
                curve = task.curve
                eta = curve.solver.eta
                largest = curve.steps[-1] if eta else 0
                ids = id(curve.target), id(curve.process)
                reference = _Reference(*ids, curve.grid, curve.settings, eta, largest)
                first.setdefault(reference, Job(reference, reference_of, curve))
            jobs.append(Job(name, measure_cells, task, reference))
        return [*first.values(), *jobs]

    def take(self, name: tuple[int, int], outcome: Any) -> None:
        """Store what a task ended with."""
        if isinstance(outcome, Failure):
            status = f"failed: {named(outcome.problem)}"
            outcome = unmeasured(self.tasks[name], status)
        for cell in outcome:
            if self.store is not None and cell.lasting:
                self.store.append(cell)
            self._add(name[0], cell)

    def _add(self, index: int, cell: Cell) -> None:
        curve, cells = self.curves[index], self._open[index]
        cells[cell.row.measure, cell.row.steps] = cell
        self.failed += cell.row.status.startswith("failed")
        self._keys[index, cell.row.measure, cell.row.steps] = cell.key
        if len(cells) < len(curve.steps) * len(curve.measures):
            return
        rows: list[Row] = []
        estimates = []
        for name in curve.measures:
            own, estimate = finish_curve(curve, name, [cells[name, T] for T in curve.steps])
            rows += own
            estimates.append(estimate)
        self._done[index] = rows, estimates
        self._open[index] = {}

    def study(self) -> Study:
        """The curves that are complete, in the study's order."""
        done = [self._done[index] for index in sorted(self._done)]
        return Study(
            tuple(row for rows, _ in done for row in rows),
            tuple(order for _, orders in done for order in orders),
            self.curves[0].settings,
        )


def _check_picklable(curves: Iterable[Curve]) -> None:
    """Processes import a solver's function by name; one that has none cannot be sent."""
    for curve in curves:
        try:
            pickle.dumps((curve.solver, curve.process))
        except (pickle.PicklingError, AttributeError, TypeError) as problem:
            raise ValueError(
                f"jobs: {curve.solver.name} and its process cannot be sent to another process "
                f"({problem}); define their functions at the top level of a module, or use jobs=1"
            ) from None
