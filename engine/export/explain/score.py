"""Scoring masks: the one loop of the graph, whose body holds the network."""

from collections.abc import Sequence

import onnx_ir as ir

from engine.export.graph import GraphBuilder
from engine.export.source import Source

_BATCH = 8


def score(
    g: GraphBuilder,
    source: Source,
    image: ir.Value,
    target: ir.Value,
    maps: Sequence[ir.Value],
    channels: Sequence[ir.Value],
) -> list[ir.Value]:
    """Append the loop that scores masks, 8 at a time, layer after layer.

    A run may hold the masks of several layers. The network and its weights are part of the loop's body: ONNX Runtime
    does not optimise operators whose weights come from outside (design, section 6).

    Args:
        g: Builder of the graph.
        source: The network.
        image: x, float32 [1, C, H, W].
        target: int64 [1], the class.
        maps: F_l of each layer, float32 [C_l, h_l, w_l].
        channels: int64 [n_l], of each layer the feature maps to score.

    Returns:
        Of all masks, layer after layer, float64 [n]: the class scores p; the minimum of each upsampled map; its maximum
        less its minimum.

    Source: SISE (arXiv 2010.00672), "Attribution mask scoring".
    """
    begins = [g.ints([0])]
    for own in channels:
        begins.append(g.op("Add", begins[-1], g.op("Shape", own)))
    zeros = g.op("Expand", g.doubles(0.0), begins[-1])
    start = {"scores": zeros, "minimum": zeros, "extent": zeros}
    body, number, carried = g.loop_body("score", start)
    first = body.op("Mul", number, body.ints([_BATCH]))
    masks, *extrema = _masks(body, first, maps, channels, begins, source.image_shape[1:])
    logits = _network(body, source, body.op("Mul", masks, image))
    scores = body.op("Gather", activate(body, logits, source.activation), target, axis=1)
    found = [body.op("Reshape", body.cast(v, ir.DataType.DOUBLE), body.ints([-1])) for v in (scores, *extrema)]
    places = body.op("Add", body.count_up(body.op("Shape", found[0])), first)
    after = [body.op("ScatterElements", before, places, now) for before, now in zip(carried, found, strict=True)]
    steps = g.op("Div", g.op("Add", begins[-1], g.ints([_BATCH - 1])), g.ints([_BATCH]))
    return g.loop(body, steps, start, after)


def _masks(
    g: GraphBuilder,
    start: ir.Value,
    maps: Sequence[ir.Value],
    channels: Sequence[ir.Value],
    begins: Sequence[ir.Value],
    size: tuple[int, int],
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Append the masks of one run, from mask number `start` on; the minimum and extent of each upsampled map, too.

    The masks are float32 [n, 1, H, W].

    The map's own minimum is taken off before it is upsampled, as in `engine.kernels.mask`.
    """
    wide, bases = [], []
    for own, chosen, begin in zip(maps, channels, begins[:-1], strict=True):
        first = g.op("Max", g.op("Sub", start, begin), g.ints([0]))
        last = g.op("Max", g.op("Add", g.op("Sub", start, begin), g.ints([_BATCH])), g.ints([0]))
        some = g.op("Gather", own, g.op("Slice", chosen, first, last), axis=0)
        base = g.op("ReduceMin", some, g.ints([1, 2]))
        lifted = g.op("Unsqueeze", g.op("Sub", some, base), g.ints([0]))
        wide.append(g.op("Resize", lifted, None, None, g.ints(size), axes=[2, 3], mode="linear"))
        bases.append(base)
    upsampled = g.op("Reshape", g.op("Concat", *wide, axis=1), g.ints([-1, 1, *size]))
    base = g.op("Unsqueeze", g.op("Concat", *bases, axis=0), g.ints([3]))
    low = g.op("ReduceMin", upsampled, g.ints([2, 3]))
    extent = g.op("Sub", g.op("ReduceMax", upsampled, g.ints([2, 3])), low)
    zero, one = g.floats(0.0, like=extent), g.floats(1.0, like=extent)
    some_extent = g.op("Where", g.op("Greater", extent, zero), extent, one)
    masks = g.op("Div", g.op("Sub", upsampled, low), some_extent)
    minimum = g.op("Add", *(g.cast(value, ir.DataType.DOUBLE) for value in (base, low)))
    return masks, minimum, extent


def _network(g: GraphBuilder, source: Source, images: ir.Value) -> ir.Value:
    """Move a copy of the network into the body, under names that the builder never gives, and return its logits."""
    graph = source.model.clone().graph
    image, logits = graph.inputs[0], graph.outputs[0]
    nodes, constants = list(graph), list(graph.initializers.values())
    graph.outputs.clear()
    graph.initializers.clear()
    graph.remove(nodes)
    for value in (*constants, *(output for node in nodes for output in node.outputs)):
        value.name = f"{g.prefix}/network/{value.name}" if value.name else value.name
    for value in constants:
        g.graph.register_initializer(value)
    for node in nodes:
        node.name = f"{g.prefix}/network/{node.name}"
    ir.convenience.replace_all_uses_with(image, images)
    g.graph.extend(nodes)
    return logits


def activate(g: GraphBuilder, logits: ir.Value, activation: str) -> ir.Value:
    """Append what turns logits [N, classes] into class scores float64 [N, classes]."""
    values = g.cast(logits, ir.DataType.DOUBLE)
    if activation == "softmax":
        return g.op("Softmax", values, axis=1)
    if activation == "sigmoid":
        one = g.floats(1.0, like=values)
        return g.op("Div", one, g.op("Add", one, g.op("Exp", g.op("Neg", values))))
    return values
