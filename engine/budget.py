"""Which masks are scored, and in which order, when there may not be time for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from engine.kernels import Selection


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The masks of one layer for one class.

    Attributes:
        selection: The feature maps that the rule chose.
        scorable: int64 [n], those that are not flat, the strongest average gradient first.
        planned: int64 [m], the first of these that are within the budget.
    """

    selection: Selection
    scorable: NDArray[np.int64]
    planned: NDArray[np.int64]


def plan(selections: Sequence[Selection], flat: Sequence[NDArray[np.bool_]], max_masks: int | None) -> list[Plan]:
    """Plan the masks of one class.

    Args:
        selections: The chosen feature maps of each layer, shallow to deep.
        flat: For each layer bool [C], which of its selected feature maps are constant.
        max_masks: The most masks to score; None for all.
    """
    scorable = [own.channels[~constant[own.channels]] for own, constant in zip(selections, flat, strict=True)]
    given = quotas([len(channels) for channels in scorable], max_masks)
    return [
        Plan(selection=selection, scorable=channels, planned=channels[:quota])
        for selection, channels, quota in zip(selections, scorable, given, strict=True)
    ]


def scoring_order(plans: Sequence[Sequence[Plan]]) -> list[tuple[int, int]]:
    """Put the planned masks of all classes in one order, of which every beginning serves all layers and classes alike.

    Args:
        plans: For each class, the plan of each layer, shallow to deep.

    Returns:
        (layer, channel) of every planned mask, once, however many classes it serves.
    """
    by_class = [
        [(layer, int(layers[layer].planned[number])) for layer, number in interleave([len(p.planned) for p in layers])]
        for layers in plans
    ]
    in_turn = (mask for masks in zip_longest(*by_class) for mask in masks if mask is not None)
    return list(dict.fromkeys(in_turn))


def quotas(counts: Sequence[int], budget: int | None) -> list[int]:
    """Share a budget of masks out among the layers, in proportion to the masks that each has.

    By largest remainder; of equal remainders the deeper layer's comes first. Where the budget suffices, every layer
    that has masks gets at least one, taken from the layer that is furthest above its share.

    Args:
        counts: Masks of each layer, shallow to deep.
        budget: Masks to share out; None for all.

    Returns:
        Masks of each layer that are scored.
    """
    total = sum(counts)
    if budget is None or budget >= total:
        return list(counts)
    given = [budget * count // total for count in counts]
    deep_first = sorted(range(len(counts)), reverse=True)

    def surplus(layer: int) -> int:  # above the layer's exact share, in units of 1/total
        return given[layer] * total - budget * counts[layer]

    for layer in sorted(deep_first, key=surplus)[: budget - sum(given)]:
        given[layer] += 1
    if budget >= sum(count > 0 for count in counts):
        for layer in deep_first:
            if counts[layer] and not given[layer]:
                richest = max((other for other in reversed(deep_first) if given[other] > 1), key=surplus)
                given[richest] -= 1
                given[layer] += 1
    return given


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
