"""Gradients: by the steps themselves, by the adjoint SDE, exact ones of reversible Heun."""

from __future__ import annotations

import itertools

import pytest
import torch
from sde_examples import DOUBLE
from test_sde_peer import Network
from thinned import thinned

import probflow as pf

NOISES = ("diagonal", "scalar", "additive", "general")


@pytest.fixture
def y0() -> torch.Tensor:
    return torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def motion(noise: str, area: str = "foster", dt: float = 1 / 16, ends=(0.0, 1.0)):
    noises = {"diagonal": 3, "scalar": 1}.get(noise, 2)
    return pf.BrownianInterval(
        *ends, (4, noises), DOUBLE, entropy=5, dt=dt, levy_area_approximation=area
    )


def gradients(function, sde, y0, *arguments, **keywords) -> list[torch.Tensor]:
    y0 = y0.detach().requires_grad_()
    tensors = (y0, *sde.parameters())
    ys = function(sde, y0, *arguments, **keywords)
    weights = torch.linspace(0.5, 1.5, ys.numel(), dtype=DOUBLE).reshape(ys.shape)
    found = torch.autograd.grad((weights * ys.square()).sum(), tensors, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(tensors, found, strict=True)]


def distance(first, second) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


METHODS = [
    *itertools.product(["ito"], ["euler"], NOISES),
    *itertools.product(["ito", "stratonovich"], ["milstein"], NOISES[:3]),
    *itertools.product(["ito"], ["srk"], NOISES[:3]),
    *itertools.product(
        ["stratonovich"], ["heun", "euler_heun", "midpoint", "reversible_heun", "log_ode"], NOISES
    ),
]


@pytest.mark.parametrize(("sde_type", "method", "noise"), METHODS)
def test_steps_against_finite_differences(sde_type, method, noise, y0) -> None:
    sde, bm = Network(sde_type, noise), motion(noise, dt=0.25)
    parameters = dict(sde.named_parameters())

    def run(y, *values):
        changed = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(Runner(sde, bm, method), with_prefix(changed), (y,))

    inputs = (y0.requires_grad_(), *(p.detach().requires_grad_() for p in parameters.values()))
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6, rtol=1e-5)


class Runner(torch.nn.Module):
    def __init__(self, sde, bm, method) -> None:
        super().__init__()
        self.sde, self.bm, self.method = sde, bm, method

    def forward(self, y):
        return pf.sdeint(self.sde, y, [0.0, 1.0], self.bm, self.method, 0.25)[-1]


def with_prefix(values: dict) -> dict:
    return {f"sde.{name}": value for name, value in values.items()}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("times", [[0.0, 1.0], [0.0, 0.3, 0.55, 1.0]])
@pytest.mark.parametrize("adaptive", [False, True])
def test_reversible_heun_is_exact(noise: str, times: list[float], adaptive: bool, y0) -> None:
    sde = Network("stratonovich", noise)
    arguments = {"method": "reversible_heun", "dt": 1 / 16, "adaptive": adaptive}
    arguments |= {"rtol": 1e-2, "atol": 1e-2}
    exact = gradients(pf.sdeint, sde, y0, times, motion(noise), **arguments)
    found = gradients(pf.sdeint_adjoint, sde, y0, times, motion(noise), **arguments)
    assert distance(found, exact) < 1e-10


def test_reversible_heun_is_exact_for_its_memory_and_backward_in_time(y0) -> None:
    sde = Network("stratonovich", "general")
    names = {"method": "reversible_heun", "dt": 1 / 16}
    times = [1.0, 0.4, 0.0]
    exact = gradients(pf.sdeint, sde, y0, times, motion("general"), **names)
    found = gradients(pf.sdeint_adjoint, sde, y0, times, motion("general"), **names)
    assert distance(found, exact) < 1e-10
    results = []
    for function in (pf.sdeint, pf.sdeint_adjoint):
        memory = [
            x.detach().requires_grad_()
            for x in (torch.cos(y0), sde.g(torch.tensor(0.0), 0.5 * y0), 0.9 * y0)
        ]
        ys, end = function(
            sde, y0, [0.0, 1.0], motion("general"), extra=True, extra_solver_state=memory, **names
        )
        loss = ys.square().sum() + sum(x.sin().sum() for x in end)
        results.append(torch.autograd.grad(loss, (*memory, *sde.parameters()), allow_unused=True))
    for a, b in zip(*results, strict=True):
        assert distance([torch.zeros(()) if a is None else a], [b]) < 1e-10


ADJOINTS = [
    (sde_type, noise, adjoint)
    for noise in NOISES
    for sde_type in ("ito", "stratonovich")
    for adjoint in (None, "euler", "milstein", "midpoint", "heun", "euler_heun")
    if adjoint != "milstein" or noise in ("diagonal", "scalar")
]


@pytest.mark.parametrize(
    ("sde_type", "noise", "adjoint"), thinned(ADJOINTS, lambda case: "-".join(map(str, case)))
)
def test_adjoint_gradients_approach_those_of_the_solution(sde_type, noise, adjoint, y0) -> None:
    """For SDEs and adjoint methods of either type; the error falls by 16^(1/2) at least."""
    sde, times, fine = Network(sde_type, noise), [0.0, 0.25, 1.0], 1 / 512
    forward = "srk" if sde_type == "ito" and noise != "general" else None
    noises = {"diagonal": 3, "scalar": 1}.get(noise, 2)
    y0 = torch.randn(256, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    bm = pf.BrownianInterval(
        0.0, 1.0, (256, noises), DOUBLE, entropy=3, dt=fine, levy_area_approximation="space-time"
    )
    exact = gradients(pf.sdeint, sde, y0, times, bm, forward, fine)[0]
    errors = [
        gradients(pf.sdeint_adjoint, sde, y0, times, bm, forward, adjoint, dt)[0]
        .sub(exact)
        .abs()
        .median()
        for dt in (1 / 4, 1 / 64)
    ]
    # An order of 1/2 promises a ratio of 4. In the mean of squares the few samples with the largest
    # errors decide: over six seeds its ratio ran from 2.7 to 6.7.
    assert errors[1] < errors[0] / 3.0


def test_adaptive_adjoint(y0) -> None:
    sde, bm = Network("stratonovich", "diagonal"), motion("diagonal", dt=1 / 1024)
    exact = gradients(pf.sdeint, sde, y0, [0.0, 1.0], bm, "midpoint", 1 / 1024)
    errors = [
        distance(
            gradients(
                pf.sdeint_adjoint,
                sde,
                y0,
                [0.0, 1.0],
                bm,
                "midpoint",
                dt=1 / 1024,
                adjoint_adaptive=True,
                adjoint_rtol=tolerance,
                adjoint_atol=tolerance,
            ),
            exact,
        )
        for tolerance in (1e-1, 1e-3)
    ]
    assert errors[1] < 0.2 * errors[0]


def test_a_gradient_that_is_not_finite_is_named(y0) -> None:
    sde = Network("stratonovich", "diagonal")
    ys = pf.sdeint_adjoint(sde, y0, [0.0, 1.0], dt=0.1, adjoint_adaptive=True)
    with pytest.raises(pf.NonFiniteError, match="NaN or infinity in the gradient with which the"):
        (ys * torch.nan).sum().backward()


def derivatives(function, method, y0, dt: float, noise: str, last: bool) -> list[torch.Tensor]:
    """Of second and third order, of the state and the parameters; ``last``: with a graph, too."""
    sde, y = Network("stratonovich", noise), y0.detach().requires_grad_()
    ys = function(sde, y, [0.0, 1.0], motion(noise, dt=1 / 512), method, dt=dt)
    (first,) = torch.autograd.grad(ys[-1].sin().sum(), y, create_graph=True)
    inputs = (y, sde.a, sde.c if noise == "additive" else sde.b)
    second = torch.autograd.grad(first.square().sum(), inputs, create_graph=True)
    loss = sum(derivative.sin().sum() for derivative in second)
    return [*second, *torch.autograd.grad(loss, inputs, create_graph=last)]


@pytest.mark.parametrize("noise", ["diagonal", "additive"])
@pytest.mark.parametrize(("method", "last"), [("reversible_heun", False), ("midpoint", True)])
def test_derivatives_of_any_order_with_a_graph_are_those_of_the_steps(
    method, last, noise, y0
) -> None:
    found, exact = (
        derivatives(function, method, y0, 0.25, noise, last)
        for function in (pf.sdeint_adjoint, pf.sdeint)
    )
    assert max(float(part.abs().max()) for part in exact[-3:]) > 1e-3
    assert distance(found, exact) < 1e-10


def test_a_last_derivative_without_a_graph_approaches_that_of_the_steps(y0) -> None:
    errors = [
        distance(
            *(
                derivatives(function, None, y0, dt, "diagonal", False)[-3:]
                for function in (pf.sdeint_adjoint, pf.sdeint)
            )
        )
        for dt in (1 / 4, 1 / 64)
    ]
    assert errors[1] < errors[0] / 2.0  # order 1/2 promises 4


def test_no_graph_is_kept_between_steps_without_need(y0) -> None:
    class Plain:
        sde_type, noise_type = "ito", "diagonal"

        def f(self, t, y):
            return -y

        def g(self, t, y):
            return torch.sin(y)

    assert not pf.sdeint(Plain(), y0, [0.0, 1.0], method="milstein", dt=0.5).requires_grad
    assert pf.sdeint(
        Network("ito", "diagonal"), y0, [0.0, 1.0], None, "milstein", 0.5
    ).requires_grad


def test_adjoint_params(y0) -> None:
    class Plain:
        sde_type, noise_type = "stratonovich", "diagonal"
        a = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)

        def f(self, t, y):
            return self.a * y

        def g(self, t, y):
            return 0.5 * y

    with pytest.raises(ValueError, match=r"adjoint_params: sde is no torch\.nn"):
        pf.sdeint_adjoint(Plain(), y0, [0.0, 1.0])
    ys = pf.sdeint_adjoint(
        Plain(), y0, [0.0, 1.0], motion("diagonal"), dt=1 / 16, adjoint_params=(Plain.a,)
    )
    (found,) = torch.autograd.grad(ys[-1].sum(), Plain.a)
    # d/da y exp(a + W/2) = Y(1)
    torch.testing.assert_close(found, ys[-1].sum(), rtol=0.02, atol=0)
    assert not pf.sdeint_adjoint(Plain(), y0, [0.0, 1.0], dt=0.5, adjoint_params=()).requires_grad


def test_messages(y0) -> None:
    ito, stratonovich = Network("ito", "general"), Network("stratonovich", "general")
    times = [0.0, 1.0]
    with pytest.raises(ValueError, match=r"adjoint_method: 'heunn' .*near names: heun.*need one"):
        pf.sdeint_adjoint(ito, y0, times, adjoint_method="heunn")
    with pytest.raises(ValueError, match="adjoint_method: 'milstein' does not"):
        pf.sdeint_adjoint(ito, y0, times, adjoint_method="milstein")
    with pytest.raises(ValueError, match="goes with method='reversible_heun', got method='mid"):
        pf.sdeint_adjoint(stratonovich, y0, times, adjoint_method="adjoint_reversible_heun")
    with pytest.raises(ValueError, match="adjoint_reversible_heun is an adjoint_method"):
        pf.sdeint(stratonovich, y0, times, method="adjoint_reversible_heun")
    with pytest.raises(ValueError, match="adjoint_options: grad_free needs"):
        pf.sdeint_adjoint(
            Network("ito", "diagonal"), y0, times, adjoint_options={"grad_free": True}
        )
    with pytest.raises(ValueError, match="options: euler has no option 'fast'"):
        pf.sdeint_adjoint(ito, y0, times, adjoint_options={"fast": True})
    with pytest.raises(ValueError, match="method: ddpm has no adjoint"):
        pf.sdeint_adjoint(ito, y0, times, method="ddpm")
    with pytest.raises(ValueError, match="adjoint_rtol: need a finite number >= 0"):
        pf.sdeint_adjoint(ito, y0, times, adjoint_adaptive=True, adjoint_rtol=-1.0)
    with pytest.warns(UserWarning, match="gradients of reversible_heun are approximate"):
        pf.sdeint_adjoint(
            stratonovich, y0, times, None, "reversible_heun", "midpoint", options={"seed": 0}
        )


def test_the_exact_adjoint_has_no_options(y0) -> None:
    for name in ("sed", "grad_free"):
        with pytest.raises(ValueError, match=f"adjoint_options: .* has no option '{name}'"):
            pf.sdeint_adjoint(
                Network("stratonovich", "diagonal"),
                y0,
                [0.0, 1.0],
                method="reversible_heun",
                adjoint_options={name: False},
            )
