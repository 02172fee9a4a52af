"""Feature maps as masks of the image: what is scored, and what is left of each mask when it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.kernels import MaskWriter
from engine.scoring import Write

Floats = NDArray[np.float32]


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


class FeatureMasks:
    """An image under the masks that feature maps make: rows to score.

    Args:
        image: Network input x, float32 [C, H, W].
        baseline: What masked-out pixels become, float32 [C, H, W], or None for zeros.
        maps: Feature maps of each layer, float32 [C_l, h_l, w_l].
        order: (layer, channel) of each mask in the order in which they are scored; none of the maps is flat.
    """

    def __init__(
        self, image: Floats, baseline: Floats | None, maps: Sequence[Floats], order: Sequence[tuple[int, int]]
    ) -> None:
        self.shape: tuple[int, int, int] = (image.shape[0], image.shape[1], image.shape[2])
        self._image = image
        self._baseline = baseline
        self._maps = maps
        self._order = order
        self._minimum, self._extent = np.empty(len(order)), np.empty(len(order))

    def __len__(self) -> int:
        return len(self._order)

    def writer(self) -> Write:
        """Return a function that writes masked images; see `engine.scoring.Rows`."""
        writer = MaskWriter(self._image, self._baseline)

        def write(part: range, batch: Floats) -> None:
            for row, mask in enumerate(part):
                layer, channel = self._order[mask]
                self._minimum[mask], self._extent[mask] = writer.write(self._maps[layer][channel], batch[row])

        return write

    def by_layer(self, scores: NDArray[np.float64]) -> list[ScoredMasks]:
        """Sort what was scored by layer and channel.

        Args:
            scores: float64 [n, K], the scores of the first n masks.
        """
        scored = np.array(self._order[: len(scores)], np.int64).reshape(len(scores), 2)
        layers = []
        for layer in range(len(self._maps)):
            own = np.flatnonzero(scored[:, 0] == layer)
            own = own[np.argsort(scored[own, 1])]
            layers.append(ScoredMasks(scored[own, 1], scores[own], self._minimum[own], self._extent[own]))
        return layers
