"""Gradient rules of nodes that select elements: the gradient is zero at the others."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, constant_array, describe, input_at, int_attribute, static_shape
from engine.export.windows import pad_or_crop

_FAR = 2**31 - 1


def slice_(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy at the elements that were taken, else 0."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its bounds are computed from the image; expected constant bounds")
    sizes = static_shape(input_at(node, 0))
    taken = _taken(node, sizes)
    gradient = dys[0]
    backward = [axis for axis, places in taken.items() if places.step < 0]
    if backward:
        flip = g.ints([-1] * len(backward))
        gradient = g.op("Slice", gradient, flip, g.ints([-_FAR] * len(backward)), g.ints(backward), flip)
    forward = {axis: places[::-1] if places.step < 0 else places for axis, places in taken.items()}
    begin, room = [0] * (1 + len(sizes)), [0] * (1 + len(sizes))
    for axis, places in forward.items():
        begin[axis] = places[0] if places else 0
        room[axis] = sizes[axis - 1] - (places[-1] + 1 if places else 0)
    steps = {axis: places.step for axis, places in sorted(forward.items()) if places.step > 1 and len(places) > 1}
    if steps:
        gradient, room = _spread(g, gradient, static_shape(node.outputs[0]), steps, room)
    return pad_or_crop(g, gradient, begin, room)


def _taken(node: ir.Node, sizes: Sequence[int]) -> dict[int, range]:
    """Return the positions that the node takes of each axis that it names.

    Raises:
        UnsupportedOpError: It takes a part of the batch, or its bounds are computed from the image.
    """
    starts, ends, chosen, strides = (constant_array(node, position) for position in (1, 2, 3, 4))
    if starts is None or ends is None:
        raise UnsupportedOpError(f"{describe(node)}: has no starts or no ends; expected constants as inputs 1 and 2")
    axes = np.arange(starts.size) if chosen is None else chosen
    steps = np.ones_like(starts) if strides is None else strides
    taken = {}
    for number, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = int(number) % (1 + len(sizes))
        if axis > 0:
            taken[axis] = range(*slice(int(start), int(end), int(step)).indices(sizes[axis - 1]))
        elif start != 0 or end < _FAR or step != 1:
            raise UnsupportedOpError(f"{describe(node)}: takes a part of axis 0, the batch; expected other axes")
    return taken


def _spread(
    g: GraphBuilder, value: ir.Value, sizes: Sequence[int], steps: Mapping[int, int], room: Sequence[int]
) -> tuple[ir.Value, list[int]]:
    """Put step − 1 zeros between the elements along axes; after the last, some of the `room`.

    Args:
        g: Builder of the graph that is appended to.
        value: What is spread.
        sizes: Its sizes but for the batch's.
        steps: By axis, ascending.
        room: By axis, how many zeros belong after its last element.

    Returns:
        The spread value, and by axis how many zeros it lacks after its last element; negative where it has too many.
    """
    lacking = list(room)
    if len(sizes) == 3 and set(steps) <= {2, 3}:
        # On ONNX Runtime's CPU provider 3 to 15 times as fast as Pad, which is slow along the last axis.
        strides = [steps.get(axis, 1) for axis in (2, 3)]
        after = [min(stride - 1, room[axis]) for axis, stride in zip((2, 3), strides, strict=True)]
        lacking[2:] = [room[2] - after[0], room[3] - after[1]]
        ones = g.floats(np.ones((sizes[0], 1, 1, 1)), value)
        spread = g.op(
            "ConvTranspose", value, ones, kernel_shape=[1, 1], strides=strides, output_padding=after, group=sizes[0]
        )
        return spread, lacking
    inner = [axis + position for position, axis in enumerate(steps, start=1)]
    end = [0] * (1 + len(sizes) + len(steps))
    for place, step in zip(inner, steps.values(), strict=True):
        end[place] = step - 1
    value = pad_or_crop(g, g.op("Unsqueeze", value, g.ints(inner)), [0] * len(end), end)
    joined = [size * steps.get(axis, 1) for axis, size in enumerate(sizes, start=1)]
    for axis, step in steps.items():
        lacking[axis] -= step - 1
    return g.op("Reshape", value, g.ints([-1, *joined])), lacking


def gather(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx_i = the sum of dy at every place that took x_i."""
    indices = constant_array(node, 1) if index == 0 else None
    if indices is None:
        raise UnsupportedOpError(f"{describe(node)}: its indices are not constant; expected constants as input 1")
    sizes = static_shape(input_at(node, 0))
    axis = int_attribute(node, "axis", 0) % (1 + len(sizes))
    if axis == 0:
        raise UnsupportedOpError(f"{describe(node)}: gathers along axis 0, the batch; expected another axis")
    size, places = sizes[axis - 1], indices.astype(np.int64).reshape(-1)
    places = np.where(places < 0, places + size, places)
    before, after = sizes[: axis - 1], sizes[axis:]
    dy = dys[0]
    if indices.ndim != 1:
        dy = g.op("Reshape", dy, g.ints([-1, *before, places.size, *after]))
    if np.unique(places).size < places.size:
        return _summed(g, dy, sizes, axis, places)
    if places.size and np.array_equal(places, places[0] + np.arange(places.size)):
        return _padded(g, dy, axis, len(sizes), int(places[0]), size - 1 - int(places[-1]))
    origin = np.full(size, places.size)
    origin[places] = np.arange(places.size)
    if places.size < size:
        dy = _padded(g, dy, axis, len(sizes), 0, 1)
    return g.op("Gather", dy, g.ints(origin), axis=axis)


def _padded(g: GraphBuilder, value: ir.Value, axis: int, sizes: int, before: int, after: int) -> ir.Value:
    """Put zeros before and after one axis of a value that has so many sizes besides the batch."""
    begin, end = [0] * (1 + sizes), [0] * (1 + sizes)
    begin[axis], end[axis] = before, after
    return pad_or_crop(g, value, begin, end)


def _summed(g: GraphBuilder, dy: ir.Value, sizes: Sequence[int], axis: int, places: NDArray[np.int64]) -> ir.Value:
    """Return dx for indices that repeat: a product with the matrix that says which output took which input."""
    takes = np.zeros((sizes[axis - 1], places.size))
    takes[places, np.arange(places.size)] = 1.0
    if axis == len(sizes):
        return g.op("MatMul", dy, g.floats(takes.T, dy))
    rows = g.op("Reshape", dy, g.ints([-1, places.size, math.prod(sizes[axis:])]))
    return g.op("Reshape", g.op("MatMul", g.floats(takes, rows), rows), g.ints([-1, *sizes]))
