"""Targets against scipy, automatic differentiation and brute force."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor

import probflow as pf
from probflow.targets import Target

RNG = np.random.default_rng(7)


def spd(d: int, scale: float = 1.0) -> np.ndarray:
    a = RNG.normal(size=(d, d))
    return scale * (a @ a.T / d + 0.1 * np.eye(d))


MIXTURES: dict[str, pf.GaussianMixture] = {
    "line": pf.GaussianMixture([1, 2, 0.5], [-2.0, 0.3, 3.0], stds=[0.5, 0.2, 1.0]),
    "scalar": pf.GaussianMixture([1, 3], [[0, 1, -1], [2, 0, 0.5]], [0.3, 0.7]),
    "diagonal": pf.GaussianMixture([1, 1], RNG.normal(size=(2, 3)), RNG.uniform(0.1, 1, (2, 3))),
    "full": pf.GaussianMixture([2, 1], RNG.normal(size=(2, 3)), np.stack([spd(3), spd(3, 0.2)])),
    "gaussian": pf.Gaussian([1.0, -0.5], spd(2)),
    "points": pf.GaussianMixture([1, 1], [[0.0, 1], [1, 0]], [0.0, 0.0]),
}
EMPIRICAL = pf.Empirical(RNG.normal(size=(40, 3)))
TARGETS: dict[str, Target] = {**MIXTURES, "empirical": EMPIRICAL}
LEVELS = [(1.0, 0.3), (0.8, 0.6), (0.01, 0.99995), (1.0, 25.0)]


def points(target: Target, alpha: float, sigma: float, n: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return target.sample(n, alpha, sigma, generator=generator)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_log_prob_is_that_of_scipy(name: str, alpha: float, sigma: float) -> None:
    target = MIXTURES[name]
    x = points(target, alpha, sigma)
    noise = sigma**2 * np.eye(target.dim)
    density = sum(
        w * stats.multivariate_normal(alpha * m, alpha**2 * c + noise).pdf(x.numpy())
        for w, m, c in zip(target.weights, target.means, target.covariances, strict=True)
    )
    np.testing.assert_allclose(target.log_prob(x, alpha, sigma), np.log(density), rtol=1e-11)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_score_and_jacobian_are_derivatives(name: str, alpha: float, sigma: float) -> None:
    target = TARGETS[name]
    x = points(target, alpha, sigma).requires_grad_()
    (slope,) = torch.autograd.grad(target.log_prob(x, alpha, sigma).sum(), x)
    score = target.score(x, alpha, sigma)
    torch.testing.assert_close(score, slope, rtol=1e-9, atol=1e-9)
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in score.T]
    hessian = torch.stack(rows, dim=1)
    jacobian = target.score_jacobian(x, alpha, sigma)
    torch.testing.assert_close(jacobian, hessian, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(jacobian, jacobian.transpose(1, 2), rtol=1e-12, atol=1e-12)
    again, jacobian_too = target.score_and_jacobian(x, alpha, sigma)
    torch.testing.assert_close(again, score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(jacobian_too, jacobian)


@pytest.mark.parametrize("name", TARGETS)
def test_levels_may_differ_by_sample(name: str) -> None:
    target = TARGETS[name]
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    x = torch.cat([points(target, a, s, 1) for a, s in LEVELS])
    together = target.score(x, levels[:, 0], levels[:, 1])
    log_prob = target.log_prob(x, levels[:, 0], levels[:, 1])
    jacobian = target.score_jacobian(x, levels[:, 0], levels[:, 1])
    for i, (a, s) in enumerate(LEVELS):
        one = x[i : i + 1]
        torch.testing.assert_close(together[i : i + 1], target.score(one, a, s), rtol=1e-12, atol=0)
        torch.testing.assert_close(log_prob[i : i + 1], target.log_prob(one, a, s))
        torch.testing.assert_close(jacobian[i : i + 1], target.score_jacobian(one, a, s))


def test_scalar_diagonal_and_full_covariances_agree() -> None:
    means, variances = RNG.normal(size=(3, 4)), np.array([0.2, 0.5, 1.5])
    diagonal = np.repeat(variances[:, None], 4, axis=1)
    # Full matrices in a rotated basis are the scalar ones only if the basis is handled right.
    full = np.stack([v * np.eye(4) for v in variances])
    same = [pf.GaussianMixture([1, 2, 3], means, c) for c in (variances, diagonal, full)]
    same.append(pf.GaussianMixture([1, 2, 3], means, stds=np.sqrt(diagonal)))
    x = points(same[0], 0.9, 0.4)
    for other in same[1:]:
        for method in ("score", "log_prob", "score_jacobian"):
            torch.testing.assert_close(
                getattr(other, method)(x, 0.9, 0.4), getattr(same[0], method)(x, 0.9, 0.4)
            )
        np.testing.assert_allclose(other.covariances, full, atol=1e-14)


def test_a_rotation_of_the_space_rotates_the_score() -> None:
    target = MIXTURES["diagonal"]
    q = torch.tensor(stats.ortho_group.rvs(3, random_state=3))
    turned = pf.GaussianMixture(
        target.weights, target.means @ q.T.numpy(), q.numpy() @ target.covariances @ q.T.numpy()
    )
    x = points(target, 0.7, 0.5)
    torch.testing.assert_close(turned.score(x @ q.T, 0.7, 0.5), target.score(x, 0.7, 0.5) @ q.T)
    torch.testing.assert_close(turned.log_prob(x @ q.T, 0.7, 0.5), target.log_prob(x, 0.7, 0.5))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.6, 0.8)])
def test_samples_have_the_moments(name: str, alpha: float, sigma: float) -> None:
    target, n = TARGETS[name], 40_000
    x = target.sample(n, alpha, sigma, generator=torch.Generator().manual_seed(0)).numpy()
    assert x.shape == (n, target.dim)
    mean, cov = target.moments(alpha, sigma)
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    # Five standard errors, estimated from the samples themselves.
    error_of_mean = 5 * centred.std(0) / math.sqrt(n) + 1e-12
    assert (np.abs(centred.mean(0)) < error_of_mean).all()
    error_of_cov = 5 * products.std(0) / math.sqrt(n) + 1e-12
    assert (np.abs(products.mean(0) - cov) < error_of_cov).all()


def test_samples_of_a_line_have_the_law() -> None:
    target = MIXTURES["line"]
    x = target.sample(20_000, 0.8, 0.6, generator=torch.Generator().manual_seed(5))[:, 0].numpy()

    def cdf(y: np.ndarray) -> np.ndarray:
        parts = [
            w * stats.norm.cdf(y, 0.8 * m[0], math.sqrt(0.64 * c[0, 0] + 0.36))
            for w, m, c in zip(target.weights, target.means, target.covariances, strict=True)
        ]
        return np.sum(parts, axis=0)

    assert stats.kstest(x, cdf).pvalue > 1e-4


# Empirical ---------------------------------------------------------------------------------


def test_empirical_is_the_mixture_of_its_points() -> None:
    data = EMPIRICAL.data.numpy()
    mixture = pf.GaussianMixture(np.ones(len(data)), data, np.zeros(len(data)))
    for alpha, sigma in LEVELS:
        x = points(EMPIRICAL, alpha, sigma)
        for method in ("score", "log_prob", "score_jacobian"):
            torch.testing.assert_close(
                getattr(EMPIRICAL, method)(x, alpha, sigma),
                getattr(mixture, method)(x, alpha, sigma),
                rtol=1e-9,
                atol=1e-9,
            )
    for ours, theirs in zip(EMPIRICAL.moments(0.7, 0.2), mixture.moments(0.7, 0.2), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_empirical_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(EMPIRICAL, 0.8, 0.6)
    whole = EMPIRICAL.score(x, 0.8, 0.6), EMPIRICAL.score_jacobian(x, 0.8, 0.6)
    monkeypatch.setattr(pf.Empirical, "chunk_elements", 30)  # three points at a time
    torch.testing.assert_close(EMPIRICAL.score(x, 0.8, 0.6), whole[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(EMPIRICAL.score_jacobian(x, 0.8, 0.6), whole[1])


def test_empirical_keeps_the_shape_of_images() -> None:
    target = pf.Empirical(torch.rand(7, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    assert target.score(x, 0.5, 0.5).shape == x.shape
    assert target.shape == (3, 4, 4)
    assert target.dim == 48
    assert pf.Empirical(np.arange(6)).data.dtype == torch.float32


def brute_force_eps(data: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """eps in float64 from explicit differences."""
    residual = x.double()[:, None] - alpha * data.double()[None]
    weights = torch.softmax(-(residual**2).sum(-1) / (2 * sigma**2), dim=1)
    return (weights[..., None] * residual).sum(1) / sigma


@pytest.mark.parametrize("sigma", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empirical_at_small_noise(sigma: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    data = torch.rand(500, 64, generator=generator) * 2 - 1
    twins = data + sigma * torch.randn(500, 64, generator=generator)  # within the noise of each
    target = pf.Empirical(torch.cat([data, twins]))
    alpha = math.sqrt(1 - sigma**2)
    x = target.sample(16, alpha, sigma, generator=generator).to(dtype)
    eps = -sigma * target.score(x, alpha, sigma)
    exact = brute_force_eps(target.data, x, alpha, sigma)
    allowed = {torch.float32: 3e-7, torch.float64: 1e-6 * (1e-4 / sigma) ** 2}[dtype]
    # In float64 the bound is the cancellation of squared distances, eps |x|^2/sigma^2.
    allowed = max(allowed, 1e-14 * 64 / sigma**2)
    assert eps.dtype == dtype
    assert (eps.double() - exact).abs().max() < allowed * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("sigma", [1e-2, 1e-4])
def test_mixture_at_small_noise_in_float32(sigma: float) -> None:
    target = pf.GaussianMixture([1, 1, 1], [[0.7, -1], [0.7 + sigma, -1], [3, 3]], [0.0, 0, 0])
    x = target.sample(50, 1.0, sigma, generator=torch.Generator().manual_seed(0)).float()
    eps = -sigma * target.score(x, 1.0, sigma)
    exact = brute_force_eps(torch.tensor(target.means), x, 1.0, sigma)
    torch.testing.assert_close(eps, exact.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TARGETS)
def test_models_of_targets_in_half_precision(name: str, dtype: torch.dtype) -> None:
    target, process = TARGETS[name], pf.VP.linear()
    model = target.model(process)
    for t in (1e-3, 1e-2, 0.5, 1.0):
        x = points(target, float(process.alpha(t)), float(process.sigma(t))).to(dtype)
        eps = model(x, t)
        assert eps.dtype == dtype
        torch.testing.assert_close(eps, model(x.double(), t).to(dtype), rtol=1e-2, atol=1e-2)


MEMORY = """
import resource, time, torch
import probflow as pf
data = torch.empty(60_000, 3072).uniform_(-1, 1)
target = pf.Empirical(data)
x = 0.7 * data[:64] + 0.7 * torch.randn(64, 3072)
start = time.perf_counter()
score = target.score(x, 0.7, 0.7)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter() - start)
"""


@pytest.mark.slow
def test_empirical_memory_for_cifar_sized_data() -> None:
    """Peak memory of the whole process, data (0.69 GiB) and libraries included."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=600
    )
    gib, seconds = map(float, run.stdout.split())
    print(f"\nEmpirical, 60 000 x 3 072 float32, batch 64: peak {gib:.2f} GiB, {seconds:.1f} s")
    assert gib < 2.0


# Flows -------------------------------------------------------------------------------------


def fine_flow(target: Target, process: pf.VP, x: Tensor, start: float, stop: float) -> Tensor:
    """The probability-flow ODE in log-SNR by an eighth-order method to 1e-11."""

    def velocity(lambda_: float, flat: np.ndarray) -> np.ndarray:
        # dx/dlambda = sigma^2 (x + score) for alpha^2 + sigma^2 = 1.
        alpha = 1 / math.sqrt(1 + math.exp(-2 * lambda_))
        sigma = math.exp(-lambda_) * alpha
        state = torch.tensor(flat).reshape(x.shape)
        return (sigma**2 * (state + target.score(state, alpha, sigma))).flatten().numpy()

    ends = (float(process.lambda_(start)), float(process.lambda_(stop)))
    solution = solve_ivp(velocity, ends, x.flatten(), "DOP853", rtol=1e-11, atol=1e-11)
    return torch.tensor(solution.y[:, -1]).reshape(x.shape)


def levels(process: pf.VP, t: float) -> tuple[float, float]:
    return float(process.alpha(t)), float(process.sigma(t))


@pytest.mark.parametrize("name", ["line", "gaussian"])
@pytest.mark.parametrize(("start", "stop"), [(1.0, 0.05), (0.05, 0.8)])
def test_flow_is_the_probability_flow_ode(name: str, start: float, stop: float) -> None:
    target, process = MIXTURES[name], pf.VP.linear()
    x = points(target, *levels(process, start), n=30)
    exact = target.flow(x, levels(process, start), levels(process, stop))
    torch.testing.assert_close(fine_flow(target, process, x, start, stop), exact, rtol=0, atol=1e-8)


def test_gaussian_flow_in_five_dimensions() -> None:
    target, process = pf.Gaussian(RNG.normal(size=5), spd(5)), pf.VP.linear()
    x = points(target, *levels(process, 1.0), n=20)
    exact = target.flow(x, levels(process, 1.0), levels(process, 0.02))
    fine = fine_flow(target, process, x, 1.0, 0.02)
    torch.testing.assert_close(fine, exact, rtol=0, atol=1e-8)
    back = target.flow(exact, levels(process, 0.02), levels(process, 1.0))
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    # Down to the data itself, and the same in float32.
    data = target.flow(x, levels(process, 1.0), (1.0, 0.0))
    single = target.flow(x.float(), levels(process, 1.0), (1.0, 0.0))
    torch.testing.assert_close(single, data.float(), rtol=1e-5, atol=1e-5)


def quantile(target: pf.GaussianMixture, alpha: float, sigma: float, p: np.ndarray) -> np.ndarray:
    parts = [
        (w, alpha * m[0], math.sqrt(alpha**2 * c[0, 0] + sigma**2))
        for w, m, c in zip(target.weights, target.means, target.covariances, strict=True)
    ]

    def excess(y: float, q: float) -> float:
        return sum(w * stats.norm.cdf(y, m, s) for w, m, s in parts) - q

    return np.array([brentq(excess, -90, 90, args=(q,)) for q in p])


def test_flow_moves_quantiles_to_quantiles() -> None:
    target, p = MIXTURES["line"], np.linspace(0.001, 0.999, 21)
    before, after = quantile(target, 0.1, 0.995, p), quantile(target, 0.95, 0.3, p)
    moved = target.flow(torch.tensor(before)[:, None], (0.1, 0.995), (0.95, 0.3))
    np.testing.assert_allclose(moved[:, 0], after, atol=1e-9)


@pytest.mark.parametrize("name", ["line", "gaussian-1d", "empirical-1d"])
def test_flow_round_trip_and_order(name: str) -> None:
    target: Target = {
        "line": MIXTURES["line"],
        "gaussian-1d": pf.GaussianMixture([1], [0.3], [2.0]),
        "empirical-1d": pf.Empirical(np.array([-1.0, 0.1, 2.0])),
    }[name]
    x = torch.linspace(-8, 8, 41, dtype=torch.float64)[:, None]
    there = target.flow(x, (0.05, 0.9987), (0.9, 0.436))
    assert (there.diff(dim=0) > 0).all()
    torch.testing.assert_close(
        target.flow(there, (0.9, 0.436), (0.05, 0.9987)), x, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("z", [8.0, -8.0, 30.0, -30.0, 200.0])
def test_flow_in_far_tails(z: float) -> None:
    # One component: the flow is affine, (x - a mu)/std keeps its value, however far out.
    target = pf.GaussianMixture([1.0], [0.5], stds=[2.0])
    std = math.hypot(0.1 * 2.0, 0.995)
    x = torch.tensor([[0.1 * 0.5 + z * std]], dtype=torch.float64)
    moved = target.flow(x, (0.1, 0.995), (1.0, 0.01))
    assert moved.item() == pytest.approx(0.5 + z * math.hypot(2.0, 0.01), rel=1e-11)


def test_flow_of_a_mixture_at_8_sigma_is_the_ode() -> None:
    target, process = MIXTURES["line"], pf.VP.linear()
    x = torch.tensor([[-8.0], [8.0], [7.5]], dtype=torch.float64)
    exact = target.flow(x, levels(process, 1.0), levels(process, 0.1))
    fine = fine_flow(target, process, x, 1.0, 0.1)
    torch.testing.assert_close(fine, exact, rtol=1e-9, atol=1e-9)


def test_flow_keeps_dtype_and_shape() -> None:
    target = MIXTURES["line"]
    assert target.flow(torch.zeros(4), (0.1, 0.995), (1.0, 0.1)).shape == (4,)
    assert target.flow(torch.zeros(4, 1), (0.1, 0.995), (1.0, 0.1)).dtype == torch.float32


# Models and messages -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_model_of_a_target_is_minus_sigma_score(name: str) -> None:
    target, process = TARGETS[name], pf.FlowMatching()
    x, t = points(target, 0.7, 0.3), 0.3
    eps = target.model(process)(x, t)
    torch.testing.assert_close(eps, -0.3 * target.score(x, 0.7, 0.3), rtol=1e-12, atol=1e-12)
    score = target.model(process, "score")(x, t)
    torch.testing.assert_close(score, target.score(x, 0.7, 0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pf.GaussianMixture([1, -1], [0, 1], [1, 1]), "weights: need positive"),
        (lambda: pf.GaussianMixture([1, math.nan], [0, 1], [1, 1]), "weights: need positive"),
        (lambda: pf.GaussianMixture([[1], [1]], [0, 1], [1, 1]), "weights: need positive"),
        (lambda: pf.GaussianMixture([1, 1], [0, 1, 2], [1, 1]), "means: need shape"),
        (lambda: pf.GaussianMixture([1, 1], [0, math.nan], [1, 1]), "means: must be finite"),
        (lambda: pf.GaussianMixture([1, 1], [0, 1]), "covariances, stds: give exactly one"),
        (lambda: pf.GaussianMixture([1], [0], [1], stds=[1]), "covariances, stds: give exactly"),
        (lambda: pf.GaussianMixture([1, 1], [0, 1], [1, 1, 1]), "covariances: need shape"),
        (lambda: pf.GaussianMixture([1, 1], [0, 1], [1, -1]), "positive semi-definite"),
        (lambda: pf.GaussianMixture([1, 1], [0, 1], [1, math.nan]), "positive semi-definite"),
        (lambda: pf.Gaussian([0, 0], [[1, 0.5], [0, 1]]), "full matrices must be symmetric"),
        (lambda: pf.Gaussian([0, 0], [[1, 2], [2, 1]]), "positive semi-definite"),
        (lambda: pf.GaussianMixture([1, 1], [0, 1], stds=[-0.3, 1]), "stds: need numbers >= 0"),
        (lambda: pf.GaussianMixture([1], [0], stds=[math.nan]), "stds: need numbers >= 0"),
        (
            lambda: pf.Empirical(np.array([1.0 + 2.0j])),
            "data: need real numbers, got torch.complex",
        ),
        (lambda: pf.Empirical(np.zeros((0, 3))), "data: need at least one sample"),
        (lambda: pf.Empirical(np.float64(3.0)), "data: need at least one sample"),
        (lambda: pf.Empirical(np.array([1.0, math.inf])), "data: must be finite"),
        (
            lambda: MIXTURES["full"].score(torch.zeros(2, 4), 1.0, 1.0),
            r"x: gaussian-mixture-3d has 3 coordinates a sample, got shape \(2, 4\)",
        ),
        (
            lambda: MIXTURES["full"].flow(torch.zeros(2, 3), (1.0, 1.0), (1.0, 0.5)),
            "flow: gaussian-mixture-3d has 3 dimensions",
        ),
    ],
)
def test_messages(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
