"""Processes against 50-digit arithmetic, literal recursions and identities."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import probflow as pf
from probflow.processes import Process
from probflow.schedules import softplus

mp.mp.dps = 50

NEAR_0 = [1e-12, 1e-9, 1e-6, 1e-3, 0.02]
MIDDLE = [0.1, 0.3, 0.499, 0.5, 0.501, 0.73, 0.9]
NEAR_1 = [0.99, 0.9946, 1 - 1e-6, 1 - 1e-9]
UNIT = NEAR_0 + MIDDLE + NEAR_1


def vp_linear(t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    B = mp.mpf(0.1) * t + (mp.mpf(20.0) - mp.mpf(0.1)) * t**2 / 2
    return mp.exp(-B / 2), mp.sqrt(1 - mp.exp(-B))


def vp_cosine(t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    s = mp.mpf(0.008)
    alpha = mp.cos(mp.pi / 2 * (t + s) / (1 + s)) / mp.cos(mp.pi / 2 * s / (1 + s))
    return alpha, mp.sqrt(1 - alpha**2)


def ve(t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    return mp.mpf(1), mp.mpf(0.01) * (mp.mpf(50.0) / mp.mpf(0.01)) ** t


def edm(t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    return mp.mpf(1), t


def flow_matching(t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    return 1 - t, t


Exact = Callable[[mp.mpf], tuple[mp.mpf, mp.mpf]]
CASES: dict[str, tuple[Process, Exact, list[float]]] = {
    "vp-linear": (pf.VP.linear(), vp_linear, [*UNIT, 1.0]),
    "vp-cosine": (pf.VP.cosine(), vp_cosine, UNIT),
    "ve": (pf.VE(), ve, [0.0, *UNIT, 1.0]),
    "edm": (pf.EDM(), edm, [*UNIT, 1.0, 80.0, 1e4]),
    "flow-matching": (pf.FlowMatching(), flow_matching, UNIT),
}
BETAS = {
    "ddpm": np.linspace(1e-4, 0.02, 1000),
    "stable-diffusion": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
}


def cosine_alphas_cumprod(n: int = 1000) -> np.ndarray:
    """The discrete cosine schedule of Nichol and Dhariwal, with their clipping of beta."""
    level = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - level[1:] / level[:-1], 0.999))


def relative(value: object, exact: mp.mpf) -> float:
    if exact == 0:
        return abs(float(value))
    return float(abs((mp.mpf(float(value)) - exact) / exact))


@pytest.mark.parametrize("name", CASES)
def test_levels_against_50_digits(name: str) -> None:
    process, exact, times = CASES[name]
    for t in times:
        alpha, sigma = exact(mp.mpf(t))
        ratio = alpha**2 + sigma**2
        assert relative(process.alpha(t), alpha) < 1e-12, t
        assert relative(process.sigma(t), sigma) < 1e-12, t
        assert relative(process.neg_log_ab(t), mp.log(ratio / alpha**2)) < 1e-12, t
        assert relative(process.ab(t), alpha**2 / ratio) < 1e-12, t
        # Where the log-SNR crosses 0 only its absolute error can be small.
        lambda_ = mp.log(alpha / sigma)
        assert abs(float(mp.mpf(float(process.lambda_(t))) - lambda_)) < 1e-12 * max(
            1e-3, abs(lambda_)
        ), t


@pytest.mark.parametrize("name", CASES)
def test_slopes_against_50_digits(name: str) -> None:
    process, exact, times = CASES[name]
    for t in times:
        if not process.t_min < t < process.t_max:
            continue
        at = mp.mpf(t)
        h = mp.mpf(10) ** -30
        (a_up, s_up), (a_down, s_down) = exact(at + h), exact(at - h)
        (alpha, sigma), dalpha = exact(at), (a_up - a_down) / (2 * h)
        dsigma = (s_up - s_down) / (2 * h)
        drift = dalpha / alpha
        assert relative(process.dalpha(t), dalpha) < 1e-12, t
        assert relative(process.dsigma(t), dsigma) < 1e-12, t
        assert relative(process.drift(t), drift) < 1e-12, t
        g = mp.sqrt(2 * sigma * (dsigma - drift * sigma))
        assert relative(process.diffusion(t), g) < 1e-12, t


@pytest.mark.parametrize("name", CASES)
def test_inverses_as_well_as_their_condition_allows(name: str) -> None:
    process, _, times = CASES[name]
    for t in times:
        lambda_ = float(process.lambda_(t))
        slope = -(float(process.diffusion(t)) ** 2) / (2 * float(process.sigma(t)) ** 2)
        # t(lambda) has slope 1/lambda'; one rounding of lambda moves t by eps |lambda/lambda'|.
        allowed = 1e-14 * (t + abs(lambda_ / slope)) + 1e-16 * abs(1 / slope)
        assert abs(float(process.t(lambda_)) - t) <= allowed, t
        B = float(process.neg_log_ab(t))
        slope_B = 2 * slope * -1 / (1 + math.exp(2 * lambda_)) if lambda_ < 300 else 0.0
        if B > 0 and slope_B > 0:
            allowed = 1e-13 * (t + B / slope_B)
            assert abs(float(process.t_of_neg_log_ab(B)) - t) <= allowed, t


@pytest.mark.parametrize(("name", "t"), [("vp-linear", 0.0), ("edm", 0.0), ("flow-matching", 0.0)])
def test_levels_at_no_noise(name: str, t: float) -> None:
    process = CASES[name][0]
    with np.errstate(all="raise"):
        assert process.alpha(t) == 1.0
        assert process.sigma(t) == 0.0
        assert process.lambda_(t) == math.inf
        assert process.neg_log_ab(t) == 0.0
        assert process.ab(t) == 1.0
        assert process.t(math.inf) == 0.0
        assert process.t_of_neg_log_ab(0.0) == 0.0


def test_levels_at_no_signal() -> None:
    flow = pf.FlowMatching()
    assert flow.lambda_(1.0) == -math.inf
    assert flow.neg_log_ab(1.0) == math.inf
    assert flow.ab(1.0) == 0.0
    assert flow.drift(1.0) == -math.inf
    assert flow.diffusion(1.0) == math.inf
    assert flow.t(-math.inf) == 1.0
    cosine = pf.VP.cosine()
    assert cosine.alpha(1.0) == 0.0
    assert cosine.t(-math.inf) == pytest.approx(1.0, abs=1e-15)


def test_cosine_with_a_tiny_offset_keeps_its_rate() -> None:
    s = mp.mpf(1e-9)
    rate = mp.pi / 2 / (1 + s)
    for t in [0.0, 1e-9, 1e-4, 0.4, 0.6, 1 - 1e-7]:
        exact = 2 * rate * mp.tan(rate * (mp.mpf(t) + s))
        assert relative(pf.VP.cosine(1e-9).beta(t), exact) < 1e-12, t


# Discrete schedules ------------------------------------------------------------------------


@pytest.mark.parametrize("name", BETAS)
def test_from_betas_is_exact_at_training_times(name: str) -> None:
    process = pf.VP.from_betas(BETAS[name])
    assert (process.t_min, process.t_max, process.start, process.end) == (0, 999, 999, 0)
    ab = mp.mpf(1)
    for t, beta in enumerate(BETAS[name]):
        ab *= 1 - mp.mpf(float(beta))
        if t % 37 == 0 or t in (1, 2, 998, 999):
            assert relative(process.alpha(t), mp.sqrt(ab)) < 1e-13
            assert relative(process.sigma(t), mp.sqrt(1 - ab)) < 1e-13
            assert relative(process.neg_log_ab(float(t)), -mp.log(ab)) < 1e-13


@pytest.mark.parametrize("name", [*BETAS, "cosine"])
def test_from_alphas_cumprod_is_exact_at_training_times(name: str) -> None:
    values = cosine_alphas_cumprod() if name == "cosine" else np.cumprod(1 - BETAS[name])
    process = pf.VP.from_alphas_cumprod(values)
    assert np.abs(process.ab(np.arange(1000)) / values - 1).max() < 1e-13
    assert np.abs(process.alpha(np.arange(1000)) / np.sqrt(values) - 1).max() < 1e-13
    noise = np.array([float(mp.sqrt(1 - mp.mpf(float(v)))) for v in values])
    assert np.abs(process.sigma(np.arange(1000)) / noise - 1).max() < 1e-12
    # A float32 table, as checkpoints hold it, and a tensor of it.
    table = torch.tensor(values, dtype=torch.float32)
    assert np.abs(pf.VP.from_alphas_cumprod(table).ab(999) / table[999].item() - 1) < 1e-13


DISCRETE = {
    **{name: pf.VP.from_betas(betas) for name, betas in BETAS.items()},
    "cosine": pf.VP.from_alphas_cumprod(cosine_alphas_cumprod()),
    "paper": pf.VP.paper(100),
    "two": pf.VP.from_betas([0.1, 0.5]),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_is_monotone_and_invertible_between(name: str) -> None:
    process = DISCRETE[name]
    times = np.linspace(process.t_min, process.t_max, 20011)
    lambda_ = process.lambda_(times)
    assert (np.diff(lambda_) < 0).all()
    assert (process.beta(times) >= 0).all()
    assert np.abs(process.t(lambda_) - times).max() < 1e-9 * process.t_max
    # Where the inverse is well conditioned it is good to rounding.
    slope = process.diffusion(times) ** 2 / (2 * process.sigma(times) ** 2)
    allowed = 1e-13 * process.t_max + 1e-14 * (1 + abs(lambda_)) / np.maximum(slope, 1e-300)
    assert (np.abs(process.t(lambda_) - times) <= allowed).all()


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_inverse_is_exact_at_training_times(name: str) -> None:
    process = DISCRETE[name]
    knots = np.arange(process.t_min, process.t_max + 1)
    assert (process.t(process.lambda_(knots)) == knots).all()


def test_discrete_names_no_time_outside_its_range() -> None:
    process = DISCRETE["ddpm"]
    assert math.isnan(process.t(process.lambda_(999) - 1e-3))
    assert math.isnan(process.t(process.lambda_(0) + 1e-3))
    assert math.isnan(process.t(math.inf))
    assert math.isnan(process.t_of_neg_log_ab(0.0))


def test_paper_schedule_is_its_recursion() -> None:
    T, c0, c1 = 200, mp.mpf(2), mp.mpf(4)
    h = c1 * mp.log(T) / T
    first = mp.mpf(T) ** -c0
    betas = [first] + [h * min(first * (1 + h) ** t, mp.mpf(1)) for t in range(1, T)]
    process = pf.VP.paper(T, 2.0, 4.0)
    assert (process.t_min, process.t_max) == (1, T)
    ab = mp.mpf(1)
    for t, beta in enumerate(betas, start=1):
        ab *= 1 - beta
        assert relative(process.neg_log_ab(t), -mp.log(ab)) < 1e-12
        assert relative(process.sigma(t), mp.sqrt(1 - ab)) < 1e-12
    assert max(betas) == h  # the cap is reached


# Kinds of argument -------------------------------------------------------------------------

METHODS = ["alpha", "sigma", "dalpha", "dsigma", "lambda_", "drift", "diffusion", "neg_log_ab"]


@pytest.mark.parametrize("process", [*(c[0] for c in CASES.values()), DISCRETE["ddpm"]], ids=repr)
def test_floats_arrays_and_tensors_agree(process: Process) -> None:
    end = min(process.t_max, 5.0)
    times = np.linspace(process.t_min, end, 9)[1:-1]
    for method in METHODS:
        function = getattr(process, method)
        array, tensor = function(times), function(torch.tensor(times))
        assert isinstance(array, np.ndarray)
        assert tensor.dtype == torch.float64
        np.testing.assert_allclose(array, tensor.numpy(), rtol=3e-15)
        scalar = function(float(times[3]))
        assert isinstance(scalar, float)
        assert scalar == pytest.approx(array[3], rel=3e-15)
        half = function(torch.tensor(times, dtype=torch.float32))
        np.testing.assert_allclose(half.numpy(), function(times.astype(np.float32)), rtol=3e-15)
    lambda_ = process.lambda_(times)
    np.testing.assert_allclose(process.t(torch.tensor(lambda_)).numpy(), process.t(lambda_), 3e-15)
    B = process.neg_log_ab(times)
    inverse = process.t_of_neg_log_ab(torch.tensor(B, requires_grad=True)).detach()
    np.testing.assert_allclose(inverse.numpy(), process.t_of_neg_log_ab(B), rtol=3e-15)


@pytest.mark.parametrize("process", [c[0] for c in CASES.values()], ids=repr)
def test_tensor_slopes_are_autodiff_slopes(process: Process) -> None:
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    for level, slope in [(process.alpha, process.dalpha), (process.sigma, process.dsigma)]:
        (gradient,) = torch.autograd.grad(level(t).sum(), t, allow_unused=True)
        gradient = torch.zeros_like(t) if gradient is None else gradient
        torch.testing.assert_close(gradient, slope(t).detach(), rtol=1e-11, atol=1e-12)


# Identities --------------------------------------------------------------------------------

PROCESSES = st.one_of(
    st.builds(
        lambda first, more: pf.VP.linear(first, first + more),
        st.floats(1e-3, 5.0),
        st.floats(0.0, 30.0),
    ),
    st.builds(pf.VP.cosine, st.floats(1e-4, 0.5)),
    st.builds(lambda low, up: pf.VE(low, low * up), st.floats(1e-4, 1.0), st.floats(1.5, 1e4)),
    st.just(pf.EDM()),
    st.just(pf.FlowMatching()),
    st.sampled_from(list(DISCRETE.values())),
)


def inner_time(process: Process, fraction: float) -> float:
    end = min(process.t_max, 50.0)
    return process.t_min + fraction * (end - process.t_min)


@given(PROCESSES, st.floats(0.02, 0.98))
def test_g2_is_minus_twice_sigma2_times_the_slope_of_log_snr(
    process: Process, fraction: float
) -> None:
    t = inner_time(process, fraction)
    if process in DISCRETE.values():
        t = math.floor(t) + 0.5  # a piecewise cubic: keep the difference inside a piece
    h = 1e-5 * max(1e-2, min(t - process.t_min, process.t_max - t))
    slope = (process.lambda_(t + h) - process.lambda_(t - h)) / (2 * h)
    noise = 3e-15 * (1 + abs(process.lambda_(t))) / h * 2 * process.sigma(t) ** 2
    g2 = process.diffusion(t) ** 2
    assert abs(g2 + 2 * process.sigma(t) ** 2 * slope) <= 1e-6 * g2 + noise


@given(PROCESSES, st.floats(0.02, 0.98))
def test_slopes_satisfy_the_definitions(process: Process, fraction: float) -> None:
    t = inner_time(process, fraction)
    alpha, sigma = process.alpha(t), process.sigma(t)
    dalpha, dsigma = process.dalpha(t), process.dsigma(t)
    assert process.drift(t) * alpha == pytest.approx(dalpha, rel=1e-13, abs=1e-300)
    # d lambda = dalpha/alpha - dsigma/sigma.
    slope = dalpha / alpha - dsigma / sigma
    assert -2 * sigma**2 * slope == pytest.approx(process.diffusion(t) ** 2, rel=1e-11)
    assert process.lambda_(t) == pytest.approx(math.log(alpha / sigma), abs=1e-12)
    if isinstance(process, pf.VP):
        assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-14)
        assert alpha * dalpha + sigma * dsigma == pytest.approx(0, abs=1e-13 * process.beta(t))


@given(st.floats(-700, 1e3))
def test_softplus(x: float) -> None:
    assert relative(softplus(x), mp.log1p(mp.exp(mp.mpf(x)))) < 1e-14
    assert softplus(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(
        softplus(x), rel=1e-15
    )


def test_softplus_at_infinity_and_its_slope() -> None:
    assert softplus(math.inf) == math.inf
    assert softplus(-math.inf) == 0.0
    x = torch.tensor([-800.0, -1.0, 0.0, 1.0, 800.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(softplus(x).sum(), x)
    torch.testing.assert_close(slope, torch.sigmoid(x).detach(), rtol=1e-14, atol=0)


def test_prior_std() -> None:
    assert pf.VP.linear().prior_std() == pf.VP.cosine().prior_std(0.5) == 1.0
    assert pf.VE(0.01, 50.0).prior_std() == pytest.approx(50.0, rel=1e-14)
    assert pf.EDM().prior_std() == 80.0
    assert pf.EDM().prior_std(3.0) == 3.0
    assert pf.FlowMatching().prior_std(1.0) == 1.0


# Messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pf.VP.linear(0.0, 1.0), "beta_min: need a finite number > 0, got 0.0"),
        (lambda: pf.VP.linear(2.0, 1.0), "beta_min, beta_max"),
        (lambda: pf.VP.linear(1.0, math.inf), "beta_max: need a finite number, got inf"),
        (lambda: pf.VP.linear(1.0, math.nan), "beta_max: need a finite number, got nan"),
        (lambda: pf.VP.cosine(0.0), "s: need a finite number > 0, got 0.0"),
        (lambda: pf.VP.cosine(math.inf), "s: need a finite number > 0, got inf"),
        (lambda: pf.VP.from_betas([0.1]), "betas: need a sequence of at least 2"),
        (lambda: pf.VP.from_betas(0.1), "betas: need a sequence"),
        (lambda: pf.VP.from_betas([[0.1, 0.2]]), "betas: need a sequence"),
        (lambda: pf.VP.from_betas([0.1, 1.0]), r"betas: every value must lie in \(0, 1\)"),
        (lambda: pf.VP.from_betas([0.1, math.nan]), "betas: every value"),
        (lambda: pf.VP.from_alphas_cumprod([0.5, 0.9]), "alphas_cumprod: values must"),
        (lambda: pf.VP.from_alphas_cumprod([0.5, 0.5]), "alphas_cumprod: values must"),
        (lambda: pf.VP.from_alphas_cumprod([1.0, 0.5]), "alphas_cumprod: values must"),
        (lambda: pf.VP.from_alphas_cumprod([0.5, 0.0]), "alphas_cumprod: values must"),
        (lambda: pf.VP.paper(1), "T: need a whole number >= 2"),
        (lambda: pf.VP.paper(10.0), "T: need a whole number >= 2"),
        (lambda: pf.VP.paper(True), "T: need a whole number >= 2"),
        (lambda: pf.VP.paper(100, 4.0, 2.0), "c0, c1: need c1 > c0 > 0"),
        (lambda: pf.VP.paper(100, 0.0, 2.0), "c0: need a finite number > 0, got 0.0"),
        (lambda: pf.VP.paper(4), r"need h = c1 ln\(T\)/T < 1.*larger T or a smaller c1"),
        (lambda: pf.VE(1.0, 1.0), "sigma_min, sigma_max"),
        (lambda: pf.VE(0.01, math.inf), "sigma_max: need a finite number, got inf"),
        (lambda: pf.EDM(0.0, 1.0), "sigma_min: need a finite number > 0, got 0.0"),
        (lambda: pf.VP.linear().check_times(1.1), "times: 1.1 lies outside the process"),
        (lambda: pf.VP.linear().check_times([0.5, -0.1], "grid"), "grid: -0.1 lies outside"),
        (lambda: pf.VP.linear().check_times(math.nan), "nan lies outside"),
        (lambda: pf.EDM().check_times(-1.0), "-1 lies outside"),
        (lambda: pf.EDM().check_times(math.inf), "inf lies outside"),
    ],
)
def test_messages(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_check_times_allows_rounding_at_the_ends() -> None:
    pf.VP.linear().check_times(np.nextafter(1.0, 2.0))
    pf.EDM().check_times([0.0, 1e9])


def test_names() -> None:
    assert repr(pf.VP.linear()) == "VP[vp-linear](t in [0, 1])"
    assert repr(pf.VP.linear(0.2, 3.0)) == "VP[vp-linear(0.2, 3)](t in [0, 1])"
    assert repr(pf.EDM()) == "EDM(t in [0, inf])"
