"""Adaptive methods: accuracy, control, landing, dense output, steppers, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchdiffeq
from equations import DOUBLE, logistic, logistic_solution, rotated, rotation
from torch.utils._python_dispatch import TorchDispatchMode

import probflow as pf
from probflow.integrate.loop import NonFiniteError
from probflow.ode.control import CONTROLLERS, Control
from probflow.ode.result import Status
from probflow.tableaus import TABLEAUS

ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.adaptive]
Y0 = torch.tensor([[1.0, 0.0], [0.3, -0.4]], dtype=DOUBLE)


def slack(method: str) -> float:
    """Global error in tolerances to be expected at most.

    The estimate of fehlberg2 is the error of its formula of order 1, which was made to be small
    (coefficient 1/512), and not that of the formula of order 2 which is continued.
    """
    return 3000.0 if method == "fehlberg2" else 100.0


def reached(t: list[float], **how) -> tuple[float, pf.ODEResult]:
    """Largest error over the outputs, and the result."""
    result = pf.solve_ode(rotation, Y0, torch.tensor(t, dtype=DOUBLE), **how)
    exact = torch.stack([rotated(Y0, time, t[0]) for time in t])
    return float((result.y - exact).abs().max()), result


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("t", [[0.0, 2.0], [2.0, 0.0], [0.0, 0.3, 0.31, 1.7, 2.0]])
def test_errors_follow_the_tolerance(method: str, t: list[float]) -> None:
    loose, tight = (1e-4, 1e-6) if TABLEAUS[method].order == 2 else (1e-5, 1e-9)
    error, first = reached(t, method=method, rtol=loose, atol=loose)
    smaller, second = reached(t, method=method, rtol=tight, atol=tight)
    assert error < slack(method) * loose
    assert smaller < slack(method) * tight
    assert smaller < error / 30
    assert second.accepted > first.accepted


@pytest.mark.parametrize("method", ADAPTIVE)
def test_work_grows_as_the_order_says(method: str) -> None:
    """Steps ~ tolerance^(-1/k) for an estimate that falls as h^k."""
    tolerances = [1e-3, 1e-4, 1e-5] if TABLEAUS[method].order == 2 else [1e-6, 1e-8, 1e-10]
    steps = [
        reached([0.0, 8.0], method=method, rtol=tol, atol=tol)[1].accepted for tol in tolerances
    ]
    rate = -np.polyfit(np.log(tolerances), np.log(steps), 1)[0]
    assert rate == pytest.approx(1 / (TABLEAUS[method].error_order + 1), rel=0.3)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("t", [[1.0, 0.0], [0.0, 1.0], [1.0, 0.4, 1e-3]])
def test_no_evaluation_outside_and_the_end_is_landed_on(method: str, t: list[float]) -> None:
    seen = []

    def func(time, y):
        seen.append(float(time))
        return rotation(time, y)

    tol = 1e-4
    y = pf.odeint(func, Y0, torch.tensor(t, dtype=DOUBLE), method=method, rtol=tol, atol=tol)
    assert min(t) <= min(seen) <= max(seen) <= max(t)
    # At tiny tolerances, the end value is the method's own, not an interpolant's.
    if method == "dopri8":
        y = pf.odeint(func, Y0, torch.tensor(t).double(), method=method, rtol=1e-13, atol=1e-13)
        last = rotated(Y0, float(torch.tensor(t)[-1]), t[0])
        assert float((y[-1] - last).abs().max()) < 2e-13


@pytest.mark.parametrize("method", ADAPTIVE)
def test_evaluations_are_counted_and_as_many_as_needed(method: str) -> None:
    calls = []

    def func(t, y):
        calls.append(1)
        return rotation(t, y)

    tableau = TABLEAUS[method]
    result = pf.solve_ode(func, Y0, [0.0, 2.0], method=method, rtol=1e-5, atol=1e-5)
    assert result.nfe == len(calls)
    tries = result.accepted + result.rejected
    # One at the start, one to choose the first step, then the stages but the first of each try,
    # and where it is not the last one of the step before, the first of each accepted step.
    closing = 0 if tableau.fsal else result.accepted - 1
    assert result.nfe == 2 + tries * (tableau.stages - 1) + closing
    assert result.success
    assert result.status is Status.SUCCESS
    assert len(result.steps) == result.accepted + 1
    assert result.steps[-1] == 2.0


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_many_outputs_cost_no_more_steps(method: str) -> None:
    few = reached([0.0, 2.0], method=method, rtol=1e-7, atol=1e-7)[1]
    many = reached(np.linspace(0, 2, 300).tolist(), method=method, rtol=1e-7, atol=1e-7)[1]
    assert few.accepted == many.accepted
    assert many.nfe <= few.nfe + 4 * few.accepted


@pytest.mark.parametrize("method", ADAPTIVE)
def test_dense_output(method: str) -> None:
    tol = 1e-5 if TABLEAUS[method].order == 2 else 1e-9
    dense = pf.odeint_dense(rotation, Y0, 2.0, 0.5, method=method, rtol=tol, atol=tol)
    t = torch.linspace(2.0, 0.5, 57, dtype=DOUBLE)
    exact = torch.stack([rotated(Y0, float(time), 2.0) for time in t])
    assert float((dense(t) - exact).abs().max()) < 2 * slack(method) * tol
    assert dense(1.0).shape == (2, 2)
    assert dense(torch.tensor(1.0)).shape == (2, 2)
    assert dense.order == TABLEAUS[method].dense_order
    time = torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(dense(time)[0, 1], time)
    assert float(slope) == pytest.approx(float(rotation(time, dense(time))[0, 1]), abs=1e3 * tol)
    for outside in (0.4, 2.2):
        with pytest.raises(ValueError, match=r"t: .* lies outside the solution's \[0.5, 2\]"):
            dense(outside)


def test_dense_output_of_fixed_steps_and_tuples() -> None:
    dense = pf.odeint_dense(
        lambda t, y: (rotation(t, y[0]), -y[1]),
        (Y0, torch.ones(3, dtype=DOUBLE)),
        0.0,
        1.0,
        method="rk4",
        options={"step_size": 0.02},
    )
    first, second = dense(torch.tensor([0.111, 0.999], dtype=DOUBLE))
    assert first.shape == (2, 2, 2)
    assert float((first[0] - rotated(Y0, 0.111)).abs().max()) < 1e-7
    assert float((second[1] - math.exp(-0.999)).abs().max()) < 1e-7


# Control ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controller", [*CONTROLLERS, (0.2, 0.4, 0.0)])
def test_controllers(controller) -> None:
    error, result = reached([0.0, 6.0], rtol=1e-7, atol=1e-7, options={"controller": controller})
    assert error < 1e-5
    assert result.rejected <= result.accepted


def test_the_factor_is_the_formula() -> None:
    control = Control(controller=(0.4, 0.3, 0.1), safety=0.9)
    e0, e1, e2 = 0.5, 0.2, 0.7
    k = 5
    expected = 0.9 * e0 ** (-(0.8) / k) * e1 ** ((0.4 + 0.2) / k) * e2 ** (-0.1 / k)
    assert control.factor([e0, e1, e2], 4) == pytest.approx(expected)
    assert control.factor([0.0], 4) == 10.0
    assert control.factor([math.nan], 4) == 0.2
    assert Control().factor([0.9], 4) == 1.0  # 0.92 would shorten a good step
    assert Control().factor([1e9], 4) == 0.2


def test_bounds_of_the_step() -> None:
    taken = []

    class Func:
        def __call__(self, t, y):
            return rotation(t, y)

        def callback_step(self, t0, y0, dt):
            taken.append(float(dt))

    pf.odeint(Func(), Y0, [0.0, 1.0], rtol=1e-3, atol=1e-3, options={"max_step": 0.05})
    assert max(taken) < 0.05 + 1e-15  # the difference of two rounded times
    taken.clear()
    options = {"min_step": 0.1, "first_step": 0.1}
    pf.odeint(Func(), Y0, [0.0, 1.0], rtol=1e-9, atol=1e-9, options=options)
    assert taken == pytest.approx([0.1] * 10)
    taken.clear()
    pf.odeint(Func(), Y0, [0.0, 1.0], options={"first_step": 0.01})
    assert taken[0] == pytest.approx(0.01)


def test_callbacks_see_every_try() -> None:
    seen: dict[str, list] = {"step": [], "accept": [], "reject": []}

    class Func(torch.nn.Module):
        def forward(self, t, y):
            return 50 * torch.cos(50 * t) + 0 * y

        def callback_step(self, t0, y0, dt):
            seen["step"].append((t0, y0, dt))

        def callback_accept_step(self, t0, y0, dt):
            seen["accept"].append((t0, y0, dt))

        def callback_reject_step(self, t0, y0, dt):
            seen["reject"].append((t0, y0, dt))

    t = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    _, result = pf.odeint(
        Func(), Y0, t, method="dopri5", options={"first_step": 0.5, "return_info": True}
    )
    assert len(seen["accept"]) == result.accepted
    assert len(seen["reject"]) == result.rejected > 0
    assert len(seen["step"]) == result.accepted + result.rejected
    t0, y0, dt = seen["step"][0]
    assert (float(t0), float(dt)) == (1.0, 0.5)
    assert torch.equal(y0, Y0)


def test_step_t_and_jump_t_are_landed_on() -> None:
    seen = []

    def func(t, y):
        seen.append(float(t))
        return torch.where(t < 0.5, 1.0, -1.0) * torch.ones_like(y)

    y0, t = torch.zeros(1, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    plain = pf.solve_ode(func, y0, t, rtol=1e-10, atol=1e-10)
    seen.clear()
    jump = pf.solve_ode(
        func, y0, t, rtol=1e-10, atol=1e-10, options={"jump_t": torch.tensor([0.5])}
    )
    assert abs(float(jump.y[-1])) < 1e-14
    assert jump.nfe < plain.nfe / 4
    assert jump.rejected == 0
    assert 0.5 not in seen  # evaluated on either side of the jump only
    assert math.nextafter(0.5, 0) in seen
    assert math.nextafter(0.5, 1) in seen
    steps = pf.solve_ode(rotation, Y0, t, options={"step_t": torch.tensor([0.25, 0.6])}).steps
    assert 0.25 in steps
    assert float(torch.tensor(0.6)) in steps
    backward = pf.solve_ode(rotation, Y0, [1.0, 0.0], options={"step_t": [0.25, 0.6, 1.7]})
    assert {0.25, 0.6} < set(backward.steps)


def test_norms_and_tolerances_of_parts() -> None:
    def func(t, y):
        return -y[0], 30 * torch.cos(30 * t) + 0 * y[1]

    y0 = (torch.ones(1000, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    # By default the worst part counts, not the mean over all elements.
    result = pf.solve_ode(func, y0, t, rtol=1e-8, atol=1e-8)
    assert abs(float(result.y[1][-1]) - math.sin(30)) < 1e-6
    loose = pf.solve_ode(func, y0, t, rtol=(1e-8, 1e-2), atol=(1e-8, 1e-2))
    assert loose.nfe < result.nfe
    seen = []

    def norm(parts):
        seen.append([part.shape for part in parts])
        return parts[0].abs().max()

    pf.odeint(func, y0, t, options={"norm": norm})
    assert seen[0] == [(1000,), (1,)]
    per_element = torch.tensor([1e-3, 1e-9], dtype=DOUBLE)
    error = pf.odeint(rotation, Y0, t, rtol=per_element, atol=per_element)[-1] - rotated(Y0, 1.0)
    assert float(error.abs().max()) < 1e-6


# Times and states ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_times_stay_exact_for_low_precision(dtype: torch.dtype) -> None:
    seen = []

    def func(t, y):
        seen.append((t.dtype, y.dtype, float(t)))
        return -y

    options = {"max_step": 1e-3, "first_step": 1e-3}
    y = pf.odeint(func, torch.ones(3, dtype=dtype), [0.0, 1.0], rtol=1e-2, atol=1e-2,
                  method="adaptive_heun", options=options)  # fmt: skip
    assert y.dtype == dtype
    assert {kinds[:2] for kinds in seen} == {(torch.float32, dtype)}
    assert len({time for *_, time in seen}) > 1000
    assert float(y[-1].float().sub(math.exp(-1)).abs().max()) < 5e-3


def test_complex_scalar_and_tuple_states_agree_with_torchdiffeq() -> None:
    def func(t, y):
        x, z, s = y
        return -t * x, 1j * z, s * 0 + t

    y0 = (Y0, torch.ones(2, dtype=torch.complex128), torch.tensor(0.0, dtype=DOUBLE))
    t = torch.tensor([0.0, 0.7, 1.5], dtype=DOUBLE)
    ours = pf.odeint(func, y0, t, rtol=1e-9, atol=1e-9)
    assert float((ours[1][-1] - np.exp(1.5j)).abs().max()) < 1e-7
    assert ours[2].shape == (3,)
    theirs = torchdiffeq.odeint(lambda t, z: 1j * z, y0[1], t)
    assert float((ours[1] - theirs).abs().max()) < 1e-7


def test_arguments_and_scalars() -> None:
    def func(t, y, k, *, shift):
        return -k * y + shift

    result = pf.solve_ode(func, torch.tensor(1.0), [0.0, 1.0], args=(2.0,), kwargs={"shift": 0.0})
    assert float(result.y[-1]) == pytest.approx(math.exp(-2), rel=1e-5)
    options = {"args": (2.0,), "kwargs": {"shift": 0.0}, "step_size": 0.01}
    y = pf.odeint(func, torch.tensor(1.0), torch.tensor([0.0, 1.0]), method="rk4", options=options)
    assert float(y[-1]) == pytest.approx(math.exp(-2), rel=1e-5)


# Failures -----------------------------------------------------------------------------------------


def test_nan_is_reported_where_it_happened() -> None:
    with pytest.raises(NonFiniteError, match=r"at the initial state, t = 0"):
        pf.odeint(lambda t, y: y / 0 * 0, Y0, [0.0, 1.0])
    with pytest.raises(NonFiniteError, match=r"right after t = 0\.5, step \d+, with steps down to"):
        pf.odeint(lambda t, y: y * torch.where(t < 0.5, 1.0, torch.nan), Y0, [0.0, 1.0])


@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams", "ab2"])
@pytest.mark.parametrize("tuples", [False, True])
def test_nan_names_the_sample(method: str, tuples: bool) -> None:
    def slope(t, y):
        row = torch.arange(4, dtype=DOUBLE)[:, None] if y.ndim > 1 else 0.0
        return torch.where((t > 0.5) & (row == 2.0), torch.nan, -y)

    def func(t, y):
        return (0 * y[0], slope(t, y[1])) if tuples else slope(t, y)

    y0 = torch.ones(4, 3, dtype=DOUBLE)
    state = (torch.zeros(5, dtype=DOUBLE), y0) if tuples else y0
    named = "sample 2 of part 1" if tuples and method != "ab2" else ", sample "
    with pytest.raises(pf.NonFiniteError, match=r"func.*t = 0\.[56].*" + named):
        pf.odeint(func, state, torch.linspace(0, 1, 11, dtype=DOUBLE), method=method)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_nan_in_the_initial_state_is_the_states(method: str) -> None:
    y0 = torch.ones(3, 2, dtype=DOUBLE)
    y0[1, 0] = torch.nan
    step = {"first_step" if method == "dopri5" else "step_size": 0.1}
    for func in (lambda t, y: -y, lambda t, y: torch.ones_like(y)):
        for options in ({}, step):
            with pytest.raises(pf.NonFiniteError, match=r"^y0: the initial .* NaN .*, sample 1$"):
                pf.odeint(func, y0, [0.0, 1.0], method=method, options=options)
        with pytest.raises(pf.NonFiniteError, match=r"^y0: the initial .* NaN .*, sample 1$"):
            pf.odeint_event(
                func, y0, 0.0, event_fn=lambda t, y: t - 0.5, method=method, options=step
            )


@pytest.mark.parametrize("options", [{}, {"first_step": 0.1}])
def test_nan_at_a_time_that_has_a_gradient_is_the_functions(options: dict[str, float]) -> None:
    """The start moves with the first time by the slope there, here NaN."""
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
    with pytest.raises(pf.NonFiniteError, match=r"^func: returned NaN .* t = 0.*, sample 0$"):
        pf.odeint(lambda t, y: y * torch.nan, torch.ones(2, dtype=DOUBLE), t, options=options)


def test_nan_in_dense_output_and_events_of_fixed_steps() -> None:
    def func(t, y):
        return torch.where(t > 0.5, torch.tensor([1.0, torch.nan], dtype=DOUBLE), 1.0)

    y0, step = torch.zeros(2, dtype=DOUBLE), {"step_size": 0.1}
    with pytest.raises(
        pf.NonFiniteError, match=r"^rk4: func .* step 5 of 10, t = 0.5\d*, sample 1"
    ):
        pf.odeint_dense(func, y0, 0.0, 1.0, method="rk4", options=step)

    def passes(t, y):
        return y[0] - 0.75

    def event(**options):
        options = {**step, **options}
        return pf.odeint(func, y0, [0.0, 1.0], method="rk4", options=options, event_fn=passes)

    with pytest.raises(pf.NonFiniteError, match=r"^func: .* before t = 0.75, sample 1"):
        event()
    assert event(check_finite=False)[1][-1].isnan().tolist() == [False, True]


def test_blow_up_names_its_sample() -> None:
    y0 = torch.tensor([[0.1], [0.2], [2.0], [0.3]], dtype=DOUBLE)
    with pytest.raises(pf.StepSizeError, match=r"at t = 0\.\d+, step \d+, .*, sample 2;"):
        pf.odeint(lambda t, y: y**2, y0, [0.0, 1.0])


def test_blow_up_ends_with_a_step_size_error() -> None:
    with pytest.raises(pf.StepSizeError, match=r"resolution of the times at t = 1\.00000"):
        pf.odeint(lambda t, y: y * y, torch.ones(1, dtype=DOUBLE), [0.0, 2.0])


def test_max_num_steps_counts_the_whole_call() -> None:
    t = np.linspace(0, 10, 50)
    with pytest.raises(pf.MaxStepsError, match=r"max_num_steps: 12 steps did not reach 10"):
        pf.odeint(rotation, Y0, t, rtol=1e-9, atol=1e-9, options={"max_num_steps": 12})


def test_failures_without_raising_keep_what_was_reached() -> None:
    result = pf.solve_ode(
        lambda t, y: y * y, torch.ones(1, dtype=DOUBLE), [0.0, 0.5, 2.0], throw=False
    )
    assert result.status is Status.STEP_SIZE
    assert not result.success
    assert "resolution" in result.message
    assert float(result.y[1]) == pytest.approx(2.0, rel=1e-6)
    assert torch.isnan(result.y[2]).all()
    result = pf.solve_ode(rotation, Y0, [0.0, 9.0], options={"max_num_steps": 2}, throw=False)
    assert result.status is Status.MAX_STEPS
    result = pf.solve_ode(lambda t, y: y * torch.nan, Y0, [0.0, 9.0], throw=False)
    assert result.status is Status.NON_FINITE


# Stepping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [("dopri5", {}), ("bosh3", {}), ("dopri8", {}), ("rk4", {"step_size": 0.03}),
     ("explicit_adams", {"step_size": 0.03, "max_order": 5})],
)  # fmt: skip
def test_a_stepper_saved_and_restored_goes_on_as_if_nothing_happened(method, options) -> None:
    def make():
        return pf.ode_stepper(rotation, Y0, 0.0, 2.0, method=method, options=options)

    stepper = make()
    while stepper.t < 0.7:
        stepper.step()
    saved = stepper.state_dict()
    rest = []
    while stepper.t != 2.0:
        rest.append(stepper.step().stop)
    again = make()
    again.load_state_dict(saved)
    assert again.t == saved["t"]
    assert [again.step().stop for _ in rest] == rest
    assert torch.equal(again.y, stepper.y)
    assert again.nfe == again.problem.nfe == stepper.nfe
    assert float((again.y - rotated(Y0, 2.0)).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "bosh3"}, "method 'dopri5' instead of 'bosh3'"),
        ({"method": "dopri8"}, "method 'dopri5' instead of 'dopri8'"),
        ({"method": "rk4", "options": {"step_size": 0.1}}, "method 'dopri5' instead of 'rk4'"),
        (
            {"method": "explicit_adams", "options": {"step_size": 0.1}},
            "method 'dopri5'.* 'explicit",
        ),
        ({"y0": torch.ones(3, 2, dtype=DOUBLE)}, r"shape \(2,\) instead of \(3, 2\)"),
        ({"y0": (torch.ones(2, dtype=DOUBLE),)}, r"shape \(2,\) instead of \[\(2,\)\]"),
        ({"y0": torch.ones(2)}, "dtype 'torch.float64' instead of 'torch.float32'"),
        ({"t0": 0.5}, "t0 0.0 instead of 0.5"),
        ({"t1": -2.0}, "t1 2.0 instead of -2.0"),
        ({"method": "bosh3", "t1": 3.0}, "method .* instead of 'bosh3', t1 2.0 instead of 3.0"),
    ],
)
def test_a_stepper_takes_no_state_of_another(change: dict, message: str) -> None:
    usual = {"y0": torch.ones(2, dtype=DOUBLE), "t0": 0.0, "t1": 2.0}
    saved = pf.ode_stepper(lambda t, y: -y, **usual).state_dict()
    other = pf.ode_stepper(lambda t, y: -y, **{**usual, **change})
    with pytest.raises(ValueError, match=f"state: of another stepper, with {message}"):
        other.load_state_dict(saved)
    assert other.t == {**usual, **change}["t0"]


def test_what_is_no_state_of_a_stepper() -> None:
    stepper = pf.ode_stepper(rotation, Y0, 0.0, 1.0)
    saved = stepper.state_dict()
    for nothing in (None, [1], "state"):
        with pytest.raises(TypeError, match=r"state: need the dictionary of state_dict\(\), got"):
            stepper.load_state_dict(nothing)
    with pytest.raises(ValueError, match="state: no method, shape, dtype, t0, t1, y, first"):
        stepper.load_state_dict({"t": 0.0})
    del saved["errors"]
    with pytest.raises(ValueError, match="state: no errors; need"):
        stepper.load_state_dict(saved)
    wrong = {**stepper.state_dict(), "y": torch.ones(7, dtype=DOUBLE)}
    with pytest.raises(ValueError, match=r"state: y has shape torch.Size\(\[7\]\) instead of"):
        stepper.load_state_dict(wrong)


def test_a_stepper_stops_at_its_limit() -> None:
    stepper = pf.ode_stepper(rotation, Y0, 1.0, -math.inf)
    while stepper.t > 0.25:
        done = stepper.step(limit=0.25)
    assert stepper.t == done.stop == 0.25
    assert float((stepper.y - rotated(Y0, 0.25, 1.0)).abs().max()) < 1e-6
    assert stepper.step().stop < 0.25


def test_progress(capsys) -> None:
    pf.odeint(rotation, Y0, [0.0, 2.0], options={"progress": True})
    assert "dopri5" in capsys.readouterr().err
    pf.odeint(rotation, Y0, [0.0, 2.0], method="rk4", options={"progress": True, "step_size": 0.5})
    assert "4/4" in capsys.readouterr().err


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_stepp": 1}, ValueError, r"no option 'max_stepp'; near names: max_step"),
        ({"step_size": 0.1}, ValueError, r"dopri5 has no option 'step_size'"),
        ({"first_step": 0.0}, ValueError, r"first_step: need a number > 0"),
        ({"first_step": "a"}, TypeError, r"first_step: need a number, got 'a'"),
        ({"max_step": math.nan}, ValueError, r"max_step: need a number > 0, got nan"),
        ({"min_step": -1}, ValueError, r"min_step: need a number >= 0"),
        ({"min_step": 1, "max_step": 0.5}, ValueError, r"min_step, max_step"),
        ({"dfactor": 1.5}, ValueError, r"dfactor: need a number in \(0, 1\), got 1.5"),
        ({"ifactor": 0.5}, ValueError, r"ifactor: need a number >= 1"),
        ({"safety": -1}, ValueError, r"safety: need a number > 0"),
        ({"max_num_steps": 0}, ValueError, r"max_num_steps: need a whole number >= 1, got 0"),
        ({"step_t": [0.1], "jump_t": [0.1]}, ValueError, r"step_t, jump_t: no time"),
        ({"step_t": 0.1}, TypeError, r"step_t: need a sequence of times"),
        ({"jump_t": [math.inf]}, ValueError, r"jump_t: times must be finite"),
        ({"norm": 2}, TypeError, r"norm: need a function"),
        ({"controller": "p"}, ValueError, r"controller: got 'p', allowed are 'i', 'pi', 'pid'"),
        ({"dtype": 64}, TypeError, r"dtype: need a floating-point dtype"),
        ({"gradients": "forward"}, ValueError, r"gradients: got 'forward', allowed"),
        ({"gradients": "reversible"}, ValueError, r"gradients: 'reversible' needs fixed steps"),
    ],
)
def test_bad_options(options: dict, error: type[Exception], message: str) -> None:
    def func(t, y):
        raise AssertionError("called before the options were checked")

    with pytest.raises(error, match=message):
        pf.odeint(func, Y0, [0.0, 1.0], method="dopri5", options=options)


def test_unknown_options_may_be_warnings() -> None:
    with pytest.warns(UserWarning, match="no option 'first_stepp'"):
        pf.odeint(rotation, Y0, [0.0, 1.0], options={"first_stepp": 1, "strict": False})
    with pytest.raises(TypeError, match="options: need a dictionary"):
        pf.odeint(rotation, Y0, [0.0, 1.0], options=3)


@pytest.mark.parametrize(
    ("tolerances", "message"),
    [
        ({"rtol": -1.0}, "rtol: need a finite number >= 0"),
        ({"atol": math.inf}, "atol: need a finite number >= 0"),
        ({"rtol": (1e-3, 1e-3)}, "rtol: a tuple of tolerances needs a tuple state"),
        ({"atol": torch.ones(2, requires_grad=True)}, "atol: a tolerance cannot require"),
    ],
)
def test_bad_tolerances(tolerances: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.odeint(rotation, Y0, [0.0, 1.0], **tolerances)


@pytest.mark.parametrize(
    ("func", "error", "message"),
    [
        (lambda t, y: y[0], ValueError, r"func: must return the state's shape \(2, 2\), returned"),
        (lambda t, y: 1.0, TypeError, "func: must return a tensor, returned float"),
        (lambda t, y: y * 1j, ValueError, "func: returned torch.complex128 .*make y0 complex"),
    ],
)
@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_bad_functions(func, error, message: str, method: str) -> None:
    with pytest.raises(error, match=message):
        pf.odeint(func, Y0, [0.0, 1.0], method=method)


def test_bad_states_and_calls() -> None:
    with pytest.raises(ValueError, match="y0: need at least one tensor"):
        pf.odeint(rotation, (), [0.0, 1.0])
    with pytest.raises(TypeError, match="need floating-point or complex"):
        pf.odeint(rotation, torch.ones(2, dtype=torch.int64), [0.0, 1.0])
    with pytest.raises(TypeError, match="must return a tuple of 2 tensors"):
        pf.odeint(lambda t, y: y[0], (Y0, Y0), [0.0, 1.0])
    with pytest.raises(ValueError, match="method: ddim has no result object"):
        pf.solve_ode(rotation, Y0, [0.0, 1.0], method="ddim")
    with pytest.raises(ValueError, match="t0, t1: need a finite start and another end"):
        pf.ode_stepper(rotation, Y0, 1.0, 1.0)
    with pytest.raises(ValueError, match="step_size: rk4 needs it in options"):
        pf.ode_stepper(rotation, Y0, 0.0, 1.0, method="rk4")
    with pytest.raises(ValueError, match="no stepper for 'ddim'"):
        pf.ode_stepper(rotation, Y0, 0.0, 1.0, method="ddim")
    with pytest.raises(TypeError, match="event_fn: need a function"):
        pf.odeint(rotation, Y0, [0.0, 1.0], event_fn=3)
    with pytest.raises(ValueError, match="explicit_adams has no dense output"):
        pf.odeint_dense(rotation, Y0, 0.0, 1.0, method="explicit_adams")


def test_logistic_reaches_its_solution_from_both_ends() -> None:
    y0 = torch.tensor([0.2, 0.9], dtype=DOUBLE)
    y = pf.odeint(logistic, y0, [0.0, 3.0, 4.0], method="tsit5", rtol=1e-10, atol=1e-10)
    assert float((y[-1] - logistic_solution(y0, 4.0)).abs().max()) < 1e-9
    back = pf.odeint(logistic, y[-1], [4.0, 0.0], method="tsit5", rtol=1e-10, atol=1e-10)
    assert float((back[-1] - y0).abs().max()) < 1e-9


class Waits(TorchDispatchMode):
    """Counts how often a value is read from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ADAPTIVE)
def test_one_wait_for_the_device_in_each_try(method: str) -> None:
    with Waits() as waits:
        result = pf.solve_ode(rotation, Y0, [0.0, 0.5, 2.0], method=method, rtol=1e-4, atol=1e-4)
    # One more to choose the first step.
    assert waits.count == result.accepted + result.rejected + 1


@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams"])
def test_no_wait_within_fixed_steps(method: str) -> None:
    for steps in (10, 100):
        with Waits() as waits:
            pf.odeint(rotation, Y0, [0.0, 2.0], method=method, options={"step_size": 2.0 / steps})
        assert waits.count <= 1  # whether the last state is finite


@pytest.mark.parametrize(("method", "options"), [("dopri5", {}), ("rk4", {"step_size": 0.3})])
def test_a_stepper_keeps_to_its_bounds(method: str, options: dict) -> None:
    stepper = pf.ode_stepper(rotation, Y0, 0.0, 1.0, method=method, options=options)
    while stepper.t != 1.0:
        assert stepper.step(limit=5.0).stop <= 1.0
    with pytest.raises(ValueError, match="limit: the solution has reached its end, t = 1"):
        stepper.step()
    behind = pf.ode_stepper(rotation, Y0, 0.0, 1.0, method=method, options=options)
    with pytest.raises(ValueError, match=r"limit: need a time between t = 0 and 1, got -0\.5"):
        behind.step(limit=-0.5)


def test_a_restored_stepper_lands_on_jumps_again() -> None:
    stepper = pf.ode_stepper(rotation, Y0, 0.0, 1.0, options={"jump_t": [0.5]})
    saved = stepper.state_dict()
    for _ in range(2):
        stops = []
        while stepper.t != 1.0:
            stops.append(stepper.step().stop)
        assert 0.5 in stops
        stepper.load_state_dict(saved)


@pytest.mark.parametrize("options", [{}, {"per_sample": True}])
def test_a_zero_component_needs_no_absolute_tolerance(options: dict) -> None:
    y0 = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    y = pf.odeint(lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-8, atol=0.0, options=options)
    assert float(y[-1, 0, 0]) == pytest.approx(math.exp(-1), rel=1e-6)
    assert float(y[-1, 0, 1]) == 0.0


def test_a_repeated_step_is_shorter_whatever_the_safety() -> None:
    assert Control(safety=2.0).factor([1.5], 4) == 0.9
    result = pf.solve_ode(rotation, Y0, [0.0, 2.0], options={"safety": 2.0, "max_num_steps": 5000})
    assert result.success
