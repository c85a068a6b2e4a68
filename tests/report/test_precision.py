from __future__ import annotations

import dataclasses

import pytest
from drawn import ROWS, legend_texts, markers, pages_overlap
from matplotlib.figure import Figure

from probflow.report.precision import draw_times, work_precision
from probflow.report.style import solver_marks
from probflow.studies.rows import Row, Timing


def timing(row: Row, seconds: float) -> Timing:
    names = row.target, row.solver, row.grid
    return Timing(*names, row.steps, row.nfe, seconds, 0.9 * seconds, 1.2 * seconds, 5, 128)


TIMINGS = [timing(row, 1e-3 * row.nfe) for row in ROWS if row.steps > 8]


@pytest.mark.parametrize("venue", ["icml", "iclr", None])
@pytest.mark.parametrize("columns", [1, 2])
def test_two_panels_share_their_errors(columns: int, venue: str | None) -> None:
    fig = work_precision(ROWS, TIMINGS, measure="tv", columns=columns, venue=venue)
    left, right = fig.axes
    assert left.get_xlabel() == "model calls per sample (NFE)"
    assert right.get_xlabel() == "median wall time for 128 samples [s]"
    assert left.get_ylim() == right.get_ylim()
    assert legend_texts(fig) == ["ddpm", "accelerated-ode"]
    colour = solver_marks(["ddpm"])["ddpm"].colour
    assert len(markers(left, colour, hollow=False)) == 7
    assert len(markers(right, colour, hollow=False)) == 6
    assert not pages_overlap(fig)


def test_bars_are_the_quartiles() -> None:
    ax = Figure().subplots()
    draw_times(ax, ROWS[:3], TIMINGS, measure="tv")
    [bars] = ax.collections
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert ends == [
        pytest.approx([0.9e-3 * row.nfe, 1.2e-3 * row.nfe]) for row in ROWS[1:3]
    ]  # the first was not timed


def test_without_times_there_is_one_panel() -> None:
    elsewhere = [dataclasses.replace(item, grid="other") for item in TIMINGS]
    for timings in ((), elsewhere):
        assert len(work_precision(ROWS, timings, measure="tv").axes) == 1
    with pytest.raises(ValueError, match="none of the rows of measure 'tv' was timed"):
        draw_times(Figure().subplots(), ROWS, elsewhere, measure="tv")
