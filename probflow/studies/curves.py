"""From the cells of a curve to its rows and the estimate of its order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from probflow.studies.cells import Cell, Curve
from probflow.studies.measure import log_covariance
from probflow.studies.order import OrderFit, fit_order
from probflow.studies.rows import OrderEstimate, Row

__all__ = ["finish_cells", "finish_curve", "fit_cells", "not_resolved"]


def log_power(grid: str, measure: str, claim: float) -> float:
    """The largest power of ln T that may come with T^-claim on a kind of grid.

    On the paper's schedule h = c1 ln(T)/T, and the range of -ln ab grows like ln T: a solver that
    makes an error of h^(p + 1) on every step, the pure-noise ones included, has T^-p (ln T)^(p+1)
    in all. The root of the path KL, a sum of h^(2p + 1) over T steps, has T^-p (ln T)^(p + 1/2).
    """
    if grid != "paper":
        return 0.0
    return 1.5 if measure == "path-kl" or math.isnan(claim) else claim + 1.0


def fit_cells(cells: Sequence[Cell], claim: float, grid: str) -> OrderFit | None:
    """Fit the order of a curve's cells, coarse to fine; ``None`` if none of them has a number."""
    known = [m for cell in cells if (m := cell.measurement) is not None]
    if not known:
        return None
    covariance = log_covariance(known)
    return fit_order(
        [cell.row.steps for cell in cells if cell.measurement is not None],
        [m.error for m in known],
        claim=claim,
        se=[m.se for m in known] if covariance is None else None,
        covariance=covariance,
        floor=np.array([m.floor for m in known]),
        max_log_power=log_power(grid, cells[0].row.measure, claim),
    )


#: Steps in log-SNR from where on a grid is fine enough for errors to contradict an order.
FINE = 0.25
_FALLING = 0.9


def not_resolved(rows: Sequence[Row]) -> str:
    """Why the rows that an estimate used contradict no order; empty if they may.

    A grid may have steps that stay long in log-SNR, near the data, while all others are short: over
    a factor of 16 in T an error of order 1 then falls as T^-0.75, on a straight line. Exact errors
    betray that by their bends; noise of a few per cent hides them. Where the longest step no longer
    falls with T, as towards sigma = 0, what is measured is the grid's own order.
    """
    used = [row for row in rows if row.in_window and math.isfinite(row.h_lambda)]
    sizes = [row.h_lambda for row in used]
    if len(sizes) < 2 or sizes[-1] <= FINE or sizes[-1] > _FALLING * sizes[-2]:
        return ""
    return (
        f"but the longest step in log-SNR, {sizes[-1]:.2f} at T = {used[-1].steps}, is not short "
        f"enough to contradict an order ({FINE:g} at most)"
    )


def unfitted(cells: Sequence[Cell], claim: float) -> OrderEstimate:
    """The estimate of a curve without numbers: the reason of its first cell."""
    statuses = (cell.row.status for cell in cells)
    reason = next((s for s in statuses if s != "ok"), "no cell was measured")
    return OrderEstimate(math.nan, math.nan, math.nan, claim, "inconclusive", reason, "T")


def finish_curve(curve: Curve, name: str, cells: Sequence[Cell]) -> tuple[list[Row], OrderEstimate]:
    """Rows and order estimate of a curve in one measure, from its cells, coarse to fine."""
    declared = curve.solver.order(name)
    return finish_cells(cells, math.nan if declared is None else declared, curve.grid.kind)


def finish_cells(cells: Sequence[Cell], claim: float, grid: str) -> tuple[list[Row], OrderEstimate]:
    """Rows and order estimate from the cells of a curve, coarse to fine, on a kind of grid."""
    rows = [cell.row for cell in cells]
    fit = fit_cells(cells, claim, grid)
    if fit is not None:
        measured = [i for i, row in enumerate(rows) if row.status == "ok"]
        for position, i in enumerate(measured):
            adjacent = position > 0 and measured[position - 1] == i - 1
            eoc = fit.local_orders[position] if adjacent else math.nan
            rows[i] = replace(rows[i], eoc=eoc, in_window=fit.in_window[position])
    found = unfitted(cells, claim) if fit is None else fit.estimate
    coarse = not_resolved(rows) if found.verdict == "slower" else ""
    if coarse:
        found = replace(found, verdict="inconclusive", reason=f"{found.reason}; {coarse}")
    estimate = replace(
        found,
        target=rows[0].target,
        solver=rows[0].solver,
        grid=rows[0].grid,
        measure=rows[0].measure,
    )
    return rows, estimate
