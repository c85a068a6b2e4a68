"""What a study produces: a :class:`Row` a cell, an :class:`OrderEstimate` a curve, wall times.

Reports, files and tests all read these types; nothing else travels between measuring and reporting.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

Verdict = Literal["consistent", "slower", "faster", "inconclusive"]

#: Files of a study's folder, which may be that of its report: cells while a study runs, all of
#: them, what study it is, wall times, pictures, each of these while it is written, and the lock.
PARTIAL, COMPLETE, DESCRIPTION, TIMINGS, PICTURES = (
    *("cells.partial.jsonl", "cells.jsonl", "study.json", "timings.jsonl", "pictures.jsonl"),
)
NEW, NEW_DESCRIPTION, NEW_TIMINGS, NEW_PICTURES = (
    *("cells.new.jsonl", "study.new.json", "timings.new.jsonl", "pictures.new.jsonl"),
)
LOCK = "study.lock"
#: What scans leave in their folder: all their numbers, and below the second their cells.
SCANS, SCAN_CELLS = "scans.json", "scans"
STORE_FILES = (
    *(PARTIAL, COMPLETE, DESCRIPTION, TIMINGS, PICTURES),
    *(NEW, NEW_DESCRIPTION, NEW_TIMINGS, NEW_PICTURES, LOCK),
    SCAN_CELLS,
)

#: What the number in ``Row.error`` is, for each measure, as plain text for Markdown and data.
#: ``q`` is the true law, ``p`` the sampler's.
MEASURES: dict[str, str] = {
    "tv": "TV(q, p)",
    "kl": "KL(q || p)",
    "w2": "W2(q, p)",
    "chi2": "sqrt(chi^2(p || q)) / 2, a bound on TV(q, p)",
    "path-kl": "sqrt(path KL(q || p) / 2)",
    "strong": "strong error, RMS per coordinate",
    "weak": "weak error, RMS of E f(Y_T) - E f(Y_2T)",
    "sliced-w2": "sliced W2 of samples",
    "energy": "root of the energy distance of samples",
    "mmd": "MMD of samples",
    "frechet": "Frechet distance of samples",
    "certificate": "sqrt(certificate / 2), a bound on TV(q, p)",
}

#: The same for axes of plots and for LaTeX: formulas between dollar signs, of commands that
#: matplotlib knows as well. Powers of 1/2 stand for roots: the sign of a root is no letter of the
#: font of the figures, and a browser that shows the SVG has no other to take it from.
MEASURES_TEX: dict[str, str] = MEASURES | {
    "tv": r"$\mathrm{TV}(q, p)$",
    "kl": r"$\mathrm{KL}(q\,\|\,p)$",
    "w2": r"$W_2(q, p)$",
    "chi2": r"$\chi^2(p\,\|\,q)^{1/2}\,/\,2$, a bound on $\mathrm{TV}(q, p)$",
    "path-kl": r"$(\mathrm{path\ KL}(q\,\|\,p)\,/\,2)^{1/2}$",
    "weak": r"weak error, RMS of $\mathrm{E}\,f(Y_T) - \mathrm{E}\,f(Y_{2T})$",
    "sliced-w2": r"sliced $W_2$ of samples",
    "certificate": r"$(\mathrm{certificate}\,/\,2)^{1/2}$, a bound on $\mathrm{TV}(q, p)$",
}


@dataclass(frozen=True)
class Row:
    """One measured cell of a study: a solver at one number of steps in one measure.

    Parameters
    ----------
    target, solver, grid
        Names; ``grid`` includes its end points.
    steps
        Number of steps ``T`` (intervals of the grid).
    nfe
        Model calls for one sample, all steps together.
    h_max
        Largest ``1 - alpha_ratio`` over the steps, the paper's step size; in (0, 1).
    measure
        A key of :data:`MEASURES`, which says what ``error`` is.
    error
        The measured error, > 0; NaN where ``status`` is not ``"ok"``.
    se
        Standard error of ``error`` (0 where the measure has no sampling noise).
    floor
        Size below which ``error`` is round-off, the reference's own error, or what exact samples
        have among themselves.
    eoc
        Local order against the next coarser row, ``ln(e_coarse / e) / ln(T / T_coarse)``;
        NaN for the coarsest.
    in_window
        Whether the order estimate used this row.
    status
        ``"ok"``, or ``"refused: <reason>"`` / ``"failed: <reason>"``.
    note
        What else there is to say of the number; mostly empty.
    h_lambda
        Largest step in log-SNR, of those that are finite; NaN where it is not known.
    """

    target: str
    solver: str
    grid: str
    steps: int
    nfe: int
    h_max: float
    measure: str
    error: float
    se: float = 0.0
    floor: float = 0.0
    eoc: float = math.nan
    in_window: bool = False
    status: str = "ok"
    note: str = ""
    h_lambda: float = math.nan


#: Fields of a row that files of earlier versions do not have; their default stands for them.
LATER = frozenset({"h_lambda"})


class CurveKey(NamedTuple):
    """What one error curve belongs to."""

    target: str
    solver: str
    grid: str
    measure: str


def curve_key(item: Row | OrderEstimate) -> CurveKey:
    """The curve that a row or an estimate belongs to, as a :class:`CurveKey`."""
    return CurveKey(item.target, item.solver, item.grid, item.measure)


_KINDS: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def row_of(values: Any, names: Collection[str]) -> Row:
    """The row of what a file holds.

    Parameters
    ----------
    values
        A mapping with the keys ``names``, of which those of :data:`LATER` may be missing; NaN and
        infinity are texts, as :func:`~probflow.studies.lines.plain` writes them.

    Raises
    ------
    ValueError
        If the keys are others, or a value is none of its field.
    """
    if not isinstance(values, dict) or set(values) | LATER != set(names) | LATER:
        raise ValueError("it is no row of a study")
    found = dict(values)
    for field in fields(Row):
        if field.name not in found:
            continue
        kind, value = str(field.type), found[field.name]
        if kind == "float" and value in ("nan", "inf", "-inf"):
            # math.nan itself is equal to itself within a row.
            value = math.nan if value == "nan" else float(value)
        if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise ValueError(f"{field.name} has the wrong type, got {value!r}")
        found[field.name] = float(value) if kind == "float" else value
    if found["measure"] not in MEASURES or found["steps"] < 1:
        raise ValueError("its measure or steps are none of a study")
    return Row(**found)


@dataclass(frozen=True)
class OrderEstimate:
    """The order of one error curve, its interval, and the verdict on the claim.

    Parameters
    ----------
    order, low, high
        Point estimate and interval of the order; NaN where there is none.
    claim
        Declared order ``p0``; NaN where nothing is claimed (the verdict is then
        ``"inconclusive"`` with the reason ``"no claim"``, order and interval still given).
    verdict
        ``consistent``, ``slower`` (contradicts the claim), ``faster`` (the claim holds but is
        not sharp) or ``inconclusive``.
    reason
        One sentence: why this verdict.
    axis
        ``"T"`` (number of steps) or ``"h"`` (largest step).
    window
        Coarsest and finest number of steps used, or ``None``.
    eoc
        The (up to) three finest local orders, coarse to fine.
    target, solver, grid, measure
        Names of the curve; empty where the estimate was made from bare numbers.
    """

    order: float
    low: float
    high: float
    claim: float
    verdict: Verdict
    reason: str
    axis: Literal["T", "h"] = "T"
    window: tuple[int, int] | None = None
    eoc: tuple[float, ...] = ()
    target: str = ""
    solver: str = ""
    grid: str = ""
    measure: str = ""


@dataclass(frozen=True)
class Timing:
    """Wall time of one plan, for error against time (work-precision).

    Times depend on the machine and what else it does: they are no part of a cell, and are not the
    same on the next run.

    Parameters
    ----------
    target, solver, grid, steps, nfe
        As in :class:`Row`.
    seconds
        Median over the repeats of the wall time of one run over the whole batch, > 0.
    low, high
        Their quartiles.
    repeats
        Number of runs, >= 1; one more, before them, is not counted.
    batch
        Number of samples in the batch.
    """

    target: str
    solver: str
    grid: str
    steps: int
    nfe: int
    seconds: float
    low: float
    high: float
    repeats: int
    batch: int
