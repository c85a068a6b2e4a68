"""Files of a finished or partial run, read without repairing them: cells, results, estimates."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from probflow.studies.cells import Cell
from probflow.studies.lines import Damaged, text_of
from probflow.studies.rows import CurveKey, OrderEstimate, Row, Verdict, curve_key, row_of
from probflow.studies.store import read_cell

__all__ = [
    "CellName",
    "Line",
    "cell_text",
    "distinct",
    "read_cells",
    "read_orders",
]

CellName = tuple[CurveKey, int]  # a curve and steps


def cell_text(cell: Cell) -> str:
    """A text that differs where cells differ (NaN is equal to itself)."""
    return repr(cell.row) + repr(None if cell.samples is None else cell.samples.tolist())


@dataclass(frozen=True)
class Line:
    """A cell, and where it stands: the file, the line's number from 1, the offset in bytes."""

    cell: Cell
    path: Path
    number: int
    offset: int

    @property
    def name(self) -> CellName:
        """What names the cell."""
        return curve_key(self.cell.row), self.cell.row.steps


def read_cells(path: Path, *, damaged: list[int] | None = None) -> list[Line]:
    """The cells of a file, one for every line of it.

    Parameters
    ----------
    path
        ``cells.jsonl``, ``cells.partial.jsonl``, or ``results.jsonl``: those of the last have no
        key and no samples.
    damaged
        Takes the numbers of lines whose checksum is wrong; a torn end is left out without a word.
        A study that is resumed measures these again. Without the list they are an error.

    Raises
    ------
    ValueError
        If the file cannot be read, or a line is damaged or of another kind or format. The message
        names file and line.
    """
    try:
        with open(path, "rb") as file:
            data = list(file)
    except OSError as problem:
        raise ValueError(f"{path} cannot be read ({problem})") from None
    lines: list[Line] = []
    offset, stored = 0, False
    for number, line in enumerate(data, 1):
        if damaged is not None and not line.endswith(b"\n"):
            break
        try:
            stored = stored or b'"format"' in line
            lines.append(Line(_cell(line, stored), path, number, offset))
        except ValueError as problem:
            if damaged is None or not isinstance(problem, Damaged):
                raise ValueError(f"{path}, line {number}: {problem}") from None
            damaged.append(number)
        offset += len(line)
    return lines


def _cell(line: bytes, stored: bool) -> Cell:
    text = text_of(line)
    return read_cell(text) if stored else Cell(_row(text))


def distinct(lines: Iterable[Line]) -> dict[CellName, Cell]:
    """Cells by name.

    Raises
    ------
    ValueError
        Where two of one name differ, since nobody says which one counts.
    """
    cells: dict[CellName, Cell] = {}
    for line in lines:
        if cell_text(cells.setdefault(line.name, line.cell)) != cell_text(line.cell):
            raise ValueError(
                f"{line.path}, line {line.number}: a second, different result of a cell"
            )
    return cells


def _row(line: str) -> Row:
    """A line of ``results.jsonl``; no number stands for NaN."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise Damaged("no JSON") from None
    fields = dataclasses.fields(Row)
    if isinstance(values, dict):
        numbers = {f.name for f in fields if f.type == "float"}
        values = {k: "nan" if v is None and k in numbers else v for k, v in values.items()}
    return row_of(values, [f.name for f in fields])


def read_orders(path: Path) -> dict[CurveKey, OrderEstimate]:
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
    return {curve_key(estimate): estimate for estimate in estimates}


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
