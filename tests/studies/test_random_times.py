"""Solvers with random times: their error is a mean over draws, with a standard error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import probflow as pf
from probflow.studies.cells import Curve, Task, cell_keys, measure_cells
from probflow.studies.measure import Measurement, Settings, averaged, log_covariance, measure
from probflow.studies.runner import study

NORMAL = pf.Gaussian([0.5], [[0.25]])
GRID = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")


def curve(**changed: object) -> Curve:
    solver, settings = pf.get_solver("ddram"), Settings(seeds=5)
    made = Curve(NORMAL, solver, GRID, (4, 8), ("tv", "w2"), None, settings)
    return replace(made, **changed)


@pytest.mark.parametrize(("name", "power"), [("tv", 1), ("kl", 1), ("w2", 2)])
def test_the_error_is_a_mean_over_draws(name: str, power: int) -> None:
    """Of TV and KL themselves, of the squares of all else; its standard error is that of a mean."""
    process, plans = curve().plans(8)
    errors = np.array([measure(name, p, process, NORMAL, Settings()).error for p in plans])
    assert len(set(errors)) == 5
    [row] = study(NORMAL, "ddram", [8], name, grid=GRID, seeds=5).rows
    mean = np.mean(errors**power)
    assert row.error == pytest.approx(mean ** (1 / power), rel=1e-12)
    of_mean = np.std(errors**power, ddof=1) / math.sqrt(5)
    assert row.se == pytest.approx(row.error * of_mean / mean / power, rel=1e-12)
    assert row.note.endswith("over 5 draws of the random times")


def test_draws_come_from_the_seeds_of_study_and_solver() -> None:
    drawn = [
        curve().plans(4),
        curve(settings=Settings(1, seeds=5)).plans(4),
        curve(solver=pf.get_solver("ddram", seed=1)).plans(4),
    ]
    plans = [plan for _, made in drawn for plan in made]
    assert len(plans) == len(set(plans)) == 15
    assert curve().plans(4) == drawn[0]
    assert len(curve(solver=pf.get_solver("ddim")).plans(4)[1]) == 1
    keys = [
        cell_keys(Task(curve(settings=Settings(seeds=n)), 4, ("tv",), "t"))["tv"] for n in (5, 6)
    ]
    assert keys[0] != keys[1]


def test_samples_that_all_draws_share_add_to_the_standard_error() -> None:
    """The draws' part is in the samples, the other on the diagonal of the covariance alone."""
    runs = [Measurement(error, 0.1, 1e-3) for error in (1.0, 2.0, 3.0)]
    mean = averaged("strong", runs)
    assert mean.error == pytest.approx(math.sqrt(14 / 3))
    assert mean.floor == pytest.approx(1e-3 * 2 / mean.error)
    own = math.hypot(*(np.array([1.0, 4.0, 9.0]) - 14 / 3)) / math.sqrt(6) / (2 * mean.error)
    assert mean.se == pytest.approx(math.hypot(own, 0.1 * 2 / mean.error))
    covariance = log_covariance([mean, mean])
    assert covariance[0, 0] == pytest.approx((mean.se / mean.error) ** 2)
    assert covariance[0, 1] == pytest.approx((own / mean.error) ** 2)


def test_the_same_draw_serves_every_number_of_steps() -> None:
    """Errors fluctuate alike, so that their ratio is known far better than each of them."""
    cells = [
        cell
        for steps in (16, 32)
        for cell in measure_cells(Task(curve(settings=Settings(seeds=24)), steps, ("w2",)))
    ]
    coarse, fine = (cell.samples for cell in cells)
    assert np.corrcoef(coarse, fine)[0, 1] > 0.8


@pytest.mark.slow  # 10 s
def test_a_study_of_random_times_confirms_their_order() -> None:
    grid, steps = GRID, [8, 16, 32, 64, 128]
    result = study(NORMAL, "randomized-midpoint", steps, "w2", grid=grid, seeds=32)
    [order] = result.orders()
    assert (order.claim, order.verdict) == (1.5, "consistent"), order


def test_a_weak_error_compares_plans_of_one_draw() -> None:
    [row] = study(NORMAL, "randomized-midpoint", [8], "weak", samples=64, seeds=3).rows
    assert row.status == "ok"
    assert row.se > 0
    paper = pf.grids.paper()
    [row] = study(NORMAL, "randomized-midpoint", [8], "weak", grid=paper, seeds=3).rows
    assert row.status.startswith("refused: the process depends on the number of steps")
