"""Kriging: the scores of masks that were not scored, from those that were; and which to score, so that they tell most.

Masks that look alike let the network see alike, and score alike. Each mask is a point, its means in 7×7 cells; the
scores are a Gaussian process over these points, with a constant mean that is not known (ordinary kriging) and the
Matérn covariance of order 3/2: k(r) = (1 + √3·r/l)·exp(−√3·r/l), l² the mean squared distance of the points
from their centre.

Source: C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, MIT Press 2006, equations 2.25
and 4.17, section 2.7. The order is that of D. A. Cohn, "Neural network exploration using optimal experiment design",
Neural Networks 9(6), 1996: each next point takes most off the sum of all variances. Both were chosen by measurement,
see decision 15.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.kernels.resample import axis

_CELLS = 7
NOISE = 1e-3  # of the process's variance: no mask is quite what its 7×7 cells say
WITNESSES = 256  # bounds what an order costs: the variance is summed over so many points
MOST_KNOWN = 512  # bounds what an estimate costs, which grows with the cube of the scores that it rests on
SAME = 1e-9  # gains that differ by less are equal, so that every order of summation gives the same order of masks

Floats = NDArray[np.float64]


def thumbnails(maps: NDArray[np.float32], size: tuple[int, int]) -> Floats:
    """Shrink the masks that feature maps make to 7×7 cells.

    Args:
        maps: Feature maps float32 [K, h, w], none of them flat.
        size: H and W of the image.

    Returns:
        float64 [K, 49], the means of each mask m = (M − min)/(max − min) in cells of the image; fewer, where H or W is
        below 7.

    Departs: the extrema are those of the map before upsampling.
    """
    rows, columns = cell_means(maps.shape[1], size[0]), cell_means(maps.shape[2], size[1])
    means = np.einsum("gh,khf->kgf", rows, np.einsum("khw,fw->khf", maps, columns, dtype=np.float64))
    low, high = (extreme.astype(np.float64)[:, None, None] for extreme in (maps.min((1, 2)), maps.max((1, 2))))
    return np.asarray(((means - low) / (high - low)).reshape(len(maps), len(rows) * len(columns)))


@lru_cache(maxsize=64)
def cell_means(source: int, size: int) -> Floats:
    """Return the matrix [cells, source] from samples to the means, in each cell, of what they are upsampled to."""
    along, cells = axis(source, size), min(_CELLS, size)
    cell = np.arange(size) * cells // size
    sums = np.zeros((cells, source))
    np.add.at(sums, (cell, along.low), 1.0 - along.weight)
    np.add.at(sums, (cell, along.high), along.weight)
    means = sums / np.bincount(cell)[:, None]
    means.flags.writeable = False
    return np.asarray(means)


class Kriging:
    """Scores as a Gaussian process over masks.

    Without BLAS and LAPACK, whose threads wait for one another: on a busy machine they took a hundred times as long.

    Args:
        points: The masks' thumbnails, float64 [n, d].
    """

    def __init__(self, points: Floats) -> None:
        self._points = points
        self._squares = (points**2).sum(axis=1)
        spread = float(self._squares.mean() - (points.mean(axis=0) ** 2).sum()) if len(points) else 0.0
        self._scale = np.sqrt(3.0 / spread) if spread > 0 else 0.0

    def order(self, count: int) -> NDArray[np.int64]:
        """Return points whose scores tell most of all others, the first first: every beginning is such a choice.

        Args:
            count: How many; at most n.

        Returns:
            int64 [count], numbers of points; of equally good ones the lowest.
        """
        n = len(self._points)
        witnesses = np.arange(n) if n <= WITNESSES else np.arange(WITNESSES) * n // WITNESSES
        covariance = self._covariance(witnesses)
        variance = np.ones(n)
        factors = np.empty((count, n))  # rows of the Cholesky factor of the covariance of the points that were taken
        taken: list[int] = []
        for step in range(count):
            gain = np.einsum("wn,wn->n", covariance, covariance) / (variance + NOISE)
            gain[taken] = -1.0
            best = int(np.argmax(gain >= gain.max() * (1.0 - SAME)))
            known = np.einsum("s,sn->n", factors[:step, best], factors[:step])
            column = (self._covariance(np.array([best]))[0] - known) / np.sqrt(variance[best] + NOISE)
            covariance -= column[witnesses, None] * column
            variance = np.maximum(variance - column**2, 0.0)
            factors[step] = column
            taken.append(best)
        return np.array(taken, np.int64)

    def estimate(self, known: NDArray[np.int64], scores: Floats) -> Floats:
        """Estimate the scores of all points.

        Args:
            known: int64 [m], numbers of the points whose scores are known, the most telling first: the estimates of the
                others rest on the first 512.
            scores: float64 [m].

        Returns:
            float64 [n], within the range of the known scores; for the known points the scores themselves. All ones
            when no score is known.
        """
        if len(known) == 0:
            return np.ones(len(self._points))
        first, given = known[:MOST_KNOWN], scores[:MOST_KNOWN]
        covariance = self._covariance(first)
        among = covariance[:, first] + NOISE * np.eye(len(first))
        weights, ones = _solve(among, np.stack([given, np.ones_like(given)], axis=1)).T
        mean = weights.sum() / ones.sum()
        estimates = np.einsum("m,mn->n", weights - mean * ones, covariance) + mean
        estimates = np.clip(estimates, scores.min(), scores.max())
        estimates[known] = scores
        return np.asarray(estimates)

    def _covariance(self, some: NDArray[np.int64]) -> Floats:
        """Return the covariance [m, n] of some points with all, as a share of the process's variance."""
        products = np.einsum("md,nd->mn", self._points[some], self._points)
        squares = self._squares[some, None] + self._squares - 2.0 * products
        distance = self._scale * np.sqrt(np.maximum(squares, 0.0))
        return np.asarray((1.0 + distance) * np.exp(-distance))


def _solve(matrix: Floats, right: Floats) -> Floats:
    """Solve a symmetric positive definite system [m, m] for right sides [m, k], by Cholesky's factors."""
    m = len(matrix)
    factor = np.zeros_like(matrix)
    solution = right.copy()
    for j in range(m):
        column = matrix[j:, j] - np.einsum("it,t->i", factor[j:, :j], factor[j, :j])
        factor[j:, j] = column / np.sqrt(column[0])
        solution[j] = (right[j] - np.einsum("t,tk->k", factor[j, :j], solution[:j])) / factor[j, j]
    for j in reversed(range(m)):
        solution[j] = (solution[j] - np.einsum("t,tk->k", factor[j + 1 :, j], solution[j + 1 :])) / factor[j, j]
    return solution
