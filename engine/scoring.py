"""Running the network on changed images in batches: the phase in which it runs hundreds of times."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.backends import Session
from engine.errors import ImageError
from engine.job import Arrays, Floats, Job, Rows, Write
from engine.kernels import activate
from engine.lanes import Lanes, SharedLanes
from engine.pace import Pace

__all__ = ["Rows", "Write", "expect_finite", "finite", "run_rows", "score_rows"]


def finite(tensor: NDArray[np.generic]) -> Floats:
    """Return what the network computed as float32.

    Raises:
        ImageError: It holds NaN or infinity.
    """
    values = tensor.astype(np.float32, copy=False)
    expect_finite(bool(np.isfinite(values).all()))
    return values


def expect_finite(finite: bool) -> None:
    """Check that the network has computed nothing but numbers.

    Raises:
        ImageError: It has not.
    """
    if not finite:
        raise ImageError(
            "the network computes NaN or infinity for this image; expected finite logits and gradients: check the "
            "image's range and the preprocessing"
        )


def score_rows(
    session: Session,
    rows: Rows,
    classes: Sequence[int],
    activation: str,
    batch_size: int,
    pace: Pace,
    count: int | None = None,
    shared: SharedLanes | None = None,
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
        shared: The lanes, if rows of other images run in them too.

    Returns:
        float64 [n, K], the scores of the first n rows: of all that were asked for, if the pace let them.

    Raises:
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
        BackendError: The runtime failed, or the system has no more threads.
    """
    count = len(rows) if count is None else count
    scores = np.empty((count, len(classes)))

    def keep(part: range, outputs: Arrays) -> None:
        scores[part.start : part.stop] = activate(finite(outputs[0]), activation)[:, classes]

    return scores[: run_rows(session, rows, count, batch_size, pace, keep, shared=shared)]


def run_rows(
    session: Session,
    rows: Rows,
    count: int,
    batch_size: int,
    pace: Pace,
    keep: Callable[[range, Arrays], None],
    beside: Callable[[range], Arrays] = lambda _: [],
    shared: SharedLanes | None = None,
) -> int:
    """Run a graph on rows, in batches.

    The batch is shared out among as many runs at a time as the session is made for. Each run fills its part of the
    batch and computes it, in a thread of its own (`engine.lanes`).

    Args:
        session: A graph whose first input is rows [N, C, H, W].
        rows: What to run it on.
        count: Run it on the first so many.
        batch_size: Rows that all runs together hold, but one at least in each.
        pace: Says before each run how far to go.
        keep: Takes the numbers of the rows of a run, and the graph's outputs for them; called in several threads, one
            at a time.
        beside: Gives the graph's other inputs for the rows of these numbers.
        shared: The lanes, if rows of other images run in them too.

    Returns:
        How many rows were run, from the first.

    Raises:
        CancelledError: The caller wants no result any more.
        BackendError: The runtime failed, or the system has no more threads.
    """
    if shared is not None:
        return shared.of(session).run(Job(rows, count, batch_size, pace, keep, beside))
    runs = max(1, min(session.runs_at_once, count))
    most = max(1, min(batch_size, count) // runs)
    lanes = Lanes(session, runs, most)
    try:
        return lanes.run(Job(rows, count, most, pace, keep, beside))
    finally:
        lanes.close(wait=pace.ends is None)  # with a deadline, a run that was stopped is not waited for
