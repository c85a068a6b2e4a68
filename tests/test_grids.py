"""Grids: each kind against its definition, end points, units, messages."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import probflow as pf
from probflow import grids
from probflow.grids import Grid, as_grid
from probflow.processes import Process

DDPM = pf.VP.from_betas(np.linspace(1e-4, 0.02, 1000))
PROCESSES = [
    pf.VP.linear(),
    pf.VP.cosine(),
    pf.VE(),
    pf.EDM(),
    pf.FlowMatching(),
    DDPM,
    pf.VP.paper(100),
]
EVEN = {  # what each kind spaces evenly
    "uniform": lambda process, t: t,
    "quadratic": lambda process, t: np.sqrt(t),
    "log-snr": lambda process, t: process.lambda_(t),
    "karras": lambda process, t: (process.sigma(t) / process.alpha(t)) ** (1 / 7),
    "exponential": lambda process, t: process.neg_log_ab(t),
}


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("kind", EVEN)
def test_each_kind_spaces_its_quantity_evenly(kind: str, process: Process) -> None:
    times = as_grid(kind).times(process, 12)
    assert times.dtype == np.float64
    assert times.shape == (13,)
    assert times[0] == process.start
    assert times[-1] == process.end
    values = EVEN[kind](process, times)
    gaps = np.diff(values)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-9, atol=1e-12 * np.abs(values).max())


def test_karras_is_equation_5() -> None:
    n, rho, low, high = 18, 7.0, 0.002, 80.0
    i = np.arange(n)
    sigmas = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    times = grids.karras(80.0, 0.002).times(pf.EDM(), n - 1)
    np.testing.assert_allclose(times, sigmas, rtol=1e-13)
    # On any process: sigma/alpha takes the same values.
    vp = pf.VP.linear()
    t = grids.karras(80.0, 0.002, "sigma").times(vp, n - 1)
    np.testing.assert_allclose(vp.sigma(t) / vp.alpha(t), sigmas, rtol=1e-11)
    linear = grids.karras(80.0, 0.002, rho=1.0).times(pf.EDM(), 7)
    np.testing.assert_allclose(linear, np.linspace(80.0, 0.002, 8), rtol=1e-13)


def test_exponential_has_equal_alpha_ratios() -> None:
    process = pf.VP.linear()
    ab = process.ab(grids.exponential(5.0, 0.01, "neg_log_ab").times(process, 20))
    ratios = ab[:-1] / ab[1:]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-13)
    assert -math.log(ab[0]) == pytest.approx(5.0, rel=1e-13)
    assert grids.exponential(end=0.0).times(pf.EDM(), 4)[-1] == 0.0  # sigma = 0 has -ln ab = 0


def test_quadratic_on_the_training_times() -> None:
    times = grids.quadratic().times(DDPM, 10)
    np.testing.assert_allclose(times, 999 * (np.arange(10, -1, -1) / 10) ** 2, rtol=1e-14)


@pytest.mark.parametrize("process", [pf.VP.linear(0.1, 40), pf.VP.cosine(), pf.EDM()], ids=repr)
def test_paper_grid_has_the_levels_of_the_recursion(process: Process) -> None:
    steps = 99
    T, h = steps + 1, 4 * math.log(steps + 1) / (steps + 1)
    betas = [T**-2.0] + [h * min(T**-2.0 * (1 + h) ** t, 1) for t in range(1, T)]
    ab = np.cumprod(1 - np.array(betas))[::-1]
    times = grids.paper().times(process, steps)
    np.testing.assert_allclose(process.ab(times), ab, rtol=1e-11)


UNITS = [("t", 0.9, 0.1), ("lambda", -3.0, 2.5), ("sigma", 20.0, 0.05), ("neg_log_ab", 4.0, 0.01)]


@pytest.mark.parametrize(("unit", "start", "end"), UNITS)
@pytest.mark.parametrize("kind", EVEN)
def test_units(kind: str, unit: str, start: float, end: float) -> None:
    process = pf.VP.linear()
    times = Grid(kind, start, end, unit).times(process, 5)
    value = {
        "t": times,
        "lambda": process.lambda_(times),
        "sigma": process.sigma(times) / process.alpha(times),
        "neg_log_ab": process.neg_log_ab(times),
    }[unit]
    assert value[0] == pytest.approx(start, rel=1e-12)
    assert value[-1] == pytest.approx(end, rel=1e-12)


def test_sigma_zero_is_a_time_where_there_is_one() -> None:
    for process in (pf.EDM(), pf.VP.linear(), pf.VP.cosine(), pf.FlowMatching()):
        assert grids.uniform(0.5, 0.0, "sigma").times(process, 3)[-1] == 0.0
        assert grids.uniform(0.5, math.inf, "lambda").times(process, 3)[-1] == 0.0
    for process in (pf.VE(), DDPM, pf.VP.paper(100)):
        with pytest.raises(ValueError, match="end: 0 in sigma has no time"):
            grids.uniform(0.5, 0.0, "sigma").times(process, 3)


def test_explicit() -> None:
    values = [1.0, 0.7, 0.2, 0.0]
    for grid in (grids.explicit(values), as_grid(values), as_grid(np.array(values))):
        np.testing.assert_array_equal(grid.times(pf.VP.linear()), values)
        np.testing.assert_array_equal(grid.times(pf.VP.linear(), 3), values)
    tensor = torch.tensor(values, dtype=torch.float64)
    np.testing.assert_array_equal(as_grid(tensor).times(pf.VP.linear()), values)
    sigmas = [80.0, 3.0, 0.002]
    np.testing.assert_allclose(grids.explicit(sigmas, "sigma").times(pf.EDM()), sigmas, rtol=1e-14)
    np.testing.assert_allclose(
        grids.explicit([5.0, 1.0, 0.0], "neg_log_ab").times(pf.VP.linear())[-1], 0.0
    )


def test_names_and_labels() -> None:
    assert as_grid("log_snr") == grids.log_snr()
    assert as_grid(" Karras ").kind == "karras"
    assert as_grid(grids.paper()) == grids.paper()
    assert grids.karras(80.0, 0.002, "sigma").label == "karras, sigma 80 to 0.002, rho=7"
    assert grids.uniform().label == "uniform"
    assert grids.exponential(None, 0.1, "neg_log_ab").label == "exponential, -ln ab default to 0.1"
    assert grids.explicit([1.0, 0.5]).label == "explicit"
    assert len({grids.uniform(), grids.uniform(), grids.uniform(0.5), grids.karras()}) == 3


@pytest.mark.parametrize("steps", [None, 2.0, "4", True, np.float64(3), [3]])
def test_steps_must_be_whole(steps: object) -> None:
    with pytest.raises(TypeError, match="steps: need a whole number >= 1"):
        grids.uniform().times(pf.VP.linear(), steps)


def test_steps_of_numpy_are_whole() -> None:
    assert len(grids.uniform().times(pf.VP.linear(), np.int64(3))) == 4
    assert len(grids.uniform().times(pf.VP.linear(), 1)) == 2


VP, EDM = pf.VP.linear(), pf.EDM()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.uniform().times(VP, 0), "steps: need a whole number >= 1, got 0"),
        (lambda: grids.uniform().times(VP, -3), "steps: need a whole number >= 1"),
        (lambda: Grid("spiral"), "kind: got 'spiral', allowed are uniform, quadratic"),
        (lambda: as_grid("spiral"), "grid: got 'spiral'"),
        (lambda: Grid("uniform", unit="snr"), "unit: got 'snr', allowed are t, lambda"),
        (lambda: Grid("uniform", options={"rho": 3}), "uniform grid: unknown option 'rho'"),
        (lambda: Grid("karras", options={"c0": 3}), "karras grid: unknown option 'c0'"),
        (lambda: grids.uniform(0.1, 0.9).times(VP, 4), "start must be the noisier"),
        (lambda: grids.uniform(0.5, 0.5).times(VP, 4), "start must be the noisier"),
        (lambda: grids.uniform(1.5).times(VP, 4), "start: 1.5 lies outside"),
        (lambda: grids.uniform(end=-0.5).times(VP, 4), "end: -0.5 lies outside"),
        (lambda: grids.uniform(end=-1.0).times(EDM, 4), "end: -1 lies outside"),
        (
            lambda: grids.exponential(-3.0, 0.01, "neg_log_ab").times(VP, 4),
            "start: -ln alphas_cumprod is never negative, got -3",
        ),
        (lambda: grids.uniform(math.nan).times(VP, 4), "start: nan in t has no time"),
        (lambda: grids.uniform(math.inf).times(EDM, 4), "start: inf in t has no time"),
        (lambda: grids.uniform("a").times(VP, 4), "start: need a number, got 'a'"),
        (lambda: grids.uniform(3.0, -1.0, "sigma").times(VP, 4), "end: sigma: need a value >= 0"),
        (lambda: grids.log_snr(-100, 1, "lambda").times(DDPM, 4), "start: -100 in lambda has no"),
        (lambda: grids.log_snr(end=0.0).times(VP, 4), "log-snr grid: needs finite log-SNR at both"),
        (lambda: grids.karras(end=0.0).times(EDM, 4), "karras grid: needs finite log-SNR at both"),
        (lambda: grids.log_snr(1.0).times(pf.FlowMatching(), 4), "needs finite log-SNR"),
        (lambda: grids.exponential(1.0).times(pf.FlowMatching(), 4), "needs alpha > 0 at both"),
        (lambda: grids.karras(rho=0.0).times(EDM, 4), "rho: need a finite number > 0, got 0"),
        (lambda: Grid("paper", 1.0).times(VP, 64), "start, end: the paper's schedule fixes both"),
        (lambda: grids.paper().times(VP, 3), r"need h = c1 ln\(T\)/T < 1"),
        (lambda: grids.paper().times(VP, 99), "times: 1.01289 lies outside the process"),
        (lambda: grids.paper(3.0, 2.0).times(VP, 99), "c0, c1: need c1 > c0 > 0"),
        (lambda: grids.explicit([1.0, 0.5]).times(VP, 2), "explicit grid has 1 steps, asked for 2"),
        (lambda: grids.explicit([0.5, 1.0]).times(VP), "must strictly decrease"),
        (lambda: grids.explicit([1.0, 0.5, 0.5]).times(VP), "must strictly decrease"),
        (lambda: grids.explicit([2.0, 0.5]).times(VP), "times: 2 lies outside"),
        (lambda: grids.explicit([1.0, math.nan]).times(VP), "times: nan in t has no time"),
        (lambda: grids.explicit([math.inf, 1.0]).times(EDM), "times: inf in t has no time"),
        (lambda: grids.explicit([1.0]), "an explicit grid needs at least 2"),
        (lambda: grids.explicit([]), "an explicit grid needs at least 2"),
        (lambda: Grid("explicit"), "an explicit grid needs at least 2"),
        (lambda: Grid("explicit", 1.0, options={"times": (1, 0)}), "an explicit grid has its own"),
    ],
)
def test_messages(make: Callable[[], object], message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("grid", [3, None, 2.5, object()])
def test_what_is_no_grid(grid: object) -> None:
    with pytest.raises(TypeError, match=r"grid: need a Grid, the name of one \(uniform, "):
        as_grid(grid)


@given(
    st.sampled_from(PROCESSES),
    st.sampled_from(list(EVEN)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(1, 300),
)
def test_strictly_decreasing_with_exact_ends(
    process: Process, kind: str, one: float, other: float, steps: int
) -> None:
    low, high = process.end, process.start
    start, end = (low + max(one, other) * (high - low), low + min(one, other) * (high - low))
    assume(start - end > 1e-6 * high)
    times = Grid(kind, start, end).times(process, steps)
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (start, end)
    assert (np.diff(times) < 0).all()


@given(st.sampled_from(PROCESSES), st.integers(1, 200))
def test_default_ends_of_every_kind(process: Process, steps: int) -> None:
    for kind in EVEN:
        times = as_grid(kind).times(process, steps)
        assert (times[0], times[-1]) == (process.start, process.end)
