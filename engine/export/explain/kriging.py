"""Scores of masks that were not scored, and which to score: `engine.kernels.kriging`, as nodes of a graph.

All of it is float64.
"""

from dataclasses import dataclass

import onnx_ir as ir

from engine.budget import DESIGNED
from engine.export.graph import GraphBuilder
from engine.kernels.kriging import MOST_KNOWN, NOISE, SAME, WITNESSES, cell_means


def thumbnails(
    g: GraphBuilder, maps: ir.Value, channels: ir.Value, source: tuple[int, int], size: tuple[int, int]
) -> ir.Value:
    """Append the means, in 7×7 cells, of the masks that feature maps make: float64 [n, 49], or less in small images.

    Args:
        g: Builder of the graph.
        maps: F_l, float32 [C, h, w].
        channels: int64 [n], none of them flat.
        source: h and w.
        size: H and W of the image.
    """
    rows, columns = (cell_means(before, after) for before, after in zip(source, size, strict=True))
    own = g.cast(g.op("Gather", maps, channels), ir.DataType.DOUBLE)
    # As products of two axes: ONNX Runtime up to 1.31 refuses those of three, where the first, n, is 0.
    means = own
    for weights, length in ((columns, source[0]), (rows, len(columns))):
        means = g.op("MatMul", g.op("Reshape", means, g.ints([-1, weights.shape[1]])), g.doubles(weights.T))
        means = g.op("Reshape", means, g.ints([-1, length, len(weights)]))
        means = g.op("Transpose", means, perm=[0, 2, 1])
    low, high = (g.op(name, own, g.ints([1, 2])) for name in ("ReduceMin", "ReduceMax"))
    cells = len(rows) * len(columns)
    return g.op("Reshape", g.op("Div", g.op("Sub", means, low), g.op("Sub", high, low)), g.ints([-1, cells]))


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A Gaussian process over points.

    Attributes:
        points: float64 [n, d].
        squares: float64 [n], of their lengths.
        scale: float64 [1], √3 over the length scale.
    """

    points: ir.Value
    squares: ir.Value
    scale: ir.Value

    @classmethod
    def of(cls, g: GraphBuilder, points: ir.Value) -> "Process":
        """Append what the covariance needs, of two points or more."""
        squares = g.op("ReduceSumSquare", points, g.ints([1]), keepdims=0)
        centre = g.op("ReduceSumSquare", g.op("ReduceMean", points, g.ints([0])), g.ints([1]), keepdims=0)
        spread = g.op("Sub", g.op("ReduceMean", squares, g.ints([0])), centre)
        zero = g.doubles(0.0)
        apart = g.op("Greater", spread, zero)
        inverse = g.op("Div", g.doubles(3.0), g.op("Where", apart, spread, g.doubles(1.0)))
        return cls(points, squares, g.op("Where", apart, g.op("Sqrt", inverse), zero))

    def covariance(self, g: GraphBuilder, some: ir.Value) -> ir.Value:
        """Append the covariance float64 [m, n] of the points of these numbers, int64 [m], with all."""
        products = g.op("MatMul", g.op("Gather", self.points, some), g.op("Transpose", self.points, perm=[1, 0]))
        own = g.op("Unsqueeze", g.op("Gather", self.squares, some), g.ints([1]))
        apart = g.op("Sub", g.op("Add", own, self.squares), g.op("Mul", products, g.doubles(2.0)))
        distance = g.op("Mul", g.op("Sqrt", g.op("Max", apart, g.doubles(0.0))), self.scale)
        return g.op("Mul", g.op("Add", distance, g.doubles(1.0)), g.op("Exp", g.op("Neg", distance)))


def telling_first(g: GraphBuilder, process: Process, total: ir.Value, count: ir.Value) -> ir.Value:
    """Append the choice of the masks to score, as `engine.budget.telling_first` makes it.

    Args:
        g: Builder of the graph.
        process: Over all masks.
        total: int64 [1], how many there are.
        count: int64 [1], how many are scored, fewer than all.

    Returns:
        int64 [count].
    """
    witnesses = g.op("Min", total, g.ints([WITNESSES]))
    witnesses = g.op("Div", g.op("Mul", g.count_up(witnesses), total), witnesses)
    every = g.count_up(total)
    steps = g.op("Min", count, g.ints([DESIGNED]))
    rows = g.count_up(steps)
    ones = g.op("Expand", g.doubles([1.0]), total)
    start = {
        "covariance": process.covariance(g, witnesses),
        "variance": ones,
        "factors": g.op("Expand", g.doubles(0.0), g.op("Concat", steps, total, axis=0)),
        "untaken": g.op("Greater", ones, g.doubles(0.0)),
        "order": rows,
    }
    body, step, (covariance, variance, factors, untaken, order) = g.loop_body("telling", start)
    noisy = body.op("Add", variance, body.doubles(NOISE))
    gain = body.op("Div", body.op("ReduceSumSquare", covariance, body.ints([0]), keepdims=0), noisy)
    gain = body.op("Where", untaken, gain, body.doubles(-1.0))
    least = body.op("Mul", body.op("ReduceMax", gain, body.ints([0])), body.doubles(1.0 - SAME))
    near = body.cast(body.op("GreaterOrEqual", gain, least), ir.DataType.INT64)
    best = body.op("ArgMax", near, axis=0, keepdims=1)
    known = body.op("MatMul", body.op("Gather", body.op("Transpose", factors, perm=[1, 0]), best), factors)
    column = body.op("Sub", process.covariance(body, best), known)
    column = body.op("Div", column, body.op("Sqrt", body.op("Gather", noisy, best)))
    flat = body.op("Squeeze", column, body.ints([0]))
    seen = body.op("Unsqueeze", body.op("Gather", flat, witnesses), body.ints([1]))
    others = body.op("Not", body.op("Equal", every, best))
    here = body.op("Equal", rows, step)
    after = [
        body.op("Sub", covariance, body.op("Mul", seen, column)),
        body.op("Max", body.op("Sub", variance, body.op("Mul", flat, flat)), body.doubles(0.0)),
        body.op("Where", body.op("Unsqueeze", here, body.ints([1])), column, factors),
        body.op("And", untaken, others),
        body.op("Where", here, best, order),
    ]
    *_, untaken, order = g.loop(body, steps, start, after)
    order = g.op("Concat", order, g.positions(untaken), axis=0)
    return g.op("Slice", order, g.ints([0]), count)


def estimate(g: GraphBuilder, process: Process, known: ir.Value, scores: ir.Value) -> ir.Value:
    """Append the scores of all masks, as `engine.kernels.Kriging.estimate` makes them of some.

    The system is solved by Gauss and Jordan's elimination, a row a step; its matrix is positive definite.

    Args:
        g: Builder of the graph.
        process: Over all masks.
        known: int64 [m], numbers of the masks that were scored, the most telling first.
        scores: float64 [m].
    """
    beginning = (g.ints([0]), g.ints([MOST_KNOWN]))
    first, given = g.op("Slice", known, *beginning), g.op("Slice", scores, *beginning)
    count = g.op("Shape", first)
    covariance = process.covariance(g, first)
    square = g.op("Concat", count, count, axis=0)
    identity = g.op("EyeLike", g.op("Expand", g.doubles(0.0), square))
    among = g.op("Add", g.op("Gather", covariance, first, axis=1), g.op("Mul", identity, g.doubles(NOISE)))
    column = g.ints([1])
    right = [g.op("Unsqueeze", value, column) for value in (given, g.op("Expand", g.doubles([1.0]), count))]
    start = {"system": g.op("Concat", among, *right, axis=1)}
    body, number, (system,) = g.loop_body("elimination", start)
    pivot = body.op("Unsqueeze", number, body.ints([0]))
    row = body.op("Gather", system, pivot)
    row = body.op("Div", row, body.op("Gather", row, pivot, axis=1))
    factors = body.op("Sub", body.op("Gather", system, pivot, axis=1), body.op("Gather", identity, pivot, axis=1))
    (system,) = g.loop(body, count, start, [body.op("Sub", system, body.op("Mul", factors, row))])
    weights, ones = (g.op("Gather", system, g.op("Add", count, g.ints(place)), axis=1) for place in (0, 1))
    mean = g.op("Div", *(g.op("ReduceSum", value, g.ints([0, 1])) for value in (weights, ones)))
    weights = g.op("Transpose", g.op("Sub", weights, g.op("Mul", mean, ones)), perm=[1, 0])
    estimates = g.op("Squeeze", g.op("Add", g.op("MatMul", weights, covariance), mean), g.ints([0]))
    low, high = (g.op(name, scores, g.ints([0])) for name in ("ReduceMin", "ReduceMax"))
    return g.op("ScatterElements", g.op("Min", g.op("Max", estimates, low), high), known, scores)
