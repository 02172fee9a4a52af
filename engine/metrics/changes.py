"""Images changed as a heatmap says: rows to score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.metrics.order import most_salient
from engine.scoring import Write

Floats = NDArray[np.float32]

_BLUR_PIXELS, _BLUR_SIGMA = 11, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Some pixels stay, the others become zero in the network's input space, or blurred.

    Attributes:
        first: Of the pixels in the order of `engine.metrics.order.most_salient`, the first that stays.
        end: The first after it that does not.
        blurred: Whether the others are blurred, as `blur` does it.
    """

    first: int
    end: int
    blurred: bool = False


@dataclass(frozen=True, slots=True)
class Weigh:
    """The image x becomes x⊙H: every pixel times its saliency, in the network's input space."""


Change: TypeAlias = Keep | Weigh


class ChangedImages:
    """Changed forms of one image: rows to score.

    Args:
        image: Network input x, float32 [C, H, W].
        heatmap: H, float32 [H, W].
        changes: What is done to each.
    """

    def __init__(self, image: Floats, heatmap: Floats, changes: Sequence[Change]) -> None:
        self.shape: tuple[int, int, int] = (image.shape[0], image.shape[1], image.shape[2])
        self._image = image
        self._heatmap = heatmap
        self._changes = changes
        self._place = np.empty(heatmap.shape, np.int64)
        self._place.flat[most_salient(heatmap)] = np.arange(heatmap.size)
        blurs = any(isinstance(change, Keep) and change.blurred for change in changes)
        self._blurred = blur(image) if blurs else np.zeros_like(image)

    def __len__(self) -> int:
        return len(self._changes)

    def writer(self) -> Write:
        """Return a function that writes changed images; see `engine.scoring.Rows`."""

        def write(part: range, batch: Floats) -> None:
            for row, number in zip(batch, part, strict=False):  # the last batch is not full
                change = self._changes[number]
                if isinstance(change, Weigh):
                    np.multiply(self._image, self._heatmap, out=row)
                else:
                    row[...] = self._blurred if change.blurred else 0.0
                    stays = (self._place >= change.first) & (self._place < change.end)
                    np.copyto(row, self._image, where=stays)

        return write


def blur(image: Floats) -> Floats:
    """Blur an image as insertion begins, by 11×11 pixels with σ = 5; beyond the border lie zeros.

    Args:
        image: float32 [C, H, W].

    Source: RISE (arXiv 1806.07421), the authors' code: `gkern(11, 5)` is SciPy's Gaussian filter of one pixel in the
        middle of 11×11, whose tails beyond the edge are reflected back, so that the weights are far more even than a
        Gaussian's.
    """
    rows, columns = (_blur_matrix(size) for size in image.shape[1:])
    return np.asarray(rows @ image @ columns.T, np.float32)


def _blur_matrix(size: int) -> NDArray[np.float64]:
    """Return the matrix [size, size] that blurs along one axis."""
    reach = round(4 * _BLUR_SIGMA)  # SciPy cuts the Gaussian here
    offsets = np.arange(-reach, reach + 1)
    gaussian = np.exp(-0.5 * (offsets / _BLUR_SIGMA) ** 2)
    period = (offsets + _BLUR_PIXELS // 2) % (2 * _BLUR_PIXELS)
    folded = np.where(period < _BLUR_PIXELS, period, 2 * _BLUR_PIXELS - 1 - period)
    weights = np.bincount(folded, gaussian / gaussian.sum(), _BLUR_PIXELS)
    distance = np.arange(size)[:, None] - np.arange(size) + _BLUR_PIXELS // 2
    inside = (distance >= 0) & (distance < _BLUR_PIXELS)
    return np.where(inside, weights[distance.clip(0, _BLUR_PIXELS - 1)], 0.0)
