"""A photo as the graph's input: `engine.image.prepare`, as nodes of a graph."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder
from engine.preprocess import Preprocess

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_CUBIC = -0.5
_STEPS = 1 << 22  # of a weight, as in Pillow
_COARSE = 1 << 11  # of which steps of a coarse part of it
_GREY = (19595, 38470, 7471)  # of 65536: ITU-R 601-2 luma, as Pillow rounds it


def photo_input() -> ir.Value:
    """Return a photo as a graph takes it: uint8 [h, w, 3]."""
    return ir.Value(name="photo", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["height", "width", 3]))


def prepared(g: GraphBuilder, photo: ir.Value, preprocess: Preprocess) -> ir.Value:
    """Append resizing, cropping and normalising of a photo.

    Resizing is antialiased and gives the whole numbers that Pillow gives: the same filters, whose weights have the same
    22 bits, and the same rounding. Rows are resized before columns, and cut off at 0 and 255 in between. So does
    Pillow, but that since version 13 columns come first where the height shrinks much more than the width: there, next
    to black and white, cubic and Lanczos filters may differ by more than 1 of 255.

    Each is a product with a matrix of weights for the pixels that are left when the rest is cropped away. ONNX's Resize
    rounds otherwise, by 2 of 255 at the most, and not every host has its antialiasing.

    Args:
        g: Builder of the graph.
        photo: uint8 [h, w, 3] of any size, red first.
        preprocess: The settings.

    Returns:
        The network's input, float32 [1, C, H, W].
    """
    height, width = preprocess.size
    grey = len(preprocess.mean) == 1
    values = g.cast(g.op("Transpose", _grey(g, photo) if grey else photo, perm=[2, 0, 1]), ir.DataType.FLOAT)
    sides = g.op("Shape", photo, end=2)
    wanted = g.ints([height, width])
    if isinstance(preprocess.resize, str):
        scaled, first = wanted, g.ints([0, 0])
    else:
        scaled = g.op("Div", g.op("Mul", sides, g.ints(preprocess.resize)), g.op("ReduceMin", sides, g.ints([0])))
        spare = g.cast(g.op("Sub", scaled, wanted), ir.DataType.DOUBLE)
        first = g.cast(g.op("Round", g.op("Div", spare, g.doubles(2.0))), ir.DataType.INT64)  # halves to even
    for place, count in ((1, width), (0, height)):
        before, after, start = (g.op("Gather", own, g.ints([place])) for own in (sides, scaled, first))
        values = _resize(g, values, place, Axis(before, after, start, count), preprocess.interp)
    if preprocess.bgr:
        values = g.op("Gather", values, g.ints([2, 1, 0]), axis=0)
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (preprocess.mean, preprocess.std))
    values = g.op("Sub", g.op("Div", values, g.floats(preprocess.scale, like=values)), g.floats(mean, like=values))
    return g.op("Reshape", g.op("Div", values, g.floats(std, like=values)), g.ints([1, len(mean), height, width]))


def _grey(g: GraphBuilder, photo: ir.Value) -> ir.Value:
    """Append the luma of each pixel: uint8 [h, w, 1]."""
    weighted = g.op("Mul", g.cast(photo, ir.DataType.INT64), g.ints(_GREY))
    luma = g.op("Add", g.op("ReduceSum", weighted, g.ints([2])), g.ints(1 << 15))
    return g.cast(g.op("Div", luma, g.ints(1 << 16)), ir.DataType.UINT8)


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """How one axis is resized, and cropped then.

    Attributes:
        before: int64 [1], its length.
        after: int64 [1], its length when it is resized.
        first: int64 [1], where the part begins that is kept.
        count: How long that part is.
    """

    before: ir.Value
    after: ir.Value
    first: ir.Value
    count: int


def _resize(g: GraphBuilder, values: ir.Value, place: int, axis: Axis, interp: str) -> ir.Value:
    """Append the resizing of float32 [C, h, w], whole numbers from 0 to 255, along h (0) or w (1)."""
    if interp == "nearest":
        return g.op("Gather", values, _nearest(g, axis), axis=1 + place)
    steps = _weights(g, axis, interp)
    # In two parts, whose products and sums float32 holds to the last digit, in every host.
    coarse = g.op("Floor", g.op("Add", g.op("Div", steps, g.doubles(_COARSE)), g.doubles(0.5)))
    fine = g.op("Sub", steps, g.op("Mul", coarse, g.doubles(_COARSE)))
    weights = g.cast(g.op("Concat", coarse, fine, axis=0), ir.DataType.FLOAT)
    factors = (values, g.op("Transpose", weights, perm=[1, 0])) if place == 1 else (weights, values)
    found = g.cast(g.op("MatMul", *factors), ir.DataType.INT32)
    ends = [g.ints([number * axis.count]) for number in range(3)]
    coarse, fine = (g.op("Slice", found, *part, g.ints([1 + place])) for part in pairwise(ends))
    whole, half, steps = (g.constant(np.array(number, np.int32)) for number in (_COARSE, _STEPS // 2, _STEPS))
    found = g.op("Add", g.op("Add", g.op("Mul", coarse, whole), fine), half)
    found = g.cast(g.op("Div", found, steps), ir.DataType.FLOAT)
    return g.op("Clip", found, g.floats(0.0, like=found), g.floats(255.0, like=found))


def _nearest(g: GraphBuilder, axis: Axis) -> ir.Value:
    """Append the numbers of the nearest pixels, int64 [count].

    Steps are added up one by one, as Pillow does it: where two pixels are equally near, rounding decides.
    """
    step = g.op("Div", *(g.cast(count, ir.DataType.DOUBLE) for count in (axis.before, axis.after)))
    others = g.op("Expand", step, g.op("Sub", axis.after, g.ints([1])))
    positions = g.op("CumSum", g.op("Concat", g.op("Mul", step, g.doubles(0.5)), others, axis=0), g.ints(0))
    kept = g.op("Slice", positions, axis.first, g.op("Add", axis.first, g.ints([axis.count])))
    return g.cast(kept, ir.DataType.INT64)


def _weights(g: GraphBuilder, axis: Axis, interp: str) -> ir.Value:
    """Append what each pixel before counts for in each that is kept, float64 [count, before]: whole steps of 2⁻²²."""
    ratio = g.op("Div", *(g.cast(length, ir.DataType.DOUBLE) for length in (axis.before, axis.after)))
    half = g.doubles(0.5)
    kept = g.op("Add", g.ints(np.arange(axis.count)), axis.first)
    sources, centres = (g.op("Add", g.cast(n, ir.DataType.DOUBLE), half) for n in (g.count_up(axis.before), kept))
    column = g.ints([1])
    centres = g.op("Unsqueeze", g.op("Mul", centres, ratio), column)
    distance = g.op("Abs", g.op("Div", g.op("Sub", sources, centres), g.op("Max", ratio, g.doubles(1.0))))
    near = g.op("Less", distance, g.doubles(_SUPPORT[interp]))
    weights = g.op("Where", near, _FILTERS[interp](g, distance), g.doubles(0.0))
    weights = g.op("Div", weights, g.op("ReduceSum", weights, column))
    return g.op("Floor", g.op("Add", g.op("Mul", weights, g.doubles(_STEPS)), half))


def _triangle(g: GraphBuilder, t: ir.Value) -> ir.Value:
    """Append 1 − t."""
    return g.op("Sub", g.doubles(1.0), t)


def _cubic(g: GraphBuilder, t: ir.Value) -> ir.Value:
    """Append Keys' cubic: (a+2)t³ − (a+3)t² + 1 up to 1, a(t³ − 5t² + 8t − 4) beyond."""
    inside = _polynomial(g, t, (_CUBIC + 2, -(_CUBIC + 3), 0.0, 1.0))
    outside = _polynomial(g, t, (_CUBIC, -5 * _CUBIC, 8 * _CUBIC, -4 * _CUBIC))
    return g.op("Where", g.op("Less", t, g.doubles(1.0)), inside, outside)


def _polynomial(g: GraphBuilder, t: ir.Value, factors: tuple[float, ...]) -> ir.Value:
    found = g.doubles(factors[0])
    for factor in factors[1:]:
        found = g.op("Add", g.op("Mul", found, t), g.doubles(factor))
    return found


def _windowed_sinc(g: GraphBuilder, t: ir.Value) -> ir.Value:
    """Append sinc(t)·sinc(t/3)."""
    return g.op("Mul", *(_sinc(g, g.op("Div", t, g.doubles(width))) for width in (1.0, _SUPPORT["lanczos"])))


def _sinc(g: GraphBuilder, values: ir.Value) -> ir.Value:
    """Append sin(πt)/(πt), 1 at 0."""
    zero = g.op("Equal", values, g.doubles(0.0))
    angle = g.op("Mul", values, g.doubles(np.pi))
    one = g.doubles(1.0)
    return g.op("Where", zero, one, g.op("Div", g.op("Sin", angle), g.op("Where", zero, one, angle)))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _windowed_sinc}
"""Each for distances of 0 and more; only what lies within its support counts."""
