"""Plans as data: what is checked, aliasing, counts, speed of construction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import probflow as pf
from probflow.plan import Linear, Plan, Point, Register, Stage, Step, StepBuilder, X, trace
from probflow.plan.columns import Split, column

F, U, Z = Register("f", 0), Register("u", 0), Register("z", 0)
ALL = pf.all_solvers()


def step(
    start: float = 1.0,
    stop: float = 0.5,
    stages: tuple[Stage, ...] = (Stage(((X, 1.0),), 1.0),),
    noises: tuple[tuple[float, float], ...] = (),
    update: tuple[tuple[Register, float], ...] = ((X, 1.0), (F, 0.5)),
) -> Step:
    return Step(start, stop, stages, noises, update)


def plan(*steps: Step) -> Plan:
    return Plan("mine", "eps", steps)


def test_a_sound_plan() -> None:
    old = Register("f", 0, 1)
    made = plan(step(), step(0.5, 0.0, update=((X, 2.0), (F, 1.0), (old, -1.0))))
    assert made.times == (1.0, 0.5, 0.0)
    assert made.nfe == 2
    assert made.memory == 1
    assert not made.stochastic
    noisy = plan(step(noises=((1.0, 0.5),), update=((X, 1.0), (Z, 1.0))))
    assert noisy.stochastic
    assert noisy.memory == 0
    plan(step(noises=((1.0, 0.75), (0.75, 0.5)), update=((Z, 1.0),)))  # touching, not overlapping


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan(), "plan: need at least 1 step"),
        (lambda: plan(step(), step(0.4, 0.1)), "step 1 .*does not start where the step before"),
        (lambda: plan(step(update=((Z, 1.0),))), "step 0 .*register z0 does not exist there"),
        (lambda: plan(step(update=((Register("f", 1), 1.0),))), "register f1 does not exist"),
        (lambda: plan(step(update=((Register("f", -1), 1.0),))), "register f-1 does not exist"),
        (lambda: plan(step(update=((Register("x", 1), 1.0),))), "does not exist"),
        (lambda: plan(step(update=((Register("y", 0), 1.0),))), "register y0 does not exist"),
        (lambda: plan(step(update=((Register("f", 0, 1), 1.0),))), r"register f0\[-1\] does not"),
        (lambda: plan(step(update=((Register("x", 0, -1), 1.0),))), r"register x\[--1\] does not"),
        (
            lambda: plan(step(), step(0.5, 0, update=((Register("f", 0, 2), 1.0),))),
            r"step 1 .*register f0\[-2\] does not exist",
        ),
        (lambda: plan(step(stages=(Stage(((F, 1.0),), 1.0),))), "register f0 does not exist"),
        (lambda: plan(step(stages=(Stage(((U, 1.0),), 1.0),))), "register u0 does not exist"),
        (lambda: plan(step(update=())), "an empty combination"),
        (lambda: plan(step(stages=(Stage((), 1.0),))), "an empty combination"),
        (lambda: plan(step(update=((X, math.nan),))), "the weight of x is nan; .*log-SNR"),
        (lambda: plan(step(update=((X, math.inf),))), "the weight of x is inf"),
        (lambda: plan(step(stages=(Stage(((X, -math.inf),), 1.0),))), "the weight of x is -inf"),
        (lambda: plan(step(noises=((1.0, 0.6), (0.7, 0.5)))), "noises .* and .* overlap"),
        (lambda: plan(step(noises=((1.0, 0.4),))), r"noise of \(0.4, 1\) is not of the step"),
        (lambda: plan(step(noises=((0.7, 0.7),))), "is not of the step"),
        (lambda: plan(step(noises=((1.0, 0.5), (1.0, 0.5)))), "noises .* and .* overlap"),
    ],
)
def test_messages(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_last_stage_sees_the_earlier_ones_only() -> None:
    two = (Stage(((X, 1.0),), 1.0), Stage(((X, 1.0), (F, 1.0), (U, 0.5)), 0.5))
    plan(step(stages=two))
    wrong = (two[0], Stage(((Register("f", 1), 1.0),), 0.5))
    with pytest.raises(ValueError, match="register f1 does not exist"):
        plan(step(stages=wrong))


def test_registers_far_back() -> None:
    """Two steps of one layout, of which only the first refers to a stage that is there."""
    far = Register("f", 1, 6)
    one = (Stage(((X, 1.0),), 1.0),)
    steps = [step(7.0, 6.0, stages=one * 2)]
    steps += [step(7.0 - n, 6.0 - n, stages=one) for n in range(1, 6)]
    steps.append(step(1.0, 0.5, update=((X, 1.0), (far, 1.0))))
    assert plan(*steps).memory == 6
    with pytest.raises(ValueError, match=r"step 7 .*register f1\[-6\] does not exist"):
        plan(*steps, step(0.5, 0.0, update=((X, 1.0), (far, 1.0))))


def test_alias() -> None:
    assert Stage(((X, 1.0),), 1.0).alias == X
    assert Stage(((X, 2.0),), 1.0).alias is None
    assert Stage(((X, 1.0), (F, 1.0)), 1.0).alias is None
    assert str(X) == "x"
    assert str(Register("f", 2, 1)) == "f2[-1]"


# Linear combinations -----------------------------------------------------------------------


def test_linear_algebra() -> None:
    x, z = Linear.of({X: 1.0}), Linear.of({Z: 1.0})
    sum_ = 2 * x + z * 3 - x / 4 - (-z)
    assert sum_.terms == {X: 1.75, Z: 4.0}
    assert (x - x).combination() == ()
    assert Linear.sum([2.0, 3.0, -1.0], [x, z, x]).terms == {X: 1.0, Z: 3.0}
    assert (x * (1 + 4e-16)).combination() == ((X, 1.0),)
    assert (x * 1.0001).combination() == ((X, 1.0001),)
    assert (2.0 * (x + 3.0 * z) / 4.0).combination() == ((X, 0.5), (Z, 1.5))
    assert x.terms == {X: 1.0}  # arithmetic does not change its operands


def test_nonlinear_steps_are_refused() -> None:
    x = Linear.of({X: 1.0})
    with pytest.raises(TypeError, match="product of two registers is not allowed"):
        x * x
    with pytest.raises(TypeError):
        x + 1.0
    with pytest.raises(TypeError):
        x / x
    with pytest.raises(TypeError):
        math.sqrt(x)


# Tracing -----------------------------------------------------------------------------------


def build(function: Callable[[StepBuilder], Linear], times: list[float], **options: object) -> Plan:
    return trace("mine", function, None, times, native="velocity", prediction="velocity", **options)


def test_inputs_are_registers_and_aliases_are_found() -> None:
    def function(step: StepBuilder) -> Linear:
        f = step.model(step.x, step.t)
        g = step.model(step.x + 2 * f, step.s)
        assert f.input.combination() == ((X, 1.0),)
        assert g.input.combination() == ((Register("u", 1), 1.0),)
        return g.input + f

    made = build(function, [1.0, 0.5, 0.0])
    assert made.steps[0].stages[0].alias == X
    assert made.steps[0].stages[1].alias is None
    assert made.steps[0].update == ((Register("u", 1), 1.0), (F, 1.0))
    assert made.memory == 0


def test_memory_reaches_back() -> None:
    def function(step: StepBuilder) -> Linear:
        f = step.model(step.x, step.t)
        old = [p.outputs[0] for p in step.previous]
        assert [p.t.t - step.t.t for p in step.previous] == [i + 1 for i in range(len(old))]
        return step.x + sum((o * (i + 2) for i, o in enumerate(old)), f)

    made = build(function, [4.0, 3.0, 2.0, 1.0], memory=2)
    assert made.memory == 2
    assert made.steps[0].update == ((X, 1.0), (F, 1.0))
    assert made.steps[2].update == (
        (X, 1.0),
        (F, 1.0),
        (Register("f", 0, 1), 2.0),
        (Register("f", 0, 2), 3.0),
    )


def test_noise_registers_name_their_interval() -> None:
    def function(step: StepBuilder) -> Linear:
        first, second = step.noise(0, 0.5), step.noise(0.5, 1)
        assert step.noise(0, 0.5).terms == first.terms  # the same noise, not a new one
        return step.x + first + 2 * second + step.model(step.x, step.t)

    made = build(function, [1.0, 0.0])
    assert made.steps[0].noises == ((1.0, 0.5), (0.5, 0.0))
    with pytest.raises(ValueError, match="overlap"):
        build(lambda step: step.noise() + step.noise(0, 0.5), [1.0, 0.0])


def test_infinite_log_snr_is_refused_with_the_reason() -> None:
    flow = pf.FlowMatching()
    for solver in ("ddim", "accelerated-ode", "ddpm", "dpm-solver-2", "edm-heun"):
        with pytest.raises(ValueError, match="alpha = 0 or sigma = 0"):
            pf.get_solver(solver).plan(flow, [1.0, 0.5, 0.1])


@pytest.mark.parametrize("process", [pf.VP.linear(), pf.EDM(), pf.FlowMatching()], ids=repr)
def test_chain_steps_reach_sigma_0_on_every_process(process: pf.VP) -> None:
    """-ln ab is 0 where there is no noise, whatever the process."""
    for solver in ("ddpm", "vanilla-ode", "accelerated-ode", "accelerated-sde", "ddim"):
        made = pf.get_solver(solver).plan(process, [0.9, 0.5, 0.1, 0.0])
        weights = [w for s in made.steps for c in s.combinations() for _, w in c]
        assert np.isfinite(weights).all()


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([1.0], ValueError, "times: need at least 2"),
        (1.0, ValueError, "times: need at least 2"),
        ([1.0, 0.5, 0.5], ValueError, "times: must be finite and strictly"),
        ([1.0, 0.2, 0.5], ValueError, "times: must be finite and strictly"),
        ([1.0, math.nan], ValueError, "times: must be finite and strictly"),
        ([1.1, 0.5], ValueError, "1.1 lies outside"),
    ],
)
def test_wrong_times(times: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pf.get_solver("ddim").plan(pf.VP.linear(), times)


@pytest.mark.parametrize("solver", [s for s in ALL if s.stochastic], ids=lambda s: s.name)
def test_noise_is_drawn_towards_data_only(solver: pf.Solver) -> None:
    with pytest.raises(ValueError, match=r"times: .* runs from noise to data only"):
        solver.plan(pf.VP.linear(), [0.1, 0.5, 0.9])


def test_solvers_say_what_they_need() -> None:
    with pytest.raises(TypeError, match=r"ddim uses the noise levels .* needs a process"):
        pf.get_solver("ddim").plan(None, [1.0, 0.0])
    with pytest.raises(ValueError, match="prediction: a plain ODE has 'velocity' only"):
        pf.get_solver("euler").plan(None, [1.0, 0.0], "eps")
    with pytest.raises(ValueError, match="prediction: got 'noise'"):
        pf.get_solver("ddim").plan(pf.VP.linear(), [1.0, 0.5], "noise")
    forward = pf.get_solver("euler").plan(None, [0.0, 1.0, 3.0])
    assert [dict(s.update)[F] for s in forward.steps] == [1.0, 2.0]


@pytest.mark.parametrize("solver", ALL, ids=lambda s: s.name)
def test_plans_of_1000_steps(solver: pf.Solver) -> None:
    """The function is called for each kind of step, not for each step."""
    calls = []

    def counted(step: StepBuilder, **options: object) -> Linear:
        calls.append(step.number)
        return solver.function(step, **options)

    times = np.linspace(1.0, 1e-3, 1001)
    made = replace(solver, function=counted).plan(pf.VP.linear(), times, "x0")
    assert len(made.steps) == 1000
    assert made.times == tuple(times)
    assert len(calls) < 50


@pytest.mark.parametrize("solver", ALL, ids=lambda s: s.name)
def test_steps_together_are_those_one_by_one(
    solver: pf.Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, grid = pf.VP.linear(), pf.grids.log_snr(3.0, 0.01, "neg_log_ab")
    together = solver.plan(process, grid.times(process, 40), "v")
    monkeypatch.setattr("probflow.plan.tracing._MANY", math.inf)
    alone = solver.plan(process, grid.times(process, 40), "v")
    for one, other in zip(together.steps, alone.steps, strict=True):
        noises = [time for interval in other.noises for time in interval]
        assert [time for i in one.noises for time in i] == pytest.approx(noises, rel=1e-13)
        for mine, theirs in zip(one.combinations(), other.combinations(), strict=True):
            assert [r for r, _ in mine] == [r for r, _ in theirs]
            size = max(abs(w) for _, w in theirs)
            assert [w for _, w in mine] == pytest.approx([w for _, w in theirs], abs=1e-13 * size)


def traced(function: Callable[[StepBuilder], Linear]) -> tuple[Plan, list[int]]:
    """A plan of 20 steps, and for each call of the function the number of its steps."""
    calls = []

    def noted(step: StepBuilder) -> Linear:
        calls.append(np.size(step.number))
        return function(step)

    return build(noted, [float(t) for t in range(20, -1, -1)]), calls


def test_branches_split_the_steps() -> None:
    def function(step: StepBuilder) -> Linear:
        h = step.s.t - step.t.t
        if step.t.t > 10:
            h *= 2.0
        f = step.model(step.x, step.t)
        return step.x + (3 * h * f if step.remaining == 1 else h * f)

    made, calls = traced(function)
    weights = [dict(step.update)[F] for step in made.steps]
    assert weights == [-2.0] * 10 + [-1.0] * 9 + [-3.0]
    # All, those with t <= 10, of which the last is alone, and those with t > 10.
    assert calls == [20, 10, 9, 1, 10]
    assert made.times == tuple(range(20, -1, -1))


def test_functions_of_floats_are_called_step_by_step() -> None:
    def function(step: StepBuilder) -> Linear:
        return step.x + math.exp(-step.t.t) * step.model(step.x, step.t)

    made, calls = traced(function)
    assert calls == [20] + [1] * 20
    assert [dict(s.update)[F] for s in made.steps] == [math.exp(-s.start) for s in made.steps]


def test_zero_weights_of_some_steps_are_left_out() -> None:
    made, _ = traced(lambda step: (step.t.t - 15.0) * step.x + step.model(step.x, step.t))
    kinds = [{register.kind for register, _ in step.update} for step in made.steps]
    assert kinds == [{"x", "f"}] * 5 + [{"f"}] + [{"x", "f"}] * 14


def test_columns_are_values() -> None:
    values = column([1.0, 2.0, 3.0])
    other = values
    other += 1.0
    other *= 2.0
    assert values.tolist() == [1.0, 2.0, 3.0]
    assert other.tolist() == [4.0, 6.0, 8.0]
    assert float(column([2.0, 2.0])) == 2.0
    assert math.ceil(column([1.1, 1.9])) == 2
    assert [10, 20, 30][column([1, 1])] == 20
    assert max(column([1.0, 2.0]), 0.5).tolist() == [1.0, 2.0]
    for ask in (bool, float, int, math.ceil, math.exp):
        with pytest.raises(Split):
            ask(column([0.0, 1.5]))


@pytest.mark.parametrize("solver", ["rk4", "dpm-solver-2", "dpm-solver-3", "deis-tab3"])
def test_intermediate_points_are_evaluated_together(solver: str) -> None:
    """The process is asked a few times, however many steps there are."""
    calls = []

    class Counting(type(pf.VP.linear())):  # type: ignore[misc]
        def neg_log_ab(self, t: object) -> object:
            calls.append(t)
            return super().neg_log_ab(t)

    plain = pf.VP.linear()
    process = Counting(plain._schedule, plain.start, plain.end, "counting")
    times = np.linspace(1.0, 1e-3, 1001)
    made = pf.get_solver(solver).plan(process, times, "eps")
    assert len(calls) < 150
    assert made == pf.get_solver(solver).plan(plain, times, "eps")


def test_points_that_depend_on_other_points() -> None:
    process = pf.VP.linear()

    def function(step: StepBuilder) -> Linear:
        middle = step.at(0.5 * (step.t.t + step.s.t))
        quarter = step.at_lambda(0.5 * (middle.lambda_ + step.t.lambda_))
        return step.x + quarter.sigma * step.model(step.x, quarter)

    options = {"native": "eps", "prediction": "eps"}
    made = trace("mine", function, process, [0.9, 0.5, 0.1], **options)
    for step in made.steps:
        middle = process.lambda_(0.5 * (step.start + step.stop))
        time = process.t(0.5 * (middle + process.lambda_(step.start)))
        assert step.stages[0].time == pytest.approx(time, rel=1e-13)
        assert step.update[1][1] == pytest.approx(process.sigma(time), rel=1e-13)


def test_the_number_of_steps_left_is_known() -> None:
    def function(step: StepBuilder) -> Linear:
        return step.x + step.remaining * step.model(step.x, step.t)

    made = build(function, [1.0, 0.5, 0.2, 0.0])
    assert [dict(s.update)[F] for s in made.steps] == [3, 2, 1]


def test_points_agree_with_the_process() -> None:
    process = pf.VP.cosine()
    (point,) = Point.many(process, [0.3])
    assert point.alpha == process.alpha(0.3)
    assert point.theta == pytest.approx(math.acos(point.alpha), rel=1e-14)
    assert point.rho == pytest.approx(math.exp(-point.lambda_), rel=1e-14)
    assert point.ab == pytest.approx(point.alpha**2, rel=1e-14)
    assert (point.drift, point.diffusion) == (process.drift(0.3), process.diffusion(0.3))


@pytest.mark.parametrize(("solver", "model"), [("rk4", "v"), ("exponential-ab2-v", "velocity")])
def test_velocity_and_v_are_multiples(solver: str, model: str) -> None:
    """Where the variance is preserved, one is the other times d theta/dt: the state has no part."""
    plan = pf.get_solver(solver).plan(pf.VP.linear(), np.linspace(1.0, 1e-3, 41), model)
    kinds = [r.kind for s in plan.steps for c in s.combinations() for r, _ in c]
    assert set(kinds) == {"x", "f"}


def test_plans_are_values() -> None:
    process, times = pf.VP.linear(), [1.0, 0.5, 0.1]
    one, other = (pf.get_solver("accelerated-sde").plan(process, times) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises(AttributeError):
        one.solver = "other"


def test_a_tangent_is_a_register_of_its_stage_alone() -> None:
    plan = pf.get_solver("accelerated-sde-jvp").plan(pf.VP.linear(), [0.9, 0.8], "v")
    [step] = plan.steps
    [stage] = step.stages
    assert plan.nfe == step.nfe == 2
    assert [register.kind for register, _ in stage.tangent] == ["z"]
    assert Register("j", 0) in dict(step.update)
    with pytest.raises(ValueError, match="register j0 does not exist there"):
        Plan("mine", "v", (replace(step, stages=(replace(stage, tangent=()),)),))
