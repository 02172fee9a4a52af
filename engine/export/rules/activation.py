"""Gradient rules of activation functions.

Kinks: Relu at 0 has gradient 0; Clip at either bound has gradient 0.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, constant_array, describe


def relu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·[y ≠ 0].

    The mask comes from the output, so that ONNX Runtime may still fuse the Relu into the node before it.
    """
    y = node.outputs[0]
    return g.op("Mul", dys[0], g.cast(g.cast(y, ir.DataType.BOOL), y.dtype))


def clip(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·[min < y < max]."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: a bound is computed from the image; expected constant bounds")
    y = node.outputs[0]
    inside = []
    for position, comparison in ((1, "Greater"), (2, "Less")):
        bound = constant_array(node, position)
        if bound is not None:
            inside.append(g.op(comparison, y, g.floats(bound.reshape(()), y)))
    if not inside:
        return dys[0]
    active = inside[0] if len(inside) == 1 else g.op("And", *inside)
    return g.op("Mul", dys[0], g.cast(active, y.dtype))
