"""Files of a finished or partial run, read without repairing them: cells, results, estimates."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args

from probflow.studies.cells import Cell
from probflow.studies.rows import LATER, MEASURES, OrderEstimate, Row, Verdict
from probflow.studies.store import read_cell

__all__ = ["CurveName", "cell_text", "curve_name", "read_cells", "read_orders"]

CurveName = tuple[str, str, str, str]  # target, solver, grid, measure


def curve_name(item: Row | OrderEstimate) -> CurveName:
    """What names a curve."""
    return (item.target, item.solver, item.grid, item.measure)


def cell_text(cell: Cell) -> str:
    """A text that differs where cells differ (NaN is equal to itself)."""
    return repr(cell.row) + repr(None if cell.samples is None else cell.samples.tolist())


def read_cells(path: Path, *, torn: bool = False) -> tuple[list[Cell], list[int]]:
    """The cells of a file, one for every line of it, and where each line begins.

    Parameters
    ----------
    path
        ``cells.jsonl``, ``cells.partial.jsonl``, or ``results.jsonl``: those of the last have no
        key and no samples.
    torn
        Whether a last line without an end is left out, as a killed study leaves it, in the place
        of being an error.

    Raises
    ------
    ValueError
        If the file cannot be read, or a line is damaged or of another kind or format. The message
        names file and line.
    """
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} cannot be read ({problem})") from None
    if lines and not data.endswith(b"\n"):
        if not torn:
            raise ValueError(f"{path}, line {len(lines)} is torn: it has no end")
        lines.pop()
    cells, offsets, stored = [], [0], False
    for number, line in enumerate(lines, 1):
        try:
            stored = stored or '"format"' in line
            cells.append(read_cell(line) if stored else Cell(_row(line)))
        except (ValueError, KeyError, TypeError) as problem:
            raise ValueError(f"{path}, line {number}: {problem}") from None
        offsets.append(offsets[-1] + len(line.encode("utf-8")))
    return cells, offsets[:-1]


_TYPES: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def _row(line: str) -> Row:
    """A line of ``results.jsonl``; no number stands for NaN."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    fields = dataclasses.fields(Row)
    if isinstance(values, dict):
        values = {**dict.fromkeys(LATER), **values}
    if not isinstance(values, dict) or set(values) != {f.name for f in fields}:
        raise ValueError("it is no row of results.jsonl")
    for f in fields:
        if f.type == "float" and values[f.name] is None:
            values[f.name] = math.nan
        value, kind = values[f.name], _TYPES[str(f.type)]
        if not isinstance(value, kind) or (isinstance(value, bool) and f.type != "bool"):
            raise ValueError(f"{f.name} has the wrong type, got {value!r}")
    if values["measure"] not in MEASURES or values["steps"] < 1:
        raise ValueError("its measure or steps are none of a study")
    return Row(**values)


def read_orders(path: Path) -> dict[CurveName, OrderEstimate]:
    """The estimates of ``orders.json``, by curve.

    Raises
    ------
    ValueError
        If the file is none of a report; the message names it.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise ValueError("it is no list")
        estimates = [_estimate(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is no orders.json of a report ({problem})") from None
    return {curve_name(estimate): estimate for estimate in estimates}


def _estimate(entry: Any) -> OrderEstimate:
    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    if entry["verdict"] not in get_args(Verdict):
        raise ValueError(f"got the verdict {entry['verdict']!r}")
    if entry["axis"] not in ("T", "h"):
        raise ValueError(f"got the axis {entry['axis']!r}")
    window = entry["window"]
    return OrderEstimate(
        order=number(entry["order"]),
        low=number(entry["low"]),
        high=number(entry["high"]),
        claim=number(entry["claim"]),
        verdict=entry["verdict"],
        reason=str(entry["reason"]),
        axis=entry["axis"],
        window=None if window is None else (int(window[0]), int(window[1])),
        eoc=tuple(map(number, entry["eoc"])),
        target=str(entry["target"]),
        solver=str(entry["solver"]),
        grid=str(entry["grid"]),
        measure=str(entry["measure"]),
    )
