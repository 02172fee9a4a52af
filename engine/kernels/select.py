"""Choosing the feature maps that become masks, from their average gradients."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RULES = ("otsu", "otsu-count", "positive", "all")
TAU_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """The feature maps of one layer that were chosen for one class.

    Attributes:
        channels: int64 [k], the strongest average gradient first; among equals the lower channel first.
        positive: How many maps of the layer have a positive average gradient.
        threshold: The smallest average gradient that was kept, or None when nothing was.
    """

    channels: NDArray[np.int64]
    positive: int
    threshold: float | None


def select_channels(alpha: NDArray[np.float32], rule: str, mu: float = 0.0) -> Selection:
    """Choose the feature maps of one layer.

    Args:
        alpha: Average gradients float32 [C].
        rule: `otsu` keeps the upper class of the Otsu split of the positive gradients; `otsu-count` keeps as many of
            the largest as the lower class has; `positive` keeps those above mu·max α; `all` keeps every map.
        mu: Share of the largest gradient, for `positive` only.

    Source: Ada-SISE (arXiv 2102.07799), the adaptive threshold; `positive` is SISE (arXiv 2010.00672), "Feature map
    selection".
    Departs: `otsu` follows the paper's prose; the mask counts that the paper publishes are those of `otsu-count`.
    """
    values = alpha.astype(np.float64)
    order = np.argsort(-values, kind="stable")
    positive = int(np.count_nonzero(values > 0))
    if rule == "all":
        kept = len(values)
    elif rule == "positive":
        kept = int(np.count_nonzero(values > max(mu * values.max(initial=0.0), 0.0)))
    else:
        lower = otsu_split(values[order[:positive]][::-1])
        kept = positive if lower == 0 else positive - lower if rule == "otsu" else lower
    channels = order[:kept].astype(np.int64)
    return Selection(channels=channels, positive=positive, threshold=float(values[channels[-1]]) if kept else None)


def otsu_split(values: NDArray[np.float64]) -> int:
    """Return the size i* of the lower class of the exact Otsu split, or 0 when there is nothing to split.

    τ(i) = (i/n)·((n−i)/n)·(mean(v_{i+1..n}) − mean(v_{1..i}))². The smallest i within 1e-12 of the largest τ wins, so
    that every order of summation splits alike.

    Args:
        values: float64 [n], ascending.

    Source: Ada-SISE (arXiv 2102.07799), the adaptive threshold by Otsu's method.
    """
    n = len(values)
    if n <= 1 or values[0] == values[-1]:
        return 0
    sizes = np.arange(1, n)
    lower = np.cumsum(values)[:-1] / sizes
    upper = np.cumsum(values[::-1])[-2::-1] / (n - sizes)
    tau = (sizes / n) * ((n - sizes) / n) * (upper - lower) ** 2
    return 1 + int(np.argmax(tau >= tau.max() * (1.0 - TAU_TOLERANCE)))
