"""What took how long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the time spent in each phase, in milliseconds; began now, by `time.perf_counter`."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self._within: list[float] = []
        self.began = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time within a `with` block to a phase, but for that of blocks within it, which is theirs."""
        began = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            took, within = time.perf_counter() - began, self._within.pop()
            self.timings_ms[phase] = self.timings_ms.get(phase, 0.0) + (took - within) * 1e3
            if self._within:
                self._within[-1] += took

    def stop(self) -> None:
        """Note the time since the clock was made as `total`."""
        self.timings_ms["total"] = (time.perf_counter() - self.began) * 1e3
