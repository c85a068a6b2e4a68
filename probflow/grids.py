r"""Time grids, from noise to data.

A :class:`Grid` is a recipe; ``grid.times(process, steps)`` gives its ``steps + 1`` strictly
decreasing process times (:func:`restart`: more, with rises). End points may be given in time, in
log-SNR, in sigma/alpha or in :math:`-\ln\bar\alpha`, and default to the process's own sampling
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probflow.processes import VP, Process
from probflow.words import check_choice, check_real, check_whole, is_real, near

__all__ = [
    "GRIDS",
    "Grid",
    "as_grid",
    "explicit",
    "exponential",
    "karras",
    "log_snr",
    "paper",
    "quadratic",
    "restart",
    "uniform",
]


def _t_of_sigma(process: Process, value: float) -> float:
    if value < 0:
        raise ValueError(f"sigma: need a value >= 0, got {value:g}")
    return float(process.t(-math.log(value) if value > 0 else math.inf))


#: Units of end points: how to turn a value into process time.
UNITS: dict[str, Callable[[Process, float], float]] = {
    "t": lambda process, value: value,
    "lambda": lambda process, value: float(process.t(value)),
    "sigma": _t_of_sigma,
    "neg_log_ab": lambda process, value: float(process.t_of_neg_log_ab(value)),
}


@dataclass(frozen=True)
class Grid:
    """A recipe for times.

    Parameters
    ----------
    kind
        A key of :data:`GRIDS`.
    start, end
        Noisy end and data end, in ``unit``; ``None`` takes the process's own.
    unit
        ``"t"`` (process time), ``"lambda"`` (log-SNR), ``"sigma"`` (sigma/alpha, as in EDM and
        k-diffusion) or ``"neg_log_ab"`` (-ln alphas_cumprod).
    options
        Options of the kind: ``rho`` (karras), ``c0`` and ``c1`` (paper), ``times`` (explicit),
        ``base`` and ``intervals`` (restart).

    Raises
    ------
    ValueError
        For an unknown kind, unit or option.
    """

    kind: str
    start: float | None = None
    end: float | None = None
    unit: str = "t"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, GRIDS)
        check_choice("unit", self.unit, UNITS)
        allowed = {
            "karras": {"rho"},
            "paper": {"c0", "c1"},
            "explicit": {"times"},
            "restart": {"base", "intervals"},
        }
        unknown = sorted(set(self.options) - allowed.get(self.kind, set()))
        if unknown:
            hint = near(unknown[0], allowed.get(self.kind, ()))
            raise ValueError(f"{self.kind} grid: unknown option {unknown[0]!r}{hint}")
        if self.kind == "restart" and set(self.options) != allowed["restart"]:
            raise ValueError(
                "base, intervals: a restart grid needs both; "
                "make one with probflow.grids.restart(base, *intervals)"
            )
        if self.kind == "explicit":
            if (self.start, self.end) != (None, None):
                raise ValueError("start, end: an explicit grid has its own; leave them out")
            if len(self.options.get("times", ())) < 2:
                raise ValueError(
                    "times: an explicit grid needs at least 2 (one step); "
                    "make one with probflow.grids.explicit(times)"
                )

    def __hash__(self) -> int:
        return hash((self.kind, self.start, self.end, self.unit, str(self.options)))

    @property
    def rises(self) -> bool:
        """Whether times may rise: noise is added there."""
        return self.kind == "restart"

    def times(self, process: Process, steps: int | None = None) -> np.ndarray:
        """The ``steps + 1`` times on a process, float64, strictly decreasing.

        A restart grid inserts its rises and descents into those of its base.

        Parameters
        ----------
        process
            The noising process.
        steps
            Number of steps, >= 1. An explicit grid has its own; then it may be left out.

        Returns
        -------
        ndarray
            Shape (steps + 1,), float64; those of a restart grid are more.

        Raises
        ------
        ValueError
            If ``steps < 1``, the ends are not ordered, or a time is outside the process.
        TypeError
            If ``steps`` is not a whole number.
        """
        if self.kind == "restart":
            return self._with_restarts(process, steps)
        if self.kind == "explicit":
            times = np.asarray(self.options["times"], dtype=np.float64)
            times = np.array([self._time(process, value, "times") for value in times])
            if steps is not None and steps != len(times) - 1:
                raise ValueError(
                    f"steps: the explicit grid has {len(times) - 1} steps, asked for {steps}"
                )
        else:
            check_whole("steps", steps, 1)
            if self.kind == "paper" and (self.start is not None or self.end is not None):
                raise ValueError("start, end: the paper's schedule fixes both; leave them out")
            start = self._end_point(process, self.start, process.start, "start")
            end = self._end_point(process, self.end, process.end, "end")
            if not start > end and self.kind != "paper":
                raise ValueError(
                    f"start, end: the grid runs from noise to data, so start must be the noisier; "
                    f"got t = {start:g} to {end:g}"
                )
            times = np.array(GRIDS[self.kind](process, start, end, steps, **self.options))
            if self.kind != "paper":
                times[0], times[-1] = start, end  # exact, whatever the round trips lost
        process.check_times(times)
        if not (np.diff(times) < 0).all():
            raise ValueError(
                "times: must strictly decrease from noise to data, got "
                f"{np.array2string(times, threshold=6)}"
            )
        return times

    def _with_restarts(self, process: Process, steps: int | None) -> np.ndarray:
        base: Grid = self.options["base"]
        times = base.times(process, steps)
        inserted: dict[int, list[float]] = {}
        for low, high, repeats, count in self.options["intervals"]:
            ends = [self._time(process, value, "intervals") for value in (low, high)]
            index = int(np.abs(times - ends[0]).argmin())
            if index == 0 or not ends[1] > times[index]:
                raise ValueError(
                    f"intervals: ({low:g}, {high:g}) needs a step down before it, and its upper "
                    f"end above the grid time nearest to its lower one, t = {times[index]:g}"
                )
            if count is None:
                count = max(1, index - int(np.abs(times - ends[1]).argmin()))
            down = replace(base, start=ends[1], end=float(times[index]), unit="t")
            inserted.setdefault(index, []).extend([*down.times(process, count)] * repeats)
        pieces = [[time, *inserted.get(index, ())] for index, time in enumerate(times)]
        return np.array([time for piece in pieces for time in piece])

    def _end_point(self, process: Process, value: float | None, own: float, name: str) -> float:
        if value is None:
            return own
        time = self._time(process, value, name)
        return min(max(time, process.t_min), process.t_max)

    def _time(self, process: Process, value: float, name: str) -> float:
        """Process time of a value in the grid's unit; messages begin with ``name``."""
        if not is_real(value):
            raise ValueError(f"{name}: need a number, got {value!r}")
        number = float(value)
        if self.unit == "neg_log_ab" and number < 0:
            raise ValueError(f"{name}: -ln alphas_cumprod is never negative, got {number:g}")
        try:
            time = UNITS[self.unit](process, number)
        except (OverflowError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
        if not math.isfinite(time):
            raise ValueError(f"{name}: {number:g} in {self.unit} has no time on {process!r}")
        label = name if self.unit == "t" else f"{name} = {value:g} (unit {self.unit}), its t"
        process.check_times(time, label)
        return time

    @property
    def label(self) -> str:
        """Short text for tables: kind, unit, end points and options."""
        if self.kind == "explicit":
            return "explicit"
        if self.kind == "restart":
            rounds = ", ".join(
                f"{low:g} to {high:g} x{repeats}"
                for low, high, repeats, _ in self.options["intervals"]
            )
            return f"{self.options['base'].label}, restart {rounds}"
        unit = {"neg_log_ab": "-ln ab"}.get(self.unit, self.unit)
        ends = (
            []
            if self.start is None and self.end is None
            else [f"{unit} {_short(self.start)} to {_short(self.end)}"]
        )
        return ", ".join([self.kind, *ends, *(f"{k}={v:g}" for k, v in self.options.items())])


def _short(value: float | None) -> str:
    return "default" if value is None else f"{value:.6g}"


def _finite_lambda(process: Process, start: float, end: float, kind: str) -> tuple[float, float]:
    ends = float(process.lambda_(start)), float(process.lambda_(end))
    if not all(map(math.isfinite, ends)):
        raise ValueError(
            f"{kind} grid: needs finite log-SNR at both ends, got {ends[0]:g} to {ends[1]:g}; "
            "stop short of sigma = 0 and alpha = 0"
        )
    return ends


def _uniform(process: Process, start: float, end: float, steps: int) -> np.ndarray:
    return np.linspace(start, end, steps + 1)


def _quadratic(process: Process, start: float, end: float, steps: int) -> np.ndarray:
    if end < 0:
        raise ValueError(f"quadratic grid: needs times >= 0, got end = {end:g}")
    return np.linspace(math.sqrt(start), math.sqrt(end), steps + 1) ** 2


def _log_snr(process: Process, start: float, end: float, steps: int) -> np.ndarray:
    return process.t(np.linspace(*_finite_lambda(process, start, end, "log-snr"), steps + 1))


def _karras(process: Process, start: float, end: float, steps: int, rho: float = 7.0) -> np.ndarray:
    check_real("rho", rho, "(0, inf)")
    ends = _finite_lambda(process, start, end, "karras")
    high, low = (math.exp(-value / rho) for value in ends)  # sigma^(1/rho)
    return process.t(-rho * np.log(np.linspace(high, low, steps + 1)))


def _exponential(process: Process, start: float, end: float, steps: int) -> np.ndarray:
    ends = float(process.neg_log_ab(start)), float(process.neg_log_ab(end))
    if not all(map(math.isfinite, ends)):
        raise ValueError(
            "exponential grid: needs alpha > 0 at both ends, got -ln ab = "
            f"{ends[0]:g} to {ends[1]:g}"
        )
    return process.t_of_neg_log_ab(np.linspace(*ends, steps + 1))


def _paper(
    process: Process, start: float, end: float, steps: int, c0: float = 2.0, c1: float = 4.0
) -> np.ndarray:
    schedule = VP.paper(steps + 1, c0, c1)
    levels = schedule.neg_log_ab(np.arange(steps + 1, 0, -1.0))
    return process.t_of_neg_log_ab(levels)


def _explicit(process: Process, start: float, end: float, steps: int) -> np.ndarray:
    raise AssertionError("explicit grids carry their times")


def _restart(process: Process, start: float, end: float, steps: int) -> np.ndarray:
    raise AssertionError("restart grids are made from their base")


#: Kinds of grid: (process, start, end, steps, **options) -> times.
GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "log-snr": _log_snr,
    "karras": _karras,
    "exponential": _exponential,
    "paper": _paper,
    "explicit": _explicit,
    "restart": _restart,
}


def uniform(start: float | None = None, end: float | None = None, unit: str = "t") -> Grid:
    """Times evenly spaced.

    Parameters
    ----------
    start, end, unit
        As those of :class:`Grid`.

    Returns
    -------
    Grid
        The recipe.
    """
    return Grid("uniform", start, end, unit)


def quadratic(start: float | None = None, end: float | None = None, unit: str = "t") -> Grid:
    """Square roots of the times evenly spaced (Song et al. 2021, arXiv 2010.02502, D.2).

    Arguments and result as :func:`uniform`; times must be >= 0.
    """
    return Grid("quadratic", start, end, unit)


def log_snr(start: float | None = None, end: float | None = None, unit: str = "t") -> Grid:
    """Log-SNR evenly spaced (Lu et al. 2022, arXiv 2206.00927).

    Arguments and result as :func:`uniform`; the log-SNR must be finite at both ends.
    """
    return Grid("log-snr", start, end, unit)


def karras(
    start: float | None = None, end: float | None = None, unit: str = "t", *, rho: float = 7.0
) -> Grid:
    """``(sigma/alpha)^(1/rho)`` evenly spaced (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Parameters
    ----------
    start, end, unit
        As those of :class:`Grid`.
    rho
        Exponent > 0; 1 is even in ``sigma/alpha``.

    Returns
    -------
    Grid
        Of kind ``"karras"``, for ends of finite log-SNR.
    """
    return Grid("karras", start, end, unit, {"rho": rho})


def exponential(start: float | None = None, end: float | None = None, unit: str = "t") -> Grid:
    r""":math:`-\ln\bar\alpha` evenly spaced: every step has the same ``alpha_ratio``.

    Arguments and result as :func:`uniform`; alpha must be > 0 at both ends.
    """
    return Grid("exponential", start, end, unit)


def paper(c0: float = 2.0, c1: float = 4.0) -> Grid:
    """The levels of :meth:`probflow.VP.paper` with ``T = steps + 1``, from T down to 1.

    Parameters
    ----------
    c0, c1
        Constants of the schedule, ``c1 > c0 > 0``.

    Returns
    -------
    Grid
        Of kind ``"paper"``, for a process that has these levels.
    """
    return Grid("paper", options={"c0": c0, "c1": c1})


def explicit(times: Sequence[float], unit: str = "t") -> Grid:
    """The given values, from noise to data.

    Parameters
    ----------
    times
        At least 2 numbers, in ``unit``.
    unit
        As that of :class:`Grid`.

    Returns
    -------
    Grid
        Of kind ``"explicit"``.

    Raises
    ------
    ValueError
        For fewer than 2 values, or an unknown unit.
    """
    return Grid("explicit", unit=unit, options={"times": tuple(float(t) for t in times)})


def restart(base: Grid, *intervals: Sequence[float | None], unit: str = "t") -> Grid:
    """A grid that goes back up to a higher noise level and comes down again, several times.

    Xu et al. 2023 (arXiv 2306.14878), Algorithm 1. Noise added on the way up is the forward
    process, exact and without a model call; any solver makes the way down. With ``edm-heun`` on
    :func:`karras` this is the Restart sampler of the paper.

    Parameters
    ----------
    base
        Grid of the main way down, of any kind with ends.
    intervals
        Each ``(low, high, repeats)`` or ``(low, high, repeats, steps)``, in ``unit``. At the base's
        time nearest to ``low``, go up to ``high`` and down again in ``steps`` steps of the
        base's kind (by default as many as the base takes there), ``repeats`` times.
    unit
        Of ``low`` and ``high``: a key of :data:`UNITS`.

    Returns
    -------
    Grid
        Of kind ``"restart"``.

    Raises
    ------
    ValueError, TypeError
        For a base without ends, or an interval that is not of this form.

    Examples
    --------
    >>> from probflow import EDM
    >>> restart(uniform(4.0, 0.0), (1.0, 2.0, 2)).times(EDM(), 4)
    array([4., 3., 2., 1., 2., 1., 2., 1., 0.])
    """
    if not isinstance(base, Grid):
        raise TypeError(f"base: need a Grid, got {base!r}")
    if base.kind in ("explicit", "paper", "restart"):
        raise ValueError(f"base: need a grid whose ends can be chosen, got {base.kind}")
    checked = []
    for interval in intervals:
        try:
            low, high, repeats, *rest = interval
            (count,) = rest or [None]
            low, high = float(low), float(high)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(
                f"intervals: each is (low, high, repeats) or (low, high, repeats, steps), "
                f"got {interval!r}"
            ) from None
        for name, value in (("repeats", repeats), ("steps", count)):
            if not (name == "steps" and value is None):
                check_whole(f"intervals: {name}", value, 1)
        checked.append((low, high, repeats, count))
    if not checked:
        raise ValueError("intervals: need at least one")
    return Grid("restart", unit=unit, options={"base": base, "intervals": tuple(checked)})


def as_grid(grid: Any) -> Grid:
    """A :class:`Grid` as it is, a kind's name, or a sequence of times as an explicit grid.

    Parameters
    ----------
    grid
        A :class:`Grid`, a key of :data:`GRIDS` (underscores are accepted), or a sequence of times.

    Returns
    -------
    Grid
        The grid.

    Raises
    ------
    ValueError, TypeError
        For an unknown name, or something that is none of these.
    """
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str):
        kind = grid.strip().lower().replace("_", "-")
        if kind not in GRIDS:
            raise ValueError(
                f"grid: got {grid!r}{near(grid, GRIDS)}; allowed are {', '.join(GRIDS)}"
            )
        return Grid(kind)
    try:
        return explicit([float(t) for t in grid])
    except TypeError:
        raise TypeError(
            f"grid: need a Grid, the name of one ({', '.join(GRIDS)}) or a sequence of times, "
            f"got {grid!r}"
        ) from None
