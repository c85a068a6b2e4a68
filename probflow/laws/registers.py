"""Interpreting a plan on an exact target, with Jacobians, and splitting a step into kernels.

Everything here reads the plan that runs in production: its weights, its prediction type, its
registers. No sampler is implemented a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probflow.plan import Combination, Plan, Point, Register, Stage, Step, X, conversion
from probflow.targets import Target

__all__ = ["ExactModel", "HalfNoise", "NormalKernel", "Refusal", "kernels", "push"]


class Refusal(ValueError):
    """A measure cannot be computed honestly for this plan; the message is the reason."""


class ExactModel:
    """Output of a target's exact model, in a plan's prediction type, with its Jacobian."""

    def __init__(self, plan: Plan, process: Any, target: Target) -> None:
        self._plan, self._process, self._target = plan, process, target
        self._known: dict[float, tuple[Point, float, float]] = {}

    def level(self, time: float) -> tuple[Point, float, float]:
        """The point of a time, and weights (c, d) with ``output = c u + d score(u)``."""
        if time not in self._known:
            point = Point.many(self._process, [time])[0]
            c, d = conversion(self._process, "score", self._plan.prediction, point)
            self._known[time] = point, float(c), float(d)
        return self._known[time]

    def __call__(self, u: Tensor, time: float) -> Tensor:
        """Output at ``u`` (n, d), float64."""
        point, c, d = self.level(time)
        return c * u + d * self._target.score(u, point.alpha, point.sigma)

    def with_jacobian(self, u: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Output (n, d) and its Jacobian (n, d, d)."""
        point, c, d = self.level(time)
        score, jacobian = self._target.score_and_jacobian(u, point.alpha, point.sigma)
        identity = torch.eye(u.shape[1], dtype=u.dtype)
        return c * u + d * score, c * identity + d * jacobian


class _Registers:
    """Values of registers, with derivatives with respect to the starting state if asked."""

    def __init__(self, values: dict[Register, Tensor], slopes: dict[Register, Tensor] | None):
        self.values, self.slopes = values, slopes

    def combine(self, combination: Combination) -> tuple[Tensor, Tensor | None]:
        """Value and derivative of a combination."""
        value = sum(weight * self.values[register] for register, weight in combination)
        if self.slopes is None:
            return value, None  # type: ignore[return-value]
        slope = sum(weight * self.slopes[register] for register, weight in combination)
        return value, slope  # type: ignore[return-value]

    def set(self, register: Register, value: Tensor, slope: Tensor | None) -> None:
        """Store a register."""
        self.values[register] = value
        if self.slopes is not None and slope is not None:
            self.slopes[register] = slope

    def aged(self, memory: int) -> _Registers:
        """The registers as the next step sees them, those within ``memory`` steps."""

        def shift(table: dict[Register, Tensor]) -> dict[Register, Tensor]:
            return {r._replace(age=r.age + 1): v for r, v in table.items() if r.age < memory}

        return _Registers(shift(self.values), None if self.slopes is None else shift(self.slopes))


def _advance(step: Step, registers: _Registers, model: ExactModel) -> tuple[Tensor, Tensor | None]:
    for index, stage in enumerate(step.stages):
        u, du = registers.combine(stage.input)
        registers.set(Register("u", index), u, du)
        if du is None:
            registers.set(Register("f", index), model(u, stage.time), None)
        else:
            f, jacobian = model.with_jacobian(u, stage.time)
            registers.set(Register("f", index), f, jacobian @ du)
    return registers.combine(step.update)


def push(
    plan: Plan, process: Any, target: Target, x: Tensor, *, jacobian: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Final states of a deterministic plan, and the Jacobian of the whole map if asked.

    Parameters
    ----------
    plan
        A plan without noise.
    process, target
        The noising process and the exact law of the data.
    x
        (n, d) float64 states at the plan's first time.

    Returns
    -------
    tuple
        ``y`` (n, d) and ``dy/dx`` (n, d, d), or ``None``.
    """
    if plan.stochastic:
        raise Refusal(f"{plan.solver} is stochastic: it is a kernel, not a map")
    model = ExactModel(plan, process, target)
    slope = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1) if jacobian else None
    past, memory = _Registers({}, {} if jacobian else None), plan.memory
    for step in plan.steps:
        past.set(X, x, slope)
        x, slope = _advance(step, past, model)
        past = past.aged(memory)
    return x, slope


# Kernels of stochastic steps -------------------------------------------------------------------


@dataclass(frozen=True)
class NormalKernel:
    """``x' ~ N(mean(x), std^2 I)``; ``mean`` is a noiseless step."""

    mean: Step
    std: float

    def means(
        self, x: Tensor, model: ExactModel, *, jacobian: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Mean (n, d) of the next state, and its Jacobian (n, d, d) if asked."""
        slope = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
        return _advance(self.mean, _Registers({X: x}, {X: slope} if jacobian else None), model)


@dataclass(frozen=True)
class HalfNoise:
    """``x' = a x + b f(u) + c z`` with ``u = r x + e z``: one noise, also inside the model.

    Eliminating z = (u - r x)/e gives ``x' = shift x + H(u)`` with ``shift = a - c r/e`` and
    ``H(u) = b f(u) + (c/e) u``, so the density of x' follows from the inverse of H.
    """

    time: float
    a: float
    b: float
    c: float
    r: float
    e: float

    @property
    def shift(self) -> float:
        """Weight of x in x' once the noise is eliminated."""
        return self.a - self.c * self.r / self.e

    def inner(self, u: Tensor, model: ExactModel) -> Tensor:
        """``H(u)``, (n, d)."""
        return self.b * model(u, self.time) + self.c / self.e * u

    def inner_jacobian(self, u: Tensor, model: ExactModel) -> Tensor:
        """Jacobian of H, (n, d, d)."""
        identity = torch.eye(u.shape[1], dtype=u.dtype)
        return self.b * model.with_jacobian(u, self.time)[1] + self.c / self.e * identity


Kernel = NormalKernel | HalfNoise


def kernels(step: Step, solver: str = "the step") -> tuple[Kernel, ...]:
    """Factors of a stochastic step along its Markov structure: first to last.

    Where a stage input holds noise and nothing later refers to the state or that noise directly,
    the step is a convolution followed by the rest of the step with that input as its state.

    Raises
    ------
    Refusal
        If the step has memory, or a structure that is not such a product.
    """
    combinations = step.combinations()
    if any(register.age for c in combinations for register, _ in c):
        raise Refusal(f"{solver} is a stochastic multistep method: its states are no Markov chain")
    noisy = [i for i, stage in enumerate(step.stages) if _noises(stage.input)]
    if not noisy:
        std = sum(weight**2 for _, weight in _noises(step.update)) ** 0.5
        rest = tuple((r, w) for r, w in step.update if r.kind != "z")
        return (NormalKernel(replace(step, noises=(), update=rest), std),)
    if noisy[0] == 0:
        later = {register for c in combinations[1:] for register, _ in c}
        if X not in later and not later & {
            register for register, _ in _noises(step.stages[0].input)
        }:
            first = step.stages[0].input
            mean = tuple((r, w) for r, w in first if r.kind != "z")
            std = sum(weight**2 for _, weight in _noises(first)) ** 0.5
            convolution = NormalKernel(Step(step.start, step.stop, (), (), mean), std)
            return (convolution, *kernels(_from_first_input(step), solver))
        half = _half_noise(step)
        if half is not None:
            return (half,)
    raise Refusal(
        f"{solver}: the law of one step is not a product of known kernels (a noise enters the "
        "model and the update in a way that no closed form covers)"
    )


def _noises(combination: Combination) -> list[tuple[Register, float]]:
    return [(register, weight) for register, weight in combination if register.kind == "z"]


def _from_first_input(step: Step) -> Step:
    """The step with the input of its first stage as its state."""
    first = Register("u", 0)

    def rename(combination: Combination) -> Combination:
        return tuple((X if register == first else register, w) for register, w in combination)

    stages = (
        Stage(((X, 1.0),), step.stages[0].time),
        *(Stage(rename(stage.input), stage.time) for stage in step.stages[1:]),
    )
    return replace(step, stages=stages, update=rename(step.update))


def _half_noise(step: Step) -> HalfNoise | None:
    z, f, u = Register("z", 0), Register("f", 0), Register("u", 0)
    if len(step.stages) != 1 or len(step.noises) != 1:
        return None
    inner, update = dict(step.stages[0].input), dict(step.update)
    if not set(inner) <= {X, z} or not set(update) <= {X, z, f, u}:
        return None
    # A weight on u (from a change of prediction type) is one on x and z.
    own = update.get(u, 0.0)
    return HalfNoise(
        step.stages[0].time,
        update.get(X, 0.0) + own * inner.get(X, 0.0),
        update.get(f, 0.0),
        update.get(z, 0.0) + own * inner[z],
        inner.get(X, 0.0),
        inner[z],
    )
