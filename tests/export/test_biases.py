"""The biases of ops, by what a network of one op computes for an image of zeros; and which networks are linear."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest

from engine.export.biases import BiasedOp, append_bias, biased_ops, is_piecewise_linear
from engine.export.graph import GraphBuilder
from tests.export.networks import imported, network, node, statistics, weight
from tests.export.rules.gradients import Array, error, runtime

Constants = Mapping[str, Array]
ALONG = np.linspace(-1, 2, 4).astype(np.float32)
RANDOM = np.random.default_rng(5)
KERNEL = weight(RANDOM, 4, 4, 3, 3)
BATCH_NORM = statistics(RANDOM, "bn", 4)
BN = "x bn_scale bn_bias bn_mean bn_var"
SPATIAL = RANDOM.standard_normal((1, 1, 6, 5)).astype(np.float32)

# An op that is linear but for its bias makes its bias of an image of zeros.
AFFINE: dict[str, tuple[onnx.NodeProto, Constants, int]] = {
    "Conv": (node("Conv", "x w b", "y", strides=[2, 2], pads=[1, 0, 1, 2]), {"w": KERNEL, "b": ALONG}, 2),
    "ConvTranspose": (node("ConvTranspose", "x w b", "y", strides=[2, 3]), {"w": KERNEL, "b": ALONG}, 2),
    "BatchNormalization": (node("BatchNormalization", BN, "y", epsilon=0.25), BATCH_NORM, 2),
    "Add": (node("Add", "x c", "y"), {"c": SPATIAL}, 1),
    "Add, constant first": (node("Add", "c x", "y"), {"c": SPATIAL}, 0),
    "Sub": (node("Sub", "x c", "y"), {"c": SPATIAL}, 1),
    "Sub from a constant": (node("Sub", "c x", "y"), {"c": SPATIAL}, 0),
    "Sum": (node("Sum", "x c", "y"), {"c": ALONG[:, None, None]}, 1),
}


def single(op: onnx.NodeProto, constants: Constants) -> onnx.ModelProto:
    return network([op], constants, image=(4, 6, 5))


def bias_of(model: onnx.ModelProto) -> tuple[BiasedOp, Array]:
    """Find the one biased op of a network, which is its last, and compute its bias."""
    graph = (converted := imported(model)).graph
    output = graph.outputs[0]
    output.shape = output.shape or graph.inputs[0].shape  # onnx infers none for a GroupNormalization
    (op,) = biased_ops(graph)
    graph.outputs[:] = [append_bias(GraphBuilder(graph, "gradient"), graph[-1], op.inputs)]
    (bias,) = runtime(converted)(np.zeros((1, 4, 6, 5), np.float32))
    return op, bias


@pytest.mark.parametrize("case", AFFINE)
def test_bias_is_what_an_image_of_zeros_becomes(case: str) -> None:
    made, constants, place = AFFINE[case]
    model = single(made, constants)
    (expected,) = runtime(imported(model))(np.zeros((3, 4, 6, 5), np.float32))
    op, bias = bias_of(model)
    assert op == BiasedOp(name="y", op=made.op_type, shape=expected.shape[1:], inputs=(place,))
    assert np.abs(expected).max() > 0.1
    assert error(np.broadcast_to(bias, expected.shape), expected) <= 1e-6


def test_bias_of_a_gemm_is_scaled(random: np.random.Generator) -> None:
    constants = {"w": weight(random, 120, 5), "c": np.linspace(-1, 1, 5)}
    gemm = node("Gemm", "flat w c", "y", alpha=3.0, beta=-0.5)
    op, bias = bias_of(network([node("Flatten", "x", "flat"), gemm], constants, image=(4, 6, 5)))
    assert op == BiasedOp(name="y", op="Gemm", shape=(5,), inputs=(2,))
    np.testing.assert_allclose(bias, -0.5 * np.linspace(-1, 1, 5), rtol=1e-6)


@pytest.mark.parametrize(
    ("made", "opset", "shape"),
    [
        (node("InstanceNormalization", "x s b", "y"), 17, (1, 4, 1, 1)),
        (node("GroupNormalization", "x s b", "y", num_groups=2), 21, (1, 4, 1, 1)),
        (node("LayerNormalization", "x w v", "y", axis=2), 17, (1, 1, 6, 5)),
    ],
    ids=["InstanceNormalization", "GroupNormalization", "LayerNormalization"],
)
def test_bias_of_a_normalisation(made: onnx.NodeProto, opset: int, shape: tuple[int, ...]) -> None:
    constants = {"s": np.ones(4), "b": ALONG, "w": np.ones((6, 5)), "v": SPATIAL[0, 0]}
    used = {name: constants[name] for name in made.input if name != "x"}
    op, bias = bias_of(network([made], used, image=(4, 6, 5), opset=opset))
    assert op.inputs == (2,)
    # Equal elements become the bias alone.
    (expected,) = runtime(imported(network([made], used, image=(4, 6, 5), opset=opset)))(np.ones((1, 4, 6, 5), "f4"))
    assert error(np.broadcast_to(bias.reshape(shape), expected.shape), expected) <= 1e-5


def test_sum_of_several_constants() -> None:
    made = node("Sum", "c x d", "y")
    op, bias = bias_of(single(made, {"c": SPATIAL, "d": np.full((1, 4, 1, 1), 3.0)}))
    assert op.inputs == (0, 2)
    np.testing.assert_allclose(bias, np.broadcast_to(SPATIAL + 3, (1, 4, 6, 5)), rtol=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Conv", "x w", "y")],
        [node("LayerNormalization", "x v", "y", axis=3)],
        [node("Relu", "x", "r"), node("Add", "r x", "y")],
        [node("Mul", "x c", "y")],
        [node("Clip", "x - six", "y")],
        [node("Relu", "x", "y"), node("Add", "x c", "aside")],
        [node("Add", "c c", "twice"), node("Mul", "x twice", "y")],
    ],
    ids=["absent", "absent in a normalisation", "of activations", "factor", "saturation", "aside", "of constants"],
)
def test_no_bias(nodes: Sequence[onnx.NodeProto]) -> None:
    constants = {"w": KERNEL, "v": np.ones(5), "c": SPATIAL, "six": np.float32(6)}
    assert biased_ops(imported(network(nodes, constants, image=(4, 6, 5), outputs="y")).graph) == []


def test_what_carries_no_gradient_is_a_bias() -> None:
    nodes = [node("Greater", "x zero", "above"), node("Cast", "above", "step", to=1), node("Add", "x step", "y")]
    (op,) = biased_ops(imported(network(nodes, {"zero": np.float32(0)})).graph)
    assert (op.op, op.inputs) == ("Add", (1,))


def test_ops_are_in_topological_order(random: np.random.Generator) -> None:
    nodes = [
        node("Conv", "x w b", "one"),
        node("Add", "one c", "two"),
        node("BatchNormalization", "two bn_scale bn_bias bn_mean bn_var", "three"),
    ]
    constants = {"w": KERNEL, "b": ALONG, "c": np.ones((4, 1, 1)), **statistics(random, "bn", 4)}
    ops = biased_ops(imported(network(nodes, constants, image=(4, 6, 5), outputs="three")).graph)
    assert [(op.name, op.op, op.shape) for op in ops] == [
        ("one", "Conv", (4, 4, 3)),
        ("two", "Add", (4, 4, 3)),
        ("three", "BatchNormalization", (4, 4, 3)),
    ]


@pytest.mark.parametrize(
    ("nodes", "linear"),
    [
        ([node("Relu", "x", "a"), node("LeakyRelu", "a", "y")], True),
        ([node("Concat", "x x", "y", axis=1)], True),
        ([node("Concat", "x c", "y", axis=2)], False),
        ([node("Max", "x x", "y")], True),
        ([node("Max", "x c", "y")], False),
        ([node("Mul", "x c", "y")], True),
        ([node("Mul", "x x", "y")], False),
        ([node("Clip", "x zero", "y")], False),
        ([node("Sigmoid", "x", "y")], False),
        ([node("Relu", "x", "y"), node("Sigmoid", "x", "aside")], True),
    ],
    ids=lambda value: None if isinstance(value, bool) else "-".join(entry.op_type for entry in value),
)
def test_piecewise_linear(nodes: Sequence[onnx.NodeProto], linear: bool) -> None:
    model = imported(network(nodes, {"c": np.ones((1, 4, 6, 5)), "zero": np.float32(0)}, image=(4, 6, 5), outputs="y"))
    assert is_piecewise_linear(model.graph) is linear
