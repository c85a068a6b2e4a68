"""What code written for torchdiffeq relies on, and the other test files do not show."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from equations import DOUBLE, rotated, rotation
from torch import Tensor, nn

import probflow as pf
from probflow.tableaus import TABLEAUS

FIXED = [name for name, tableau in TABLEAUS.items() if not tableau.adaptive]
EVERY = [*TABLEAUS, "explicit_adams"]
GRID = torch.linspace(0.0, 1.0, 41, dtype=DOUBLE)
Y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE)
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def bound(method: str) -> float:
    """Error on 40 steps, or at tolerances of 1e-8, of solutions of size 1."""
    order = TABLEAUS[method].order if method in TABLEAUS else 4
    return {1: 0.03, 2: 1e-3}.get(order, 1e-5)


def solved(func: Callable[..., Any], y0: Any, method: str, t: Tensor = GRID, **how: Any) -> Any:
    return pf.odeint(func, y0, t, method=method, **TIGHT, **how)


# The time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize(
    ("state", "time"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.float32),
        (torch.complex128, torch.float64),
    ],
)
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_the_time_is_a_number_of_the_states_precision(method, state, time, given) -> None:
    seen = set()

    def func(t, y):
        seen.add((t.shape, t.dtype, t.device, y.dtype))
        return -y

    t = torch.tensor([0.0, 0.5, 1.0], dtype=given)
    y = pf.odeint(func, torch.ones(2, dtype=state), t, method=method, rtol=1e-3, atol=1e-3)
    assert seen == {((), time, torch.device("cpu"), state)}
    assert y.dtype == state


@pytest.mark.parametrize(
    "column",
    [
        lambda t, x: torch.ones(x.size(0), 1) * t,
        lambda t, x: t.expand(x.size(0), 1),
        lambda t, x: t.view(1, 1).repeat(x.size(0), 1),
        lambda t, x: t.reshape(-1, 1).expand(x.size(0), -1),
        lambda t, x: t.unsqueeze(0).repeat(x.size(0))[:, None],
        lambda t, x: torch.full((x.size(0), 1), t.item()),
        lambda t, x: torch.zeros_like(x[:, :1]) + float(t),
    ],
)
@pytest.mark.parametrize("method", ["dopri5", "euler"])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_ways_to_hand_the_time_to_a_network(column, method: str, given: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(4, 2)

    def func(t, x):
        return net(torch.cat((x, column(t, x)), 1))

    how = {"method": method, "rtol": 1e-5, "atol": 1e-5}
    t = torch.linspace(1.0, 0.0, 6, dtype=given)
    ours, theirs = pf.odeint(func, x, t, **how), torchdiffeq.odeint(func, x, t, **how)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert ours.requires_grad


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("t", [[0.0, 0.5, 0.5, 1.0], [0.0, 0.0], [0.0, 1.0, 0.5]])
def test_times_must_be_strictly_monotone(method: str, t: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^t: times must be finite and strictly"):
        pf.odeint(decay, Y0, torch.tensor(t), method=method)


@pytest.mark.parametrize("method", EVERY)
def test_one_time_is_the_initial_state_and_no_evaluation(method: str) -> None:
    def func(t, y):
        raise AssertionError("called")

    y = pf.odeint(func, Y0, torch.tensor([0.3]), method=method)
    assert torch.equal(y, Y0[None])
    first, second = pf.odeint(func, (Y0, Y0[0]), torch.tensor([0.3]), method=method)
    assert first.shape == (1, 2)
    assert second.shape == (1,)


# States -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize(
    "y0",
    [
        torch.tensor(2.0, dtype=DOUBLE),
        torch.ones(0, 3, dtype=DOUBLE),
        torch.ones(0, 3),
        torch.arange(3.0, dtype=DOUBLE).expand(4, 3),
        torch.arange(6.0, dtype=DOUBLE).view(2, 3).t(),
        torch.arange(96.0, dtype=DOUBLE).view(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.tensor([1.0 + 1.0j, 2.0]),
    ],
    ids=["number", "no-rows", "no-rows-32", "expanded", "transposed", "channels-last", "complex"],
)
def test_states_of_every_layout(method: str, y0: Tensor) -> None:
    before = y0.clone()
    y = pf.odeint(decay, y0, GRID, method=method, rtol=1e-6, atol=1e-6)
    assert y.shape == (41, *y0.shape)
    scale = 1.0 + float(before.abs().max() if before.numel() else 0.0)
    error = (y - torch.exp(-GRID).reshape(-1, *(1,) * y0.ndim) * before).abs()
    assert not y.numel() or float(error.max()) < scale * max(bound(method), 1e-5)
    assert torch.equal(y0, before)


@pytest.mark.parametrize("method", EVERY)
def test_a_tuple_with_an_empty_part(method: str) -> None:
    y, none = solved(lambda t, s: (-s[0], s[1]), (Y0, torch.ones(0, dtype=DOUBLE)), method)
    assert y.shape == (41, 2)
    assert none.shape == (41, 0)


def test_the_dtypes_of_a_tuple_are_promoted() -> None:
    y, q = solved(lambda t, s: (-s[0], s[1]), (Y0, torch.ones(3)), "dopri5")
    assert y.dtype == q.dtype == DOUBLE


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("method", EVERY)
def test_nothing_of_the_callers_is_changed(method: str, grad: bool) -> None:
    """Neither arguments, nor states handed to the function, nor what it returned."""
    seen, copies = [], []

    def func(t, y):
        slope = -y * (1 + t)
        seen.extend((t, y, slope))
        copies.extend((t.clone(), y.clone(), slope.clone()))
        return slope

    y0, t, options = Y0.clone(), GRID.clone(), {"norm": lambda y: y.abs().max()}
    with torch.set_grad_enabled(grad):
        y = solved(func, y0, method, t, options=options)
    assert all(map(torch.equal, seen, copies))
    y.zero_()
    assert torch.equal(y0, Y0)
    assert torch.equal(t, GRID)
    assert list(options) == ["norm"]


@pytest.mark.parametrize("method", EVERY)
def test_a_function_may_return_its_argument(method: str) -> None:
    y = solved(lambda t, y: y, Y0, method)
    assert float(y[-1, 0]) == pytest.approx(math.e, rel=bound(method))


# Outputs of the function ------------------------------------------------------------------------


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("method", EVERY)
def test_a_function_may_overwrite_what_it_returned_before(method: str, view: bool) -> None:
    """As one that writes into a buffer of its own, or a captured graph of a device."""
    buffer = torch.empty(2, dtype=DOUBLE)

    def func(t, y):
        buffer.copy_(rotation(t, y))
        return buffer.view(2) if view else buffer

    with torch.no_grad():
        given, expected = solved(func, Y0, method), solved(rotation, Y0, method)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_a_buffer_with_samples_of_their_own_steps_and_dense_output() -> None:
    buffer = torch.empty(2, 2, dtype=DOUBLE)

    def func(t, y):
        return buffer.copy_(rotation(t, y))

    y0 = torch.stack((Y0, 0.5 * Y0))
    for options in ({"per_sample": True}, {}):
        y = pf.odeint(func, y0, [0.0, 0.4, 1.0], method="dopri8", options=options, **TIGHT)
        assert float((y[-1] - rotated(y0, 1.0)).abs().max()) < 1e-6
    dense = pf.odeint_dense(func, y0, 0.0, 1.0, **TIGHT)
    assert float((dense(0.3) - rotated(y0, 0.3)).abs().max()) < 1e-6


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize(
    ("state", "slope"),
    [((1,), ()), ((), (1,)), ((4, 1), (4,)), ((4,), (4, 1)), ((1, 4), (4,)), ((3, 2), ())],
)
def test_axes_of_length_one_may_differ(method: str, state: tuple, slope: tuple) -> None:
    """As with ``func = lambda t, y: torch.cos(t)`` and y0 of shape (1,)."""
    y = solved(lambda t, y: torch.cos(t).expand(slope), torch.zeros(state, dtype=DOUBLE), method)
    assert y.shape == (41, *state)
    assert float((y[-1] - math.sin(1.0)).abs().max()) < bound(method)


@pytest.mark.parametrize("method", EVERY)
def test_axes_of_length_one_in_tuples(method: str) -> None:
    """As with a log-density of shape (n,) whose change is (n, 1)."""

    def func(t, state):
        return -state[0], state[0].sum(1, keepdim=True)

    y0 = (torch.ones(3, 2, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE))
    _, q = solved(func, y0, method)
    assert q.shape == (41, 3)
    assert float((q[-1] - 2 * (1 - math.exp(-1))).abs().max()) < 2 * bound(method)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_shapes_that_would_have_to_be_guessed_are_refused(method: str) -> None:
    y0 = torch.zeros(3, 2, dtype=DOUBLE)
    for slope in (torch.zeros(2), torch.zeros(1, 2), torch.zeros(6), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"must return the state's shape \(3, 2\)"):
            solved(lambda t, y, slope=slope: slope.double(), y0, method)
    with pytest.raises(ValueError, match=r"must return the state's shape \(2,\), returned \(\)"):
        solved(lambda t, s: (-s[0], s[0].sum()), (Y0, Y0), method)


@pytest.mark.parametrize("method", EVERY)
def test_slopes_of_another_dtype_are_converted(method: str) -> None:
    y = solved(lambda t, y: torch.ones(2, dtype=torch.int64), Y0, method)
    assert y.dtype == DOUBLE
    torch.testing.assert_close(y[-1], Y0 + 1.0)
    y = pf.odeint(lambda t, y: -y.double(), Y0.float(), GRID, method=method, rtol=1e-5, atol=1e-5)
    assert y.dtype == torch.float32


@pytest.mark.parametrize("kind", [tuple, list, iter])
def test_a_tuple_state_may_be_answered_by_any_sequence(kind: Callable[..., Any]) -> None:
    y, _ = solved(lambda t, s: kind((-s[0], s[1])), (Y0, Y0), "dopri5")
    assert float(y[-1, 0]) == pytest.approx(math.exp(-1), abs=1e-6)


@pytest.mark.parametrize("answer", [None, 1.0, torch.tensor(1.0), torch.ones(2, 2), "ab"])
def test_what_a_tuple_state_is_not_answered_by(answer: Any) -> None:
    with pytest.raises(TypeError, match=r"^func: must return a "):
        pf.odeint(lambda t, s: answer, (Y0, Y0), [0.0, 1.0])


# Gradients inside the function ------------------------------------------------------------------


class Density(nn.Module):
    """(x, log-density change) of a linear field, its trace from autograd, as FFJORD writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.5, -1.5], dtype=DOUBLE))
        self.register_buffer("evaluations", torch.tensor(0))

    def forward(self, t: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = states[0]
        self.evaluations += 1
        with torch.enable_grad():
            x.requires_grad_(True)
            t.requires_grad_(True)
            slope = (1 + t) * self.rate * x
            noise = torch.ones_like(x)
            (product,) = torch.autograd.grad(slope, x, noise, create_graph=True)
        return slope, -(product * noise).sum(1, keepdim=True)


@pytest.mark.parametrize("interface", [pf.odeint, pf.odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("grad", [True, False])
def test_likelihoods_with_a_trace_from_autograd(interface, method: str, grad: bool) -> None:
    func, x = Density(), torch.ones(3, 2, dtype=DOUBLE)
    t = torch.linspace(1.0, 0.0, 3 if method == "dopri5" else 41, dtype=DOUBLE)
    with torch.set_grad_enabled(grad):
        y, q = interface(func, (x, torch.zeros(3, 1, dtype=DOUBLE)), t, method=method, **TIGHT)
    # The integral of 1 + t from 1 to 0 is -3/2.
    exact = torch.exp(-1.5 * func.rate.detach())
    assert float((y[-1].detach() - exact).abs().max()) < 1e-5
    assert float((q[-1].detach() - 1.5 * func.rate.detach().sum()).abs().max()) < 1e-5
    assert int(func.evaluations) > 0
    if grad:
        (y[-1].sum() + q[-1].sum()).backward()
        expected = 3 * (1.5 - 1.5 * exact)
        torch.testing.assert_close(func.rate.grad, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", EVERY)
def test_forces_as_gradients_of_an_energy(method: str) -> None:
    def func(t, y):
        with torch.enable_grad():
            y = y.requires_grad_(True)
            return -torch.autograd.grad(y.square().sum() / 2, y)[0]

    with torch.no_grad():
        y = solved(func, Y0.clone(), method)
    assert not y.requires_grad
    assert float(y[-1, 0]) == pytest.approx(math.exp(-1), abs=bound(method))


@pytest.mark.parametrize("method", EVERY)
def test_parameters_under_no_grad(method: str) -> None:
    rate = nn.Parameter(torch.tensor(-1.0, dtype=DOUBLE))
    with torch.no_grad():
        assert not solved(lambda t, y: rate * y, Y0, method).requires_grad
    assert solved(lambda t, y: rate * y, Y0, method).requires_grad


# Options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "rk4"])
def test_samplers_of_flow_matching(method: str) -> None:
    """Two times and a step, or all the times: the same steps, and torchdiffeq's."""
    t = torch.linspace(0.0, 1.0, 21, dtype=DOUBLE)
    how: dict[str, Any] = {"method": method, "rtol": 1e-5, "atol": 1e-5}
    every = pf.odeint(rotation, Y0, t, **how)
    for step in (0.05, torch.tensor(0.05, dtype=DOUBLE)):
        ends = pf.odeint(rotation, Y0, t[[0, -1]], options={"step_size": step}, **how)
        torch.testing.assert_close(ends[-1], every[-1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(every, torchdiffeq.odeint(rotation, Y0, t, **how))


def test_defaults_are_dopri5_at_torchdiffeqs_tolerances() -> None:
    first = pf.odeint(rotation, Y0, GRID)
    assert torch.equal(first, pf.odeint(rotation, Y0, GRID, rtol=1e-7, atol=1e-9, method="dopri5"))
    assert torch.equal(first, pf.odeint(rotation, Y0, GRID, method=None, options={}))
    with pytest.raises(TypeError):
        pf.odeint(rotation, Y0, GRID, 1e-3)


@pytest.mark.parametrize("t", [[0.0, 1.0], [1.0, 0.0]])
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_perturb_keeps_every_fixed_method_off_the_grid(method: str, t: list, interp: str) -> None:
    seen = []

    def func(time, y):
        seen.append(float(time))
        return rotation(time, y)

    options = {"step_size": 0.25, "perturb": True, "interp": interp}
    times = torch.tensor([t[0], 0.4, t[1]], dtype=DOUBLE)
    y = pf.odeint(func, Y0, times, method=method, options=options)
    assert not {0.0, 0.25, 0.5, 0.75, 1.0} & set(seen)
    assert 0.0 < min(seen) < max(seen) < 1.0
    plain = pf.odeint(rotation, Y0, times, method=method, options={**options, "perturb": False})
    torch.testing.assert_close(y, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["callback_accept_step", "callback_reject_step"])
@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
def test_callbacks_that_are_never_called_are_told(method: str, name: str) -> None:
    func = nn.Tanh()
    wrapped = type("Func", (), {"__call__": lambda self, t, y: func(y)})()
    setattr(wrapped, name, lambda t0, y0, dt: None)
    with pytest.warns(UserWarning, match=f"{name}: {method} has fixed steps"):
        pf.odeint(wrapped, Y0, GRID, method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.odeint(wrapped, Y0, GRID, method="dopri5")


def test_the_grid_of_the_backward_pass_runs_backwards() -> None:
    seen = []

    def constructor(func, y0, t):
        seen.append(t.tolist())
        return torch.linspace(float(t[0]), float(t[-1]), 11)

    y0 = torch.tensor(1.0, requires_grad=True)
    options = {"grid_constructor": constructor}
    y = pf.odeint_adjoint(
        lambda t, y: y, y0, torch.tensor([0.0, 1.0]), method="euler", options=options,
        adjoint_params=(),
    )  # fmt: skip
    y[-1].backward()
    assert seen == [[0.0, 1.0], [1.0, 0.0]]
    assert float(y[-1].detach()) == pytest.approx(1.1**10, rel=1e-5)
    assert float(y0.grad) == pytest.approx(1.1**10, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", [name for name, tableau in TABLEAUS.items() if tableau.adaptive])
def test_a_state_that_stays_where_it_is(method: str, per_sample: bool, dtype: torch.dtype) -> None:
    y0 = torch.ones(3, 2, dtype=dtype)
    options = {"per_sample": per_sample}
    y = pf.odeint(lambda t, y: 0 * y, y0, [0.0, 1.0], method=method, options=options)
    assert torch.equal(y, torch.stack((y0, y0)))


# Events -----------------------------------------------------------------------------------------


class Ball(nn.Module):
    """Falls from a height and loses a part of its speed at each bounce."""

    def __init__(self) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor([9.8], dtype=DOUBLE))
        self.height = nn.Parameter(torch.tensor([10.0], dtype=DOUBLE))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state[1], -self.gravity

    def bounces(self, count: int, interface: Callable[..., Any]) -> list[Tensor]:
        t = torch.zeros((), dtype=DOUBLE)
        state, found = (self.height, torch.zeros(1, dtype=DOUBLE)), []
        for _ in range(count):
            t, states = pf.odeint_event(
                self, state, t, event_fn=lambda t, s: s[0], odeint_interface=interface,
                rtol=1e-8, atol=1e-8,
            )  # fmt: skip
            found.append(t)
            height, speed = (part[-1] for part in states)
            state = height + 1e-7, -0.8 * speed
        return found


@pytest.mark.parametrize("interface", [pf.odeint, pf.odeint_adjoint])
def test_bounces_of_a_ball_and_how_they_move(interface: Callable[..., Any]) -> None:
    ball = Ball()
    found = ball.bounces(3, interface)
    fall = math.sqrt(2 * 10.0 / 9.8)
    for number, factor in enumerate((1.0, 1 + 1.6, 1 + 1.6 + 1.28)):
        assert float(found[number].detach()) == pytest.approx(factor * fall, abs=1e-5)
    found[2].backward()
    # t = factor sqrt(2 height / gravity)
    assert float(ball.height.grad) == pytest.approx(3.88 * fall / 20.0, abs=1e-5)
    assert float(ball.gravity.grad) == pytest.approx(-3.88 * fall / 19.6, abs=1e-5)


def test_an_event_function_may_say_stop_with_a_constant() -> None:
    """A last time, written as a constant without a gradient."""
    y0 = Y0.clone().requires_grad_()

    def event(t, y):
        return torch.zeros_like(t) if t > 0.7 else y[0] + 10.0

    t, y = pf.odeint_event(rotation, y0, torch.tensor(0.0).double(), event_fn=event)
    assert float(t) == pytest.approx(0.7, abs=1e-6)
    y[-1].sum().backward()
    c, s = (f(float(t) + float(t) ** 2 / 2) for f in (math.cos, math.sin))
    torch.testing.assert_close(y0.grad, torch.tensor([c + s, c - s], dtype=DOUBLE))
    with torch.no_grad():
        again, _ = pf.odeint_event(rotation, y0, torch.tensor(0.0).double(), event_fn=event)
    assert float(again) == float(t)


def test_the_dense_output_takes_torchdiffeqs_arguments() -> None:
    t0, t1 = torch.tensor(0.0, dtype=DOUBLE), torch.tensor(2.0, dtype=DOUBLE)
    how = {"rtol": 1e-9, "atol": 1e-9, "method": "dopri5"}
    ours, theirs = (
        f(rotation, Y0, t0, t1, **how) for f in (pf.odeint_dense, torchdiffeq.odeint_dense)
    )
    time = torch.tensor(0.77, dtype=DOUBLE)
    torch.testing.assert_close(ours(time), theirs(time), rtol=0, atol=1e-7)
