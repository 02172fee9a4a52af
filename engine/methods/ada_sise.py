"""Ada-SISE and SISE: the method's phases, in the order of the papers.

    tap       one run of the network: logits, feature maps F_l, average gradients α_l
    select    per layer, the channels whose α the rule keeps
    score     each kept feature map becomes a mask; the network scores the masked images, or those there is time for
    estimate  the scores of masks that were not scored, from those that were
    combine   per layer, the masks weighted by their scores: the visualization map V_l
    fuse      V_1 … V_L, shallow to deep: the heatmap

Source: SISE, arXiv 2010.00672; Ada-SISE, arXiv 2102.07799.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.budget import Plan, plan_all, take_turns, telling_first
from engine.bundle import Layer
from engine.errors import OptionError
from engine.explanation import LayerReport
from engine.feature_masks import FeatureMasks, ScoredMasks
from engine.image import Baseline
from engine.kernels import FUSIONS, RULES, Kriging, fuse, visualization_map
from engine.kernels.similarity import spearman
from engine.methods.base import Attribution, Map
from engine.options import expect_known, expect_number
from engine.probe import Probe

PRESETS: dict[str, int | None] = {"exact": None, "balanced": 100, "fast": 25}
"""How many masks each scores for a class; None for all."""

SETTLED = "settled"
STRIDE = 4
"""Of the rows and columns that it compares."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaSise:
    """Ada-SISE: the feature maps of every layer that an Otsu split of their average gradients keeps, as masks.

    Attributes:
        rule: `otsu` (the paper's prose), `otsu-count` (the paper's mask counts), `positive` (SISE) or `all`; see
            `engine.kernels.select`.
        mu: For rule `positive`: keep maps whose average gradient exceeds mu times the largest, from 0 up to 1.
        fusion: `hard` (the paper's) or `soft`; see `engine.kernels.fuse`.
        baseline: What masked-out pixels become: `zero` in the network's input space, `blur`, or a colour (r, g, b).
        preset: `exact` scores every mask; `balanced` and `fast` score 100 and 25, those that tell most of the others,
            whose scores they estimate; see `engine.kernels.kriging`. A result of at least two but fewer than all
            masks, if it is not all zeros, has the figure `settled`: Spearman's correlation, in every fourth row and
            column, with the heatmap that the first half of its scores gives.

    Raises:
        OptionError: An option has no meaning.

    Source: Ada-SISE, arXiv 2102.07799.
    Departs: with a preset, a budget or a deadline that leaves masks out, their scores are estimated.
    """

    name: ClassVar[str] = "ada-sise"
    layered: ClassVar[bool] = True
    unit: ClassVar[str] = "masks"

    rule: str = "otsu"
    mu: float = 0.0
    fusion: str = "hard"
    baseline: Baseline = "zero"
    preset: str = "exact"

    def __post_init__(self) -> None:
        expect_known("rule", self.rule, RULES)
        expect_known("preset", self.preset, tuple(PRESETS))
        expect_known("fusion", self.fusion, FUSIONS)
        expect_number("mu", self.mu, lambda mu: 0 <= mu < 1, "from 0 up to 1")
        if self.mu > 0 and self.rule != "positive":
            raise OptionError(f"mu is {self.mu:g} with rule {self.rule!r}; only rule 'positive' takes mu")

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring of all their masks."""
        if probe.network.resident is not None:
            from engine.methods.on_device import explain_on_device  # which knows this module

            return explain_on_device(self, probe, probe.network.resident)
        baseline = probe.baseline(self.baseline)
        tapped = probe.tap()
        count = len(probe.classes)
        with probe.clock("select"):
            plans = plan_all(tapped.maps, tapped.averages, self.rule, self.mu)
            orders, krigings = zip(*(self.order(probe, lambda: tapped.maps, own) for own in plans), strict=True)
        turns = take_turns([own.pairs(order) for own, order in zip(plans, orders, strict=True)])
        rows = FeatureMasks(probe.image[0], baseline, tapped.maps, turns)
        masks = rows.by_layer(probe.score(rows, least=0))
        return [self._fuse(probe, tapped.maps, masks, plans[k], orders[k], krigings[k], k) for k in range(count)]

    def order(
        self, probe: Probe, maps: Callable[[], Sequence[Floats]], own: Plan
    ) -> tuple[NDArray[np.int64], Kriging | None]:
        """Return the numbers of the masks of one class that shall be scored, in order, and what the order rests on.

        Args:
            probe: The image.
            maps: Gives F_l of each layer, if the order depends on them.
            own: The masks of the class.
        """
        total = len(own.masks)
        count, likely = probe.options.within_budget(total), probe.affordable()
        most = PRESETS[self.preset]
        count = count if most is None else min(count, most)
        likely = count if likely is None else min(count, likely // len(probe.classes))
        if likely == total:
            return np.arange(total), None
        kriging = own.kriging(maps(), probe.size)
        return telling_first(kriging, total, count, likely), kriging

    def _fuse(
        self,
        probe: Probe,
        maps: Sequence[Floats],
        masks: Sequence[ScoredMasks],
        own: Plan,
        order: NDArray[np.int64],
        kriging: Kriging | None,
        k: int,
    ) -> Attribution:
        """Make the heatmap of class number k from its own masks."""
        with probe.clock("estimate"):
            scores = scores_of(own, order, masks, k)
            known, kriging, values = estimated(own, order, scores, kriging, lambda: maps, probe.size)
        with probe.clock("combine"):
            views = views_of(maps, masks, own, scores, values, probe.size)
        with probe.clock("fuse"):
            heatmap, cuts = fuse(views, self.fusion)
        figures = {}
        if kriging is not None and heatmap is not None and len(known) > 1:
            with probe.clock("estimate"):
                half = known[: len(known) // 2]
                fewer = kriging.estimate(half, scores[half])
                before, _ = fuse(views_of(maps, masks, own, scores, fewer, probe.size), self.fusion)
                before = np.zeros(probe.size) if before is None else before
                figures[SETTLED] = spearman(before[::STRIDE, ::STRIDE], heatmap[::STRIDE, ::STRIDE])
        layers = reports_of(probe.bundle.layers, own, scores, values, cuts)
        return Attribution(
            heatmap=heatmap,
            scored=len(known),
            scorable=len(scores),
            warnings=warnings_of(layers, [view is not None for view in views]),
            figures=figures,
            layers=layers,
            visualization_maps=tuple(views),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sise:
    """SISE: all feature maps whose average gradient is positive, as masks.

    Attributes:
        mu: Keep maps whose average gradient exceeds mu times the largest of the layer, from 0 up to 1.
        fusion: `hard` (the paper's) or `soft`; see `engine.kernels.fuse`.
        baseline: What masked-out pixels become: `zero` in the network's input space, `blur`, or a colour (r, g, b).

    Raises:
        OptionError: An option has no meaning.

    Source: SISE, arXiv 2010.00672.
    """

    name: ClassVar[str] = "sise"
    layered: ClassVar[bool] = True
    unit: ClassVar[str] = "masks"

    mu: float = 0.0
    fusion: str = "hard"
    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        self._as_rule()

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring of all their masks."""
        return self._as_rule().explain(probe)

    def _as_rule(self) -> AdaSise:
        return AdaSise(rule="positive", mu=self.mu, fusion=self.fusion, baseline=self.baseline)


def scores_of(own: Plan, order: NDArray[np.int64], masks: Sequence[ScoredMasks], k: int) -> NDArray[np.float64]:
    """Return the scores of the masks of class number k, float64 [n], NaN where none was scored for it.

    What another class had scored does not count: each class gives the result that it gives alone.
    """
    scores = np.full(len(own.masks), np.nan)
    for layer, scored in enumerate(masks):
        wanted = order[own.masks[order, 0] == layer]
        places = scored.positions_of(own.masks[wanted, 1])
        scores[wanted[places >= 0]] = scored.scores[places[places >= 0], k]
    return scores


def estimated(
    own: Plan,
    order: NDArray[np.int64],
    scores: NDArray[np.float64],
    kriging: Kriging | None,
    maps: Callable[[], Sequence[Floats]],
    size: tuple[int, int],
) -> tuple[NDArray[np.int64], Kriging | None, NDArray[np.float64]]:
    """Estimate the scores of the masks of one class that were not scored.

    Args:
        own: The masks of the class.
        order: The numbers of those that should be scored, in order.
        scores: What was measured, float64 [n]; NaN where nothing was.
        kriging: What the order rests on, or None.
        maps: Gives F_l of each layer, if there is something to estimate.
        size: H and W of the image.

    Returns:
        The numbers of the masks that were scored, in order; what the estimates rest on, None if there are none; and
        what each mask is taken to score, float64 [n].
    """
    known = order[~np.isnan(scores[order])]
    if len(known) == len(scores):
        return known, None, scores
    kriging = own.kriging(maps(), size) if kriging is None else kriging
    return known, kriging, kriging.estimate(known, scores[known])


def views_of(
    maps: Sequence[Floats],
    masks: Sequence[ScoredMasks],
    own: Plan,
    scores: NDArray[np.float64],
    values: NDArray[np.float64],
    size: tuple[int, int],
) -> list[Map | None]:
    """Make the visualization map of every layer for one class.

    Args:
        maps: F_l of each layer.
        masks: The scored masks of each layer, of all classes.
        own: The masks of the class.
        scores: What was measured of them, float64 [n]; NaN for a mask that was not scored for this class, whose minimum
            before upsampling does as well as that after it.
        values: What each is taken to score, float64 [n].
        size: H and W of the image.
    """
    views = []
    for layer, scored in enumerate(masks):
        mine = own.of_layer(layer)
        channels = own.masks[mine, 1]
        chosen, known = maps[layer][channels], ~np.isnan(scores[mine])
        places = scored.positions_of(channels[known])
        minimum, extent = chosen.min(axis=(1, 2)).astype(np.float64), np.ones(len(chosen))
        minimum[known], extent[known] = scored.minimum[places], scored.extent[places]
        views.append(visualization_map(chosen, values[mine], minimum, extent, size))
    return views


def reports_of(
    layers: Sequence[Layer],
    own: Plan,
    scores: NDArray[np.float64],
    values: NDArray[np.float64],
    cuts: Sequence[float | None],
) -> tuple[LayerReport, ...]:
    """Say what happened in every layer for one class.

    Args:
        layers: The bundle's layers.
        own: The masks of the class.
        scores: What was measured of them, float64 [n]; NaN where nothing was.
        values: What each is taken to score, float64 [n].
        cuts: Where fusion has cut each layer.
    """
    pairs = enumerate(zip(layers, cuts, strict=True))
    return tuple(_report(layer, number, own, scores, values, cut) for number, (layer, cut) in pairs)


def _report(
    layer: Layer, number: int, own: Plan, scores: NDArray[np.float64], values: NDArray[np.float64], cut: float | None
) -> LayerReport:
    """Say what happened in one layer for one class."""
    selection, masks = own.selections[number], own.of_layer(number)
    place = np.isin(selection.channels, own.masks[masks, 1])  # in both, the strongest comes first
    measured, estimated = np.full(len(place), np.nan), np.full(len(place), np.nan)
    measured[place] = scores[masks]
    estimated[place] = np.where(np.isnan(scores[masks]), values[masks], np.nan)
    return LayerReport(
        name=layer.name,
        channels=layer.channels,
        height=layer.height,
        width=layer.width,
        positive=selection.positive,
        selected=len(place),
        flat=len(place) - len(masks),
        scored=int(np.count_nonzero(~np.isnan(measured))),
        threshold=selection.threshold,
        fusion_threshold=cut,
        selected_channels=selection.channels,
        scores=measured,
        estimated_scores=estimated,
    )


def warnings_of(layers: Sequence[LayerReport], made: Sequence[bool]) -> tuple[str, ...]:
    """Say what the reader of the heatmap should know of the layers.

    Args:
        layers: What happened in them.
        made: Whether each has a visualization map.
    """
    warnings = []
    for layer, there in zip(layers, made, strict=True):
        if layer.selected == 0:
            warnings.append(f"layer {layer.name!r} gave no mask: no feature map was selected")
        elif layer.flat == layer.selected:
            warnings.append(f"layer {layer.name!r} gave no mask: all {layer.flat} selected maps are constant")
        elif not there:
            all_zero = not np.nan_to_num(layer.scores).any() and not np.nan_to_num(layer.estimated_scores).any()
            found = "all its masks score 0" if all_zero else "its visualization map is constant"
            warnings.append(f"layer {layer.name!r} is left out of the fusion: {found}")
    return tuple(warnings)
