"""Masks that cannot be but smooth: the smooth maximum of kernels on a coarse grid, and its gradient."""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_STEP = 7
_SIGMA = 21
_COLDNESS = 20.0
_RADIUS = 1 + math.ceil(_SIGMA / _STEP)
_PADDING = 1 + math.ceil(2 * _SIGMA / _STEP)
_BEFORE = _SIGMA - _STEP * (_PADDING - 2 * _RADIUS)
_AFTER = _STEP * (_PADDING + 1) - 1 - _SIGMA
_DISTANCES = _AFTER + 1


class SmoothMask:
    """Makes masks of parameters q [h, w] from 0 to 1, one for every 7 pixels, and differentiates them.

    m(u) = Σ_i v_i·e^{20·v_i} / Σ_i e^{20·v_i} over the 9×9 cells i round pixel u, with v_i = k(d/σ)·q_i, k(z) =
    exp(−2·max(0, z − 1/2)²), d the distance from u to i, and σ = 21 pixels. A cell beyond the grid has v_i = 0. The
    mask has a margin of more than σ round the image.

    Cells lie on the lattice of the pixels, so that 35×35 pairs of distances are all that there are between a cell and
    the pixels that it reaches, from 28 before to 34 after it: the powers are taken for these alone, and summed along
    the columns first, then along the rows.

    Args:
        size: H and W of the image.

    Attributes:
        grid: h and w of the parameters.
        inside: The place of the image in the mask.

    Source: Fong et al., arXiv 1910.08485, section 3.2; numbers and borders as in the authors' TorchRay.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        rows, columns = self.grid = (math.ceil(size[0] / _STEP), math.ceil(size[1] / _STEP))
        self.inside = (slice(_SIGMA, _SIGMA + size[0]), slice(_SIGMA, _SIGMA + size[1]))
        distances = np.arange(_DISTANCES)
        beyond = np.maximum(np.hypot(distances[:, None], distances) / _SIGMA - 0.5, 0.0)
        self._kernel = np.exp(-2.0 * beyond**2).astype(np.float32)
        # Of the pixels that the cells reach, those of the mask.
        spans = [_STEP * (cells + 2 * (_PADDING - _RADIUS) - 1) + 1 for cells in self.grid]
        self._whole = (
            slice(_BEFORE - _SIGMA, _BEFORE - _SIGMA + spans[0]),
            slice(_BEFORE - _SIGMA, _BEFORE - _SIGMA + spans[1]),
        )
        reached = [_BEFORE + _STEP * (cells - 1) + _AFTER + 1 for cells in self.grid]
        self._exponents = np.empty((_DISTANCES, rows, columns, _DISTANCES), np.float32)
        self._powers = np.empty_like(self._exponents)
        self._weighted = np.empty_like(self._exponents[0])
        self._by_row = np.empty((2, reached[0], columns, _DISTANCES), np.float32)
        self._sums = np.empty((2, *reached), np.float32)
        present = np.multiply.outer(*map(_cells_near, self.grid, reached))[self._whole]
        self._absent = ((2 * _RADIUS + 1) ** 2 - present).astype(np.float32)
        self._mask = self._bottom = np.empty(0, np.float32)

    def make(self, parameters: Floats) -> Floats:
        """Return the mask with its margin, float32 from 0 to 1.

        Args:
            parameters: q, float32 [h, w] from 0 to 1.
        """
        rows, columns = self.grid
        by_row, sums = self._by_row, self._sums
        by_row.fill(0.0)
        sums.fill(0.0)
        cold = _COLDNESS * parameters.reshape(rows, columns, 1)
        for distance, kernel in enumerate(self._kernel):
            exponents, powers = self._exponents[distance], self._powers[distance]
            np.multiply(cold, kernel, out=exponents)
            np.exp(exponents, out=powers)
            np.multiply(exponents, powers, out=self._weighted)
            for pixels in _pixels_at(distance, rows):
                by_row[0, pixels] += self._weighted
                by_row[1, pixels] += powers
        for column in range(columns):
            first = _STEP * column
            sums[:, :, first + _BEFORE : first + _BEFORE + _DISTANCES] += by_row[:, :, column]
            sums[:, :, first : first + _BEFORE] += by_row[:, :, column, _BEFORE:0:-1]
        top, bottom = sums[:, *self._whole]
        self._bottom = bottom + self._absent
        self._mask = top / (_COLDNESS * self._bottom)
        return self._mask

    def differentiate(self, gradient: Floats) -> Floats:
        """Return the gradient at the parameters of the mask that was made last.

        ∂m/∂q_i = k·e^{20·v_i}·(1 + 20·v_i − 20·m) / Σ_j e^{20·v_j}.

        Args:
            gradient: At the mask with its margin, float32.

        Returns:
            float32 [h, w].
        """
        rows, columns = self.grid
        shares, by_row = self._sums, self._by_row
        shares.fill(0.0)
        share = gradient / self._bottom
        shares[1, *self._whole] = share
        shares[0, *self._whole] = share * (1.0 - _COLDNESS * self._mask)
        near = sliding_window_view(shares, _BEFORE + _DISTANCES, axis=2)[:, :, ::_STEP]
        by_row[...] = near[..., _BEFORE:]
        by_row[..., 1 : _BEFORE + 1] += near[..., _BEFORE - 1 :: -1]
        total = np.zeros((rows, columns), np.float32)
        terms = self._weighted
        for distance, kernel in enumerate(self._kernel):
            first, *before = _pixels_at(distance, rows)
            constant, linear = by_row[:, first]
            for pixels in before:
                constant, linear = constant + by_row[0, pixels], linear + by_row[1, pixels]
            np.multiply(self._exponents[distance], linear, out=terms)
            terms += constant
            terms *= self._powers[distance]
            total += terms @ kernel
        return total


def _pixels_at(distance: int, cells: int) -> list[slice]:
    """Return the pixels that are so far after each cell of a row or column, and those that are so far before."""
    offsets = [distance, -distance] if 0 < distance <= _BEFORE else [distance]
    return [slice(_BEFORE + offset, _BEFORE + offset + _STEP * (cells - 1) + 1, _STEP) for offset in offsets]


def _cells_near(cells: int, pixels: int) -> NDArray[np.int64]:
    """Count the cells of a row or column that reach each of its pixels, int64 [pixels]."""
    counts = np.zeros(pixels, np.int64)
    for cell in range(cells):
        counts[_STEP * cell : _STEP * cell + _BEFORE + _DISTANCES] += 1
    return counts
