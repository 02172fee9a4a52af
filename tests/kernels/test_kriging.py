import numpy as np
import pytest

from engine.kernels import Kriging, thumbnails
from tests.reference import kriging


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((7, 7), (56, 56)),
        ((12, 16), (24, 32)),
        ((5, 3), (23, 31)),
        ((3, 4), (6, 5)),
        ((1, 6), (9, 40)),
        ((9, 9), (9, 9)),
    ],
)
def test_thumbnails(random: np.random.Generator, source: tuple[int, int], size: tuple[int, int]) -> None:
    maps = random.normal(size=(4, *source)).astype(np.float32)
    found = thumbnails(maps, size)
    assert (found.dtype, found.shape) == (np.float64, (4, min(7, size[0]) * min(7, size[1])))
    for own, feature_map in zip(found, maps, strict=True):
        np.testing.assert_allclose(own, kriging.thumbnail(feature_map.astype(np.float64), *size), atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 13, 40])
def test_estimates_equal_the_formula(random: np.random.Generator, count: int) -> None:
    points, scores = random.random((40, 9)), random.random(40)
    known = random.permutation(40)[:count]
    found = Kriging(points).estimate(known, scores[known])
    np.testing.assert_allclose(found, kriging.estimate(points, known.tolist(), scores[known]), atol=1e-9)
    np.testing.assert_array_equal(found[known], scores[known])


def test_estimates_rest_on_the_first_512(random: np.random.Generator) -> None:
    points, scores = random.random((600, 4)), random.random(600)
    known = random.permutation(600)[:560]
    found = Kriging(points).estimate(known, scores[known])
    of_first = Kriging(points).estimate(known[:512], scores[known[:512]])
    others = np.setdiff1d(np.arange(600), known)
    np.testing.assert_array_equal(found[others], of_first[others])
    np.testing.assert_array_equal(found[known], scores[known])
    of_all = kriging.estimate(points, known.tolist(), scores[known])
    assert np.abs(found[others] - of_all[others]).max() > 1e-3


def test_estimates_of_a_smooth_function_are_near_it(random: np.random.Generator) -> None:
    points = random.random((300, 2))
    scores = np.sin(3 * points[:, 0]) * np.cos(2 * points[:, 1])
    known = Kriging(points).order(30)
    error = np.abs(Kriging(points).estimate(known, scores[known]) - scores)
    assert np.sqrt((error**2).mean()) < 0.02 < np.ptp(scores) / 50


def test_estimates_stay_within_the_known_scores(random: np.random.Generator) -> None:
    points, scores = random.random((60, 3)), random.random(60)
    known = np.arange(12)
    found = Kriging(points).estimate(known, scores[known])
    assert (found.min(), found.max()) == (scores[known].min(), scores[known].max())


def test_nothing_known_makes_all_alike() -> None:
    points = np.arange(6.0).reshape(3, 2)
    assert Kriging(points).estimate(np.array([], np.int64), np.array([])).tolist() == [1, 1, 1]
    assert Kriging(points[:0]).estimate(np.array([], np.int64), np.array([])).tolist() == []


def test_points_that_are_the_same(random: np.random.Generator) -> None:
    alike = Kriging(np.ones((5, 4)))
    assert alike.order(3).tolist() == [0, 1, 2]
    np.testing.assert_allclose(alike.estimate(np.array([4, 2]), np.array([0.2, 0.4])), [0.3, 0.3, 0.4, 0.3, 0.2])
    twice = np.repeat(random.random((4, 3)), 2, axis=0)
    assert sorted(Kriging(twice).order(4) // 2) == [0, 1, 2, 3]
    assert set(Kriging(twice).order(4) % 2) == {0}


def test_each_next_point_takes_most_off_the_variance(random: np.random.Generator) -> None:
    points = random.random((30, 5))
    order = Kriging(points).order(30).tolist()
    assert sorted(order) == list(range(30))
    everyone = range(30)
    for step in range(8):
        left = {
            point: kriging.remaining(points, [*order[:step], point], everyone)
            for point in everyone
            if point not in order[:step]
        }
        assert left[order[step]] <= min(left.values()) * (1 + 1e-9)


def test_witnesses_stand_for_many_points(random: np.random.Generator) -> None:
    points = random.random((400, 4))
    order = Kriging(points).order(3).tolist()
    witnesses = [number * 400 // 256 for number in range(256)]
    for step in range(3):
        candidates = [*order[step:], *range(0, 400, 7)]
        left = [kriging.remaining(points, [*order[:step], point], witnesses) for point in candidates]
        assert left[0] <= min(left) * (1 + 1e-9)


def test_every_beginning_of_an_order_is_the_order(random: np.random.Generator) -> None:
    kriged = Kriging(random.random((50, 6)))
    np.testing.assert_array_equal(kriged.order(20)[:7], kriged.order(7))
    assert kriged.order(0).tolist() == []
