"""Functions that return the same memory again and again: results as with memory of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probflow as pf
from probflow.integrate.loop import run_plan
from probflow.integrate.watch import Watch
from probflow.ode.options import native_methods
from probflow.plan import trace
from probflow.tableaus import TABLEAUS

DOUBLE = torch.float64
Y0 = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=DOUBLE)
COUNTS = (1, 2, 3, 4)


def buffered(function: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
    """The function, with its outputs in ``count`` buffers that take turns."""
    buffers: list[Tensor] = []
    turn = itertools.count()

    def call(*arguments: Any) -> Tensor:
        value = function(*arguments)
        if not buffers:
            buffers.extend(torch.empty_like(value) for _ in range(count))
        return buffers[next(turn) % count].copy_(value)

    return call


# What the watch does ----------------------------------------------------------------------------


def test_new_memory_is_copied_at_first_only() -> None:
    watch = Watch(3)
    kept = []
    for number in range(5):
        output = torch.full((2,), float(number))
        kept.append(watch(output))
        assert (kept[-1] is output) == (number >= 3)
    assert not watch.shared
    assert not watch.copying


@pytest.mark.parametrize("count", [1, 2, 5])
def test_buffers_are_copied_for_ever(count: int) -> None:
    watch, function = Watch(6), buffered(lambda number: torch.full((2,), float(number)), count)
    kept = [watch(function(number)) for number in range(20)]
    assert watch.shared
    assert [float(output[0]) for output in kept] == list(range(20))


def test_memory_of_another_library_is_seen() -> None:
    memory, watch = np.zeros(2), Watch(3)
    kept = []
    for number in range(4):
        memory[:] = number
        kept.append(watch(torch.from_numpy(memory)))  # a new tensor on the same memory
    assert [float(output[0]) for output in kept] == [0.0, 1.0, 2.0, 3.0]


def test_rows_of_one_tensor_are_different_memory() -> None:
    watch = Watch(4)
    for row in torch.zeros(6, 2).unbind(0):
        watch(row)
    assert not watch.shared


# odeint -----------------------------------------------------------------------------------------


def field(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack((-y[:, 1], y[:, 0] * (1.0 + t)), 1)


@pytest.mark.parametrize("method", native_methods())
@pytest.mark.parametrize("inside", [False, True])
def test_odeint(method: str, inside: bool) -> None:
    options: dict[str, Any] = {}
    if inside:
        adaptive = method in TABLEAUS and TABLEAUS[method].adaptive
        # Without an estimate of the first step there is one evaluation less before it.
        options = {"first_step": 0.4} if adaptive else {"step_size": 0.13, "interp": "cubic"}
    t = torch.linspace(0.0, 2.0, 6, dtype=DOUBLE)
    how: dict[str, Any] = {"method": method, "options": options, "rtol": 1e-5, "atol": 1e-5}
    expected = pf.odeint(field, Y0, t, **how)
    for count in (*COUNTS, 6, 7, 8):
        found = pf.odeint(buffered(field, count), Y0, t, **how)
        assert torch.equal(found, expected), count


@pytest.mark.parametrize("count", COUNTS)
def test_odeint_in_other_ways(count: int) -> None:
    def solves(make: Callable[..., Any]) -> list[Tensor]:
        t = [0.0, 0.5, 2.0]
        options: dict[str, Any] = {"per_sample": True}
        states = [pf.odeint(make(field), Y0, t, rtol=1e-4, options=options)]
        states.append(pf.odeint_dense(make(field), Y0, 0.0, 2.0, rtol=1e-4)(0.77))
        states.append(pf.odeint_event(make(field), Y0, 0.0, event_fn=lambda t, y: y[0, 0] - 0.2)[1])
        stepper = pf.ode_stepper(make(field), Y0, 0.0, 2.0)
        states += [stepper.step().state(stepper.t) for _ in range(4)]
        start = Y0.clone().requires_grad_()
        options = {"step_size": 0.1, "gradients": "checkpoint"}
        y = pf.odeint(make(field), start, t, method="rk4", options=options)
        y.square().sum().backward()
        assert start.grad is not None
        return [*states, start.grad]

    for found, expected in zip(
        solves(lambda f: buffered(f, count)), solves(lambda f: f), strict=True
    ):
        assert torch.equal(found, expected)


# sdeint -----------------------------------------------------------------------------------------


class Equation:
    """A nonlinear SDE, with buffers for its functions."""

    def __init__(self, sde_type: str, noise_type: str, count: int = 0, joint: bool = False) -> None:
        self.sde_type, self.noise_type = sde_type, noise_type
        diffusion = {
            "diagonal": lambda t, y: 0.3 * torch.cos(y) + 0.1,
            "scalar": lambda t, y: (0.3 * torch.cos(y) + 0.1)[..., None],
            "additive": lambda t, y: (0.1 + t) * torch.ones(*y.shape, 2, dtype=y.dtype),
            "general": lambda t, y: torch.stack((0.3 * torch.cos(y), 0.2 * torch.sin(y)), -1),
        }[noise_type]

        def drift(t: Tensor, y: Tensor) -> Tensor:
            return torch.sin(y) - t * y

        def either(which: int, t: Tensor, y: Tensor) -> Tensor:
            return diffusion(t, y) if which else drift(t, y)

        if joint:  # drift and diffusion in the same memory
            both = buffered(either, count)
            self.f, self.g = lambda t, y: both(0, t, y), lambda t, y: both(1, t, y)
        elif count:
            self.f, self.g = buffered(drift, count), buffered(diffusion, count)
        else:
            self.f, self.g = drift, diffusion


FITTING = [
    *(("ito", "euler", noise) for noise in ("diagonal", "scalar", "additive", "general")),
    *(("ito", name, noise) for name in ("milstein", "srk") for noise in ("diagonal", "additive")),
    *(
        ("stratonovich", name, noise)
        for name in ("midpoint", "heun", "euler_heun", "reversible_heun", "log_ode")
        for noise in ("diagonal", "general")
    ),
    ("ito", "srk", "scalar"),
    ("stratonovich", "milstein", "diagonal"),
]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("sde_type", "method", "noise"), FITTING)
@pytest.mark.filterwarnings("ignore:adaptive. with steps chosen")
def test_sdeint(sde_type: str, method: str, noise: str, adaptive: bool) -> None:
    def run(*buffers: Any) -> Tensor:
        sde = Equation(sde_type, noise, *buffers)
        how: dict[str, Any] = {"adaptive": adaptive, "rtol": 1e-2, "atol": 1e-2}
        return pf.sdeint(sde, Y0, [0.0, 0.5], method=method, dt=0.1, options={"seed": 1}, **how)

    expected = run()
    for count in COUNTS:
        assert torch.equal(run(count), expected), count
    if noise == "diagonal":
        assert torch.equal(run(1, True), expected)


@pytest.mark.parametrize("method", ["reversible_heun", "midpoint"])
@pytest.mark.parametrize("count", COUNTS)
def test_sdeint_adjoint(method: str, count: int) -> None:
    gradients = []
    for buffers in (0, count):
        y0 = Y0.clone().requires_grad_()
        sde = Equation("stratonovich", "diagonal", buffers)
        ys = pf.sdeint_adjoint(
            sde, y0, [0.0, 0.5], method=method, dt=0.1, adjoint_params=(), options={"seed": 1}
        )
        ys[-1].square().sum().backward()
        gradients.append(y0.grad)
    assert torch.equal(*gradients)


# Plans ------------------------------------------------------------------------------------------


PROCESS = pf.VP.linear()


def net(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * (1.0 + t.reshape(-1, 1))


@pytest.mark.parametrize(
    "solver",
    # Forward-mode differentiation does not let a function write into tensors of its own.
    [name for name in pf.solver_names() if name != "accelerated-sde-jvp"],
)
def test_plans(solver: str) -> None:
    def run(function: Callable[..., Tensor]) -> Tensor:
        model = pf.Model(function, PROCESS)
        return pf.sample(model, x=Y0, solver=solver, steps=7, seed=0, trajectory=True)

    expected = run(net)
    for count in COUNTS:
        assert torch.equal(run(buffered(net, count)), expected), count


def test_the_state_may_be_the_models_output() -> None:
    """A step that takes x0 as it is: neither states nor results share the model's memory."""

    def jump(step: Any) -> Any:
        return step.model(step.x, step.t)

    plan = trace("jump", jump, PROCESS, [1.0, 0.6, 0.3], native="x0", prediction="x0")

    def run(x: Tensor, count: int) -> Tensor:
        function = function_of[count]
        return run_plan(plan, pf.Model(function, PROCESS, "x0"), x, trajectory=True)

    function_of = {0: net, **{count: buffered(net, count) for count in COUNTS}}
    expected = run(Y0, 0)
    for count in COUNTS:
        found = run(Y0, count)
        run(2.0 * Y0, count)
        assert torch.equal(found, expected), count
