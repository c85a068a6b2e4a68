"""Each sample of a batch with steps of its own."""

from __future__ import annotations

import math

import pytest
import torch
from equations import DOUBLE, logistic, logistic_solution, rotated, rotation

import probflow as pf
from probflow.integrate.loop import NonFiniteError
from probflow.ode.result import Status
from probflow.tableaus import TABLEAUS

ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.adaptive]
OPTIONS = {"per_sample": True}


def stiff(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Each row turns at a speed of its own, y[:, 2], which does not change."""
    speed = y[:, 2:]
    return torch.cat((-speed * y[:, 1:2], speed * y[:, :1], 0 * speed), 1)


def starts(speeds: list[float]) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0, speed] for speed in speeds], dtype=DOUBLE)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("t", [[0.0, 2.0], [2.0, 0.0], [0.0, 0.3, 0.31, 0.32, 1.7, 2.0]])
def test_accuracy(method: str, t: list[float]) -> None:
    tol = 1e-5 if TABLEAUS[method].order == 2 else 1e-8
    y0 = torch.tensor([[1.0, 0.0], [0.3, -0.4], [0.0, 0.0]], dtype=DOUBLE)
    result = pf.solve_ode(rotation, y0, t, method=method, rtol=tol, atol=tol, options=OPTIONS)
    exact = torch.stack([rotated(y0, time, t[0]) for time in t])
    # The estimate of fehlberg2 is far too small: see test_adaptive.
    slack = 3000 if method == "fehlberg2" else 200
    assert float((result.y - exact).abs().max()) < slack * tol
    assert result.success
    assert result.accepted.shape == result.rejected.shape == result.status.shape == (3,)


@pytest.mark.parametrize(
    ("method", "controller"), [*((method, "i") for method in ADAPTIVE), ("dopri5", "pid")]
)
def test_a_sample_does_not_feel_the_others(method: str, controller: str) -> None:
    tol = {2: 1e-3, 3: 1e-5}.get(TABLEAUS[method].order, 1e-7)
    y0 = starts([0.1, 40.0, 3.0, 0.0])
    t = [0.0, 0.4, 1.0]
    options = {**OPTIONS, "controller": controller}

    def solve(y):
        return pf.solve_ode(stiff, y, t, method=method, rtol=tol, atol=tol, options=options)

    together = solve(y0)
    for i in range(len(y0)):
        alone = solve(y0[i : i + 1])
        assert torch.equal(alone.y[:, 0], together.y[:, i])
        assert int(alone.accepted) == int(together.accepted[i])
        assert int(alone.rejected) == int(together.rejected[i])
    shuffled = solve(y0[[2, 3, 0, 1]])
    assert torch.equal(shuffled.y, together.y[:, [2, 3, 0, 1]])
    many = solve(y0.repeat(9, 1))  # enough for the processor's code for many numbers at once
    assert torch.equal(many.y, together.y.repeat(1, 9, 1))


def test_the_one_hard_sample_keeps_its_tolerance_in_any_batch() -> None:
    tol = 1e-6
    hard = starts([60.0])
    exact = torch.tensor([math.cos(60.0), math.sin(60.0)], dtype=DOUBLE)
    found = {}
    for size in (1, 256, 4096):
        y0 = torch.cat((hard, starts([0.01]).expand(size - 1, -1)))
        for name, options in (("own", OPTIONS), ("one", {})):
            y = pf.odeint(stiff, y0, [0.0, 1.0], rtol=tol, atol=tol, options=options)[-1, 0, :2]
            found[name, size] = float((y - exact).abs().max())
    assert found["own", 1] == found["own", 256] == found["own", 4096] < 300 * tol
    assert found["one", 4096] > 10 * found["one", 1]  # what one norm for all does


def test_only_hard_samples_take_many_steps() -> None:
    result = pf.solve_ode(stiff, starts([0.1, 50.0]), [0.0, 1.0], options=OPTIONS)
    assert int(result.accepted[0]) < 10
    assert int(result.accepted[1]) > 50


def test_times_are_those_of_the_samples_and_never_outside() -> None:
    seen = []

    def func(t, y):
        assert t.shape == (3,)
        seen.append(t)
        return logistic(t, y)

    y0 = torch.tensor([[0.2], [0.5], [0.9]], dtype=DOUBLE)
    # Every sample with times of its own, in either direction.
    t = torch.tensor([[0.0, 3.0, 1.0], [1.0, 1.0, 2.0], [2.0, 0.5, 5.0]], dtype=DOUBLE)
    result = pf.solve_ode(func, y0, t, rtol=1e-9, atol=1e-9, options=OPTIONS)
    for i in range(3):
        for j in range(3):
            exact = logistic_solution(y0[i], float(t[j, i]), float(t[0, i]))
            assert float((result.y[j, i] - exact).abs()) < 1e-7
    every = torch.stack(seen)
    assert (every >= t.amin(0)).all()
    assert (every <= t.amax(0)).all()


def test_a_diffusion_problem() -> None:
    process, target = pf.VP.linear(), pf.Gaussian([0.5, -1.0], [[1.0, 0.2], [0.2, 0.5]])
    ode = pf.ProbabilityFlowODE(process, target)
    y0 = torch.randn(6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y = pf.odeint(ode, y0, [1.0, 1e-3], rtol=1e-8, atol=1e-8, options=OPTIONS)[-1]
    levels = [(float(process.alpha(t)), float(process.sigma(t))) for t in (1.0, 1e-3)]
    assert float((y - target.flow(y0, *levels)).abs().max()) < 1e-6


def test_tuples_norms_and_controllers() -> None:
    y0 = (torch.ones(4, 2, 3, dtype=DOUBLE), torch.zeros(4, dtype=DOUBLE))

    def func(t, y):
        return -y[0] * t[:, None, None], t

    first, second = pf.odeint(func, y0, [0.0, 1.0], options={**OPTIONS, "controller": "pid"})
    assert first.shape == (2, 4, 2, 3)
    assert float((first[-1] - math.exp(-0.5)).abs().max()) < 1e-6
    assert float((second[-1] - 0.5).abs().max()) < 1e-9
    norm = lambda parts: parts[0].abs().amax((1, 2))  # noqa: E731
    pf.odeint(func, y0, [0.0, 1.0], options={**OPTIONS, "norm": norm})


def test_failures_are_those_of_their_samples() -> None:
    def func(t, y):
        return torch.where(y > 5, torch.nan, y * y)

    y0 = torch.tensor([[0.1], [1.0], [0.2], [torch.nan]], dtype=DOUBLE)
    result = pf.solve_ode(func, y0, [0.0, 0.5, 1.0], options=OPTIONS, throw=False)
    assert result.status.tolist() == [0, int(Status.NON_FINITE), 0, int(Status.NON_FINITE)]
    assert not result.success
    assert "2 of 4 samples failed, first sample 1 at t = 0.8" in result.message
    exact = y0[[0, 2]] / (1 - y0[[0, 2]])
    assert float((result.y[-1, [0, 2]] - exact).abs().max()) < 1e-6
    assert float(result.y[1, 1]) == pytest.approx(2.0)
    assert torch.isnan(result.y[2, 1])
    with pytest.raises(NonFiniteError, match=r"first sample 1 at t = 0\.8.* after \d+ steps"):
        pf.odeint(func, y0, [0.0, 1.0], options=OPTIONS)
    with pytest.raises(pf.StepSizeError, match="first sample 0"):
        pf.odeint(lambda t, y: y * y, torch.ones(2, 1, dtype=DOUBLE), [0.0, 2.0], options=OPTIONS)
    options = {**OPTIONS, "max_num_steps": 3}
    with pytest.raises(pf.MaxStepsError, match="2 of 2 samples failed"):
        pf.odeint(stiff, starts([9.0, 50.0]), [0.0, 1.0], options=options)


@pytest.mark.parametrize("gradients", ["direct", "checkpoint"])
@pytest.mark.parametrize("tuples", [False, True])
def test_nan_in_the_initial_state_is_the_states(tuples: bool, gradients: str) -> None:
    y0 = torch.ones(4, 2, dtype=DOUBLE)
    y0[1, 0], y0[3, 1] = torch.nan, torch.inf
    state = (torch.ones(4, dtype=DOUBLE), y0.requires_grad_()) if tuples else y0.requires_grad_()

    def func(t, y):  # NaN does not pass through the function
        return tuple(map(torch.ones_like, y)) if tuples else torch.ones_like(y)

    words = r"y0: the initial state holds NaN or infinity, sample 1 \(2 of 4 samples failed\)"
    options = {**OPTIONS, "gradients": gradients, "max_num_steps": 50}
    with pytest.raises(NonFiniteError, match=f"^{words}$"):
        pf.odeint(func, state, [0.0, 1.0], options=options)
    result = pf.solve_ode(func, state, [0.0, 1.0], options=options, throw=False)
    assert result.status.tolist() == [0, int(Status.NON_FINITE)] * 2
    assert result.rejected[1] == result.accepted[1] == 0
    y = result.y[1] if tuples else result.y
    torch.testing.assert_close(y[-1, [0, 2]], torch.full((2, 2), 2.0, dtype=DOUBLE))


def test_gradients() -> None:
    y0 = starts([0.5, 3.0])[:, :2].clone().requires_grad_()

    def end(y):
        return pf.odeint(rotation, y, [0.0, 0.4, 0.9], rtol=1e-9, atol=1e-9, options=OPTIONS)

    assert torch.autograd.gradcheck(end, (y0,), atol=1e-5)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_one_wait_for_the_device_in_each_try(method: str, monkeypatch) -> None:
    waits = []
    original = torch.Tensor.tolist

    def tolist(self):
        waits.append(self.shape)
        return original(self)

    def forbidden(self):
        raise AssertionError("a wait for the device")

    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", tolist)
        patch.setattr(torch.Tensor, "item", forbidden)
        patch.setattr(torch.Tensor, "__float__", forbidden)
        patch.setattr(torch.Tensor, "__bool__", forbidden)
        result = pf.solve_ode(rotation, y0, [0.0, 2.0], method=method, options=OPTIONS)
    tries = int(result.accepted + result.rejected)
    assert waits.count((3,)) == tries
    assert len(waits) <= tries + 3  # status, times and steps at the end


def test_bad_input() -> None:
    y0 = torch.ones(3, 2)
    with pytest.raises(ValueError, match="every tensor needs the batch as its first axis"):
        pf.odeint(rotation, (y0, torch.ones(2)), [0.0, 1.0], options=OPTIONS)
    with pytest.raises(ValueError, match="every tensor needs the batch"):
        pf.odeint(rotation, torch.tensor(1.0), [0.0, 1.0], options=OPTIONS)
    for name in ("step_t", "jump_t"):
        with pytest.raises(ValueError, match=f"{name}: not available with per_sample"):
            pf.odeint(rotation, y0, [0.0, 1.0], options={**OPTIONS, name: [0.5]})
    with pytest.raises(ValueError, match=r"shape \(m, batch\) with batch 3, got \(2, 2\)"):
        pf.odeint(rotation, y0, torch.ones(2, 2), options=OPTIONS)
    with pytest.raises(ValueError, match="t: the times of each sample"):
        pf.odeint(rotation, y0, torch.ones(2, 3), options=OPTIONS)
    with pytest.raises(ValueError, match="per_sample: events and dense output"):
        pf.odeint(rotation, y0, [0.0, 1.0], options=OPTIONS, event_fn=lambda t, y: y.sum())
    t = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(ValueError, match="gradients with respect to times"):
        pf.odeint(rotation, y0, t, options=OPTIONS)
    with pytest.raises(ValueError, match="rk4 has no option 'per_sample'"):
        pf.odeint(rotation, y0, [0.0, 1.0], method="rk4", options=OPTIONS)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_forward_derivatives_are_those_of_the_steps_taken(method: str) -> None:
    """The lengths of the steps depend on the state, but have no derivative in either mode."""
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=DOUBLE)
    y0 = torch.tensor([[1.0, 0.2], [0.3, 0.4]], dtype=DOUBLE)

    def end(y: torch.Tensor) -> torch.Tensor:
        how = {"method": method, "rtol": 1e-2, "atol": 1e-2, "options": {"per_sample": True}}
        return pf.odeint(lambda t, y: torch.sin(y) @ matrix.T, y, [0.0, 0.5, 3.0], **how).sum()

    gradient = torch.func.grad(end)(y0)
    _, forward = torch.func.jvp(end, (y0,), (torch.ones_like(y0),))
    torch.testing.assert_close(forward, gradient.sum(), rtol=1e-12, atol=0.0)
