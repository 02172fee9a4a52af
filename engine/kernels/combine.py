"""From scores to the visualization map of a layer."""

import numpy as np
from numpy.typing import NDArray

from engine.kernels.resample import axis, upsample

FLAT = 1e-6


def activate(logits: NDArray[np.float32], activation: str) -> NDArray[np.float64]:
    """Turn logits [N, classes] into class scores float64 [N, classes]: `softmax`, `sigmoid` or `none`."""
    values = logits.astype(np.float64)
    if activation == "softmax":
        values = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(values / values.sum(axis=1, keepdims=True))
    if activation == "sigmoid":
        return logistic(values)
    return values


def logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return σ(z) = 1/(1 + exp(−z)), to full relative precision also where it is tiny."""
    return np.exp(-np.logaddexp(0.0, -values))


def visualization_map(
    maps: NDArray[np.float32],
    scores: NDArray[np.float64],
    minimum: NDArray[np.float64],
    extent: NDArray[np.float64],
    size: tuple[int, int],
) -> NDArray[np.float64] | None:
    """Weigh a layer's masks by their scores: V = Σ p_k·m_k/‖m_k‖₁, scaled to 0 … 1.

    Upsampling is linear, so Σ w_k·m_k = U(Σ (w_k/r_k)·F_k) − Σ w_k·min_k/r_k: the sum is taken at the resolution of the
    feature maps and upsampled once. The areas ‖m_k‖₁ follow in the same way. All of it is float64.

    Args:
        maps: Feature maps of the scored masks, float32 [K, h, w].
        scores: Class scores p, float64 [K].
        minimum: Minimum of each upsampled map, float64 [K].
        extent: Maximum less minimum of each upsampled map, r, float64 [K].
        size: H and W of the image.

    Returns:
        float64 [H, W] from 0 to 1, or None when there is no mask or the map is constant (max − min ≤ 1e-6·max|V|).

    Source: SISE (arXiv 2010.00672), "Attribution mask scoring".
    """
    if len(maps) == 0:
        return None
    rows, columns = axis(maps.shape[1], size[0]), axis(maps.shape[2], size[1])
    total = np.einsum("khw,w->kh", maps, columns.total, dtype=np.float64) @ rows.total
    mass = total - minimum * size[0] * size[1]  # ‖m‖₁·r, so that p/(‖m‖₁·r) is one division
    weight = np.divide(scores, mass, out=np.zeros_like(mass), where=extent > 0)
    summed = upsample(np.einsum("k,khw->hw", weight, maps, dtype=np.float64), size) - float(weight @ minimum)
    return scale_to_unit(summed)


def scale_to_unit(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Scale linearly to 0 … 1; None when the values are constant (max − min ≤ 1e-6·max|V|)."""
    low, high = float(values.min()), float(values.max())
    if high - low <= FLAT * max(abs(low), abs(high)):
        return None
    return np.asarray((values - low) / (high - low))
