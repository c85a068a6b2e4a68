from __future__ import annotations

import dataclasses

import pytest
import torch
import torchsde
from thinned import thinned
from torchsde._core import methods
from torchsde.settings import METHODS

import probflow as pf
from probflow.adapters import torchsde as adapter
from probflow.solvers.registry import unregister as remove_solver

DOUBLE = torch.float64
STOCHASTIC = [solver for solver in pf.all_solvers() if solver.stochastic]

PROCESS = pf.VP.linear()
TARGET = pf.Gaussian([0.5, -1.0], [[1.0, 0.2], [0.2, 0.5]])
SDE = pf.ReverseSDE(PROCESS, TARGET)


@pytest.fixture(autouse=True)
def registered():
    names, select = METHODS.all(), methods.select
    pf.register()
    yield
    pf.unregister()
    assert METHODS.all() == names
    assert methods.select is select


@pytest.fixture
def y0() -> torch.Tensor:
    return torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def times(steps: int) -> torch.Tensor:
    return torch.linspace(1.0, 0.05, steps + 1, dtype=DOUBLE)


def interval() -> torchsde.BrownianInterval:
    return torchsde.BrownianInterval(t0=-1.0, t1=-0.05, size=(5, 2), dtype=DOUBLE, entropy=3)


@pytest.mark.parametrize(
    ("solver", "dt"),
    thinned(
        [(solver, dt) for solver in STOCHASTIC for dt in (0.03, 0.01, 1.0)],
        lambda case: f"{case[0].name}-{case[1]}",
        every=4,
    ),
)
def test_agrees_with_sdeint(solver, dt: float, y0: torch.Tensor) -> None:
    ts = -times(3)
    bm = interval()
    for name in (solver.name, solver.name.replace("-", "_"), *solver.aliases):
        theirs = torchsde.sdeint(SDE, y0, ts, bm, method=name, dt=dt)
        for given in (ts, -ts):
            ours = pf.sdeint(SDE, y0, given, bm, method=name, dt=dt)
            torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda solver: solver.name)
def test_steps_one_by_one_are_the_same_as_a_run(solver, y0: torch.Tensor) -> None:
    if solver.memory or solver.whole_grid:
        pytest.skip("its steps cannot be taken without the others")
    bm, grid = interval(), times(5)
    entry = methods.select(solver.name, "ito")
    stepper = entry(SDE, bm, 0.1, False, rtol=0, atol=0, dt_min=0, options={})
    assert solver.name in repr(stepper.solver.name)
    y = y0
    for t0, t1 in zip(-grid[:-1], -grid[1:], strict=True):
        y, extra = stepper.step(t0, t1, y, ())
        assert extra == ()
    run = pf.sdeint(SDE, y0, grid, bm, method=solver, dt=None)
    torch.testing.assert_close(y, run[-1], rtol=1e-12, atol=1e-12)


def test_adaptive_steps_the_noise_torchsde_makes_and_extra(y0: torch.Tensor) -> None:
    ts = -times(2)
    arguments = {"method": "accelerated-sde", "dt": 0.05}
    states = torchsde.sdeint(SDE, y0, ts, adaptive=True, rtol=1e-2, atol=1e-2, **arguments)
    assert states.shape == (3, 5, 2)
    states, extra = torchsde.sdeint(SDE, y0, ts, extra=True, **arguments)
    assert states.shape == (3, 5, 2)
    assert extra == ()


def test_sdeint_adjoint_runs_forward_with_it(y0: torch.Tensor) -> None:
    linear = torch.nn.Linear(2, 2).double()
    model = pf.Model(lambda x, t: linear(x), PROCESS)
    model.linear = linear  # so that the SDE has it as a parameter
    sde = pf.ReverseSDE(PROCESS, model)
    y = y0.clone().requires_grad_()
    bm = interval()
    states = torchsde.sdeint_adjoint(
        sde, y, -times(2), bm, method="ddpm", adjoint_method="euler", dt=0.02
    )
    ours = pf.sdeint(sde, y0, times(2), bm, method="ddpm", dt=0.02)
    torch.testing.assert_close(states, ours, rtol=1e-12, atol=1e-12)
    states[-1].sum().backward()
    assert y.grad is not None
    assert linear.weight.grad is not None


class Ornstein(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return torch.ones_like(y)

    h = f


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda solver: solver.name)
def test_a_plain_sde_gets_the_same_message(solver, y0: torch.Tensor) -> None:
    with pytest.raises(TypeError) as ours:
        pf.sdeint(Ornstein(), y0, times(3), method=solver)
    with pytest.raises(TypeError) as theirs:
        torchsde.sdeint(Ornstein(), y0, -times(3), method=solver.name)
    assert str(ours.value) == str(theirs.value)


def test_wrappers_of_torchsde_are_refused(y0: torch.Tensor) -> None:
    class Prior(pf.ReverseSDE):
        def h(self, t, y):
            return -y

    prior = Prior(PROCESS, TARGET)
    with pytest.raises(ValueError, match=r"^logqp: ddpm .*'srk'"):
        torchsde.sdeint(prior, y0, -times(3), method="ddpm", logqp=True)
    with pytest.raises(ValueError, match=r"^names: ddpm"):
        torchsde.sdeint(prior, y0, -times(3), method="ddpm", names={"drift": "h"})
    with pytest.raises(ValueError, match="ddpm has no option 'seed'"):
        torchsde.sdeint(SDE, y0, -times(3), method="ddpm", options={"seed": 1})
    with pytest.raises(ValueError, match="runs from noise to data"):
        torchsde.sdeint(SDE, y0, times(3).flip(0), method="ddpm")


def test_multistep_methods_refuse_to_be_stepped(y0: torch.Tensor) -> None:
    solver = dataclasses.replace(pf.get_solver("ddpm"), memory=1)
    entry = type("Multistep", (adapter.ProbflowSDESolver,), {"solver": solver})
    stepper = entry(SDE, interval(), 0.1, True, rtol=0, atol=0, dt_min=0, options={})
    with pytest.raises(ValueError, match="adaptive: ddpm uses the 1 step"):
        stepper.integrate(y0, -times(2), ())


def test_torchsdes_own_methods_stay(y0: torch.Tensor) -> None:
    for name in ("euler", "heun", "midpoint", "srk"):
        assert name in adapter.own_methods()
        assert methods.select(name, "ito").__module__.startswith("torchsde.")
    with pytest.raises(ValueError, match="does not match any known method"):
        methods.select("nothing", "ito")
    assert not {solver.name for solver in STOCHASTIC} & set(adapter.own_methods())
    # A deterministic solver has no place here.
    assert "accelerated-ode" not in METHODS


def test_register_twice_and_later_solvers(y0: torch.Tensor) -> None:
    names = METHODS.all()
    pf.register()
    assert METHODS.all() == names

    @pf.register_solver("test-later-sde", reference="test", prediction="eps", stochastic=True,
                        orders={"tv": 1}, aliases=("test-late-sde",))  # fmt: skip
    def step(step):
        """x' = x + h eps + z."""
        h = step.s.t - step.t.t
        return step.x + h * step.model(step.x, step.t) + step.noise()

    try:
        pf.register()
        for name in ("test-later-sde", "test_late_sde"):
            bm = interval()
            states = torchsde.sdeint(SDE, y0, -times(4), bm, method=name, dt=0.3)
            ours = pf.sdeint(SDE, y0, times(4), bm, method=step, dt=0.3)
            torch.testing.assert_close(states, ours)
    finally:
        remove_solver("test-later-sde")
    pf.register()
    assert METHODS.all() == names


def test_a_moved_door_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pf.unregister()
    monkeypatch.delattr(methods, "select")
    with pytest.raises(
        RuntimeError, match=r"torchsde [\d.]+ has no _core.methods.select .*0\.2\.6"
    ):
        adapter.register()
