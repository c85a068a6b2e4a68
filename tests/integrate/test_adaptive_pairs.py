"""Adaptive steps in log-SNR: tolerances, counts, batches, failures, arguments."""

from __future__ import annotations

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import probflow as pf
from probflow.integrate import NonFiniteError
from probflow.ode import MaxStepsError, StepSizeError
from probflow.solvers.embedded import PAIRS

VP = pf.VP.linear()
TARGET = pf.GaussianMixture(
    [0.2, 0.3, 0.1, 0.4],
    [[-1.0, -0.8], [1.1, -0.5], [-0.7, 1.2], [0.9, 1.0]],
    stds=[[0.4, 0.5], [0.5, 0.35], [0.45, 0.4], [0.6, 0.5]],
)
ODE = pf.ProbabilityFlowODE(VP, TARGET)
ENDS = [1.0, 1e-3]
Y0 = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NAMES = list(PAIRS)


@cache
def flow() -> Tensor:
    return pf.odeint(ODE, Y0, ENDS, method="dopri8", rtol=1e-12, atol=1e-12)[-1]


def solved(name: str, y0: Tensor = Y0, t: list[float] = ENDS, tol: float = 1e-3, **options):
    return pf.solve_ode(ODE, y0, t, method=name, rtol=tol, atol=tol, options=options)


# Accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_proportional_to_the_tolerance(name: str, per_sample: bool) -> None:
    tolerances = np.array([1e-2, 1e-3, 1e-4] if "12" in name else [1e-3, 1e-4, 1e-5])
    errors = []
    for tol in tolerances:
        result = solved(name, tol=float(tol), per_sample=per_sample)
        errors.append(float((result.y[-1] - flow()).square().mean().sqrt()))
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.25)
    assert max(errors / tolerances) < 5


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_solver_with_the_lower_one_inside(name: str) -> None:
    """The higher result is DPM-Solver-2 or -3; less the error it is DDIM or DPM-Solver-2."""
    x0 = "++" in name
    higher, lower = {
        "dpm-solver-12": ("dpm-solver-2", pf.get_solver("ddim")),
        "dpm-solver-23": ("dpm-solver-3", pf.get_solver("dpm-solver-2", r1=1 / 3)),
        "dpm-solver++-12": ("dpm-solver++-2s", pf.get_solver("ddim")),
        "dpm-solver++-23": ("dpm-solver++-3s", pf.get_solver("dpm-solver++-2s", r1=1 / 3)),
    }[name]
    prediction = "x0" if x0 else "eps"
    step, error = PAIRS[name].attempt(VP, 0.7, 0.5, prediction)
    own = pf.get_solver(higher).plan(VP, [0.7, 0.5], prediction).steps[0]
    assert [s.time for s in step.stages] == pytest.approx([s.time for s in own.stages], rel=1e-12)
    assert dict(step.update) == pytest.approx(dict(own.update), rel=1e-12)
    below = dict(lower.plan(VP, [0.7, 0.5], prediction).steps[0].update)
    for register, weight in step.update:
        difference = weight - below.get(register, 0.0)
        assert dict(error).get(register, 0.0) == pytest.approx(difference, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_both_directions_and_all_predictions(name: str) -> None:
    tol = 1e-3 if "12" in name else 1e-5
    there = solved(name, t=[0.05, 0.9], tol=tol).y[-1]
    back = solved(name, there, t=[0.9, 0.05], tol=tol).y[-1]
    torch.testing.assert_close(back, Y0, rtol=0, atol=100 * tol)
    for prediction in ("x0", "v", "score", "velocity"):
        ode = pf.ProbabilityFlowODE(VP, ODE.model.as_prediction(prediction))
        other = pf.odeint(ode, Y0, [0.05, 0.9], method=name, rtol=tol, atol=tol)[-1]
        torch.testing.assert_close(other, there, rtol=0, atol=tol)


# Steps and counts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_counted_and_none_is_repeated(name: str) -> None:
    calls = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return ODE.model(x, t)

    ode = pf.ProbabilityFlowODE(VP, pf.Model(counted, VP))
    y, result = pf.odeint(
        ode, Y0, ENDS, method=name, rtol=1e-2, atol=1e-2, options={"return_info": True}
    )
    tried = result.accepted + result.rejected
    assert len(calls) == result.nfe == PAIRS[name].nfe * tried - result.rejected
    assert result.rejected > 0
    assert len(result.steps) == result.accepted + 1
    assert (result.steps[0], result.steps[-1]) == (1.0, 1e-3)
    assert min(calls) >= 1e-3
    assert result.success
    torch.testing.assert_close(y, result.y)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_step_that_is_tried_waits_for_the_device_once(
    per_sample: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, reads = [], torch.Tensor.tolist

    def counted(tensor: Tensor) -> object:
        waits.append(tensor)
        return reads(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    for name in ("item", "__bool__", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waits for the device"))
    model = pf.Model(lambda x, t: 0.1 * torch.tanh(x), VP)
    result = pf.solve_ode(
        pf.ProbabilityFlowODE(VP, model), Y0, ENDS, method="dpm-solver-23", rtol=1e-2, atol=1e-2,
        options={"per_sample": per_sample},
    )  # fmt: skip
    assert len(waits) == math.ceil(result.nfe / 3)


def test_outputs_are_landed_on() -> None:
    t = [1.0, 0.6, 0.31, 0.1, 0.01]
    result = solved("dpm-solver-23", t=t, tol=1e-5)
    assert set(t) <= set(result.steps)
    exact = pf.odeint(ODE, Y0, t, method="dopri8", rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(result.y, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["dpm-solver-12", "dpm-solver++-23"])
def test_with_per_sample_no_sample_depends_on_its_batch(name: str) -> None:
    together = solved(name, per_sample=True)
    assert together.accepted.shape == (16,)
    assert len(set(together.accepted.tolist())) > 1
    for i in (0, 7, 15):
        alone = solved(name, Y0[i : i + 1], per_sample=True)
        torch.testing.assert_close(alone.y[-1, 0], together.y[-1, i], rtol=1e-11, atol=1e-11)
        assert int(alone.accepted) == int(together.accepted[i])
    shared = solved(name)
    assert float((shared.y[-1, :1] - solved(name, Y0[:1]).y[-1]).abs().max()) > 1e-6


# pf.sample ----------------------------------------------------------------------------------------


def test_sampling() -> None:
    steps: list[tuple[int, float]] = []
    x = pf.sample(
        TARGET, (8, 2), "dpm-solver-23", process=VP, seed=0, rtol=1e-4, atol=1e-4,
        dtype=torch.float64, callback=lambda number, t, state: steps.append((number, t)),
    )  # fmt: skip
    fine = pf.sample(TARGET, (8, 2), "rk4", 400, process=VP, seed=0, dtype=torch.float64)
    torch.testing.assert_close(x, fine, rtol=0, atol=1e-3)
    assert [number for number, _ in steps] == list(range(len(steps)))
    assert steps[-1][1] == VP.end
    loose = pf.sample(TARGET, (8, 2), "DPM_Solver_23", process=VP, seed=0, dtype=torch.float64)
    assert 1e-3 < float((loose - fine).abs().max()) < 0.3  # the paper's tolerances
    path = pf.sample(
        TARGET, solver="dpm-solver++-12", process=VP, x=Y0, grid=[1.0, 0.5, 0.1], trajectory=True
    )
    assert path.shape == (3, 16, 2)
    assert torch.equal(path[0], Y0)


def test_half_precision_and_gradients() -> None:
    x = pf.sample(TARGET, (4, 2), "dpm-solver-12", process=VP, seed=0, dtype=torch.bfloat16)
    assert x.dtype == torch.bfloat16
    for per_sample in (False, True):
        start = Y0.clone().requires_grad_()
        end = pf.sample(
            TARGET, solver="dpm-solver-23", process=VP, x=start, gradients=True,
            per_sample=per_sample,
        )  # fmt: skip
        end.square().sum().backward()
        assert bool((start.grad != 0).all())


# Failures -----------------------------------------------------------------------------------------


def broken(below: float) -> pf.ProbabilityFlowODE:
    def eps(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < below, torch.nan, ODE.model(x, t))

    return pf.ProbabilityFlowODE(VP, pf.Model(eps, VP))


@pytest.mark.parametrize("per_sample", [False, True])
def test_nan_is_reported_with_step_and_time(per_sample: bool) -> None:
    sample = ", sample 0" if per_sample else ""
    arguments = {"method": "dpm-solver-23", "options": {"per_sample": per_sample}}
    with pytest.raises(
        NonFiniteError, match=f"NaN or infinity in the model at step 0, t = 1{sample}$"
    ):
        pf.odeint(broken(2.0), Y0, ENDS, **arguments)
    with pytest.raises(NonFiniteError, match=r"in the model at step \d+, t = 0\.3"):
        pf.odeint(broken(0.4), Y0, ENDS, rtol=1e-2, atol=1e-2, **arguments)
    with pytest.raises(NonFiniteError, match=f"in the model after step 0, t = 1{sample}$"):
        pf.odeint(broken(1.0), Y0, ENDS, **arguments)
    result = pf.solve_ode(
        broken(0.4), Y0, [1.0, 0.5, 0.1], rtol=0.1, atol=0.1, throw=False, **arguments
    )
    assert not result.success
    assert "NaN or infinity" in result.message
    assert bool(torch.isfinite(result.y[:2]).all())
    assert bool(torch.isnan(result.y[2]).all())


def test_too_many_steps() -> None:
    with pytest.raises(MaxStepsError, match=r"max_num_steps: 4 steps .* dpm-solver-12 stopped at"):
        solved("dpm-solver-12", max_num_steps=4)


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_initial_state_that_is_not_finite_is_named(per_sample: bool) -> None:
    x = torch.tensor([[1.0], [math.nan]])
    model = pf.Model(lambda x, t: x, VP)
    sample = ", sample 1" if per_sample else ""
    with pytest.raises(NonFiniteError, match=f"NaN or infinity in the initial state{sample}$"):
        pf.sample(model, solver="dpm-solver-12", x=x, per_sample=per_sample)


def test_a_model_that_is_no_function() -> None:
    generator = torch.Generator().manual_seed(0)
    model = pf.Model(lambda x, t: torch.randn(x.shape, dtype=x.dtype, generator=generator), VP)
    ode = pf.ProbabilityFlowODE(VP, model)
    with pytest.raises(
        StepSizeError, match=r"rtol, atol: dpm-solver-23 cannot meet them at step 0"
    ):
        pf.odeint(ode, Y0, ENDS, method="dpm-solver-23", rtol=0.0, atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rtol": -1.0}, ValueError, "rtol: need a finite number >= 0, got -1.0"),
        ({"atol": "a"}, TypeError, "atol: need a number, got 'a'"),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "rtol, atol: one of them must be > 0"),
        (
            {"t": [0.9, 0.0]},
            ValueError,
            "t: dpm-solver-12 integrates in log-SNR, which is infinite",
        ),
        ({"t": [0.9, 0.9]}, ValueError, "t: times must be finite and strictly"),
        ({"t": [2.0, 0.9]}, ValueError, "t: 2 lies outside the process"),
        ({"y0": (Y0,)}, TypeError, "y0: need a tensor, got tuple"),
        ({"y0": Y0[0, 0]}, ValueError, r"y0: need shape \(batch, ...\)"),
        (
            {"func": lambda t, y: y},
            TypeError,
            "needs a pf.ProbabilityFlowODE, not a plain function",
        ),
        ({"event_fn": lambda t, y: y}, ValueError, "event_fn: dpm-solver-12 does not look for"),
        ({"options": {"norm": 1}}, ValueError, "has no option 'norm'.* allowed: first_step, max_n"),
        ({"options": 3}, TypeError, "options: need a dictionary, got 3"),
        ({"options": {"first_step": 0.0}}, ValueError, "first_step: need a finite number > 0"),
        ({"options": {"max_num_steps": 0}}, ValueError, "max_num_steps: need a whole number >= 1"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    given = {"func": ODE, "y0": Y0, "t": ENDS, "method": "dpm-solver-12", **arguments}
    with pytest.raises(error, match=message):
        pf.odeint(given.pop("func"), given.pop("y0"), given.pop("t"), **given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "dpm-solver-23", "steps": 8}, "steps: not for dpm-solver-23, which chooses"),
        ({"solver": "dpm-solver-23", "progress": True}, "progress: not for dpm-solver-23"),
        ({"solver": "dpm-solver-2", "steps": 8, "rtol": 0.1}, "they are for a solver that chooses"),
        (
            {"solver": "dpm-solver-2", "steps": 8, "per_sample": True},
            "rtol, atol, per_sample: they",
        ),
    ],
)
def test_wrong_arguments_of_sample(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pf.sample(TARGET, (2, 2), process=VP, seed=0, **arguments)


def test_pairs_are_no_solvers_on_grids() -> None:
    for name in NAMES:
        with pytest.raises(ValueError, match=re.escape(f"solver: {name} chooses its steps itself")):
            pf.get_solver(name)
        with pytest.raises(ValueError, match="name: a solver named"):
            pf.register_solver(name, reference="here", prediction="eps", orders={})
    for call in (pf.odeint_adjoint, pf.ode_stepper, pf.odeint_dense):
        times = [torch.tensor(ENDS)] if call is pf.odeint_adjoint else ENDS
        with pytest.raises(ValueError, match="method: dpm-solver-12 is one of pf"):
            call(ODE, Y0, *times, method="dpm-solver-12")
    with pytest.raises(ValueError, match="progress: not available with dpm-solver-12"):
        pf.solve_ode(ODE, Y0, ENDS, method="dpm-solver-12", progress=True)
