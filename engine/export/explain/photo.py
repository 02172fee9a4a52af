"""A photo as the graph's input: `engine.image.prepare`, as nodes of a graph."""

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder
from engine.preprocess import Preprocess

_MODES = {"bilinear": "linear", "bicubic": "cubic"}
_LANCZOS = 3
_GREY = (19595, 38470, 7471)  # of 65536: ITU-R 601-2 luma, as Pillow rounds it


def photo_input() -> ir.Value:
    """Return a photo as a graph takes it: uint8 [h, w, 3]."""
    return ir.Value(name="photo", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["height", "width", 3]))


def prepared(g: GraphBuilder, photo: ir.Value, preprocess: Preprocess) -> ir.Value:
    """Append resizing, cropping and normalising of a photo.

    Resizing is antialiased and gives whole numbers, as Pillow's does, to 1 of 255: the graph has the same filters, and
    other rounding errors. Pillow's cubic filter has the coefficient −0.5. Rows are resized before columns, and cut off
    at 0 and 255 in between. So does Pillow, but that since version 13 columns come first where the height shrinks much
    more than the width: there, next to black and white, cubic and Lanczos filters may differ by more.

    Args:
        g: Builder of the graph.
        photo: uint8 [h, w, 3] of any size, red first.
        preprocess: The settings.

    Returns:
        The network's input, float32 [1, C, H, W].
    """
    height, width = preprocess.size
    grey = len(preprocess.mean) == 1
    pixels = g.op("Unsqueeze", g.op("Transpose", _grey(g, photo) if grey else photo, perm=[2, 0, 1]), g.ints([0]))
    wanted = g.ints([height, width])
    if isinstance(preprocess.resize, str):
        view = _resize(g, pixels, wanted, preprocess.interp)
    else:
        sides = g.op("Shape", photo, end=2)
        scaled = g.op("Div", g.op("Mul", sides, g.ints(preprocess.resize)), g.op("ReduceMin", sides, g.ints([0])))
        view = _resize(g, pixels, scaled, preprocess.interp)
        spare = g.cast(g.op("Sub", scaled, wanted), ir.DataType.DOUBLE)
        first = g.cast(g.op("Round", g.op("Div", spare, g.doubles(2.0))), ir.DataType.INT64)  # halves to even
        view = g.op("Slice", view, first, g.op("Add", first, wanted), g.ints([2, 3]))
    values = g.cast(view, ir.DataType.FLOAT)
    if preprocess.bgr:
        values = g.op("Gather", values, g.ints([2, 1, 0]), axis=1)
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (preprocess.mean, preprocess.std))
    values = g.op("Sub", g.op("Div", values, g.floats(preprocess.scale, like=values)), g.floats(mean, like=values))
    return g.op("Reshape", g.op("Div", values, g.floats(std, like=values)), g.ints([1, len(mean), height, width]))


def _grey(g: GraphBuilder, photo: ir.Value) -> ir.Value:
    """Append the luma of each pixel: uint8 [h, w, 1]."""
    weighted = g.op("Mul", g.cast(photo, ir.DataType.INT64), g.ints(_GREY))
    luma = g.op("Add", g.op("ReduceSum", weighted, g.ints([2])), g.ints(1 << 15))
    return g.cast(g.op("Div", luma, g.ints(1 << 16)), ir.DataType.UINT8)


def _resize(g: GraphBuilder, pixels: ir.Value, size: ir.Value, interp: str) -> ir.Value:
    """Append the resizing of uint8 [1, C, h, w] to a size int64 [2]."""
    if interp in _MODES:
        return g.op(
            "Resize",
            pixels,
            None,
            None,
            size,
            mode=_MODES[interp],
            axes=[2, 3],
            antialias=1,
            exclude_outside=1,
            cubic_coeff_a=-0.5,
        )
    for place in (3, 2):  # as Pillow, across first; ONNX knows no Lanczos filter
        before = g.op("Shape", pixels, start=place, end=place + 1)
        after = g.op("Gather", size, g.ints([place - 2]))
        pixels = (_nearest if interp == "nearest" else _lanczos)(g, pixels, place, before, after)
    return pixels


def _nearest(g: GraphBuilder, pixels: ir.Value, place: int, before: ir.Value, after: ir.Value) -> ir.Value:
    """Append the choice of the nearest pixels along one axis, from one length to another, both int64 [1].

    Steps are added up one by one, as Pillow does it: where two pixels are equally near, rounding decides.
    """
    step = g.op("Div", *(g.cast(count, ir.DataType.DOUBLE) for count in (before, after)))
    others = g.op("Expand", step, g.op("Sub", after, g.ints([1])))
    positions = g.op("CumSum", g.op("Concat", g.op("Mul", step, g.doubles(0.5)), others, axis=0), g.ints(0))
    return g.op("Gather", pixels, g.cast(positions, ir.DataType.INT64), axis=place)


def _lanczos(g: GraphBuilder, pixels: ir.Value, place: int, before: ir.Value, after: ir.Value) -> ir.Value:
    """Append the resizing along one axis by weights [after, before]: sinc(t)·sinc(t/3), as wide as a step at least."""
    column = g.ints([1])
    ratio = g.op("Div", *(g.cast(count, ir.DataType.DOUBLE) for count in (before, after)))
    half = g.doubles(0.5)
    sources, centres = (g.op("Add", g.cast(g.count_up(n), ir.DataType.DOUBLE), half) for n in (before, after))
    centres = g.op("Unsqueeze", g.op("Mul", centres, ratio), column)
    distance = g.op("Div", g.op("Sub", sources, centres), g.op("Max", ratio, g.doubles(1.0)))
    near = g.op("Less", g.op("Abs", distance), g.doubles(_LANCZOS))
    weights = g.op("Mul", *(_sinc(g, g.op("Div", distance, g.doubles(width))) for width in (1.0, _LANCZOS)))
    weights = g.op("Where", near, weights, g.doubles(0.0))
    weights = g.op("Div", weights, g.op("ReduceSum", weights, column))
    rows = g.cast(weights, ir.DataType.FLOAT)
    values = g.cast(pixels, ir.DataType.FLOAT)
    factors = (values, g.op("Transpose", rows, perm=[1, 0])) if place == 3 else (rows, values)
    found = g.op("MatMul", *factors)
    found = g.op("Clip", g.op("Round", found), g.floats(0.0, like=found), g.floats(255.0, like=found))
    return g.cast(found, ir.DataType.UINT8)


def _sinc(g: GraphBuilder, values: ir.Value) -> ir.Value:
    """Append sin(πt)/(πt), 1 at 0."""
    zero = g.op("Equal", values, g.doubles(0.0))
    angle = g.op("Mul", values, g.doubles(np.pi))
    one = g.doubles(1.0)
    return g.op("Where", zero, one, g.op("Div", g.op("Sin", angle), g.op("Where", zero, one, angle)))
