"""Threads that run a graph on rows, of one image or of several, in batches."""

import time
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from queue import Empty, SimpleQueue
from threading import Condition, Lock, Thread

import numpy as np
from numpy.typing import NDArray

from engine.backends import Brake, Session
from engine.errors import BackendError
from engine.job import Arrays, Floats, Job
from engine.pace import Cancel, wait

_CLOSED = "the threads that run the network were stopped, since nobody waits for their results; explain the image again"
_IDLE_S = 1.0  # a thread and its batch are kept from one image to the next


class _Run:
    """A run with rows of one job or of several."""

    def __init__(self, parts: Sequence[tuple[Job, range]]) -> None:
        self.parts = parts
        self.brake = Brake()


class Lanes:
    """Threads that run one graph on the rows of jobs, the oldest job's first, until they are closed.

    Jobs with a deadline take turns: the time of all of them runs. They are plain threads: a pool of
    `concurrent.futures` takes no work once the main thread has ended, while other threads of the program may go on.
    Python waits for such threads before it ends, so one that has nothing to do ends soon; the next job starts another.

    Args:
        session: The graph; its first input is rows [N, C, H, W].
        count: How many threads.
        most: The most rows in one run.
    """

    def __init__(self, session: Session, count: int, most: int) -> None:
        self._session = session
        self._most = most
        self._jobs: deque[Job] = deque()
        self._runs: set[_Run] = set()
        self._closed = False
        self._changed = Condition()
        self._threads: dict[int, Thread] = {}
        self._count = count

    def run(self, job: Job) -> int:
        """Run the rows of a job; the caller's thread watches, so that progress is told there.

        A deadline is kept: runs that are under way then are stopped, and not waited for.

        Returns:
            How many rows were run, from the first.

        Raises:
            CancelledError: The caller wants no result any more.
            BackendError: The runtime failed, the system has no more threads, or the lanes were closed.
        """
        done: int | None = 0
        try:
            with self._changed:
                if self._closed:
                    raise BackendError(_CLOSED)
                self._start()
                self._jobs.append(job)
                self._changed.notify_all()
            total = 0
            while done is not None:
                total += done
                job.pace.report(total, job.count)
                try:
                    done = job.pace.wait(job.news)
                except Empty:
                    break
        finally:
            self._leave(job)
        if job.failure is not None:
            raise job.failure
        job.pace.expect_wanted()
        return job.unbroken

    def close(self, *, wait: bool = True) -> None:
        """End the threads; jobs that are not done fail.

        Args:
            wait: Whether to wait until they have ended: the run that each is in is stopped.
        """
        with self._changed:
            self._closed = True
            for job in {*self._jobs, *(job for run in self._runs for job, _ in run.parts)}:
                job.fail(BackendError(_CLOSED))
            self._jobs.clear()
            stopped, threads = list(self._runs), list(self._threads.values())
            self._changed.notify_all()
        for run in stopped:
            run.brake.pull()
        for thread in threads if wait else ():
            thread.join()

    def _start(self) -> None:
        """Start the threads that are not there."""
        for lane in range(self._count):
            if lane in self._threads:
                continue
            thread = Thread(target=self._work, args=(lane,), name=f"engine-scoring-{lane}")
            try:
                thread.start()
            except RuntimeError as err:
                raise BackendError(
                    f"only {len(self._threads)} of {self._count} threads could be started ({err}); expected all: load "
                    "the bundle with fewer threads"
                ) from err
            self._threads[lane] = thread

    def _leave(self, job: Job) -> None:
        """Give out no more rows of a job, and stop the runs that serve no other."""
        job.leave()
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
            in_vain = [run for run in self._runs if all(other.left for other, _ in run.parts)]
        for run in in_vain:
            run.brake.pull()

    def _work(self, lane: int) -> None:
        batch: Floats | None = None
        while (run := self._next(lane)) is not None:
            try:
                size = sum(len(part) for _, part in run.parts)
                if batch is None or len(batch) < size:
                    batch = _allocate(size, run.parts[0][0].rows.shape)
                self._carry_out(run, lane, batch)
            except BaseException as err:
                for job, _ in run.parts:
                    job.fail(err)
            with self._changed:
                self._runs.remove(run)
                for job, _ in run.parts:
                    job.under_way -= 1
                    if job.failure is not None and job in self._jobs:
                        self._jobs.remove(job)
                    self._tell_if_over(job)

    def _carry_out(self, run: _Run, lane: int, batch: Floats) -> None:
        began = time.perf_counter()
        ends = list(accumulate(len(part) for _, part in run.parts))
        places = [slice(end - len(part), end) for end, (_, part) in zip(ends, run.parts, strict=True)]
        for (job, part), place in zip(run.parts, places, strict=True):
            job.write(lane, part, batch[place])
        beside = zip(*(job.beside(part) for job, part in run.parts), strict=True)
        outputs = self._session.run([batch[: ends[-1]], *map(np.concatenate, beside)], run.brake)
        run.parts[0][0].pace.measured(ends[-1], time.perf_counter() - began)
        for (job, part), place in zip(run.parts, places, strict=True):
            try:
                job.keep(part, [output[place] for output in outputs])
            except BaseException as err:  # of this job alone
                job.fail(err)

    def _next(self, lane: int) -> _Run | None:
        """Return the next run when there is one; None when the lanes are closed, or there was none for a while."""
        with self._changed:
            while not self._closed:
                parts = self._fill()
                if parts:
                    run = _Run(parts)
                    self._runs.add(run)
                    return run
                if not self._changed.wait(_IDLE_S) and not self._jobs:
                    del self._threads[lane]
                    break
        return None

    def _fill(self) -> list[tuple[Job, range]]:
        """Take rows for one run from the jobs in their order."""
        waiting = sum(job.count - job.taken for job in self._jobs)
        free = min(self._most, -(-waiting // self._count))  # so that all lanes end together
        parts = []
        for job in list(self._jobs):
            try:
                part = job.take(free)
            except BaseException as err:  # of the caller's flag
                job.fail(err)
                part = range(0)
            if part:
                parts.append((job, part))
                job.under_way += 1
                free -= len(part)
            if not part or job.taken == job.count:
                self._jobs.remove(job)
                self._tell_if_over(job)
            elif job.pace.ends is not None:
                self._jobs.rotate(-1)
            if not free:
                break
        return parts

    def _tell_if_over(self, job: Job) -> None:
        if not job.under_way and job not in self._jobs:
            job.news.put(None)


def _allocate(rows: int, shape: tuple[int, int, int]) -> Floats:
    try:
        return np.empty((rows, *shape), np.float32)
    except MemoryError as err:
        raise BackendError(
            f"a batch of {rows} rows {list(shape)} does not fit in memory; expected one that does: give a smaller "
            "batch_size"
        ) from err


class SharedLanes:
    """Lanes that several images share: for each graph the same, opened when it is first asked for.

    Args:
        batch_size: Rows that all runs of a graph together hold, but one at least in each.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._lock = Lock()
        self._lanes: dict[Session, Lanes] = {}
        self._closed = False

    def of(self, session: Session) -> Lanes:
        """Return the lanes that run a graph.

        Raises:
            BackendError: The lanes were closed.
        """
        with self._lock:
            if self._closed:
                raise BackendError(_CLOSED)
            if session not in self._lanes:
                count = session.runs_at_once
                self._lanes[session] = Lanes(session, count, max(1, self._batch_size // count))
            return self._lanes[session]

    def close(self) -> None:
        """End them all; jobs that are not done fail."""
        with self._lock:
            self._closed = True
        for lanes in self._lanes.values():
            lanes.close()


def run_watched(
    session: Session, inputs: Sequence[NDArray[np.generic]], ends: float | None, cancel: Cancel | None
) -> Arrays:
    """Run a graph once, but no longer than it is of use.

    The run has a thread of its own when it may have to be stopped.

    Args:
        session: The graph.
        inputs: Its inputs.
        ends: When the result is of no use any more, on the clock of `time.perf_counter`; None for never.
        cancel: Asked now and then whether to stop.

    Raises:
        queue.Empty: The time has come.
        CancelledError: The flag is set.
        BackendError: The runtime failed, or the system has no more threads.
    """
    if ends is None and cancel is None:
        return session.run(inputs)
    news: SimpleQueue[Arrays | BaseException] = SimpleQueue()
    brake = Brake()

    def work() -> None:
        try:
            news.put(session.run(inputs, brake))
        except BaseException as err:
            news.put(err)

    try:
        Thread(target=work, name="engine-run").start()
    except RuntimeError as err:
        raise BackendError(f"no thread could be started for a run ({err}); end some threads of the program") from err
    try:
        found = wait(news, ends, cancel)
    except BaseException:
        brake.pull()
        raise
    if isinstance(found, BaseException):
        raise found
    return found
