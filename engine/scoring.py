"""Running the network on changed images in batches: the phase in which it runs hundreds of times."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.backends import Session
from engine.errors import BackendError, ImageError
from engine.kernels import activate
from engine.pace import Pace

Floats = NDArray[np.float32]
Write: TypeAlias = Callable[[range, Floats], None]
"""Writes the rows of these numbers, in this order, over the first rows of a batch [n, *shape]."""


class Rows(Protocol):
    """What the network is run on, row by row: images, or feature maps, that were changed.

    The rows are written into the batch when their turn has come, so that they are never all there at a time.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of one row: C, H and W."""
        ...

    def __len__(self) -> int: ...

    def writer(self) -> Write:
        """Return a function that writes rows; every thread has one of its own."""
        ...


def finite(tensor: NDArray[np.generic]) -> Floats:
    """Return what the network computed as float32.

    Raises:
        ImageError: It holds NaN or infinity.
    """
    values = tensor.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ImageError(
            "the network computes NaN or infinity for this image; expected finite logits and gradients: check the "
            "image's range and the preprocessing"
        )
    return values


def score_rows(
    session: Session,
    rows: Rows,
    classes: Sequence[int],
    activation: str,
    batch_size: int,
    pace: Pace,
    count: int | None = None,
) -> NDArray[np.float64]:
    """Score rows for some classes.

    Args:
        session: A graph from rows [N, C, H, W] to logits [N, classes].
        rows: What to score.
        classes: Indices of the K classes whose scores are kept.
        activation: What turns logits into class scores.
        batch_size: Rows that all runs together hold, but one at least in each.
        pace: Says before each run how far to go.
        count: Score the first so many; None for all.

    Returns:
        float64 [n, K], the scores of the first n rows: of all that were asked for, if the pace let them.

    Raises:
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
        BackendError: The runtime failed, or the system has no more threads.
    """
    count = len(rows) if count is None else count
    scores = np.empty((count, len(classes)))

    def keep(part: range, outputs: list[NDArray[np.generic]]) -> None:
        scores[part.start : part.stop] = activate(finite(outputs[0]), activation)[:, classes]

    return scores[: run_rows(session, rows, count, batch_size, pace, keep)]


def run_rows(
    session: Session,
    rows: Rows,
    count: int,
    batch_size: int,
    pace: Pace,
    keep: Callable[[range, list[NDArray[np.generic]]], None],
    beside: Callable[[range], list[NDArray[np.generic]]] = lambda _: [],
) -> int:
    """Run a graph on rows, in batches.

    The batch is shared out among as many runs at a time as the session is made for. Each run fills its part of the
    batch and computes it, in a thread of its own; the caller's thread watches, so that progress is told there.

    Args:
        session: A graph whose first input is rows [N, C, H, W].
        rows: What to run it on.
        count: Run it on the first so many.
        batch_size: Rows that all runs together hold, but one at least in each.
        pace: Says before each run how far to go.
        keep: Takes the numbers of the rows of a run, and the graph's outputs for them; called in several threads.
        beside: Gives the graph's other inputs for the rows of these numbers.

    Returns:
        How many rows were run, from the first.

    Raises:
        CancelledError: The caller wants no result any more.
        BackendError: The runtime failed, or the system has no more threads.
    """
    lanes = max(1, min(session.runs_at_once, count))
    most = max(1, min(batch_size, count) // lanes)
    queue = _Queue(count, lanes, most, pace)

    def work() -> None:
        write, batch = rows.writer(), np.empty((most, *rows.shape), np.float32)
        while part := queue.take():
            began = time.perf_counter()
            write(part, batch)
            keep(part, session.run([batch[: len(part)], *beside(part)]))
            queue.finish(part, time.perf_counter() - began)

    done = 0
    with _threads(queue, lanes, work):
        for done in queue.watch():
            pace.report(done, count)
    pace.expect_wanted()
    return done


@contextmanager
def _threads(queue: "_Queue", count: int, work: Callable[[], None]) -> Iterator[None]:
    """Let threads work on a queue, and end with them; what one of them raises is raised here.

    They are plain threads: a pool of `concurrent.futures` takes no work once the main thread has ended, while other
    threads of the program may go on.

    Raises:
        BackendError: The system has no more threads.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as err:
            failures.append(err)
            queue.stop()
        finally:
            queue.leave()

    threads = [Thread(target=run, name=f"engine-scoring-{number}") for number in range(count)]
    started: list[Thread] = []
    try:
        for thread in threads:
            try:
                thread.start()
            except RuntimeError as err:
                raise BackendError(
                    f"only {len(started)} of {count} threads could be started ({err}); expected all: load the bundle "
                    "with fewer threads"
                ) from err
            started.append(thread)
        yield
    finally:
        queue.stop()
        for thread in started:
            thread.join()
    if failures:
        raise failures[0]


class _Queue:
    """The rows that wait to be run: lanes take them, each in its own thread, and the caller's thread watches.

    Args:
        rows: How many there are.
        lanes: How many lanes take them.
        most: The most that a lane may take at a time.
        pace: Says how far to go.
    """

    def __init__(self, rows: int, lanes: int, most: int, pace: Pace) -> None:
        self._rows = rows
        self._lanes = lanes
        self._most = most
        self._pace = pace
        self._taken = 0
        self._stopped = False
        self._lock = Lock()
        self._finished: SimpleQueue[int | None] = SimpleQueue()

    def take(self) -> range:
        """Give a lane the next rows, by their numbers; none when there is nothing left to do."""
        with self._lock:
            room = 0 if self._stopped else self._pace.room(self._taken, self._rows)
            left = self._rows - self._taken
            part = range(self._taken, self._taken + min(room, self._most, -(-left // self._lanes)))  # all end together
            self._taken = part.stop
            return part

    def finish(self, part: range, seconds: float) -> None:
        """Take note that rows were run, and of the time that it took."""
        with self._lock:
            self._pace.measured(len(part), seconds)
        self._finished.put(len(part))

    def leave(self) -> None:
        """Take note that a lane has ended."""
        self._finished.put(None)

    def stop(self) -> None:
        """Give out no more rows."""
        with self._lock:
            self._stopped = True

    def watch(self) -> Iterator[int]:
        """Yield how many rows were run, at the beginning and whenever there are more, until no lane works."""
        done, working = 0, self._lanes
        yield done
        while working:
            finished = self._finished.get()
            if finished is None:
                working -= 1
            else:
                done += finished
                yield done
