"""How figures look: parameters, palette, the marks of each solver, and the layout of a page.

The functions called ``*_params`` are pure: each returns a dictionary of matplotlib ``rcParams``
for :func:`matplotlib.rc_context`. The layout functions change only the figure they are given.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from scipy.ndimage import distance_transform_edt

#: Width in inches of a figure that spans one or two columns of a page.
WIDTHS: dict[int, float] = {1: 3.4, 2: 7.0}

#: The palette of Okabe and Ito, told apart under every common colour-vision deficiency.
OKABE_ITO: dict[str, str] = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "bluish green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish purple": "#CC79A7",
}

#: Neutral tones for what is not data: footers, reference triangles, claims, floors.
GREY = "#555555"
FLOOR_COMMON = "#C4C4C4"
FLOOR_SOME = "#E4E4E4"

# Yellow is left out (too light for thin lines on white); neighbours in this order differ in
# lightness, too, so that the first few curves stay apart in a grey print.
_COLOURS = ("blue", "orange", "black", "sky blue", "vermillion", "reddish purple", "bluish green")
# Markers that can be filled or hollow, because hollow means "outside the fit window".
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "*", ">", "h")
_LINES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0.0, (5.0, 1.5)),
    (0.0, (1.0, 1.2)),
    (0.0, (5.0, 1.5, 1.0, 1.5)),
    (0.0, (8.0, 1.5, 2.0, 1.5)),
)


class Mark(NamedTuple):
    """How one solver is drawn."""

    colour: str
    marker: str
    linestyle: str | tuple[float, tuple[float, ...]]


def solver_marks(names: Iterable[str]) -> dict[str, Mark]:
    """Give every solver a colour, a marker and a line style.

    The i-th distinct name always gets the i-th mark, so a list that only grows at its end never
    changes the look of a solver. The first twelve have distinct markers, and colour, marker
    and line style together repeat only after 420 names.

    Parameters
    ----------
    names
        Names in the order wanted; repetitions are ignored.

    Returns
    -------
    dict
        Name to :class:`Mark`, in the order of first appearance.

    Examples
    --------
    >>> solver_marks(["heun", "ddim", "heun"])["ddim"].marker
    's'
    """
    marks: dict[str, Mark] = {}
    for name in names:
        if name not in marks:
            i = len(marks)
            marks[name] = Mark(
                OKABE_ITO[_COLOURS[i % len(_COLOURS)]],
                _MARKERS[i % len(_MARKERS)],
                _LINES[i % len(_LINES)],
            )
    return marks


def page_width(columns: int) -> float:
    """Width in inches of a figure spanning ``columns`` (1 or 2) columns of a page."""
    if columns not in WIDTHS:
        raise ValueError(f"columns must be 1 or 2 (columns of the page), got {columns!r}")
    return WIDTHS[columns]


def font_params(size: float = 7.0) -> dict[str, Any]:
    """Fonts: DejaVu Sans comes with matplotlib, so figures are the same on every machine."""
    return {
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
        "mathtext.fontset": "dejavusans",
        "text.usetex": False,
        "font.size": size,
        "axes.labelsize": size,
        "axes.titlesize": size,
        "figure.titlesize": size + 1.0,
        "xtick.labelsize": size - 0.5,
        "ytick.labelsize": size - 0.5,
        "legend.fontsize": size - 0.5,
    }


def line_params() -> dict[str, Any]:
    """Lines, markers and bars that stay legible at column width."""
    return {
        "lines.linewidth": 0.9,
        "lines.markersize": 3.6,
        "lines.markeredgewidth": 0.8,
        "errorbar.capsize": 1.6,
        "patch.linewidth": 0.6,
        "hatch.linewidth": 0.4,
    }


def axes_params() -> dict[str, Any]:
    """Thin frames, a faint grid behind the data, no boxes around legends."""
    return {
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "axes.grid.which": "major",
        "axes.axisbelow": True,
        "axes.facecolor": "white",
        "axes.edgecolor": "black",
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.4,
        "grid.linestyle": "-",
        "xtick.direction": "out",
        "ytick.direction": "out",
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "ytick.minor.width": 0.4,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 1.5,
        "ytick.minor.size": 1.5,
        "axes.labelpad": 3.0,
        "axes.titlepad": 4.0,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "legend.handletextpad": 0.5,
        "legend.columnspacing": 1.4,
        "legend.labelspacing": 0.3,
        "legend.borderpad": 0.2,
        "legend.numpoints": 1,
    }


def output_params() -> dict[str, Any]:
    """How files are written: editable text in PDF and SVG, and no randomness in their bytes."""
    return {
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "probflow",
        "savefig.bbox": None,
        "savefig.transparent": False,
    }


def figure_params(*, font_size: float = 7.0) -> dict[str, Any]:
    """All of the above in one dictionary, for :func:`matplotlib.rc_context`."""
    return {**font_params(font_size), **line_params(), **axes_params(), **output_params()}


def style_context(*, font_size: float = 7.0) -> AbstractContextManager[None]:
    """Context in which figures are made and saved; the settings before it come back after."""
    params: Any = figure_params(font_size=font_size)
    return matplotlib.rc_context(params)


def wrap(text: str, width: float, size: float) -> str:
    """Break ``text`` so that its lines fit ``width`` inches at a font size of ``size`` points."""
    per_line = max(20, int(width * 72.0 / (0.56 * size)))  # mean advance of DejaVu Sans: 0.56 em
    lines = [textwrap.fill(line, per_line, break_long_words=False) for line in text.split("\n")]
    return "\n".join(lines)


# --- layout ---------------------------------------------------------------------------------


def label_ticks(ax: Axes, values: Iterable[float], spec: str = "g") -> None:
    """Put a tick at every value of a logarithmic x axis; label as many as fit."""
    by_label = {format(value, spec): value for value in sorted(set(values))}
    left, right = ax.get_xlim()
    inches = ax.get_window_extent().width / ax.figure.dpi
    scale = inches / math.log(right / left)
    labels, end = [], -math.inf
    for label, value in by_label.items():
        half = 0.5 * (0.055 * len(label) + 0.03)
        place = scale * math.log(value / left)
        fits = place - half >= end
        labels.append(label if fits else "")
        end = place + half if fits else end
    ax.xaxis.set_major_locator(FixedLocator(list(by_label.values())))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())


def finish_figure(
    fig: Figure,
    *,
    panel_height: float,
    legends: Sequence[tuple[float, float, Sequence[Any]]] = (),
    keys: Sequence[Any] = (),
    title: str | None = None,
    footer: str | None = None,
    fill: bool = False,
) -> None:
    """Size a figure and place title, panels, legends, key and footer from top to bottom.

    Legends stand below the panels, where they cannot cover data, and the figure grows by their
    height. The layout is frozen at the end, so that every later save gives the same bytes.

    Parameters
    ----------
    fig
        Figure with constrained layout; its width stays.
    panel_height
        Height in inches of one row of panels.
    legends
        ``(left, right, handles)``: the fractions of the width each legend may use.
    keys
        Handles of a last legend in grey, which explains marks.
    title, footer
        Texts.
    fill
        Whether the panels fill their space to the edges, without room for tick labels.
    """
    width = fig.get_figwidth()
    boxes = [
        (left, right, _fit_legend(fig, h, (right - left) * width)) for left, right, h in legends
    ]
    key = _fit_legend(fig, keys, width) if keys else None
    if key is not None:
        for text in key.get_texts():
            text.set_color(GREY)
    foot = wrap(footer, width - 0.1, 5.0) if footer else ""
    head = wrap(title, width - 0.1, 8.0) if title else ""

    foot_height = 0.09 * len(foot.splitlines()) + 0.05 if foot else 0.03
    key_height = _height(key) + 0.02 if key is not None else 0.0
    legend_height = max((_height(legend) for _, _, legend in boxes), default=0.0)
    head_height = 0.15 * len(head.splitlines()) + 0.05 if head else 0.0
    below = foot_height + key_height + legend_height
    rows = fig.axes[0].get_gridspec().nrows  # type: ignore[union-attr]
    height = head_height + rows * panel_height + below
    fig.set_size_inches(width, height)

    if foot:
        y = (foot_height - 0.03) / height
        look: dict[str, Any] = {"fontsize": 5.0, "color": GREY, "linespacing": 1.15}
        fig.text(0.05 / width, y, foot, ha="left", va="top", **look).set_in_layout(False)
    if head:
        y = 1.0 - 0.04 / height
        fig.text(0.05 / width, y, head, ha="left", va="top", fontsize=8.0).set_in_layout(False)
    for left, right, legend in boxes:
        anchor = (0.5 * (left + right), below / height)
        legend.set_bbox_to_anchor(anchor, transform=fig.transFigure)
    if key is not None:
        anchor = (0.5, (foot_height + key_height - 0.02) / height)
        key.set_bbox_to_anchor(anchor, transform=fig.transFigure)

    rect = (0.0, below / height, 1.0, rows * panel_height / height)
    if fill:
        fig.set_layout_engine("none")
        fig.axes[0].set_position(rect)
        return
    engine: Any = fig.get_layout_engine()
    engine.set(rect=rect, w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.03)
    fig.align_ylabels()
    fig.draw_without_rendering()
    fig.set_layout_engine("none")


def _fit_legend(fig: Figure, handles: Sequence[Any], width: float) -> Legend:
    """Make a legend with as many columns as fit ``width``; break the labels if not one does."""
    labels = [str(handle.get_label()) for handle in handles]
    broken = [label.replace(": ", ":\n", 1) for label in labels]
    tries = [(labels, n) for n in range(min(4, len(labels)), 0, -1)] + [(broken, 1)]
    for texts, ncols in tries:
        legend = fig.legend(
            handles=list(handles),
            labels=texts,
            ncols=ncols,
            loc="upper center",
            borderaxespad=0.0,
        )
        legend.set_in_layout(False)
        if legend.get_window_extent().width / fig.dpi <= width or texts is broken:
            break
        legend.remove()
    return legend


def _height(legend: Legend) -> float:
    return float(legend.get_window_extent().height / legend.figure.dpi)


# --- reference slopes -----------------------------------------------------------------------


def draw_slope_triangles(
    ax: Axes, slopes: Mapping[float, Sequence[tuple[float, float]]], sign: int
) -> None:
    """Draw a reference triangle for each slope, where the panel is free.

    Each triangle stands as close to its own curves as it can without touching anything; its legs
    carry their lengths, 1 and the slope. Call this last, when limits and layout are final.

    Parameters
    ----------
    ax
        Log-log axes.
    slopes
        Orders ``p > 0``, each with the points (in data coordinates) of the curves it is for.
    sign
        -1 if the error falls to the right (steps), +1 if it rises (step size).
    """
    for slope in sorted(slopes):
        for _ in range(4):
            if _place_triangle(ax, slope, slopes[slope], sign):
                break
            low, high = ax.get_ylim()
            ax.set_ylim(low / (high / low) ** 0.12, high)  # make room below and try again


def _place_triangle(ax: Axes, slope: float, near: Sequence[tuple[float, float]], sign: int) -> bool:
    box = ax.get_window_extent()
    size = np.array([box.width, box.height]) / ax.figure.dpi  # inches
    spans = [math.log(high / low) for low, high in (ax.get_xlim(), ax.get_ylim())]
    run = 0.16 * size[0]
    rise = slope * run / size[0] * spans[0] / spans[1] * size[1]
    if rise > 0.3 * size[1]:
        run, rise = run * 0.3 * size[1] / rise, 0.3 * size[1]
    taken, lowest = _obstacles(ax, ax.figure.dpi)
    own = taken
    if near:
        own = (ax.transData.transform(np.array(near)) - box.p0) / ax.figure.dpi
    # Distance of every place to what is drawn, on a raster of 0.02 in.
    cells = np.maximum((size / 0.02).astype(int), 1)
    free = np.ones(tuple(cells), dtype=bool)
    at = (taken / 0.02).astype(int)
    at = at[((at >= 0) & (at < cells)).all(axis=1)]
    free[at[:, 0], at[:, 1]] = False
    gap = 0.02 * distance_transform_edt(free) if len(at) else np.ones(tuple(cells))

    best: tuple[float, Any] | None = None
    edge = np.linspace(0.0, 1.0, 8)[:, None]
    pad = 0.14
    beside = 0.045 + 0.022 * len(f"{slope:g}")  # half the label and a gap
    for corner in ((0, 0), (1, 1)):  # right angle at the lower or at the upper end
        # Vertices in inches: the right angle, the end of the level leg, the end of the steep one.
        right_x = float(corner[0] if sign < 0 else 1 - corner[0]) * run
        angle = np.array([right_x, corner[1] * rise])
        level = np.array([run - right_x, angle[1]])
        steep = np.array([right_x, rise - angle[1]])
        shape = np.concatenate(
            [a + edge * (b - a) for a, b in ((angle, level), (level, steep), (steep, angle))]
        )
        outwards = np.sign(angle - np.array([run, rise]) / 2)
        names = [
            (np.array([run / 2, angle[1] + 0.055 * outwards[1]]), "1"),
            (np.array([right_x + beside * outwards[0], rise / 2]), f"{slope:g}"),
        ]
        marks = np.concatenate([shape, *(name[None] for name, _ in names)])
        for x in np.linspace(pad, size[0] - run - pad, 28):
            for y in np.linspace(max(pad, lowest + 0.1), size[1] - rise - pad, 28):
                if y < lowest + 0.1:
                    continue
                spot = np.array([x, y])
                under = np.clip(((marks + spot) / 0.02).astype(int), 0, cells - 1)
                clear = float(gap[under[:, 0], under[:, 1]].min())
                # Once clear of everything, close to its own curves is best.
                middle = spot + np.array([run, rise]) / 2
                away = float(np.hypot(*(own - middle).T).min()) if len(own) else 0.0
                score = 100.0 - away if clear >= 0.1 else clear
                if best is None or score > best[0]:
                    best = (score, (clear, spot, (angle, level, steep), names))
    if best is None or best[1][0] < 0.06:
        return False
    _, spot, corners, names = best[1]
    outline = np.array([(corner + spot) / size for corner in (*corners, corners[0])])
    low_x, low_y = (math.log(limits[0]) for limits in (ax.get_xlim(), ax.get_ylim()))
    to_data = np.exp(np.array([low_x, low_y]) + outline * np.array(spans))
    ax.plot(*to_data.T, color=GREY, linewidth=0.7, marker="none", linestyle="-", zorder=1.8)
    for place, text in names:
        x, y = np.exp(np.array([low_x, low_y]) + (place + spot) / size * np.array(spans))
        ax.text(x, y, text, fontsize=5.5, color=GREY, ha="center", va="center", zorder=1.8)
    return True


def _obstacles(ax: Axes, dpi: float) -> tuple[np.ndarray, float]:
    """Points in inches from the corner of ``ax`` that are drawn on, and the top of its bands."""
    origin = ax.get_window_extent().p0
    pieces: list[np.ndarray] = []
    lowest = 0.0
    for line in ax.lines:
        pieces.append(line.get_transform().transform(line.get_xydata()))
    for artist in ax.collections:
        if isinstance(artist, LineCollection):
            pieces.extend(ax.transData.transform(part) for part in artist.get_segments())
        elif isinstance(artist, PolyCollection):
            top = max(np.asarray(path.vertices)[:, 1].max() for path in artist.get_paths())
            lowest = max(lowest, float(ax.transData.transform((1.0, top))[1] - origin[1]) / dpi)
    for text in ax.texts:
        extent = text.get_window_extent()
        pieces.append(np.array([(x, y) for x in extent.intervalx for y in extent.intervaly]))
    points = []
    for piece in pieces:
        piece = (piece - origin) / dpi
        points.append(piece)
        for a, b in itertools.pairwise(piece):
            count = min(200, int(np.hypot(*(b - a)) / 0.04)) if np.isfinite(a + b).all() else 0
            points.append(a + np.linspace(0.0, 1.0, count + 2)[1:-1, None] * (b - a))
    every = np.concatenate(points) if points else np.empty((0, 2))
    return every[np.isfinite(every).all(axis=1)], lowest
