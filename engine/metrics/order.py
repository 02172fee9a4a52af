"""Pixels in the order of their saliency."""

import numpy as np
from numpy.typing import NDArray


def most_salient(heatmap: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the positions of all pixels in the flattened heatmap, the most salient first, int64 [H·W].

    Equal pixels keep reading order: row by row from the top, each from the left. So every platform, and every method,
    has the same order; no measure's source says which it takes.

    Args:
        heatmap: [H, W].
    """
    return np.argsort(-heatmap.ravel(), kind="stable").astype(np.int64, copy=False)
