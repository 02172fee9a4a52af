"""How far scoring may go: the caller's progress callback, wish to stop, and deadline."""

import math
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol, TypeAlias, TypeVar

from engine.costs import Costs
from engine.errors import CancelledError

Progress: TypeAlias = Callable[[int, int], None]
News = TypeVar("News")

_ASK_S = 0.02  # a flag can only be asked, and this often
_LONGEST_WAIT_S = 3600.0  # the system refuses to wait for centuries


class Cancel(Protocol):
    """A flag that another thread may set, such as `threading.Event`."""

    def is_set(self) -> bool:
        """Tell whether to stop."""
        ...


class Pace:
    """Says before each run of the network how many rows it may have.

    Args:
        ends: When scoring must end, on the clock of `time.perf_counter`, in seconds; None for no deadline.
        costs: Running estimates.
        row: What `costs` calls the time that a run takes for one row.
        first_s: An upper estimate of it, until one has been measured.
        progress: Called with the rows run and the rows planned, whenever there are more of the former.
        cancel: Asked before each run, and during it, whether to stop.

    Attributes:
        ends: As given.
    """

    def __init__(
        self,
        *,
        ends: float | None,
        costs: Costs,
        row: str,
        first_s: float,
        progress: Progress | None,
        cancel: Cancel | None,
    ) -> None:
        self.ends = ends
        self._costs = costs
        self._row = row
        self._first_s = first_s
        self._progress = progress
        self._cancel = cancel

    def report(self, done: int, planned: int) -> None:
        """Tell the caller how far it is.

        Args:
            done: Rows run so far.
            planned: Rows to run altogether.

        Raises:
            CancelledError: The caller wants no result any more.
        """
        if self._progress is not None:
            self._progress(done, planned)
        self.expect_wanted()

    def expect_wanted(self) -> None:
        """Check that the caller still wants a result.

        Raises:
            CancelledError: The flag is set.
        """
        expect_wanted(self._cancel)

    def measured(self, rows: int, seconds: float) -> None:
        """Take note of what a run took."""
        self._costs.note(self._row, seconds, rows)

    def room(self, started: int, planned: int) -> int:
        """Return how many rows the next run may have; 0 when it is to be the last.

        With a deadline a run has at most half of the rows that fit, so that the runs become shorter towards the end:
        what a run has not finished then is lost.

        Args:
            started: Rows that runs have begun with.
            planned: Rows to run altogether.

        Raises:
            CancelledError: The caller wants no result any more.
        """
        self.expect_wanted()
        left = planned - started
        if self.ends is None:
            return left
        fit = self.fit()
        if fit >= 2 * left:
            return left
        if fit >= 1:
            return max(int(fit / 2), 1)
        if started == 0:
            self._costs.refused(self._row)
        return 0

    def fit(self) -> float:
        """Return how many rows one run after the other are likely to be run before the deadline."""
        if self.ends is None:
            return math.inf
        return max(0.0, self.ends - time.perf_counter()) / (self._costs.usual(self._row) or self._first_s)

    def wait(self, news: SimpleQueue[News]) -> News:
        """Wait for news of the runs; see `wait`."""
        return wait(news, self.ends, self._cancel)


def wait(news: SimpleQueue[News], ends: float | None, cancel: Cancel | None) -> News:
    """Return the next of a queue when it is there.

    Args:
        news: The queue.
        ends: Until when to wait, on the clock of `time.perf_counter`, in seconds; None for no end.
        cancel: Asked now and then whether to stop.

    Raises:
        queue.Empty: The time has come, and nothing was there.
        CancelledError: The flag is set.
    """
    while True:
        left = _LONGEST_WAIT_S if ends is None else max(0.0, ends - time.perf_counter())
        timeout = min(left, _LONGEST_WAIT_S if cancel is None else _ASK_S)
        try:
            return news.get(timeout=timeout)
        except Empty:
            expect_wanted(cancel)
            if timeout == left and ends is not None:
                raise


def expect_wanted(cancel: Cancel | None) -> None:
    """Check that the caller still wants a result.

    Raises:
        CancelledError: The flag is set.
    """
    if cancel is not None and cancel.is_set():
        raise CancelledError("the explanation was cancelled by its caller; nothing was computed to the end")
