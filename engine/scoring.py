"""Scoring masked images in batches: the phase in which the network runs hundreds of times."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread

import numpy as np
from numpy.typing import NDArray

from engine.backends import Session
from engine.errors import BackendError, ImageError
from engine.kernels import MaskWriter, activate
from engine.pace import Pace


@dataclass(frozen=True, slots=True, eq=False)
class ScoredMasks:
    """The scored masks of one layer, of all classes together.

    Attributes:
        channels: int64 [n], ascending.
        scores: float64 [n, K], the masks' scores for the K classes.
        minimum: float64 [n], minimum of each upsampled map.
        extent: float64 [n], maximum less minimum of each upsampled map.
    """

    channels: NDArray[np.int64]
    scores: NDArray[np.float64]
    minimum: NDArray[np.float64]
    extent: NDArray[np.float64]

    def positions_of(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return, for each of these channels, its position among the scored ones, or −1 where it was not scored."""
        positions = np.full(int(max(channels.max(initial=-1), self.channels.max(initial=-1))) + 1, -1, np.int64)
        positions[self.channels] = np.arange(len(self.channels))
        return positions[channels]


def finite(tensor: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return what the network computed as float32.

    Raises:
        ImageError: It holds NaN or infinity.
    """
    values = tensor.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ImageError(
            "the network computes NaN or infinity for this image; expected finite logits and gradients: check the "
            "image's range and the preprocessing"
        )
    return values


def score_masks(
    forward: Session,
    image: NDArray[np.float32],
    baseline: NDArray[np.float32] | None,
    maps: Sequence[NDArray[np.float32]],
    masks: Sequence[tuple[int, int]],
    classes: Sequence[int],
    activation: str,
    batch_size: int,
    pace: Pace,
) -> list[ScoredMasks]:
    """Score the image under the masks that the given feature maps make.

    The batch is shared out among as many runs at a time as the session is made for. Each run fills its part of the
    batch and scores it, in a thread of its own; the caller's thread watches, so that progress is told there.

    Args:
        forward: The network, image [N, C, H, W] → logits [N, classes].
        image: Network input x, float32 [C, H, W].
        baseline: What masked-out pixels become, float32 [C, H, W], or None for zeros.
        maps: Feature maps of each layer, float32 [1, C_l, h_l, w_l].
        masks: (layer, channel) of each mask in the order in which they are scored; none of the maps is flat.
        classes: Indices of the K classes whose scores are kept.
        activation: What turns logits into class scores.
        batch_size: Masked images that all runs together hold, but one at least in each.
        pace: Says before each run how far to go.

    Returns:
        The scored masks of each layer.

    Raises:
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
        BackendError: The runtime failed, or the system has no more threads.
    """
    scores = np.empty((len(masks), len(classes)))
    minimum, extent = np.empty(len(masks)), np.empty(len(masks))
    lanes = max(1, min(forward.runs_at_once, len(masks)))
    rows = max(1, min(batch_size, len(masks)) // lanes)
    queue = _Queue(len(masks), lanes, rows, pace)

    def work() -> None:
        writer, batch = MaskWriter(image, baseline), np.empty((rows, *image.shape), np.float32)
        while part := queue.take():
            began = time.perf_counter()
            for row, mask in enumerate(part):
                layer, channel = masks[mask]
                minimum[mask], extent[mask] = writer.write(maps[layer][0, channel], batch[row])
            (logits,) = forward.run([batch[: len(part)]])
            scores[part.start : part.stop] = activate(finite(logits), activation)[:, classes]
            queue.finish(part, time.perf_counter() - began)

    done = 0
    with _threads(queue, lanes, work):
        for done in queue.watch():
            pace.report(done, len(masks))
    pace.expect_wanted()
    scored = np.array(masks[:done], np.int64).reshape(done, 2)
    by_layer = []
    for layer in range(len(maps)):
        own = np.flatnonzero(scored[:, 0] == layer)
        own = own[np.argsort(scored[own, 1])]
        by_layer.append(ScoredMasks(scored[own, 1], scores[own], minimum[own], extent[own]))
    return by_layer


@contextmanager
def _threads(queue: "_Queue", count: int, work: Callable[[], None]) -> Iterator[None]:
    """Let threads work on a queue, and end with them; what one of them raises is raised here.

    They are plain threads: a pool of `concurrent.futures` takes no work once the main thread has ended, while other
    threads of the program may go on.

    Raises:
        BackendError: The system has no more threads.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as err:
            failures.append(err)
            queue.stop()
        finally:
            queue.leave()

    threads = [Thread(target=run, name=f"engine-scoring-{number}") for number in range(count)]
    started: list[Thread] = []
    try:
        for thread in threads:
            try:
                thread.start()
            except RuntimeError as err:
                raise BackendError(
                    f"only {len(started)} of {count} threads could be started ({err}); expected all: load the bundle "
                    "with fewer threads"
                ) from err
            started.append(thread)
        yield
    finally:
        queue.stop()
        for thread in started:
            thread.join()
    if failures:
        raise failures[0]


class _Queue:
    """The masks that wait to be scored: lanes take them, each in its own thread, and the caller's thread watches.

    Args:
        masks: How many there are.
        lanes: How many lanes take them.
        most: The most that a lane may take at a time.
        pace: Says how far to go.
    """

    def __init__(self, masks: int, lanes: int, most: int, pace: Pace) -> None:
        self._masks = masks
        self._lanes = lanes
        self._most = most
        self._pace = pace
        self._taken = 0
        self._stopped = False
        self._lock = Lock()
        self._finished: SimpleQueue[int | None] = SimpleQueue()

    def take(self) -> range:
        """Give a lane the next masks, by their numbers; none when there is nothing left to do."""
        with self._lock:
            room = 0 if self._stopped else self._pace.room(self._taken, self._masks)
            left = self._masks - self._taken
            part = range(self._taken, self._taken + min(room, self._most, -(-left // self._lanes)))  # all end together
            self._taken = part.stop
            return part

    def finish(self, part: range, seconds: float) -> None:
        """Take note that masks were scored, and of the time that it took."""
        with self._lock:
            self._pace.measured(len(part), seconds)
        self._finished.put(len(part))

    def leave(self) -> None:
        """Take note that a lane has ended."""
        self._finished.put(None)

    def stop(self) -> None:
        """Give out no more masks."""
        with self._lock:
            self._stopped = True

    def watch(self) -> Iterator[int]:
        """Yield how many masks were scored, at the beginning and whenever there are more, until no lane works."""
        done, working = 0, self._lanes
        yield done
        while working:
            finished = self._finished.get()
            if finished is None:
                working -= 1
            else:
                done += finished
                yield done
