"""Tables of a study as Markdown, CSV and JSON, all from one type; LaTeX is in :mod:`.latex`.

A :class:`Table` holds the same content twice: ``body`` is text, rounded for readers (Markdown and
LaTeX); ``records`` are the numbers in full precision (CSV and JSON).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..studies.rows import MEASURES, CurveKey, OrderEstimate, Row, curve_key

#: Stands wherever there is no number.
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """One table, as text and as data.

    Parameters
    ----------
    title
        Heading or caption.
    head
        Column heads of ``body``.
    align
        One letter per column of ``body``: ``"l"`` or ``"r"``.
    body
        Formatted cells, row by row.
    records
        One mapping per row, with numbers unrounded; NaN where there is none.
    last
        How many rows at the end of ``body`` are set off by a rule (the estimates).
    wide
        Heads of columns that LaTeX leaves out of a narrow table.
    files
        Heads of columns that LaTeX always leaves out: their texts are too long for a paper.
    name
        What LaTeX's label is made of; empty for the title.
    orders
        The estimates in it, of which LaTeX's caption says the fit windows.
    """

    title: str
    head: tuple[str, ...]
    align: str
    body: tuple[tuple[str, ...], ...]
    records: tuple[dict[str, Any], ...]
    last: int = 0
    wide: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    name: str = ""
    orders: tuple[OrderEstimate, ...] = ()


# --- curves and their estimates -------------------------------------------------------------


def group_curves(rows: Iterable[Row]) -> dict[CurveKey, list[Row]]:
    """Sort rows into curves: in order of first appearance, each from coarse to fine.

    Parameters
    ----------
    rows
        In any order.

    Returns
    -------
    dict
        Lists of rows by curve.
    """
    curves: dict[CurveKey, list[Row]] = {}
    for row in rows:
        curves.setdefault(curve_key(row), []).append(row)
    return {key: sorted(curve, key=lambda row: row.steps) for key, curve in curves.items()}


def find_orders(orders: Iterable[OrderEstimate], key: CurveKey) -> list[OrderEstimate]:
    """Return the estimates of one curve; a name that an estimate leaves empty matches any curve."""
    return [
        order
        for order in orders
        if all(name in ("", own) for name, own in zip(curve_key(order), key, strict=True))
    ]


def curve_labels(keys: Iterable[CurveKey]) -> dict[CurveKey, str]:
    """Name each curve by its solver, and by target, grid or measure where those differ, too."""
    keys = list(keys)
    varying = [i for i in (0, 2, 3) if len({key[i] for key in keys}) > 1]
    return {key: ", ".join([key.solver, *(key[i] for i in varying)]) for key in keys}


# --- numbers and verdicts as text -----------------------------------------------------------


def number_text(value: float, spec: str = ".3e") -> str:
    """Format a number; an en dash where it is not finite.

    Examples
    --------
    >>> number_text(0.2826), number_text(2.0, "g")
    ('2.826e-01', '2')
    """
    return format(value, spec) if math.isfinite(value) else DASH


def order_text(estimate: OrderEstimate) -> str:
    """Order and interval of an estimate, such as ``2.00 [1.94, 2.07]``; a dash for none."""
    if not math.isfinite(estimate.order):
        return DASH
    low, high = number_text(estimate.low, ".2f"), number_text(estimate.high, ".2f")
    return f"{estimate.order:.2f} [{low}, {high}]"


def verdict_text(estimate: OrderEstimate) -> str:
    """Verdict of an estimate with the claim it is about, for instance ``consistent with 2``."""
    if not math.isfinite(estimate.claim):
        return "no claim"
    claim = f"{estimate.claim:g}"
    words = {
        "consistent": f"consistent with {claim}",
        "slower": f"slower than {claim}",
        "faster": f"faster than {claim}",
        "inconclusive": f"inconclusive (claim {claim})",
    }
    return words[estimate.verdict]


def window_text(estimate: OrderEstimate) -> str:
    """Coarsest and finest ``T`` of the fit, for instance ``16\N{EN DASH}512``."""
    return DASH if estimate.window is None else f"{estimate.window[0]}{DASH}{estimate.window[1]}"


# --- building tables ------------------------------------------------------------------------


def curve_table(rows: Sequence[Row], orders: Iterable[OrderEstimate] = ()) -> Table:
    """Table of one curve: a row per number of steps, then its estimates.

    Parameters
    ----------
    rows
        The rows of exactly one (target, solver, grid, measure).
    orders
        Estimates of any curves; those of this one are picked out.

    Returns
    -------
    Table
        Columns T, NFE, h, error, SE, EOC, in window, and a last one for the status or verdict.

    Raises
    ------
    ValueError
        For rows of several curves, or none.
    """
    curves = group_curves(rows)
    if len(curves) != 1:
        raise ValueError(f"curve_table wants the rows of one curve, got {len(curves)} curves")
    [(key, curve)] = curves.items()
    names: dict[str, Any] = key._asdict()
    body: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for row in curve:
        body.append(
            (
                str(row.steps),
                str(row.nfe),
                number_text(row.h_max, ".4g"),
                number_text(row.error),
                number_text(row.se, ".1e") if math.isfinite(row.error) and row.se else DASH,
                number_text(row.eoc, ".2f"),
                "yes" if row.in_window else "no",
                "" if row.status == "ok" else row.status,
            )
        )
        numbers: dict[str, Any] = {"T": row.steps, "NFE": row.nfe, "h": row.h_max}
        numbers |= {"error": row.error, "SE": row.se, "EOC": row.eoc, "low": None, "high": None}
        records.append(names | numbers | {"in_window": row.in_window, "status": row.status})
    found = find_orders(orders, key)
    for order in found:
        kind = f"order in {order.axis}"
        window = window_text(order)
        body.append((kind, "", "", "", "", order_text(order), window, verdict_text(order)))
        numbers = dict.fromkeys(("NFE", "h", "error", "SE"))
        numbers |= {"EOC": order.order, "low": order.low, "high": order.high}
        span = None if order.window is None else "{}-{}".format(*order.window)
        end = {"in_window": span, "status": verdict_text(order)}
        records.append(names | {"T": kind} | numbers | end)
    return Table(
        title=f"{key.solver}: {place_text(key.measure, key.target, key.grid)}",
        head=("T", "NFE", "h", "error", "SE", "EOC", "in window", "status"),
        align="rrrrrrll",
        body=tuple(body),
        records=tuple(records),
        last=len(found),
        wide=("h", "in window"),
        name=f"{key.target} {key.measure} {key.solver}",
        orders=tuple(found),
    )


def curve_tables(rows: Iterable[Row], orders: Iterable[OrderEstimate] = ()) -> list[Table]:
    """A :func:`curve_table` for every curve in ``rows``, as a list; arguments as there."""
    orders = list(orders)
    return [curve_table(curve, orders) for curve in group_curves(rows).values()]


def summary_table(rows: Iterable[Row], orders: Iterable[OrderEstimate]) -> Table:
    """One line per curve: claim, order and interval, three finest EOCs, window, verdict, reason.

    Curves without an estimate get a line of dashes; estimates without rows are listed as well.
    In the text, target and grid are columns where they differ and stand in the title where not;
    in the data, they are columns always.

    Parameters
    ----------
    rows, orders
        Those of a study.

    Returns
    -------
    Table
        Estimates in the order of the curves.
    """
    orders = list(orders)
    lines: list[tuple[CurveKey, OrderEstimate | None]] = []
    keys = list(group_curves(rows))
    for key in keys:
        found = find_orders(orders, key)
        lines.extend([(key, order) for order in found] or [(key, None)])
    listed = {id(order) for _, order in lines}
    lines.extend((curve_key(order), order) for order in orders if id(order) not in listed)

    varying = [
        name
        for name in ("target", "grid", "axis")
        if len({_field(name, key, order) for key, order in lines} - {""}) > 1
    ]
    places = {
        f"{name} {getattr(key, name)}": name for key, _ in lines for name in ("target", "grid")
    }
    same = [text for text, name in places.items() if name not in varying]
    body: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for key, order in lines:
        first = [key.solver, MEASURES.get(key.measure, key.measure)]
        first += (_field(name, key, order) or DASH for name in varying)
        if order is None:
            body.append((*first, DASH, DASH, DASH, DASH, DASH, "no estimate"))
            records.append(key._asdict() | dict.fromkeys(_SUMMARY_DATA))
            continue
        claim = number_text(order.claim, "g")
        finest = ", ".join(number_text(value, ".2f") for value in order.eoc[-3:]) or DASH
        verdict = order.verdict if math.isfinite(order.claim) else "no claim"
        reason = order.reason or DASH
        body.append((*first, claim, order_text(order), finest, window_text(order), verdict, reason))
        window = None if order.window is None else list(order.window)
        values: list[Any] = [order.axis, order.claim, order.order, order.low, order.high]
        values += [list(order.eoc), window, order.verdict, order.reason]
        records.append(key._asdict() | dict(zip(_SUMMARY_DATA, values, strict=True)))
    heads = ("claim", "order [95 %]", "finest EOCs", "window", "verdict", "reason")
    return Table(
        title="Measured orders" + (f": {', '.join(same)}" if same else ""),
        head=("solver", "measure", *varying, *heads),
        align="ll" + "l" * len(varying) + "rrrlll",
        body=tuple(body),
        records=tuple(records),
        wide=("finest EOCs", "window"),
        files=("measure", "target", "grid", "reason"),
        orders=tuple(order for _, order in lines if order is not None),
    )


def summary_tables(rows: Iterable[Row], orders: Iterable[OrderEstimate]) -> list[Table]:
    """One :func:`summary_table` for each measure, target and grid, which its title names.

    Curves without a number are left out.

    Parameters
    ----------
    rows, orders
        Those of a study.

    Returns
    -------
    list of Table
        In order of first appearance.
    """
    rows = numbered(rows)
    keys = {curve_key(row) for row in rows}
    orders = [order for order in orders if curve_key(order) in keys]
    groups: dict[tuple[str, str, str], tuple[list[Row], list[OrderEstimate]]] = {}
    for row in rows:
        groups.setdefault((row.measure, row.target, row.grid), ([], []))[0].append(row)
    for order in orders:
        groups.setdefault((order.measure, order.target, order.grid), ([], []))[1].append(order)
    return [
        replace(
            summary_table(*own),
            title=f"Orders in {place_text(*names)}",
            name=f"{names[1]} {names[0]}",
        )
        for names, own in groups.items()
    ]


def numbered(rows: Iterable[Row]) -> list[Row]:
    """Those of the ``rows`` whose curve has at least one number, as a list."""
    rows = list(rows)
    keys = {curve_key(row) for row in rows if row.status == "ok"}
    return [row for row in rows if curve_key(row) in keys]


def place_text(measure: str, target: str, grid: str) -> str:
    """Measure, target and grid of a curve as text: ``TV(q, p) on mixture, grid log-snr``."""
    where = f" on {target}" if target else ""
    return MEASURES.get(measure, measure) + where + (f", grid {grid}" if grid else "")


_SUMMARY_DATA = ("axis", "claim", "order", "low", "high", "eoc", "window", "verdict", "reason")


def _field(name: str, key: CurveKey, order: OrderEstimate | None) -> str:
    if name == "axis":
        return "" if order is None else order.axis
    return str(getattr(key, name))


# --- writing tables -------------------------------------------------------------------------


def to_markdown(*tables: Table, note: str = "") -> str:
    """The ``tables`` in GitHub-flavoured Markdown, each under its title in bold; then a note."""
    parts = []
    for table in tables:
        rule = ["---:" if letter == "r" else ":---" for letter in table.align]
        first_last = len(table.body) - table.last
        lines = [_pipe(map(escape_markdown, table.head)), _pipe(rule)]
        for i, cells in enumerate(table.body):
            texts = [escape_markdown(cell) for cell in cells]
            if i >= first_last:
                texts = [f"**{text}**" if text else "" for text in texts]
            lines.append(_pipe(texts))
        parts.append(f"**{escape_markdown(table.title)}**\n\n" + "\n".join(lines) + "\n")
    return "\n".join([*parts, *([escape_markdown(note) + "\n"] if note else [])])


def to_csv(*tables: Table) -> str:
    """Records of all ``tables``, comma-separated under one header; empty for no number."""
    records = [plain(record) for table in tables for record in table.records]
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _csv_cell(value) for name, value in record.items()})
    return text.getvalue()


def to_json(*tables: Table) -> str:
    """Records of all ``tables`` as a list in valid JSON, a text; null where there is no number."""
    return json_text([record for table in tables for record in table.records])


def plain(value: Any) -> Any:
    """Turn ``value`` into what JSON can hold: numbers that are not finite become ``None``."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """Write ``value`` as strict JSON with a final newline."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def escape_markdown(text: str) -> str:
    r"""Escape what would break a Markdown table or be read as markup.

    Examples
    --------
    >>> escape_markdown("KL(q || p)")
    'KL(q \\|\\| p)'
    """
    return re.sub(r"([\\|`*_<>])", r"\\\1", " ".join(text.split()))


def _pipe(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join("" if item is None else str(item) for item in value)
    return "" if value is None else value
