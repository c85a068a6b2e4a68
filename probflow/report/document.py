"""The report of a study: a folder with a readable page, the data behind it, figures and tables.

A report is written completely into a temporary folder beside its destination and moved into place
at the end, so a failure never leaves half a report. The file ``provenance.json`` marks a folder as
a report and lists its files; only files on that list are ever replaced or removed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ..studies.rows import MEASURES, STORE_FILES, OrderEstimate, Row
from .blocks import Block, Bullets, Heading, Picture, Tabular, Text, to_html, to_text
from .captions import settings_text
from .latex import latex_figure, to_latex
from .page import save_figure
from .tables import (
    curve_table,
    curve_tables,
    escape_markdown,
    group_curves,
    json_text,
    numbered,
    plain,
    summary_table,
    summary_tables,
    to_csv,
    to_json,
    to_markdown,
)
from .venues import page_width

#: Value of ``"format"`` in ``provenance.json``: how a report knows its own folder.
REPORT_FORMAT = "probflow-report/1"

_ORDER_KEYS = (
    *("target", "solver", "grid", "measure", "axis", "order", "low", "high"),
    *("claim", "verdict", "reason", "window", "eoc"),
)

_PROVENANCE = "provenance.json"

#: Suffixes of a table's files; those of a figure's.
_TABLES = ("md", "tex", "csv", "json")


class Shown(NamedTuple):
    """A figure of a report: its name, which becomes that of its files, its caption, and itself.

    ``narrow`` is the same at the width of one column, where the page has two.
    """

    name: str
    caption: str
    figure: Figure
    narrow: Figure | None = None


def check_writable(out_dir: str | Path) -> None:
    """Raise unless a report can be written to ``out_dir``; change nothing on disk.

    Call this before a long study, so that its results do not get lost at the end.

    Parameters
    ----------
    out_dir
        Folder of the report; it and its parents need not exist.

    Raises
    ------
    OSError
        If the folder cannot be made or written to.
    ValueError
        If it holds files and no earlier report: nothing foreign is ever overwritten.
    """
    out = Path(out_dir)
    place = out
    try:
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is not a folder")
        for folder in {place, out.resolve().parent if place == out else place}:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise OSError(f"cannot write a report to {out}: {error}") from error
    if out.is_dir() and any(out.iterdir()):
        _own_files(out)


def write_report(
    out_dir: str | Path,
    *,
    rows: Iterable[Row],
    orders: Iterable[OrderEstimate],
    provenance: Mapping[str, Any],
    figures: Sequence[tuple[str, str, Figure] | Shown] = (),
    notes: Sequence[str] = (),
    title: str = "Orders of convergence",
    venue: str | None = None,
) -> list[Path]:
    """Write a report, all of it or nothing; the same input gives the same bytes.

    Parameters
    ----------
    out_dir
        Folder of the report. An earlier report there is replaced; files of others that lie
        beside it stay. A folder that holds files but no report is refused.
    rows, orders
        What the study measured.
    provenance
        Versions, device, commit, seed and the like. For identical bytes on a re-run it must not
        hold the time of day.
    figures
        ``(name, caption, figure)``, or :class:`Shown`; the name becomes the file name, and the
        caption is plain text.
    notes
        Paragraphs of Markdown, shown as a list.
    title
        Heading of the page.
    venue
        Where the paper is to appear, for the width of the LaTeX tables; where the page has two
        columns, there are tables for one column, too.

    Returns
    -------
    list of Path
        Files written, sorted.
    """
    check_writable(out_dir)
    out = Path(out_dir)
    rows, orders = list(rows), list(orders)
    page_width(2, venue)
    shown = [Shown(*figure) for figure in figures]
    names = [figure.name for figure in shown]
    bad = [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]
    if bad or len(set(name.lower() for name in names)) < len(names):
        raise ValueError(
            "figure names must differ and consist of letters, digits, '.', '_' and '-', "
            f"got {names}"
        )
    if provenance.get("format", REPORT_FORMAT) != REPORT_FORMAT or "files" in provenance:
        raise ValueError("the provenance keys 'format' and 'files' are the report's own")

    real = out.resolve()
    real.parent.mkdir(parents=True, exist_ok=True)
    # The folder that is moved lies inside the private one, so that it has ordinary permissions.
    private = Path(tempfile.mkdtemp(prefix=f".{real.name}-", dir=real.parent))
    try:
        new = private / "report"
        new.mkdir()
        _write_all(new, rows, orders, provenance, shown, notes, title, venue)
        files = _move_into_place(new, real)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return [out / file for file in files]


def footer_text(
    provenance: Mapping[str, Any], rows: Iterable[Row] = (), venue: str | None = None
) -> str:
    """Small print for figures: the provenance, then targets and grids of ``rows``.

    Empty where a ``venue`` is given: in a paper the caption says all this.

    Examples
    --------
    >>> footer_text({"torch": "2.9.0", "dtype": "float64", "seed": 0})
    'torch 2.9.0, dtype float64, seed 0'
    """
    if venue is not None:
        return ""
    values = plain(provenance)
    simple = [f"{k} {v}" for k, v in values.items() if isinstance(v, (str, int, float)) and v != ""]
    rows = list(rows)
    for name in ("target", "grid"):
        found = list(dict.fromkeys(getattr(row, name) for row in rows))
        if found:
            simple.append(f"{name} {' / '.join(found)}")
    return ", ".join(simple)


def row_dict(row: Row) -> dict[str, Any]:
    """Plain values of a row in a fixed order of keys; None for a number that is not finite."""
    return {field.name: plain(getattr(row, field.name)) for field in dataclasses.fields(Row)}


def order_dict(order: OrderEstimate) -> dict[str, Any]:
    """Plain values of an estimate in a fixed order of keys; None where there is no number."""
    return {name: plain(getattr(order, name)) for name in _ORDER_KEYS}


def results_text(rows: Iterable[Row]) -> str:
    """JSON lines, one per row, sorted into curves from coarse to fine."""
    ordered = [row for curve in group_curves(rows).values() for row in curve]
    return "".join(json_text(row_dict(row), indent=None) for row in ordered)


# --- the parts of a report ------------------------------------------------------------------


def _write_all(
    folder: Path,
    rows: list[Row],
    orders: list[OrderEstimate],
    provenance: Mapping[str, Any],
    figures: Sequence[Shown],
    notes: Sequence[str],
    title: str,
    venue: str | None,
) -> None:
    (folder / "figures").mkdir()
    (folder / "tables").mkdir()
    drawings: dict[str, str] = {}
    for name, caption, figure, narrow in figures:
        save_figure(figure, folder / "figures" / name)
        drawings[name] = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        _write(folder / "figures" / f"{name}.tex", latex_figure(name, caption, venue=venue))
        if narrow is not None:
            column = f"{name}-column"
            save_figure(narrow, folder / "figures" / column, ("pdf",))
            text = latex_figure(column, caption, columns=1, venue=venue)
            _write(folder / "figures" / f"{column}.tex", text)
    stems = _table_stems(rows)
    _write_tables(folder / "tables", rows, orders, stems, settings_text(provenance), venue)
    _write(folder / "results.jsonl", results_text(rows))
    _write(folder / "orders.json", json_text([order_dict(order) for order in orders]))
    blocks = _page(rows, orders, provenance, figures, notes, title, stems)
    _write(folder / "report.md", to_text(blocks))
    _write(folder / "report.html", to_html(blocks, title, drawings))
    files = sorted([*_files_below(folder), _PROVENANCE])
    own_keys = {"format": REPORT_FORMAT, "files": files}
    _write(folder / _PROVENANCE, json_text(dict(sorted({**plain(provenance), **own_keys}.items()))))


def _write_tables(
    folder: Path,
    rows: list[Row],
    orders: list[OrderEstimate],
    stems: Mapping[tuple[str, str], str],
    note: str,
    venue: str | None,
) -> None:
    summary = summary_table(rows, orders)
    labels: set[str] = set()
    tables = {"summary": ([summary], summary_tables(rows, orders))}
    for (target, measure), stem in stems.items():
        own = [row for row in rows if (row.target, row.measure) == (target, measure)]
        tables[stem] = curve_tables(own, orders), curve_tables(numbered(own), orders)
    for stem, (written, printed) in tables.items():
        for suffix, write in (("md", to_markdown), ("csv", to_csv), ("json", to_json)):
            _write(folder / f"{stem}.{suffix}", write(*written))
        _write(folder / f"{stem}.tex", to_latex(*printed, note=note, venue=venue, labels=labels))
        if page_width(1, venue) < page_width(2, venue):
            text = to_latex(
                *printed, note=note, columns=1, venue=venue, labels=labels, suffix="-column"
            )
            _write(folder / f"{stem}-column.tex", text)


def _page(
    rows: list[Row],
    orders: list[OrderEstimate],
    provenance: Mapping[str, Any],
    figures: Sequence[Shown],
    notes: Sequence[str],
    title: str,
    stems: Mapping[tuple[str, str], str],
) -> list[Block]:
    blocks: list[Block] = [
        Heading(1, escape_markdown(title)),
        Heading(2, "Summary"),
        Tabular(summary_table(rows, orders), titled=False),
        Text(
            "An order belongs to a solver together with a measure, a grid and a target. A verdict "
            "is `consistent` (with the claim), `slower` (contradicts it), `faster` (the claim "
            "holds but is not sharp) or `inconclusive`. EOCs are local orders between neighbouring "
            "T, from coarse to fine."
        ),
    ]
    if figures:
        blocks.append(Heading(2, "Figures"))
    for name, caption, _, narrow in figures:
        blocks.append(Picture(name, caption))
        if narrow is not None:
            blocks.append(Text(f"[In one column](figures/{name}-column.pdf)", files=True))
    if notes:
        blocks += [Heading(2, "Notes"), Bullets(tuple(notes))]
    for target in dict.fromkeys(target for target, _ in stems):
        blocks.append(Heading(2, f"Target: {escape_markdown(target)}"))
        for (other, measure), stem in stems.items():
            if other != target:
                continue
            files = ", ".join(f"[{end}](tables/{stem}.{end})" for end in _TABLES)
            blocks.append(Heading(3, escape_markdown(MEASURES.get(measure, measure))))
            blocks.append(Text(f"Files: {files}", files=True))
            for key, curve in group_curves(rows).items():
                if (key.target, key.measure) == (target, measure):
                    table = curve_table(curve, orders)
                    blocks.append(
                        Tabular(dataclasses.replace(table, title=f"{key.solver}, {key.grid}"))
                    )
    data = "[results.jsonl](results.jsonl), [orders.json](orders.json), "
    data += ", ".join(f"[summary.{end}](tables/summary.{end})" for end in _TABLES)
    known = [f"{escape_markdown(k)}: {_inline(v)}" for k, v in sorted(plain(provenance).items())]
    return [
        *blocks,
        Heading(2, "Data and provenance"),
        Text(f"Data: {data}.", files=True),
        Bullets(tuple(known)) if known else Text("No provenance was given."),
    ]


def _inline(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape_markdown(text)


def _table_stems(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Distinct file names for every (target, measure), in order of first appearance."""
    stems: dict[tuple[str, str], str] = {}
    for row in rows:
        if (row.target, row.measure) not in stems:
            name = f"{row.target}_{row.measure}".lower()
            base = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")[:80] or "table"
            stem, count = base, 2
            while stem in stems.values() or stem == "summary":
                stem, count = f"{base}-{count}", count + 1
            stems[row.target, row.measure] = stem
    return stems


# --- files ----------------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _files_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def _own_files(out: Path) -> list[str]:
    """Files of the earlier report in ``out``, from its provenance; raise if there is none.

    Without a report, a folder may hold the cells of a study that is running or was killed.
    """
    if all(path.name in STORE_FILES for path in out.iterdir()):
        return []
    try:
        known = json.loads((out / _PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or known.get("format") != REPORT_FORMAT:
        raise ValueError(
            f"{out} holds files but no earlier report (no {_PROVENANCE} of probflow), so nothing "
            "there is overwritten; choose a new or an empty folder"
        )
    files = known.get("files")
    files = files if isinstance(files, list) else []
    # A list that was edited must not lead out of the folder.
    safe = [name for name in files if isinstance(name, str) and _is_inside(name)]
    return sorted({*safe, _PROVENANCE})


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _move_into_place(new: Path, out: Path) -> list[str]:
    """Move a finished report: as a whole if ``out`` is new, else file by file."""
    files = _files_below(new)
    if not out.exists() or not any(out.iterdir()):
        if out.exists():
            out.rmdir()
        os.replace(new, out)
        return files
    old = _own_files(out)
    foreign = [name for name in files if name not in old and os.path.lexists(out / name)]
    if foreign:
        raise ValueError(
            f"{out} holds files in the way of the report that are not of an earlier one: "
            f"{', '.join(foreign)}; move them or choose another folder"
        )
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    # The list of files comes first: should the machine stop here, the folder is still known as
    # a report and the next run completes it.
    for name in sorted(files, key=lambda name: name != _PROVENANCE):
        os.replace(new / name, out / name)
    for name in old:
        if name not in files:
            (out / name).unlink(missing_ok=True)
    return files
