"""The page of a figure: its width, its parts from top to bottom, and the files it goes to.

These functions change only the figure they are given.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .files import write_bytes
from .style import GREY, style_context

_METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


def new_figure(width: float, nrows: int, ncols: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of so many inches, and its axes row by row."""
    fig = Figure(figsize=(width, 2.5 * nrows), layout="constrained")
    return fig, list(fig.subplots(nrows, ncols, squeeze=False).flat)


def label_ticks(ax: Axes, values: Iterable[float], spec: str = "g", *, merge: float = 0.0) -> None:
    """Put a tick at every value of a logarithmic x axis; label as many as fit.

    Of values less than ``merge`` inches apart, as 127 and 128 model calls, the most frequent has
    the tick.
    """
    left, right = ax.get_xlim()
    inches = ax.get_window_extent().width / ax.figure.dpi
    scale = inches / math.log(right / left)
    counts = Counter(values)
    groups: list[list[float]] = []
    for value in sorted(counts):
        if groups and scale * math.log(value / groups[-1][0]) < merge:
            groups[-1].append(value)
        else:
            groups.append([value])
    chosen = [max(group, key=lambda value: (counts[value], value)) for group in groups]
    labels, end = [], -math.inf
    for value in chosen:
        label = format(value, spec)
        half = 0.5 * (0.055 * len(label) + 0.03)
        place = scale * math.log(value / left)
        fits = place - half >= end
        labels.append(label if fits else "")
        end = place + half if fits else end
    ax.xaxis.set_major_locator(FixedLocator(chosen))
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


def wrap(text: str, width: float, size: float, *, hyphens: bool = False) -> str:
    """Break ``text`` so that its lines fit ``width`` inches at a font size of ``size`` points.

    Names such as log-snr stay whole, unless ``hyphens`` may end a line.
    """
    per_line = max(16, int(width * 72.0 / (0.56 * size)))  # mean advance of DejaVu Sans: 0.56 em
    fill = textwrap.TextWrapper(per_line, break_long_words=hyphens, break_on_hyphens=hyphens).fill
    return "\n".join(map(fill, text.split("\n")))


def line_width(text: str, size: float) -> float:
    """Inches that a line of text takes in the style's font at a size in points."""
    return float(TextPath((0.0, 0.0), text, size=size).get_extents().width) / 72.0


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

    Raises
    ------
    ValueError
        For an unknown format.
    OSError
        If a file cannot be written; the message names it.
    """
    unknown = [name for name in formats if name not in _METADATA]
    if unknown:
        raise ValueError(
            f"unknown figure format {unknown[0]!r}; choose from {', '.join(_METADATA)}"
        )
    paths = [Path(f"{path_without_suffix}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = io.BytesIO()  # a disk that is full would leave matplotlib's writer in a bad state
        with style_context():
            fig.savefig(drawn, format=name, dpi=dpi, metadata=_METADATA[name])
        write_bytes(path, drawn.getvalue())
    return paths
