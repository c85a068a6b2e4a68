"""Studies: solvers x targets x grids x step counts x measures, from cells to orders."""

from __future__ import annotations

import itertools
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from probflow.grids import Grid, as_grid, check_steps
from probflow.integrate.loop import NonFiniteError
from probflow.laws.registers import Refusal
from probflow.plan import Plan
from probflow.processes import VP, Process
from probflow.solvers import Solver, get_solver
from probflow.studies.measure import (
    Measurement,
    Reference,
    Settings,
    log_covariance,
    measure,
    needs_reference,
    reference_flow,
    reference_path,
)
from probflow.studies.order import fit_order
from probflow.studies.rows import MEASURES, OrderEstimate, Row
from probflow.targets import Target

__all__ = ["Curve", "Study", "run_curve", "study"]


@dataclass(frozen=True)
class Curve:
    """The task of one worker: a solver on a target and grid, all step counts and measures."""

    target: Target
    solver: Solver
    grid: Grid
    steps: tuple[int, ...]
    measures: tuple[str, ...]
    process: Process | None
    settings: Settings
    reference: Reference | None = None

    def plan(self, steps: int) -> tuple[Process, Plan]:
        """Process and plan at one step count."""
        process = self.process
        if process is None:
            process = _process_for(self.grid, steps)
        times = self.grid.times(process, steps)
        return process, self.solver.plan(process, times, "eps", rises=self.grid.rises)


def _process_for(grid: Grid, steps: int) -> Process:
    """The linear VP process; the paper's own schedule where the grid is the paper's."""
    if grid.kind == "paper":
        return VP.paper(steps + 1, **grid.options)
    return _VP_LINEAR


_VP_LINEAR = VP.linear()


def h_max(plan: Plan, process: Process) -> float:
    """Largest ``1 - alpha_ratio`` of a plan: the founding paper's step size."""
    levels = np.asarray(process.neg_log_ab(np.asarray(plan.times)))
    return float(-np.expm1(np.diff(levels)).min())


def run_curve(curve: Curve) -> tuple[list[Row], list[OrderEstimate]]:
    """Measure one curve in each of its measures, and estimate the orders.

    A cell that cannot be measured is a row with its reason in ``status``; it does not stop the
    others.
    """
    rows: list[Row] = []
    orders: list[OrderEstimate] = []
    for name in curve.measures:
        cells: list[Row] = []
        measured: list[Measurement | None] = []
        for steps in curve.steps:
            row, result = _run_cell(curve, name, steps)
            cells.append(row)
            measured.append(result)
        cells, estimate = _with_order(curve, name, cells, measured)
        rows += cells
        orders.append(estimate)
    return rows, orders


def _run_cell(curve: Curve, name: str, steps: int) -> tuple[Row, Measurement | None]:
    empty = Row(
        target=curve.target.name,
        solver=curve.solver.name,
        grid=curve.grid.label,
        steps=steps,
        nfe=0,
        h_max=math.nan,
        measure=name,
        error=math.nan,
    )
    try:
        process, plan = curve.plan(steps)
        empty = replace(empty, nfe=plan.nfe, h_max=h_max(plan, process))
        result = measure(name, plan, process, curve.target, curve.settings, curve.reference)
    except Refusal as reason:
        return replace(empty, status=f"refused: {reason}"), None
    except (NonFiniteError, ValueError, ArithmeticError, torch.linalg.LinAlgError) as reason:
        return replace(empty, status=f"failed: {reason}"), None
    return replace(empty, error=result.error, se=result.se, floor=result.floor), result


def _log_power(grid: Grid, measure: str, claim: float) -> float:
    """The largest power of ln T that may come with T^-claim.

    On the paper's schedule h = c1 ln(T)/T, and the range of -ln ab grows like ln T: a solver that
    makes an error of h^(p + 1) on every step, the pure-noise ones included, has T^-p (ln T)^(p+1)
    in all. The root of the path KL, a sum of h^(2p + 1) over T steps, has T^-p (ln T)^(p + 1/2).
    """
    if grid.kind != "paper":
        return 0.0
    return 1.5 if measure == "path-kl" or math.isnan(claim) else claim + 1.0


def _with_order(
    curve: Curve, name: str, cells: list[Row], measured: list[Measurement | None]
) -> tuple[list[Row], OrderEstimate]:
    declared = curve.solver.order(name)
    claim = math.nan if declared is None else declared
    log_power = _log_power(curve.grid, name, claim)

    def named(estimate: OrderEstimate) -> OrderEstimate:
        return replace(
            estimate,
            target=curve.target.name,
            solver=curve.solver.name,
            grid=curve.grid.label,
            measure=name,
        )

    known = [m for m in measured if m is not None]
    if not known:
        reason = next((c.status for c in cells if c.status != "ok"), "no cell was measured")
        nothing = OrderEstimate(math.nan, math.nan, math.nan, claim, "inconclusive", reason, "T")
        return cells, named(nothing)
    kept = [i for i, m in enumerate(measured) if m is not None]
    fit = fit_order(
        [cells[i].steps for i in kept],
        [cells[i].error for i in kept],
        claim=claim,
        covariance=log_covariance(known),
        floor=np.array([m.floor for m in known]),
        max_log_power=log_power,
    )
    cells = list(cells)
    for position, i in enumerate(kept):
        adjacent = position > 0 and kept[position - 1] == i - 1
        eoc = float(fit.local_orders[position]) if adjacent else math.nan
        cells[i] = replace(cells[i], eoc=eoc, in_window=bool(fit.in_window[position]))
    return cells, named(fit.estimate)


@dataclass(frozen=True)
class Study:
    """The result of a study: a table of errors and the orders fitted to it.

    Attributes
    ----------
    rows
        One :class:`~probflow.studies.rows.Row` a cell.
    estimates
        One :class:`~probflow.studies.rows.OrderEstimate` a curve.
    settings
        Seed, number of samples, reference.
    """

    rows: tuple[Row, ...]
    estimates: tuple[OrderEstimate, ...]
    settings: Settings

    def orders(self) -> tuple[OrderEstimate, ...]:
        """The fitted orders with their verdicts."""
        return self.estimates

    def plot(self, path: str | Path | None = None, *, measure: str | None = None) -> Any:
        """Rate plot of one measure (the first by default) as a matplotlib ``Figure``.

        With a ``path`` (``.pdf``, ``.svg`` or ``.png``) it is also saved there.
        """
        from probflow.report import rate_plot, save_figure

        figure = rate_plot(self.rows, self.estimates, measure=measure or self.rows[0].measure)
        if path is not None:
            suffix = Path(path).suffix.lstrip(".")
            if suffix not in ("pdf", "svg", "png"):
                raise ValueError(f"path: must end in .pdf, .svg or .png, got {path}")
            save_figure(figure, Path(path).with_suffix(""), (suffix,))
        return figure

    def table(self, style: str = "markdown") -> str:
        """The orders and verdicts as ``markdown``, ``latex``, ``csv`` or ``json``."""
        from probflow import report

        writers = {
            "markdown": report.to_markdown,
            "latex": report.to_latex,
            "csv": report.to_csv,
            "json": report.to_json,
        }
        if style not in writers:
            raise ValueError(f"style: got {style!r}, allowed are {', '.join(writers)}")
        return writers[style](report.summary_table(self.rows, self.estimates))


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
) -> Study:
    """Measure solvers on targets and fit orders of convergence.

    Parameters
    ----------
    targets
        One target or several; every run starts from the exact noised law of its target.
    solvers
        One or several names, or :class:`probflow.Solver` objects.
    steps
        Increasing step counts, best at least five that span a factor of 8 or more.
    measure
        One or several of ``tv``, ``kl``, ``w2``, ``path-kl``, ``strong``.
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
        Show a progress bar of curves.

    Raises
    ------
    TypeError, ValueError
        For unknown names, or values out of range, before anything is measured.
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
    return run_curves(curves, jobs=jobs, progress=progress)


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
    counts = tuple(check_steps(count) for count in steps)
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
    if len(set(names)) < len(names):
        raise ValueError(
            f"targets: names must differ, got {', '.join(names)}; set target.name to tell them "
            "apart"
        )
    if settings.samples < 2 or settings.reference_steps < 2:
        raise ValueError(
            f"samples, reference_steps: need at least 2, got {settings.samples}, "
            f"{settings.reference_steps}"
        )
    curves = [
        Curve(target, get_solver(name), grid, counts, tuple(measures), process, settings)
        for target in targets
        for name in solvers
    ]
    for count in counts:  # a grid that does not fit the process fails here, before any work
        curves[0].plan(count)
    return curves


def run_curves(curves: Sequence[Curve], *, jobs: int = 1, progress: bool = False) -> Study:
    """Measure curves, in this process or in workers; the result is the same for any ``jobs``."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs: need a whole number >= 1, got {jobs!r}")
    results: dict[int, tuple[list[Row], list[OrderEstimate]]] = {}
    try:
        with tqdm(total=len(curves), unit="curve", disable=not progress) as bar:
            for index, result in _results(curves, jobs):
                results[index] = result
                bar.set_postfix_str(curves[index].solver.name)
                bar.update()
    except KeyboardInterrupt:
        raise StudyInterrupted(_collect(results, curves)) from None
    return _collect(results, curves)


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study; ``study`` holds the curves that were finished."""

    def __init__(self, finished: Study) -> None:
        super().__init__(f"interrupted with {len(finished.estimates)} orders measured")
        self.study = finished


def _collect(results: Mapping[int, Any], curves: Sequence[Curve]) -> Study:
    done = [results[index] for index in sorted(results)]
    return Study(
        tuple(row for rows, _ in done for row in rows),
        tuple(order for _, orders in done for order in orders),
        curves[0].settings,
    )


def _reference(curve: Curve) -> Reference:
    process, eta = curve.plan(curve.steps[-1])[0], curve.solver.eta
    if eta == 0:
        return reference_flow(process, curve.target, curve.grid, curve.settings)
    return reference_path(
        process, curve.target, curve.grid, curve.settings, eta, largest=curve.steps[-1]
    )


def _reference_key(curve: Curve) -> tuple[Any, ...] | None:
    """What curves with the same reference share; ``None`` for those that need none."""
    eta = curve.solver.eta
    if eta is None or not needs_reference(curve.target, curve.measures, eta):
        return None
    return id(curve.target), curve.grid, curve.settings, eta, curve.steps[-1] if eta else 0


def _results(curves: Sequence[Curve], jobs: int) -> Iterator[tuple[int, Any]]:
    keys = [_reference_key(curve) for curve in curves]
    first = {key: curve for key, curve in reversed(list(zip(keys, curves, strict=True))) if key}
    if jobs == 1:
        references = {key: _reference(curve) for key, curve in first.items()}
        for index, (key, curve) in enumerate(zip(keys, curves, strict=True)):
            yield index, run_curve(replace(curve, reference=references[key]) if key else curve)
        return
    pool = ProcessPoolExecutor(
        min(jobs, len(curves)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    try:
        pending = {key: pool.submit(_reference, curve) for key, curve in first.items()}
        futures = {pool.submit(run_curve, c): i for i, c in enumerate(curves) if not keys[i]}
        for index, (key, curve) in enumerate(zip(keys, curves, strict=True)):
            if key:
                reference = pending[key].result()
                futures[pool.submit(run_curve, replace(curve, reference=reference))] = index
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
