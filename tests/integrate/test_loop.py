"""The tensor loop against a naive interpreter of plans, and what it promises besides."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from thinned import thinned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import probflow as pf
from probflow.integrate import NonFiniteError, SeededNoise, run_plan
from probflow.integrate.kernels import compiled
from probflow.integrate.noise import NoiseSource
from probflow.plan import PREDICTIONS, Plan, Register, Stage, Step

ALL = pf.all_solvers()
PROCESS = pf.VP.linear()
TARGET = pf.GaussianMixture([1, 2], [[-1.0, 0.3], [1.5, -0.4]], stds=[0.4, 0.7])
TIMES = pf.grids.log_snr().times(PROCESS, 6)
X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_name(solver: pf.Solver) -> str:
    return solver.name


def noise(x: Tensor = X, seed: int = 1) -> SeededNoise:
    wide = torch.promote_types(x.dtype, torch.float32)
    return SeededNoise(seed, tuple(x.shape), wide)


def plan_of(solver: Any, prediction: str = "eps", times: Any = TIMES) -> Plan:
    return pf.get_solver(solver).plan(PROCESS, times, prediction)


class Net(torch.nn.Module):
    """A small smooth network with time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(3, 8).double(), torch.nn.Linear(8, 2).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.cat([x, t[:, None]], dim=1))))


def interpret(
    plan: Plan,
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    source: NoiseSource | None = None,
) -> list[Tensor]:
    """The plan, word by word: every register of every step is kept; float64."""
    if source is not None:
        source.restart()
    history: list[dict[Any, Tensor]] = []  # newest last
    states = [x]

    def combine(combination: Any) -> Tensor:
        total = torch.zeros_like(x)
        for register, weight in combination:
            registers = history[-1 - register.age]
            total = total + weight * registers[register.kind, register.index]
        return total

    for step in plan.steps:
        history.append({("x", 0): states[-1]})
        for j, interval in enumerate(step.noises):
            history[-1]["z", j] = source(*interval)
        for i, stage in enumerate(step.stages):
            u = combine(stage.input)
            history[-1]["u", i] = u
            time = torch.full((len(x),), stage.time, dtype=torch.float64)
            history[-1]["f", i] = model(u, time)
            if stage.tangent:
                at = partial(model, t=time)
                history[-1]["j", i] = torch.func.jvp(at, (u,), (combine(stage.tangent),))[1]
        states.append(combine(step.update))
    return states


# The loop is the plan ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "prediction"),
    thinned(
        [(solver, prediction) for solver in ALL for prediction in PREDICTIONS],
        lambda case: f"{case[0].name}-{case[1]}",
    ),
)
def test_the_loop_is_the_plan(solver: pf.Solver, prediction: str) -> None:
    net, plan = Net(), plan_of(solver, prediction)
    model = pf.Model(net, PROCESS, prediction)
    with torch.no_grad():
        expected = torch.stack(interpret(plan, net, X, noise()))
        states = run_plan(plan, model, X, noise=noise(), trajectory=True)
        final = run_plan(plan, model, X, noise=noise())
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(final, states[-1])
    assert torch.equal(states[0], X)


def test_hand_written_plans_with_every_kind_of_reference() -> None:
    """Registers of inputs, noises and states of earlier steps, aliases, several stages."""
    R, x = Register, Register("x")
    f0, f1, u1, z = R("f", 0), R("f", 1), R("u", 1), R("z", 0)
    first = Step(
        1.0,
        0.7,
        (Stage(((x, 1.0),), 1.0), Stage(((x, 0.5), (f0, 1.0), (z, 2.0)), 0.9)),
        ((1.0, 0.7),),
        ((u1, 1.0), (f1, -0.5), (f0, 0.1)),
    )
    old = [R("x", 0, 1), R("u", 1, 1), R("z", 0, 1), R("f", 1, 1)]
    second = Step(
        0.7,
        0.2,
        (Stage(((old[0], 1.0),), 0.7), Stage(((old[1], 1.0), (old[2], 1.0)), 0.7)),
        ((0.7, 0.5), (0.5, 0.2)),
        ((z, 1.0), (R("z", 1), 1.0), (old[3], 1.0), (x, 1.0)),
    )
    third = Step(0.2, 0.1, (), (), ((R("u", 0, 1), 1.0), (R("x", 0, 2), 0.25), (R("f", 1, 2), 1.0)))
    fourth = Step(0.1, 0.0, (Stage(((x, 1.0),), 0.1),), (), ((f0, 1.0),))
    fifth = Step(0.0, -1.0, (Stage(((x, -1.0),), 0.0),), (), ((x, 1.0),))
    plan = Plan("mine", "eps", (first, second, third, fourth, fifth))
    net = Net()
    with torch.no_grad():
        expected = torch.stack(interpret(plan, net, X, noise()))
        model = pf.Model(net, PROCESS)
        states = run_plan(plan, model, X, noise=noise(), trajectory=True)
        again = run_plan(plan, model, X, noise=noise(), checkpoint=True)
    torch.testing.assert_close(states, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(again, expected[-1], rtol=1e-13, atol=1e-13)


def test_inputs_are_left_alone() -> None:
    x = X.clone()
    for solver in ALL:
        run_plan(plan_of(solver), TARGET.model(PROCESS), x, noise=noise())
        assert torch.equal(x, X)


def test_plain_functions_get_a_0d_time() -> None:
    seen = []

    def f(x: Tensor, t: Tensor) -> Tensor:
        seen.append((t.ndim, t.dtype, float(t)))
        return -x

    plan = pf.get_solver("rk4").plan(None, np.linspace(0.0, 1.0, 21))
    result = run_plan(plan, f, X)
    torch.testing.assert_close(result, math.exp(-1) * X, rtol=1e-6, atol=0)
    assert {s[:2] for s in seen} == {(0, torch.float64)}
    assert seen[1][2] == pytest.approx(0.05 / 3, rel=1e-12)
    scalar = run_plan(plan, f, torch.tensor(2.0, dtype=torch.float64))  # any shape, also none
    assert scalar.item() == pytest.approx(2 * math.exp(-1), rel=1e-6)
    rotation = run_plan(plan, lambda x, t: 1j * x, torch.ones(3, dtype=torch.complex128))
    torch.testing.assert_close(
        rotation, torch.full((3,), complex(math.cos(1), math.sin(1)), dtype=torch.complex128),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip


def test_the_model_gets_batched_times_in_its_own_convention() -> None:
    seen = []

    def f(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    model = pf.Model(f, PROCESS, time=lambda t: 1000 * t)
    run_plan(plan_of("heun"), model, X)
    expected = [1000 * stage.time for step in plan_of("heun").steps for stage in step.stages]
    assert all(t.shape == (5,) and (t == t[0]).all() for t in seen)
    np.testing.assert_allclose([float(t[0]) for t in seen], expected, rtol=1e-15)
    seen.clear()
    run_plan(plan_of("ddim"), model, X.half())
    assert {t.dtype for t in seen} == {torch.float32}


def test_kwargs_reach_the_model() -> None:
    label = torch.arange(5, dtype=torch.float64)[:, None]
    model = pf.Model(lambda x, t, *, y: x * y, PROCESS, kwargs={"y": label})
    plain = pf.Model(lambda x, t: x * label, PROCESS)
    assert torch.equal(run_plan(plan_of("ddim"), model, X), run_plan(plan_of("ddim"), plain, X))


# Observers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "heun", "accelerated-ode", "accelerated-sde"])
@pytest.mark.parametrize("progress", [False, True])
def test_callback_and_trajectory(solver: str, progress: bool) -> None:
    seen: list[tuple[int, float, Tensor]] = []
    states = run_plan(
        plan_of(solver),
        TARGET.model(PROCESS),
        X,
        noise=noise(),
        callback=lambda *record: seen.append(record),
        trajectory=True,
        progress=progress,
    )
    assert states.shape == (7, 5, 2)
    assert [record[0] for record in seen] == list(range(6))
    assert [record[1] for record in seen] == TIMES[1:].tolist()
    for record, state in zip(seen, states[1:], strict=True):
        assert torch.equal(record[2], state)


@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_progress_counts_evaluations(solver: pf.Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar:
        def __init__(self, total: int, **_: object) -> None:
            self.total, self.n, self.closed = total, 0, False
            bars.append(self)

        def update(self, n: int) -> None:
            self.n += n

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("probflow.integrate.loop.tqdm", Bar)
    plan = plan_of(solver)
    run_plan(plan, TARGET.model(PROCESS), X, noise=noise(), progress=True)
    (bar,) = bars
    assert bar.total == bar.n == plan.nfe
    assert bar.closed
    with pytest.raises(ZeroDivisionError):
        run_plan(plan, pf.Model(lambda x, t: 1 / 0, PROCESS), X, noise=noise(), progress=True)
    assert bars[-1].closed


@pytest.mark.parametrize("solver", ["ddim", "heun", "accelerated-ode", "dpm-solver++-2m", "ddpm"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "velocity"])
def test_threshold_sees_x0_and_changes_it(solver: str, prediction: str) -> None:
    """The hook is the same as a model whose x0 prediction is clipped."""
    exact, seen = TARGET.model(PROCESS, prediction), []

    def clip(x0: Tensor, t: float) -> Tensor:
        seen.append(t)
        return x0.clamp(-0.8, 0.8)

    class Clipped(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return exact.predict(x, t, "x0").clamp(-0.8, 0.8)

    plan = plan_of(solver, prediction)
    ours = run_plan(plan, exact, X, noise=noise(), threshold=clip)
    clipped = pf.Model(Clipped(), PROCESS, "x0").as_prediction(prediction)
    torch.testing.assert_close(
        ours, run_plan(plan, clipped, X, noise=noise()), rtol=1e-10, atol=1e-10
    )
    assert seen == [stage.time for step in plan.steps for stage in step.stages]
    through = run_plan(plan, exact, X, noise=noise(), threshold=lambda x0, t: x0)
    torch.testing.assert_close(
        through, run_plan(plan, exact, X, noise=noise()), rtol=1e-9, atol=1e-9
    )


def test_threshold_in_half_precision_works_in_float32() -> None:
    """Converting to x0 and back in float16 at small sigma would lose all digits of eps."""
    seen = []

    def hook(x0: Tensor, t: float) -> Tensor:
        seen.append(x0.dtype)
        return x0

    x, model = X.half(), TARGET.model(PROCESS)
    ours = run_plan(plan_of("ddim"), model, x, threshold=hook)
    plain = run_plan(plan_of("ddim"), model, x)
    assert set(seen) == {torch.float32}
    torch.testing.assert_close(ours, plain, rtol=2e-3, atol=2e-3)


# Gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_gradients_by_finite_differences(solver: pf.Solver, checkpoint: bool) -> None:
    net = Net()
    model, plan = pf.Model(net, PROCESS), plan_of(solver, times=TIMES[:4])

    def loss(x: Tensor) -> Tensor:
        return run_plan(plan, model, x, noise=noise(x), checkpoint=checkpoint).square().sum()

    x = X[:2].clone().requires_grad_()
    weight = net.first.weight
    in_x, in_weight = torch.autograd.grad(loss(x), [x, weight])
    with torch.no_grad():
        for tensor, gradient, index in [(x, in_x, (1, 0)), (weight, in_weight, (2, 1))]:
            h = 1e-5
            values = []
            for sign in (1, -1):
                tensor[index] += sign * h
                values.append(float(loss(x)))
                tensor[index] -= sign * h
            slope = (values[0] - values[1]) / (2 * h)
            assert float(gradient[index]) == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("solver", ["heun", "accelerated-ode", "accelerated-sde", "ddpm"])
def test_checkpointed_gradients_are_the_same(solver: str) -> None:
    net = Net()
    model, plan = pf.Model(net, PROCESS), plan_of(solver)
    gradients = []
    for options in ({}, {"checkpoint": True}):
        for hook in (None, lambda x0, t: torch.tanh(x0 * (1 + t))):
            x = X.clone().requires_grad_()
            result = run_plan(plan, model, x, noise=noise(), threshold=hook, **options)
            gradients.append(torch.autograd.grad(result.sum(), [x, *net.parameters()]))
    for ours, expected in zip(gradients[2:], gradients[:2], strict=True):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_of_trajectories() -> None:
    x = X.clone().requires_grad_()
    plan = plan_of("ddim")
    states = run_plan(plan, pf.Model(Net(), PROCESS), x, trajectory=True)
    (gradient,) = torch.autograd.grad(states.sum(), x)
    expected = sum(
        torch.autograd.grad(s.sum(), x, retain_graph=True)[0] for s in interpret(plan, Net(), x)
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_transforms_of_torch_func(solver: pf.Solver) -> None:
    """Forward-mode derivatives and vectorisation over the state."""
    net = Net()
    plan = plan_of(solver, times=TIMES[:4])
    model = pf.Model(net, PROCESS)
    zs = noise(X)

    def run(x: Tensor) -> Tensor:
        return run_plan(plan, model, x, noise=zs, check_finite=False)

    tangent = torch.ones_like(X)
    value, jvp = torch.func.jvp(run, (X,), (tangent,))
    torch.testing.assert_close(value, run(X))
    h = 1e-6
    slope = (run(X + h * tangent) - run(X - h * tangent)) / (2 * h)
    torch.testing.assert_close(jvp, slope, rtol=1e-6, atol=1e-6)
    batch = torch.stack([X, 2 * X, -X])
    mapped = torch.func.vmap(run)(batch)
    torch.testing.assert_close(mapped, torch.stack([run(x) for x in batch]), rtol=1e-11, atol=1e-11)


# Precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddim", "accelerated-ode-multistep", "ddpm", "heun"])
def test_half_precision_accumulates_in_float32(solver: str, dtype: torch.dtype) -> None:
    """400 small steps: rounding every state to half would stall; the model sees half only."""
    seen = set()

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.add((x.dtype, t.dtype))
        return torch.zeros_like(x)

    times = pf.grids.exponential(5.0, 0.01, "neg_log_ab").times(PROCESS, 400)
    plan = plan_of(solver, times=times)
    x = X.to(dtype)
    zs = noise(x)
    result = run_plan(plan, pf.Model(model, PROCESS), x, noise=zs)
    assert seen == {(dtype, torch.float32)}
    assert result.dtype == dtype
    exact = run_plan(plan, pf.Model(lambda x, t: torch.zeros_like(x), PROCESS), x.float(), noise=zs)
    assert torch.equal(result, exact.to(dtype))
    states = run_plan(plan, pf.Model(model, PROCESS), x, noise=zs, trajectory=True)
    assert states.dtype == dtype


def test_times_do_not_collapse_in_half_precision() -> None:
    process = pf.VP.from_betas(np.linspace(1e-4, 0.02, 1000))
    seen = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return x

    plan = pf.get_solver("ddim").plan(process, np.arange(999.0, -1.0, -1.0))
    run_plan(plan, pf.Model(model, process), torch.zeros(1, 1, dtype=torch.bfloat16))
    assert seen == list(np.arange(999.0, 0.0, -1.0))


# No waiting for the device -----------------------------------------------------------------

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")


class Watch(TorchDispatchMode):
    """Counts operations that copy from device to host, and arithmetic between tensors of data."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operations.append(str(func))
        if name in WAITING:
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_no_synchronisation(solver: pf.Solver) -> None:
    plan, source = plan_of(solver), noise(X)
    model = pf.Model(lambda x, t: x * 0.5, PROCESS)
    with Watch() as watch:
        run_plan(plan, model, X, noise=source, check_finite=False)
    assert watch.waits == []
    with Watch() as watch:
        run_plan(plan, model, X, noise=source)
    assert len(watch.waits) == 1


@pytest.mark.parametrize(
    "solver", [s for s in ALL if s.name != "accelerated-sde-jvp"], ids=by_name
)  # the constant model has no derivative, and that solver says so
def test_weights_are_floats_and_few_operations(solver: pf.Solver) -> None:
    """One operation per term of a combination: weights never become tensors."""
    plan = plan_of(solver)
    shape = (5, 2)
    draws = [torch.randn(shape, dtype=torch.float64) for _ in range(20)]

    class Ready:
        def __call__(self, start: float, stop: float) -> Tensor:
            return next(self.iterator)

        def restart(self) -> None:
            self.iterator = iter(draws)

    outputs = iter([torch.ones_like(X) for _ in range(plan.nfe)])  # memory of its own for each
    model = pf.Model(lambda x, t: next(outputs), PROCESS)
    with Watch() as watch:
        run_plan(plan, model, X, noise=Ready(), check_finite=False)
    loop = [name for name in watch.operations if "add" in name or "mul" in name]
    terms = sum(len(c) for step in plan.steps for c in step.combinations())
    assert len(loop) <= terms
    assert set(loop) <= {"aten.mul.Tensor", "aten.add.Tensor", "aten.add_.Tensor"}
    copies = watch.operations.count("aten.clone.default")
    assert copies <= compiled(plan).held  # of the outputs that are looked at
    other = [name for name in watch.operations if name not in loop]
    assert len(other) - copies < 12  # preparation does not grow with the number of steps


@pytest.mark.parametrize("solver", ALL, ids=by_name)
def test_the_model_is_called_nfe_times(solver: pf.Solver) -> None:
    calls = []
    plan = plan_of(solver)

    def model(x: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return x

    for options in ({}, {"trajectory": True}, {"callback": lambda *_: None}):
        calls.clear()
        run_plan(plan, pf.Model(model, PROCESS), X, noise=noise(), **options)
        # A Jacobian-vector product is one call and counts as two evaluations.
        tangents = sum(bool(stage.tangent) for step in plan.steps for stage in step.stages)
        assert len(calls) == plan.nfe - tangents


# Jacobian-vector products ------------------------------------------------------------------


class _NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@pytest.mark.parametrize(
    "function",
    [lambda x, t: _NoForwardMode.apply(x), lambda x, t: x.detach() * 2],
    ids=["custom", "detached"],
)
def test_models_without_forward_mode_are_told(function: Callable) -> None:
    with pytest.raises(TypeError, match="needs a Jacobian-vector product, and forward-mode"):
        run_plan(plan_of("accelerated-sde-jvp"), pf.Model(function, PROCESS), X, noise=noise())


def test_a_models_own_error_is_not_hidden() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        run_plan(plan_of("accelerated-sde-jvp"), pf.Model(broken, PROCESS), X, noise=noise())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_jvp_in_every_mode(context: Any) -> None:
    plan, model = plan_of("accelerated-sde-jvp"), pf.Model(Net(), PROCESS)
    with context():
        assert torch.isfinite(run_plan(plan, model, X, noise=noise(), progress=True)).all()


# Failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", ["ddim", "heun", "accelerated-ode", "accelerated-sde"])
@pytest.mark.parametrize("number", [0, 3])
def test_the_first_bad_output_is_located(solver: str, number: int, value: float) -> None:
    t = float(TIMES[number])

    def model(x: Tensor, time: Tensor) -> Tensor:
        bad = (time - t).abs() < 1e-12
        return torch.where(bad[:, None] & (torch.arange(2) == 1), value, 0.1 * x)

    plan = plan_of(solver)
    # Heun's second stage of the step before is at the same time already.
    first = next(i for i, s in enumerate(plan.steps) if any(g.time == t for g in s.stages))
    message = f"{solver}: NaN or infinity in the model's output at step {first} of 6, t = {t:g}"
    with pytest.raises(NonFiniteError, match=message):
        run_plan(plan, pf.Model(model, PROCESS), X, noise=noise())
    silent = run_plan(plan, pf.Model(model, PROCESS), X, noise=noise(), check_finite=False)
    assert not torch.isfinite(silent).all()


def test_overflow_of_the_state_is_located() -> None:
    model = pf.Model(lambda x, t: 1e35 * torch.ones_like(x) * t[:, None], PROCESS)
    with pytest.raises(NonFiniteError, match=r"the state after step 0 of 6, .*finite \(overflow\)"):
        run_plan(plan_of("ddim"), model, 1e38 * torch.ones(2, 2))


def test_overflow_of_rounding_is_located() -> None:
    process = pf.EDM()
    plan = pf.get_solver("ddim").plan(process, [80.0, 40.0])
    model = pf.Model(lambda x, t: torch.full_like(x, -3000.0), process)
    message = r"the final state, rounded to torch.float16 \(overflow\)"
    with pytest.raises(NonFiniteError, match=message):
        run_plan(plan, model, torch.zeros(1, 1, dtype=torch.float16))


def test_a_bad_initial_state_is_located() -> None:
    with pytest.raises(NonFiniteError, match="ddim: NaN or infinity in the initial state"):
        run_plan(plan_of("ddim"), TARGET.model(PROCESS), X * math.nan)


def test_a_model_that_is_not_a_function() -> None:
    calls = []

    def moody(x: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return x * (math.nan if len(calls) == 2 else 1.0)

    with pytest.raises(NonFiniteError, match="the model is not a function of its arguments"):
        run_plan(plan_of("ddim"), pf.Model(moody, PROCESS), X)


def test_large_finite_states_are_no_failure() -> None:
    """Their sum overflows, they do not."""
    x = torch.full((8, 2), 1e38)
    plan = pf.get_solver("euler").plan(None, [0.0, 1.0])
    assert torch.equal(run_plan(plan, lambda x, t: 0 * x, x), x)


# Arguments ---------------------------------------------------------------------------------


def forbidden(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the model was called")


MODEL = pf.Model(forbidden, PROCESS)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("ddim", MODEL, [1.0]), {}, TypeError, "x: need a tensor, got list"),
        (("ddim", MODEL, torch.ones(2, dtype=int)), {}, TypeError, "x: need a floating-point"),
        (("ddim", MODEL, torch.tensor(1.0)), {}, ValueError, r"x: need shape \(batch, \.\.\.\)"),
        (("ddim", 3, X), {}, TypeError, r"model: need a Model or a function f\(x, t\), got int"),
        (("ddpm", MODEL, X), {}, ValueError, "noise: ddpm is stochastic; give a seed"),
        (("ddpm", MODEL, X), {"noise": 3}, TypeError, "noise: need a NoiseSource"),
        (("ddpm", MODEL, X), {"noise": lambda a, b: X}, TypeError, "with a method restart"),
        (
            ("ddpm", MODEL, X),
            {"noise": SeededNoise(0, (1, 2), torch.float64)},
            ValueError,
            r"noise: must have the state's shape \(5, 2\), .* got \(1, 2\)",
        ),
        (
            ("ddpm", MODEL, X),
            {"noise": SeededNoise(0, (5, 2), torch.float32)},
            ValueError,
            r"noise: must have the state's shape .*torch.float64 .*got .*torch.float32",
        ),
        (("ddim", forbidden, X), {"threshold": abs}, TypeError, "threshold: needs a Model"),
    ],
)
def test_argument_errors_come_before_any_model_call(
    arguments: tuple, options: dict, error: type[Exception], message: str
) -> None:
    solver, model, x = arguments
    with pytest.raises(error, match=message):
        run_plan(plan_of(solver), model, x, **options)


def test_the_prediction_must_be_the_models() -> None:
    with pytest.raises(ValueError, match="plan: made for a model of x0, but this one predicts eps"):
        run_plan(plan_of("ddim", "x0"), MODEL, X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("threshold", [None, lambda x0, t: x0])
@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: (x,), TypeError, "model: must return a tensor, returned tuple"),
        (lambda x: x[:, :1], ValueError, r"state's shape \(5, 2\), returned \(5, 1\)"),
        (lambda x: x.double(), ValueError, "state's dtype .*, returned torch.float64"),
    ],
)
def test_wrong_outputs_of_the_model(
    output: Any, error: type[Exception], message: str, threshold: Any, dtype: torch.dtype
) -> None:
    model = pf.Model(lambda x, t: output(x), PROCESS)
    with pytest.raises(error, match=message):
        run_plan(plan_of("ddim"), model, X.to(dtype), threshold=threshold)


def test_wrong_outputs_of_the_threshold() -> None:
    with pytest.raises(TypeError, match="must return a tensor, returned NoneType"):
        run_plan(plan_of("ddim"), TARGET.model(PROCESS), X, threshold=lambda x0, t: None)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++-2m", "lms-4", "unipc-3", "sa-solver"])
def test_outputs_are_let_go_of(solver: str) -> None:
    """No more outputs of the model live than later steps refer to."""
    process = pf.VP.linear()
    plan = pf.get_solver(solver).plan(process, np.linspace(1.0, 0.01, 31), "eps")
    outputs: list[weakref.ref[Tensor]] = []
    alive = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        alive.append(sum(output() is not None for output in outputs))
        made = 0.1 * x
        outputs.append(weakref.ref(made))
        return made

    model = pf.Model(network, process, prediction="eps")
    with torch.no_grad():
        run_plan(plan, model, X, noise=noise())
    assert max(alive[compiled(plan).held :]) <= plan.memory
