"""Rate plots of a study: errors and local orders.

Everything is drawn with matplotlib's object-oriented interface, so no global state changes and
no display is needed. Functions called ``draw_*`` draw on given axes; the others return a whole
:class:`matplotlib.figure.Figure` for :func:`probflow.report.page.save_figure`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from ..studies.rows import MEASURES_TEX, OrderEstimate, Row
from .curves import (
    X_NAME,
    X_VALUE,
    Axis,
    curve_handle,
    curves_of,
    draw_arrow,
    draw_bars,
    draw_curve,
    draw_floors,
    draw_refused,
    error_limits,
    is_censored,
    is_refused,
    key_handles,
    legend_text,
    prepare,
    shown_error,
)
from .page import finish_figure, label_ticks, new_figure
from .style import GREY, Marks, all_marks, style_context
from .tables import curve_labels, find_orders
from .triangles import draw_slope_triangles
from .venues import WIDE, page_width


@dataclass(frozen=True)
class Panel:
    """One measure in a figure of :func:`rate_panels`.

    Parameters
    ----------
    rows, orders
        Rows and estimates; those of other measures are ignored.
    measure
        A key of :data:`~probflow.studies.rows.MEASURES`.
    axis
        What stands on the x axis.
    title
        Text above the panel.
    """

    rows: Sequence[Row]
    orders: Sequence[OrderEstimate]
    measure: str
    axis: Axis = "T"
    title: str = ""


def draw_rates(
    ax: Axes,
    rows: Iterable[Row],
    orders: Iterable[OrderEstimate] = (),
    *,
    measure: str,
    axis: Axis = "T",
    marks: Marks | None = None,
    fitted: bool = True,
) -> list[Line2D]:
    """Draw error against ``axis``, log-log, one curve per solver (and target and grid).

    Parameters
    ----------
    ax
        Axes to draw on.
    rows, orders
        Rows and estimates; those of other measures are ignored.
    measure
        Which measure to draw.
    axis
        ``"T"`` steps, ``"h"`` largest step, ``"nfe"`` model calls.
    marks
        Looks by curve label or solver name, to keep them the same over several figures.
    fitted
        Whether markers are hollow outside the fit window and the legend states the orders.

    Returns
    -------
    list of Line2D
        Legend handles, labelled like ``heun: 2.00 [1.94, 2.07], consistent with 2``.

    Raises
    ------
    ValueError
        For an unknown axis, or a measure without rows.
    """
    if axis not in X_VALUE:
        raise ValueError(f"axis must be one of {', '.join(X_VALUE)}, got {axis!r}")
    curves, labels, marks = prepare(rows, measure, marks)
    orders = list(orders)
    x_of = X_VALUE[axis]
    every = [row for curve in curves.values() for row in curve]
    ax.set_xscale("log")
    ax.set_yscale("log")
    x_all = [x_of(row) for row in every if x_of(row) > 0]
    pad = (max(x_all) / min(x_all)) ** 0.05 if max(x_all) > min(x_all) else 2.0
    ax.set_xlim(min(x_all) / pad, max(x_all) * pad)
    refused = [key for key, curve in curves.items() if any(map(is_refused, curve))]
    gap = min(0.065, 0.35 / len(refused)) if refused else 0.0
    low, high = error_limits(every)
    # A strip at the top for the cells without a number, one line per solver.
    high *= (high / low) ** (1.0 / (1.0 - gap * len(refused) - 0.03) - 1.0) if refused else 1.0
    ax.set_ylim(low, high)
    draw_floors(ax, {labels[key]: curve for key, curve in curves.items()}, x_of, marks)
    if refused:
        edge = 0.97 - gap * (len(refused) + 0.25)
        ax.plot([0, 1], [edge, edge], transform=ax.transAxes, color=GREY, linewidth=0.4, zorder=1.6)

    handles = []
    for key, curve in curves.items():
        mark = marks[labels[key]]
        values = [shown_error(row) for row in curve]
        x = [x_of(row) for row in curve]
        hollow = [(fitted and not row.in_window) or is_censored(row) for row in curve]
        draw_bars(ax, curve, x_of, mark, low)
        draw_curve(ax, x, values, hollow, mark)
        for row, x_row, value in zip(curve, x, values, strict=True):
            if is_refused(row):
                draw_refused(ax, x_row, 0.97 - gap * (refused.index(key) + 0.6), mark)
            elif is_censored(row):
                draw_arrow(ax, (x_row, value), -9.0, mark.colour)
        text = legend_text(labels[key], find_orders(orders, key), axis) if fitted else labels[key]
        handles.append(curve_handle(mark, text))
    label_ticks(ax, x_all, ".2g" if axis == "h" else "g", merge=0.08 if axis == "nfe" else 0.0)
    ax.set_xlabel(X_NAME[axis])
    ax.set_ylabel(MEASURES_TEX.get(measure, measure))
    return handles


def draw_local_orders(
    ax: Axes,
    rows: Iterable[Row],
    orders: Iterable[OrderEstimate] = (),
    *,
    measure: str,
    marks: Marks | None = None,
) -> list[Line2D]:
    """Draw the local order of every row against ``T``, with the claims as dashed lines.

    Each local order stands at the finer of its two ``T``. Values far away from every claim are
    drawn as arrows at the edge, so that one wild point does not flatten the panel.

    Parameters
    ----------
    ax, rows, orders, measure, marks
        As those of :func:`draw_rates`.

    Returns
    -------
    list of Line2D
        Legend handles.
    """
    curves, labels, marks = prepare(rows, measure, marks)
    orders = [order for key in curves for order in find_orders(orders, key)]
    claims = sorted({order.claim for order in orders if math.isfinite(order.claim)})
    every = [row for curve in curves.values() for row in curve]
    values = [row.eoc for row in every if math.isfinite(row.eoc)]
    centres = claims or [c[-1].eoc for c in curves.values() if math.isfinite(c[-1].eoc)] or [1.0]
    low = min(max(min([*values, *centres]), min(centres) - 1.25) - 0.2, min(centres) - 0.55)
    high = max(min(max([*values, *centres]), max(centres) + 1.25) + 0.2, max(centres) + 0.55)
    ax.set_xscale("log")
    ax.set_ylim(low, high)
    steps = [float(row.steps) for row in every]
    pad = (max(steps) / min(steps)) ** 0.05 if max(steps) > min(steps) else 2.0
    ax.set_xlim(min(steps) / pad, max(steps) * pad)
    if not values:
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.0, "color": GREY}
        ax.text(0.5, 0.75, "no two neighbouring values", transform=ax.transAxes, **look)
    for claim in claims:
        ax.axhline(claim, color=GREY, linewidth=0.8, linestyle=(0, (4, 2.5)), zorder=1.5)
    for key, curve in curves.items():
        mark = marks[labels[key]]
        x = [row.steps for row in curve]
        inside = [row.eoc if low <= row.eoc <= high else math.nan for row in curve]
        draw_curve(ax, x, inside, [not row.in_window for row in curve], mark)
        for row in curve:
            if math.isfinite(row.eoc) and not low <= row.eoc <= high:
                up = row.eoc > high
                edge = high - 0.06 * (high - low) if up else low + 0.06 * (high - low)
                draw_curve(ax, [row.steps], [edge], [True], mark)
                draw_arrow(ax, (row.steps, edge), 9.0 if up else -9.0, mark.colour)
    label_ticks(ax, steps, "g")
    ax.yaxis.set_major_locator(MultipleLocator(0.5 if high - low < 4.5 else 1.0))
    ax.set_xlabel(X_NAME["T"])
    ax.set_ylabel("local order")
    return [curve_handle(marks[labels[key]], labels[key]) for key in curves]


def rate_plot(
    rows: Iterable[Row],
    orders: Iterable[OrderEstimate] = (),
    *,
    axis: Axis = "T",
    measure: str,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
    venue: str | None = None,
    marks: Marks | None = None,
) -> Figure:
    """Plot error against ``axis`` beside (or, in one column, above) local order against ``T``.

    Parameters
    ----------
    rows, orders
        Rows and estimates; those of other measures are ignored.
    axis, measure, marks
        As in :func:`draw_rates`.
    title, footer
        Text above, and small print below: versions, device, seed and the like.
    columns, venue
        Columns of a page the figure spans (1 or 2), and whose page
        (:data:`~probflow.report.venues.VENUES`): 3.4 and 7 in without one. From 5 in on the panels
        stand side by side, below that above each other.
    """
    panel = Panel(list(rows), list(orders), measure, axis)
    width = page_width(columns, venue)
    return _rate_figure([panel], width >= WIDE, True, title, footer, width, marks)


def rate_panels(
    panels: Sequence[Panel],
    *,
    local_orders: bool = True,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
    venue: str | None = None,
    marks: Marks | None = None,
) -> Figure:
    """Plot several measures side by side, each with its local orders below and its own legend.

    A solver looks the same in all panels.

    Parameters
    ----------
    panels
        What to draw, from left to right.
    local_orders
        Whether to add the second row with local orders.
    title, footer, columns, venue, marks
        As in :func:`rate_plot`.
    """
    if not panels:
        raise ValueError("rate_panels needs at least one panel")
    width = page_width(columns, venue)
    return _rate_figure(panels, False, local_orders, title, footer, width, marks)


def _rate_figure(
    panels: Sequence[Panel],
    beside: bool,
    local: bool,
    title: str | None,
    footer: str | None,
    width: float,
    marks: Marks | None,
) -> Figure:
    names = [
        label
        for panel in panels
        for label in curve_labels(curves_of(panel.rows, panel.measure)).values()
    ]
    marks = all_marks(names, marks)
    count = len(panels)
    with style_context():
        fig, axes = new_figure(width, *((1, 2) if beside else (1 + local, count)))
        legends, triangles, keys = [], [], {}
        for i, panel in enumerate(panels):
            curves = curves_of(panel.rows, panel.measure)
            handles = draw_rates(
                axes[i],
                panel.rows,
                panel.orders,
                measure=panel.measure,
                axis=panel.axis,
                marks=marks,
            )
            axes[i].set_title(panel.title, loc="left")
            if local:
                lower = axes[1] if beside else axes[count + i]
                draw_local_orders(
                    lower, panel.rows, panel.orders, measure=panel.measure, marks=marks
                )
            legends.append((i / count, (i + 1) / count, handles))
            claims: dict[float, list[tuple[float, float]]] = {}
            for key, curve in curves.items():
                points = [(X_VALUE[panel.axis](row), shown_error(row)) for row in curve]
                points = [point for point in points if not math.isnan(point[1])]
                for order in find_orders(panel.orders, key):
                    if math.isfinite(order.claim):
                        claims.setdefault(order.claim, []).extend(points)
            sign = 1 if panel.axis == "h" else -1
            triangles.append((axes[i], claims, sign))
            for handle in key_handles(curves.values(), claims if local else (), fitted=True):
                keys[str(handle.get_label())] = handle
        finish_figure(
            fig,
            panel_height=2.6 if beside else 2.1,
            legends=legends,
            keys=list(keys.values()),
            title=title,
            footer=footer,
        )
        for ax, slopes, sign in triangles:
            draw_slope_triangles(ax, slopes, sign)
    return fig
