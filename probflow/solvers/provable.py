r"""Samplers with later theorems: overshooting and noising back, random midpoints, collocation.

For a variance-preserving state Y and :math:`g = \bar\alpha`, the probability-flow ODE is
:math:`d(Y/\sqrt g) = s_g(Y)\,dg / (2 g^{3/2})`; in Ornstein-Uhlenbeck time, :math:`g = e^{-2\tau}`,
it is :math:`dY = -(Y + s)\,d\tau`. A step from t to s has the length :math:`h = \tau_t - \tau_s`.
Random numbers are those of the option ``seed``, the number of steps and that of the step: a plan is
fixed before the first evaluation, and the order of such a solver is that of a mean over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import pi
from typing import Any

import numpy as np

from probflow.plan import Linear, Point, StepBuilder
from probflow.plan.columns import Column, Number, column, cos, exp, expm1, log, sqrt
from probflow.solvers.chain import alpha_ratio, b_of
from probflow.solvers.forms import EPS
from probflow.solvers.phi import adams, moments
from probflow.solvers.registry import register
from probflow.words import check_choice, check_real, check_whole


def _tau(t: Point) -> float:
    """Ornstein-Uhlenbeck time."""
    return 0.5 * t.neg_log_ab


def _between(step: StepBuilder, t: Point, s: Point, fraction: float) -> Point:
    """The point at a fraction of the way from t to s in Ornstein-Uhlenbeck time."""
    return step.at_neg_log_ab(t.neg_log_ab + fraction * (s.neg_log_ab - t.neg_log_ab))


@lru_cache(maxsize=64)
def _uniforms(seed: int, steps: int) -> np.ndarray:
    """Independent uniform numbers of the steps, coupled to those of half as many steps.

    As one Brownian path serves every step count: the number of a step is F(a + b) of those of its
    two halves, with the distribution function F of their sum, so that errors with T and 2 T steps
    fluctuate alike. It is drawn from coarse to fine: a + b, and then a, which is uniform given it.
    """
    levels = (steps & -steps).bit_length() - 1
    odd = steps >> levels
    generator = np.random.default_rng([seed, odd])
    draws = generator.random(odd)
    for _ in range(levels):
        total = np.where(draws < 0.5, np.sqrt(2 * draws), 2 - np.sqrt(2 - 2 * draws))
        low, high = np.maximum(total - 1, 0), np.minimum(total, 1)
        first = low + generator.random(len(draws)) * (high - low)
        draws = np.stack([first, total - first], axis=1).ravel()
    return np.clip(draws, 0, np.nextafter(1, 0))


def _uniform(step: StepBuilder, seed: int) -> Number:
    """The random number in [0, 1) of a step."""
    check_whole("seed", seed, 0)
    own = _uniforms(seed, step.steps)[step.number]
    return column(own) if isinstance(step.number, Column) else float(own)


def _noised(step: StepBuilder, state: Linear, r: Point) -> Linear:
    """From the state at r back to the noise level of s: the forward process."""
    return sqrt(alpha_ratio(step.s, r)) * state + sqrt(b_of(step.s, r)) * step.noise()


# Two intervals forward, one back -----------------------------------------------------------------


def _exponential_euler(x: Linear, t: Point, s: Point, score: Linear) -> Linear:
    """Y' = e^h Y + (e^h - 1) score."""
    h = _tau(t) - _tau(s)
    return exp(h) * x + expm1(h) * score


@register(
    "two-interval",
    reference="Jain, Zhang 2025 (arXiv 2508.16306), known at second hand",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    whole_grid=True,
    family="chain",
    orders={"tv": 1, "certificate": 1},
)
def two_interval(step: StepBuilder) -> Linear:
    """Y+ = e^H Y + (e^H - 1) score(Y), Y' = sqrt(ab'/ab+) Y+ + sqrt(1 - ab'/ab+) Z.

    The ODE from t to the grid point after s, H = tau_t - tau_+, then the forward process back to s.
    The last step, which has nothing after it, is the ODE alone.
    """
    r = step.following or step.s
    state = _exponential_euler(step.x, step.t, r, step.model(step.x, step.t))
    return _noised(step, state, r) if step.following else state


@register(
    "two-interval-2",
    reference="derived from Jain, Zhang 2025 (arXiv 2508.16306) with a second-order ODE part",
    prediction="score",
    coordinates="vp",
    nfe=2,
    stochastic=True,
    whole_grid=True,
    family="chain",
    orders={"tv": 2, "certificate": 2},
)
def two_interval_2(step: StepBuilder) -> Linear:
    """Y+ = e^H Y + (e^H - 1) score(Ym), Ym = e^(H/2) Y + (e^(H/2) - 1) score(Y).

    As ``two-interval``, with an exponential midpoint step from t to the grid point after s.
    """
    r = step.following or step.s
    middle = _between(step, step.t, r, 0.5)
    score = step.model(step.x, step.t)
    half = _exponential_euler(step.x, step.t, middle, score)
    state = _exponential_euler(step.x, step.t, r, step.model(half, middle))
    return _noised(step, state, r) if step.following else state


# Random midpoints ---------------------------------------------------------------------------------


@register(
    "randomized-midpoint",
    reference="Gupta, Cai, Chen 2024 (arXiv 2406.00924), the predictor; the corrector (an option) "
    "derived from Chen et al. 2023 (arXiv 2305.11798)",
    prediction="score",
    coordinates="vp",
    nfe=2,
    whole_grid=True,
    family="chain",
    orders={"tv": 1.5, "strong": 1.5},
)
def randomized_midpoint(
    step: StepBuilder, seed: int = 0, corrections: int = 0, rounds: int = 1, length: float = 1.0
) -> Linear:
    """Y' = e^h Y + h e^((1 - a) h) score(Y+), Y+ = e^(a h) Y + (e^(a h) - 1) score(Y).

    Y+ lies at tau - a h and a is uniform on [0, 1]: the mean of the sum is the integral. With
    ``corrections`` = n > 0 the steps are split into ``rounds`` equal ones, and each round ends with
    a corrector: n steps of length k = ``length``/n of the underdamped Langevin equation
    dY = sigma V dr, dV = (sigma score(Y) - 2 V) dr + 2 dB at the noise level reached, V ~ N(0, I)
    at r = 0, the score held over each step and the rest exact:

    V' = e V + q sigma score(Y) + N_v, Y' = Y + sigma (q V + (k - q)/2 sigma score(Y) + N_y), with
    e = e^(-2 k), q = (1 - e)/2, and the covariance 1 - e^2, 2 q^2, k - 2 q + (1 - e^2)/4 of
    (N_v, N_y).
    """
    check_whole("corrections", corrections, 0)
    check_whole("rounds", rounds, 1)
    check_real("length", length, "(0, inf)")
    t, s = step.t, step.s
    a = _uniform(step, seed)
    r = _between(step, t, s, a)
    h = _tau(t) - _tau(s)
    middle = _exponential_euler(step.x, t, r, step.model(step.x, t))
    state = exp(h) * step.x + h * exp((1 - a) * h) * step.model(middle, r)
    if corrections and _among(step.number, _round_ends(step, rounds)):
        return _underdamped(step, state, corrections, length / corrections)
    return state


def _round_ends(step: StepBuilder, rounds: int) -> set[int]:
    """Numbers of the last steps of ``rounds`` rounds as equal as can be."""
    return {round(step.steps * number / rounds) - 1 for number in range(1, rounds + 1)}


def _among(number: Any, numbers: set[int]) -> bool:
    return any(number == other for other in numbers)


def _underdamped(step: StepBuilder, state: Linear, steps: int, k: float) -> Linear:
    """The corrector of :func:`randomized_midpoint`: steps of length k at the noise level of s."""
    sigma = sqrt(-expm1(-step.s.neg_log_ab))
    e, q, spread = exp(-2 * k), -0.5 * expm1(-2 * k), -expm1(-4 * k)
    # N_v = sqrt(spread) z, N_y = 2 q^2/sqrt(spread) z + along z'.
    along = sqrt(k - 2 * q + spread / 4 - 4 * q**4 / spread)
    number = 2 * steps + 1  # of noises: the velocity at the start and two a step
    noises = (step.noise(i / number, (i + 1) / number) for i in range(number))
    velocity = next(noises)
    for _ in range(steps):
        force = sigma * step.model(state, step.s)
        z, other = next(noises), next(noises)
        moved = q * velocity + 0.5 * (k - q) * force + 2 * q**2 / sqrt(spread) * z + along * other
        velocity = e * velocity + q * force + sqrt(spread) * z
        state = state + sigma * moved
    return state


@register(
    "ddram",
    reference="Zhang et al. 2025 (arXiv 2511.04844), form derived here",
    prediction="score",
    coordinates="vp",
    nfe=2,
    stochastic=True,
    whole_grid=True,
    family="sde",
    orders={"tv": 1.5},
)
def ddram(step: StepBuilder, seed: int = 0) -> Linear:
    """Y' = e^h Y + 2 h e^((1 - a) h) score(Y+) + N, Y+ = e^(a h) Y + 2 (e^(a h) - 1) score(Y) + N+.

    a is uniform on [0, 1] and N = e^((1 - a) h) N+ + N-: N+ has the variance e^(2 a h) - 1 and
    N- e^(2 (1 - a) h) - 1, one Brownian motion for both lines.
    """
    t, s = step.t, step.s
    a = _uniform(step, seed)
    r = _between(step, t, s, a)
    h = _tau(t) - _tau(s)
    cut = (r.t - t.t) / (s.t - t.t)
    first = sqrt(expm1(2 * a * h)) * step.noise(0, cut)
    second = sqrt(expm1(2 * (1 - a) * h)) * step.noise(cut, 1)
    middle = exp(a * h) * step.x + 2 * expm1(a * h) * step.model(step.x, t) + first
    grown = exp((1 - a) * h)
    return exp(h) * step.x + 2 * h * grown * step.model(middle, r) + grown * first + second


def _eta_of_rounds(options: Mapping[str, Any]) -> float | None:
    """One round is the ODE; more draw their noise at their ends alone, and follow no paths."""
    return 0.0 if options["rounds"] == 1 else None


@register(
    "li-jiao",
    reference="Li, Jiao 2024 (arXiv 2410.13738), eq. 11",
    prediction="score",
    coordinates="vp",
    stochastic=True,
    memory=1,
    whole_grid=True,
    family="chain",
    sde=_eta_of_rounds,
    orders={"tv": 1.5},
)
def li_jiao(step: StepBuilder, rounds: int = 2, seed: int = 0) -> Linear:
    """Y'/sqrt(g') = Y/sqrt(g) + (g' - g) S, S = score(Y+)/(2 g+^(3/2)), g+ uniform on (g, g').

    Y+/sqrt(g+) = Y/sqrt(g) + (g+ - g) S_before: one evaluation a step, at a random time, reached by
    the one stored at the step before (the first step of a round takes it at its own start). The
    steps are split into ``rounds`` equal ones; the last step of a round goes on to the grid point
    after s and the forward process brings it back, which is the only noise.
    """
    check_whole("rounds", rounds, 1)
    check_whole("seed", seed, 0)
    t, s, previous = step.t, step.s, step.previous
    ends = _round_ends(step, rounds) - {step.steps - 1}

    def stretch(step: StepBuilder) -> tuple[Point, Point]:
        """Where a step evaluates the score, and the end of its ODE."""
        before = step.number - 1
        r = (step.following or step.s) if _among(step.number, ends) else step.s
        if _among(before, {-1} | ends):
            return step.t, r
        g, g_r = step.t.ab, r.ab
        return step.at_neg_log_ab(-log(g + _uniform(step, seed) * (g_r - g))), r

    at, r = stretch(step)
    g, g_r = t.ab, r.ab
    state = step.x
    if at is not t:
        stored = previous[0].outputs[0] / (2 * stretch(previous[0])[0].ab ** 1.5)
        state = sqrt(at.ab) * (step.x / sqrt(g) + (at.ab - g) * stored)
    slope = step.model(state, at) / (2 * at.ab**1.5)
    state = sqrt(g_r) * (step.x / sqrt(g) + (g_r - g) * slope)
    return state if r is s else _noised(step, state, r)


# Collocation --------------------------------------------------------------------------------------


#: With more nodes, rounding leaves errors above 1e-10 in their weights.
MOST_NODES = 12


@register(
    "collocation",
    aliases=("picard",),
    reference="Picard iterations: Chen et al. 2024 (arXiv 2405.15986), arXiv 2506.24042; nodes and "
    "Gauss-Seidel sweeps: arXiv 2606.10353",
    prediction="eps",
    nfe=7,
    orders={"tv": 4, "strong": 4},
)
def collocation(
    step: StepBuilder, nodes: int = 3, sweeps: int = 3, iteration: str = "picard"
) -> Linear:
    """x_i = L_i x + S_i h sum_j a_ij eps_j, i = 1 .. K - 1, ``sweeps`` times; x' is the last x_i.

    a_ij is INT_0^(c_i) e^((c_i - u) z) l_j(u) du for the Chebyshev nodes c_i = (1 - cos(pi i/(K -
    1)))/2, of which c_0 = 0 and the last is 1. All eps_j begin as eps(x, t). The K - 1 evaluations
    of a Picard sweep use those of the sweep before and could run at the same time: 1 + ``sweeps``
    rounds of 1 + (K - 1) ``sweeps`` evaluations. Gauss-Seidel sweeps use the newest values. A sweep
    raises the order by one, up to that of the nodes: K, and K + 1 where K is odd.
    """
    check_choice("iteration", iteration, ("picard", "gauss-seidel"))
    check_whole("nodes", nodes, 2, MOST_NODES)
    check_whole("sweeps", sweeps, 1)
    t, s = step.t, step.s
    if s.sigma == 0:
        return EPS.first(step.x, t, s, step.model(step.x, t))
    h, z = s.lambda_ - t.lambda_, EPS.z(t, s)
    places = [0.5 * (1 - cos(pi * i / (nodes - 1))) for i in range(nodes)]
    points = [s if c == 1 else step.at_lambda(t.lambda_ + c * h) for c in places[1:]]
    # The integral to c_i is one over a step of that length.
    rows = [
        EPS.weights(t, r, adams([c / end for c in places], moments(nodes, end * z)))
        for end, r in zip(places[1:], points, strict=True)
    ]
    outputs = [step.model(step.x, t)] * nodes

    def state(i: int, values: list[Linear]) -> Linear:
        return Linear.sum(rows[i], [step.x, *values])

    for _ in range(sweeps):
        values = outputs if iteration == "gauss-seidel" else outputs.copy()
        for i in range(nodes - 1):
            outputs[i + 1] = step.model(state(i, values), points[i])
    return state(nodes - 2, outputs)
