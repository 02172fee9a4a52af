"""How the threads that work on one explanation are shared out."""

import os
from dataclasses import dataclass
from typing import Self

import numpy as np

from engine.errors import BackendError, OptionError

_MOST_THREADS = 1024


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """The threads of one explanation; checked when made.

    Attributes:
        total: How many there are. A graph that is run once in an explanation has them all.
        lanes: How many runs at a time there are of a graph that is run often; they have `total // lanes` threads each.
        spinning: Whether a thread that waits for the others of its run keeps its CPU busy.

    Raises:
        OptionError: There are more lanes than threads, or a value is of another kind.
    """

    total: int
    lanes: int
    spinning: bool

    @classmethod
    def of(cls, threads: int | None, lanes: int | None, spinning: bool | None) -> Self:
        """Return what a caller asked for.

        Args:
            threads: How many; None for one per CPU that this process may use.
            lanes: None for one per thread (decision 6).
            spinning: None for False (decision 11).
        """
        total = usable_cpus() if threads is None else threads
        return cls(
            total=total, lanes=total if lanes is None else lanes, spinning=False if spinning is None else spinning
        )

    def __post_init__(self) -> None:
        if not _is_whole(self.total, _MOST_THREADS):
            raise OptionError(
                f"threads is {self.total!r}; expected a whole number from 1 to {_MOST_THREADS}, or None for one per CPU"
            )
        if not _is_whole(self.lanes, self.total):
            raise OptionError(
                f"lanes is {self.lanes!r}; expected a whole number from 1 to the number of threads, {self.total}, or "
                "None for one per thread"
            )
        if not isinstance(self.spinning, bool):
            raise OptionError(f"spinning is {self.spinning!r}; expected True, False, or None for the best choice")

    def shared_out(self, many_runs: bool) -> tuple[int, int]:
        """Return how many threads a run has, and how many runs there are at a time."""
        lanes = int(self.lanes) if many_runs else 1
        return int(self.total) // lanes, lanes


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 1 <= int(value) <= most


def expect_same_process(name: str, process: int, remedy: str) -> None:
    """Check that a session's threads are there.

    Args:
        name: What messages call the graph.
        process: The process that opened it.
        remedy: What to do instead, in words.

    Raises:
        BackendError: It was opened before a fork, which its threads did not survive.
    """
    if process != os.getpid():
        raise BackendError(
            f"{name}: was opened by process {process}, and its threads did not survive the fork into process "
            f"{os.getpid()}; {remedy}"
        )
