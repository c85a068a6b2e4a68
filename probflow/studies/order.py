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

Two choices are settled by the simulation of :mod:`probflow.studies.coverage`.

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
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtrc

from probflow.studies.rows import OrderEstimate, Verdict

FLOOR_FACTOR = 20.0  # an error at 20 floors is 5 % floor at worst
MAX_RELATIVE_SE = 0.2  # beyond this, ln e is no longer close to normal
MIN_POINTS = 5
MIN_SPAN = 8.0
MIN_P_VALUE = 0.01
CHI2_MARGIN = 6.0
WIDEN = 0.05
MAX_HALF_WIDTH = 0.2
MAX_LOCAL_GAP = 0.4
MISFIT_COARSE, MISFIT_FINE = 0.005, 0.0005
PAIR_FACTOR = 1.5  # the finest local order is taken over at least this factor
DRIFT_POINTS, MAX_FALL = 4, 0.3
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

Axis = Literal["T", "h"]


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


@dataclass(frozen=True)
class _Curve:
    """Usable points, coarse to fine: ``x`` increasing, ``y = ln e``, ``cov`` its covariance."""

    x: np.ndarray
    y: np.ndarray
    cov: np.ndarray
    steps: np.ndarray

    def suffix(self, start: int) -> _Curve:
        return _Curve(self.x[start:], self.y[start:], self.cov[start:, start:], self.steps[start:])

    def admissible_starts(self) -> list[int]:
        """Starts of the suffixes that are long enough to fit, longest suffix first."""
        last = len(self.x) - MIN_POINTS
        return [s for s in range(last + 1) if _spans(self.x[s:], MIN_SPAN)]


@dataclass(frozen=True)
class _Decision:
    """Outcome for one power of ``ln T``."""

    verdict: Verdict
    reason: str
    order: float = math.nan
    low: float = math.nan
    high: float = math.nan
    start: int | None = None
    models: tuple[ModelFit, ...] = ()
    log_power: float = 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """Smaller is better: the longer window first, then the better fit."""
        if self.start is None:
            return (math.inf, math.inf)
        return (self.start, min(m.score for m in self.models))


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
    """Estimate the order of an error curve and judge the claim; see :func:`fit_order`.

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
    T, e, h_values = _check_points(steps, errors, axis, h)
    claim = _check_real("claim", claim)
    if not math.isnan(claim) and not 0.0 < claim < math.inf:
        raise ValueError(f"claim: got {claim}, allowed is a positive finite number or NaN")
    max_log_power = _check_real("max_log_power", max_log_power)
    if not 0.0 <= max_log_power < math.inf:
        raise ValueError(f"max_log_power: got {max_log_power}, allowed is a finite number >= 0")
    if max_log_power > 0.0 and axis == "h":
        raise ValueError(
            f"max_log_power: got {max_log_power} with axis 'h', allowed is 0; "
            "powers of ln T belong to claims in T"
        )
    if max_log_power > 0.0 and T[0] < 2:
        raise ValueError("steps: got T = 1 with max_log_power > 0, allowed is T >= 2 (ln T > 0)")
    present = np.isfinite(e)
    cov = _log_covariance(e, present, se, covariance)
    floors = _per_point("floor", floor, len(T))
    usable, stop = _censor(T, e, present, np.sqrt(np.diag(cov)), floors)
    x_all = np.log(T) if axis == "T" else -np.log(h_values)

    index = np.flatnonzero(usable)
    curve = _Curve(x_all[index], np.log(e[index]), cov[np.ix_(index, index)], T[index])
    decision = _decide_all(curve, claim, max_log_power, axis, stop)

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
    T, e, h_values = _check_points(steps, errors, axis, h)
    return _local_orders(np.log(T) if axis == "T" else -np.log(h_values), e)


def _local_orders(x: np.ndarray, e: np.ndarray) -> np.ndarray:
    y = np.full(len(e), math.nan)
    positive = np.isfinite(e) & (e > 0.0)
    y[positive] = np.log(e[positive])
    out = np.full(len(e), math.nan)
    out[1:] = -np.diff(y) / np.diff(x)
    return out


def _spans(x: np.ndarray, factor: float) -> bool:
    return bool(x[-1] - x[0] >= math.log(factor) - 1e-9)


def _misfit(x: np.ndarray) -> np.ndarray:
    """Variance of what the models leave out, diagonal matrix of shape ``(n, n)``."""
    sd = np.maximum(MISFIT_COARSE * np.exp(-0.5 * (x - x[0])), MISFIT_FINE)
    return np.diag(sd**2)


def _fit_models(window: _Curve, loglog: bool) -> list[ModelFit]:
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


def _finest_local_order(curve: _Curve) -> tuple[float, float]:
    """Local order at the fine end, over a factor of at least 1.5, and its standard error."""
    j = int(np.flatnonzero(curve.x <= curve.x[-1] - math.log(PAIR_FACTOR))[-1])
    run = float(curve.x[-1] - curve.x[j])
    variance = curve.cov[-1, -1] + curve.cov[j, j] - 2.0 * curve.cov[-1, j]
    order = -float(curve.y[-1] - curve.y[j]) / run
    return order, math.sqrt(max(float(variance), 0.0) + 2.0 * MISFIT_FINE**2) / run


def _drift(curve: _Curve, points: int) -> tuple[float, float, float]:
    """Local order at the finest point, its rate of change in ``x``, and the rate's standard error.

    They are those of a quadratic through the shortest suffix of at least ``points`` points and a
    span of 8.
    """
    start = max(s for s in range(len(curve.x) - points + 1) if _spans(curve.x[s:], MIN_SPAN))
    tail = curve.suffix(start)
    d = tail.x - tail.x[-1]
    whiten = np.linalg.inv(np.linalg.cholesky(tail.cov + _misfit(tail.x)))
    Q, R = np.linalg.qr(whiten @ np.column_stack([np.ones_like(d), d, d**2]))
    R_inv = np.linalg.inv(R)
    _, slope, curvature = R_inv @ (Q.T @ (whiten @ tail.y))
    return -float(slope), -2.0 * float(curvature), 2.0 * float(np.linalg.norm(R_inv[2]))


def _reach(curve: _Curve, loglog: bool) -> tuple[float, float]:
    """Range of orders that the fine end of the curve could still turn to."""
    finest, se = _finest_local_order(curve)
    order, rate, rate_se = _drift(curve, MIN_POINTS)
    lows = [finest - Z * se, order + AHEAD * min(rate - Z * rate_se, 0.0)]
    highs = [finest + Z * se, order + AHEAD * max(rate + Z * rate_se, 0.0)]
    for start in curve.admissible_starts():
        for model in _fit_models(curve.suffix(start), loglog):
            if model.p_value > MIN_P_VALUE:
                lows.append(model.low - WIDEN)
                highs.append(model.high + WIDEN)
    return min(lows), max(highs)


def _decide(curve: _Curve, claim: float, loglog: bool) -> _Decision:
    """Window, interval and verdict for a curve with enough points."""
    start, passing, best_p = None, [], 0.0
    for s in curve.admissible_starts():
        fits = _fit_models(curve.suffix(s), loglog)
        passing = [m for m in fits if m.p_value > MIN_P_VALUE]
        best_p = max(m.p_value for m in fits)
        if passing:
            start = s
            break
    if start is None:
        shortest = len(curve.x) - curve.admissible_starts()[-1]
        return _Decision(
            "inconclusive",
            f"not asymptotic: no model fits even the {shortest} finest points "
            f"(best p-value {best_p:.1g}, needed is more than {MIN_P_VALUE:g})",
        )
    limit = min(m.chi2 for m in passing) + CHI2_MARGIN
    models = tuple(m for m in passing if m.chi2 <= limit)
    order = min(models, key=lambda m: m.score).order
    low = min(m.low for m in models) - WIDEN
    high = max(m.high for m in models) + WIDEN
    verdict, reason = _judge(curve, claim, low, high, loglog)
    return _Decision(verdict, reason, order, low, high, start, models)


def _judge(
    curve: _Curve, claim: float, low: float, high: float, loglog: bool
) -> tuple[Verdict, str]:
    if math.isnan(claim):
        return "inconclusive", "no claim"
    finest, _ = _finest_local_order(curve)
    interval, local = f"[{low:.2f}, {high:.2f}]", f"{finest:.2f} at T = {curve.steps[-1]}"
    if low <= claim <= high:
        holds = f"the interval {interval} holds the claim {claim:g}"
        half = 0.5 * (high - low)
        if half > MAX_HALF_WIDTH:
            reason = f"{holds}, but its half width {half:.2f} exceeds {MAX_HALF_WIDTH:g}"
            return "inconclusive", reason
        if abs(finest - claim) > MAX_LOCAL_GAP:
            gap = f"more than {MAX_LOCAL_GAP:g} away from it"
            return "inconclusive", f"{holds}, but the finest local order, {local}, is {gap}"
        order, rate, rate_se = _drift(curve, DRIFT_POINTS)
        if rate + rate_se < 0.0 and order + AHEAD * (rate + rate_se) < claim - MAX_FALL:
            return (
                "inconclusive",
                f"{holds}, but the local order, {local}, is falling fast enough to get to "
                f"{order + AHEAD * (rate + rate_se):.2f}",
            )
        return "consistent", f"{holds}, and the finest local order is {local}"
    reach_low, reach_high = _reach(curve, loglog)
    side = "below" if claim > high else "above"
    end = reach_high if claim > high else reach_low
    text = f"the interval {interval} lies {side} the claim {claim:g}"
    if reach_low <= claim <= reach_high:
        return (
            "inconclusive",
            f"{text}, but the local order, {local}, could still get there (to {end:.2f})",
        )
    return (
        "slower" if claim > high else "faster",
        f"{text}, and the local order, {local}, is not on its way there (at most to {end:.2f})",
    )


def _decide_all(
    curve: _Curve, claim: float, max_log_power: float, axis: Axis, stop: str
) -> _Decision:
    """Decide for every power of ``ln T`` and combine."""
    name = "T" if axis == "T" else "h"
    n = len(curve.x)
    prefix = "no claim; " if math.isnan(claim) else ""
    if n < MIN_POINTS:
        points = "1 usable point" if n == 1 else f"{n} usable points"
        return _Decision("inconclusive", f"{prefix}only {points}, needed are {MIN_POINTS}{stop}")
    if not _spans(curve.x, MIN_SPAN):
        span = math.exp(curve.x[-1] - curve.x[0])
        return _Decision(
            "inconclusive",
            f"{prefix}the usable points span a factor {span:.3g} in {name}, "
            f"needed is {MIN_SPAN:g}{stop}",
        )
    if max_log_power == 0.0:
        decision = _decide(curve, claim, loglog=True)
        return _prefixed(decision, prefix if decision.start is None else "")
    decisions = []
    for a in 0.5 * np.arange(math.floor(2.0 * max_log_power + 1e-9) + 1):
        freed = replace(curve, y=curve.y - a * np.log(np.log(curve.steps)))
        decisions.append(replace(_decide(freed, claim, loglog=False), log_power=float(a)))
    return _combine(decisions, claim, prefix)


def _combine(decisions: list[_Decision], claim: float, prefix: str) -> _Decision:
    best = min(decisions, key=lambda d: d.rank)
    if best.start is None:
        return _prefixed(best, prefix)
    if math.isnan(claim):
        return best
    consistent = [d for d in decisions if d.verdict == "consistent"]
    if consistent:
        chosen = min(consistent, key=lambda d: d.rank)
        return _prefixed(chosen, f"with (ln T)^{chosen.log_power:g} taken out, ")
    fitted = [d for d in decisions if d.start is not None]
    verdicts = {d.verdict for d in fitted}
    if len(verdicts) == 1 and verdicts != {"inconclusive"}:
        return _prefixed(
            best,
            f"for all {len(fitted)} powers of ln T; with (ln T)^{best.log_power:g} taken out, ",
        )
    undecided = min((d for d in fitted), key=lambda d: (d.verdict != "inconclusive", d.rank))
    if undecided.verdict == "inconclusive":
        return _prefixed(undecided, f"with (ln T)^{undecided.log_power:g} taken out, ")
    reason = (
        f"powers of ln T up to {decisions[-1].log_power:g} put the order on both sides of the "
        f"claim {claim:g}"
    )
    return replace(best, verdict="inconclusive", reason=reason)


def _prefixed(decision: _Decision, prefix: str) -> _Decision:
    return replace(decision, reason=prefix + decision.reason)


def _censor(
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


def _log_covariance(
    e: np.ndarray, present: np.ndarray, se: ArrayLike | None, covariance: ArrayLike | None
) -> np.ndarray:
    """Covariance of ``ln e``, zero where a cell is missing; non-positive errors get variance 0."""
    n = len(e)
    if covariance is None:
        sd = _per_point("se", 0.0 if se is None else se, n, read=present)
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


def _check_points(
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


def _per_point(name: str, value: Any, n: int, read: np.ndarray | None = None) -> np.ndarray:
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


def _check_real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, allowed is a float")
    return float(value)
