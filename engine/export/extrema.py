"""Where a maximum or minimum lies: the gradient of taking it.

Ties: the whole gradient goes to the first of equal extrema, in row-major order over the axes that are searched.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder, static_shape

Search = Literal["ArgMax", "ArgMin"]


def at_first_extremum(g: GraphBuilder, dy: ir.Value, x: ir.Value, axes: Sequence[int], search: Search) -> ir.Value:
    """Place a gradient at the first extremum of an activation, and zeros elsewhere.

    ArgMax over one axis and a comparison of its outcome with that axis's positions: on ONNX Runtime's CPU provider, for
    [1, 512, 28, 28], 0.46 ms over H and W and 0.51 ms over C. Over H and W, counting the equal maxima with CumSum takes
    1.9 ms, OneHot 1.0 ms, and int64 positions 0.06 ms more; the maximum of ranks takes 0.44 ms, but 0.95 ms over C.

    Args:
        g: Builder of the graph that is appended to.
        dy: The gradient at the extremum, with size 1 on the searched axes.
        x: The activation.
        axes: The axes that were searched, ascending, without axis 0.
        search: `ArgMax` for a maximum, `ArgMin` for a minimum.

    Returns:
        The gradient at `x`.
    """
    if not axes:
        return dy
    sizes = static_shape(x)
    rank, count = 1 + len(sizes), math.prod(sizes[axis - 1] for axis in axes)
    others = [axis for axis in range(rank) if axis not in axes]
    adjacent = axes[-1] - axes[0] == len(axes) - 1
    place = axes[0] if adjacent else len(others)
    order = [*others[:place], *axes, *others[place:]]
    moved = x if adjacent else g.op("Transpose", x, perm=order)
    before, after = ([sizes[axis - 1] for axis in part if axis] for part in (others[:place], others[place:]))
    flat = moved if len(axes) == 1 else g.op("Reshape", moved, g.ints([-1, *before, count, *after]))
    found = g.op(search, flat, axis=place, keepdims=1)
    found.dtype = ir.DataType.INT64
    positions = g.cast(g.ints(np.arange(count).reshape(count, *[1] * len(after))), ir.DataType.INT32)
    mark = g.cast(g.op("Equal", g.cast(found, ir.DataType.INT32), positions), x.dtype)
    if len(axes) > 1:
        mark = g.op("Reshape", mark, g.ints([-1, *(sizes[axis - 1] for axis in order[1:])]))
    if not adjacent:
        mark = g.op("Transpose", mark, perm=[order.index(axis) for axis in range(rank)])
    return g.op("Mul", dy, mark)
