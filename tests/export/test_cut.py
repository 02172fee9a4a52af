from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.errors import ModelError
from engine.export.cut import CutPoint, cut_points, feature_layers
from engine.export.source import load_source
from tests.export.networks import BATCH, CNN_LAYERS, image_input, imported, network, node, small_cnn, weight

HEAD = [node("GlobalAveragePool", "last", "mean"), node("Flatten", "mean", "flat"), node("Gemm", "flat head", "y")]


def names(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], image: tuple[int, int, int]) -> list[str]:
    """The cut points of the nodes and `HEAD`, shallow to deep."""
    return [point.name for point in cut_points(imported(network([*nodes, *HEAD], constants, image=image)).graph)]


@pytest.fixture
def constants(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights of 3×3 Convs with 3 channels, of a 1×1 Conv, and of the head."""
    kernels = {f"w{number}": weight(random, 3, 3, 3, 3) for number in range(1, 6)}
    return {**kernels, "w1x1": weight(random, 3, 3, 1, 1), "head": weight(random, 3, 5)}


SAME = {"pads": [1, 1, 1, 1]}
HALF = {"pads": [1, 1, 1, 1], "strides": [2, 2]}


def test_chain(constants: dict[str, np.ndarray]) -> None:
    nodes = [node("Conv", "x w1", "c1", **SAME), node("Relu", "c1", "r1"), node("Conv", "r1 w2", "last", **SAME)]
    assert names(nodes, constants, (3, 8, 8)) == ["c1", "r1", "last"]


def test_cut_points_have_the_sizes_of_their_maps(random: np.random.Generator) -> None:
    points = cut_points(imported(small_cnn(random)).graph)
    assert [str(point) for point in points] == [
        "conv1 (6×16×12)",
        "bn1 (6×16×12)",
        "relu1 (6×16×12)",
        "conv2 (8×8×6)",
        "add3 (8×8×6)",
        "relu3 (8×8×6)",
        "conv4 (10×4×3)",
        "clip4 (10×4×3)",
    ]
    assert points[0] == CutPoint(name="conv1", channels=6, height=16, width=12)


def test_inside_of_a_residual_block_is_no_cut_point(constants: dict[str, np.ndarray]) -> None:
    nodes = [
        node("Conv", "x w1", "stem", **SAME),
        node("Conv", "stem w2", "a", **SAME),
        node("Relu", "a", "b"),
        node("Conv", "b w3", "c", **SAME),
        node("Add", "c stem", "sum"),
        node("Relu", "sum", "last"),
    ]
    assert names(nodes, constants, (3, 8, 8)) == ["stem", "sum", "last"]


def test_branch_from_the_image_keeps_everything_alive(constants: dict[str, np.ndarray]) -> None:
    nodes = [
        node("Conv", "x w1", "a", **SAME),
        node("Relu", "a", "b"),
        node("Add", "b x", "sum"),
        node("Conv", "sum w2", "last", **SAME),
    ]
    assert names(nodes, constants, (3, 8, 8)) == ["sum", "last"]


def test_branches_that_are_joined(constants: dict[str, np.ndarray], random: np.random.Generator) -> None:
    nodes = [
        node("Conv", "x w1", "stem", **SAME),
        node("Conv", "stem w2", "left", **SAME),
        node("MaxPool", "stem", "pooled", kernel_shape=[3, 3], **SAME),
        node("Conv", "pooled w1x1", "right"),
        node("Concat", "left right", "joined", axis=1),
        node("Conv", "joined mix", "last"),
    ]
    constants = constants | {"mix": weight(random, 3, 6, 1, 1)}
    assert names(nodes, constants, (3, 8, 8)) == ["stem", "joined", "last"]


@pytest.mark.parametrize(
    "pool",
    [
        node("MaxPool", "c1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", "c1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("LpPool", "c1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
    ],
    ids=lambda pool: pool.op_type,
)
def test_output_of_a_pooling_op_is_no_cut_point(pool: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    nodes = [node("Conv", "x w1", "c1", **SAME), pool, node("Relu", "p1", "r1"), node("Conv", "r1 w2", "last", **SAME)]
    assert names(nodes, constants, (3, 8, 8)) == ["c1", "r1", "last"]


@pytest.mark.parametrize(("size", "expected"), [((2, 2), ["c1", "last"]), ((1, 5), []), ((5, 1), []), ((1, 1), [])])
def test_height_or_width_of_one_is_no_map(size, expected, constants: dict[str, np.ndarray]) -> None:
    nodes = [node("Conv", "x w1", "c1", **SAME), node("Conv", "c1 w2", "last", **SAME)]
    assert names(nodes, constants, (3, *size)) == expected


def test_preprocessing_in_the_graph_is_no_layer(constants: dict[str, np.ndarray]) -> None:
    nodes = [
        node("Sub", "x offset", "centred"),
        node("Mul", "centred scale", "scaled"),
        node("Pad", "scaled pads", "padded"),
        node("Conv", "padded w1", "c1"),
        node("Conv", "c1 w2", "last"),
    ]
    constants = constants | {
        "offset": np.ones((3, 1, 1), np.float32),
        "scale": np.full((3, 1, 1), 2, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    }
    assert names(nodes, constants, (3, 8, 8)) == ["c1", "last"]


def test_maps_after_the_last_weights_are_no_layer(constants: dict[str, np.ndarray]) -> None:
    nodes = [
        node("Conv", "x w1", "c1", **SAME),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2", **SAME),
        node("Relu", "c2", "r2"),
        node("GlobalAveragePool", "r2", "mean"),
        node("Flatten", "mean", "y"),
    ]
    points = cut_points(imported(network(nodes, constants)).graph)
    assert [point.name for point in points] == ["c1", "r1"]


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_weights_after_a_layer_may_be_a_matrix(op: str, constants: dict[str, np.ndarray]) -> None:
    nodes = [node("Conv", "x w1", "last"), *HEAD[:2], node(op, "flat head", "y")]
    assert [point.name for point in cut_points(imported(network(nodes, constants)).graph)] == ["last"]


def test_weights_after_a_layer_may_be_transposed(constants: dict[str, np.ndarray], random) -> None:
    nodes = [
        node("Conv", "x w1", "c1"),
        node("ConvTranspose", "c1 up", "larger"),
        node("GlobalAveragePool", "larger", "mean"),
        node("Flatten", "mean", "y"),
    ]
    model = network(nodes, constants | {"up": weight(random, 3, 4, 2, 2)})
    assert [point.name for point in cut_points(imported(model).graph)] == ["c1"]


def test_rows_are_no_layer(constants: dict[str, np.ndarray], random: np.random.Generator) -> None:
    nodes = [
        node("Conv", "x w1", "c1", **SAME),
        node("Reshape", "c1 rows", "tokens"),
        node("MatMul", "tokens mix", "mixed"),
        node("Reshape", "mixed maps", "last"),
    ]
    constants = constants | {
        "rows": np.array([0, 3, 64], np.int64),
        "maps": np.array([0, 3, 8, 8], np.int64),
        "mix": weight(random, 64, 64),
    }
    assert names(nodes, constants, (3, 8, 8)) == ["c1", "last"]


def test_maps_of_unknown_size_are_no_layer(constants: dict[str, np.ndarray]) -> None:
    nodes = [node("Conv", "x w1", "c1", **SAME), node("Conv", "c1 w2", "last", **SAME)]
    model = network([*nodes, *HEAD], constants, inputs=[image_input([BATCH, 3, "H", 8])])
    assert cut_points(imported(model).graph) == []


def stages(heights: list[int], random: np.random.Generator) -> list[str]:
    """The feature layers of a chain of Convs whose maps have these heights, and a width of 5."""
    nodes, constants, value = [], {"head": weight(random, 2, 5)}, "x"
    for position, (before, after) in enumerate(zip([heights[0], *heights], heights, strict=False)):
        constants[f"w{position}"] = weight(random, 2, 2 if position else 3, before - after + 1, 1)
        name = f"c{position}" if position < len(heights) - 1 else "last"
        nodes.append(node("Conv", f"{value} w{position}", name))
        value = name
    graph = imported(network([*nodes, *HEAD], constants, image=(3, heights[0], 5))).graph
    assert [point.height for point in cut_points(graph)] == heights
    return [point.name for point in feature_layers(graph)]


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([12, 12, 12], ["last"]),
        ([12, 12, 6, 6], ["c1", "last"]),
        ([12, 8], ["c0", "last"]),
        ([13, 9], ["last"]),
        ([12, 9, 7, 5, 4], ["last"]),
        ([30, 20, 19, 13, 8, 8, 2], ["c0", "c3", "c5", "last"]),
    ],
    ids=str,
)
def test_stage_ends_where_the_height_shrinks_by_one_and_a_half(heights, expected, random) -> None:
    assert stages(heights, random) == expected


def test_last_cut_point_of_each_stage_is_the_layer(random: np.random.Generator) -> None:
    layers = feature_layers(imported(small_cnn(random)).graph)
    assert [(layer.name, layer.channels, layer.height, layer.width) for layer in layers] == list(CNN_LAYERS)


@pytest.mark.parametrize("asked", [["conv1"], ["relu3", "conv1"], ["conv1", "relu3", "conv1"]])
def test_names_override_the_choice_in_the_network_s_order(asked: list[str], random: np.random.Generator) -> None:
    layers = feature_layers(imported(small_cnn(random)).graph, asked)
    assert [layer.name for layer in layers] == [name for name in ("conv1", "relu3") if name in asked]


def test_unknown_name_lists_the_possible(random: np.random.Generator) -> None:
    message = (
        r"^no feature layer is possible at 'pool1', 'nothing'; possible are, shallow to deep: conv1 \(6×16×12\), "
        r"bn1 \(6×16×12\), relu1 \(6×16×12\), conv2 \(8×8×6\), add3 \(8×8×6\), relu3 \(8×8×6\), conv4 \(10×4×3\), "
        r"clip4 \(10×4×3\)$"
    )
    with pytest.raises(ModelError, match=message):
        feature_layers(imported(small_cnn(random)).graph, ["pool1", "relu1", "nothing"])


@pytest.mark.parametrize(
    ("nodes", "ops"),
    [
        ([node("Flatten", "x", "flat"), node("Gemm", "flat w", "h"), node("Relu", "h", "y")], "Flatten, Gemm, Relu"),
        (
            [node("Conv", "x k", "c"), node("GlobalAveragePool", "c", "m"), node("Flatten", "m", "y")],
            "Conv, Flatten, GlobalAveragePool",
        ),
    ],
    ids=["no Conv", "nothing weighted after it"],
)
def test_model_without_a_layer_names_what_was_found(nodes, ops: str, random: np.random.Generator) -> None:
    model = network(nodes, {"w": weight(random, 192, 5), "k": weight(random, 5, 3, 1, 1)})
    message = (
        r"^the model has no feature layer: expected a CNN with a tensor \[N, C, H, W\], H and W above 1, that lies "
        r"between a Conv and a later Conv, Gemm or MatMul and that every path passes through; found the ops "
        rf"{ops}$"
    )
    with pytest.raises(ModelError, match=message):
        feature_layers(imported(model).graph)


MODELS = {
    "efficientnet-lite0": "96×112×112, 144×56×56, 240×28×28, 672×14×14, 1280×7×7",
    "efficientnet-lite0-voc20": "96×112×112, 144×56×56, 240×28×28, 672×14×14, 1280×7×7",
    "mobilenet-v2": "96×112×112, 144×56×56, 192×28×28, 576×14×14, 1280×7×7",
    "resnet50-thin-voc20": "64×112×112, 128×56×56, 256×28×28, 512×14×14, 1024×7×7",
    "squeezenet1.1": "64×111×111, 128×55×55, 256×27×27, 512×13×13",
}


@pytest.mark.parametrize("model", MODELS)
def test_layers_of_pretrained_models(model: str, assets: Path) -> None:
    source = load_source(assets / "models" / model / "model.onnx", activation="none")
    layers = feature_layers(source.model.graph)
    assert ", ".join(f"{layer.channels}×{layer.height}×{layer.width}" for layer in layers) == MODELS[model]
