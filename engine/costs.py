"""What pieces of work have lately taken: from that, deadlines are planned."""

import time
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import Lock

_REMEMBERED = 64
_MARGIN = 1.25
_PATIENCE = 8


class Costs:
    """Running estimates of what pieces of work take, in seconds, by their names. Any number of threads may use it.

    They are made of the last 64 measurements, so that they follow what else the machine has to do. The very first of
    any work does not count: runtimes prepare themselves in it.

    Calls that are under way at the same time share the machine, so each load has measurements of its own: one call,
    two, 3–4, 5–8 and so on. Work under which the load has changed belongs to the highest: that keeps the others clean,
    and what is too short there goes under among the rest. A load at which work is new begins with two guesses by the
    next one, the lower first: its median, as if calls did not share, and that as often as there are more of them, as
    if they took turns.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._taken: dict[str, dict[int, deque[float]]] = {}
        self._refused: Counter[tuple[str, int]] = Counter()
        self._calls = 0
        self._left: dict[int, float] = {}  # when a call has last ended at each load, by `time.perf_counter`

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call as under way, within a `with` block."""
        with self._lock:
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._left[self._load] = time.perf_counter()
                self._calls -= 1

    def note(self, work: str, seconds: float, times: int = 1) -> None:
        """Take note of what a piece of work took that was done so many times, and has just ended."""
        with self._lock:
            began = time.perf_counter() - seconds
            load = max([self._load, *(load for load, left in self._left.items() if left > began)])
            self._refused[work, load] = 0
            if work in self._taken:
                self._at(work, load).append(seconds / times)
            else:
                self._taken[work] = {}

    def note_stopped(self, work: str, seconds: float) -> None:
        """Take note of work that was stopped after so long: it takes longer than that."""
        usual = self.usual(work)
        if usual is None or seconds > usual:
            self.note(work, seconds)

    def refused(self, work: str) -> None:
        """Take note that work was not begun, since there seems to be no time for it.

        After every eighth time without a measurement the larger half of them is forgotten, after the 64th all, or work
        that was slow for a moment would never be measured again.
        """
        with self._lock:
            self._refused[work, self._load] += 1
            count, taken = self._refused[work, self._load], self._at(work, self._load)
            if count % _REMEMBERED == 0:
                taken.clear()
            elif count % _PATIENCE == 0:
                for _ in range(len(taken) // 2):
                    taken.remove(max(taken))

    def usual(self, work: str) -> float | None:
        """Return the median; None if it is not known."""
        with self._lock:
            taken = self._at(work, self._load)
            return _median(taken) if taken else None

    def high(self, work: str) -> float | None:
        """Return what is hardly ever exceeded: the largest, and a quarter more; None if it is not known."""
        with self._lock:
            taken = self._at(work, self._load)
            return _MARGIN * max(taken) if taken else None

    @property
    def _load(self) -> int:
        """0 for one call, 1 for two, 2 for up to four, 3 for up to eight."""
        return max(0, self._calls - 1).bit_length()

    def _at(self, work: str, load: int) -> deque[float]:
        """Return what work has taken at a load, or the guesses."""
        if work not in self._taken:
            return deque()
        loads = self._taken[work]
        if load not in loads:
            known = [other for other in loads if loads[other]]
            loads[load] = deque(maxlen=_REMEMBERED)
            if known:
                near = min(known, key=lambda other: (other > load, abs(other - load)))
                usual = _median(loads[near])
                loads[load].extend((usual, 2.0 ** (load - near) * usual))
        return loads[load]


def _median(taken: Collection[float]) -> float:
    return sorted(taken)[(len(taken) - 1) // 2]
