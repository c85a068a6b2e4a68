"""Measures from samples: floors, weak differences, and what each is beside the exact law."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import probflow as pf
from probflow.laws import line_law
from probflow.laws.registers import push
from probflow.laws.samples import SAMPLE_DISTANCES
from probflow.plan import Plan, Point
from probflow.studies import study
from probflow.studies.builtin import mixture
from probflow.studies.cells import Task, cell_keys
from probflow.studies.measure import Settings, measure
from probflow.studies.runner import default_grid, make_curves
from probflow.studies.sampled import generator, weak_difference

LINE = mixture()
PLANE = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.0, -0.4]], stds=[0.5, 0.7])
VP = pf.VP.linear()


GRID = pf.grids.log_snr(3.0, -math.log(0.99), unit="neg_log_ab")


def plan(solver: str, steps: int) -> Plan:
    return pf.get_solver(solver).plan(VP, GRID.times(VP, steps), "eps")


# Distances with floors --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLE_DISTANCES)
def test_the_floor_is_what_exact_samples_have(name: str) -> None:
    """A solver with hardly any error measures the floor; ddim with 2 steps is above it."""
    settings = Settings(samples=400)
    exact = measure(name, plan("rk4", 64), VP, PLANE, settings)
    wrong = measure(name, plan("ddim", 2), VP, PLANE, settings)
    assert exact.floor == wrong.floor > 0
    assert 0.4 * exact.floor < exact.error < 2.5 * exact.floor
    assert wrong.error > 1.5 * wrong.floor
    assert 0 < wrong.se < 0.2 * wrong.error
    more = measure(name, plan("rk4", 64), VP, PLANE, Settings(samples=1600))
    assert more.floor == pytest.approx(exact.floor / 2, rel=0.6)


def test_what_lies_near_the_floor_does_not_count() -> None:
    result = study(LINE, ["ddim"], (4, 8, 16, 32, 64), "sliced-w2", samples=200)
    [estimate] = result.orders()
    assert estimate.claim == 1.0
    assert math.isnan(estimate.order)
    assert "within 20 times its floor" in estimate.reason


def test_frechet_and_w2_against_the_law() -> None:
    """With many samples W2 of a clearly wrong law is that of the law itself."""
    settings = Settings(samples=20000)
    exact = measure("w2", plan("ddim", 4), VP, LINE, settings)
    sampled = measure("sliced-w2", plan("ddim", 4), VP, LINE, settings)
    assert abs(sampled.error - exact.error) < sampled.floor + 3 * sampled.se < 0.3 * exact.error


def test_streams_are_independent() -> None:
    draws = [torch.randn(2000, generator=generator(Settings(3), k)) for k in range(3)]
    assert abs(float(torch.corrcoef(torch.stack(draws)).triu(1).abs().max())) < 0.1
    again = torch.randn(2000, generator=generator(Settings(3), 2))
    assert again.equal(draws[2])


# Weak errors ------------------------------------------------------------------------------------


def exact_tests(solver: str, steps: int) -> np.ndarray:
    """E of s, s^2, cos 2s, sin 2s under a plan's law on the line, by quadrature."""
    own = plan(solver, steps)
    first, last = Point.many(VP, [own.times[0], own.times[-1]])
    if own.stochastic:
        law = line_law(own, VP, LINE)
        y, weight = law.x, law.density
    else:
        x = np.linspace(-9.0, 9.0, 4001)
        column = torch.as_tensor(x)[:, None]
        y = push(own, VP, LINE, column)[0][:, 0].numpy()
        weight = LINE.log_prob(column, first.alpha, first.sigma).exp().numpy()
    mean, covariance = LINE.moments(last.alpha, last.sigma)
    s = (y - mean[0]) / math.sqrt(covariance[0, 0])
    return np.stack([s, s**2, np.cos(2 * s), np.sin(2 * s)]) @ (weight / weight.sum())


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_weak_differences_against_the_laws(solver: str) -> None:
    wanted = exact_tests(solver, 8) - exact_tests(solver, 16)
    result = measure(
        "weak", plan(solver, 8), VP, LINE, Settings(samples=20000), finer=plan(solver, 16)
    )
    assert abs(result.error - math.sqrt(np.mean(wanted**2))) < 4 * result.se
    assert result.se < 0.05 * result.error


def test_weak_differences_have_no_bias_of_their_noise() -> None:
    """Few samples, many seeds: the mean square is right, its standard error too."""
    wanted = np.mean((exact_tests("ddpm", 8) - exact_tests("ddpm", 16)) ** 2)
    coarse, fine = plan("ddpm", 8), plan("ddpm", 16)
    squares = []
    for seed in range(60):
        weak = weak_difference(coarse, fine, VP, LINE, Settings(seed, 100))
        squares.append(weak.samples.mean())
    error = np.std(squares, ddof=1) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - wanted) < 3 * error < 0.5 * wanted


def test_orders_from_weak_differences() -> None:
    """A normal target: mean and variance are all, and both are known."""
    target = pf.Gaussian([0.4], [0.3])
    result = study(target, ["heun"], (16, 32, 64, 128, 256), "weak", grid=GRID, samples=4000)
    [estimate] = result.orders()
    assert (estimate.claim, estimate.verdict) == (2.0, "consistent")
    assert all(row.se < 0.05 * row.error for row in result.rows)


def test_noisy_errors_on_long_steps_contradict_no_order() -> None:
    """The last steps of this grid span 0.6 in log-SNR at T = 128: order 1 looks like 0.64."""
    steps = (8, 16, 32, 64, 128)
    arguments = {"samples": 4000, "seed": 1, "grid": default_grid()}
    result = study(PLANE, "ddpm-posterior", steps, "weak", **arguments)
    [estimate] = result.orders()
    assert estimate.high < estimate.claim == 1.0
    assert estimate.verdict == "inconclusive"
    assert "is not on its way there" in estimate.reason
    assert "the longest step in log-SNR, 0.61 at T = 128, is not short enough" in estimate.reason
    lambdas = VP.lambda_(default_grid().times(VP, 128))
    assert result.rows[-1].h_lambda == pytest.approx(float(np.diff(lambdas).max()))


def test_where_steps_are_short_or_stay_long_orders_are_contradicted() -> None:
    """On the log-SNR grid, and on one to sigma = 0, whose last finite step does not shrink."""
    wrong = replace(pf.get_solver("ddim"), orders={"strong": 2.0})
    steps = (8, 16, 32, 64, 128)
    for grid in (GRID, pf.grids.exponential(1.0, 0.0, unit="neg_log_ab")):
        [estimate] = study(pf.Gaussian([0.4], [0.3]), wrong, steps, "strong", grid=grid).orders()
        assert estimate.verdict == "slower"


def test_notes_say_variance_and_kurtosis() -> None:
    [row] = study(PLANE, "ddpm", (4,), "weak", grid=GRID, samples=500).rows
    assert row.note.startswith("variance of differences ")
    assert "few samples decide" not in row.note
    weak = weak_difference(plan("ddpm", 4), plan("ddpm", 8), VP, PLANE, Settings(samples=500))
    assert row.note == weak.note
    assert replace(weak, kurtosis=101.0).note.endswith(
        "kurtosis 101: few samples decide, take more"
    )


def test_variances_fall_with_twice_the_strong_order() -> None:
    """Multilevel: ddim on one path of start states is of strong order 1, ddpm of 1/2 to 1."""
    for solver, low, high in (("ddim", 1.6, 2.4), ("ddpm", 0.9, 2.4)):
        variances = [
            weak_difference(
                plan(solver, steps), plan(solver, 2 * steps), VP, PLANE, Settings(samples=2000)
            ).variance
            for steps in (32, 128)
        ]
        assert low < math.log(variances[0] / variances[1], 4) < high


def test_no_weak_difference_on_a_process_of_the_step_count() -> None:
    [row] = study(LINE, "ddim", (8,), "weak", grid="paper").rows
    assert row.status == (
        "refused: the process depends on the number of steps, so T and 2T share no path"
    )


def test_a_grid_of_one_number_of_steps_has_no_finer_plan(tmp_path: Path) -> None:
    """A row with the reason, also in a folder, and where the study is resumed and timed."""
    options = {"grid": pf.grids.explicit([0.9, 0.5, 0.1]), "out": tmp_path}
    for more in ({}, {"resume": True, "timing": 1}):
        [row] = study(LINE, "ddim", (2,), "weak", **options, **more).rows
        assert row.status == "failed: steps: the explicit grid has 2 steps, asked for 4"


def test_too_few_samples_for_a_weak_difference() -> None:
    rows = study(LINE, "rk4", (128, 256), "weak", samples=2).rows
    assert all(
        row.status.startswith("refused: the mean over samples") or row.se > 0 for row in rows
    )


def test_keys_know_the_finer_plan() -> None:
    arguments = {"targets": [LINE], "solvers": ["ddim"], "steps": (4, 8), "process": None}
    arguments |= {"grid": default_grid(), "settings": Settings()}
    [curve] = make_curves(measures=("weak", "energy"), **arguments)
    keys = [cell_keys(Task(curve, steps, curve.measures, "t")) for steps in (4, 8)]
    assert len({key for own in keys for key in own.values()}) == 4


def test_resumed(tmp_path: Path) -> None:
    arguments = {"steps": (2, 4, 8), "measure": ["weak", "mmd"], "samples": 50}
    first = study(PLANE, ["ddim", "ddpm"], out=tmp_path, **arguments)
    again = study(PLANE, ["ddim", "ddpm"], out=tmp_path, resume=True, **arguments)
    assert repr(first.rows) == repr(again.rows)
    assert any(row.note for row in first.rows)
