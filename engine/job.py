"""Rows of one image that wait to be run through a graph, and how far that has come."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.pace import Pace

Floats = NDArray[np.float32]
Arrays: TypeAlias = list[NDArray[np.generic]]
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


class Job:
    """Rows of one image that wait to be run, and how far that has come.

    Args:
        rows: What to run the graph on; it is the first input.
        count: Run it on the first so many.
        most: The most rows in one run.
        pace: Says before each run how far to go.
        keep: Takes the numbers of the rows of a run, and the graph's outputs for them, one run at a time; never called
            once the job was left.
        beside: Gives the graph's other inputs for the rows of these numbers.

    Attributes:
        pace: As given.
        count: As given.
        rows: As given.
        beside: As given.
        taken: How many rows runs have begun with.
        under_way: How many runs have rows of it.
        left: Whether the caller waits for no more of it.
        news: Tells the caller how many rows a run has ended with, and None when there will be no more.
        failure: What ended it, if it was an error.
    """

    def __init__(
        self,
        rows: Rows,
        count: int,
        most: int,
        pace: Pace,
        keep: Callable[[range, Arrays], None],
        beside: Callable[[range], Arrays] = lambda _: [],
    ) -> None:
        self.rows, self.count, self.pace, self.beside = rows, count, pace, beside
        self.taken = self.under_way = 0
        self.left = False
        self.news: SimpleQueue[int | None] = SimpleQueue()
        self.failure: BaseException | None = None
        self._most = most
        self._keep = keep
        self._keeping = Lock()
        self._writers: dict[int, Write] = {}
        self._ended: dict[int, int] = {}

    @property
    def unbroken(self) -> int:
        """How many rows were run, from the first: a run that was stopped leaves a gap."""
        done = 0
        while done in self._ended:
            done = self._ended[done]
        return done

    def take(self, free: int) -> range:
        """Give a run so many rows at most, by their numbers; none when there is no time for more.

        Raises:
            CancelledError: The caller wants no result any more.
        """
        room = self.pace.room(self.taken, self.count)
        part = range(self.taken, self.taken + min(room, self._most, free))
        self.taken = part.stop
        return part

    def write(self, lane: int, part: range, batch: Floats) -> None:
        """Write rows into a batch, with the writer of a lane."""
        if lane not in self._writers:
            self._writers[lane] = self.rows.writer()
        self._writers[lane](part, batch)

    def keep(self, part: range, outputs: Arrays) -> None:
        """Take what a run has computed, unless the job was left."""
        with self._keeping:
            if self.left:
                return
            self._keep(part, outputs)
            self._ended[part.start] = part.stop
        self.news.put(len(part))

    def fail(self, failure: BaseException) -> None:
        """Take note that a run has failed."""
        self.failure = self.failure or failure
        self.news.put(None)

    def leave(self) -> None:
        """Wait for no more of it."""
        with self._keeping:
            self.left = True
