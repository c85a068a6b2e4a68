"""Scans of a study file: what its ``[scan]`` table lays out, their run, their folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from probflow.grids import Grid
from probflow.processes import VP, Process
from probflow.solvers import Solver
from probflow.studies.axes import AXES, Scan, scan
from probflow.studies.folder import process_name, surroundings
from probflow.studies.lines import plain
from probflow.studies.measure import Settings
from probflow.studies.rows import SCAN_CELLS, SCANS, Row, row_of
from probflow.targets import Target

__all__ = ["ScanJob", "ScanRun", "read_scans", "run_scans", "scan_report", "scans_json"]

FORMAT = "probflow-scans/1"


@dataclass(frozen=True)
class ScanJob:
    """One scan.

    Attributes
    ----------
    axis, values, target, solver, steps, measure, grid, process
        As those of :func:`probflow.studies.axes.scan`.
    settings : Settings
        Seed, samples, steps of references.
    """

    axis: str
    values: tuple[Any, ...]
    target: Target | Callable[[Any], Target] | None
    solver: Solver
    steps: int
    measure: str
    grid: Grid
    process: Process | None
    settings: Settings

    @property
    def folder(self) -> str:
        """Where its cells lie, below the folder of all cells."""
        name = re.sub(r"[^A-Za-z0-9._+=-]+", "-", self.solver.name).strip("-")
        return f"{name}-{self.measure}-{self.steps}"


@dataclass(frozen=True)
class ScanRun:
    """Scans of one file and what they depend on.

    Attributes
    ----------
    scans : tuple of Scan
        All along one axis.
    title
        Title of their report.
    provenance
        As that of :class:`~probflow.studies.folder.Description`.
    """

    scans: tuple[Scan, ...]
    title: str
    provenance: Mapping[str, Any]


def run_scans(
    jobs: Sequence[ScanJob],
    *,
    title: str = "Scans",
    out: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    executor: Executor | None = None,
    progress: bool = False,
    venue: str | None = None,
) -> ScanRun:
    """Run scans one after the other; with ``out`` their cells and a report are kept there.

    Parameters
    ----------
    jobs
        What to measure, all along one axis.
    title, venue
        Of the report: its title, and whose columns its figures and tables fit.
    out, resume, workers, executor, progress
        As ``out``, ``resume``, ``jobs``, ``executor``, ``progress`` of
        :func:`~probflow.studies.axes.scan`.

    Returns
    -------
    ScanRun
        A scan a job.

    Raises
    ------
    ValueError
        If ``out`` holds other files, or as :func:`~probflow.studies.axes.scan`.
    OSError
        If ``out`` cannot be made or written to; nothing is measured then.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        from probflow.report import check_writable, page_width

        page_width(2, venue)
        check_writable(folder)
    cells = None if folder is None else folder / SCAN_CELLS
    done = tuple(
        scan(
            job.axis,
            job.values,
            job.target,
            job.solver,
            job.steps,
            job.measure,
            grid=job.grid,
            process=job.process,
            seed=job.settings.seed,
            samples=job.settings.samples,
            reference_steps=job.settings.reference_steps,
            seeds=job.settings.seeds,
            jobs=workers,
            out=None if cells is None else cells / job.folder,
            resume=resume,
            executor=executor,
            progress=progress,
        )
        for job in jobs
    )
    about = surroundings([process_name(jobs[0].process or VP.linear())], jobs[0].settings.seed)
    drawn = [job.settings.seeds for job in jobs if job.solver.random_times]
    run = ScanRun(done, title, {**about, "seeds": drawn[0]} if drawn else about)
    if folder is not None:
        scan_report(folder, run, venue=venue)
    return run


def scan_report(out: str | Path, run: ScanRun, *, venue: str | None = None) -> list[Path]:
    """Write the report of scans; nothing is computed anew.

    Parameters
    ----------
    out
        Folder of the report.
    run
        What was measured.
    venue
        Where it is to appear: a key of :data:`~probflow.report.venues.VENUES`.

    Returns
    -------
    list of Path
        Files written, sorted.

    Raises
    ------
    ValueError, OSError
        As :func:`probflow.report.write_report`.
    """
    from probflow.report.scans import write_scans

    return write_scans(
        Path(out),
        run.scans,
        AXES[run.scans[0].axis].meaning,
        {SCANS: scans_json(run)},
        run.provenance,
        title=run.title,
        venue=venue,
    )


# The file -----------------------------------------------------------------------------------------


def scans_json(run: ScanRun) -> str:
    """All numbers of scans as JSON, a text; what is no number is a text in it."""
    return json.dumps(_plain({"format": FORMAT, **asdict(run)}), indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else plain(value)


def read_scans(path: str | Path) -> ScanRun:
    """Read scans back.

    Parameters
    ----------
    path
        ``scans.json``, or the folder that :func:`run_scans` left it in.

    Returns
    -------
    ScanRun
        The same to the last bit.

    Raises
    ------
    ValueError
        If there is no such file, or it holds something else; the message names it.
    """
    path = Path(path)
    path = path / SCANS if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"it is not of the format {FORMAT}")
        scans = tuple(_scan(values) for values in content["scans"])
        if not scans or len({done.axis for done in scans}) > 1:
            raise ValueError("it holds no scans along one axis")
        return ScanRun(scans, content["title"], content["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"scans: {path} cannot be read ({problem})") from None


def _scan(values: Mapping[str, Any]) -> Scan:
    names = [field.name for field in fields(Row)]
    rows = tuple(row_of(row, names) for row in values["rows"])
    if values["axis"] not in AXES or not len(rows) == len(values["values"]) == len(values["x"]) > 0:
        raise ValueError(f"it has no scan along {values['axis']!r} with a row a value")
    return Scan(
        axis=values["axis"],
        values=tuple(values["values"]),
        x=tuple(map(float, values["x"])),
        rows=rows,
        reason=str(values["reason"]),
        **{key: float(values[key]) for key in ("slope", "low", "high", "local")},
    )
