"""What pieces of work have lately taken: from that, deadlines are planned."""

from collections import Counter, deque
from threading import Lock

_REMEMBERED = 64
_MARGIN = 1.25
_PATIENCE = 8


class Costs:
    """Running estimates of what pieces of work take, in seconds, by their names. Any number of threads may use it.

    They are made of the last 64 measurements, so that they follow what else the machine has to do. The very first of
    any work does not count: runtimes prepare themselves in it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._taken: dict[str, deque[float]] = {}
        self._refused: Counter[str] = Counter()

    def note(self, work: str, seconds: float) -> None:
        """Take note of what a piece of work took."""
        with self._lock:
            self._refused[work] = 0
            if work in self._taken:
                self._taken[work].append(seconds)
            else:
                self._taken[work] = deque(maxlen=_REMEMBERED)

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
            self._refused[work] += 1
            count, taken = self._refused[work], self._taken.get(work, deque())
            if count % _REMEMBERED == 0:
                taken.clear()
            elif count % _PATIENCE == 0:
                for _ in range(len(taken) // 2):
                    taken.remove(max(taken))

    def usual(self, work: str) -> float | None:
        """Return the median; None if it is not known."""
        ordered = self._ordered(work)
        return ordered[(len(ordered) - 1) // 2] if ordered else None

    def high(self, work: str) -> float | None:
        """Return what is hardly ever exceeded: the largest, and a quarter more; None if it is not known."""
        ordered = self._ordered(work)
        return _MARGIN * ordered[-1] if ordered else None

    def _ordered(self, work: str) -> list[float]:
        with self._lock:
            return sorted(self._taken.get(work, ()))
