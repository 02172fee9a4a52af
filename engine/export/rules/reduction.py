"""Gradient rules of reductions.

Ties: ReduceMax and ReduceMin send the whole gradient to the first extremum, in row-major order over the reduced axes.
Kinks: ReduceL1 at 0 has gradient 0; so has ReduceL2 at the zero vector.
"""

import math
from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.extrema import Search, at_first_extremum
from engine.export.graph import (
    GraphBuilder,
    constant_array,
    describe,
    input_at,
    int_attribute,
    ints_attribute,
    static_shape,
)


def reduce_sum(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy at each of the elements that were summed."""
    sizes, axes = _reduction(node, index)
    dy = _with_all_axes(g, node, dys[0], sizes, axes)
    return g.op("Expand", dy, g.ints(sizes)) if axes else dy


def reduce_mean(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy/n over the n elements that were averaged."""
    sizes, axes = _reduction(node, index)
    if not axes:
        return dys[0]
    share = g.op("Mul", dys[0], g.floats(1.0 / math.prod(sizes[axis] for axis in axes), dys[0]))
    return g.op("Expand", _with_all_axes(g, node, share, sizes, axes), g.ints(sizes))


def reduce_l1(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·sign(x) for y = Σ|x|."""
    sizes, axes = _reduction(node, index)
    dy = _with_all_axes(g, node, dys[0], sizes, axes)
    return g.op("Mul", dy, g.op("Sign", input_at(node, 0)))


def reduce_l2(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy/(y + [y = 0])·x for y = √Σx²."""
    sizes, axes = _reduction(node, index)
    y = node.outputs[0]
    length = g.op("Add", y, g.cast(g.op("Not", g.cast(y, ir.DataType.BOOL)), y.dtype))
    ratio = _with_all_axes(g, node, g.op("Div", dys[0], length), sizes, axes)
    return g.op("Mul", ratio, input_at(node, 0))


def reduce_sum_square(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = 2·dy·x for y = Σx²."""
    sizes, axes = _reduction(node, index)
    twice = g.op("Mul", dys[0], g.floats(2.0, dys[0]))
    return g.op("Mul", _with_all_axes(g, node, twice, sizes, axes), input_at(node, 0))


def reduce_log_sum_exp(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·s/Σs with s = exp(x − y), for y = ln Σexp(x).

    Σs is 1 but for the rounding of y, which is 6e-5 of each share where x is about 1000 in float32.
    """
    sizes, axes = _reduction(node, index)
    if not axes:
        return dys[0]
    y = _with_all_axes(g, node, node.outputs[0], sizes, axes)
    share = g.op("Exp", g.op("Sub", input_at(node, 0), y))
    total = g.op("ReduceSum", share, g.ints(axes), keepdims=1)
    return g.op("Mul", share, g.op("Div", _with_all_axes(g, node, dys[0], sizes, axes), total))


def reduce_max(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy at the first maximum."""
    return _reduce_extremum(g, node, dys, index, "ArgMax")


def reduce_min(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy at the first minimum."""
    return _reduce_extremum(g, node, dys, index, "ArgMin")


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


def _reduce_extremum(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int, search: Search) -> ir.Value:
    sizes, axes = _reduction(node, index)
    dy = _with_all_axes(g, node, dys[0], sizes, axes)
    return at_first_extremum(g, dy, input_at(node, 0), axes, search)


def _reduction(node: ir.Node, index: int) -> tuple[list[int], list[int]]:
    """Return the sizes of the input's axes, 1 for the batch, and the axes that are reduced."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its axes are computed from the image; expected constant axes")
    sizes = [1, *static_shape(input_at(node, 0))]
    return sizes, reduced_axes(node, len(sizes))


def _with_all_axes(
    g: GraphBuilder, node: ir.Node, value: ir.Value, sizes: Sequence[int], axes: Sequence[int]
) -> ir.Value:
    """Bring a tensor of the output's shape to the input's rank, with size 1 on the reduced axes."""
    if not axes or int_attribute(node, "keepdims", 1) == 1:
        return value
    kept = [1 if axis in axes else size for axis, size in enumerate(sizes)]
    return g.op("Reshape", value, g.ints([-1, *kept[1:]]))
