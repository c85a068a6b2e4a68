"""Scans of a study file: what its ``[scan]`` table lays out, their table, their file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probflow.grids import Grid
from probflow.processes import Process
from probflow.solvers import Solver
from probflow.studies.axes import AXES, Scan, scan
from probflow.studies.folder import surroundings
from probflow.studies.lines import plain
from probflow.studies.measure import Settings
from probflow.studies.rows import MEASURES, SCAN_TABLE
from probflow.targets import Target

__all__ = ["SCANS", "ScanJob", "run_scans", "scans_json", "scans_table"]

#: The files that :func:`run_scans` leaves in a folder, beside a folder of cells for each scan, and
#: a figure for each measure.
SCANS = (SCAN_TABLE, "scans.json", "scans.tex")
_FIGURES = ("pdf", "svg")


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
        """Where its cells lie."""
        name = re.sub(r"[^A-Za-z0-9._+=-]+", "-", self.solver.name).strip("-")
        return f"{name}-{self.measure}-{self.steps}"


def run_scans(
    jobs: Sequence[ScanJob],
    *,
    title: str = "Scans",
    out: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    executor: Executor | None = None,
    progress: bool = False,
) -> tuple[Scan, ...]:
    """Run scans one after the other; with ``out`` their cells, table and numbers are kept there.

    Raises
    ------
    ValueError
        If ``out`` holds other files, or as :func:`~probflow.studies.axes.scan`.
    OSError
        If ``out`` cannot be made or written to; nothing is measured then.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        _check_folder(folder, {job.folder for job in jobs})
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
            out=None if folder is None else folder / job.folder,
            resume=resume,
            executor=executor,
            progress=progress,
        )
        for job in jobs
    )
    if folder is not None:
        _write(folder, title, done, surroundings(jobs[0].process, jobs[0].settings.seed))
    return done


def _write(folder: Path, title: str, scans: Sequence[Scan], about: Mapping[str, Any]) -> None:
    """Table and numbers of all scans, LaTeX tables, a figure for each measure."""
    from probflow.report import save_figure, to_latex
    from probflow.report.captions import sentences, settings_text
    from probflow.report.files import write_text
    from probflow.report.scans import scan_plot, scan_table

    note = settings_text(about)
    pictures = ""
    for measure in dict.fromkeys(done.rows[0].measure for done in scans):
        chosen = [done for done in scans if done.rows[0].measure == measure]
        save_figure(
            scan_plot(chosen, AXES[chosen[0].axis].meaning), folder / _figure(measure), _FIGURES
        )
        pictures += f"![{measure} along the axis]({_figure(measure)}.svg)\n\n"
    tables = [scan_table(done, AXES[done.axis].meaning) for done in scans]
    texts = (
        f"# {title}\n\n{pictures}{scans_table(scans)}\n\n{sentences(note)}\n",
        scans_json(scans),
        to_latex(*tables, note=note),
    )
    for name, text in zip(SCANS, texts, strict=True):
        write_text(folder / name, text)


def _figure(measure: str) -> str:
    return f"scans-{measure}"


def _check_folder(folder: Path, own: set[str]) -> None:
    from probflow.report import check_writable

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    figures = {f"{_figure(name)}.{suffix}" for name in MEASURES for suffix in _FIGURES}
    known = {*own, *SCANS, *figures}
    foreign = (
        sorted(p.name for p in folder.iterdir() if p.name not in known) if folder.exists() else []
    )
    if foreign:
        raise ValueError(
            f"{folder} holds files of something else ({foreign[0]}), so nothing there is "
            "overwritten; choose a new or an empty folder"
        )
    for name in sorted(own):
        check_writable(folder / name)


def scans_table(scans: Sequence[Scan]) -> str:
    """Markdown: a table of errors a scan, with its slope and interval, or why there is none.

    Parameters
    ----------
    scans
        What was measured.

    Returns
    -------
    str
        The tables.
    """
    parts = []
    for done in scans:
        first = done.rows[0]
        head = f"## {first.solver}, {first.measure}, T = {first.steps}: {AXES[done.axis].meaning}"
        lines = ["| value | x | error | standard error | floor |", "|---|---|---|---|---|"]
        for value, x, row in zip(done.values, done.x, done.rows, strict=True):
            numbers = " | ".join(f"{number:.3g}" for number in (value, x))
            what = f"{row.error:.3e} | {row.se:.1e} | {row.floor:.1e}"
            lines.append(f"| {numbers} | {what if row.status == 'ok' else row.status + ' | | '} |")
        parts.append("\n".join([head, "", *lines, "", slope_text(done)]))
    return "\n\n".join(parts)


def slope_text(done: Scan) -> str:
    """``slope 1.00 [0.95, 1.05] in x``, or why there is none."""
    if math.isnan(done.slope):
        return f"No slope: {done.reason}."
    return f"Slope {done.slope:.2f} [{done.low:.2f}, {done.high:.2f}] in x; last {done.local:.2f}."


def scans_json(scans: Sequence[Scan]) -> str:
    """All numbers of ``scans`` as JSON, a text; what is no number is a text in it."""
    return json.dumps([_plain(asdict(done)) for done in scans], indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else plain(value)
