"""Arguments that do not fit are named, before the function is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import probflow as pf

DOUBLE = torch.float64
Y0 = torch.tensor([[1.0, 0.5, 2.0], [-0.3, 2.0, 1.0]], dtype=DOUBLE)
PROCESS = pf.VP.linear()
FLOW = pf.ProbabilityFlowODE(PROCESS, pf.Model(lambda x, t: 0.5 * x, PROCESS))


def never(t: Tensor, y: Any) -> Any:
    raise AssertionError("the function was called")


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def falls(t: Tensor, y: Tensor) -> Tensor:
    return y[0, 0] - 0.5


def solve(**how: Any) -> Any:
    return pf.odeint(never, Y0, [0.0, 1.0], **how)


def with_options(method: str = "dopri5", **options: Any) -> Callable[[], Any]:
    return lambda: solve(method=method, options=options)


def stepper(method: str = "dopri5", **options: Any) -> Callable[[], Any]:
    return lambda: pf.ode_stepper(never, Y0, 0.0, 1.0, method=method, options=options)


def adjoint(options: Any) -> Callable[[], Any]:
    return lambda: pf.odeint_adjoint(
        never, Y0, [0.0, 1.0], adjoint_params=(), adjoint_options=options
    )


def event(y0: Any = Y0, t0: Any = 0.0, **how: Any) -> Callable[[], Any]:
    return lambda: pf.odeint_event(never, y0, t0, event_fn=falls, **how)


def with_callback(name: str) -> Any:
    class Called:
        def __call__(self, t: Tensor, y: Tensor) -> Tensor:
            return never(t, y)

    setattr(Called, name, 3)
    return Called()


def called_back(method: str) -> Callable[[], Any]:
    return lambda: pf.odeint(with_callback("callback_step"), Y0, [0.0, 1.0], method=method)


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # Tolerances
    (lambda: solve(rtol=torch.ones(5)), ValueError, r"rtol: .*state's \(2, 3\), got \(5,\)"),
    (lambda: solve(atol=torch.ones(4, 2, 3)), ValueError, r"atol: .*got \(4, 2, 3\)"),
    (lambda: solve(atol=-torch.ones(3)), ValueError, "atol: need finite numbers >= 0"),
    (lambda: solve(atol=torch.full((3,), torch.nan)), ValueError, "atol: need finite numbers"),
    (lambda: solve(rtol=torch.ones(3, dtype=torch.complex64)), TypeError, "rtol: need real"),
    (
        lambda: pf.odeint(never, (Y0,), [0.0, 1.0], atol=(torch.ones(5),)),
        ValueError,
        r"atol: .*state's \(2, 3\), got \(5,\)",
    ),
    (lambda: pf.odeint(never, (Y0,), [0.0, 1.0], atol=("a",)), TypeError, "atol: need a number"),
    (lambda: solve(rtol=0.0, atol=0), ValueError, "rtol, atol: at least one of them must be pos"),
    (lambda: solve(method="rk4", rtol="a"), TypeError, "rtol: need a number, got 'a'"),
    (lambda: solve(method="euler", atol=-1.0), ValueError, "atol: need a finite number >= 0"),
    # Options
    (with_options(norm=lambda e: True), TypeError, "norm: must return a real number"),
    (with_options(norm=lambda e: e.sum() / 0), ValueError, "norm: must return 0 for an error of 0"),
    (with_options("rk4", grid_constructor=3), TypeError, "grid_constructor: need a function"),
    (with_options(norm=lambda e: e.abs()), ValueError, r"norm: must return one number.*\(2, 3\)"),
    (with_options(norm=lambda e: None), TypeError, "norm: must return a tensor, returned None"),
    (
        with_options(norm=lambda e: e.abs().max(), per_sample=True),
        ValueError,
        "norm: must return one for each of 2 samples",
    ),
    (with_options("rk4", norm=3), TypeError, "norm: need a function of the error, got 3"),
    (with_options("rk4", perturb="yes"), TypeError, "perturb: need True or False, got 'yes'"),
    (with_options(per_sample="yes"), TypeError, "per_sample: need True or False"),
    (with_options("rk4", step_size="a"), TypeError, "step_size: need a number, got 'a'"),
    (with_options("rk4", step_size=1e-20), ValueError, r"step_size: .* would be 1e\+20"),
    (with_options(args=2.0), TypeError, "args: need a tuple of further arguments"),
    (with_options(kwargs=3), TypeError, "kwargs: need a dictionary, got 3"),
    (lambda: solve(options=3), TypeError, "options: need a dictionary, got 3"),
    (
        lambda: pf.odeint(never, Y0[:0], [0.0, 1.0], options={"per_sample": True}),
        ValueError,
        "y0: with per_sample need at least one sample",
    ),
    (with_options(check_finite=False), ValueError, "check_finite=False does nothing for dopri5"),
    (
        with_options(check_finite=False, per_sample=True),
        ValueError,
        "check_finite=False does nothing for dopri5, whose step lengths come from the error",
    ),
    (lambda: pf.odeint(never, Y0, torch.tensor([0, 1])), TypeError, "t: need floating-point times"),
    (with_options(step_t="a"), TypeError, "step_t: need a sequence of times, got 'a'"),
    (with_options(jump_t=3), TypeError, "jump_t: need a sequence of times, got 3"),
    (
        with_options(max_num_steps=2.5),
        ValueError,
        "max_num_steps: need a whole number >= 1, .* 2.5",
    ),
    (lambda: solve(method=3), TypeError, "method: need a name, .* got 3; names: .*dopri5"),
    (lambda: pf.odeint_dense(decay, Y0, 0.0, 1.0)("a"), TypeError, "t: need a number or .* 'a'"),
    # Steppers have no options of whole solves
    (stepper(gradients="checkpoint"), ValueError, "options: dopri5 has no option 'gradients'"),
    (stepper(progress=True), ValueError, "has no option 'progress'"),
    (stepper(per_sample=True), ValueError, "has no option 'per_sample'"),
    (stepper("rk4", grid_constructor=never), ValueError, "rk4 has no option 'grid_constructor'"),
    (stepper("rk4", check_finite=True), ValueError, "rk4 has no option 'check_finite'"),
    (stepper("rk4", step_siz=0.1), ValueError, "near names: step_size; allowed: step_size"),
    (stepper("rk4", step_size="a"), TypeError, "step_size: need a number"),
    (lambda: pf.ode_stepper(never, Y0, "a", 1.0), TypeError, "t0: need a number"),
    (lambda: pf.odeint_dense(never, Y0, 0.0, [1.0]), TypeError, "t1: need a number"),
    (stepper("explicit_adams"), ValueError, "step_size: explicit_adams needs it"),
    # Adjoints
    (adjoint({"max_stp": 1}), ValueError, "^adjoint_options: dopri5 .*near names: max_step"),
    (adjoint({"return_info": True}), ValueError, "^adjoint_options: dopri5 has no option 'ret"),
    (adjoint(3), TypeError, "^adjoint_options: need a dictionary"),
    (
        lambda: pf.odeint_adjoint(never, Y0, [0.0, 1.0], adjoint_params=3),
        TypeError,
        "adjoint_params: need a sequence of tensors, .* got 3",
    ),
    (
        lambda: pf.odeint_adjoint(never, Y0, [0.0, 1.0], adjoint_params=("w",)),
        TypeError,
        "adjoint_params: need a sequence of tensors",
    ),
    (
        lambda: pf.odeint_adjoint(never, Y0, [0.0, 1.0], adjoint_params=Y0),
        TypeError,
        "adjoint_params: need a sequence of tensors",
    ),
    (
        lambda: pf.odeint_adjoint(never, Y0, [0.0, 1.0], adjoint_params=(), adjoint_rtol="x"),
        TypeError,
        "adjoint_rtol: need a number, got 'x'",
    ),
    (
        lambda: pf.odeint_adjoint(never, Y0, [0.0, 1.0], adjoint_params=(), adjoint_atol=-1.0),
        ValueError,
        "adjoint_atol: need a finite number >= 0, got -1",
    ),
    # Events
    (event([1.0]), TypeError, "y0: need a tensor or a tuple of tensors, got list"),
    (event(t0=[0.0]), TypeError, r"t0: need a number or a 0-d tensor, got \[0.0\]"),
    (event(t0=torch.zeros(2)), TypeError, "t0: need a number or a 0-d tensor"),
    (event(method="rk4", options={"step_size": "a"}), TypeError, "step_size: need a number"),
    (lambda: pf.odeint_event(never, Y0, 0.0, event_fn=3), TypeError, "event_fn: need a function"),
    (event(reverse_time="no"), TypeError, "^reverse_time: need True or False, got 'no'"),
    (event(odeint_interface=3), TypeError, "^odeint_interface: need odeint, .* got 3"),
    # Arguments of solve_ode, times, callbacks, slopes
    (lambda: pf.solve_ode(never, Y0, [0.0, 1.0], throw="a"), TypeError, "^throw: need True or"),
    (lambda: pf.solve_ode(never, Y0, [0.0, 1.0], dense="a"), TypeError, "^dense: need True or"),
    (lambda: pf.solve_ode(never, Y0, [0.0, 1.0], progress=1), TypeError, "^progress: need True"),
    (lambda: pf.solve_ode(never, Y0, None), TypeError, "^t: need a 1-D tensor .* got None"),
    (lambda: pf.odeint(never, Y0, None), TypeError, "^t: need a 1-D tensor .* got None"),
    (lambda: pf.odeint(FLOW, Y0, None, method="ddim"), TypeError, "^t: need a 1-D tensor"),
    (
        called_back("rk4"),
        TypeError,
        r"^func.callback_step: need a function of \(t0, y0, dt\), got 3",
    ),
    (called_back("dopri5"), TypeError, "^func.callback_step: need a function"),
    (
        lambda: pf.odeint_adjoint(
            with_callback("callback_step_adjoint"), Y0, [0.0, 1.0], adjoint_params=()
        ),
        TypeError,
        "^func.callback_step_adjoint: need a function",
    ),
    (
        lambda: pf.odeint(lambda t, y: y > 0.0, Y0, [0.0, 1.0]),
        TypeError,
        "^func: must return numbers, returned a tensor of torch.bool",
    ),
    (
        lambda: pf.ode_stepper(decay, Y0, 0.0, 1.0, method="rk4", options={"step_size": 0.1}).step(
            "a"
        ),
        TypeError,
        "^limit: need a number, got 'a'",
    ),
    # Plans
    (
        lambda: pf.odeint(FLOW, Y0, [1.0, 0.5], method="dpm-solver-2", options={"r": 0.5}),
        ValueError,
        "options: dpm-solver-2 has no option 'r'; near names: r1; allowed: step_size",
    ),
    (
        lambda: pf.odeint(FLOW, Y0, [1.0, 0.5], method="ddim", options={"step_size": "a"}),
        TypeError,
        "step_size: need a number, got 'a'",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_tolerances_that_broadcast() -> None:
    """Numbers for each coordinate; and for each tensor of a tuple, as they are in a tensor."""
    rtol = torch.tensor([1e-3, 1e-5, 1e-7], dtype=DOUBLE)
    t = [0.0, 1.0]
    one = pf.odeint(decay, Y0, t, rtol=rtol.expand(2, 3), atol=1e-6)
    assert torch.equal(pf.odeint(decay, Y0, t, rtol=rtol, atol=1e-6), one)

    def pair(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0], -2.0 * y[1]

    how = {"options": {"norm": lambda parts: torch.stack([p.abs().max() for p in parts]).max()}}
    states = [
        pf.odeint(pair, (Y0, Y0[0]), t, rtol=given, atol=(1e-6, 1e-7), **how)
        for given in ((rtol, 1e-5), (rtol.expand(2, 3), torch.full((3,), 1e-5, dtype=DOUBLE)))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_check_finite_of_an_adaptive_method_may_be_true() -> None:
    y = pf.odeint(decay, Y0, [0.0, 1.0], options={"check_finite": True})
    assert torch.equal(y, pf.odeint(decay, Y0, [0.0, 1.0]))


def test_an_initial_state_made_in_inference_mode() -> None:
    layer = torch.nn.Linear(3, 3)
    with torch.inference_mode():
        y0 = torch.ones(2, 3)
    gradients = []
    for start in (y0, torch.ones(2, 3)):
        layer.zero_grad()
        options = {"gradients": "checkpoint", "step_size": 0.25}
        y = pf.odeint(lambda t, y: layer(y), start, [0.0, 1.0], method="rk4", options=options)
        y[-1].sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)


def test_times_of_samples_as_an_array() -> None:
    times = np.array([[0.0, 0.0], [1.0, 2.0]])
    options = {"per_sample": True}
    found = pf.odeint(decay, Y0, times, options=options)
    assert torch.equal(found, pf.odeint(decay, Y0, torch.tensor(times), options=options))


@pytest.mark.parametrize("t0", [0, torch.tensor(0), np.float32(0.0)])
def test_an_event_starts_at_any_number(t0: Any) -> None:
    event_t, _ = pf.odeint_event(decay, Y0, t0, event_fn=falls)
    assert float(event_t) == pytest.approx(np.log(2.0), abs=1e-7)


def test_an_event_with_more_arguments_and_the_result_object() -> None:
    rate = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    options = {"args": (rate,), "return_info": True}
    (event_t, states), result = pf.odeint_event(
        lambda t, y, k: -k * y, Y0, 0.0, event_fn=falls, options=options
    )
    assert float(event_t.detach()) == pytest.approx(np.log(2.0) / 2.0, abs=1e-7)
    assert result.event_t is event_t
    assert result.y is states
    (by_rate,) = torch.autograd.grad(event_t, rate)
    assert float(by_rate) == pytest.approx(-np.log(2.0) / 4.0, abs=1e-6)


def test_a_norm_may_return_a_tensor_of_one_number() -> None:
    def solve(norm: Callable[[Tensor], Tensor]) -> Tensor:
        return pf.odeint(decay, Y0, [0.0, 1.0], options={"norm": norm})

    given = solve(lambda e: e.abs().max().reshape(1))
    assert torch.equal(given, solve(lambda e: e.abs().max()))


def test_plain_functions_are_called_func_in_messages() -> None:
    for method in ("ab2", "rk3"):
        with pytest.raises(TypeError, match=r"^func: must return a tensor, returned float"):
            pf.odeint(lambda t, y: 3.0, Y0, [0.0, 1.0], method=method)
