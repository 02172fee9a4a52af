"""Gradient rules of nodes that move elements and do not change them."""

from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    constant_array,
    describe,
    input_at,
    int_attribute,
    static_shape,
    string_attribute,
)
from engine.export.windows import pad_or_crop


def concat(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx_i = the part of dy that x_i filled."""
    rank = 1 + len(static_shape(node.outputs[0]))
    axis = int_attribute(node, "axis", 0) % rank
    if axis == 0:
        raise UnsupportedOpError(f"{describe(node)}: joins along axis 0, the batch; expected another axis")
    sizes = [static_shape(value)[axis - 1] for value in node.inputs if value is not None]
    start = sum(sizes[:index])
    return g.op("Slice", dys[0], g.ints([start]), g.ints([start + sizes[index]]), g.ints([axis]))


def reshape(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy in the shape of x; for Reshape and Flatten."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its shape is computed from the image; expected a constant shape")
    return g.op("Reshape", dys[0], g.ints([-1, *static_shape(input_at(node, 0))]))


def pad(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy without the padding; where Pad cropped (negative amounts), zeros."""
    if index == 2:
        raise UnsupportedOpError(
            f"{describe(node)}: the value it pads with is computed from the image; expected a constant"
        )
    amounts = constant_array(node, 1)
    if amounts is None:
        raise UnsupportedOpError(f"{describe(node)}: has no amounts to pad by; expected constants as input 1")
    mode = string_attribute(node, "mode", "constant")
    if mode != "constant":
        raise UnsupportedOpError(f"{describe(node)}: has mode {mode!r}; expected 'constant'")
    rank = 1 + len(static_shape(input_at(node, 0)))
    chosen = constant_array(node, 3)
    axes = range(rank) if chosen is None else [int(axis) % rank for axis in chosen]
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis] = -int(amounts[position])
        end[axis] = -int(amounts[len(axes) + position])
    if begin[0] or end[0]:
        raise UnsupportedOpError(f"{describe(node)}: pads axis 0, the batch; expected other axes")
    return pad_or_crop(g, dys[0], begin, end)
