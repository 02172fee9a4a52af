"""Class activation maps from changed feature maps: only the part of the network behind the last layer runs again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.budget import take_turns
from engine.errors import OptionError
from engine.kernels import scale_to_unit, upsample
from engine.methods.base import Attribution
from engine.methods.cam import activation_map
from engine.probe import Probe
from engine.scoring import Write

Floats = NDArray[np.float32]

_GAUSSIAN = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationCam:
    """Ablation-CAM: ReLU(Σ_k w_k·A_k), w_k what the logit loses when map k of the last layer becomes 0.

    A map of zeros has no part. With a budget the maps of the largest average gradients, in size, come first.

    Source: S. Desai and H. G. Ramaswamy, "Ablation-CAM", WACV 2020, pp. 983–991, section 3.
    Departs: w_k is not divided by the logit: a positive one is a common factor, a negative one would turn the map over.
    """

    name: ClassVar[str] = "ablation-cam"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "maps"

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring."""
        maps, averages = probe.layer(-1)
        empty = np.logical_not(maps.any(axis=(1, 2)))
        orders = [np.argsort(-np.abs(alpha.astype(np.float64)), kind="stable") for alpha in averages]
        scorable = int(np.count_nonzero(~empty))
        planned = [order[~empty[order]][: probe.options.within_budget(scorable)] for order in orders]
        channels = np.array(take_turns([order.tolist() for order in planned]), np.int64)
        logits = probe.score(_WithoutMap(maps, channels), graph="head", activation="none")
        lost = np.zeros((len(maps), logits.shape[1]))
        lost[channels[: len(logits)]] = probe.logits[0, probe.classes].astype(np.float64) - logits
        known = np.zeros(len(maps), np.bool_)
        known[channels[: len(logits)]] = True
        found = []
        for k, order in enumerate(planned):
            own = order[known[order]]
            values = np.einsum("k,khw->hw", lost[own, k], maps[own], dtype=np.float64)
            found.append(activation_map(values, probe, scored=len(own), scorable=scorable))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ReciproCam:
    """Recipro-CAM: the class score of the network behind the last layer when it sees one place of the feature maps.

    With a budget the places of the largest features come first; those that are left out count as the lowest scored.

    Attributes:
        gaussian: Whether a place is a 3×3 Gaussian around its cell, or the cell alone.

    Source: arXiv 2209.14074, section 3.
    """

    name: ClassVar[str] = "recipro-cam"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "places"

    gaussian: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.gaussian, bool):
            raise OptionError(f"gaussian is {self.gaussian!r}; expected True or False")

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with one scoring."""
        maps, _ = probe.layer(-1)
        places = np.argsort(-np.abs(maps).sum(axis=0, dtype=np.float64), axis=None, kind="stable")
        rows = _OnePlace(maps, places, gaussian=self.gaussian)
        scores = probe.score(rows, probe.options.within_budget(len(places)), graph="head")
        values = np.tile(scores.min(axis=0), (len(places), 1))
        values[places[: len(scores)]] = scores
        return [
            Attribution(
                heatmap=scale_to_unit(upsample(of_class.reshape(maps.shape[1:]), probe.size)),
                scored=len(scores),
                scorable=len(places),
            )
            for of_class in values.T
        ]


class _WithoutMap:
    """Feature maps [C, h, w] of which one is 0: rows to score, one for each channel given."""

    def __init__(self, maps: Floats, channels: Sequence[int] | NDArray[np.int64]) -> None:
        self.shape: tuple[int, int, int] = (maps.shape[0], maps.shape[1], maps.shape[2])
        self._maps = maps
        self._channels = channels

    def __len__(self) -> int:
        return len(self._channels)

    def writer(self) -> Write:
        def write(part: range, batch: Floats) -> None:
            for row, number in enumerate(part):
                batch[row] = self._maps
                batch[row, self._channels[number]] = 0.0

        return write


class _OnePlace:
    """Feature maps [C, h, w] seen at one place: rows to score, one for each cell given, in row-major numbers."""

    def __init__(self, maps: Floats, places: NDArray[np.int64], *, gaussian: bool) -> None:
        self.shape: tuple[int, int, int] = (maps.shape[0], maps.shape[1], maps.shape[2])
        self._maps = maps
        self._places = places
        self._window = (_GAUSSIAN if gaussian else np.ones((1, 1))).astype(np.float32)

    def __len__(self) -> int:
        return len(self._places)

    def writer(self) -> Write:
        reach = len(self._window) // 2
        _, height, width = self.shape
        padded = np.zeros((height + 2 * reach, width + 2 * reach), np.float32)

        def write(part: range, batch: Floats) -> None:
            for row, number in enumerate(part):
                y, x = divmod(int(self._places[number]), width)
                padded[:] = 0.0
                padded[y : y + len(self._window), x : x + len(self._window)] = self._window
                np.multiply(self._maps, padded[reach : reach + height, reach : reach + width], out=batch[row])

        return write
