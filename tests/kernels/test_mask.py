import numpy as np
import pytest
import torch

from engine.kernels import MaskWriter, is_flat, visualization_map
from tests.reference import method

# (h, w) → (H, W)
SIZES = [
    ((2, 2), (6, 6)),
    ((1, 5), (9, 20)),
    ((5, 1), (20, 9)),
    ((2, 1), (3, 1)),
    ((7, 7), (56, 56)),
    ((7, 5), (33, 48)),
    ((12, 16), (12, 16)),
    ((3, 8), (31, 9)),
]


def masked_by_formula(x: np.ndarray, baseline: np.ndarray | None, feature_map: np.ndarray) -> np.ndarray:
    """x⊙m + b⊙(1−m) in float64."""
    rows, columns = (method.interpolation_matrix(*pair) for pair in zip(feature_map.shape, x.shape[1:], strict=True))
    upsampled = np.einsum("ih,hw,jw->ij", rows, feature_map.astype(np.float64), columns)
    m = (upsampled - upsampled.min()) / np.ptp(upsampled)
    b = np.zeros(x.shape) if baseline is None else baseline.astype(np.float64)
    return x.astype(np.float64) * m + b * (1 - m)


def upsampled_by_torch(feature_map: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    tensor = torch.from_numpy(feature_map.astype(np.float64))[None, None]
    return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def make_image(random: np.random.Generator, channels: int, size: tuple[int, int]) -> np.ndarray:
    return random.normal(0, 1.5, (channels, *size)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_written_row_equals_the_formula(
    random: np.random.Generator, source: tuple[int, int], size: tuple[int, int], with_baseline: bool, channels: int
) -> None:
    x = make_image(random, channels, size)
    baseline = make_image(random, channels, size) if with_baseline else None
    writer = MaskWriter(x, baseline)
    for feature_map in (
        random.normal(size=source).astype(np.float32),
        random.random(source).astype(np.float32) - 5,  # all negative
        np.maximum(random.normal(size=source), 0).astype(np.float32) + np.eye(*source, dtype=np.float32),
        (random.random(source) * 1e-20).astype(np.float32),
        (random.random(source) * 1e20).astype(np.float32),
    ):
        row = np.full_like(x, np.nan)
        minimum, extent = writer.write(feature_map, row)
        expected = masked_by_formula(x, baseline, feature_map)
        offset = np.abs(feature_map).max() / np.ptp(feature_map)  # float32 loses what the offset takes
        np.testing.assert_allclose(row, expected, rtol=0, atol=3e-6 * max(1.0, offset))
        upsampled = upsampled_by_torch(feature_map, size)
        largest = float(np.abs(upsampled).max())
        assert isinstance(minimum, float)
        assert isinstance(extent, float)
        assert minimum == pytest.approx(upsampled.min(), abs=3e-7 * largest)
        assert extent == pytest.approx(np.ptp(upsampled), abs=6e-7 * largest)


def test_a_ramp_by_hand() -> None:
    x = np.full((1, 1, 4), 2.0, np.float32)
    feature_map = np.array([[3.0, 7.0]], np.float32)  # upsampled 3, 4, 6, 7: masks 0, 1/4, 3/4, 1
    row = np.empty_like(x)
    assert MaskWriter(x, None).write(feature_map, row) == (3.0, 4.0)
    np.testing.assert_array_equal(row[0, 0], [0.0, 0.5, 1.5, 2.0])
    assert MaskWriter(x, np.full_like(x, -2.0)).write(feature_map, row) == (3.0, 4.0)
    np.testing.assert_array_equal(row[0, 0], [-2.0, -1.0, 1.0, 2.0])


def test_the_border_of_a_small_map_is_the_extreme_of_what_upsampling_reaches() -> None:
    # 3 → 4 samples never reaches the middle one: 0, 5/8, 5/8, 0. The mask is scaled by what is reached.
    x = np.ones((1, 1, 4), np.float32)
    row = np.empty_like(x)
    minimum, extent = MaskWriter(x, None).write(np.array([[0.0, 1.0, 0.0]], np.float32), row)
    assert (minimum, extent) == (0.0, 0.625)
    np.testing.assert_array_equal(row[0, 0], [0.0, 1.0, 1.0, 0.0])


def test_equal_size_takes_the_map_as_it_is(random: np.random.Generator) -> None:
    x = make_image(random, 3, (9, 5))
    feature_map = random.normal(size=(9, 5)).astype(np.float32)
    row = np.empty_like(x)
    minimum, extent = MaskWriter(x, None).write(feature_map, row)
    assert minimum == float(feature_map.min())
    assert extent == float(feature_map.max() - feature_map.min())
    np.testing.assert_array_equal(row, x * ((feature_map - feature_map.min()) / np.float32(extent)))


def test_masks_reach_zero_and_one_exactly(random: np.random.Generator) -> None:
    x = np.ones((1, 30, 41), np.float32)
    row = np.empty_like(x)
    writer = MaskWriter(x, None)
    for _ in range(20):
        writer.write(random.normal(size=(7, 6)).astype(np.float32), row)
        assert row.min() == 0.0
        assert row.max() == 1.0


def test_the_image_is_kept_where_the_mask_is_one_and_the_baseline_where_it_is_zero(
    random: np.random.Generator,
) -> None:
    x, baseline = make_image(random, 3, (8, 8)), make_image(random, 3, (8, 8))
    feature_map = np.zeros((8, 8), np.float32)
    feature_map[:4] = 7.0
    row = np.empty_like(x)
    MaskWriter(x, baseline).write(feature_map, row)
    np.testing.assert_allclose(row[:, :4], x[:, :4], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(row[:, 4:], baseline[:, 4:])


def test_repeated_calls_write_the_same_bytes(random: np.random.Generator) -> None:
    x, baseline = make_image(random, 3, (24, 33)), make_image(random, 3, (24, 33))
    maps = random.normal(size=(5, 6, 7)).astype(np.float32)
    arguments = [array.copy() for array in (x, baseline, maps)]
    writer = MaskWriter(x, baseline)

    def write_all() -> tuple[bytes, list[tuple[float, float]]]:
        batch = np.full((5, *x.shape), random.normal(), np.float32)
        ranges = [writer.write(feature_map, row) for feature_map, row in zip(maps, batch, strict=True)]
        return batch.tobytes(), ranges

    first = write_all()
    assert write_all() == first
    assert [MaskWriter(x, baseline).write(maps[3], np.empty_like(x))] == first[1][3:4]
    for array, before in zip((x, baseline, maps), arguments, strict=True):
        np.testing.assert_array_equal(array, before)


def test_strided_maps_and_maps_of_other_sizes_share_a_writer(random: np.random.Generator) -> None:
    x = make_image(random, 3, (10, 12))
    maps = random.normal(size=(1, 4, 5, 6)).astype(np.float32)
    transposed = np.ascontiguousarray(maps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)  # the same values, strided
    rows = np.empty((2, *x.shape), np.float32)
    writer = MaskWriter(x, None)
    assert writer.write(maps[0, 2], rows[0]) == writer.write(transposed[0, 2], rows[1])
    np.testing.assert_array_equal(rows[0], rows[1])
    writer.write(random.normal(size=(2, 3)).astype(np.float32), rows[1])  # another size in between
    writer.write(maps[0, 2], rows[1])
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("low", "high", "flat"),
    [
        (0.0, 0.0, True),
        (5.0, 5.0, True),
        (-5.0, -5.0, True),
        (0.0, 1e-30, False),  # its largest magnitude is its own extent
        (-1e-30, 0.0, False),
        (1.0, 1.0 + 8 * 2.0**-23, True),  # 9.54e-7
        (1.0, 1.0 + 9 * 2.0**-23, False),  # 1.07e-6
        (-1.0 - 8 * 2.0**-23, -1.0, True),
        (-1.0 - 9 * 2.0**-23, -1.0, False),
        (2.0 - 17 * 2.0**-23, 2.0 - 2.0**-23, True),  # 16/2 of 2^-23: 9.54e-7
        (2.0 - 18 * 2.0**-23, 2.0 - 2.0**-23, False),  # 17/2 of 2^-23: 1.01e-6
        (8.0, 8.0 + 8 * 2.0**-20, True),
        (8.0, 8.0 + 9 * 2.0**-20, False),
        (-1.0, 1.0, False),
        (1e20, 1.00001e20, False),
        (1e-20, 1.0000005e-20, True),
    ],
)
def test_flat_at_its_boundary(low: float, high: float, flat: bool) -> None:
    maps = np.full((1, 3, 4), low, np.float32)
    maps[0, 1, 2] = high
    assert is_flat(maps).tolist() == [flat]
    assert method.is_flat(maps[0]) is flat
    maps = np.full((1, 1, 2), high, np.float32)
    maps[0, 0, 0] = low
    assert is_flat(maps).tolist() == [flat]


def test_flat_is_decided_for_each_map(random: np.random.Generator) -> None:
    maps = random.normal(size=(6, 4, 3)).astype(np.float32)
    maps[1], maps[4] = 0.0, -3.25
    maps[2] = 1e4 + maps[2] * 1e-4
    maps[5] = 1e4 + maps[5]
    flat = is_flat(maps)
    assert flat.dtype == np.bool_
    assert flat.tolist() == [False, True, True, False, True, False]
    assert flat.tolist() == [method.is_flat(one) for one in maps]
    assert is_flat(random.normal(size=(2, 1, 1)).astype(np.float32)).tolist() == [True, True]
    assert is_flat(maps[:0]).tolist() == []


def test_flat_is_decided_before_upsampling() -> None:
    # Upsampled in float32 a constant map need not stay constant; the map itself does.
    maps = np.full((1, 3, 5), 0.1, np.float32)
    assert is_flat(maps).tolist() == [True]


def test_a_map_with_a_large_offset_keeps_its_mask(random: np.random.Generator) -> None:
    x = make_image(random, 1, (56, 56))
    feature_map = (1000 + 0.05 * random.random((7, 7))).astype(np.float32)  # far from flat: max − min is 5e-5·max
    assert is_flat(feature_map[None]).tolist() == [False]
    row = np.empty_like(x)
    MaskWriter(x, None).write(feature_map, row)
    np.testing.assert_allclose(row, masked_by_formula(x, None, feature_map), rtol=0, atol=1e-4)


def test_a_map_larger_than_the_image_may_look_constant_to_it() -> None:
    """Every sampled pixel of this map is 1; it makes an empty mask, which adds nothing to the visualization map."""
    feature_map = np.ones((9, 9), np.float32)
    feature_map[::2, ::2] = 5.0
    feature_map[1::3, 1::3] = 1.0
    row = np.full((1, 3, 3), np.nan, np.float32)
    minimum, extent = MaskWriter(np.ones((1, 3, 3), np.float32), None).write(feature_map, row)
    assert (minimum, extent) == (1.0, 0.0)
    assert not row.any()
    maps = np.stack([feature_map, np.arange(81, dtype=np.float32).reshape(9, 9)])
    low, high = float(maps[1, 1, 1]), float(maps[1, 7, 7])
    view = visualization_map(maps, np.ones(2), np.array([1.0, low]), np.array([0.0, high - low]), (3, 3))
    alone = visualization_map(maps[1:], np.ones(1), np.array([low]), np.array([high - low]), (3, 3))
    np.testing.assert_array_equal(view, alone)
