from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import probflow as pf
from probflow.adapters.kdiffusion import STOCK
from probflow.integrate import NonFiniteError, SeededNoise, run_plan

DOUBLE = torch.float64
#: All but those that take derivatives of the model, which cannot be served one call at a time.
SOLVERS = [name for name in pf.solver_names() if name != "accelerated-sde-jvp"]
TARGET = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
EDM = pf.EDM()
EXACT = TARGET.model(EDM).as_prediction("x0")
X = 20.0 * torch.randn(6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
SIGMAS = torch.tensor([20.0, 8.0, 3.0, 1.2, 0.5, 0.2, 0.0], dtype=DOUBLE)


def denoise(x: torch.Tensor, sigma: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    assert sigma.shape == (len(x),)
    return EXACT(x, sigma) + shift


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_a_sampling_function(name: str) -> None:
    sample_fn = pf.kdiffusion.sample(name)
    result = sample_fn(denoise, X, SIGMAS[:-1], disable=True, seed=3)
    plan = pf.get_solver(name).plan(EDM, SIGMAS[:-1].tolist(), "x0")
    noise = SeededNoise(3, X.shape, DOUBLE)
    noise()

    class After:
        def __call__(self, start: float, stop: float) -> torch.Tensor:
            return noise(start, stop)

        def restart(self) -> None:
            noise.restart()
            noise()

    expected = run_plan(plan, EXACT, X, noise=After() if plan.stochastic else None)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("process", [pf.EDM(), pf.FlowMatching()], ids=["edm", "flow"])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_end_has_no_noise(name: str, process: pf.processes.Process) -> None:
    flow = isinstance(process, pf.FlowMatching)
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]) if flow else SIGMAS
    data = torch.tensor([0.3, -0.7], dtype=DOUBLE).expand(6, 2)
    sample_fn = pf.kdiffusion.sample(name, process=process)
    x = sample_fn(lambda x, sigma: data, X / 20 if flow else X, sigmas, disable=True, seed=1)
    # li-jiao sums scores over ab^(3/2), which is small at the noisy end of a flow; the corrector of
    # sa-solver-eps amplifies noise in steps as long as these, and rounding with it.
    allowed = {"li-jiao": 1e-5, "sa-solver-eps": 1e-8}
    torch.testing.assert_close(x, data, rtol=0, atol=allowed.get(name, 1e-9))


def euler(x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Karras et al. 2022, Algorithm 1 without correction."""
    for sigma, after in pairwise(sigmas):
        x = x + (after - sigma) * (x - denoise(x, sigma.expand(len(x)))) / sigma
    return x


def heun(x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Karras et al. 2022, Algorithm 1."""
    for sigma, after in pairwise(sigmas):
        d = (x - denoise(x, sigma.expand(len(x)))) / sigma
        y = x + (after - sigma) * d
        if after > 0:
            d = (d + (y - denoise(y, after.expand(len(x)))) / after) / 2
        x = x + (after - sigma) * d
    return x


def dpmpp_2m(x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Lu et al. 2022 (arXiv 2211.01095), Algorithm 2 with alpha = 1."""
    old = None
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        new = denoised = denoise(x, sigma.expand(len(x)))
        if old is not None and after > 0:
            r = (sigmas[i - 1] / sigma).log() / (sigma / after).log()
            denoised = new + (new - old) / (2 * r)
        x, old = after / sigma * x + (1 - after / sigma) * denoised, new
    return x


@pytest.mark.parametrize(
    ("name", "reference"), [("ddim", euler), ("edm-heun", heun), ("dpm-solver++-2m", dpmpp_2m)]
)
def test_numbers_of_the_usual_samplers(name: str, reference) -> None:
    result = pf.kdiffusion.sample(name)(denoise, X, SIGMAS, disable=True)
    torch.testing.assert_close(result, reference(X, SIGMAS), rtol=0, atol=1e-11)


def churned(x: torch.Tensor, sigmas: torch.Tensor, noise) -> torch.Tensor:
    """Karras et al. 2022, Algorithm 2 without correction; S_churn = 5 for sigma <= 10."""
    for sigma, after in pairwise(sigmas):
        hat = sigma * (1 + min(5.0 / (len(sigmas) - 1), 2**0.5 - 1) if sigma <= 10 else 1.0)
        x = x + 1.1 * (hat**2 - sigma**2) ** 0.5 * noise(sigma, after)
        x = x + (after - hat) * (x - denoise(x, hat.expand(len(x)))) / hat
    return x


def test_churn_of_the_function_for_euler() -> None:
    kept = torch.randn(6, 6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))

    def noise(sigma: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return kept[int((SIGMAS - sigma).abs().argmin())]

    torch.manual_seed(6)  # the churn of the step to 0, on which the sampler is not asked
    kept[5] = torch.randn(6, 2, dtype=DOUBLE)
    options = {"s_churn": 5.0, "s_tmax": 10.0, "s_noise": 1.1}
    expected = churned(X, SIGMAS, noise)
    for made, called in ((options, {}), ({}, options)):
        sample_fn = pf.kdiffusion.sample("sample_euler", **made)
        torch.manual_seed(6)
        result = sample_fn(denoise, X, SIGMAS, disable=True, noise_sampler=noise, **called)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["edm-churn", "sample_euler", "sample_heun", "sample_dpm_2"])
def test_trees_serve_churn_in_a_step_to_zero(name: str) -> None:
    key = "S_churn" if name == "edm-churn" else "s_churn"
    tree, asked = pf.BrownianNoiseSampler(X, 0.2, 20.0, seed=0), []

    def noise_sampler(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return tree(sigma, sigma_next)

    sample_fn = pf.kdiffusion.sample(name, **{key: 5.0})
    x = sample_fn(denoise, X, SIGMAS, disable=True, noise_sampler=noise_sampler)
    assert torch.isfinite(x).all()
    assert min(b for _, b in asked) == pytest.approx(0.2)


def test_names_in_its_spelling() -> None:
    pairs = {
        "dpmpp_2m": "dpm-solver++-2m",
        "dpm_2": "edm-dpm2",
        "dpm_2_ancestral": "dpm2-ancestral",
        "lms": "lms-4",
        "dpmpp_3m_sde": "sde-dpm-solver++-3m",
        "euler_ancestral": "euler-ancestral",
    }
    for name, own in pairs.items():
        both = [
            pf.kdiffusion.sample(n)(denoise, X, SIGMAS, disable=True, seed=2) for n in (name, own)
        ]
        assert torch.equal(*both)
    for name in STOCK:
        assert pf.kdiffusion.sample(name).__name__ == name
    calls = []

    def counted(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(sigma)
        return denoise(x, sigma)

    fast = pf.kdiffusion.sample("sample_dpm_fast")
    for n in (1, 2, 3, 7, 9):
        calls.clear()
        fast(counted, X, 0.1, 20.0, n, disable=True)
        assert len(calls) == n


@pytest.mark.parametrize("name", ["dpm-solver++-2m", "edm-heun", "unipc-3"])
def test_callback_and_extra_arguments(name: str) -> None:
    seen = []
    result = pf.kdiffusion.sample(name)(
        denoise, X, SIGMAS, extra_args={"shift": 0.25}, callback=seen.append, disable=True
    )
    assert [entry["i"] for entry in seen] == list(range(6))
    for entry in seen:
        assert entry["sigma"] == SIGMAS[entry["i"]]
        assert entry["sigma_hat"] == pytest.approx(float(entry["sigma"]))
        expected = denoise(entry["x"], entry["sigma"].expand(6), 0.25)
        torch.testing.assert_close(entry["denoised"], expected)
    # The last step returns what the model says there, up to UniPC's correction.
    if name != "unipc-3":
        torch.testing.assert_close(result, seen[-1]["denoised"], rtol=0, atol=1e-11)


def test_noise_by_sampler_seed_generator() -> None:
    sample_fn = pf.kdiffusion.sample("ddpm-posterior")
    asked = []
    kept = torch.randn(6, 6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))

    def noise_sampler(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return kept[len(asked) - 1]

    given = sample_fn(denoise, X, SIGMAS, disable=True, noise_sampler=noise_sampler)
    # None is drawn for the last step: it has no noise, and trees have no such interval.
    assert asked == list(zip(SIGMAS[:-2].tolist(), SIGMAS[1:-1].tolist(), strict=True))
    generator = torch.Generator().manual_seed(5)
    drawn = sample_fn(denoise, X, SIGMAS, disable=True, generator=generator)
    assert drawn.shape == given.shape
    seeded = sample_fn(denoise, X, SIGMAS, disable=True, seed=4)
    part = sample_fn(denoise, X[:2], SIGMAS, disable=True, seed=4)
    assert torch.equal(part, seeded[:2])
    tree = pf.BrownianNoiseSampler(X, 0.2, 20.0, seed=0)
    assert torch.isfinite(sample_fn(denoise, X, SIGMAS, disable=True, noise_sampler=tree)).all()
    torch.manual_seed(1)
    first = sample_fn(denoise, X, SIGMAS, disable=True)
    torch.manual_seed(1)
    assert torch.equal(sample_fn(denoise, X, SIGMAS, disable=True), first)
    with pytest.raises(ValueError, match="noise_sampler, seed: give one"):
        sample_fn(denoise, X, SIGMAS, disable=True, seed=1, noise_sampler=tree)


def test_half_precision_and_errors() -> None:
    sample_fn = pf.kdiffusion.sample("dpm-solver++-2m")
    x = sample_fn(lambda x, sigma: 0.5 * x, X.half(), SIGMAS.float(), disable=True)
    assert x.dtype == torch.float16
    for sigmas in ([1.0], [1.0, 2.0], [1.0, 1.0, 0.0], [1.0, -0.5], [np.nan, 0.0], [np.inf, 0.0]):
        with pytest.raises(ValueError, match="sigmas"):
            sample_fn(denoise, X, torch.tensor(sigmas), disable=True)
    with pytest.raises(ValueError, match="near names"):
        pf.kdiffusion.sample("dpmpp-2n")
    with pytest.raises(ValueError, match="chooses its steps"):
        pf.kdiffusion.sample("dopri5")
    with pytest.raises(ValueError, match="has no option"):
        pf.kdiffusion.sample("ddim", eta=1.0)
    with pytest.raises(ValueError, match="sample_euler has no option 'eta'; allowed: s_churn"):
        pf.kdiffusion.sample("sample_euler", eta=1.0)
    with pytest.raises(ValueError, match=r"chooses its steps .* 'dpm-solver-23'"):
        pf.kdiffusion.sample("sample_dpm_adaptive")
    with pytest.raises(ValueError, match="near names: sample_dpmpp_2m"):
        pf.kdiffusion.sample("sample_dpmpp_2n")
    with pytest.raises(ValueError, match="order: need a whole number from 1 to 4, got 5"):
        pf.kdiffusion.sample("sample_lms", order=5)
    fast = pf.kdiffusion.sample("sample_dpm_fast")
    with pytest.raises(ValueError, match="n: need a whole number >= 1, got 0"):
        fast(denoise, X, 0.1, 20.0, 0, disable=True)
    for ends in ((0.0, 20.0), ("a", 20.0), (0.1, math.inf)):
        with pytest.raises(ValueError, match="sigma_min, sigma_max: need"):
            fast(denoise, X, *ends, 5, disable=True)
    ancestral = pf.kdiffusion.sample("sample_euler_ancestral")
    for wrong in (1.0, X[:1]):
        with pytest.raises(ValueError, match=r"noise_sampler: must return a tensor of shape \("):
            ancestral(denoise, X, SIGMAS, disable=True, noise_sampler=lambda a, b, w=wrong: w)
    with pytest.raises(TypeError, match="process: need a process of probflow, got 3"):
        pf.kdiffusion.sample("dpmpp_2m", process=3)


def test_derivatives_are_refused() -> None:
    sample_fn = pf.kdiffusion.sample("accelerated-sde-jvp")
    with pytest.raises(ValueError, match="accelerated-sde-jvp takes derivatives of the model"):
        sample_fn(denoise, X, SIGMAS[:-1], disable=True, seed=3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": None}, r"model: need a callable f\(x, sigma\), got None"),
        ({"x": [1.0]}, r"x: need a tensor of floats, shape \(batch, ...\), got \[1.0\]"),
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, "x: need a tensor of floats.*got torch.int64"),
        ({"sigmas": None}, "sigmas: need a tensor of numbers, got None"),
        ({"extra_args": [1]}, r"extra_args: need a dictionary, got \[1\]"),
        ({"callback": 3}, "callback: need a callable"),
        ({"noise_sampler": 3}, r"noise_sampler: need a callable f\(sigma, sigma_next\).*got 3"),
        ({"generator": 3}, "generator: need a torch.Generator or None, got 3"),
        ({"s_noise": "a"}, "s_noise: euler-ancestral needs a number, got 'a'"),
    ],
)
def test_arguments_of_a_wrong_kind(changed: dict, message: str) -> None:
    given = {"model": denoise, "x": X, "sigmas": SIGMAS, "disable": True, **changed}
    with pytest.raises(TypeError, match=message):
        pf.kdiffusion.sample("euler-ancestral")(**given)


def test_nan_names_step_and_sigma() -> None:
    sample_fn = pf.kdiffusion.sample("dpmpp_2m")

    def broken(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return denoise(x, sigma) / (sigma[0] != SIGMAS[2])

    message = r"dpm-solver\+\+-2m: .* the model's output at step 2 of 6, sigma = 3$"
    with pytest.raises(NonFiniteError, match=message):
        sample_fn(broken, X, SIGMAS, disable=True)
    with pytest.raises(NonFiniteError, match="the initial state x"):
        sample_fn(denoise, X * torch.nan, SIGMAS, disable=True)
    # The second step extrapolates from -6e4 to 6e4, beyond what half precision holds.
    sigmas = torch.tensor([1.0, 0.5, 0.01])
    with pytest.raises(NonFiniteError, match="overflow"):
        sample_fn(
            lambda x, sigma: torch.full_like(x, 6e4 if sigma[0] < 1 else -6e4),
            X.half(),
            sigmas,
            disable=True,
        )
