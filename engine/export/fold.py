"""Folding BatchNormalization into the convolution before it."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.export.graph import GraphBuilder, describe, float_attribute, int_attribute


def fold_batch_normalization(graph: ir.Graph) -> None:
    """Replace every Conv → BatchNormalization pair with constant parameters by one Conv.

    W' = W·s and b' = (b − mean)·s + bias, with s = scale/√(var + epsilon) per output channel, computed in float64. A
    BatchNormalization that no such Conv precedes stays; it has a gradient rule of its own.

    Raises:
        ModelError: Its parameters do not fit the channels, or a variance is negative.
    """
    g = GraphBuilder(graph, "folded")
    for node in list(graph):
        if node.op_type != "BatchNormalization" or int_attribute(node, "training_mode", 0) == 1:
            continue
        conv = node.inputs[0].producer() if node.inputs[0] is not None else None
        if (
            conv is None
            or conv.op_type != "Conv"
            or len(conv.outputs[0].uses()) != 1
            or conv.outputs[0].is_graph_output()
        ):
            continue
        parameters = [_float64(value) for value in node.inputs[1:5]]
        weight, bias = _float64(conv.inputs[1]), _float64(conv.inputs[2]) if len(conv.inputs) > 2 else None
        if weight is None or any(parameter is None for parameter in parameters):
            continue
        if len(conv.inputs) > 2 and conv.inputs[2] is not None and bias is None:
            continue
        scale, shift, mean, variance = (parameter for parameter in parameters if parameter is not None)
        if bias is not None:
            _expect_one_each(conv, len(weight), bias)
        _expect_one_each(node, len(weight), scale, shift, mean, variance)
        _expect_positive(node, variance)
        factor = scale / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
        folded_bias = ((0.0 if bias is None else bias) - mean) * factor + shift
        output = node.outputs[0]
        folded = ir.Node(
            "",
            "Conv",
            [
                conv.inputs[0],
                g.floats(weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), like=output),
                g.floats(folded_bias, like=output),
            ],
            conv.attributes.values(),
            name=conv.name,
            num_outputs=1,
        )
        folded.outputs[0].name, folded.outputs[0].type, folded.outputs[0].shape = (
            output.name,
            output.type,
            output.shape,
        )
        ir.convenience.replace_nodes_and_values(graph, conv, [conv, node], [folded], [output], [folded.outputs[0]])


def _expect_one_each(node: ir.Node, channels: int, *parameters: NDArray[np.float64]) -> None:
    sizes = [parameter.size for parameter in parameters]
    if sizes != [channels] * len(sizes):
        raise ModelError(
            f"{describe(node)}: has {', '.join(map(str, sizes))} parameters; expected {channels}, one for each "
            "channel: export the model again"
        )


def _expect_positive(node: ir.Node, variance: NDArray[np.float64]) -> None:
    lowest = float(variance.min()) + float_attribute(node, "epsilon", 1e-5)
    if not lowest > 0:
        raise ModelError(
            f"{describe(node)}: has the variance + epsilon {lowest:.3g} in a channel; expected positive ones: export "
            "the model again, from a checkpoint that is not damaged"
        )


def _float64(value: ir.Value | None) -> NDArray[np.float64] | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy().astype(np.float64)
