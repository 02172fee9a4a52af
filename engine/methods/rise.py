"""RISE: random masks, weighted by the scores of the masked images."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from engine.image import Baseline
from engine.kernels import axis, scale_to_unit
from engine.methods.base import Attribution, Map
from engine.options import expect_number, expect_whole
from engine.probe import Probe
from engine.scoring import Write

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """RISE: S = Σ_i p_i·M_i over random masks M_i, p_i the score of the masked image.

    A mask is a grid of cells that are 1 or 0 by chance, upsampled bilinearly to one cell more than the image has, and
    cropped at a random place.

    Attributes:
        masks: Number of masks N.
        cells: Cells along each side of the grid.
        probability: That a cell is 1; above 0 and below 1.
        seed: Of the random numbers: the same seed gives the same masks.
        baseline: What masked-out pixels become: `zero` in the network's input space, `blur`, or a colour (r, g, b).

    Raises:
        OptionError: An option has no meaning.

    Source: arXiv 1806.07421, sections 3.1 (equation 6) and 3.2. The masks have cells of ceil(H/cells) pixels, as the
    authors' code has them.
    Departs: the constant 1/(N·p) is left out, which scaling to 0 … 1 removes; the border cell is repeated beyond its
    centre, where the authors' code reflects the grid.
    """

    name: ClassVar[str] = "rise"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "masks"

    masks: int = 4000
    cells: int = 7
    probability: float = 0.5
    seed: int = 0
    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        expect_whole("masks", self.masks)
        expect_whole("cells", self.cells)
        expect_number("probability", self.probability, lambda p: 0 < p < 1, "above 0 and below 1")
        expect_whole("seed", self.seed, 0)

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring."""
        rows = RandomMasks(
            probe.image[0],
            probe.baseline(self.baseline),
            probe.options.within_budget(self.masks),
            cells=self.cells,
            probability=self.probability,
            seed=self.seed,
        )
        scores = probe.score(rows)
        with probe.clock("combine"):
            heatmaps = [scale_to_unit(rows.sum(of_class)) for of_class in scores.T]
        return [Attribution(heatmap=heatmap, scored=len(scores), scorable=self.masks) for heatmap in heatmaps]


class RandomMasks:
    """An image under random masks: rows to score.

    Args:
        image: Network input, float32 [C, H, W].
        baseline: What masked-out pixels become, float32 [C, H, W], or None for zeros.
        masks: How many.
        cells: Cells along each side of the grid.
        probability: That a cell is 1.
        seed: Of the random numbers.
    """

    def __init__(
        self, image: Floats, baseline: Floats | None, masks: int, *, cells: int, probability: float, seed: int
    ) -> None:
        self.shape: tuple[int, int, int] = (image.shape[0], image.shape[1], image.shape[2])
        self._baseline = baseline
        self._contrast = image if baseline is None else image - baseline
        self._sides = [-(-size // cells) for size in self.shape[1:]]
        self._upsampling = [_matrix(cells, (cells + 1) * side) for side in self._sides]
        random = np.random.default_rng(seed)
        self._grids = np.empty((masks, cells, cells), np.float32)
        self._places = np.empty((masks, 2), np.int64)
        for number in range(masks):  # mask by mask, so that fewer masks are the first of more
            self._grids[number] = random.random((cells, cells)) < probability
            self._places[number] = [random.integers(side) for side in self._sides]

    def __len__(self) -> int:
        return len(self._grids)

    def mask(self, number: int) -> Floats:
        """Return a mask, float32 [H, W] from 0 to 1."""
        rows, columns = (
            matrix[place : place + size]
            for matrix, place, size in zip(self._upsampling, self._places[number], self.shape[1:], strict=True)
        )
        return np.asarray(rows @ self._grids[number] @ columns.T)

    def sum(self, weights: NDArray[np.float64]) -> Map:
        """Return Σ w_i·M_i over the first n masks, float64 [H, W].

        Masks that are cropped at the same place are summed as grids, and upsampled once: so the time hardly grows with
        the masks, and a deadline need leave little for it.

        Args:
            weights: float64 [n].
        """
        count = len(weights)
        rows, columns = (
            sliding_window_view(matrix.astype(np.float64), size, axis=0)[:side]  # [places, cells, size]
            for matrix, size, side in zip(self._upsampling, self.shape[1:], self._sides, strict=True)
        )
        grids = np.zeros((*self._sides, *self._grids.shape[1:]))
        np.add.at(grids, tuple(self._places[:count].T), weights[:, None, None] * self._grids[:count])
        return np.asarray(np.einsum("rcij,rih,cjw->hw", grids, rows, columns, optimize=True))

    def writer(self) -> Write:
        """Return a function that writes masked images; see `engine.scoring.Rows`."""

        def write(part: range, batch: Floats) -> None:
            for row, number in enumerate(part):
                np.multiply(self._contrast, self.mask(number), out=batch[row])
                if self._baseline is not None:
                    batch[row] += self._baseline

        return write


def _matrix(source: int, size: int) -> Floats:
    """Return bilinear upsampling along one axis as a matrix float32 [size, source]."""
    along = axis(source, size)
    matrix = np.zeros((size, source))
    np.add.at(matrix, (np.arange(size), along.low), 1.0 - along.weight)
    np.add.at(matrix, (np.arange(size), along.high), along.weight)
    return matrix.astype(np.float32)
