"""Errors along axes other than the number of steps, and the slopes there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probflow.grids import Grid, log_snr
from probflow.plan import Point
from probflow.processes import VP, Process
from probflow.solvers import Solver
from probflow.studies.cells import Curve
from probflow.studies.learned import LearnedScore
from probflow.studies.measure import Settings
from probflow.studies.order import fit_order
from probflow.studies.perturbed import OtherLaws, ScoreError, truth_of
from probflow.studies.rows import Row
from probflow.studies.runner import make_curves, run_curves
from probflow.studies.sampled import generator
from probflow.studies.verdict import MAX_HALF_WIDTH
from probflow.targets import Target
from probflow.words import check_choice, check_real, several

__all__ = ["AXES", "Scan", "scan"]

#: Waves per unit of the error on the axis ``jacobian``, times 2 pi.
WAVE = 4.0


@dataclass(frozen=True)
class Axis:
    """An axis: what its values are, and the quantity in which a slope is taken.

    ``x`` is that quantity; the slope is that of ``ln error`` against ``ln x``, in the limit of
    large x (``grows``) or small x. ``wrong`` says that something is made wrong, which the solver's
    own error must not hide.
    """

    meaning: str
    x: Callable[[float], float]
    grows: bool = False
    wrong: bool = True


AXES: dict[str, Axis] = {
    "dimension": Axis("dimension d", lambda d: d, grows=True, wrong=False),
    "score": Axis("L2 size of the score error", lambda e: e),
    "jacobian": Axis("size of the score error's Jacobian", lambda e: e),
    "initial": Axis("-ln ab where N(0, I) stands for the law", lambda v: math.exp(-0.5 * v)),
    "early": Axis(
        "-ln ab of the end, compared with the data", lambda v: math.sqrt(-math.expm1(-v))
    ),
    "learned": Axis("measured L2 size of a network's score error", lambda e: e),
    "smoothness": Axis("smallest length of the target", lambda s: s, wrong=False),
}


#: Axes along which the target itself changes.
_OF_VALUE = ("dimension", "smoothness")


@dataclass(frozen=True)
class Scan:
    """Errors along an axis, and their slope.

    Parameters
    ----------
    axis, values, x
        Name of the axis, its values, and the quantity of each in which the slope is taken.
    rows
        One row a value. On the axes where something is wrong, ``floor`` is at least the error that
        the solver makes without it: what lies within 20 of it does not count for the slope.
        ``in_window`` is whether the slope's fit used it.
    slope, low, high
        ``error ~ x^slope`` at the far end of the axis, with the interval of
        :func:`probflow.studies.order.fit_order`; NaN where there is none. An interval that is more
        than 0.2 away from the local slope at the end is none: the errors follow no power.
    local
        Slope between the last two values.
    reason
        Why there is no slope; empty where there is one.
    """

    axis: str
    values: tuple[float, ...]
    x: tuple[float, ...]
    rows: tuple[Row, ...]
    slope: float
    low: float
    high: float
    local: float
    reason: str

    def __str__(self) -> str:
        head = f"{self.rows[0].solver}, {self.rows[0].measure}, axis {self.axis}: "
        if math.isnan(self.slope):
            return head + self.reason
        return head + f"slope {self.slope:.2f} [{self.low:.2f}, {self.high:.2f}]"


def scan(
    axis: str,
    values: Sequence[Any],
    target: Target | Callable[[Any], Target] | None,
    solver: str | Solver,
    steps: int,
    measure: str = "tv",
    *,
    grid: Grid | None = None,
    process: Process | None = None,
    seed: int = 0,
    samples: int = 128,
    reference_steps: int = Settings.reference_steps,
    seeds: int = Settings.seeds,
    jobs: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    executor: Executor | None = None,
    progress: bool = False,
) -> Scan:
    """Measure a solver along an axis, and fit the slope.

    The solver's own error stays in the result: take a solver and a number of steps whose error is
    small beside the one that is looked at.

    Parameters
    ----------
    axis
        - ``dimension``: values are d, and ``target`` a function of d;
        - ``score``: L2 sizes of a constant error of the score
          (:class:`~probflow.studies.perturbed.ScoreError`);
        - ``jacobian``: sizes of the Jacobian of an error that is a wave, 4 times its L2 size;
        - ``initial``: ``-ln ab`` at the start, where the sampler is given N(0, I) in the place of
          the true law; the slope is taken in alpha;
        - ``early``: ``-ln ab`` at the end, where the sampler's law is compared with the data's; the
          slope is taken in sigma;
        - ``learned``: values are :class:`~probflow.studies.learned.LearnedScore` targets, for
          instance checkpoints along a training; in their place stand the L2 sizes of their errors,
          measured on the true laws at the times of the grid, and ``target`` is not needed;
        - ``smoothness``: values are the smallest length s of the target, and ``target`` a function
          of s.
    values
        In any order; a slope needs five that span a factor of 8 in the quantity above.
    target
        A target, or a function that makes one of a value: on the axes ``dimension`` and
        ``smoothness`` such a function.
    solver, steps, measure, process, seed, samples, reference_steps, seeds
        As in :func:`probflow.studies.study`, one number of steps.
    jobs, out, resume, executor, progress
        As there.
    grid
        By default log-SNR evenly spaced from ``-ln ab`` = 3 to -ln(0.99). The axes ``initial`` and
        ``early`` replace one of its ends.

    Returns
    -------
    Scan
        Errors along the axis and the fitted slope.

    Raises
    ------
    TypeError, ValueError
        For unknown names and values that are out of range.
    """
    check_choice("axis", axis, AXES)
    values = several("values", values)
    if not values:
        raise ValueError("values: need at least one")
    kind, settings = AXES[axis], Settings(seed, samples, reference_steps, seeds)
    base = log_snr(3.0, -math.log(0.99), "neg_log_ab") if grid is None else grid
    if axis == "learned":
        networks = _by_size(values, base, process or VP.linear(), steps, settings)
        values, target = list(networks), networks.__getitem__
    if target is None:
        raise ValueError(f"target: needed on the axis {axis!r}")
    fixed = isinstance(target, Target)
    if (fixed and axis in _OF_VALUE) or not (fixed or callable(target)):
        needed = "a function" if axis in _OF_VALUE else "a target or a function"
        raise TypeError(f"target: need {needed} of the value on the axis {axis!r}, got {target!r}")
    for value in values:
        check_real("values", value, "(0, inf)")
    if len(set(values)) < len(values):
        raise ValueError(f"values: need different ones, got {list(values)}")
    ordered = sorted(values, key=kind.x, reverse=not kind.grows)

    def curve(target: Target, grid: Grid) -> Curve:
        [made] = make_curves(
            targets=[target],
            solvers=[solver],
            steps=[steps],
            measures=[measure],
            grid=grid,
            process=process,
            settings=settings,
        )
        return made

    curves: list[Curve] = []
    right: list[Curve] = []
    for value in ordered:
        made = target if isinstance(target, Target) else target(value)
        if not isinstance(made, Target):
            raise TypeError(f"target: need a target for {value}, got {type(made).__name__}")
        if axis == "dimension" and made.dim != value:
            raise ValueError(f"target: for d = {value} it has {made.dim} coordinates")
        wrong, own_grid = _at(axis, value, made, base, process or VP.linear(), steps)
        curves.append(curve(wrong, own_grid))
        if kind.wrong and (own_grid is not base or not right):
            right.append(curve(truth_of(made), own_grid))
    result = run_curves(
        [*curves, *right], jobs=jobs, out=out, resume=resume, executor=executor, progress=progress
    )
    rows = result.rows[: len(curves)]
    if right:
        own = [row.error for row in result.rows[len(curves) :]]
        floors = own if len(own) == len(rows) else own * len(rows)
        rows = tuple(
            replace(row, floor=max(row.floor, floor))
            for row, floor in zip(rows, floors, strict=True)
        )
    x = tuple(float(kind.x(value)) for value in ordered)
    sign = -1.0 if kind.grows else 1.0
    fit = fit_order(
        range(1, len(x) + 1),
        [row.error for row in rows],
        se=[row.se for row in rows],
        floor=[row.floor if math.isfinite(row.floor) else 0.0 for row in rows],
        axis="h",
        h=[v**sign for v in x],
    )
    estimate = fit.estimate
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    local = sign * estimate.eoc[-1] if estimate.eoc else math.nan
    slope, reason = sign * estimate.order, ""
    if math.isnan(slope):
        reason = _reason(axis, ordered, rows, estimate.reason)
    elif not low - MAX_HALF_WIDTH <= local <= high + MAX_HALF_WIDTH:
        reason = f"no power: fitted is [{low:.2f}, {high:.2f}], but the local slope is {local:.2f}"
        slope = low = high = math.nan
    if not math.isnan(slope):
        rows = tuple(
            replace(row, in_window=used) for row, used in zip(rows, fit.in_window, strict=True)
        )
    return Scan(axis, tuple(ordered), x, rows, slope, low, high, local, reason)


def _by_size(
    networks: Sequence[Any], grid: Grid, process: Process, steps: int, settings: Settings
) -> dict[float, Target]:
    """Networks by the measured size of their error, at the times where a step begins."""
    times = grid.times(process, steps)[:-1].tolist()
    sizes = {}
    for network in networks:
        if not isinstance(network, LearnedScore):
            raise TypeError(f"values: need LearnedScore targets, got {type(network).__name__}")
        draws = generator(settings, stream=1)
        sizes[network.l2_error(times, settings.samples, generator=draws)] = network
    if len(sizes) < len(networks):
        raise ValueError("values: two networks have the same error")
    return sizes  # type: ignore[return-value]


def _reason(axis: str, values: Sequence[float], rows: Sequence[Row], reason: str) -> str:
    """The first row that has no number says more than how many are left."""
    for row in rows:
        if row.status != "ok":
            return row.status
    told = reason.removeprefix("no claim; ")  # it counts the values, under the name of steps
    return re.sub(r"\bT = (\d+)", lambda found: f"{axis} {values[int(found[1]) - 1]:g}", told)


def _at(
    axis: str, value: float, target: Target, grid: Grid, process: Process, steps: int
) -> tuple[Target, Grid]:
    """Target and grid at a value of an axis."""
    if axis == "score":
        return ScoreError(target, value), grid
    if axis == "jacobian":
        return ScoreError(target, value / WAVE, value), grid
    if axis not in ("initial", "early"):
        return target, grid
    if grid.unit != "neg_log_ab" or grid.kind == "paper":
        raise ValueError(f"grid: the axis {axis!r} needs one with ends in neg_log_ab, got {grid}")
    if axis == "initial" and not isinstance(process, VP):
        raise ValueError(f"process: the axis 'initial' needs a VP process, got {process!r}")
    end = "start" if axis == "initial" else "end"
    grid = replace(grid, **{end: value})  # type: ignore[arg-type]
    times = grid.times(process, steps)
    point = Point.at(process, times[0] if axis == "initial" else times[-1])
    level = (point.alpha, point.sigma)
    if axis == "initial":
        return OtherLaws(target, normal_at=level), grid
    return OtherLaws(target, data_at=level), grid
