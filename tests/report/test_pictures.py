from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn import legend_texts, pages_overlap

from probflow.report.pictures import density_plot, image_grid


def test_density_plot() -> None:
    x = np.linspace(-3, 3, 101)
    p = np.exp(-(x**2) / 2)
    fig = density_plot({"ddim": (x, 1.1 * p)}, (x, p), difference=True, columns=2)
    assert legend_texts(fig) == ["true density", "ddim"]
    drawn = [np.asarray(line.get_ydata()) for line in fig.axes[1].lines]
    assert any(len(y) == 101 and np.allclose(y, 0.1 * p) for y in drawn)
    assert not pages_overlap(fig)
    with pytest.raises(ValueError, match="needs the true density"):
        density_plot({"ddim": (x, p)}, difference=True)


def test_image_grid() -> None:
    rng = np.random.default_rng(0)
    digits = [rng.random((8, 8)) for _ in range(6)]
    fig = image_grid({"ddim": digits, "heun": [None, *digits[1:]]}, ["5 NFE", "10 NFE"])
    [ax] = fig.axes
    assert len(ax.images) == 11
    assert {text.get_text() for text in ax.texts} == {"ddim", "heun", "5 NFE", "10 NFE"}
    limits = {image.get_clim() for image in ax.images}
    assert len(limits) == 1  # one scale for all
    fig.draw_without_rendering()
    box = ax.images[0].get_window_extent()
    assert box.width == pytest.approx(box.height)


def test_model_calls_stand_below_the_names() -> None:
    images = {name: [np.zeros((8, 8))] * 24 for name in ("heun", "ddim")}
    labels, nfe = ["at most 5 NFE", "at most 10 NFE"], {"heun": (4, 10), "ddim": (5, 10)}

    def texts(columns: int) -> list[str]:
        [ax] = image_grid(images, labels, columns=columns, venue="icml", nfe=nfe).axes
        return [text.get_text() for text in ax.texts]

    assert {"4, 10 NFE", "5, 10 NFE"} < set(texts(2))
    assert {"4 NFE", "5 NFE", "10 NFE"} < set(texts(1))  # a group below the other
    with pytest.raises(ValueError, match="nfe: need a number for each of the 2"):
        image_grid(images, labels, nfe={"heun": (4,)})


def test_groups_that_do_not_fit_go_below() -> None:
    """In a column of 3.25 inches, as icml's, a group of six pictures leaves no room for another."""
    images = {name: [np.zeros((8, 8))] * 18 for name in ("accelerated-ode-multistep", "ddim")}
    [ax] = image_grid(images, ["5 NFE", "10 NFE", "20 NFE"], columns=1, venue="icml").axes
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("ddim") == 3
    heights = [text.get_position()[1] for text in ax.texts if "NFE" in text.get_text()]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3
    extents = [tuple(image.get_extent()) for image in ax.images]
    assert len(set(extents)) == len(extents) == 36
    assert all(0 <= x0 < x1 <= 3.25 for x0, x1, *_ in extents)


@pytest.mark.parametrize(
    ("images", "labels"),
    [({}, ["a"]), ({"x": [np.zeros((8, 8))] * 3}, ["a", "b"]), ({"x": []}, ["a"])],
)
def test_image_grid_wants_full_groups(images: Any, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="same number of pictures"):
        image_grid(images, labels)


def test_image_grid_refuses_what_it_cannot_show() -> None:
    image_grid({"x": [np.zeros((8, 8, 3))]}, ["a"])  # colours are fine
    with pytest.raises(ValueError, match="shows arrays"):
        image_grid({"x": [np.zeros((8, 8, 4))]}, ["a"])
    with pytest.raises(ValueError, match="do not fit"):
        image_grid({"x": [np.zeros((8, 8))] * 100}, ["a"], columns=1)
