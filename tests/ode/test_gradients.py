"""Gradients of native ODE solves: direct, adjoint, checkpointed, reversible, transformed."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

import probflow as pf
from probflow.integrate.loop import NonFiniteError
from probflow.ode.problem import Problem
from probflow.ode.reversible import _reversed, integrate_reversible, reversible_steps
from probflow.ode.steps import on_grid
from probflow.tableaus import TABLEAUS

DOUBLE = torch.float64
FIXED = [name for name, tableau in TABLEAUS.items() if not tableau.adaptive]
ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.adaptive]
ACCURATE = ["dopri5", "tsit5", "dopri8"]
TIGHT = {"rtol": 1e-11, "atol": 1e-12}
# Steps whose length does not depend on the error: the solve is a smooth function.
FORCED = {"first_step": 0.2, "min_step": 0.2, "max_step": 0.2}
DIRECTIONS = [(0.1, 0.5, 1.1), (1.1, 0.5, 0.1)]


class Field(nn.Module):
    """A smooth function of time, state (2,) or (batch, 2), and two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[0.3, 1.1], [-0.9, 0.2]], dtype=DOUBLE))
        self.b = nn.Parameter(torch.tensor([0.4, -0.2], dtype=DOUBLE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        wave = torch.sin(2.0 * t)
        wave = wave[:, None] if wave.ndim else wave
        return torch.tanh(y @ self.a) + wave * self.b * y


class Pair(nn.Module):
    """The same field for a tuple of a vector and a number."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        y, q = state
        return self.field(t, y) * torch.cos(q), -q * y.square().sum()


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE, requires_grad=True)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE, requires_grad=True)


def weighted(states: Tensor) -> Tensor:
    return (states * torch.linspace(0.3, 1.0, states.numel(), dtype=DOUBLE).view_as(states)).sum()


def close(given: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float) -> None:
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=atol)


def with_parameters(solve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``solve(func, *inputs)`` as a function of the inputs and the field's two parameters."""

    def function(*inputs: Tensor) -> Tensor:
        *rest, a, b = inputs
        field = Field()
        values = {"a": a, "b": b}
        return solve(lambda t, y: torch.func.functional_call(field, values, (t, y)), *rest)

    return function


A, B = (parameter.detach().clone().requires_grad_() for parameter in Field().parameters())


# Against finite differences ---------------------------------------------------------------------


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
def test_fixed_steps_to_second_order(method: str, times: tuple[float, ...]) -> None:
    function = with_parameters(lambda f, y, t: pf.odeint(f, y, t, method=method))
    inputs = (leaf(0.5, -1.0), leaf(*times), A, B)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize(
    "options", [{"step_size": 0.16, "interp": interp} for interp in (None, "linear", "cubic")]
)
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
def test_refined_fixed_steps(method: str, options: dict[str, object]) -> None:
    function = with_parameters(lambda f, y, t: pf.odeint(f, y, t, method=method, options=options))
    for times in DIRECTIONS:
        assert gradcheck(function, (leaf(0.5, -1.0), leaf(*times), A, B))


@pytest.mark.parametrize("method", ["heun3", "explicit_adams"])
def test_grids_move_as_their_constructor_says(method: str) -> None:
    def stretched(func: object, y: Tensor, t: Tensor) -> Tensor:
        u = torch.linspace(0.0, 1.0, 8, dtype=DOUBLE)
        return t[0] * (1 - u**2) + t[-1] * u**2

    for interp in (None, "linear", "cubic"):
        options = {"grid_constructor": stretched, "interp": interp}
        function = with_parameters(
            lambda f, y, t, o=options: pf.odeint(f, y, t, method=method, options=o)
        )
        for times in DIRECTIONS:
            assert gradcheck(function, (leaf(0.5, -1.0), leaf(*times), A, B))


def test_callbacks_are_called_where_times_have_gradients() -> None:
    class Counted(Field):
        steps = 0

        def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            self.steps += 1

    for method in ("rk4", "explicit_adams"):
        field = Counted()
        pf.odeint(field, leaf(0.5, -1.0), leaf(0.0, 1.0), method=method,
                  options={"step_size": 0.25})  # fmt: skip
        assert field.steps == 4


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps(method: str, times: tuple[float, ...]) -> None:
    t = torch.tensor(times, dtype=DOUBLE)
    function = with_parameters(lambda f, y: pf.odeint(f, y, t, method=method, options=FORCED))
    inputs = (leaf(0.5, -1.0), A, B)
    assert gradcheck(function, inputs)
    if method == "dopri5":
        assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", ACCURATE)
def test_adaptive_steps_at_a_tight_tolerance(method: str, times: tuple[float, ...]) -> None:
    function = with_parameters(lambda f, y, t: pf.odeint(f, y, t, method=method, **TIGHT))
    inputs = (leaf(0.5, -1.0), leaf(*times), A, B)
    assert gradcheck(function, inputs, eps=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["rk4", "bosh3", "dopri5"])
def test_times_move_the_outputs_by_the_slopes(method: str) -> None:
    options = {"step_size": 0.02} if method == "rk4" else {}
    field, y0, t = Field(), leaf(0.5, -1.0), leaf(0.1, 0.5, 1.1)
    y = pf.odeint(field, y0, t, method=method, options=options, rtol=1e-9, atol=1e-11)
    weight = torch.tensor([0.7, -0.4], dtype=DOUBLE)
    (by_t,) = torch.autograd.grad((y[1:] * weight).sum(), t, retain_graph=True)
    slopes = torch.stack([field(time, state) for time, state in zip(t, y, strict=True)])
    torch.testing.assert_close(by_t[1:], slopes[1:] @ weight, rtol=0.0, atol=1e-6)
    (by_y0,) = torch.autograd.grad((y[1:] * weight).sum(), y0, retain_graph=True)
    torch.testing.assert_close(by_t[0], -by_y0 @ slopes[0], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_steps_of_each_sample(method: str) -> None:
    t = torch.tensor([[0.1, 1.1], [0.5, 0.6], [1.1, 0.3]], dtype=DOUBLE)
    options = {**FORCED, "per_sample": True}
    function = with_parameters(lambda f, y: pf.odeint(f, y, t, method=method, options=options))
    y0 = torch.tensor([[0.5, -1.0], [0.1, 0.7]], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(function, (y0, A, B))


@pytest.mark.parametrize("method", ["rk4", "explicit_adams", "dopri5"])
def test_tuples(method: str) -> None:
    options = FORCED if method == "dopri5" else {"step_size": 0.2}
    t = torch.tensor([1.0, 0.6, 0.2], dtype=DOUBLE)

    def function(y: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        return pf.odeint(Pair(Field()), (y, q), t, method=method, options=options)

    assert gradcheck(function, (leaf(0.5, -1.0), scalar(0.3)))


# Continuous adjoint -----------------------------------------------------------------------------


def test_signature_is_torchdiffeqs() -> None:
    ours = inspect.signature(pf.odeint_adjoint)
    theirs = inspect.signature(torchdiffeq.odeint_adjoint)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]


def adjoint_case(
    solve: Callable[..., Tensor], times: tuple[float, ...], **arguments: object
) -> tuple[Tensor, ...]:
    field, y0, t = Field(), leaf(0.5, -1.0), leaf(*times)
    states = solve(field, y0, t, **arguments)
    return torch.autograd.grad(weighted(states), (y0, t, *field.parameters()))


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "rk4", "explicit_adams"])
def test_adjoint_with_fixed_steps_is_torchdiffeqs(method: str, times: tuple[float, ...]) -> None:
    given = adjoint_case(pf.odeint_adjoint, times, method=method)
    expected = adjoint_case(torchdiffeq.odeint_adjoint, times, method=method)
    close(given, expected, atol=1e-13)


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adjoint_agrees_with_direct_gradients(method: str, times: tuple[float, ...]) -> None:
    loose = {"adaptive_heun": (1e-5, 3e-4), "fehlberg2": (1e-6, 1e-4)}
    tolerance, atol = loose.get(method, (1e-8, 1e-6))
    given = adjoint_case(pf.odeint_adjoint, times, method=method, rtol=tolerance)
    expected = adjoint_case(pf.odeint, times, method="dopri8", **TIGHT)
    close(given, expected, atol=atol)


def test_adjoint_of_a_tuple_decreasing_in_time() -> None:
    results = []
    for solve in (pf.odeint_adjoint, pf.odeint):
        pair, y, q, t = Pair(Field()), leaf(0.5, -1.0), scalar(0.3), leaf(1.0, 0.6, 0.2)
        first, second = solve(pair, (y, q), t, **TIGHT)
        loss = weighted(first) + weighted(second)
        results.append(torch.autograd.grad(loss, (y, q, t, *pair.parameters())))
    close(*results, atol=1e-9)


def test_adjoint_of_a_complex_state() -> None:
    results = []
    for solve in (pf.odeint_adjoint, pf.odeint):
        rate = torch.tensor(-0.3 + 2.0j, dtype=torch.complex128, requires_grad=True)
        scale, t = scalar(0.7), leaf(0.0, 0.4, 1.0)
        y0 = torch.tensor([1.0 + 0.5j, -0.2j], dtype=torch.complex128, requires_grad=True)

        def func(t: Tensor, y: Tensor, rate: Tensor = rate, scale: Tensor = scale) -> Tensor:
            return rate * y * torch.cos(scale * t)

        more = {"adjoint_params": (rate, scale)} if solve is pf.odeint_adjoint else {}
        y = solve(func, y0, t, **TIGHT, **more)
        results.append(torch.autograd.grad(y.abs().sum() + y.imag.sum(), (y0, t, rate, scale)))
    close(*results, atol=1e-9)


def test_adjoint_keeps_dtypes() -> None:
    field, y0 = Field().float(), torch.ones(2, dtype=torch.float16, requires_grad=True)
    func = nn.Module()
    func.add_module("field", field)
    func.forward = lambda t, y: field(t, y.float()).to(y.dtype)  # type: ignore[method-assign]
    y = pf.odeint_adjoint(func, y0, [0.0, 1.0], method="rk4", options={"step_size": 0.1})
    assert y.dtype == torch.float16
    y.float().sum().backward()
    assert y0.grad is not None
    assert y0.grad.dtype == torch.float16
    assert field.a.grad is not None
    assert field.a.grad.dtype == torch.float32
    exact, start = Field(), leaf(1.0, 1.0)
    (expected,) = torch.autograd.grad(pf.odeint(exact, start, [0.0, 1.0]).sum(), start)
    torch.testing.assert_close(y0.grad.double(), expected, rtol=0.0, atol=1e-2)


def test_parameters_of_the_adjoint() -> None:
    y0, t, rate = leaf(1.0), torch.tensor([0.0, 1.0], dtype=DOUBLE), scalar(0.5)

    def decay(t: Tensor, y: Tensor) -> Tensor:
        return -rate * y

    with pytest.raises(ValueError, match="adjoint_params: needed"):
        pf.odeint_adjoint(decay, y0, t)
    y = pf.odeint_adjoint(decay, y0, t, adjoint_params=(p for p in (rate, rate)))
    (grad,) = torch.autograd.grad(y[-1].sum(), rate)
    assert abs(float(grad) + math.exp(-0.5)) < 1e-7
    y = pf.odeint_adjoint(decay, y0, t, adjoint_params=())
    assert torch.autograd.grad(y[-1].sum(), rate, allow_unused=True) == (None,)
    doubled = 2.0 * rate  # not a leaf
    y = pf.odeint_adjoint(lambda t, y: -doubled * y, y0, t, adjoint_params=(doubled,))
    (grad,) = torch.autograd.grad(y[-1].sum(), rate)
    assert abs(float(grad) + 2.0 * math.exp(-1.0)) < 1e-7
    constant = pf.odeint_adjoint(lambda t, y: torch.ones_like(y), y0, t, adjoint_params=(rate,))
    grads = torch.autograd.grad(constant[-1].sum(), (y0, rate))
    assert [float(grad) for grad in grads] == [1.0, 0.0]


def test_parameters_without_gradients_are_left_out() -> None:
    field, seen = Field(), []
    field.b.requires_grad_(False)

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        seen.append([tuple(part.shape) for part in parts])
        return torch.cat([part.reshape(-1) for part in parts]).abs().max()

    y0, t = leaf(0.5, -1.0), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    with pytest.warns(UserWarning, match="adjoint_params: those that require no gradient"):
        y = pf.odeint_adjoint(field, y0, t, adjoint_options={"norm": norm})
    y.sum().backward()
    assert field.b.grad is None
    assert seen[0] == [(), (2,), (2,), (2, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.odeint_adjoint(field, y0, t)


def test_norm_of_the_adjoint_gets_the_parts_of_a_tuple() -> None:
    seen = []

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        seen.append([tuple(part.shape) for part in parts])
        return torch.cat([part.reshape(-1) for part in parts]).abs().max()

    pair, state = Pair(Field()), (leaf(0.5, -1.0), scalar(0.3))
    t = torch.tensor([0.0, 0.5], dtype=DOUBLE)
    options = {"norm": norm}
    y, _ = pf.odeint_adjoint(pair, state, t, method="dopri5", adjoint_options=options)
    assert options == {"norm": norm}
    y.sum().backward()
    assert seen[0] == [(), (2,), (), (2,), (), (2, 2), (2,)]


class Counted(Field):
    """Counts its evaluations."""

    calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(t, y)


class Driven(Counted):
    """A slow state, and parameters whose gradients are fast."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return -0.3 * y + 1e-3 * torch.sin(30.0 * t) * self.b


def test_seminorm_needs_fewer_evaluations() -> None:
    grads, calls = [], []
    for norm in ({}, {"norm": "seminorm"}):
        field, y0 = Driven(), leaf(0.5, -1.0)
        y = pf.odeint_adjoint(field, y0, [0.0, 3.0], rtol=1e-6, atol=1e-9, adjoint_options=norm)
        field.calls = 0
        grads.append(torch.autograd.grad(y[-1].sum(), (y0, field.b)))
        calls.append(field.calls)
    assert 2 * calls[1] < calls[0]
    close(*grads, atol=1e-5)


def test_times_without_gradients_are_not_solved_for() -> None:
    calls = []
    for asked in (False, True):
        field, y0 = Counted(), leaf(0.5, -1.0)
        t = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE, requires_grad=asked)
        y = pf.odeint_adjoint(field, y0, t, method="rk4")
        field.calls = 0
        y.sum().backward()
        calls.append(field.calls)
    assert calls == [8, 10]  # two more slopes, for the two later times


def test_options_of_the_adjoint() -> None:
    field, y0, t = Field(), leaf(0.5, -1.0), [0.0, 1.0]
    fine = {"step_size": 0.05, "norm": None}
    arguments = {"method": "rk4", "options": fine}
    inferred = pf.odeint_adjoint(field, y0, t, **arguments)
    given = pf.odeint_adjoint(field, y0, t, **arguments, adjoint_options={"step_size": 0.05})
    coarse = pf.odeint_adjoint(field, y0, t, **arguments, adjoint_options={})
    first, second, third = (torch.autograd.grad(y.sum(), y0)[0] for y in (inferred, given, coarse))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with pytest.raises(ValueError, match="adjoint_options: needed"):
        pf.odeint_adjoint(field, y0, t, **arguments, adjoint_method="dopri5")
    with pytest.raises(ValueError, match="no option 'step_sise'"):
        pf.odeint_adjoint(field, y0, t, method="rk4", adjoint_options={"step_sise": 0.1})
    with pytest.raises(TypeError, match="norm: need a function or 'seminorm'"):
        pf.odeint_adjoint(field, y0, t, adjoint_options={"norm": "halfnorm"})
    with pytest.raises(ValueError, match=r"gradients: not available .*'checkpoint'"):
        pf.odeint_adjoint(field, y0, t, options={"gradients": "checkpoint"})
    y, result = pf.odeint_adjoint(field, y0, t, options={"return_info": True})
    assert result.success
    assert result.y is y
    assert y.requires_grad


def test_tolerances_for_the_parts_of_a_tuple() -> None:
    pair, state = Pair(Field()), (leaf(0.5, -1.0), scalar(0.3))
    y, _ = pf.odeint_adjoint(pair, state, [0.0, 1.0], rtol=(1e-8, 1e-9), atol=1e-10)
    z, _ = pf.odeint(pair, state, [0.0, 1.0], **TIGHT)
    given, expected = (torch.autograd.grad(s.sum(), state[0]) for s in (y, z))
    close(given, expected, atol=1e-6)


def test_callbacks_of_the_adjoint() -> None:
    field, seen = Field(), {"step": 0, "accept_step": 0, "reject_step": 0}
    shapes = set()

    def count(name: str) -> Callable[..., None]:
        def callback(t: Tensor, state: tuple[Tensor, ...], dt: Tensor) -> None:
            seen[name] += 1
            shapes.add(tuple(tuple(part.shape) for part in state))

        return callback

    for name in seen:
        setattr(field, f"callback_{name}_adjoint", count(name))
    y = pf.odeint_adjoint(field, leaf(0.5, -1.0), [0.0, 1.0], options={"first_step": 0.9})
    assert set(seen.values()) == {0}
    y.sum().backward()
    assert seen["step"] == seen["accept_step"] + seen["reject_step"]
    assert seen["accept_step"] > 0
    assert seen["reject_step"] > 0
    assert shapes == {((), (2,), (2,), (2, 2), (2,))}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("way", ["adjoint", "reversible"])
def test_a_second_derivative_is_never_cut_silently(way: str, power: int) -> None:
    field, y0 = Field(), leaf(0.5, -1.0)
    inputs, times = (y0, *field.parameters()), [0.0, 0.5, 1.0]

    def solve(gradients: str = "direct") -> Tensor:
        return pf.odeint(field, y0, times, method="rk4", options={"gradients": gradients})

    def first(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((y**power).sum(), inputs, create_graph=True)

    def penalty(grads: tuple[Tensor, ...]) -> Tensor:  # with other ways to all inputs
        both = zip(grads, inputs, strict=True)
        return sum((grad.square() + value.square()).sum() for grad, value in both)

    solved = pf.odeint_adjoint(field, y0, times, method="rk4") if way == "adjoint" else solve(way)
    grads = first(solved)
    close(grads, first(solve()), atol=1e-2)
    for value in inputs:
        with pytest.raises(RuntimeError, match=r"has first derivatives only; .*'checkpoint'"):
            torch.autograd.grad(penalty(grads), value, retain_graph=True)
    with pytest.raises(RuntimeError, match="has first derivatives only"):
        penalty(grads).backward()
    both = [torch.autograd.grad(penalty(first(solve(g))), inputs) for g in ("checkpoint", "direct")]
    close(*both, atol=1e-12)


def sampler_gap(method: str, steps: int) -> float:
    """Largest difference between adjoint and direct gradients, as a share of the largest."""
    process = pf.VP.linear()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    ode = pf.ProbabilityFlowODE(process, pf.Model(lambda x, t: net(x), process, prediction="eps"))
    y0 = torch.tensor([[0.5, -1.0], [0.2, 0.4]], dtype=DOUBLE, requires_grad=True)
    t, inputs = torch.linspace(1.0, 0.1, steps + 1, dtype=DOUBLE), (y0, *net.parameters())
    grads = []
    for solve, more in ((pf.odeint_adjoint, {"adjoint_params": inputs[1:]}), (pf.odeint, {})):
        y = solve(ode, y0, t, method=method, **more)
        found = torch.autograd.grad(weighted(y[-1]), inputs)
        grads.append(torch.cat([grad.reshape(-1) for grad in found]))
    return float((grads[0] - grads[1]).abs().max() / grads[1].abs().max())


@pytest.mark.parametrize(
    ("method", "order"), [("ddim", 1), ("accelerated-ode", 2), ("heun", 2), ("dpm-solver-2", 2)]
)
def test_adjoint_of_a_sampler(method: str, order: int) -> None:
    coarse, fine = sampler_gap(method, 64), sampler_gap(method, 256)
    assert fine < 0.1
    assert math.log2(coarse / fine) / 2.0 > order - 0.3


def test_adjoint_of_a_diffusion_with_adaptive_steps() -> None:
    assert sampler_gap("dopri5", 1) < 1e-6


@pytest.mark.parametrize("method", ["implicit_adams", "scipy_solver"])
def test_methods_of_torchdiffeq_are_passed_on(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = adjoint_case(pf.odeint_adjoint, DIRECTIONS[0], method=method)
        expected = adjoint_case(torchdiffeq.odeint_adjoint, DIRECTIONS[0], method=method)
    for a, b in zip(given, expected, strict=True):
        assert torch.equal(a, b)


# Events -----------------------------------------------------------------------------------------


class Decay(nn.Module):
    """dy/dt = -k y."""

    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.k, self.tuples = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE)), tuples

    def forward(self, t: Tensor, y: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (-self.k * y[0], torch.ones_like(y[1])) if self.tuples else -self.k * y


@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("interface", [pf.odeint, pf.odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_events(method: str, interface: Callable[..., Tensor], reverse: bool, tuples: bool) -> None:
    func, y0, t0 = Decay(tuples), leaf(1.1), scalar(0.3)
    level, drift = scalar(2.0 if reverse else 0.5), scalar(0.1)
    state = (y0, torch.zeros(1, dtype=DOUBLE)) if tuples else y0

    def event_fn(t: Tensor, y: Tensor | tuple[Tensor, ...]) -> Tensor:
        return (y[0] if tuples else y)[0] * torch.exp(drift * t) - level

    event_t, states = pf.odeint_event(
        func, state, t0, event_fn=event_fn, reverse_time=reverse, odeint_interface=interface,
        method=method, options={"step_size": 0.01} if method == "rk4" else None, rtol=1e-10,
        atol=1e-12,
    )  # fmt: skip
    last = states[0][-1, 0] if tuples else states[-1, 0]
    # y0 exp(-k (t - t0) + d t) = c
    inputs = (y0, t0, func.k, level, drift)
    exact_t = (torch.log(y0[0] / level) + func.k * t0) / (func.k - drift)
    exact_y = level * torch.exp(-drift * exact_t)
    for given, exact in ((event_t, exact_t), (last, exact_y)):
        torch.testing.assert_close(given, exact, rtol=0.0, atol=1e-8)
        grads = torch.autograd.grad(given, inputs, retain_graph=True)
        close(grads, torch.autograd.grad(exact, inputs, retain_graph=True), atol=1e-7)


def test_event_time_alone_has_a_gradient_of_zero() -> None:
    t, y0 = torch.tensor([0.0, 1.0], dtype=DOUBLE), leaf(1.1)
    event_t, y = pf.odeint_adjoint(Decay(False), y0, t, event_fn=lambda t, y: y[0] - 0.5)
    (by_y0,) = torch.autograd.grad(event_t, y0, retain_graph=True)
    assert torch.equal(by_y0, torch.zeros(1, dtype=DOUBLE))
    (by_y0,) = torch.autograd.grad(y[-1].sum(), y0)
    assert float(by_y0) == pytest.approx(0.5 / 1.1, abs=1e-6)


# torch.func and torch.compile -------------------------------------------------------------------


@pytest.mark.parametrize("method", [*FIXED, "explicit_adams", "dopri5"])
def test_transforms(method: str) -> None:
    field, t = Field(), torch.tensor([0.0, 0.3, 1.0], dtype=DOUBLE)
    y0, tangent = (torch.tensor(v, dtype=DOUBLE) for v in ([0.5, -1.0], [0.2, 0.7]))

    def end(y: Tensor, t: Tensor = t) -> Tensor:
        return pf.odeint(field, y, t, method=method)[-1]

    jacobian = torch.autograd.functional.jacobian(end, y0)
    close((torch.func.jacrev(end)(y0),), (jacobian,), atol=1e-13)
    close((torch.func.jacfwd(end)(y0),), (jacobian,), atol=1e-13)
    value, pushed = torch.func.jvp(end, (y0,), (tangent,))
    close((value, pushed), (end(y0).detach(), jacobian @ tangent), atol=1e-13)
    grad = torch.func.grad(lambda y: end(y) @ tangent)(y0)
    close((grad,), (tangent @ jacobian,), atol=1e-13)
    by_time = torch.autograd.functional.jacobian(lambda t: end(y0, t), t)
    close((torch.func.jacrev(end, argnums=1)(y0, t),), (by_time,), atol=1e-13)
    batch = torch.stack([y0, tangent, y0 - tangent])
    if method == "dopri5":
        with pytest.raises(ValueError, match=r"y0: under torch\.func\.vmap"):
            torch.func.vmap(end)(batch)
        return
    rows = torch.stack([end(row) for row in batch])
    close((torch.func.vmap(end)(batch),), (rows,), atol=1e-13)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
def test_whole_graphs(method: str, backend: str) -> None:
    torch._dynamo.reset()
    field, y0 = Field(), leaf(0.5, -1.0)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=DOUBLE)

    def solve(y: Tensor, t: Tensor) -> Tensor:
        return pf.odeint(field, y, t, method=method)

    compiled = torch.compile(solve, fullgraph=True, backend=backend)
    given, expected = compiled(y0, t), solve(y0, t)
    torch.testing.assert_close(given, expected, rtol=0.0, atol=1e-14)
    inputs = (y0, *field.parameters())
    grads = (torch.autograd.grad(weighted(states), inputs) for states in (given, expected))
    close(*grads, atol=1e-14)


@pytest.mark.parametrize("grad", [False, True])
def test_whole_graphs_with_steps_between_given_numbers(grad: bool) -> None:
    pair, state = Pair(Field()), (leaf(0.5, -1.0), scalar(0.3))
    for method in ("rk4", "explicit_adams"):
        torch._dynamo.reset()

        def solve(y: Tensor, q: Tensor, method: str = method) -> tuple[Tensor, Tensor]:
            return pf.odeint(pair, (y, q), [0.0, 0.5], method=method, options={"step_size": 0.1})

        with torch.set_grad_enabled(grad):
            whole = torch.compile(solve, fullgraph=True, backend="eager")
            close(whole(*state), solve(*state), 1e-14)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
def test_whole_graphs_of_interpolated_and_complex_states(method: str, interp: str) -> None:
    options = {"step_size": 0.2, "interp": interp, "perturb": True}

    def solve(y: Tensor) -> Tensor:
        z = torch.complex(y, 2.0 * y)
        z = pf.odeint(lambda t, z: (1j - t) * z, z, [1.0, 0.3, 0.0], method=method, options=options)
        return torch.view_as_real(z)

    torch._dynamo.reset()
    y0 = leaf(0.5, -1.0)
    close((torch.compile(solve, fullgraph=True, backend="eager")(y0),), (solve(y0),), 1e-14)


def test_a_whole_graph_cannot_count_steps_between_times_of_a_tensor(monkeypatch) -> None:
    y0, t, options = leaf(0.5, -1.0), torch.tensor([0.0, 0.5], dtype=DOUBLE), {"step_size": 0.1}

    def solve(y: Tensor, t: Tensor) -> Tensor:
        return pf.odeint(Field(), y, t, method="rk4", options=options)

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(solve, fullgraph=True, backend="eager")(y0, t)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # dynamo wraps the error
    with pytest.raises(ValueError, match=r"step_size: .* cannot read t, .* give t as numbers, or"):
        solve(y0, t)


# Memory: checkpoints and reversible steps -------------------------------------------------------


def stored(function: Callable[[], Tensor]) -> int:
    """Number of values of the tensors that a graph keeps for its backward pass."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return count


def solve_in(steps: int, gradients: str, solve: Callable[..., Tensor] = pf.odeint) -> Tensor:
    options = {"step_size": 1.0 / steps, "gradients": gradients}
    return solve(Field(), leaf(0.5, -1.0), [0.0, 1.0], method="rk4", options=options)


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", FIXED)
def test_checkpoints_give_the_same_gradients(method: str, times: tuple[float, ...]) -> None:
    results = []
    for gradients in ("checkpoint", "direct"):
        options = {"step_size": 0.07, "interp": "cubic", "gradients": gradients}
        results.append(adjoint_case(pf.odeint, times, method=method, options=options))
    close(*results, atol=1e-14)


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_checkpoints_of_adaptive_steps(method: str, times: tuple[float, ...]) -> None:
    results, steps = [], []
    for gradients in ("checkpoint", "direct"):
        field, y0, t = Field(), leaf(0.5, -1.0), leaf(*times)
        options = {"gradients": gradients}
        result = pf.solve_ode(field, y0, t, method=method, rtol=1e-5, options=options)
        steps.append(result.steps)
        results.append(torch.autograd.grad(weighted(result.y), (y0, t, *field.parameters())))
    assert steps[0] == steps[1]
    close(*results, atol=1e-12)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_checkpoints_of_each_samples_steps(method: str) -> None:
    t = torch.tensor([[0.1, 1.1], [0.5, 0.6], [1.1, -2.3]], dtype=DOUBLE)
    results = []
    for gradients in ("checkpoint", "direct"):
        field = Field()
        y0 = torch.tensor([[0.5, -1.0], [0.1, 0.7]], dtype=DOUBLE, requires_grad=True)
        options = {"per_sample": True, "gradients": gradients}
        result = pf.solve_ode(field, y0, t, method=method, rtol=1e-5, options=options)
        inputs = (y0, *field.parameters())
        grads = torch.autograd.grad(weighted(result.y), inputs, create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        second = torch.autograd.grad(penalty, inputs)
        results.append((result.y, result.accepted, result.rejected, *grads, *second))
    assert results[0][1].tolist()[0] != results[0][1].tolist()[1]
    close(*results, atol=1e-12)


def test_memory_of_each_samples_checkpoints() -> None:
    def kept(gradients: str, step: float) -> int:
        own = {"per_sample": True, "first_step": step, "min_step": step, "max_step": step}
        y0 = torch.tensor([[0.5, -1.0], [0.1, 0.7]], dtype=DOUBLE, requires_grad=True)
        options = {**own, "gradients": gradients}
        return stored(lambda: pf.odeint(Field(), y0, [0.0, 1.0], method="bosh3", options=options))

    direct, checkpoint = ([kept(g, 1 / n) for n in (64, 256)] for g in ("direct", "checkpoint"))
    assert direct[1] > 3.8 * direct[0]
    assert checkpoint[1] < 2.5 * checkpoint[0]
    assert checkpoint[1] < 0.2 * direct[1]


def test_memory_of_checkpoints_grows_with_the_root_of_the_steps() -> None:
    counts = {
        gradients: [stored(lambda n=n, g=gradients: solve_in(n, g)) for n in (64, 256)]
        for gradients in ("direct", "checkpoint")
    }
    assert counts["direct"][1] > 3.8 * counts["direct"][0]
    assert counts["checkpoint"][1] < 2.5 * counts["checkpoint"][0]
    assert counts["checkpoint"][1] < 0.2 * counts["direct"][1]


def test_memory_of_reversible_steps_and_of_the_adjoint_does_not_grow() -> None:
    counts = [stored(lambda n=n: solve_in(n, "reversible")) for n in (16, 256)]
    assert counts[0] == counts[1]
    counts = [stored(lambda n=n: solve_in(n, "direct", pf.odeint_adjoint)) for n in (16, 256)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("method", ["euler", "explicit_adams", "dopri5"])
def test_times_within_a_vmap(method: str) -> None:
    def end(time: Tensor) -> Tensor:
        t = torch.stack([torch.zeros_like(time), time])
        return pf.odeint(lambda t, y: -y, torch.ones(2, dtype=DOUBLE), t, method=method)[-1]

    times = torch.tensor([0.5, 1.0], dtype=DOUBLE)
    if method == "dopri5":
        with pytest.raises(ValueError, match=r"^t: torch.func.vmap hides the times"):
            torch.func.vmap(end)(times)
    else:
        expected = torch.stack([end(time) for time in times])
        torch.testing.assert_close(torch.func.vmap(end)(times), expected)


def test_refused_combinations() -> None:
    y0, t = leaf(0.5, -1.0), torch.tensor([0.0, 1.0], dtype=DOUBLE)

    def solve(method: str, times: Tensor = t, **options: object) -> None:
        pf.odeint(Field(), y0, times, method=method, options=options)

    with pytest.raises(ValueError, match="'reversible' needs fixed steps"):
        solve("dopri5", gradients="reversible")
    with pytest.raises(ValueError, match="'reversible' goes without"):
        solve("rk4", leaf(0.0, 1.0), gradients="reversible")
    with pytest.raises(ValueError, match="'reversible' goes without"):
        solve("rk4", gradients="reversible", perturb=True)
    inside = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    with pytest.raises(ValueError, match="ends of steps only"):
        solve("rk4", inside, gradients="reversible", step_size=0.4, interp="cubic")
    with pytest.raises(ValueError, match="'checkpoint' goes without jump_t"):
        solve("dopri5", gradients="checkpoint", jump_t=[0.5])
    with pytest.raises(ValueError, match="per_sample has 'direct' and 'checkpoint' only"):
        solve("dopri5", gradients="reversible", per_sample=True)


def plain_reversible(method: str, y0: Tensor, field: nn.Module, grid: list[float]) -> Tensor:
    """The reversible scheme without its backward pass, for autograd."""
    problem, tableau = Problem(field, y0), TABLEAUS[method]
    nothing: list[list[float]] = [[]] * (len(grid) - 1)
    there = on_grid(tableau, grid, nothing, y0, DOUBLE)
    back = _reversed(on_grid(tableau, grid[::-1], nothing, y0, DOUBLE))
    return torch.stack([y0, *(y for y, _ in reversible_steps(problem, tableau, y0, there, back))])


@pytest.mark.parametrize("times", DIRECTIONS)
@pytest.mark.parametrize("method", FIXED)
def test_reversible_gradients_are_exact(method: str, times: tuple[float, ...]) -> None:
    grid = torch.linspace(times[0], times[-1], 101, dtype=DOUBLE)
    field, y0 = Field(), leaf(0.5, -1.0)
    given = pf.odeint(field, y0, grid, method=method, options={"gradients": "reversible"})
    expected = plain_reversible(method, y0, field, grid.tolist())
    assert torch.equal(given, expected)
    inputs = (y0, *field.parameters())
    results = (torch.autograd.grad(weighted(states), inputs) for states in (given, expected))
    close(*results, atol=1e-11)


@pytest.mark.parametrize("method", FIXED)
def test_reversible_steps_keep_the_order(method: str) -> None:
    field, y0 = Field(), torch.tensor([0.5, -1.0], dtype=DOUBLE)
    exact = pf.odeint(field, y0, [0.0, 2.0], **TIGHT)[-1]
    errors = [
        float((pf.odeint(field, y0, [0.0, 2.0], method=method,
                         options={"step_size": 2.0 / n, "gradients": "reversible"})[-1]
               - exact).norm().detach())
        for n in (40, 80)
    ]  # fmt: skip
    assert abs(math.log2(errors[0] / errors[1]) - TABLEAUS[method].order) < 0.3


def test_reversible_steps_in_single_precision() -> None:
    grads = []
    for dtype in (torch.float32, DOUBLE):
        field, y0 = Field().to(dtype), torch.tensor([0.5, -1.0], dtype=dtype, requires_grad=True)
        options = {"step_size": 0.01, "gradients": "reversible"}
        y = pf.odeint(field, y0, [0.0, 1.0], method="rk4", options=options)
        grads.append([g.double() for g in torch.autograd.grad(y.sum(), (y0, *field.parameters()))])
    close(*map(tuple, grads), atol=1e-5)


def test_reversible_gradients_reach_what_the_function_closes_over() -> None:
    rate, scale = scalar(0.5), scalar(1.3)
    product, y0 = rate * scale, leaf(1.0)  # a graph that all steps share
    t = torch.linspace(0.0, 1.0, 11, dtype=DOUBLE)
    results = []
    for gradients in ("reversible", "direct"):
        states = pf.odeint(
            lambda t, y: -product * y + y0, y0, t, method="rk4", options={"gradients": gradients}
        )
        results.append(torch.autograd.grad(states.sum(), (y0, rate, scale), retain_graph=True))
    close(*results, atol=1e-6)

    def late(t: Tensor, y: Tensor) -> Tensor:
        return -y if t < 0.5 else -rate * y

    options = {"gradients": "reversible"}
    with pytest.raises(RuntimeError, match="uses a tensor that requires a gradient at some times"):
        pf.odeint(late, y0, t, method="rk4", options=options).sum().backward()


def test_reversible_run_reports_what_went_wrong() -> None:
    y0, t = leaf(1.0), torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    options = {"gradients": "reversible"}
    with pytest.raises(NonFiniteError, match=r"euler: func returned NaN .* t = 0, sample 0"):
        pf.odeint(lambda t, y: y / 0.0, y0, t, method="euler", options=options)
    problem = Problem(lambda t, y: y, y0)
    with pytest.raises(ValueError, match=r"coupling: need a number in \(0, 1\]"):
        integrate_reversible(problem, TABLEAUS["rk4"], [0.0, 1.0], [[1.0]], coupling=1.5)


def test_a_reversible_run_that_has_come_apart_warns() -> None:
    """The scheme is not stable on decays; that no digit is left is told, and only that."""

    def end(func, t, step: float, method: str = "midpoint", **options) -> float:
        y0 = torch.ones((), dtype=DOUBLE)
        options = {"gradients": "reversible", "step_size": step, **options}
        return float(pf.odeint(func, y0, [0.0, t], method=method, options=options)[-1])

    for method, size in (("euler", 4e6), ("midpoint", 2457.2), ("rk4", 0.344)):
        with pytest.warns(
            UserWarning, match="gradients: the 'reversible' run has come apart"
        ) as told:
            assert abs(end(lambda t, y: -y, 20.0, 0.05, method)) == pytest.approx(size, rel=0.01)
        assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # With steps shorter than 1 - coupling the difference falls.
        assert end(lambda t, y: -y, 10.0, 0.0009) == pytest.approx(math.exp(-10.0), abs=1e-10)
        assert end(lambda t, y: -y, 2.0, 0.05) == pytest.approx(math.exp(-2.0), rel=1e-2)
        assert end(lambda t, y: y, 20.0, 0.05) == pytest.approx(math.exp(20.0), rel=2e-2)
        assert end(lambda t, y: -torch.sin(t), 3.0, 0.05) == pytest.approx(math.cos(3.0), rel=1e-3)
        end(lambda t, y: -y, 20.0, 0.05, check_finite=False)
        pf.odeint(lambda t, y: y, torch.ones(0, 2), [0.0, 1.0], method="rk4",
                  options={"gradients": "reversible"})  # fmt: skip


def test_reversible_run_calls_the_callback() -> None:
    field, seen = Field(), []
    field.callback_step = lambda t, y, dt: seen.append(float(t))
    pf.odeint(field, leaf(0.5, -1.0), [0.0, 0.5, 1.0], method="rk4",
              options={"gradients": "reversible"})  # fmt: skip
    assert seen == [0.0, 0.5]


# The state at the first time --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rk4", "explicit_adams", "dopri5"])
def test_the_first_state_does_not_move_with_its_time(method: str) -> None:
    """It is the one given; a later start changes only what comes after."""
    y0, t = leaf(1.1), torch.tensor([0.2], dtype=DOUBLE, requires_grad=True)
    alone = pf.odeint(Decay(False), y0, t, method=method)
    by_y0, by_t = torch.autograd.grad(alone.sum() + 0 * t, (y0, t))
    assert (by_y0, by_t) == (1.0, 0.0)
    t = torch.tensor([0.2, 1.0], dtype=DOUBLE, requires_grad=True)
    options = None if method == "dopri5" else {"step_size": 0.05}
    _, states = pf.odeint(
        Decay(False), y0, t, method=method, options=options, event_fn=lambda t, y: t - 0.9
    )
    (by_t,) = torch.autograd.grad(states[0].sum() + 0 * t.sum(), t, retain_graph=True)
    assert torch.equal(by_t, torch.zeros_like(by_t))
    (by_t,) = torch.autograd.grad(states[1].sum(), t)  # 1.1 exp(-0.7 (0.9 - t0))
    expected = 0.77 * torch.exp(torch.tensor(-0.49, dtype=DOUBLE))
    torch.testing.assert_close(by_t[0], expected, rtol=1e-4, atol=0.0)


def test_times_of_a_complex_state_move_it_as_they_should() -> None:
    y0 = torch.tensor([1.0 + 2.0j, 0.5 - 1.0j], dtype=torch.complex128)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=DOUBLE, requires_grad=True)

    def func(t: Tensor, y: Tensor) -> Tensor:
        return (-0.7 + 0.5j + 0.3 * t) * y

    found = []
    for states in (
        pf.odeint(func, y0, t),
        pf.odeint_adjoint(func, y0, t, adjoint_params=()),
        y0 * torch.exp((-0.7 + 0.5j) * (t - t[0]) + 0.15 * (t**2 - t[0] ** 2))[:, None],
    ):
        loss = states.real.square().sum() + 2.0 * states.imag.sum()
        found.append(torch.autograd.grad(loss, t)[0])
    close((found[0], found[1]), (found[2], found[2]), atol=1e-5)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4", "explicit_adams"])
def test_second_derivatives_by_the_times(method: str) -> None:
    """Of y0 exp((t1^2 - t0^2) / 2), by both times and the start."""

    def exact(t: Tensor, y0: Tensor) -> Tensor:
        return y0 * torch.exp((t[1] ** 2 - t[0] ** 2) / 2)

    def solved(t: Tensor, y0: Tensor) -> Tensor:
        options = {"step_size": 1e-2} if method in ("rk4", "explicit_adams") else {}
        how = {"method": method, "options": options, "rtol": 1e-10, "atol": 1e-10}
        return pf.odeint(lambda t, y: t * y, y0, t, **how)[-1]

    at = torch.tensor([0.3, 1.1], dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
    found, truth = (torch.autograd.functional.hessian(f, at) for f in (solved, exact))
    for one, other in zip(found, truth, strict=True):
        for mine, its in zip(one, other, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=0.0)
