"""Eleven defects measured in torchdiffeq 0.2.5: probflow does not have them.

Each is shown to be absent here; the last test tells which of them the installed torchdiffeq has.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from equations import DOUBLE, rotated, rotation
from torch import Tensor

import probflow as pf

Y0 = torch.tensor([1.0, 0.0], dtype=DOUBLE)
Solve = Callable[..., Any]


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


class Recorded:
    """A function that notes the times at which it is called."""

    def __init__(self, func: Callable[[Tensor, Tensor], Tensor] = rotation) -> None:
        self.func, self.times = func, list[float]()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t))
        return self.func(t, y)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


# 1. Evaluations beyond the end ------------------------------------------------------------------


def smallest_time(solve: Solve, method: str) -> float:
    func = Recorded(decay)
    solve(func, Y0, times(1.0, 0.0), method=method, rtol=1e-4, atol=1e-4)
    return min(func.times)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_1_no_evaluation_lies_beyond_the_end(method: str) -> None:
    assert smallest_time(pf.odeint, method) >= 0.0


# 2. End values by interpolation -----------------------------------------------------------------


def error_at_the_end(solve: Solve) -> float:
    y = solve(rotation, Y0, times(0.0, 2.0), method="dopri8", rtol=1e-12, atol=1e-12)
    return float((y[-1] - rotated(Y0, 2.0)).abs().max())


def test_2_the_end_value_is_a_steps_and_no_interpolants() -> None:
    assert error_at_the_end(pf.odeint) < 1e-12


# 3. Adams ---------------------------------------------------------------------------------------


def adams_on_a_decay(solve: Solve) -> float:
    t = torch.linspace(0.0, 20.0, 401, dtype=DOUBLE)
    y = solve(decay, Y0[:1], t, method="explicit_adams")
    return float((y[:, 0] - torch.exp(-t)).abs().max())


def adams_on_a_graded_grid(solve: Solve) -> float:
    """Measured order."""
    errors = []
    for n in (200, 400):
        u = torch.linspace(0.0, 1.0, n + 1, dtype=DOUBLE)
        t = 2.0 * (0.7 * u + 0.3 * u**2)
        y = solve(rotation, Y0, t, method="explicit_adams", options={"max_order": 4})
        errors.append(float((y[-1] - rotated(Y0, 2.0)).abs().max()))
    return math.log2(errors[0] / errors[1])


def test_3_adams_is_stable_by_default_and_keeps_its_order_on_any_grid() -> None:
    assert adams_on_a_decay(pf.odeint) < 1e-5
    assert adams_on_a_graded_grid(pf.odeint) == pytest.approx(4.0, abs=0.4)


# 4. One norm for the batch ----------------------------------------------------------------------


def error_of_the_hard_sample(solve: Solve, size: int, **how: Any) -> float:
    """Among ``size - 1`` samples at rest."""
    speed = torch.zeros(size, 1, dtype=DOUBLE)
    speed[0] = 60.0

    def turn(t: Tensor, y: Tensor) -> Tensor:
        return speed * torch.stack((-y[:, 1], y[:, 0]), 1)

    y = solve(turn, Y0.repeat(size, 1), times(0.0, 1.0), rtol=1e-6, atol=1e-6, **how)[-1, 0]
    return float((y - times(math.cos(60.0), math.sin(60.0))).abs().max())


def test_4_the_batch_does_not_dilute_the_error_of_a_sample() -> None:
    def solve(size: int) -> float:
        return error_of_the_hard_sample(pf.odeint, size, options={"per_sample": True})

    assert solve(1024) == solve(1) < 1e-4


# 5. Outputs between fixed steps -----------------------------------------------------------------


def error_off_the_grid(solve: Solve) -> float:
    t = times(0.0, 0.137, 0.5, 0.861, 1.0)
    y = solve(rotation, Y0, t, method="rk4", options={"step_size": 0.05})
    return max(float((y[i] - rotated(Y0, float(t[i]))).abs().max()) for i in range(5))


def test_5_outputs_between_fixed_steps_have_the_methods_accuracy() -> None:
    assert error_off_the_grid(pf.odeint) < 1e-6


# 6. A step of length zero -----------------------------------------------------------------------


def step_sizes_with_an_extra_step(solve: Solve) -> list[int]:
    found = []
    for n in range(1, 201):
        func = Recorded(decay)
        t = torch.tensor([0.0, 1.0])
        solve(func, torch.ones(1), t, method="euler", options={"step_size": 1.0 / n})
        if len(func.times) != n:
            found.append(n)
    return found


def test_6_rounding_makes_no_step_of_its_own() -> None:
    assert step_sizes_with_an_extra_step(pf.odeint) == []


# 7. NaN -----------------------------------------------------------------------------------------


def nan_after_half(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t < 0.5, -y, torch.nan * y)


def test_7_nan_is_named_and_located() -> None:
    with pytest.raises(pf.NonFiniteError, match=r"NaN or infinity right after t = 0\.5"):
        pf.odeint(nan_after_half, Y0, times(0.0, 1.0))
    with pytest.raises(pf.NonFiniteError, match=r"NaN or infinity in step 5 of 10"):
        pf.odeint(nan_after_half, Y0, torch.linspace(0, 1, 11, dtype=DOUBLE), method="euler")


def nan_is_called_underflow(solve: Solve) -> bool:
    try:
        solve(nan_after_half, Y0, times(0.0, 1.0))
    except AssertionError as error:
        return "underflow in dt" in str(error)
    except Exception:
        return False
    return False


# 8. max_num_steps and unknown options -----------------------------------------------------------


def test_8_max_num_steps_is_for_the_call_and_unknown_options_are_errors() -> None:
    t = torch.linspace(0.0, 10.0, 21, dtype=DOUBLE)
    with pytest.raises(pf.MaxStepsError):
        pf.odeint(rotation, Y0, t, options={"max_num_steps": 30})
    with pytest.raises(ValueError, match="no option 'max_steps'"):
        pf.odeint(rotation, Y0, t, options={"max_steps": 30})


def a_misspelt_option_is_let_through(solve: Solve) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            solve(decay, Y0, times(0.0, 1.0), options={"max_steps": 30})
        except (TypeError, ValueError):
            return False
    return True


# 9. Times in half precision ---------------------------------------------------------------------


def distinct_times(solve: Solve) -> int:
    func = Recorded(decay)
    solve(func, torch.ones(1, dtype=torch.bfloat16), torch.linspace(0, 1, 1001), method="euler")
    return len(set(func.times))


def test_9_a_thousand_times_stay_a_thousand_in_bfloat16() -> None:
    assert distinct_times(pf.odeint) == 1000


# 10. Transforms and graphs ----------------------------------------------------------------------


def euler_under_vmap(solve: Solve) -> Tensor:
    t = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    return torch.func.vmap(lambda y: solve(decay, y, t, method="euler"))(torch.eye(3).double())


def test_10_vmap_and_a_single_graph() -> None:
    expected = 0.75**4 * torch.eye(3, dtype=DOUBLE)
    torch.testing.assert_close(euler_under_vmap(pf.odeint)[:, -1], expected)

    def whole(y: Tensor, t: Tensor) -> Tensor:
        return pf.odeint(decay, y, t, method="euler")[-1]

    torch.compiler.reset()
    compiled = torch.compile(whole, fullgraph=True, backend="eager")
    t = torch.linspace(0.0, 1.0, 5, dtype=DOUBLE)
    torch.testing.assert_close(compiled(torch.eye(3, dtype=DOUBLE), t), expected)


def vmap_fails(solve: Solve) -> bool:
    try:
        euler_under_vmap(solve)
    except RuntimeError:
        return True
    return False


# 11. What the solver did ------------------------------------------------------------------------


def test_11_counts_arguments_and_progress(capsys: pytest.CaptureFixture) -> None:
    func = Recorded(lambda t, y: 50 * torch.cos(50 * t) + 0 * y)

    def scaled(t: Tensor, y: Tensor, scale: float, *, shift: float) -> Tensor:
        return scale * func(t, y) + shift

    y0, t = torch.zeros(1, dtype=DOUBLE), times(0.0, 1.0)
    result = pf.solve_ode(
        scaled,
        y0,
        t,
        args=(2.0,),
        kwargs={"shift": 1.0},
        options={"first_step": 0.5},
        progress=True,
    )
    assert float(result.y[-1]) == pytest.approx(2.0 * math.sin(50.0) + 1.0, abs=1e-6)
    assert result.nfe == len(func.times)
    assert result.rejected > 0
    assert len(result.steps) == result.accepted + 1
    assert result.success
    assert "dopri5" in capsys.readouterr().err
    options = {"args": (2.0,), "kwargs": {"shift": 1.0}, "return_info": True}
    y, again = pf.odeint(scaled, y0, t, options=options)
    assert again.nfe > 0
    assert float(y[-1]) == pytest.approx(float(result.y[-1]), abs=1e-6)


# The peer ---------------------------------------------------------------------------------------

THEIRS: dict[int, Callable[[Solve], bool]] = {
    1: lambda solve: smallest_time(solve, "dopri5") < -0.1 > smallest_time(solve, "dopri8"),
    2: lambda solve: error_at_the_end(solve) > 1e-10,
    3: lambda solve: not adams_on_a_decay(solve) < 1.0 or adams_on_a_graded_grid(solve) < 2.5,
    4: lambda solve: (
        error_of_the_hard_sample(solve, 1024) > 10 * error_of_the_hard_sample(solve, 1)
    ),
    5: lambda solve: error_off_the_grid(solve) > 1e-4,
    6: lambda solve: bool(step_sizes_with_an_extra_step(solve)),
    7: nan_is_called_underflow,
    8: a_misspelt_option_is_let_through,
    9: lambda solve: distinct_times(solve) < 1000,
    10: vmap_fails,
}


@pytest.mark.parametrize("number", THEIRS)
def test_torchdiffeq_still_has_it(number: int) -> None:
    if not THEIRS[number](torchdiffeq.odeint):
        pytest.skip(f"torchdiffeq {torchdiffeq.__version__} does not have defect {number}")
