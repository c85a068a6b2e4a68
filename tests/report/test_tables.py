from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from probflow.report.latex import to_latex
from probflow.report.tables import (
    DASH,
    curve_labels,
    curve_table,
    curve_tables,
    escape_markdown,
    find_orders,
    group_curves,
    json_text,
    order_text,
    summary_table,
    to_csv,
    to_json,
    to_markdown,
    verdict_text,
)
from probflow.studies.rows import OrderEstimate, Row

NAN = math.nan
ROWS = [
    Row("mix_1d", "heun", "lambda, 3", 16, 32, 0.17, "kl", 5.38e-2, 1.2e-3, 0.0, 1.24, True),
    Row("mix_1d", "heun", "lambda, 3", 8, 16, 0.31, "kl", 1.272e-1, 0.0, 0.0, NAN, False),
    Row(
        *("mix_1d", "heun", "lambda, 3", 32, 64, 0.09, "kl", NAN, 0.0, 0.0, NAN, False),
        status="refused: min F' < 0 & not | injective",
    ),
]
ORDER = OrderEstimate(
    *(2.0, 1.94, 2.07, 2.0, "consistent", "50 % of it | fits_well", "T", (8, 32)),
    eoc=(1.9, 1.95, 1.99),
    target="mix_1d",
    solver="heun",
    grid="lambda, 3",
    measure="kl",
)


def test_curves_are_sorted_from_coarse_to_fine() -> None:
    other = dataclasses.replace(ROWS[0], solver="a-later-one")
    curves = group_curves([*ROWS, other])
    assert [key.solver for key in curves] == ["heun", "a-later-one"]
    assert [row.steps for row in next(iter(curves.values()))] == [8, 16, 32]


def test_labels_name_what_differs() -> None:
    keys = list(group_curves([*ROWS, dataclasses.replace(ROWS[0], grid="other")]))
    assert list(curve_labels(keys).values()) == ["heun, lambda, 3", "heun, other"]
    assert list(curve_labels(keys[:1]).values()) == ["heun"]


def test_an_estimate_without_names_matches() -> None:
    key = next(iter(group_curves(ROWS)))
    bare = OrderEstimate(1.0, 0.9, 1.1, 1.0, "consistent", "")
    assert find_orders([ORDER, bare], key) == [ORDER, bare]
    assert find_orders([dataclasses.replace(ORDER, measure="tv")], key) == []


@pytest.mark.parametrize(
    ("verdict", "claim", "text"),
    [
        ("consistent", 2.0, "consistent with 2"),
        ("slower", 0.5, "slower than 0.5"),
        ("faster", 1.0, "faster than 1"),
        ("inconclusive", 2.0, "inconclusive (claim 2)"),
        ("inconclusive", NAN, "no claim"),
    ],
)
def test_verdicts(verdict: str, claim: float, text: str) -> None:
    order = dataclasses.replace(ORDER, verdict=verdict, claim=claim)  # type: ignore[arg-type]
    assert verdict_text(order) == text


def test_order_text() -> None:
    assert order_text(ORDER) == "2.00 [1.94, 2.07]"
    assert order_text(dataclasses.replace(ORDER, order=NAN)) == DASH
    assert order_text(dataclasses.replace(ORDER, high=math.inf)) == f"2.00 [1.94, {DASH}]"


def test_curve_table_in_markdown() -> None:
    lines = to_markdown(curve_table(ROWS, [ORDER])).splitlines()
    assert lines[0] == r"**heun: KL(q \|\| p) on mix\_1d, grid lambda, 3**"
    assert lines[2] == "| T | NFE | h | error | SE | EOC | in window | status |"
    assert lines[4] == f"| 8 | 16 | 0.31 | 1.272e-01 | {DASH} | {DASH} | no |  |"
    assert lines[5] == "| 16 | 32 | 0.17 | 5.380e-02 | 1.2e-03 | 1.24 | yes |  |"
    assert lines[6].startswith(f"| 32 | 64 | 0.09 | {DASH} | {DASH} | {DASH} | no | refused: ")
    assert lines[-1] == (
        f"| **order in T** |  |  |  |  | **2.00 [1.94, 2.07]** | **8{DASH}32** "
        "| **consistent with 2** |"
    )
    # A pipe in a cell must not open a new one.
    cells = {line.replace(r"\|", "").count("|") for line in lines[2:]}
    assert cells == {9}


def test_curve_table_wants_one_curve() -> None:
    with pytest.raises(ValueError, match="got 2 curves"):
        curve_table([*ROWS, dataclasses.replace(ROWS[0], solver="ddim")])
    assert len(curve_tables([*ROWS, dataclasses.replace(ROWS[0], solver="ddim")])) == 2


def test_escape_markdown() -> None:
    assert escape_markdown("a|b *c* <d>\n`e`") == r"a\|b \*c\* \<d\> \`e\`"


def test_no_nan_in_text() -> None:
    broken = OrderEstimate(NAN, NAN, NAN, NAN, "inconclusive", "no claim")
    tables = (curve_table(ROWS, [broken]), summary_table(ROWS, [broken]))
    for text in (to_markdown(*tables), to_latex(*tables), to_csv(*tables), to_json(*tables)):
        assert "nan" not in text.lower()


def test_csv_holds_full_numbers_and_the_estimate() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(curve_table(ROWS, [ORDER])))))
    assert [line["T"] for line in lines] == ["8", "16", "32", "order in T"]
    assert float(lines[1]["error"]) == 5.38e-2
    assert lines[2]["error"] == ""
    assert lines[0]["in_window"] == "False"
    last = lines[-1]
    assert (last["EOC"], last["low"], last["high"]) == ("2.0", "1.94", "2.07")
    assert (last["in_window"], last["status"]) == ("8-32", "consistent with 2")
    assert {line["grid"] for line in lines} == {"lambda, 3"}


def test_json_is_valid_and_null_for_nan() -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    text = to_json(curve_table(ROWS, [ORDER]), summary_table(ROWS, [ORDER]))
    records = json.loads(text, parse_constant=refuse)
    assert records[0]["EOC"] is None
    assert records[2]["error"] is None
    assert records[-1]["eoc"] == [1.9, 1.95, 1.99]
    assert records[-1]["window"] == [8, 32]


def test_json_of_numpy_and_others() -> None:
    value = {"a": np.float64(1.5), "b": np.int64(2), "c": np.array([1.0, np.nan]), 3: {2, 1}}
    assert json.loads(json_text(value)) == {"a": 1.5, "b": 2, "c": [1.0, None], "3": [1, 2]}
    assert json_text(np.float32(np.inf)) == "null\n"
    assert json_text(np.bool_(True)) == "true\n"


def test_summary_lists_every_curve_and_estimate() -> None:
    rows = [*ROWS, dataclasses.replace(ROWS[0], solver="ddim", target="other")]
    alone = dataclasses.replace(ORDER, solver="lonely", axis="h", claim=NAN, window=None)
    table = summary_table(rows, [ORDER, alone])
    assert table.head == (
        *("solver", "measure", "target", "axis"),
        *("claim", "order [95 %]", "finest EOCs", "window", "verdict", "reason"),
    )
    assert [cells[0] for cells in table.body] == ["heun", "ddim", "lonely"]
    assert table.body[0][4:9] == (
        *("2", "2.00 [1.94, 2.07]", "1.90, 1.95, 1.99"),
        *(f"8{DASH}32", "consistent"),
    )
    assert table.body[1][-1] == "no estimate"
    assert (table.body[2][4], table.body[2][7], table.body[2][8]) == (DASH, DASH, "no claim")
    assert table.records[1]["order"] is None
    assert {len(cells) for cells in table.body} == {len(table.head)} == {len(table.align)}
    assert table.title == "Measured orders: grid lambda, 3"
    constant = summary_table(ROWS, [ORDER])
    assert constant.title == "Measured orders: target mix_1d, grid lambda, 3"
    assert constant.head[:3] == ("solver", "measure", "claim")
    assert constant.records[0]["grid"] == "lambda, 3"


def test_markdown_ends_with_a_note() -> None:
    text = to_markdown(summary_table(ROWS, [ORDER]), note="process vp_1; seed 0")
    assert text.endswith(" |\n\nprocess vp\\_1; seed 0\n")


def test_empty_input() -> None:
    assert to_json(summary_table([], [])) == "[]\n"
    assert to_csv(summary_table([], [])).strip() == ""
    assert "| solver |" in to_markdown(summary_table([], []))
