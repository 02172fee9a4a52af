"""Which masks a budget keeps, and in which order they are scored."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from engine.budget import Plan, interleave, plan, quotas, scoring_order
from engine.kernels import Selection


def by_formula(counts: tuple[int, ...], budget: int) -> list[int]:
    """Largest remainder in exact fractions, one seat at a time; then one for every layer, from the richest."""
    shares = [Fraction(budget * count, sum(counts)) for count in counts]
    given = [share.numerator // share.denominator for share in shares]
    while sum(given) < budget:
        open_layers = [layer for layer in range(len(counts)) if given[layer] <= shares[layer]]
        layer = max(open_layers, key=lambda layer: (shares[layer] - given[layer], layer))
        given[layer] += 1
    if budget >= np.count_nonzero(counts):
        while poor := [layer for layer, count in enumerate(counts) if count and not given[layer]]:
            rich = max(
                (layer for layer in range(len(counts)) if given[layer] > 1),
                key=lambda layer: (given[layer] - shares[layer], -layer),
            )
            given[rich] -= 1
            given[max(poor)] += 1
    return given


@pytest.mark.parametrize(
    ("counts", "budget", "expected"),
    [
        ((9, 16, 29, 62, 123), 239, [9, 16, 29, 62, 123]),
        ((9, 16, 29, 62, 123), 1000, [9, 16, 29, 62, 123]),
        ((9, 16, 29, 62, 123), None, [9, 16, 29, 62, 123]),
        ((9, 16, 29, 62, 123), 120, [4, 8, 15, 31, 62]),  # 4.52, 8.03, 14.56, 31.13, 61.76: rests to the 3rd and 5th
        ((10, 10, 10), 4, [1, 1, 2]),  # equal remainders: the deeper layer
        ((10, 10, 10), 5, [1, 2, 2]),
        ((1, 1, 98), 10, [1, 1, 8]),  # 0.1, 0.1, 9.8: one for every layer, taken from the third
        ((1, 1, 98), 3, [1, 1, 1]),
        ((1, 1, 98), 2, [0, 0, 2]),  # too few for one each
        ((10, 10, 10), 1, [0, 0, 1]),
        ((0, 5, 0, 5), 3, [0, 1, 0, 2]),
        ((0, 0), 3, [0, 0]),
        ((7,), 3, [3]),
    ],
)
def test_quotas(counts: tuple[int, ...], budget: int | None, expected: list[int]) -> None:
    assert quotas(counts, budget) == expected


def test_quotas_equal_the_formula_for_all_small_cases() -> None:
    for counts in itertools.product(range(6), repeat=4):
        total = sum(counts)
        for budget in range(1, total):
            given = quotas(counts, budget)
            assert given == by_formula(counts, budget), (counts, budget)
            assert sum(given) == budget
            assert all(0 <= own <= count for own, count in zip(given, counts, strict=True))


@pytest.mark.parametrize("counts", [(9, 16, 29, 62, 123), (1, 1, 98), (5, 5), (0, 3, 0, 4), (2, 0), ()])
def test_every_beginning_is_proportional(counts: tuple[int, ...]) -> None:
    order = interleave(counts)
    assert sorted(order) == [(layer, number) for layer, count in enumerate(counts) for number in range(count)]
    with_masks = [layer for layer, count in enumerate(counts) if count]
    assert [layer for layer, _ in order[: len(with_masks)]] == with_masks[::-1]
    reached = [0] * len(counts)
    for done, (layer, number) in enumerate(order, start=1):
        assert number == reached[layer]  # strongest first
        reached[layer] += 1
        for own, count in zip(reached, counts, strict=True):
            assert own < Fraction(done * count, sum(counts)) + 1


def chosen(*channels: int) -> Selection:
    return Selection(channels=np.array(channels, np.int64), positive=len(channels), threshold=0.0)


def as_lists(plans: list[Plan]) -> list[tuple[list[int], list[int]]]:
    return [(layer.scorable.tolist(), layer.planned.tolist()) for layer in plans]


def test_flat_maps_cost_no_budget() -> None:
    flat = [np.array([True, False, True, False]), np.array([False, False, False, False, True])]
    selections = [chosen(2, 1, 3, 0), chosen(4, 3, 1, 0, 2)]
    assert as_lists(plan(selections, flat, None)) == [([1, 3], [1, 3]), ([3, 1, 0, 2], [3, 1, 0, 2])]
    assert as_lists(plan(selections, flat, 3)) == [([1, 3], [1]), ([3, 1, 0, 2], [3, 1])]
    assert as_lists(plan(selections, flat, 1)) == [([1, 3], []), ([3, 1, 0, 2], [3])]


def test_classes_take_turns_and_share_masks() -> None:
    def layers(*channels: tuple[int, ...]) -> list[Plan]:
        return plan([chosen(*own) for own in channels], [np.zeros(9, np.bool_)] * len(channels), None)

    first, second = layers((5, 6), (1,)), layers((6, 7), (1, 2, 3))
    assert scoring_order([first]) == [(1, 1), (0, 5), (0, 6)]
    assert scoring_order([second]) == [(1, 1), (0, 6), (1, 2), (0, 7), (1, 3)]
    assert scoring_order([first, second]) == [(1, 1), (0, 5), (0, 6), (1, 2), (0, 7), (1, 3)]
    assert scoring_order([layers((), ())]) == []
