"""Ada-SISE and SISE: the method's phases, in the order of the papers.

    tap       one run of the network: logits, feature maps F_l, average gradients α_l
    select    per layer, the channels whose α the rule keeps
    score     each kept feature map becomes a mask; the network scores the masked images
    combine   per layer, the masks weighted by their scores: the visualization map V_l
    fuse      V_1 … V_L, shallow to deep: the heatmap

Source: SISE, arXiv 2010.00672; Ada-SISE, arXiv 2102.07799.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.budget import Plan, plan, scoring_order
from engine.bundle import Layer
from engine.errors import OptionError
from engine.explanation import LayerReport
from engine.feature_masks import FeatureMasks, ScoredMasks
from engine.image import Baseline
from engine.kernels import FUSIONS, RULES, Selection, fuse, is_flat, select_channels, visualization_map
from engine.methods.base import Attribution, Map
from engine.options import expect_known, expect_number
from engine.probe import Probe

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

    Raises:
        OptionError: An option has no meaning.

    Source: Ada-SISE, arXiv 2102.07799.
    """

    name: ClassVar[str] = "ada-sise"
    layered: ClassVar[bool] = True
    unit: ClassVar[str] = "masks"

    rule: str = "otsu"
    mu: float = 0.0
    fusion: str = "hard"
    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        expect_known("rule", self.rule, RULES)
        expect_known("fusion", self.fusion, FUSIONS)
        expect_number("mu", self.mu, lambda mu: 0 <= mu < 1, "from 0 up to 1")
        if self.mu > 0 and self.rule != "positive":
            raise OptionError(f"mu is {self.mu:g} with rule {self.rule!r}; only rule 'positive' takes mu")

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring of all their masks."""
        baseline = probe.baseline(self.baseline)
        tapped = probe.tap()
        count = len(probe.classes)
        with probe.clock("select"):
            chosen = [
                [select_channels(alpha[k], self.rule, self.mu) for alpha in tapped.averages] for k in range(count)
            ]
            flat = [_flat(*layer) for layer in zip(tapped.maps, zip(*chosen, strict=True), strict=True)]
            plans = [plan(selections, flat, probe.options.max_masks) for selections in chosen]
        rows = FeatureMasks(probe.image[0], baseline, tapped.maps, scoring_order(plans))
        masks = rows.by_layer(probe.score(rows))
        return [self._fuse(probe, tapped.maps, masks, plans[k], k) for k in range(count)]

    def _fuse(
        self, probe: Probe, maps: Sequence[Floats], masks: Sequence[ScoredMasks], plans: Sequence[Plan], k: int
    ) -> Attribution:
        """Make the heatmap of class number k from its own masks."""
        with probe.clock("combine"):
            views = [_combine(*layer, k, probe.size) for layer in zip(maps, masks, plans, strict=True)]
        with probe.clock("fuse"):
            heatmap, cuts = fuse(views, self.fusion)
        layers = tuple(_report(*layer, k) for layer in zip(probe.bundle.layers, masks, plans, cuts, strict=True))
        return Attribution(
            heatmap=heatmap,
            scored=sum(layer.scored for layer in layers),
            scorable=sum(len(layer.scorable) for layer in plans),
            warnings=_warnings(layers, views),
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


def _flat(maps: Floats, selections: Sequence[Selection]) -> NDArray[np.bool_]:
    """Tell which of the feature maps that any class selected are constant; the others are not looked at."""
    selected = np.unique(np.concatenate([selection.channels for selection in selections]))
    flat = np.zeros(len(maps), np.bool_)
    flat[selected] = is_flat(maps[selected])
    return flat


def _combine(maps: Floats, masks: ScoredMasks, plan: Plan, k: int, size: tuple[int, int]) -> Map | None:
    """Make the visualization map of one layer for class number k, from that class's own masks."""
    own = masks.positions_of(plan.planned)
    own = own[own >= 0]
    return visualization_map(
        maps[masks.channels[own]], masks.scores[own, k], masks.minimum[own], masks.extent[own], size
    )


def _report(layer: Layer, masks: ScoredMasks, plan: Plan, cut: float | None, k: int) -> LayerReport:
    """Say what happened in one layer for class number k."""
    channels = plan.selection.channels
    own = masks.positions_of(channels)
    scored = (own >= 0) & np.isin(
        channels, plan.planned
    )  # another class may have had more of this layer's masks scored
    scores = np.full(len(channels), np.nan)
    scores[scored] = masks.scores[own[scored], k]
    return LayerReport(
        name=layer.name,
        channels=layer.channels,
        height=layer.height,
        width=layer.width,
        positive=plan.selection.positive,
        selected=len(channels),
        flat=len(channels) - len(plan.scorable),
        scored=int(scored.sum()),
        threshold=plan.selection.threshold,
        fusion_threshold=cut,
        selected_channels=channels,
        scores=scores,
    )


def _warnings(layers: Sequence[LayerReport], views: Sequence[Map | None]) -> tuple[str, ...]:
    """Say what the reader of the heatmap should know of the layers."""
    warnings = []
    for layer, view in zip(layers, views, strict=True):
        if layer.selected == 0:
            warnings.append(f"layer {layer.name!r} gave no mask: no feature map was selected")
        elif layer.flat == layer.selected:
            warnings.append(f"layer {layer.name!r} gave no mask: all {layer.flat} selected maps are constant")
        elif layer.scored == 0:
            warnings.append(f"layer {layer.name!r} gave no mask: none was scored")
        elif view is None:
            all_zero = np.nanmax(np.abs(layer.scores)) == 0
            found = f"all {layer.scored} scored masks score 0" if all_zero else "its visualization map is constant"
            warnings.append(f"layer {layer.name!r} is left out of the fusion: {found}")
    return tuple(warnings)
