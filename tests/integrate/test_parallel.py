"""Evaluations that do not wait for one another share a call of the model; nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import probflow as pf
from probflow.integrate.loop import run_plan
from probflow.studies.builtin import mixture

VP = pf.VP.linear()
EVERY = [solver for solver in pf.all_solvers() if solver.needs == "process"]


class Counted:
    """A model whose arithmetic is elementwise, so that batches change nothing, and its calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        self.rows.append(len(x))
        assert t.shape == (len(x),)
        return torch.tanh(x + shift) * (0.5 + t[:, None])


def draw(solver: Any, parallel: bool, steps: int = 5, **options: Any) -> tuple[Tensor, Counted]:
    function = Counted()
    kwargs = options.pop("kwargs", {})
    model = pf.Model(function, VP, prediction="eps", kwargs=kwargs)
    x = pf.sample(
        model, (3, 2), solver, steps, seed=1, dtype=torch.float64, parallel=parallel, **options
    )
    return x, function


@pytest.mark.parametrize("solver", EVERY, ids=lambda solver: solver.name)
def test_every_solver_has_the_same_numbers(solver: pf.Solver) -> None:
    (one, apart), (other, together) = draw(solver, False), draw(solver, True)
    assert torch.equal(one, other)
    assert sum(together.rows) == sum(apart.rows)  # evaluations, however many calls


@pytest.mark.parametrize(
    ("name", "options", "rounds"),
    [
        ("collocation", {}, 4),
        ("collocation", {"nodes": 5, "sweeps": 2}, 3),
        ("collocation", {"iteration": "gauss-seidel"}, 7),
        ("accelerated-sde-3", {}, 1),
        ("heun", {}, 2),
    ],
)
def test_there_is_a_call_a_round(name: str, options: dict[str, Any], rounds: int) -> None:
    solver = pf.get_solver(name, **options)
    _, together = draw(solver, True)
    plan = solver.plan(VP, pf.grids.log_snr().times(VP, 5))
    assert len(together.rows) == plan.rounds == 5 * rounds
    assert sum(together.rows) == 3 * plan.nfe


@pytest.mark.parametrize("name", ["collocation", "accelerated-sde-3"])
def test_with_everything_else(name: str) -> None:
    """Conditioning, thresholding, half precision, callbacks, progress, gradients, checkpoints."""
    shift = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    seen: list[float] = []

    def clamp(x0: Tensor, time: float) -> Tensor:
        seen.append(time)
        return x0.clamp(-0.5, 0.5)

    for extra in ({"kwargs": {"shift": shift}}, {"threshold": clamp}, {"trajectory": True}):
        assert torch.equal(draw(name, True, **extra)[0], draw(name, False, **extra)[0])
    half = len(seen) // 2
    assert seen[:half] == seen[half:]  # every evaluation, with its own time
    calls: list[int] = []
    draw(name, True, callback=lambda step, time, x: calls.append(step))
    assert calls == [0, 1, 2, 3, 4]

    network = torch.nn.Linear(2, 2, dtype=torch.float64)
    model = pf.Model(lambda x, t: network(x) * t[:, None], VP, prediction="eps")
    gradients = []
    for parallel, checkpoint in ((False, False), (True, False), (True, True)):
        network.zero_grad()
        x = pf.sample(
            model,
            (3, 2),
            name,
            4,
            seed=0,
            dtype=torch.float64,
            gradients=True,
            checkpoint=checkpoint,
            parallel=parallel,
        )
        x.square().mean().backward()
        gradients.append(network.weight.grad.clone())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-12)


def test_a_model_that_returns_one_buffer() -> None:
    """Outputs of a call are parts of one tensor, which the next call must not write over."""
    buffers: dict[int, Tensor] = {}

    def reused(x: Tensor, t: Tensor) -> Tensor:
        out = buffers.setdefault(len(x), torch.empty_like(x))
        return torch.mul(torch.tanh(x), 0.5 + t[:, None], out=out)

    model = pf.Model(reused, VP, prediction="eps")
    both = [
        pf.sample(model, (3, 2), "collocation", 6, seed=1, dtype=torch.float64, parallel=parallel)
        for parallel in (True, False)
    ]
    assert torch.equal(*both)


def test_the_first_bad_place_is_named() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < 0.3, torch.nan, x)

    model = pf.Model(broken, VP, prediction="eps")
    messages = []
    for parallel in (True, False):
        with pytest.raises(pf.NonFiniteError) as caught:
            pf.sample(model, (3, 2), "collocation", 4, seed=0, parallel=parallel)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_what_cannot_run_in_parallel() -> None:
    plan = pf.get_solver("heun").plan(None, [0.0, 1.0])
    with pytest.raises(TypeError, match="parallel: need True or False, got 'no'"):
        pf.sample(mixture(), (2, 1), "ddim", 4, process=VP, seed=0, parallel="no")
    with pytest.raises(TypeError, match="parallel: needs a Model, called with one time for each"):
        run_plan(plan, lambda x, t: x, torch.ones(2), parallel=True)
    with pytest.raises(ValueError, match="parallel: not for dpm-solver-23"):
        pf.sample(mixture(), (2, 1), "dpm-solver-23", process=VP, seed=0, parallel=True)
