"""Gradient rules of Softmax and LogSoftmax, from their outputs."""

from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, describe, int_attribute, static_shape


def softmax(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = y·(dy − Σ y·dy), summed over the axis."""
    y, axis = node.outputs[0], _softmax_axis(node)
    total = g.op("ReduceSum", g.op("Mul", dys[0], y), g.ints([axis]), keepdims=1)
    return g.op("Mul", g.op("Sub", dys[0], total), y)


def log_softmax(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy − exp(y)·Σ dy, summed over the axis."""
    total = g.op("ReduceSum", dys[0], g.ints([_softmax_axis(node)]), keepdims=1)
    return g.op("Sub", dys[0], g.op("Mul", total, g.op("Exp", node.outputs[0])))


def _softmax_axis(node: ir.Node) -> int:
    rank = 1 + len(static_shape(node.outputs[0]))
    axis = int_attribute(node, "axis", -1) % rank
    if axis == 0:
        raise UnsupportedOpError(f"{describe(node)}: normalises along axis 0, the batch; expected another axis")
    return axis
