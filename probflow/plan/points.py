"""Times of a process with what a formula asks for, and the weights between prediction types."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from probflow.plan.columns import Column, Number, atan2, exp, hypot

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
    """
    if source == wanted:
        return 0.0, 1.0
    p, q = prediction_weights(process, source, point)
    p_wanted, q_wanted = prediction_weights(process, wanted, point)
    determinant = point.alpha * q - point.sigma * p
    of_input = (p_wanted * q - q_wanted * p) / determinant
    of_output = (point.alpha * q_wanted - point.sigma * p_wanted) / determinant
    return of_input, of_output


class Points:
    """The points of a process at many times; what they ask for is evaluated once for all of them.

    ``points[3]`` is one of them, and ``points[numbers]`` many, whose attributes are columns.
    """

    def __init__(self, process: Any, times: Any) -> None:
        self.times = np.asarray(times, dtype=np.float64)
        self._process = process
        self._values: dict[str, np.ndarray] = {}
        self._conversions: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: Any) -> Point:
        return Point(self, index)

    def values(self, name: str) -> np.ndarray:
        """An attribute, or a function of the process, at all times."""
        if name not in self._values:
            if name == "t":
                values = self.times
            elif self._process is None:
                values = np.full(self.times.shape, math.nan)
            else:
                values = self._column(getattr(self._process, name)(self.times))
            self._values[name] = values
        return self._values[name]

    def _column(self, values: Any) -> np.ndarray:
        values = np.asarray(values)
        return values if values.shape else np.full(self.times.shape, values)

    def rates(self, name: str) -> np.ndarray:
        """:meth:`values` that a plain ODE does not have."""
        if self._process is None:
            raise TypeError(f"{name}: a plain ODE has no noise levels; give a process")
        return self.values(name)

    def conversion(self, key: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        """:func:`conversion` at all times; not finite where there is none."""
        if self._process is None:
            raise TypeError("a plain ODE has one prediction type")
        if key not in self._conversions:
            source, wanted = key
            alpha, sigma = self.values("alpha"), self.values("sigma")
            point = SimpleNamespace(t=self.times, alpha=alpha, sigma=sigma)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                of_input, of_output = conversion(self._process, source, wanted, point)
                # Where one is a multiple of the other (velocity and v, if the variance is
                # preserved), the weight of x is 0 up to rounding, which must not look like a term.
                p, q = prediction_weights(self._process, wanted, point)
                size = np.maximum(np.abs(p), np.abs(q))
                rounding = np.abs(of_input) * np.maximum(alpha, sigma) <= 1e-15 * size
            weights = np.where(rounding, 0.0, of_input), of_output
            self._conversions[key] = self._column(weights[0]), self._column(weights[1])
        return self._conversions[key]


class Point:
    r"""A time of a process, with everything a formula asks for, in float64.

    Attributes
    ----------
    t, alpha, sigma, lambda_ : float or Column
        Time, signal factor, noise standard deviation, log-SNR ``ln(alpha/sigma)``.
    neg_log_ab, ab : float or Column
        :math:`-\ln\bar\alpha` and :math:`\bar\alpha = \alpha^2/(\alpha^2+\sigma^2)`.
    theta : float or Column
        Angle ``atan2(sigma, alpha)``, from 0 (data) to pi/2 (noise).
    rho : float or Column
        Noise-to-signal ratio ``sigma/alpha`` (the sigma of EDM and k-diffusion).
    """

    __slots__ = ("_index", "_points", "alpha", "lambda_", "neg_log_ab", "sigma", "t")

    def __init__(self, points: Points, index: Any) -> None:
        self._points, self._index = points, index
        self.t, self.alpha, self.sigma, self.lambda_, self.neg_log_ab = (
            self._own(points.values(name))
            for name in ("t", "alpha", "sigma", "lambda_", "neg_log_ab")
        )

    def _own(self, values: np.ndarray) -> Number:
        own = values[self._index]
        return own.view(Column) if isinstance(own, np.ndarray) else float(own)

    @staticmethod
    def many(process: Any, times: Any) -> list[Point]:
        """The points at all times; ``process`` may be ``None`` (a plain ODE: ``t`` only)."""
        points = Points(process, times)
        return [points[number] for number in range(len(points))]

    @staticmethod
    def at(process: Any, t: Number) -> Point:
        """The point at a time, or the points at those of a column."""
        if isinstance(t, Column):
            return Points(process, t)[:]
        return Points(process, [t])[0]

    def conversion(self, types: tuple[str, str]) -> tuple[Number, Number]:
        """Weights (c, d) with ``second = c x + d first`` here, for any two prediction types."""
        of_input, of_output = self._points.conversion(types)
        return self._own(of_input), self._own(of_output)

    @property
    def ab(self) -> Number:
        """``alphas_cumprod``."""
        return exp(-self.neg_log_ab)

    @property
    def theta(self) -> Number:
        """Angle ``atan2(sigma, alpha)``."""
        return atan2(self.sigma, self.alpha)

    @property
    def rho(self) -> Number:
        """Noise-to-signal ratio ``sigma/alpha``."""
        return self.sigma / self.alpha

    @property
    def drift(self) -> Number:
        """Linear drift ``f(t)`` of the forward SDE."""
        return self._own(self._points.rates("drift"))

    @property
    def diffusion(self) -> Number:
        """Diffusion ``g(t)`` of the forward SDE."""
        return self._own(self._points.rates("diffusion"))

    @property
    def dalpha(self) -> Number:
        """Time derivative of ``alpha``."""
        return self._own(self._points.rates("dalpha"))

    @property
    def dsigma(self) -> Number:
        """Time derivative of ``sigma``."""
        return self._own(self._points.rates("dsigma"))


#: Factor n such that ``x / n`` is the state in the named coordinates.
COORDINATES: dict[str, Callable[[Point], Number]] = {
    "process": lambda point: 1.0,
    "vp": lambda point: hypot(point.alpha, point.sigma),
    "ve": lambda point: point.alpha,
}
