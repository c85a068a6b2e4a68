"""Maps with Jacobians, and the Markov structure of stochastic steps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cases import DETERMINISTIC, MIXTURE, PATHS, PLANE, VP, Draws, name, plan

import probflow as pf
from probflow.integrate import run_plan
from probflow.laws.line import line_law
from probflow.laws.registers import BentNormal, HalfNoise, NormalKernel, Refusal, kernels, push
from probflow.plan import Linear, StepBuilder
from probflow.solvers import Solver

X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)
def test_push_is_the_tensor_loop(solver: pf.Solver) -> None:
    made = plan(solver, 6)
    y, jacobian = push(made, VP, PLANE, X, jacobian=True)
    torch.testing.assert_close(y, run_plan(made, PLANE.model(VP), X), rtol=1e-11, atol=1e-12)
    h = 1e-5
    for axis in range(2):
        shift = h * torch.eye(2, dtype=torch.float64)[axis]
        ends = [push(made, VP, PLANE, X + sign * shift)[0] for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(jacobian[:, :, axis], slope, rtol=1e-6, atol=1e-7)


def test_push_refuses_noise() -> None:
    with pytest.raises(Refusal, match="ddpm is stochastic: it is a kernel, not a map"):
        push(plan("ddpm", 3), VP, PLANE, X)


@pytest.mark.parametrize("solver", PATHS, ids=name)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
def test_structure_does_not_depend_on_the_prediction(solver: pf.Solver, prediction: str) -> None:
    for step in plan(solver, 4, prediction).steps:
        kinds = [type(kernel) for kernel in kernels(step)]
        expected = {
            "accelerated-sde": [NormalKernel, NormalKernel],
            "accelerated-sde-readme": [NormalKernel, NormalKernel],
            "accelerated-sde-half-noise": [HalfNoise],
            "accelerated-sde-jvp": [BentNormal],
            "accelerated-sde-3": [HalfNoise],
        }
        assert kinds == expected.get(solver.name, [NormalKernel])


def stochastic(function: object, memory: int = 0) -> Solver:
    return Solver(
        "mine", function, "here", "score", coordinates="vp", stochastic=True, memory=memory
    )  # type: ignore[arg-type]


def test_multistep_with_noise_is_refused() -> None:
    def step(step: StepBuilder) -> Linear:
        score = step.model(step.x, step.t)
        before = step.previous[0].outputs[0] if step.previous else score
        return step.x + 0.1 * score + 0.1 * before + 0.1 * step.noise()

    made = stochastic(step, memory=1).plan(VP, [0.9, 0.8, 0.7])
    assert kernels(made.steps[0])
    with pytest.raises(Refusal, match="mine is a stochastic multistep method"):
        kernels(made.steps[1], "mine")


def test_unknown_structure_is_refused() -> None:
    def step(step: StepBuilder) -> Linear:
        z = step.noise()
        first = step.model(step.x + 0.1 * z, step.t)
        second = step.model(step.x + 0.2 * z, step.t)
        return step.x + 0.1 * first + 0.1 * second + 0.1 * z

    made = stochastic(step).plan(VP, [0.9, 0.8])
    with pytest.raises(Refusal, match="mine: the law of one step is not a product of known"):
        kernels(made.steps[0], "mine")


def test_other_products_with_the_jacobian_are_refused() -> None:
    """Along the state its mean has no Jacobian at hand; at a noisy input it is no normal law."""

    def along_the_state(step: StepBuilder) -> Linear:
        score, derivative = step.jvp(step.x, step.t, step.x)
        return step.x + 0.1 * score + 0.1 * derivative + 0.1 * step.noise()

    def noisy(step: StepBuilder) -> Linear:
        z = step.noise()
        score, derivative = step.jvp(step.x + 0.1 * z, step.t, z)
        return step.x + 0.1 * score + 0.1 * derivative + 0.1 * z

    for function in (along_the_state, noisy):
        made = stochastic(function).plan(VP, [0.9, 0.8])
        with pytest.raises(Refusal, match="mine: a Jacobian-vector product is known along noises"):
            kernels(made.steps[0], "mine")
        with pytest.raises(Refusal, match="mine: a Jacobian-vector product makes the noise depend"):
            line_law(made, VP, MIXTURE)


def test_noise_that_enters_twice_is_no_convolution() -> None:
    """The same noise inside and outside the model must not be treated as two."""
    [step] = plan("accelerated-sde-half-noise", 1, "score").steps
    [half] = kernels(step)
    assert isinstance(half, HalfNoise)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 1, dtype=torch.float64, generator=generator)
    x = torch.zeros_like(z) + 0.3
    u = half.r * x + half.e * z
    score = MIXTURE.score(u, float(VP.alpha(half.time)), float(VP.sigma(half.time)))
    direct = half.a * x + half.b * score + half.c * z
    sampled = run_plan(
        plan("accelerated-sde-half-noise", 1, "score"),
        MIXTURE.model(VP, "score"),
        x,
        noise=Draws(z),
    )
    torch.testing.assert_close(direct, sampled, rtol=1e-12, atol=1e-12)


def test_normal_kernel_of_a_step() -> None:
    [step] = plan("ddpm", 1, "score").steps
    [kernel] = kernels(step)
    ratio = math.exp(-float(VP.neg_log_ab(step.start) - VP.neg_log_ab(step.stop)))
    assert kernel.std == pytest.approx(math.sqrt((1 - ratio) / ratio), rel=1e-12)
    assert kernel.mean.noises == ()
    assert replace(kernel.mean, update=step.update, noises=step.noises) == step
