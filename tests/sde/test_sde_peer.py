"""The same numbers as torchsde, step by step on the same Brownian motion."""

from __future__ import annotations

import inspect

import pytest
import torch
import torchsde

import probflow as pf
from probflow.sde import settings

DOUBLE = torch.float64
TS = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
DT = 1 / 16  # a power of two, so that torchsde's accumulated times are exact
NOISES = ("diagonal", "scalar", "additive", "general")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Network(torch.nn.Module):
    """An SDE with parameters; the Jacobian of a scalar g is diagonal, as torchsde assumes."""

    def __init__(self, sde_type: str, noise_type: str) -> None:
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(0.5 * torch.randn(*shape, generator=generator, dtype=DOUBLE))

        self.a, self.b = parameter(3, 3), parameter(3)
        self.c = parameter(3, 1 if noise_type == "scalar" else 2)

    def f(self, t, y):
        return torch.sin(y @ self.a.T) * torch.cos(t)

    def g(self, t, y):
        if self.noise_type == "diagonal":
            return torch.sin(self.b * y + t) + 1.5
        if self.noise_type == "additive":
            return (self.c * torch.exp(-t)).expand(*y.shape, 2)
        if self.noise_type == "scalar":
            return torch.cos(self.b * y)[..., None] * self.c
        return torch.cos(y)[..., None] * self.c + 0.3 * torch.sin(y @ self.a)[..., None]

    def h(self, t, y):
        return -y


def motion(noise_type: str, noises: int | None = None) -> torchsde.BrownianInterval:
    noises = noises or {"diagonal": 3, "scalar": 1}.get(noise_type, 2)
    return torchsde.BrownianInterval(
        0.0, 1.0, (4, noises), DOUBLE, entropy=5, dt=DT, levy_area_approximation="foster"
    )


@pytest.fixture
def y0() -> torch.Tensor:
    return torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def gradients(ys: torch.Tensor, y0: torch.Tensor, sde: torch.nn.Module) -> list[torch.Tensor]:
    tensors = (y0, *sde.parameters())
    found = torch.autograd.grad(ys.square().sum(), tensors, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(tensors, found, strict=True)]


METHODS = [
    (method, sde_type, noise, free)
    for sde_type, methods in (
        ("ito", ("euler", "milstein", "srk")),
        (
            "stratonovich",
            ("milstein", "heun", "euler_heun", "midpoint", "reversible_heun", "log_ode"),
        ),
    )
    for method in methods
    for noise in NOISES
    for free in ((False, True) if method == "milstein" else (False,))
    if noise != "general" or method not in ("milstein", "srk")
]


@pytest.mark.parametrize(("method", "sde_type", "noise", "free"), METHODS)
def test_methods_and_their_gradients(method, sde_type, noise, free, y0) -> None:
    sde, y0 = Network(sde_type, noise), y0.requires_grad_()
    options = {"grad_free": True} if free else None
    ours = pf.sdeint(sde, y0, TS, motion(noise), method, DT, options=options)
    if free and sde_type == "stratonovich" and noise != "additive":
        method, options = "euler_heun", None  # their support has order 1/2 only
    theirs = torchsde.sdeint(sde, y0, TS, motion(noise), method, DT, options=options)
    torch.testing.assert_close(ours, theirs, **EXACT)
    for mine, its in zip(gradients(ours, y0, sde), gradients(theirs, y0, sde), strict=True):
        torch.testing.assert_close(mine, its, **EXACT)


class Formed:
    """The same SDE with its functions given in another form."""

    def __init__(self, sde: Network, names: tuple[str, ...]) -> None:
        self.sde_type, self.noise_type = sde.sde_type, sde.noise_type

        def g_prod(t, y, v):
            g = sde.g(t, y)
            return g * v if g.ndim == 2 else (g @ v[..., None])[..., 0]

        every = {
            "f": sde.f,
            "g_prod": g_prod,
            "f_and_g": lambda t, y: (sde.f(t, y), sde.g(t, y)),
            "f_and_g_prod": lambda t, y, v: (sde.f(t, y), g_prod(t, y, v)),
        }
        vars(self).update({name: every[name] for name in names})


@pytest.mark.parametrize(("method", "sde_type", "noise", "free"), METHODS)
def test_functions_in_other_forms(method, sde_type, noise, free, y0) -> None:
    """Whatever torchsde can make of them."""
    sde, how = Network(sde_type, noise), {"options": {"grad_free": True} if free else None}
    wanted = pf.sdeint(sde, y0, TS, motion(noise), method, DT, **how)
    for names in (("f_and_g",), ("f", "g_prod"), ("f_and_g_prod",), ("f_and_g", "g_prod")):
        formed = Formed(sde, names)
        try:
            theirs = torchsde.sdeint(formed, y0, TS, motion(noise), method, DT, **how)
        except RuntimeError as error:
            assert "has not been provided" in str(error)  # noqa: PT017 (torchsde's, not ours)
            continue
        ours = pf.sdeint(formed, y0, TS, motion(noise), method, DT, **how)
        torch.testing.assert_close(ours, theirs, **EXACT)
        torch.testing.assert_close(ours, wanted, **EXACT)


def test_log_ode_with_times_that_rounding_tells_apart(y0: torch.Tensor) -> None:
    """torchsde adds up its times, probflow multiplies."""
    sde, ts = Network("stratonovich", "general"), torch.linspace(0, 0.7, 3, dtype=DOUBLE)
    shape = motion("general").shape
    bm = pf.BrownianInterval(
        0.0, 0.7, shape, DOUBLE, entropy=1, dt=0.05, levy_area_approximation="foster"
    )
    ours = pf.sdeint(sde, y0, ts, bm, "log_ode", 0.05)
    theirs = torchsde.sdeint(sde, y0, ts, bm, "log_ode", 0.05)
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize("noise", NOISES)
def test_default_methods(sde_type: str, noise: str, y0: torch.Tensor) -> None:
    sde = Network(sde_type, noise)
    ours = pf.sdeint(sde, y0, TS, motion(noise), dt=DT)
    theirs = torchsde.sdeint(sde, y0, TS, motion(noise), dt=DT)
    torch.testing.assert_close(ours, theirs, **EXACT)


ADJOINTS = [
    (sde_type, noise, method, adjoint)
    for sde_type, method, adjoints in (
        ("ito", None, (None, "euler", "milstein")),
        ("stratonovich", None, (None, "midpoint", "heun", "euler_heun", "milstein")),
        ("stratonovich", "reversible_heun", (None, "adjoint_reversible_heun")),
    )
    for adjoint in adjoints
    for noise in NOISES
    if adjoint != "milstein" or noise == "diagonal"
]


@pytest.mark.parametrize(("sde_type", "noise", "method", "adjoint"), ADJOINTS)
def test_adjoints(sde_type, noise, method, adjoint, y0) -> None:
    sde, y0 = Network(sde_type, noise), y0.requires_grad_()
    arguments = (method, adjoint, DT)
    ours = pf.sdeint_adjoint(sde, y0, TS, motion(noise), *arguments)
    theirs = torchsde.sdeint_adjoint(sde, y0, TS, motion(noise), *arguments)
    torch.testing.assert_close(ours, theirs, **EXACT)
    for mine, its in zip(gradients(ours, y0, sde), gradients(theirs, y0, sde), strict=True):
        torch.testing.assert_close(mine, its, **EXACT)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("adjoint", [False, True])
def test_log_ratio(noise: str, adjoint: bool, y0: torch.Tensor) -> None:
    sde, y0 = Network("ito", noise), y0.requires_grad_()
    name = "sdeint_adjoint" if adjoint else "sdeint"
    results = []
    for library in (pf, torchsde):
        bm = motion(noise, 4 if noise == "diagonal" else None)
        ys, ratio = getattr(library, name)(sde, y0, TS, bm, dt=DT, logqp=True)
        assert ratio.shape == (2, 4)
        results.append((ys, ratio, *gradients(torch.cat((ys.flatten(), ratio.flatten())), y0, sde)))
    for ours, theirs in zip(*results, strict=True):
        # torchsde's pseudo-inverse of g has a few digits less than its steps.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_log_ratio_of_diagonal_noise_takes_a_motion_of_the_states_shape(y0: torch.Tensor) -> None:
    sde = Network("ito", "diagonal")
    wide, narrow = motion("diagonal", 4), motion("diagonal")
    plain = pf.sdeint(sde, y0, TS, narrow, "euler", DT)
    ys, ratio, extra = pf.sdeint(
        sde, y0, TS, motion("diagonal"), "euler", DT, logqp=True, extra=True
    )
    torch.testing.assert_close(ys, plain)
    assert (ratio > 0).all()
    assert extra == ()
    assert pf.sdeint(sde, y0, TS, wide, "euler", DT, logqp=True)[0].shape == (3, 4, 3)


def test_extra_state_of_reversible_heun_resumes_a_run(y0: torch.Tensor) -> None:
    sde = Network("stratonovich", "general")
    arguments = (motion("general"), "reversible_heun", DT)
    whole, memory = pf.sdeint(sde, y0, TS, *arguments, extra=True)
    theirs, its_memory = torchsde.sdeint(
        sde, y0, TS, motion("general"), "reversible_heun", DT, extra=True
    )
    for mine, its in zip((whole, *memory), (theirs, *its_memory), strict=True):
        torch.testing.assert_close(mine, its, **EXACT)
    _, middle = pf.sdeint(sde, y0, TS[:2], *arguments, extra=True)
    rest = pf.sdeint(sde, whole[1], TS[1:], *arguments, extra_solver_state=middle)
    torch.testing.assert_close(rest, whole[1:])


@pytest.mark.parametrize("name", ["sdeint", "sdeint_adjoint"])
def test_signatures(name: str) -> None:
    ours = inspect.signature(getattr(pf, name)).parameters.values()
    theirs = inspect.signature(getattr(torchsde, name)).parameters.values()
    wanted = [(p.name, p.kind, p.default) for p in theirs if p.kind is not p.VAR_KEYWORD]
    assert [(p.name, p.kind, p.default) for p in ours] == wanted


@pytest.mark.parametrize("name", settings.__all__)
def test_settings(name: str) -> None:
    from torchsde import settings as peer

    ours, theirs = getattr(settings, name), getattr(peer, name)
    assert ours.all() == theirs.all() == list(ours)
    assert str(ours) == str(theirs)
    for attribute in vars(theirs):
        if not attribute.startswith("__"):
            word = getattr(theirs, attribute)
            assert getattr(ours, attribute) == word
            assert word in ours
    assert "foo" not in ours


@pytest.mark.parametrize("name", ["BaseSDE", "SDEIto", "SDEStratonovich"])
def test_base_classes(name: str) -> None:
    arguments = ("diagonal", "ito")[: 2 if name == "BaseSDE" else 1]
    ours, theirs = (getattr(library, name)(*arguments) for library in (pf, torchsde))
    assert (ours.noise_type, ours.sde_type) == (theirs.noise_type, theirs.sde_type)
    assert isinstance(ours, torch.nn.Module)
    with pytest.raises(ValueError, match=r"^noise_type: need one of .*got 'foo'"):
        getattr(pf, name)("foo", *arguments[1:])


def test_adaptive_steps_of_torchsde_are_met_by_ours(y0: torch.Tensor) -> None:
    """Not the same steps, but the same solution within what the tolerance promises."""
    sde = Network("ito", "diagonal")
    bm = pf.BrownianInterval(
        0.0, 1.0, (4, 3), DOUBLE, entropy=1, levy_area_approximation="space-time"
    )
    ours, theirs = (
        library.sdeint(sde, y0, TS, bm, "srk", 0.1, True, 1e-4, 1e-4) for library in (pf, torchsde)
    )
    # Not at t = 0.5, where torchsde interpolates between steps.
    torch.testing.assert_close(ours[-1], theirs[-1], rtol=0, atol=5e-3)
