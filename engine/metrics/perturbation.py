"""Measures that change the image as the heatmap says, and ask the network again.

Y is the score of the class for the unchanged image, O for a changed one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.metrics.base import Explained
from engine.metrics.changes import Change, ChangedImages, Keep, Weigh
from engine.network import FORWARD
from engine.options import expect_number, expect_whole

Scores = NDArray[np.float64]


def drop_percent(before: float, after: float) -> float | None:
    """Return max(0, Y − O)/Y·100, the drop of the score in percent; None where Y is not positive.

    Source: Grad-CAM++ (arXiv 1710.11063), section 4.1, "Average drop %".
    """
    return max(0.0, before - after) / before * 100.0 if before > 0 else None


def increase_percent(before: float, after: float) -> float:
    """Return 100 if O > Y, else 0: the mean over images is the percentage of those whose score increased.

    Source: Grad-CAM++ (arXiv 1710.11063), section 4.1, "% increase in confidence".
    """
    return 100.0 if after > before else 0.0


def gain_percent(before: float, after: float) -> float | None:
    """Return max(0, O − Y)/(1 − Y)·100, the gain in percent of what can be gained; None unless Y is in 0 … 1, below 1.

    Source: Opti-CAM (arXiv 2301.07002), "average gain".
    """
    return max(0.0, after - before) / (1.0 - before) * 100.0 if 0 <= before < 1 else None


def area_under(positions: Sequence[int], scores: Scores) -> float:
    """Return the area under a curve by trapezia, over the length of its axis.

    Args:
        positions: Ascending, of at least two points.
        scores: float64 [n], the curve at these.
    """
    widths = np.diff(np.asarray(positions, np.float64))
    return float((widths * (scores[1:] + scores[:-1]) / 2).sum() / widths.sum())


class Perturbation(ABC):
    """A `Metric` that scores changed images. Several can score theirs together: `score_together`."""

    __slots__ = ()
    name: ClassVar[str]

    @abstractmethod
    def changes(self, pixels: int) -> list[Change]:
        """Return what is done to an image of so many pixels."""

    @abstractmethod
    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return the measure.

        Args:
            explained: The explanation.
            scores: float64 [n], O for each of the changes.
        """

    def compute(self, explained: Explained) -> float | None:
        """Measure one explanation; see `engine.metrics.base.Metric`."""
        return score_together(explained, [self])[self.name]


def score_together(explained: Explained, metrics: Iterable[Perturbation]) -> dict[str, float | None]:
    """Compute several measures with one scoring: a change that several ask for is scored once.

    Raises:
        ImageError: The network computes NaN or infinity.
        CancelledError: The caller wants no result any more.
        BundleError: The bundle lacks a graph that the method needs.
        BackendError: The runtime failed, or the system has no more threads.
    """
    asked = {metric: metric.changes(explained.heatmap.size) for metric in metrics}
    distinct = dict.fromkeys(change for changes in asked.values() for change in changes)
    rows = ChangedImages(explained.image[0], explained.heatmap, list(distinct))
    scores = dict(zip(distinct, explained.probe.score(rows, graph=FORWARD)[:, 0], strict=True))
    return {
        metric.name: metric.value(explained, np.array([scores[change] for change in changes]))
        for metric, changes in asked.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholded(Perturbation):
    """A measure of the image whose most salient pixels stay, while the others become zero.

    Attributes:
        share: Which part of the pixels stays; among equal pixels those first in reading order, so that it is as many
            for every heatmap.

    Raises:
        OptionError: The share is not above 0 and at most 1.
    """

    share: float = 0.15

    def __post_init__(self) -> None:
        expect_number("share", self.share, lambda value: 0 < value <= 1, "above 0 and at most 1")

    def changes(self, pixels: int) -> list[Change]:
        """Return the one change."""
        return [Keep(first=0, end=max(1, round(self.share * pixels)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Thresholded):
    """How much of its score the class loses when only the most salient pixels stay.

    Source: SISE (arXiv 2010.00672), "Quantitative evaluation", "Drop%"; the formula is that of `drop_percent`.
    """

    name: ClassVar[str] = "drop"
    title: ClassVar[str] = "Drop"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = False
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward, shared with increase"

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return the drop in percent, or None if the class scores nothing for the unchanged image."""
        return drop_percent(explained.class_score, float(scores[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Increase(Thresholded):
    """Whether the score of the class rises when only the most salient pixels stay.

    Source: SISE (arXiv 2010.00672), "Quantitative evaluation", "Increase%"; the formula is that of `increase_percent`.
    """

    name: ClassVar[str] = "increase"
    title: ClassVar[str] = "Increase"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward, shared with drop"

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return 100 or 0."""
        return increase_percent(explained.class_score, float(scores[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed(Perturbation):
    """A measure of the image x⊙H, whose every pixel is multiplied by its saliency."""

    def changes(self, pixels: int) -> list[Change]:  # noqa: ARG002  # others need it
        """Return the one change."""
        return [Weigh()]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftDrop(Weighed):
    """How much of its score the class loses when every pixel is weighed by its saliency.

    Source: Grad-CAM++ (arXiv 1710.11063), section 4.1, "Average drop %".
    """

    name: ClassVar[str] = "soft-drop"
    title: ClassVar[str] = "Drop, soft map"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = False
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward, shared with soft-increase, gain and adcc"

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return the drop in percent, or None if the class scores nothing for the unchanged image."""
        return drop_percent(explained.class_score, float(scores[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftIncrease(Weighed):
    """Whether the score of the class rises when every pixel is weighed by its saliency.

    Source: Grad-CAM++ (arXiv 1710.11063), section 4.1, "% increase in confidence".
    """

    name: ClassVar[str] = "soft-increase"
    title: ClassVar[str] = "Increase, soft map"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward, shared with soft-drop, gain and adcc"

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return 100 or 0."""
        return increase_percent(explained.class_score, float(scores[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain(Weighed):
    """How much of what is left to gain the score gains when every pixel is weighed by its saliency.

    Source: Opti-CAM (arXiv 2301.07002), "average gain".
    """

    name: ClassVar[str] = "gain"
    title: ClassVar[str] = "Gain"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward, shared with soft-drop, soft-increase and adcc"

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return the gain in percent, or None unless the score is a probability below 1."""
        if explained.probe.options.activation == "none":
            return None
        return gain_percent(explained.class_score, float(scores[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepwise(Perturbation):
    """A measure of the score while the pixels change, the most salient first.

    Attributes:
        steps: In how many steps, of as many pixels each as can be. The authors' code takes 224, of 224 pixels each; 28
            cost an eighth, and the areas were within 0.006 of those, their means over six photos within 0.0012.

    Raises:
        OptionError: The number of steps is not positive.

    Departs: Among equal pixels the first in reading order change first, in the authors' code the last, by a sort that
        is not stable.
    """

    steps: int = 28

    def __post_init__(self) -> None:
        expect_whole("steps", self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion(Stepwise):
    """The area under the score while the pixels become zero, the most salient first: low if the score falls soon.

    Source: RISE (arXiv 1806.07421), "Evaluation metrics", "deletion"; `evaluation.py` of the authors' code.
    """

    name: ClassVar[str] = "deletion"
    title: ClassVar[str] = "Deletion AUC"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward per step"

    def changes(self, pixels: int) -> list[Change]:
        """Return one change for every step; the unchanged image, before them, is scored already."""
        return [Keep(first=gone, end=pixels) for gone in _counts(pixels, self.steps)[1:]]

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return the area, in units of the score."""
        curve = np.array([explained.class_score, *scores])
        return area_under(_counts(explained.heatmap.size, self.steps), curve)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion(Stepwise):
    """The area under the score while pixels return to the blurred image, the most salient first: high if it rises soon.

    Source: RISE (arXiv 1806.07421), "Evaluation metrics", "insertion"; `evaluation.py` of the authors' code.
    """

    name: ClassVar[str] = "insertion"
    title: ClassVar[str] = "Insertion AUC"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 forward per step"

    def changes(self, pixels: int) -> list[Change]:
        """Return one change for every step; the unchanged image, after them, is scored already."""
        return [Keep(first=0, end=here, blurred=True) for here in _counts(pixels, self.steps)[:-1]]

    def value(self, explained: Explained, scores: Scores) -> float | None:
        """Return the area, in units of the score."""
        curve = np.array([*scores, explained.class_score])
        return area_under(_counts(explained.heatmap.size, self.steps), curve)


def _counts(pixels: int, steps: int) -> list[int]:
    """Return how many pixels have been changed after each step, from none to all."""
    steps = min(steps, pixels)
    return [round(step * pixels / steps) for step in range(steps + 1)]
