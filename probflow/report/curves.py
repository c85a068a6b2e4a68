"""The parts of a rate plot: what a row shows, and how curves, bars, floors and arrows are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..studies.order import FLOOR_FACTOR, MAX_RELATIVE_SE, Z
from ..studies.rows import CurveKey, OrderEstimate, Row
from .style import FLOOR, GREY, Mark, Marks, all_marks
from .tables import curve_labels, group_curves, order_text, verdict_text

Axis = Literal["T", "h", "nfe"]

#: What stands on the x axis, and its label.
X_VALUE: dict[str, Callable[[Row], float]] = {
    "T": lambda row: row.steps,
    "h": lambda row: row.h_max,
    "nfe": lambda row: row.nfe,
}
X_NAME = {"T": "steps $T$", "h": "largest step $h$", "nfe": "model calls per sample (NFE)"}

#: Times the largest error in a fit window, above which others leave the panel.
WILD = 1e3
#: Between the ends of the axis of errors, so that it has more than one tick.
LEAST_SPAN = 12.0
#: Between floors that are drawn as one, of all curves.
SAME = 1.05
#: Longest list of names beside a floor, in characters.
LONGEST = 50

_ARROW_KEY: dict[str, Any] = {"markersize": 5.0, "markeredgewidth": 0.2}


def curves_of(rows: Iterable[Row], measure: str) -> dict[CurveKey, list[Row]]:
    """Group the rows of one measure by curve; refuse to go on without any."""
    rows = list(rows)
    curves = group_curves(row for row in rows if row.measure == measure)
    if not curves:
        there = ", ".join(sorted({row.measure for row in rows})) or "no rows at all"
        raise ValueError(f"no rows of measure {measure!r} to plot; there are: {there}")
    return curves


def prepare(
    rows: Iterable[Row], measure: str, marks: Marks | None
) -> tuple[dict[CurveKey, list[Row]], dict[CurveKey, str], dict[str, Mark]]:
    """Curves of one measure, their labels, and the marks of the labels."""
    curves = curves_of(rows, measure)
    labels = curve_labels(curves)
    return curves, labels, all_marks(labels.values(), marks)


def shown_error(row: Row) -> float:
    """Height of a row's marker; NaN where it has none."""
    if row.status == "ok":
        for value in (row.error, row.floor):
            if math.isfinite(value) and value > 0:
                return value
    return math.nan


def is_refused(row: Row) -> bool:
    """Whether a row has no number to show."""
    return math.isnan(shown_error(row))


def is_censored(row: Row) -> bool:
    """Whether the order estimate leaves a row out as too close to the floor or too noisy."""
    if row.in_window or is_refused(row):
        return False
    clear = row.error > FLOOR_FACTOR * row.floor and row.se / row.error <= MAX_RELATIVE_SE
    return not clear


def error_limits(rows: Iterable[Row]) -> tuple[float, float]:
    """Limits of a log axis that hold errors, bars and floors that are not far below.

    Far is more than what the errors span themselves, so that they never stand in a corner. Errors
    before the fit windows that are ``WILD`` times those within leave the panel at the top: a bound
    of 1e13 would flatten all others.
    """
    rows = list(rows)
    values = [value for value in map(shown_error, rows) if not math.isnan(value)]
    if not values:
        return 0.1, 1.0
    inside = [row.error for row in rows if row.in_window]
    top = WILD * max(inside, default=math.inf)
    low, high = min(values), max(value for value in values if value <= top)
    for row in rows:
        if row.status == "ok" and row.se > 0 and math.isfinite(row.error) and row.error <= top:
            high = max(high, row.error + Z * row.se)
            low = min(low, max(row.error - Z * row.se, min(values) / 3.0))
    far = min(max(high / low, 3.0), 30.0)
    near = [row.floor for row in rows if row.floor > low / far]
    if near:
        low = min(low, min(near) / (high / min(near)) ** 0.08)  # room for the word "floor"
    pad = max((high / low) ** 0.06 * 1.1, (LEAST_SPAN * low / high) ** 0.5)
    return low / pad, high * pad


def _falls(curves: Iterable[Sequence[Row]], x_of: Callable[[Row], float]) -> bool:
    """Whether errors are smaller on the right than on the left."""
    points = [(x_of(row), shown_error(row)) for curve in curves for row in curve]
    points = sorted(point for point in points if not math.isnan(point[1]))
    middle = len(points) // 2
    left, right = points[:middle], points[-middle:]
    return not middle or min(e for _, e in right) <= min(e for _, e in left)


def draw_floors(
    ax: Axes,
    curves: Mapping[str, Sequence[Row]],
    x_of: Callable[[Row], float],
    marks: Marks,
) -> None:
    """A grey band below the floor that all curves share, or a named dotted line for each floor.

    A band would cover the points of a curve with a lower floor, or with none.
    """
    floors: dict[str, np.ndarray] = {}
    by_steps: dict[int, list[float]] = {}
    for name, curve in curves.items():
        rows = [row for row in curve if row.floor > 0 and math.isfinite(row.floor)]
        for row in rows:
            by_steps.setdefault(row.steps, []).append(row.floor)
        if rows:
            floors[name] = np.array(sorted((x_of(row), row.floor) for row in rows)).T
    if not floors:
        return
    low, high = ax.get_ylim()
    at, side = (0.02, "left") if _falls(curves.values(), x_of) else (0.98, "right")
    look: dict[str, Any] = {"ha": side, "fontsize": 5.5, "color": GREY}
    values = [value for own in by_steps.values() for value in own]
    shared = all(max(own) <= SAME * min(own) for own in by_steps.values())
    band = shared and len(floors) == len(curves)
    below = max(values) <= low
    if band or below:
        span = f"{min(values):.0e} to " if min(values) < max(values) else ""
        text = "floor of all curves" if len(curves) > 1 else "floor"
        if below:
            text = f"floor {span}{max(values):.0e}, below this panel"
        ax.text(at, 0.015, text, transform=ax.transAxes, va="bottom", zorder=3, **look)
    left, right = ax.get_xlim()
    named: list[tuple[float, str]] = []  # heights of the ends at which the names stand
    for name, (x, y) in floors.items():
        line = [left, *x, right], [y[0], *y, y[-1]]
        if band and not below:
            ax.fill_between(*line, low * 1e-6, color=FLOOR, linewidth=0, zorder=0.5)
        elif y.max() > low:
            ax.plot(*line, color=marks[name].colour, linewidth=0.8, linestyle=":", zorder=1.8)
            end = y[0] if side == "left" else y[-1]
            named.append((max(end, low * (high / low) ** 0.06), name))
    for end, names in _together(sorted(named), (high / low) ** 0.05):
        ax.annotate(
            f"floor{'s' if '; ' in names else ''} of {names}",
            (at, end),
            (0, -2.0),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            va="top",
            bbox={"pad": 0.2, "edgecolor": "none", "facecolor": "white"},
            zorder=1.9,  # before the lines of floors, behind the data
            **look,
        )


def _together(named: Iterable[tuple[float, str]], apart: float) -> list[tuple[float, str]]:
    """Names at heights of which the ratios are large enough for a text between them."""
    groups: list[list[tuple[float, str]]] = []
    for height, name in named:
        if groups and height < apart * groups[-1][0][0]:
            groups[-1].append((height, name))
        else:
            groups.append([(height, name)])
    return [
        (group[0][0], text if len(text) <= LONGEST else f"{len(group)} curves")
        for group in groups
        for text in ["; ".join(name for _, name in reversed(group))]
    ]


def draw_curve(
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


def draw_bars(
    ax: Axes, curve: Iterable[Row], x_of: Callable[[Row], float], mark: Mark, low: float
) -> None:
    """95 % bars ``error -+ 1.96 se``, which a log axis shows asymmetric; to the edge if <= 0."""
    noisy = [row for row in curve if not is_refused(row) and row.se > 0]
    noisy = [row for row in noisy if math.isfinite(row.error) and row.error > 0]
    if not noisy:
        return
    error = np.array([row.error for row in noisy])
    half = Z * np.array([row.se for row in noisy])
    down = error - np.maximum(error - half, low * 1e-3)
    x = [x_of(row) for row in noisy]
    bars: dict[str, Any] = {"fmt": "none", "ecolor": mark.colour, "elinewidth": 0.7}
    ax.errorbar(x, error, yerr=np.array([down, half]), zorder=2.4, **bars)


def draw_arrow(
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


def draw_refused(ax: Axes, x: float, height: float, mark: Mark) -> None:
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
    draw_arrow(ax, (x, height), 7.0, mark.colour, coords=ax.get_xaxis_transform())


def curve_handle(mark: Mark, label: str) -> Line2D:
    """Legend handle of a curve."""
    style: Any = mark.linestyle
    return Line2D([], [], color=mark.colour, marker=mark.marker, linestyle=style, label=label)


def key_handles(
    curves: Iterable[Sequence[Row]], claims: Iterable[float], *, fitted: bool
) -> list[Line2D]:
    """Explain the marks that occur: hollow, arrows, dashed claims."""
    rows = [row for curve in curves for row in curve]
    shown = [row for row in rows if not is_refused(row)]
    keys: list[tuple[str, dict[str, Any]]] = []
    if fitted and not all(row.in_window for row in shown):
        text = "outside the fit window" if any(row.in_window for row in shown) else "no fit"
        keys.append((text, {"marker": "o", "markerfacecolor": "white"}))
    if any(map(is_censored, rows)):
        keys.append(("censored: near the floor or noise", _ARROW_KEY | {"marker": r"$\downarrow$"}))
    if len(shown) < len(rows):
        keys.append(("refused or failed: no value", _ARROW_KEY | {"marker": r"$\uparrow$"}))
    handles = [Line2D([], [], color=GREY, linestyle="none", label=t, **look) for t, look in keys]
    if any(True for _ in claims):
        line = (0, (4, 2.5))
        handles.append(Line2D([], [], color=GREY, linestyle=line, label="claimed order"))
    return handles


def legend_text(label: str, orders: Sequence[OrderEstimate], axis: Axis) -> str:
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
