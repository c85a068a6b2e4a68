"""Programs written for torchsde run unchanged: its call patterns, and what users rely on."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor

import probflow as pf

TS = torch.tensor([0.0, 0.5, 1.0])
METHODS = [
    *(("ito", name) for name in ("euler", "milstein", "srk")),
    *(
        ("stratonovich", name)
        for name in ("milstein", "heun", "euler_heun", "midpoint", "reversible_heun", "log_ode")
    ),
]
every_method = pytest.mark.parametrize(("sde_type", "method"), METHODS)


class Plain:
    """Functions given one by one; no module."""

    def __init__(self, f=None, g=None, noise_type="diagonal", sde_type="ito", **more) -> None:
        self.noise_type, self.sde_type = noise_type, sde_type
        if "f_and_g" not in more:
            self.f = f or (lambda t, y: -y)
            self.g = g or (lambda t, y: 0.5 * torch.cos(y))
        vars(self).update(more)


class Neural(torch.nn.Module):
    """Networks of [y, t] as in latent SDEs, in float32; words as class attributes."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self) -> None:
        super().__init__()
        self.drift, self.diffusion = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def f(self, t, y):
        return torch.tanh(self.drift(torch.cat([y, t.expand(len(y), 1)], dim=1)))

    def g(self, t, y):
        return torch.sigmoid(self.diffusion(torch.cat([y, t.expand(len(y), 1)], dim=1)))

    def h(self, t, y):
        return -y


@pytest.fixture
def y0() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def motion(*size: int, area: str = "foster") -> pf.BrownianInterval:
    return pf.BrownianInterval(0.0, 1.0, size, entropy=0, levy_area_approximation=area)


# Times and steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ts",
    [TS.double(), TS.tolist(), [0, 0.5, 1], np.linspace(0.0, 1.0, 3), TS.half()],
    ids=["float64", "list", "mixed", "numpy", "float16"],
)
def test_times_of_any_kind_suit_a_network(ts, y0: Tensor) -> None:
    torch.manual_seed(0)
    ys = pf.sdeint(Neural(), y0, ts, motion(4, 3), dt=0.25)
    torch.manual_seed(0)
    assert torch.equal(ys, pf.sdeint(Neural(), y0, TS, motion(4, 3), dt=0.25))
    assert ys.dtype == torch.float32
    assert torch.equal(ys[0], y0)


@pytest.mark.parametrize(
    ("dt", "grid"),
    [
        (10, [0.0, 0.5, 1.0]),  # longer than the interval
        (torch.tensor([0.25]), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (TS[1] - TS[0], [0.0, 0.5, 1.0]),
        (0.4, [0.0, 0.4, 0.5, 0.8, 1.0]),  # not a part of it
    ],
)
def test_steps(dt, grid: list[float], y0: Tensor) -> None:
    bm, y = motion(4, 3), y0
    for a, b in pairwise(grid):
        y = y - (b - a) * y + bm(a, b)
    sde = Plain(g=lambda t, y: torch.ones_like(y))
    ys = pf.sdeint(sde, y0, TS, bm, "euler", dt)
    torch.testing.assert_close(ys[-1], y, rtol=1e-5, atol=1e-6)


def test_repeated_times_are_refused(y0: Tensor) -> None:
    with pytest.raises(ValueError, match="ts: times must be finite and strictly"):
        pf.sdeint(Plain(), y0, [0.0, 0.5, 0.5, 1.0])


@pytest.mark.parametrize("call", [pf.sdeint, pf.sdeint_adjoint])
def test_a_single_time_is_the_initial_state(call, y0: Tensor) -> None:
    y0.requires_grad_()
    ys, ratio = call(Neural(), y0, TS[:1], logqp=True)
    assert torch.equal(ys, y0[None])
    assert ratio.shape == (0, 4)
    ys.sum().backward()
    assert torch.equal(y0.grad, torch.ones_like(y0))


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [pf.sdeint, pf.sdeint_adjoint])
@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_gradient_modes(call, method: str, y0: Tensor) -> None:
    sde, bm = Neural(), motion(4, 3)
    wanted = call(sde, y0, TS, bm, method, dt=0.25)
    assert wanted.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            ys = call(sde, y0, TS, bm, method, dt=0.25)
        assert not ys.requires_grad
        torch.testing.assert_close(ys, wanted)
    # A motion keeps nothing of these modes.
    bm = motion(4, 3)
    with torch.inference_mode():
        call(sde, y0, TS, bm, method, dt=0.25)
    assert torch.equal(call(sde, y0, TS, bm, method, dt=0.25), wanted)
    sde.requires_grad_(False)
    assert not call(sde, y0, TS, bm, method, dt=0.25).requires_grad
    assert call(sde, y0.requires_grad_(), TS, bm, method, dt=0.25).requires_grad


def test_levy_terms_in_inference_mode(y0: Tensor) -> None:
    """torchsde's derivatives of g vanish there, and with them the terms of higher order."""

    def g(t, y):
        return torch.stack((torch.cos(y.flip(1)), t * y), dim=-1)

    sde = Plain(None, g, "general", "stratonovich")
    wanted = pf.sdeint(sde, y0, TS, motion(4, 2), "log_ode", 0.25)
    with torch.inference_mode():
        ys = pf.sdeint(sde, y0, TS, motion(4, 2), "log_ode", 0.25)
    torch.testing.assert_close(ys, wanted)


def test_parameters_of_the_adjoint(y0: Tensor) -> None:
    """Frozen parameters get no gradient, those left out neither; a generator will do."""
    sde, bm = Neural(), motion(4, 3, area="space-time")
    pf.sdeint_adjoint(sde, y0, TS, bm, dt=0.1, adjoint_params=sde.parameters()).sum().backward()
    whole = sde.drift.weight.grad
    sde.zero_grad()
    pf.sdeint_adjoint(
        sde, y0, TS, bm, dt=0.1, adjoint_params=list(sde.drift.parameters())
    ).sum().backward()
    torch.testing.assert_close(sde.drift.weight.grad, whole)
    assert sde.diffusion.weight.grad is None
    sde.zero_grad()
    sde.diffusion.requires_grad_(False)
    pf.sdeint_adjoint(sde, y0, TS, bm, dt=0.1).sum().backward()
    torch.testing.assert_close(sde.drift.weight.grad, whole)
    assert sde.diffusion.weight.grad is None


# Functions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["general", "additive"])
@pytest.mark.parametrize("noises", [1, 2, 5])
def test_number_of_noises(noise: str, noises: int, y0: Tensor) -> None:
    sde = Plain(None, lambda t, y: torch.ones(4, 3, noises), noise)
    bm = motion(4, noises)
    ys = pf.sdeint(sde, y0, TS, bm, "euler", 0.5)
    y = y0 - 0.5 * y0 + bm(0.0, 0.5).sum(1, keepdim=True)
    torch.testing.assert_close(ys[1], y)
    assert pf.sdeint(sde, y0, TS, dt=0.5).shape == (3, 4, 3)


def test_functions_together_or_as_products(y0: Tensor) -> None:
    def g(t, y):
        return y[..., None] * torch.arange(1.0, 3.0)

    bm = motion(4, 2)
    plain = Plain(None, g, "general")
    wanted = pf.sdeint(plain, y0, TS, bm, dt=0.25)
    pair = Plain(noise_type="general", f_and_g=lambda t, y: (-y, g(t, y)))
    assert torch.equal(pf.sdeint(pair, y0, TS, bm, dt=0.25), wanted)
    assert pf.sdeint(pair, y0, TS, dt=0.25).shape == (3, 4, 3)
    product = Plain(noise_type="general", g_prod=lambda t, y, v: (g(t, y) @ v[..., None])[..., 0])
    del product.g
    torch.testing.assert_close(pf.sdeint(product, y0, TS, bm, dt=0.25), wanted)
    product.other = product.g_prod
    del product.g_prod
    names = {"diffusion_prod": "other"}
    torch.testing.assert_close(pf.sdeint(product, y0, TS, bm, dt=0.25, names=names), wanted)


@every_method
@pytest.mark.parametrize("adaptive", [False, True])
def test_nothing_of_the_users_is_modified(sde_type: str, method: str, adaptive: bool, y0) -> None:
    """Functions may return the state itself, a buffer of theirs, or an expanded tensor."""
    buffer, one, before = torch.ones(4, 3), torch.ones(1), y0.clone()
    outputs = (lambda t, y: y, lambda t, y: buffer, lambda t, y: one.expand(4, 3))
    bm, tolerance = motion(4, 3), {"adaptive": adaptive, "rtol": 0.5, "atol": 0.5}
    if method == "euler":
        tolerance["adaptive"] = False  # it warns
    for f in outputs:
        for g in outputs:
            sde = Plain(f, g, sde_type=sde_type, h=outputs[0])
            ys = pf.sdeint(sde, y0, TS, bm, method, 0.25, **tolerance)
            copied = Plain(
                lambda t, y, f=f: f(t, y).clone(),
                lambda t, y, g=g: g(t, y).clone(),
                sde_type=sde_type,
            )
            assert torch.equal(ys, pf.sdeint(copied, y0, TS, bm, method, 0.25, **tolerance))
            pf.sdeint(sde, y0, TS, bm, method, 0.25, logqp=True)
            ys.zero_()
            assert torch.equal(y0, before)
            assert torch.equal(buffer, torch.ones(4, 3))
            assert torch.equal(one, torch.ones(1))
    expanded = one.expand(4, 3)
    pf.sdeint(Plain(sde_type=sde_type), expanded, TS, bm, method, 0.25)
    assert torch.equal(one, torch.ones(1))


@every_method
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.filterwarnings("ignore:adaptive. with steps chosen")
def test_an_empty_batch(sde_type: str, method: str, adaptive: bool) -> None:
    sde = Neural()
    sde.sde_type = sde_type
    empty = torch.zeros(0, 3, requires_grad=True)
    ys = pf.sdeint(sde, empty, TS, None, method, 0.25, adaptive)
    assert ys.shape == (3, 0, 3)
    ys = pf.sdeint_adjoint(sde, empty, TS, None, method, dt=0.25, adaptive=adaptive)
    (gradient,) = torch.autograd.grad(ys.sum(), empty)
    assert gradient.shape == (0, 3)


@every_method
@pytest.mark.filterwarnings("ignore:adaptive. with steps chosen")
def test_adaptive_steps_with_every_method(sde_type: str, method: str, y0: Tensor) -> None:
    sde = Plain(g=lambda t, y: torch.full_like(y, 0.1), sde_type=sde_type)
    ys = pf.sdeint(sde, y0, TS, motion(4, 3), method, 0.5, True, 1e-2, 1e-2)
    fine = pf.sdeint(sde, y0, TS, motion(4, 3), method, 1 / 64)
    torch.testing.assert_close(ys, fine, rtol=0.0, atol=0.05)


def test_options_are_read_only(y0: Tensor) -> None:
    options = {"seed": 1}
    pf.sdeint(Plain(), y0, TS, dt=0.25, options=options)
    assert options == {"seed": 1}
    assert pf.sdeint(Plain(), y0, TS, dt=0.25, options={}).shape == (3, 4, 3)


@pytest.mark.parametrize("call", [pf.sdeint, pf.sdeint_adjoint])
@pytest.mark.parametrize("logqp", [False, True])
def test_two_halves_are_the_whole(call, logqp: bool, y0: Tensor) -> None:
    sde = Neural()
    sde.sde_type = "stratonovich"
    more = {"method": "reversible_heun", "dt": 0.125, "extra": True, "logqp": logqp}
    *whole, end = call(sde, y0, TS, motion(4, 3), **more)
    *first, middle = call(sde, y0, TS[:2], motion(4, 3), **more)
    more["extra_solver_state"] = middle
    *second, again = call(sde, first[0][-1], TS[1:], motion(4, 3), **more)
    torch.testing.assert_close(second[0][-1], whole[0][-1])
    if logqp:
        assert [x.shape for x in whole] == [(3, 4, 3), (2, 4)]
        torch.testing.assert_close(torch.cat((first[1], second[1])), whole[1])
    assert len(end) == len(again) == 3
    for mine, its in zip(again, end, strict=True):
        torch.testing.assert_close(mine[..., :3], its[..., :3])


# Brownian motions ---------------------------------------------------------------------------------


class Own(pf.BaseBrownian):
    """A user's motion with the members that torchsde's base class asks for."""

    def __init__(self) -> None:
        self.base = torchsde.BrownianInterval(0.0, 1.0, (4, 3), entropy=1)

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        return self.base(ta, tb, return_U, return_A)

    def __repr__(self) -> str:
        return "Own()"

    shape = property(lambda self: self.base.shape)
    dtype = property(lambda self: self.base.dtype)
    device = property(lambda self: self.base.device)
    levy_area_approximation = property(lambda self: self.base.levy_area_approximation)


def test_motions_of_either_kind_serve_both(y0: Tensor) -> None:
    sde = Plain()
    for make in (
        Own,
        lambda: torchsde.BrownianTree(0.0, y0, entropy=1),
        lambda: pf.BrownianTree(0.0, y0, entropy=1),
        lambda: pf.BrownianPath(0.0, y0, entropy=1),
        lambda: pf.ReverseBrownian(pf.BrownianInterval(-1.0, 0.0, (4, 3), entropy=1)),
        lambda: pf.brownian_interval_like(y0, entropy=1),
    ):
        ours, theirs = (
            library.sdeint(sde, y0, TS, make(), "euler", 0.125) for library in (pf, torchsde)
        )
        torch.testing.assert_close(ours, theirs)
    own = Own()
    assert own.size() == (4, 3)
    torch.testing.assert_close(pf.ReverseBrownian(own)(-0.5, -0.25), own(0.25, 0.5))


def test_what_a_motion_tells_of_itself() -> None:
    given = {"dt": 0.1, "tol": 1e-4, "pool_size": 4, "cache_size": 7, "halfway_tree": False}
    ours, theirs = (
        library.BrownianInterval(0.0, 1.0, (4, 3), entropy=5, **given) for library in (pf, torchsde)
    )
    names = ("dtype", "device", "shape", "levy_area_approximation", "entropy")
    for name in (*names, *given):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.size() == theirs.size()
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(0.2, 0.7), ours(0.2, 0.7))


def test_long_seeds() -> None:
    """Front ends of image models draw seeds of 64 bits."""
    seeds = (5, 2**63 + 5, 2**64 - 1, 2**100)
    values = [pf.BrownianTree(0.0, torch.zeros(2), entropy=seed)(0.5) for seed in seeds]
    for k, seed in enumerate(seeds):
        assert torch.equal(pf.BrownianTree(0.0, torch.zeros(2), entropy=seed)(0.5), values[k])
        assert all(not torch.equal(values[k], other) for other in values[:k])
    bm = pf.BrownianInterval(0.0, 1.0, (2,), entropy=2**64 - 1)
    assert torch.equal(pf.BrownianInterval(0.0, 1.0, (2,), entropy=bm.entropy)(0.5), bm(0.5))


def test_given_ends_are_copied_and_have_no_gradients() -> None:
    w = torch.ones(4, 3)
    bm = pf.BrownianInterval(0.0, 1.0, W=w)
    w.zero_()
    assert torch.equal(bm(0.0, 1.0), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"W: must not require gradients; pass W.detach\(\)"):
        pf.BrownianInterval(0.0, 1.0, W=w.requires_grad_())


@pytest.mark.parametrize("seeds", [[3], [3, 2**64 - 1]])
def test_trees_as_noise_of_image_samplers(seeds: list[int]) -> None:
    """A tree for each sample, asked between noise levels in falling order, scaled to variance 1."""
    levels = torch.cat([torch.linspace(14.6, 0.03, 12), torch.zeros(1)])[:-1]
    w0 = torch.zeros(4, 64, 64)
    trees = [pf.BrownianTree(levels.min(), w0, levels.max(), entropy=seed) for seed in seeds]

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        a, b = sorted((sigma, sigma_next))
        return torch.stack([tree(a, b) for tree in trees]) / (b - a).sqrt()

    draws = torch.stack([noise(a, b) for a, b in pairwise(levels)])
    # 4 standard errors of the variance sqrt(2 / n), and of the correlation of neighbours.
    n = draws.numel()
    assert abs(float(draws.var()) - 1.0) < 4.0 * (2.0 / n) ** 0.5
    assert abs(float((draws[1:] * draws[:-1]).mean())) < 4.0 / n**0.5
    # Half as many steps on the same path, asked alone.
    again = pf.BrownianTree(levels.min(), w0, levels.max(), entropy=seeds[0])
    coarse = again(levels[4], levels[2])
    parts = [draws[k, 0] * (levels[k] - levels[k + 1]).sqrt() for k in (2, 3)]
    torch.testing.assert_close(coarse, parts[0] + parts[1], rtol=1e-4, atol=1e-4)


def test_the_log_ratio_of_a_diffusion_with_dependent_columns() -> None:
    """f - h = g u has many solutions u; the shortest is meant, in float32, too."""
    columns = torch.tensor([1.0, -0.5])

    class Dependent(Plain):
        def h(self, t, y):
            return y + y.sigmoid()

    sde = Dependent(
        f=lambda t, y: y + 2.0 * y.sigmoid(),
        g=lambda t, y: y.sigmoid()[..., None] * columns,
        noise_type="general",
    )
    y0 = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    _, ratio = pf.sdeint(sde, y0, [0.0, 1.0], motion(4, 2), "euler", dt=0.125, logqp=True)
    # g u = sigmoid(y) (u . c) and f - h = sigmoid(y): u = c / |c|^2, whatever y is.
    torch.testing.assert_close(ratio, torch.full((1, 4), 0.5 / 1.25), rtol=1e-4, atol=0.0)
