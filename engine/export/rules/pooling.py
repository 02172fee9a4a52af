"""Gradient rules of pooling.

Ties: MaxPool and GlobalMaxPool send the whole gradient to the first maximum of the window in row-major order.
"""

import math
from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.extrema import at_first_extremum
from engine.export.graph import GraphBuilder, describe, input_at, int_attribute, static_shape
from engine.export.windows import (
    Windows,
    covered_taps,
    gather_taps,
    kernel_shape,
    pad_spatial,
    scatter_taps,
    windows_of,
)

_MOST_TAPS = 4096
"""Each tap of a window becomes a handful of nodes."""


def max_pool(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy at the first tap of each window that equals the window's maximum.

    Made of slices and comparisons: asking MaxPool for its Indices makes its forward pass 6 to 40 times slower on ONNX
    Runtime's CPU provider.
    """
    y, (dy,) = node.outputs[0], dys
    windows = _windows(node)
    padded = pad_spatial(g, input_at(node, 0), windows.begin, _missing(windows), fill=-math.inf)
    taps: dict[tuple[int, int], ir.Value] = {}
    open_windows: ir.Value | None = None
    for offset in windows.offsets():
        hit = g.op("Equal", gather_taps(g, windows, padded, offset), y)
        first = hit if open_windows is None else g.op("And", hit, open_windows)
        missed = g.op("Not", hit)
        open_windows = missed if open_windows is None else g.op("And", open_windows, missed)
        taps[offset] = g.op("Mul", g.cast(first, y.dtype), dy)
    return scatter_taps(g, windows, static_shape(y)[0], taps)


def average_pool(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy/n at each of the window's n taps; n counts padding only with `count_include_pad`."""
    windows = _windows(node)
    counts = covered_taps(windows, include_pad=int_attribute(node, "count_include_pad", 0) == 1)
    share = g.op("Div", dys[0], g.floats(counts[None, None], dys[0]))
    return scatter_taps(g, windows, static_shape(node.outputs[0])[0], dict.fromkeys(windows.offsets(), share))


def global_average_pool(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy/(H·W) everywhere."""
    channels, *spatial = static_shape(input_at(node, index))
    share = g.op("Mul", dys[0], g.floats(1.0 / math.prod(spatial), dys[0]))
    return g.op("Expand", share, g.ints([1, channels, *spatial]))


def global_max_pool(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy at the first maximum."""
    x = input_at(node, index)
    return at_first_extremum(g, dys[0], x, range(2, 1 + len(static_shape(x))), "ArgMax")


def _windows(node: ir.Node) -> Windows:
    """Read the windows.

    Raises:
        UnsupportedOpError: One has too many taps.
    """
    kernel = kernel_shape(node)
    if math.prod(kernel) > _MOST_TAPS:
        shown, whole = "×".join(map(str, kernel)), node.op_type
        raise UnsupportedOpError(
            f"{describe(node)}: has windows of {shown}; expected at most {_MOST_TAPS} taps: use Global{whole} where a "
            "window is the whole map"
        )
    return windows_of(node, kernel)


def _missing(windows: Windows) -> tuple[int, int]:
    """Padding after the last row and column that makes the padded input as large as the windows' reach."""
    rows, columns = (r - n - b for r, n, b in zip(windows.reach, windows.input, windows.begin, strict=True))
    return rows, columns
