"""Path divergences: closed forms on a Gaussian target, leading orders, samples, refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import LOG_SNR, MIXTURE, NORMAL, PATHS, PLANE, VP, name, plan
from thinned import thinned

import probflow as pf
from probflow.laws import Refusal, distances_1d, path_kl, path_kl_samples
from probflow.laws.distances import excess
from probflow.laws.path import _divergence
from probflow.laws.registers import ExactModel, kernels
from probflow.laws.transition import log_normal, log_weights
from probflow.plan import Linear, StepBuilder
from probflow.solvers import Solver

# Gaussian target: every kernel is normal ---------------------------------------------------------

Affine = tuple[float, float]  # slope of the mean in x - m, and variance

NORMAL_KERNELS: dict[str, Callable[[float, float, float], Affine]] = {
    # arguments: v = Var(x_t), b, 1 - ab' of the step
    "ddpm": lambda v, b, s2: ((1 - b / v) / math.sqrt(1 - b), b / (1 - b)),
    "ddpm-beta": lambda v, b, s2: ((1 - b / v) / math.sqrt(1 - b), b),
    "ddpm-posterior": lambda v, b, s2: (
        (1 - b / v) / math.sqrt(1 - b),
        b * s2 / (1 - (1 - s2) * (1 - b)),
    ),
    "accelerated-sde": lambda v, b, s2: (
        (1 - b / v) / math.sqrt(1 - b),
        ((1 - b / v) ** 2 * b / 2 + b / 2) / (1 - b),
    ),
    "accelerated-sde-readme": lambda v, b, s2: (
        (1 - b / v) / math.sqrt(1 - b),
        (1 - b / v) ** 2 * b / 2 / (1 - b) + b / 2,
    ),
    "accelerated-sde-half-noise": lambda v, b, s2: (
        (1 - b / v) / math.sqrt(1 - b),
        b * (1 - b / (2 * v)) ** 2 / (1 - b),
    ),
    "accelerated-sde-jvp": lambda v, b, s2: (
        (1 - b / v) / math.sqrt(1 - b),
        b * (1 - b / (2 * v)) ** 2 / (1 - b),
    ),
    "accelerated-sde-3": lambda v, b, s2: (
        (1 - b / v) / math.sqrt(1 - b),
        b * ((1 - b / (2 * v)) ** 2 + (b / (3 * v)) ** 2) / (1 - b),
    ),
}


def normal_path_kl(solver: str, steps: int) -> float:
    """Sum over steps of E KL(N, N). Means agree: both kernels map m_t to m_s."""
    lam, levels = 0.25, VP.neg_log_ab(LOG_SNR.times(VP, steps))
    total = 0.0
    for t, s in itertools.pairwise(levels):
        alpha, b = math.exp(s - t), -math.expm1(s - t)
        v, v_s = 1 + (lam - 1) * math.exp(-t), 1 + (lam - 1) * math.exp(-s)
        # True kernel by conditioning: x_t = sqrt(alpha) x_s + sqrt(b) W.
        slope, variance = math.sqrt(alpha) * v_s / v, v_s * b / v
        own_slope, own = NORMAL_KERNELS[solver](v, b, -math.expm1(-s))
        ratio = variance / own
        total += (ratio - 1 - math.log(ratio) + (slope - own_slope) ** 2 * v / own) / 2
    return total


@pytest.mark.parametrize("solver", NORMAL_KERNELS)
@pytest.mark.parametrize("steps", [2, 16, 64])
def test_closed_form_on_a_normal_target(solver: str, steps: int) -> None:
    got = path_kl(plan(solver, steps), VP, NORMAL)
    assert got == pytest.approx(normal_path_kl(solver, steps), rel=1e-7)


def test_exact_kernel_has_no_divergence() -> None:
    assert path_kl(plan("ddpm-beta", 32), VP, pf.Gaussian([0.0], 1.0)) < 1e-25


@pytest.mark.parametrize("solver", ["ddpm", "accelerated-sde", "accelerated-sde-half-noise"])
def test_it_bounds_the_marginal_divergence(solver: str) -> None:
    """Data processing: KL of the final laws is at most the path KL."""
    for steps in (4, 16):
        made = plan(solver, steps)
        assert distances_1d(made, VP, MIXTURE)["kl"] <= path_kl(made, VP, MIXTURE)


# Leading orders of one step on the mixture -------------------------------------------------------


def derivatives(level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of q_t, J = (log q_t)'' and (log q_t)''' on a grid of the line."""
    alpha, sigma = math.exp(-level / 2), math.sqrt(-math.expm1(-level))
    x = torch.linspace(-7, 7, 8001, dtype=torch.float64)[:, None].requires_grad_()
    jacobian = MIXTURE.score_jacobian(x, alpha, sigma)[:, 0, 0]
    (third,) = torch.autograd.grad(jacobian.sum(), x)
    weight = MIXTURE.log_prob(x, alpha, sigma).exp().detach().numpy() * (14 / 8000)
    return weight, jacobian.detach().numpy(), third[:, 0].detach().numpy()


LEADING: dict[str, tuple[int, Callable[[np.ndarray, np.ndarray, float], np.ndarray]]] = {
    # power of b, and the constant's integrand in (J, third derivative, sigma^2)
    "ddpm": (2, lambda J, third, s2: J**2 / 4),
    "ddpm-beta": (2, lambda J, third, s2: (1 + J) ** 2 / 4),
    "ddpm-posterior": (2, lambda J, third, s2: (1 / s2 + J) ** 2 / 4),
    "accelerated-sde": (3, lambda J, third, s2: third**2 * (1 / 32 + 1 / 192)),
    "accelerated-sde-readme": (2, lambda J, third, s2: 1 / 16 + 0 * J),
    "accelerated-sde-half-noise": (3, lambda J, third, s2: third**2 * (1 / 128 + 1 / 192)),
    "accelerated-sde-jvp": (3, lambda J, third, s2: third**2 / 12),
}


@pytest.mark.parametrize("solver", LEADING)
def test_leading_order_of_one_step(solver: str) -> None:
    """Measured over predicted tends to 1, and its distance from 1 falls like b."""
    level = 0.8
    power, integrand = LEADING[solver]
    weight, J, third = derivatives(level)
    constant = float(weight @ integrand(J, third, -math.expm1(-level)))
    gaps = []
    for b in (4e-3, 2e-3, 1e-3):
        times = VP.t_of_neg_log_ab(np.array([level, level + math.log1p(-b)]))
        measured = path_kl(pf.get_solver(solver).plan(VP, times, "eps"), VP, MIXTURE)
        gaps.append(measured / (b**power * constant) - 1)
    assert abs(gaps[-1]) < 0.03
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.1)
    assert gaps[2] / gaps[1] == pytest.approx(0.5, abs=0.1)


# Quadrature ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddpm", "accelerated-sde", "accelerated-sde-half-noise"])
def test_quadrature_converges(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative error 3e-5: see the remark at SPACING."""
    made = plan(solver, 8)
    coarse = path_kl(made, VP, MIXTURE)
    monkeypatch.setattr("probflow.laws.path.SPACING", 0.1)
    monkeypatch.setattr("probflow.laws.path._HERMITE", np.polynomial.hermite_e.hermegauss(48))
    assert coarse == pytest.approx(path_kl(made, VP, MIXTURE), rel=5e-5)


TRACTABLE = [s for s in PATHS if s.name != "accelerated-sde-3"]


@pytest.mark.parametrize("steps", [4, 32])
@pytest.mark.parametrize("solver", thinned(TRACTABLE, name, every=2))
def test_samples_against_quadrature(solver: pf.Solver, steps: int) -> None:
    made = plan(solver, steps)
    # Long steps have heavy tails: a mean of 4000 is far from normal, even with independent noises.
    n = 4_000
    if steps == 4:
        n = 10_000 if solver.name in ("accelerated-sde", "accelerated-sde-readme") else 40_000
    samples = path_kl_samples(made, VP, MIXTURE, n, generator=torch.Generator().manual_seed(11))
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert abs(samples.mean() - path_kl(made, VP, MIXTURE)) < 4 * error
    assert error < 0.2 * samples.mean()


@pytest.mark.parametrize("solver", TRACTABLE, ids=name)
def test_independent_axes_add_up(solver: pf.Solver) -> None:
    """In d dimensions a product target has the sum of the axes' divergences."""
    target = pf.Gaussian([0.4, 0.4, 0.4], 0.25 * np.ones(3))
    made = plan(solver, 16)
    samples = path_kl_samples(made, VP, target, 4000, generator=torch.Generator().manual_seed(7))
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert abs(samples.mean() - 3 * path_kl(made, VP, NORMAL)) < 4 * error


def test_paths_do_not_depend_on_the_solver() -> None:
    """Common random numbers: the errors of two solvers or step counts are correlated."""
    generator = torch.Generator()
    results = [
        path_kl_samples(plan(s, n), VP, PLANE, 200, generator=generator.manual_seed(1))
        for s, n in (("ddpm", 16), ("ddpm-beta", 16), ("ddpm", 32), ("ddpm", 16))
    ]
    np.testing.assert_array_equal(results[0], results[3])
    assert np.corrcoef(results[0], results[2])[0, 1] > 4 / math.sqrt(200)


def test_logarithms_of_means_without_their_bias() -> None:
    """Weights with the mean 1: the logarithm of the mean of four alone would be off by 0.01."""
    rng = np.random.default_rng(0)
    spread = 0.3
    ell = spread * rng.standard_normal((200_000, 4)) - spread**2 / 2
    values = _divergence(ell)
    error = values.std() / math.sqrt(len(values))
    plain = excess(np.log(np.exp(ell).mean(axis=1))).mean()
    assert plain > 0.01
    assert abs(values.mean()) < max(4 * error, 3e-4)
    assert _divergence(ell[:, :1]) == pytest.approx(excess(ell[:, 0]))


@pytest.mark.parametrize("d", [2, 5])
def test_weights_have_the_density_as_their_mean(d: int) -> None:
    """A normal target: a step of accelerated-sde is normal, with the moments of the recursion."""
    target, made = pf.Gaussian(np.full(d, 0.4), 0.25), plan("accelerated-sde", 8)
    model, generator = ExactModel(made, VP, target), torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, d, dtype=torch.float64, generator=generator)
    step = made.steps[3]
    level, after = (float(VP.neg_log_ab(t)) for t in (step.start, step.stop))
    v, b = 1 + (0.25 - 1) * math.exp(-level), -math.expm1(after - level)
    slope, variance = NORMAL_KERNELS["accelerated-sde"](v, b, -math.expm1(-after))
    means = (0.4 * math.exp(-t / 2) for t in (level, after))
    m, m_after = means
    exact = log_normal(y - m_after - slope * (x - m), variance)
    logs = log_weights(kernels(step), model, x, y, 3, generator=generator)
    # The mean of y is linear in u, so the draws are from the posterior itself.
    torch.testing.assert_close(logs, exact[:, None].expand(-1, 3), atol=1e-9, rtol=1e-9)


# Refusals -----------------------------------------------------------------------------------------


def test_deterministic_plans_are_refused() -> None:
    for law in (path_kl, lambda *a: path_kl_samples(*a, 8, generator=torch.Generator())):
        with pytest.raises(Refusal, match="ddim is deterministic: its kernel is a point mass"):
            law(plan("ddim", 4), VP, MIXTURE)


@pytest.mark.filterwarnings("error")
def test_a_last_step_without_noise_is_refused() -> None:
    with pytest.raises(Refusal, match="a step adds no noise, so its kernel is a point mass"):
        path_kl(plan("two-interval", 4), VP, MIXTURE)


def test_a_second_noise_inside_the_model_is_refused_in_several_dimensions() -> None:
    with pytest.raises(Refusal, match="a step with a second noise inside the model"):
        path_kl_samples(plan("accelerated-sde-3", 4), VP, PLANE, 8, generator=torch.Generator())


@pytest.mark.filterwarnings("error")
def test_a_step_without_noise_is_refused_in_several_dimensions() -> None:
    with pytest.raises(Refusal, match="two-interval: a step without noise has no density"):
        path_kl_samples(plan("two-interval", 4), VP, PLANE, 8, generator=torch.Generator())


def test_quadrature_needs_the_line() -> None:
    with pytest.raises(Refusal, match="a 1-D law was asked for"):
        path_kl(plan("ddpm", 4), VP, PLANE)


def test_three_kernels_are_refused() -> None:
    def three(step: StepBuilder) -> Linear:
        first = step.model(step.x + 0.1 * step.noise(0, 0.3), step.t)
        second = step.model(first.input + 0.1 * first + 0.1 * step.noise(0.3, 0.6), step.s)
        return second.input + 0.1 * second + 0.1 * step.noise(0.6, 1)

    mine = Solver("mine", three, "here", "score", coordinates="vp", stochastic=True)
    with pytest.raises(Refusal, match="mine"):
        path_kl(mine.plan(VP, [0.9, 0.8]), VP, MIXTURE)


def test_kernels_too_narrow_to_resolve_are_refused() -> None:
    spikes = pf.GaussianMixture([0.5, 0.5], [-1.0, 1.0], stds=[1e-6, 1e-6])
    made = plan("ddpm", 1, grid=pf.grids.log_snr(3.0, 1e-10, "neg_log_ab"))
    with pytest.raises(Refusal, match="ddpm: the reverse kernel of a step would take"):
        path_kl(made, VP, spikes)
