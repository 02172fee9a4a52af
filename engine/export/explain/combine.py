"""From scores to the visualization map of a layer: `engine.kernels.combine`, as nodes of a graph."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder
from engine.kernels.combine import FLAT
from engine.kernels.resample import axis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masks:
    """The masks of one layer.

    Attributes:
        channels: int64 [n], the feature maps that make them.
        values: float64 [n], what each is taken to score.
        scored: int64 [m], those of the channels that were scored.
        minimum: float64 [m], minimum of each upsampled map of these.
        extent: float64 [m], maximum less minimum of each.
    """

    channels: ir.Value
    values: ir.Value
    scored: ir.Value
    minimum: ir.Value
    extent: ir.Value


def visualization_map(
    g: GraphBuilder, maps: ir.Value, masks: Masks, sizes: tuple[int, int, int], size: tuple[int, int]
) -> tuple[ir.Value, ir.Value]:
    """Append V_l: the masks of one layer, weighted by their scores and areas.

    All channels of the layer are summed up, those without a mask with the weight 0, so that no tensor is empty. For a
    mask that was not scored the map's minimum before upsampling does as well as that after it.

    Args:
        g: Builder of the graph.
        maps: F_l, float32 [C, h, w].
        masks: Those of the layer.
        sizes: C, h and w.
        size: H and W of the image.

    Returns:
        float64 [H, W] from 0 to 1, and bool [1], whether there is one: without any mask, or when it is constant, its
        values mean nothing.

    Source: SISE (arXiv 2010.00672), "Attribution mask scoring".
    """
    count, height, width = sizes
    values = g.cast(maps, ir.DataType.DOUBLE)
    zeros = g.doubles(np.zeros(count))
    scores = g.op("ScatterElements", zeros, masks.channels, masks.values)
    minimum = g.op("ReduceMin", values, g.ints([1, 2]), keepdims=0)
    minimum = g.op("ScatterElements", minimum, masks.scored, masks.minimum)
    ones = g.op("Expand", g.doubles(1.0), g.op("Shape", masks.channels))
    extent = g.op("ScatterElements", zeros, masks.channels, ones)
    extent = g.op("ScatterElements", extent, masks.scored, masks.extent)
    rows, columns = axis(height, size[0]), axis(width, size[1])
    across = g.op("MatMul", values, g.doubles(columns.total[:, None]))
    total = g.op("Reshape", g.op("MatMul", g.doubles(rows.total[None]), across), g.ints([-1]))
    mass = g.op("Sub", total, g.op("Mul", minimum, g.doubles(size[0] * size[1])))
    used = g.op("Greater", extent, g.doubles(0.0))
    one = g.doubles(1.0)
    weights = g.op("Where", used, g.op("Div", scores, g.op("Where", used, mass, one)), g.doubles(0.0))
    weights = g.op("Unsqueeze", weights, g.ints([0]))
    summed = g.op("MatMul", weights, g.op("Reshape", values, g.ints([count, height * width])))
    offset = g.op("MatMul", weights, g.op("Unsqueeze", minimum, g.ints([1])))
    summed = g.op("Reshape", summed, g.ints([height, width]))
    return scale_to_unit(g, g.op("Sub", upsample(g, summed, (height, width), size), offset))


def scale_to_unit(g: GraphBuilder, values: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Append the scaling of float64 [H, W] to 0 … 1, and bool [1], whether the values are not constant."""
    low, high = (g.op("Reshape", g.op(name, values), g.ints([1])) for name in ("ReduceMin", "ReduceMax"))
    extent = g.op("Sub", high, low)
    largest = g.op("Max", g.op("Abs", low), g.op("Abs", high))
    uneven = g.op("Greater", extent, g.op("Mul", largest, g.doubles(FLAT)))
    return g.op("Div", g.op("Sub", values, low), g.op("Where", uneven, extent, g.doubles(1.0))), uneven


def upsample(g: GraphBuilder, image: ir.Value, source: tuple[int, int], size: tuple[int, int]) -> ir.Value:
    """Append the upsampling of float64 [h, w] to [H, W], bilinearly with half-pixel centres; Resize has no float64."""
    for place, (before, after) in enumerate(zip(source, size, strict=True)):
        along = axis(before, after)
        weight = along.weight[:, None] if place == 0 else along.weight
        low, high = (g.op("Gather", image, g.ints(ends), axis=place) for ends in (along.low, along.high))
        image = g.op("Add", g.op("Mul", low, g.doubles(1.0 - weight)), g.op("Mul", high, g.doubles(weight)))
    return image
