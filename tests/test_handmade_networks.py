"""The whole path on networks made by hand, each with one awkward property, against the float64 reference."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import engine
from engine.export import export
from tests.comparison import Case
from tests.models import Exported
from tests.reference import method
from tests.reference.network import TorchNetwork

SIZE = 12


def make_case(
    folder: Path,
    weights: dict[str, NDArray[np.float64]],
    nodes: list[onnx.NodeProto],
    activation: method.Activation,
    x: NDArray[np.float32],
) -> Case:
    """Export a network image → … → logits and open it on one prepared image."""
    classes = weights["head"].shape[1]
    graph = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", x.shape[1], SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    source = folder / "handmade.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    export(source, folder / "handmade.ada", activation=activation)
    model = Exported(source=source, explainer=engine.load(folder / "handmade.ada"), activation=activation)
    return Case(model, x, x, TorchNetwork(source))


def one_layer(relu: bool = True) -> list[onnx.NodeProto]:
    """Conv (→ Relu) → GlobalAveragePool → Flatten → Gemm: α of channel k is the head's weight [k, class]."""
    return [
        helper.make_node("Conv", ["image", "conv", "bias"], ["features" if not relu else "conv_out"]),
        *([helper.make_node("Relu", ["conv_out"], ["features"])] if relu else []),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"]),
    ]


def one_layer_weights(random: np.random.Generator, head: list[float]) -> dict[str, NDArray[np.float64]]:
    """Random 3×3 filters, one per entry of `head`, the column of class 0; class 1 has the opposite one."""
    column = np.array(head)
    return {
        "conv": random.normal(0, 0.4, (len(head), 3, 3, 3)),
        "bias": np.full(len(head), 0.1),
        "head": np.stack([column, -column], axis=1),
    }


def image(random: np.random.Generator) -> NDArray[np.float32]:
    return random.normal(0, 1, (1, 3, SIZE, SIZE)).astype(np.float32)


def explain(case: Case, target: int, rule: method.Rule = "otsu") -> engine.Explanation:
    result = case.model.explainer.explain(case.x, target, rule=rule, visualization_maps=True)
    _, _, alpha = case.tap([target])
    if any(layer.selected for layer in result.layers):
        case.check(result, [layer[0] for layer in alpha], rule, "hard")
    if rule == "otsu":
        case.check_one_graph(result)
    return result


def test_one_layer_only(tmp_path: Path, random: np.random.Generator) -> None:
    weights = one_layer_weights(random, [0.9, -0.4, 0.2, 1.1, -0.3, 0.1])
    result = explain(make_case(tmp_path, weights, one_layer(), "softmax", image(random)), 0)
    (layer,) = result.layers
    assert (layer.positive, layer.selected_channels.tolist(), layer.fusion_threshold) == (4, [3, 0], None)
    assert result.heatmap.min() == 0.0
    assert result.heatmap.max() == 1.0
    assert result.warnings == ()


def test_no_positive_gradient(tmp_path: Path, random: np.random.Generator) -> None:
    case = make_case(tmp_path, one_layer_weights(random, [0.5, 1.0, 0.7]), one_layer(), "softmax", image(random))
    result = explain(case, 1)
    assert not result.heatmap.any()
    (layer,) = result.layers
    assert (layer.positive, layer.selected, layer.scored, layer.threshold) == (0, 0, 0, None)
    assert result.visualization_maps == (None,)
    assert result.warnings == (
        "layer 'features' gave no mask: no feature map was selected",
        "the heatmap is all zeros: no layer gave a visualization map, or fusion cut everything away",
    )


@pytest.mark.parametrize("rule", ["otsu", "otsu-count", "positive"])
def test_one_positive_map(tmp_path: Path, random: np.random.Generator, rule: method.Rule) -> None:
    case = make_case(tmp_path, one_layer_weights(random, [-0.5, 1.0, -0.7]), one_layer(), "softmax", image(random))
    result = explain(case, 0, rule)
    assert result.layers[0].selected_channels.tolist() == [1]
    np.testing.assert_allclose(result.heatmap, method.masks(case.maps[0][[1]], SIZE, SIZE)[0], atol=1e-6)


def test_flat_maps_are_counted_and_not_scored(tmp_path: Path, random: np.random.Generator) -> None:
    weights = one_layer_weights(random, [1.0, 1.1, 1.2, 0.9])
    weights["conv"][[0, 2]] = 0.0
    weights["bias"][2] = -1.0  # all zeros after the Relu
    result = explain(make_case(tmp_path, weights, one_layer(), "softmax", image(random)), 0, "positive")
    (layer,) = result.layers
    assert (layer.selected, layer.flat, layer.scored, result.scored) == (4, 2, 2, 2)
    assert layer.selected_channels.tolist() == [2, 1, 0, 3]
    assert np.isnan(layer.scores).tolist() == [True, False, True, False]


def test_only_flat_maps(tmp_path: Path, random: np.random.Generator) -> None:
    """A constant image, and a convolution that does not pad."""
    weights = one_layer_weights(random, [1.0, 0.9])
    x = np.full((1, 3, SIZE, SIZE), 0.5, np.float32)
    result = explain(make_case(tmp_path, weights, one_layer(), "softmax", x), 0, "positive")
    assert not result.heatmap.any()
    assert result.warnings[0] == "layer 'features' gave no mask: all 2 selected maps are constant"


def test_all_masks_score_0(tmp_path: Path, random: np.random.Generator) -> None:
    """Class 1 is ahead by 10⁴ under every mask, so that the softmax of class 0 is 0 exactly."""
    weights = one_layer_weights(random, [0.9, 0.2, 0.4])
    weights |= {"bias": np.full(3, 10.0), "head": weights["head"] + [[0.0, 500.0]]}
    result = explain(make_case(tmp_path, weights, one_layer(), "softmax", image(random)), 0, "positive")
    (layer,) = result.layers
    assert (layer.scored, layer.scores.tolist()) == (3, [0.0, 0.0, 0.0])
    assert not result.heatmap.any()
    assert result.warnings == (
        "layer 'features' is left out of the fusion: all its masks score 0",
        "the heatmap is all zeros: no layer gave a visualization map, or fusion cut everything away",
    )


def test_flat_visualization_map(tmp_path: Path) -> None:
    """Complementary masks with equal scores: m and 1 − m, of equal area, add up to a constant."""
    x = (np.arange(SIZE, dtype=np.float32) / 16)[None, None, None, :].repeat(SIZE, axis=2)  # exact in binary
    weights = {
        "conv": np.array([1.0, -1.0]).reshape(2, 1, 1, 1),
        "bias": np.array([0.0, 0.5]),
        "head": np.array([[100.0, 0.0], [100.0, 0.0]]),  # saturates: both scores are 1
    }
    result = explain(make_case(tmp_path, weights, one_layer(relu=False), "softmax", x), 0)
    (layer,) = result.layers
    assert (layer.selected, layer.scored) == (2, 2)
    assert layer.scores.tolist() == [1.0, 1.0]
    assert result.visualization_maps == (None,)
    assert not result.heatmap.any()
    assert result.warnings == (
        "layer 'features' is left out of the fusion: its visualization map is constant",
        "the heatmap is all zeros: no layer gave a visualization map, or fusion cut everything away",
    )


def test_all_scores_zero(tmp_path: Path, random: np.random.Generator) -> None:
    weights = one_layer_weights(random, [0.9, 0.4])
    weights["head"] = np.array([[0.9, 1e6], [0.4, 1e6]])
    result = explain(make_case(tmp_path, weights, one_layer(), "softmax", image(random)), 0)
    assert result.layers[0].scored > 0
    assert not np.nansum(result.layers[0].scores)
    assert not result.heatmap.any()


@pytest.mark.parametrize(("rule", "kept"), [("otsu", [1, 4]), ("otsu-count", [1, 4, 0]), ("positive", [1, 4, 0, 2, 5])])
def test_ties_at_the_cut_go_to_the_lower_channel(
    tmp_path: Path, random: np.random.Generator, rule: method.Rule, kept: list[int]
) -> None:
    weights = one_layer_weights(random, [0.25, 2.0, 0.25, -1.0, 2.0, 0.25])
    case = make_case(tmp_path, weights, one_layer(), "softmax", image(random))
    result = explain(case, 0, rule)
    assert result.layers[0].selected_channels.tolist() == kept


def test_equal_gradients_keep_every_positive_map(tmp_path: Path, random: np.random.Generator) -> None:
    case = make_case(tmp_path, one_layer_weights(random, [0.5, -0.5, 0.5]), one_layer(), "softmax", image(random))
    assert explain(case, 0).layers[0].selected_channels.tolist() == [0, 2]


def deep_case(tmp_path: Path, random: np.random.Generator, bias: float = 0.0) -> Case:
    """Conv → Relu → MaxPool → Conv → BatchNormalization → Clip → AveragePool → Conv → Relu → ReduceMean → MatMul."""
    weights = {
        "w1": random.normal(0, 0.35, (6, 3, 3, 3)),
        "w2": random.normal(0, 0.3, (8, 6, 3, 3)),
        "scale": random.uniform(0.5, 1.5, 8),
        "shift": random.normal(0, 0.3, 8),
        "mean": random.normal(0, 0.2, 8),
        "variance": random.uniform(0.5, 2.0, 8),
        "low": np.array(0.0),
        "high": np.array(1.0),
        "w3": random.normal(0, 0.4, (10, 8, 1, 1)),
        "b3": np.full(10, bias),
        "head": random.normal(0, 2.5, (10, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["f1"]),
        helper.make_node("MaxPool", ["f1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], auto_pad="SAME_UPPER"),
        helper.make_node("BatchNormalization", ["c2", "scale", "shift", "mean", "variance"], ["n2"]),
        helper.make_node("Clip", ["n2", "low", "high"], ["f2"]),
        helper.make_node("AveragePool", ["f2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p2", "w3", "b3"], ["c3"]),
        helper.make_node("Relu", ["c3"], ["f3"]),
        helper.make_node("ReduceMean", ["f3"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    return make_case(tmp_path, weights, nodes, "softmax", image(random))


def test_three_layers(tmp_path: Path, random: np.random.Generator) -> None:
    case = deep_case(tmp_path, random)
    for target in range(3):
        result = explain(case, target, "positive")
        assert [layer.name for layer in result.layers] == ["f1", "f2", "f3"]
        assert [layer.channels for layer in result.layers] == [6, 8, 10]


def test_a_layer_without_masks_is_skipped(tmp_path: Path, random: np.random.Generator) -> None:
    """The last Relu is not active for this image: its layer is constant, and nothing flows back through it."""
    result = explain(deep_case(tmp_path, random, bias=-4.0), 0, "all")
    assert [layer.scored > 0 for layer in result.layers] == [True, True, False]
    assert result.layers[2].fusion_threshold is None
    assert result.visualization_maps[2] is None
    assert result.warnings == ("layer 'f3' gave no mask: all 10 selected maps are constant",)


def test_batch_size_and_order_of_classes_do_not_matter(tmp_path: Path, random: np.random.Generator) -> None:
    case = deep_case(tmp_path, random)
    expected = [explain(case, target, "positive") for target in range(3)]
    for batch_size in (1, 3, 100):
        for result in case.model.explainer.explain(case.x, [2, 0, 1], rule="positive", batch_size=batch_size):
            np.testing.assert_allclose(result.heatmap, expected[result.target].heatmap, atol=1e-5)


def test_baselines_and_activations_change_the_scores_as_the_formula_says(
    tmp_path: Path, random: np.random.Generator
) -> None:
    case = deep_case(tmp_path, random)
    blurred = engine.image.make_baseline("blur", case.x, None)
    for activation in ("softmax", "sigmoid", "none"):
        result = case.model.explainer.explain(case.x, 1, rule="positive", activation=activation, baseline="blur")
        for number, layer in enumerate(result.layers):
            maps = case.maps[number][layer.selected_channels]
            scores = method.score_masks(case.network, case.x, maps, blurred, activation, case.logits_name)
            np.testing.assert_allclose(layer.scores, scores[:, 1], atol=1e-5)


def test_more_classes_than_are_tapped_at_once(tmp_path: Path, random: np.random.Generator) -> None:
    case = deep_case(tmp_path, random)
    targets = [0, 1, 2, None] * 5
    results = case.model.explainer.explain(case.x, targets)
    top = int(case.logits.argmax())
    assert [result.target for result in results] == [top if target is None else target for target in targets]
    for result in results:
        alone = case.model.explainer.explain(case.x, result.target)
        np.testing.assert_allclose(result.heatmap, alone.heatmap, atol=1e-5)
