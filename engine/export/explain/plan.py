"""Which masks are scored, and what the others are taken to score: `engine.budget`, as nodes of a graph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engine.export.cut import CutPoint
from engine.export.explain.kriging import Process, estimate, telling_first, thumbnails
from engine.export.graph import GraphBuilder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The masks of all layers in one order, of which every beginning is proportional.

    Attributes:
        layers: int64 [n], number of each mask's layer, from 0.
        channels: int64 [n], its channel.
        partial: bool [1], whether only some are scored.
        points: float64 [n, 49], their thumbnails; of no use when all are scored.
        order: int64 [m], numbers of the masks that are scored, in the order in which estimates rest on them.
    """

    layers: ir.Value
    channels: ir.Value
    partial: ir.Value
    points: ir.Value
    order: ir.Value

    def of_layer(self, g: GraphBuilder, numbers: ir.Value, layer: int) -> ir.Value:
        """Append those of some numbers of masks that belong to a layer: int64."""
        own = g.op("Equal", g.op("Gather", self.layers, numbers), g.ints(layer))
        return g.op("Gather", numbers, g.positions(own))

    def values(self, g: GraphBuilder, scores: ir.Value) -> ir.Value:
        """Append what each mask is taken to score, float64 [n].

        Args:
            g: Builder of the graph.
            scores: float64 [m], of the masks that were scored, in the plan's order.
        """
        then, other = g.inner("estimated"), g.inner("measured")
        estimates = estimate(then, Process.of(then, self.points), self.order, scores)
        (values,) = g.branch(self.partial, then, [estimates], other, [other.op("Identity", scores)])
        return values


def plan(
    g: GraphBuilder,
    layers: Sequence[CutPoint],
    maps: Sequence[ir.Value],
    channels: Sequence[ir.Value],
    most: ir.Value,
    size: tuple[int, int],
) -> Plan:
    """Append the order of all masks, as `engine.budget.interleave` makes it, and the choice of those that are scored.

    Args:
        g: Builder of the graph.
        layers: The feature layers.
        maps: F_l of each, float32 [C_l, h_l, w_l].
        channels: int64 [n_l], the masks of each, the strongest average gradient first.
        most: int64 [1], how many may be scored; all if it is not positive.
        size: H and W of the image.
    """
    counts = [g.op("Shape", own) for own in channels]
    shares, numbers = [], []
    for number, count in enumerate(counts):
        rank = g.cast(g.count_up(count), ir.DataType.DOUBLE)
        shares.append(g.op("Div", rank, g.cast(count, ir.DataType.DOUBLE)))
        numbers.append(g.op("Expand", g.ints([number]), count))
    share, every, layer = (g.op("Concat", *own[::-1], axis=0) for own in (shares, channels, numbers))
    total = g.op("Shape", share)
    _, turns = g.ops("TopK", 2, share, total, largest=0)  # of equal shares the deeper layer's, which stands before
    turns.dtype = ir.DataType.INT64
    partial = g.op("And", g.op("Greater", most, g.ints([0])), g.op("Less", most, total))

    then, other = g.inner("some"), g.inner("all")
    own = [
        thumbnails(then, some, chosen, (point.height, point.width), size)
        for point, some, chosen in zip(layers, maps, channels, strict=True)
    ]
    points = then.op("Gather", then.op("Concat", *own[::-1], axis=0), turns)
    telling = telling_first(then, Process.of(then, points), total, most)
    none = other.op("Identity", other.doubles(np.zeros((1, 1))))
    points, order = g.branch(partial, then, [points, telling], other, [none, other.count_up(total)])
    return Plan(
        layers=g.op("Gather", layer, turns),
        channels=g.op("Gather", every, turns),
        partial=partial,
        points=points,
        order=order,
    )
