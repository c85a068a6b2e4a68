"""Baselines: what changed between an earlier run and a study, beyond noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from probflow.studies.axes import Scan
from probflow.studies.cells import Cell
from probflow.studies.curves import fit_cells, unfitted
from probflow.studies.folder import claims_of
from probflow.studies.points import FLOOR_FACTOR
from probflow.studies.reading import distinct, read_cells, read_orders
from probflow.studies.rows import COMPLETE, CurveKey, OrderEstimate, Row, curve_key
from probflow.studies.runner import Study

__all__ = ["Baseline", "Comparison", "compare", "compare_scans", "read_baseline"]

#: Exact measures agree to this part of the error over library versions and machines.
ROUND_OFF = 1e-6
#: A change of a sampled error counts from this many standard errors of the difference on.
SIGNIFICANT = 3.0

#: The larger, the better; a claim that holds is not bettered by one that is not sharp.
_RANK: dict[str, int] = {"slower": 0, "inconclusive": 1, "consistent": 2, "faster": 2}


@dataclass(frozen=True)
class Baseline:
    """An earlier run.

    Parameters
    ----------
    rows
        Its rows.
    samples
        Per-sample contributions of its cells where the file has them, by curve and steps.
    verdicts
        Its estimates where the file has some beside it, by curve.
    claims
        The orders that were declared then, by curve, where a ``study.json`` lies beside the cells;
        NaN for none.
    """

    rows: tuple[Row, ...]
    samples: Mapping[tuple[CurveKey, int], Cell] = field(default_factory=dict)
    verdicts: Mapping[CurveKey, OrderEstimate] = field(default_factory=dict)
    claims: Mapping[CurveKey, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """What changed against a baseline, one line of text for each.

    Attributes
    ----------
    compared : int
        Number of cells on both sides.
    cells : tuple of str
        Errors that changed beyond noise.
    worse, verdicts : tuple of str
        Verdicts that got worse, and that changed otherwise.
    missing : tuple of str
        What only one side has.
    """

    compared: int
    cells: tuple[str, ...]
    worse: tuple[str, ...]
    verdicts: tuple[str, ...]
    missing: tuple[str, ...]

    def text(self) -> str:
        """The changes as Markdown: a text of a sentence, and a list for each kind of change."""
        parts = [
            f"Compared with the baseline: {self.compared} cells, {len(self.cells)} changed beyond "
            f"noise, {len(self.worse)} verdicts worse."
        ]
        for heading, lines in (
            ("Worse verdicts", self.worse),
            ("Other verdicts", self.verdicts),
            ("Cells", self.cells),
            ("On one side only", self.missing),
        ):
            if lines:
                parts.append(f"{heading}:\n" + "\n".join(f"- {line}" for line in lines))
        return "\n\n".join(parts)


def read_baseline(path: str | Path) -> Baseline:
    """Read ``cells.jsonl`` or ``results.jsonl`` of an earlier run.

    With ``results.jsonl`` the verdicts come from the ``orders.json`` beside it.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Baseline
        Its rows, with samples or verdicts.

    Raises
    ------
    ValueError
        If the file cannot be read, or a line is damaged, of another kind or format, or one of two
        different results of a cell: a baseline is not repaired. The message names the line.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; of a run take {path / COMPLETE}")
        cells = distinct(read_cells(path))
        if not cells:
            raise ValueError(f"{path} holds no rows")
        rows = tuple(cell.row for cell in cells.values())
        if any(cell.key for cell in cells.values()):
            return Baseline(rows, cells, claims=claims_of(path.parent))
        orders = path.parent / "orders.json"
        return Baseline(rows, verdicts=read_orders(orders) if orders.is_file() else {})
    except ValueError as problem:
        raise ValueError(f"--compare: {problem}") from None


# Comparing --------------------------------------------------------------------------------------


def compare(baseline: Baseline, study: Study) -> Comparison:
    """What a study has other than a baseline.

    An error has changed if the two differ by more than 3 standard errors of both, 20 floors and
    1e-6 of the error together, or if one of the two has no number. A verdict is worse if
    ``consistent`` or ``faster`` became ``inconclusive`` or ``slower``, or ``inconclusive`` became
    ``slower``, and an error, the steps or the claim of the curve changed, too, or each order lies
    outside the interval of the other: without that it is noise at the edge of a verdict. Where a
    baseline has no verdicts of its own, its rows are judged as the study's are, against the claims
    of its own ``study.json``, or else the study's. A curve that was ``consistent`` or ``faster``
    and is not in the study at all is a worse verdict.

    Parameters
    ----------
    baseline
        What :func:`read_baseline` returned.
    study
        The new run.

    Returns
    -------
    Comparison
        Its ``worse`` is empty if no verdict got worse.

    Raises
    ------
    TypeError, ValueError
        For arguments of other types, and if the two have no cell in common.
    """
    if not isinstance(baseline, Baseline) or not isinstance(study, Study):
        raise TypeError(
            "baseline, study: need what read_baseline and study return, got "
            f"{type(baseline).__name__} and {type(study).__name__}"
        )
    old = {(curve_key(row), row.steps): row for row in baseline.rows}
    new = {(curve_key(row), row.steps): row for row in study.rows}
    common = [key for key in new if key in old]
    changes = {key: text for key in common if (text := _changed(old[key], new[key]))}
    other = {name for name, _ in (*changes, *(new.keys() ^ old.keys()))}  # not the same curve
    worse, others = [], []
    for estimate in study.estimates:
        name = curve_key(estimate)
        rows = [row for row in baseline.rows if curve_key(row) == name]
        if not rows:
            continue
        before, now = _estimates(baseline, rows, estimate, study)
        text = (
            f"{_label(name)}: {before.verdict} -> {now.verdict} (claim {before.claim:g}, order "
            f"{before.order:.2f} -> claim {now.claim:g}, order {now.order:.2f}): {now.reason}"
        )
        if _RANK[now.verdict] < _RANK[before.verdict]:
            if name in other or not _same(now.claim, before.claim) or _apart(before, now):
                worse.append(text)
            else:
                others.append(f"{text} (none of its errors changed beyond noise)")
        elif now.verdict != before.verdict or not _same(now.claim, before.claim):
            others.append(text)
    worse += _vanished(baseline, {curve_key(estimate) for estimate in study.estimates})
    missing = [f"{_cell_label(k)}: not in the baseline" for k in new if k not in old]
    missing += [f"{_cell_label(k)}: in the baseline only" for k in old if k not in new]
    if not common:
        raise ValueError(
            f"--compare: the baseline has no cell of this study ({len(old)} others): {missing[0]}"
        )
    lines = tuple(changes.values())
    return Comparison(len(common), lines, tuple(worse), tuple(others), tuple(missing))


def compare_scans(baseline: Sequence[Scan], scans: Sequence[Scan]) -> Comparison:
    """What scans have other than earlier ones along the same axis.

    Errors are compared as those of studies. A slope that is gone with its scan is a worse verdict,
    and so is one that is gone from a scan if an error of that or its values changed, too; one that
    lies outside the interval of the other, both ways, is listed.

    Parameters
    ----------
    baseline, scans
        The earlier scans and the new ones.

    Returns
    -------
    Comparison
        Its ``worse`` is empty if no slope is gone.

    Raises
    ------
    ValueError
        If the two have no value of an axis in common.
    """
    old, new = ({_scan_label(scan): scan for scan in both} for both in (baseline, scans))
    before, now = (
        {
            (label, v): row
            for label, s in both.items()
            for v, row in zip(s.values, s.rows, strict=True)
        }
        for both in (old, new)
    )
    common = [key for key in now if key in before]
    changes = {key: text for key in common if (text := _change(before[key], now[key]))}
    other = {label for label, _ in (*changes, *(now.keys() ^ before.keys()))}
    worse, others = [], []
    for label, scan in new.items():
        earlier = old.get(label, scan)
        text = f"{label}: slope {earlier.slope:.2f} -> {scan.slope:.2f}"
        text += f" ({scan.reason})" if scan.reason else ""
        gone, there = math.isnan(scan.slope), not math.isnan(earlier.slope)
        if gone and there and label in other:
            worse.append(text)
        elif gone == there or (
            not earlier.low <= scan.slope <= earlier.high
            and not scan.low <= earlier.slope <= scan.high
            and there
        ):
            others.append(text)
    worse += [
        f"{label}: slope {scan.slope:.2f} -> gone with its scan"
        for label, scan in old.items()
        if label not in new and not math.isnan(scan.slope)
    ]
    missing = [
        f"{label} {v:g}: not in the baseline" for label, v in now if (label, v) not in before
    ]
    missing += [
        f"{label} {v:g}: in the baseline only" for label, v in before if (label, v) not in now
    ]
    if not common:
        raise ValueError(f"--compare: the baseline has no value of these scans: {missing[0]}")
    cells = tuple(f"{label} {v:g}: {text}" for (label, v), text in changes.items())
    return Comparison(len(common), cells, tuple(worse), tuple(others), tuple(missing))


def _scan_label(scan: Scan) -> str:
    row = scan.rows[0]
    return f"{row.solver}, {row.measure}, T = {row.steps}, {scan.axis}"


def _changed(old: Row, new: Row) -> str:
    """What changed in a cell, with its name; empty if nothing did."""
    text = _change(old, new)
    return f"{_cell_label((curve_key(new), new.steps))}: {text}" if text else ""


def _change(old: Row, new: Row) -> str:
    if (old.status == "ok") != (new.status == "ok"):
        return f"{old.status} -> {new.status}"
    if old.status != "ok":
        return ""
    noise = SIGNIFICANT * math.hypot(old.se, new.se) + FLOOR_FACTOR * (old.floor + new.floor)
    if not abs(new.error - old.error) > noise + ROUND_OFF * max(old.error, new.error):
        return ""
    return f"{old.error:.4g} -> {new.error:.4g} ({new.error / old.error - 1:+.1%})"


def _estimates(
    baseline: Baseline, rows: Sequence[Row], now: OrderEstimate, study: Study
) -> tuple[OrderEstimate, OrderEstimate]:
    """Estimates of the baseline and of the study that may be compared."""
    name = curve_key(now)
    if name in baseline.verdicts:
        return baseline.verdicts[name], now
    cells = [baseline.samples[name, r.steps] for r in rows if (name, r.steps) in baseline.samples]
    if len(cells) == len(rows):
        return _judge(cells, baseline.claims.get(name, now.claim)), now
    # Rows alone know standard errors, not what correlates them: judge both sides by these.
    own = [row for row in study.rows if curve_key(row) == name]
    return _judge(map(Cell, rows), now.claim), _judge(map(Cell, own), now.claim)


def _vanished(baseline: Baseline, there: Set[CurveKey]) -> list[str]:
    """The confirmed orders of a baseline whose curves are not there."""
    texts = []
    for name in dict.fromkeys(curve_key(row) for row in baseline.rows):
        rows = [row for row in baseline.rows if curve_key(row) == name]
        if name in there:
            continue
        claim = baseline.claims.get(name, math.nan)
        cells = [baseline.samples.get((name, row.steps), Cell(row)) for row in rows]
        before = baseline.verdicts.get(name) or _judge(cells, claim)
        if before.verdict in ("consistent", "faster"):
            claimed = f"claim {before.claim:g}, order {before.order:.2f}"
            texts.append(f"{_label(name)}: {before.verdict} ({claimed}) -> not in the study")
    return texts


def _judge(cells: Iterable[Cell], claim: float) -> OrderEstimate:
    ordered = sorted(cells, key=lambda cell: cell.row.steps)
    fit = fit_cells(ordered, claim, ordered[0].row.grid.split(",")[0])
    return unfitted(ordered, claim) if fit is None else fit.estimate


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _apart(one: OrderEstimate, other: OrderEstimate) -> bool:
    """Whether each of two orders lies outside the interval of the other; no for one without."""
    return not (one.low <= other.order <= one.high or other.low <= one.order <= other.high) and (
        math.isfinite(one.order) and math.isfinite(other.order)
    )


def _label(name: CurveKey) -> str:
    target, solver, grid, measure = name
    return f"{solver}, {measure} on {target}, {grid}"


def _cell_label(key: tuple[CurveKey, int]) -> str:
    return f"{_label(key[0])}, T = {key[1]}"
