"""The method's replica: hand-computed examples, and a second source for each numerical step."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from . import method
from .network import TorchNetwork

Array = NDArray[Any]


@pytest.fixture
def generator() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(21020)


WEIGHTS = np.random.default_rng(7799)
CONSTANTS = {
    "w1": WEIGHTS.standard_normal((5, 3, 3, 3)) / 3,
    "b1": WEIGHTS.standard_normal(5),
    "w2": WEIGHTS.standard_normal((6, 5, 3, 3)) / 5,
    "w3": WEIGHTS.standard_normal((4, 6)),
}
NODES = [
    helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["c1"], ["f1"]),
    helper.make_node("MaxPool", ["f1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
    helper.make_node("Conv", ["p1", "w2"], ["c2"], pads=[0, 0, 1, 1]),
    helper.make_node("Relu", ["c2"], ["f2"]),
    helper.make_node("GlobalAveragePool", ["f2"], ["g"]),
    helper.make_node("Flatten", ["g"], ["v"]),
    helper.make_node("Gemm", ["v", "w3"], ["logits"], transB=1),
]


def small_network(first: int = 0, source: str = "x") -> TorchNetwork:
    """A two-layer classifier (feature layers f1, f2), or its part from node `first` on."""
    nodes = []
    for node in NODES[first:]:
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        renamed.input[:] = ["x" if name == source else name for name in node.input]
        nodes.append(renamed)
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, None)],
        [helper.make_tensor_value_info("logits", TensorProto.DOUBLE, None)],
        [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()],
    )
    return TorchNetwork(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


# Average gradients


@pytest.mark.parametrize(("layer", "index", "channels"), [("f1", 2, 5), ("f2", 5, 6)])
def test_average_gradient_is_the_slope_when_a_whole_map_rises(
    generator: np.random.Generator, layer: str, index: int, channels: int
) -> None:
    image = generator.standard_normal((1, 3, 8, 10))
    (alpha,) = method.average_gradients(small_network(), image, 2, [layer], "logits")
    (maps,) = method.feature_maps(small_network(), image, [layer])
    rest = small_network(index, layer)
    step = 1e-6
    slopes = []
    for k in range(channels):
        rise = np.zeros_like(maps)
        rise[k] = step
        high, low = (rest.run((maps + sign * rise)[None], ["logits"])["logits"][0, 2] for sign in (1, -1))
        slopes.append(float(high - low) / (2 * step))
    assert alpha.shape == (channels,)
    assert np.abs(alpha).max() > 0.1
    np.testing.assert_allclose(alpha, slopes, rtol=1e-6, atol=1e-7)


def test_average_gradients_follow_decisions(generator: np.random.Generator) -> None:
    network = small_network()
    image = generator.standard_normal((1, 3, 8, 10))
    names = network.decision_names(["logits"])
    own = {name: t.numpy() for name, t in network.run(image, names).items()}
    plain = method.average_gradients(network, image, 0, ["f1", "f2"], "logits")
    same = method.average_gradients(network, image, 0, ["f1", "f2"], "logits", own)
    dead = {**own, "f2": np.zeros_like(own["f2"])}
    none = method.average_gradients(network, image, 0, ["f1", "f2"], "logits", dead)
    for a, b in zip(plain, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not none[0].any()
    np.testing.assert_allclose(none[1], CONSTANTS["w3"][0], rtol=1e-12)


def test_one_image_is_expected() -> None:
    message = r"image: received shape \(.*\), expected \(1, C, H, W\)"
    with pytest.raises(ValueError, match=message):
        method.average_gradients(small_network(), np.zeros((2, 3, 8, 8)), 0, ["f1"], "logits")
    with pytest.raises(ValueError, match=message):
        method.feature_maps(small_network(), np.zeros((3, 8, 8)), ["f1"])
    with pytest.raises(ValueError, match=message):
        method.score_masks(small_network(), np.zeros((3, 8, 8), np.float32), np.zeros((1, 2, 2)))


# Selection


@pytest.mark.parametrize(
    ("values", "i_star", "tau"),
    [
        ([0, 0, 1, 1], 2, [1 / 12, 1 / 4, 1 / 12]),
        ([1, 3, 3, 3], 1, [3 / 4, 1 / 4, 1 / 12]),
        ([1, 2, 3, 10], 3, [3.0, 6.25, 12.0]),
        ([0, 1, 2], 1, [0.5, 0.5]),
        ([5, 7], 1, [1.0]),
    ],
)
def test_otsu_split_by_hand(values: list[float], i_star: int, tau: list[float]) -> None:
    result = method.otsu_split(values)
    assert result[0] == i_star
    np.testing.assert_allclose(result[1], tau, rtol=1e-14)


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3], [0.7, 1.4, 2.1], [1.1, 2.2, 3.3]])
def test_the_smallest_of_equal_splits_wins_whatever_the_rounding(values: list[float]) -> None:
    assert method.otsu_split(values)[0] == 1


def test_otsu_split_equals_the_split_in_fractions(generator: np.random.Generator) -> None:
    values = np.sort(generator.lognormal(0, 1.5, 60).astype(np.float32))
    exact = [Fraction(float(v)) for v in values]
    n = len(exact)
    tau = [Fraction(i * (n - i), n * n) * (sum(exact[i:]) / (n - i) - sum(exact[:i]) / i) ** 2 for i in range(1, n)]
    i_star, found = method.otsu_split(values)
    assert i_star == 1 + tau.index(max(tau))
    np.testing.assert_allclose(found, [float(t) for t in tau], rtol=1e-13)


def test_otsu_split_maximises_what_minimises_the_variance_within(generator: np.random.Generator) -> None:
    values = np.sort(generator.exponential(1.0, 100))
    within = [i * values[:i].var() + (100 - i) * values[i:].var() for i in range(1, 100)]
    assert method.otsu_split(values)[0] == 1 + int(np.argmin(within))


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 1.0]])
def test_otsu_split_wants_two_sorted_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected two or more in ascending order"):
        method.otsu_split(values)


ALPHA = np.array([3.0, -5.0, 10.0, 0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("alpha", "rule", "mu", "kept"),
    [
        (ALPHA, "otsu", 0.0, [2]),
        (ALPHA, "otsu-count", 0.0, [0, 2, 5]),
        (ALPHA, "positive", 0.0, [0, 2, 4, 5]),
        (ALPHA, "positive", 0.2, [0, 2]),
        (ALPHA, "otsu", 0.9, [2]),
        (ALPHA, "all", 0.0, [0, 1, 2, 3, 4, 5]),
        ([3, 3, 1, 3], "otsu", 0.0, [0, 1, 3]),
        ([1, 3, 3, 3], "otsu-count", 0.0, [1]),
        ([3, 9, 3, 3, 9, 3, 3], "otsu", 0.0, [1, 4]),
        ([3, 9, 3, 3, 9, 3, 3], "otsu-count", 0.0, [0, 1, 2, 3, 4]),
        ([1, 9, 3, 3, 9, 3, 3, 9, 9], "otsu-count", 0.0, [1, 2, 4, 7, 8]),
        ([-1, 4, 4, 0, 4], "otsu", 0.0, [1, 2, 4]),
        ([-1, 4, 4, 0, 4], "otsu-count", 0.0, [1, 2, 4]),
        ([-1, 4], "otsu", 0.0, [1]),
        ([-1, 4], "otsu-count", 0.0, [1]),
        ([-1, 0], "otsu", 0.0, []),
        ([-1, 0], "otsu-count", 0.0, []),
        ([-1, 0], "positive", 0.0, []),
        ([-1, -2], "positive", 0.5, []),
        ([-1, 0], "all", 0.0, [0, 1]),
        ([7, 5], "otsu", 0.0, [0]),
        ([7, 5], "otsu-count", 0.0, [0]),
        ([1, 2, 3], "otsu", 0.0, [1, 2]),
        ([1, 2, 3], "otsu-count", 0.0, [2]),
    ],
)
def test_select_by_hand(alpha: Array, rule: method.Rule, mu: float, kept: list[int]) -> None:
    result = method.select(alpha, rule, mu)
    assert result.dtype == np.int64
    assert result.tolist() == kept


def test_upper_and_lower_class_are_the_positive_ones(generator: np.random.Generator) -> None:
    alpha = generator.standard_normal(200) ** 3
    upper, count = method.select(alpha, "otsu"), method.select(alpha, "otsu-count")
    positive = method.select(alpha, "positive")
    assert len(upper) + len(count) == len(positive) == (alpha > 0).sum()
    assert alpha[upper].min() > np.delete(alpha, upper).max()


def test_select_refuses_what_it_does_not_know() -> None:
    rule: Any = "median"
    with pytest.raises(ValueError, match="rule: received 'median'"):
        method.select([1.0], rule)
    with pytest.raises(ValueError, match="alpha: received shape"):
        method.select([1.0, np.nan])


# Masks


@pytest.mark.parametrize(
    ("feature_map", "flat"),
    [
        ([[0.0, 0.0]], True),
        ([[5.0, 5.0]], True),
        ([[-5.0, -5.0]], True),
        ([[1.0, 1.0 - 0.9e-6]], True),
        ([[1.0, 1.0 - 1.1e-6]], False),
        ([[-1e-30, 1e-30]], False),
        ([[0.0, 1e-30]], False),
        ([[6.0]], True),
    ],
)
def test_is_flat_by_hand(feature_map: list[list[float]], flat: bool) -> None:
    assert method.is_flat(np.array(feature_map)) is flat


def test_upsample_by_hand() -> None:
    result = method.upsample(np.array([[[0.0, 4.0], [8.0, 12.0]]]), 4, 3)
    np.testing.assert_allclose(
        result[0],
        [[0, 2, 4], [2, 4, 6], [6, 8, 10], [8, 10, 12]],
    )


SIZES = [
    ((7, 7), (224, 224)),
    ((5, 3), (17, 16)),
    ((1, 4), (3, 9)),
    ((6, 5), (6, 5)),
    ((9, 8), (5, 3)),
    ((1, 1), (2, 2)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_upsample_equals_torch(
    generator: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    maps = generator.standard_normal((3, *source))
    expected = torch.nn.functional.interpolate(
        torch.tensor(maps)[None], target, mode="bilinear", align_corners=False, antialias=False
    )
    np.testing.assert_allclose(method.upsample(maps, *target), expected[0].numpy(), atol=1e-12)


@pytest.mark.parametrize(("source", "target"), SIZES[:-1])
def test_upsample_equals_onnx_resize(
    generator: np.random.Generator, source: tuple[int, int], target: tuple[int, int]
) -> None:
    maps = generator.standard_normal((2, *source))
    node = helper.make_node(
        "Resize", ["x", "", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"
    )
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, None)],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
        [numpy_helper.from_array(np.array([1, 2, *target], dtype=np.int64), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (expected,) = np.asarray(ReferenceEvaluator(model).run(["y"], {"x": maps[None]}))
    np.testing.assert_allclose(method.upsample(maps, *target), expected[0], atol=1e-6)


def test_masks_span_zero_to_one_after_upsampling(generator: np.random.Generator) -> None:
    maps = generator.standard_normal((4, 3, 5))
    maps[2] = 0.1
    m = method.masks(maps, 8, 9)
    assert m[[0, 1, 3]].min(axis=(1, 2)).tolist() == [0, 0, 0]
    assert m[[0, 1, 3]].max(axis=(1, 2)).tolist() == [1, 1, 1]
    assert not m[2].any()
    big = method.upsample(maps, 8, 9)[3]
    np.testing.assert_allclose(m[3] * (big.max() - big.min()) + big.min(), big, atol=1e-15)


# Scores


def test_activate_by_hand() -> None:
    np.testing.assert_allclose(method.activate([[0.0, np.log(3.0)]], "softmax"), [[0.25, 0.75]], rtol=1e-15)
    np.testing.assert_allclose(method.activate([1000.0, 0.0], "softmax"), [1, 0])
    np.testing.assert_allclose(method.activate([np.log(3.0), 0.0], "sigmoid"), [0.75, 0.5], rtol=1e-15)
    np.testing.assert_allclose(method.activate([-1000.0, 1000.0], "sigmoid"), [0, 1])
    np.testing.assert_array_equal(method.activate([3.0, -4.0], "none"), [3, -4])
    unknown: Any = "tanh"
    with pytest.raises(ValueError, match="activation: received 'tanh'"):
        method.activate([1.0], unknown)


COLOUR = np.array([0.5, -1.0, 2.0]).reshape(3, 1, 1)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("baseline", [0.0, COLOUR, "blurred"], ids=["zero", "colour", "array"])
def test_scores_one_by_one(
    generator: np.random.Generator, batch: int, activation: method.Activation, baseline: Any
) -> None:
    network = small_network()
    x = generator.standard_normal((1, 3, 8, 10)).astype(np.float32)
    b = x[0, :, ::-1].copy() if isinstance(baseline, str) else baseline
    maps = generator.standard_normal((7, 4, 5))
    maps[4] = 2.0
    scores = method.score_masks(network, x, maps, b, activation, "logits", batch=batch)
    exact = method.score_masks(network, x, maps, b, activation, "logits", batch=batch, dtype=torch.float64)
    assert scores.shape == (7, 4)
    assert np.isnan(scores[4]).all()
    for k in (0, 1, 2, 3, 5, 6):
        m = method.masks(maps[k : k + 1], 8, 10)
        logits = network.run(x * m[None] + b * (1 - m[None]), ["logits"])["logits"].numpy()
        np.testing.assert_allclose(exact[k], method.activate(logits, activation)[0], rtol=1e-12)
        np.testing.assert_allclose(scores[k], exact[k], rtol=1e-5, atol=1e-6)


def test_flat_maps_alone_give_no_score() -> None:
    scores = method.score_masks(small_network(), np.zeros((1, 3, 8, 8), np.float32), np.ones((2, 4, 4)))
    assert scores.shape == (2, 4)
    assert np.isnan(scores).all()


# Visualization map


def test_visualization_map_by_hand() -> None:
    maps = np.array([[[0.0, 2.0]], [[3.0, 1.0]], [[7.0, 7.0]]])
    raw = method.raw_visualization_map([0.5, 0.25, np.nan], maps, 1, 4)
    v = method.visualization_map([0.5, 0.25, np.nan], maps, 1, 4)
    assert raw is not None
    assert v is not None
    # Upsampled and scaled: 0, 1/4, 3/4, 1 (sum 2) and the reverse.
    np.testing.assert_allclose(raw, [[0.125, 0.15625, 0.21875, 0.25]], rtol=1e-15)
    np.testing.assert_allclose(v, [[0, 0.25, 0.75, 1]], rtol=1e-14)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_visualization_map_equals_the_sum_at_feature_resolution(generator: np.random.Generator, batch: int) -> None:
    maps = generator.standard_normal((9, 5, 4))
    maps[[0, 6]] = 1.5
    p = generator.uniform(0, 1, 9)
    big = method.upsample(maps, 20, 18)
    low, span = big.min(axis=(1, 2)), np.ptp(big, axis=(1, 2))
    small, shift = np.zeros((1, 5, 4)), 0.0
    for k in (1, 2, 3, 4, 5, 7, 8):
        weight = p[k] / ((big[k] - low[k]) / span[k]).sum()
        small += weight / span[k] * maps[k]
        shift += weight * low[k] / span[k]
    raw = method.raw_visualization_map(p, maps, 20, 18, batch=batch)
    assert raw is not None
    np.testing.assert_allclose(raw, method.upsample(small, 20, 18)[0] - shift, rtol=1e-12)


def test_layers_without_a_visualization_map() -> None:
    slope = np.array([[[0.0, 1.0]]])
    assert method.raw_visualization_map([], np.zeros((0, 2, 2)), 4, 4) is None
    assert method.visualization_map([np.nan], np.ones((1, 2, 2)), 4, 4) is None
    assert method.visualization_map([0.0], slope, 4, 4) is None
    assert method.visualization_map([0.3, 0.3], np.concatenate([slope, 1 - slope]), 4, 4) is None
    assert method.visualization_map([1e-30], slope, 4, 4) is not None


def test_scores_must_fit_the_maps() -> None:
    slope = np.array([[[0.0, 1.0]]])
    with pytest.raises(ValueError, match=r"scores: received shape \(2,\), expected \(1,\)"):
        method.visualization_map([0.1, 0.2], slope, 4, 4)
    with pytest.raises(ValueError, match=r"scores: NaN for the maps \[0\], which are not flat"):
        method.visualization_map([np.nan], slope, 4, 4)


# Thresholds


def test_otsu_threshold_by_hand() -> None:
    # Bins 0, 51 (0.2 * 256 = 51.2), 204 and 255 of 256: the cut lies in the gap, whose first bin is 51.
    v = np.array([[0.0, 0.2], [0.8, 1.0]])
    centres, variances = method.between_class_variances(v)
    assert centres[0] == 0.5 / 256
    assert variances[0] == Fraction(3, 16) * Fraction(51 + 204 + 255, 3) ** 2
    assert variances[51] == variances[203] == Fraction(1, 4) * Fraction(204 + 255 - 51, 2) ** 2
    assert method.otsu_threshold(v) == 51.5 / 256


def test_otsu_threshold_takes_the_first_of_equal_splits() -> None:
    # Bins 0, 0, 127, 128, 255, 255: cutting after 0 or after 128 is the same by symmetry.
    v = np.array([[0.0, 0.0, 127.5 / 256, 128.5 / 256, 1.0, 1.0]])
    _, variances = method.between_class_variances(v)
    assert variances[0] == variances[126] == variances[128] == variances[254] > variances[127]
    assert method.otsu_threshold(v) == 0.5 / 256


def test_otsu_threshold_scales_with_the_map(generator: np.random.Generator) -> None:
    v = generator.beta(2, 5, (30, 40))
    moved = method.otsu_threshold(4 * v - 8)
    assert abs(moved - (4 * method.otsu_threshold(v) - 8)) < 1e-12


@pytest.mark.parametrize("a", [0.5, 1, 3, 8])
def test_otsu_threshold_equals_skimage(generator: np.random.Generator, a: float) -> None:
    filters = pytest.importorskip("skimage.filters")
    v = method.min_max(generator.beta(a, 4, (60, 50)) + 0.3 * (generator.uniform(size=(60, 50)) > 0.8))
    assert method.otsu_threshold(v) == pytest.approx(filters.threshold_otsu(v), abs=1e-15)


def test_where_skimage_differs() -> None:
    """The definition is the same; a flat map and an integer map are where skimage leaves it."""
    filters = pytest.importorskip("skimage.filters")
    integers = np.array([[0, 0, 10, 255]])
    assert filters.threshold_otsu(integers) == 10
    assert method.otsu_threshold(integers.astype(np.float64)) == pytest.approx(10.459, abs=1e-3)
    assert filters.threshold_otsu(np.full((2, 2), 0.5)) == 0.5


# Fusion


V1 = np.array([[0.0, 0.2], [0.6, 1.0]])
V2 = np.array([[1.0, 0.9], [0.0, 0.1]])
V3 = np.array([[0.0, 1.0], [0.04, 0.9]])


def test_fuse_by_hand() -> None:
    # V_2 lies in the bins 0, 25 | 230, 255 and V_3 in 0, 10 | 230, 255; the gaps' first bins are 25 and 10.
    # A pixel in the upper half of that bin is above the bin's centre: 0.1 passes, 0.04 does not.
    two, _ = method.fuse([V1, V2])
    three, thresholds = method.fuse([V1, V2, V3])
    assert thresholds == [None, 25.5 / 256, 10.5 / 256]
    np.testing.assert_allclose(two, np.array([[1.0, 1.1], [0.0, 1.1]]) / 1.1, rtol=1e-14)
    np.testing.assert_allclose(three, np.array([[0.0, 2.1], [0.0, 2.0]]) / 2.1, rtol=1e-14)


def test_fuse_skips_layers_and_starts_at_the_first_map() -> None:
    expected = method.fuse([V1, V2])
    heatmap, thresholds = method.fuse([None, V1, None, V2, None])
    np.testing.assert_array_equal(heatmap, expected[0])
    assert thresholds == [None, None, None, expected[1][1], None]


def test_fuse_of_one_map_is_that_map() -> None:
    heatmap, thresholds = method.fuse([None, V1])
    np.testing.assert_array_equal(heatmap, V1)
    assert thresholds == [None, None]


def test_fuse_is_zero_where_nothing_is_left() -> None:
    nothing, thresholds = method.fuse([V1, V2], thresholds=[None, 1.0])
    assert not nothing.any()
    assert thresholds == [None, 1.0]
    everywhere = method.fuse([1 - V1, V1], thresholds=[None, -1.0])[0]
    assert not everywhere.any(), "1 everywhere is flat"
    assert not method.fuse([None, None], size=(2, 3))[0].any()
    assert method.fuse([None, None], size=(2, 3))[0].shape == (2, 3)
    with pytest.raises(ValueError, match="every layer is skipped"):
        method.fuse([None, None])
    mode: Any = "mean"
    with pytest.raises(ValueError, match="mode: received 'mean'"):
        method.fuse([V1], mode)


def peak(bright: int) -> Array:
    """A hundred pixels: dark ones at 0 to 0.2, some at 1."""
    v = np.linspace(0, 0.2, 100)
    v[100 - bright :] = 1.0
    return v.reshape(10, 10)


@pytest.mark.parametrize(("bright", "factor"), [(9, 1.5), (10, 1.0), (11, 1.0)])
def test_soft_threshold_rises_unless_a_tenth_exceeds_it(bright: int, factor: float) -> None:
    v = peak(bright)
    otsu = method.otsu_threshold(v)
    assert 0.17 < otsu < 0.2
    assert method.soft_threshold(v) == factor * otsu


def test_soft_fusion_by_formula() -> None:
    v = peak(9)
    heatmap, thresholds = method.fuse([v.T, v], "soft")
    t = 1.5 * method.otsu_threshold(v)
    assert thresholds == [None, t]
    fused = (v.T + v) / (1 + np.exp(-100 * (v - t)))
    np.testing.assert_allclose(heatmap, (fused - fused.min()) / np.ptp(fused), atol=1e-14)
