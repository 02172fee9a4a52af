"""The batch loop: what it scores, and that its memory does not grow with the number of masks."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.kernels import MaskWriter
from engine.scoring import ScoredMasks, score_masks
from tests.reference import method

SHAPE = (3, 20, 24)


class MeanNetwork:
    """A network whose logits are the means of the three colours; it notes the batches that it was given."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        self.batch_sizes.append(len(inputs[0]))
        return [inputs[0].mean(axis=(2, 3))]


def score(
    maps: list[NDArray[np.float32]], channels: list[NDArray[np.int64]], x: NDArray[np.float32], batch_size: int
) -> tuple[list[ScoredMasks], list[int]]:
    network, batch = MeanNetwork(), np.empty((batch_size, *SHAPE), np.float32)
    return score_masks(network, MaskWriter(x, None), maps, channels, [2, 0], "none", batch), network.batch_sizes


@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (8, [6])])
def test_scores_equal_the_formula_whatever_the_batch(
    random: np.random.Generator, batch_size: int, batches: list[int]
) -> None:
    x = random.normal(size=SHAPE).astype(np.float32)
    maps = [random.random((1, 5, 4, 6), np.float32), random.random((1, 7, 3, 3), np.float32)]
    channels = [np.array([0, 3]), np.array([1, 2, 4, 6])]
    layers, sizes = score(maps, channels, x, batch_size)
    assert sizes == batches
    for layer, layer_maps, kept in zip(layers, maps, channels, strict=True):
        masks = method.masks(layer_maps[0, kept], *SHAPE[1:])
        expected = (x[None].astype(np.float64) * masks[:, None]).mean(axis=(2, 3))[:, [2, 0]]
        np.testing.assert_array_equal(layer.channels, kept)
        np.testing.assert_allclose(layer.scores, expected, atol=1e-6)
        upsampled = method.upsample(layer_maps[0, kept], *SHAPE[1:])
        np.testing.assert_allclose(layer.minimum, upsampled.min(axis=(1, 2)), rtol=1e-6)
        np.testing.assert_allclose(layer.extent, np.ptp(upsampled, axis=(1, 2)), rtol=1e-5)


def test_nothing_to_score(random: np.random.Generator) -> None:
    layers, sizes = score([random.random((1, 2, 3, 3), np.float32)], [np.array([], np.int64)], np.ones(SHAPE, "f"), 4)
    assert sizes == []
    assert layers[0].scores.shape == (0, 2)


def test_positions_of_channels() -> None:
    masks = ScoredMasks(np.array([2, 5, 9]), np.zeros((3, 1)), np.zeros(3), np.ones(3))
    assert masks.positions_of(np.array([9, 0, 2, 30])).tolist() == [2, -1, 0, -1]
    none = ScoredMasks(np.array([], np.int64), np.zeros((0, 1)), np.zeros(0), np.zeros(0))
    assert none.positions_of(np.array([1, 0])).tolist() == [-1, -1]
    assert masks.positions_of(np.array([], np.int64)).tolist() == []


def test_memory_does_not_grow_with_the_number_of_masks(random: np.random.Generator) -> None:
    x, maps = random.normal(size=SHAPE).astype(np.float32), [random.random((1, 400, 4, 4), np.float32)]

    def peak(count: int) -> int:
        tracemalloc.start()
        score(maps, [np.arange(count)], x, 4)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(20)  # fills the caches
    one_mask = SHAPE[1] * SHAPE[2] * np.dtype(np.float32).itemsize
    assert peak(400) - peak(20) < 380 * one_mask / 10
