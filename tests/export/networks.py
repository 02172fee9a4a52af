"""Tiny ONNX models for the exporter's tests: one-node graphs, and a CNN with a residual and two poolings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common as passes

from engine.export.evaluate import in_float64
from engine.export.split import Block

Size = int | str | None
BATCH = "batch"
IR_VERSION = 10


def node(op_type: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """Make a node named after its first output; names are separated by spaces, `-` is an absent optional input."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=f"node_{outputs.split()[0]}", **attributes)


def image_input(shape: Sequence[Size] | None, name: str = "x", dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def network(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, ArrayLike] | None = None,
    *,
    image: tuple[int, int, int] = (3, 8, 8),
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: str = "y",
    opset: int = 18,
) -> onnx.ModelProto:
    """Make a model with the input `x` [batch, *image]; only inputs and outputs say their shapes.

    Constants that are float64 become float32.
    """
    arrays = {name: np.asarray(array) for name, array in (constants or {}).items()}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [image_input([BATCH, *image])] if inputs is None else inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()],
        [
            numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, name)
            for name, array in arrays.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    model = onnx.shape_inference.infer_shapes(model)
    del model.graph.value_info[:]
    return model


def imported(model: onnx.ModelProto) -> ir.Model:
    """Return the model with the shapes and types of all its tensors."""
    converted = ir.from_proto(model)
    passes.ShapeInferencePass()(converted)
    return converted


def block_of(model: onnx.ModelProto, *, float64: bool = False, name: str = "block2") -> Block:
    """Return the whole model as one block."""
    converted = imported(model)
    return Block(name, in_float64(converted) if float64 else converted)


def written(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write the model and return its path."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def weight(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Draw a weight whose outputs have about the size of its inputs."""
    return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def statistics(random: np.random.Generator, prefix: str, channels: int) -> dict[str, NDArray[np.float32]]:
    """Draw the four parameters of a BatchNormalization: `PREFIX_scale`, `_bias`, `_mean`, `_var`."""
    drawn = {
        "scale": 1 + 0.3 * random.standard_normal(channels),
        "bias": 0.2 * random.standard_normal(channels),
        "mean": 0.2 * random.standard_normal(channels),
        "var": random.uniform(0.5, 2.0, channels),
    }
    return {f"{prefix}_{name}": values.astype(np.float32) for name, values in drawn.items()}


CNN_LAYERS = (("relu1", 6, 16, 12), ("relu3", 8, 8, 6), ("clip4", 10, 4, 3))
CNN_CLASSES = 5


def small_cnn(
    random: np.random.Generator, *, ending: str | None = None, opset: int = 18, channels: int = 3
) -> onnx.ModelProto:
    """Make a CNN with the feature layers `CNN_LAYERS` of 16×12 images, whose logits are `logits` [batch, 5].

    Conv, BatchNormalization, Relu | MaxPool, Conv, Relu, Conv, Add of a branch, Relu | AveragePool, Conv, Clip |
    GlobalAveragePool, Flatten, Gemm, and the op `ending` after it when one is given.
    """
    nodes = [
        node("Conv", "x w1 b1", "conv1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "conv1 bn_scale bn_bias bn_mean bn_var", "bn1"),
        node("Relu", "bn1", "relu1"),
        node("MaxPool", "relu1", "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "pool1 w2", "conv2", pads=[1, 1, 1, 1]),
        node("Relu", "conv2", "relu2"),
        node("Conv", "relu2 w3 b3", "conv3", pads=[1, 1, 1, 1], group=2),
        node("Add", "conv3 conv2", "add3"),
        node("Relu", "add3", "relu3"),
        node("AveragePool", "relu3", "pool3", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "pool3 w4", "conv4"),
        node("Clip", "conv4 zero six", "clip4"),
        node("GlobalAveragePool", "clip4", "mean"),
        node("Flatten", "mean", "features"),
        node("Gemm", "features head head_bias", "logits", transB=1),
    ]
    if ending is not None:
        nodes.append(node(ending, "logits", "scores"))
    constants = {
        "w1": weight(random, 6, channels, 3, 3),
        "b1": weight(random, 6),
        **statistics(random, "bn", 6),
        "w2": weight(random, 8, 6, 3, 3),
        "w3": weight(random, 8, 4, 3, 3),
        "b3": weight(random, 8),
        "w4": weight(random, 10, 8, 1, 1),
        "zero": np.float32(0),
        "six": np.float32(6),
        "head": 2 * weight(random, CNN_CLASSES, 10),
        "head_bias": weight(random, CNN_CLASSES),
    }
    name = "logits" if ending is None else "scores"
    return network(nodes, constants, image=(channels, 16, 12), outputs=name, opset=opset)


BIASED_OPS = ("Sub", "Conv", "BatchNormalization", "Conv", "ConvTranspose", "Sum", "Conv", "Add", "Gemm", "Add")


def biased_cnn(random: np.random.Generator) -> onnx.ModelProto:
    """Make a network of 12×10 images that is linear piece by piece, with a bias of every kind: `BIASED_OPS`.

    The image taken from a constant, a strided Conv, LeakyRelu, an unfolded BatchNormalization, MaxPool, a grouped
    Conv, Relu, ConvTranspose, a Sum with two constants, a residual of Conv and Add, Relu, an Add of a constant map,
    AveragePool, Gemm with beta, Relu, MatMul, and Add.
    """
    nodes = [
        node("Sub", "white x", "dark"),
        node("Conv", "dark w1 b1", "conv1", strides=[1, 2], pads=[1, 1, 1, 0]),
        node("LeakyRelu", "conv1", "leaky", alpha=0.1),
        node("BatchNormalization", "leaky bn_scale bn_bias bn_mean bn_var", "bn", epsilon=0.01),
        node("MaxPool", "bn", "pool1", kernel_shape=[2, 2], strides=[2, 1]),
        node("Conv", "pool1 w2 b2", "conv2", pads=[1, 1, 1, 1], group=2),
        node("Relu", "conv2", "relu2"),
        node("ConvTranspose", "relu2 w3 b3", "up", strides=[2, 1]),
        node("Sum", "c1 up c2", "sum"),
        node("Conv", "sum w4 b4", "conv4", pads=[1, 1, 1, 1]),
        node("Add", "conv4 sum", "residual"),
        node("Relu", "residual", "relu4"),
        node("Add", "relu4 map", "mapped"),
        node("AveragePool", "mapped", "pool4", kernel_shape=[4, 2], strides=[4, 2]),
        node("Flatten", "pool4", "features"),
        node("Gemm", "features head head_bias", "hidden", beta=0.5),
        node("Relu", "hidden", "relu5"),
        node("MatMul", "relu5 last", "product"),
        node("Add", "product last_bias", "logits"),
    ]
    constants = {
        "white": np.float32(1),
        "w1": weight(random, 6, 3, 3, 3),
        "b1": weight(random, 6),
        **statistics(random, "bn", 6),
        "w2": weight(random, 8, 3, 3, 3),
        "b2": weight(random, 8),
        "w3": weight(random, 8, 6, 2, 2),
        "b3": weight(random, 6),
        "c1": weight(random, 6, 1, 1),
        "c2": 0.3 * random.standard_normal((1, 1, 12, 5)),
        "w4": weight(random, 6, 6, 3, 3),
        "b4": weight(random, 6),
        "map": 0.3 * random.standard_normal((6, 12, 5)),
        "head": weight(random, 36, 7),
        "head_bias": weight(random, 7),
        "last": weight(random, 7, CNN_CLASSES),
        "last_bias": weight(random, CNN_CLASSES),
    }
    return network(nodes, constants, image=(3, 12, 10), outputs="logits")
