"""Where cells are run: in processes on this machine, on a Ray cluster, or in this very process."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from typing import Any, Protocol

from plait.errors import BadInput, first_line
from plait_experiments.cells import Job, Outcome, execute

PATIENCE = 60.0
"""Seconds that a worker gets to write its checkpoint when it is asked to stop."""


class Workers(Protocol):
    """What runs jobs."""

    @property
    def count(self) -> int | None:
        """How many at once; None when that is not known."""
        ...

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes as they come, in any order."""
        ...

    def close(self) -> None:
        """Let go of processes and connections."""
        ...


class ThisProcess:
    """One job after the other, without another process; for tests and debuggers."""

    count = 1

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes in order."""
        for job in jobs:
            outcome = execute(job)
            if outcome.status == "interrupted":
                raise KeyboardInterrupt
            yield outcome

    def close(self) -> None:
        """Nothing to let go of."""


class LocalWorkers:
    """Worker processes of one thread each, kept between cells because importing torch takes seconds.

    Each worker is a pool of its own (`concurrent.futures`), so that a process that dies takes no other cell with it:
    the cell is tried once more, from its last checkpoint, in a new process. Workers end when this process does, however
    it does. As with everything that spawns processes, a script needs the ``if __name__ == "__main__"`` guard.

    Args:
        count: how many; default one a core.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or os.cpu_count() or 1
        self._workers: list[_Worker] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes as they come."""
        while len(self._workers) < min(self.count, len(jobs)):
            self._workers.append(_Worker())
        waiting, free = deque(jobs), list(self._workers)
        flying: dict[Future[Outcome], tuple[_Worker, Job]] = {}
        deaths: Counter[str] = Counter()
        try:
            while waiting or flying:
                while waiting and free:
                    worker, job = free.pop(), waiting.popleft()
                    flying[worker.start(job)] = (worker, job)
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    worker, job = flying.pop(future)
                    free.append(worker)
                    try:
                        outcome = future.result()
                    except BrokenExecutor:
                        worker.close()
                        deaths[job.key] += 1
                        if deaths[job.key] < 2:
                            waiting.append(job)
                            continue
                        outcome = Outcome(job.key, "failed", error="its process died twice (out of memory? killed?)")
                    if outcome.status == "interrupted":
                        raise KeyboardInterrupt
                    yield outcome
        except BaseException:
            _stop([worker for worker, _ in flying.values()], list(flying))
            raise

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()


class _Worker:
    """One process, started when it is first needed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._pid: Future[int] | None = None

    def start(self, job: Job) -> Future[Outcome]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)
            before = os.environ.get("PYTHONSAFEPATH")
            os.environ["PYTHONSAFEPATH"] = "1"  # a random.py where the user stands is not the library's
            try:
                self._pid = self._pool.submit(os.getpid)  # starts the process
            finally:
                os.environ.pop("PYTHONSAFEPATH")
                os.environ.update({} if before is None else {"PYTHONSAFEPATH": before})
        return self._pool.submit(execute, job)

    def signal(self, number: int) -> None:
        if self._pid is not None:
            with contextlib.suppress(Exception):  # a process that is gone needs no signal
                os.kill(self._pid.result(timeout=5), number)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None


def _stop(workers: Sequence[_Worker], futures: Sequence[Future[Outcome]]) -> None:
    """Ask for checkpoints, wait for them; a second Ctrl-C, or patience running out, ends it."""
    try:
        for worker in workers:
            worker.signal(signal.SIGTERM)
        wait(futures, timeout=PATIENCE)
    finally:
        for worker, future in zip(workers, futures, strict=True):
            if not future.done():
                worker.signal(signal.SIGKILL)


def _prepare() -> None:
    """In a new worker: one thread, no Ctrl-C of its own while idle, and an end when the parent is gone."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    # a run answers Ctrl-C by a checkpoint; between runs the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        # the first one makes a run write its checkpoint; one that comes when no run is going on ends the process
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    os._exit(1)


class RayCluster:
    """A Ray cluster; every node needs plait and the plugins installed, and the cache folder where nodes share one.

    Without a shared folder results still come back and are kept here; only resuming inside a cell is lost.

    Args:
        address: of a running cluster (``auto``, ``host:port``, ``ray://...``), or ``local`` for one on this machine.
        count: how many cells at once; default as many as the cluster has CPUs.

    Raises:
        BadInput: ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str, count: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise BadInput("--ray needs Ray: pip install 'plait-experiments[ray]'.") from error
        self._ray: Any = ray
        extra: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **extra)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BadInput(f"--ray {address}: {first_line(error)}") from error
        self.count = count

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes as they come; a task whose node is lost is tried once more by Ray."""
        task = self._ray.remote(num_cpus=1, max_retries=1)(_on_node)
        waiting: deque[Job] = deque(jobs)
        flying: dict[Any, Job] = {}
        try:
            while waiting or flying:
                while waiting and (self.count is None or len(flying) < self.count):
                    job = waiting.popleft()
                    flying[task.remote(job)] = job
                ready, _ = self._ray.wait(list(flying), num_returns=1)
                for reference in ready:
                    job = flying.pop(reference)
                    try:
                        outcome: Outcome = self._ray.get(reference)
                    except self._ray.exceptions.RayError as error:
                        outcome = Outcome(job.key, "failed", error=f"Ray: {first_line(error)}")
                    yield outcome
        except BaseException:
            for reference in flying:
                self._ray.cancel(reference)
            raise

    def close(self) -> None:
        """Disconnect."""
        self._ray.shutdown()


def _on_node(job: Job) -> Outcome:
    import torch

    torch.set_num_threads(1)
    return execute(job)


def make_workers(count: int | None = None, ray: str | None = None) -> Workers:
    """The workers that the arguments ask for; ``count = 0`` is `ThisProcess`."""
    if ray is not None:
        return RayCluster(ray, count)
    return ThisProcess() if count == 0 else LocalWorkers(count)
