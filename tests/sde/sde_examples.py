"""SDEs with known solutions and a Brownian path on a fine grid, shared by the tests here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DOUBLE = torch.float64


class FinePath:
    """Brownian motion on [0, 1] drawn on 2^level intervals, with exact integrals.

    U of every fine interval is drawn jointly with its increment, so that U is exact on all coarser
    intervals, too. Levy areas leave out those within the fine intervals.
    """

    levy_area_approximation = "davie"
    dtype, device = DOUBLE, torch.device("cpu")

    def __init__(self, batch: int, noises: int, level: int = 10, seed: int = 0) -> None:
        self.shape, self.count = (batch, noises), 2**level
        generator = torch.Generator().manual_seed(seed)

        def normal() -> Tensor:
            return torch.randn(self.count, batch, noises, dtype=DOUBLE, generator=generator)

        h = 1.0 / self.count
        dw = normal() * math.sqrt(h)
        du = 0.5 * h * dw + normal() * math.sqrt(h**3 / 12.0)
        zero = torch.zeros_like(dw[:1])
        self.h = h
        self.w = torch.cat((zero, dw.cumsum(0)))
        self.u = torch.cat((zero, (self.w[:-1] * h + du).cumsum(0)))  # integral of W from 0

    def _index(self, t: float) -> int:
        t = float(t)
        index = round(t * self.count)
        assert abs(index - t * self.count) < 1e-6
        return index

    def __call__(self, ta: float, tb: float, return_U: bool = False, return_A: bool = False):
        a, b = self._index(ta), self._index(tb)
        w = self.w[b] - self.w[a]
        if return_U:
            return w, self.u[b] - self.u[a] - (b - a) * self.h * self.w[a]
        if return_A:
            dw = self.w[a + 1 : b + 1] - self.w[a:b]
            before = self.w[a:b] - self.w[a]
            second = torch.einsum("sbi,sbj->bij", before, dw)
            return w, 0.5 * (second - second.mT)
        return w


class Example(torch.nn.Module):
    """An SDE given by its Stratonovich drift, diffusion and Ito correction."""

    noises = 1
    exact = None

    def __init__(self, sde_type: str = "ito") -> None:
        super().__init__()
        self.sde_type = sde_type

    def f(self, t, y):
        f = self.drift(t, y)
        return f + self.correction(t, y) if self.sde_type == "ito" else f

    def drift(self, t, y):
        return torch.zeros_like(y)

    def correction(self, t, y):
        return torch.zeros_like(y)


class Geometric(Example):
    """dX = a X dt + b X o dW for each component: X = x exp(a t + b W)."""

    noise_type, noises, start = "diagonal", 2, (1.0, 0.7)
    b = torch.tensor([0.8, -0.6], dtype=DOUBLE)

    def drift(self, t, y):
        return 0.3 * y

    def correction(self, t, y):
        return 0.5 * self.b**2 * y

    def g(self, t, y):
        return self.b * y

    def exact(self, y0, w):
        return y0 * torch.exp(0.3 + self.b * w)


class Sine(Example):
    """Z_i = sinh(asinh z_i + t/4 + c_i W), seen in coordinates Y = R Z: scalar noise, nonlinear.

    The Jacobian of g is not symmetric.
    """

    noise_type, noises, start = "scalar", 1, (0.3, -0.4)
    c = torch.tensor([0.7, -0.4], dtype=DOUBLE)
    r = torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=DOUBLE)

    def root(self, y):
        return torch.sqrt(1.0 + (y @ self.r.inverse().T) ** 2)

    def drift(self, t, y):
        return 0.25 * self.root(y) @ self.r.T

    def correction(self, t, y):
        return (0.5 * self.c**2 * (y @ self.r.inverse().T)) @ self.r.T

    def g(self, t, y):
        return ((self.c * self.root(y)) @ self.r.T)[..., None]

    def exact(self, y0, w):
        z0 = y0 @ self.r.inverse().T
        return torch.sinh(torch.asinh(z0) + 0.25 + self.c * w) @ self.r.T


class Ornstein(Example):
    """dX = (sin 2t - sin 2X) dt + S(t) dW: nonlinear, additive noise that depends on t."""

    noise_type, noises, start = "additive", 2, (1.0, -0.5)
    s = torch.tensor([[0.9, 0.4], [-0.5, 0.8]], dtype=DOUBLE)

    def drift(self, t, y):
        return torch.sin(2.0 * t) - torch.sin(2.0 * y)

    def g(self, t, y):
        return (self.s * (1.0 + 0.5 * torch.cos(2.0 * t))).expand(*y.shape, 2)


class Commutative(Example):
    """dX_i = X_i sum_j B_ij o dW_j: X_i = x_i exp(sum_j B_ij W_j), general noise that commutes."""

    noise_type, noises, start = "general", 2, (1.0, 0.8)
    b = torch.tensor([[0.6, 0.3], [-0.4, 0.5]], dtype=DOUBLE)

    def correction(self, t, y):
        return 0.5 * (self.b**2).sum(-1) * y

    def g(self, t, y):
        return y[..., None] * self.b

    def exact(self, y0, w):
        return y0 * torch.exp(w @ self.b.T)


class Rotation(Example):
    """General noise whose columns do not commute: dX1 = cos X2 o dW1, dX2 = X1 o dW2 (+ drift)."""

    noise_type, noises, start = "general", 2, (0.5, 0.3)

    def drift(self, t, y):
        return -0.5 * y

    def correction(self, t, y):
        # sum_j (dg_j) g_j / 2 vanishes: column 1 has component 1 and depends on X2 alone.
        return torch.zeros_like(y)

    def g(self, t, y):
        zero = torch.zeros_like(y[..., 0])
        first = torch.stack((torch.cos(y[..., 1]), zero), dim=-1)
        second = torch.stack((zero, y[..., 0]), dim=-1)
        return torch.stack((first, second), dim=-1)


def start_of(sde: Example, batch: int) -> Tensor:
    return torch.tensor(sde.start, dtype=DOUBLE).expand(batch, -1).clone()
