"""Attribution masks: feature maps upsampled, normalised, and applied to the image.

No mask is ever stored: each one is written straight into the scoring batch.
"""

import numpy as np
from numpy.typing import NDArray

from engine.kernels.resample import axis

FLAT = 1e-6


def is_flat(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which feature maps [K, h, w] are constant: max − min ≤ 1e-6·max|F|. Such maps make no mask."""
    high, low = maps.max(axis=(1, 2)), maps.min(axis=(1, 2))
    return np.asarray(high - low <= FLAT * np.maximum(np.abs(high), np.abs(low)))


class MaskWriter:
    """Writes masked images x⊙m + b⊙(1−m) into rows of a batch.

    m = (M − min M)/(max M − min M), where M is the feature map, upsampled bilinearly with half-pixel centres. The map's
    own minimum is taken off before it is upsampled: that changes no mask, and a large offset costs no precision.

    Args:
        image: Network input x, float32 [C, H, W].
        baseline: What masked-out pixels become, float32 [C, H, W], or None for zeros.

    Source: SISE (arXiv 2010.00672), "Attribution mask scoring".
    """

    def __init__(self, image: NDArray[np.float32], baseline: NDArray[np.float32] | None) -> None:
        self._baseline = baseline
        _, height, width = image.shape
        self._contrast = image if baseline is None else image - baseline
        self._mask = np.empty((height, width), np.float32)
        self._scratch = np.empty((height, width), np.float32)

    def write(self, feature_map: NDArray[np.float32], row: NDArray[np.float32]) -> tuple[float, float]:
        """Write one masked image.

        Args:
            feature_map: float32 [h, w], not flat.
            row: float32 [C, H, W], overwritten with the masked image.

        Returns:
            min M and max M − min M of the upsampled map.
        """
        mask, scratch = self._mask, self._scratch
        rows = axis(feature_map.shape[0], mask.shape[0])
        columns = axis(feature_map.shape[1], mask.shape[1])
        base = feature_map.min()
        lifted = feature_map - base
        wide = lifted[:, columns.high]
        start = lifted[:, columns.low]
        wide -= start
        wide *= columns.weight.astype(np.float32)
        wide += start
        step = np.empty_like(wide)
        np.subtract(wide[1:], wide[:-1], out=step[:-1])
        step[-1] = 0.0
        np.take(wide, rows.low, axis=0, out=mask, mode="clip")
        np.take(step, rows.low, axis=0, out=scratch, mode="clip")
        scratch *= rows.weight.astype(np.float32)[:, None]
        mask += scratch
        low = mask.min()
        extent = mask.max() - low
        mask -= low
        if extent > 0:  # 0 only for a map larger than the image, when all the samples happen to be equal
            mask /= extent
        np.multiply(self._contrast, mask, out=row)
        if self._baseline is not None:
            row += self._baseline
        return float(base) + float(low), float(extent)
