"""Reference triangles: what a slope looks like, drawn where a panel is free."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from scipy.ndimage import distance_transform_edt

from .style import GREY


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
