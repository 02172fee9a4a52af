"""Group-CAM: groups of weighted feature maps as masks."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.budget import take_turns
from engine.feature_masks import FeatureMasks
from engine.image import Baseline
from engine.kernels import is_flat, scale_to_unit, upsample
from engine.methods.base import Attribution, layer_number
from engine.options import expect_whole
from engine.probe import Probe
from engine.scoring import finite

Floats = NDArray[np.float32]
_PERCENTILE = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCam:
    """Group-CAM: ReLU(Σ_l w_l·M_l), M_l the mask of a group of maps, w_l what it adds to the baseline's score.

    The maps, weighted by their average gradients, are summed in groups of neighbouring channels; of each sum the cells
    above its 70th percentile are kept. A group that is constant then makes no mask. With a budget the groups of the
    largest sums come first.

    Attributes:
        groups: Number of groups G; a layer of fewer maps has one for each.
        layer: Name of the feature layer; None for the last.
        baseline: What masked-out pixels become: `blur`, `zero` in the network's input space, or a colour (r, g, b).

    Raises:
        OptionError: An option has no meaning.

    Source: arXiv 2103.13859, section 3, equations 1 to 6.
    Departs: the blur is the engine's, whose σ is 1/20 of the shorter side; groups differ by at most one map where G
    does not divide their number.
    """

    name: ClassVar[str] = "group-cam"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "masks"

    groups: int = 32
    layer: str | None = None
    baseline: Baseline = "blur"

    def __post_init__(self) -> None:
        expect_whole("groups", self.groups)

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring of all their masks."""
        layer = layer_number(probe.bundle, self.layer)
        baseline = probe.baseline(self.baseline)
        tapped = probe.tap()
        with probe.clock("select"):
            grouped = [self._group(tapped.maps[layer], alpha) for alpha in tapped.averages[layer]]
            strongest = [np.argsort(-maps.sum(axis=(1, 2)), kind="stable") for maps in grouped]
            order = [own[~is_flat(maps)[own]].tolist() for own, maps in zip(strongest, grouped, strict=True)]
        planned = [
            [(k, group) for group in own[: probe.options.within_budget(len(own))]] for k, own in enumerate(order)
        ]
        rows = FeatureMasks(probe.image[0], baseline, grouped, take_turns(planned))
        nothing = np.zeros_like(probe.image) if baseline is None else baseline[None]
        (logits,) = probe.run(probe.network.scorer, [nothing])  # before the masks, which a deadline ends
        without = probe.class_scores(finite(logits))
        masks = rows.by_layer(probe.score(rows))
        found = []
        for k, own in enumerate(masks):
            weights = (own.scores[:, k] - without[k]) / own.extent
            summed = np.einsum("k,khw->hw", weights, grouped[k][own.channels], dtype=np.float64)
            values = np.maximum(upsample(summed, probe.size) - float(weights @ own.minimum), 0.0)
            found.append(Attribution(heatmap=scale_to_unit(values), scored=len(own.channels), scorable=len(order[k])))
        return found

    def _group(self, maps: Floats, alpha: Floats) -> Floats:
        """Sum the weighted maps [C, h, w] in groups, and keep the highest cells: float32 [G, h, w]."""
        weighted = alpha.astype(np.float64)[:, None, None] / maps[0].size * maps
        parts = np.array_split(weighted, min(self.groups, len(maps)))
        sums = np.stack([np.maximum(part.sum(axis=0), 0.0) for part in parts])
        bounds = np.percentile(sums, _PERCENTILE, axis=(1, 2), keepdims=True)
        return np.where(sums > bounds, sums, 0.0).astype(np.float32)
