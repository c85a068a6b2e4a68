"""Pictures of what solvers do at one number of steps: errors on the way, densities, samples.

Each starts from the exact law at the grid's first time, as cells do. All of it costs little: a
plan is run once, or its law is taken after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probflow.grids import as_grid
from probflow.integrate.loop import run_plan
from probflow.integrate.noise import SeededNoise
from probflow.laws.line import line_law
from probflow.laws.quadrature import column, support, true_log_density
from probflow.laws.registers import Refusal, push
from probflow.plan import Plan, Point
from probflow.processes import Process
from probflow.solvers import Solver, get_solver
from probflow.studies.cells import LASTING, Curve
from probflow.studies.measure import REFINEMENT, Measurement, measure
from probflow.studies.rows import MEASURES
from probflow.studies.runner import default_grid, make_curves
from probflow.studies.sampled import Settings, path_noise, start_states
from probflow.studies.shown import Densities, Images, Picture, Plane, Trajectory, write_pictures
from probflow.targets import Gaussian, Target
from probflow.words import check_choice

__all__ = [
    "densities",
    "images",
    "pictures_of",
    "plane",
    "record",
    "trajectory",
]

#: Number of images of each solver; of points in the plane; of places of a density.
IMAGES, POINTS, PLACES = 8, 400, 400


def record(
    folder: str | Path,
    targets: Target | Sequence[Target],
    solvers: Sequence[str | Solver] | str | Solver,
    steps: int,
    *,
    grid: Any = None,
    process: Process | None = None,
    seed: int = 0,
    samples: int = 128,
) -> tuple[Picture, ...]:
    """Make the pictures that a report shows, and put them into the folder of a run.

    Parameters
    ----------
    folder
        Folder of the run; made if it is not there. Earlier pictures in it are replaced.
    targets, solvers, grid, process, seed, samples
        As in :func:`probflow.study`.
    steps
        Number of steps of every picture.

    Returns
    -------
    tuple of Picture
        What was written.

    Raises
    ------
    TypeError, ValueError
        As :func:`probflow.study`.
    """
    curves = _curves(targets, solvers, steps, grid, process, Settings(seed, samples))
    pictures = pictures_of(curves, steps)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_pictures(Path(folder), pictures)
    return pictures


def trajectory(
    target: Target,
    solvers: Sequence[str | Solver] | str | Solver,
    steps: int,
    measure: str | None = None,
    *,
    grid: Any = None,
    process: Process | None = None,
    seed: int = 0,
    samples: int = 128,
) -> Trajectory:
    """Errors of solvers after each step.

    Parameters
    ----------
    measure
        A key of :data:`~probflow.studies.rows.MEASURES` other than ``"weak"``; by default ``"tv"``
        in one dimension and ``"strong"`` in others.
    target, solvers, steps, grid, process, seed, samples
        As those of :func:`record`.

    Returns
    -------
    Trajectory
        Errors and standard errors by solver, or the reasons why one has none.

    Raises
    ------
    TypeError, ValueError
        As :func:`probflow.study`.
    """
    if measure is not None:  # a weak error has no plan of the half-run steps to compare with
        check_choice("measure", measure, [name for name in MEASURES if name != "weak"])
    settings = Settings(seed, samples)
    return _trajectory(_curves(target, solvers, steps, grid, process, settings), steps, measure)


def densities(
    target: Target, solvers: Any, steps: int, *, grid: Any = None, process: Process | None = None
) -> Densities:
    """Densities of solvers' laws in one dimension, after ``steps`` steps.

    Parameters
    ----------
    target, solvers, steps, grid, process
        As those of :func:`record`.

    Returns
    -------
    Densities
        The true density and those of the solvers, or the reasons why one has none.

    Raises
    ------
    TypeError, ValueError
        For a target of more dimensions, and as :func:`probflow.study`.
    """
    _need(target, target.dim == 1, "densities need a target in one dimension")
    return _densities(_curves(target, solvers, steps, grid, process, Settings()), steps)


def plane(
    target: Target,
    solvers: Any,
    steps: int,
    *,
    grid: Any = None,
    process: Process | None = None,
    seed: int = 0,
) -> Plane:
    """Samples of solvers over the true density in the plane.

    Parameters
    ----------
    target, solvers, steps, grid, process, seed
        As those of :func:`record`.

    Returns
    -------
    Plane
        Samples from common draws, and the true density on a grid.

    Raises
    ------
    TypeError, ValueError
        For a target that has not two dimensions, and as :func:`probflow.study`.
    """
    _need(target, target.dim == 2, "the plane needs a target in two dimensions")
    return _plane(_curves(target, solvers, steps, grid, process, Settings(seed)), steps)


def images(
    target: Target,
    solvers: Any,
    steps: int,
    *,
    grid: Any = None,
    process: Process | None = None,
    seed: int = 0,
) -> Images:
    """Samples of solvers as square grey images.

    Parameters
    ----------
    target, solvers, steps, grid, process, seed
        As those of :func:`record`.

    Returns
    -------
    Images
        Rows of images from common draws.

    Raises
    ------
    TypeError, ValueError
        For a target of which the dimension is no square from 16 on, and as :func:`probflow.study`.
    """
    _need(target, side_of(target.dim) > 0, "images need d = n^2 dimensions, n >= 4")
    return _images(_curves(target, solvers, steps, grid, process, Settings(seed)), steps)


def side_of(dim: int) -> int:
    """Side of the square image that ``dim`` numbers make; 0 if they make none."""
    side = math.isqrt(dim)
    return side if side * side == dim and side >= 4 else 0


def pictures_of(curves: Sequence[Curve], steps: int) -> tuple[Picture, ...]:
    """All pictures that there are of the solvers of some curves, by target and grid.

    Parameters
    ----------
    curves
        Those of a study.
    steps
        Step count of all pictures, >= 1.

    Returns
    -------
    tuple of Picture
        Errors on the way, and what there is for the target's dimension.
    """
    groups: dict[tuple[int, str], dict[str, Curve]] = {}
    for curve in curves:
        group = groups.setdefault((id(curve.target), curve.grid.label), {})
        group.setdefault(curve.solver.name, curve)
    pictures: list[Picture] = []
    for group in groups.values():
        own = list(group.values())
        dim = own[0].target.dim
        pictures.append(_trajectory(own, steps, None))
        if dim == 1:
            pictures.append(_densities(own, steps))
        elif dim == 2:
            pictures.append(_plane(own, steps))
        elif side_of(dim):
            pictures.append(_images(own, steps))
    return tuple(pictures)


def _need(target: Target, fits: bool, text: str) -> None:
    if not fits:
        raise ValueError(f"target: {text}; {target.name} has {target.dim}")


def _curves(
    targets: Any, solvers: Any, steps: int, grid: Any, process: Process | None, settings: Settings
) -> list[Curve]:
    return make_curves(
        targets=[targets] if isinstance(targets, Target) else list(targets),
        solvers=[solvers] if isinstance(solvers, str | Solver) else list(solvers),
        steps=[steps],
        measures=["strong"],
        grid=default_grid() if grid is None else as_grid(grid),
        process=process,
        settings=settings,
    )


def _each(curves: Iterable[Curve], make: Callable[[Curve], Any]) -> tuple[dict, dict[str, str]]:
    """What ``make`` returns by solver, and the reasons where it cannot."""
    made, refused = {}, {}
    for curve in curves:
        try:
            with torch.no_grad():
                made[curve.solver.name] = make(curve)
        except LASTING as problem:
            refused[curve.solver.name] = str(problem)
    return made, refused


# Errors on the way ------------------------------------------------------------------------------


def _trajectory(curves: Sequence[Curve], steps: int, name: str | None) -> Trajectory:
    first = curves[0]
    name = ("tv" if first.target.dim == 1 else "strong") if name is None else name
    process = first.process_at(steps)
    times = first.grid.times(process, steps)
    references: dict[Any, Tensor] = {}

    def along(curve: Curve) -> tuple[list[float], list[float], str]:
        _, plan = curve.plan(steps)
        if name != "strong":
            return _laws_along(plan, process, curve, name)
        eta = curve.solver.eta
        if eta not in references:
            references[eta] = _reference(curve, process, times, eta)
        return _states_along(plan, process, curve, references[eta])

    made, refused = _each(curves, along)
    refused |= {solver: reason for solver, (_, _, reason) in made.items() if reason}
    return Trajectory(
        target=first.target.name,
        grid=first.grid.label,
        measure=name,
        steps=steps,
        lambdas=np.asarray(process.lambda_(times[1:]), dtype=np.float64),
        errors={solver: np.array(errors) for solver, (errors, _, _) in made.items()},
        se={solver: np.array(se) for solver, (_, se, _) in made.items()},
        refused=refused,
    )


def _collect(steps: int, one: Callable[[int], Measurement]) -> tuple[list[float], list[float], str]:
    """Errors, standard errors and the first reason why one is missing."""
    errors, se, reason = [], [], ""
    for k in range(1, steps + 1):
        try:
            found = one(k)
        except LASTING as problem:
            reason = reason or f"after {k} steps: {problem}"
            found = Measurement(math.nan, math.nan)
        errors.append(found.error)
        se.append(found.se)
    return errors, se, reason


def _laws_along(
    plan: Plan, process: Process, curve: Curve, name: str
) -> tuple[list[float], list[float], str]:
    """The study's own measure of the first k steps, for every k."""

    def one(k: int) -> Measurement:
        part = replace(plan, steps=plan.steps[:k])
        return measure(name, part, process, curve.target, curve.settings)

    return _collect(len(plan.steps), one)


def _states_along(
    plan: Plan, process: Process, curve: Curve, reference: Tensor
) -> tuple[list[float], list[float], str]:
    """RMS distance per coordinate to the exact states, after every step."""
    states = _states(plan, process, curve)

    def one(k: int) -> Measurement:
        squares = (states[k] - reference[k]).square().mean(dim=1).numpy()
        return Measurement.of_samples(squares, 0.5, 1.0, 0.0)

    return _collect(len(plan.steps), one)


def _states(plan: Plan, process: Process, curve: Curve) -> Tensor:
    """States at all times from the study's draws, on its Brownian path."""
    x = start_states(process, curve.target, plan.times[0], curve.settings)
    noise = path_noise(plan, x, curve.settings) if plan.stochastic else None
    model = curve.target.model(process, plan.prediction)
    return run_plan(plan, model, x, noise=noise, trajectory=True)


def _reference(curve: Curve, process: Process, times: np.ndarray, eta: Any) -> Tensor:
    """Exact states at ``times``, or those of a run with many more steps between them."""
    if eta is None:
        raise Refusal(
            f"{curve.solver.name} follows no reverse SDE, so there is no path to compare it with"
        )
    target = curve.target
    if eta == 0 and (target.dim == 1 or isinstance(target, Gaussian)):
        points = Point.many(process, times)
        x = start_states(process, target, times[0], curve.settings)
        levels = [(point.alpha, point.sigma) for point in points]
        return torch.stack([x, *(target.flow(x, levels[0], level) for level in levels[1:])])
    parts = max(math.ceil(curve.settings.reference_steps / (len(times) - 1)), REFINEMENT)
    fine = _between(process, times, parts)
    solver = get_solver("rk4") if eta == 0 else get_solver("sde-heun", eta=eta)
    plan = solver.plan(process, fine, "eps", rises=curve.grid.rises)
    return _states(plan, process, curve)[::parts]


def _between(process: Process, times: np.ndarray, parts: int) -> np.ndarray:
    """``times`` with ``parts`` steps for each of theirs, uniform in log-SNR."""
    lambdas = np.asarray(process.lambda_(times), dtype=np.float64)
    if not np.isfinite(lambdas).all():
        raise Refusal("the grid ends where there is no noise; end it earlier")
    places = np.linspace(0.0, len(times) - 1.0, parts * (len(times) - 1) + 1)
    fine = np.asarray(process.t(np.interp(places, np.arange(len(times)), lambdas)))
    fine[::parts] = times
    return fine


# Densities and samples --------------------------------------------------------------------------


def _densities(curves: Sequence[Curve], steps: int) -> Densities:
    first = curves[0]
    process = first.process_at(steps)
    end = first.grid.times(process, steps)[-1]
    low, high, _ = support(process, first.target, end, 4.5)
    x = np.linspace(low, high, PLACES)

    def density(curve: Curve) -> np.ndarray:
        _, plan = curve.plan(steps)
        if plan.stochastic:
            law = line_law(plan, process, curve.target)
            return np.interp(x, law.x, law.density, left=0.0, right=0.0)
        start = np.linspace(*support(process, curve.target, plan.times[0], 8.0)[:2], 4001)
        y, slopes = push(plan, process, curve.target, column(start), jacobian=True)
        assert slopes is not None
        image, slope = y[:, 0].numpy(), slopes[:, 0, 0].numpy()
        if not slope.min() > 0:
            raise Refusal("it is no increasing map, so it has no density of one branch")
        log_density = true_log_density(process, curve.target, plan.times[0], start)
        return np.interp(x, image, np.exp(log_density) / slope, left=0.0, right=0.0)

    made, refused = _each(curves, density)
    true = np.exp(true_log_density(process, first.target, end, x))
    return Densities(first.target.name, first.grid.label, steps, x, true, made, refused)


def _plane(curves: Sequence[Curve], steps: int) -> Plane:
    first = curves[0]
    process = first.process_at(steps)
    end = Point.at(process, first.grid.times(process, steps)[-1])
    draws = first.target.sample(
        4000, end.alpha, end.sigma, generator=torch.Generator().manual_seed(0)
    ).numpy()
    low, high = draws.min(axis=0), draws.max(axis=0)
    x, y = (
        np.linspace(a - 0.1 * (b - a), b + 0.1 * (b - a), 60)
        for a, b in zip(low, high, strict=True)
    )
    places = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    true = first.target.log_prob(places, end.alpha, end.sigma).exp().reshape(60, 60).numpy()
    made, refused = _each(curves, lambda curve: _drawn(curve, steps, POINTS))
    names = first.target.name, first.grid.label
    return Plane(*names, steps, x, y, true, made, refused)


def _images(curves: Sequence[Curve], steps: int) -> Images:
    side = side_of(curves[0].target.dim)
    made, refused = _each(
        curves, lambda curve: _drawn(curve, steps, IMAGES).reshape(-1, side, side)
    )
    every = [image for image in made.values() if image.size]
    low, high = (
        (float(min(i.min() for i in every)), float(max(i.max() for i in every)))
        if every
        else (0.0, 1.0)
    )
    names = curves[0].target.name, curves[0].grid.label
    calls = {c.solver.name: (c.plan(steps)[1].nfe,) for c in curves if c.solver.name in made}
    return Images(*names, (f"{steps} steps",), made, low, high, refused, calls)


def _drawn(curve: Curve, steps: int, count: int) -> np.ndarray:
    """Final states of a plan from ``count`` draws of the exact law, (count, d)."""
    process, plan = curve.plan(steps)
    x = start_states(process, curve.target, plan.times[0], replace(curve.settings, samples=count))
    noise = SeededNoise(curve.settings.seed, x.shape, x.dtype) if plan.stochastic else None
    model = curve.target.model(process, plan.prediction)
    return run_plan(plan, model, x, noise=noise).numpy()
