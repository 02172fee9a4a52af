"""How much alike two heatmaps are.

Two equal heatmaps have similarity 1 by every measure here, constant ones too; a constant one and another have 0.
"""

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.floating]

_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2


def pearson(a: Map, b: Map) -> float:
    """Return Pearson's r = Σ (a − ā)(b − b̄) / √(Σ (a − ā)²·Σ (b − b̄)²), from −1 to 1.

    Args:
        a: Any shape.
        b: The same shape.
    """
    if np.array_equal(a, b):
        return 1.0
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = _standard(x), _standard(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def spearman(a: Map, b: Map) -> float:
    """Return Spearman's ρ: Pearson's r of the ranks, where equal values share the mean of their ranks.

    Args:
        a: Any shape.
        b: The same shape.
    """
    return 1.0 if np.array_equal(a, b) else pearson(_ranks(a), _ranks(b))


def structural_similarity(a: Map, b: Map) -> float:
    """Return the mean SSIM of two heatmaps, from −1 to 1.

    SSIM = (2·μ_a·μ_b + C₁)(2·σ_ab + C₂) / ((μ_a² + μ_b² + C₁)(σ_a² + σ_b² + C₂)) in every 7×7 window that lies within
    the heatmap, its pixels weighing the same, with C₁ = 0.01² and C₂ = 0.03². A smaller heatmap has a smaller window.

    Args:
        a: [H, W] from 0 to 1.
        b: The same shape.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4),
        2004, equation 13.

    Departs: A uniform window in place of a Gaussian one, as scikit-image has it by default.
    """
    if np.array_equal(a, b):
        return 1.0
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean_x, mean_y = _window_means(x), _window_means(y)
    var_x, var_y = (_window_means(v * v) - mean**2 for v, mean in ((x, mean_x), (y, mean_y)))
    covariance = _window_means(x * y) - mean_x * mean_y
    ssim = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    ssim /= (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    return float(ssim.mean())


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values / np.abs(values).max()  # tiny heatmaps would underflow when squared
    centred = centred - centred.mean()
    return np.asarray(centred / np.sqrt(centred @ centred))


def _ranks(values: Map) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()])


def _window_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    size = min(_WINDOW, *values.shape)
    windows = np.lib.stride_tricks.sliding_window_view(values, (size, size))
    return np.asarray(windows.mean(axis=(2, 3)))
