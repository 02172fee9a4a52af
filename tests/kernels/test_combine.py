import numpy as np
import pytest
import torch
from scipy import special

from engine.kernels import MaskWriter, activate, is_flat, visualization_map
from engine.kernels.combine import scale_to_unit
from tests.reference import method

# (h, w) → (H, W)
SIZES = [
    ((2, 2), (9, 9)),
    ((1, 5), (8, 21)),
    ((7, 7), (56, 56)),
    ((7, 5), (33, 48)),
    ((12, 16), (12, 16)),
    ((3, 8), (31, 9)),
]
LOGITS = [
    [[0.0, 0.0, 0.0]],
    [[1.0, -2.0, 3.5], [0.1, 0.2, 0.3]],
    [[88.0, 89.0, 90.0], [-1000.0, 1000.0, 0.0]],
    [[3e38, -3e38, 3e38], [-3e38, -3e38, -3e38]],
    [[7.0]],
    [[0.0, -30.0, -60.0], [0.0, -200.0, -700.0]],
]


def upsampled_by_torch(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    tensor = torch.from_numpy(maps.astype(np.float64))[None]
    return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0].numpy()


def masks_by_torch(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every mask in full, float64 [K, H, W]."""
    upsampled = upsampled_by_torch(maps, size)
    low, high = upsampled.min(axis=(1, 2), keepdims=True), upsampled.max(axis=(1, 2), keepdims=True)
    return np.asarray((upsampled - low) / (high - low))


def ranges(maps: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and extent of every upsampled map, float64."""
    upsampled = upsampled_by_torch(maps, size)
    low, high = upsampled.min(axis=(1, 2)), upsampled.max(axis=(1, 2))
    return low, high - low


def combine(maps: np.ndarray, scores: np.ndarray | list[float], size: tuple[int, int]) -> np.ndarray | None:
    return visualization_map(maps, np.asarray(scores, np.float64), *ranges(maps, size), size)


@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_map_equals_the_definition(
    random: np.random.Generator, source: tuple[int, int], size: tuple[int, int], count: int
) -> None:
    for maps in (
        random.normal(size=(count, *source)).astype(np.float32),
        random.random((count, *source)).astype(np.float32) - 3,
        (random.random((count, *source)) * 10.0 ** random.integers(-15, 15, (count, 1, 1))).astype(np.float32),
    ):
        assert not is_flat(maps).any()
        scores = random.random(count)
        masks = masks_by_torch(maps, size)
        raw = sum(p * m / np.abs(m).sum() for p, m in zip(scores, masks, strict=True))
        expected = (raw - raw.min()) / (raw.max() - raw.min())
        found = combine(maps, scores, size)
        assert found is not None
        assert found.dtype == np.float64
        assert found.shape == size
        assert (found.min(), found.max()) == (0.0, 1.0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_map_from_the_writers_float32_ranges(random: np.random.Generator) -> None:
    size = (56, 40)
    maps = np.maximum(random.normal(0.3, 1, (40, 7, 5)), 0).astype(np.float32)
    writer = MaskWriter(np.ones((3, *size), np.float32), None)
    row = np.empty((3, *size), np.float32)
    minimum, extent = np.array([writer.write(one, row) for one in maps]).T
    scores = random.random(40)
    found = visualization_map(maps, scores, minimum, extent, size)
    reference = method.visualization_map(scores, maps, *size)
    assert found is not None
    assert reference is not None
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-6)


def test_areas_weigh_the_masks_by_hand() -> None:
    # Masks (0, 0, 0, 1) with area 1 and (1, 1, 1, 0) with area 3: V = 0.5·m_1 + 0.6/3·m_2 = (0.2, 0.2, 0.2, 0.5).
    maps = np.array([[[0, 0, 0, 2]], [[5, 5, 5, 1]]], np.float32)
    found = combine(maps, [0.5, 0.6], (1, 4))
    assert found is not None
    np.testing.assert_allclose(found, [[0, 0, 0, 1]], rtol=0, atol=1e-12)
    # With scores 0.1 and 0.9 it is (0.3, 0.3, 0.3, 0.1): the other way round.
    found = combine(maps, [0.1, 0.9], (1, 4))
    assert found is not None
    np.testing.assert_allclose(found, [[1, 1, 1, 0]], rtol=0, atol=1e-12)


def test_three_masks_by_hand() -> None:
    # Areas 1, 1 and 2: V = 0.4·(0, 0, 1) + 0.2·(1, 0, 0) + 0.2·(1, 1, 0) = (0.4, 0.2, 0.4) → (1, 0, 1)
    maps = np.array([[[0, 0, 1]], [[9, 0, 0]], [[-1, -1, -2]]], np.float32)
    found = combine(maps, [0.4, 0.2, 0.4], (1, 3))
    assert found is not None
    np.testing.assert_allclose(found, [[1, 0, 1]], rtol=0, atol=1e-12)


def test_one_mask_is_its_own_map_whatever_its_score(random: np.random.Generator) -> None:
    maps = random.normal(size=(1, 5, 6)).astype(np.float32)
    (mask,) = masks_by_torch(maps, (20, 21))
    for score in (1.0, 1e-3, 1e-30, 7.0):
        np.testing.assert_allclose(combine(maps, [score], (20, 21)), mask, rtol=0, atol=1e-9)
    # Logits taken as scores may be negative.
    np.testing.assert_allclose(combine(maps, [-2.0], (20, 21)), 1 - mask, rtol=0, atol=1e-9)


def test_one_mask_in_many_copies_changes_nothing(random: np.random.Generator) -> None:
    maps = random.normal(size=(3, 5, 6)).astype(np.float32)
    single = combine(maps, [0.2, 0.9, 0.4], (20, 21))
    doubled = combine(np.concatenate([maps, maps]), [0.1, 0.45, 0.2] * 2, (20, 21))
    np.testing.assert_allclose(doubled, single, rtol=0, atol=1e-9)


def test_no_mask_gives_no_map() -> None:
    empty = np.empty(0)
    assert visualization_map(np.empty((0, 7, 7), np.float32), empty, empty, empty, (56, 56)) is None


def test_constant_sums_give_no_map(random: np.random.Generator) -> None:
    maps = random.normal(size=(4, 6, 7)).astype(np.float32)
    assert combine(maps, np.zeros(4), (24, 28)) is None
    # A map and its negative make masks m and 1 − m; scores as their areas make the sum 1 everywhere.
    pair = np.stack([maps[0], -maps[0]])
    areas = masks_by_torch(pair, (24, 28)).sum(axis=(1, 2))
    assert combine(pair, areas, (24, 28)) is None
    assert combine(pair, areas * [1, 1.01], (24, 28)) is not None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], None),
        ([3.0, 3.0, 3.0], None),
        ([-3.0, -3.0], None),
        ([1.0], None),
        ([1.0, 1.0 + 0.9e-6], None),
        ([-1.0, -1.0 - 0.9e-6], None),
        ([1.0, 1.0 + 2.0e-6], [0.0, 1.0]),
        ([-1e9, -1e9 - 2000], [1.0, 0.0]),
        ([0.0, 1e-300], [0.0, 1.0]),
        ([2.0, 4.0, 3.0], [0.0, 1.0, 0.5]),
        ([-2.0, 2.0, 1.0], [0.0, 1.0, 0.75]),
    ],
)
def test_scale_to_unit(values: list[float], expected: list[float] | None) -> None:
    found = scale_to_unit(np.array([values]))
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, [expected])


@pytest.mark.parametrize("logits", LOGITS)
def test_softmax_equals_scipy_and_torch(logits: list[list[float]]) -> None:
    values = np.array(logits, np.float32)
    before = values.copy()
    found = activate(values, "softmax")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(values, before)
    np.testing.assert_allclose(found, special.softmax(values.astype(np.float64), axis=1), rtol=1e-12)
    expected = torch.softmax(torch.from_numpy(values.astype(np.float64)), dim=1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("logits", LOGITS)
def test_sigmoid_equals_scipy_and_torch(logits: list[list[float]]) -> None:
    values = np.array(logits, np.float32)
    found = activate(values, "sigmoid")
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, special.expit(values.astype(np.float64)), rtol=1e-12, atol=1e-15)
    expected = torch.sigmoid(torch.from_numpy(values.astype(np.float64))).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_sigmoid_of_very_negative_logits_is_not_lost() -> None:
    values = np.array([[-20.0, -36.0, -40.0, -80.0]], np.float32)
    np.testing.assert_allclose(activate(values, "sigmoid"), special.expit(values.astype(np.float64)), rtol=1e-12)


def test_none_gives_the_logits_in_float64() -> None:
    values = np.array([[1.5, -3e38], [0.1, 7.0]], np.float32)
    found = activate(values, "none")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values.astype(np.float64))
