from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torchdiffeq
from thinned import thinned
from torchdiffeq._impl import misc as their_misc
from torchdiffeq._impl.odeint import SOLVERS

import probflow as pf
from probflow.adapters import torchdiffeq as adapter
from probflow.solvers.registry import unregister as remove_solver

DOUBLE = torch.float64
DETERMINISTIC = [solver for solver in pf.all_solvers() if not solver.stochastic]
STRUCTURED = [solver.name for solver in DETERMINISTIC if solver.needs == "process"]

PROCESS = pf.VP.linear()
TARGET = pf.Gaussian([0.5, -1.0], [[1.0, 0.2], [0.2, 0.5]])
ODE = pf.ProbabilityFlowODE(PROCESS, TARGET)


@pytest.fixture(autouse=True)
def registered():
    before = dict(SOLVERS)
    pf.register()
    yield
    pf.unregister()
    assert before == SOLVERS
    assert list(before) == list(SOLVERS)


@pytest.fixture
def y0() -> torch.Tensor:
    return torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def times(steps: int, start: float = 1.0, stop: float = 0.05) -> torch.Tensor:
    return torch.linspace(start, stop, steps + 1, dtype=DOUBLE)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(2, 8).double(), torch.nn.Linear(8, 2).double()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))) * t[:, None]


# Agreement --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda solver: solver.name)
@pytest.mark.parametrize(("start", "stop"), [(1.0, 0.05), (0.05, 1.0)], ids=["sample", "encode"])
def test_agrees_with_odeint(solver, start: float, stop: float, y0: torch.Tensor) -> None:
    t = times(7, start, stop)
    expected = pf.odeint(ODE, y0, t, method=solver)
    for name in (solver.name, solver.name.replace("-", "_"), *solver.aliases):
        states = torchdiffeq.odeint(ODE, y0, t, method=name)
        torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            adjoint = torchdiffeq.odeint_adjoint(ODE, y0, t, method=name)
        torch.testing.assert_close(adjoint, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", thinned(DETERMINISTIC, lambda solver: solver.name))
@pytest.mark.parametrize(("start", "stop"), [(1.0, 0.05), (0.05, 1.0)], ids=["sample", "encode"])
def test_agrees_with_odeint_in_steps(solver, start: float, stop: float, y0: torch.Tensor) -> None:
    t, options = times(1, start, stop), {"step_size": 0.06}
    states = torchdiffeq.odeint(ODE, y0, t, method=solver.name, options=options)
    expected = pf.odeint(ODE, y0, t, method=solver.name, options=options)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_grid_constructor_in_both_directions(flip: bool, y0: torch.Tensor) -> None:
    grid = times(9).flip(0) if flip else times(9)
    options = {"grid_constructor": lambda f, y, t: grid}
    for solve in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint):
        states = solve(ODE, y0, grid[[0, -1]], method="dpmpp-2m", options=options)
        assert torch.equal(states, pf.odeint(ODE, y0, grid, method="dpmpp-2m")[[0, -1]])


def test_the_solvers_own_options(y0: torch.Tensor) -> None:
    states = torchdiffeq.odeint(ODE, y0, times(4), method="dpm_solver_2", options={"r1": 0.8})
    solver = pf.get_solver("dpm-solver-2", r1=0.8)
    assert torch.equal(states, pf.odeint(ODE, y0, times(4), method=solver))


def test_plain_functions_tuples_and_single_times() -> None:
    def func(t, state):
        a, b = state
        return -a * t, a.sum() * torch.ones_like(b)

    state = torch.ones(3, 2, dtype=DOUBLE), torch.zeros(4, dtype=DOUBLE)
    for t in (times(5), times(5).flip(0), times(0)):
        for theirs, ours in zip(
            torchdiffeq.odeint(func, state, t, method="heun"),
            pf.odeint(func, state, t, method="heun"),
            strict=True,
        ):
            torch.testing.assert_close(theirs, ours, rtol=1e-13, atol=1e-13)


def test_float32_and_images() -> None:
    ode = pf.ProbabilityFlowODE(PROCESS, pf.Model(lambda x, t: 0.5 * x, PROCESS))
    y, t = torch.ones(2, 3, 4, 4), torch.linspace(1, 1e-3, 6)
    states = torchdiffeq.odeint(ode, y, t, method="accelerated-ode")
    assert torch.equal(states, pf.odeint(ode, y, t, method="accelerated-ode"))


# Adjoint ----------------------------------------------------------------------------------------


def gradients(solve, ode, y0: torch.Tensor, t: torch.Tensor, **arguments) -> list[torch.Tensor]:
    y = y0.clone().requires_grad_()
    states = solve(ode, y, t, **arguments)
    loss = states[-1].square().sum() + states[len(t) // 2].sum()
    return list(torch.autograd.grad(loss, [y, *ode.parameters()]))


@pytest.mark.parametrize(
    ("method", "adjoint"),
    [
        ("accelerated-ode", None),
        ("accelerated-ode", "rk4"),
        ("accelerated-ode", "dopri5"),
        ("accelerated-ode", "ddim"),
        ("dpm-solver++-2m", None),
        ("heun", "heun"),
    ],
)
@pytest.mark.parametrize("flip", [False, True], ids=["sample", "encode"])
def test_adjoint_gradients_converge_to_discretise_then_differentiate(
    method: str, adjoint: str | None, flip: bool, y0: torch.Tensor
) -> None:
    ode = pf.ProbabilityFlowODE(PROCESS, pf.Model(Network(), PROCESS))
    errors = []
    for steps in (24, 96):
        t = times(steps, 0.5, 0.1)
        t = t.flip(0) if flip else t
        exact = gradients(pf.odeint, ode, y0, t, method=method)
        given = gradients(
            torchdiffeq.odeint_adjoint, ode, y0, t, method=method, adjoint_method=adjoint
        )
        errors.append(
            max(
                float((a - b).abs().max() / a.abs().max())
                for a, b in zip(given, exact, strict=True)
            )
        )
    first_order = adjoint == "ddim"
    assert errors[1] < (0.05 if first_order else 0.005)
    assert math.log2(errors[0] / errors[1]) / 2 > (0.8 if first_order else 1.6)


@pytest.mark.parametrize("solver", thinned(DETERMINISTIC, lambda solver: solver.name))
def test_every_solver_has_an_adjoint(solver, y0: torch.Tensor) -> None:
    ode = pf.ProbabilityFlowODE(PROCESS, pf.Model(Network(), PROCESS))
    t = times(96 if solver.orders["strong"] == 1 else 32, 0.5, 0.1)
    exact = gradients(pf.odeint, ode, y0, t, method=solver)
    given = gradients(torchdiffeq.odeint_adjoint, ode, y0, t, method=solver.name)
    for a, b in zip(given, exact, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 0.1


def test_rule_for_the_augmented_system() -> None:
    rules = {"ddim": "euler", "accelerated-ode": "heun", "rk4": "rk4", "midpoint": "midpoint"}
    for name, rule in rules.items():
        assert adapter.adjoint_rule(pf.get_solver(name)).name == rule
    for solver in DETERMINISTIC:
        assert adapter.adjoint_rule(solver).needs == "ode"


def test_adjoint_options_of_the_solver_do_not_reach_the_rule(y0: torch.Tensor) -> None:
    ode = pf.ProbabilityFlowODE(PROCESS, pf.Model(Network(), PROCESS))
    gradients(
        torchdiffeq.odeint_adjoint, ode, y0, times(4), method="dpm-solver-2", options={"r1": 0.8}
    )
    ends = times(1)
    options = {"step_size": 0.05}
    gradients(torchdiffeq.odeint_adjoint, ode, y0, ends, method="ddim", options=options)


def test_gradients_of_times(y0: torch.Tensor) -> None:
    # The adjoint forms them: d y(T) / d T = v(y(T), T).
    t = times(40).requires_grad_()
    state = torchdiffeq.odeint_adjoint(ODE, y0, t, method="accelerated-ode")[-1]
    (given,) = torch.autograd.grad(state.sum(), t)
    assert float(given[-1]) == pytest.approx(
        float(ODE(t[-1].detach(), state.detach()).sum()), rel=1e-10
    )
    with pytest.raises(ValueError, match="t: gradients"):
        torchdiffeq.odeint(ODE, y0, t, method="accelerated-ode")


# Messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURED)
def test_a_plain_function_gets_the_same_message(name: str) -> None:
    with pytest.raises(TypeError) as ours:
        pf.odeint(lambda t, y: -y, torch.ones(2), times(3), method=name)
    with pytest.raises(TypeError) as theirs:
        torchdiffeq.odeint(lambda t, y: -y, torch.ones(2), times(3), method=name)
    assert str(ours.value) == str(theirs.value)
    with pytest.raises(TypeError, match="ProbabilityFlowODE"):
        torchdiffeq.odeint(lambda t, y: y, (torch.ones(2),), times(3), method=name)


def test_reverse_sde_unknown_options_and_events(y0: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"pf\.sdeint"):
        torchdiffeq.odeint(pf.ReverseSDE(PROCESS, TARGET), y0, times(3), method="ddim")
    with pytest.raises(ValueError, match=r"ddim has no option 'stepsize'; near names: step_size"):
        torchdiffeq.odeint(ODE, y0, times(3), method="ddim", options={"stepsize": 1})
    with pytest.raises(ValueError, match="event_fn: ddim does not look for events"):
        torchdiffeq.odeint(ODE, y0, times(1), method="ddim", event_fn=lambda t, y: y.sum())


# The table --------------------------------------------------------------------------------------


def test_torchdiffeqs_names_stay_its_own() -> None:
    for name in ("euler", "midpoint", "rk4", "dopri5"):
        assert SOLVERS[name].__module__.startswith("torchdiffeq.")
    assert not set(adapter.own_methods()) & set(STRUCTURED)


def test_register_twice_and_later_solvers(y0: torch.Tensor) -> None:
    names = list(SOLVERS)
    pf.register()
    assert list(SOLVERS) == names

    @pf.register_solver("test-later", reference="test", prediction="eps", coordinates="ve",
                        orders={"tv": 1}, aliases=("test-late",))  # fmt: skip
    def step(step):
        """y' = y + (rho' - rho) eps."""
        return step.x + (step.s.rho - step.t.rho) * step.model(step.x, step.t)

    try:
        assert "test-later" not in SOLVERS
        pf.register()
        for name in ("test-later", "test_later", "test-late", "test_late"):
            states = torchdiffeq.odeint(ODE, y0, times(4), method=name)
            torch.testing.assert_close(states, pf.odeint(ODE, y0, times(4), method="edm-euler"))
    finally:
        remove_solver("test-later")
    pf.register()
    assert list(SOLVERS) == names


def test_a_moved_door_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def backward():
            pass

    monkeypatch.setattr(adapter, "OdeintAdjointMethod", Other)
    with pytest.raises(
        RuntimeError, match=r"torchdiffeq [\d.]+ has no augmented_dynamics .*0\.2\.5"
    ):
        pf.register()


def test_a_moved_module_is_named() -> None:
    code = (
        "import torchdiffeq._impl.misc as m; del m._ReverseFunc\n"
        "import probflow as pf\n"
        "try: pf.register()\n"
        "except RuntimeError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "_ReverseFunc" in result.stdout
    assert "supports torchdiffeq 0.2.4 and 0.2.5" in result.stdout
    assert hasattr(their_misc, "_ReverseFunc")


def test_importing_probflow_imports_neither_library() -> None:
    code = "import sys, probflow; print({'torchdiffeq', 'torchsde'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
