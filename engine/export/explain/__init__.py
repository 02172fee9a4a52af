"""`explain.onnx`: the whole method in one graph, for hosts without Python.

The tapped pass; then `select`, `plan`, `score`, `combine` and `fuse`, the twins of the kernels in `engine.kernels` and
of `engine.budget`, made of operators of the ONNX standard.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from engine.export.cut import CutPoint
from engine.export.explain.combine import Masks, visualization_map
from engine.export.explain.fuse import fuse
from engine.export.explain.photo import photo_input, prepared
from engine.export.explain.plan import plan
from engine.export.explain.score import activate, score
from engine.export.explain.select import choose
from engine.export.graph import GraphBuilder
from engine.export.link import tapped
from engine.export.simplify import free_names
from engine.export.source import Source
from engine.preprocess import Preprocess

__all__ = ["explain"]


def explain(
    source: Source, layers: Sequence[CutPoint], facts: Mapping[str, str], preprocess: Preprocess | None = None
) -> ir.Model:
    """Build `explain.onnx`: an image and a class in, the heatmap and what was done out.

    Inputs: `image` float32 [1, C, H, W], or with `preprocess` uint8 [h, w, 3], a photo of any size; `target` int64 [1],
    where −1 stands for the top-1 class; `max_masks` int64 [1], the most masks to score, 0 for all: the scores of the
    others are estimated.

    Outputs: `heatmap` float32 [H, W] from 0 to 1, NaN if the network computes NaN or infinity; `target_index` int64
    [1]; `class_score` float32 [1]; `logits` float32 [1, classes]; `selected` and `scored` int64 [L], how many feature
    maps of each layer were selected, and how many masks were scored.

    Args:
        source: The network.
        layers: Its feature layers.
        facts: What a host that has this graph alone should know, as its metadata.
        preprocess: Take photos, and prepare them so.

    Source: Ada-SISE (arXiv 2102.07799).
    """
    model = tapped(source, layers)
    graph = model.graph
    graph.name = "explain"
    model.metadata_props.update(facts)
    g = GraphBuilder(graph, "explain")
    most = ir.Value(name="max_masks", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    graph.inputs.append(most)
    image, asked, _ = graph.inputs
    x = image if preprocess is None else _take_photos(g, preprocess)
    logits, target, *rest = graph.outputs
    # Not by Squeeze: ONNX Runtime 1.32 moves a DequantizeLinear behind it, into the loop, and aborts.
    tensors = [g.op("Gather", value, g.ints(0), axis=0) for value in rest]
    maps, averages = tensors[: len(layers)], tensors[len(layers) :]
    for value in rest:
        value.shape = None

    chosen = [
        choose(g, own, average, layer.channels) for own, average, layer in zip(maps, averages, layers, strict=True)
    ]
    channels = [own.channels for own in chosen]
    heatmap, counts = _heatmap(g, source, layers, maps, channels, (x, target, most), [logits, *averages])
    class_score = g.op("Reshape", g.op("Gather", activate(g, logits, source.activation), target, axis=1), g.ints([1]))
    outputs = {
        "heatmap": (heatmap, source.image_shape[1:]),
        "target_index": (target, [1]),
        "class_score": (g.cast(class_score, ir.DataType.FLOAT), [1]),
        "logits": (logits, [1, source.classes]),
        "selected": (g.op("Concat", *(own.selected for own in chosen), axis=0), [len(layers)]),
        "scored": (g.op("Concat", *counts, axis=0), [len(layers)]),
    }
    asked.shape = ir.Shape([1])
    inputs = dict(zip(("image", "target", "max_masks"), graph.inputs, strict=True))
    named = inputs | {name: value for name, (value, _) in outputs.items()}
    free_names(graph, named.__contains__)
    for name, value in named.items():
        value.name = name
    for value, sizes in outputs.values():
        value.shape = ir.Shape(sizes)
    graph.outputs[:] = [value for value, _ in outputs.values()]
    graph.sort()
    return model


def _take_photos(g: GraphBuilder, preprocess: Preprocess) -> ir.Value:
    """Put a photo in the place of the graph's image, which is made of it now, and return that."""
    image = g.graph.inputs[0]
    g.graph.inputs[0] = photo_input()
    made = prepared(g, g.graph.inputs[0], preprocess)
    ir.convenience.replace_all_uses_with(image, made)
    return made


def _heatmap(
    g: GraphBuilder,
    source: Source,
    layers: Sequence[CutPoint],
    maps: Sequence[ir.Value],
    channels: Sequence[ir.Value],
    inputs: tuple[ir.Value, ir.Value, ir.Value],
    computed: Sequence[ir.Value],
) -> tuple[ir.Value, list[ir.Value]]:
    """Append the phases after the selection.

    Args:
        g: Builder of the graph.
        source: The network.
        layers: Its feature layers.
        maps: F_l of each, float32 [C_l, h_l, w_l].
        channels: int64 [n_l], the masks of each.
        inputs: The image, the class and the most masks to score.
        computed: What the network has computed before, logits and average gradients.

    Returns:
        The heatmap float32 [H, W], NaN if the network computes anything that is not finite; and of each layer, int64
        [1], how many masks were scored.
    """
    image, target, most = inputs
    size = source.image_shape[1:]
    planned = plan(g, layers, maps, channels, most, size)
    every = g.count_up(g.op("Shape", planned.layers))
    numbers = [planned.of_layer(g, planned.order, number) for number in range(len(layers))]
    scored = [g.op("Gather", planned.channels, own) for own in numbers]
    found = score(g, source, image, target, maps, scored)
    places, zeros = g.op("Concat", *numbers, axis=0), g.op("Expand", g.doubles(0.0), g.op("Shape", planned.layers))
    scores, minimum, extent = (g.op("ScatterElements", zeros, places, value) for value in found)
    values = planned.values(g, g.op("Gather", scores, planned.order))
    views = []
    for number, layer in enumerate(layers):
        masks = Masks(
            channels=channels[number],
            values=g.op("Gather", values, planned.of_layer(g, every, number)),
            scored=scored[number],
            minimum=g.op("Gather", minimum, numbers[number]),
            extent=g.op("Gather", extent, numbers[number]),
        )
        sizes = (layer.channels, layer.height, layer.width)
        views.append(visualization_map(g, maps[number], masks, sizes, size))
    heatmap = g.op("Where", _is_finite(g, [*computed, *found]), fuse(g, views), g.doubles(np.nan))
    return g.cast(heatmap, ir.DataType.FLOAT), [g.op("Shape", own) for own in numbers]


def _is_finite(g: GraphBuilder, values: Sequence[ir.Value]) -> ir.Value:
    """Append whether all elements of all values are finite, bool [1]: else their sum less itself is NaN."""
    wide = [g.op("Reshape", g.cast(value, ir.DataType.DOUBLE), g.ints([-1])) for value in values]
    total = g.op("ReduceSum", g.op("Concat", *wide, axis=0), g.ints([0]))
    return g.op("Not", g.op("IsNaN", g.op("Sub", total, total)))
