"""Which masks there are, and in which order they are scored."""

from fractions import Fraction

import numpy as np
import pytest

from engine.budget import interleave, plan, plan_all, take_turns, telling_first
from engine.kernels import Kriging, Selection
from tests.reference import kriging, method


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


def test_flat_maps_make_no_mask() -> None:
    flat = [np.array([True, False, True, False]), np.array([False, False, False, False, True])]
    own = plan([chosen(2, 1, 3, 0), chosen(4, 3, 1, 0, 2)], flat)
    assert own.masks.tolist() == [[1, 3], [0, 1], [1, 1], [1, 0], [0, 3], [1, 2]]
    assert (own.of_layer(0).tolist(), own.of_layer(1).tolist()) == ([1, 4], [0, 2, 3, 5])
    assert own.pairs(np.array([5, 1])) == [(1, 2), (0, 1)]
    assert plan([chosen(0), chosen()], [np.array([True]), np.array([False])]).masks.shape == (0, 2)


@pytest.mark.parametrize(("rule", "mu"), [("otsu", 0.0), ("otsu-count", 0.0), ("positive", 0.2)])
def test_plans_hold_what_the_rule_selects_and_is_not_flat(random: np.random.Generator, rule: str, mu: float) -> None:
    maps = [random.random((9, 3, 4)).astype(np.float32), random.random((6, 2, 2)).astype(np.float32)]
    averages = [random.standard_normal((2, 9)).astype(np.float32), random.standard_normal((2, 6)).astype(np.float32)]
    maps[0][4], averages[0][:, 4] = 0.7, (4.0, 5.0)  # the strongest of its layer, and flat
    for k, own in enumerate(plan_all(maps, averages, rule, mu)):
        chosen = [method.select(alphas[k], rule, mu) for alphas in averages]
        assert [sorted(selection.channels) for selection in own.selections] == [sorted(channels) for channels in chosen]
        live = [[n, c] for n, channels in enumerate(chosen) for c in channels if not method.is_flat(maps[n][c])]
        assert sorted(own.masks.tolist()) == live
        assert len(live) == sum(map(len, chosen)) - 1


def test_the_points_of_kriging_are_the_masks_in_their_order(random: np.random.Generator) -> None:
    maps = [random.random((3, 4, 5)).astype(np.float32), random.random((2, 2, 3)).astype(np.float32)]
    own = plan([chosen(2, 0, 1), chosen(1, 0)], [np.zeros(3, np.bool_), np.zeros(2, np.bool_)])
    points = np.stack(
        [kriging.thumbnail(maps[layer][channel].astype(np.float64), 16, 20) for layer, channel in own.masks]
    )
    scores = random.random(5)
    found = own.kriging(maps, (16, 20)).estimate(np.array([3, 0]), scores[[3, 0]])
    np.testing.assert_allclose(found, kriging.estimate(points, [3, 0], scores[[3, 0]]), atol=1e-9)


def test_the_most_telling_come_first(random: np.random.Generator) -> None:
    kriged = Kriging(random.random((200, 3)))
    best = kriged.order(128).tolist()
    rest = [number for number in range(200) if number not in best[:5]]
    assert telling_first(kriged, 200, 9, 5).tolist() == [*best[:5], *rest[:4]]
    assert telling_first(kriged, 200, 4, 5).tolist() == best[:4]
    assert telling_first(kriged, 200, 4, 0).tolist() == [0, 1, 2, 3]
    far = telling_first(kriged, 200, 190, 180).tolist()
    assert far[:128] == best
    assert far[128:] == [number for number in range(200) if number not in best][:62]


def test_classes_take_turns_and_share() -> None:
    first, second = [(1, 1), (0, 5), (0, 6)], [(1, 1), (0, 6), (1, 2), (0, 7), (1, 3)]
    assert take_turns([first]) == first
    assert take_turns([first, second]) == [(1, 1), (0, 5), (0, 6), (1, 2), (0, 7), (1, 3)]
    assert take_turns([[3, 0], [0]]) == [3, 0]
    assert take_turns([[], []]) == []
