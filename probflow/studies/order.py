r"""The order of convergence of one error curve, with an interval and a verdict.

The error of a solver run with ``T`` steps is taken to behave as

.. math:: \ln e = c - p\,x + r(x), \qquad x = \ln T \ \text{ or } \ x = -\ln h,

with ``p`` the order and ``r`` a correction that fades as the steps shrink. No single ``r`` is
believed: the order is reported as the hull over all corrections that the points cannot tell from
the truth. The steps are

1. **Censor.** The usable points run from the coarsest to the first whose error is not positive,
   is at most 20 floors, or has a relative standard error above 1/5. NaN and infinite errors are
   missing cells: they are passed over and do not end the run, since a refused cell says nothing
   about the size of the errors around it. Below 5 points or a span of 8 there is no order.
2. **Fit.** Six models, ``r`` in {0, b h^1/2, b h, b h^2, b h + b' h^2, b ln ln T} with
   ``h = x_0 / x`` relative to the coarsest point of the window, by generalised least squares.
   A model needs one point more than it has parameters.
3. **Window.** The longest suffix at the fine end (5 points and a span of 8 at least) on which
   some model passes chi^2 with a p-value above 0.01.
4. **Interval.** The hull of ``p +- 1.96 se`` over models that pass with chi^2 <= min + 6, widened
   by 0.05. The point estimate is the order of the model with the smallest chi^2 + 2 k
   (k parameters).
5. **Verdict.** See :func:`fit_order`.

Three choices are settled by the simulation of :mod:`probflow.studies.coverage`.

*Misfit.* The covariance of ``ln e`` gets a diagonal term for what the models leave out. Its
standard deviation is 0.5 % at the coarsest point of the window and falls as ``h^(1/2)`` to no less
than 0.05 %: the part that a truncated expansion leaves out shrinks with the steps. A constant
0.5 % lets ``b ln ln T`` pass for curves ``T^-p (1 + c / T)`` without noise, and the hull is then
too wide to decide.

*Reach.* ``slower`` and ``faster`` need the claim to lie outside everything that the fine end of
the curve could still turn to: the orders of all models that pass on any admissible suffix, the
finest local order, and the local order continued at its present rate over a further factor 8.
Continuing a quadratic to ``T^2.5`` instead is less safe (it misses curves whose local order turns
around) and less powerful (it does not see a local order that settles).

*Fall.* A curve ``T^-2 + T^-1 / K`` passes through every local order between 2 and 1, and a window
that ends half way fits ``T^-1.5`` with a correction. ``consistent`` therefore also needs a local
order that is not falling through the claim: continued over a further factor 8 at the rate of the
finest 4 points (one standard error slower), it stays above the claim less 0.3. Convergence from
above passes, since its rate falls off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from probflow.studies.fits import (
    AHEAD,
    CORRECTIONS,
    MIN_P_VALUE,
    MIN_POINTS,
    MIN_SPAN,
    MISFIT_COARSE,
    MISFIT_FINE,
    PAIR_FACTOR,
    WIDEN,
    Curve,
    ModelFit,
    Z,
)
from probflow.studies.points import (
    FLOOR_FACTOR,
    MAX_RELATIVE_SE,
    Axis,
    censor,
    check_points,
    log_covariance,
    per_point,
)
from probflow.studies.rows import OrderEstimate
from probflow.studies.verdict import (
    CHI2_MARGIN,
    DRIFT_POINTS,
    MAX_FALL,
    MAX_HALF_WIDTH,
    MAX_LOCAL_GAP,
    decide_all,
)
from probflow.words import check_real

__all__ = [
    "AHEAD",
    "CHI2_MARGIN",
    "CORRECTIONS",
    "DRIFT_POINTS",
    "FLOOR_FACTOR",
    "MAX_FALL",
    "MAX_HALF_WIDTH",
    "MAX_LOCAL_GAP",
    "MAX_RELATIVE_SE",
    "MIN_POINTS",
    "MIN_P_VALUE",
    "MIN_SPAN",
    "MISFIT_COARSE",
    "MISFIT_FINE",
    "PAIR_FACTOR",
    "WIDEN",
    "Axis",
    "ModelFit",
    "OrderFit",
    "Z",
    "estimate_order",
    "fit_order",
    "local_orders",
]


@dataclass(frozen=True)
class OrderFit:
    """An estimate together with what led to it.

    Parameters
    ----------
    estimate
        The result.
    in_window
        For each given point, whether the estimate used it.
    local_orders
        For each given point, the local order against the next coarser one (NaN for the first).
    models
        The models whose hull is the interval; empty where there is none.
    log_power
        The power ``a`` of ``ln T`` taken out before fitting.
    """

    estimate: OrderEstimate
    in_window: tuple[bool, ...]
    local_orders: tuple[float, ...]
    models: tuple[ModelFit, ...] = ()
    log_power: float = 0.0


def estimate_order(
    steps: Sequence[int] | np.ndarray,
    errors: ArrayLike,
    *,
    claim: float = math.nan,
    se: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    floor: ArrayLike = 0.0,
    axis: Axis = "T",
    h: ArrayLike | None = None,
    max_log_power: float = 0.0,
) -> OrderEstimate:
    """Estimate the order of an error curve and judge the claim.

    Parameters
    ----------
    steps, errors, claim, se, covariance, floor, axis, h, max_log_power
        As those of :func:`fit_order`.

    Returns
    -------
    OrderEstimate
        Order, interval, verdict and its reason.

    Raises
    ------
    TypeError, ValueError
        As :func:`fit_order`.

    Examples
    --------
    >>> T = [8, 16, 32, 64, 128, 256]
    >>> estimate = estimate_order(T, [3.0 * t**-2 for t in T], claim=2.0)
    >>> estimate.verdict, round(estimate.order, 6), estimate.window
    ('consistent', 2.0, (8, 256))
    >>> estimate_order(T, [3.0 * t**-2 for t in T], claim=2.5).verdict
    'slower'
    """
    return fit_order(
        steps,
        errors,
        claim=claim,
        se=se,
        covariance=covariance,
        floor=floor,
        axis=axis,
        h=h,
        max_log_power=max_log_power,
    ).estimate


def fit_order(
    steps: Sequence[int] | np.ndarray,
    errors: ArrayLike,
    *,
    claim: float = math.nan,
    se: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    floor: ArrayLike = 0.0,
    axis: Axis = "T",
    h: ArrayLike | None = None,
    max_log_power: float = 0.0,
) -> OrderFit:
    """Estimate the order of an error curve and say which points were used.

    Parameters
    ----------
    steps
        Numbers of steps ``T``, shape ``(n,)``, integers, strictly increasing.
    errors
        Errors, shape ``(n,)``; NaN or infinite where a cell is missing.
    claim
        Claimed order ``p0 > 0``; NaN for none.
    se
        Standard errors of ``errors``: one number or shape ``(n,)``; ``None`` for no noise.
    covariance
        Covariance of ``ln(errors)``, shape ``(n, n)``; takes the place of ``se``. Rows and columns
        of missing cells are not read.
    floor
        Size below which an error is round-off or the reference's own: one number or shape ``(n,)``.
    axis
        ``"T"``: the claim is ``e = O(T^-p0)``. ``"h"``: it is ``e = O(h^p0)``.
    h
        Largest step of each point, shape ``(n,)``, strictly decreasing; for ``axis="h"`` only.
    max_log_power
        For a claim ``O(T^-p0 (ln T)^a)`` with ``a <= max_log_power``. Powers 0, 1/2, 1, ... are
        taken out of the errors one after the other, in place of the model ``b ln ln T``. The claim
        is consistent if it is so for one of them, and contradicted only if it is for all of them
        that fit; picking the power by the quality of its fit calls 1/10 of true claims ``slower``.

    Returns
    -------
    OrderFit
        With the verdict

        - ``consistent``: the claim lies in the interval, whose half width is at most 0.2, and
          within 0.4 of the finest local order, which is not falling through it;
        - ``slower`` / ``faster``: the claim lies above / below the interval and beyond the reach
          of the fine end (see the module's text);
        - ``inconclusive``: none of these, or too few usable points, or no model fits.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    T, e, h_values = check_points(steps, errors, axis, h)
    if not (isinstance(claim, float) and math.isnan(claim)):  # NaN is no claim
        claim = check_real("claim", claim, "(0, inf)")
    max_log_power = check_real("max_log_power", max_log_power, "[0, inf)")
    if max_log_power > 0.0 and axis == "h":
        raise ValueError(
            f"max_log_power: got {max_log_power} with axis 'h', allowed is 0; "
            "powers of ln T belong to claims in T"
        )
    if max_log_power > 0.0 and T[0] < 2:
        raise ValueError("steps: got T = 1 with max_log_power > 0, allowed is T >= 2 (ln T > 0)")
    present = np.isfinite(e)
    cov = log_covariance(e, present, se, covariance)
    floors = per_point("floor", floor, len(T))
    usable, stop = censor(T, e, present, np.sqrt(np.diag(cov)), floors)
    x_all = np.log(T) if axis == "T" else -np.log(h_values)

    index = np.flatnonzero(usable)
    curve = Curve(x_all[index], np.log(e[index]), cov[np.ix_(index, index)], T[index])
    decision = decide_all(curve, claim, max_log_power, axis, stop)

    in_window = np.zeros(len(T), dtype=bool)
    window = None
    if decision.start is not None:
        used = index[decision.start :]
        in_window[used] = True
        window = (int(T[used[0]]), int(T[used[-1]]))
    eoc = tuple(float(v) for v in (-np.diff(curve.y) / np.diff(curve.x))[-3:])
    estimate = OrderEstimate(
        order=decision.order,
        low=decision.low,
        high=decision.high,
        claim=claim,
        verdict=decision.verdict,
        reason=decision.reason,
        axis=axis,
        window=window,
        eoc=eoc,
    )
    return OrderFit(
        estimate=estimate,
        in_window=tuple(bool(v) for v in in_window),
        local_orders=tuple(float(v) for v in _local_orders(x_all, e)),
        models=decision.models,
        log_power=decision.log_power,
    )


def local_orders(
    steps: Sequence[int] | np.ndarray,
    errors: ArrayLike,
    *,
    axis: Axis = "T",
    h: ArrayLike | None = None,
) -> np.ndarray:
    """Local orders ``ln(e_coarse / e) / ln(T / T_coarse)`` of neighbouring points.

    Parameters
    ----------
    steps, errors, axis, h
        As in :func:`fit_order`; on axis ``"h"`` the step ratio is ``h_coarse / h``.

    Returns
    -------
    ndarray
        Shape ``(n,)``; NaN for the coarsest point and beside a missing or non-positive error.

    Examples
    --------
    >>> local_orders([8, 16, 32], [0.4, 0.1, 0.05]).round(6).tolist()
    [nan, 2.0, 1.0]
    """
    T, e, h_values = check_points(steps, errors, axis, h)
    return _local_orders(np.log(T) if axis == "T" else -np.log(h_values), e)


def _local_orders(x: np.ndarray, e: np.ndarray) -> np.ndarray:
    y = np.full(len(e), math.nan)
    positive = np.isfinite(e) & (e > 0.0)
    y[positive] = np.log(e[positive])
    out = np.full(len(e), math.nan)
    out[1:] = -np.diff(y) / np.diff(x)
    return out
