from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from thinned import thinned

import probflow as pf
from probflow.integrate.loop import NonFiniteError
from probflow.solvers.registry import unregister as remove_solver

DOUBLE = torch.float64
DETERMINISTIC = [solver.name for solver in pf.all_solvers() if not solver.stochastic]
STRUCTURED = [s.name for s in pf.all_solvers() if not s.stochastic and s.needs == "process"]
GENERAL = [s.name for s in pf.all_solvers() if not s.stochastic and s.needs == "ode"]

PROCESS = pf.VP.linear()
TARGET = pf.Gaussian([0.5, -1.0], [[1.0, 0.2], [0.2, 0.5]])
ODE = pf.ProbabilityFlowODE(PROCESS, TARGET)


@pytest.fixture
def y0() -> torch.Tensor:
    return torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def times(steps: int, start: float = 1.0, stop: float = 0.05) -> torch.Tensor:
    return torch.linspace(start, stop, steps + 1, dtype=DOUBLE)


def lotka(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A plain function of time and state, shape (2,)."""
    a, b = y.unbind(-1)
    return torch.stack((a * (1 - b) + torch.sin(3 * t), b * (a - 1)), -1)


def test_signature_is_torchdiffeqs() -> None:
    ours, theirs = inspect.signature(pf.odeint), inspect.signature(torchdiffeq.odeint)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]


# Structured problems ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_sampling_equals_the_plan_run_by_hand(name: str, y0: torch.Tensor) -> None:
    t = times(7)
    states = pf.odeint(ODE, y0, t, method=name)
    assert states.shape == (8, 5, 2)
    assert torch.equal(states[0], y0)
    expected = pf.sample(ODE.model, x=y0, solver=name, grid=t.tolist(), trajectory=True)
    assert torch.equal(states, expected)


def exact(y: torch.Tensor, start: float, stop: float) -> torch.Tensor:
    levels = [(float(PROCESS.alpha(t)), float(PROCESS.sigma(t))) for t in (start, stop)]
    return TARGET.flow(y, *levels)


@pytest.mark.parametrize("name", thinned(DETERMINISTIC, str))
@pytest.mark.parametrize(("start", "stop"), [(0.9, 0.1), (0.1, 0.9)], ids=["sample", "encode"])
def test_both_time_directions_converge(
    name: str, start: float, stop: float, y0: torch.Tensor
) -> None:
    if "seed" in pf.get_solver(name).options:
        pytest.skip("its order is that of a mean over seeds")
    end = exact(y0, start, stop)
    errors = [
        float((pf.odeint(ODE, y0, times(n, start, stop), method=name)[-1] - end).abs().max())
        for n in (160, 320)
    ]
    order = pf.get_solver(name).orders["strong"]
    assert errors[1] < 1e-10 or math.log2(errors[0] / errors[1]) > order - 0.3


def test_there_and_back_again(y0: torch.Tensor) -> None:
    code = pf.odeint(ODE, y0, times(200, 0.05, 1.0), method="dpm-solver++-2m")[-1]
    back = pf.odeint(ODE, code, times(200, 1.0, 0.05), method="dpm-solver++-2m")[-1]
    assert float((back - y0).abs().max()) < 2e-3


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
def test_every_prediction_type(prediction: str, y0: torch.Tensor) -> None:
    ode = pf.ProbabilityFlowODE(PROCESS, ODE.model.as_prediction(prediction))
    for name in ("accelerated-ode", "rk4", "ddim"):
        states = pf.odeint(ode, y0, times(9), method=name)
        torch.testing.assert_close(states, pf.odeint(ODE, y0, times(9), method=name))


def test_a_step_function_a_solver_and_an_alias_are_methods(y0: torch.Tensor) -> None:
    expected = pf.odeint(ODE, y0, times(4), method="dpm-solver++-2m")
    for method in (
        pf.get_solver("dpm-solver++-2m"),
        pf.get_solver("dpm-solver++-2m").function,
        "dpmpp_2m",
        "DPM_Solver++_2M",
    ):
        assert torch.equal(pf.odeint(ODE, y0, times(4), method=method), expected)


def test_the_solvers_own_options(y0: torch.Tensor) -> None:
    solver = pf.get_solver("dpm-solver-2", r1=0.8)
    given = pf.odeint(ODE, y0, times(4), method="dpm-solver-2", options={"r1": 0.8})
    assert torch.equal(given, pf.odeint(ODE, y0, times(4), method=solver))
    assert not torch.equal(given, pf.odeint(ODE, y0, times(4), method="dpm-solver-2"))


def test_image_states_and_half_precision() -> None:
    model = pf.Model(lambda x, t: 0.5 * x, PROCESS)
    ode = pf.ProbabilityFlowODE(PROCESS, model)
    for dtype in (torch.float32, torch.bfloat16):
        y = torch.ones(3, 2, 4, 4, dtype=dtype)
        states = pf.odeint(ode, y, times(5), method="accelerated-ode")
        assert states.shape == (6, 3, 2, 4, 4)
        assert states.dtype == dtype


def test_gradients_reach_state_and_parameters(y0: torch.Tensor) -> None:
    linear = torch.nn.Linear(2, 2).double()
    ode = pf.ProbabilityFlowODE(PROCESS, pf.Model(lambda x, t: linear(x), PROCESS))
    y = y0.clone().requires_grad_()
    pf.odeint(ode, y, times(4), method="accelerated-ode")[-1].sum().backward()
    assert y.grad is not None
    assert linear.weight.grad is not None
    with torch.no_grad():
        assert not pf.odeint(ode, y, times(4), method="ddim").requires_grad


def test_a_process_that_changed_gets_a_new_plan(y0: torch.Tensor) -> None:
    class Scaled(pf.VE):
        factor = 1.0

        def sigma(self, t):
            return self.factor * super().sigma(t)

        def lambda_(self, t):
            return -np.log(self.sigma(t))

    process = Scaled(0.1, 5.0)
    ode = pf.ProbabilityFlowODE(process, pf.Model(lambda x, t: 0.1 * x, process))
    before = pf.odeint(ode, y0, times(4), method="ddim")
    process.factor = 2.0
    after = pf.odeint(ode, y0, times(4), method="ddim")
    assert not torch.equal(before, after)
    assert torch.equal(after, pf.sample(ode.model, x=y0, solver="ddim", grid=times(4).tolist(),
                                        trajectory=True))  # fmt: skip


# Grids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("flip", [False, True])
def test_step_size_is_the_grid_written_out(name: str, flip: bool, y0: torch.Tensor) -> None:
    t = torch.tensor([0.9, 0.66, 0.2], dtype=DOUBLE)
    grid = torch.tensor([0.9, 0.8, 0.7, 0.66, 0.56, 0.46, 0.36, 0.26, 0.2], dtype=DOUBLE)
    if flip:
        t = t.flip(0)
        grid = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6, 0.66, 0.76, 0.86, 0.9], dtype=DOUBLE)
    states = pf.odeint(ODE, y0, t, method=name, options={"step_size": 0.1})
    fine = pf.odeint(ODE, y0, grid, method=name)
    outputs = [int((grid == value).nonzero()) for value in t]
    torch.testing.assert_close(states, fine[outputs], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 7, 20, 50, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_step_size_makes_no_step_of_rounding_errors(steps: int, dtype: torch.dtype) -> None:
    calls = []

    def func(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(float(t))
        return 0 * y

    for t in ([0.0, 1.0], [1.0, 0.0], [1.0, 0.25, 0.0], [0.0, 999.0]):
        calls.clear()
        step = torch.tensor((t[-1] - t[0]) / steps, dtype=dtype).abs()
        outputs = torch.tensor(t, dtype=dtype)
        pf.odeint(func, torch.ones(1), outputs, method="euler", options={"step_size": step})
        assert len(calls) == steps + (len(t) == 3 and steps % 4 != 0)
        assert min(t) <= min(calls)
        assert max(calls) <= max(t)


def test_grid_constructor(y0: torch.Tensor) -> None:
    grid = times(12)
    ends = grid[[0, -1]]
    seen = []

    def constructor(func, y, t):
        seen.append((func, y, t))
        return grid

    states = pf.odeint(ODE, y0, ends, method="ddim", options={"grid_constructor": constructor})
    assert torch.equal(states, pf.odeint(ODE, y0, grid, method="ddim")[[0, -1]])
    assert seen == [(ODE, y0, ends)]
    outputs = times(5)  # not all on the grid: they are put into it
    both = torch.tensor(sorted({*grid.tolist(), *outputs.tolist()}, reverse=True), dtype=DOUBLE)
    states = pf.odeint(ODE, y0, outputs, method="ddim", options={"grid_constructor": constructor})
    places = [both.tolist().index(time) for time in outputs.tolist()]
    assert torch.equal(states, pf.odeint(ODE, y0, both, method="ddim")[places])
    with pytest.raises(ValueError, match=r"grid_constructor: the grid must run from t\[0\]"):
        pf.odeint(ODE, y0, ends - 0.01, method="ddim", options={"grid_constructor": constructor})
    options = {"grid_constructor": constructor, "step_size": 0.1}
    with pytest.raises(ValueError, match="give one of them"):
        pf.odeint(ODE, y0, ends, method="ddim", options=options)


@pytest.mark.parametrize("convert", [list, tuple, np.asarray, torch.Tensor.float])
def test_kinds_of_times(convert, y0: torch.Tensor) -> None:
    t = torch.tensor([1.0, 0.5, 0.25], dtype=DOUBLE)  # exact in float32
    states = pf.odeint(ODE, y0, convert(t), method="ddim")
    assert torch.equal(states, pf.odeint(ODE, y0, t, method="ddim"))


def test_a_single_time_returns_the_state(y0: torch.Tensor) -> None:
    assert torch.equal(pf.odeint(ODE, y0, torch.tensor([0.5]), method="ddim"), y0[None])
    first, second = pf.odeint(lotka, (y0, y0[0]), torch.tensor([0.5]), method="rk4")
    assert torch.equal(first, y0[None])
    assert torch.equal(second, y0[None, 0])


@pytest.mark.parametrize(
    ("t", "error"),
    [
        (torch.tensor([1.0, 0.5, 0.5]), ValueError),
        (torch.tensor([1.0, 0.5, 0.7]), ValueError),
        (torch.tensor([1.0, math.nan]), ValueError),
        (torch.tensor([[1.0, 0.5]]), ValueError),
        (torch.tensor([]), ValueError),
        (torch.tensor([1, 0]), TypeError),
        ("abc", TypeError),
        (torch.tensor([1.5, 0.5]), ValueError),
    ],
)
def test_bad_times(t, error, y0: torch.Tensor) -> None:
    with pytest.raises(error, match=r"^t: "):
        pf.odeint(ODE, y0, t, method="ddim")


def test_gradients_of_times_are_refused(y0: torch.Tensor) -> None:
    t = times(3).requires_grad_()
    with pytest.raises(ValueError, match=r"t: gradients .*odeint_adjoint"):
        pf.odeint(ODE, y0, t, method="ddim")
    with torch.no_grad():
        pf.odeint(ODE, y0, t, method="ddim")


# Plain functions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("rk4", "rk4")],
)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("step", [None, 0.07])
def test_general_methods_equal_torchdiffeqs(
    ours: str, theirs: str, flip: bool, step: float | None
) -> None:
    t = torch.linspace(0, 2, 9, dtype=DOUBLE) if step is None else torch.tensor([0.0, 2.0]).double()
    t = t.flip(0) if flip else t
    options = None if step is None else {"step_size": step}
    y = torch.tensor([[1.0, 2.0], [0.3, 0.4]], dtype=DOUBLE)
    expected = torchdiffeq.odeint(lotka, y, t, method=theirs, options=options)
    torch.testing.assert_close(
        pf.odeint(lotka, y, t, method=ours, options=options), expected, rtol=1e-12, atol=1e-12
    )


def test_tuples_and_scalars_and_complex_states() -> None:
    def func(t, state):
        x, logp, z = state
        return -x * t, -x.sum() * torch.ones_like(logp), 1j * z

    state = (
        torch.ones(3, 2, dtype=torch.complex128),
        torch.zeros((), dtype=torch.complex128),
        torch.ones(1, dtype=torch.complex128),
    )
    t = torch.linspace(1, 0, 6, dtype=DOUBLE)
    ours = pf.odeint(func, state, t, method="rk4")
    for mine, peer in zip(ours, torchdiffeq.odeint(func, state, t, method="rk4"), strict=True):
        torch.testing.assert_close(mine, peer, rtol=1e-12, atol=1e-12)
    scalar = torch.tensor(1.0, dtype=DOUBLE)
    assert pf.odeint(lambda t, y: -y, scalar, t, method="euler").shape == (6,)


def test_times_of_a_plain_function_are_scalars_of_the_states_precision() -> None:
    seen = []

    def func(t, y):
        seen.append((t.shape, t.dtype))
        return -y

    for dtype in (torch.bfloat16, torch.float32, DOUBLE):
        pf.odeint(func, torch.ones(2, dtype=dtype), torch.tensor([0.0, 1.0]), method="euler")
    assert seen == [((), torch.float32), ((), torch.float32), ((), DOUBLE)]


def test_nan_is_reported() -> None:
    with pytest.raises(NonFiniteError, match=r"step 5 of 10, t = 0.5"):
        pf.odeint(
            lambda t, y: y / (t != 0.5),
            torch.zeros(2),
            torch.linspace(0, 1, 11, dtype=DOUBLE),
            method="euler",
        )


def test_function_transforms() -> None:
    y, t = torch.tensor([[1.0, 2.0], [0.3, 0.4]], dtype=DOUBLE), torch.linspace(0, 1, 5).double()

    def solve(y, **options):
        return pf.odeint(lotka, y, t, method="rk4", options=options)

    expected = solve(y)
    given = torch.func.vmap(lambda y: solve(y, check_finite=False))(y)
    torch.testing.assert_close(given.transpose(0, 1), expected)
    jacobian = torch.autograd.functional.jacobian(lambda y: solve(y)[-1], y[0])
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(lambda y: solve(y)[-1])(y[0]), jacobian)
    torch.func.hessian(lambda y: solve(y)[-1].sum())(y[0])


# What is passed on ------------------------------------------------------------------------------


def refused(t, y):
    raise AssertionError("func was called")


@pytest.mark.parametrize("method", ["implicit_adams", "fixed_adams", "scipy_solver"])
def test_methods_of_torchdiffeq_alone_are_passed_on(method: str) -> None:
    t = times(30)
    y = torch.tensor([[1.0, 2.0], [0.3, 0.4]], dtype=DOUBLE)
    ours = pf.odeint(lotka, y, t, method=method, rtol=1e-5, atol=1e-6)
    theirs = torchdiffeq.odeint(lotka, y, t, method=method, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours, theirs)
    for solve, more in ((pf.odeint, {}), (pf.odeint_adjoint, {"adjoint_params": ()})):
        how = {"method": method, "rtol": 1e-5, "atol": 1e-6, **more}
        assert torch.equal(solve(lotka, y, t.tolist(), **how), theirs)
        with pytest.raises(TypeError, match=r"^y0: need a tensor or a tuple"):
            solve(lotka, [y], t, **how)
        with pytest.raises(TypeError, match=r"^y0: need floating-point"):
            solve(lotka, y.long(), t, **how)
        with pytest.raises(ValueError, match=r"^t: times must be finite and strictly"):
            solve(lotka, y, [0.0, 0.0], **how)


@pytest.mark.parametrize("solve", [pf.odeint, partial(pf.odeint_adjoint, adjoint_params=())])
def test_options_of_what_is_passed_on(solve: Callable[..., Any]) -> None:
    y, t = torch.ones(1, 2, dtype=DOUBLE), torch.tensor([0.0, 0.5], dtype=DOUBLE)
    expected = solve(lotka, y, t, method="implicit_adams", options={"step_size": 0.1})
    for method, options, near in (
        ("implicit_adams", {"stp_size": 0.1}, "near names: step_size; allowed: norm, implicit"),
        ("fixed_adams", {"return_info": True}, "allowed: norm, implicit"),
        ("scipy_solver", {"solvr": "RK45"}, "near names: solver; allowed: norm, min_step"),
    ):
        with pytest.raises(ValueError, match=f"^options: {method} has no option .*{near}"):
            solve(refused, y, t, method=method, options=options)
    with pytest.raises(ValueError, match=r"^solver: got 'RK54'; near names: RK45.*RK23"):
        solve(refused, y, t, method="scipy_solver", options={"solver": "RK54"})
    options = {"step_size": 0.1, "max_iter": 4, "strict": False}
    with pytest.warns(UserWarning, match="no option 'max_iter'; near names: max_iters"):
        assert torch.equal(solve(lotka, y, t, method="implicit_adams", options=options), expected)


def test_scipy_does_not_look_for_a_first_step_for_ever() -> None:
    y = torch.ones(2, 1, dtype=DOUBLE)
    with pytest.raises(pf.NonFiniteError, match=r"scipy_solver: func .* at t = 0, sample 1"):
        pf.odeint(
            lambda t, y: y / torch.tensor([[1.0], [0.0]]),
            y,
            [0.0, 1.0],
            method="scipy_solver",
            options={"solver": "RK45"},
        )


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("interface", [pf.odeint, pf.odeint_adjoint])
def test_what_is_passed_on_reports_nan(interface: Callable[..., Any], tuples: bool) -> None:
    """torchdiffeq's fixed steps return NaN, here of a stiff equation, without a word."""
    more = {"adjoint_params": ()} if interface is pf.odeint_adjoint else {}
    t = torch.linspace(0, 1, 101, dtype=DOUBLE)

    def solve(y: torch.Tensor, rate: float = 1000.0, **options: Any) -> Any:
        speeds = rate * torch.arange(len(y), dtype=DOUBLE)[:, None]
        func, state = (lambda t, y: -speeds * y), y
        if tuples:
            func, state = (
                (lambda t, y: (0 * y[0], -speeds * y[1])),
                (torch.ones(3, dtype=DOUBLE), y),
            )
        return interface(func, state, t, method="implicit_adams", options=options, **more)

    y = torch.ones(2, 2, dtype=DOUBLE)
    sample = "sample 1 of part 1" if tuples else "sample 1"
    through = solve(y, check_finite=False)
    through = through[1] if tuples else through
    first = through.isfinite().flatten(1).all(1).tolist().index(False)
    place = f"t = {float(t[first]):g}, output {first} of 100, {sample}:"
    with pytest.raises(pf.NonFiniteError, match=rf"^implicit_adams: NaN .* {place}"):
        solve(y)
    y[1, 0] = torch.nan
    with pytest.raises(pf.NonFiniteError, match=rf"^y0: the initial state .*, {sample}$"):
        solve(y, rate=1.0)
    with pytest.raises(TypeError, match=r"^check_finite: need True or False"):
        solve(y, check_finite="no")


def test_what_is_passed_on_reports_nan_at_an_event() -> None:
    def solve(**options: Any) -> Any:
        return pf.odeint(
            lambda t, y: y * torch.nan, torch.ones(2), torch.tensor([0.0, 1.0]),
            method="implicit_adams", options={"step_size": 0.1, **options},
            event_fn=lambda t, y: y[0] - 0.5,
        )  # fmt: skip

    with pytest.raises(pf.NonFiniteError, match=r"^implicit_adams: .*output 1 of 1, sample 0"):
        solve()
    assert solve(check_finite=False)[1][1].isnan().all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("solver", ["RK45", "LSODA"])
def test_scipy_that_gives_up_is_reported(solver: str) -> None:
    """Most of SciPy's solvers return fewer states, LSODA returns NaN."""

    def func(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * (torch.nan if t > 0.5 else 1.0)

    error, place = pf.StepSizeError, "no state at t = 0.6, output 3 of 5"
    if solver == "LSODA":
        error, place = pf.NonFiniteError, "NaN or infinity in the state at t = 0.6, output 3 of 5"
    t = torch.linspace(0, 1, 6, dtype=DOUBLE)
    y0, options = torch.ones(2, dtype=DOUBLE), {"solver": solver}
    with pytest.raises(error, match=rf"^scipy_solver: {place}"):
        pf.odeint(func, y0, t, method="scipy_solver", options=options)


@pytest.mark.parametrize("method", [None, "dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize(("start", "stop"), [(1.0, 1e-3), (1e-3, 1.0)])
def test_adaptive_methods_stay_inside_the_process(
    method: str | None, start: float, stop: float, y0: torch.Tensor
) -> None:
    seen = []

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return ODE.model(x, t)

    ode = pf.ProbabilityFlowODE(PROCESS, pf.Model(function, PROCESS))
    states = pf.odeint(ode, y0, times(2, start, stop), method=method, rtol=1e-6, atol=1e-8)
    assert 1e-3 <= min(seen) <= max(seen) <= 1.0
    assert float((states[-1] - exact(y0, start, stop)).abs().max()) < 1e-4


def test_structured_solvers_do_not_look_for_events(y0: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"event_fn: ddim does not look for events; use one of .*dopri5"
    ):
        pf.odeint(ODE, y0, times(1), method="ddim", event_fn=lambda t, y: y.sum())


# Messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURED)
def test_a_plain_function_is_told_what_is_needed_and_how_to_make_it(name: str) -> None:
    with pytest.raises(TypeError) as caught:
        pf.odeint(lotka, torch.ones(2), times(3), method=name)
    text = str(caught.value)
    assert text.startswith(f"func: {name} uses the noise levels")
    for piece in ("pf.VP.linear()", "pf.ProbabilityFlowODE(process", "pf.Model(f", *GENERAL):
        assert piece in text


def test_the_recipe_in_the_message_works() -> None:
    process = pf.VP.linear()
    ode = pf.ProbabilityFlowODE(process, pf.Model(lambda x, t: 0.1 * x, process, prediction="eps"))
    assert pf.odeint(ode, torch.ones(3, 2), times(3), method="ddim").shape == (4, 3, 2)


@pytest.mark.parametrize("name", [s.name for s in pf.all_solvers() if s.stochastic])
def test_stochastic_solvers_point_to_sdeint(name: str, y0: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"is stochastic.*pf\.sdeint\(pf\.ReverseSDE"):
        pf.odeint(ODE, y0, times(3), method=name)


@pytest.mark.parametrize("method", ["ddim", "euler", None])
def test_wrong_problems(method: str | None, y0: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"pf\.sdeint; .* pf\.ProbabilityFlowODE"):
        pf.odeint(pf.ReverseSDE(PROCESS, TARGET), y0, times(3), method=method)
    with pytest.raises(TypeError, match=r"pf\.ProbabilityFlowODE\(model\.process, model\)"):
        pf.odeint(ODE.model, y0, times(3), method=method)
    with pytest.raises(TypeError, match=r"func: need func\(t, y\)"):
        pf.odeint(3.0, y0, times(3), method=method)


def test_unknown_methods_list_near_names_of_both(y0: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"neither probflow nor torchdiffeq .*near names: .*dopri5"
    ):
        pf.odeint(ODE, y0, times(3), method="dopri")
    with pytest.raises(ValueError, match=r"near names: .*accelerated-ode"):
        pf.odeint(ODE, y0, times(3), method="acelerated_ode")
    with pytest.raises(TypeError, match="method: need a name"):
        pf.odeint(ODE, y0, times(3), method=3)


def test_unknown_options_name_the_allowed_ones(y0: torch.Tensor) -> None:
    for options in ({"stepsize": 0.1}, {"interp": "cubic"}, {"perturb": True}):
        with pytest.raises(
            ValueError, match=r"allowed: step_size, grid_constructor, check_finite, .*strict, r1$"
        ):
            pf.odeint(ODE, y0, times(3), method="dpm-solver-2", options=options)
    for step in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="step_size: need a finite number > 0"):
            pf.odeint(ODE, y0, times(3), method="ddim", options={"step_size": step})


def test_wrong_states(y0: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="y0: need a tensor"):
        pf.odeint(ODE, y0.numpy(), times(3), method="ddim")
    with pytest.raises(TypeError, match="y0: the state of a ProbabilityFlowODE"):
        pf.odeint(ODE, (y0,), times(3), method="ddim")
    with pytest.raises(TypeError, match="floating-point"):
        pf.odeint(lambda t, y: y, torch.ones(3, dtype=torch.int64), times(3), method="euler")
    with pytest.raises(TypeError, match="y0: need a tensor or a tuple"):
        pf.odeint(lambda t, y: y, (1.0, 2.0), times(3), method="euler")


def test_a_solver_registered_now_is_a_method_now(y0: torch.Tensor) -> None:
    @pf.register_solver("test-odeint-euler", reference="test", prediction="eps",
                        coordinates="ve", orders={"tv": 1})  # fmt: skip
    def step(step):
        """y' = y + (rho' - rho) eps."""
        return step.x + (step.s.rho - step.t.rho) * step.model(step.x, step.t)

    try:
        states = pf.odeint(ODE, y0, times(4), method=step)
        torch.testing.assert_close(states, pf.odeint(ODE, y0, times(4), method="edm-euler"))
    finally:
        remove_solver("test-odeint-euler")


# In a compiled graph ----------------------------------------------------------------------------

FEW = ["ddim", "pndm", "unipc-3", "dpm-solver-fast", "rk4"]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in DETERMINISTIC if name not in FEW]


def one_graph(call, *arguments: torch.Tensor) -> torch.Tensor:
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend="eager")(*arguments)


@pytest.mark.parametrize("name", [*FEW, *OTHERS])
def test_whole_graphs(name: str, y0: torch.Tensor) -> None:
    def solve(y: torch.Tensor) -> torch.Tensor:
        return pf.odeint(ODE, y, [1.0, 0.4, 0.05], method=name, options={"step_size": 0.15})

    torch.testing.assert_close(one_graph(solve, y0), solve(y0), rtol=0.0, atol=1e-14)


def test_whole_graphs_of_general_methods_on_a_diffusion(y0: torch.Tensor) -> None:
    def solve(y: torch.Tensor) -> torch.Tensor:
        return pf.odeint(ODE, y, [1.0, 0.4, 0.05], method="heun3")

    torch.testing.assert_close(one_graph(solve, y0), solve(y0), rtol=0.0, atol=1e-14)


def test_whole_graphs_of_plain_functions_and_tuples(y0: torch.Tensor) -> None:
    def solve(y: torch.Tensor) -> torch.Tensor:
        states = pf.odeint(lambda t, y: (y[1] * t, -y[0]), (y, y + 1), [0.0, 0.5], method="rk5")
        return states[0]

    torch.testing.assert_close(one_graph(solve, y0), solve(y0), rtol=0.0, atol=1e-14)


def test_whole_graphs_keep_dtype_conditioning_and_gradients() -> None:
    net = torch.nn.Linear(2, 2).to(torch.bfloat16)

    def scaled(x: torch.Tensor, t: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return net(x) * (by * t / 1000)[:, None].to(x.dtype)

    model = pf.Model(
        scaled, PROCESS, prediction="v", time=lambda t: 1000 * t, kwargs={"by": torch.tensor(0.5)}
    )
    ode = pf.ProbabilityFlowODE(PROCESS, model)

    def solve(y: torch.Tensor) -> torch.Tensor:
        return pf.odeint(ode, y, [1.0, 0.6, 0.2, 0.1], method="dpm-solver++-2m")

    y = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    results = [one_graph(solve, y), solve(y)]
    assert torch.equal(*results)
    assert results[0].dtype == torch.bfloat16
    assert torch.equal(*[torch.autograd.grad(r.float().sum(), net.weight)[0] for r in results])


def test_a_whole_graph_of_a_plan_needs_times_as_numbers(monkeypatch, y0: torch.Tensor) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # dynamo wraps the error
    with pytest.raises(ValueError, match="t: a compiled graph cannot read a tensor; give"):
        pf.odeint(ODE, y0, times(3), method="ddim")
