"""Linking the imported network into the graphs that run: forward and tapped, and those of input gradients.

Forward and tapped are two graphs on purpose: `tapped`, or `last_layer` in its place, runs once per image; `forward`
runs on every masked batch and exposes no inner tensor, since an inner tensor that is also an output keeps runtimes from
fusing the ops around it.
For the same reason `gradient` is not `full_gradient` with fewer outputs asked for.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engine.export.biases import BiasedOp, append_bias
from engine.export.cut import CutPoint
from engine.export.differentiate import append_gradients, sum_over_space
from engine.export.graph import GraphBuilder
from engine.export.shapes import BATCH
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
    return _tapped(source, "tapped", list(enumerate(layers, start=1)))


def last_layer(source: Source, layers: Sequence[CutPoint]) -> ir.Model:
    """Build `last_layer.onnx`: as `tapped.onnx`, with F_L and `average_gradient_L` of the last layer alone.

    It costs little more than a forward pass, since the gradient goes back through the head only.
    """
    return _tapped(source, "last_layer", [(len(layers), layers[-1])])


def _tapped(source: Source, name: str, layers: Sequence[tuple[int, CutPoint]]) -> ir.Model:
    model = source.model.clone()
    graph = model.graph
    graph.name = name
    image, logits = graph.inputs[0], graph.outputs[0]
    image.shape = ir.Shape([1, *source.image_shape])
    logits.shape = ir.Shape([1, source.classes])

    g = GraphBuilder(graph, "gradient")
    target = _append_target(graph, CLASSES)
    top = g.op("ArgMax", logits, axis=1, keepdims=0)
    top.dtype = ir.DataType.INT64
    chosen = g.op("Where", g.op("Less", target, g.ints(0)), top, target)
    chosen.dtype = ir.DataType.INT64
    values = {value.name: value for node in graph for value in node.outputs}
    maps = [values[layer.name] for _, layer in layers]
    gradients = append_gradients(g, {logits: _one_hot(g, chosen, logits, source.classes)}, maps, source.opset)
    averages = [sum_over_space(g, gradients[value]) for value in maps]

    _describe(chosen, "target_index", [CLASSES], ir.DataType.INT64)
    for (number, layer), value, average in zip(layers, maps, averages, strict=True):
        value.shape = ir.Shape([1, layer.channels, layer.height, layer.width])
        _describe(average, f"average_gradient_{number}", [CLASSES, layer.channels], logits.dtype)
    graph.outputs[:] = [logits, chosen, *maps, *averages]
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # the batch is 1 forward and K backward: what the source said no longer holds
    return model


def gradient(source: Source) -> ir.Model:
    """Build `gradient.onnx`: images and a class for each in; logits, and the gradients at the images, in one run.

    Inputs are images [N, C, H, W] and `target` int64 [N], the class of each. Outputs, in this order: logits
    [N, classes]; `image_gradient` [N, C, H, W], ∂logit/∂image. It is 0 for a target that is no class.

    Raises:
        UnsupportedOpError: A node between the image and the logits has no gradient rule.
    """
    return _at_image(source, "gradient", ())


def full_gradient(source: Source, biased: Sequence[BiasedOp]) -> ir.Model:
    """Build `full_gradient.onnx`: as `gradient.onnx`, and then what each bias adds to the logit.

    The outputs after the two are `bias_attribution_1` …, one for each biased op: the gradient at the op's output times
    its bias, of the output's shape [N, …].

    Source: FullGrad (arXiv 1905.00780), section 3.
    Departs: nothing is post-processed, and no channels are summed: that is the caller's.

    Raises:
        UnsupportedOpError: A node between the image and the logits has no gradient rule.
    """
    return _at_image(source, "full_gradient", biased)


def _at_image(source: Source, name: str, biased: Sequence[BiasedOp]) -> ir.Model:
    model = source.model.clone()
    graph = model.graph
    graph.name = name
    image, logits = graph.inputs[0], graph.outputs[0]
    g = GraphBuilder(graph, "gradient")
    target = _append_target(graph, BATCH)
    nodes = {node.outputs[0].name: node for node in graph}
    ops = [nodes[op.name] for op in biased]
    wanted = [image, *(node.outputs[0] for node in ops)]
    gradients = append_gradients(g, {logits: _one_hot(g, target, logits, source.classes)}, wanted, source.opset)
    graph.outputs.append(gradients[image])
    for number, (op, node) in enumerate(zip(biased, ops, strict=True), start=1):
        attribution = g.op("Mul", gradients[node.outputs[0]], append_bias(g, node, op.inputs))
        _describe(attribution, f"bias_attribution_{number}", [BATCH, *op.shape], logits.dtype)
        graph.outputs.append(attribution)
    _describe(gradients[image], "image_gradient", [BATCH, *source.image_shape], logits.dtype)
    return model


def _append_target(graph: ir.Graph, size: str) -> ir.Value:
    target = ir.Value(name="target", shape=ir.Shape([size]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(target)
    return target


def _one_hot(g: GraphBuilder, target: ir.Value, logits: ir.Value, classes: int) -> ir.Value:
    """Append the gradient of each target's logit at the logits [K, classes]: 1 at the target, else 0."""
    rows = g.op("Unsqueeze", target, g.ints([1]))
    return g.cast(g.op("Equal", rows, g.ints(range(classes))), logits.dtype)


def _describe(value: ir.Value, name: str, sizes: Sequence[int | str], dtype: ir.DataType | None) -> None:
    value.name, value.shape, value.type = name, ir.Shape(sizes), None if dtype is None else ir.TensorType(dtype)
