"""Scoring masked images in batches: the phase in which the network runs hundreds of times."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends import Session
from engine.errors import ImageError
from engine.kernels import MaskWriter, activate


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
    channels: Sequence[NDArray[np.int64]],
    classes: Sequence[int],
    activation: str,
    batch: NDArray[np.float32],
) -> list[ScoredMasks]:
    """Score the image under the masks that the given feature maps make.

    Args:
        forward: The network, image [N, C, H, W] → logits [N, classes].
        writer: Writes masked images.
        maps: Feature maps of each layer, float32 [1, C_l, h_l, w_l].
        channels: For each layer the channels to score, int64, ascending, none of them flat.
        classes: Indices of the K classes whose scores are kept.
        activation: What turns logits into class scores.
        batch: float32 [N, C, H, W], the buffer that is filled and scored again and again; its content is of no use
            after.

    Returns:
        The scored masks of each layer.

    Raises:
        ImageError: The network computes NaN or infinity.
    """
    layers = [
        ScoredMasks(kept, np.empty((len(kept), len(classes))), np.empty(len(kept)), np.empty(len(kept)))
        for kept in channels
    ]
    places = [(number, position) for number, layer in enumerate(layers) for position in range(len(layer.channels))]
    for start in range(0, len(places), len(batch)):
        part = places[start : start + len(batch)]
        for row, (number, position) in zip(batch, part, strict=False):
            layer = layers[number]
            feature_map = maps[number][0, layer.channels[position]]
            layer.minimum[position], layer.extent[position] = writer.write(feature_map, row)
        (logits,) = forward.run([batch[: len(part)]])
        scores = activate(finite(logits), activation)[:, classes]
        for (number, position), score in zip(part, scores, strict=True):
            layers[number].scores[position] = score
    return layers
