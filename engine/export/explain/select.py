"""Choosing the feature maps that become masks: `engine.kernels.select` and `is_flat`, as nodes of a graph."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder
from engine.kernels.mask import FLAT
from engine.kernels.select import TAU_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """The masks of one layer.

    Attributes:
        channels: int64 [n], the selected feature maps that are not flat, the strongest average gradient first.
        selected: int64 [1], how many were selected, flat ones among them.
    """

    channels: ir.Value
    selected: ir.Value


def choose(g: GraphBuilder, maps: ir.Value, average: ir.Value, channels: int) -> Chosen:
    """Append the Otsu split of the positive average gradients of one layer.

    Args:
        g: Builder of the graph.
        maps: F_l, float32 [C, h, w].
        average: α_l, float32 [C].
        channels: C.

    Source: Ada-SISE (arXiv 2102.07799), the adaptive threshold.
    """
    strengths = g.cast(average, ir.DataType.DOUBLE)
    descending, order = g.ops("TopK", 2, strengths, g.ints([channels]))
    order.dtype = ir.DataType.INT64
    kept = _upper_class(g, descending, channels)
    high = g.op("ReduceMax", maps, g.ints([1, 2]), keepdims=0)
    low = g.op("ReduceMin", maps, g.ints([1, 2]), keepdims=0)
    largest = g.op("Max", g.op("Abs", high), g.op("Abs", low))
    uneven = g.op("Greater", g.op("Sub", high, low), g.op("Mul", largest, g.floats(FLAT, like=largest)))
    first = g.op("Less", g.ints(np.arange(channels)), kept)
    wanted = g.op("And", first, g.op("Gather", uneven, order))
    return Chosen(channels=g.op("Gather", order, g.positions(wanted)), selected=kept)


def _upper_class(g: GraphBuilder, descending: ir.Value, channels: int) -> ir.Value:
    """Append the number of positive values in the upper class of their exact Otsu split: int64 [1]."""
    sizes = np.arange(1, channels + 1)  # of the upper class, whose values come first
    zero = g.floats(0.0, like=descending)
    values = g.op("Max", descending, zero)
    positive = g.op("ReduceSum", g.cast(g.op("Greater", values, zero), ir.DataType.INT64), g.ints([0]))
    n, upper = g.cast(positive, ir.DataType.DOUBLE), g.floats(sizes, like=descending)
    lower = g.op("Sub", n, upper)
    upper_mean = g.op("Div", g.op("CumSum", values, g.ints(0)), upper)
    from_below = g.op("CumSum", values, g.ints(0), exclusive=1, reverse=1)
    distance = g.op("Sub", upper_mean, g.op("Div", from_below, lower))
    shares = g.op("Mul", g.op("Div", lower, n), g.op("Div", upper, n))
    tau = g.op("Mul", shares, g.op("Mul", distance, distance))
    tau = g.op("Where", g.op("Greater", lower, zero), tau, g.floats(-1.0, like=tau))
    best = g.op("ReduceMax", tau, g.ints([0]))
    near = g.op("GreaterOrEqual", tau, g.op("Mul", best, g.floats(1.0 - TAU_TOLERANCE, like=best)))
    split = g.op("ReduceMax", g.op("Where", near, g.ints(sizes), g.ints(0)), g.ints([0]))
    last = g.op("Gather", values, g.op("Max", g.op("Sub", positive, g.ints(1)), g.ints(0)))
    even = g.op("Equal", last, g.op("Gather", values, g.ints([0])))  # so is a single one, and none
    return g.op("Where", even, positive, split)
