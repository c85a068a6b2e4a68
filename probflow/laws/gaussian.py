r"""Exact law of a plan under a Gaussian target, in any dimension: no quadrature, no sampling.

The score of a Gaussian is affine and acts on each principal axis alone, so every register is an
affine function of the live registers and the noises, and means and covariances propagate exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probflow.laws.registers import Refusal
from probflow.plan import Plan, Point, Register, X, conversion
from probflow.targets import Gaussian, Target

__all__ = ["GaussianLaw", "gaussian_law"]


@dataclass(frozen=True)
class GaussianLaw:
    """A normal law by its principal axes.

    Attributes
    ----------
    mean, variance
        (d,) along the axes.
    axes
        (d, d) with the axes as columns, or ``None`` for the coordinate axes.
    """

    mean: np.ndarray
    variance: np.ndarray
    axes: np.ndarray | None = None

    @property
    def covariance(self) -> np.ndarray:
        """The covariance as a (d, d) matrix."""
        if self.axes is None:
            return np.diag(self.variance)
        return (self.axes * self.variance) @ self.axes.T


def true_law(process: Any, target: Target, time: float) -> GaussianLaw:
    """Law of the noised target at a process time."""
    if not isinstance(target, Gaussian):
        raise Refusal(f"moments determine the law of Gaussian targets only, not of {target.name}")
    point = Point.at(process, time)
    parameters = target._parameters64
    mean, variance = parameters["mu"][0].numpy(), parameters["var"][0].numpy()
    axes = parameters["basis"][0].numpy() if "basis" in parameters else None
    if axes is not None:
        mean = mean @ axes
    return GaussianLaw(point.alpha * mean, point.alpha**2 * variance + point.sigma**2, axes)


def gaussian_law(plan: Plan, process: Any, target: Target) -> GaussianLaw:
    """Law of a plan's output, started from the exact law at its first time.

    Parameters
    ----------
    plan, process, target
        The plan, the process of its times, and the data law.

    Returns
    -------
    GaussianLaw
        Mean and covariance, float64.

    Raises
    ------
    Refusal
        If the target is not Gaussian.
    ValueError
        If the model is called where alpha = 0.
    """
    start = true_law(process, target, plan.steps[0].start)
    d = len(start.mean)
    # Live registers: mean (m, d) and covariance (m, m, d), one axis of the target each.
    live = [X]
    mean, covariance = start.mean[None], start.variance[None, None]
    memory = plan.memory
    for number, step in enumerate(plan.steps):
        sources = len(live) + len(step.noises)
        rows: dict[Register, tuple[np.ndarray, np.ndarray]] = {}  # coefficients (sources, d)
        for index, register in enumerate(live):
            rows[register] = _unit(sources, index, d), mean[index]
        for index in range(len(step.noises)):
            rows[Register("z", index)] = _unit(sources, len(live) + index, d), np.zeros(d)

        def combine(combination: Any, rows: Any = rows) -> tuple[np.ndarray, np.ndarray]:
            return (
                sum(weight * rows[register][0] for register, weight in combination),
                sum(weight * rows[register][1] for register, weight in combination),
            )

        for index, stage in enumerate(step.stages):
            coefficients, centre = combine(stage.input)
            rows[Register("u", index)] = coefficients, centre
            point = Point.at(process, stage.time)
            if point.alpha == 0:
                raise ValueError(
                    f"plan: the model is called at t = {stage.time:g}, where alpha = 0 and a score "
                    "says nothing of the data; start the grid later"
                )
            c, k = conversion(process, "score", plan.prediction, point)
            law = true_law(process, target, stage.time)
            slope = c - k / law.variance
            rows[Register("f", index)] = (
                slope * coefficients,
                slope * centre + k * law.mean / law.variance,
            )
            if stage.tangent:  # the Jacobian is constant
                coefficients, centre = combine(stage.tangent)
                rows[Register("j", index)] = slope * coefficients, slope * centre
        new = {X: combine(step.update)}
        for register in _wanted_later(plan, number, memory):
            new[register] = rows[register._replace(age=register.age - 1)]
        live = list(new)
        noise = np.broadcast_to(
            np.eye(len(step.noises))[:, :, None], (len(step.noises),) * 2 + (d,)
        )
        source_cov = np.zeros((sources, sources, d))
        old = sources - len(step.noises)
        source_cov[:old, :old], source_cov[old:, old:] = covariance, noise
        matrix = np.stack([coefficients for coefficients, _ in new.values()])
        covariance = np.einsum("asd,std,btd->abd", matrix, source_cov, matrix)
        mean = np.stack([centre for _, centre in new.values()])
    return GaussianLaw(mean[0], covariance[0, 0], start.axes)


def _unit(size: int, index: int, d: int) -> np.ndarray:
    row = np.zeros((size, d))
    row[index] = 1.0
    return row


def _wanted_later(plan: Plan, number: int, memory: int) -> list[Register]:
    """Registers with age >= 1, seen from step ``number + 1``, that later steps refer to."""
    found: dict[Register, None] = {}
    for ahead in range(1, memory + 1):
        if number + ahead < len(plan.steps):
            for combination in plan.steps[number + ahead].combinations():
                for register, _ in combination:
                    if register.age >= ahead:
                        found[register._replace(age=register.age - ahead + 1)] = None
    return list(found)
