"""The points of an error curve: checks of what the user gave, and which points are usable."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

FLOOR_FACTOR = 20.0  # an error at 20 floors is 5 % floor at worst
MAX_RELATIVE_SE = 0.2  # beyond this, ln e is no longer close to normal

Axis = Literal["T", "h"]


def censor(
    T: np.ndarray, e: np.ndarray, present: np.ndarray, relative_se: np.ndarray, floors: np.ndarray
) -> tuple[np.ndarray, str]:
    """Mark the usable points; the text says what ended the run, or is empty."""
    usable = np.zeros(len(T), dtype=bool)
    for i in range(len(T)):
        if not present[i]:
            continue
        if e[i] <= 0.0:
            return usable, f"; the error at T = {T[i]} is not positive"
        if e[i] <= FLOOR_FACTOR * floors[i]:
            return usable, (
                f"; the error at T = {T[i]}, {e[i]:.2g}, is within {FLOOR_FACTOR:g} times its "
                f"floor {floors[i]:.2g}"
            )
        if relative_se[i] > MAX_RELATIVE_SE:
            return usable, (
                f"; the standard error at T = {T[i]} is {100.0 * relative_se[i]:.0f} % of the error"
            )
        usable[i] = True
    missing = int(np.count_nonzero(~present))
    return usable, f"; {missing} of {len(T)} errors are missing" if missing else ""


def log_covariance(
    e: np.ndarray, present: np.ndarray, se: ArrayLike | None, covariance: ArrayLike | None
) -> np.ndarray:
    """Covariance of ``ln e``, zero where a cell is missing; non-positive errors get variance 0."""
    n = len(e)
    if covariance is None:
        sd = per_point("se", 0.0 if se is None else se, n, read=present)
        relative = np.divide(sd, e, out=np.zeros(n), where=present & (e > 0.0))
        return np.diag(relative**2)
    cov = _as_floats("covariance", covariance)
    if cov.shape != (n, n):
        raise ValueError(f"covariance: got shape {cov.shape}, allowed is {(n, n)} for {n} points")
    cov = np.where(np.outer(present, present), cov, 0.0)
    if not np.all(np.isfinite(cov)):
        raise ValueError(
            "covariance: got NaN or infinite entries at points whose errors are present, "
            "allowed are finite numbers"
        )
    size = float(np.max(np.abs(cov)))
    if not np.allclose(cov, cov.T, rtol=1e-8, atol=1e-12 * size):
        raise ValueError("covariance: got a matrix that is not symmetric, allowed is a covariance")
    smallest = float(np.linalg.eigvalsh(cov)[0])
    if smallest < -1e-10 * size:
        raise ValueError(
            f"covariance: got a matrix with the negative eigenvalue {smallest:.3g}, "
            "allowed is a positive semi-definite one"
        )
    return cov


def check_points(
    steps: Sequence[int] | np.ndarray, errors: ArrayLike, axis: str, h: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, errors and h (ones on axis ``"T"``) as arrays of equal length."""
    values = list(np.asarray(steps).ravel()) if isinstance(steps, np.ndarray) else list(steps)
    for t in values:
        if isinstance(t, (bool, np.bool_)) or not isinstance(t, Integral):
            raise TypeError(f"steps: got {t!r} of type {type(t).__name__}, allowed are integers")
    T = np.array([int(t) for t in values], dtype=np.int64)
    if len(T) == 0:
        raise ValueError("steps: got no points, allowed is one or more")
    if T[0] < 1 or np.any(np.diff(T) <= 0):
        raise ValueError(
            f"steps: got {T.tolist()}, allowed are positive integers in strictly increasing order"
        )
    e = _as_floats("errors", errors)
    if e.shape != T.shape:
        raise ValueError(f"errors: got shape {e.shape}, allowed is {T.shape}, one per step count")
    if axis not in ("T", "h"):
        raise ValueError(f"axis: got {axis!r}, allowed are 'T' and 'h'")
    if axis == "T":
        if h is not None:
            raise ValueError("h: got values with axis 'T', allowed is None; use axis='h'")
        return T, e, np.ones(len(T))
    if h is None:
        raise ValueError("h: got None with axis 'h', allowed is the largest step of each point")
    h_values = _as_floats("h", h)
    if h_values.shape != T.shape:
        raise ValueError(f"h: got shape {h_values.shape}, allowed is {T.shape}, one per step count")
    if not np.all((h_values > 0.0) & np.isfinite(h_values)) or np.any(np.diff(h_values) >= 0.0):
        raise ValueError(
            f"h: got {h_values.tolist()}, allowed are positive finite numbers in strictly "
            "decreasing order"
        )
    return T, e, h_values


def per_point(name: str, value: Any, n: int, read: np.ndarray | None = None) -> np.ndarray:
    """Broadcast a non-negative scalar or array to one number per point."""
    array = _as_floats(name, value)
    if array.shape not in ((), (n,)):
        raise ValueError(f"{name}: got shape {array.shape}, allowed is one number or shape {(n,)}")
    array = np.broadcast_to(array, (n,)).copy()
    if read is not None:
        array[~read] = 0.0  # a missing cell has no standard error either
    if not np.all((array >= 0.0) & np.isfinite(array)):
        raise ValueError(f"{name}: got {array.tolist()}, allowed are finite numbers >= 0")
    return array


def _as_floats(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise TypeError(
            f"{name}: got {type(value).__name__} that is not numeric, allowed are real numbers"
        ) from cause
