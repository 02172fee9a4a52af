import numpy as np
import pytest
from scipy.special import expit
from skimage.filters import threshold_otsu

from engine.kernels import FUSIONS, fuse, otsu_threshold
from engine.kernels.resample import upsample
from tests.reference import method


def threshold_by_loop(values: np.ndarray) -> float:
    """The centre of the first of 256 bins that maximises w_0·w_1·(μ_0 − μ_1)², bin by bin, in float64."""
    counts, edges = np.histogram(values, bins=256, range=(values.min(), values.max()))
    centres = (edges[:-1] + edges[1:]) / 2
    best, chosen = -1.0, 0
    for b in range(255):
        below, above = counts[: b + 1].sum(), counts[b + 1 :].sum()
        mean_below = (counts[: b + 1] * centres[: b + 1]).sum() / below
        mean_above = (counts[b + 1 :] * centres[b + 1 :]).sum() / above
        variance = below / values.size * above / values.size * (mean_below - mean_above) ** 2
        if variance > best * (1 + 1e-12):
            best, chosen = variance, b
    return float(centres[chosen])


def to_unit(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.min()) / (values.max() - values.min()))


def smooth_maps(random: np.random.Generator, count: int, size: tuple[int, int]) -> list[np.ndarray]:
    return [to_unit(upsample(random.random((7, 5)), size) ** 2) for _ in range(count)]


@pytest.mark.parametrize("size", [(2, 3), (17, 31), (56, 48), (224, 224)])
def test_threshold_equals_the_definition(random: np.random.Generator, size: tuple[int, int]) -> None:
    for values in (
        *smooth_maps(random, 3, size),
        random.random(size),
        random.exponential(size=size) - 5,
        np.where(random.random(size) < 0.3, 0.2, 0.7) + random.normal(0, 0.05, size),
        np.concatenate([np.zeros(size), random.random(size)]),
    ):
        found = otsu_threshold(values)
        assert isinstance(found, float)
        assert found == threshold_by_loop(values)
        assert found == method.otsu_threshold(values)
        assert found == pytest.approx(threshold_otsu(values, nbins=256), rel=1e-12)


def bin_centre(number: int) -> float:
    """Centre of a bin over 0 … 1; exact in float64."""
    return (number + 0.5) / 256


@pytest.mark.parametrize(
    ("values", "number"),
    [
        # Two values: every split between them is equally good, the empty bins form a plateau, and its first bin wins.
        ([0.0, 1.0], 0),
        ([0.0, 1.0, 1.0, 1.0], 0),
        # Two groups: the plateau begins at the bin of the lower group's last member.
        ([0.0, bin_centre(40), bin_centre(200), 1.0], 40),
        ([0.0, bin_centre(40), bin_centre(41), bin_centre(200), bin_centre(220), 1.0], 41),
        # A bin's left edge belongs to it, and the last bin has both edges.
        ([0.0, 64 / 256, 200 / 256, 1.0], 64),
        ([0.0, 255 / 256, 1.0], 0),
        # One far value: 3 values below, 1 above.
        ([0.0, bin_centre(10), bin_centre(20), 1.0], 20),
        ([0.0, bin_centre(230), bin_centre(240), 1.0], 0),
    ],
)
def test_threshold_of_examples_by_hand(values: list[float], number: int) -> None:
    assert otsu_threshold(np.array([values])) == bin_centre(number)
    assert method.otsu_threshold(np.array([values])) == bin_centre(number)
    shifted = np.array([values]) * 8 - 4
    assert otsu_threshold(shifted) == bin_centre(number) * 8 - 4


def test_threshold_parts_two_bells(random: np.random.Generator) -> None:
    values = to_unit(np.concatenate([random.normal(1, 0.1, 3000), random.normal(3, 0.1, 1000)]).reshape(40, 100))
    threshold = otsu_threshold(values)
    # Values in the threshold's own bin may lie above its centre: the classes part at the bin's edge.
    assert np.count_nonzero(values > threshold + 1 / 512) == 1000


def test_first_of_equally_good_bins_wins() -> None:
    # Mirror images: the splits after bins 0 and 128 have exactly the same variance; the first is the threshold.
    values = np.repeat([0.0, bin_centre(127), bin_centre(128), 1.0], [39, 38, 38, 39])[None]
    assert method.otsu_threshold(values) == bin_centre(0)
    assert otsu_threshold(values) == bin_centre(0)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("size", [(17, 31), (56, 48)])
def test_fuse_equals_the_reference(random: np.random.Generator, fusion: str, size: tuple[int, int]) -> None:
    for count in (1, 2, 5):
        maps = smooth_maps(random, count, size)
        copies = [values.copy() for values in maps]
        heatmap, thresholds = fuse(maps, fusion)
        expected, applied = method.fuse(maps, fusion)
        assert heatmap is not None
        assert heatmap.dtype == np.float64
        assert (heatmap.min(), heatmap.max()) == (0.0, 1.0)
        np.testing.assert_allclose(heatmap, expected, rtol=0, atol=1e-12)
        assert thresholds == applied
        assert thresholds[0] is None
        assert None not in thresholds[1:]
        for values, copy in zip(maps, copies, strict=True):
            np.testing.assert_array_equal(values, copy)


def test_hard_fusion_by_hand() -> None:
    v1 = np.array([[0.0, 0.5, 1.0, 0.25]])
    v2 = np.array([[1.0, 0.75, 0.0, 1.0]])  # t = centre of the bin of 0: cuts only the third
    v3 = np.array([[0.0, 1.0, 1.0, 0.0]])
    # E_2 = (1, 1.25, 0, 1.25); E_3 = (0, 2.25, 1, 0)
    heatmap, thresholds = fuse([v1, v2, v3], "hard")
    np.testing.assert_allclose(heatmap, [[0, 1, 1 / 2.25, 0]], rtol=1e-14)
    assert thresholds == [None, bin_centre(0), bin_centre(0)]


def test_the_order_is_shallow_to_deep() -> None:
    v1, v2 = np.array([[0.0, 0.5, 1.0]]), np.array([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(fuse([v1, v2], "hard")[0], [[1, 0, 0]], rtol=0, atol=0)
    # V_1 as the deep map keeps its two upper pixels: (0, 0.5, 1)·[V > t] with t in the bin of 0.
    np.testing.assert_allclose(fuse([v2, v1], "hard")[0], [[0, 0.5, 1]], rtol=0, atol=0)


def test_a_pixel_at_the_threshold_is_cut() -> None:
    v1 = np.array([[0.0, 1.0, 1.0]])
    v2 = np.array([[0.0, bin_centre(0), 1.0]])
    heatmap, thresholds = fuse([v1, v2], "hard")
    assert thresholds == [None, bin_centre(0)]
    np.testing.assert_array_equal(heatmap, [[0, 0, 1]])


def test_the_first_layer_is_not_cut(random: np.random.Generator) -> None:
    (v,) = smooth_maps(random, 1, (20, 30))
    for maps, thresholds in (([v], [None]), ([None, None, v], [None, None, None]), ([v, None], [None, None])):
        for fusion in FUSIONS:
            heatmap, applied = fuse(maps, fusion)
            np.testing.assert_array_equal(heatmap, v)
            assert applied == thresholds


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_skipped_layer_changes_nothing(random: np.random.Generator, fusion: str) -> None:
    a, b, c = smooth_maps(random, 3, (20, 30))
    heatmap, (_, t_b, t_c) = fuse([a, b, c], fusion)
    with_gaps, thresholds = fuse([None, a, None, b, None, c], fusion)
    np.testing.assert_array_equal(with_gaps, heatmap)
    assert thresholds == [None, None, None, t_b, None, t_c]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_map_at_all_gives_no_heatmap(fusion: str) -> None:
    assert fuse([], fusion) == (None, [])
    assert fuse([None, None, None], fusion) == (None, [None, None, None])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_constant_result_gives_no_heatmap(fusion: str) -> None:
    assert fuse([np.full((4, 5), 0.5)], fusion) == (None, [None])
    assert fuse([np.zeros((4, 5))], fusion) == (None, [None])
    # E_1 = −V_2 where V_2 is kept: everything is cut away or cancels.
    heatmap, thresholds = fuse([np.array([[0.5, -1.0]]), np.array([[0.0, 1.0]])], "hard")
    assert heatmap is None
    assert thresholds == [None, bin_centre(0)]


def soft_map(high: int, pixels: int = 100) -> np.ndarray:
    """A map with `high` pixels of 1, as many of 0 and the rest 0.3, in whose bin the Otsu threshold lies."""
    values = np.full(pixels, 0.3)
    values[:high], values[high : 2 * high] = 1.0, 0.0
    return values[None]


@pytest.mark.parametrize(
    ("high", "pixels", "raised"), [(9, 100, True), (10, 100, False), (7, 70, False), (6, 70, True)]
)
def test_soft_threshold_is_raised_when_fewer_than_a_tenth_exceed_it(high: int, pixels: int, raised: bool) -> None:
    v1, v2 = np.linspace(0, 1, pixels)[None], soft_map(high, pixels)
    otsu = method.otsu_threshold(v2)
    assert otsu == bin_centre(76)  # 0.3 is in bin 76, and 1.5 times its centre is below 1
    heatmap, thresholds = fuse([v1, v2], "soft")
    t = 1.5 * otsu if raised else otsu
    assert thresholds == [None, pytest.approx(t, rel=1e-15)]
    np.testing.assert_allclose(heatmap, to_unit((v1 + v2) * expit(100 * (v2 - t))), rtol=0, atol=1e-12)


def test_soft_fusion_keeps_half_at_the_threshold() -> None:
    # Half of all pixels are 1, so t is the Otsu threshold, the centre of the first bin.
    v1 = np.full((1, 4), 0.5)
    v2 = np.array([[0.0, bin_centre(0), 1.0, 1.0]])
    heatmap, thresholds = fuse([v1, v2], "soft")
    assert thresholds == [None, bin_centre(0)]
    gates = np.array([[1 / (1 + np.exp(100 / 512)), 0.5, 1.0, 1.0]])
    np.testing.assert_allclose(heatmap, to_unit((v1 + v2) * gates), rtol=0, atol=1e-12)


def test_soft_fusion_of_a_map_that_is_high_everywhere() -> None:
    v1 = np.linspace(0, 1, 4000)[None]
    v2 = np.repeat([0.0, 0.95, 1.0], [1, 2000, 1999])[None]
    assert 0.94 < method.otsu_threshold(v2) < 0.96  # so t is 1.43, above every value
    expected, applied = method.fuse([v1, v2], "soft")
    assert np.ptp(expected) == 1.0
    heatmap, thresholds = fuse([v1, v2], "soft")
    assert thresholds == applied
    np.testing.assert_allclose(heatmap, expected, rtol=0, atol=1e-6)
