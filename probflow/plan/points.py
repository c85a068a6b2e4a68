"""Times of a process with what a formula asks for, and the weights between prediction types."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

PREDICTIONS = ("eps", "x0", "v", "score", "velocity")


def prediction_weights(process: Any, prediction: str, point: Any) -> tuple[Any, Any]:
    r"""Weights (p, q) with prediction :math:`= p\,x_0 + q\,\epsilon` at a point.

    =========  =========================================================================
    eps        0, 1
    x0         1, 0
    v          -sin, cos of the angle atan2(sigma, alpha) (Salimans and Ho 2022)
    score      0, -1/sigma
    velocity   alpha', sigma': the drift dx/dt of the probability-flow ODE
    =========  =========================================================================

    ``point`` is anything with ``t``, ``alpha`` and ``sigma`` (floats or tensors).

    Parameters
    ----------
    process
        The noising process; only ``"velocity"`` asks it.
    prediction
        One of these names.
    point
        Anything with ``t``, ``alpha`` and ``sigma``, floats or tensors.

    Returns
    -------
    tuple
        p and q, numbers or of the kind of the point's.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if prediction == "eps":
        return 0.0, 1.0
    if prediction == "x0":
        return 1.0, 0.0
    if prediction == "score":
        return 0.0, -1.0 / point.sigma
    if prediction == "v":
        norm = (point.alpha**2 + point.sigma**2) ** 0.5
        return -point.sigma / norm, point.alpha / norm
    if prediction == "velocity":
        if isinstance(point, Point):
            return point.dalpha, point.dsigma
        return process.dalpha(point.t), process.dsigma(point.t)
    raise ValueError(f"prediction: got {prediction!r}, allowed are {', '.join(PREDICTIONS)}")


def conversion(process: Any, source: str, wanted: str, point: Any) -> tuple[Any, Any]:
    """Weights (c, d) with ``wanted = c x + d source`` at a point, for any two prediction types.

    Both are combinations of x0 and eps, and x = alpha x0 + sigma eps: a 2 x 2 linear system.

    Parameters
    ----------
    process, point
        As those of :func:`prediction_weights`.
    source, wanted
        Prediction types.

    Returns
    -------
    tuple
        c and d, numbers or of the kind of the point's.

    Raises
    ------
    ValueError
        For an unknown prediction type.
    """
    if source == wanted:
        return 0.0, 1.0
    p, q = prediction_weights(process, source, point)
    p_wanted, q_wanted = prediction_weights(process, wanted, point)
    determinant = point.alpha * q - point.sigma * p
    of_input = (p_wanted * q - q_wanted * p) / determinant
    of_output = (point.alpha * q_wanted - point.sigma * p_wanted) / determinant
    return of_input, of_output


class _Batch:
    """Functions of a process at many times, each evaluated for all of them when first needed."""

    def __init__(self, process: Any, times: np.ndarray) -> None:
        self.times, self._process = times, process
        self._columns: dict[str, list[float]] = {}
        self.conversions: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def __getitem__(self, name: str) -> list[float]:
        if name not in self._columns:
            values = np.asarray(getattr(self._process, name)(self.times))
            if values.shape != self.times.shape:
                values = np.broadcast_to(values, self.times.shape)
            self._columns[name] = values.tolist()
        return self._columns[name]

    def conversion(self, key: tuple[str, str]) -> list[tuple[float, float]]:
        """:func:`conversion` at all times; not finite where there is none."""
        if key not in self.conversions:
            source, wanted = key
            alpha, sigma = np.array(self["alpha"]), np.array(self["sigma"])
            point = SimpleNamespace(t=self.times, alpha=alpha, sigma=sigma)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                of_input, of_output = conversion(self._process, source, wanted, point)
                # Where one is a multiple of the other (velocity and v, if the variance is
                # preserved), the weight of x is 0 up to rounding, which must not look like a term.
                p, q = prediction_weights(self._process, wanted, point)
                size = np.maximum(np.abs(p), np.abs(q))
                rounding = np.abs(of_input) * np.maximum(alpha, sigma) <= 1e-15 * size
            weights = np.where(rounding, 0.0, of_input), of_output
            columns = [np.broadcast_to(w, self.times.shape).tolist() for w in weights]
            self.conversions[key] = list(zip(*columns, strict=True))
        return self.conversions[key]


class Point:
    r"""A time of a process, with everything a formula asks for, in float64.

    Parameters
    ----------
    t, alpha, sigma, lambda_, neg_log_ab
        Floats; NaN for what a plain ODE has not.
    batch, index
        All points made at once and the place among them: they share what is asked for later.

    Attributes
    ----------
    t, alpha, sigma, lambda_ : float
        Time, signal factor, noise standard deviation, log-SNR ``ln(alpha/sigma)``.
    neg_log_ab, ab : float
        :math:`-\ln\bar\alpha` and :math:`\bar\alpha = \alpha^2/(\alpha^2+\sigma^2)`.
    theta : float
        Angle ``atan2(sigma, alpha)``, from 0 (data) to pi/2 (noise).
    rho : float
        Noise-to-signal ratio ``sigma/alpha`` (the sigma of EDM and k-diffusion).
    """

    __slots__ = ("_batch", "_index", "alpha", "lambda_", "neg_log_ab", "sigma", "t")

    def __init__(
        self,
        t: float,
        alpha: float,
        sigma: float,
        lambda_: float,
        neg_log_ab: float,
        batch: _Batch | None = None,
        index: int = 0,
    ) -> None:
        self.t, self.alpha, self.sigma = t, alpha, sigma
        self.lambda_, self.neg_log_ab = lambda_, neg_log_ab
        self._batch, self._index = batch, index

    @staticmethod
    def many(process: Any, times: Sequence[float] | np.ndarray) -> list[Point]:
        """Points at all times at once; ``process`` may be ``None`` (a plain ODE: ``t`` only).

        Parameters
        ----------
        process
            The noising process.
        times
            Floats.

        Returns
        -------
        list of Point
            As many.
        """
        if process is None:
            return [Point(float(t), *(math.nan,) * 4) for t in times]
        batch = _Batch(process, np.asarray(times, dtype=np.float64))
        names = ("alpha", "sigma", "lambda_", "neg_log_ab")
        rows = zip(batch.times.tolist(), *(batch[name] for name in names), strict=True)
        return [
            Point(t, alpha, sigma, lambda_, neg_log_ab, batch, index)
            for index, (t, alpha, sigma, lambda_, neg_log_ab) in enumerate(rows)
        ]

    def _rate(self, name: str) -> float:
        if self._batch is None:
            raise TypeError(f"{name}: a plain ODE has no noise levels; give a process")
        return self._batch[name][self._index]

    def conversion(self, types: tuple[str, str]) -> tuple[float, float]:
        """Weights (c, d) with ``second = c x + d first`` here, for any two prediction types.

        Parameters
        ----------
        types
            First and second.

        Returns
        -------
        tuple of float
            c and d.

        Raises
        ------
        TypeError
            For the point of a plain ODE.
        ValueError
            For an unknown prediction type.
        """
        if self._batch is None:
            raise TypeError("a plain ODE has one prediction type")
        found = self._batch.conversions.get(types) or self._batch.conversion(types)
        return found[self._index]

    @property
    def ab(self) -> float:
        """``alphas_cumprod``."""
        return math.exp(-self.neg_log_ab)

    @property
    def theta(self) -> float:
        """Angle ``atan2(sigma, alpha)``."""
        return math.atan2(self.sigma, self.alpha)

    @property
    def rho(self) -> float:
        """Noise-to-signal ratio ``sigma/alpha``."""
        return self.sigma / self.alpha

    @property
    def drift(self) -> float:
        """Linear drift ``f(t)`` of the forward SDE."""
        return self._rate("drift")

    @property
    def diffusion(self) -> float:
        """Diffusion ``g(t)`` of the forward SDE."""
        return self._rate("diffusion")

    @property
    def dalpha(self) -> float:
        """Time derivative of ``alpha``."""
        return self._rate("dalpha")

    @property
    def dsigma(self) -> float:
        """Time derivative of ``sigma``."""
        return self._rate("dsigma")


class Between:
    """Points between those of the grid, by time or log-SNR.

    One by one they cost a hundred times as much as together, so
    :func:`~probflow.plan.tracing.trace` finds out beforehand which ones a solver will ask for; any
    other is evaluated when asked for.
    """

    def __init__(self, process: Any) -> None:
        self._process = process
        self._by_time: dict[float, Point] = {}
        self._by_lambda: dict[float, Point] = {}

    @cached_property
    def lambda_min(self) -> float:
        """Log-SNR of the noisiest time, may be -inf."""
        with np.errstate(divide="ignore"):
            return float(self._process.lambda_(self._process.t_max))

    def prepare(self, times: list[float], lambdas: list[float]) -> None:
        """Evaluate points together."""
        of_lambdas = self._process.t(np.asarray(lambdas)).tolist() if lambdas else []
        points = Point.many(self._process, times + of_lambdas)
        self._by_time = dict(zip(times, points, strict=False))
        self._by_lambda = dict(zip(lambdas, points[len(times) :], strict=True))

    def at(self, t: float) -> Point:
        """The point at process time ``t``."""
        if t not in self._by_time:
            self._by_time[t] = Point.many(self._process, [t])[0]
        return self._by_time[t]

    def at_lambda(self, lambda_: float) -> Point:
        """The point with log-SNR ``lambda_``."""
        if lambda_ not in self._by_lambda:
            self._by_lambda[lambda_] = self.at(float(self._process.t(lambda_)))
        return self._by_lambda[lambda_]


#: Factor n such that ``x / n`` is the state in the named coordinates.
COORDINATES: dict[str, Callable[[Point], float]] = {
    "process": lambda point: 1.0,
    "vp": lambda point: math.hypot(point.alpha, point.sigma),
    "ve": lambda point: point.alpha,
}
