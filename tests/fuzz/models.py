"""Small classifiers of every form that the exporter knows: what the mutations start from."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.export.networks import network, node, small_cnn, statistics, weight

EXTERNAL = "weights.data"


def plain(random: np.random.Generator) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, Conv, Relu, GlobalAveragePool, Flatten, Gemm: two feature layers of 8×8 images."""
    return network(_nodes(), _weights(random), outputs="logits")


def batch_normalization(random: np.random.Generator) -> onnx.ModelProto:
    """A residual network with BatchNormalization, groups, Clip and AveragePool."""
    return small_cnn(random, ending="Softmax")


def shaping(random: np.random.Generator) -> onnx.ModelProto:
    """Pad, Slice, Split, Concat, Transpose, Resize, Reshape to a computed shape, Unsqueeze and Squeeze, MatMul."""
    nodes = [
        node("Pad", "x pads zero", "padded"),
        node("Conv", "padded w1", "conv1"),
        node("LeakyRelu", "conv1", "relu1"),
        node("Split", "relu1 sizes", "left right", axis=1),
        node("Slice", "left starts ends axes steps", "sliced"),
        node("Resize", "sliced - scales", "resized", mode="linear"),
        node("Concat", "resized right", "joined", axis=1),
        node("MaxPool", "joined", "pool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Transpose", "pool", "last", perm=[0, 2, 3, 1]),
        node("Transpose", "last", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first w2", "conv2", pads=[1, 1, 1, 1]),
        node("Sigmoid", "conv2", "gate"),
        node("Mul", "conv2 gate", "silu"),
        node("ReduceMean", "silu", "mean", axes=[2, 3], keepdims=1),
        node("Shape", "mean", "sizes_of_mean"),
        node("Gather", "sizes_of_mean zero_index", "batch_size"),
        node("Unsqueeze", "batch_size zero_axis", "batch_list"),
        node("Concat", "batch_list minus_one", "target_shape", axis=0),
        node("Reshape", "mean target_shape", "features"),
        node("MatMul", "features head", "product"),
        node("Add", "product head_bias", "logits"),
    ]
    constants = {
        **{"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "zero": np.float32(0), "sizes": np.array([2, 4])},
        **{"starts": np.array([0]), "ends": np.array([8]), "axes": np.array([2]), "steps": np.array([2])},
        **{"scales": np.array([1, 1, 2, 1], np.float32), "zero_index": np.array(0), "zero_axis": np.array([0])},
        **{"minus_one": np.array([-1]), "w1": weight(random, 6, 3, 3, 3), "w2": weight(random, 5, 6, 3, 3)},
        **{"head": 2 * weight(random, 5, 3), "head_bias": weight(random, 3)},
    }
    return network(nodes, constants, outputs="logits", opset=17)


def control_flow(random: np.random.Generator) -> onnx.ModelProto:
    """An If whose condition the weights decide, Constant nodes, Dropout, Identity and a local function."""
    branches = {
        name: helper.make_graph([node(op, "relu1", f"{name}_out")], name, [], [_open(f"{name}_out")])
        for name, op in (("then_branch", "Tanh"), ("else_branch", "Neg"))
    }
    nodes = [
        node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True))),
        node("Constant", "", "two", value_float=2.0),
        node("Conv", "x w1", "conv1", pads=[1, 1, 1, 1]),
        node("Relu", "conv1", "relu1"),
        node("If", "yes", "taken", **branches),
        node("Mul", "taken two", "doubled"),
        node("Dropout", "doubled", "kept"),
        node("Identity", "kept", "same"),
        helper.make_node("Twice", ["same"], ["twice"], name="twice", domain="local"),
        node("MaxPool", "twice", "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        *_nodes()[3:],
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
            [_open("logits")],
            [numpy_helper.from_array(array, name) for name, array in _weights(random).items()],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
        functions=[
            helper.make_function(
                "local", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 18)]
            )
        ],
        ir_version=9,
    )
    return onnx.shape_inference.infer_shapes(model)


def quantized(random: np.random.Generator) -> onnx.ModelProto:
    """int8 weights and activations, in the QDQ form."""
    weights = _weights(random)
    kernel = weights.pop("w2")
    steps = (np.abs(kernel).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    nodes = _nodes()
    nodes[3:4] = [
        node("QuantizeLinear", "pool1 step zero", "pool1_q"),
        node("DequantizeLinear", "pool1_q step zero", "pool1_dq"),
        node("DequantizeLinear", "w2_q w2_steps w2_zero", "w2", axis=0),
        node("Conv", "pool1_dq w2", "conv2", pads=[1, 1, 1, 1]),
    ]
    return network(
        nodes,
        weights
        | {"step": np.float32(0.05), "zero": np.int8(0), "w2_steps": steps, "w2_zero": np.zeros(6, np.int8)}
        | {"w2_q": np.rint(kernel / steps[:, None, None, None]).astype(np.int8)},
        outputs="logits",
    )


def normalizations(random: np.random.Generator) -> onnx.ModelProto:
    """InstanceNormalization, LRN, LayerNormalization, Softplus, Where, Pow, ConvTranspose and DepthToSpace."""
    nodes = [
        node("Conv", "x w1", "conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("InstanceNormalization", "conv1 scale bias", "norm1"),
        node("LRN", "norm1", "lrn1", size=3),
        node("Softplus", "lrn1", "soft1"),
        node("ConvTranspose", "soft1 w2", "up", strides=[2, 2], output_padding=[1, 1], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "up bn_scale bn_bias bn_mean bn_var", "norm2"),
        node("Greater", "norm2 zero", "positive"),
        node("Pow", "norm2 two", "square"),
        node("Where", "positive square norm2", "chosen"),
        node("SpaceToDepth", "chosen", "deep", blocksize=2),
        node("Conv", "deep w3", "conv3"),
        node("GlobalMaxPool", "conv3", "max"),
        node("Squeeze", "max space", "features"),
        node("LayerNormalization", "features ln_scale ln_bias", "norm3"),
        node("Gemm", "norm3 head", "logits", transB=1),
    ]
    constants = {
        **statistics(random, "bn", 4),
        **{"w1": weight(random, 6, 3, 3, 3), "scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)},
        **{"w2": weight(random, 6, 4, 3, 3), "zero": np.float32(0), "two": np.float32(2)},
        **{"w3": weight(random, 5, 16, 1, 1), "space": np.array([2, 3]), "ln_scale": np.ones(5, np.float32)},
        **{"ln_bias": np.zeros(5, np.float32), "head": weight(random, 3, 5)},
    }
    return network(nodes, constants, outputs="logits", opset=17)


def old(random: np.random.Generator) -> onnx.ModelProto:
    """Opset 11, IR version 3, a fixed batch of 2, initializers that are inputs too."""
    model = plain(random)
    model.opset_import[0].version, model.ir_version = 11, 3
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def half(random: np.random.Generator) -> onnx.ModelProto:
    """float16, channels last."""
    model = plain(random)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    model.graph.node[0].input[0] = "first"
    model.graph.node.insert(0, node("Transpose", "x", "first", perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 8, 8, 3]))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def external(random: np.random.Generator) -> onnx.ModelProto:
    """Weights in a file beside the model, `EXTERNAL`; `write` writes it."""
    model = plain(random)
    offset = 0
    for tensor in model.graph.initializer:
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", EXTERNAL), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        offset += length
    return model


def external_bytes(random: np.random.Generator) -> bytes:
    """Return what `EXTERNAL` holds, of the same random state."""
    return b"".join(tensor.raw_data for tensor in plain(random).graph.initializer)


MODELS: dict[str, Callable[[np.random.Generator], onnx.ModelProto]] = {
    "plain": plain,
    "batch_normalization": batch_normalization,
    "shaping": shaping,
    "control_flow": control_flow,
    "quantized": quantized,
    "normalizations": normalizations,
    "old": old,
    "half": half,
    "external": external,
}


def _open(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _nodes() -> list[onnx.NodeProto]:
    return [
        node("Conv", "x w1", "conv1", pads=[1, 1, 1, 1]),
        node("Relu", "conv1", "relu1"),
        node("MaxPool", "relu1", "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "pool1 w2", "conv2", pads=[1, 1, 1, 1]),
        node("Relu", "conv2", "relu2"),
        node("GlobalAveragePool", "relu2", "average"),
        node("Flatten", "average", "features"),
        node("Gemm", "features head", "logits", transB=1),
    ]


def _weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "w1": weight(random, 4, 3, 3, 3),
        "w2": weight(random, 6, 4, 3, 3),
        "head": 3 * weight(random, 3, 6),
    }
