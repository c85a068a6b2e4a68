"""Figures of what a study's solvers do: errors on the way, densities, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..studies.order import Z
from ..studies.rows import MEASURES, MEASURES_TEX
from ..studies.shown import Densities, Images, Picture, Plane, Trajectory
from .captions import sentences, settings_text
from .curves import curve_handle, draw_curve
from .page import finish_figure, line_width, new_figure, wrap
from .pictures import density_plot, image_grid
from .style import Marks, all_marks, style_context
from .venues import page_width

__all__ = ["picture_caption", "picture_name", "picture_plot", "plane_plot", "trajectory_plot"]


def trajectory_plot(
    picture: Trajectory,
    *,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 1,
    venue: str | None = None,
    marks: Marks | None = None,
) -> Figure:
    """Plot the error after each step against the log-SNR there, from noise to data.

    Parameters
    ----------
    picture
        Errors by solver; bars are 95 % intervals.
    title, footer, columns, venue, marks
        As in :func:`~probflow.report.rates.rate_plot`.
    """
    marks = all_marks(picture.errors, marks)
    with style_context():
        fig, (ax,) = new_figure(page_width(columns, venue), 1, 1)
        handles = []
        ax.set_yscale("log")
        for name, errors in picture.errors.items():
            mark = marks[name]
            errors = np.where(errors > 0, errors, np.nan)
            se = np.nan_to_num(picture.se[name])
            if (se > 0).any():
                down = np.minimum(Z * se, 0.9 * errors)
                look: dict[str, Any] = {"fmt": "none", "ecolor": mark.colour, "elinewidth": 0.6}
                ax.errorbar(picture.lambdas, errors, yerr=np.array([down, Z * se]), **look)
            draw_curve(ax, picture.lambdas.tolist(), errors.tolist(), [False] * len(errors), mark)
            handles.append(curve_handle(mark, name))
        ax.set_xlabel(r"log-SNR $\ln(\alpha/\sigma)$, from noise to data")
        ax.set_ylabel(MEASURES_TEX.get(picture.measure, picture.measure))
        finish_figure(
            fig, panel_height=2.4, legends=[(0.0, 1.0, handles)], title=title, footer=footer
        )
    return fig


def plane_plot(
    picture: Plane,
    *,
    title: str | None = None,
    footer: str | None = None,
    columns: int = 2,
    venue: str | None = None,
    marks: Marks | None = None,
) -> Figure:
    """Plot the samples of each solver over the true density, a panel each.

    Parameters
    ----------
    picture
        Density and samples; areas are the true law's highest 50, 80 and 95 %.
    title, footer, columns, venue, marks
        As in :func:`~probflow.report.rates.rate_plot`.
    """
    if not picture.points:
        raise ValueError("plane_plot needs the samples of at least one solver")
    marks = all_marks(picture.points, marks)
    width = page_width(columns, venue)
    most = max(2, int(width / 1.6))
    nrows = math.ceil(len(picture.points) / most)
    ncols = max(math.ceil(len(picture.points) / nrows), 2)
    levels = _levels(picture.true)
    spans = np.ptp(picture.y) / np.ptp(picture.x)
    place = (width - 0.5) / ncols
    titles = {name: wrap(name, place, 7.0, hyphens=True) for name in picture.points}
    lines = max(text.count("\n") + 1 for text in titles.values())
    with style_context():
        fig, axes = new_figure(width, nrows, ncols)
        # They were broken by the mean width of letters: a little smaller where theirs are wider.
        widest = max(line_width(line, 7.0) for text in titles.values() for line in text.split("\n"))
        size = 7.0 * min(1.0, (place - 0.1) / widest)
        for ax, (name, points) in zip(axes, picture.points.items(), strict=False):
            greys = ("#E2E2E2", "#CBCBCB", "#AEAEAE")
            ax.contourf(picture.x, picture.y, picture.true, levels, colors=greys, zorder=1)
            # Small points with an edge of white stay apart where they are dense.
            ax.plot(
                *points.T,
                linestyle="none",
                marker="o",
                markersize=1.9,
                markeredgewidth=0.25,
                markeredgecolor="white",
                color=marks[name].colour,
                zorder=2,
            )
            ax.set_title(titles[name], loc="left", fontsize=size)
            ax.set_anchor("W")  # so that a title has all of its panel's place
            ax.set_xlim(picture.x[0], picture.x[-1])
            ax.set_ylim(picture.y[0], picture.y[-1])
            ax.set_aspect("equal")
            ax.grid(False)
        for ax in axes[len(picture.points) :]:
            ax.remove()
        for i, ax in enumerate(axes[: len(picture.points)]):
            ax.set_xlabel("$x_1$")
            if i % ncols == 0:
                ax.set_ylabel("$x_2$")
            else:
                ax.set_yticklabels([])
        height = min(max(spans * place, 1.0), 3.0) + 0.29 + 0.11 * lines
        finish_figure(fig, panel_height=height, title=title, footer=footer)
    return fig


def _levels(density: np.ndarray) -> list[float]:
    """Heights above which lie 95, 80 and 50 % of the mass on a uniform grid, and the top."""
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    heights = [float(ordered[np.searchsorted(mass, part)]) for part in (0.95, 0.8, 0.5)]
    return [*heights, float(ordered[0]) * 1.0001]


def picture_plot(
    picture: Picture,
    *,
    footer: str | None = None,
    columns: int = 2,
    venue: str | None = None,
    marks: Marks | None = None,
) -> Figure:
    """The figure of a picture that shows something.

    Parameters
    ----------
    picture
        One of :mod:`probflow.studies.shown`.
    footer
        Small print; none in a paper.
    columns, venue
        Width of the figure, as for :func:`page_width`.
    marks
        Looks by name of the solver.

    Returns
    -------
    Figure
        The figure.
    """
    size: dict[str, Any] = {"footer": footer, "columns": columns, "venue": venue}
    if isinstance(picture, Images):
        images = {name: list(rows) for name, rows in picture.images.items()}
        size |= {"vmin": picture.low, "vmax": picture.high, "nfe": picture.nfe}
        return image_grid(images, picture.groups, **size)
    size["marks"] = marks
    if isinstance(picture, Trajectory):
        return trajectory_plot(picture, **size)
    if isinstance(picture, Densities):
        curves = {name: (picture.x, values) for name, values in picture.densities.items()}
        return density_plot(curves, (picture.x, picture.true), difference=True, **size)
    return plane_plot(picture, **size)


def picture_name(picture: Picture) -> str:
    """Name of a picture's files, for instance ``mixture-trajectory-tv``.

    Parameters
    ----------
    picture
        One of :mod:`probflow.studies.shown`.

    Returns
    -------
    str
        The name, without a suffix.
    """
    kind = {Densities: "densities", Plane: "samples", Images: "images"}
    last = (
        f"trajectory-{picture.measure}" if isinstance(picture, Trajectory) else kind[type(picture)]
    )
    return f"{picture.target}-{last}"


def picture_caption(picture: Picture, provenance: Mapping[str, Any]) -> str:
    """What a picture shows, of which target, on which grid, and what it depends on.

    Parameters
    ----------
    picture
        One of :mod:`probflow.studies.shown`.
    provenance
        As for :func:`settings_text`.

    Returns
    -------
    str
        Sentences.
    """
    where = f"on {picture.target}, grid {picture.grid}"
    if isinstance(picture, Trajectory):
        what = f"error after each of {picture.steps} steps: {MEASURES[picture.measure]} {where}"
        if any((np.nan_to_num(se) > 0).any() for se in picture.se.values()):
            what += "; bars are 95 % intervals"
    elif isinstance(picture, Densities):
        what = (
            f"Densities after {picture.steps} steps {where}: the true one, those of the solvers "
            "(exact, without samples), and their differences"
        )
    elif isinstance(picture, Plane):
        what = (
            f"Samples after {picture.steps} steps {where}, over the areas that hold 50, 80 and "
            "95 % of the true law"
        )
    else:
        what = f"Samples ({', '.join(picture.groups)}) {where}; the same draws for every solver"
        if picture.nfe:
            what += "; below its name, the model calls (NFE) that a sample took"
    parts = [what]
    if picture.refused:
        reasons = (f"{name} ({reason})" for name, reason in picture.refused.items())
        parts.append(f"not shown: {'; '.join(reasons)}")
    return sentences(*parts, settings_text(provenance))
