"""One cell of a study: the error of one plan in one measure, exact wherever a law is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.grids import Grid
from probflow.integrate.loop import run_plan
from probflow.laws.certificate import certificate
from probflow.laws.density import density_samples
from probflow.laws.distances import gaussian_kl, gaussian_tv, gaussian_w2
from probflow.laws.gaussian import gaussian_law, true_law
from probflow.laws.line import distances_1d
from probflow.laws.path import path_kl, path_kl_samples
from probflow.laws.ratio import chi2_samples
from probflow.laws.registers import Refusal
from probflow.laws.samples import SAMPLE_DISTANCES
from probflow.plan import Plan, Point
from probflow.solvers import get_solver
from probflow.studies.perturbed import Product, truth_of
from probflow.studies.rows import MEASURES
from probflow.studies.sampled import (
    Settings,
    generator,
    path_noise,
    reached,
    sample_distance,
    start_states,
    weak_difference,
)
from probflow.targets import Gaussian, Target

__all__ = [
    "Measurement",
    "Reference",
    "Settings",
    "averaged",
    "bootstrap_covariance",
    "log_covariance",
    "measure",
    "needs_reference",
    "path_steps",
    "reference_flow",
    "reference_path",
]


@dataclass(frozen=True)
class Reference:
    """Final states that stand in for the exact ones of a strong error.

    Parameters
    ----------
    states
        (n, d) final states.
    error
        Their own RMS error per coordinate, where it is a bound to the error that is measured.
    coarser
        Of a path, the same from half as many steps.
    """

    states: Tensor
    error: float = 0.0
    coarser: Tensor | None = None


#: Errors below these are round-off. Measured where the error is 0, by ``rk4`` with 4096 steps (tv
#: and strong 1e-14, kl 4e-28) and by ``ddpm-beta`` on N(0, 1), where it is exact (path-kl 3e-13).
FLOORS = {
    "chi2": 1e-13,
    "weak": 1e-13,
    "tv": 1e-13,
    "kl": 1e-26,
    "w2": 1e-13,
    "strong": 1e-13,
    "path-kl": 1e-11,
    "certificate": 1e-13,
}
#: A stochastic plan's density is carried by quadrature, which loses tails of this order: on N(0, 1)
#: ``ddpm-beta`` has tv 2e-12, kl 2e-17, w2 5e-10.
FLOORS_STOCHASTIC = {"tv": 1e-11, "kl": 1e-16, "chi2": 1e-8, "w2": 2e-9}
#: Measures of a product that follow from those of its factors.
ADDITIVE = ("kl", "w2", "path-kl", "strong", "certificate")


@dataclass(frozen=True)
class Measurement:
    """An error, and what correlates it with those of other step counts.

    The same random draws at every step count make the errors of a curve correlated, which
    :func:`log_covariance` takes into account.

    Attributes
    ----------
    error, se, floor : float
        The error, its standard error, and the error below which nothing is seen; >= 0.
    samples : ndarray or None
        Per-sample contributions c, (n,), with ``error = scale * mean(c) ** power``.
    power : float
        That of the mean.
    note : str
        What a reader of the row should know.
    """

    error: float
    se: float = 0.0
    floor: float = 0.0
    samples: np.ndarray | None = None
    power: float = 1.0
    note: str = ""

    @staticmethod
    def of_samples(
        samples: np.ndarray, power: float, scale: float, floor: float, note: str = ""
    ) -> Measurement:
        """A measurement from per-sample contributions.

        Parameters
        ----------
        samples, power, scale
            ``error = scale * mean(samples) ** power``; n >= 2 samples.
        floor, note
            As the attributes.

        Returns
        -------
        Measurement
            Its standard error is that of the delta method.

        Raises
        ------
        Refusal
            If the mean is not finite and > 0.
        """
        mean = float(np.mean(samples))
        if not (math.isfinite(mean) and mean > 0):
            raise Refusal(f"the mean over samples is {mean:.3g}: too few samples or an overflow")
        error = scale * mean**power
        relative = abs(power) * float(np.std(samples, ddof=1)) / (mean * math.sqrt(len(samples)))
        return Measurement(error, error * relative, floor, samples, power, note)


def log_covariance(curve: list[Measurement]) -> np.ndarray | None:
    """Covariance of the log-errors of a curve (delta method), or ``None`` for exact measures.

    Samples are the same at every step count; what else a standard error holds stands on the
    diagonal alone.

    Parameters
    ----------
    curve
        The measurements at all step counts.

    Returns
    -------
    ndarray or None
        (points, points).
    """
    columns = [m.power * m.samples / np.mean(m.samples) for m in curve if m.samples is not None]
    if len(columns) < len(curve):
        return None
    relative = np.stack(columns)
    covariance = np.atleast_2d(np.cov(relative)) / relative.shape[1]
    whole = np.square([m.se / m.error for m in curve])
    np.fill_diagonal(covariance, np.maximum(np.diag(covariance), whole))
    return covariance


def averaged(name: str, runs: Sequence[Measurement]) -> Measurement:
    """The error of a solver with random times, from measurements of plans that drew them apart.

    That of TV and KL is the mean, that of all other measures, which are roots of a mean or of a
    divergence, the root mean square. TV, KL, chi^2 and the square of W2 are convex: what is
    averaged bounds the error of the mixture of the laws, which is the law of a sampler that draws
    new times for every sample.

    Parameters
    ----------
    name
        A key of :data:`probflow.studies.rows.MEASURES`.
    runs
        One measurement for each draw of the times, two at least.

    Returns
    -------
    Measurement
        With one sample a draw. Its standard error has a second part where the measure has samples
        of its own, which all draws share.

    Raises
    ------
    Refusal
        If the mean is not finite and > 0.
    """
    power = 1 if name in ("tv", "kl") else 2
    kind = "mean" if power == 1 else "root mean square"
    note = f"{kind} over {len(runs)} draws of the random times"
    errors = np.array([run.error for run in runs])
    mean = Measurement.of_samples(errors**power, 1 / power, 1.0, 0.0, note)
    slopes = (errors / mean.error) ** (power - 1)  # of the mean, in each error
    floor, shared = (
        float(np.mean(slopes * [getattr(run, key) for run in runs])) for key in ("floor", "se")
    )
    return replace(mean, floor=floor, se=math.hypot(mean.se, shared))


def bootstrap_covariance(
    curve: list[Measurement], replicates: int = 2000, seed: int = 0
) -> np.ndarray | None:
    """The same by the paired bootstrap: samples drawn again, the same ones at every step count.

    It takes no derivative, so that it also holds where the mean is not close to normal. Replicates
    in which some mean is not positive are left out.

    Parameters
    ----------
    curve
        As that of :func:`log_covariance`.
    replicates
        How often samples are drawn again.
    seed
        Of these draws.

    Returns
    -------
    ndarray or None
        (points, points); ``None`` for exact measures.
    """
    columns = [m.samples for m in curve if m.samples is not None]
    if len(columns) < len(curve):
        return None
    samples, powers = np.stack(columns), np.array([m.power for m in curve])
    n = samples.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates)
    means = counts @ samples.T / n
    logs = powers * np.log(means[(means > 0).all(axis=1)])
    return np.atleast_2d(np.cov(logs.T))


def measure(
    name: str,
    plan: Plan,
    process: Any,
    target: Target,
    settings: Settings,
    reference: Reference | None = None,
    finer: Plan | None = None,
) -> Measurement:
    """Measure one plan.

    Parameters
    ----------
    name
        A key of :data:`probflow.studies.rows.MEASURES`.
    plan, process, target
        The plan starts from the exact law at its first time, and is compared with the exact law
        (or flow) at its last.
    settings
        Seed and number of samples, for the measures that sample.
    reference
        What :func:`reference_flow` or :func:`reference_path` returned, where
        :func:`needs_reference` says so.
    finer
        The plan with twice as many steps, for ``weak``.

    Returns
    -------
    Measurement
        Error, standard error, floor, and per-sample contributions where there are some.

    Raises
    ------
    Refusal
        If the measure does not exist for this solver and target, or cannot be had honestly; the
        message is the reason.
    ValueError
        For an unknown measure.
    """
    by_factors = name in ADDITIVE or target.dim == 1
    if isinstance(target, Product) and by_factors and not (name == "strong" and plan.stochastic):
        return _product(name, plan, process, target, settings)
    if name in ("tv", "kl", "chi2", "w2"):
        return _marginal(name, plan, process, target, settings)
    if name == "path-kl":
        return _path(plan, process, target, settings)
    if name == "strong":
        return _strong(plan, process, target, settings, reference)
    if name == "certificate":
        value = math.sqrt(certificate(plan, process, target) / 2)
        return Measurement(value, floor=FLOORS[name])
    if name == "weak":
        return _weak(plan, finer, process, target, settings)
    if name in SAMPLE_DISTANCES:
        return Measurement(*sample_distance(name, plan, process, target, settings))
    raise ValueError(f"measure: got {name!r}, allowed are {', '.join(MEASURES)}")


def _weak(
    plan: Plan, finer: Plan | None, process: Any, target: Target, settings: Settings
) -> Measurement:
    if finer is None:
        raise Refusal("the process depends on the number of steps, so T and 2T share no path")
    weak = weak_difference(plan, finer, process, target, settings)
    return Measurement.of_samples(weak.samples, 0.5, 1.0, FLOORS["weak"], weak.note)


@lru_cache(maxsize=64)
def _line_distances(plan: Plan, process: Any, target: Target) -> dict[str, float]:
    return distances_1d(plan, process, target)


def _line_distance(name: str, plan: Plan, process: Any, target: Target) -> tuple[float, float]:
    """A distance of laws on the line, and its floor."""
    distances = _line_distances(plan, process, target)
    value, floor = distances[name], (FLOORS_STOCHASTIC if plan.stochastic else FLOORS)[name]
    if name == "chi2":
        value = 0.5 * math.sqrt(value)
    return value, max(floor, distances.get("error", 0.0) * value)


#: Distances of normal laws by their moments, in any dimension; TV on the line.
NORMAL = {"tv": gaussian_tv, "kl": gaussian_kl, "w2": gaussian_w2}


def _normal_distance(name: str, plan: Plan, process: Any, target: Target) -> tuple[float, float]:
    """The same on a normal target, whatever the number of variables that a step depends on."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        law, true = gaussian_law(plan, process, target), true_law(process, target, plan.times[-1])
        value = NORMAL[name](true.mean, true.variance, law.mean, law.variance)
    return value, FLOORS[name]


def _marginal(
    name: str, plan: Plan, process: Any, target: Target, settings: Settings
) -> Measurement:
    normal = isinstance(target, Gaussian) and name in NORMAL and (name != "tv" or target.dim == 1)
    if normal or target.dim == 1:
        exact = _normal_distance if normal else _line_distance
        value, floor = exact(name, plan, process, target)
        if not math.isfinite(value):
            raise Refusal(
                f"{plan.solver} with {len(plan.steps)} steps: {MEASURES[name]} is too large to "
                "resolve, since true mass lies where the solver's law has none; take more steps"
            )
        return Measurement(value, floor=floor)
    if name == "w2":
        raise Refusal(f"W2 in {target.dim} dimensions is exact for Gaussian targets only")
    if name == "chi2" and plan.stochastic:
        return Measurement.of_samples(
            chi2_samples(plan, process, target, settings.samples, generator=generator(settings)),
            0.5,
            0.5,
            FLOORS[name],
        )
    if plan.stochastic:
        raise Refusal(
            f"the density of a stochastic solver in {target.dim} dimensions is a mean over its "
            f"noises, and {name} takes the noise of that mean for distance; measure chi2, path-kl"
        )
    samples = density_samples(
        plan, process, target, settings.samples, generator=generator(settings)
    )
    power, scale = (0.5, 0.5) if name == "chi2" else (1.0, 1.0)
    return Measurement.of_samples(samples[name], power, scale, FLOORS[name])


def _path(plan: Plan, process: Any, target: Target, settings: Settings) -> Measurement:
    if target.dim == 1:
        value = math.sqrt(path_kl(plan, process, target) / 2)
        return Measurement(value, floor=FLOORS["path-kl"])
    samples = path_kl_samples(
        plan, process, target, settings.samples, generator=generator(settings)
    )
    return Measurement.of_samples(samples, 0.5, math.sqrt(0.5), FLOORS["path-kl"])


def _product(
    name: str, plan: Plan, process: Any, target: Product, settings: Settings
) -> Measurement:
    """From the factors: KL adds up, and so do the squares of the others (TV of one is itself)."""
    power = 1 if name == "kl" else 2
    counts = Counter(target.factors)
    of = {factor: measure(name, plan, process, factor, settings) for factor in counts}
    total, floor = (
        sum(count * getattr(of[f], key) ** power for f, count in counts.items()) ** (1 / power)
        for key in ("error", "floor")
    )
    mean = math.sqrt(target.dim) if name == "strong" else 1.0  # RMS per coordinate
    return Measurement(total / mean, floor=floor / mean)


def _strong(
    plan: Plan, process: Any, target: Target, settings: Settings, reference: Reference | None
) -> Measurement:
    if plan.stochastic:
        if reference is None:
            raise Refusal(
                f"{plan.solver} is stochastic: its strong error needs the path of a reverse SDE as "
                "reference, and this solver follows none; measure tv"
            )
        return _distance(plan, process, target, settings, reference)
    if target.dim == 1:
        value = _line_distances(plan, process, target)["strong"]
        return Measurement(value, floor=FLOORS["strong"])
    first, last = Point.many(process, [plan.times[0], plan.times[-1]])
    x = start_states(process, target, plan.times[0], settings)
    truth = truth_of(target)
    if isinstance(truth, Gaussian):
        exact = truth.flow(x, (first.alpha, first.sigma), (last.alpha, last.sigma))
        reference = Reference(exact, FLOORS["strong"])
    if reference is None:
        raise ValueError("reference: this target has no exact flow; give reference_flow(...)")
    return _distance(plan, process, target, settings, reference)


def _distance(
    plan: Plan, process: Any, target: Target, settings: Settings, reference: Reference
) -> Measurement:
    """RMS distance of a plan's final states from those of a reference, from the same draws.

    A reference path is off by what its steps do not see of the Brownian path, which is hardly
    correlated with the error that is measured: it shifts that error by its own square over twice
    the error. It is not larger than the distance to a run of half its steps. (Extrapolation from
    both runs takes off what is correlated, and costs more than that: measured, the shifts are
    larger with it.)
    """
    final = reached(plan, process, target, settings)
    squares = (final - reference.states).square().mean(dim=1).numpy()
    result = Measurement.of_samples(squares, 0.5, 1.0, reference.error)
    if reference.coarser is None:
        return result
    apart = float((reference.coarser - reference.states).square().mean())
    return replace(result, floor=apart / (2 * result.error))


def needs_reference(target: Target, measures: Sequence[str], eta: Any = 0.0) -> bool:
    """Whether a strong error on this target has no exact solution to be measured against.

    Parameters
    ----------
    target
        The target.
    measures
        Keys of :data:`~probflow.studies.rows.MEASURES`.
    eta
        That of the solver's equation: 0 for the ODE.

    Returns
    -------
    bool
        Never true without the measure ``"strong"``.
    """
    known = isinstance(target, Product) or isinstance(truth_of(target), Gaussian)
    flow = target.dim == 1 or known
    return "strong" in measures and not (eta == 0 and flow)


def reference_flow(process: Any, target: Target, grid: Grid, settings: Settings) -> Reference:
    """Flow of the sampled states by the fourth-order method, and its own RMS error.

    The error is that of Richardson's comparison: the distance to a run with half the steps, over
    2^4 - 1.

    Parameters
    ----------
    process, target, grid
        Those of the curve.
    settings
        Seed, number of samples, and ``reference_steps``.

    Returns
    -------
    Reference
        States (samples, d), float64, and the error.
    """
    runs = []
    for count in (settings.reference_steps // 2, settings.reference_steps):
        times = grid.times(process, count)
        plan = get_solver("rk4").plan(process, times, "eps")
        x = start_states(process, target, times[0], settings)
        with torch.no_grad():
            runs.append(run_plan(plan, truth_of(target).model(process), x))
    error = float((runs[0] - runs[1]).square().mean().sqrt()) / 15.0
    return Reference(runs[1], error)


#: A reference path has this many times the steps of the longest plan, and no fewer than that.
REFINEMENT, LEAST = 8, 256


def path_steps(largest: int) -> int:
    """Steps of the reference path, an int, of plans of up to ``largest`` steps."""
    return max(REFINEMENT * largest, LEAST)


@lru_cache(maxsize=8)
def reference_path(
    process: Any, target: Target, grid: Grid, settings: Settings, eta: Any, *, largest: int
) -> Reference:
    """Solution of the reverse SDE of ``eta`` from the sampled states on the path of all plans.

    Parameters
    ----------
    eta
        A number, or a function of sigma/alpha: see :mod:`probflow.solvers.reverse_sde`.
    largest
        The largest step count to be compared with it.

    Returns
    -------
    Reference
        States (samples, d), float64, and those of a run of half the steps.
    """
    runs = []
    for count in (path_steps(largest), path_steps(largest) // 2):
        times = grid.times(process, count)
        plan = get_solver("sde-heun", eta=eta).plan(process, times, "eps")
        x = start_states(process, target, times[0], settings)
        with torch.no_grad():
            noise = path_noise(plan, x, settings)
            runs.append(run_plan(plan, truth_of(target).model(process), x, noise=noise))
    return Reference(runs[0], coarser=runs[1])
