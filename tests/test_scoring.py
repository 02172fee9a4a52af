"""The batch loop: what it scores, and that its memory does not grow with the number of masks."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.backends import Brake
from engine.costs import Costs
from engine.errors import ImageError
from engine.feature_masks import FeatureMasks, ScoredMasks
from engine.pace import Pace
from engine.scoring import score_rows
from tests.reference import method

SHAPE = (3, 20, 24)


class MeanNetwork:
    """A network whose logits are the means of the three colours; it notes the batches that it was given."""

    inputs = outputs = ()

    def __init__(self, runs_at_once: int) -> None:
        self.runs_at_once = runs_at_once
        self.batch_sizes: list[int] = []

    def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> list[NDArray[np.generic]]:  # noqa: ARG002
        self.batch_sizes.append(len(inputs[0]))
        return [inputs[0].mean(axis=(2, 3))]


class Stop(Pace):
    """Has room for a number of masks."""

    def __init__(self, after: int) -> None:
        super().__init__(ends=None, costs=Costs(), row="row", first_s=1.0, progress=None, cancel=None)
        self._after = after

    def room(self, started: int, planned: int) -> int:
        return min(self._after, planned) - started


def score(
    maps: list[NDArray[np.float32]],
    masks: list[tuple[int, int]],
    x: NDArray[np.float32],
    batch_size: int,
    *,
    runs_at_once: int = 1,
    after: int = 10**9,
) -> tuple[list[ScoredMasks], list[int]]:
    network = MeanNetwork(runs_at_once)
    rows = FeatureMasks(x, None, maps, masks)
    scores = score_rows(network, rows, [2, 0], "none", batch_size, Stop(after))
    return rows.by_layer(scores), network.batch_sizes


@pytest.mark.parametrize(
    ("batch_size", "runs_at_once", "batches"),
    [
        (1, 1, [1] * 6),
        (4, 1, [4, 2]),
        (6, 1, [6]),
        (8, 1, [6]),
        (6, 2, [3, 2, 1]),  # half of the batch, then of what is left
        (2, 4, [1] * 6),
        (8, 16, [1] * 6),
    ],
)
def test_scores_equal_the_formula_whatever_the_batch(
    random: np.random.Generator, batch_size: int, runs_at_once: int, batches: list[int]
) -> None:
    x = random.normal(size=SHAPE).astype(np.float32)
    maps = [random.random((5, 4, 6), np.float32), random.random((7, 3, 3), np.float32)]
    order = [(1, 4), (0, 3), (1, 1), (1, 6), (0, 0), (1, 2)]
    layers, sizes = score(maps, order, x, batch_size, runs_at_once=runs_at_once)
    assert sorted(sizes) == sorted(batches)
    for layer, layer_maps, kept in zip(layers, maps, ([0, 3], [1, 2, 4, 6]), strict=True):
        masks = method.masks(layer_maps[kept], *SHAPE[1:])
        expected = (x[None].astype(np.float64) * masks[:, None]).mean(axis=(2, 3))[:, [2, 0]]
        assert layer.channels.tolist() == kept
        np.testing.assert_allclose(layer.scores, expected, atol=1e-6)
        upsampled = method.upsample(layer_maps[kept], *SHAPE[1:])
        np.testing.assert_allclose(layer.minimum, upsampled.min(axis=(1, 2)), rtol=1e-6)
        np.testing.assert_allclose(layer.extent, np.ptp(upsampled, axis=(1, 2)), rtol=1e-5)


def test_what_is_not_reached_is_left_out(random: np.random.Generator) -> None:
    maps = [random.random((5, 4, 6), np.float32), random.random((7, 3, 3), np.float32)]
    masks = [(1, 4), (0, 3), (1, 1), (1, 6), (0, 0), (1, 2)]
    x = random.normal(size=SHAPE).astype(np.float32)
    layers, sizes = score(maps, masks, x, 4, after=5)
    assert sizes == [4, 1]
    assert [layer.channels.tolist() for layer in layers] == [[0, 3], [1, 4, 6]]
    whole, _ = score(maps, masks, x, 4)
    np.testing.assert_array_equal(layers[1].scores, whole[1].scores[[0, 2, 3]])
    layers, sizes = score(maps, masks, x, 4, after=0)
    assert sizes == []
    assert [layer.scores.shape for layer in layers] == [(0, 2), (0, 2)]


def test_a_network_that_computes_nan(random: np.random.Generator) -> None:
    x = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(ImageError, match=r"^the network computes NaN or infinity for this image; expected finite "):
        score([random.random((2, 3, 3), np.float32)], [(0, 1)], x, 4)


def test_nothing_to_score(random: np.random.Generator) -> None:
    layers, sizes = score([random.random((2, 3, 3), np.float32)], [], np.ones(SHAPE, "f"), 4)
    assert sizes == []
    assert layers[0].scores.shape == (0, 2)


def test_positions_of_channels() -> None:
    masks = ScoredMasks(np.array([2, 5, 9]), np.zeros((3, 1)), np.zeros(3), np.ones(3))
    assert masks.positions_of(np.array([9, 0, 2, 30])).tolist() == [2, -1, 0, -1]
    none = ScoredMasks(np.array([], np.int64), np.zeros((0, 1)), np.zeros(0), np.zeros(0))
    assert none.positions_of(np.array([1, 0])).tolist() == [-1, -1]
    assert masks.positions_of(np.array([], np.int64)).tolist() == []


def test_memory_does_not_grow_with_the_number_of_masks(random: np.random.Generator) -> None:
    x, maps = random.normal(size=SHAPE).astype(np.float32), [random.random((400, 4, 4), np.float32)]

    def peak(count: int) -> int:
        tracemalloc.start()
        score(maps, [(0, channel) for channel in range(count)], x, 4)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(20)  # fills the caches
    one_mask = SHAPE[1] * SHAPE[2] * np.dtype(np.float32).itemsize
    assert peak(400) - peak(20) < 380 * one_mask / 10
