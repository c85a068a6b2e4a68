"""Figures of what a sampler makes: densities and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .curves import curve_handle
from .page import finish_figure, new_figure
from .style import GREY, Marks, all_marks, style_context
from .venues import WIDE, page_width

LEAST_TILE = 0.12  # inches: smaller pictures show nothing


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
    venue: str | None = None,
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
    title, footer, columns, venue, marks
        As in :func:`~probflow.report.rates.rate_plot`.
    """
    if difference and truth is None:
        raise ValueError("difference=True needs the true density; pass truth=(x, density)")
    marks = all_marks(curves, marks)
    width = page_width(columns, venue)
    with style_context():
        count = 2 if difference else 1
        fig, axes = new_figure(width, *((1, count) if width >= WIDE else (count, 1)))
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
            handles.append(curve_handle(mark, name))
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
    nfe: Mapping[str, Sequence[int]] | None = None,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
    venue: str | None = None,
) -> Figure:
    """Show pictures: a row per solver, a group of columns per budget.

    Groups that do not fit next to one another go below, with the solvers' names again.

    Parameters
    ----------
    images
        Solver to its pictures of shape (height, width), or (height, width, 3) with colours in
        [0, 1], group after group, all groups of the
        same size; ``None`` leaves an empty frame (a refused cell).
    column_labels
        One label per group, for instance ``"at most 10 NFE"``.
    vmin, vmax
        Values of the lightest and darkest grey; by default the extremes over all pictures.
    cmap
        Name of a matplotlib colour map.
    nfe
        Model calls of each group by solver, to stand below its name.
    title, footer, columns, venue
        As in :func:`~probflow.report.rates.rate_plot`.
    """
    groups = len(column_labels)
    counts = {len(row) for row in images.values()}
    if not images or not groups or len(counts) != 1 or 0 in counts or min(counts) % groups:
        raise ValueError(
            "image_grid needs the same number of pictures for every solver, a multiple of the "
            f"{groups} column labels; got { ({name: len(row) for name, row in images.items()}) }"
        )
    nfe = {} if nfe is None else nfe
    if any(len(calls) != groups for calls in nfe.values()):
        raise ValueError(f"nfe: need a number for each of the {groups} column labels, got {nfe}")
    per_group = min(counts) // groups
    arrays = {
        name: [None if image is None else np.asarray(image, dtype=float) for image in row]
        for name, row in images.items()
    }
    present = [image for row in arrays.values() for image in row if image is not None]
    if any(image.ndim != 2 and image.shape[2:] != (3,) for image in present):
        raise ValueError("image_grid shows arrays (height, width) or (height, width, 3) only")
    vmin = (
        min((float(np.nanmin(image)) for image in present), default=0.0) if vmin is None else vmin
    )
    vmax = (
        max((float(np.nanmax(image)) for image in present), default=1.0) if vmax is None else vmax
    )

    width = page_width(columns, venue)
    gap, group_gap, row_gap, margin = 0.03, 0.1, 0.05, 0.05
    left = margin + 0.06 + 0.062 * max(len(name) for name in images)
    for beside in range(groups, 0, -1):  # groups next to one another
        gaps = (beside - 1) * group_gap + beside * (per_group - 1) * gap
        tile = min(0.5, (width - left - margin - gaps) / (beside * per_group))
        if tile >= LEAST_TILE:
            break
    else:
        raise ValueError(
            f"{per_group} pictures in a group do not fit a figure {width} in wide; show fewer"
        )
    group_width = per_group * tile + (per_group - 1) * gap
    left += 0.5 * (width - margin - left - beside * group_width - (beside - 1) * group_gap)
    band = len(images) * (tile + row_gap) + 0.2
    height = math.ceil(groups / beside) * band

    def corner(group: int) -> tuple[float, float]:
        """Left and upper end of a group."""
        below, place = divmod(group, beside)
        return left + place * (group_width + group_gap), height - below * band

    with style_context():
        fig, (ax,) = new_figure(width, 1, 1)
        ax.set_axis_off()
        for i, (name, row) in enumerate(arrays.items()):
            for group in range(groups):
                x, y = corner(group)
                y -= 0.2 + i * (tile + row_gap)
                if x == left:
                    middle, calls = y - tile / 2, nfe.get(name, ())[group : group + beside]
                    if len(calls):
                        text = f"{', '.join(f'{count:g}' for count in calls)} NFE"
                        look: dict[str, Any] = {"va": "top", "fontsize": 5.0, "color": GREY}
                        ax.text(x - 0.06, middle - 0.015, text, ha="right", **look)
                        middle += 0.04
                    ax.text(x - 0.06, middle, name, ha="right", va="center", fontsize=6.5)
                for image in row[group * per_group : (group + 1) * per_group]:
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
                            image,
                            cmap=cmap,
                            extent=box,
                            vmin=vmin,
                            vmax=vmax,
                            interpolation="nearest",
                        )
                    x += tile + gap
        for group, label in enumerate(column_labels):
            x, y = corner(group)
            ax.text(x + group_width / 2, y - 0.1, label, ha="center", va="center", fontsize=6.5)
        ax.set_xlim(0.0, width)
        ax.set_ylim(0.0, height)
        ax.set_aspect("auto")
        # One inch of the page is one unit of the axes, so that pixels stay square.
        finish_figure(fig, panel_height=height, title=title, footer=footer, fill=True)
    return fig
