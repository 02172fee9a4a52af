"""Scoring masked images in batches: the phase in which the network runs hundreds of times."""

from collections.abc import Sequence
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
    writer: MaskWriter,
    maps: Sequence[NDArray[np.float32]],
    masks: Sequence[tuple[int, int]],
    classes: Sequence[int],
    activation: str,
    batch: NDArray[np.float32],
    pace: Pace,
) -> list[ScoredMasks]:
    """Score the image under the masks that the given feature maps make.

    Args:
        forward: The network, image [N, C, H, W] → logits [N, classes].
        writer: Writes masked images.
        maps: Feature maps of each layer, float32 [1, C_l, h_l, w_l].
        masks: (layer, channel) of each mask in the order in which they are scored; none of the maps is flat.
        classes: Indices of the K classes whose scores are kept.
        activation: What turns logits into class scores.
        batch: float32 [N, C, H, W], the buffer that is filled and scored again and again; its content is of no use
            after.
        pace: Says before each batch how far to go.

    Returns:
        The scored masks of each layer.

    Raises:
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
    """
    scores = np.empty((len(masks), len(classes)))
    minimum, extent = np.empty(len(masks)), np.empty(len(masks))
    done = 0
    while size := min(pace.room(done, len(masks)), len(batch)):
        for row, (layer, channel) in enumerate(masks[done : done + size]):
            minimum[done + row], extent[done + row] = writer.write(maps[layer][0, channel], batch[row])
        (logits,) = forward.run([batch[:size]])
        scores[done : done + size] = activate(finite(logits), activation)[:, classes]
        done += size
    scored = np.array(masks[:done], np.int64).reshape(done, 2)
    by_layer = []
    for layer in range(len(maps)):
        own = np.flatnonzero(scored[:, 0] == layer)
        own = own[np.argsort(scored[own, 1])]
        by_layer.append(ScoredMasks(scored[own, 1], scores[own], minimum[own], extent[own]))
    return by_layer
