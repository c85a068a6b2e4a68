"""From the points of an error curve to its order, interval and verdict.

The rules and the reasons for them stand in :mod:`probflow.studies.order`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from probflow.studies.fits import (
    AHEAD,
    MIN_P_VALUE,
    MIN_POINTS,
    MIN_SPAN,
    WIDEN,
    Curve,
    ModelFit,
    drift,
    finest_local_order,
    fit_models,
    reach,
    spans,
)
from probflow.studies.points import Axis
from probflow.studies.rows import Verdict

CHI2_MARGIN = 6.0
MAX_HALF_WIDTH = 0.2
MAX_LOCAL_GAP = 0.4
DRIFT_POINTS, MAX_FALL = 4, 0.3


@dataclass(frozen=True)
class Decision:
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


def decide_all(curve: Curve, claim: float, max_log_power: float, axis: Axis, stop: str) -> Decision:
    """Decide for every power of ``ln T`` and combine."""
    name = "T" if axis == "T" else "h"
    n = len(curve.x)
    prefix = "no claim; " if math.isnan(claim) else ""
    if n < MIN_POINTS:
        points = "1 usable point" if n == 1 else f"{n} usable points"
        return Decision("inconclusive", f"{prefix}only {points}, needed are {MIN_POINTS}{stop}")
    if not spans(curve.x, MIN_SPAN):
        span = math.exp(curve.x[-1] - curve.x[0])
        return Decision(
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
    return combine(decisions, claim, prefix)


def combine(decisions: list[Decision], claim: float, prefix: str) -> Decision:
    """One decision from those for all powers of ``ln T``; ``prefix`` goes before its reason."""
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


def _prefixed(decision: Decision, prefix: str) -> Decision:
    return replace(decision, reason=prefix + decision.reason)


def _decide(curve: Curve, claim: float, loglog: bool) -> Decision:
    """Window, interval and verdict for a curve with enough points."""
    start, passing, best_p = None, [], 0.0
    for s in curve.admissible_starts():
        fits = fit_models(curve.suffix(s), loglog)
        passing = [m for m in fits if m.p_value > MIN_P_VALUE]
        best_p = max(m.p_value for m in fits)
        if passing:
            start = s
            break
    if start is None:
        shortest = len(curve.x) - curve.admissible_starts()[-1]
        return Decision(
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
    return Decision(verdict, reason, order, low, high, start, models)


def _judge(
    curve: Curve, claim: float, low: float, high: float, loglog: bool
) -> tuple[Verdict, str]:
    if math.isnan(claim):
        return "inconclusive", "no claim"
    finest, _ = finest_local_order(curve)
    interval, local = f"[{low:.2f}, {high:.2f}]", f"{finest:.2f} at T = {curve.steps[-1]}"
    if low <= claim <= high:
        holds = f"the interval {interval} holds the claim {claim:g}"
        half = 0.5 * (high - low)
        if half > MAX_HALF_WIDTH:
            reason = f"{holds}, but its half width {half:.3f} exceeds {MAX_HALF_WIDTH:g}"
            return "inconclusive", reason
        if abs(finest - claim) > MAX_LOCAL_GAP:
            gap = f"more than {MAX_LOCAL_GAP:g} away from it"
            return "inconclusive", f"{holds}, but the finest local order, {local}, is {gap}"
        order, rate, rate_se = drift(curve, DRIFT_POINTS)
        if rate + rate_se < 0.0 and order + AHEAD * (rate + rate_se) < claim - MAX_FALL:
            return (
                "inconclusive",
                f"{holds}, but the local order, {local}, is falling fast enough to get to "
                f"{order + AHEAD * (rate + rate_se):.2f}",
            )
        return "consistent", f"{holds}, and the finest local order is {local}"
    reach_low, reach_high = reach(curve, loglog)
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
