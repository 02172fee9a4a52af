"""Linking the imported network into the two graphs that run: forward and tapped.

Two graphs on purpose: `tapped` runs once per image; `forward` runs on every masked batch and exposes no inner tensor,
since an inner tensor that is also an output keeps runtimes from fusing the ops around it.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engine.export.cut import CutPoint
from engine.export.differentiate import append_gradients, sum_over_space
from engine.export.graph import GraphBuilder
from engine.export.source import Source

CLASSES = "targets"


def forward(source: Source) -> ir.Model:
    """Build `forward.onnx`: masked images [N, C, H, W] → logits [N, classes]."""
    model = source.model.clone()
    model.graph.name = "forward"
    return model


def tapped(source: Source, layers: Sequence[CutPoint]) -> ir.Model:
    """Build `tapped.onnx`: one image and K classes in; logits, feature maps and average gradients out, in one run.

    Inputs are the image [1, C, H, W] and `target` int64 [K], where −1 stands for the top-1 class. Outputs, in this
    order: logits [1, classes]; `target_index` int64 [K], the classes that were meant; F_1 … F_L [1, C_l, H_l, W_l];
    `average_gradient_1` … `average_gradient_L` [K, C_l], the sum over h and w of ∂logit/∂F_l(h, w).

    Source: SISE (arXiv 2010.00672), "Feature map selection": the average gradient.
    """
    model = source.model.clone()
    graph = model.graph
    graph.name = "tapped"
    image, logits = graph.inputs[0], graph.outputs[0]
    image.shape = ir.Shape([1, *source.image_shape])
    logits.shape = ir.Shape([1, source.classes])

    g = GraphBuilder(graph, "gradient")
    target = ir.Value(name="target", shape=ir.Shape([CLASSES]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(target)
    top = g.op("ArgMax", logits, axis=1, keepdims=0)
    top.dtype = ir.DataType.INT64
    chosen = g.op("Where", g.op("Less", target, g.ints(0)), top, target)
    chosen.dtype = ir.DataType.INT64
    rows = g.op("Unsqueeze", chosen, g.ints([1]))
    one_hot = g.cast(g.op("Equal", rows, g.ints(range(source.classes))), logits.dtype)

    values = {value.name: value for node in graph for value in node.outputs}
    maps = [values[layer.name] for layer in layers]
    gradients = append_gradients(g, {logits: one_hot}, maps, source.opset)
    averages = [sum_over_space(g, gradients[value]) for value in maps]

    _describe(chosen, "target_index", [CLASSES], ir.DataType.INT64)
    for number, (layer, value, average) in enumerate(zip(layers, maps, averages, strict=True), start=1):
        value.shape = ir.Shape([1, layer.channels, layer.height, layer.width])
        _describe(average, f"average_gradient_{number}", [CLASSES, layer.channels], logits.dtype)
    graph.outputs[:] = [logits, chosen, *maps, *averages]
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # the batch is 1 forward and K backward: what the source said no longer holds
    return model


def _describe(value: ir.Value, name: str, sizes: Sequence[int | str], dtype: ir.DataType | None) -> None:
    value.name, value.shape, value.type = name, ir.Shape(sizes), None if dtype is None else ir.TensorType(dtype)
