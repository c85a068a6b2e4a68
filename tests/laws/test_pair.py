"""Laws of plans whose state is a pair: multistep with noise, noise that a stage shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import exp, expm1, sqrt

import numpy as np
import pytest
import torch
from cases import LOG_SNR, MIXTURE, NORMAL, VP, Draws, plan
from thinned import thinned

import probflow as pf
from probflow.integrate import run_plan
from probflow.laws import Refusal, distances_1d, gaussian_law, line_law, path_kl
from probflow.laws.distances import tv_on_grid
from probflow.laws.line import law_distances, true_log_density
from probflow.laws.pair import pair_law
from probflow.laws.variables import Symbol, TooManyVariables, schedule, unroll
from probflow.plan import Linear, Plan, StepBuilder
from probflow.solvers import Solver
from probflow.studies import check_order

SOLVERS: dict[str, Solver] = {}


def solver(
    prediction: str, coordinates: str = "process", memory: int = 0, tv: float = 2
) -> Callable[[Callable], Callable]:
    def add(function: Callable) -> Callable:
        SOLVERS[function.__name__] = Solver(
            function.__name__,
            function,
            "here",
            prediction,
            coordinates=coordinates,
            orders={"tv": tv},
            stochastic=True,
            memory=memory,
        )
        return function

    return add


def sde_step(step: StepBuilder, x: Linear, x0: Linear, noise: Linear) -> Linear:
    """Exact step of the reverse SDE with x0 constant, in log-SNR (arXiv 2211.01095)."""
    t, s = step.t, step.s
    h = s.lambda_ - t.lambda_
    decay = s.sigma / t.sigma * exp(-h)
    return decay * x - s.alpha * expm1(-2 * h) * x0 + s.sigma * sqrt(-expm1(-2 * h)) * noise


def extrapolated(step: StepBuilder, x0: Linear) -> Linear:
    """x0 at the middle of the step, from this one and the one before."""
    if not step.previous:
        return x0
    before = step.previous[0]
    ratio = (step.s.lambda_ - step.t.lambda_) / (step.t.lambda_ - before.t.lambda_)
    return x0 + ratio / 2 * (x0 - before.outputs[0])


@solver("x0", memory=1)
def sde_2m(step: StepBuilder) -> Linear:
    """SDE-DPM-Solver++(2M): the pair is (x_k, x_{k-1})."""
    x0 = extrapolated(step, step.model(step.x, step.t))
    return sde_step(step, step.x, x0, step.noise())


@solver("x0", memory=1)
def sde_2m_with_ends(step: StepBuilder) -> Linear:
    """The same with noise in the middle half of the steps only: ODE steps before and after."""
    t, s = step.t, step.s
    x0 = extrapolated(step, step.model(step.x, t))
    if -0.6 < t.lambda_ < 1.2:
        return sde_step(step, step.x, x0, step.noise())
    h = s.lambda_ - t.lambda_
    return s.sigma / t.sigma * step.x - s.alpha * expm1(-h) * x0


def midpoint(step: StepBuilder, shared: float) -> Linear:
    """k-diffusion's sample_dpmpp_sde with r = 1/2, eta = 1; ``shared`` is 1 there."""
    t, s = step.t, step.s
    m = step.at_lambda(0.5 * (t.lambda_ + s.lambda_))

    def ancestral(low: float) -> tuple[float, float]:
        up = low * sqrt(1 - (low / t.rho) ** 2)
        return low**2 / t.rho, up

    fraction = (m.t - t.t) / (s.t - t.t)
    first, second = step.noise(0, fraction), step.noise(fraction, 1)
    x0 = step.model(step.x, t)
    down, up = ancestral(m.rho)
    inner = step.model(down / t.rho * step.x + (1 - down / t.rho) * x0 + up * first, m)
    # Its noises are increments of one Brownian motion in sigma.
    whole = sqrt((t.rho - m.rho) / (t.rho - s.rho)) * shared * first
    whole += sqrt(1 - (t.rho - m.rho) / (t.rho - s.rho) * shared**2) * second
    down, up = ancestral(s.rho)
    return down / t.rho * step.x + (1 - down / t.rho) * inner + up * whole


@solver("x0", "ve")
def sde_midpoint(step: StepBuilder) -> Linear:
    """Given (x, u) the stage's noise is known: the pair is (x, u)."""
    return midpoint(step, 1.0)


@solver("x0", "ve", tv=1)
def sde_midpoint_fresh_noise(step: StepBuilder) -> Linear:
    """The update draws anew: the noise that the stage saw is not the one that is added."""
    return midpoint(step, 0.0)


@solver("score")
def stochastic_heun(step: StepBuilder) -> Linear:
    """Heun in t with one noise: given (x, u) the next state is a function."""
    t, s = step.t, step.s
    h = s.t - t.t
    noise = sqrt(abs(h)) * step.noise()
    score = step.model(step.x, t)
    first = t.drift * step.x - t.diffusion**2 * score
    inner = step.x + h * first + t.diffusion * noise
    second = s.drift * inner - s.diffusion**2 * step.model(inner, s)
    g = sqrt((t.diffusion**2 + s.diffusion**2) / 2)
    return step.x + h / 2 * (first + second) + g * noise


@solver("x0", memory=1, tv=1)
def predict_correct(step: StepBuilder) -> Linear:
    """Predictor and corrector of first order with one noise, one evaluation a step (SA-Solver)."""
    noise = step.noise()
    before = step.previous[0].outputs[-1] if step.previous else step.model(step.x, step.t)
    x0 = step.model(sde_step(step, step.x, before, noise), step.s)
    return sde_step(step, step.x, x0, noise)


@solver("x0", tv=1)
def churned_ddim(step: StepBuilder) -> Linear:
    """Noise first, then a noiseless step from there; the last step draws none."""
    t, s = step.t, step.s
    x, sigma = step.x, t.sigma
    if step.remaining > 1:
        sigma = sqrt(t.sigma**2 + 0.5 * s.sigma**2)
        x = x + sqrt(0.5) * s.sigma * step.noise()
    above = step.at_lambda(math.log(t.alpha / sigma))
    x0 = step.model(above.alpha / t.alpha * x, above)
    return s.sigma / sigma * x + (s.alpha - s.sigma / sigma * t.alpha) * x0


def named(name: str, steps: int, prediction: str = "eps") -> Plan:
    return plan(SOLVERS[name], steps, prediction)


every = pytest.mark.parametrize("name", SOLVERS)
some = pytest.mark.parametrize("name", thinned(SOLVERS, str))


# Structure --------------------------------------------------------------------------------------


def test_shared_noise_is_eliminated() -> None:
    """u = x + e z, x' = x + b f(u) + c z + c' z': given (x, u), z is (u - x)/e."""

    def step(step: StepBuilder) -> Linear:
        first, second = step.noise(0, 0.5), step.noise(0.5, 1)
        output = step.model(step.x + 0.5 * first, step.t)
        return step.x + 3.0 * output + 0.2 * first + 0.1 * second

    made = Solver("mine", step, "here", "score", stochastic=True).plan(VP, [0.9, 0.8])
    start, u, end = unroll(made)
    assert (start.terms, start.std) == ((), 0.0)
    assert (u.terms, u.std, u.time) == (((Symbol(0), 1.0),), 0.5, 0.9)
    assert end.std == pytest.approx(0.1, rel=1e-14)
    assert dict(end.terms) == pytest.approx(
        {Symbol(0): 0.6, Symbol(1, 0.9): 3.0, Symbol(1): 0.4}, rel=1e-14
    )


def test_what_cancels_is_gone() -> None:
    """Written through x, the accelerated step depends on the model's input alone all the same."""

    def step(step: StepBuilder) -> Linear:
        first, second = 0.3 * step.noise(0, 0.5), 0.3 * step.noise(0.5, 1)
        return step.x + first + 0.1 * step.model(step.x + first, step.t) + second

    made = Solver("mine", step, "here", "score", stochastic=True).plan(VP, [0.9, 0.8, 0.7])
    variables = unroll(made)
    assert [{s.variable for s, _ in v.terms} for v in variables] == [set(), {0}, {1}, {2}, {3}]
    assert all(commit.column is None for commit in schedule(variables, "mine"))


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("sde_2m", [False, True, True, True, False]),
        ("sde_midpoint", [False, True, False, True, False, True, False, True, False]),
        ("stochastic_heun", [False] * 5),  # the pair becomes one variable at once
        ("churned_ddim", [False] * 4),
    ],
)
def test_which_coordinates_are_kept(name: str, pairs: list[bool]) -> None:
    commits = schedule(unroll(named(name, 4)), name)
    assert [commit.keep_row for commit in commits] == pairs


# Numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "accelerated-sde", "accelerated-sde-half-noise"])
@pytest.mark.parametrize("steps", [8, 32])
def test_one_variable_is_a_special_case(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines, one law."""
    made = plan(name, steps)
    expected = law_distances(made, VP, MIXTURE)
    monkeypatch.setattr("probflow.laws.line.line_law", pair_law)
    got = law_distances(made, VP, MIXTURE)
    assert got["tv"] == pytest.approx(expected["tv"], rel=1e-8)
    assert got["kl"] == pytest.approx(expected["kl"], rel=1e-8)
    assert got["w2"] == pytest.approx(expected["w2"], rel=1e-5)  # of second order in the grid


@every
@pytest.mark.parametrize("steps", [4, 16])
def test_normal_target_has_the_law_of_its_moments(name: str, steps: int) -> None:
    made = named(name, steps)
    exact, law = gaussian_law(made, VP, NORMAL), line_law(made, VP, NORMAL)
    mean, variance = exact.mean[0], exact.variance[0]
    density = np.exp(-((law.x - mean) ** 2) / (2 * variance)) / sqrt(2 * math.pi * variance)
    np.testing.assert_allclose(law.density, density, rtol=0, atol=1e-11)


@some
def test_the_quadrature_converges(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = named(name, 8)
    coarse = distances_1d(made, VP, MIXTURE)
    monkeypatch.setattr("probflow.laws.pair.RESOLVE_KERNEL", 3.3)
    monkeypatch.setattr("probflow.laws.pair.RESOLVE_DENSITY", 0.2)
    fine = distances_1d(made, VP, MIXTURE)
    for measure in ("tv", "kl"):
        assert coarse[measure] == pytest.approx(fine[measure], rel=2e-8)


@some
def test_the_prediction_type_does_not_matter(name: str) -> None:
    results = [distances_1d(named(name, 6, p), VP, MIXTURE)["tv"] for p in ("eps", "x0", "score")]
    assert results[1:] == pytest.approx([results[0]] * 2, rel=1e-8)


@pytest.mark.slow  # 10 s
@every
def test_law_against_samples(name: str) -> None:
    """Shares of samples in bins against the law's masses: chi^2 at 4 standard deviations."""
    n, bins, made = 400_000, 100, named(name, 6)
    generator = torch.Generator().manual_seed(5)
    start = float(VP.alpha(made.times[0])), float(VP.sigma(made.times[0]))
    x = MIXTURE.sample(n, *start, generator=generator)
    y = run_plan(made, MIXTURE.model(VP), x, noise=Draws(shape=(n, 1))).numpy()[:, 0]
    law = line_law(made, VP, MIXTURE)
    cumulative = np.concatenate([[0], np.cumsum(law.density[1:] + law.density[:-1]) * law.dx / 2])
    edges = np.interp(np.linspace(0, 1, bins + 1)[1:-1], cumulative, law.x)
    counts = np.bincount(np.searchsorted(edges, y), minlength=bins)
    chi2 = float(((counts - n / bins) ** 2 / (n / bins)).sum())
    assert abs(chi2 - (bins - 1)) < 4 * sqrt(2 * (bins - 1))


@pytest.mark.parametrize("name", ["sde_2m", "sde_midpoint_fresh_noise"])
def test_marginal_orders(name: str) -> None:
    """Memory 1 keeps order 2; an update that draws anew loses what the stage knew of its noise."""
    [estimate] = check_order(SOLVERS[name], steps=(8, 16, 32, 64, 128))
    assert estimate.verdict == "consistent", estimate.reason


def test_a_shared_noise_keeps_order_2() -> None:
    """The moments' errors fall by 4; TV, where its sign changes wander, by 3.9 only."""
    previous = np.full(3, np.nan)
    for steps in (32, 64, 128):
        law = line_law(named("sde_midpoint", steps), VP, MIXTURE)
        true = np.exp(true_log_density(VP, MIXTURE, LOG_SNR.times(VP, 1)[-1], law.x))
        moments = [(law.density - true) @ law.x**k * law.dx for k in (1, 2)]
        tv = tv_on_grid(true, law.density, law.dx)
        errors, previous = previous, np.array([*moments, tv])
    ratios = np.log2(errors / previous)
    assert ratios == pytest.approx(2, abs=0.4)


# Refusals ---------------------------------------------------------------------------------------


def test_three_variables_at_once_are_refused() -> None:
    @solver("x0", memory=2)
    def three(step: StepBuilder) -> Linear:
        x0 = step.model(step.x, step.t)
        for before in step.previous:
            x0 = x0 + 0.1 * (x0 - before.outputs[0])
        return sde_step(step, step.x, x0, step.noise())

    made = plan(SOLVERS.pop("three"), 5)
    message = r"three: the law of what follows .* depends on 3 random variables at once; .* two"
    with pytest.raises(TooManyVariables, match=message):
        pair_law(made, VP, MIXTURE)


def test_a_map_that_folds_is_refused() -> None:
    """x' = f(u) with u = x + z, and f not increasing: the density has several branches."""

    def step(step: StepBuilder) -> Linear:
        noise = step.noise()
        return step.x + 4.0 * step.model(step.x + noise, step.t) - noise

    made = Solver("mine", step, "here", "x0", stochastic=True).plan(VP, [0.9, 0.8, 0.7])
    with pytest.raises(Refusal, match="the state is no increasing function of its noise"):
        pair_law(made, VP, MIXTURE)


def test_other_refusals() -> None:
    with pytest.raises(Refusal, match="ddim draws no noise: it is a map; use map_distances"):
        pair_law(plan("ddim", 4), VP, MIXTURE)
    with pytest.raises(Refusal, match="a 1-D law was asked for"):
        pair_law(named("sde_2m", 4), VP, pf.Gaussian([0.0, 0.0], 1.0))
    made = plan(SOLVERS["sde_2m"], 3, grid=pf.grids.log_snr(1e-9, 1e-11, "neg_log_ab"))
    with pytest.raises(Refusal, match=r"sde_2m: resolving the kernels .* would take"):
        pair_law(made, VP, MIXTURE)
    with pytest.raises(Refusal, match="sde_2m is a stochastic multistep method"):
        path_kl(named("sde_2m", 4), VP, MIXTURE)

    def forgets(step: StepBuilder) -> Linear:
        return 0.3 * step.noise()

    made = Solver("mine", forgets, "here", "x0", stochastic=True).plan(VP, LOG_SNR.times(VP, 2))
    with pytest.raises(Refusal, match="mine: the final state does not depend on the start"):
        pair_law(made, VP, MIXTURE)
