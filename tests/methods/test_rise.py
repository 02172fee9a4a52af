"""RISE against its formula, with the same masks."""

import time

import numpy as np
import pytest

from engine.methods.rise import RandomMasks
from tests.methods.conftest import Tiny
from tests.reference import cam
from tests.reference.attribution import heatmap


def drawn(masks: int, cells: int, probability: float, seed: int, size: tuple[int, int]):
    """The masks in float64, in the order of the random numbers that docs/methods.md gives."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(masks):
        grid = (random.random((cells, cells)) < probability).astype(np.float64)
        offset = tuple(int(random.integers(-(-side // cells))) for side in size)
        made.append(cam.rise_mask(grid, offset, size))
    return np.stack(made)


@pytest.mark.parametrize(
    ("cells", "probability", "activation"), [(7, 0.5, "softmax"), (3, 0.2, "sigmoid"), (1, 0.5, "none")]
)
def test_the_formula(tiny: Tiny, cells: int, probability: float, activation: str) -> None:
    results = tiny.explainer.explain(
        tiny.x, [1, 3], method="rise", masks=21, cells=cells, probability=probability, seed=5, activation=activation
    )
    masks = drawn(21, cells, probability, 5, tiny.size)
    for target, result in zip([1, 3], results, strict=True):
        expected = cam.rise(tiny.x[0], masks, target, tiny.logits, activation, probability)
        np.testing.assert_allclose(result.heatmap, heatmap(expected), atol=2e-5)
        assert result.evaluations == {"forward": 22}  # and one for the image itself
        assert result.scored == result.scorable == 21


@pytest.mark.parametrize("size", [(1, 1), (5, 17), (24, 32)])
@pytest.mark.parametrize("cells", [1, 2, 7, 40])
def test_masks(size: tuple[int, int], cells: int) -> None:
    rows = RandomMasks(np.ones((1, *size), np.float32), None, 6, cells=cells, probability=0.4, seed=3)
    for number, expected in enumerate(drawn(6, cells, 0.4, 3, size)):
        np.testing.assert_allclose(rows.mask(number), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 17), (24, 32)])
@pytest.mark.parametrize("cells", [1, 2, 7, 40])
def test_weighted_sum(size: tuple[int, int], cells: int, random: np.random.Generator) -> None:
    rows = RandomMasks(np.ones((1, *size), np.float32), None, 50, cells=cells, probability=0.4, seed=3)
    for count in (50, 3):
        weights = random.normal(size=count)
        expected = np.einsum("n,nhw->hw", weights, drawn(50, cells, 0.4, 3, size)[:count])
        np.testing.assert_allclose(rows.sum(weights), expected, atol=1e-5)


def test_the_time_after_scoring_hardly_grows_with_the_masks() -> None:
    image = np.ones((1, 224, 224), np.float32)
    best = []
    for masks in (50, 4000):
        rows = RandomMasks(image, None, masks, cells=7, probability=0.5, seed=0)
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            rows.sum(np.ones(masks))
            taken.append(time.perf_counter() - began)
        best.append(min(taken))
    assert best[1] < 30 * best[0]  # 80 times, if every mask were upsampled


def test_baseline(random: np.random.Generator) -> None:
    image, baseline = (random.normal(size=(3, 8, 9)).astype(np.float32) for _ in range(2))
    rows = RandomMasks(image, baseline, 4, cells=3, probability=0.5, seed=0)
    batch = np.empty((2, 3, 8, 9), np.float32)
    rows.writer()(range(1, 3), batch)
    for row, number in zip(batch, (1, 2), strict=True):
        mask = rows.mask(number).astype(np.float64)
        np.testing.assert_allclose(row, image * mask + baseline * (1 - mask), atol=1e-6)


def test_fewer_masks_are_the_first_of_more(tiny: Tiny) -> None:
    few = tiny.explainer.explain(tiny.x, 1, method="rise", masks=9)
    cut = tiny.explainer.explain(tiny.x, 1, method="rise", masks=30, max_masks=9)
    np.testing.assert_array_equal(few.heatmap, cut.heatmap)
    assert (few.complete, cut.complete, cut.scored, cut.scorable) == (True, False, 9, 30)
    assert cut.warnings == ("9 of 30 masks were used; the heatmap is an approximation",)


def test_seeds(tiny: Tiny) -> None:
    one, same, other = (tiny.explainer.explain(tiny.x, 1, method="rise", masks=9, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.heatmap, same.heatmap)
    assert np.abs(one.heatmap - other.heatmap).max() > 0.1
