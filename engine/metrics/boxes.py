"""Measures that compare a heatmap with the boxes that people drew around the objects of the class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.image import visible_part
from engine.metrics.base import Explained
from engine.metrics.order import most_salient
from engine.options import expect_number
from engine.preprocess import Preprocess

Mask = NDArray[np.bool_]
Map = NDArray[np.floating]

_TOLERANCE = 15 / 375


def box_mask(
    boxes: Sequence[tuple[float, float, float, float]], photo_size: tuple[int, int], preprocess: Preprocess
) -> Mask | None:
    """Tell which pixels of the network's view lie in one of the boxes.

    A pixel lies in a box when its centre does. The boxes take the way of the photo: they are resized and cropped with
    it, by `engine.image.visible_part`.

    Args:
        boxes: Left, top, right and bottom of each box of the class, in pixels of the photo, turned upright; the whole
            photo is (0, 0, width, height).
        photo_size: Width and height of the photo, turned upright.
        preprocess: The bundle's settings.

    Returns:
        bool [H, W], or None if no pixel lies in a box, because they were cropped away or are too small: then nothing
        is left that a measure could find.
    """
    left, top, right, bottom = visible_part(photo_size, preprocess)
    height, width = preprocess.size
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = top + (np.arange(height) + 0.5) * (bottom - top) / height
    mask = np.zeros((height, width), np.bool_)
    for x1, y1, x2, y2 in boxes:
        mask |= ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
    return mask if mask.any() else None


def energy_in_boxes(heatmap: Map, mask: Mask) -> float | None:
    """Return Σ_{p in boxes} H(p) / Σ_p H(p), the energy-based pointing game (EBPG), from 0 to 1.

    Args:
        heatmap: H, [H, W], not negative.
        mask: bool [H, W], the pixels in the boxes.

    Returns:
        None for a heatmap of zeros, which has no energy.

    Source: Score-CAM (arXiv 1910.01279), section 4.3, "Proportion"; SISE (arXiv 2010.00672), "Quantitative evaluation".
    """
    values = np.asarray(heatmap, np.float64)
    energy = values.sum()
    return None if energy == 0 else float(values[mask].sum() / energy)


def bbox_share(heatmap: Map, mask: Mask) -> float | None:
    """Return the share of the n most salient pixels that lie in the boxes, n the area of the boxes, from 0 to 1.

    Args:
        heatmap: [H, W]; among equal values, the pixels first in reading order count as more salient.
        mask: bool [H, W], the pixels in the boxes, at least one.

    Returns:
        None for a constant heatmap, in which no pixel is more salient than another.

    Source: Schulz et al., "Restricting the flow" (arXiv 2001.00396), "Bounding box"; SISE (arXiv
        2010.00672), "Quantitative evaluation", "Bbox".
    """
    if np.ptp(heatmap) == 0:
        return None
    return float(mask.ravel()[most_salient(heatmap)[: np.count_nonzero(mask)]].mean())


def pointing_game(heatmap: Map, mask: Mask, tolerance_px: float | None = None) -> float | None:
    """Tell whether the most salient pixel lies in a box, or near one: 1 for a hit, 0 for a miss.

    Args:
        heatmap: [H, W]. If several pixels have the largest value, the share of those that hit.
        mask: bool [H, W], the pixels in the boxes, at least one.
        tolerance_px: How far from the next pixel of a box a hit may lie, in pixels of the heatmap, between centres;
            None for 4 % of the heatmap's shorter side.

    Returns:
        None for a constant heatmap, which points nowhere.

    Source: Zhang et al., "Top-down neural attention by excitation backprop" (arXiv 1608.00507), section 4.1.

    Departs: The source allows 15 pixels of the photo. Its photos (VOC) are 500×375, of which 15 pixels are 4 % of the
        shorter side; photos of other sizes, and the heatmap, have other pixels, so the share is what is kept.
    """
    if np.ptp(heatmap) == 0:
        return None
    tolerance = _TOLERANCE * min(heatmap.shape) if tolerance_px is None else tolerance_px
    boxes = np.argwhere(mask)
    peaks = np.argwhere(heatmap == heatmap.max())
    hits = [((boxes - peak) ** 2).sum(axis=1).min() <= tolerance**2 for peak in peaks]
    return float(np.mean(hits))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyInBoxes:
    """The energy-based pointing game; see `energy_in_boxes`."""

    name: ClassVar[str] = "ebpg"
    title: ClassVar[str] = "EBPG"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = True
    cost: ClassVar[str] = "none"

    def compute(self, explained: Explained) -> float | None:
        """Return the share of the energy in the boxes, in percent; None without boxes, or for a heatmap of zeros."""
        mask = explained.box_mask
        return None if mask is None else _percent(energy_in_boxes(explained.heatmap, mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class BboxShare:
    """How many of the n most salient pixels lie in the boxes; see `bbox_share`."""

    name: ClassVar[str] = "bbox"
    title: ClassVar[str] = "Bbox"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = True
    cost: ClassVar[str] = "none"

    def compute(self, explained: Explained) -> float | None:
        """Return the share of pixels in the boxes, in percent; None without boxes, or for a constant heatmap."""
        mask = explained.box_mask
        return None if mask is None else _percent(bbox_share(explained.heatmap, mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class PointingGame:
    """Whether the heatmap's maximum lies in a box; see `pointing_game`.

    Attributes:
        tolerance_px: How far from a box a hit may lie, in pixels of the heatmap; None for 4 % of its shorter side.

    Raises:
        OptionError: The tolerance is negative or no number.
    """

    name: ClassVar[str] = "pointing"
    title: ClassVar[str] = "Pointing game"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = True
    cost: ClassVar[str] = "none"

    tolerance_px: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance_px is not None:
            expect_number("tolerance_px", self.tolerance_px, lambda value: value >= 0, "of at least 0, or None")

    def compute(self, explained: Explained) -> float | None:
        """Return 100 for a hit and 0 for a miss; None without boxes, or for a constant heatmap."""
        mask = explained.box_mask
        return None if mask is None else _percent(pointing_game(explained.heatmap, mask, self.tolerance_px))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share
