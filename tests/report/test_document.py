from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from probflow.report import document, files
from probflow.report.document import Shown, check_writable, footer_text, row_dict, write_report
from probflow.report.rates import rate_plot
from probflow.studies.rows import OrderEstimate, Row

ERRORS = (2.826e-1, 1.854e-1, 1.034e-1, 5.315e-2, 2.667e-2)


def rows(target: str = "mixture 1-D", measure: str = "tv", solver: str = "ddpm") -> list[Row]:
    made: list[Row] = []
    for i, error in enumerate(ERRORS):
        eoc = math.log2(ERRORS[i - 1] / error) if i else math.nan
        row = Row(target, solver, "lambda", 8 * 2**i, 8 * 2**i, 0.3 / 2**i, measure, error)
        made.append(dataclasses.replace(row, eoc=eoc, in_window=i > 0))
    made.append(
        Row(target, solver, "lambda", 256, 256, 0.01, measure, math.nan, status="failed: x")
    )
    return made


ROWS = [*rows(), *rows(measure="path-kl"), *rows(target="mixture/1 d")]
ORDER = OrderEstimate(
    *(1.0, 0.94, 1.07, 1.0, "consistent", "it fits", "T", (16, 128), (0.8, 0.9, 1.0)),
    target="mixture 1-D",
    solver="ddpm",
    grid="lambda",
    measure="tv",
)
NO_ORDER = OrderEstimate(
    *(math.nan, math.nan, math.nan, 1.0, "inconclusive", "too few points"),
    target="mixture 1-D",
    solver="ddpm",
    grid="lambda",
    measure="path-kl",
)


def report(out: Path, **changes: Any) -> list[Path]:
    given: dict[str, Any] = {
        "rows": ROWS,
        "orders": [ORDER, NO_ORDER],
        "provenance": {"torch": "2.9.0", "seed": 0, "nothing": math.nan, "host": {"cpu": "x_y"}},
        "figures": [("rates", "Rates of |e|", rate_plot(ROWS[:6], [ORDER], measure="tv"))],
        "notes": ["First note.", "Second\nnote."],
    }
    return write_report(out, **(given | changes))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    written = report(out)
    stems = ("summary", "mixture-1-d-tv", "mixture-1-d-path-kl", "mixture-1-d-tv-2")
    expected = {"report.md", "report.html", "results.jsonl", "orders.json", "provenance.json"}
    expected |= {f"figures/rates.{suffix}" for suffix in ("pdf", "svg", "png", "tex")}
    expected |= {f"tables/{s}.{suffix}" for s in stems for suffix in ("md", "tex", "csv", "json")}
    expected |= {f"tables/{s}-column.tex" for s in stems}
    assert set(contents(out)) == expected
    assert {path.relative_to(out).as_posix() for path in written} == expected
    assert os.listdir(tmp_path / "deep") == ["report"]  # nothing temporary is left


def test_a_figure_of_one_column_has_its_own_float(tmp_path: Path) -> None:
    figures = [
        Shown(
            "a", "A", *(rate_plot(ROWS[:6], measure="tv", columns=n, venue="icml") for n in (2, 1))
        )
    ]
    report(tmp_path / "r", figures=figures, venue="icml")
    for name, kind in (("a", "figure*"), ("a-column", "figure")):
        text = (tmp_path / "r" / "figures" / f"{name}.tex").read_text(encoding="utf-8")
        assert text.startswith(rf"\begin{{{kind}}}")
        assert text.count(r"\includegraphics") == 1
        assert rf"\includegraphics{{{name}.pdf}}" in text
        assert (tmp_path / "r" / "figures" / f"{name}.pdf").is_file()


def test_results_have_exactly_the_keys(tmp_path: Path) -> None:
    report(tmp_path / "r")
    lines = (tmp_path / "r" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ROWS)
    keys = [
        "target",
        "solver",
        "grid",
        "steps",
        "nfe",
        "h_max",
        "measure",
        "error",
        "se",
        "floor",
        "eoc",
        "in_window",
        "status",
        "note",
        "h_lambda",
    ]
    for line in lines:
        assert list(json.loads(line)) == keys
    assert json.loads(lines[0])["eoc"] is None
    assert json.loads(lines[5])["error"] is None
    assert json.loads(lines[1]) == row_dict(ROWS[1])
    assert json.loads(lines[1])["in_window"] is True


def test_orders_have_the_keys(tmp_path: Path) -> None:
    report(tmp_path / "r")
    first, second = json.loads((tmp_path / "r" / "orders.json").read_text(encoding="utf-8"))
    wanted = {"solver", "measure", "axis", "order", "low", "high", "claim", "verdict", "reason"}
    assert set(first) == wanted | {"target", "grid", "window", "eoc"}
    assert (first["window"], first["eoc"]) == ([16, 128], [0.8, 0.9, 1.0])
    assert second["order"] is None


def test_page(tmp_path: Path) -> None:
    out = tmp_path / "r"
    report(out, title="My study")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert text.startswith(
        "# My study\n\n## Summary\n\nMeasured orders: grid lambda.\n\n| solver |"
    )
    assert "1.00 [0.94, 1.07]" in text
    assert "too few points" in text
    assert r"![Rates of \|e\|](figures/rates.png)" in text
    assert "- First note.\n- Second\n  note." in text
    assert text.count("## Target: ") == 2
    assert "- seed: 0" in text
    assert r'- host: {"cpu": "x\_y"}' in text
    assert not re.search(r"\bnan\b", text.lower())
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (out / link).is_file(), link


def test_provenance_marks_the_folder(tmp_path: Path) -> None:
    report(tmp_path / "r")
    known = json.loads((tmp_path / "r" / "provenance.json").read_text(encoding="utf-8"))
    assert known["format"] == document.REPORT_FORMAT
    assert known["seed"] == 0
    assert known["nothing"] is None
    assert known["files"] == sorted(contents(tmp_path / "r"))


def test_same_input_same_bytes(tmp_path: Path) -> None:
    report(tmp_path / "a")
    report(tmp_path / "b")
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    report(tmp_path / "a")
    assert first == contents(tmp_path / "a")


def test_an_old_report_is_replaced_and_foreign_files_stay(tmp_path: Path) -> None:
    out = tmp_path / "r"
    report(out)
    (out / "tables" / "mine.txt").write_text("mine", encoding="utf-8")
    report(out, rows=ROWS[:6], orders=[], figures=[])
    left = contents(out)
    assert left["tables/mine.txt"] == b"mine"
    assert "figures/rates.png" not in left
    assert "tables/mixture-1-d-path-kl.md" not in left
    assert left["results.jsonl"].count(b"\n") == 6


def test_a_foreign_file_in_the_way_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r"
    report(out, figures=[])
    (out / "figures").mkdir(exist_ok=True)
    (out / "figures" / "rates.pdf").write_text("mine", encoding="utf-8")
    before = contents(out)
    with pytest.raises(ValueError, match=r"in the way .*figures/rates\.pdf"):
        report(out)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["notes.txt", "provenance.json"])
def test_a_foreign_folder_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "r"
    out.mkdir()
    (out / name).write_text('{"format": "something else"}', encoding="utf-8")
    for call in (check_writable, report):
        with pytest.raises(ValueError, match="no earlier report") as caught:
            call(out)
        assert str(out) in str(caught.value)
    assert list(contents(out)) == [name]
    assert os.listdir(tmp_path) == ["r"]


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    out = tmp_path / "r"
    out.mkdir()
    check_writable(out)
    assert os.listdir(tmp_path) == ["r"]
    report(out)
    check_writable(out)
    assert (out / "report.md").is_file()


def test_unwritable_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    monkeypatch.setattr(document, "save_figure", lambda *_: pytest.fail("work was done"))
    for out in (file, file / "report", file / "deep" / "report"):
        for call in (check_writable, report):
            with pytest.raises(OSError, match="cannot write a report to") as caught:
                call(out)
            assert str(out) in str(caught.value)
    assert file.read_text(encoding="utf-8") == "x"


def test_check_writable_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r"
    report(out)
    before = contents(out)

    def fail(*_: Any) -> str:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(document, "to_html", fail)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="disk on fire"):
            report(folder, rows=ROWS[:3])
    assert contents(out) == before
    assert os.listdir(tmp_path) == ["r"]


@pytest.mark.parametrize("end", range(1, 6))
def test_a_stop_while_files_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    """At every file: the folder stays a report's, and the next report leaves nothing behind."""

    def put(out: Path, *names: str) -> dict[str, bytes]:
        def write(folder: Path) -> None:
            for name in names:
                (folder / name).write_text(f"{name} of {len(names)}")

        files.replace_report(out, write, {})
        return contents(out)

    wide, narrow = put(tmp_path / "wide", *"abcd"), put(tmp_path / "narrow", *"ab")
    out, real, moves = tmp_path / "r", os.replace, [0]
    put(out, *"abcd")

    def stop(source: Any, target: Any) -> None:
        moves[0] += 1
        if moves[0] == end:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        if end < 5:
            with pytest.raises(KeyboardInterrupt):
                put(out, *"ab")
        else:
            assert put(out, *"ab") == narrow
    check_writable(out)
    assert put(out, *"abcd") == wide
    assert put(out, *"ab") == narrow


def test_what_a_killed_report_leaves_behind(tmp_path: Path) -> None:
    report(tmp_path / "r")
    out = tmp_path / "s"
    (out / ".report" / "report" / "tables").mkdir(parents=True)
    (out / ".report" / "study.lock").write_text('{"pid": 1, "host": "here"}')
    (out / ".report" / "report" / "old.md").write_text("half")
    with pytest.raises(ValueError, match="being written to by process 1 on here"):
        report(out)
    (out / ".report" / "study.lock").unlink()
    report(out)
    assert contents(out) == contents(tmp_path / "r")
    assert os.listdir(out) == os.listdir(tmp_path / "r")


def test_an_edited_list_of_files_cannot_lead_outside(tmp_path: Path) -> None:
    out, precious = tmp_path / "r", tmp_path / "precious"
    report(out)
    precious.write_text("x", encoding="utf-8")
    known = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    known["files"] += ["../precious", str(precious), 7]
    (out / "provenance.json").write_text(json.dumps(known), encoding="utf-8")
    report(out)
    assert precious.is_file()


@pytest.mark.parametrize("names", [["a/b"], ["../x"], ["a", "a"], ["a", "A"], [""]])
def test_bad_figure_names(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ValueError, match="figure names must differ"):
        report(tmp_path / "r", figures=[(name, "c", Figure()) for name in names])
    assert list(tmp_path.iterdir()) == []


def test_own_provenance_keys_are_reserved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the report's own"):
        report(tmp_path / "r", provenance={"files": []})


def test_empty_report(tmp_path: Path) -> None:
    write_report(tmp_path / "r", rows=[], orders=[], provenance={})
    assert (tmp_path / "r" / "results.jsonl").read_text(encoding="utf-8") == ""
    assert "No provenance was given." in (tmp_path / "r" / "report.md").read_text(encoding="utf-8")


def test_permissions_are_ordinary(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    report(tmp_path / "r")
    assert (tmp_path / "r").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_footer_text() -> None:
    text = footer_text({"torch": "2.9.0", "seed": 0, "host": {"a": 1}, "none": None}, ROWS)
    assert text == "torch 2.9.0, seed 0, target mixture 1-D / mixture/1 d, grid lambda"
