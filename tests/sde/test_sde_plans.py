from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torchsde

import probflow as pf
from probflow.integrate.grid import refine
from probflow.integrate.noise import PathNoise, SeededNoise
from probflow.sde.sdeint import process_times

DOUBLE = torch.float64
STOCHASTIC = [solver.name for solver in pf.all_solvers() if solver.stochastic]

PROCESS = pf.VP.linear()
TARGET = pf.Gaussian([0.5, -1.0], [[1.0, 0.2], [0.2, 0.5]])
SDE = pf.ReverseSDE(PROCESS, TARGET)


@pytest.fixture
def y0() -> torch.Tensor:
    return torch.randn(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def times(steps: int, start: float = 1.0, stop: float = 0.125) -> torch.Tensor:
    return torch.linspace(start, stop, steps + 1, dtype=DOUBLE)


def interval(size: tuple[int, ...] = (5, 2)) -> torchsde.BrownianInterval:
    return torchsde.BrownianInterval(t0=-1.0, t1=-0.125, size=size, dtype=DOUBLE, entropy=3)


def test_signature_is_torchsdes() -> None:
    ours, theirs = inspect.signature(pf.sdeint), inspect.signature(torchsde.sdeint)
    theirs_named = [p for p in theirs.parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs_named
    ]


# Grid and noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCHASTIC)
def test_equals_the_plan_run_by_hand(name: str, y0: torch.Tensor) -> None:
    ts = times(6)
    states = pf.sdeint(SDE, y0, ts, method=name, dt=None, options={"seed": 4})
    expected = pf.sample(
        SDE.model,
        x=y0,
        solver=name,
        grid=ts.tolist(),
        trajectory=True,
        noise=SeededNoise(4, (5, 2), DOUBLE),
    )
    assert torch.equal(states, expected)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_both_clocks_are_the_same(name: str, y0: torch.Tensor) -> None:
    ts = times(3)
    first = pf.sdeint(SDE, y0, ts, method=name, dt=0.05, bm=interval())
    second = pf.sdeint(SDE, y0, -ts, method=name, dt=0.05, bm=interval())
    assert first.shape == (4, 5, 2)
    assert torch.equal(first, second)


def test_dt_none_takes_the_times_as_grid_and_dt_refines_them(y0: torch.Tensor) -> None:
    ts = torch.tensor([1.0, 0.75, 0.625, 0.125], dtype=DOUBLE)
    seed = {"seed": 1}
    fine = torch.tensor([1.0, 0.8, 0.75, 0.625, 0.425, 0.225, 0.125], dtype=DOUBLE)
    assert refine(ts.tolist(), 0.2, "dt") == pytest.approx(fine.tolist(), abs=1e-15)
    on_fine = pf.sdeint(SDE, y0, fine, method="accelerated-sde", dt=None, options=seed)
    refined = pf.sdeint(SDE, y0, ts, method="accelerated-sde", dt=0.2, options=seed)
    torch.testing.assert_close(refined, on_fine[[0, 2, 3, 6]], rtol=1e-12, atol=1e-12)
    by_option = pf.sdeint(
        SDE, y0, ts, method="accelerated-sde", options={"step_size": 0.2, "seed": 1}
    )
    assert torch.equal(by_option, refined)
    assert len(refine([1.0, 0.125], 1e-3, "dt")) == 876  # torchsde's default dt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [50, 100, 1000])
def test_no_step_is_made_of_rounding_errors(dtype: torch.dtype, steps: int) -> None:
    ends = torch.tensor([1.0, 0.0], dtype=dtype).tolist()
    grid = refine(ends, torch.tensor(1 / steps, dtype=dtype), "dt")
    assert len(grid) == steps + 1
    assert max(np.diff(grid)) < -0.98 / steps


def test_seed_and_global_generator(y0: torch.Tensor) -> None:
    def run(**options):
        return pf.sdeint(SDE, y0, times(2), method="ddpm", dt=0.1, options=options)

    assert torch.equal(run(seed=3), run(seed=3))
    assert not torch.equal(run(seed=3), run(seed=4))
    torch.manual_seed(0)
    first, second = run(), run()
    torch.manual_seed(0)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)


def test_one_path_serves_all_step_counts(y0: torch.Tensor) -> None:
    path = pf.BrownianInterval(-1.0, -0.125, (5, 2), DOUBLE, entropy=0)
    ends = torch.tensor([1.0, 0.125], dtype=DOUBLE)
    x = [pf.sdeint(SDE, y0, ends, path, "accelerated-sde", 0.875 / n)[-1] for n in (64, 256, 1024)]
    coarse, fine = (x[0] - x[2]).abs().max(), (x[1] - x[2]).abs().max()
    assert fine < 0.6 * coarse
    expected = pf.sample(
        SDE.model,
        x=y0,
        solver="accelerated-sde",
        grid=times(64).tolist(),
        noise=PathNoise(path, lambda t: -t),
    )
    torch.testing.assert_close(x[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["interval", "path", "tree", "probflow"])
def test_kinds_of_brownian_motion(kind: str, y0: torch.Tensor) -> None:
    zero = torch.zeros(5, 2)  # float32, to see that the state keeps its dtype
    bm = {
        "interval": lambda: interval(),
        "path": lambda: torchsde.BrownianPath(t0=-1.0, w0=zero),
        "tree": lambda: torchsde.BrownianTree(t0=-1.0, t1=-0.125, w0=zero, entropy=2),
        "probflow": lambda: pf.BrownianInterval(-1.0, -0.125, (5, 2), DOUBLE, entropy=2),
    }[kind]()
    for y in (y0, y0.float()):
        states = pf.sdeint(SDE, y, times(2), bm, method="accelerated-sde", dt=0.125)
        assert states.dtype == y.dtype
        assert torch.equal(states, pf.sdeint(SDE, y, times(2), bm, "accelerated_sde", 0.125))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_image_states(name: str) -> None:
    sde = pf.ReverseSDE(PROCESS, pf.Model(lambda x, t: 0.5 * x, PROCESS))
    y = torch.ones(2, 3, 4, 4)
    states = pf.sdeint(sde, y, times(1), method=name, dt=0.2, options={"seed": 0})
    assert states.shape == (2, 2, 3, 4, 4)


def test_law_of_the_samples() -> None:
    y = torch.randn(20000, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x = pf.sdeint(
        SDE, y, times(1, 1.0, 1e-3), method="accelerated-sde", dt=0.02, options={"seed": 0}
    )[-1]
    mean, cov = TARGET.moments(float(PROCESS.alpha(1e-3)), float(PROCESS.sigma(1e-3)))
    torch.testing.assert_close(x.mean(0), torch.as_tensor(mean), atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.as_tensor(cov), atol=0.05, rtol=0)


def test_euler_maruyama_equals_torchsdes_euler(y0: torch.Tensor) -> None:
    # Step and times are exact in binary, so that torchsde's accumulated times are, too.
    bm = interval()
    ours = pf.sdeint(SDE, y0, times(7), bm, method="euler-maruyama", dt=1 / 64)
    theirs = torchsde.sdeint(SDE, y0, -times(7), bm, method="euler", dt=1 / 64)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients(y0: torch.Tensor) -> None:
    linear = torch.nn.Linear(2, 2).double()
    sde = pf.ReverseSDE(PROCESS, pf.Model(lambda x, t: linear(x), PROCESS))
    y = y0.clone().requires_grad_()
    pf.sdeint(sde, y, times(2), method="ddpm", dt=None)[-1].sum().backward()
    assert y.grad is not None
    assert linear.weight.grad is not None


def test_a_solver_object_with_options_and_a_single_time(y0: torch.Tensor) -> None:
    for method in (pf.get_solver("ddpm"), pf.get_solver("ddpm").function, "DDPM"):
        expected = pf.sdeint(SDE, y0, times(3), method="ddpm", dt=None, options={"seed": 1})
        states = pf.sdeint(SDE, y0, times(3), method=method, dt=None, options={"seed": 1})
        assert torch.equal(states, expected)
    assert torch.equal(pf.sdeint(SDE, y0, times(0), method="ddpm"), y0[None])


def test_times() -> None:
    assert process_times([1.0, 0.5]) == [1.0, 0.5]
    assert process_times(torch.tensor([-1.0, -0.5, 0.0])) == [1.0, 0.5, 0.0]
    assert str(process_times([-1.0, 0.0])[1]) == "0.0"  # not -0.0
    with pytest.raises(ValueError, match="runs from noise to data"):
        process_times([0.1, 0.9])
    with pytest.raises(ValueError, match="strictly"):
        process_times([1.0, 0.5, 0.7])


# torchsde's methods -----------------------------------------------------------------------------


class Ornstein(torch.nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return torch.ones_like(y)


def test_a_method_that_only_torchsde_has_is_passed_on(y0: torch.Tensor, monkeypatch) -> None:
    from torchsde._core import methods

    select = methods.select
    monkeypatch.setattr(torchsde.settings.METHODS, "mine", "mine", raising=False)
    monkeypatch.setattr(methods, "select", lambda method, sde_type: select("euler", sde_type))
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)

    def path():
        return torchsde.BrownianInterval(0.0, 1.0, (5, 2), DOUBLE, entropy=1)

    ours = pf.sdeint(Ornstein(), y0, ts, bm=path(), method="mine", dt=0.125)
    theirs = torchsde.sdeint(Ornstein(), y0, ts, bm=path(), method="euler", dt=0.125)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", [torch.as_tensor, list])
def test_reverse_sde_with_torchsdes_methods_in_either_clock(
    flip: bool, kind, y0: torch.Tensor
) -> None:
    ts = kind([-1.0, -0.5, -0.125] if flip else [1.0, 0.5, 0.125])
    y = y0.float()
    ours = pf.sdeint(SDE, y, ts, interval(), method="euler", dt=1 / 32)
    theirs = torchsde.sdeint(SDE, y, [-1.0, -0.5, -0.125], interval(), method="euler", dt=1 / 32)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


def test_logqp_and_names_together(y0: torch.Tensor) -> None:
    class Renamed(Ornstein):
        def drift(self, t, y):
            return -y

        h = drift

    ts = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    result = pf.sdeint(
        Renamed(), y0, ts, method="euler", dt=0.25, names={"drift": "drift"}, logqp=True
    )
    assert len(result) == 2


def test_probflows_path_serves_torchsde_itself(y0: torch.Tensor) -> None:
    path = pf.BrownianInterval(-1.0, -0.125, (5, 2), DOUBLE, entropy=0)
    theirs = torchsde.sdeint(SDE, y0, -times(7), bm=path, method="euler", dt=1 / 64)
    ours = pf.sdeint(SDE, y0, times(7), bm=path, method="euler-maruyama", dt=1 / 64)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# Messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_plain_sde_is_told_what_is_needed_and_how_to_make_it(name: str, y0: torch.Tensor) -> None:
    with pytest.raises(TypeError) as caught:
        pf.sdeint(Ornstein(), y0, times(3), method=name)
    text = str(caught.value)
    assert text.startswith(f"sde: {name} uses the noise levels")
    for piece in ("pf.VP.linear()", "pf.ReverseSDE(process, pf.Model(f", "'srk'"):
        assert piece in text


@pytest.mark.parametrize("name", ["accelerated-ode", "ddim", "rk4"])
def test_deterministic_solvers_point_to_odeint(name: str, y0: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"is deterministic.*pf\.odeint\(pf\.ProbabilityFlowODE"):
        pf.sdeint(SDE, y0, times(3), method=name)
    with pytest.raises(ValueError, match="euler is deterministic"):
        pf.sdeint(SDE, y0, times(3), method=pf.get_solver("euler"))


def test_probability_flow_points_to_odeint(y0: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"pf\.odeint; .*pf\.ReverseSDE"):
        pf.sdeint(pf.ProbabilityFlowODE(PROCESS, TARGET), y0, times(3), method="ddpm")


@pytest.mark.parametrize(
    "argument",
    [
        {"logqp": True},
        {"names": {"drift": "h"}},
        {"extra": True},
        {"adaptive": True},
        {"extra_solver_state": (1,)},
    ],
)
def test_arguments_of_torchsdes_methods(argument: dict, y0: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(argument))}: ddpm .*'euler' or 'srk'"):
        pf.sdeint(SDE, y0, times(3), method="ddpm", **argument)


def test_unknown_methods_and_options(y0: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"neither probflow nor torchsde.*near names: .*milstein"):
        pf.sdeint(SDE, y0, times(3), method="milsten")
    with pytest.raises(ValueError, match=r"near names: .*accelerated-sde"):
        pf.sdeint(SDE, y0, times(3), method="acelerated-sde")
    with pytest.raises(
        ValueError, match="no option 'sed'; near names: seed; allowed: seed, step_size"
    ):
        pf.sdeint(SDE, y0, times(3), method="ddpm", options={"sed": 1})


def test_bad_noise_and_states(y0: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="bm, seed: give one"):
        pf.sdeint(SDE, y0, times(3), interval(), method="ddpm", options={"seed": 1})
    with pytest.raises(ValueError, match=r"bm: has shape \(4, 2\), the state \(5, 2\)"):
        pf.sdeint(SDE, y0, times(3), interval((4, 2)), method="ddpm")
    with pytest.raises(
        ValueError, match=r"bm: .*s = -t.*BrownianInterval\(-1, -0.125, size=y0.shape\)"
    ):
        pf.sdeint(SDE, y0, times(3), pf.BrownianInterval(0.0, 1.0, (5, 2)), method="ddpm")
    with pytest.raises(TypeError, match="bm: need a Brownian motion"):
        pf.sdeint(SDE, y0, times(3), 3, method="ddpm")
    with pytest.raises(TypeError, match="y0: need a tensor"):
        pf.sdeint(SDE, y0.numpy(), times(3), method="ddpm")
    with pytest.raises(TypeError, match="y0: need a real floating-point"):
        pf.sdeint(SDE, y0.long(), times(3), method="ddpm")
    with pytest.raises(ValueError, match="dt: need a finite number > 0"):
        pf.sdeint(SDE, y0, times(3), method="ddpm", dt=-0.1)
    with pytest.raises(ValueError, match="outside the process"):
        pf.sdeint(SDE, y0, [2.0, 1.0], method="ddpm")
