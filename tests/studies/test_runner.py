"""Studies: rows, refusals, common random numbers, workers, arguments."""

from __future__ import annotations

import itertools
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import probflow as pf
from probflow.laws import Refusal
from probflow.laws.ratio import chi2_samples
from probflow.plan import Linear, StepBuilder
from probflow.solvers import Solver
from probflow.studies import pictures, study
from probflow.studies.builtin import mixture
from probflow.studies.compare import read_baseline
from probflow.studies.folder import load
from probflow.studies.measure import (
    FLOORS,
    Measurement,
    Settings,
    bootstrap_covariance,
    log_covariance,
    measure,
    needs_reference,
    path_steps,
    reference_flow,
    reference_path,
)
from probflow.studies.order import fit_order
from probflow.studies.rows import Row
from probflow.studies.runner import default_grid, h_max

VP = pf.VP.linear()
MIXTURE = mixture()
PLANE = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.0, -0.4]], stds=[0.5, 0.7])
STEPS = (8, 16, 32, 64, 128)


def same(one: object, other: object) -> bool:
    """Equality with NaN equal to itself."""
    return repr(asdict(one)) == repr(asdict(other))  # type: ignore[call-overload]


# Rows -------------------------------------------------------------------------------------------


def test_rows_and_estimates() -> None:
    result = study(MIXTURE, ["ddim", "heun"], STEPS, ["tv", "strong"])
    assert len(result.rows) == 2 * 2 * 5
    assert [(e.solver, e.measure) for e in result.orders()] == [
        ("ddim", "tv"),
        ("ddim", "strong"),
        ("heun", "tv"),
        ("heun", "strong"),
    ]
    for estimate in result.orders():
        rows = [
            r for r in result.rows if (r.solver, r.measure) == (estimate.solver, estimate.measure)
        ]
        assert [r.steps for r in rows] == list(STEPS)
        used = [r.steps for r in rows if r.in_window]
        assert (used[0], used[-1]) == estimate.window
        assert math.isnan(rows[0].eoc)
        for before, here in itertools.pairwise(rows):
            assert here.eoc == pytest.approx(math.log2(before.error / here.error))
        assert tuple(r.eoc for r in rows[-3:]) == pytest.approx(estimate.eoc)
        for row in rows:
            plan = pf.get_solver(row.solver).plan(VP, default_grid().times(VP, row.steps))
            assert row.nfe == plan.nfe == row.steps * pf.get_solver(row.solver).nfe
            assert row.h_max == pytest.approx(1 - math.exp(-(3.0 + math.log(0.99)) / row.steps))
            assert row.h_max == h_max(plan, VP)
            assert (row.status, row.se, row.target) == ("ok", 0.0, "mixture-1d")
            assert 0 < row.floor < 1e-12
            assert row.grid == default_grid().label


def test_one_solver_may_be_given_alone() -> None:
    names = study(MIXTURE, ["ddim"], STEPS[:2]).rows
    for solver in ("ddim", pf.get_solver("ddim")):
        assert all(map(same, study(MIXTURE, solver, STEPS[:2]).rows, names))


def test_local_orders_skip_refused_cells() -> None:
    """A refused cell is a row with its reason, not an exception, and breaks the chain of EOCs."""
    rows = study(MIXTURE, "dpm-solver-2", (2, 4, 8)).rows
    assert rows[0].status.startswith("refused: dpm-solver-2 with 2 steps is no increasing map")
    assert math.isnan(rows[0].error)
    assert rows[0].nfe == 4
    assert not rows[0].in_window
    assert math.isnan(rows[1].eoc)
    assert rows[2].status == "ok"
    assert math.isfinite(rows[2].eoc)


def test_rounds_that_draw_noise_follow_no_path() -> None:
    for rounds, status in ((2, "refused: li-jiao is stochastic: its strong error"), (1, "ok")):
        solver = pf.get_solver("li-jiao", rounds=rounds)
        [row] = study(MIXTURE, solver, [32], "strong", seeds=2).rows
        assert row.status.startswith(status)


@pytest.mark.parametrize(
    ("solver", "name", "target", "reason"),
    [
        ("ddim", "path-kl", MIXTURE, "refused: ddim is deterministic: its kernel is a point mass"),
        (
            "edm-churn",
            "strong",
            MIXTURE,
            "refused: edm-churn is stochastic: its strong error needs",
        ),
        ("ddpm", "tv", PLANE, "refused: the density of a stochastic solver in 2 dimensions"),
        ("accelerated-sde-3", "path-kl", PLANE, "refused: a step with a second noise inside"),
        ("ddim", "w2", PLANE, "refused: W2 in 2 dimensions is exact for Gaussian targets only"),
        ("ddpm-posterior", "kl", MIXTURE, r"refused: .* KL\(q \|\| p\) is too large to resolve"),
    ],
)
def test_refused_curves(solver: str, name: str, target: pf.GaussianMixture, reason: str) -> None:
    result = study(target, solver, (1, 2), name, samples=16)
    [estimate] = result.orders()
    assert all(re.match(reason, row.status) for row in result.rows)
    assert estimate.verdict == "inconclusive"
    assert re.match(reason, estimate.reason)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_failures_are_rows() -> None:
    """A solver without finite weights on the grid fails with its reason; others go on."""
    grid = pf.grids.explicit([0.9, 0.5, 0.0])
    result = study(MIXTURE, ["ddim", "heun", "euler"], (2,), grid=grid)
    assert [r.status[:7] for r in result.rows] == ["ok", "failed:", "ok"]
    assert "the process has no finite log-SNR there" in result.rows[1].status


def test_overflow_is_a_row() -> None:
    def step(step: StepBuilder) -> Linear:
        return 1e160 * step.x + 1e160 * step.model(step.x, step.t)

    wild = Solver("wild", step, "here", "eps", orders={"strong": 1})
    rows = study([MIXTURE, PLANE], wild, (8, 16), "strong", samples=4, reference_steps=8).rows
    assert all(row.status.startswith(("refused:", "failed:")) for row in rows)


# Random numbers ---------------------------------------------------------------------------------


def contributions(solver: str, steps: int, name: str, seed: int = 0) -> np.ndarray:
    settings, grid = Settings(seed, samples=64), default_grid()
    plan = pf.get_solver(solver).plan(VP, grid.times(VP, steps), "eps")
    reference = reference_flow(VP, PLANE, grid, settings) if name == "strong" else None
    result = measure(name, plan, VP, PLANE, settings, reference)
    assert result.samples is not None
    assert result.error > 0
    assert result.se > 0
    return result.samples


@pytest.mark.parametrize(
    ("name", "solvers"), [("strong", ("ddim", "euler")), ("tv", ("ddim", "euler"))]
)
def test_common_random_numbers(name: str, solvers: tuple[str, str]) -> None:
    """The same draws for every solver and step count: contributions are strongly correlated."""
    base = contributions(solvers[0], 16, name)
    np.testing.assert_array_equal(base, contributions(solvers[0], 16, name))
    assert np.corrcoef(base, contributions(solvers[0], 32, name))[0, 1] > 0.9
    assert abs(np.corrcoef(base, contributions(solvers[0], 16, name, seed=1))[0, 1]) < 0.5


def test_log_covariance_against_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    common = rng.gamma(2.0, size=2000)
    curve = [
        Measurement.of_samples(common * rng.gamma(5.0, size=2000) * scale, 0.5, 1.0, 0.0)
        for scale in (1.0, 0.1, 0.01)
    ]
    bootstrap = bootstrap_covariance(curve)
    exact = log_covariance(curve)
    assert exact is not None
    assert bootstrap is not None
    assert bootstrap_covariance([*curve, Measurement(0.1)]) is None
    # 2000 resamples know a variance to sqrt(2/2000) = 3 %.
    np.testing.assert_allclose(exact, bootstrap, rtol=4 * math.sqrt(2 / 2000))
    for index, m in enumerate(curve):
        assert m.se / m.error == pytest.approx(math.sqrt(exact[index, index]))


def test_exact_measures_have_no_covariance() -> None:
    assert log_covariance([Measurement(1.0), Measurement(0.5)]) is None


def test_common_draws_sharpen_the_order() -> None:
    """The interval with the covariance is narrower than with standard errors alone."""
    result = study(PLANE, "euler", STEPS, "strong", samples=64)
    [estimate] = result.orders()
    rows = result.rows
    alone = fit_order(
        list(STEPS), [r.error for r in rows], claim=1.0, se=[r.se for r in rows]
    ).estimate
    assert estimate.verdict == "consistent"
    assert estimate.high - estimate.low < alone.high - alone.low


def test_too_few_samples_for_a_mean() -> None:
    with pytest.raises(Refusal, match="the mean over samples is -1: too few samples or an over"):
        Measurement.of_samples(np.array([-1.0, -1.0]), 0.5, 1.0, 0.0)


# References -------------------------------------------------------------------------------------


def test_reference_flow_knows_its_own_error() -> None:
    """Against eight times as many steps, its error is what Richardson's comparison says."""
    grid = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")
    coarse = reference_flow(VP, PLANE, grid, Settings(samples=64, reference_steps=32))
    fine = reference_flow(VP, PLANE, grid, Settings(samples=64, reference_steps=256))
    true = float((coarse.states - fine.states).square().mean().sqrt())
    assert coarse.error == pytest.approx(true, rel=0.3)


def test_a_reference_path_is_fine_enough_for_few_steps() -> None:
    """Up to 8 steps it has 256: against 1024 it shifts no error by more than its floor or 1 %."""
    grid, settings = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab"), Settings(samples=256)
    assert [path_steps(largest) for largest in (1, 8, 32, 33)] == [256, 256, 256, 264]
    usual, fine = (
        reference_path(VP, PLANE, grid, settings, 1.0, largest=largest) for largest in (8, 128)
    )
    for solver in ("sde-heun", "ddpm", "accelerated-sde"):
        plan = pf.get_solver(solver).plan(VP, grid.times(VP, 8), "eps")
        one, other = (measure("strong", plan, VP, PLANE, settings, r) for r in (usual, fine))
        assert other.floor < one.floor < 0.03 * one.error
        assert one.error == pytest.approx(other.error, abs=one.floor + 0.01 * other.error)


def test_solvers_as_fine_as_their_reference_are_left_out_of_an_order() -> None:
    """The reference's own method at half its number of steps: nothing is known, says the floor."""
    grid, settings = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab"), Settings(samples=64)
    reference = reference_path(VP, PLANE, grid, settings, 1.0, largest=8)
    plan = pf.get_solver("sde-heun").plan(VP, grid.times(VP, 128), "eps")
    result = measure("strong", plan, VP, PLANE, settings, reference)
    assert result.error < 20 * result.floor


def test_an_exact_sampler_in_the_plane_shows_the_floor() -> None:
    """ddpm-beta is exact on N(0, I): nothing is left but round-off."""
    target, grid = pf.Gaussian([0.0, 0.0], 1.0), default_grid()
    plan = pf.get_solver("ddpm-beta").plan(VP, grid.times(VP, 8), "eps")
    result = measure("path-kl", plan, VP, target, Settings(samples=64))
    assert result.error <= result.floor
    ratios = chi2_samples(plan, VP, target, 64, generator=torch.Generator().manual_seed(0))
    assert 0.5 * math.sqrt(abs(ratios).max()) <= FLOORS["chi2"]


def test_which_targets_need_a_reference() -> None:
    assert needs_reference(PLANE, ["tv", "strong"])
    assert not needs_reference(PLANE, ["tv"])
    assert not needs_reference(MIXTURE, ["strong"])
    assert not needs_reference(pf.Gaussian([0.0, 1.0], 1.0), ["strong"])


def test_strong_error_of_a_plane_gaussian_is_exact() -> None:
    """The same with the exact flow and with the reference, up to the reference's error."""
    target = pf.Gaussian([0.3, -0.2], [0.5, 0.2])
    twin = pf.GaussianMixture([1.0], [[0.3, -0.2]], [[0.5, 0.2]])
    rows = [study(t, "heun", (8, 16), "strong", samples=32).rows for t in (target, twin)]
    for exact, other in zip(*rows, strict=True):
        assert exact.error == pytest.approx(other.error, rel=1e-4)


# Workers, arguments -----------------------------------------------------------------------------


@pytest.mark.slow  # 20 s: workers import torch
def test_two_workers_give_the_same() -> None:
    arguments = [MIXTURE, PLANE], ["ddim", "ddpm"], (8, 16, 32), ["tv", "strong"]
    one = study(*arguments, samples=16, reference_steps=32)
    two = study(*arguments, samples=16, reference_steps=32, jobs=2)
    assert len(one.rows) == len(two.rows) == 24
    assert all(map(same, one.rows, two.rows))
    assert all(map(same, one.estimates, two.estimates))


def test_determinism() -> None:
    one, two = (study(PLANE, "ddim", STEPS[:3], "tv", samples=16) for _ in range(2))
    other = study(PLANE, "ddim", STEPS[:3], "tv", samples=16, seed=1)
    assert all(map(same, one.rows, two.rows))
    assert one.rows[0].error != other.rows[0].error


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"targets": 3}, TypeError, "targets: need a Target, or several in a list, got 3"),
        (
            {"solvers": None},
            TypeError,
            "solvers: need a str or Solver, or several",
        ),
        ({"steps": 8}, TypeError, "steps: need several in a list, got 8"),
        ({"measure": 1}, TypeError, "measure: need a str, or several in a list, got 1"),
        ({"targets": ["mixture"]}, TypeError, "targets: need probflow targets, got str"),
        ({"targets": []}, ValueError, "need at least one of each"),
        ({"targets": [MIXTURE, MIXTURE]}, ValueError, "targets: names must differ"),
        ({"solvers": ["ddmi"]}, ValueError, "no solver is named 'ddmi'; near"),
        ({"solvers": []}, ValueError, "need at least one of each"),
        ({"steps": ()}, ValueError, "steps: need increasing step counts"),
        ({"steps": (8, 8)}, ValueError, "steps: need increasing step counts"),
        ({"steps": (0, 8)}, ValueError, "steps: need a whole number >= 1"),
        ({"steps": (8.5,)}, TypeError, "steps: need a whole number"),
        (
            {"measure": "hellinger"},
            ValueError,
            "measure: got 'hellinger'; near names: energy; allowed",
        ),
        ({"measure": ()}, ValueError, "need at least one of each"),
        ({"grid": "quardatic"}, ValueError, "grid: got 'quardatic'; near names: quadratic"),
        ({"grid": 3}, TypeError, "grid: need a Grid"),
        ({"samples": 1}, ValueError, "samples: need a whole number >= 2, got 1"),
        ({"samples": 2.5}, TypeError, "samples: need a whole number >= 2, got 2.5"),
        ({"reference_steps": 1}, ValueError, "reference_steps: need a whole number >= 2"),
        ({"seeds": 1}, ValueError, "seeds: need a whole number >= 2"),
        ({"process": "vp-linear"}, TypeError, "process: need a probflow process, got 'vp-linear'"),
        ({"out": 5}, TypeError, "out: need the path of a folder, got 5"),
        ({"jobs": 0}, ValueError, "jobs: need a whole number >= 1"),
        ({"jobs": True}, TypeError, "jobs: need a whole number >= 1"),
        ({"grid": pf.grids.log_snr(1e9, 1.0, "neg_log_ab")}, ValueError, "start"),
    ],
)
def test_arguments(changed: dict, error: type[Exception], message: str) -> None:
    arguments = {"targets": MIXTURE, "solvers": ["ddim"], "steps": (8, 16), **changed}
    with pytest.raises(error, match=message):
        study(**arguments)


def test_unknown_measure_of_one_cell() -> None:
    plan = pf.get_solver("ddim").plan(VP, default_grid().times(VP, 4))
    with pytest.raises(ValueError, match="measure: got 'hellinger'"):
        measure("hellinger", plan, VP, MIXTURE, Settings())
    with pytest.raises(ValueError, match="reference: this target has no exact flow"):
        measure("strong", plan, VP, PLANE, Settings())


# The paper's schedule ---------------------------------------------------------------------------


def test_the_papers_schedule_is_judged_with_powers_of_ln_t() -> None:
    """h = c1 ln(T)/T there: local orders in T are too low by 1/ln T; the fit allows for it."""
    steps = (32, 64, 128, 256, 512)
    result = study(MIXTURE, "ddim", steps, grid=pf.grids.paper())
    [estimate] = result.orders()
    assert estimate.axis == "T"
    assert estimate.verdict == "consistent"
    h = [4 * math.log(r.steps + 1) / (r.steps + 1) for r in result.rows]
    assert [r.h_max for r in result.rows] == pytest.approx(h)
    for before, here in itertools.pairwise(result.rows):
        gain = math.log(before.error / here.error)
        assert here.eoc == pytest.approx(gain / math.log(2))
        assert here.eoc < gain / math.log(before.h_max / here.h_max)


def test_plots_and_tables_come_from_the_rows() -> None:
    result = study(MIXTURE, "ddim", STEPS)
    assert "ddim" in result.table()
    assert "ddim" in result.table("csv")
    with pytest.raises(ValueError, match="style: got 'word', allowed are markdown"):
        result.table("word")
    with pytest.raises(ValueError, match="path: must end in"):
        result.plot("rates.bmp")


def test_plots_on_given_axes() -> None:
    from matplotlib.figure import Figure

    result = study(MIXTURE, ["ddim", "heun"], STEPS, timing=1)
    labels = {
        "rates": ("steps $T$", r"$\mathrm{TV}(q, p)$"),
        "local-orders": ("steps $T$", "local order"),
        "work-precision": ("model calls per sample (NFE)", r"$\mathrm{TV}(q, p)$"),
        "times": ("median wall time for 128 samples [s]", r"$\mathrm{TV}(q, p)$"),
    }
    for kind, (x, y) in labels.items():
        ax = Figure().subplots()
        assert result.plot(kind=kind, ax=ax) is ax
        assert (ax.get_xlabel(), ax.get_ylabel()) == (x, y)
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert [text.split(":")[0] for text in texts] == ["ddim", "heun"]
        figure = result.plot(kind=kind, columns=1, venue="icml")
        assert figure.get_figwidth() == 3.25
    assert len(result.plot(kind="work-precision").axes) == 2
    assert "largest step $h$" in result.plot(axis="h", ax=Figure().subplots()).get_xlabel()
    for arguments, message in (
        ({"kind": "rate"}, "kind: got 'rate'; near names: rates; allowed are rates"),
        ({"measure": "kl"}, "no rows of measure 'kl' to plot; there are: tv"),
        ({"axis": "x"}, "axis must be one of T, h, nfe"),
        ({"venue": "nips"}, "venue: got 'nips'; near names: neurips, "),
        ({"path": "x.pdf", "ax": Figure().subplots()}, "path: give either path or ax"),
    ):
        with pytest.raises(ValueError, match=message):
            result.plot(**arguments)
    with pytest.raises(TypeError, match="ax: need a matplotlib Axes, got Figure"):
        result.plot(ax=Figure())
    with pytest.raises(ValueError, match="timings: none of the rows of measure 'tv' was timed"):
        replace(result, timings=()).plot(kind="times")


def test_latex_tables() -> None:
    result = study(MIXTURE, ["ddim", "heun"], STEPS, ["tv", "path-kl"], seed=1)
    orders = result.table("latex", venue="icml", columns=1)
    assert r"\begin{table}" in orders
    assert r"Orders in $\mathrm{TV}(q, p)$" in orders
    assert "path KL" not in orders  # no solver has a number there
    assert "Fit window $T$ = " in orders
    assert "Process vp-linear; seed 1; float64 on cpu; probflow " in orders
    errors = result.table("latex", what="errors")
    assert errors.count(r"\begin{table}") == 2
    assert "order in $T$" in errors
    assert result.table("csv", what="errors").count("\n") > 4 * len(STEPS)
    with pytest.raises(ValueError, match="what: got 'rows'; near names: errors; allowed"):
        result.table(what="rows")


def test_data_frames(monkeypatch) -> None:
    pandas = pytest.importorskip("pandas")
    result = study(MIXTURE, ["ddim", "heun"], STEPS, timing=1)
    frame = result.to_dataframe()
    assert list(frame.columns) == [field.name for field in fields(Row)]
    assert frame["error"].tolist() == [row.error for row in result.rows]
    assert frame.groupby("solver")["nfe"].max().to_dict() == {
        "ddim": STEPS[-1],
        "heun": 2 * STEPS[-1],
    }
    orders = result.to_dataframe("orders")
    assert orders.loc[1, "verdict"] == result.estimates[1].verdict
    assert len(result.to_dataframe("timings")) == 2 * len(STEPS)
    empty = replace(result, timings=()).to_dataframe("timings")
    assert isinstance(empty, pandas.DataFrame)
    assert "seconds" in empty.columns
    with pytest.raises(ValueError, match="what: got 'cells', allowed are rows, orders, timings"):
        result.to_dataframe("cells")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'probflow-solvers\[pandas\]'"):
        result.to_dataframe()


def test_settings_are_kept() -> None:
    result = study(MIXTURE, "ddim", (8,), seed=3, samples=5, reference_steps=7, seeds=9)
    assert result.settings == Settings(3, 5, 7, 9)


def test_solvers_of_one_name_are_called_by_their_options(tmp_path: Path) -> None:
    two = [pf.get_solver("dpm-solver-2", r1=r1) for r1 in (0.3, 0.9)]
    made = study(MIXTURE, two, STEPS[:2], timing=1, out=tmp_path)
    names = ["dpm-solver-2 (r1=0.3)", "dpm-solver-2 (r1=0.9)"]
    assert [order.solver for order in made.estimates] == names
    assert [t.solver for t in made.timings[::2]] == names
    for solver, rows in zip(two, (made.rows[:2], made.rows[2:]), strict=True):
        alone = study(MIXTURE, solver, STEPS[:2]).rows
        assert [row.error for row in rows] == [row.error for row in alone]
    assert not load(tmp_path).notes  # nothing there is taken for another study's
    read_baseline(tmp_path / "cells.jsonl")
    by_hand = [two[0], replace(two[0], name="other")]
    names = ["dpm-solver-2 (r1=0.3)", "other"]
    assert [row.solver for row in study(MIXTURE, by_hand, (8,)).rows] == names


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"solvers": ["ddim", "ddim"]}, "solvers: ddim is given twice"),
        ({"solvers": ["ddim", "dpm-solver-1"]}, "solvers: ddim is given twice"),
        ({"measure": ["tv", "strong", "tv"]}, "measure: tv is given twice"),
        (
            {
                "solvers": [
                    replace(pf.get_solver("ddim"), options={"f": f})
                    for f in (lambda x: x, lambda x: 2 * x)
                ]
            },
            "ddim and differ in f, which makes no name; tell them apart with dataclasses.replace",
        ),
    ],
)
def test_nothing_is_measured_twice(changed: dict, message: str) -> None:
    arguments = {"targets": MIXTURE, "solvers": "ddim", "steps": STEPS, **changed}
    with pytest.raises(ValueError, match=re.escape(message)):
        study(**arguments)


def test_jobs_beside_an_executor_and_a_file_for_a_folder(tmp_path: Path) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ValueError, match="jobs: give either jobs or executor, got jobs=2"),
    ):
        study(MIXTURE, "ddim", [2], jobs=2, executor=pool)
    file = tmp_path / "study.py"
    file.touch()
    with pytest.raises(ValueError, match=r"out: need the path of a folder, got .*study\.py"):
        study(MIXTURE, "ddim", [2], out=file)


@pytest.mark.parametrize("name", ["foo", "weak"])
def test_measures_that_no_trajectory_has(name: str) -> None:
    with pytest.raises(ValueError, match=f"measure: got '{name}'.*allowed are tv, kl"):
        pictures.trajectory(MIXTURE, "ddim", 2, name)
