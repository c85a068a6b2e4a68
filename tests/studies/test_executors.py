"""Workers of every kind give the same rows; one that dies costs its cell alone."""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small import curves, text

import probflow as pf
from probflow.studies.cells import named
from probflow.studies.executors import Failure, Job, Workers, run_jobs
from probflow.studies.runner import Study, run_curves, study


@pytest.fixture(scope="module")
def whole() -> list[str]:
    return text(run_curves(curves()))


class Shuffled(Executor):
    """Does what it is given in random order, some time later."""

    def __init__(self, seed: int) -> None:
        self.random, self.calls, self.most = random.Random(seed), [], 0
        self.closing = False
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.calls.append((future, fn, args))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.closing = True
        self.thread.join()

    def _work(self) -> None:
        deadline = time.monotonic() + 30
        while len(self.calls) <= 5 and not self.closing and time.monotonic() < deadline:
            time.sleep(0.01)  # so that there is something to shuffle
        while not self.closing:
            self.most = max(self.most, len(self.calls))
            if len(self.calls) < 3:
                time.sleep(0.02)
            if self.calls:
                future, fn, args = self.calls.pop(self.random.randrange(len(self.calls)))
                try:
                    future.set_result(fn(*args))
                except Exception as problem:
                    future.set_exception(problem)


@pytest.mark.parametrize("seed", [0, 1])
def test_any_order(whole: list[str], tmp_path: Path, seed: int) -> None:
    threads = torch.get_num_threads()
    with Shuffled(seed) as executor:
        assert text(run_curves(curves(), executor=executor, out=tmp_path)) == whole
        assert executor.most > 5  # the others wait for a reference
        assert not executor.closing  # the user's executor is left running
    assert torch.get_num_threads() == threads


def test_the_file_is_the_same_in_any_order(tmp_path: Path) -> None:
    run_curves(curves(), out=tmp_path / "one")
    with Shuffled(3) as executor:
        run_curves(curves(), executor=executor, out=tmp_path / "two")
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two] == ["cells.jsonl", "study.json"]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_threads(whole: list[str]) -> None:
    with ThreadPoolExecutor(3) as executor:
        assert text(run_curves(curves(), executor=executor)) == whole


def test_progress(capsys) -> None:
    grid = pf.grids.explicit([0.9, 0.5, 0.0])
    target = pf.Gaussian([0.0, 0.0], 0.5)
    study(target, ["ddim", "heun"], (2,), ["strong", "path-kl"], grid=grid, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "2 failed" in shown


# Jobs -------------------------------------------------------------------------------------------


def double(x: int, needed: int | None) -> int:
    return 2 * x + (needed or 0)


def fail(x: int, _: None) -> int:
    raise KeyError(x)


def test_jobs_that_need_others() -> None:
    jobs = [
        *(Job(n, double, n, "base") for n in range(3)),
        Job("base", double, 50),
        Job("alone", double, 1),
    ]
    for workers in (Workers.of(1), Workers(ThreadPoolExecutor(2), 2)):
        names = dict(run_jobs(jobs, workers))
        assert names == {"base": 100, "alone": 2, 0: 100, 1: 102, 2: 104}
    assert next(iter(run_jobs(jobs, Workers.of(1)))) == ("base", 100)


def test_failures_pass_on() -> None:
    jobs = [Job(1, double, 1, "base"), Job("base", fail, 7), Job(2, double, 2)]
    results = dict(run_jobs(jobs, Workers.of(1)))
    assert results.pop(2) == 4
    assert set(results) == {1, "base"}
    assert all(isinstance(r, Failure) and isinstance(r.problem, KeyError) for r in results.values())


def test_no_more_in_flight_than_asked() -> None:
    flying, most = [0], [0]
    lock = threading.Lock()

    def count(x: int, _: None) -> None:
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
        time.sleep(0.005)
        with lock:
            flying[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        assert len(list(run_jobs([Job(n, count, n) for n in range(30)], Workers(pool, 3)))) == 30
    assert most[0] == 3


class Fragile(Executor):
    """As a pool of two processes: a call that is "deadly" breaks it, with all that is in flight."""

    made, lame = 0, False

    def __init__(self) -> None:
        type(self).made += 1
        self.broken, self.held = False, []

    def submit(self, fn, /, *args, **kwargs):
        if self.broken:
            raise BrokenExecutor("dead")
        future: Future = Future()
        self.held.append((future, fn, args))
        threading.Timer(0.01, self._go, (future, fn, args)).start()
        return future

    def _go(self, future: Future, fn, args) -> None:
        if self.broken:
            return
        if "deadly" in args or self.lame:
            self.broken = True
            for other, _, _ in self.held:
                if not other.done():
                    other.set_exception(BrokenExecutor("dead"))
        else:
            future.set_result(fn(*args))


def test_a_dead_worker_costs_one_job() -> None:
    Fragile.made = 0
    calls = [*"abcd", "deadly", *"efgh", "deadly", "i"]
    jobs = [Job(n, lambda x, _: x, call) for n, call in enumerate(calls)]
    results = dict(run_jobs(jobs, Workers(Fragile(), 4, Fragile)))
    for number, call in enumerate(calls):
        if call == "deadly":
            assert isinstance(results[number].problem, BrokenExecutor)
        else:
            assert results[number] == call
    assert 3 <= Fragile.made <= 6


class Lame(Fragile):
    """Breaks with every call."""

    lame = True


def test_workers_that_cannot_start() -> None:
    Lame.made = 0
    jobs = [Job(n, double, n) for n in range(50)]
    with pytest.raises(RuntimeError, match="the worker processes die before any work; a script"):
        list(run_jobs(jobs, Workers(Lame(), 4, Lame)))
    assert Lame.made == 2


def test_a_solver_that_kills_every_worker_comes_first() -> None:
    """The others are measured all the same."""
    jobs = [*(Job(n, double, "deadly") for n in range(6)), *(Job(n, double, n) for n in (6, 7))]
    results = dict(run_jobs(jobs, Workers(Fragile(), 4, Fragile)))
    assert all(isinstance(results[n].problem, BrokenExecutor) for n in range(6))
    assert (results[6], results[7]) == (12, 14)


def test_an_executor_of_the_users_that_breaks() -> None:
    jobs = [Job(n, double, "deadly") for n in range(3)]
    with pytest.raises(RuntimeError, match="executor: it broke"):
        list(run_jobs(jobs, Workers(Fragile(), 4)))


def stop_in_place(x: int, _: None) -> int:
    if x == 1:
        return x
    time.sleep(1000)
    return x


class Odd(Exception):
    """Cannot be made from its arguments, so it cannot be sent."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("odd")


def odd(x: int, _: None) -> None:
    raise Odd(1, 2)


@pytest.mark.slow  # workers import torch
def test_own_processes() -> None:
    """What cannot be sent fails alone; a caller who stops does not wait for what hangs."""
    workers = Workers.of(2)
    jobs = [
        Job("odd", odd, 0),
        Job("local", lambda x, _: x, 0),
        Job("exit", leave, 3),
        Job("fine", double, 3),
    ]
    try:
        results = dict(run_jobs(jobs, workers))
        assert results["fine"] == 6
        assert named(results["odd"].problem) == "Odd: odd"
        assert "pickle" in named(results["local"].problem)
        assert isinstance(results["exit"].problem, SystemExit)
        start = time.monotonic()
        for name, outcome in run_jobs([Job(n, stop_in_place, n) for n in (1, 2, 3)], workers):
            assert (name, outcome) == (1, 1)
            break
    finally:
        workers.close()
    assert time.monotonic() - start < 60


def test_a_solver_that_exits_ends_its_cell() -> None:
    results = dict(run_jobs([Job(1, leave, 3), Job(2, double, 2)], Workers.of(1)))
    assert isinstance(results[1].problem, SystemExit)
    assert results[2] == 4


def leave(code: int, _: None) -> None:
    sys.exit(code)


class Deadly(pf.Gaussian):
    """Kills the process that asks for samples of its noisy law."""

    def sample(self, n, alpha=1.0, sigma=0.0, *, generator):
        if alpha < 0.3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(n, alpha, sigma, generator=generator)


@pytest.mark.slow  # workers import torch, again and again
def test_a_worker_that_is_really_killed() -> None:
    """Its cells say so; those of the other target are measured."""
    deadly = Deadly([0.0, 0.0], 0.5)
    deadly.name = "deadly"
    targets = [pf.Gaussian([0.0, 0.0], 0.5), deadly]
    result = study(targets, "ddim", (2, 4), "strong", jobs=2)
    assert [row.status[:40] for row in result.rows] == [
        *["ok"] * 2,
        *["failed: BrokenProcessPool: A process in "] * 2,
    ]


# A cluster --------------------------------------------------------------------------------------


@pytest.mark.slow  # 20 s: workers import torch
def test_dask(whole: list[str], tmp_path: Path) -> None:
    """Two worker processes of a LocalCluster: one argument, the same rows, and resumed."""
    distributed = pytest.importorskip("distributed")
    path = os.environ.get("PYTHONPATH", "")
    here = f"{Path(__file__).parent}:{path}"
    os.environ["PYTHONPATH"] = here
    try:
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            first: Study = run_curves(curves(), executor=client.get_executor(), out=tmp_path)
            assert text(first) == whole
            again = run_curves(curves(), executor=client.get_executor(), out=tmp_path, resume=True)
            assert text(again) == whole
            pids = set(client.run(os.getpid).values())
            assert len(pids) == 2
            assert os.getpid() not in pids
    finally:
        os.environ["PYTHONPATH"] = path
    assert importlib.import_module("dask") is not None
