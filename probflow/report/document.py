"""The report of a study: a folder with a readable page, the data behind it, figures and tables."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ..studies.rows import MEASURES, OrderEstimate, Row
from .blocks import Block, Bullets, Heading, Picture, Tabular, Text, to_html, to_text
from .captions import settings_text
from .files import REPORT_FORMAT, check_writable, replace_report, write_text
from .latex import latex_figure, to_latex
from .page import save_figure
from .tables import (
    Table,
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

_ORDER_KEYS = (
    *("target", "solver", "grid", "measure", "axis", "order", "low", "high"),
    *("claim", "verdict", "reason", "window", "eoc"),
)

#: Suffixes of a table's files; those of a figure's.
TABLES = ("md", "tex", "csv", "json")


class Shown(NamedTuple):
    """A figure of a report: its name, which becomes that of its files, its caption, and itself.

    ``narrow`` is the same at the width of one column, where the page has two.
    """

    name: str
    caption: str
    figure: Figure
    narrow: Figure | None = None


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

    Raises
    ------
    ValueError
        For a folder of something else, an unknown venue, names of figures that are alike or no file
        names, and a provenance with keys of the report's own.
    OSError
        If it cannot be written; an earlier report stays.
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

    def write(folder: Path) -> None:
        _write_all(folder, rows, orders, provenance, shown, notes, title, venue)

    return [out / name for name in replace_report(out, write, provenance)]


def footer_text(
    provenance: Mapping[str, Any], rows: Iterable[Row] = (), venue: str | None = None
) -> str:
    """Small print for figures: the provenance, then targets and grids of ``rows``.

    Empty where a ``venue`` is given: in a paper the caption says all this.

    Parameters
    ----------
    provenance
        As that of :func:`write_report`.
    rows
        What the figure shows.
    venue
        Where the paper is to appear.

    Returns
    -------
    str
        One line.

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
    """Plain values of a :class:`Row` in a fixed order of keys; None for a number not finite."""
    return {field.name: plain(getattr(row, field.name)) for field in dataclasses.fields(Row)}


def order_dict(order: OrderEstimate) -> dict[str, Any]:
    """Plain values of an :class:`OrderEstimate` in a fixed order of keys; None for no number."""
    return {name: plain(getattr(order, name)) for name in _ORDER_KEYS}


def results_text(rows: Iterable[Row]) -> str:
    """JSON lines as a text, one for each row, sorted into curves from coarse to fine."""
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
    drawings = write_figures(folder, figures, venue)
    stems = _table_stems(rows)
    _write_tables(folder / "tables", rows, orders, stems, settings_text(provenance, rows), venue)
    write_text(folder / "results.jsonl", results_text(rows))
    write_text(folder / "orders.json", json_text([order_dict(order) for order in orders]))
    blocks = _page(rows, orders, provenance, figures, notes, title, stems)
    write_text(folder / "report.md", to_text(blocks))
    write_text(folder / "report.html", to_html(blocks, title, drawings))


def write_figures(folder: Path, figures: Iterable[Shown], venue: str | None) -> dict[str, str]:
    """Write all forms of figures below a folder, and return the SVG of each by its name."""
    (folder / "figures").mkdir()
    drawings: dict[str, str] = {}
    for name, caption, figure, narrow in figures:
        save_figure(figure, folder / "figures" / name)
        drawings[name] = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        write_text(folder / "figures" / f"{name}.tex", latex_figure(name, caption, venue=venue))
        if narrow is not None:
            column = f"{name}-column"
            save_figure(narrow, folder / "figures" / column, ("pdf",))
            text = latex_figure(column, caption, columns=1, venue=venue)
            write_text(folder / "figures" / f"{column}.tex", text)
    return drawings


def write_tables(
    folder: Path,
    tables: Mapping[str, tuple[Sequence[Table], Sequence[Table]]],
    note: str,
    venue: str | None,
) -> None:
    """Write tables below a folder by the stem of their files; the second ones are for LaTeX."""
    folder.mkdir()
    labels: set[str] = set()
    for stem, (written, printed) in tables.items():
        write_text(folder / f"{stem}.md", to_markdown(*written, note=note))
        write_text(folder / f"{stem}.csv", to_csv(*written))
        write_text(folder / f"{stem}.json", to_json(*written))
        look: dict[str, Any] = {"note": note, "venue": venue, "labels": labels}
        write_text(folder / f"{stem}.tex", to_latex(*printed, **look))
        if page_width(1, venue) < page_width(2, venue):
            text = to_latex(*printed, columns=1, suffix="-column", **look)
            write_text(folder / f"{stem}-column.tex", text)


def _write_tables(
    folder: Path,
    rows: list[Row],
    orders: list[OrderEstimate],
    stems: Mapping[tuple[str, str], str],
    note: str,
    venue: str | None,
) -> None:
    summary = summary_table(rows, orders)
    tables: dict[str, tuple[Sequence[Table], Sequence[Table]]] = {
        "summary": ([summary], summary_tables(rows, orders))
    }
    for (target, measure), stem in stems.items():
        own = [row for row in rows if (row.target, row.measure) == (target, measure)]
        tables[stem] = curve_tables(own, orders), curve_tables(numbered(own), orders)
    write_tables(folder, tables, note, venue)


def _page(
    rows: list[Row],
    orders: list[OrderEstimate],
    provenance: Mapping[str, Any],
    figures: Sequence[Shown],
    notes: Sequence[str],
    title: str,
    stems: Mapping[tuple[str, str], str],
) -> list[Block]:
    summary = summary_table(rows, orders)
    blocks: list[Block] = [
        Heading(1, escape_markdown(title)),
        Heading(2, "Summary"),
        Text(f"{escape_markdown(summary.title)}."),
        Tabular(summary, titled=False),
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
            files = ", ".join(f"[{end}](tables/{stem}.{end})" for end in TABLES)
            blocks.append(Heading(3, escape_markdown(MEASURES.get(measure, measure))))
            blocks.append(Text(f"Files: {files}", files=True))
            for key, curve in group_curves(rows).items():
                if (key.target, key.measure) == (target, measure):
                    table = curve_table(curve, orders)
                    blocks.append(
                        Tabular(dataclasses.replace(table, title=f"{key.solver}, {key.grid}"))
                    )
    return blocks + provenance_blocks(("results.jsonl", "orders.json"), provenance)


def provenance_blocks(files: Sequence[str], provenance: Mapping[str, Any]) -> list[Block]:
    """The end of a page: files with data, those of the summary too, and what they depend on."""
    data = ", ".join(f"[{name}]({name})" for name in files)
    data += "".join(f", [summary.{end}](tables/summary.{end})" for end in TABLES)
    known = [f"{escape_markdown(k)}: {_inline(v)}" for k, v in sorted(plain(provenance).items())]
    return [
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
