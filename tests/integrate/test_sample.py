"""Sampling: seeds, chunks, sources of noise, defaults, laws, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from thinned import thinned
from torch import Tensor

import probflow as pf
from probflow.integrate import run_plan
from probflow.integrate.noise import SeededNoise

PROCESS = pf.VP.linear()
TARGET = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
MODEL = TARGET.model(PROCESS)
STOCHASTIC = [s.name for s in pf.all_solvers() if s.stochastic]
#: Its noises are not those of one path, as diffusers draws them.
APART = "sde-dpm-solver++-singlestep-stock"


def draw(solver: str = "ddpm", n: int = 6, **options: Any) -> Tensor:
    return pf.sample(MODEL, (n, 2), solver, 5, **{"seed": 0, **options})


# Seeds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", *STOCHASTIC])
def test_a_sample_does_not_depend_on_the_batch(solver: str) -> None:
    whole = draw(solver, 6, dtype=torch.float64)
    chunks = [draw(solver, 2, first_sample=i, dtype=torch.float64) for i in (0, 2, 4)]
    torch.testing.assert_close(whole, torch.cat(chunks), rtol=1e-13, atol=1e-13)
    assert not torch.allclose(whole, draw(solver, 6, seed=1, dtype=torch.float64))
    assert torch.equal(whole, draw(solver, 6, dtype=torch.float64))


def test_the_same_noise_in_single_and_double_precision() -> None:
    single, double = draw(dtype=torch.float32), draw(dtype=torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_the_initial_state_is_the_first_draw() -> None:
    for process in (pf.VP.linear(), pf.EDM(), pf.VE(), pf.FlowMatching()):
        states = pf.sample(
            TARGET, (3, 2), "ddim", 2, process=process, seed=4, trajectory=True, dtype=torch.float64
        )
        z = SeededNoise(4, (3, 2), torch.float64)(0, 1)
        torch.testing.assert_close(states[0], z * process.prior_std(process.start))
        assert states.shape == (3, 3, 2)


def test_steps_do_not_reuse_the_initial_state() -> None:
    """The noises of the steps are draws 1, 2, ..., whether x is given or drawn."""
    x = SeededNoise(0, (6, 2), torch.float64)(0, 1)
    drawn = draw("ddpm", dtype=torch.float64)
    given = draw("ddpm", x=x)
    torch.testing.assert_close(given, drawn)
    other = draw("ddpm", x=x, seed=1)
    assert not torch.allclose(other, drawn)


def test_generators() -> None:
    results = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        results.append(pf.sample(MODEL, (4, 2), "ddpm", 5, generator=generator))
        # Two in a row differ: the generator moves on.
        results.append(pf.sample(MODEL, (4, 2), "ddpm", 5, generator=generator))
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("solver", thinned((n for n in STOCHASTIC if n != APART), str))
def test_a_brownian_path_couples_step_counts(solver: str) -> None:
    """With one path the samples of finer and finer grids converge.

    By the median distance: a few of the 400 paths end in another component on the coarse grid, and
    would decide the mean square.
    """
    x = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = pf.BrownianInterval(1e-3, 1.0, (400, 2), torch.float64, entropy=0)
    results = [
        pf.sample(MODEL, x=x, solver=solver, steps=n, noise=path, grid="quadratic")
        for n in (8, 32, 128)
    ]
    coarse = (results[0] - results[2]).norm(dim=1).median()
    fine = (results[1] - results[2]).norm(dim=1).median()
    assert fine < 0.5 * coarse


def test_a_path_of_the_same_seed_is_independent_of_the_initial_state() -> None:
    path = pf.BrownianInterval(0.0, 1.0, (4000, 2), torch.float64, entropy=0)
    states = pf.sample(
        MODEL, (4000, 2), "ddpm", 1, seed=0, noise=path, trajectory=True, grid=[1.0, 0.5]
    )
    z = path(1.0, 0.5) / math.sqrt(0.5)
    correlation = float((states[0] * z).mean()) * math.sqrt(states[0].numel())
    assert abs(correlation) < 4.5


def test_a_double_precision_path_for_a_single_precision_state() -> None:
    path = pf.BrownianInterval(0.0, 1.0, (6, 2), torch.float64, entropy=3)
    for solver in STOCHASTIC:
        states = draw(solver, noise=path, trajectory=True)
        assert states.dtype == torch.float32


# Results -----------------------------------------------------------------------------------


def test_sample_is_run_plan() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    times = pf.grids.karras().times(PROCESS, 7)
    plan = pf.get_solver("dpm-solver-2", r1=0.7).plan(PROCESS, times, "eps")
    expected = run_plan(plan, MODEL, x)
    solver = pf.get_solver("dpm-solver-2", r1=0.7)
    assert torch.equal(pf.sample(MODEL, x=x, solver=solver, steps=7, grid="karras"), expected)
    assert torch.equal(pf.sample(MODEL, x=x, solver=solver, grid=times), expected)
    by_target = pf.sample(TARGET, x=x, solver=solver, steps=7, grid="karras", process=PROCESS)
    assert torch.equal(by_target, expected)


@pytest.mark.parametrize("solver", [s.name for s in pf.all_solvers()])
def test_samples_have_the_law(solver: str) -> None:
    """KS test of 1 000 samples in one dimension.

    The bias of 60 steps is well below the bound, but for ``vanilla-ode`` (KS distance 0.1).
    """
    target = pf.GaussianMixture([1, 2], [-1.0, 1.5], stds=[0.4, 0.7])
    steps = 200 if solver == "vanilla-ode" else 60
    grid = pf.grids.quadratic(1.0, 1e-4)
    x = pf.sample(target, (1000, 1), solver, steps, process=PROCESS, grid=grid, seed=0)

    def cdf(y: np.ndarray) -> np.ndarray:
        return stats.norm.cdf(y, -1.0, 0.4) / 3 + stats.norm.cdf(y, 1.5, 0.7) * 2 / 3

    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > 1e-4


def test_shapes_dtypes_devices() -> None:
    image = pf.Model(lambda x, t: 0.1 * x, PROCESS)
    assert pf.sample(image, (2, 3, 4, 5), steps=3, seed=0).shape == (2, 3, 4, 5)
    assert pf.sample(image, [2, 3], steps=3, seed=0).dtype == torch.float32
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert pf.sample(image, (2, 3), "ddpm", 3, seed=0, dtype=dtype).dtype == dtype
    given = torch.zeros(2, 3, dtype=torch.float64)
    assert pf.sample(image, x=given, steps=3).dtype == torch.float64
    assert pf.sample(image, (2, 3), x=given, steps=3, device="cpu").shape == (2, 3)


def test_gradients_are_kept_on_request_only() -> None:
    net = torch.nn.Linear(2, 2)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x)

    model = pf.Model(Net(), PROCESS)
    assert not pf.sample(model, (2, 2), steps=3, seed=0).requires_grad
    result = pf.sample(model, (2, 2), steps=3, seed=0, gradients=True)
    result.sum().backward()
    gradient = net.weight.grad.clone()
    net.weight.grad = None
    pf.sample(model, (2, 2), steps=3, seed=0, gradients=True, checkpoint=True).sum().backward()
    torch.testing.assert_close(net.weight.grad, gradient)


def test_options_are_passed_on() -> None:
    seen: list[int] = []
    hooked: list[float] = []

    def hook(x0: Tensor, t: float) -> Tensor:
        hooked.append(t)
        return x0

    draw("ddim", callback=lambda number, t, x: seen.append(number), threshold=hook)
    assert seen == [0, 1, 2, 3, 4]
    assert len(hooked) == 5
    for name in ("callback", "threshold"):
        with pytest.raises(TypeError, match=f"^{name}: need a function, got 3"):
            draw("ddim", **{name: 3})
    with pytest.raises(TypeError, match=r"^callback: need a function, got 3"):
        pf.sample(pf.Model(hook, PROCESS), (2, 2), "dpm-solver-12", seed=0, callback=3)
    bad = pf.Model(lambda x, t: x * math.nan, PROCESS)
    with pytest.raises(pf.NonFiniteError, match="step 0 of 2, t = 1"):
        pf.sample(bad, (2, 2), "ddim", 2, seed=0)
    assert pf.sample(bad, (2, 2), "ddim", 2, seed=0, check_finite=False).isnan().all()


def test_deterministic_solvers_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    original = SeededNoise.__call__

    def count(self: SeededNoise, *interval: float) -> Tensor:
        draws.append(interval)
        return original(self, *interval)

    monkeypatch.setattr(SeededNoise, "__call__", count)
    draw("ddim")
    assert len(draws) == 1


# What is refused ---------------------------------------------------------------------------


def forbidden(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the model was called")


SILENT = pf.Model(forbidden, PROCESS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "steps: need a whole number >= 1, got None"),
        ({"steps": 0}, ValueError, "steps: need a whole number >= 1"),
        ({"steps": 2.0}, TypeError, "steps: need a whole number"),
        ({"steps": 2}, ValueError, "seed: give a seed, a generator or an initial state"),
        ({"steps": 2, "seed": -1}, ValueError, "seed: need a whole number"),
        ({"steps": 2, "seed": 0.5}, TypeError, "seed: need a whole number"),
        ({"steps": 2, "seed": 0, "generator": torch.Generator()}, ValueError, "give one of them"),
        ({"steps": 2, "seed": 0, "shape": None}, ValueError, "shape: needed where no initial"),
        ({"steps": 2, "seed": 0, "shape": ()}, ValueError, "shape: need .* positive sizes"),
        ({"steps": 2, "seed": 0, "shape": (0, 2)}, ValueError, "shape: need .* positive sizes"),
        ({"steps": 2, "seed": 0, "shape": 3}, TypeError, r"shape: need \(batch, \.\.\.\), got 3"),
        ({"steps": 2, "x": np.zeros((2, 2))}, TypeError, "x: need a tensor, got ndarray"),
        ({"steps": 2, "x": torch.zeros(3, 2)}, ValueError, r"shape: \(2, 2\) is not that of x"),
        ({"steps": 2, "x": torch.zeros(2, 2).long()}, TypeError, "x: need a floating-point"),
        ({"steps": 2, "seed": 0, "dtype": torch.int64}, TypeError, "dtype: need a floating-point"),
        ({"steps": 2, "seed": 0, "dtype": "half"}, TypeError, "dtype: need a floating-point"),
        ({"steps": 2, "seed": 0, "solver": "dimm"}, ValueError, "no solver is named 'dimm'; near"),
        ({"steps": 2, "seed": 0, "grid": "spiral"}, ValueError, "grid: got 'spiral'"),
        ({"steps": 2, "seed": 0, "grid": 3}, TypeError, "grid: need a Grid"),
        ({"steps": 3, "seed": 0, "grid": [1.0, 0.5, 0.1]}, ValueError, "grid has 2 steps, asked"),
        ({"steps": 2, "seed": 0, "process": pf.EDM()}, ValueError, "model: it belongs to the"),
        ({"steps": 2, "x": torch.zeros(2, 2), "solver": "ddpm"}, ValueError, "ddpm is stochastic"),
        ({"steps": 2, "seed": 0, "solver": "ddpm", "noise": 3}, TypeError, "noise: need a Noise"),
        ({"steps": 2, "seed": 0, "first_sample": -2}, ValueError, "first_sample: need a whole"),
        (
            {"steps": 2, "generator": torch.Generator(), "first_sample": 2},
            ValueError,
            "first_sample: numbers the samples of a seed",
        ),
        (
            {"steps": 2, "seed": 0, "solver": "ddpm", "noise": pf.BrownianInterval(0.5, 1, (2, 2))},
            ValueError,
            r"t: 0.001 lies outside the motion's \[0.5, 1\]",
        ),
        (
            {"steps": 2, "seed": 0, "solver": "ddpm", "noise": pf.BrownianInterval(0, 1, (1, 2))},
            ValueError,
            "noise: must have the state's shape",
        ),
    ],
)
def test_errors_come_before_any_model_call(
    arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pf.sample(SILENT, **{"shape": (2, 2), **arguments})


def test_wrong_models() -> None:
    with pytest.raises(TypeError, match=r"model: need a probflow\.Model or a target; wrap"):
        pf.sample(forbidden, (2, 2), steps=2, seed=0)
    with pytest.raises(TypeError, match="process: a target needs one"):
        pf.sample(TARGET, (2, 2), steps=2, seed=0)
