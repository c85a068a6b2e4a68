"""Studies that are killed, run out of disk, meet another writer or change, and are resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small import STEPS, curves, text

import probflow as pf
from probflow.plan import Linear, StepBuilder
from probflow.solvers import Solver
from probflow.studies import executors, lock, work
from probflow.studies.cells import Task, cell_keys, measure_cells
from probflow.studies.fingerprint import digest
from probflow.studies.measure import Settings
from probflow.studies.rows import COMPLETE, DESCRIPTION, LOCK, PARTIAL
from probflow.studies.runner import StudyInterrupted, default_grid, run_curves, study

HERE = Path(__file__).parent

SLOW = """
import sys, time
sys.path.insert(0, {here!r})
from small import curves
from probflow.studies import runner, work
real = work.measure_cells
def slow(task, reference=None):
    time.sleep(0.2)
    return real(task, reference)
work.measure_cells = slow
runner.run_curves(curves(), out={out!r}, resume=True)
"""


@pytest.fixture(scope="module")
def whole() -> list[str]:
    return text(run_curves(curves()))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, tuple[str, ...]]]:
    """What is measured, not taken from the folder."""
    seen: list[tuple[str, int, tuple[str, ...]]] = []

    def count(task: Task, reference=None):
        seen.append((task.curve.solver.name, task.steps, task.measures))
        return measure_cells(task, reference)

    monkeypatch.setattr(work, "measure_cells", count)
    return seen


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# Kills ------------------------------------------------------------------------------------------


def test_killed_and_resumed_is_the_same_as_uninterrupted(
    tmp_path: Path, whole: list[str], counted: list
) -> None:
    """SIGKILL in the middle; while it lives nobody else gets the folder, afterwards anybody."""
    partial = tmp_path / PARTIAL
    process = start(SLOW.format(here=str(HERE), out=str(tmp_path)))
    try:
        wait_for(lambda: lines(partial) >= 8)
        with pytest.raises(ValueError, match=f"written to by process {process.pid} on"):
            run_curves(curves(), out=tmp_path, resume=True)
    finally:
        process.kill()
        process.wait()
    kept = lines(partial)
    assert 8 <= kept < len(STEPS) * 8
    with open(partial, "ab") as file:
        file.write(partial.read_bytes()[:100])  # a torn line, too
    notes: list[str] = []
    result = run_curves(curves(), out=tmp_path, resume=True, notify=notes.append)
    assert text(result) == whole
    assert sum(len(measures) for _, _, measures in counted) == len(whole) - 8 - kept
    assert len(notes) == 2
    assert f"process {process.pid} is no longer there" in notes[0]
    assert "damaged in line" in notes[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [COMPLETE, DESCRIPTION]


@pytest.mark.slow  # workers import torch
def test_killed_with_workers(tmp_path: Path) -> None:
    """The command line with two processes, killed twice; the workers end, too."""
    study_file = tmp_path / "study.toml"
    study_file.write_text(
        """
        solvers = ["ddim", "heun"]
        measures = ["tv", "strong"]
        [target]
        kind = "gaussian-mixture"
        weights = [1, 2]
        means = [-1.0, 1.0]
        stds = [0.5, 0.7]
        [grid]
        kind = "log-snr"
        start = 3.0
        end = 0.01
        steps = [4, 8, 16, 32, 64]
        """
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "probflow.cli", "rates", str(study_file), "--no-progress"]
    command += ["--jobs", "2", "--out"]
    for more in (2, 8):
        process = subprocess.Popen([*command, str(out), "--resume"])
        before = lines(out / PARTIAL)
        wait_for(lambda b=before, m=more, p=process: lines(out / PARTIAL) >= b + m)
        workers = children(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda w=workers: not any(map(alive, w)))
    assert subprocess.run([*command, str(out), "--resume"]).returncode == 0
    assert subprocess.run([*command, str(tmp_path / "whole")]).returncode == 0
    for name in ("results.jsonl", "orders.json", COMPLETE):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in text.split()]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_interrupted_by_ctrl_c(tmp_path: Path, whole: list[str], monkeypatch) -> None:
    def stop(task: Task, reference=None):
        if lines(tmp_path / PARTIAL) >= 13:
            os.kill(os.getpid(), signal.SIGINT)
        return measure_cells(task, reference)

    monkeypatch.setattr(work, "measure_cells", stop)
    with pytest.raises(StudyInterrupted) as caught:
        run_curves(curves(), out=tmp_path)
    finished = text(caught.value.study)
    assert finished
    assert set(finished) < set(whole)
    monkeypatch.undo()
    assert text(run_curves(curves(), out=tmp_path, resume=True)) == whole


# Disk -------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from small import curves
from probflow.studies.runner import run_curves
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
run_curves(curves(), out=sys.argv[2])
"""


def test_a_file_that_may_not_grow(tmp_path: Path, whole: list[str], counted: list) -> None:
    """A real failure of write(2): the study ends with the reason, and is resumed."""
    pytest.importorskip("resource")
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, str(HERE), str(tmp_path)], capture_output=True, text=True
    )
    kept = lines(tmp_path / PARTIAL)
    assert kept > 2
    assert f"{kept} finished cells are kept, and a resumed study goes on" in process.stderr
    assert (tmp_path / PARTIAL).stat().st_size < 4000
    assert not (tmp_path / LOCK).exists()
    assert text(run_curves(curves(), out=tmp_path, resume=True)) == whole
    assert sum(len(measures) for _, _, measures in counted) == len(whole) - 8 - kept


# What is measured again -------------------------------------------------------------------------


def solver(weight: float) -> Solver:
    def step(step: StepBuilder) -> Linear:
        score = step.model(step.x, step.t)
        return step.x + weight * (step.s.rho - step.t.rho) * score

    return Solver("mine", step, "here", "eps", coordinates="ve", orders={"strong": 1})


def test_only_what_changed_is_measured_again(tmp_path: Path, counted: list) -> None:
    """Every part of a cell's content that differs makes another cell."""
    base = {"solvers": [solver(1.0), "ddim"], "measures": ("strong",)}
    first = run_curves(curves(**base), out=tmp_path)
    counted.clear()
    again = run_curves(curves(**base), out=tmp_path, resume=True)
    assert text(again) == text(first)
    assert counted == []
    more = run_curves(curves((*STEPS, 64), **base), out=tmp_path, resume=True)
    assert {(name, steps) for name, steps, _ in counted} == {("mine", 64), ("ddim", 64)}
    assert len(more.rows) == 4 * 6
    counted.clear()
    heavier = {**base, "solvers": [solver(1.0 + 1e-15), "ddim"]}
    run_curves(curves(**heavier), out=tmp_path, resume=True)
    assert {name for name, _, _ in counted} == {"mine"}
    counted.clear()
    run_curves(curves(**base), out=tmp_path, resume=True)  # what the other study left is there
    assert counted == []
    for changed in (
        {"settings": Settings(1, 8, 32)},
        {"settings": Settings(0, 9, 32)},
        {"settings": Settings(0, 8, 33)},
        {"process": pf.VP.cosine()},
        {"targets": [pf.Gaussian([0.3, -0.2], [0.5, 0.2 + 1e-15])]},
        {"grid": replace(default_grid(), start=2.0)},
    ):
        counted.clear()
        run_curves(curves(**{**base, **changed}), out=tmp_path, resume=True)
        assert len(counted) == len(changed.get("targets", "xx")) * 2 * len(STEPS), changed


def test_keys_depend_on_the_process_beyond_the_weights() -> None:
    """ddim has the same weights in VE coordinates; the law at the start is another."""
    [one] = curves(targets=[pf.Gaussian([0.0], [1.0])], solvers=["ddim"])
    keys = cell_keys(Task(one, 8, ("strong", "path-kl"), digest(one.target)))
    assert len(set(keys.values())) == 2
    other = replace(one, process=pf.VP.linear())  # the default, given
    assert keys == cell_keys(Task(other, 8, ("strong", "path-kl"), digest(one.target)))
    for process in (pf.VP.cosine(), pf.FlowMatching()):
        changed = cell_keys(Task(replace(one, process=process), 8, ("strong",), ""))
        assert changed["strong"] not in keys.values()


def test_versions_are_part_of_the_key(monkeypatch) -> None:
    from probflow.studies import cells

    task = Task(curves()[0], 8, ("strong",), "target")
    before = cell_keys(task)
    monkeypatch.setattr(cells, "_versions", lambda: ("9.9",))
    assert cell_keys(task) != before


def test_errors_of_the_machine_are_rows_and_are_tried_again(
    tmp_path: Path, whole: list[str], monkeypatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("not enough")

    from probflow.studies import cells

    with monkeypatch.context() as patch:
        patch.setattr(cells, "measure", fail)
        broken = run_curves(curves(), out=tmp_path)
    assert {row.status for row in broken.rows} == {"failed: MemoryError: not enough"}
    assert {e.reason for e in broken.estimates} == {"failed: MemoryError: not enough"}
    assert text(run_curves(curves(), out=tmp_path, resume=True)) == whole


def test_reasons_are_kept(tmp_path: Path, counted: list) -> None:
    """A refusal and a solver without finite weights are results like others."""
    grid = pf.grids.explicit([0.9, 0.5, 0.0])
    arguments = {"grid": grid, "steps": (2,), "solvers": ["heun", "ddpm"], "measures": ("path-kl",)}
    first = run_curves(curves(**arguments), out=tmp_path)
    assert {row.status[:6] for row in first.rows} == {"failed", "ok"}
    counted.clear()
    assert text(run_curves(curves(**arguments), out=tmp_path, resume=True)) == text(first)
    assert counted == []


# Two writers ------------------------------------------------------------------------------------


def test_lock_of_another_machine_and_of_a_dead_process(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(ValueError, match="by process 7 on elsewhere; if that is gone, remove"):
        lock.FolderLock(tmp_path)
    for content in ("", "{", "[]", json.dumps({"pid": 7, "host": socket.gethostname()})):
        (tmp_path / LOCK).write_text(content)
        held = lock.FolderLock(tmp_path)
        assert ("process 7 is no longer there" in held.note) == ("pid" in content)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(ValueError, match=f"by process {os.getpid()} on"):
            lock.FolderLock(tmp_path)
        held.release()
        assert not (tmp_path / LOCK).exists()


def test_lock_without_flock(tmp_path: Path, monkeypatch) -> None:
    """Where the system has no such lock, the file alone decides."""
    monkeypatch.setattr(lock, "fcntl", None)
    held = lock.FolderLock(tmp_path)
    with pytest.raises(ValueError, match=f"by process {os.getpid()} on"):
        lock.FolderLock(tmp_path)
    held.release()
    lock.FolderLock(tmp_path).release()


def test_only_one_of_many_processes_gets_the_folder(tmp_path: Path) -> None:
    """All start beside the lock of a dead process; one takes it over."""
    (tmp_path / LOCK).write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    code = """
import importlib.util, sys, time, types
from pathlib import Path
# The lock alone, without torch, so that all start together.
for name in ("probflow", "probflow.studies"):
    sys.modules[name] = types.ModuleType(name)
for name in ("rows", "lock"):
    path = Path(sys.argv[1]) / "probflow" / "studies" / (name + ".py")
    spec = importlib.util.spec_from_file_location("probflow.studies." + name, path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
while not Path(sys.argv[2], "go").exists():
    pass
try:
    held = module.FolderLock(Path(sys.argv[2]))
except ValueError:
    print("refused")
else:
    print("got it")
    time.sleep(2)
    held.release()
"""
    command = [sys.executable, "-c", code, str(HERE.parents[1]), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    time.sleep(1.0)
    (tmp_path / "go").touch()
    said = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert said == ["got it", *["refused"] * 5]
    assert not (tmp_path / LOCK).exists()


# Arguments --------------------------------------------------------------------------------------


def test_arguments(tmp_path: Path) -> None:
    target = pf.Gaussian([0.0, 0.0], 1.0)
    with pytest.raises(ValueError, match="resume: needs out"):
        study(target, "ddim", (2,), "strong", resume=True)
    with pytest.raises(TypeError, match=r"need a concurrent.futures.Executor, got int; of a dask"):
        study(target, "ddim", (2,), "strong", executor=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mine and its process cannot be sent to another"):
        study(target, solver(1.0), (2,), "strong", jobs=2)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out: need the path of a folder, .* is a file"):
        study(target, "ddim", (2,), "strong", out=tmp_path / "file")
    study(target, "ddim", (2, 4), "strong", out=tmp_path / "new" / "folder")
    assert lines(tmp_path / "new" / "folder" / COMPLETE) == 2
    assert executors.Workers.of(1).width == 1


def test_digest_sees_content() -> None:
    one, other = (pf.GaussianMixture([1, 2], [0.0, 1.0], stds=[1.0, s]) for s in (1.0, 2.0))
    same = pf.GaussianMixture([1, 2], [0.0, 1.0], stds=[1.0, 1.0])
    assert digest(one) == digest(same) != digest(other)
    one.score(pf.Gaussian([0.0], 1.0).sample(3, generator=_generator()), 1.0, 0.5)
    assert digest(one) == digest(same)  # what it remembers of a call does not count
    assert digest([1, 2]) != digest([12]) != digest(["1", "2"])
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(_constant(1)) == digest(_constant(1)) != digest(_constant(2))
    loop: list[object] = []
    loop.append(loop)
    assert digest(loop) == digest(loop)
    with (
        open(os.devnull) as file,
        pytest.raises(TypeError, match=r"cannot tell the content of a _io"),
    ):
        digest(file)


def _constant(value: int):
    return lambda x: x + value


def _generator():
    import torch

    return torch.Generator().manual_seed(0)
