"""Kriging of mask scores in float64, from the formulas: the slow replica that the engine is compared with.

Source: C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, 2006; D. A. Cohn, Neural
Networks 9(6), 1996. scikit-learn gives the covariance.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process.kernels import Matern

from tests.reference import method

Float = NDArray[np.float64]
NOISE = 1e-3


def thumbnail(feature_map: NDArray[np.floating], height: int, width: int) -> Float:
    """Means of the mask in 7×7 cells, pixel by pixel; the extrema are those of the map before upsampling."""
    wide = method.upsample(feature_map[None], height, width)[0]
    mask = (wide - feature_map.min()) / (feature_map.max() - feature_map.min())
    rows, columns = min(7, height), min(7, width)
    cells: dict[tuple[int, int], list[float]] = {}
    for y in range(height):
        for x in range(width):
            cells.setdefault((y * rows // height, x * columns // width), []).append(float(mask[y, x]))
    return np.array([np.mean(cells[cell]) for cell in sorted(cells)])


def covariance(points: Float) -> Float:
    """Matérn of order 3/2 with l² the mean squared distance from the centre."""
    length = np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean())
    return np.asarray(Matern(length_scale=length, nu=1.5)(points))


def estimate(points: Float, known: Sequence[int], scores: Float) -> Float:
    """The best linear unbiased prediction with an unknown constant mean, within the range of the scores."""
    cov = covariance(points)
    inverse = np.linalg.inv(cov[np.ix_(known, known)] + NOISE * np.eye(len(known)))
    ones = np.ones(len(known))
    mean = (ones @ inverse @ scores) / (ones @ inverse @ ones)
    found = np.clip(mean + cov[:, known] @ inverse @ (scores - mean), scores.min(), scores.max())
    found[list(known)] = scores
    return np.asarray(found)


def remaining(points: Float, taken: Sequence[int], witnesses: Sequence[int]) -> float:
    """The sum of the variances of some points, when the scores of others are known."""
    cov = covariance(points)
    among = cov[np.ix_(taken, taken)] + NOISE * np.eye(len(taken))
    posterior = cov - cov[:, taken] @ np.linalg.inv(among) @ cov[taken]
    return float(np.diag(posterior)[list(witnesses)].sum())
