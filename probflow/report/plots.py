"""Figures of a study: rates, local orders, work-precision, densities and pictures.

Everything is drawn with matplotlib's object-oriented interface, so no global state changes and
no display is needed. Functions called ``draw_*`` draw on given axes; the others return a whole
:class:`matplotlib.figure.Figure` for :func:`save_figure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator
from numpy.typing import ArrayLike

from ..studies.rows import MEASURES, OrderEstimate, Row
from .style import (
    FLOOR_COMMON,
    FLOOR_SOME,
    GREY,
    Mark,
    draw_slope_triangles,
    finish_figure,
    label_ticks,
    page_width,
    solver_marks,
    style_context,
)
from .tables import (
    CurveKey,
    curve_labels,
    find_orders,
    group_curves,
    order_text,
    verdict_text,
)

Axis = Literal["T", "h", "nfe"]
Marks = Mapping[str, Mark]

_X_VALUE: dict[str, Callable[[Row], float]] = {
    "T": lambda row: row.steps,
    "h": lambda row: row.h_max,
    "nfe": lambda row: row.nfe,
}
_X_NAME = {"T": "steps T", "h": "largest step h", "nfe": "model calls per sample (NFE)"}

# What the order estimate leaves out as too close to the floor or too noisy.
_FLOOR_FACTOR, _NOISE_FACTOR = 20.0, 5.0
_Z95 = 1.96
_ARROW_KEY: dict[str, Any] = {"markersize": 5.0, "markeredgewidth": 0.2}
_METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


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


# --- drawing on given axes ------------------------------------------------------------------


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
    """
    if axis not in _X_VALUE:
        raise ValueError(f"axis must be one of {', '.join(_X_VALUE)}, got {axis!r}")
    curves, labels, marks = _prepare(rows, measure, marks)
    orders = list(orders)
    x_of = _X_VALUE[axis]
    every = [row for curve in curves.values() for row in curve]
    ax.set_xscale("log")
    ax.set_yscale("log")
    x_all = [x_of(row) for row in every if x_of(row) > 0]
    pad = (max(x_all) / min(x_all)) ** 0.05 if max(x_all) > min(x_all) else 2.0
    ax.set_xlim(min(x_all) / pad, max(x_all) * pad)
    refused = [key for key, curve in curves.items() if any(map(_is_refused, curve))]
    gap = min(0.065, 0.35 / len(refused)) if refused else 0.0
    low, high = _error_limits(every)
    # A strip at the top for the cells without a number, one line per solver.
    high *= (high / low) ** (1.0 / (1.0 - gap * len(refused) - 0.03) - 1.0) if refused else 1.0
    ax.set_ylim(low, high)
    _draw_floor(ax, curves.values(), x_of, low)
    if refused:
        edge = 0.97 - gap * (len(refused) + 0.25)
        ax.plot([0, 1], [edge, edge], transform=ax.transAxes, color=GREY, linewidth=0.4, zorder=1.6)

    handles = []
    for key, curve in curves.items():
        mark = marks[labels[key]]
        values = [_shown_error(row) for row in curve]
        x = [x_of(row) for row in curve]
        hollow = [(fitted and not row.in_window) or _is_censored(row) for row in curve]
        _draw_bars(ax, curve, x_of, mark, low)
        _draw_curve(ax, x, values, hollow, mark)
        for row, x_row, value in zip(curve, x, values, strict=True):
            if _is_refused(row):
                _draw_refused(ax, x_row, 0.97 - gap * (refused.index(key) + 0.6), mark)
            elif _is_censored(row):
                _arrow(ax, (x_row, value), -9.0, mark.colour)
        text = _legend_text(labels[key], find_orders(orders, key), axis) if fitted else labels[key]
        handles.append(_handle(mark, text))
    label_ticks(ax, x_all, ".2g" if axis == "h" else "g")
    ax.set_xlabel(_X_NAME[axis])
    ax.set_ylabel(MEASURES.get(measure, measure))
    return handles


def draw_local_orders(
    ax: Axes,
    rows: Iterable[Row],
    orders: Iterable[OrderEstimate] = (),
    *,
    measure: str,
    marks: Marks | None = None,
) -> None:
    """Draw the local order of every row against ``T``, with the claims as dashed lines.

    Each local order stands at the finer of its two ``T``. Values far away from every claim are
    drawn as arrows at the edge, so that one wild point does not flatten the panel.
    """
    curves, labels, marks = _prepare(rows, measure, marks)
    orders = [order for key in curves for order in find_orders(orders, key)]
    claims = sorted({order.claim for order in orders if math.isfinite(order.claim)})
    every = [row for curve in curves.values() for row in curve]
    values = [row.eoc for row in every if math.isfinite(row.eoc)]
    centres = claims or [c[-1].eoc for c in curves.values() if math.isfinite(c[-1].eoc)] or [1.0]
    low = max(min([*values, *centres]), min(centres) - 1.25) - 0.2
    high = min(max([*values, *centres]), max(centres) + 1.25) + 0.2
    ax.set_xscale("log")
    ax.set_ylim(low, high)
    steps = [float(row.steps) for row in every]
    pad = (max(steps) / min(steps)) ** 0.05 if max(steps) > min(steps) else 2.0
    ax.set_xlim(min(steps) / pad, max(steps) * pad)
    for claim in claims:
        ax.axhline(claim, color=GREY, linewidth=0.8, linestyle=(0, (4, 2.5)), zorder=1.5)
    for key, curve in curves.items():
        mark = marks[labels[key]]
        x = [row.steps for row in curve]
        inside = [row.eoc if low <= row.eoc <= high else math.nan for row in curve]
        _draw_curve(ax, x, inside, [not row.in_window for row in curve], mark)
        for row in curve:
            if math.isfinite(row.eoc) and not low <= row.eoc <= high:
                up = row.eoc > high
                edge = high - 0.06 * (high - low) if up else low + 0.06 * (high - low)
                _draw_curve(ax, [row.steps], [edge], [True], mark)
                _arrow(ax, (row.steps, edge), 9.0 if up else -9.0, mark.colour)
    label_ticks(ax, steps, "g")
    ax.yaxis.set_major_locator(MultipleLocator(0.5 if high - low < 4.5 else 1.0))
    ax.set_xlabel(_X_NAME["T"])
    ax.set_ylabel("local order")


# --- whole figures --------------------------------------------------------------------------


def rate_plot(
    rows: Iterable[Row],
    orders: Iterable[OrderEstimate] = (),
    *,
    axis: Axis = "T",
    measure: str,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
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
    columns
        Columns of a page the figure spans: 2 is 7 in wide with the panels side by side, 1 is
        3.4 in wide with the panels above each other.
    """
    panel = Panel(list(rows), list(orders), measure, axis)
    return _rate_figure([panel], columns == 2, True, title, footer, columns, marks)


def rate_panels(
    panels: Sequence[Panel],
    *,
    local_orders: bool = True,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
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
    title, footer, columns, marks
        As in :func:`rate_plot`.
    """
    if not panels:
        raise ValueError("rate_panels needs at least one panel")
    return _rate_figure(panels, False, local_orders, title, footer, columns, marks)


def work_precision(
    rows: Iterable[Row],
    *,
    measure: str,
    wall: Mapping[tuple[str, int], float] | None = None,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
    marks: Marks | None = None,
) -> Figure:
    """Plot error against model calls and, where times are given, against median wall time.

    Parameters
    ----------
    rows
        Rows; those of other measures are ignored.
    measure
        Which measure to draw.
    wall
        Median wall time in seconds by (solver, steps); cells without one are left out.
    title, footer, columns, marks
        As in :func:`rate_plot`.
    """
    rows = list(rows)
    curves, labels, marks = _prepare(rows, measure, marks)
    count = 1 if wall is None else 2
    with style_context():
        fig, axes = _new_figure(columns, *((1, count) if columns == 2 else (count, 1)))
        handles = draw_rates(axes[0], rows, measure=measure, axis="nfe", marks=marks, fitted=False)
        if wall is not None:
            ax = axes[1]
            ax.set_xscale("log")
            ax.set_yscale("log")
            for key, curve in curves.items():
                timed = [row for row in curve if (row.solver, row.steps) in wall]
                x = [wall[row.solver, row.steps] for row in timed]
                values = [_shown_error(row) for row in timed]
                _draw_curve(ax, x, values, map(_is_censored, timed), marks[labels[key]])
            ax.set_ylim(axes[0].get_ylim())
            ax.set_xlabel("median wall time [s]")
            ax.set_ylabel(MEASURES.get(measure, measure))
        finish_figure(
            fig,
            panel_height=2.5,
            legends=[(0.0, 1.0, handles)],
            keys=_key_handles(curves.values(), (), fitted=False),
            title=title,
            footer=footer,
        )
    return fig


def density_plot(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    truth: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    truth_label: str = "true density",
    difference: bool = False,
    xlabel: str = "x",
    title: str | None = None,
    footer: str | None = None,
    columns: int = 1,
    marks: Marks | None = None,
) -> Figure:
    """Plot densities over the true one and, if asked, their differences to it.

    Parameters
    ----------
    curves
        Name to ``(x, density)``, both of shape (n,).
    truth
        ``(x, density)`` of the true law, drawn as a grey area.
    truth_label, xlabel
        Texts.
    difference
        Whether to add a panel with density minus true density (interpolated in ``x``).
    title, footer, columns, marks
        As in :func:`rate_plot`.
    """
    if difference and truth is None:
        raise ValueError("difference=True needs the true density; pass truth=(x, density)")
    marks = _all_marks(curves, marks)
    with style_context():
        count = 2 if difference else 1
        fig, axes = _new_figure(columns, *((1, count) if columns == 2 else (count, 1)))
        handles: list[Any] = []
        if truth is not None:
            x_true, p_true = (np.asarray(values, dtype=float) for values in truth)
            area = axes[0].fill_between(x_true, p_true, color="#DDDDDD", linewidth=0, zorder=1)
            axes[0].plot(x_true, p_true, color="#999999", linewidth=0.6, zorder=1.2)
            area.set_label(truth_label)
            handles.append(area)
        for place, (name, (x, p)) in enumerate(curves.items()):
            x, p = np.asarray(x, dtype=float), np.asarray(p, dtype=float)
            mark = marks[name]
            # Few markers, shifted from curve to curve, tell the lines apart in grey.
            every = max(1, len(x) // 9)
            look: dict[str, Any] = {
                "color": mark.colour,
                "linestyle": mark.linestyle,
                "marker": mark.marker,
                "markevery": (place * every // max(1, len(curves)), every),
                "markersize": 3.0,
            }
            axes[0].plot(x, p, **look)
            if difference:
                axes[1].plot(x, p - np.interp(x, x_true, p_true), **look)
            handles.append(_handle(mark, name))
        axes[0].set_ylabel("density")
        axes[0].set_ylim(bottom=0.0)
        if difference:
            axes[1].axhline(0.0, color=GREY, linewidth=0.6, zorder=1)
            axes[1].set_ylabel("density \N{MINUS SIGN} true density")
        for ax in axes:
            ax.set_xlabel(xlabel)
            ax.margins(x=0.0)
        finish_figure(
            fig, panel_height=2.0, legends=[(0.0, 1.0, handles)], title=title, footer=footer
        )
    return fig


def image_grid(
    images: Mapping[str, Sequence[ArrayLike | None]],
    column_labels: Sequence[str],
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "gray_r",
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
) -> Figure:
    """Show pictures: a row per solver, a group of columns per budget.

    Parameters
    ----------
    images
        Solver to its pictures of shape (height, width), group after group, all groups of the
        same size; ``None`` leaves an empty frame (a refused cell).
    column_labels
        One label per group, for instance ``"10 NFE"``.
    vmin, vmax
        Values of the lightest and darkest grey; by default the extremes over all pictures.
    cmap
        Name of a matplotlib colour map.
    title, footer, columns
        As in :func:`rate_plot`.
    """
    groups = len(column_labels)
    counts = {len(row) for row in images.values()}
    if not images or not groups or len(counts) != 1 or 0 in counts or min(counts) % groups:
        raise ValueError(
            "image_grid needs the same number of pictures for every solver, a multiple of the "
            f"{groups} column labels; got { ({name: len(row) for name, row in images.items()}) }"
        )
    per_group = min(counts) // groups
    arrays = {
        name: [None if image is None else np.asarray(image, dtype=float) for image in row]
        for name, row in images.items()
    }
    present = [image for row in arrays.values() for image in row if image is not None]
    if any(image.ndim != 2 for image in present):
        raise ValueError("image_grid shows 2-D arrays (height, width) only")
    vmin = (
        min((float(np.nanmin(image)) for image in present), default=0.0) if vmin is None else vmin
    )
    vmax = (
        max((float(np.nanmax(image)) for image in present), default=1.0) if vmax is None else vmax
    )

    width = page_width(columns)
    gap, group_gap, row_gap, margin = 0.03, 0.1, 0.05, 0.05
    left = margin + 0.06 + 0.062 * max(len(name) for name in images)
    space = width - left - margin - (groups - 1) * group_gap - groups * (per_group - 1) * gap
    tile = min(0.5, space / (groups * per_group))
    if tile < 0.06:
        raise ValueError(f"{min(counts)} pictures a row do not fit a figure {width} in wide")
    group_width = per_group * tile + (per_group - 1) * gap
    height = len(images) * (tile + row_gap) + 0.2
    with style_context():
        fig, (ax,) = _new_figure(columns, 1, 1)
        ax.set_axis_off()
        for i, (name, row) in enumerate(arrays.items()):
            y = height - 0.2 - i * (tile + row_gap)
            ax.text(left - 0.06, y - tile / 2, name, ha="right", va="center", fontsize=6.5)
            for j, image in enumerate(row):
                group, place = divmod(j, per_group)
                x = left + group * (group_width + group_gap) + place * (tile + gap)
                box = (x, x + tile, y - tile, y)
                if image is None:
                    ax.plot(
                        [x, x + tile, x + tile, x, x, x + tile],
                        [y - tile, y - tile, y, y, y - tile, y],
                        color="#BBBBBB",
                        linewidth=0.5,
                    )
                else:
                    ax.imshow(
                        image, extent=box, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest"
                    )
        for group, label in enumerate(column_labels):
            x = left + group * (group_width + group_gap) + group_width / 2
            ax.text(x, height - 0.1, label, ha="center", va="center", fontsize=6.5)
        ax.set_xlim(0.0, width)
        ax.set_ylim(0.0, height)
        ax.set_aspect("auto")
        # One inch of the page is one unit of the axes, so that pixels stay square.
        finish_figure(fig, panel_height=height, title=title, footer=footer, fill=True)
    return fig


def save_figure(
    fig: Figure,
    path_without_suffix: str | Path,
    formats: Sequence[str] = ("pdf", "svg", "png"),
    *,
    dpi: int = 300,
) -> list[Path]:
    """Write a figure in several formats, the same bytes every time.

    Parameters
    ----------
    fig
        Figure.
    path_without_suffix
        Where to; missing folders are made, ``.pdf`` and so on are appended.
    formats
        Any of ``"pdf"``, ``"svg"``, ``"png"``.
    dpi
        Resolution of PNG files and of pictures within PDF and SVG files.

    Returns
    -------
    list of Path
        Files written, in the order of ``formats``.
    """
    unknown = [name for name in formats if name not in _METADATA]
    if unknown:
        raise ValueError(
            f"unknown figure format {unknown[0]!r}; choose from {', '.join(_METADATA)}"
        )
    paths = [Path(f"{path_without_suffix}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with style_context():
            fig.savefig(path, format=name, dpi=dpi, metadata=_METADATA[name])
    return paths


# --- parts ----------------------------------------------------------------------------------


def _new_figure(columns: int, nrows: int, ncols: int) -> tuple[Figure, list[Axes]]:
    fig = Figure(figsize=(page_width(columns), 2.5 * nrows), layout="constrained")
    return fig, list(fig.subplots(nrows, ncols, squeeze=False).flat)


def _rate_figure(
    panels: Sequence[Panel],
    beside: bool,
    local: bool,
    title: str | None,
    footer: str | None,
    columns: int,
    marks: Marks | None,
) -> Figure:
    names = [
        label
        for panel in panels
        for label in curve_labels(_curves_of(panel.rows, panel.measure)).values()
    ]
    marks = _all_marks(names, marks)
    count = len(panels)
    with style_context():
        fig, axes = _new_figure(columns, *((1, 2) if beside else (1 + local, count)))
        legends, triangles, keys = [], [], {}
        for i, panel in enumerate(panels):
            curves = _curves_of(panel.rows, panel.measure)
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
                points = [(_X_VALUE[panel.axis](row), _shown_error(row)) for row in curve]
                points = [point for point in points if not math.isnan(point[1])]
                for order in find_orders(panel.orders, key):
                    if math.isfinite(order.claim):
                        claims.setdefault(order.claim, []).extend(points)
            sign = 1 if panel.axis == "h" else -1
            triangles.append((axes[i], claims, sign))
            for handle in _key_handles(curves.values(), claims if local else (), fitted=True):
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


def _curves_of(rows: Iterable[Row], measure: str) -> dict[CurveKey, list[Row]]:
    rows = list(rows)
    curves = group_curves(row for row in rows if row.measure == measure)
    if not curves:
        there = ", ".join(sorted({row.measure for row in rows})) or "no rows at all"
        raise ValueError(f"no rows of measure {measure!r} to plot; there are: {there}")
    return curves


def _prepare(
    rows: Iterable[Row], measure: str, marks: Marks | None
) -> tuple[dict[CurveKey, list[Row]], dict[CurveKey, str], dict[str, Mark]]:
    curves = _curves_of(rows, measure)
    labels = curve_labels(curves)
    return curves, labels, _all_marks(labels.values(), marks)


def _all_marks(names: Iterable[str], marks: Marks | None) -> dict[str, Mark]:
    """Complete given marks: the look of ``"heun, grid"`` is that of ``"heun"`` if only that is."""
    marks = {} if marks is None else marks
    own = solver_marks([*marks, *names])
    return {name: marks.get(name, marks.get(name.split(", ")[0], own[name])) for name in own}


def _shown_error(row: Row) -> float:
    """Height of a row's marker; NaN where it has none."""
    if row.status == "ok":
        for value in (row.error, row.floor):
            if math.isfinite(value) and value > 0:
                return value
    return math.nan


def _is_refused(row: Row) -> bool:
    return math.isnan(_shown_error(row))


def _is_censored(row: Row) -> bool:
    if row.in_window or _is_refused(row):
        return False
    clear = row.error > _FLOOR_FACTOR * row.floor and row.error >= _NOISE_FACTOR * row.se
    return not clear


def _error_limits(rows: Iterable[Row]) -> tuple[float, float]:
    rows = list(rows)
    values = [value for value in map(_shown_error, rows) if not math.isnan(value)]
    if not values:
        return 0.1, 1.0
    low, high = min(values), max(values)
    for row in rows:
        if row.status == "ok" and row.se > 0 and math.isfinite(row.error):
            high = max(high, row.error + _Z95 * row.se)
            low = min(low, max(row.error - _Z95 * row.se, min(values) / 3.0))
    near = [row.floor for row in rows if row.floor > low / 30.0]
    if near:
        low = min(low, min(near) / (high / min(near)) ** 0.08)  # room for the word "floor"
    pad = (high / low) ** 0.06 * 1.1
    return low / pad, high * pad


def _draw_floor(
    ax: Axes, curves: Iterable[Sequence[Row]], x_of: Callable[[Row], float], low: float
) -> None:
    """Grey band below the floor: dark below the floors of all curves, light below some."""
    by_x: dict[float, list[float]] = {}
    for row in (row for curve in curves for row in curve):
        if row.floor > 0 and math.isfinite(row.floor):
            by_x.setdefault(x_of(row), []).append(row.floor)
    if not by_x:
        return
    places = sorted(by_x)
    lowest = np.array([min(by_x[x]) for x in places])
    highest = np.array([max(by_x[x]) for x in places])
    look: dict[str, Any] = {"fontsize": 5.5, "color": GREY, "zorder": 3}
    if highest.max() <= low:
        text = f"floor {lowest.min():.0e} to {highest.max():.0e}, below this panel"
        if lowest.min() == highest.max():
            text = f"floor {highest.max():.0e}, below this panel"
        ax.text(0.02, 0.015, text, transform=ax.transAxes, ha="left", va="bottom", **look)
        return
    left, right = ax.get_xlim()
    x = np.array([left, *places, right])
    for values, colour in ((highest, FLOOR_SOME), (lowest, FLOOR_COMMON)):
        top = np.array([values[0], *values, values[-1]])
        ax.fill_between(x, top, low * 1e-6, color=colour, linewidth=0, zorder=0.5)
    at = 0 if lowest[0] >= lowest[-1] else len(places) - 1
    side = "left" if at == 0 else "right"
    ax.annotate(
        "floor",
        (0.02 if at == 0 else 0.98, lowest[at]),
        (0, -1.5),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        ha=side,
        va="top",
        **look,
    )


def _draw_curve(
    ax: Axes, x: Sequence[float], y: Sequence[float], hollow: Iterable[bool], mark: Mark
) -> None:
    """Draw a line through all points, filled markers, and hollow ones where asked."""
    hollow = list(hollow)
    ax.plot(x, y, color=mark.colour, linestyle=mark.linestyle, zorder=2.2)
    for flag in (False, True):
        chosen = [i for i, value in enumerate(hollow) if value is flag and not math.isnan(y[i])]
        if chosen:
            ax.plot(
                [x[i] for i in chosen],
                [y[i] for i in chosen],
                color=mark.colour,
                marker=mark.marker,
                markerfacecolor="white" if flag else mark.colour,
                linestyle="none",
                zorder=2.6,
            )


def _draw_bars(
    ax: Axes, curve: Iterable[Row], x_of: Callable[[Row], float], mark: Mark, low: float
) -> None:
    """95 % bars ``error -+ 1.96 se``, which a log axis shows asymmetric; to the edge if <= 0."""
    noisy = [row for row in curve if not _is_refused(row) and row.se > 0]
    noisy = [row for row in noisy if math.isfinite(row.error) and row.error > 0]
    if not noisy:
        return
    error = np.array([row.error for row in noisy])
    half = _Z95 * np.array([row.se for row in noisy])
    down = error - np.maximum(error - half, low * 1e-3)
    x = [x_of(row) for row in noisy]
    bars: dict[str, Any] = {"fmt": "none", "ecolor": mark.colour, "elinewidth": 0.7}
    ax.errorbar(x, error, yerr=np.array([down, half]), zorder=2.4, **bars)


def _arrow(
    ax: Axes, xy: tuple[float, float], points: float, colour: str, coords: Any = "data"
) -> None:
    """Arrow from ``xy`` by so many points upwards, its head at the far end."""
    arrow: dict[str, Any] = {"arrowstyle": "<|-,head_width=0.14,head_length=0.22"}
    arrow |= {"color": colour, "linewidth": 0.8, "shrinkA": 0.0, "shrinkB": 2.0}
    ax.annotate(
        "",
        xy,
        (0.0, points),
        xycoords=coords,
        textcoords="offset points",
        arrowprops=arrow,
        annotation_clip=False,
        zorder=2.5,
    )


def _draw_refused(ax: Axes, x: float, height: float, mark: Mark) -> None:
    """Draw the marker near the top of the panel, with an arrow: there is no number to show."""
    ax.plot(
        [x],
        [height],
        transform=ax.get_xaxis_transform(),
        color=mark.colour,
        marker=mark.marker,
        markerfacecolor="white",
        linestyle="none",
        zorder=2.6,
    )
    _arrow(ax, (x, height), 7.0, mark.colour, coords=ax.get_xaxis_transform())


def _handle(mark: Mark, label: str) -> Line2D:
    style: Any = mark.linestyle
    return Line2D([], [], color=mark.colour, marker=mark.marker, linestyle=style, label=label)


def _key_handles(
    curves: Iterable[Sequence[Row]], claims: Iterable[float], *, fitted: bool
) -> list[Line2D]:
    """Explain the marks that occur: hollow, arrows, dashed claims."""
    rows = [row for curve in curves for row in curve]
    shown = [row for row in rows if not _is_refused(row)]
    keys: list[tuple[str, dict[str, Any]]] = []
    if fitted and not all(row.in_window for row in shown):
        keys.append(("outside the fit window", {"marker": "o", "markerfacecolor": "white"}))
    if any(map(_is_censored, rows)):
        keys.append(("censored: near the floor or noise", _ARROW_KEY | {"marker": r"$\downarrow$"}))
    if len(shown) < len(rows):
        keys.append(("refused or failed: no value", _ARROW_KEY | {"marker": r"$\uparrow$"}))
    handles = [Line2D([], [], color=GREY, linestyle="none", label=t, **look) for t, look in keys]
    if any(True for _ in claims):
        line = (0, (4, 2.5))
        handles.append(Line2D([], [], color=GREY, linestyle=line, label="claimed order"))
    return handles


def _legend_text(label: str, orders: Sequence[OrderEstimate], axis: Axis) -> str:
    """For instance ``heun: 2.00 [1.94, 2.07], consistent with 2``."""
    if not orders:
        return label
    wanted = "h" if axis == "h" else "T"
    order = next((order for order in orders if order.axis == wanted), orders[0])
    verdict = verdict_text(order)
    if order.axis != wanted:
        verdict += f" (in {order.axis})"
    value = f"{order_text(order)}, " if math.isfinite(order.order) else ""
    return f"{label}: {value}{verdict}"
