"""What a solve tells: failures as results, bars, evaluations, the state of a stepper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import probflow as pf
from probflow.integrate.loop import NonFiniteError
from probflow.ode.result import Status

DOUBLE = torch.float64
Y0 = torch.tensor([1.0, 2.0], dtype=DOUBLE)
PROCESS = pf.VP.linear()
X0 = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=DOUBLE)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def breaks(t: Tensor, y: Tensor) -> Tensor:
    """NaN of the second sample after t = 0.4."""
    return torch.where(t > 0.4, torch.tensor([-1.0, math.nan], dtype=y.dtype), -y)


def rates(t: Tensor, y: Tensor, k: Any) -> Tensor:
    return -k * y


class Counted:
    """A network that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return 0.5 * x


# Failures as results --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "dense"),
    [
        ("rk4", {"step_size": 0.25}, False),
        ("rk4", {"step_size": 0.25}, True),
        ("rk4", {"step_size": 0.25, "gradients": "reversible"}, False),
        ("rk4", {"step_size": 0.25, "gradients": "checkpoint"}, False),
        ("explicit_adams", {"step_size": 0.25}, False),
        ("dopri5", {}, False),
    ],
)
def test_nan_without_raising(method: str, options: dict, dense: bool) -> None:
    t = [0.0, 0.3, 0.6, 1.0]
    how = {"method": method, "options": options, "dense": dense}
    result = pf.solve_ode(breaks, Y0, t, throw=False, **how)
    assert result.status is Status.NON_FINITE
    assert "NaN or infinity" in result.message
    assert "sample 1" in result.message
    assert torch.isfinite(result.y[:2]).all()
    assert torch.isnan(result.y[2:]).all()
    torch.testing.assert_close(result.y[1], Y0 * math.exp(-0.3), atol=1e-2, rtol=0)
    with pytest.raises(NonFiniteError, match="sample 1"):
        pf.solve_ode(breaks, Y0, t, **how)


def test_a_run_that_may_end_in_nan_is_not_looked_at() -> None:
    options = {"step_size": 0.25, "check_finite": False}
    result = pf.solve_ode(breaks, Y0, [0.0, 1.0], method="rk4", options=options, throw=False)
    assert result.success
    assert torch.isfinite(result.y[1]).tolist() == [True, False]


def test_a_search_that_fails_without_raising() -> None:
    def never(t: Tensor, y: Tensor) -> Tensor:
        return y[0] + 1.0

    options = {"max_num_steps": 20}
    result = pf.solve_ode(decay, Y0, [0.0, 1.0], event_fn=never, options=options, throw=False)
    assert result.status is Status.MAX_STEPS
    assert result.message.startswith("event_fn: no change of sign in 20 steps")
    assert result.accepted == 20
    assert torch.isnan(result.event_t)
    assert torch.equal(result.y[0], Y0)
    assert torch.isnan(result.y[1]).all()
    how = {"event_fn": never, "method": "rk4", "options": {"step_size": 0.25}}
    result = pf.solve_ode(breaks, Y0, [0.0, 1.0], throw=False, **how)
    assert result.status is Status.NON_FINITE  # of the sample that is not looked at
    assert torch.isnan(result.y[1]).all()
    with pytest.raises(NonFiniteError, match="sample 1"):
        pf.solve_ode(breaks, Y0, [0.0, 1.0], **how)


@pytest.mark.parametrize(
    ("method", "options"),
    [("dopri5", {}), ("dopri5", {"per_sample": True}), ("rk4", {}), ("explicit_adams", {})],
)
def test_nan_at_a_single_time(method: str, options: dict) -> None:
    y0 = torch.tensor([1.0, math.nan])
    with pytest.raises(NonFiniteError, match="sample 1"):
        pf.odeint(decay, y0, [0.0], method=method, options=options)
    result = pf.solve_ode(decay, y0, [0.0], method=method, options=options, throw=False)
    status = result.status
    assert (status.tolist() == [0, 2]) if isinstance(status, Tensor) else status == 2


def test_nan_at_a_single_time_of_a_plan() -> None:
    flow = pf.ProbabilityFlowODE(PROCESS, pf.Model(Counted(), PROCESS))
    with pytest.raises(NonFiniteError, match=r"^y0: the initial state holds NaN"):
        pf.odeint(flow, X0 * math.nan, [0.5], method="ddim")


# Options of solve_ode and bars ------------------------------------------------------------------


def test_options_of_solve_ode_count() -> None:
    wanted = pf.solve_ode(rates, Y0, [0.0, 1.0], args=(2.0,)).y
    assert torch.equal(pf.solve_ode(rates, Y0, [0.0, 1.0], options={"args": (2.0,)}).y, wanted)
    options = {"kwargs": {"k": 2.0}}
    assert torch.equal(pf.solve_ode(rates, Y0, [0.0, 1.0], options=options).y, wanted)
    both = pf.solve_ode(rates, Y0, [0.0, 1.0], options={"args": (2.0,)}, args=(2.0,))
    assert torch.equal(both.y, wanted)


@pytest.mark.parametrize("value", [3.0, Y0.clone()])
def test_options_and_arguments_of_solve_ode_may_not_differ(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^args, options: got args=\(.*and options\['args'\]="):
        pf.solve_ode(rates, Y0, [0.0, 1.0], options={"args": (Y0,)}, args=(value,))


def backward(**options: Any) -> None:
    y0 = Y0.clone().requires_grad_()
    pf.odeint(decay, y0, [0.0, 0.15, 1.0], options=options, method="rk4")[-1].sum().backward()


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: pf.odeint(decay, Y0, [0.0, 1.0], options={"progress": True, "per_sample": True}),
         "100%"),
        (lambda: pf.solve_ode(decay, Y0, [0.0, 1.0], options={"progress": True}), "100%"),
        (lambda: pf.odeint_dense(decay, Y0, 0.0, 1.0, options={"progress": True}), "100%"),
        (lambda: pf.odeint_dense(decay, Y0, 0.0, 1.0, method="rk4",
                                 options={"progress": True, "step_size": 0.1}), "10/10"),
        (lambda: backward(gradients="checkpoint", progress=True, step_size=0.1), "11/11"),
        (lambda: backward(gradients="checkpoint", progress=True, step_size=0.1, interp="cubic"),
         "10/10"),
    ],
)  # fmt: skip
def test_bars(call: Callable[[], Any], shown: str, capsys: pytest.CaptureFixture) -> None:
    call()
    assert shown in capsys.readouterr().err


# Solvers on grids -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ddim", "dpm-solver-2", "unipc-2"])
def test_plans_tell_what_happened(method: str, capsys: pytest.CaptureFixture) -> None:
    network = Counted()
    flow = pf.ProbabilityFlowODE(PROCESS, pf.Model(network, PROCESS))
    t, options = [0.9, 0.6, 0.2], {"step_size": 0.1}
    plain = pf.odeint(flow, X0, t, method=method, options=options)
    network.calls = 0
    more = {**options, "return_info": True, "progress": True}
    y, result = pf.odeint(flow, X0, t, method=method, options=more)
    assert torch.equal(y, plain)
    assert result.y is y
    assert result.nfe == network.calls
    assert (result.accepted, result.rejected, len(result.steps)) == (7, 0, 8)
    assert result.success
    assert f"{result.nfe}/{result.nfe}" in capsys.readouterr().err


def test_plans_of_tuples_tell_what_happened() -> None:
    def pair(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0], -2.0 * y[1]

    y, result = pf.odeint(pair, (Y0, X0), [0.0, 0.5, 1.0], method="ab2",
                          options={"return_info": True})  # fmt: skip
    assert [part.shape for part in y] == [(3, 2), (3, 2, 2)]
    assert result.y is y
    assert result.accepted == 2


@pytest.mark.parametrize("method", ["ddim", "dpm-solver-23"])
def test_strict_of_solvers_of_a_diffusion(method: str) -> None:
    flow = pf.ProbabilityFlowODE(PROCESS, pf.Model(Counted(), PROCESS))
    with pytest.warns(UserWarning, match=f"options: {method} has no option 'foo'"):
        y = pf.odeint(flow, X0, [0.9, 0.5], method=method, options={"strict": False, "foo": 1})
    assert torch.equal(y, pf.odeint(flow, X0, [0.9, 0.5], method=method))
    with pytest.raises(ValueError, match="has no option 'foo'"):
        pf.odeint(flow, X0, [0.9, 0.5], method=method, options={"foo": 1})
    with pytest.raises(ValueError, match="has no option 'args'"):
        pf.odeint(flow, X0, [0.9, 0.5], method=method, options={"args": (1,)})


# Steppers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_a_fixed_stepper_reports_nan_at_its_end(method: str) -> None:
    options = {"step_size": 0.25}
    stepper = pf.ode_stepper(breaks, Y0, 0.0, 1.0, method=method, options=options)
    for _ in range(3):
        stepper.step()
    message = r"NaN or infinite in step 1, which began at t = 0.25, sample 1$"
    with pytest.raises(NonFiniteError, match=message):
        stepper.state_dict()
    with pytest.raises(NonFiniteError, match=message):
        stepper.step()


def test_a_restored_stepper_goes_on_with_its_look_for_nan() -> None:
    how = {"method": "rk4", "options": {"step_size": 0.25}}
    stepper = pf.ode_stepper(breaks, Y0, 0.0, 1.0, **how)
    stepper.step()
    again = pf.ode_stepper(breaks, Y0, 0.0, 1.0, **how)
    again.load_state_dict(stepper.state_dict())
    for _ in range(2):
        again.step()
    with pytest.raises(NonFiniteError, match=r"in step 1, which began at t = 0.25, sample 1"):
        again.step()


def test_a_stepper_of_an_empty_batch() -> None:
    stepper = pf.ode_stepper(decay, Y0[:0], 0.0, 1.0, method="rk4", options={"step_size": 0.5})
    for _ in range(2):
        stepper.step()
    assert stepper.state.shape == (0,)


@pytest.mark.parametrize(("method", "options"), [("dopri5", {}), ("rk4", {"step_size": 0.25})])
def test_the_state_of_a_stepper_is_the_users(method: str, options: dict) -> None:
    y0 = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, 2, dtype=torch.bfloat16)

    def func(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0], -2.0 * y[1]

    stepper = pf.ode_stepper(func, y0, 0.0, 1.0, rtol=1e-2, method=method, options=options)
    while stepper.t < 1.0:
        stepper.step()
    assert [part.shape for part in stepper.state] == [(2,), (2, 2)]
    assert {part.dtype for part in stepper.state} == {torch.bfloat16}
    assert float(stepper.state[1][0, 0]) == pytest.approx(math.exp(-2.0), rel=2e-2)


# Transforms of torch.func -----------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
def test_vmap_over_what_the_function_uses(per_sample: bool) -> None:
    def end(k: Tensor) -> Tensor:
        return pf.odeint(lambda t, y: -k * y, Y0, [0.0, 1.0], options={"per_sample": per_sample})

    with pytest.raises(
        ValueError, match=r"^func: under torch.func.vmap the steps of dopri5 cannot"
    ):
        torch.func.vmap(end)(torch.rand(3))
    with pytest.raises(ValueError, match=r"^y0: under torch.func.vmap the steps of dopri5 cannot"):
        torch.func.vmap(lambda y: pf.odeint(decay, y, [0.0, 1.0]))(X0)


def test_adaptive_steps_within_other_transforms() -> None:
    def end(k: Tensor) -> Tensor:
        return pf.odeint(lambda t, y: -k * y, Y0, [0.0, 1.0])[-1].sum()

    k = torch.tensor(0.5, dtype=DOUBLE)
    wanted = -3.0 * math.exp(-0.5)
    assert float(torch.func.grad(end)(k)) == pytest.approx(wanted, rel=1e-6)
    assert float(torch.func.jvp(end, (k,), (torch.ones_like(k),))[1]) == pytest.approx(
        wanted, rel=1e-6
    )


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_search_within_vmap(method: str) -> None:
    options = {} if method == "dopri5" else {"step_size": 0.1}

    def found(y: Tensor) -> Tensor:
        return pf.odeint_event(
            decay, y, 0.0, event_fn=lambda t, y: y[0] - 0.2, method=method, options=options
        )[0]

    with pytest.raises(ValueError, match=r"^y0: under torch.func.vmap there is no search"):
        torch.func.vmap(found)(X0.abs())


def transforms() -> list[Callable[..., Any]]:
    return [
        lambda f: torch.func.grad(f)(Y0),
        lambda f: torch.func.jvp(f, (Y0,), (Y0,)),
        lambda f: torch.func.vmap(f)(X0),
    ]


@pytest.mark.parametrize("transform", transforms())
@pytest.mark.parametrize("gradients", ["checkpoint", "reversible"])
def test_gradients_within_transforms(gradients: str, transform: Callable[..., Any]) -> None:
    options = {"gradients": gradients, "step_size": 0.25}

    def end(y: Tensor) -> Tensor:
        return pf.odeint(decay, y, [0.0, 1.0], method="rk4", options=options)[-1].sum()

    with pytest.raises(
        ValueError, match=f"^gradients: '{gradients}' is not available within torch"
    ):
        transform(end)


@pytest.mark.parametrize("transform", transforms())
def test_adjoints_within_transforms(transform: Callable[..., Any]) -> None:
    def end(y: Tensor) -> Tensor:
        return pf.odeint_adjoint(decay, y, [0.0, 1.0], adjoint_params=())[-1].sum()

    with pytest.raises(ValueError, match=r"^odeint_adjoint: not available .*use pf.odeint"):
        transform(end)
