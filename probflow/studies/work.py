"""The work of a study: which cells are there, which are to be measured, which curves are whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from probflow.grids import Grid
from probflow.studies.cells import (
    Cell,
    Curve,
    Task,
    cell_keys,
    measure_cells,
    named,
    reference_of,
    unmeasured,
    wants_reference,
)
from probflow.studies.curves import finish_curve
from probflow.studies.executors import Failure, Job
from probflow.studies.fingerprint import digest
from probflow.studies.measure import Settings
from probflow.studies.result import Study
from probflow.studies.rows import PARTIAL, OrderEstimate, Row
from probflow.studies.store import Store

__all__ = ["Reference", "Work"]


@dataclass(frozen=True)
class Reference:
    """Name of the job that computes a reference: what curves with the same one share."""

    target: int
    process: int
    grid: Grid
    settings: Settings
    eta: Any
    largest: int  # step count, for a path


class Work:
    """The work of a study: tasks to do, cells of curves that are not complete, finished curves.

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
        first: dict[Reference, Job] = {}
        jobs = []
        for name, task in self.tasks.items():
            reference = None
            if "strong" in task.measures and wants_reference(task.curve):
                curve = task.curve
                eta = curve.solver.eta
                largest = curve.steps[-1] if eta else 0
                ids = id(curve.target), id(curve.process)
                reference = Reference(*ids, curve.grid, curve.settings, eta, largest)
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

    def study(self, provenance: Mapping[str, Any]) -> Study:
        """The curves that are complete, in the study's order."""
        done = [self._done[index] for index in sorted(self._done)]
        return Study(
            tuple(row for rows, _ in done for row in rows),
            tuple(order for _, orders in done for order in orders),
            self.curves[0].settings,
            provenance=provenance,
        )
