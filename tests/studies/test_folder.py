"""A run's folder, read back: the study itself, partial or finished, or a message; never another."""

from __future__ import annotations

import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probflow as pf
from probflow.studies import pictures
from probflow.studies.folder import load, provenance, write_description
from probflow.studies.measure import Settings
from probflow.studies.rows import COMPLETE, DESCRIPTION, PARTIAL, PICTURES, TIMINGS
from probflow.studies.runner import Study, StudyInterrupted, make_curves, run_curves

GRID = pf.grids.log_snr(3.0, -math.log(0.99), unit="neg_log_ab")
PAIR = pf.Gaussian([0.3, -0.2], [[0.5, 0.1], [0.1, 0.3]])
STEPS = (4, 8, 16, 32, 64)


def run(out: Path, solvers: object = ("ddim", "heun"), **changes: object) -> Study:
    return pf.study(PAIR, solvers, STEPS, "strong", grid=GRID, out=out, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Study, Path]:
    out = tmp_path_factory.mktemp("folder") / "run"
    return run(out, samples=16, seed=3, timing=1), out


def copy(whole: tuple[Study, Path], to: Path) -> Path:
    shutil.copytree(whole[1], to / "run")
    return to / "run"


def test_a_finished_study_comes_back(whole) -> None:
    result, out = whole
    found = load(out)
    assert repr(found.study) == repr(result)
    assert (found.notes, found.complete) == ((), True)
    about = found.description.provenance
    assert (about["seed"], about["probflow"]) == (3, pf.__version__)
    assert about["samples"] == {"gaussian-2d, strong": 16}


def test_tables_say_what_the_study_was_measured_with(whole, tmp_path: Path) -> None:
    """Also where it was another version, or nobody knows."""
    result, _ = whole
    assert f"process vp-linear; seed 3; 16 samples; float64 on cpu; probflow {pf.__version__}" in (
        result.table()
    )
    out = copy(whole, tmp_path)
    found = load(out)
    assert found.study.table("latex") == result.table("latex")
    about = {**found.description.provenance, "probflow": "0.0.9", "process": "older"}
    write_description(out, replace(found.description, provenance=about))
    old = load(out).study.table("latex")
    assert "Process older; seed 3; 16 samples; float64 on cpu; probflow 0.0.9" in old
    (out / DESCRIPTION).unlink()
    unknown = load(out).study.table("latex")
    assert "grid log-snr" in unknown
    assert not any(word in unknown for word in ("seed", "Seed", "process", "Process", "probflow"))


def test_the_process_is_that_of_the_curves() -> None:
    def name(**changed: object) -> str:
        curves = make_curves(
            **{  # type: ignore[arg-type]
                "targets": [PAIR],
                "solvers": ["ddim"],
                "steps": (64, 128),
                "measures": ["strong"],
                "grid": GRID,
                "process": None,
                "settings": Settings(),
                **changed,
            }
        )
        return provenance(curves)["process"]

    assert name() == "vp-linear"
    assert name(process=pf.FlowMatching()) == "flow-matching"
    assert name(grid=pf.grids.paper()) == "vp-paper, T from the steps"


def test_solvers_that_are_not_registered_keep_their_claims(tmp_path: Path) -> None:
    own = replace(pf.get_solver("heun"), name="my-heun", orders={"strong": 1.5})
    result = run(tmp_path, own)
    [estimate] = load(tmp_path).study.estimates
    assert estimate == result.estimates[0]
    assert estimate.claim == 1.5


class Stop(Exception):
    pass


def stopped(out: Path, after: int, monkeypatch, **changes: object) -> None:
    """A study that ends when so many cells are written."""
    from probflow.studies import runner

    append, count = runner.Store.append, [0]

    def full(self, cell):
        if count[0] == after:
            raise Stop
        count[0] += 1
        append(self, cell)

    with monkeypatch.context() as patch:
        patch.setattr(runner.Store, "append", full)
        with pytest.raises(Stop):
            run(out, **changes)


def test_an_unfinished_study_has_what_was_measured(whole, tmp_path: Path, monkeypatch) -> None:
    stopped(tmp_path, 7, monkeypatch, samples=16, seed=3)
    with open(tmp_path / PARTIAL, "a") as file:
        file.write("half a li")
    found = load(tmp_path)
    assert not found.complete
    assert found.notes == ("The study is not complete: 3 of 10 cells are missing.",)
    known = {(row.solver, row.steps): row.error for row in whole[0].rows}
    assert len(found.study.rows) == 7
    assert all(known[row.solver, row.steps] == row.error for row in found.study.rows)
    assert [estimate.solver for estimate in found.study.estimates] == ["ddim", "heun"]
    assert found.study.estimates[0] == whole[0].estimates[0]


def test_cells_of_other_settings_are_never_taken(whole, tmp_path: Path, monkeypatch) -> None:
    """A folder in which a study of another seed was resumed, and stopped."""
    out = copy(whole, tmp_path)
    stopped(out, 7, monkeypatch, samples=16, seed=4, resume=True)
    other = run(tmp_path / "other", samples=16, seed=4)
    found = load(out)
    wanted = {(row.solver, row.steps): row.error for row in other.rows}
    assert len(found.study.rows) == 7
    assert all(wanted[row.solver, row.steps] == row.error for row in found.study.rows)
    assert any("10 cells of other studies" in note for note in found.notes)
    # The same without a change: every cell is the study's own.
    again = copy(whole, tmp_path / "again")
    more = ("ddim", "heun", "rk4")
    stopped(again, 0, monkeypatch, solvers=more, samples=16, seed=3, resume=True)
    assert load(again).study.rows == whole[0].rows
    # Finished, the file begins with the new cells.
    run(out, samples=16, seed=4, resume=True)
    assert load(out).study.rows == other.rows


def test_a_study_that_never_began_is_no_other(whole, tmp_path: Path, monkeypatch) -> None:
    """Killed before its first cell, where a finished study of another seed lies."""
    out = copy(whole, tmp_path)
    stopped(out, 0, monkeypatch, samples=16, seed=4)
    assert not (out / PARTIAL).exists()
    with pytest.raises(ValueError, match="holds no cell of its study yet"):
        load(out)
    (out / PARTIAL).touch()  # as kill -9 leaves it
    with pytest.raises(ValueError, match="holds no cell of its study yet"):
        load(out)
    run(out, samples=16, seed=3, resume=True)
    assert load(out).study.rows == whole[0].rows


@pytest.mark.parametrize("told", [False, True])
def test_a_stop_at_the_very_end(whole, tmp_path: Path, monkeypatch, told: bool) -> None:
    """All cells are in both files, before and after study.json says so."""
    from probflow.studies import runner

    def write(folder: Path, description) -> None:
        if told or not description.complete:
            write_description(folder, description)
        if description.complete:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_description", write)
        with pytest.raises(Stop):
            run(tmp_path, samples=16, seed=3)
    assert (tmp_path / PARTIAL).exists()
    found = load(tmp_path)
    assert (found.study.rows, found.complete, found.notes) == (whole[0].rows, True, ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, samples=16, seed=3, resume=True)
    assert (tmp_path / COMPLETE).read_bytes() == (whole[1] / COMPLETE).read_bytes()


def test_damaged_lines_of_an_unfinished_study(whole, tmp_path: Path, monkeypatch) -> None:
    """A resumed study measures them again; a report says that they are left out."""
    stopped(tmp_path, 7, monkeypatch, samples=16, seed=3)
    lines = (tmp_path / PARTIAL).read_bytes().split(b"\n")
    lines[2] = b"\0" * 40
    (tmp_path / PARTIAL).write_bytes(b"\n".join(lines))
    found = load(tmp_path)
    assert len(found.study.rows) == 6
    assert found.notes[0] == f"Damaged lines of {PARTIAL}, left out: 3."


def test_an_interrupted_study_can_be_read(tmp_path: Path, monkeypatch) -> None:
    from probflow.studies import runner
    from probflow.studies.runner import make_curves

    append = runner.Store.append

    def interrupt(self, cell):
        append(self, cell)
        if len(self) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.Store, "append", interrupt)
    curves = make_curves(
        targets=[PAIR],
        solvers=["ddim", "heun"],
        steps=STEPS,
        measures=["strong"],
        grid=GRID,
        process=None,
        settings=pf.studies.measure.Settings(samples=16),
    )
    with pytest.raises(StudyInterrupted) as caught:
        run_curves(curves, out=tmp_path, title="Mine")
    assert len(load(tmp_path).study.rows) == 6 > len(caught.value.study.rows) == 5
    assert load(tmp_path).description.title == "Mine"


def test_folders_without_a_description(whole, tmp_path: Path) -> None:
    """Claims are those of the registry; a second result of a cell is an error then."""
    out = copy(whole, tmp_path)
    (out / DESCRIPTION).unlink()
    found = load(out)
    assert repr(found.study.estimates) == repr(whole[0].estimates)
    assert found.description.provenance == {}
    run(tmp_path / "other", samples=16, seed=4)
    with open(out / COMPLETE, "ab") as file:
        file.write((tmp_path / "other" / COMPLETE).read_bytes())
    with pytest.raises(ValueError, match="line 11: a second, different result of a cell"):
        load(out)


def test_results_alone(whole, tmp_path: Path) -> None:
    from probflow.report import write_report

    result, _ = whole
    write_report(tmp_path, rows=result.rows, orders=result.estimates, provenance={"seed": 3})
    found = load(tmp_path)
    assert repr(found.study.rows) == repr(result.rows)
    assert repr(found.study.estimates) == repr(result.estimates)
    assert found.description.provenance == {"seed": 3}
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"run folder: .*results\.jsonl holds no rows"):
        load(tmp_path)


def test_what_is_no_run(whole, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run folder: there is no folder .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no cells of a study"):
        load(tmp_path)
    out = copy(whole, tmp_path)
    (out / DESCRIPTION).write_text("{}")
    with pytest.raises(ValueError, match=r"study\.json is damaged"):
        load(out)
    other = load(whole[1]).description
    curves = [{**curve, "target": "another"} for curve in other.curves]
    write_description(out, replace(other, curves=curves))
    with pytest.raises(ValueError, match="holds no cell of its study yet"):
        load(out)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_changed_folder_is_refused_or_says_the_truth(whole, tmp_path: Path, data) -> None:
    """Cut or overwritten anywhere: a row that is read was measured, or there is a message."""
    result, out = whole
    name = data.draw(st.sampled_from([COMPLETE, DESCRIPTION, TIMINGS]))
    content = (out / name).read_bytes()
    place = data.draw(st.integers(0, len(content)))
    junk = data.draw(st.binary(max_size=12))
    changed = content[:place] + junk + (content[place + len(junk) :] if junk else b"")
    folder = tmp_path / "changed"
    shutil.copytree(out, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(changed)
    try:
        found = load(folder)
    except ValueError as refusal:
        if not str(refusal).startswith("run folder: ") or str(folder) not in str(refusal):
            raise
        return
    measured = {(row.solver, row.steps, row.error) for row in result.rows}
    assert {(row.solver, row.steps, row.error) for row in found.study.rows} <= measured
    assert set(found.study.timings) <= set(result.timings)


def test_pictures_belong_to_the_run(whole, tmp_path: Path) -> None:
    out = copy(whole, tmp_path)
    made = pictures.record(out, PAIR, ["ddim", "ddpm"], 4, grid=GRID, samples=16)
    assert [type(p) for p in load(out).pictures] == [type(p) for p in made]
    text = (out / PICTURES).read_text()
    (out / PICTURES).write_text(text.replace("0.", "1.", 1))
    with pytest.raises(ValueError, match=r"run folder: .*pictures\.jsonl, line 1: wrong checksum"):
        load(out)
    (out / PICTURES).write_text(text)
    run(out, samples=16, seed=3, resume=True)
    assert len(load(out).pictures) == len(made)
    run(out, samples=16, seed=4, resume=True)
    assert load(out).pictures == ()  # captions would give them another seed
    (out / PICTURES).write_text(text)
    run(out, samples=16)
    assert load(out).pictures == ()  # the study was replaced
