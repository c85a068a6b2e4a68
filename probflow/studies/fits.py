"""Fits to the fine end of an error curve: models of its correction, and where it is heading."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

MIN_POINTS = 5
MIN_SPAN = 8.0
MIN_P_VALUE = 0.01
WIDEN = 0.05
MISFIT_COARSE, MISFIT_FINE = 0.005, 0.0005
PAIR_FACTOR = 1.5  # the finest local order is taken over at least this factor
Z = 1.96
AHEAD = math.log(MIN_SPAN)  # how far the local order is continued past the finest point

#: Exponents of ``h`` in each correction; ``None`` stands for ``ln ln T``.
CORRECTIONS: dict[str, tuple[float, ...] | None] = {
    "none": (),
    "h^1/2": (0.5,),
    "h": (1.0,),
    "h^2": (2.0,),
    "h, h^2": (1.0, 2.0),
    "ln ln T": None,
}


@dataclass(frozen=True)
class ModelFit:
    """One correction model fitted to one window.

    Parameters
    ----------
    name
        Key of :data:`CORRECTIONS`.
    order, se
        Fitted order and its standard error.
    chi2, dof
        Residual sum of squares in units of the covariance, and points minus parameters.
    parameters
        Number of fitted parameters.
    """

    name: str
    order: float
    se: float
    chi2: float
    dof: int
    parameters: int

    @property
    def p_value(self) -> float:
        """Probability of a larger chi^2 under the model."""
        return float(chdtrc(self.dof, self.chi2))

    @property
    def low(self) -> float:
        """Lower end of the model's own 95 % interval."""
        return self.order - Z * self.se

    @property
    def high(self) -> float:
        """Upper end of the model's own 95 % interval."""
        return self.order + Z * self.se

    @property
    def score(self) -> float:
        """Akaike's ``chi^2 + 2 k``."""
        return self.chi2 + 2.0 * self.parameters


@dataclass(frozen=True)
class Curve:
    """Usable points, coarse to fine: ``x`` increasing, ``y = ln e``, ``cov`` its covariance."""

    x: np.ndarray
    y: np.ndarray
    cov: np.ndarray
    steps: np.ndarray

    def suffix(self, start: int) -> Curve:
        """Return the points from ``start`` on."""
        return Curve(self.x[start:], self.y[start:], self.cov[start:, start:], self.steps[start:])

    def admissible_starts(self) -> list[int]:
        """Starts of the suffixes that are long enough to fit, longest suffix first."""
        last = len(self.x) - MIN_POINTS
        return [s for s in range(last + 1) if spans(self.x[s:], MIN_SPAN)]


def spans(x: np.ndarray, factor: float) -> bool:
    """Whether ``x``, a logarithm of steps, covers the factor (up to rounding)."""
    return bool(x[-1] - x[0] >= math.log(factor) - 1e-9)


def fit_models(window: Curve, loglog: bool) -> list[ModelFit]:
    """Fit every correction that leaves a residual degree of freedom."""
    n = len(window.x)
    relative_h = np.exp(-(window.x - window.x[0]))
    columns: dict[str, list[np.ndarray]] = {}
    for name, exponents in CORRECTIONS.items():
        if exponents is not None:
            columns[name] = [relative_h**q for q in exponents]
        elif loglog and window.steps[0] > 1:
            columns[name] = [np.log(np.log(window.steps))]
    whiten = np.linalg.inv(np.linalg.cholesky(window.cov + _misfit(window.x)))
    base = whiten @ np.column_stack([np.ones(n), window.x[-1] - window.x])
    b = whiten @ window.y
    fits = []
    for name, extra in columns.items():
        k = 2 + len(extra)
        if n <= k:
            continue
        A = np.column_stack([base, *(whiten @ column for column in extra)])
        Q, R = np.linalg.qr(A)
        R_inv = np.linalg.inv(R)
        coefficients = R_inv @ (Q.T @ b)
        residual = b - A @ coefficients
        fits.append(
            ModelFit(
                name=name,
                order=float(coefficients[1]),
                se=float(np.linalg.norm(R_inv[1])),  # (A^T A)^-1 = R^-1 R^-T
                chi2=float(residual @ residual),
                dof=n - k,
                parameters=k,
            )
        )
    return fits


def _misfit(x: np.ndarray) -> np.ndarray:
    """Variance of what the models leave out, diagonal matrix of shape ``(n, n)``."""
    sd = np.maximum(MISFIT_COARSE * np.exp(-0.5 * (x - x[0])), MISFIT_FINE)
    return np.diag(sd**2)


def finest_local_order(curve: Curve) -> tuple[float, float]:
    """Local order at the fine end, over a factor of at least 1.5, and its standard error."""
    j = int(np.flatnonzero(curve.x <= curve.x[-1] - math.log(PAIR_FACTOR))[-1])
    run = float(curve.x[-1] - curve.x[j])
    variance = curve.cov[-1, -1] + curve.cov[j, j] - 2.0 * curve.cov[-1, j]
    order = -float(curve.y[-1] - curve.y[j]) / run
    return order, math.sqrt(max(float(variance), 0.0) + 2.0 * MISFIT_FINE**2) / run


def drift(curve: Curve, points: int) -> tuple[float, float, float]:
    """Local order at the finest point, its rate of change in ``x``, and the rate's standard error.

    They are those of a quadratic through the shortest suffix of at least ``points`` points and a
    span of 8.
    """
    start = max(s for s in range(len(curve.x) - points + 1) if spans(curve.x[s:], MIN_SPAN))
    tail = curve.suffix(start)
    d = tail.x - tail.x[-1]
    whiten = np.linalg.inv(np.linalg.cholesky(tail.cov + _misfit(tail.x)))
    Q, R = np.linalg.qr(whiten @ np.column_stack([np.ones_like(d), d, d**2]))
    R_inv = np.linalg.inv(R)
    _, slope, curvature = R_inv @ (Q.T @ (whiten @ tail.y))
    return -float(slope), -2.0 * float(curvature), 2.0 * float(np.linalg.norm(R_inv[2]))


def reach(curve: Curve, loglog: bool) -> tuple[float, float]:
    """Range of orders that the fine end of the curve could still turn to."""
    finest, se = finest_local_order(curve)
    order, rate, rate_se = drift(curve, MIN_POINTS)
    lows = [finest - Z * se, order + AHEAD * min(rate - Z * rate_se, 0.0)]
    highs = [finest + Z * se, order + AHEAD * max(rate + Z * rate_se, 0.0)]
    for start in curve.admissible_starts():
        for model in fit_models(curve.suffix(start), loglog):
            if model.p_value > MIN_P_VALUE:
                lows.append(model.low - WIDEN)
                highs.append(model.high + WIDEN)
    return min(lows), max(highs)
