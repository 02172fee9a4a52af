"""How sure a mean is: bootstrap intervals over photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
_ROWS_AT_ONCE = 256  # bounds the memory of drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and how sure it is.

    Attributes:
        mean: The mean over all pairs.
        low: Lower end of the 95 % interval; None with a single photo, which tells nothing of others.
        high: Upper end, or None.
        pairs: How many values.
        photos: Of how many photos.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    photos: int


def bootstrap_mean(values: Sequence[float], photos: Sequence[object]) -> Interval | None:
    """Return the mean of values with its percentile bootstrap interval over photos.

    Photos are drawn with replacement, as many as there are, 2,000 times; all values of a photo come with it, since they
    are alike. Every draw gives the mean of its values, and the interval reaches from the 2.5th to the 97.5th
    percentile of these means. The draws are the same for the same number of photos.

    Args:
        values: One per pair.
        photos: The photo of each.

    Returns:
        None without any value.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, sections 13.3 and 8.
    """
    if not len(values):
        return None
    numbers = np.asarray(values, np.float64)
    groups = {photo: number for number, photo in enumerate(dict.fromkeys(photos))}
    group = np.array([groups[photo] for photo in photos])
    low = high = None
    if len(groups) > 1:
        draws = _draws(len(groups))
        means = (draws @ np.bincount(group, numbers)) / (draws @ np.bincount(group).astype(np.float64))
        low, high = map(float, np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Interval(mean=float(numbers.mean()), low=low, high=high, pairs=len(numbers), photos=len(groups))


@lru_cache(maxsize=4)
def _draws(photos: int) -> NDArray[np.float64]:
    """Return how often each draw has each photo, float64 [RESAMPLES, photos]."""
    generator = np.random.default_rng(SEED)
    counts = np.empty((RESAMPLES, photos))
    for start in range(0, RESAMPLES, _ROWS_AT_ONCE):
        part = counts[start : start + _ROWS_AT_ONCE]
        drawn = generator.integers(0, photos, part.shape) + photos * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return counts
