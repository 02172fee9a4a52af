"""The ways to an explanation that docs/how-fast-how-faithful.md compares, as methods that an evaluation takes."""

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

import engine
from engine.budget import plan_all
from engine.feature_masks import FeatureMasks
from engine.kernels import fuse, visualization_map
from engine.kernels.similarity import spearman
from engine.methods import METHODS, AdaSise, Attribution
from engine.metrics.base import Explained
from engine.network import Tapped
from engine.probe import Probe
from engine.spelling import parse_method

Map = NDArray[np.float32]

EXACT = "ada-sise"
OURS = (EXACT, "ada-sise:preset=balanced", "ada-sise:preset=fast")
OTHERS = ("sise", "score-cam", "group-cam", "recipro-cam", "grad-cam")
SAMPLED = ("rise",)
BUDGETS = (10, 25, 50, 100, 200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgeted:
    """Ada-SISE with `max_masks`."""

    name: ClassVar[str] = "budgeted"
    layered: ClassVar[bool] = True
    unit: ClassVar[str] = "masks"

    masks: int

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        probe.options = replace(probe.options, max_masks=self.masks)
        return AdaSise().explain(probe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strongest:
    """Ada-SISE of the masks with the strongest average gradients, in proportion to each layer's; the others left out.

    The form that a budget had before scores were estimated.
    """

    name: ClassVar[str] = "strongest"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "masks"

    masks: int

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, one after the other."""
        tapped = probe.tap()
        return [_some_masks(probe, tapped, k, self.masks, scored=True) for k in range(len(probe.classes))]


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualScores:
    """Ada-SISE without any score: every mask that the rule selects weighs the same.

    What the selection and the fusion give alone; what the forward passes add is the difference.
    """

    name: ClassVar[str] = "equal-scores"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "masks"

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        tapped = probe.tap()
        return [_some_masks(probe, tapped, k, None, scored=False) for k in range(len(probe.classes))]


def _some_masks(probe: Probe, tapped: Tapped, k: int, count: int | None, *, scored: bool) -> Attribution:
    """Fuse the first masks of class number k, with their scores or with all scores the same."""
    masks = plan_all(tapped.maps, tapped.averages)[k].masks
    rows = FeatureMasks(probe.image[0], None, tapped.maps, [(int(layer), int(c)) for layer, c in masks[:count]])
    if scored:
        scores = probe.score(rows)[:, [k]]
    else:
        scores, row = np.ones((len(rows), 1)), np.empty((1, *rows.shape), np.float32)
        write = rows.writer()
        for number in range(len(rows)):
            write(range(number, number + 1), row)  # for the minimum and the extent of the mask
    views = [
        visualization_map(maps[own.channels], own.scores[:, 0], own.minimum, own.extent, probe.size)
        for maps, own in zip(tapped.maps, rows.by_layer(scores), strict=True)
    ]
    heatmap, _ = fuse(views, "hard")
    return Attribution(heatmap=heatmap, scored=len(rows) if scored else 0, scorable=len(masks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One explanation by other means than the explainer under evaluation.

    Attributes:
        heatmap: float32 [H, W] from 0 to 1.
        milliseconds: What it took.
        evaluations: How many images each graph computed, `forward` being the whole network.
    """

    heatmap: Map
    milliseconds: float
    evaluations: Mapping[str, int]


Find = Callable[[Map, int], Found]
"""Explains a class of a network's input float32 [1, C, H, W]."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """What another explainer or another package finds, so that its heatmaps are measured as all others are.

    Attributes:
        way: What tables call it.
    """

    name: ClassVar[str] = "elsewhere"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    way: str
    find: InitVar[Find]

    def __post_init__(self, find: Find) -> None:
        object.__setattr__(self, "_find", find)

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        attributions = []
        for target in probe.classes:
            found = self._find(probe.image, target)
            attributions.append(Attribution(heatmap=found.heatmap.astype(np.float64)))
        probe.evaluations.clear()  # the probe itself only looked up the class
        probe.evaluations.update(found.evaluations)
        return attributions


def find_with(explainer: engine.Explainer, way: str) -> Find:
    """Return what explains by one method of another explainer, as `engine.spelling.parse_method` reads it."""
    method = parse_method(way, METHODS)

    def find(image: Map, target: int) -> Found:
        made = explainer.explain(image, target, method=method)
        return Found(heatmap=made.heatmap, milliseconds=made.timings_ms["total"], evaluations=made.evaluations)

    return find


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Spearman's ρ with the heatmap of exact Ada-SISE in float32, a measure as those of `engine.metrics` are.

    Attributes:
        exact: Makes that heatmap.
    """

    name: ClassVar[str] = "spearman"
    title: ClassVar[str] = "Spearman's ρ with exact"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "one explanation a pair"

    exact: "ExactHeatmaps" = field(repr=False)

    def compute(self, explained: Explained) -> float:
        """Compare one heatmap."""
        return spearman(explained.heatmap, self.exact(explained.image, explained.explanation.target))


class ExactHeatmaps:
    """Heatmaps of exact Ada-SISE; the last is kept, since many ways are compared with it.

    Args:
        explainer: In float32.
    """

    def __init__(self, explainer: engine.Explainer) -> None:
        self._explainer = explainer
        self._last: tuple[bytes, int] | None = None
        self._heatmap: Map | None = None

    def __call__(self, image: Map, target: int) -> Map:
        """Return the heatmap float32 [H, W] of a class of a network's input."""
        asked = (image.tobytes(), target)
        if self._heatmap is None or asked != self._last:
            self._heatmap, self._last = self._explainer.explain(image, target, method=EXACT).heatmap, asked
        return self._heatmap
