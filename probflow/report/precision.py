"""Work-precision: error against model calls, and against measured time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..studies.rows import MEASURES_TEX, Row, Timing
from .curves import (
    curve_handle,
    draw_curve,
    error_limits,
    is_censored,
    is_refused,
    key_handles,
    prepare,
    shown_error,
)
from .page import finish_figure, new_figure
from .rates import draw_rates
from .style import Marks, style_context
from .venues import WIDE, page_width

__all__ = ["draw_times", "work_precision"]

Timed = dict[tuple[str, str, str, int], Timing]


def _by_cell(timings: Iterable[Timing]) -> Timed:
    return {(t.target, t.solver, t.grid, t.steps): t for t in timings}


def _timing(row: Row, timed: Timed) -> Timing | None:
    return timed.get((row.target, row.solver, row.grid, row.steps))


def time_label(timings: Sequence[Timing]) -> str:
    """What stands on the axis of times: for how many samples a run was timed."""
    batches = sorted({timing.batch for timing in timings})
    size = f"{batches[0]} sample" + "s" * (batches != [1]) if len(batches) == 1 else "a batch"
    return f"median wall time for {size} [s]"


def draw_times(
    ax: Axes,
    rows: Iterable[Row],
    timings: Iterable[Timing],
    *,
    measure: str,
    marks: Marks | None = None,
) -> list[Line2D]:
    """Draw error against median wall time, log-log, with bars between the quartiles.

    Parameters
    ----------
    ax
        Axes to draw on.
    rows
        Rows; those of other measures are ignored, as are those that were not timed.
    timings
        Times by target, solver, grid and number of steps.
    measure
        Which measure to draw.
    marks
        As in :func:`~probflow.report.rates.draw_rates`.

    Returns
    -------
    list of Line2D
        Legend handles.

    Raises
    ------
    ValueError
        If none of the rows was timed.
    """
    timed = _by_cell(timings)
    rows = [row for row in rows if _timing(row, timed) is not None]
    if not any(row.measure == measure for row in rows):
        raise ValueError(f"timings: none of the rows of measure {measure!r} was timed")
    curves, labels, marks = prepare(rows, measure, marks)
    every = [row for curve in curves.values() for row in curve]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(*error_limits(every))
    shown: list[Timing] = []
    handles = []
    for key, curve in curves.items():
        mark = marks[labels[key]]
        points = [(row, timed[row.target, row.solver, row.grid, row.steps]) for row in curve]
        points = [(row, time) for row, time in points if not is_refused(row)]
        shown += [time for _, time in points]
        x, y = [time.seconds for _, time in points], [shown_error(row) for row, _ in points]
        spread = [[t.seconds - t.low for _, t in points], [t.high - t.seconds for _, t in points]]
        ax.errorbar(x, y, xerr=spread, fmt="none", ecolor=mark.colour, elinewidth=0.7, zorder=2.4)
        draw_curve(ax, x, y, [is_censored(row) for row, _ in points], mark)
        handles.append(curve_handle(mark, labels[key]))
    low, high = min(t.low for t in shown), max(t.high for t in shown)
    pad = max((high / low) ** 0.05, 1.1)
    ax.set_xlim(low / pad, high * pad)
    # Times seldom span many decades: up to two of them, label 2 and 5 times their powers, too.
    narrow = math.log10(high / low) < 2.0
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(time_label(shown))
    ax.set_ylabel(MEASURES_TEX.get(measure, measure))
    return handles


def work_precision(
    rows: Iterable[Row],
    timings: Iterable[Timing] = (),
    *,
    measure: str,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
    venue: str | None = None,
    marks: Marks | None = None,
) -> Figure:
    """Plot error against model calls and, where times are given, against median wall time.

    Parameters
    ----------
    rows
        Rows; those of other measures are ignored.
    timings
        Measured times; without any that fits there is one panel only.
    measure
        Which measure to draw.
    title, footer, columns, venue, marks
        As in :func:`~probflow.report.rates.rate_plot`.
    """
    rows, timings = list(rows), list(timings)
    curves, _, marks = prepare(rows, measure, marks)
    timed = _by_cell(timings)
    count = 2 if any(_timing(row, timed) for c in curves.values() for row in c) else 1
    width = page_width(columns, venue)
    with style_context():
        fig, axes = new_figure(width, *((1, count) if width >= WIDE else (count, 1)))
        handles = draw_rates(axes[0], rows, measure=measure, axis="nfe", marks=marks, fitted=False)
        if count == 2:
            draw_times(axes[1], rows, timings, measure=measure, marks=marks)
            axes[1].set_ylim(axes[0].get_ylim())
        finish_figure(
            fig,
            panel_height=2.5,
            legends=[(0.0, 1.0, handles)],
            keys=key_handles(curves.values(), (), fitted=False),
            title=title,
            footer=footer,
        )
    return fig
