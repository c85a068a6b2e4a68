"""The report of scans: errors along an axis that is not the number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from ..studies.rows import MEASURES, MEASURES_TEX, Row
from .blocks import Block, Heading, Picture, Tabular, Text, to_html, to_text
from .captions import sentences, settings_text
from .curves import curve_handle, draw_bars, draw_curve, error_limits, shown_error
from .document import TABLES, Shown, provenance_blocks, write_figures, write_tables
from .files import replace_report, write_text
from .page import finish_figure, label_ticks, new_figure
from .style import solver_marks, style_context
from .tables import DASH, Table, escape_markdown, number_text
from .venues import page_width

__all__ = ["Scanned", "scan_plot", "scan_summary", "scan_table", "write_scans"]


class Scanned(Protocol):
    """What is drawn of a scan; see :class:`probflow.studies.axes.Scan`."""

    @property
    def x(self) -> tuple[float, ...]:
        """The quantity in which the slope is taken."""

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the axis."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row a value."""

    @property
    def slope(self) -> float:
        """``error ~ x^slope``; NaN where there is none."""

    @property
    def low(self) -> float:
        """Lower end of the slope's interval."""

    @property
    def high(self) -> float:
        """Upper end of the slope's interval."""

    @property
    def reason(self) -> str:
        """Why there is no slope."""


def _slope(scan: Scanned) -> str:
    if math.isnan(scan.slope):
        return "no slope"
    return f"{scan.slope:.2f} [{scan.low:.2f}, {scan.high:.2f}]"


def _place(scan: Scanned) -> tuple[str, str]:
    """Target and grid, the first and the last of them where they change along the axis."""
    ends = scan.rows[0], scan.rows[-1]
    target, grid = (
        " to ".join(dict.fromkeys(getattr(row, key) for row in ends)) for key in ("target", "grid")
    )
    return target, grid


def _window(scan: Scanned) -> str:
    """The values that the slope's fit used, for instance ``0.002–0.032``."""
    used = [v for v, row in zip(scan.values, scan.rows, strict=True) if row.in_window]
    return f"{used[0]:.3g}{DASH}{used[-1]:.3g}" if used else DASH


def _name(scan: Scanned) -> str:
    return f"{scan.rows[0].solver}, T = {scan.rows[0].steps}"


def scan_plot(
    scans: Sequence[Scanned], label: str, *, columns: int = 1, venue: str | None = None
) -> Figure:
    """Plot errors against x; the legend has the slopes.

    Parameters
    ----------
    scans
        At least one; all along one axis and in one measure.
    label
        What x is.
    columns, venue
        Width: see :func:`~probflow.report.venues.page_width`.
    """
    rows = [row for scan in scans for row in scan.rows]
    marks = solver_marks(map(_name, scans))
    with style_context():
        fig, (ax,) = new_figure(page_width(columns, venue), 1, 1)
        low, high = error_limits(rows)
        ax.set_xscale("log")
        ax.set_yscale("log")
        places = [x for scan in scans for x in scan.x]
        ax.set_xlim(min(places) / 1.2, 1.2 * max(places))
        ax.set_ylim(low, high)
        handles = []
        for scan in scans:
            mark, place = marks[_name(scan)], dict(zip(scan.rows, scan.x, strict=True))
            errors = [shown_error(row) for row in scan.rows]
            draw_curve(ax, scan.x, errors, [not row.in_window for row in scan.rows], mark)
            draw_bars(ax, scan.rows, place.__getitem__, mark, low)
            handles.append(curve_handle(mark, f"{_name(scan)}: {_slope(scan)}"))
        ax.set_xlabel(label)
        ax.set_ylabel(MEASURES_TEX.get(rows[0].measure, rows[0].measure))
        label_ticks(ax, places, ".3g", merge=0.05)
        finish_figure(fig, panel_height=2.4, legends=[(0.0, 1.0, handles)])
    return fig


def scan_table(scan: Scanned, label: str) -> Table:
    """Errors along the axis, and the slope below them."""
    first = scan.rows[0]
    records: list[dict[str, Any]] = [
        {"value": value, "x": x, "error": row.error, "se": row.se, "floor": row.floor}
        for value, x, row in zip(scan.values, scan.x, scan.rows, strict=True)
    ]
    body = []
    for record, row in zip(records, scan.rows, strict=True):
        numbers = [record[key] if row.status == "ok" else 0.0 for key in ("error", "se", "floor")]
        shown = [number_text(number) if number else "" for number in numbers]
        x = "" if record["x"] == record["value"] else f"{record['x']:.3g}"
        status = "" if row.status == "ok" else row.status
        body.append((f"{record['value']:.3g}", x, *shown, status))
    same = all(record["x"] == record["value"] for record in records)
    target, grid = _place(scan)
    window = "" if math.isnan(scan.slope) else f", fit window {_window(scan)}"
    return Table(
        title=f"{MEASURES[first.measure]} of {first.solver} with {first.steps} steps along "
        f"{label} on {target}, grid {grid}; slope{'' if same else ' in x'}: {_slope(scan)}{window}",
        head=("value", "x", "error", "SE", "floor", "status"),
        align="rrrrrl",
        body=tuple(body),
        records=tuple(records),
        name=f"scan-{first.measure}-{first.solver}-{first.steps}",
    )


def scan_summary(scans: Sequence[Scanned], label: str) -> Table:
    """A line a scan: what was measured where, and the slope, or why there is none."""
    records: list[dict[str, Any]] = []
    for scan in scans:
        row, (target, grid) = scan.rows[0], _place(scan)
        where = {"target": target, "solver": row.solver, "steps": row.steps, "grid": grid}
        slope = {"slope": scan.slope, "low": scan.low, "high": scan.high, "window": _window(scan)}
        records.append({**where, "measure": row.measure, **slope, "reason": scan.reason})
    shown = ("target", "solver", "steps", "grid", "measure", "slope", "window", "reason")
    body = [
        tuple(str(record[key] or DASH) if key != "slope" else _slope(scan) for key in shown)
        for record, scan in zip(records, scans, strict=True)
    ]
    return Table(
        title=f"Slopes along {label}: {_places(scans)}",
        head=("target", "solver", "T", "grid", "measure", "slope", "window", "reason"),
        align="llrlllll",
        body=tuple(body),
        records=tuple(records),
        wide=("target", "grid"),
        files=("reason",),
        name="scan-summary",
    )


def _places(scans: Sequence[Scanned]) -> str:
    """The targets and grids of some scans as text."""
    places = [_place(scan) for scan in scans]
    targets, grids = (" and ".join(dict.fromkeys(part)) for part in zip(*places, strict=True))
    return f"target {targets}, grid {grids}"


def _caption(scans: Sequence[Scanned], label: str, provenance: Mapping[str, Any]) -> str:
    """Of the figure of one measure."""
    measure = MEASURES[scans[0].rows[0].measure]
    fitted = [f"{_window(scan)} ({_name(scan)})" for scan in scans if not math.isnan(scan.slope)]
    return sentences(
        f"error along {label}: {measure}, {_places(scans)}",
        f"fit window of the slopes {', '.join(fitted)}" if fitted else "no slope",
        "bars are 95 % intervals" if any(r.se > 0 for scan in scans for r in scan.rows) else "",
        settings_text(provenance),
    )


def write_scans(
    out: Path,
    scans: Sequence[Scanned],
    label: str,
    data: Mapping[str, str],
    provenance: Mapping[str, Any],
    *,
    title: str = "Scans",
    venue: str | None = None,
) -> list[Path]:
    """Write the report of scans, all of it or nothing; the same input gives the same bytes.

    Parameters
    ----------
    out
        Folder of the report; see :func:`~probflow.report.document.write_report`.
    scans
        All along one axis.
    label
        What the axis is.
    data
        Texts of further files, by their names.
    provenance, title, venue
        As for :func:`~probflow.report.document.write_report`.

    Returns
    -------
    list of Path
        Files written, sorted.

    Raises
    ------
    ValueError, OSError
        As :func:`~probflow.report.document.write_report`.
    """
    groups: dict[str, list[Scanned]] = {}
    for scan in scans:
        groups.setdefault(scan.rows[0].measure, []).append(scan)
    figures = []
    for measure, own in groups.items():
        if any(row.status == "ok" for scan in own for row in scan.rows):
            draw = partial(scan_plot, own, label, venue=venue)
            two = venue is not None and page_width(1, venue) < page_width(2, venue)
            narrow = draw(columns=1) if two else None
            caption = _caption(own, label, provenance)
            figures.append(Shown(f"scan-{measure}", caption, draw(columns=2), narrow))
    tables = {"summary": [scan_summary(scans, label)]}
    tables |= {name: [scan_table(scan, label) for scan in own] for name, own in groups.items()}
    blocks = _page(title, figures, tables)
    blocks += provenance_blocks(tuple(data), provenance)

    def write(folder: Path) -> None:
        drawings = write_figures(folder, figures, venue)
        both = {name: (own, own) for name, own in tables.items()}
        write_tables(folder / "tables", both, settings_text(provenance), venue)
        for name, text in data.items():
            write_text(folder / name, text)
        write_text(folder / "report.md", to_text(blocks))
        write_text(folder / "report.html", to_html(blocks, title, drawings))

    return [out / name for name in replace_report(out, write, provenance)]


def _page(
    title: str, figures: Sequence[Shown], tables: Mapping[str, Sequence[Table]]
) -> list[Block]:
    blocks: list[Block] = [Heading(1, escape_markdown(title)), Heading(2, "Summary")]
    blocks += map(Tabular, tables["summary"])
    blocks += [Heading(2, "Figures")] if figures else []
    for figure in figures:
        blocks.append(Picture(figure.name, figure.caption))
        if figure.narrow is not None:
            link = f"[In one column](figures/{figure.name}-column.pdf)"
            blocks.append(Text(link, files=True))
    for measure in (name for name in tables if name != "summary"):
        blocks.append(Heading(2, escape_markdown(MEASURES[measure])))
        files = ", ".join(f"[{end}](tables/{measure}.{end})" for end in TABLES)
        blocks.append(Text(f"Files: {files}", files=True))
        blocks += map(Tabular, tables[measure])
    return blocks
