"""The deadline of one call: which runs of the network still fit, and when one that takes too long is stopped."""

import time
from collections.abc import Callable

from engine.costs import Costs
from engine.errors import DeadlineError
from engine.options import Options

FINISH = "finish {}"
"""What the running estimates call what a method does for a class after its last run of the network."""


class Deadline:
    """When a result shall be there, planned from running estimates; without `deadline_ms`, never.

    Args:
        options: How to ask: `deadline_ms`, and in `too_late` whether a late map has one of the last layer in its place.
        costs: What runs have taken lately.
        began: When the call began, on the clock of `time.perf_counter`, in seconds.
        finish_s: Says what is to be done for each class after the last run of the network, in seconds, as it seems now.
        classes: How many classes are explained.
        spare: What `costs` calls a run for the maps that take the place of late ones.
        spare_runs: How many such runs those of all classes take.
    """

    def __init__(
        self,
        options: Options,
        costs: Costs,
        began: float,
        finish_s: Callable[[], float],
        *,
        classes: int,
        spare: str,
        spare_runs: int,
    ) -> None:
        self._ms = options.deadline_ms
        self._ends = None if self._ms is None else began + self._ms / 1e3
        self._spares = options.too_late != "error"
        self._costs = costs
        self._finish_s_each = finish_s
        self._classes = classes
        self._spare = spare
        self._spare_runs = spare_runs

    def lift(self) -> None:
        """Let everything from now on be carried out to the end."""
        self._ends = None

    @property
    def spares(self) -> bool:
        """Whether time is kept for maps in the place of late ones."""
        return self._ends is not None and self._spares

    @property
    def spare_s(self) -> float | None:
        """What those maps take at most, in seconds; None if it is not known."""
        run = self._costs.high(self._spare)
        return None if run is None else self._spare_runs * run + self._spare_finish_s

    def expect_time_to_score(self) -> float | None:
        """Return when scoring must end, on the clock of `time.perf_counter`; None for never.

        Raises:
            DeadlineError: There is no time for what comes after it.
        """
        ends = None if self._ends is None else self._ends - self._finish_s
        if ends is not None and ends < time.perf_counter():
            raise self.error("there was no time left for masks")
        return ends

    def expect_time_for(self, work: str, graph: str, *, has_spare: bool) -> float | None:
        """Return when a run is to be stopped, on the clock of `time.perf_counter`; None for never.

        A run whose cost is not known yet is tried. One that will hardly be late itself needs no reserve.

        Args:
            work: What the estimates call the run.
            graph: What the graph is called.
            has_spare: Whether the maps in the place of late ones need no run any more.

        Raises:
            DeadlineError: It would be late.
        """
        if self._ends is None:
            return None
        now = time.perf_counter()
        until = self._ends - self._kept_s(has_spare=has_spare)
        usual, high = self._costs.usual(work), self._costs.high(work)
        if high is not None and now + high <= self._ends - self._finish_s:
            until = max(until, now + high)
        if now + (usual or 0.0) > until:
            self._costs.refused(work)
            raise self.error(f"there was no time to run {graph}.onnx")
        return until

    def error(self, what: str) -> DeadlineError:
        """Return the error that the deadline is too short.

        Args:
            what: Shows it.
        """
        return DeadlineError(
            f"deadline_ms is {self._ms:g}, and {what}; expected a longer one, or too_late='grad-cam', which gives a "
            "map of the last layer in the place of a late one"
        )

    @property
    def _finish_s(self) -> float:
        return self._classes * self._finish_s_each()

    @property
    def _spare_finish_s(self) -> float:
        return self._classes * (self._costs.high(FINISH.format("grad-cam")) or 0.0)

    def _kept_s(self, *, has_spare: bool) -> float:
        """Return what comes after a run that may be late, in seconds."""
        if not self._spares:
            return self._finish_s
        return self._spare_finish_s if has_spare else self.spare_s or 0.0
