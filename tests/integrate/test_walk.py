from __future__ import annotations

import copy
import pickle

import pytest
import torch

import probflow as pf
from probflow.integrate.walk import PlanWalk
from probflow.solvers.last_step import START_ALPHA, plan_to_data

DOUBLE = torch.float64
PROCESS = pf.VP.linear()
TARGET = pf.Gaussian([0.5, -1.0], [[1.0, 0.2], [0.2, 0.5]])
X = torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
TIMES = [1.0, 0.7, 0.45, 0.2, 0.05]


def no_noise(number: int) -> torch.Tensor:
    raise AssertionError(f"noise {number} was drawn")


def test_a_change_of_the_state_counts() -> None:
    # Doubling the state at the second step's start is the same as starting there with it.
    model, solver = TARGET.model(PROCESS), pf.get_solver("edm-heun")
    walk, x = PlanWalk(solver.plan(PROCESS, TIMES, "eps")), X
    for number, t in enumerate(s.time for step in walk.plan.steps for s in step.stages):
        if number == 2:
            x = 2 * x
            rest = x
        x = walk.advance(x, model(x, t), no_noise)
    expected = rest
    walk = PlanWalk(solver.plan(PROCESS, TIMES[1:], "eps"))
    for t in (s.time for step in walk.plan.steps for s in step.stages):
        expected = walk.advance(expected, model(expected, t), no_noise)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
    assert walk.over
    with pytest.raises(ValueError, match="last model call"):
        walk.advance(x, x, no_noise)


def test_walks_are_copied_and_pickled() -> None:
    walk = PlanWalk(pf.get_solver("unipc-3").plan(PROCESS, TIMES, "eps"))
    x = walk.advance(X, X, no_noise)
    for other in (copy.deepcopy(walk), pickle.loads(pickle.dumps(walk))):
        assert (other.step, other.stage) == (walk.step, walk.stage)
        assert torch.equal(
            other.advance(x, 2 * x, no_noise), copy.deepcopy(walk).advance(x, 2 * x, no_noise)
        )


@pytest.mark.parametrize("name", pf.solver_names())
def test_last_steps_are_finite_and_deterministic(name: str) -> None:
    plan = plan_to_data(pf.get_solver(name), pf.EDM(), [10.0, 3.0, 1.0, 0.0], "eps")
    last = plan.steps[-1]
    assert last.stop == 0.0
    assert all(register.kind != "z" for register, _ in last.update)
    assert len(plan.steps) == 3


def test_own_last_steps_are_kept_and_others_replaced() -> None:
    def last(name: str) -> tuple:
        plan = plan_to_data(pf.get_solver(name), pf.EDM(), [10.0, 3.0, 1.0, 0.0], "eps")
        return plan.steps[-1].update

    assert len(last("lms-3")) == 4  # the state and three outputs
    assert dict(last("vanilla-ode")) == pytest.approx(dict(last("ddim")))
    assert dict(last("accelerated-sde")) == pytest.approx(dict(last("ddim")))
    plan = plan_to_data(pf.get_solver("accelerated-sde"), pf.EDM(), [10.0, 3.0, 0.0], "eps")
    assert plan.steps[0].noises


def test_starts_without_data() -> None:
    flow, times = pf.FlowMatching(), [1.0, 0.7, 0.3, 0.0]
    assert plan_to_data(pf.get_solver("euler"), flow, times, "velocity").times[0] == 1.0
    start = plan_to_data(pf.get_solver("edm-heun"), flow, times, "velocity").times[0]
    process = pf.FlowMatching()
    alpha, sigma = process.alpha(start), process.sigma(start)
    # A plan with finite but huge weights is none: this solver divides by cos(pi/2).
    arcsin = plan_to_data(pf.get_solver("accelerated-ode-arcsin"), flow, times, "velocity")
    assert arcsin.times[0] == start
    assert alpha / (alpha**2 + sigma**2) ** 0.5 == pytest.approx(START_ALPHA)


def test_wrong_options_are_errors_still() -> None:
    solver = pf.get_solver("lms-3", start="slow")
    for times in ([10.0, 0.0], [10.0, 3.0, 0.0]):
        with pytest.raises(ValueError, match="slow"):
            plan_to_data(solver, pf.EDM(), times)
