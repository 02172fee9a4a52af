"""Score-CAM: every feature map of a layer as a mask."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.budget import take_turns
from engine.feature_masks import FeatureMasks
from engine.image import Baseline
from engine.kernels import is_flat, select_channels
from engine.methods.base import Attribution, layer_number
from engine.methods.cam import activation_map
from engine.options import expect_known
from engine.probe import Probe

_WEIGHTS = ("softmax", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCam:
    """Score-CAM: ReLU(Σ_k α_k·A_k), α by the scores of the image under the masks that the maps make.

    Constant maps make no mask and have no part. With a budget the maps of the largest average gradients come first,
    though the method itself needs no gradient.

    Attributes:
        weights: `softmax`: α is the softmax over the maps of the logits; `score`: α_k is the class score.
        layer: Name of the feature layer; None for the last.
        baseline: What masked-out pixels become: `zero` in the network's input space, `blur`, or a colour (r, g, b).

    Raises:
        OptionError: An option has no meaning.

    Source: arXiv 1910.01279, definition 3 and algorithm 1; the score of the baseline image, which the paper takes off,
    is common to all maps and changes no softmax. `score` is the form of the authors' code.
    """

    name: ClassVar[str] = "score-cam"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "masks"

    weights: str = "softmax"
    layer: str | None = None
    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        expect_known("weights", self.weights, _WEIGHTS)

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring of all their masks."""
        layer = layer_number(probe.bundle, self.layer)
        baseline = probe.baseline(self.baseline)
        tapped = probe.tap()
        maps = tapped.maps[layer]
        with probe.clock("select"):
            flat = is_flat(maps)
            chosen = [select_channels(alpha, "all") for alpha in tapped.averages[layer]]
            orders = [selection.channels[~flat[selection.channels]] for selection in chosen]
            planned = [order[: probe.options.within_budget(len(order))] for order in orders]
        turns = take_turns([order.tolist() for order in planned])
        rows = FeatureMasks(probe.image[0], baseline, [maps], [(0, channel) for channel in turns])
        scores = probe.score(rows, activation="none" if self.weights == "softmax" else None)
        (masks,) = rows.by_layer(scores)
        found = []
        for k, order in enumerate(orders):
            own = masks.positions_of(planned[k])
            own = np.sort(own[own >= 0])
            weights = masks.scores[own, k]
            if self.weights == "softmax":
                weights = _softmax(weights)
            values = np.einsum("k,khw->hw", weights, maps[masks.channels[own]], dtype=np.float64)
            found.append(activation_map(values, probe, scored=len(own), scorable=len(order)))
        return found


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.exp(logits - logits.max(initial=-np.inf))
    return np.asarray(values / values.sum())
