from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import ORDERS, ROWS
from matplotlib.axes import Axes

from probflow.report.rates import rate_plot


def triangles(ax: Axes) -> list[np.ndarray]:
    closed = []
    for line in ax.lines:
        points = np.asarray(line.get_xydata())
        if len(points) == 4 and np.allclose(points[0], points[3]):
            closed.append(points)
    return closed


@pytest.mark.parametrize(("axis", "sign"), [("T", -1), ("nfe", -1), ("h", 1)])
def test_triangles_have_the_claimed_slopes_and_touch_nothing(axis: Any, sign: int) -> None:
    ax = rate_plot(ROWS, ORDERS, measure="tv", axis=axis).axes[0]
    found = triangles(ax)
    assert len(found) == 2
    for slope, points in zip((1.0, 2.0), found, strict=True):
        level, steep = np.log(points[1]), np.log(points[2])
        assert (steep - level)[1] / (steep - level)[0] == pytest.approx(sign * slope)
        inside = ax.transAxes.inverted().transform(ax.transData.transform(points))
        assert inside.min() > 0
        assert inside.max() < 1
        pixels = ax.transData.transform(points)
        for line in ax.lines:
            if not any(np.array_equal(np.asarray(line.get_xydata()), other) for other in found):
                data = line.get_transform().transform(np.asarray(line.get_xydata()))
                gap = np.hypot(*(data[:, None] - pixels[None]).transpose(2, 0, 1)).min()
                assert gap > 0.05 * ax.figure.dpi
    labels = [text.get_text() for text in ax.texts]
    assert labels.count("2") == 1
    assert labels.count("1") == 3
