"""Wall times: what is timed, and the file that keeps them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import curves, text

import probflow as pf
from probflow.cli import main
from probflow.studies import timing
from probflow.studies.config import read_study
from probflow.studies.folder import load
from probflow.studies.lines import seal
from probflow.studies.rows import (
    COMPLETE,
    DESCRIPTION,
    LOCK,
    NEW_TIMINGS,
    PARTIAL,
    TIMINGS,
    Timing,
)
from probflow.studies.runner import StudyInterrupted, run_curves, study
from probflow.studies.timing import BATCH, Timed, read_timings, time_curves

HERE = Path(__file__).parent
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
STEPS = (2, 4)


def small(**changed):
    return curves(STEPS, **changed)


def silent(text: str) -> None:
    raise AssertionError(text)


def stored(folder: Path) -> tuple[Timing, ...]:
    return tuple(item.timing for item in read_timings(folder, silent).values())


# Measuring --------------------------------------------------------------------------------------


def test_one_timing_a_plan() -> None:
    """Each plan once, whatever the measures; medians between quartiles; NFE as in the rows."""
    result = run_curves(small(), timing=3)
    plain = run_curves(small())
    assert text(result) == text(plain)
    assert plain.timings == ()
    names = [(t.target, t.solver, t.grid, t.steps, t.nfe) for t in result.timings]
    rows = dict.fromkeys((r.target, r.solver, r.grid, r.steps, r.nfe) for r in result.rows)
    assert names == list(rows)
    for row in result.timings:
        assert 0 < row.low <= row.seconds <= row.high < 10
        assert (row.repeats, row.batch) == (3, BATCH)


def test_times_are_those_of_the_runs_and_plans_take_turns(monkeypatch) -> None:
    """A clock that only the model moves: seconds are NFE; the first run does not count."""
    order: list[int] = []
    now = [0.0]
    real = timing.run_plan

    def run(plan, model, x, noise):
        order.append(plan.nfe)
        late = 100.0 if order.count(plan.nfe) == 1 else 0.0
        now[0] += plan.nfe + late
        assert x.shape == (BATCH, 2)
        assert (noise is None) == (not plan.stochastic)
        return real(plan, model, x, noise=noise)

    monkeypatch.setattr(timing, "run_plan", run)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    [curve] = small(solvers=["ddpm"], targets=[pf.Gaussian([0.3, -0.2], [0.5, 0.2])])
    timed = [item.timing for item in time_curves([curve, curve], 3, lambda _: "target")]
    assert order == [2, 4] * 4
    assert [(t.seconds, t.low, t.high) for t in timed] == [(2.0,) * 3, (4.0,) * 3]
    order.clear()
    other = replace(curve, grid=pf.grids.explicit([0.9, 0.5, 0.1]), steps=(2,))
    again = replace(other, grid=pf.grids.explicit([0.9, 0.4, 0.1]))  # the same label and NFE
    assert len(time_curves([other, again, other], 1, lambda _: "target")) == 2
    assert order == [2, 2] * 2


def test_plans_that_do_not_exist_are_left_out() -> None:
    grid = pf.grids.explicit([0.9, 0.5, 0.0])  # heun divides by sigma = 0
    arguments = {"grid": grid, "solvers": ["heun", "ddpm"], "measures": ("path-kl",)}
    result = run_curves(curves((2,), **arguments), timing=1)
    assert {row.solver for row in result.rows if row.status.startswith("failed")} == {"heun"}
    assert {row.solver for row in result.timings} == {"ddpm"}


@pytest.mark.parametrize("value", [-1, 1.0, True, "3"])
def test_arguments(value: object) -> None:
    with pytest.raises((ValueError, TypeError), match="timing: need a whole number >= 0"):
        study(pf.Gaussian([0.0], 1.0), "ddim", (2,), timing=value)  # type: ignore[arg-type]


# In the folder ----------------------------------------------------------------------------------


def test_cells_do_not_know_of_times(tmp_path: Path) -> None:
    run_curves(small(), out=tmp_path / "plain")
    run_curves(small(), out=tmp_path / "timed", timing=1)
    assert sorted(p.name for p in (tmp_path / "timed").iterdir()) == [
        COMPLETE,
        DESCRIPTION,
        TIMINGS,
    ]
    plain, timed = ((tmp_path / name / COMPLETE).read_bytes() for name in ("plain", "timed"))
    assert plain == timed


def test_kept_replaced_and_removed(tmp_path: Path) -> None:
    first = run_curves(small(), out=tmp_path, timing=2).timings
    again = run_curves(small(), out=tmp_path, resume=True)
    assert again.timings == first
    fewer = run_curves(small(solvers=["ddpm"]), out=tmp_path, resume=True)
    assert fewer.timings == tuple(row for row in first if row.solver == "ddpm")
    other = small(process=pf.VP.cosine())  # the same names, other plans
    assert run_curves(other, out=tmp_path, resume=True).timings == ()
    new = run_curves(small(), out=tmp_path, resume=True, timing=1).timings
    assert {row.repeats for row in new} == {1}
    assert stored(tmp_path) == new
    assert run_curves(small(), out=tmp_path).timings == ()
    assert not (tmp_path / TIMINGS).exists()


def test_a_report_has_the_times_of_its_own_plans(tmp_path: Path) -> None:
    """Other options or another grid under the same name and NFE: no time of the first ones."""
    target = pf.GaussianMixture([1, 2], [-1.0, 0.8], stds=[0.5, 0.3])
    options = {"measure": "strong", "out": tmp_path, "resume": True}

    def run(r1: float, times: list[float], repeats: int = 0) -> tuple[Timing, ...]:
        solver, grid = pf.get_solver("dpm-solver-2", r1=r1), pf.grids.explicit(times)
        return study(target, solver, (2,), grid=grid, timing=repeats, **options).timings

    first = run(0.3, [0.9, 0.5, 0.1], repeats=1)
    assert load(tmp_path).study.timings == first != ()
    for r1, times in ((0.9, [0.9, 0.5, 0.1]), (0.3, [0.9, 0.4, 0.1])):
        assert run(r1, times) == load(tmp_path).study.timings == ()
    assert run(0.3, [0.9, 0.5, 0.1]) == load(tmp_path).study.timings == first


def test_times_serve_measures_that_came_later(tmp_path: Path) -> None:
    first = run_curves(small(), out=tmp_path, timing=1).timings
    later = run_curves(small(measures=("energy",)), out=tmp_path, resume=True)
    assert later.timings == load(tmp_path).study.timings == first


def test_times_of_the_format_without_cells(tmp_path: Path) -> None:
    """They do not say of which plan they are, so they are left out, with a message."""
    first = run_curves(small(), out=tmp_path, timing=1).timings
    items = read_timings(tmp_path, silent).values()
    old = (seal(timing.OLD_FORMAT, {"key": t.key, "timing": asdict(t.timing)}) for t in items)
    (tmp_path / TIMINGS).write_text("".join(old))
    run = load(tmp_path)
    assert run.study.timings == ()
    [note] = [note for note in run.notes if TIMINGS in note]
    assert f"{len(first)} times of an earlier version" in note
    notes: list[str] = []
    again = run_curves(small(), out=tmp_path, resume=True, notify=notes.append)
    assert (again.timings, notes) == ((), [note])
    run_curves(small(), out=tmp_path, resume=True, timing=1, notify=silent)
    assert len(load(tmp_path).study.timings) == len(first)


def test_stopped_while_timing(tmp_path: Path, monkeypatch) -> None:
    """Ctrl-C: every cell is there, and the study says so."""
    run_curves(small(solvers=["ddim"]), out=tmp_path, timing=1)

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(timing, "run_plan", stop)
    with pytest.raises(StudyInterrupted) as caught:
        run_curves(small(), out=tmp_path, timing=1)
    monkeypatch.undo()
    assert text(caught.value.study) == text(run_curves(small()))
    # No times of the old study.
    assert sorted(path.name for path in tmp_path.iterdir()) == [COMPLETE, DESCRIPTION]


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from small import curves
from probflow.studies import timing
from probflow.studies.runner import run_curves
real, written = timing.seal, []
def seal(kind, content):
    if {after} == len(written):
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(content)
    return real(kind, content)
timing.seal = seal
run_curves(curves((2, 4)), out={out!r}, resume=True, timing=1)
"""


@pytest.mark.parametrize("after", [0, 5])
def test_killed_while_times_are_written(tmp_path: Path, after: int) -> None:
    """The old file stays whole; the next study takes new times."""
    old = run_curves(small(solvers=["ddim"]), out=tmp_path, timing=1).timings
    code = KILLED.format(here=str(HERE), out=str(tmp_path), after=after)
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert stored(tmp_path) == old
    notes: list[str] = []
    result = run_curves(small(), out=tmp_path, resume=True, timing=2, notify=notes.append)
    assert ["no longer there" in note for note in notes] == [True]  # the lock, nothing else
    assert text(result) == text(run_curves(small()))
    assert stored(tmp_path) == result.timings
    assert sorted(path.name for path in tmp_path.iterdir()) == [COMPLETE, DESCRIPTION, TIMINGS]


def test_full_disk(tmp_path: Path, monkeypatch) -> None:
    old = run_curves(small(), out=tmp_path, timing=1).timings

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: .*{TIMINGS}"):
        timing.write_timings(tmp_path, [])
    monkeypatch.undo()
    assert not (tmp_path / NEW_TIMINGS).exists()
    assert stored(tmp_path) == old


# The file ---------------------------------------------------------------------------------------

timings = st.builds(
    Timing,
    **dict.fromkeys(("target", "solver", "grid"), st.text(max_size=8)),
    **dict.fromkeys(("steps", "nfe", "repeats", "batch"), st.integers(1, 10**6)),
    **dict.fromkeys(("seconds", "low", "high"), st.floats(0, 1e6)),
)


def timed(rows: list[Timing]) -> dict[str, Timed]:
    return {f"key{n}": Timed(f"key{n}", (f"cell{n}",), row) for n, row in enumerate(rows)}


def lines(rows: list[Timing]) -> bytes:
    return "".join(seal(timing.FORMAT, asdict(item)) for item in timed(rows).values()).encode()


@quick
@given(st.lists(timings, max_size=3))
def test_times_come_back_with_every_bit(tmp_path: Path, rows: list[Timing]) -> None:
    (tmp_path / TIMINGS).write_bytes(lines(rows))
    assert read_timings(tmp_path, silent) == timed(rows)


@quick
@given(st.data())
def test_damaged_files_are_never_misread(tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere, overwritten by any bytes: what is read was written, or there is a message."""
    rows = [Timing("t", "s", "g", n, n, 0.1 * n, 0.05 * n, 0.2 * n, 5, 128) for n in (1, 2, 3)]
    whole = lines(rows)
    place = data.draw(st.integers(0, len(whole) - 1))
    junk = data.draw(st.binary(max_size=20))
    changed = whole[:place] + junk + (whole[place + len(junk) :] if junk else b"")
    (tmp_path / TIMINGS).write_bytes(changed)
    notes: list[str] = []
    try:
        found = read_timings(tmp_path, notes.append)
    except ValueError as refusal:
        if TIMINGS not in str(refusal):
            raise
        return
    assert found.items() <= timed(rows).items()
    whole_lines = whole[: whole.rfind(b"\n", 0, place) + 1].count(b"\n")
    assert len(found) >= whole_lines or notes
    if len(found) < changed.count(b"\n"):
        assert "left out" in notes[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"seconds": 1}', "line 1: it is no timing of a study"),
        ("[1]", "line 1: it is no timing of a study"),
        ('{"format":"probflow-timings/3"}', "its format is 'probflow-timings/3', this version"),
        ('{"format":"probflow-cells/2"}', "its format is 'probflow-cells/2', this version"),
    ],
)
def test_files_of_others(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / TIMINGS).write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_timings(tmp_path, silent)
    with pytest.raises(ValueError, match=message):
        run_curves(small(), out=tmp_path, resume=True)
    assert (tmp_path / TIMINGS).read_text() == line + "\n"
    assert not (tmp_path / LOCK).exists()
    assert not (tmp_path / PARTIAL).exists()


# Study files and the command line ---------------------------------------------------------------

FILE = """
solvers = ["ddim"]
measures = ["tv"]
timing = {timing}
[target]
kind = "gaussian"
mean = [0.3]
covariance = 0.5
[grid]
kind = "log-snr"
start = 3.0
end = 0.01
steps = [2, 4]
"""


def test_study_file_and_option(tmp_path: Path, capsys) -> None:
    path, out = tmp_path / "study.toml", tmp_path / "out"
    path.write_text(FILE.format(timing=2))
    assert read_study(path).timing == 2
    command = ["rates", str(path), "--out", str(out), "--jobs", "1", "--no-progress"]
    assert main(command) == 0
    assert [row.repeats for row in stored(out)] == [2, 2]
    assert main([*command, "--timing", "1"]) == 0
    assert [row.repeats for row in stored(out)] == [1, 1]
    assert main([*command, "--timing", "0"]) == 0
    assert not (out / TIMINGS).exists()
    assert main([*command, "--timing", "-1"]) == 2
    assert "timing: need a whole number >= 0, got -1" in capsys.readouterr().err
    path.write_text(FILE.format(timing=-1))
    with pytest.raises(ValueError, match="timing: need a whole number >= 0, got -1"):
        read_study(path)
