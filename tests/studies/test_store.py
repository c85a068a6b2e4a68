"""Files of cells: what is read is what was written, or is refused or repaired with a message."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probflow.studies.cells import Cell
from probflow.studies.lines import seal
from probflow.studies.reading import cell_text
from probflow.studies.rows import COMPLETE, LOCK, MEASURES, NEW, PARTIAL, Row
from probflow.studies.store import FORMAT, Damaged, Store, cell_line, read_cell

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
floats = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(max_size=8)
cells = st.builds(
    Cell,
    st.builds(
        Row,
        target=texts,
        solver=texts,
        grid=texts,
        steps=st.integers(1, 10**6),
        nfe=st.integers(0, 10**6),
        h_max=floats,
        measure=st.sampled_from(sorted(MEASURES)),
        error=floats,
        se=floats,
        floor=floats,
        status=st.one_of(st.just("ok"), texts),
        note=texts,
    ),
    st.none() | st.lists(floats, min_size=2, max_size=4).map(np.array),
    st.floats(0.25, 4),
    st.text("0123456789abcdef", min_size=8, max_size=8),
)


def cell(number: int, error: float = 0.5) -> Cell:
    row = Row("target", "ddim", "grid", number, number, 0.1, "tv", error)
    return Cell(row, np.array([0.1, 1 / 3]), 0.5, f"key{number}")


def fill(folder: Path, *numbers: int, complete: bool = False) -> bytes:
    with Store(folder, resume=True) as store:
        for number in numbers:
            store.append(cell(number))
        if complete:
            store.complete(f"key{n}" for n in numbers)
    return (folder / (COMPLETE if complete else PARTIAL)).read_bytes()


def reopen(folder: Path) -> tuple[list[str], list[str]]:
    """Keys that a resumed study finds, each checked, and the messages."""
    notes: list[str] = []
    with Store(folder, resume=True, notify=notes.append) as store:
        found = [f"key{n}" for n in range(20) if store.get(f"key{n}") is not None]
        for key in found:
            stored = store.get(key)
            assert stored is not None
            assert cell_text(stored) == cell_text(cell(int(key[3:])))
            assert (stored.key, stored.power, stored.lasting) == (key, 0.5, True)
        assert len(store) == len(found)
    return found, notes


@quick
@given(cells)
def test_a_cell_comes_back_with_every_bit(given_cell: Cell) -> None:
    line = cell_line(given_cell)
    assert line.count("\n") == 1
    assert "NaN" not in json.dumps(json.loads(line)["row"]["error"])
    back = read_cell(line)
    assert cell_text(back) == cell_text(given_cell)
    assert (back.key, back.power) == (given_cell.key, given_cell.power)
    assert cell_line(back) == line


@quick
@given(cells, st.data())
def test_a_changed_line_is_never_read(given_cell: Cell, data: st.DataObject) -> None:
    """Whatever one byte is changed to, or where it is cut, the line is the same cell or none."""
    line = cell_line(given_cell).encode()
    place = data.draw(st.integers(0, len(line) - 2))
    byte = data.draw(st.integers(0, 255))
    cut = data.draw(st.booleans())
    changed = line[:place] if cut else line[:place] + bytes([byte]) + line[place + 1 :]
    try:
        back = read_cell(changed.decode("utf-8", "replace"))
    except ValueError:
        return
    assert cell_line(back).encode() == line


@quick
@given(st.text(max_size=60) | st.builds(json.dumps, st.dictionaries(texts, texts | floats)))
def test_foreign_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError):
        read_cell(line)


def test_a_killed_write_costs_one_cell(tmp_path: Path) -> None:
    """A file cut at any byte: all whole lines are used, a message tells of the torn one."""
    whole = fill(tmp_path, 1, 2, 3)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole) + 1, 7):
        (tmp_path / PARTIAL).write_bytes(whole[:cut])
        found, notes = reopen(tmp_path)
        assert found == [f"key{n}" for n in (1, 2, 3)[: sum(end <= cut for end in ends)]]
        torn = cut > 0 and cut not in ends
        assert len(notes) == torn
        assert not torn or "damaged in line" in notes[0]
        fill(tmp_path, 1, 2, 3)  # what is appended now does not run into the torn line
        assert reopen(tmp_path) == (["key1", "key2", "key3"], [])
        assert (tmp_path / PARTIAL).read_bytes() == whole
        (tmp_path / PARTIAL).unlink()


@quick
@given(place=st.integers(0, 10**4), junk=st.binary(min_size=1, max_size=40))
def test_overwritten_bytes_are_never_misread(tmp_path: Path, place: int, junk: bytes) -> None:
    folder = tmp_path / "cells"
    folder.mkdir(exist_ok=True)
    for name in (PARTIAL, COMPLETE):
        (folder / name).unlink(missing_ok=True)
    whole = fill(folder, 1, 2, 3)
    place %= len(whole)
    changed = whole[:place] + junk + whole[place + len(junk) :]
    (folder / PARTIAL).write_bytes(changed)
    refusal = None
    try:
        found, notes = reopen(folder)  # checks every value that it finds
    except ValueError as problem:
        refusal = str(problem)
    assert PARTIAL in (refusal or PARTIAL)
    assert refusal or len(found) == 3 or notes


def test_repeated_lines_are_used_once(tmp_path: Path) -> None:
    whole = fill(tmp_path, 1, 2)
    (tmp_path / PARTIAL).write_bytes(whole + whole)
    found, notes = reopen(tmp_path)
    assert found == ["key1", "key2"]
    assert "2 repeated lines" in notes[0]


def test_line_ends_of_an_editor(tmp_path: Path) -> None:
    """They change nothing, and are gone when the study is complete."""
    whole = fill(tmp_path, 1, 2)
    (tmp_path / PARTIAL).write_bytes(b"  " + whole.replace(b"\n", b"\r\n"))
    assert reopen(tmp_path) == (["key1", "key2"], [])
    assert fill(tmp_path, 1, 2, complete=True) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": None}, "it is no row of a study"),
        ({"row": {"target": "t"}}, "it is no row of a study"),
        ({"row": {"steps": "8"}}, "steps has the wrong type, got '8'"),
        ({"row": {"nfe": True}}, "nfe has the wrong type, got True"),
        ({"row": {"error": [1]}}, r"error has the wrong type, got \[1\]"),
        ({"row": {"measure": "loss"}}, "its measure or steps are none of a study"),
        ({"samples": ["many"]}, "its samples are no numbers"),
        ({"samples": 3}, "it is no cell of a study"),
        ({"key": None}, "it is no cell of a study"),
    ],
)
def test_sound_lines_with_other_content(tmp_path: Path, change, message: str) -> None:
    """A right checksum does not make a cell."""
    content = json.loads(cell_line(cell(1)))
    del content["sum"]
    kind = content.pop("format")
    row = change.get("row", ...)
    if isinstance(row, dict) and "target" not in row:
        change = {"row": content["row"] | row}
    (tmp_path / PARTIAL).write_text(seal(kind, content | change))
    with pytest.raises(ValueError, match=f"line 1: {message}"):
        reopen(tmp_path)


def test_two_results_in_two_files_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 1, complete=True)
    (tmp_path / PARTIAL).write_text(cell_line(cell(1, error=0.25)))
    with pytest.raises(ValueError, match=r"line 1: a second, different result of the cell key1"):
        reopen(tmp_path)


def test_two_results_of_one_cell_are_refused(tmp_path: Path) -> None:
    whole = fill(tmp_path, 1, 2)
    (tmp_path / PARTIAL).write_bytes(whole + cell_line(cell(1, error=0.25)).encode())
    with pytest.raises(ValueError, match=r"line 3: a second, different result of the cell key1"):
        reopen(tmp_path)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "holds no cell of a study"),
        (b"\0" * 50, "holds no cell of a study"),
        (b'{"target": "mixture", "error": 0.5}\n', "line 1: it is no cell of a study"),
        (b"[1, 2]\n", "line 1: it is no cell of a study"),
        (b'{"format":"probflow-cells/1"}\n', "its format is 'probflow-cells/1', this version"),
    ],
)
def test_files_of_others_are_refused_and_left_alone(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / PARTIAL).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        reopen(tmp_path)
    assert (tmp_path / PARTIAL).read_bytes() == content


def test_rows_of_another_version_beside_ours(tmp_path: Path) -> None:
    whole = fill(tmp_path, 1)
    other = whole.replace(b"probflow-cells/2", b"probflow-cells/9")
    (tmp_path / PARTIAL).write_bytes(whole + other)
    with pytest.raises(ValueError, match="line 2: its format is 'probflow-cells/9'"):
        reopen(tmp_path)


def test_an_unfinished_study_is_not_overwritten(tmp_path: Path) -> None:
    whole = fill(tmp_path, 1)
    with pytest.raises(ValueError, match=r"holds an unfinished study; resume it .*, or remove"):
        Store(tmp_path, resume=False)
    assert (tmp_path / PARTIAL).read_bytes() == whole


def test_complete_files_are_in_order_and_replaced_at_the_end(tmp_path: Path) -> None:
    fill(tmp_path, 3, 1)
    with Store(tmp_path, resume=True) as store:
        store.append(cell(2))
        store.append(cell(2))  # not written twice
        store.complete(["key1", "key2"])  # key3 belongs to another study, and stays
    lines = (tmp_path / COMPLETE).read_text().splitlines()
    assert [read_cell(line).key for line in lines] == ["key1", "key2", "key3"]
    assert [path.name for path in tmp_path.iterdir()] == [COMPLETE]
    before = (tmp_path / COMPLETE).read_bytes()
    with Store(tmp_path, resume=False) as store:
        assert len(store) == 0
        store.append(cell(4))
        assert (tmp_path / COMPLETE).read_bytes() == before
        store.complete(["key4"])
    assert reopen(tmp_path)[0] == ["key4"]


def test_a_stop_while_the_study_is_completed(tmp_path: Path, monkeypatch) -> None:
    """Neither the new file in part nor both files at once lead astray."""
    fill(tmp_path, 1, 2)
    (tmp_path / NEW).write_bytes(b"half of a li")
    (tmp_path / COMPLETE).write_bytes((tmp_path / PARTIAL).read_bytes())
    assert reopen(tmp_path) == (["key1", "key2"], [])
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    named = rf"No space: .*{COMPLETE}"
    with Store(tmp_path, resume=True) as store, pytest.raises(OSError, match=named):
        store.complete(["key1", "key2"])
    assert not (tmp_path / NEW).exists()
    assert reopen(tmp_path)[0] == ["key1", "key2"]


@pytest.mark.parametrize("whole_bytes", [0, 10, 150])
def test_full_disk(tmp_path: Path, monkeypatch, whole_bytes: int) -> None:
    """What fits of a line is taken back; the message says what is kept."""
    before = fill(tmp_path, 1, 2)
    real, left = os.write, [whole_bytes]

    def write(file: int, data: bytes) -> int:
        part = data[: left[0]]
        left[0] -= len(part)
        if not part:
            raise OSError(28, "No space left on device")
        return real(file, part)

    with Store(tmp_path, resume=True) as store:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left on device; 2 finished cells are kept"):
            store.append(cell(3))
        monkeypatch.undo()
        assert (tmp_path / PARTIAL).read_bytes() == before
        store.append(cell(3))  # there is space again
    assert reopen(tmp_path) == (["key1", "key2", "key3"], [])


def test_numbers_that_json_has_no_sign_for() -> None:
    line = cell_line(Cell(Row("t", "s", "g", 1, 1, math.nan, "tv", math.inf), None, 1.0, "k"))
    assert read_cell(line).row.error == math.inf
    assert math.isnan(read_cell(line).row.h_max)
    with pytest.raises(Damaged):
        read_cell(line.replace('"inf"', "Infinity"))


def test_lines_of_rows_without_later_fields() -> None:
    """Those of earlier versions have no h_lambda: their default stands for it."""
    known = cell(1)
    content = json.loads(cell_line(known))
    del content["row"]["h_lambda"], content["sum"]
    body = {key: value for key, value in content.items() if key != "format"}
    assert read_cell(seal(FORMAT, body)).row == known.row
    del body["row"]["nfe"]
    with pytest.raises(ValueError, match="it is no row of a study"):
        read_cell(seal(FORMAT, body))
