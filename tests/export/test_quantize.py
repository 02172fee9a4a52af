"""The quantized graph against float64 replicas of it, and against the float32 graph that it stands for."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from engine.errors import ModelError
from engine.export.quantize import quantizable, quantize
from tests.export.networks import network, node, weight


def imported(model: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def smooth(random: np.random.Generator, rows: int = 16, size: int = 16) -> np.ndarray:
    """Images whose neighbouring pixels are alike."""
    noise = torch.tensor(random.standard_normal((rows, 3, 4, 4)), dtype=torch.float32)
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear").numpy()


def run(model: ir.Model, images: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": images})[0]


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {entry.name: numpy_helper.to_array(entry).astype(np.float64) for entry in model.graph.initializer}


def dequantized(model: onnx.ModelProto, name: str) -> np.ndarray:
    """A parameter of a convolution, from its integers, steps and zero points, as ONNX defines DequantizeLinear."""
    (made,) = (entry for entry in model.graph.node if name in entry.output)
    integers, step, zero = (constants_of(model)[entry] for entry in made.input)
    assert np.abs(integers).max() <= 127 or integers.ndim == 1  # a bias has 32 bits
    shape = (-1,) + (1,) * (integers.ndim - 1)
    return (integers - np.reshape(zero, shape)) * np.reshape(step, shape)


def plain(random: np.random.Generator) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, mean, Gemm: the second Conv is quantized."""
    return network(
        [
            node("Conv", "x w1", "c1", pads=[1, 1, 1, 1]),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", "c2", "r2"),
            node("GlobalAveragePool", "r2", "g"),
            node("Flatten", "g", "f"),
            node("Gemm", "f w3", "y", transB=1),
        ],
        {
            "w1": weight(random, 6, 3, 3, 3),
            "w2": weight(random, 8, 6, 3, 3),
            "b2": random.standard_normal(8),
            "w3": weight(random, 4, 8),
        },
        image=(3, 16, 16),
    )


def test_one_convolution_by_its_own_integers(random: np.random.Generator) -> None:
    """Float64 arithmetic with the integers, steps and zero points of the graph, as ONNX defines its two operators."""
    model, images = plain(random), smooth(random)
    result = quantize(imported(model), images)
    assert (result.convolutions, result.left_out) == (1, ("c1",))
    proto = ir.to_proto(result.model)
    constants = constants_of(proto)
    conv = next(entry for entry in proto.graph.node if entry.op_type == "Conv" and entry.output[0] != "c1")

    def through_8_bits(values: np.ndarray, quantize_linear: onnx.NodeProto) -> np.ndarray:
        step, zero = (constants[entry] for entry in quantize_linear.input[1:])
        return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step

    weights = constants_of(model)
    x = torch.tensor(images.astype(np.float64))
    first = torch.relu(torch.nn.functional.conv2d(x, torch.tensor(weights["w1"]), padding=1)).numpy()
    (before,) = (entry for entry in proto.graph.node if entry.op_type == "QuantizeLinear" and entry.input[0] == "r1")
    (after,) = (entry for entry in proto.graph.node if entry.op_type == "QuantizeLinear" and entry is not before)
    second = torch.nn.functional.conv2d(
        torch.tensor(through_8_bits(first, before)),
        torch.tensor(dequantized(proto, conv.input[1])),
        torch.tensor(dequantized(proto, conv.input[2])),
        stride=2,
        padding=1,
    ).numpy()
    expected = through_8_bits(second, after).mean(axis=(2, 3)) @ weights["w3"].T
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(run(result.model, images), expected, atol=2e-3)
    np.testing.assert_allclose(run(result.model, images, optimize=False), expected, atol=2e-3)


def mobile(random: np.random.Generator, kernel: np.ndarray) -> onnx.ModelProto:
    """A stem with a depthwise Conv behind it, and a depthwise Conv with these filters, a Clip and a residual later."""
    return network(
        [
            node("Conv", "x w1", "c1", pads=[1, 1, 1, 1]),
            node("Conv", "c1 d1", "c2", group=8),
            node("Clip", "c2 zero six", "k2"),
            node("Conv", "k2 w3", "c3"),
            node("Conv", "c3 d4", "c4", group=8, pads=[1, 1, 1, 1]),
            node("Conv", "c4 w3", "c5"),
            node("Add", "c3 c5", "a5"),
            node("MaxPool", "a5", "p5", kernel_shape=[2, 2], strides=[2, 2]),
            node("Concat", "p5 p5", "cat", axis=1),
            node("GlobalAveragePool", "cat", "g"),
            node("Flatten", "g", "f"),
            node("Gemm", "f w6", "y", transB=1),
        ],
        {
            "w1": weight(random, 8, 3, 3, 3),
            "d1": weight(random, 8, 1, 1, 1),
            "zero": np.array(0.0),
            "six": np.array(6.0),
            "w3": weight(random, 8, 8, 1, 1),
            "d4": kernel,
            "w6": weight(random, 4, 16),
        },
        image=(3, 16, 16),
    )


def test_what_stays_float32_and_weights_that_are_shared(random: np.random.Generator) -> None:
    """The two that share `w3` get weights of their own, and a bias each."""
    model = imported(mobile(random, weight(random, 8, 1, 3, 3)))
    assert [convolution.name for convolution in quantizable(model.graph)] == ["c3", "c4", "c5"]
    images = smooth(random)
    expected = run(model.clone(), images)
    result = quantize(model, images)
    assert (result.convolutions, result.left_out) == (3, ("c1", "c2"))
    ops = {entry.name: entry.op_type for entry in ir.to_proto(result.model).graph.node}
    assert ops["node_y"] == "Gemm"
    found = run(result.model, images)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(found, run(result.model, images, optimize=False), atol=0.02 * np.abs(expected).max())


def test_filters_that_take_differences_keep_their_sum(random: np.random.Generator) -> None:
    """Rounded each by itself, the weights of such a filter let the mean of its input through."""
    laplacian = np.array([[-0.1337, -0.1213, -0.1299], [-0.1181, 1.0, -0.1267], [-0.1243, -0.1193, -0.1267]])
    kernel = np.tile(laplacian - laplacian.mean(), (8, 1, 1, 1))
    kernel *= random.uniform(0.9, 1.1, (8, 1, 1, 1))
    model = imported(mobile(random, kernel))
    images = smooth(random) + 3.0
    result = quantize(model, images)
    constants = constants_of(ir.to_proto(result.model))
    name = next(entry for entry in constants if entry.startswith("c4/weight") and constants[entry].ndim == 4)
    steps = np.abs(kernel).max(axis=(1, 2, 3)) / 127
    rounded = constants[name][:, 0] * steps[:, None, None]
    nearest = np.rint(kernel[:, 0] / steps[:, None, None]) * steps[:, None, None]
    assert np.abs(nearest.sum(axis=(1, 2))).mean() > 0.4 * steps.mean()
    assert np.abs(rounded.sum(axis=(1, 2))).mean() < 0.2 * np.abs(nearest.sum(axis=(1, 2))).mean()


def test_the_bias_makes_up_for_what_rounding_adds_to_the_mean(random: np.random.Generator) -> None:
    """In float64, at every place of every image; the means that the bias rests on are those of some places."""
    model, images = plain(random), smooth(random) + 3.0
    proto = ir.to_proto(quantize(imported(model), images).model)
    (conv,) = (entry for entry in proto.graph.node if entry.op_type == "Conv" and entry.output[0] != "c1")
    constants = constants_of(model)
    first = torch.relu(
        torch.nn.functional.conv2d(torch.tensor(images).double(), torch.tensor(constants["w1"]), padding=1)
    )

    def mean(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        made = torch.nn.functional.conv2d(first, torch.tensor(weights), torch.tensor(bias), stride=2, padding=1)
        return made.mean(dim=(0, 2, 3)).numpy()

    expected = mean(constants["w2"], constants["b2"])
    rounded, bias = dequantized(proto, conv.input[1]), dequantized(proto, conv.input[2])
    added = np.abs(mean(rounded, constants["b2"]) - expected)
    left = np.abs(mean(rounded, bias) - expected)
    assert left.mean() < 0.1 * added.mean()


def test_image_channels_that_change_places_stay_float32(random: np.random.Generator) -> None:
    """Blue, green, red: what moves the channels of the image lies before every convolution."""
    model = plain(random)
    model.graph.node[0].input[0] = "bgr"
    model.graph.node.insert(0, node("Split", "x", "red green blue", axis=1, num_outputs=3))
    model.graph.node.insert(1, node("Concat", "blue green red", "bgr", axis=1))
    images = smooth(random)
    expected = run(imported(model), images)
    result = quantize(imported(model), images)
    quantized = {entry.input[0] for entry in ir.to_proto(result.model).graph.node if entry.op_type == "QuantizeLinear"}
    assert quantized == {"r1", "r2"}
    assert np.abs(run(result.model, images) - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize(
    "ending",
    [
        [node("Gemm", "f w3", "one", transB=1), node("Gemm", "f w3", "two", transB=1), node("Add", "one two", "y")],
        [node("Gemm", "f w3", "one", transB=1), node("Neg", "one", "two"), node("Concat", "two one", "y", axis=1)],
        [node("Add", "c2 r2", "y")],
    ],
)
def test_what_makes_the_logits_stays_float32(random: np.random.Generator, ending: list[onnx.NodeProto]) -> None:
    model = plain(random)
    del model.graph.node[-1]
    model.graph.node.extend(ending)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    images = smooth(random)
    expected = run(imported(model), images)
    result = quantize(imported(model), images)
    (last,) = (entry for entry in ir.to_proto(result.model).graph.node if "y" in entry.output)
    assert last.op_type == ending[-1].op_type
    assert np.abs(run(result.model, images) - expected).mean() < 0.03 * np.abs(expected).mean()


def test_a_clip_that_zero_does_not_pass_stays_float32(random: np.random.Generator) -> None:
    model = mobile(random, weight(random, 8, 1, 3, 3))
    tail = [node("Clip", "c3 one two", "t3"), node("Conv", "t3 w3", "u3")]
    changed = network(
        [*list(model.graph.node)[:4], *tail, *(_renamed(entry) for entry in list(model.graph.node)[4:])],
        {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        | {"one": np.array(1.0), "two": np.array(2.0)},
        image=(3, 16, 16),
    )
    images = smooth(random)
    expected = run(imported(changed), images)
    found = run(quantize(imported(changed), images).model, images)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def _renamed(entry: onnx.NodeProto) -> onnx.NodeProto:
    for position, name in enumerate(entry.input):
        entry.input[position] = "u3" if name == "c3" else name
    return entry


def test_a_tiny_weight_beside_a_large_bias(random: np.random.Generator) -> None:
    """A bias counts in steps of weights times inputs: more than an int32 holds, were the step not raised."""
    model = plain(random)
    constants = {entry.name: numpy_helper.to_array(entry).copy() for entry in model.graph.initializer}
    constants["w2"][0], constants["b2"][0] = 1e-12, 3.0
    constants["w2"][1], constants["b2"][1] = 0.0, 0.0
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    images = smooth(random)
    expected = run(imported(model), images)
    found = run(quantize(imported(model), images).model, images)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_nothing_to_quantize(random: np.random.Generator) -> None:
    model = imported(network([node("Conv", "x w", "y")], {"w": weight(random, 4, 3, 3, 3)}))
    text = (
        "no convolution of the model can be quantized: the first stays float32, and so does one whose weights are no "
        "constants; expected a deeper network, or an export without int8"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(text)}$"):
        quantize(model, np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [("r dynamic", {}), ("r w dynamic_bias", {}), ("r w", {"pads": [-1, 0, 0, 0]})],
)
def test_convolutions_of_other_forms_stay_float32(
    random: np.random.Generator, inputs: str, attributes: dict[str, object]
) -> None:
    extra = [node("ReduceMean", "x", "m", axes=[0, 1, 2, 3]), node("Flatten", "m", "m2"), node("Flatten", "m", "m3")]
    model = network(
        [
            node("Conv", "x w1", "r"),
            *extra,
            node("Mul", "w m", "dynamic"),
            node("Mul", "b m4", "dynamic_bias"),
            node("Conv", inputs, "y", **attributes),
        ],
        {"w1": weight(random, 3, 3, 1, 1), "w": weight(random, 3, 3, 3, 3), "b": np.ones(3), "m4": np.ones(1)},
        opset=17,
    )
    if "dynamic_bias" in inputs:
        mul = next(entry for entry in model.graph.node if entry.output[0] == "dynamic_bias")
        mul.input[1] = "m5"
        model.graph.node.insert(3, node("ReduceMean", "x", "m5", keepdims=0))
    graph = imported(model).graph
    graph.outputs[0].shape = graph.outputs[0].shape or ir.Shape(["batch", 3, 5, 6])  # onnx infers none for a crop
    assert quantizable(graph) == []


def test_no_traces_of_the_quantizer(random: np.random.Generator) -> None:
    proto = ir.to_proto(quantize(imported(plain(random)), smooth(random)).model)
    assert (proto.producer_name, proto.producer_version, proto.doc_string) == ("", "", "")
    assert not proto.metadata_props
    assert not any(entry.metadata_props or entry.doc_string for entry in proto.graph.node)
    onnx.checker.check_model(proto, full_check=True)
