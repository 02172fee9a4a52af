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
    """Says before each run of the network how many masks it may have.

    Args:
        ends: When scoring must end, on the clock of `time.perf_counter`, in seconds; None for no deadline.
        mask_s: An upper estimate of the seconds that a run takes for one mask, until one has been measured.
        progress: Called with the masks scored and the masks planned, whenever there are more of the former.
        cancel: Asked before each run whether to stop.
    """

    def __init__(self, *, ends: float | None, mask_s: float, progress: Progress | None, cancel: Cancel | None) -> None:
        self._ends = ends
        self._mask_s = mask_s
        self._progress = progress
        self._cancel = cancel

    def report(self, done: int, planned: int) -> None:
        """Tell the caller how far it is.

        Args:
            done: Masks scored so far.
            planned: Masks to score altogether.

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

    def measured(self, masks: int, seconds: float) -> None:
        """Take note of what a run took."""
        self._mask_s = seconds / masks

    def room(self, started: int, planned: int) -> int:
        """Return how many masks the next run may have; 0 for none. Even after the deadline there is room for the first.

        Args:
            started: Masks that runs have begun with.
            planned: Masks to score altogether.
        """
        left = planned - started
        if self._cancel is not None and self._cancel.is_set():
            return 0
        if self._ends is None:
            return left
        in_time = (self._ends - time.perf_counter()) / self._mask_s
        return left if in_time >= left else min(left, int(max(in_time, 0 if started else 1)))


def expect_wanted(cancel: Cancel | None) -> None:
    """Check that the caller still wants a result.

    Raises:
        CancelledError: The flag is set.
    """
    if cancel is not None and cancel.is_set():
        raise CancelledError("the explanation was cancelled by its caller; nothing was computed to the end")
