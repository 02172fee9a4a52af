"""Widening float16 networks to float32."""

import numpy as np
import onnx_ir as ir

_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def widen(graph: ir.Graph) -> bool:
    """Make every float16 tensor of a graph float32; return whether there was one.

    Casts between the two vanish, so that nothing is rounded to float16 on the way.
    """
    widened = False
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == _HALF:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(_SINGLE)
            widened = True
    for node in graph:
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _HALF:
                array = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(array))
                widened = True
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _HALF:
            node.attributes["to"] = ir.AttrInt64("to", int(_SINGLE))
            widened = True
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.dtype == _HALF:
            value.type = ir.TensorType(_SINGLE)
            widened = True
    return widened
