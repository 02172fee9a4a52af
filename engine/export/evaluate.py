"""Evaluating graphs in float64, with onnx's own reference implementation of the operators."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from engine.errors import EngineError, VerificationError
from engine.export.graph import constant_array, int_attribute
from engine.export.operators import OPERATORS

Array64 = NDArray[np.float64]
_NARROW = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def in_float64(model: ir.Model, arrays: dict[int, Array64] | None = None) -> ir.Model:
    """Return a copy of a float32 model whose constants, activations and casts are float64.

    What the model computes in float16 or bfloat16 becomes float64 too: its rounding would hide the derivatives.
    Nodes that quantize activations become Identity, since central differences would see their steps and not the
    straight-through gradient; quantized constants become the numbers that they stand for.

    Args:
        model: The model.
        arrays: Float64 constants that were made before, by the identity of the float32 tensor; new ones are added.
            With it models that share tensors share their float64 numbers too.
    """
    arrays = {} if arrays is None else arrays
    copy = model.clone()
    graph = copy.graph
    _dequantize(graph)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _NARROW:
            if id(tensor) not in arrays:
                arrays[id(tensor)] = tensor.numpy().astype(np.float64)
            value.const_value = ir.tensor(arrays[id(tensor)], name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.dtype in _NARROW:
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    return copy


def _dequantize(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") or node.inputs[0] is None:
            continue
        output = node.outputs[0]
        if all(value is None or value.const_value is not None for value in node.inputs):
            tensor = ir.tensor(_stands_for(node), name=output.name)
            value = ir.Value(name=output.name, shape=output.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            output.replace_all_uses_with(value, replace_graph_outputs=True)
            output.name = f"{output.name}/quantized"
            graph.register_initializer(value)
            graph.remove(node, safe=True)
        else:
            plain = ir.Node("", "Identity", [node.inputs[0]], name=node.name)
            plain.outputs[0].name, plain.outputs[0].shape = output.name, output.shape
            plain.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            ir.convenience.replace_nodes_and_values(graph, node, [node], [plain], [output], [plain.outputs[0]])


def _stands_for(node: ir.Node) -> Array64:
    """Return the numbers that the constants of a DequantizeLinear node stand for: (x − zero point)·scale."""
    x, scale, zero = (constant_array(node, index) for index in range(3))
    assert x is not None
    assert scale is not None
    axis, block = int_attribute(node, "axis", 1), int_attribute(node, "block_size", 0)

    def along(parameter: NDArray[np.generic]) -> Array64:
        wide = parameter.astype(np.float64)
        if block:
            return np.repeat(wide, block, axis=axis)[tuple(map(slice, x.shape))]
        return wide.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim)) if wide.size > 1 else wide.reshape(())

    shifted = x.astype(np.float64) - (0.0 if zero is None else along(zero))
    return shifted * along(scale)


def function(model: ir.Model) -> Callable[..., list[Array64]]:
    """Return the model as a function of its inputs, in order, that returns its outputs, in order.

    Constants are fed as inputs are, so that no copy of them is made.
    """
    names = [str(value.name) for value in model.graph.inputs]
    constants = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    light = model.clone()
    light.graph.inputs.extend(light.graph.initializers.values())
    light.graph.initializers.clear()
    evaluator = ReferenceEvaluator(ir.to_proto(light), new_ops=list(OPERATORS))

    def call(*inputs: Array64) -> list[Array64]:
        feeds = constants | dict(zip(names, inputs, strict=True))
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # in branches that np.where then leaves out
                outputs = evaluator.run(None, feeds)
        except EngineError:
            raise
        except Exception as err:  # the evaluator raises whatever it runs into
            raise VerificationError(
                f"{model.graph.name}: onnx's reference implementation cannot run it in float64 ({err}), so its "
                "gradients cannot be verified; nothing was written"
            ) from err
        return [np.asarray(output) for output in outputs]

    return call
