"""Fusing the layers' visualization maps into the heatmap: `engine.kernels.fuse`, as nodes of a graph."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.export.explain.combine import scale_to_unit
from engine.export.graph import GraphBuilder

_BINS = 256


def fuse(g: GraphBuilder, views: Sequence[tuple[ir.Value, ir.Value]]) -> ir.Value:
    """Append the heatmap, float64 [H, W] from 0 to 1: all zeros when it would be constant.

    Args:
        g: Builder of the graph.
        views: V_1 … V_L, shallow to deep, float64 [H, W]; and for each bool [1], whether the layer has one.

    Source: SISE (arXiv 2010.00672), "Fusion module".
    """
    (fused, begun), *others = views
    for view, there in others:
        kept = g.op("Greater", view, _otsu_threshold(g, view))
        cut = g.op("Where", kept, g.op("Add", fused, view), g.doubles(0.0))
        fused = g.op("Where", there, g.op("Where", begun, cut, view), fused)
        begun = g.op("Or", begun, there)
    heatmap, uneven = scale_to_unit(g, fused)
    return g.op("Where", g.op("And", begun, uneven), heatmap, g.doubles(0.0))


def _otsu_threshold(g: GraphBuilder, values: ir.Value) -> ir.Value:
    """Append Otsu's threshold of float64 [H, W] from 0 to 1, in 256 bins: float64 [1].

    A bin's edges are multiples of 1/256, so that the bin of a value is exact; so is what is counted, in whole numbers
    below 2⁵³. They are float64, since some runtimes compute int64 in 32 bits.
    """
    bins = g.cast(g.op("Mul", values, g.doubles(_BINS)), ir.DataType.INT64)  # towards zero
    bins = g.op("Clip", g.op("Reshape", bins, g.ints([-1])), g.ints(0), g.ints(_BINS - 1))
    ones = g.op("Expand", g.ints([1]), g.op("Shape", bins))
    counts = g.op("ScatterElements", g.ints(np.zeros(_BINS)), bins, ones, reduction="add")
    counts = g.cast(counts, ir.DataType.DOUBLE)
    masses = g.op("Mul", counts, g.doubles(np.arange(_BINS)))
    n, total = (g.op("ReduceSum", value, g.ints([0])) for value in (counts, masses))
    below, mass = (g.op("CumSum", value, g.ints(0)) for value in (counts, masses))
    one = g.doubles(1.0)
    above = g.op("Max", g.op("Sub", n, below), one)  # 0 after the last bin, whose distance is 0
    distance = g.op("Sub", g.op("Mul", n, mass), g.op("Mul", below, total))
    variance = g.op("Div", g.op("Mul", distance, distance), g.op("Max", g.op("Mul", below, above), one))
    best = g.cast(g.op("ArgMax", variance, axis=0), ir.DataType.DOUBLE)
    return g.op("Div", g.op("Add", best, g.doubles(0.5)), g.doubles(_BINS))
