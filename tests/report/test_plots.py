from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probflow.report.plots import (
    Panel,
    density_plot,
    image_grid,
    rate_panels,
    rate_plot,
    save_figure,
    work_precision,
)
from probflow.report.style import OKABE_ITO, figure_params, page_width, solver_marks, wrap
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


# --- style


def test_marks_are_stable_and_distinct() -> None:
    names = [f"solver-{i}" for i in range(12)]
    marks = solver_marks(names)
    assert solver_marks(names[:5]) == {name: marks[name] for name in names[:5]}
    assert solver_marks([*names, "solver-3"]) == marks
    assert len({mark.marker for mark in marks.values()}) == 12
    assert {mark.colour for mark in marks.values()} <= set(OKABE_ITO.values())
    many = solver_marks(str(i) for i in range(200))
    assert len(set(many.values())) == 200


def test_parameters_and_widths() -> None:
    params = figure_params()
    assert params["pdf.fonttype"] == 42
    assert params["svg.fonttype"] == "none"
    assert params["svg.hashsalt"] == "probflow"
    assert set(params) <= set(matplotlib.rcParams)
    assert (page_width(1), page_width(2)) == (3.4, 7.0)
    with pytest.raises(ValueError, match="columns must be 1 or 2"):
        page_width(3)


def test_wrap_keeps_lines_and_words() -> None:
    text = wrap("aaaa " * 60 + "\nend", 3.4, 5.0)
    assert text.endswith("\nend")
    assert max(map(len, text.split("\n"))) <= 3.4 * 72 / (0.56 * 5.0)


# --- rate plots


@pytest.mark.parametrize("columns", [1, 2])
def test_rate_plot_axes(columns: int) -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv", columns=columns)
    left, right = fig.axes
    assert fig.get_figwidth() == page_width(columns)
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert left.get_xlabel() == "steps T"
    assert left.get_ylabel() == "TV(q, p)"
    assert (right.get_xlabel(), right.get_ylabel()) == ("steps T", "local order")
    for ax in (left, right):
        assert list(ax.get_xticks()) == list(STEPS)
        assert [text.get_text() for text in ax.get_xticklabels()] == [str(T) for T in STEPS]
        assert len(ax.get_xticks(minor=True)) == 0
    assert not pages_overlap(fig)


def test_hollow_outside_the_window() -> None:
    left, right = rate_plot(ROWS, ORDERS, measure="tv").axes
    colour = solver_marks(["ddpm"])["ddpm"].colour
    assert markers(left, colour, hollow=True) == list(zip(STEPS[:2], DDPM[:2], strict=True))
    assert markers(left, colour, hollow=False) == list(zip(STEPS[2:], DDPM[2:], strict=True))
    assert [x for x, _ in markers(right, colour, hollow=True)] == [16]
    assert [x for x, _ in markers(right, colour, hollow=False)] == list(STEPS[2:])


def test_legend_states_order_and_verdict() -> None:
    orders = [
        ORDERS[0],
        estimate("accelerated-ode", 1.5, 2.0, verdict="slower"),
        estimate("heun", math.nan, 2.0, verdict="inconclusive"),
        estimate("ddim", 1.01, math.nan, verdict="inconclusive"),
    ]
    rows = [*ROWS, *curve("heun", ODE), *curve("ddim", DDPM), *curve("bare", DDPM)]
    texts = legend_texts(rate_plot(rows, orders, measure="tv"))
    assert texts[:5] == [
        "ddpm: 1.00 [0.94, 1.07], consistent with 1",
        "accelerated-ode: 1.50 [1.44, 1.57], slower than 2",
        "heun: inconclusive (claim 2)",
        "ddim: 1.01 [0.95, 1.08], no claim",
        "bare",
    ]
    assert "outside the fit window" in texts
    assert "claimed order" in texts


def test_legend_says_when_the_order_is_on_another_axis() -> None:
    both = [ORDERS[0], estimate("ddpm", 1.11, 1.0, axis="h")]
    assert legend_texts(rate_plot(ROWS, both, measure="tv", axis="h"))[0].startswith("ddpm: 1.11")
    assert legend_texts(rate_plot(ROWS, both, measure="tv"))[0].startswith("ddpm: 1.00")
    texts = legend_texts(rate_plot(ROWS, ORDERS, measure="tv", axis="h"))
    assert texts[0] == "ddpm: 1.00 [0.94, 1.07], consistent with 1 (in T)"


def test_claims_are_dashed() -> None:
    right = rate_plot(ROWS, ORDERS, measure="tv").axes[1]
    levels = {
        float(np.asarray(line.get_ydata())[0])
        for line in right.lines
        if line.is_dashed() and len(set(np.asarray(line.get_ydata()).tolist())) == 1
    }
    assert levels == {1.0, 2.0}


def test_wild_local_order_does_not_flatten_the_panel() -> None:
    rows = [dataclasses.replace(row, eoc=40.0) if row.steps == 64 else row for row in ROWS]
    right = rate_plot(rows, ORDERS, measure="tv").axes[1]
    assert right.get_ylim()[1] < 4.0
    assert sum(not text.get_text() for text in right.texts) == 2  # an arrow per solver


def test_bars_only_with_noise() -> None:
    def bars(ax: Axes) -> list[np.ndarray]:
        return [
            np.asarray(segment)
            for artist in ax.collections
            if isinstance(artist, LineCollection)
            for segment in artist.get_segments()
        ]

    assert bars(rate_plot(ROWS, ORDERS, measure="tv").axes[0]) == []
    noisy = bars(rate_plot(curve("ddpm", DDPM, se=0.1), ORDERS, measure="tv").axes[0])
    assert len(noisy) == len(STEPS)
    np.testing.assert_allclose(noisy[0][:, 1], DDPM[0] * np.array([1 - 0.196, 1 + 0.196]))


def test_bar_below_zero_goes_to_the_edge() -> None:
    ax = rate_plot(curve("ddpm", DDPM, se=2.0), measure="tv").axes[0]
    [bars] = [artist for artist in ax.collections if isinstance(artist, LineCollection)]
    low = ax.get_ylim()[0]
    assert low > 1e-4
    assert all(0 < np.asarray(segment)[0, 1] < low for segment in bars.get_segments())


def test_floor_band_and_its_label() -> None:
    ax = rate_plot(curve("ode", ODE, floor=1e-4), measure="tv").axes[0]
    assert any(isinstance(artist, PolyCollection) for artist in ax.collections)
    assert "floor" in [text.get_text() for text in ax.texts]
    assert ax.get_ylim()[0] < 1e-4
    far = rate_plot(curve("ode", ODE, floor=1e-13), measure="tv").axes[0]
    assert not any(isinstance(artist, PolyCollection) for artist in far.collections)
    assert "floor 1e-13, below this panel" in [text.get_text() for text in far.texts]
    assert far.get_ylim()[0] > 1e-6


def test_censored_and_refused_are_arrows() -> None:
    rows = curve("ode", ODE)
    rows[-1] = dataclasses.replace(rows[-1], floor=5e-5, in_window=False)
    rows[0] = dataclasses.replace(rows[0], error=math.nan, status="refused: not injective")
    fig = rate_plot(rows, measure="tv")
    arrows = [text for text in fig.axes[0].texts if not text.get_text()]
    assert len(arrows) == 2
    texts = legend_texts(fig)
    assert "censored: near the floor or noise" in texts
    assert "refused or failed: no value" in texts
    # The refused cell has no height of its own: its marker is placed in parts of the axes.
    colour = solver_marks(["ode"])["ode"].colour
    heights = dict(markers(fig.axes[0], colour, hollow=True))
    assert 0.8 < heights[8.0] < 1.0
    assert "refused" not in " ".join(legend_texts(rate_plot(ROWS, ORDERS, measure="tv")))


def test_everything_refused_still_draws() -> None:
    rows = curve("ode", [math.nan] * len(STEPS), eoc=math.nan)
    fig = rate_plot(rows, [estimate("ode", math.nan, 2.0)], measure="tv", title="t", footer="f")
    assert len(fig.axes) == 2


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


@pytest.mark.parametrize(
    ("axis", "label", "ticks"),
    [("nfe", "model calls per sample (NFE)", [*STEPS, 1024]), ("h", "largest step h", None)],
)
def test_other_axes(axis: Any, label: str, ticks: list[int] | None) -> None:
    ax = rate_plot(ROWS, ORDERS, measure="tv", axis=axis).axes[0]
    assert ax.get_xlabel() == label
    wanted = sorted({row.h_max for row in ROWS}) if ticks is None else ticks
    np.testing.assert_allclose(sorted(ax.get_xticks()), wanted)


def test_dense_ticks_lose_labels_not_ticks() -> None:
    rows = [dataclasses.replace(ROWS[0], steps=T, nfe=T) for T in range(100, 140)]
    ax = rate_plot(rows, measure="tv", columns=1).axes[0]
    assert len(ax.get_xticks()) == 40
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert 3 < sum(map(bool, labels)) < 20


@pytest.mark.parametrize("columns", [1, 2])
def test_twelve_solvers_do_not_cover_data(columns: int) -> None:
    rows, orders = [], []
    for i in range(12):
        rows += curve(f"a-long-solver-name-{i}", [(1 + 0.1 * i) * error for error in DDPM], se=0.02)
        orders.append(estimate(f"a-long-solver-name-{i}", 1.0, 1.0))
    fig = rate_plot(rows, orders, measure="tv", columns=columns, footer="f " * 200, title="title")
    assert len(legend_texts(fig)) >= 12
    assert not pages_overlap(fig)


def test_curves_of_two_grids_are_told_apart() -> None:
    rows = [*curve("ddpm", DDPM), *curve("ddpm", ODE, grid="paper")]
    texts = legend_texts(rate_plot(rows, ORDERS, measure="tv"))
    assert texts[0].startswith("ddpm, lambda: 1.00")
    assert texts[1] == "ddpm, paper"


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"no rows of measure 'kl' to plot; there are: tv"):
        rate_plot(ROWS, ORDERS, measure="kl")
    with pytest.raises(ValueError, match="axis must be one of T, h, nfe"):
        rate_plot(ROWS, ORDERS, measure="tv", axis="steps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one panel"):
        rate_panels([])


def test_rate_panels_share_looks() -> None:
    path = curve("accelerated-ode", DDPM, measure="path-kl")
    panels = [Panel(ROWS, ORDERS, "tv", title="Marginal"), Panel(path, [], "path-kl", axis="h")]
    fig = rate_panels(panels, footer="f", title="t")
    assert len(fig.axes) == 4
    assert fig.axes[0].get_title("left") == "Marginal"
    assert fig.axes[1].get_ylabel() == "sqrt(path KL(q || p) / 2)"
    colour = solver_marks(["ddpm", "accelerated-ode"])["accelerated-ode"].colour
    assert markers(fig.axes[0], colour, hollow=False)
    assert markers(fig.axes[1], colour, hollow=False)
    assert not pages_overlap(fig)
    assert len(rate_panels(panels, local_orders=False).axes) == 2


# --- other figures


def test_work_precision() -> None:
    wall = {(row.solver, row.steps): 1e-3 * row.nfe for row in ROWS if row.steps > 8}
    fig = work_precision(ROWS, measure="tv", wall=wall)
    left, right = fig.axes
    assert left.get_xlabel() == "model calls per sample (NFE)"
    assert right.get_xlabel() == "median wall time [s]"
    assert left.get_ylim() == right.get_ylim()
    assert legend_texts(fig) == ["ddpm", "accelerated-ode"]
    colour = solver_marks(["ddpm"])["ddpm"].colour
    assert len(markers(left, colour, hollow=False)) == 7
    assert len(markers(right, colour, hollow=False)) == 6
    assert len(work_precision(ROWS, measure="tv").axes) == 1


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


@pytest.mark.parametrize(
    ("images", "labels"),
    [({}, ["a"]), ({"x": [np.zeros((8, 8))] * 3}, ["a", "b"]), ({"x": []}, ["a"])],
)
def test_image_grid_wants_full_groups(images: Any, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="same number of pictures"):
        image_grid(images, labels)


def test_image_grid_refuses_what_it_cannot_show() -> None:
    with pytest.raises(ValueError, match="2-D arrays"):
        image_grid({"x": [np.zeros((8, 8, 3))]}, ["a"])
    with pytest.raises(ValueError, match="do not fit"):
        image_grid({"x": [np.zeros((8, 8))] * 100}, ["a"], columns=1)


# --- files

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_plots import ORDERS, ROWS
from probflow.report.plots import rate_plot, save_figure
save_figure(rate_plot(ROWS, ORDERS, measure="tv", title="t", footer="f"), sys.argv[1])
"""


def test_files_are_the_same_in_another_process(tmp_path: Path) -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv", title="t", footer="f")
    first = save_figure(fig, tmp_path / "a" / "rates.v1")
    assert [path.name for path in first] == ["rates.v1.pdf", "rates.v1.svg", "rates.v1.png"]
    again = save_figure(fig, tmp_path / "again")
    script = SCRIPT.format(here=str(Path(__file__).parent))
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True)
    other = [tmp_path / f"other.{name}" for name in ("pdf", "svg", "png")]
    for path, second, third in zip(first, again, other, strict=True):
        assert path.read_bytes() == second.read_bytes(), path.suffix
        assert path.read_bytes() == third.read_bytes(), path.suffix


def test_files_hold_text_and_no_dates(tmp_path: Path) -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv")
    pdf, svg, _ = save_figure(fig, tmp_path / "rates")
    text = svg.read_text(encoding="utf-8")
    assert "consistent with 2" in text
    assert "<dc:date>" not in text
    assert b"CreationDate" not in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()
    assert re.search(rb"/Subtype /(TrueType|CIDFontType2)", pdf.read_bytes())


def test_saving_refuses_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown figure format 'bmp'"):
        save_figure(Figure(), tmp_path / "x", ("png", "bmp"))
    assert list(tmp_path.iterdir()) == []


def test_no_global_state_changes() -> None:
    before = dict(matplotlib.rcParams)
    rate_plot(ROWS, ORDERS, measure="tv")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, probflow.report\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "source = __import__('pathlib').Path(probflow.report.__file__).parent\n"
        "assert not any('import torch' in p.read_text() for p in source.glob('*.py'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_handles_carry_the_marks() -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv")
    handle = fig.legends[0].legend_handles[1]
    assert isinstance(handle, Line2D)
    mark = solver_marks(["ddpm", "accelerated-ode"])["accelerated-ode"]
    assert (handle.get_color(), handle.get_marker()) == (mark.colour, mark.marker)
