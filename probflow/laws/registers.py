"""Interpreting a plan on an exact target, with Jacobians, and splitting a step into kernels.

Everything here reads the plan that runs in production: its weights, its prediction type, its
registers. No sampler is implemented a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.plan import Combination, Plan, Point, Register, Stage, Step, X, conversion
from probflow.targets import Target

__all__ = ["BentNormal", "ExactModel", "HalfNoise", "NormalKernel", "Refusal", "kernels", "push"]


class Refusal(ValueError):
    """A measure cannot be computed honestly for this plan; the message is the reason."""


class ExactModel:
    """Output of a target's exact model, in a plan's prediction type, with its Jacobian.

    Parameters
    ----------
    plan
        Its prediction type is that of the outputs.
    process, target
        The noising process and the exact law of the data.
    """

    def __init__(self, plan: Plan, process: Any, target: Target) -> None:
        self._plan, self._process, self._target = plan, process, target
        self._known: dict[float, tuple[Point, float, float]] = {}

    def level(self, time: float) -> tuple[Point, float, float]:
        """The point of a time, and weights (c, d) with ``output = c u + d score(u)``.

        Parameters
        ----------
        time
            A process time.

        Returns
        -------
        tuple
            Point, c, d.
        """
        if time not in self._known:
            point = Point.at(self._process, time)
            c, d = conversion(self._process, "score", self._plan.prediction, point)
            self._known[time] = point, float(c), float(d)
        return self._known[time]

    def __call__(self, u: Tensor, time: float) -> Tensor:
        """Output at ``u`` (n, d), float64."""
        point, c, d = self.level(time)
        return c * u + d * self._target.score(u, point.alpha, point.sigma)

    def with_jacobian(self, u: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Output (n, d) and its Jacobian (n, d, d).

        Parameters
        ----------
        u
            (n, d), float64.
        time
            A process time.

        Returns
        -------
        tuple of Tensor
            Both float64.
        """
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
        if stage.tangent:
            if du is not None:
                raise Refusal(
                    "the derivative of a Jacobian-vector product needs second derivatives"
                )
            f, jacobian = model.with_jacobian(u, stage.time)
            registers.set(Register("f", index), f, None)
            tangent = registers.combine(stage.tangent)[0]
            registers.set(Register("j", index), (jacobian @ tangent[:, :, None])[:, :, 0], None)
        elif du is None:
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

    Raises
    ------
    Refusal
        For a stochastic plan.
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
    """``x' ~ N(mean(x), std^2 I)``; ``mean`` is a noiseless step.

    Attributes
    ----------
    mean : Step
        The noiseless step.
    std : float
        Standard deviation of the noise of each element.
    """

    mean: Step
    std: float

    def means(
        self, x: Tensor, model: ExactModel, *, jacobian: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Mean (n, d) of the next state, and its Jacobian (n, d, d) if asked.

        Parameters
        ----------
        x
            States, (n, d) float64.
        model
            The exact model.
        jacobian
            Whether the Jacobian is wanted.

        Returns
        -------
        tuple
            Both float64; the second is ``None`` if it was not asked for.
        """
        slope = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
        return _advance(self.mean, _Registers({X: x}, {X: slope} if jacobian else None), model)


@dataclass(frozen=True)
class BentNormal:
    """``x' ~ N(mean(x), sum_m L_m(x) L_m(x)^T)``: noises that pass through the model's Jacobian.

    Attributes
    ----------
    mean : Step
        The noiseless step.
    noises : tuple
        For each noise its own weight, and (stage, weight) pairs of Jacobian-vector products along
        it: ``L_m = own I + sum weight J_stage``.
    """

    mean: Step
    noises: tuple[tuple[float, tuple[tuple[int, float], ...]], ...]

    def means(
        self, x: Tensor, model: ExactModel, *, jacobian: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`NormalKernel.means`."""
        return NormalKernel(self.mean, 0.0).means(x, model, jacobian=jacobian)

    def factors(self, x: Tensor, model: ExactModel) -> Tensor:
        """The matrices ``L_m(x)``, (noises, n, d, d).

        Parameters
        ----------
        x
            States, (n, d) float64.
        model
            The exact model.

        Returns
        -------
        Tensor
            float64.
        """
        registers = _Registers({X: x}, None)
        _advance(self.mean, registers, model)
        jacobians = {
            index: model.with_jacobian(
                registers.values[Register("u", index)], self.mean.stages[index].time
            )[1]
            for _, terms in self.noises
            for index, _ in terms
        }
        identity = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
        return torch.stack(
            [own * identity + sum(w * jacobians[i] for i, w in terms) for own, terms in self.noises]
        )


@dataclass(frozen=True)
class HalfNoise:
    """``x' = a x + b f(u) + c z`` with ``u = r x + e z``: one noise, also inside the model.

    Eliminating z = (u - r x)/e gives ``x' = shift x + H(u)`` with ``shift = a - c r/e`` and
    ``H(u) = b f(u) + (c/e) u``, so the density of x' follows from the inverse of H.

    Attributes
    ----------
    time : float
        Process time of the model's call.
    a, b, c, r, e : float
        The weights.
    rest : Step or None
        A step whose update is added to x': further stages, at inputs that depend on x and on
        ``outer``.
    outer : Register or None
        A noise of their own. Given that one, x' is shifted.
    """

    time: float
    a: float
    b: float
    c: float
    r: float
    e: float
    rest: Step | None = None
    outer: Register | None = None

    def added(self, x: Tensor, outer: Tensor, model: ExactModel) -> Tensor:
        """What ``rest`` adds for values of x and the outer noise, both (n, d): (n, d) float64."""
        if self.rest is None:
            return torch.zeros_like(x)
        values = {Register("z", j): torch.zeros_like(x) for j in range(len(self.rest.noises))}
        if self.outer is not None:
            values[self.outer] = outer
        return _advance(self.rest, _Registers({X: x, **values}, None), model)[0]

    @property
    def shift(self) -> float:
        """Weight of x in x' once the noise is eliminated."""
        return self.a - self.c * self.r / self.e

    def inner(self, u: Tensor, model: ExactModel) -> Tensor:
        """``H(u)``, float64 with the shape (n, d) of ``u``."""
        return self.b * model(u, self.time) + self.c / self.e * u

    def inner_jacobian(self, u: Tensor, model: ExactModel) -> Tensor:
        """Jacobian of H at ``u`` (n, d): (n, d, d), float64."""
        identity = torch.eye(u.shape[1], dtype=u.dtype)
        return self.b * model.with_jacobian(u, self.time)[1] + self.c / self.e * identity


Kernel = NormalKernel | BentNormal | HalfNoise


def kernels(step: Step, solver: str = "the step") -> tuple[Kernel, ...]:
    """Factors of a stochastic step along its Markov structure: first to last.

    Where a stage input holds noise and nothing later refers to the state or that noise directly,
    the step is a convolution followed by the rest of the step with that input as its state.

    Parameters
    ----------
    step
        One with noise.
    solver
        Its name, for messages.

    Returns
    -------
    tuple
        Kernels, of which the first takes the state.

    Raises
    ------
    Refusal
        If the step has memory, or a structure that is not such a product.
    """
    combinations = step.combinations()
    if any(register.age for c in combinations for register, _ in c):
        raise Refusal(f"{solver} is a stochastic multistep method: its states are no Markov chain")
    noisy = [i for i, stage in enumerate(step.stages) if _noises(stage.input)]
    if any(stage.tangent for stage in step.stages):
        bent = None if noisy else _bent_normal(step)
        if bent is None:
            raise Refusal(
                f"{solver}: a Jacobian-vector product is known along noises alone, at an input "
                "without noise"
            )
        return (bent,)
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


def _bent_normal(step: Step) -> BentNormal | None:
    along = {}
    for index, stage in enumerate(step.stages):
        along[Register("j", index)] = dict(stage.tangent)
        if len(_noises(stage.tangent)) < len(stage.tangent):
            return None
    update = dict(step.update)
    noises = []
    for number in range(len(step.noises)):
        z = Register("z", number)
        through = [(j.index, update.get(j, 0.0) * t[z]) for j, t in along.items() if z in t]
        noises.append((update.get(z, 0.0), tuple((i, w) for i, w in through if w != 0.0)))
    mean = replace(
        step,
        stages=tuple(replace(stage, tangent=()) for stage in step.stages),
        noises=(),
        update=tuple((r, w) for r, w in step.update if r.kind not in ("z", "j")),
    )
    return BentNormal(mean, tuple(noises))


def _rotated(step: Step) -> Step:
    """The same law with noises in an orthonormal basis that begins with the update's noise."""
    basis: list[np.ndarray] = []

    def rotate(combination: Combination) -> Combination:
        free = np.zeros(len(step.noises))
        for z, weight in _noises(combination):
            free[z.index] = weight
        size = np.linalg.norm(free)
        turned = []
        for index, direction in enumerate(basis):
            along = free @ direction
            free = free - along * direction
            if abs(along) > 1e-14 * size:
                turned.append((Register("z", index), float(along)))
        left = np.linalg.norm(free)
        if left > 1e-14 * size:
            turned.append((Register("z", len(basis)), float(left)))
            basis.append(free / left)
        return (*((r, w) for r, w in combination if r.kind != "z"), *turned)

    update = rotate(step.update)
    stages = tuple(replace(stage, input=rotate(stage.input)) for stage in step.stages)
    return replace(step, stages=stages, noises=step.noises[: len(basis)], update=update)


def _half_noise(step: Step) -> HalfNoise | None:
    step = _rotated(step)
    shared = [z for z, _ in _noises(step.update)]
    inside = [
        (index, register)
        for index, stage in enumerate(step.stages)
        for register, _ in _noises(stage.input)
    ]
    if len(shared) != 1 or [z for _, z in inside].count(shared[0]) != 1:
        return None
    [z] = shared
    [half] = [index for index, register in inside if register == z]
    outer = {register for _, register in inside} - {z}
    inputs = [dict(stage.input) for stage in step.stages]
    allowed = [{X, z} if index == half else {X} | outer for index in range(len(inputs))]
    outputs = {Register(kind, index) for kind in "uf" for index in range(len(inputs))}
    update, inner = dict(step.update), inputs[half]
    u, f = Register("u", half), Register("f", half)
    if len(outer) > 1 or not set(update) <= {X, z} | outputs:
        return None
    if any(not set(given) <= known for given, known in zip(inputs, allowed, strict=True)):
        return None
    added = tuple((r, w) for r, w in step.update if r in outputs - {u, f})
    # A weight on u (from a change of prediction type) is one on x and z.
    own = update.get(u, 0.0)
    return HalfNoise(
        step.stages[half].time,
        update.get(X, 0.0) + own * inner.get(X, 0.0),
        update.get(f, 0.0),
        update[z] + own * inner[z],
        inner.get(X, 0.0),
        inner[z],
        replace(step, update=added) if added else None,
        next(iter(outer), None),
    )
