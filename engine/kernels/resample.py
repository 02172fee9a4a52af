"""Bilinear upsampling with half-pixel centres, as a linear map.

Source: ONNX operator specification, Resize with mode `linear` and coordinate transformation `half_pixel`; the same as
torch's `interpolate(mode="bilinear", align_corners=False)`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Interpolation along one axis: output i = (1 − t_i)·input[low_i] + t_i·input[high_i].

    Attributes:
        low: int64 [size], index of the sample before.
        high: int64 [size], index of the sample after; equal to `low` at the border.
        weight: float64 [size], t, from 0 to 1.
        total: float64 [input size], the sum of each input sample's weights over the whole output.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float64]
    total: NDArray[np.float64]


@lru_cache(maxsize=64)
def axis(source: int, size: int) -> Axis:
    """Return the interpolation from `source` to `size` samples."""
    position = np.clip((np.arange(size) + 0.5) * (source / size) - 0.5, 0, source - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    weight = position - low
    total = np.bincount(low, 1.0 - weight, source) + np.bincount(high, weight, source)
    for array in (low, high, weight, total):
        array.flags.writeable = False
    return Axis(low, high, weight, np.asarray(total, np.float64))


def upsample(image: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Upsample [h, w] to [H, W] in float64."""
    rows, columns = axis(image.shape[0], size[0]), axis(image.shape[1], size[1])
    wide = image[:, columns.low] * (1.0 - columns.weight) + image[:, columns.high] * columns.weight
    return wide[rows.low] * (1.0 - rows.weight)[:, None] + wide[rows.high] * rows.weight[:, None]
