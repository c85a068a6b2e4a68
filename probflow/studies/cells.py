"""The cells of a study: what one is, the key of its content, and how a worker measures some."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from probflow._version import __version__
from probflow.grids import Grid
from probflow.integrate.loop import NonFiniteError
from probflow.laws.registers import Refusal
from probflow.plan import Plan
from probflow.processes import VP, Process
from probflow.solvers import Solver
from probflow.studies.executors import Untold
from probflow.studies.fingerprint import digest, source_digest
from probflow.studies.measure import (
    Measurement,
    Reference,
    Settings,
    averaged,
    measure,
    needs_reference,
    path_steps,
    reference_flow,
    reference_path,
)
from probflow.studies.rows import Row
from probflow.targets import Target
from probflow.words import check_whole

__all__ = [
    "LASTING",
    "Cell",
    "Curve",
    "Task",
    "cell_keys",
    "h_lambda",
    "h_max",
    "measure_cells",
    "reference_of",
    "wants_reference",
]


@dataclass(frozen=True)
class Curve:
    """A solver on a target and grid, at all step counts and in all measures.

    Attributes
    ----------
    target, solver, grid, process
        What is measured; ``process`` is ``None`` for that of :meth:`process_at`.
    steps : tuple of int
        Step counts, increasing.
    measures : tuple of str
        Keys of :data:`~probflow.studies.rows.MEASURES`.
    settings : Settings
        Seed, samples, steps of references.
    """

    target: Target
    solver: Solver
    grid: Grid
    steps: tuple[int, ...]
    measures: tuple[str, ...]
    process: Process | None
    settings: Settings

    def plan(self, steps: int) -> tuple[Process, Plan]:
        """Process and plan at one step count.

        Parameters
        ----------
        steps
            A step count.

        Returns
        -------
        tuple
            Process and plan, for an eps model; that of its own seed for a solver with random times.

        Raises
        ------
        ValueError
            If the solver has no plan on these times.
        """
        process, plans = self._plans(steps, [self.solver])
        return process, plans[0]

    def plans(self, steps: int) -> tuple[Process, tuple[Plan, ...]]:
        """The same with all plans that are measured: one, or one for each draw of random times.

        The draws come from the seeds of the study and of the solver, and are the same at all step
        counts.

        Parameters
        ----------
        steps
            A step count.

        Returns
        -------
        tuple
            Process and plans.

        Raises
        ------
        ValueError
            As :meth:`plan`.
        """
        if not self.solver.random_times:
            return self._plans(steps, [self.solver])
        own = check_whole("seed", self.solver.options["seed"], 0)
        draws = np.random.SeedSequence([self.settings.seed, own])
        seeds = draws.generate_state(self.settings.seeds).tolist()
        return self._plans(steps, [self.solver.with_options(seed=seed) for seed in seeds])

    def _plans(self, steps: int, solvers: Sequence[Solver]) -> tuple[Process, tuple[Plan, ...]]:
        process = self.process_at(steps)
        times = self.grid.times(process, steps)
        rises = self.grid.rises
        return process, tuple(s.plan(process, times, "eps", rises=rises) for s in solvers)

    def process_at(self, steps: int) -> Process:
        """The linear VP process by default; the paper's own schedule where the grid is its.

        Parameters
        ----------
        steps
            A step count, on which the paper's schedule depends.

        Returns
        -------
        Process
            The process.
        """
        if self.process is not None:
            return self.process
        if self.grid.kind == "paper":
            return VP.paper(steps + 1, **self.grid.options)
        return _VP_LINEAR


_VP_LINEAR = VP.linear()


@dataclass(frozen=True)
class Task:
    """What a worker is sent: a curve, one step count, and the measures wanted there.

    The measures of one plan share most of their work. ``target_key`` is the digest of the target;
    without one, cells get no keys.
    """

    curve: Curve
    steps: int
    measures: tuple[str, ...]
    target_key: str = ""


@dataclass(frozen=True)
class Cell:
    """One measured cell.

    Parameters
    ----------
    row
        The result, without what only the whole curve tells (``eoc``, ``in_window``).
    samples, power
        As in :class:`~probflow.studies.measure.Measurement`.
    key
        Hash of all that the result depends on; empty where nobody asked for it.
    lasting
        Whether the same content gives the same result again. An error of the machine does not
        last: a resumed study tries again.
    """

    row: Row
    samples: np.ndarray | None = None
    power: float = 1.0
    key: str = ""
    lasting: bool = True

    @property
    def measurement(self) -> Measurement | None:
        """The number, as the order estimate takes it; ``None`` where there is none."""
        if self.row.status != "ok":
            return None
        return Measurement(self.row.error, self.row.se, self.row.floor, self.samples, self.power)


def h_max(plan: Plan, process: Process) -> float:
    """Largest ``1 - alpha_ratio`` of a plan: the founding paper's step size.

    Parameters
    ----------
    plan
        Its times fall or rise.
    process
        The noising process.

    Returns
    -------
    float
        In [0, 1].
    """
    levels = np.asarray(process.neg_log_ab(np.asarray(plan.times)))
    return float(-np.expm1(np.diff(levels)).min())


def h_lambda(plan: Plan, process: Process) -> float:
    """Largest step in log-SNR of a plan, of those that are finite and towards the data."""
    steps = np.diff(np.asarray(process.lambda_(np.asarray(plan.times)), dtype=np.float64))
    return float(np.max(steps, where=np.isfinite(steps), initial=0.0)) or math.nan


# Keys -------------------------------------------------------------------------------------------


def cell_keys(task: Task) -> dict[str, str]:
    """The keys of a task's cells, by measure.

    A key is the hash of the plan (every weight and time), of the process at the plan's times and
    at those of the reference, target, grid, measure, settings, of the code that measures, and of
    the versions of the libraries that compute. There is none for what may end otherwise next time.
    """
    try:
        process, plans = task.curve.plans(task.steps)
    except Exception as problem:
        return _keys(task, None, _status(problem)) if isinstance(problem, LASTING) else {}
    return _keys(task, process, *plans)


def _keys(task: Task, process: Process | None, *plans: Plan | str) -> dict[str, str]:
    curve = task.curve
    levels = [] if process is None else [_levels(process, _plan_times(plan)) for plan in plans]
    common = (
        *(task.target_key, curve.solver.name, curve.grid.label, task.steps, *map(repr, plans)),
        *(levels, vars(curve.settings), _versions()),
    )
    own: dict[str, Any] = {
        "strong": _reference_levels,
        "weak": lambda c: [_finer_text(c, task.steps)],
    }
    return {
        name: digest(name, *common, *(own[name](curve) if name in own else ()))
        for name in task.measures
    }


def _finer_text(curve: Curve, steps: int) -> str:
    """What a weak difference depends on beside the plan: the finer one, or why there is none."""
    try:
        return repr(finer(curve, steps))
    except LASTING as problem:
        return _status(problem)


def _plan_times(plan: Any) -> np.ndarray:
    inner = (
        time
        for step in plan.steps
        for time in (*(s.time for s in step.stages), *itertools.chain(*step.noises))
    )
    return np.array([*plan.times, *inner])


def _reference_levels(curve: Curve) -> list[list[np.ndarray]]:
    """The process where the reference of a strong error needs it; nothing if there is none."""
    if not wants_reference(curve):
        return []
    largest, steps = curve.steps[-1], curve.settings.reference_steps
    process = curve.process_at(largest)
    counts = (steps // 2, steps) if curve.solver.eta == 0 else (path_steps(largest),)
    try:
        grids = [curve.grid.times(process, count) for count in counts]
    except ValueError:  # the reference fails for the same reason
        return []
    return [_levels(process, np.append(t, 0.5 * (t[:-1] + t[1:]))) for t in grids]


def _levels(process: Process, times: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(process.alpha(times)), np.asarray(process.sigma(times))]


@cache
def _versions() -> tuple[str, ...]:
    libraries = (version(name) for name in ("torch", "numpy", "scipy"))
    return (__version__, source_digest(), *libraries)


# Measuring --------------------------------------------------------------------------------------


def finer(curve: Curve, steps: int) -> tuple[Plan, ...]:
    """The plans of twice as many steps; none where they would be on another process."""
    if curve.process_at(2 * steps) is not curve.process_at(steps):
        return ()
    return curve.plans(2 * steps)[1]


def measure_cells(task: Task, reference: Reference | None = None) -> list[Cell]:
    """Measure the cells of a task; one that cannot be measured has its reason in ``status``.

    Sums depend on the number of threads in their last bits, so a cell is always measured with
    one: then every worker gets the same.
    """
    torch.set_num_threads(1)
    try:
        process, plans = task.curve.plans(task.steps)
        longest = h_max(plans[0], process), h_lambda(plans[0], process)
        known = replace(_empty(task), nfe=plans[0].nfe, h_max=longest[0], h_lambda=longest[1])
    except Exception as problem:
        return unmeasured(task, _status(problem), lasting=isinstance(problem, LASTING))
    keys = _keys(task, process, *plans) if task.target_key else {}
    return [
        _measure(
            Cell(replace(known, measure=name), key=keys.get(name, "")),
            plans,
            process,
            task,
            reference,
        )
        for name in task.measures
    ]


def unmeasured(task: Task, status: str, *, lasting: bool = False) -> list[Cell]:
    """The cells of a task without numbers, for the reason in ``status``."""
    keys = _keys(task, None, status) if task.target_key and lasting else {}
    row = replace(_empty(task), status=status)
    return [
        Cell(replace(row, measure=name), key=keys.get(name, ""), lasting=lasting)
        for name in task.measures
    ]


def _empty(task: Task) -> Row:
    return Row(
        target=task.curve.target.name,
        solver=task.curve.solver.name,
        grid=task.curve.grid.label,
        steps=task.steps,
        nfe=0,
        h_max=math.nan,
        measure="",
        error=math.nan,
    )


def _measure(
    cell: Cell,
    plans: Sequence[Plan],
    process: Process,
    task: Task,
    reference: Reference | None,
) -> Cell:
    curve, name = task.curve, cell.row.measure
    known = process, curve.target, curve.settings, reference
    try:
        twice = finer(curve, task.steps) if name == "weak" else ()
        runs = [
            measure(name, plan, *known, other)
            for plan, other in itertools.zip_longest(plans, twice)
        ]
        m = averaged(name, runs) if curve.solver.random_times else runs[0]
    except Exception as problem:
        row = replace(cell.row, status=_status(problem))
        return replace(cell, row=row, lasting=isinstance(problem, LASTING))
    row = replace(cell.row, error=m.error, se=m.se, floor=m.floor, note=m.note)
    return replace(cell, row=row, samples=m.samples, power=m.power)


#: What the numbers themselves lead to.
LASTING = (Refusal, NonFiniteError, ValueError, ArithmeticError, torch.linalg.LinAlgError)


def _status(problem: BaseException) -> str:
    text = str(problem)
    if isinstance(problem, Refusal):
        return f"refused: {text}"
    return f"failed: {text}" if isinstance(problem, LASTING) else f"failed: {named(problem)}"


def named(problem: BaseException) -> str:
    """Kind and message of an exception that was not foreseen."""
    if isinstance(problem, Untold):
        return str(problem)
    return f"{type(problem).__name__}: {problem}".rstrip(": ")


def wants_reference(curve: Curve) -> bool:
    """Whether some cell of the curve is measured against a reference flow or path."""
    eta = curve.solver.eta
    return eta is not None and needs_reference(curve.target, curve.measures, eta)


def reference_of(curve: Curve, _: None = None) -> Reference:
    """The flow, or path of the reverse SDE, that stands in for the exact one of a curve."""
    torch.set_num_threads(1)
    largest, eta = curve.steps[-1], curve.solver.eta
    known = curve.process_at(largest), curve.target, curve.grid, curve.settings
    return reference_flow(*known) if eta == 0 else reference_path(*known, eta, largest=largest)
