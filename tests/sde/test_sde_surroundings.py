"""What stands around a call: torch's defaults, autocast, networks in another dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import probflow as pf

DOUBLE = torch.float64
NOISES = ("diagonal", "scalar", "additive", "general")
METHODS = [
    (sde_type, method, noise)
    for sde_type, methods in {
        "ito": ("euler", "milstein", "srk"),
        "stratonovich": ("midpoint", "heun", "euler_heun", "reversible_heun", "log_ode"),
    }.items()
    for method in methods
    for noise in NOISES
    if noise != "general" or method not in ("milstein", "srk")
]
every_method = pytest.mark.parametrize(("sde_type", "method", "noise"), METHODS)
TS = [0.0, 0.5, 1.0]


class Neural(nn.Module):
    """Networks for drift and diffusion, of every kind of noise."""

    def __init__(self, sde_type: str, noise_type: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sde_type, self.noise_type = sde_type, noise_type
        self.columns = {"diagonal": 1, "scalar": 1}.get(noise_type, 3)
        self.drift, self.diffusion = nn.Linear(2, 2), nn.Linear(2, 2 * self.columns)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.drift(y))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        y = torch.zeros_like(y) if self.noise_type == "additive" else y
        g = 0.1 + 0.2 * torch.sigmoid(self.diffusion(y))
        return g if self.noise_type == "diagonal" else g.reshape(len(y), 2, self.columns)

    def motion(self, rows: int) -> pf.BrownianInterval:
        size = (rows, 2 if self.noise_type == "diagonal" else self.columns)
        return pf.BrownianInterval(
            0.0, 1.0, size, torch.float32, "cpu", 0, dt=0.125, levy_area_approximation="foster"
        )


@pytest.fixture
def y0() -> Tensor:
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


@every_method
def test_the_default_device_is_not_used(sde_type, method, noise, y0: Tensor, nowhere) -> None:
    with torch.device("cpu"):
        sde = Neural(sde_type, noise)
    leaf = y0.clone().requires_grad_()
    for ts in (TS, torch.tensor(TS, device="cpu")):
        assert pf.sdeint(sde, y0, ts, method=method, dt=0.25).device.type == "cpu"
        pf.sdeint_adjoint(sde, leaf, ts, method=method, dt=0.25).sum().backward()
    if method != "euler":
        pf.sdeint(sde, y0, TS, method=method, dt=0.25, adaptive=True, rtol=0.1, atol=0.1)


@every_method
def test_the_state_keeps_its_dtype_within_autocast(sde_type, method, noise, y0: Tensor) -> None:
    """Networks round to bfloat16 there; the state, the noise and their sums do not."""
    sde = Neural(sde_type, noise)
    bm = sde.motion(len(y0))
    exact = pf.sdeint(sde, y0, TS, bm, method, dt=0.125).detach()
    for solve in (pf.sdeint, pf.sdeint_adjoint):
        leaf = y0.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ys = solve(sde, leaf, TS, bm, method, dt=0.125)
            ys.sum().backward()
        assert ys.dtype == leaf.grad.dtype == torch.float32
        torch.testing.assert_close(ys.detach(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("noise", NOISES)
def test_the_noise_is_not_rounded_within_autocast(noise: str) -> None:
    """With a diffusion that bfloat16 holds exactly, the result is that without autocast."""

    class Still:
        sde_type, noise_type = "ito", noise

        def f(self, t, y):
            return torch.zeros_like(y, dtype=torch.bfloat16)

        def g(self, t, y):
            shape = y.shape if noise == "diagonal" else (*y.shape, 1)
            return torch.ones(shape, dtype=torch.bfloat16)

    bm = pf.BrownianInterval(0.0, 1.0, (4, 3 if noise == "diagonal" else 1), entropy=0, dt=0.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = pf.sdeint(Still(), torch.zeros(4, 3), [0.0, 1.0], bm, "euler", dt=0.25)
    torch.testing.assert_close(ys[-1], bm(0.0, 1.0).expand(4, 3))


@every_method
@pytest.mark.parametrize("output", [torch.float32, DOUBLE])
def test_outputs_of_another_dtype_are_converted(output, sde_type, method, noise) -> None:
    """A state in float64 with networks in float32, and the other way round."""
    state = DOUBLE if output == torch.float32 else torch.float32
    torch.manual_seed(0)
    y0 = torch.randn(4, 2, dtype=state)
    sde, same = Neural(sde_type, noise).to(state), Neural(sde_type, noise).to(state)
    f, g = sde.f, sde.g
    sde.f, sde.g = (lambda t, y: f(t, y).to(output)), (lambda t, y: g(t, y).to(output))
    bm = sde.motion(len(y0))
    given, expected = (pf.sdeint(x, y0, TS, bm, method, dt=0.125) for x in (sde, same))
    assert given.dtype == state
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_the_default_dtype_is_not_used(y0: Tensor) -> None:
    sde = Neural("ito", "diagonal")
    torch.set_default_dtype(DOUBLE)
    try:
        for adaptive in (False, True):
            ys = pf.sdeint(sde, y0, TS, dt=0.1, adaptive=adaptive, rtol=0.1, atol=0.1)
            assert ys.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules(y0: Tensor) -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise_type, self.sde_type = "diagonal", "ito"
            self.layer = nn.Linear(2, 2)

        @torch.jit.export
        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(self.layer(y))

        @torch.jit.export
        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return 0.2 * torch.sigmoid(y)

    plain, how = Scripted(), {"method": "srk", "dt": 0.1, "options": {"seed": 0}}
    scripted = torch.jit.script(plain)
    expected = pf.sdeint(plain, y0, TS, **how)
    for solve in (pf.sdeint, pf.sdeint_adjoint):
        torch.testing.assert_close(solve(scripted, y0, TS, **how), expected)


@pytest.mark.slow  # the compiler looks at every query
@pytest.mark.filterwarnings("ignore")
def test_inside_a_compiled_function() -> None:
    sde, y0 = Neural("ito", "diagonal"), torch.ones(3, 2)

    def solve(y: Tensor) -> Tensor:
        bm = pf.BrownianInterval(0.0, 1.0, (3, 2), entropy=3)
        return pf.sdeint(sde, y, torch.tensor(TS), bm=bm, method="euler", dt=0.25)

    same = torch.compile(solve, backend="eager")(y0)
    torch.testing.assert_close(same, solve(y0), rtol=0.0, atol=0.0)
