from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from drawn import (
    DDPM,
    ODE,
    ORDERS,
    ROWS,
    STEPS,
    curve,
    estimate,
    legend_texts,
    markers,
    pages_overlap,
)
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from probflow.report.rates import Panel, rate_panels, rate_plot
from probflow.report.style import solver_marks
from probflow.report.venues import page_width
from probflow.studies.rows import MEASURES_TEX


@pytest.mark.parametrize("columns", [1, 2])
def test_rate_plot_axes(columns: int) -> None:
    fig = rate_plot(ROWS, ORDERS, measure="tv", columns=columns)
    left, right = fig.axes
    assert fig.get_figwidth() == page_width(columns)
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert left.get_xlabel() == "steps $T$"
    assert left.get_ylabel() == MEASURES_TEX["tv"]
    assert (right.get_xlabel(), right.get_ylabel()) == ("steps $T$", "local order")
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
    both = [*curve("ode", ODE, floor=1e-4), *curve("ddpm", DDPM, floor=1.01e-4)]
    ax = rate_plot(both, measure="tv").axes[0]
    assert "floor of all curves" in [text.get_text() for text in ax.texts]
    far = rate_plot(curve("ode", ODE, floor=1e-13), measure="tv").axes[0]
    assert not any(isinstance(artist, PolyCollection) for artist in far.collections)
    assert "floor 1e-13, below this panel" in [text.get_text() for text in far.texts]
    assert far.get_ylim()[0] > 1e-6


def test_a_floor_of_one_curve_covers_no_other() -> None:
    noisy, other = curve("ddpm", DDPM, floor=5e-3), curve("sde, eta", DDPM, floor=5.5e-3)
    ode = curve("ode", ODE)
    ax = rate_plot([*noisy, *other, *ode], measure="tv").axes[0]
    assert not any(isinstance(artist, PolyCollection) for artist in ax.collections)
    assert "floors of sde, eta; ddpm" in [text.get_text() for text in ax.texts]
    lines = {line.get_color(): line for line in ax.lines if line.get_linestyle() == ":"}
    marks = solver_marks(["ddpm", "sde, eta", "ode"])
    for name, floor in (("ddpm", 5e-3), ("sde, eta", 5.5e-3)):
        assert set(np.asarray(lines[marks[name].colour].get_ydata())) == {floor}
    alone = rate_plot([*noisy, *ode], measure="tv").axes[0]
    assert "floor of ddpm" in [text.get_text() for text in alone.texts]
    many = [row for i in range(9) for row in curve(f"accelerated-{i}", DDPM, floor=5e-3)]
    texts = [text.get_text() for text in rate_plot([*many, *ode], measure="tv").axes[0].texts]
    assert "floor of 9 curves" in texts


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


@pytest.mark.parametrize(
    ("axis", "label", "ticks"),
    [("nfe", "model calls per sample (NFE)", [*STEPS, 1024]), ("h", "largest step $h$", None)],
)
def test_other_axes(axis: Any, label: str, ticks: list[int] | None) -> None:
    ax = rate_plot(ROWS, ORDERS, measure="tv", axis=axis).axes[0]
    assert ax.get_xlabel() == label
    wanted = sorted({row.h_max for row in ROWS}) if ticks is None else ticks
    np.testing.assert_allclose(sorted(ax.get_xticks()), wanted)


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
    assert fig.axes[1].get_ylabel() == MEASURES_TEX["path-kl"]
    colour = solver_marks(["ddpm", "accelerated-ode"])["accelerated-ode"].colour
    assert markers(fig.axes[0], colour, hollow=False)
    assert markers(fig.axes[1], colour, hollow=False)
    assert not pages_overlap(fig)
    assert len(rate_panels(panels, local_orders=False).axes) == 2


def test_curves_without_a_fit_fill_their_panel() -> None:
    noise = [1.1e-2, 1.0e-2, 0.9e-2, 1.0e-2, 1.2e-2, 1.0e-2, 0.9e-2]
    rows = curve("ddpm", noise, se=0.6, floor=3e-4, in_window=False)
    fig = rate_plot(rows, [], measure="tv")
    low, high = fig.axes[0].get_ylim()
    assert low > 1e-3
    assert high < 0.1
    texts = legend_texts(fig)
    assert "no fit" in texts
    assert "outside the fit window" not in texts


def test_an_outlier_before_the_window_leaves_the_panel() -> None:
    """A bound of 1e13 does not flatten the errors of the fit; within, nothing is cut."""
    wild = [dataclasses.replace(ROWS[0], error=1e13), *ROWS[1:]]
    left, _ = rate_plot(wild, ORDERS, measure="tv").axes
    assert max(row.error for row in ROWS[1:]) < left.get_ylim()[1] < 1e3
    inside = [dataclasses.replace(row, in_window=True) for row in wild]
    assert rate_plot(inside, ORDERS, measure="tv").axes[0].get_ylim()[1] > 1e13


def test_one_point() -> None:
    """An axis with ticks around it, and a word where local orders would stand."""
    row = dataclasses.replace(ROWS[3], eoc=math.nan)
    left, right = rate_plot([row], measure="tv").axes
    low, high = left.get_ylim()
    assert low < row.error < high
    assert high / low > 10
    assert [text.get_text() for text in right.texts] == ["no two neighbouring values"]


def test_equal_local_orders_have_room() -> None:
    rows = [dataclasses.replace(row, eoc=1.0) for row in curve("ddpm", DDPM)]
    _, right = rate_plot(rows, ORDERS[:1], measure="tv").axes
    low, high = right.get_ylim()
    assert low < 0.5 < 1.5 < high


@pytest.mark.parametrize(("axis", "side"), [("T", "left"), ("h", "right")])
def test_the_word_about_the_floor_stands_where_errors_are_large(axis: Any, side: str) -> None:
    rows = [dataclasses.replace(row, floor=1e-14) for row in ROWS]
    left = rate_plot(rows, ORDERS, measure="tv", axis=axis).axes[0]
    [word] = [text for text in left.texts if "floor" in text.get_text()]
    assert word.get_ha() == side
