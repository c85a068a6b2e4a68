"""Baselines: what counts as a change, what as worse, and files that are no baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import curves

import probflow as pf
from probflow.report import order_dict, results_text, row_dict
from probflow.studies import study
from probflow.studies.builtin import mixture
from probflow.studies.compare import Baseline, compare, read_baseline
from probflow.studies.measure import Settings
from probflow.studies.rows import COMPLETE
from probflow.studies.runner import Study, run_curves

STEPS = (8, 16, 32, 64, 128)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """Exact errors of ddim and heun, and the folder of their cells."""
    out = tmp_path_factory.mktemp("line")
    result = study(mixture(), ["ddim", "heun"], STEPS, "strong", out=out)
    (out / "results.jsonl").write_text(results_text(result.rows))
    return result, out


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """Sampled errors, and the folder of their cells."""
    out = tmp_path_factory.mktemp("plane")
    return run_curves(curves(settings=Settings(0, 64, 64)), out=out), out


def changed(result: Study, **errors: float) -> Study:
    """The errors of a solver multiplied."""
    rows = tuple(
        replace(r, error=r.error * errors.get(r.solver.replace("-", "_"), 1.0)) for r in result.rows
    )
    return replace(result, rows=rows)


def test_the_same_run_has_no_changes(line, plane) -> None:
    for result, out in (line, plane):
        for path in (out / COMPLETE, out / "results.jsonl"):
            if path.exists():
                comparison = compare(read_baseline(path), result)
                assert (comparison.compared, comparison.cells) == (len(result.rows), ())
                assert (comparison.worse, comparison.verdicts, comparison.missing) == ((), (), ())
                assert f"{len(result.rows)} cells, 0 changed" in comparison.text()


def test_exact_errors_change_by_more_than_round_off(line) -> None:
    result, out = line
    baseline = read_baseline(out / COMPLETE)
    assert compare(baseline, changed(result, heun=1 + 1e-8)).cells == ()
    comparison = compare(baseline, changed(result, heun=1.01))
    assert len(comparison.cells) == len(STEPS)
    assert all(text.startswith("heun, strong on mixture-1d") for text in comparison.cells)
    assert "+1.0%)" in comparison.cells[0]
    assert comparison.cells[0] in comparison.text()


def test_sampled_errors_change_by_more_than_their_noise(plane) -> None:
    result, out = plane
    baseline = read_baseline(out / COMPLETE)
    row = next(row for row in result.rows if row.solver == "ddim" and row.steps == 8)
    relative = row.se / row.error
    assert relative > 0.02
    small = compare(baseline, changed(result, ddim=1 + 2 * relative)).cells
    assert not any("T = 8" in text for text in small)
    large = compare(baseline, changed(result, ddim=1 + 8 * relative)).cells
    assert any("T = 8" in text for text in large)


def test_another_seed_is_no_change(plane) -> None:
    """Of 30 cells with other random draws hardly one is 3 standard errors away."""
    _, out = plane
    other = run_curves(curves(settings=Settings(1, 64, 64)))
    comparison = compare(read_baseline(out / COMPLETE), other)
    assert comparison.compared == len(other.rows)
    assert len(comparison.cells) <= 1


@pytest.mark.parametrize("file", [COMPLETE, "results.jsonl"])
def test_a_worse_verdict(line, tmp_path: Path, file: str) -> None:
    """heun becomes a method of first order."""
    result, out = line
    base = read_baseline(out / file)
    rows = tuple(
        replace(row, error=row.error * row.steps / 8) if row.solver == "heun" else row
        for row in result.rows
    )
    estimates = tuple(
        replace(e, verdict="slower", order=1.0) if e.solver == "heun" else e
        for e in result.estimates
    )
    worse = compare(base, Study(rows, estimates, result.settings))
    assert len(worse.worse) == 1
    assert "consistent -> slower" in worse.worse[0]
    assert worse.worse[0] in worse.text()
    back = compare(replace(base, rows=rows, samples={}), result)
    assert (back.worse, len(back.verdicts)) == ((), 1)
    assert "slower -> consistent" in back.verdicts[0]


def test_a_verdict_at_its_edge_is_noise(line) -> None:
    """Without a change of its errors, steps or claim, it is listed and no failure."""
    result, out = line
    base = read_baseline(out / COMPLETE)
    first, *rest = result.estimates

    def compared(**changed: object):
        estimates = (replace(first, verdict="inconclusive", **changed), *rest)
        return compare(base, Study(result.rows, estimates, result.settings))

    for edge in ({}, {"order": float("nan"), "low": float("nan"), "high": float("nan")}):
        comparison = compared(**edge)
        assert comparison.worse == ()
        assert comparison.verdicts[0].endswith("(none of its errors changed beyond noise)")
    assert len(compared(order=first.order - 1, low=first.low - 1, high=first.high - 1).worse) == 1


def test_nothing_in_common_is_an_error(line, tmp_path: Path) -> None:
    other = study(mixture(), "euler", STEPS, "strong")
    with pytest.raises(ValueError, match="--compare: the baseline has no cell of this study"):
        compare(read_baseline(line[1] / "cells.jsonl"), other)
    with pytest.raises(TypeError, match="baseline, study: need what read_baseline and study"):
        compare(line[0], line[0])


def test_a_folder_is_no_baseline(line) -> None:
    with pytest.raises(ValueError, match=r"is a folder; of a run take .*cells\.jsonl"):
        read_baseline(line[1])


def test_verdicts_beside_the_rows(line, tmp_path: Path) -> None:
    """``orders.json`` of the report has the last word, also about the claim."""
    result, out = line
    path = tmp_path / "results.jsonl"
    path.write_text((out / "results.jsonl").read_text())
    orders = [order_dict(estimate) for estimate in result.estimates]
    (tmp_path / "orders.json").write_text(json.dumps(orders))
    assert compare(read_baseline(path), result).verdicts == ()
    orders[0]["verdict"], orders[1]["claim"] = "inconclusive", 3.0
    (tmp_path / "orders.json").write_text(json.dumps(orders))
    comparison = compare(read_baseline(path), result)
    assert comparison.worse == ()
    assert "inconclusive -> consistent" in comparison.verdicts[0]
    assert "claim 3, " in comparison.verdicts[1]
    for wrong in ("{}", "[1]", '[{"verdict": "good"}]', "nothing"):
        (tmp_path / "orders.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"is no orders\.json of a report"):
            read_baseline(path)


def test_cells_on_one_side_and_without_numbers(line) -> None:
    result, _ = line
    rows = list(result.rows)
    rows[0] = replace(rows[0], status="refused: no", error=float("nan"))
    rows[1] = replace(rows[1], steps=9)
    comparison = compare(Baseline(result.rows), replace(result, rows=tuple(rows)))
    assert comparison.compared == len(rows) - 1
    assert "ok -> refused: no" in comparison.cells[0]
    assert [text[-23:] for text in comparison.missing] == [
        "T = 9: not in the baseline"[-23:],
        "T = 16: in the baseline only"[-23:],
    ]
    refused = replace(result, rows=tuple(replace(r, status="refused: no") for r in rows))
    assert compare(Baseline(refused.rows), refused).cells == ()


# Files that are no baselines --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "line 10: torn"),
        (lambda text: text[:-9] + "\n", "line 10: no JSON"),
        (lambda text: "", "holds no rows"),
        (lambda text: "\n" + text, "line 1: no JSON"),
        (lambda text: text + '{"a": 1}\n', "line 11: it is no row of a study"),
        (lambda text: text + "[1]\n", "line 11: it is no row of a study"),
        (lambda text: text.replace('"nfe": 8,', '"nfe": true,', 1), "nfe has the wrong type"),
        (lambda text: text.replace('"nfe": 8,', '"nfe": 8.5,', 1), "nfe has the wrong type"),
        (lambda text: text.replace('"strong"', '"wrong"', 1), "its measure or steps are none"),
        (
            lambda text: text + text.splitlines()[0].replace('"error": ', '"error": 1') + "\n",
            "line 11: a second, different result of a cell",
        ),
    ],
)
def test_rows_that_are_refused(line, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(change((line[1] / "results.jsonl").read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        read_baseline(path)
    assert str(path) in str(caught.value)


def test_cells_that_are_refused(line, tmp_path: Path) -> None:
    """A baseline is never repaired."""
    text = (line[1] / COMPLETE).read_text()
    path = tmp_path / "old.jsonl"
    for changed_text, message in (
        (text.replace('"nfe":8,', '"nfe":9,', 1), "line 1: wrong checksum"),
        (text.replace("cells/2", "cells/1"), "its format is 'probflow-cells/1'"),
        (text[:-20], "torn"),
    ):
        path.write_text(changed_text)
        with pytest.raises(ValueError, match=message):
            read_baseline(path)
    path.write_text(text + text)
    assert len(read_baseline(path).rows) == 2 * len(STEPS)
    with pytest.raises(ValueError, match="is a folder"):
        read_baseline(tmp_path)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_changed_baseline_is_refused_or_a_baseline(line, tmp_path: Path, data) -> None:
    """Lines in any order and number, some cut: a row that is read is a row that was written."""
    result, out = line
    whole = (out / data.draw(st.sampled_from([COMPLETE, "results.jsonl"]))).read_text()
    lines = data.draw(st.lists(st.sampled_from(whole.splitlines(keepends=True)), max_size=12))
    text = "".join(lines)
    cut = data.draw(st.integers(0, len(text)) | st.none())
    path = tmp_path / "old.jsonl"
    path.write_text(text[:cut])
    try:
        baseline = read_baseline(path)
    except ValueError as refusal:
        message = str(refusal)
    else:
        message = ""
        written = [replace(r, eoc=0.0, in_window=False) for r in result.rows]
        assert all(replace(r, eoc=0.0, in_window=False) in written for r in baseline.rows)
        assert len(baseline.rows) == len({json.dumps(row_dict(r)) for r in baseline.rows})
    assert (message == "") == (text[:cut].endswith("\n"))


def test_a_removed_solver_and_a_lowered_claim_are_told(tmp_path: Path) -> None:
    """A confirmed order that is gone is worse; a lowered claim is listed with both claims."""
    steps, heun = (8, 16, 32, 64, 128), pf.get_solver("heun")
    study(mixture(), ["ddim", heun], steps, "strong", out=tmp_path / "old")
    baseline = read_baseline(tmp_path / "old" / "cells.jsonl")
    removed = compare(baseline, study(mixture(), "ddim", steps, "strong"))
    [worse] = removed.worse
    assert worse.startswith("heun, strong on mixture-1d")
    assert worse.endswith("-> not in the study")
    lowered = replace(heun, orders={**heun.orders, "strong": 1.5})
    found = compare(baseline, study(mixture(), ["ddim", lowered], steps, "strong"))
    assert any("claim 2," in line and "claim 1.5," in line for line in found.verdicts), found
