"""Samplers with later theorems: their orders, over seeds where their times are random."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from thinned import thinned

import probflow as pf
from probflow.laws.certificate import certificate
from probflow.laws.gaussian import gaussian_law, true_law
from probflow.laws.line import law_distances, map_distances
from probflow.laws.registers import Refusal
from probflow.plan import Plan
from probflow.solvers.provable import _uniforms
from probflow.studies import estimate_order
from probflow.studies.builtin import mixture
from probflow.studies.measure import Measurement, log_covariance

VP, TARGET = pf.VP.linear(), mixture()
GRID = pf.grids.log_snr(3.0, -math.log(0.99), "neg_log_ab")


def plan(name: str, steps: int, **options: object) -> Plan:
    return pf.get_solver(name, **options).plan(VP, GRID.times(VP, steps), "eps")


def slope(squares: dict[int, list[float]]) -> tuple[float, float]:
    """Order of the root mean square between two step counts, and its standard error.

    The same seed draws coupled times at both, so that the errors of a seed are paired.
    """
    ends = [Measurement.of_samples(np.array(s), 0.5, 1.0, 0.0) for s in squares.values()]
    factor = math.log(max(squares) / min(squares))
    spread = log_covariance(ends)
    sd = math.sqrt(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1]) / factor
    return math.log(ends[0].error / ends[1].error) / factor, sd


@pytest.mark.parametrize(
    ("name", "options"), [("randomized-midpoint", {}), ("li-jiao", {"rounds": 1})]
)
def test_random_times_have_order_three_halves(name: str, options: dict) -> None:
    """Between the first order of one deterministic evaluation and the second of a midpoint."""

    def square(steps: int, seed: int) -> float:
        made = plan(name, steps, seed=seed, **options)
        return map_distances(made, VP, TARGET, 501)["strong"] ** 2

    order, sd = slope({steps: [square(steps, seed) for seed in range(24)] for steps in (32, 128)})
    assert abs(order - 1.5) < 0.1 + 3 * sd
    assert sd < 0.1


def normal_kl(made: Plan, target: pf.Gaussian) -> float:
    """KL between the exact laws of a plan's end and of a normal target there."""
    p, q = gaussian_law(made, VP, target), true_law(VP, target, made.times[-1])
    ratio = q.variance / p.variance
    return float(0.5 * np.sum(ratio - 1 - np.log(ratio) + (p.mean - q.mean) ** 2 / p.variance))


@pytest.mark.parametrize("name", ["ddram", "li-jiao"])
def test_random_times_with_noise_have_order_three_halves(name: str) -> None:
    """On a normal law, whose moments are exact: the quadratures on the line refuse short noises."""
    target = pf.Gaussian([0.5], [[0.25]])

    def divergence(steps: int, seed: int) -> float:
        return normal_kl(plan(name, steps, seed=seed), target)

    order, sd = slope(
        {steps: [divergence(steps, seed) for seed in range(30)] for steps in (16, 128)}
    )
    assert abs(order - 1.5) < 0.1 + 3 * sd
    assert sd < 0.1


def test_random_times_of_twice_as_many_steps() -> None:
    """Uniform and independent at every step count, and the same sums in a halved step."""
    draws = np.array([_uniforms(seed, 12) for seed in range(4000)])
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    squares = (draws - 0.5) ** 2
    for values in (draws, squares):
        correlation = np.corrcoef(values.T) - np.eye(12)
        assert np.abs(correlation).max() < 5 / math.sqrt(4000)
    for steps in (1, 3, 6, 12):
        halves = _uniforms(7, 2 * steps).reshape(-1, 2).sum(axis=1)
        whole = np.where(halves < 1, halves**2 / 2, 1 - (2 - halves) ** 2 / 2)
        assert np.allclose(whole, _uniforms(7, steps), rtol=0, atol=1e-12)


def test_a_corrector_of_the_predictors_length_has_order_one() -> None:
    """As many evaluations as steps, over a fixed length: its own error is what is left."""
    target, errors = pf.Gaussian([0.5], [[0.25]]), []
    for steps in (16, 32, 64):
        options = {"corrections": steps // 2, "rounds": 2, "length": 3.0}
        plans = [plan("randomized-midpoint", steps, seed=seed, **options) for seed in range(6)]
        assert {made.nfe for made in plans} == {3 * steps}
        errors.append(math.sqrt(np.mean([normal_kl(made, target) for made in plans])))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.allclose(orders, 1.0, atol=0.1), orders


@pytest.mark.parametrize("corrections", [1, 3, 8])
def test_the_corrector_without_a_force_is_free_motion(corrections: int) -> None:
    """With score 0 the velocity is stationary and the covariance known, however many steps."""
    times = GRID.times(VP, 2)
    options = {"corrections": corrections, "length": 1.7}
    made = pf.get_solver("randomized-midpoint", **options).plan(VP, times, "score")
    last = made.steps[-1]
    assert len(last.noises) == 2 * corrections + 1
    weights = [w for register, w in last.update if register.kind == "z"]
    ab = 0.99
    exact = (1 - ab) * (1.7 + 0.5 * math.expm1(-2 * 1.7))
    assert np.sum(np.square(weights)) == pytest.approx(exact, rel=1e-9)
    assert not made.steps[0].noises


def test_a_plan_depends_on_its_seed_alone() -> None:
    for name in ("randomized-midpoint", "ddram", "li-jiao"):
        assert plan(name, 6, seed=3) == plan(name, 6, seed=3)
        assert plan(name, 6, seed=3) != plan(name, 6, seed=4)
        assert plan(name, 300).steps[7] != plan(name, 300, seed=1).steps[7]


@pytest.mark.parametrize("iteration", ["picard", "gauss-seidel"])
@pytest.mark.parametrize(
    ("nodes", "sweeps", "order"),
    thinned([(5, 1, 2), (5, 2, 3), (5, 3, 4), (5, 4, 5), (3, 3, 4), (3, 5, 4), (2, 3, 2)], str),
)
def test_collocation_gains_an_order_a_sweep(
    nodes: int, sweeps: int, order: int, iteration: str
) -> None:
    """Up to that of the nodes, 6 for 5, 4 for 3 and 2 for 2; in distance and in TV.

    After four Gauss-Seidel sweeps TV has its order from 16 steps on, and comes to rounding at 96: a
    factor 6 is less than a verdict needs, and the local orders in it are looked at.
    """
    counts = (6, 8, 12, 16, 24, 32, 48, 64, 96)
    options = {"nodes": nodes, "sweeps": sweeps, "iteration": iteration}
    plans = [plan("collocation", n, **options) for n in counts]
    distances = [map_distances(p, VP, TARGET, 1001) for p in plans]
    for measure in ("strong", "tv"):
        errors = [found[measure] for found in distances]
        if (measure, sweeps, iteration) == ("tv", 4, "gauss-seidel"):
            late = -np.diff(np.log(errors[3:])) / np.diff(np.log(counts[3:]))
            assert np.allclose(late, order, atol=0.02), errors
            continue
        estimate = estimate_order(counts, errors, claim=order, floor=1e-13)
        assert estimate.verdict == "consistent", (measure, estimate.reason, errors)
    assert plans[0].nfe == 6 * (1 + (nodes - 1) * sweeps)
    assert plans[0].rounds == (6 * (1 + sweeps) if iteration == "picard" else plans[0].nfe)


def test_gauss_seidel_sweeps_wait_for_one_another() -> None:
    one = plan("collocation", 5, iteration="gauss-seidel", sweeps=2)
    assert one.rounds == one.nfe == 5 * 5
    for name in ("ddim", "heun", "unipc-3", "dpm-solver-3"):
        assert plan(name, 5).rounds == plan(name, 5).nfe
    picard, gauss = (
        map_distances(plan("collocation", 12, sweeps=2, iteration=i), VP, TARGET, 1001)["strong"]
        for i in ("picard", "gauss-seidel")
    )
    assert gauss < picard


def test_rounds_of_li_jiao() -> None:
    """One noise at the end of each round but the last, and one evaluation a step."""
    made = plan("li-jiao", 12, rounds=3)
    assert [number for number, step in enumerate(made.steps) if step.noises] == [3, 7]
    assert made.nfe == 12
    assert not plan("li-jiao", 12, rounds=1).stochastic


def test_the_certificate_bounds_the_divergence() -> None:
    for name in ("two-interval", "two-interval-2"):
        made = plan(name, 24)
        tv = law_distances(made, VP, TARGET)["tv"]
        # The last step, without noise, is not part of the bound.
        last = map_distances(made_last(name), VP, TARGET)
        assert tv < math.sqrt(certificate(made, VP, TARGET) / 2) + last["tv"]


def test_the_certificate_on_a_normal_law() -> None:
    """Map and exact flow are affine: slopes e^H - (e^H - 1)/v_t and (v_r/v_t)^(1/2), in OU time."""
    target, made = pf.Gaussian([0.7], [0.25]), plan("two-interval", 12)
    total = 0.0
    for step in made.steps[:-1]:
        t, s = (0.5 * float(VP.neg_log_ab(time)) for time in (step.start, step.stop))
        variance = sum(weight**2 for register, weight in step.update if register.kind == "z")
        r = s + 0.5 * math.log1p(-variance)  # the noise is that of the forward process from r to s
        v_t, v_r = (1 + (0.25 - 1) * math.exp(-2 * time) for time in (t, r))
        grown = math.exp(t - r)
        gap = math.exp(r - s) * (grown - (grown - 1) / v_t - math.sqrt(v_r / v_t))
        total += gap**2 * v_t / (2 * variance)
    assert certificate(made, VP, target) == pytest.approx(total, rel=1e-9)


def made_last(name: str) -> Plan:
    """The last step of a plan of 24 steps, alone."""
    return pf.get_solver(name).plan(VP, GRID.times(VP, 24)[-2:], "eps")


def test_what_has_no_certificate() -> None:
    with pytest.raises(Refusal, match="no map followed by one noise"):
        certificate(plan("ddim", 4), VP, TARGET)
    with pytest.raises(Refusal, match="known on the line"):
        certificate(plan("two-interval", 4), VP, pf.Gaussian([0.0, 0.0], 1.0))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="iteration: got 'jacobi', allowed are picard"):
        plan("collocation", 3, iteration="jacobi")
    with pytest.raises(ValueError, match=r"length: need a finite number > 0, got 0\.0"):
        plan("randomized-midpoint", 3, corrections=1, length=0.0)


@pytest.mark.parametrize(
    ("name", "option", "least"),
    [
        ("collocation", "nodes", 2),
        ("collocation", "sweeps", 1),
        ("li-jiao", "rounds", 1),
        ("li-jiao", "seed", 0),
        ("randomized-midpoint", "corrections", 0),
        ("randomized-midpoint", "rounds", 1),
        ("randomized-midpoint", "seed", 0),
        ("ddram", "seed", 0),
    ],
)
def test_counts_are_whole_numbers(name: str, option: str, least: int) -> None:
    for value in (3.5, True, "2"):
        with pytest.raises(TypeError, match=f"{option}: need a whole number .*, got {value!r}"):
            plan(name, 3, **{option: value})
    with pytest.raises(ValueError, match=f"{option}: need a whole number .*, got {least - 1}"):
        plan(name, 3, **{option: least - 1})
    assert len(plan(name, 3, **{option: np.int64(least)}).steps) == 3


def test_most_nodes() -> None:
    assert len(plan("collocation", 3, nodes=12).steps) == 3
    with pytest.raises(ValueError, match="nodes: need a whole number from 2 to 12, got 13"):
        plan("collocation", 3, nodes=13)
