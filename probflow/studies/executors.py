"""Where the work of a study is done: here, in local processes, or by any executor."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

__all__ = ["Failure", "Job", "Workers", "run_jobs"]

#: Jobs in flight with an executor of the user's, whose size is not known.
IN_FLIGHT = 1000


@dataclass(frozen=True)
class Job:
    """A call ``function(argument, needed)``; ``needed`` is the result of the job named ``needs``.

    Parameters
    ----------
    name
        Any hashable; what :func:`run_jobs` gives back with the result.
    function
        Of two arguments; at the top level of a module, since workers import it.
    argument
        The first argument.
    needs
        Name of the job whose result is the second argument; ``None`` is passed without one.
    """

    name: Any
    function: Callable[[Any, Any], Any]
    argument: Any
    needs: Any = None


@dataclass(frozen=True)
class Failure:
    """In the place of a result: the exception that a job, or one that it needs, ended with."""

    problem: BaseException


class Workers:
    """An executor, how many jobs it is given at a time, and how to replace it when it breaks."""

    def __init__(
        self, executor: Executor, width: int, make: Callable[[], Executor] | None = None
    ) -> None:
        self.executor, self.width, self._make = executor, width, make

    @classmethod
    def of(cls, jobs: int, executor: Executor | None = None) -> Workers:
        """An executor of the user's, or this process (``jobs=1``), or ``jobs`` processes."""
        if executor is not None:
            return cls(executor, IN_FLIGHT)
        if jobs == 1:
            return cls(_Here(), 1)

        def make() -> Executor:
            spawn = multiprocessing.get_context("spawn")
            return ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker)

        return cls(make(), 2 * jobs, make)

    def replace(self, problem: BaseException) -> None:
        """A new pool of processes after one of them died.

        Raises
        ------
        RuntimeError
            For an executor of the user's.
        """
        if self._make is None:
            raise RuntimeError(
                f"executor: it broke ({type(problem).__name__}: {problem}); with out, finished "
                "cells are kept there, and resume=True goes on"
            ) from problem
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = self._make()

    def close(self) -> None:
        """End own processes; an executor of the user's is left running."""
        if self._make is not None:
            self.executor.shutdown(cancel_futures=True)


class _Here(Executor):
    """Calls at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as problem:
            future.set_exception(problem)
        return future


def _start_worker() -> None:
    """Ctrl-C ends a worker without a traceback, and so does the death of its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_jobs(jobs: Sequence[Job], workers: Workers) -> Iterator[tuple[Any, Any]]:
    """Run jobs and yield ``(name, result or Failure)`` as they end, in no certain order.

    Jobs that others need come first, and no worker waits for them as long as there are others.
    If a process dies, which of the jobs in flight killed it is found by running these one by one;
    that one's failure is the death, and the others go on.

    Raises
    ------
    RuntimeError
        If an executor of the user's breaks, or processes die before any job has ended well.
    """
    run = _Run(jobs, workers)
    try:
        while run.left():
            run.submit_some()
            if run.flying:
                yield from run.next_results()
    finally:
        for future in run.flying:
            future.cancel()


class _Run:
    """Jobs that are ready, that wait for others, that are in flight, and suspects."""

    def __init__(self, jobs: Sequence[Job], workers: Workers) -> None:
        self.workers = workers
        self.needed = {job.needs for job in jobs if job.needs is not None}
        free = (job for job in jobs if job.needs is None)
        self.ready = deque(sorted(free, key=lambda job: job.name not in self.needed))
        self.waiting: dict[Any, list[Job]] = {}
        for job in jobs:
            if job.needs is not None:
                self.waiting.setdefault(job.needs, []).append(job)
        self.results: dict[Any, Any] = {}  # of the jobs that others need
        self.flying: dict[Future[Any], Job] = {}
        self.ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self.suspects: deque[Job] = deque()  # in flight when a process died
        self.solo = False  # a suspect is in flight, alone
        self.broken: BaseException | None = None
        self.deaths, self.healthy = 0, False

    def left(self) -> bool:
        return bool(self.ready or self.suspects or self.flying)

    def submit_some(self) -> None:
        if self.broken is not None and not self.flying:
            self.deaths += 1
            if self.deaths >= 3 and not self.healthy:
                raise RuntimeError(
                    "the worker processes die before any result; a script needs the usual "
                    "if __name__ == '__main__' guard, and its solvers must be importable"
                ) from self.broken
            self.workers.replace(self.broken)
            self.broken, self.solo = None, False
        if self.suspects and not self.flying:
            self.solo = True
            self._submit(self.suspects.popleft())
        while self.ready and not (self.suspects or self.solo or self.broken is not None):
            if len(self.flying) >= self.workers.width:
                return
            self._submit(self.ready.popleft())

    def _submit(self, job: Job) -> None:
        needed = self.results.get(job.needs)
        try:
            future = self.workers.executor.submit(job.function, job.argument, needed)
        except BrokenExecutor as problem:  # it died idle
            self.broken = problem
            self.suspects.append(job)
            return
        self.flying[future] = job
        future.add_done_callback(self.ended.put)

    def next_results(self) -> Iterator[tuple[Any, Any]]:
        """The result of the next job that ends, and failures of those that needed it."""
        future = self.ended.get()
        job = self.flying.pop(future)
        problem = future.exception()
        if isinstance(problem, BrokenExecutor):
            guilty = self.broken is None and not self.flying
            self.broken = problem
            if not guilty:
                self.suspects.append(job)
                return
        self.solo = False
        self.healthy = self.healthy or problem is None
        outcome = future.result() if problem is None else Failure(problem)
        yield job.name, outcome
        if job.name in self.needed:
            self.results[job.name] = outcome
            for other in self.waiting.pop(job.name, ()):
                if isinstance(outcome, Failure):
                    yield other.name, outcome
                else:
                    self.ready.append(other)
