"""Rows to draw, and what a finished figure shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probflow.studies.rows import OrderEstimate, Row

STEPS = (8, 16, 32, 64, 128, 256, 512)
DDPM = (2.826e-1, 1.854e-1, 1.034e-1, 5.315e-2, 2.667e-2, 1.333e-2, 6.658e-3)
ODE = (1.272e-1, 5.380e-2, 1.835e-2, 5.494e-3, 1.534e-3, 4.110e-4, 1.070e-4)


def curve(
    name: str, errors: Sequence[float], *, nfe: int = 1, se: float = 0.0, **extra: Any
) -> list[Row]:
    """Rows of one curve; its fit window starts at T = 32."""
    rows: list[Row] = []
    for steps, error in zip(STEPS, errors, strict=True):
        ok = math.isfinite(error)
        values: dict[str, Any] = {
            "target": "mixture",
            "solver": name,
            "grid": "lambda",
            "steps": steps,
            "nfe": nfe * steps,
            "h_max": 1 - math.exp(-3 / steps),
            "measure": "tv",
            "error": error,
            "se": se * error if ok else 0.0,
            "eoc": math.log2(rows[-1].error / error) if rows else math.nan,
            "in_window": ok and steps >= 32,
            "status": "ok" if ok else "refused: the map is not injective",
        }
        rows.append(Row(**(values | extra)))
    return rows


def estimate(name: str, order: float, claim: float, **extra: Any) -> OrderEstimate:
    made = OrderEstimate(
        order, order - 0.06, order + 0.07, claim, "consistent", "it fits", "T", (32, 512)
    )
    names = {"target": "mixture", "solver": name, "grid": "lambda", "measure": "tv"}
    return dataclasses.replace(made, **(names | extra))


ROWS = [*curve("ddpm", DDPM), *curve("accelerated-ode", ODE, nfe=2)]
ORDERS = [estimate("ddpm", 1.0, 1.0), estimate("accelerated-ode", 2.0, 2.0)]


def legend_texts(fig: Figure) -> list[str]:
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def markers(ax: Axes, colour: str, *, hollow: bool) -> list[tuple[float, float]]:
    """Points drawn with markers in ``colour``, filled or hollow."""
    points: list[tuple[float, float]] = []
    for line in ax.lines:
        is_hollow = line.get_markerfacecolor() == "white"
        drawn = line.get_marker() not in ("none", "None", None)
        if drawn and line.get_color() == colour and is_hollow is hollow:
            points += [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]
    return sorted(points)


def pages_overlap(fig: Figure) -> bool:
    """Whether a legend covers an axes with its labels, or leaves the page."""
    fig.draw_without_rendering()
    page = fig.bbox
    for legend in fig.legends:
        box = legend.get_window_extent()
        if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1:
            return True
        if any(box.overlaps(ax.get_tightbbox()) for ax in fig.axes):  # type: ignore[arg-type]
            return True
    return False
