"""Problems: velocity and reverse drift against the exact law, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import probflow as pf
from probflow.problems import as_model
from probflow.processes import Process

PROCESSES: list[tuple[Process, float]] = [
    (pf.VP.linear(), 0.4),
    (pf.VP.from_betas(np.linspace(1e-4, 0.02, 1000)), 321.5),
    (pf.VE(), 0.6),
    (pf.EDM(), 1.3),
    (pf.FlowMatching(), 0.6),
]
TARGET = pf.Gaussian([0.3, -1.0], [0.5, 2.0])
X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("process", "t"), PROCESSES)
def test_velocity_is_the_slope_of_the_exact_flow(process: Process, t: float) -> None:
    ode = pf.ProbabilityFlowODE(process, TARGET)
    h = 1e-5 * max(1.0, t)

    def level(t: float) -> tuple[float, float]:
        return float(process.alpha(t)), float(process.sigma(t))

    ahead = TARGET.flow(X, level(t), level(t + h))
    behind = TARGET.flow(X, level(t), level(t - h))
    slope = (ahead - behind) / (2 * h)
    torch.testing.assert_close(ode(t, X), slope, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        ode(torch.tensor(t, dtype=torch.float64), X), ode(t, X), rtol=0, atol=0
    )
    assert ode(t, X.float()).dtype == torch.float32


@pytest.mark.parametrize(("process", "t"), PROCESSES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
def test_reverse_sde_is_andersons(process: Process, t: float, prediction: str) -> None:
    sde = pf.ReverseSDE(process, TARGET.model(process, prediction))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    score = TARGET.score(X, alpha, sigma)
    g2 = float(process.diffusion(t)) ** 2
    # In s = -t: dx = -(f x - g^2 score) ds + g dW.
    expected = g2 * score - float(process.drift(t)) * X
    torch.testing.assert_close(sde.f(-t, X), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sde.g(-t, X), torch.full_like(X, math.sqrt(g2)))
    assert sde.g(-t, X).shape == X.shape
    assert sde.f(torch.tensor(-t), X.float()).dtype == torch.float32


def test_float_times_are_not_rounded_to_float32() -> None:
    process = pf.VP.linear()
    sde, ode = pf.ReverseSDE(process, TARGET), pf.ProbabilityFlowODE(process, TARGET)
    exact = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(sde.f(-0.3, X), sde.f(-exact, X), rtol=0, atol=0)
    torch.testing.assert_close(sde.g(-0.3, X), sde.g(-exact, X), rtol=0, atol=0)
    torch.testing.assert_close(ode(0.3, X), ode(exact, X), rtol=0, atol=0)
    alpha, sigma = float(process.alpha(0.3)), float(process.sigma(0.3))
    beta = float(process.beta(0.3))
    velocity = -0.5 * beta * (X + TARGET.score(X, alpha, sigma))
    torch.testing.assert_close(ode(0.3, X), velocity, rtol=1e-12, atol=1e-12)


def test_marginals_fit_fokker_planck() -> None:
    """d p/dt along the flow: the velocity transports the density (1-D, by differences)."""
    target, process = pf.GaussianMixture([1, 2], [-1.0, 1.5], stds=[0.4, 0.7]), pf.VP.linear()
    ode = pf.ProbabilityFlowODE(process, target)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    t, h = 0.3, 1e-5

    def density(x: torch.Tensor, t: float) -> torch.Tensor:
        return target.log_prob(x, float(process.alpha(t)), float(process.sigma(t))).exp()

    def flux(x: torch.Tensor) -> torch.Tensor:
        return ode(t, x)[:, 0] * density(x, t)

    in_time = (density(x, t + h) - density(x, t - h)) / (2 * h)
    in_space = (flux(x + h) - flux(x - h)) / (2 * h)
    torch.testing.assert_close(in_time, -in_space, rtol=1e-5, atol=1e-7)


def test_protocol_of_torchsde() -> None:
    sde = pf.ReverseSDE(pf.VP.linear(), TARGET)
    assert (sde.noise_type, sde.sde_type) == ("diagonal", "ito")


def test_parameters_are_found() -> None:
    net, process = torch.nn.Linear(2, 2), pf.VP.linear()
    model = pf.Model(lambda x, t: net(x), process)
    assert list(pf.ProbabilityFlowODE(process, model).parameters()) == []  # a lambda hides them

    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    for problem in (pf.ProbabilityFlowODE, pf.ReverseSDE):
        wrapped = problem(process, pf.Model(Denoiser(), process))
        assert {id(p) for p in wrapped.parameters()} == {id(p) for p in net.parameters()}


def test_what_is_refused() -> None:
    process = pf.VP.linear()
    model = pf.Model(lambda x, t: x, process)
    assert as_model(model) is model
    assert as_model(model, process) is model
    wanted = r"belongs to the process .* is another object, .*leave process out"
    with pytest.raises(ValueError, match=wanted):
        pf.ProbabilityFlowODE(pf.VP.linear(), model)
    with pytest.raises(ValueError, match="model: it belongs to the process"):
        pf.ReverseSDE(pf.EDM(), model)
    with pytest.raises(TypeError, match=r"need a probflow\.Model or a target; wrap"):
        pf.ProbabilityFlowODE(process, lambda x, t: x)
    with pytest.raises(TypeError, match="process: a target needs one"):
        as_model(TARGET)
    with pytest.raises(TypeError, match="process: need a probflow process"):
        pf.ProbabilityFlowODE("vp", TARGET)
