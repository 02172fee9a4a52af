"""Rounding a convolution's weights to 8 bits so that its outputs, rather than the weights, stay what they were."""

import numpy as np
from numpy.typing import NDArray

Array64 = NDArray[np.float64]

LARGEST = 127
_DAMPING = 1e-2
_SWEEPS = 6
_ROWS = 64  # the errors of so many output channels fit into the cache


def round_weights(weights: Array64, scale: Array64, covariance: Array64 | None) -> Array64:
    """Return integers q that make (s·q − w)ᵀ·Σ·(s·q − w) small: the variance of the error of each output.

    Nearest rounding is where it begins. Then one weight at a time takes the integer that is best given the others, in
    several sweeps. Rounding each by itself is worst where inputs go together: a depthwise filter that takes differences
    of neighbouring pixels cares for the sum of its weights, which nearest rounding does not keep.

    Args:
        weights: w, float64 [G, O, K]: groups, output channels of each, fan-in.
        scale: s of each output channel, float64 [G, O].
        covariance: Σ of each group's input windows, float64 [G, K, K]; None for nearest rounding.

    Returns:
        float64 [G, O, K], whole numbers from −127 to 127.

    Source: The quadratic form is that of Nagel et al., "Up or down? Adaptive rounding for post-training quantization",
        ICML 2020, section 3.2, equation 13. Departs: coordinate descent in place of its relaxation, and over all
        integers.
    """
    step = scale[:, :, None]
    rounded = np.clip(np.round(weights / step), -LARGEST, LARGEST)
    if covariance is None:
        return rounded
    fan_in = weights.shape[2]
    # Damped, so that directions in which the calibration photos do not vary count for something.
    ridge = _DAMPING * np.trace(covariance, axis1=1, axis2=2) / fan_in
    damped = covariance + (ridge + np.finfo(np.float64).tiny)[:, None, None] * np.eye(fan_in)
    for start in range(0, weights.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        rounded[:, rows] = _descend(weights[:, rows], scale[:, rows], rounded[:, rows], damped)
    return rounded


def _descend(weights: Array64, scale: Array64, rounded: Array64, covariance: Array64) -> Array64:
    """Improve the integers of some output channels, one weight after the other."""
    error = rounded * scale[:, :, None] - weights
    slope = np.matmul(error, covariance)
    rounded = rounded.copy()
    for _ in range(_SWEEPS):
        before = rounded.copy()
        for k in range(weights.shape[2]):
            wanted = weights[:, :, k] + error[:, :, k] - slope[:, :, k] / covariance[:, k, k, None]
            best = np.clip(np.round(wanted / scale), -LARGEST, LARGEST)
            change = (best - rounded[:, :, k]) * scale
            if change.any():
                rounded[:, :, k] = best
                error[:, :, k] += change
                slope += change[:, :, None] * covariance[:, None, k]
        if np.array_equal(before, rounded):
            break
    return rounded
