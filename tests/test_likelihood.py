"""Log-densities and encodings, against laws whose density and flow are known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from thinned import thinned

import probflow as pf

PROCESSES = {
    "vp": pf.VP.linear(),
    "ve": pf.VE(),
    "edm": pf.EDM(),
    "flow-matching": pf.FlowMatching(),
}
VP = PROCESSES["vp"]


def mixture(dim: int) -> pf.GaussianMixture:
    """Three components; full covariances from two dimensions on."""
    rng = np.random.default_rng(dim)
    roots = rng.normal(size=(3, dim, dim))
    covariances = 0.1 * np.eye(dim) + 0.15 * roots @ roots.transpose(0, 2, 1) / dim
    return pf.GaussianMixture([0.3, 0.3, 0.4], rng.normal(size=(3, dim)), covariances)


def level(process, t: float) -> tuple[float, float]:
    return float(process.alpha(t)), float(process.sigma(t))


def data(target, process, n: int, t: float | None = None, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return target.sample(n, *level(process, process.end if t is None else t), generator=generator)


def largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


# Against exact densities ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("dim", [1, 2, 8])
def test_error_follows_the_tolerance(dim: int, name: str) -> None:
    target, process = mixture(dim), PROCESSES[name]
    x = data(target, process, 4)
    exact = target.log_prob(x, *level(process, process.end))
    errors = []
    for tol in (1e-4, 1e-6, 1e-8):
        found = pf.log_likelihood(target, x, process=process, rtol=tol, atol=tol, prior="exact")
        errors.append(largest(found.log_prob - exact))
        assert errors[-1] < 100 * tol
        assert torch.equal(found.standard_error, torch.zeros(4, dtype=torch.float64))
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


@pytest.mark.parametrize(
    ("method", "order"),
    thinned(
        [("rk4", 4), ("midpoint", 2), ("heun", 2), ("heun3", 3), ("euler", 1)],
        lambda case: case[0],
        every=2,
    ),
)
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_fixed_steps_show_their_order(method: str, order: int, name: str) -> None:
    target, process = mixture(2), PROCESSES[name]
    x = data(target, process, 4)
    exact = target.log_prob(x, *level(process, process.end))
    errors = [
        largest(
            pf.log_likelihood(target, x, method, n, process=process, prior="exact").log_prob - exact
        )
        for n in (128, 256)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_times_and_grids_of_ones_own() -> None:
    target = mixture(2)
    x = data(target, VP, 4, 0.05)
    exact = target.log_prob(x, *level(VP, 0.05))
    common = {"process": VP, "prior": target}
    times = pf.grids.log_snr().times(VP, 64)
    own = pf.grids.log_snr(0.9, 0.05)
    for found in (
        pf.log_likelihood(target, x, t0=0.05, t1=0.9, rtol=1e-8, atol=1e-8, **common),
        pf.log_likelihood(target, x, "rk4", 128, t0=0.05, t1=0.9, **common),
        pf.log_likelihood(target, x, "rk4", 128, grid=own, **common),
    ):
        assert (found.t0, found.t1) == (0.05, 0.9)
        assert largest(found.log_prob - exact) < 1e-6
    listed = pf.log_likelihood(target, x, "rk4", grid=times, **common)
    assert (listed.t0, listed.t1) == (times[-1], times[0])


def test_states_of_any_shape() -> None:
    points = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    target = pf.Empirical(points)
    x = data(target, VP, 3, 0.3).reshape(3, 3, 4, 4)
    exact = target.log_prob(x, *level(VP, 0.3))
    found = pf.log_likelihood(target, x, process=VP, t0=0.3, prior="exact")
    assert found.z.shape == x.shape
    assert largest(found.log_prob - exact) < 5e-3
    line = mixture(1)
    x = data(line, VP, 3)
    flat, column = (pf.log_likelihood(line, y, process=VP).log_prob for y in (x[:, 0], x))
    assert torch.allclose(flat, column, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 0.1)]
)
def test_lower_precision(dtype: torch.dtype, bound: float) -> None:
    target = mixture(2)
    x = data(target, VP, 4).to(dtype)
    found = pf.log_likelihood(target, x, "rk4", 64, process=VP, prior="exact")
    assert found.z.dtype is dtype
    assert found.log_prob.dtype is torch.float64
    assert largest(found.log_prob - target.log_prob(x.double(), *level(VP, VP.end))) < bound
    assert pf.encode(target, x, "rk4", 64, process=VP).dtype is dtype


@pytest.mark.parametrize("options", [{}, {"per_sample": False}, None])
def test_gradient_is_the_score(options) -> None:
    target = mixture(2)
    x = data(target, VP, 3).requires_grad_()
    how = {"method": "rk4", "steps": 64} if options is None else {"options": options}
    found = pf.log_likelihood(target, x, process=VP, prior="exact", gradients=True, **how)
    (slope,) = torch.autograd.grad(found.log_prob.sum(), x)
    score = target.score(x.detach(), *level(VP, VP.end))
    assert largest(slope - score) < 1e-3 * largest(score)
    assert not pf.log_likelihood(target, x, process=VP).log_prob.requires_grad


def test_gradient_of_parameters() -> None:
    # x0 prediction c: the flow ends at c, so its data have the mean alpha c at t0.
    centre = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    law = pf.Gaussian([0.0, 0.0], 0.25)
    exact = law.model(VP, "x0")

    def moved(x, time):
        alpha = VP.alpha(time)[:, None]
        return exact(x - alpha * centre, time) + centre

    x = data(law, VP, 3)
    model = pf.Model(moved, VP, "x0")
    found = pf.log_likelihood(model, x, "rk4", 64, prior=law, gradients=True)
    (slope,) = torch.autograd.grad(found.log_prob.sum(), centre)
    alpha, sigma = level(VP, VP.end)
    # The prior does not move along, which costs O(alpha(t1)).
    expected = alpha * x.sum(0) / (alpha**2 * 0.25 + sigma**2)
    assert torch.allclose(slope, expected, rtol=0.02, atol=0.05)


# Priors, result ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_priors(name: str) -> None:
    target, process = mixture(2), PROCESSES[name]
    x = data(target, process, 4)
    usual = pf.log_likelihood(target, x, process=process)
    std = torch.tensor(process.prior_std(process.start), dtype=torch.float64)
    normal = torch.distributions.Normal(torch.zeros_like(std), std)
    assert torch.allclose(usual.prior_log_prob, normal.log_prob(usual.z).sum(1), rtol=1e-12)
    assert torch.equal(usual.log_prob, usual.prior_log_prob + usual.delta_log_prob)
    by_function = pf.log_likelihood(
        target, x, process=process, prior=lambda z: normal.log_prob(z).sum(1)
    )
    assert torch.allclose(by_function.log_prob, usual.log_prob, rtol=1e-12)
    exact = pf.log_likelihood(target, x, process=process, prior="exact")
    other = pf.log_likelihood(target.model(process), x, prior=target)
    assert torch.equal(exact.log_prob, other.log_prob)
    assert torch.equal(exact.delta_log_prob, usual.delta_log_prob)
    end = level(process, process.start)
    assert torch.equal(exact.prior_log_prob, target.log_prob(exact.z, *end))


def test_bits_per_dim_are_those_of_the_levels() -> None:
    # Levels of a normal law: the density at the middle of a level, times its width, is its
    # probability up to the curvature.
    law = pf.Gaussian([0.1], 0.09)
    alpha, sigma = level(VP, VP.end)
    levels = torch.tensor([40.0, 100.0, 128.0, 200.0], dtype=torch.float64)
    x = ((levels + 0.5) / 128 - 1)[:, None]
    found = pf.log_likelihood(law, x, process=VP, prior="exact", rtol=1e-8, atol=1e-8)
    noised = torch.distributions.Normal(alpha * 0.1, math.sqrt(alpha**2 * 0.09 + sigma**2))
    low, high = (noised.cdf((levels + shift) / 128 - 1) for shift in (0.0, 1.0))
    assert torch.allclose(found.bits_per_dim(), -torch.log2(high - low), rtol=0, atol=1e-3)


def test_bits_per_dim_formula() -> None:
    target = mixture(8)
    found = pf.log_likelihood(target, data(target, VP, 2), "rk4", 16, process=VP)
    nats = -found.log_prob / 8
    for scale in (1.0, 127.5, 256.0):
        expected = nats / math.log(2) + math.log2(scale)
        assert torch.allclose(found.bits_per_dim(scale), expected, rtol=1e-14)
    for scale in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale: need a finite number > 0"):
            found.bits_per_dim(scale)


def test_velocity_and_divergence_share_a_forward_pass() -> None:
    calls = []
    exact = mixture(8).model(VP)

    def counted(x, time):
        calls.append(len(x))
        return exact(x, time)

    x = data(mixture(8), VP, 3)
    found = pf.log_likelihood(pf.Model(counted, VP), x, "rk4", 10)
    assert calls == [3] * 40
    assert found.nfe == found.ode.nfe == 40


def test_inference_mode() -> None:
    target = mixture(2)
    with torch.inference_mode():
        x = data(target, VP, 2)
        inside = pf.log_likelihood(target, x, process=VP).log_prob
        assert pf.encode(target, x, process=VP).shape == x.shape
    assert torch.equal(inside, pf.log_likelihood(target, x.clone(), process=VP).log_prob)


# Batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_sample_does_not_depend_on_its_batch(divergence: str) -> None:
    target = mixture(2)
    x = data(target, VP, 5)
    x[0] *= 20.0  # needs other steps than the rest
    settings = {"process": VP, "divergence": divergence}
    settings |= {} if divergence == "exact" else {"seed": 7}
    whole = pf.log_likelihood(target, x, **settings)
    assert len(set(whole.ode.accepted.tolist())) > 1
    for i in range(5):
        alone = pf.log_likelihood(target, x[i : i + 1], first_sample=i, **settings)
        assert largest(alone.log_prob - whole.log_prob[i]) < 1e-10
        assert int(alone.ode.accepted[0]) == int(whole.ode.accepted[i])
    if divergence == "hutchinson":
        other = pf.log_likelihood(target, x, **{**settings, "seed": 8})
        assert not torch.equal(other.log_prob, whole.log_prob)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_chunks_of_vectors(divergence: str) -> None:
    target = mixture(8)
    settings = {"process": VP, "divergence": divergence}
    settings |= {} if divergence == "exact" else {"probes": 5, "seed": 0}
    x = data(target, VP, 3)
    whole, *others = (
        pf.log_likelihood(target, x, "rk4", 10, chunk=chunk, **settings) for chunk in (None, 1, 3)
    )
    for other in others:
        assert torch.allclose(other.log_prob, whole.log_prob, rtol=0, atol=1e-10)


# Hutchinson's estimate -----------------------------------------------------------------------


def test_the_default_is_exact_up_to_64_coordinates() -> None:
    for dim in (64, 65):
        law = pf.Gaussian(np.zeros(dim), 0.5)
        x = data(law, VP, 2)
        found = pf.log_likelihood(law, x, "rk4", 4, process=VP, seed=0)
        assert found.ode.y[1].shape[-1] == (1 if dim == 64 else 4)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_its_error_honest(probe: str) -> None:
    # 3000 copies of one point: steps are fixed, so each value is an independent estimate whose
    # mean is the exact trace of the same steps.
    target, n = mixture(3), 3000
    point = data(target, VP, 1)
    steps = {"method": "rk4", "steps": 12, "process": VP}
    exact = pf.log_likelihood(target, point, divergence="exact", **steps).log_prob
    found = pf.log_likelihood(
        target, point.expand(n, -1), divergence="hutchinson", probe=probe, probes=4, seed=5, **steps
    )
    z = float((found.log_prob.mean() - exact) / (found.log_prob.std() / math.sqrt(n)))
    assert abs(z) < 3.29  # two-sided, level 0.001
    # Both variances have relative standard deviations of 3% or so: five of their difference.
    ratio = float(found.standard_error.square().mean() / found.log_prob.var())
    assert 0.8 < ratio < 1.25


def share_of_intervals(dim: int, probe: str, probes: int, n: int) -> float:
    """How often 95 % intervals by Student's t hold the exact value of the same steps."""
    target = mixture(dim)
    point = data(target, VP, 1)
    how = {"method": "midpoint", "steps": 6, "process": VP}
    exact = pf.log_likelihood(target, point, divergence="exact", **how).log_prob
    how |= {"divergence": "hutchinson", "probe": probe, "probes": probes, "seed": 5}
    found = pf.log_likelihood(target, point.expand(n, -1), **how)
    bound = stats.t.ppf(0.975, probes - 1) * found.standard_error
    # Where all probes agree with the exact value, both sides are rounding.
    return float(((found.log_prob - exact).abs() <= bound + 1e-9).double().mean())


@pytest.mark.parametrize(("probes", "share"), [(2, 1 / 2), (4, 7 / 8), (8, 119 / 128)])
def test_intervals_from_two_values_of_an_estimate(probes: int, share: float) -> None:
    """Signs in two dimensions: the interval misses if all probes agree, of 8 also if 7 do."""
    n = 2000
    found = share_of_intervals(2, "rademacher", probes, n)
    assert abs(found - share) < 3.29 * math.sqrt(share * (1.0 - share) / n)  # level 0.001


@pytest.mark.slow
@pytest.mark.parametrize("probes", [2, 4, 8, 32])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_intervals_in_32_dimensions(probe: str, probes: int) -> None:
    """The estimates are skewed, so the share is not 0.95, but 0.92 at the least.

    At level 0.001 for each of eight cases, against a share of 0.92 below and of 0.96 above.
    """
    n = 3000
    found = share_of_intervals(32, probe, probes, n)
    low, high = (3.29 * math.sqrt(p * (1.0 - p) / n) for p in (0.92, 0.96))
    assert 0.92 - low < found < 0.96 + high


@pytest.mark.parametrize("probes", [1, 2])
def test_signs_are_exact_for_diagonal_jacobians(probes: int) -> None:
    law = pf.Gaussian([0.3, -0.2, 1.0], [0.2, 0.5, 1.5])
    x = data(law, VP, 4)
    exact, found = (
        pf.log_likelihood(law, x, "rk4", 16, process=VP, **how)
        for how in (
            {"divergence": "exact"},
            {"divergence": "hutchinson", "probes": probes, "seed": 0},
        )
    )
    assert largest(found.log_prob - exact.log_prob) < 1e-12
    if probes == 1:
        assert torch.isnan(found.standard_error).all()
    else:
        assert largest(found.standard_error) < 1e-12


def test_probes_are_not_the_noises_of_the_same_seed() -> None:
    from probflow.likelihood import _probes

    like = torch.zeros(64, 50)
    probes = _probes(like, 3, 0, 2, "gaussian")
    noise = pf.integrate.noise.SeededNoise(3, like.shape)()
    for one, other in ((probes[0], noise), (probes[1], noise), (probes[0], probes[1])):
        assert abs(float((one * other).mean())) < 4 / math.sqrt(like.numel())
    assert torch.equal(_probes(like, 3, 0, 2, "rademacher").abs(), torch.ones(2, 64, 50))
    assert torch.equal(_probes(like[:4], 3, 8, 1, "gaussian")[0], probes[0, 8:12])


# Encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_encodings_of_a_normal_law(name: str) -> None:
    process = PROCESSES[name]
    law = pf.Gaussian([1.0, -1.0], [[0.5, 0.2], [0.2, 0.3]])
    x = data(law, process, 5)
    data_end, noise_end = level(process, process.end), level(process, process.start)
    z = law.flow(x, data_end, noise_end)
    for tol in (1e-5, 1e-8):
        tight = {"process": process, "rtol": tol, "atol": tol}
        assert largest(pf.encode(law, x, **tight) - z) < 100 * tol * largest(z)
        assert largest(pf.decode(law, z, **tight) - x) < 100 * tol * largest(x)
    coded = pf.encode(law, x, "dpm-solver-2", 200, process=process)
    assert largest(coded - z) < 2e-3 * largest(z)
    found = pf.log_likelihood(law, x, process=process, rtol=1e-8, atol=1e-8)
    assert largest(found.z - z) < 1e-6 * largest(z)


@pytest.mark.parametrize(
    ("solver", "order"), [("ddim", 1), ("dpm-solver-2", 3), ("dpm-solver++-2m", 3)]
)
def test_round_trips_fall_with_the_steps(solver: str, order: int) -> None:
    # A step of even order p errs by c h^(p+1), and by -c h^(p+1) on the way back.
    target = mixture(2)
    x = data(target, VP, 4)
    errors = []
    for steps in (64, 128, 256):
        z = pf.encode(target, x, solver, steps, process=VP)
        errors.append(largest(pf.decode(target, z, solver, steps, process=VP) - x))
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 0.8 * 2**order


def test_round_trips_fall_with_the_tolerance() -> None:
    target = mixture(2)
    x = data(target, VP, 4)
    for tol in (1e-4, 1e-6, 1e-8):
        tight = {"process": VP, "rtol": tol, "atol": tol}
        assert largest(pf.decode(target, pf.encode(target, x, **tight), **tight) - x) < 50 * tol


def test_decoding_is_sampling() -> None:
    target = mixture(2)
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = pf.sample(target, solver="heun", steps=10, process=VP, x=z)
    assert torch.equal(pf.decode(target, z, "heun", 10, process=VP), drawn)


def test_gradients_through_an_encoding() -> None:
    law = pf.Gaussian([0.0], 0.25)
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    for how in ({}, {"solver": "dpm-solver-2", "steps": 200}):
        (slope,) = torch.autograd.grad(pf.encode(law, x, process=VP, gradients=True, **how), x)
        ends = level(VP, VP.end), level(VP, VP.start)
        assert largest(slope - law.flow(torch.ones_like(x), *ends)) < 1e-3
    assert not pf.encode(law, x, process=VP).requires_grad


# Errors --------------------------------------------------------------------------------------


def never(x, time):
    raise AssertionError("the model was called")


SILENT = pf.Model(never, VP)
X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [0.0]}, TypeError, "x: need a tensor, got list"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x: need floating-point"),
        ({"x": torch.zeros(0, 3)}, ValueError, "x: need at least one sample"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: need at least one sample"),
        ({"x": torch.tensor([[0.0], [math.nan]])}, pf.NonFiniteError, "x: sample 1 holds NaN"),
        ({"model": never}, TypeError, "model: need a probflow.Model or a target"),
        ({"model": mixture(3)}, TypeError, "process: a target needs one"),
        ({"method": "ddim"}, ValueError, "method: got 'ddim'; .* general methods do: .*dopri5"),
        ({"method": None}, TypeError, "method: need a name, got None"),
        ({"steps": 5}, ValueError, "steps, grid: an adaptive method chooses its own steps"),
        ({"method": "rk4"}, TypeError, "steps: need a whole number >= 1, got None"),
        ({"t0": "0"}, TypeError, "t0: need a number, got '0'"),
        ({"t1": 2.0}, ValueError, "t1: 2 lies outside the process"),
        ({"t0": math.nan}, ValueError, "t0: nan lies outside the process"),
        ({"t0": 0.5, "t1": 0.4}, ValueError, r"t0, t1: need t0 \(data\) < t1 \(noise\), got 0.5"),
        (
            {"method": "rk4", "steps": 2, "t0": 0.1, "grid": pf.grids.uniform(end=0.2)},
            ValueError,
            "t0, t1: the grid has its own ends",
        ),
        ({"method": "rk4", "t1": 0.5, "grid": [1.0, 0.5]}, ValueError, "the grid has its own ends"),
        ({"options": 3}, TypeError, "options: need a dictionary, got 3"),
        ({"options": {"args": (1,)}}, ValueError, "options: 'args' is for a function of one's own"),
        ({"options": {"kwargs": {"k": 1}}}, ValueError, "options: 'kwargs' is for a function"),
        ({"options": {"stepsize": 1}}, ValueError, "dopri5 has no option 'stepsize'"),
        (
            {"method": "rk4", "steps": 2, "options": {"step_size": 0.1}},
            ValueError,
            "options: 'step_size' is not for here; give steps and grid",
        ),
        ({"rtol": -1.0}, ValueError, "rtol: need a finite number >= 0, got -1"),
        ({"divergence": "trace"}, ValueError, "divergence: got 'trace', allowed are exact, hutch"),
        ({"probe": "uniform"}, ValueError, "probe: got 'uniform', allowed are rademacher, gauss"),
        ({"probes": 0}, ValueError, "probes: need a whole number >= 1, got 0"),
        ({"probes": 1.0}, TypeError, "probes: need a whole number >= 1, got 1.0"),
        ({"chunk": 0}, ValueError, "chunk: need a whole number >= 1, got 0"),
        ({"first_sample": -1}, ValueError, "first_sample: need a whole number >= 0, got -1"),
        ({"divergence": "hutchinson"}, ValueError, "seed: Hutchinson's estimate draws probes"),
        ({"divergence": "hutchinson", "seed": -1}, ValueError, "seed: need a whole number"),
        ({"divergence": "exact", "probes": 3}, ValueError, "probes, seed: .* got probes=3, seed=N"),
        (
            {"divergence": "exact", "seed": 3},
            ValueError,
            "probes, seed: .* probes=None, seed=3",
        ),
        ({"gradients": "yes"}, TypeError, "gradients: need True or False, got 'yes'"),
        (
            {"method": "heun", "steps": 10, "rtol": 1e-3},
            ValueError,
            "rtol, atol: they are for an adaptive method, .* got rtol=0.001, atol=None",
        ),
        ({"method": "rk4", "steps": 2, "grid": "karas"}, ValueError, "grid: got 'karas'; .*karras"),
        ({"prior": "exact"}, ValueError, "prior: 'exact' needs a target as the model"),
        ({"prior": "normal"}, ValueError, "prior: got 'normal', the only name is 'exact'"),
        ({"prior": 1.0}, TypeError, "prior: need None, 'exact', a target or a function"),
    ],
)
def test_arguments_are_checked_first(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"model": SILENT, "x": X, **change}
    with pytest.raises(error, match=message):
        pf.log_likelihood(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"solver": "ddpm"}, ValueError, "solver: ddpm draws noise, .* deterministic are .*ddim"),
        ({"solver": "dim"}, ValueError, "no solver is named 'dim'; .* general methods: .*dopri5"),
        ({"solver": 3}, TypeError, "solver: need a name"),
        ({"solver": "ddim"}, TypeError, "steps: need a whole number >= 1, got None"),
        ({"steps": 5}, ValueError, "steps, grid: an adaptive method chooses its own steps"),
        ({"options": {"stepsize": 1}}, ValueError, "dopri5 has no option 'stepsize'"),
        ({"t0": 1.0, "t1": 0.5}, ValueError, "t0, t1: need t0"),
        ({"solver": "ddim", "steps": 2, "atol": 0.1}, ValueError, "rtol, atol: they are for an"),
        ({"gradients": None}, TypeError, "gradients: need True or False, got None"),
    ],
)
@pytest.mark.parametrize("way", [pf.encode, pf.decode])
def test_arguments_of_encodings(way, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        way(SILENT, X, **change)


def test_state_is_named_as_the_argument() -> None:
    with pytest.raises(pf.NonFiniteError, match="x: sample 0"):
        pf.encode(SILENT, X / 0)
    with pytest.raises(pf.NonFiniteError, match="z: sample 0"):
        pf.decode(SILENT, X / 0)


def test_prior_of_the_wrong_shape() -> None:
    target = mixture(3)
    with pytest.raises(ValueError, match=r"prior: must return log-densities of shape \(2,\), got"):
        pf.log_likelihood(target, X, "rk4", 4, process=VP, prior=lambda z: z)


def test_a_model_without_derivative_is_refused() -> None:
    net = torch.nn.Linear(3, 3)

    def detached(x, time):
        return net(x.detach())

    for function in (detached, torch.no_grad()(detached)):
        with pytest.raises(ValueError, match="model: its output has no derivative"):
            pf.log_likelihood(pf.Model(function, VP), X)


@pytest.mark.parametrize(
    "how", [{}, {"options": {"per_sample": False}}, {"method": "rk4", "steps": 10}]
)
def test_nan_names_the_sample(how: dict) -> None:
    def broken(x, time):
        late = (time > 0.3) & (x[:, 0] > 0)
        return torch.where(late[:, None], math.nan, 1.0) * x

    model = pf.Model(broken, VP)
    x = torch.tensor([[-1.0], [-2.0], [1.0], [-3.0]], dtype=torch.float64)
    with pytest.raises(pf.NonFiniteError, match=r"sample (is )?2\b"):
        pf.log_likelihood(model, x, **how)
    solvers = [how["method"], "ddim", "dpm-solver-2"] if "method" in how else ["dopri5"]
    rest = {key: value for key, value in how.items() if key != "method"}
    for solver in solvers:
        with pytest.raises(pf.NonFiniteError, match=r"sample (is )?2\b"):
            pf.encode(model, x, solver, **rest)


def test_the_scale_of_bits_is_a_number() -> None:
    law = pf.Gaussian([0.0], 1.0)
    found = pf.log_likelihood(law, torch.zeros(1, 1), process=PROCESSES["vp"], prior="exact")
    for scale in ("a", None, True):
        with pytest.raises(TypeError, match="scale: need a number"):
            found.bits_per_dim(scale)
    assert torch.equal(found.bits_per_dim(np.float64(1.0)), found.bits_per_dim(1))


def test_check_finite_is_no_option_of_adaptive_steps() -> None:
    law, options = pf.Gaussian([0.0], 1.0), {"check_finite": False}
    for call in (pf.log_likelihood, pf.encode):
        with pytest.raises(ValueError, match="check_finite=False does nothing for dopri5"):
            call(law, torch.zeros(1, 1), process=PROCESSES["vp"], options=options)
