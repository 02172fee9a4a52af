"""Gradient rules of element-wise arithmetic with broadcasting."""

from collections.abc import Sequence

import onnx_ir as ir

from engine.export.graph import GraphBuilder, input_at, static_shape


def add(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy, summed over the axes along which x was broadcast."""
    return unbroadcast(g, dys[0], node, index)


def unbroadcast(g: GraphBuilder, gradient: ir.Value, node: ir.Node, index: int) -> ir.Value:
    """Sum a gradient of the output's shape over the axes along which input `index` was broadcast.

    The batch axis is never summed: every activation has it.
    """
    sizes, wide = static_shape(input_at(node, index)), static_shape(node.outputs[0])
    axes = [axis for axis, (n, w) in enumerate(zip(sizes, wide, strict=True), start=1) if n == 1 and w != 1]
    return g.op("ReduceSum", gradient, g.ints(axes), keepdims=1) if axes else gradient
