"""Where the work of a study is done: here, in local processes, or by any executor."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["Failure", "Job", "Processes", "Untold", "Workers", "run_jobs"]

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


class Untold(Exception):
    """In the place of an exception that cannot be sent: its kind and message."""


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

        return cls(Processes(jobs), 2 * jobs, lambda: Processes(jobs))

    def replace(self, problem: BaseException) -> None:
        """A new pool of processes after one of them died.

        Raises
        ------
        RuntimeError
            For an executor of the user's, or if the new ones die without any work.
        """
        if self._make is None:
            raise RuntimeError(
                f"executor: it broke ({type(problem).__name__}: {problem}); with out, finished "
                "cells are kept there, and resume=True goes on"
            ) from problem
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = self._make()
        # Whether it was a job that killed the process, or the start: then this ends, too.
        try:
            self.executor.submit(_nothing).result()
        except BrokenExecutor:
            raise RuntimeError(
                "the worker processes die before any work; a script needs the usual "
                "if __name__ == '__main__' guard"
            ) from problem

    def abandon(self) -> None:
        """End own processes whatever they are doing."""
        if isinstance(self.executor, Processes):
            self.executor.kill()

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
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # also sys.exit(), as in any other executor
            future.set_exception(problem)
        return future


class Processes(ProcessPoolExecutor):
    """A pool of new processes that end when this one says so, or dies, whatever they are doing.

    Calls travel as bytes: one that cannot be read there fails, and kills no process.
    """

    def __init__(self, jobs: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        watched, self._held = spawn.Pipe(duplex=False)
        super().__init__(jobs, mp_context=spawn, initializer=_start_worker, initargs=(watched,))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As in any executor; what cannot be sent is the future's exception."""
        try:
            data = pickle.dumps((fn, args, kwargs))
        except Exception as problem:
            future: Future[Any] = Future()
            future.set_exception(problem)
            return future
        return super().submit(_call, data)

    def kill(self) -> None:
        """End the processes at once."""
        self._held.close()


def _start_worker(watched: Connection) -> None:
    """Ctrl-C ends a worker without a traceback, and so do a closed pipe and the parent's death."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        wait([watched] if parent is None else [watched, parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _call(data: bytes) -> Any:
    function, args, kwargs = pickle.loads(data)
    try:
        return function(*args, **kwargs)
    except BaseException as problem:
        try:
            pickle.loads(pickle.dumps(problem))
        except Exception:  # the pool would break where it is read
            raise Untold(f"{type(problem).__name__}: {problem}") from None
        raise


def _nothing() -> None:
    """A call that is over at once."""


def run_jobs(jobs: Sequence[Job], workers: Workers) -> Iterator[tuple[Any, Any]]:
    """Run jobs and yield ``(name, result or Failure)`` as they end, in no certain order.

    Jobs that others need come first, and no worker waits for them as long as there are others.
    If a process dies, which of the jobs in flight killed it is found by running these one by one;
    that one's failure is the death, and the others go on. Own processes are not waited for when
    the caller stops early.

    Raises
    ------
    RuntimeError
        If an executor of the user's breaks, or own processes cannot start.
    """
    run = _Run(jobs, workers)
    try:
        while run.left():
            run.submit_some()
            if run.flying:
                yield from run.next_results()
    finally:
        if not all([future.cancel() or future.done() for future in run.flying]):
            workers.abandon()


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

    def left(self) -> bool:
        return bool(self.ready or self.suspects or self.flying)

    def submit_some(self) -> None:
        if self.broken is not None and not self.flying:
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
        outcome = future.result() if problem is None else Failure(problem)
        yield job.name, outcome
        if job.name in self.needed:
            self.results[job.name] = outcome
            for other in self.waiting.pop(job.name, ()):
                if isinstance(outcome, Failure):
                    yield other.name, outcome
                else:
                    self.ready.append(other)
