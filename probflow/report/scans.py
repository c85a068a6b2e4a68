"""Scans as a figure and as LaTeX tables: errors along an axis that is not the number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from matplotlib.figure import Figure

from ..studies.rows import MEASURES, MEASURES_TEX, Row
from .curves import curve_handle, draw_bars, draw_curve, error_limits, shown_error
from .page import finish_figure, label_ticks, new_figure
from .style import solver_marks, style_context
from .tables import Table, number_text
from .venues import page_width

__all__ = ["Scanned", "scan_plot", "scan_table"]


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


def _slope(scan: Scanned) -> str:
    if math.isnan(scan.slope):
        return "no slope"
    return f"{scan.slope:.2f} [{scan.low:.2f}, {scan.high:.2f}]"


def _where(scan: Scanned) -> str:
    """Target and grid, the first and the last of them where they change along the axis."""
    ends = scan.rows[0], scan.rows[-1]
    target, grid = (
        " to ".join(dict.fromkeys(getattr(row, key) for row in ends)) for key in ("target", "grid")
    )
    return f" on {target}, grid {grid}"


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
            draw_curve(ax, scan.x, errors, [False] * len(errors), mark)
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
    return Table(
        title=f"{MEASURES[first.measure]} of {first.solver} with {first.steps} steps along "
        f"{label}{_where(scan)}; slope{'' if same else ' in x'}: {_slope(scan)}",
        head=("value", "x", "error", "SE", "floor", "status"),
        align="rrrrrl",
        body=tuple(body),
        records=tuple(records),
        name=f"scan-{first.measure}-{first.solver}-{first.steps}",
    )
