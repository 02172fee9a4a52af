"""Fusing the layers' visualization maps into the heatmap."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.kernels.combine import logistic, scale_to_unit

FUSIONS = ("hard", "soft")
_BINS = 256
_SHARPNESS = 100.0
_RAISED = 1.5
_FEW = 0.1

Map = NDArray[np.float64]


def fuse(maps: Sequence[Map | None], fusion: str) -> tuple[Map | None, list[float | None]]:
    """Fuse visualization maps, shallow to deep: E_1 = V_1, E_l = (E_{l−1} + V_l)·[V_l > t_l], then scale to 0 … 1.

    Args:
        maps: V_1 … V_L, float64 [H, W] from 0 to 1; None for a layer without one, which is skipped.
        fusion: `hard` cuts at the Otsu threshold t_l; `soft` weighs with the logistic function σ((V_l − t)·100)
            instead, with t = 1.5·t_l if fewer than 10 % of the pixels exceed that, else t = t_l.

    Returns:
        The heatmap float64 [H, W] from 0 to 1, or None when it is constant, and the threshold of each layer: None for a
        skipped layer and for the first that has a map, which is not cut.

    Source: SISE (arXiv 2010.00672), "Fusion module". Departs: `soft` is the form of code published by the
    method's group.
    """
    fused: Map | None = None
    thresholds: list[float | None] = []
    for current in maps:
        threshold = None
        if current is not None and fused is None:
            fused = current
        elif current is not None and fused is not None:
            threshold = otsu_threshold(current)
            if fusion == "soft":
                raised = _RAISED * threshold
                threshold = raised if np.mean(current > raised) < _FEW else threshold
                gate = logistic(_SHARPNESS * (current - threshold))
            else:
                gate = (current > threshold).astype(np.float64)
            fused = (fused + current) * gate
        thresholds.append(threshold)
    return (None if fused is None else scale_to_unit(fused)), thresholds


def otsu_threshold(values: Map) -> float:
    """Return Otsu's threshold: the centre of the first histogram bin that maximises the between-class variance.

    256 equal bins from the minimum to the maximum, as numpy.histogram makes them; the classes are the bins up to and
    with the one in question, and those after it.

    Source: N. Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9(1), 1979.
    """
    counts, edges = np.histogram(values, _BINS)
    n, mass = counts.sum(), np.cumsum(counts * np.arange(_BINS))
    below = np.cumsum(counts)[:-1]
    distance = n * mass[:-1] - below * mass[-1]  # integers: equal variances stay equal, so that the first wins
    variance = distance.astype(np.float64) ** 2 / (below * (n - below))
    best = int(np.argmax(variance))
    return float((edges[best] + edges[best + 1]) / 2)
