"""Gradient rules of reductions."""

import math
from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    constant_array,
    describe,
    input_at,
    int_attribute,
    ints_attribute,
    static_shape,
)


def reduce_mean(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy/n over the n elements that were averaged."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its axes are computed from the image; expected constant axes")
    sizes = [1, *static_shape(input_at(node, 0))]
    axes = reduced_axes(node, len(sizes))
    if not axes:
        return dys[0]
    kept = [1 if axis in axes else size for axis, size in enumerate(sizes)]
    share = g.op("Mul", dys[0], g.floats(1.0 / math.prod(sizes[axis] for axis in axes), dys[0]))
    if int_attribute(node, "keepdims", 1) == 0:
        share = g.op("Reshape", share, g.ints([-1, *kept[1:]]))
    return g.op("Expand", share, g.ints(sizes))


def reduced_axes(node: ir.Node, rank: int) -> list[int]:
    """Return the axes that a reduction sums over, ascending; an attribute before opset 18, an input since.

    Raises:
        UnsupportedOpError: The batch is among them.
    """
    array = constant_array(node, 1)
    axes = ints_attribute(node, "axes", ()) if array is None else tuple(int(axis) for axis in array.reshape(-1))
    if not axes and int_attribute(node, "noop_with_empty_axes", 0) == 0:
        axes = tuple(range(rank))
    positive = sorted({axis % rank for axis in axes})
    if 0 in positive:
        raise UnsupportedOpError(f"{describe(node)}: reduces over axis 0, the batch; expected other axes")
    return positive
