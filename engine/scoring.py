"""Scoring masked images in batches: the phase in which the network runs hundreds of times."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends import Session
from engine.errors import ImageError
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
    batch and scores it, in a thread of its own; the caller's thread hands the masks out, in order.

    Args:
        forward: The network, image [N, C, H, W] → logits [N, classes].
        image: Network input x, float32 [C, H, W].
        baseline: What masked-out pixels become, float32 [C, H, W], or None for zeros.
        maps: Feature maps of each layer, float32 [1, C_l, h_l, w_l].
        masks: (layer, channel) of each mask in the order in which they are scored; none of the maps is flat.
        classes: Indices of the K classes whose scores are kept.
        activation: What turns logits into class scores.
        batch_size: Masked images that are scored at a time.
        pace: Says before each run how far to go.

    Returns:
        The scored masks of each layer.

    Raises:
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
    """
    scores = np.empty((len(masks), len(classes)))
    minimum, extent = np.empty(len(masks)), np.empty(len(masks))

    def score(lane: _Lane, start: int, size: int) -> float:
        began = time.perf_counter()
        for row, (layer, channel) in enumerate(masks[start : start + size]):
            minimum[start + row], extent[start + row] = lane.writer.write(maps[layer][0, channel], lane.batch[row])
        (logits,) = forward.run([lane.batch[:size]])
        scores[start : start + size] = activate(finite(logits), activation)[:, classes]
        return time.perf_counter() - began

    lanes = forward.runs_at_once
    rows = max(1, min(batch_size, len(masks)) // lanes)
    free = [_Lane(MaskWriter(image, baseline), np.empty((rows, *image.shape), np.float32)) for _ in range(lanes)]
    started = done = 0
    running: dict[Future[float], tuple[_Lane, int]] = {}
    with ThreadPoolExecutor(lanes, "engine-scoring") as pool:
        while True:
            pace.report(done, len(masks))
            while free and (room := pace.room(started, len(masks))):
                size = min(room, rows, -(-(len(masks) - started) // lanes))  # no run lags behind at the end
                lane = free.pop()
                running[pool.submit(score, lane, started, size)] = lane, size
                started += size
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                lane, size = running.pop(future)
                pace.measured(size, future.result())
                free.append(lane)
                done += size
    scored = np.array(masks[:done], np.int64).reshape(done, 2)
    by_layer = []
    for layer in range(len(maps)):
        own = np.flatnonzero(scored[:, 0] == layer)
        own = own[np.argsort(scored[own, 1])]
        by_layer.append(ScoredMasks(scored[own, 1], scores[own], minimum[own], extent[own]))
    return by_layer


@dataclass(frozen=True, slots=True, eq=False)
class _Lane:
    """What one run at a time needs for itself: a mask writer, and its part of the batch, float32 [N, C, H, W]."""

    writer: MaskWriter
    batch: NDArray[np.float32]
