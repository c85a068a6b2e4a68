"""Fixed steps of plain functions: grids, interpolation, Adams, perturbation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchdiffeq
from equations import DOUBLE, rotated, rotation

import probflow as pf
from probflow.integrate.loop import NonFiniteError
from probflow.ode.adams import adams_weights
from probflow.tableaus import TABLEAUS

FIXED = [name for name, tableau in TABLEAUS.items() if not tableau.adaptive]
Y0 = torch.tensor([[1.0, 0.0], [0.3, -0.4]], dtype=DOUBLE)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("t", [[0.0, 2.0], [2.0, 0.0], [0.0, 0.31, 0.5, 2.0]])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.07}])
@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_equal_to_torchdiffeq_with_its_interpolation(method, t, options, interp) -> None:
    options = {**options, "interp": interp}
    times = torch.tensor(t, dtype=DOUBLE)
    ours = pf.odeint(rotation, Y0, times, method=method, options=options)
    theirs = torchdiffeq.odeint(rotation, Y0, times, method=method, options=options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_outputs_off_the_grid_are_landed_on_by_default() -> None:
    t = torch.linspace(0, 2, 18, dtype=DOUBLE)
    exact = torch.stack([rotated(Y0, float(time)) for time in t])

    def error(**options):
        y = pf.odeint(rotation, Y0, t, method="rk4", options={"step_size": 0.05, **options})
        return float((y - exact).abs().max())

    assert error() < 5e-6
    assert error(interp="cubic") < 2e-5
    assert error(interp="linear") > 1e-3


@pytest.mark.parametrize("method", FIXED)
def test_evaluations(method: str) -> None:
    calls = []

    def func(t, y):
        calls.append(1)
        return rotation(t, y)

    for options in ({}, {"interp": "cubic"}, {"interp": "linear"}):
        calls.clear()
        result = pf.solve_ode(func, Y0, [0.0, 0.33, 1.0], method=method,
                              options={"step_size": 0.1, **options})  # fmt: skip
        assert result.nfe == len(calls)
        assert result.accepted == len(result.steps) - 1
        # One more evaluation where a cubic is asked for, and it is the next step's first.
        assert len(calls) == result.accepted * TABLEAUS[method].stages


def test_a_grid_need_not_hold_the_outputs() -> None:
    t = torch.tensor([0.0, 0.35, 1.0], dtype=DOUBLE)
    grid = torch.linspace(0, 1, 11, dtype=DOUBLE)
    options = {"grid_constructor": lambda f, y, t: grid}
    landed = pf.odeint(rotation, Y0, t, method="rk4", options=options)
    assert float((landed[1] - rotated(Y0, 0.35)).abs().max()) < 1e-6
    cubic = {**options, "interp": "cubic"}
    ours = pf.odeint(rotation, Y0, t, method="rk4", options=cubic)
    theirs = torchdiffeq.odeint(rotation, Y0, t, method="rk4", options=cubic)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    bad = {"grid_constructor": lambda f, y, t: grid[1:]}
    with pytest.raises(ValueError, match=r"grid_constructor: the grid must run from t\[0\]"):
        pf.odeint(rotation, Y0, t, method="rk4", options=bad)


@pytest.mark.parametrize("t", [[0.0, 1.0], [1.0, 0.0]])
def test_perturb_keeps_off_the_ends_of_the_steps(t: list[float]) -> None:
    seen = []

    def func(time, y):
        seen.append(float(time))
        return y * 0

    options = {"step_size": 0.25, "perturb": True}
    pf.odeint(func, Y0, torch.tensor(t, dtype=DOUBLE), method="rk4", options=options)
    ends = {0.0, 0.25, 0.5, 0.75, 1.0}
    assert not ends & set(seen)
    assert all(min(abs(time - end) for end in ends) < 1e-15 or time % 0.25 for time in seen)


def test_callbacks_and_heun_by_both_names() -> None:
    class Func:
        steps: list = []  # noqa: RUF012

        def __call__(self, t, y):
            return rotation(t, y)

        def callback_step(self, t0, y0, dt):
            self.steps.append((float(t0), float(dt), y0.shape))

    y = pf.odeint(Func(), Y0, [0.0, 1.0], method="heun", options={"step_size": 0.5})
    assert Func.steps == [(0.0, 0.5, (2, 2)), (0.5, 0.5, (2, 2))]
    assert torch.equal(y, pf.odeint(rotation, Y0, [0.0, 1.0], method="heun2",
                                    options={"step_size": 0.5}))  # fmt: skip


@pytest.mark.parametrize("method", [*FIXED, "explicit_adams"])
def test_nan_is_located(method: str) -> None:
    with pytest.raises(NonFiniteError) as caught:
        pf.odeint(
            lambda t, y: y * torch.where(t > 0.61, torch.nan, 1.0),
            Y0,
            torch.linspace(0, 1, 11, dtype=DOUBLE),
            method=method,
        )
    assert "step 6 of 10" in str(caught.value) or "step 7 of 10" in str(caught.value)
    assert str(caught.value).endswith("sample 0")
    with pytest.raises(NonFiniteError):
        pf.odeint(lambda t, y: y, Y0 * torch.nan, [0.0, 1.0], method=method)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_thousand_times_stay_a_thousand_in_half_precision(dtype: torch.dtype) -> None:
    seen = set()

    def func(t, y):
        seen.add(float(t))
        assert y.dtype == dtype
        return -y

    y = pf.odeint(func, torch.ones(2, dtype=dtype), torch.linspace(0, 1, 1001), method="euler")
    assert len(seen) == 1000
    # Carried in float32: rounding each state to half precision would lose the decay altogether.
    assert float(y[-1, 0]) == pytest.approx(math.exp(-1), rel=1e-2)


# Adams --------------------------------------------------------------------------------------------


def test_adams_weights_on_a_uniform_grid_are_adams_and_bashforths() -> None:
    known = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    for order, weights in known.items():
        nodes = [-0.1 * j for j in range(order)]
        assert adams_weights(nodes, 0.1) == pytest.approx(weights, rel=1e-12)


def test_adams_weights_integrate_polynomials_on_any_grid() -> None:
    nodes, stop = [0.7, 0.55, 0.1, -0.2, -0.9], 1.0
    weights = np.array(adams_weights(nodes, stop)) * (stop - nodes[0])
    for power in range(5):
        exact = (stop ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
        assert weights @ np.array(nodes) ** power == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("order", range(1, 8))
@pytest.mark.parametrize("uniform", [True, False])
def test_order_of_adams(order: int, uniform: bool) -> None:
    sizes, errors = [140, 200, 280], []
    for n in sizes:
        u = np.linspace(0, 1, n + 1)
        grid = 3.0 * (u if uniform else (u + 0.3 * u * (1 - u)))
        y = pf.odeint(rotation, Y0, torch.tensor(grid), method="explicit_adams",
                      options={"max_order": order})  # fmt: skip
        errors.append(float((y[-1] - rotated(Y0, 3.0)).abs().max()))
    rate = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert rate == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_dense_output_of_adams_has_its_order(order: int) -> None:
    sizes, errors = [100, 200], []
    for n in sizes:
        options = {"max_order": order, "step_size": 3.0 / n, "interp": "cubic"}
        t = torch.tensor([0.0, *(3.0 * (n - k - 0.37) / n for k in (50, 20, 3)), 3.0], dtype=DOUBLE)
        y = pf.odeint(rotation, Y0, t, method="explicit_adams", options=options)
        exact = torch.stack([rotated(Y0, float(time)) for time in t])
        errors.append(float((y - exact)[1:4].abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)


def test_adams_by_default_does_not_blow_up() -> None:
    for n in (20, 40, 80):
        t = torch.linspace(0, 10, n * 10 + 1, dtype=DOUBLE)
        y = pf.odeint(lambda t, y: -y, torch.ones(1, dtype=DOUBLE), t, method="explicit_adams")
        assert float((y[:, 0] - torch.exp(-t)).abs().max()) < 1e-4


def test_adams_calls_once_a_step_and_interpolates() -> None:
    calls = []

    def func(t, y):
        calls.append(1)
        return rotation(t, y)

    result = pf.solve_ode(func, Y0, [0.0, 1.0], method="explicit_adams",
                          options={"step_size": 0.01})  # fmt: skip
    assert result.nfe == len(calls) == 100 + 3 * 3
    t = [0.0, 0.123, 0.777, 1.0]
    for interp, bound in ((None, 1e-6), ("cubic", 1e-6), ("linear", 1e-3)):
        y = pf.odeint(rotation, Y0, t, method="explicit_adams",
                      options={"step_size": 0.01, "interp": interp})  # fmt: skip
        exact = torch.stack([rotated(Y0, time) for time in t])
        assert float((y - exact).abs().max()) < bound


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_order": 12}, ValueError, "max_order: need a whole number from 1 to 7, got 12"),
        ({"max_order": 2.0}, TypeError, "max_order: need a whole number"),
        ({"rtol": 1}, ValueError, "explicit_adams has no option 'rtol'"),
        ({"gradients": "checkpoint"}, ValueError, "gradients: explicit_adams has 'direct' only"),
    ],
)
def test_bad_options_of_adams(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pf.odeint(rotation, Y0, [0.0, 1.0], method="explicit_adams", options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interp": "quadratic"}, "interp: got 'quadratic', allowed are 'linear' and 'cubic'"),
        ({"step_size": 0.1, "grid_constructor": lambda f, y, t: t}, "give one of them"),
        ({"step_size": -1}, "step_size: need a finite number > 0, got -1"),
        ({"stepsize": 1}, "no option 'stepsize'; near names: step_size"),
        ({"max_step": 1}, "rk4 has no option 'max_step'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.odeint(rotation, Y0, [0.0, 1.0], method="rk4", options=options)
