"""The folder of a run: what study its cells are of, and the way back from the folder to a study.

``study.json`` is written when a study begins. It says what the keys of the cells hide: title,
curves with the orders claimed for them, settings, seed and versions; and which of the cells that
lay there already are the study's own. A report needs nothing else.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probflow._version import __version__
from probflow.processes import Process
from probflow.solvers import get_solver
from probflow.studies.cells import Cell, Curve
from probflow.studies.curves import finish_cells
from probflow.studies.lines import replacing, seal, unseal
from probflow.studies.measure import Settings
from probflow.studies.reading import (
    CellName,
    Line,
    distinct,
    read_cells,
    read_orders,
)
from probflow.studies.result import Study
from probflow.studies.rows import (
    COMPLETE,
    DESCRIPTION,
    NEW_DESCRIPTION,
    PARTIAL,
    SCANS,
    CurveKey,
    OrderEstimate,
    Row,
    Timing,
)
from probflow.studies.shown import Picture, read_pictures
from probflow.studies.timing import read_timings

__all__ = [
    "FORMAT",
    "Description",
    "Run",
    "describe",
    "load",
    "provenance",
    "says_the_same",
    "surroundings",
    "write_description",
]

FORMAT = "probflow-study/2"
TITLE, PLAIN, BUILT_IN = "Orders of convergence", "plain", "built-in"


@dataclass(frozen=True)
class Description:
    """What a run is.

    Parameters
    ----------
    title
        Title of its report.
    layout
        ``"plain"``, or ``"built-in"`` for the figures of the built-in study.
    provenance
        What the numbers depend on: versions, seed, process, samples; no times, no machine names.
    settings
        Seed and sizes of the first curve.
    curves
        ``target``, ``solver``, ``grid``, its ``kind``, ``steps``, and ``claims``: the order
        declared in each measure, or ``None``.
    found
        Keys of the cells that lay in the folder and are the study's own; ``offset`` is the size of
        ``cells.partial.jsonl`` when the study began. Those behind it are its own, too.
    complete
        Whether the study has ended: then its cells come first in ``cells.jsonl``.
    """

    title: str = TITLE
    layout: str = PLAIN
    provenance: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, int] = field(default_factory=dict)
    curves: Sequence[Mapping[str, Any]] = ()
    found: Sequence[str] = ()
    offset: int = 0
    complete: bool = False


@dataclass(frozen=True)
class Run:
    """A run read back from its folder.

    Parameters
    ----------
    study
        Rows, estimates and wall times.
    description
        What study it is.
    pictures
        What its report shows beside the cells.
    notes
        Sentences on what is missing or was left out.
    complete
        Whether all cells of the study are there.
    """

    study: Study
    description: Description
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    complete: bool = True


# Writing ----------------------------------------------------------------------------------------


def describe(curves: Sequence[Curve], *, title: str = TITLE, layout: str = PLAIN) -> Description:
    """The description of a study that is about to begin.

    Parameters
    ----------
    curves
        Those of the study, one or more.
    title, layout
        As those of :class:`Description`.

    Returns
    -------
    Description
        Without keys of cells.
    """
    return Description(
        title,
        layout,
        provenance(curves),
        asdict(curves[0].settings),
        tuple(
            {
                "target": curve.target.name,
                "solver": curve.solver.name,
                "grid": curve.grid.label,
                "kind": curve.grid.kind,
                "steps": list(curve.steps),
                "claims": {name: curve.solver.order(name) for name in curve.measures},
            }
            for curve in curves
        ),
    )


def provenance(curves: Sequence[Curve]) -> dict[str, Any]:
    """What the numbers depend on; no times, no machine names.

    Parameters
    ----------
    curves
        Those of the study, one or more.

    Returns
    -------
    dict
        Versions, commit, number type, device, process, seed, and how many samples.
    """
    processes = map(_process, curves)
    samples = {
        f"{curve.target.name}, {measure}": curve.settings.samples
        for curve in sorted(curves, key=lambda curve: -curve.settings.samples)
        for measure in curve.measures
        if curve.target.dim > 1
    }
    said = surroundings(processes, curves[0].settings.seed)
    drawn = {curve.settings.seeds for curve in curves if curve.solver.random_times}
    return {
        **said,
        **({"seeds": max(drawn)} if drawn else {}),
        **({"samples": samples} if samples else {}),
    }


def _process(curve: Curve) -> str:
    """The name of a curve's process; the paper's schedule is another for every step count."""
    if curve.process is None and curve.grid.kind == "paper":
        return "vp-paper, T from the steps"
    return process_name(curve.process_at(curve.steps[-1]))


def process_name(process: Process) -> str:
    """How captions call a process."""
    return getattr(process, "name", repr(process))


def surroundings(processes: Iterable[str], seed: int) -> dict[str, Any]:
    """Versions, type of numbers, names of processes, and seed."""
    return {
        "probflow": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scipy", "matplotlib")},
        "dtype": "float64",
        "device": "cpu",
        "process": " and ".join(dict.fromkeys(processes)),
        "seed": seed,
    }


def _commit() -> str:
    """Short commit of the checkout that probflow runs from, or an empty text."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder.parent / ".git").exists():
        return ""
    try:
        return subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def write_description(folder: Path, description: Description) -> None:
    """Write ``study.json``, whole or not at all.

    Parameters
    ----------
    folder
        Where to.
    description
        What it says.

    Raises
    ------
    OSError
        If it cannot be written; the earlier one stays.
    """
    with replacing(folder / DESCRIPTION, folder / NEW_DESCRIPTION) as file:
        file.write(seal(FORMAT, asdict(description)).encode())


# Reading ----------------------------------------------------------------------------------------


def says_the_same(folder: Path, description: Description) -> bool:
    """Whether captions say of the run in a folder what they would say of another: seed, versions.

    A folder without a description says nothing else.

    Parameters
    ----------
    folder
        That of a run.
    description
        That of another.

    Returns
    -------
    bool
        False also for a description that cannot be read.
    """
    try:
        known = _read_description(folder / DESCRIPTION)
    except ValueError:
        return False

    def said(about: Description) -> tuple[Any, Any]:
        return about.settings, {k: v for k, v in about.provenance.items() if k != "samples"}

    return known is None or said(known) == said(description)


def load(folder: str | Path) -> Run:
    """Read a run, finished or partial, from its folder; only order estimates are made anew.

    Parameters
    ----------
    folder
        What ``pf.study(out=...)`` or ``probflow rates --out`` wrote: ``cells.jsonl`` or
        ``cells.partial.jsonl`` with ``study.json``, or else ``results.jsonl`` with ``orders.json``.

    Returns
    -------
    Run
        Study, description and notes.

    Raises
    ------
    ValueError
        If there is no such folder, it holds nothing of the kind, or a file is damaged; the message
        names the file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"run folder: there is no folder {folder}")
    if (folder / SCANS).is_file():
        raise ValueError(
            f"run folder: {folder} is of a scan; probflow.studies.scans.read_scans reads it"
        )
    try:
        description = _read_description(folder / DESCRIPTION)
        notes: list[str] = []
        lines = _stored(folder, notes)
        keys: set[str] = set()  # the rows of an earlier report have none
        if lines:
            cells = distinct(lines) if description is None else _own(lines, description, notes)
            if not cells:
                raise ValueError(f"{folder} holds no cell of its study yet")
            rows, estimates = _finish(cells, description or Description())
            keys = {cell.key for cell in cells.values()}
        else:
            rows, estimates = _results(folder)
        timings = _timings(folder, keys, notes)
        pictures = read_pictures(folder)
    except ValueError as problem:
        raise ValueError(f"run folder: {problem}") from None
    if description is None:
        description = Description(provenance=_old_provenance(folder))
    settings = Settings(**description.settings)
    complete = not description.curves or len(rows) == len(_wanted(description))
    study = Study(rows, estimates, settings, timings, description.provenance)
    return Run(study, description, pictures, tuple(notes), complete)


def claims_of(folder: Path) -> dict[CurveKey, float]:
    """The orders declared for the curves of a run, NaN for none; empty without a description.

    Raises
    ------
    ValueError
        If the description is damaged.
    """
    description = _read_description(folder / DESCRIPTION)
    return {
        CurveKey(curve["target"], curve["solver"], curve["grid"], measure): (
            math.nan if claim is None else claim
        )
        for curve in (description.curves if description else ())
        for measure, claim in curve["claims"].items()
    }


def _read_description(path: Path) -> Description | None:
    if not path.is_file():
        return None
    try:
        names = [f.name for f in fields(Description)]
        content = unseal(path.read_text(encoding="utf-8"), FORMAT, names, "description")
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} is damaged ({problem})") from None
    del content["format"]
    return Description(**content)


def _stored(folder: Path, notes: list[str]) -> list[Line]:
    """The cells of a folder: those of the complete file, then those of the partial one."""
    lines: list[Line] = []
    if (folder / COMPLETE).is_file():
        lines += read_cells(folder / COMPLETE)
    if (folder / PARTIAL).is_file():
        damaged: list[int] = []
        lines += read_cells(folder / PARTIAL, damaged=damaged)
        if damaged:
            notes.append(f"Damaged lines of {PARTIAL}, left out: {', '.join(map(str, damaged))}.")
    return lines


def _own(lines: Sequence[Line], description: Description, notes: list[str]) -> dict[CellName, Cell]:
    """The cells of the study that is described, in its order; notes say what there is beside."""
    cells: dict[CellName, Cell] = {}
    found = set(description.found)
    for line in lines:
        new = line.path.name == PARTIAL and line.offset >= description.offset
        if new or description.complete or line.cell.key in found:
            cells.setdefault(line.name, line.cell)
    wanted = _wanted(description)
    own = {name: cells[name] for name in wanted if name in cells}
    if len(own) < len(wanted):
        missing = len(wanted) - len(own)
        notes.append(f"The study is not complete: {missing} of {len(wanted)} cells are missing.")
    others = len({line.cell.key for line in lines} - {cell.key for cell in own.values()})
    if others:
        notes.append(f"{others} cells of other studies in the folder were left out.")
    return own


def _results(folder: Path) -> tuple[tuple[Row, ...], tuple[OrderEstimate, ...]]:
    """Rows and estimates of an earlier report."""
    path, orders = folder / "results.jsonl", folder / "orders.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no cells of a study ({COMPLETE}, {PARTIAL}) and no {path.name}"
        )
    rows = tuple(cell.row for cell in distinct(read_cells(path)).values())
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows, tuple(read_orders(orders).values()) if orders.is_file() else ()


def _timings(folder: Path, keys: set[str], notes: list[str]) -> tuple[Timing, ...]:
    """The wall times of the plans that the cells with these keys are of."""
    timed = read_timings(folder, notes.append).values()
    return tuple(item.timing for item in timed if not keys.isdisjoint(item.cells))


def _wanted(description: Description) -> list[CellName]:
    """The names of all cells of a study, in its order."""
    return [
        (CurveKey(curve["target"], curve["solver"], curve["grid"], measure), steps)
        for curve in description.curves
        for measure in curve["claims"]
        for steps in curve["steps"]
    ]


def _finish(
    cells: Mapping[CellName, Cell], description: Description
) -> tuple[tuple[Row, ...], tuple[OrderEstimate, ...]]:
    """Rows and estimates of the curves that have cells."""
    known = {
        CurveKey(curve["target"], curve["solver"], curve["grid"], measure): (claim, curve["kind"])
        for curve in description.curves
        for measure, claim in curve["claims"].items()
    }
    curves: dict[CurveKey, list[Cell]] = {}
    for (name, _), cell in cells.items():
        curves.setdefault(name, []).append(cell)
    rows: list[Row] = []
    estimates = []
    for name, own in curves.items():
        claim, kind = known.get(name) or (
            _claim(name.solver, name.measure),
            name.grid.split(",")[0],
        )
        ordered = sorted(own, key=lambda cell: cell.row.steps)
        finished, estimate = finish_cells(ordered, math.nan if claim is None else claim, kind)
        rows += finished
        estimates.append(estimate)
    return tuple(rows), tuple(estimates)


def _claim(solver: str, measure: str) -> float | None:
    """The order that a registered solver declares; ``None`` for one that is not registered."""
    try:
        return get_solver(solver).order(measure)
    except ValueError:
        return None


def _old_provenance(folder: Path) -> dict[str, Any]:
    """The provenance of an earlier report in the folder; nothing if there is none."""
    try:
        known = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if k not in ("format", "files")}
