"""Which masks are scored, and in which order, when there may not be time for all of them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.kernels import Kriging, Selection, is_flat, select_channels, thumbnails

DESIGNED = 128  # beyond, an order that was thought about is no better than the strongest first

Floats = NDArray[np.float32]
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The masks of one class.

    Attributes:
        selections: The feature maps that the rule chose in each layer, shallow to deep.
        masks: int64 [n, 2], layer and channel of each mask: of the chosen maps those that are not flat. In each layer
            the strongest average gradient comes first, and every beginning is shared out among the layers in
            proportion to their masks.
    """

    selections: tuple[Selection, ...]
    masks: NDArray[np.int64]

    def pairs(self, numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return layer and channel of masks, by their numbers."""
        return [(int(layer), int(channel)) for layer, channel in self.masks[numbers]]

    def of_layer(self, layer: int) -> NDArray[np.int64]:
        """Return the numbers of a layer's masks, int64 [n_l]."""
        return np.flatnonzero(self.masks[:, 0] == layer)

    def kriging(self, maps: Sequence[Floats], size: tuple[int, int]) -> Kriging:
        """Return what estimates the masks' scores.

        Args:
            maps: F_l of each layer, float32 [C_l, h_l, w_l].
            size: H and W of the image.
        """
        of_layers = [self.of_layer(layer) for layer in range(len(maps))]
        points = [thumbnails(own[self.masks[mine, 1]], size) for own, mine in zip(maps, of_layers, strict=True)]
        return Kriging(np.concatenate(points)[np.argsort(np.concatenate(of_layers))])


def plan_all(maps: Sequence[Floats], averages: Sequence[Floats], rule: str = "otsu", mu: float = 0.0) -> list[Plan]:
    """Plan the masks of every class; `maps` and `averages` as in `Tapped`, the rule as for `select_channels`."""
    chosen = [[select_channels(alphas[k], rule, mu) for alphas in averages] for k in range(len(averages[0]))]
    flat = [_flat(*layer) for layer in zip(maps, zip(*chosen, strict=True), strict=True)]
    return [plan(selections, flat) for selections in chosen]


def plan(selections: Sequence[Selection], flat: Sequence[NDArray[np.bool_]]) -> Plan:
    """Plan the masks of one class.

    Args:
        selections: The chosen feature maps of each layer, shallow to deep.
        flat: For each layer bool [C], which of its selected feature maps are constant.
    """
    channels = [own.channels[~constant[own.channels]] for own, constant in zip(selections, flat, strict=True)]
    turns = interleave([len(own) for own in channels])
    masks = [(layer, channels[layer][number]) for layer, number in turns]
    return Plan(tuple(selections), np.array(masks, np.int64).reshape(-1, 2))


def _flat(maps: Floats, selections: Sequence[Selection]) -> NDArray[np.bool_]:
    """Tell which of the feature maps that any class selected are constant; the others are not looked at."""
    selected = np.unique(np.concatenate([selection.channels for selection in selections]))
    flat = np.zeros(len(maps), np.bool_)
    flat[selected] = is_flat(maps[selected])
    return flat


def interleave(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Put the masks of all layers in one order, of which every beginning is proportional.

    Args:
        counts: Masks of each layer, shallow to deep.

    Returns:
        (layer, n) for the n-th mask of a layer, n from 0. First comes one of every layer, the deepest before the
        others; after any number of masks no layer is a whole mask above its share.
    """
    masks = [(layer, number) for layer, count in enumerate(counts) for number in range(count)]
    return sorted(masks, key=lambda mask: (mask[1] / counts[mask[0]], -mask[0]))


def telling_first(kriging: Kriging, masks: int, count: int, likely: int) -> NDArray[np.int64]:
    """Choose the masks to score when not all can be: first those whose scores tell most of the others'.

    Args:
        kriging: Of all masks of a class.
        masks: How many there are.
        count: Choose so many.
        likely: So many are likely to be scored; after them come the others in their own order.

    Returns:
        int64 [count], numbers of masks.
    """
    first = kriging.order(min(count, likely, DESIGNED))
    rest = np.setdiff1d(np.arange(masks), first)
    return np.concatenate([first, rest[: count - len(first)]])


def take_turns(orders: Sequence[Sequence[Item]]) -> list[Item]:
    """Put what several classes want scored in one order, of which every beginning serves all classes alike.

    Args:
        orders: What each class wants, in its order.

    Returns:
        Each item once, however many classes want it.
    """
    return list(dict.fromkeys(item for turn in zip_longest(*orders) for item in turn if item is not None))
