from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from drawn import ORDERS, ROWS, curve, estimate, pages_overlap

from probflow.report.captions import rate_caption, settings_text, window_sentence
from probflow.report.scenes import picture_caption, picture_name, picture_plot
from probflow.report.style import style_context
from probflow.report.tables import DASH
from probflow.studies.shown import Densities, Images, Picture, Plane, Trajectory

PROVENANCE = {"seed": 7, "dtype": "float64", "device": "cpu", "torch": "2.13.0", "commit": ""}


def test_a_rate_plot_says_what_it_depends_on() -> None:
    assert rate_caption(ROWS, ORDERS, PROVENANCE) == (
        f"Error and local order: TV(q, p) on mixture, grid lambda. Fit window T = 32{DASH}512. "
        "Seed 7; float64 on cpu; torch 2.13.0."
    )
    noisy = curve("ddpm", [1.0] * 7, se=0.1)
    text = rate_caption(noisy, [], {"samples": {"mixture, tv": 96, "mixture, strong": 4}})
    assert text.endswith("grid lambda. Bars are 95 % intervals. 96 samples.")


def test_settings_say_what_is_known_of_the_rows_shown() -> None:
    assert settings_text({}) == settings_text({"samples": 96}, curve("a", [1.0] * 7, se=0.1)) == ""
    known = {"process": "ve", "seed": 7, "samples": {"mixture, tv": 96, "mixture, kl": 32}}
    noisy = [*curve("a", [1.0] * 7, se=0.1), *curve("a", [1.0] * 7, se=0.1, measure="kl")]
    assert settings_text(known, ROWS) == "process ve; seed 7"
    assert settings_text(known, noisy) == (
        "process ve; seed 7; samples: 96 (mixture, tv), 32 (mixture, kl)"
    )


def test_windows_that_differ() -> None:
    other = estimate("heun", 2.0, 2.0, window=(8, 128))
    none = dataclasses.replace(other, solver="ddim", window=None)
    assert window_sentence([*ORDERS, other]) == (
        f"fit window T = 32{DASH}512 (ddpm, accelerated-ode), 8{DASH}128 (heun)"
    )
    assert window_sentence([other, none]) == f"fit window T = 8{DASH}128 (heun); no fit for ddim"
    assert window_sentence([none]) == "no fit"
    assert window_sentence([]) == ""


X = np.linspace(-2.0, 2.0, 40)
BELL = np.exp(-0.5 * X**2)
NOISE = np.random.default_rng(0).normal(size=(50, 2))
PICTURES: list[Picture] = [
    Trajectory(
        *("m 1", "g", "strong", 3, np.array([-1.0, 0.0, 1.0])),
        {"ddim": np.array([0.1, np.nan, 0.3]), "heun": np.array([0.01, 0.02, 0.0])},
        {"ddim": np.array([0.01, np.nan, 0.2]), "heun": np.zeros(3)},
        {"ddpm": "it follows none"},
    ),
    Densities("m 1", "g", 8, X, BELL, {"ddim": 1.1 * BELL, "heun": BELL}),
    Plane("m 1", "g", 8, X, X, np.outer(BELL, BELL), {f"s{i}": NOISE for i in range(5)}),
    Images("m 1", "g", ("5 NFE", "10 NFE"), {"a": np.zeros((4, 5, 5))}, -1.0, 1.0),
]


@pytest.mark.parametrize("spread", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("columns", [1, 2])
def test_long_names_above_planes_are_whole(columns: int, spread: float) -> None:
    long = [
        "accelerated-sde-half-noise",
        "unipc-3 (variant=bh1, lower_order_final=False)",
        "a" * 60,
    ]
    points = {f"{name}{i}": NOISE for i in range(2) for name in long}
    picture = Plane("m", "g", 8, X, spread * X, np.outer(BELL, BELL), points)
    fig = picture_plot(picture, columns=columns, venue="icml")
    fig.set_dpi(600)  # at a low resolution letters are rounded to whole pixels
    with style_context():
        fig.draw_without_rendering()
        boxes = []
        for ax in fig.axes:
            title = ax.get_title(loc="left")
            assert title.replace("\n", "").replace(" ", "") in {n.replace(" ", "") for n in points}
            [text] = [text for text in ax.get_children() if getattr(text, "_text", "") == title]
            boxes.append(text.get_window_extent())
        assert all(box.x1 < fig.bbox.x1 and box.y1 < fig.bbox.y1 for box in boxes)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: type(picture).__name__)
@pytest.mark.parametrize(("columns", "venue"), [(1, "icml"), (2, "icml"), (2, "siam"), (1, None)])
def test_pictures_fit_every_page(picture: Picture, columns: int, venue: str | None) -> None:
    fig = picture_plot(picture, columns=columns, venue=venue, footer="small print " * 20)
    with style_context():  # as save_figure does: ticks are made when they are drawn
        assert not pages_overlap(fig)
        page = fig.bbox
        for ax in fig.axes:
            box = ax.get_tightbbox()
            assert box is not None
            assert page.x0 - 0.5 < box.x0 < box.x1 < page.x1 + 0.5  # pixels
            assert box.y1 < page.y1 + 0.5
            for text in fig.texts:
                assert not box.overlaps(text.get_window_extent())


def test_what_pictures_are_called() -> None:
    names = ["m 1-trajectory-strong", "m 1-densities", "m 1-samples", "m 1-images"]
    assert [picture_name(picture) for picture in PICTURES] == names
    first, second, third, last = (picture_caption(p, PROVENANCE) for p in PICTURES)
    assert first == (
        "Error after each of 3 steps: strong error, RMS per coordinate on m 1, grid g; bars are "
        "95 % intervals. Not shown: ddpm (it follows none). Seed 7; float64 on cpu; torch 2.13.0."
    )
    assert second.startswith("Densities after 8 steps on m 1, grid g: the true one")
    assert "50, 80 and 95 % of the true law" in third
    assert last.startswith("Samples (5 NFE, 10 NFE) on m 1, grid g; the same draws for every")


def test_points_without_a_number_are_left_out() -> None:
    ax = picture_plot(PICTURES[0]).axes[0]
    heights = [y for line in ax.lines for y in np.asarray(line.get_ydata(), dtype=float)]
    assert np.nanmin(heights) == 0.01
