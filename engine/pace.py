"""How far scoring may go: the caller's progress callback, wish to stop, and deadline."""

import time
from collections.abc import Callable
from typing import Protocol, TypeAlias

from engine.errors import CancelledError

Progress: TypeAlias = Callable[[int, int], None]


class Cancel(Protocol):
    """A flag that another thread may set, such as `threading.Event`."""

    def is_set(self) -> bool:
        """Tell whether to stop."""
        ...


class Pace:
    """Says before each batch how many masks it may have.

    Args:
        ends: When scoring must end, on the clock of `time.perf_counter`, in seconds; None for no deadline.
        mask_s: An upper estimate of the seconds that one mask takes, until a batch has been measured.
        progress: Called with the masks scored and the masks planned, before each batch and at the end.
        cancel: Asked before each batch.
    """

    def __init__(self, *, ends: float | None, mask_s: float, progress: Progress | None, cancel: Cancel | None) -> None:
        self._ends = ends
        self._mask_s = mask_s
        self._progress = progress
        self._cancel = cancel
        self._done = 0
        self._since = time.perf_counter()

    def room(self, done: int, planned: int) -> int:
        """Return how many masks may be scored next; 0 to stop. Before a deadline at least one mask is scored.

        Args:
            done: Masks scored so far.
            planned: Masks to score altogether.

        Raises:
            CancelledError: The caller wants no result any more.
        """
        if self._progress is not None:
            self._progress(done, planned)
        expect_wanted(self._cancel)
        if self._ends is None:
            return planned - done
        now = time.perf_counter()
        if done > self._done:
            self._mask_s = (now - self._since) / (done - self._done)
        self._done, self._since = done, now
        in_time = int((self._ends - now) / self._mask_s)
        return min(planned - done, max(in_time, 0 if done else 1))


def expect_wanted(cancel: Cancel | None) -> None:
    """Check that the caller still wants a result.

    Raises:
        CancelledError: The flag is set.
    """
    if cancel is not None and cancel.is_set():
        raise CancelledError("the explanation was cancelled by its caller; nothing was computed to the end")
