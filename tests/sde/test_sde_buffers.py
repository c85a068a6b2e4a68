"""Functions that write each result over an earlier one: every method, noise, form and loop."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from thinned import thinned
from torch import Tensor

import probflow as pf
from probflow.sde.methods import _GRADIENT_FREE, _METHODS

DOUBLE = torch.float64
TS = [0.0, 0.3, 1.0]
NOISES = {"diagonal": 3, "scalar": 1, "additive": 2, "general": 2}
FORMS = {
    "f, g": ("f", "g"),
    "f_and_g": ("f_and_g",),
    "f, g_prod": ("f", "g_prod"),
    "f_and_g_prod": ("f_and_g_prod",),
    "f_and_g, g_prod": ("f_and_g", "g_prod"),
}
PRODUCTS = ("euler", "heun", "euler_heun", "midpoint")  # need no diffusion of its own
CASES = [
    (method, noise, form, free)
    for free, methods in ((False, _METHODS), (True, _GRADIENT_FREE))
    for method in methods
    for noise in method.noise_types
    for form, names in FORMS.items()
    if {"g", "f_and_g"} & set(names)
    or method.name in PRODUCTS
    or (
        # Additive noise of order 3/2 makes do with the drift and products.
        (method.name, noise, form) == ("srk", "additive", "f, g_prod")
    )
]


class Writer:
    """An SDE whose functions fill buffers: one for all, one each, or two each in turn."""

    def __init__(self, sde_type: str, noise: str, form: str, buffers: str | None) -> None:
        self.sde_type, self.noise_type, self.buffers = sde_type, noise, buffers
        self.memory: dict[str, cycle] = {}
        for name in (*FORMS[form], "h"):
            setattr(self, name, getattr(self, f"_{name}"))

    def _written(self, name: str, value: Tensor) -> Tensor:
        if self.buffers is None:
            return value
        place = "all" if self.buffers == "one for all" else name
        count = 2 if self.buffers == "two in turn" else 1
        new = [torch.zeros(64, dtype=value.dtype) for _ in range(count)]
        buffer = next(self.memory.setdefault(place, cycle(new)))
        # Not in the graph: the same memory is written while its last content is differentiated.
        buffer = buffer.detach()[: value.numel()].view(value.shape)
        return buffer.copy_(value)

    def _drift(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y.flip(1)) - t * y

    def _diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        if self.noise_type == "additive":
            y = torch.zeros_like(y)
        g = 0.5 + 0.2 * torch.cos(y + t)
        if self.noise_type == "diagonal":
            return g
        return g[..., None] * torch.linspace(1.0, 2.0, NOISES[self.noise_type], dtype=y.dtype)

    def _f(self, t: Tensor, y: Tensor) -> Tensor:
        return self._written("f", self._drift(t, y))

    def _g(self, t: Tensor, y: Tensor) -> Tensor:
        return self._written("g", self._diffusion(t, y))

    def _h(self, t: Tensor, y: Tensor) -> Tensor:
        return self._written("h", -y)

    def _g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        g = self._diffusion(t, y)
        return self._written("g_prod", g * v if g.ndim == 2 else (g * v[:, None]).sum(-1))

    def _f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        f = self._f(t, y)
        # A pair must not overwrite itself.
        return f.clone() if self.buffers == "one for all" else f, self._g(t, y)

    def _f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        f = self._f(t, y)
        return f.clone() if self.buffers == "one for all" else f, self._g_prod(t, y, v)


@pytest.mark.parametrize(
    ("method", "noise", "form", "free"),
    thinned(CASES, lambda c: f"{c[0].name}-{c[0].sde_type}-{c[1]}-{c[2]}-{c[3]}", every=4),
)
@pytest.mark.filterwarnings("ignore:adaptive. with steps chosen")
def test_buffers_are_not_held(method, noise: str, form: str, free: bool) -> None:
    y0 = torch.randn(2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    bm = pf.BrownianInterval(
        0.0, 1.0, (2, NOISES[noise]), DOUBLE, entropy=1, tol=1e-5, levy_area_approximation="foster"
    )
    how = {"bm": bm, "method": method.name, "dt": 0.2, "rtol": 0.5, "atol": 0.5}
    how["options"] = {"grad_free": True} if free else {}

    def run(buffers: str | None, **more: bool) -> Tensor:
        sde = Writer(method.sde_type, noise, form, buffers)
        ys = pf.sdeint(sde, y0, TS, **how, **more)
        return torch.cat([x.flatten() for x in ys]) if more.get("logqp") else ys

    loops = [{"adaptive": False}, {"adaptive": True}]
    if {"g", "f_and_g"} & set(FORMS[form]):
        loops.append({"logqp": True})
    for more in loops:
        wanted = run(None, **more)
        for buffers in ("one for all", "one each", "two in turn"):
            assert torch.equal(run(buffers, **more), wanted), (buffers, more)
