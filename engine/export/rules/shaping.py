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
    ints_attribute,
    static_shape,
    string_attribute,
)


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


def split(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = the gradients at all outputs, joined."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its sizes are computed from the image; expected constant sizes")
    axis = int_attribute(node, "axis", 0) % (1 + len(static_shape(input_at(node, 0))))
    if axis == 0:
        raise UnsupportedOpError(f"{describe(node)}: splits axis 0, the batch; expected another axis")
    return dys[0] if len(dys) == 1 else g.op("Concat", *dys, axis=axis)


def transpose(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy with its axes put back."""
    rank = 1 + len(static_shape(input_at(node, index)))
    perm = ints_attribute(node, "perm", range(rank)[::-1])
    if perm[0] != 0:
        raise UnsupportedOpError(
            f"{describe(node)}: moves axis 0, the batch, by perm {perm}; expected it to stay first"
        )
    return g.op("Transpose", dys[0], perm=[perm.index(axis) for axis in range(rank)])


def squeeze(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy in the shape of x; for Squeeze and Unsqueeze."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its axes are computed from the image; expected constant axes")
    axes = constant_array(node, 1)
    if axes is None:
        raise UnsupportedOpError(
            f"{describe(node)}: names no axes, so that it drops the batch of a single image; expected axes"
        )
    sizes = static_shape(input_at(node, 0))
    rank = 1 + len(sizes) + (axes.size if node.op_type == "Unsqueeze" else 0)
    if any(axis % rank == 0 for axis in axes.reshape(-1).tolist()):
        raise UnsupportedOpError(f"{describe(node)}: adds or drops axis 0, before the batch; expected other axes")
    return g.op("Reshape", dys[0], g.ints([-1, *sizes]))


def depth_to_space(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = SpaceToDepth(dy), in the node's order of channels."""
    block = int_attribute(node, "blocksize", 1)
    if string_attribute(node, "mode", "DCR") == "DCR":
        return g.op("SpaceToDepth", dys[0], blocksize=block)
    channels, height, width = static_shape(input_at(node, index))
    rows = g.op("Reshape", dys[0], g.ints([-1, channels // block**2, height, block, width, block]))
    blocks = g.op("Transpose", rows, perm=[0, 1, 3, 5, 2, 4])
    return g.op("Reshape", blocks, g.ints([-1, channels, height, width]))


def space_to_depth(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = DepthToSpace(dy), in the node's order of channels: DCR before opset 28."""
    mode = string_attribute(node, "mode", "DCR")
    return g.op("DepthToSpace", dys[0], blocksize=int_attribute(node, "blocksize", 1), mode=mode)
