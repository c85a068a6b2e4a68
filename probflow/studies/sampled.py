"""Measures from samples: distances with their floor, weak errors by coupled step counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.integrate.brownian import BrownianInterval
from probflow.integrate.loop import run_plan
from probflow.integrate.noise import PathNoise
from probflow.laws.samples import SAMPLE_DISTANCES, bandwidth, directions
from probflow.plan import Plan, Point
from probflow.targets import Target

__all__ = [
    "Settings",
    "WeakDifference",
    "generator",
    "reached",
    "sample_distance",
    "start_states",
    "weak_difference",
]

#: Pairs of exact sample sets over which a floor is averaged.
FLOOR_PAIRS = 4
#: Directions of the test functions in more than one dimension.
TEST_DIRECTIONS = 8
#: Kurtosis from where a variance rests on few samples (Giles 2015, Acta Numerica 24, section 3.3).
HEAVY = 100.0


@dataclass(frozen=True)
class Settings:
    """What the sampled measures depend on.

    Parameters
    ----------
    seed
        Of all random draws; every step count and solver gets the same ones.
    samples
        Number of samples or paths where an expectation has no quadrature.
    reference_steps
        Steps of the fourth-order reference that stands in for an exact flow.
    seeds
        Number of draws of the times of a solver whose times are random, over which its error is
        averaged.
    """

    seed: int = 0
    samples: int = 128
    reference_steps: int = 256
    seeds: int = 32


# Draws ------------------------------------------------------------------------------------------


def generator(settings: Settings, stream: int = 0) -> torch.Generator:
    """The generator of a study's draws; other streams are independent of it.

    Parameters
    ----------
    settings
        Whose seed.
    stream
        Number of the stream, >= 0.

    Returns
    -------
    Generator
        On the CPU.
    """
    if stream == 0:
        return torch.Generator().manual_seed(settings.seed)
    words = np.random.SeedSequence([settings.seed, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)


def start_states(process: Any, target: Target, time: float, settings: Settings) -> Tensor:
    """The same draws of the exact law at the first time, for every plan.

    Parameters
    ----------
    process, target
        The exact law.
    time
        A process time.
    settings
        Seed and number of samples.

    Returns
    -------
    Tensor
        (samples, d), float64.
    """
    point = Point.at(process, time)
    return target.sample(settings.samples, point.alpha, point.sigma, generator=generator(settings))


def path_noise(plan: Plan, x: Tensor, settings: Settings) -> PathNoise:
    """Noises read off one Brownian path in process time, the same for every plan."""
    stop, start = min(plan.times), max(plan.times)
    length = start - stop
    path = BrownianInterval(
        stop, start, x.shape, x.dtype, entropy=settings.seed, dt=length, tol=length * 2.0**-22
    )
    return PathNoise(path)


def reached(plan: Plan, process: Any, target: Target, settings: Settings) -> Tensor:
    """Final states of a plan from the study's start states, on its Brownian path.

    Parameters
    ----------
    plan
        The plan.
    process, target
        Its process, and the exact law whose model it calls.
    settings
        Seed and number of samples.

    Returns
    -------
    Tensor
        (samples, d), float64.
    """
    x = start_states(process, target, plan.times[0], settings)
    noise = path_noise(plan, x, settings) if plan.stochastic else None
    with torch.no_grad():
        return run_plan(plan, target.model(process, plan.prediction), x, noise=noise)


# Distances of samples ---------------------------------------------------------------------------


def sample_distance(
    name: str, plan: Plan, process: Any, target: Target, settings: Settings
) -> tuple[float, float, float]:
    """Distance of a plan's samples from as many exact ones, its standard error, and its floor.

    The floor is the mean distance between two sets of exact samples of that size, over
    :data:`FLOOR_PAIRS` pairs.

    Parameters
    ----------
    name
        One of the measures from samples.
    plan, process, target, settings
        As those of :func:`reached`.

    Returns
    -------
    tuple of float
        Distance, standard error, floor.
    """
    distance, exact, floor = _exact(name, process, target, plan.times[-1], settings)
    return *distance(reached(plan, process, target, settings), exact), floor


@lru_cache(maxsize=16)
def _exact(
    name: str, process: Any, target: Target, time: float, settings: Settings
) -> tuple[Callable[[Tensor, Tensor], tuple[float, float]], Tensor, float]:
    """The distance, the exact samples, the floor: what all plans have in common."""
    point = Point.at(process, time)
    sets = [
        target.sample(
            settings.samples, point.alpha, point.sigma, generator=generator(settings, stream)
        )
        for stream in range(1, 2 * FLOOR_PAIRS + 2)
    ]
    distance = SAMPLE_DISTANCES[name]
    if name == "mmd":
        distance = functools.partial(distance, width=bandwidth(sets[0]))
    floors = [distance(a, b)[0] for a, b in zip(sets[1::2], sets[2::2], strict=True)]
    return distance, sets[0], float(np.mean(floors))


# Weak errors ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeakDifference:
    r"""Differences of test functions between a plan and one of twice its steps, on the same draws.

    Parameters
    ----------
    samples
        (n,) contributions whose mean is the mean square over the functions of
        :math:`E f(Y_T) - E f(Y_{2T})`, without the bias of its own noise.
    variance
        Mean over the functions of the variance of :math:`f(Y_T) - f(Y_{2T})`: a multilevel
        estimator's, at this level.
    kurtosis
        The largest over the functions; from 100 on, few samples decide the variance and the
        standard error with it.
    """

    samples: np.ndarray
    variance: float
    kurtosis: float

    @property
    def note(self) -> str:
        """Variance and kurtosis in words, with a warning where the latter is large."""
        text = f"variance of differences {self.variance:.2e}, kurtosis {self.kurtosis:.0f}"
        return f"{text}: few samples decide, take more" if self.kurtosis > HEAVY else text


def weak_difference(
    plan: Plan, finer: Plan, process: Any, target: Target, settings: Settings
) -> WeakDifference:
    r"""Compare a plan with ``finer``, one of twice as many steps, from the same draws.

    The test functions are s, s^2, cos 2s and sin 2s of :math:`s = u\cdot(x - m)/\sqrt{u\cdot Cu}`,
    with mean m and covariance C of the exact law at the end, along fixed directions u: one on the
    line, 8 in more dimensions.

    Parameters
    ----------
    plan, finer
        The two plans.
    process, target, settings
        As those of :func:`reached`.

    Returns
    -------
    WeakDifference
        Contributions of the samples, variance and kurtosis of the differences.
    """
    end = Point.at(process, plan.times[-1])
    mean, covariance = map(torch.as_tensor, target.moments(end.alpha, end.sigma))
    lines = directions(target.dim, TEST_DIRECTIONS)
    lines = lines / ((lines @ covariance) * lines).sum(dim=1, keepdim=True).sqrt()
    coarse, fine = (
        _tests((reached(p, process, target, settings) - mean) @ lines.T) for p in (plan, finer)
    )
    differences = (coarse - fine).numpy()
    means = differences.mean(axis=0)
    centred = differences - means
    variances = differences.var(axis=0, ddof=1)
    with np.errstate(invalid="ignore"):
        kurtosis = np.nanmax((centred**4).mean(axis=0) / (centred**2).mean(axis=0) ** 2, initial=0)
    squares = 2 * means * differences - means**2 - variances / len(differences)
    return WeakDifference(squares.mean(axis=1), float(variances.mean()), float(kurtosis))


def _tests(s: Tensor) -> Tensor:
    return torch.cat([s, s.square(), torch.cos(2 * s), torch.sin(2 * s)], dim=1)
