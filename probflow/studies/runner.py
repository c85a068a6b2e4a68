"""Studies: solvers x targets x grids x step counts x measures, from cells to orders."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from probflow.grids import Grid, as_grid
from probflow.integrate.noise import check_seed
from probflow.processes import Process
from probflow.solvers import Solver
from probflow.studies.cells import Curve, h_max
from probflow.studies.executors import Workers, run_jobs
from probflow.studies.folder import PLAIN, TITLE, describe, says_the_same, write_description
from probflow.studies.labels import check_distinct, labelled
from probflow.studies.measure import Settings
from probflow.studies.result import Study
from probflow.studies.rows import MEASURES, PICTURES, TIMINGS, Timing
from probflow.studies.store import Store
from probflow.studies.timing import keep_timings, time_curves, write_timings
from probflow.studies.work import Reference, Work
from probflow.targets import Target
from probflow.words import check_choice, check_whole, several

__all__ = ["Curve", "Study", "StudyInterrupted", "h_max", "make_curves", "run_curves", "study"]


#: Of a grid; its times alone take 80 MB.
MOST_STEPS = 10**7


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
    seeds: int = Settings.seeds,
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
    seed, samples, reference_steps, seeds
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
        A :class:`concurrent.futures.Executor` that measures the cells, in the place of ``jobs``,
        which is then left at 1:
        a thread pool, or ``client.get_executor()`` of a dask cluster.
    timing
        Number of runs of each plan whose wall time is taken when all cells are measured, one run at
        a time in this process (:mod:`probflow.studies.timing`); 0 takes none.

    Returns
    -------
    Study
        Rows, orders and verdicts; the same for any number of workers.

    Raises
    ------
    TypeError, ValueError
        For unknown names, or values out of range, before anything is measured.
    OSError
        If a cell cannot be written to ``out``; those before it are kept.
    """
    curves = make_curves(
        targets=several("targets", targets, Target),
        solvers=several("solvers", solvers, str | Solver),
        steps=several("steps", steps),
        measures=several("measure", measure, str),
        grid=default_grid() if grid is None else as_grid(grid),
        process=process,
        settings=Settings(seed, samples, reference_steps, seeds),
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
    """Check a study's arguments and lay out its curves.

    Parameters
    ----------
    targets, solvers, steps, measures, grid, process
        As those of :func:`study`, each a sequence.
    settings
        Seed, samples, steps of references, draws of random times.

    Returns
    -------
    list of Curve
        Targets outermost, then solvers.

    Raises
    ------
    TypeError, ValueError
        As :func:`study`.
    """
    counts = tuple(check_whole("steps", count, 1) for count in steps)
    if max(counts, default=1) > MOST_STEPS:
        raise ValueError(f"steps: need at most {MOST_STEPS}, got {max(counts)}")
    if not counts or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"steps: need increasing step counts, got {list(steps)}")
    for name in measures:
        check_choice("measure", name, MEASURES)
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
    for name in ("samples", "reference_steps", "seeds"):
        check_whole(name, getattr(settings, name), 2)
    if process is not None and not isinstance(process, Process):
        raise TypeError(f"process: need a probflow process, got {process!r}")
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

    Parameters
    ----------
    curves
        What to measure.
    jobs, progress, out, resume, executor, timing, title, layout, notify
        See above.

    Returns
    -------
    Study
        Rows in the order of the curves.

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
    if out is not None and not isinstance(out, str | os.PathLike):
        raise TypeError(f"out: need the path of a folder, got {out!r}")
    if out is not None and os.path.lexists(out) and not os.path.isdir(out):
        raise ValueError(f"out: need the path of a folder, got {os.fspath(out)!r}, which is a file")
    if executor is not None and jobs > 1:
        raise ValueError(f"jobs: give either jobs or executor, got jobs={jobs} with an executor")
    if resume and out is None:
        raise ValueError("resume: needs out, the folder of the study that is to be resumed")
    if jobs > 1:
        _check_picklable(curves)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        store = None
        if out is not None:
            store = stack.enter_context(Store(out, resume=resume, notify=notify))
        run = Work(curves, store)
        about = describe(curves, title=title, layout=layout)
        if store is not None:
            if not (resume and says_the_same(store.folder, about)):
                (store.folder / PICTURES).unlink(missing_ok=True)  # of another study
            write_description(store.folder, replace(about, **run.there()))
        bar = tqdm(total=run.cells, unit="cell", disable=not progress, initial=run.found)
        stack.callback(bar.close)
        workers = Workers.of(jobs, executor)
        stack.callback(workers.close)
        try:
            for task, outcome in run_jobs(run.jobs(), workers):
                if isinstance(task, Reference):
                    continue
                run.take(task, outcome)
                bar.set_postfix_str(f"{run.failed} failed", refresh=False)
                bar.update(len(run.tasks[task].measures))
            if store is not None:
                done = replace(about, complete=True)
                store.complete(run.keys(), partial(write_description, store.folder, done))
            bar.close()
            timings = _timings(run, timing, progress, notify)
            return replace(run.study(about.provenance), timings=timings)
        except KeyboardInterrupt:
            raise StudyInterrupted(run.study(about.provenance)) from None


def _timings(
    run: Work, repeats: int, progress: bool, notify: Callable[[str], None]
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
    """Ctrl-C during a study.

    Parameters
    ----------
    finished
        The study of the curves that were finished; its name later is ``study``.
    """

    def __init__(self, finished: Study) -> None:
        super().__init__(f"interrupted with {len(finished.estimates)} orders measured")
        self.study = finished


def _check_picklable(curves: Iterable[Curve]) -> None:
    """Processes import a solver's function by name; one that has none cannot be sent."""
    sent: set[int] = set()
    for curve in curves:
        solver = f"{curve.solver.name} and its process"
        for name, parts in (
            (solver, (curve.solver, curve.process)),
            (f"the target {curve.target.name}", (curve.target,)),
        ):
            if sent.issuperset(map(id, parts)):
                continue
            sent.update(map(id, parts))
            try:
                with open(os.devnull, "wb") as nowhere:
                    pickle.dump(parts, nowhere)
            except Exception as problem:
                raise ValueError(
                    f"jobs: {name} cannot be sent to another process ({problem}); define their "
                    "functions at the top level of a module, or use jobs=1"
                ) from None
