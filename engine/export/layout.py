"""Bringing a network that takes its images channels last, [N, H, W, C], to channels first."""

import onnx_ir as ir

from engine.export.graph import GraphBuilder, ints_attribute

_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)


def take_channels_first(graph: ir.Graph) -> None:
    """Make the image input [N, C, H, W] of a graph that takes it as [N, H, W, C].

    A Transpose brings the image back to what the graph expects; where the graph's own Transpose undoes that, as in
    files of tf2onnx, both vanish.
    """
    image = graph.inputs[0]
    sizes = tuple(image.shape or ())
    first = ir.Value(name=image.name, shape=ir.Shape([sizes[axis] for axis in _TO_FIRST]), type=image.type)
    graph.inputs[0] = first
    image.name = f"{image.name}/channels_last"
    last = GraphBuilder(graph, "layout").op("Transpose", first, perm=_TO_LAST)
    transpose = last.producer()
    image.replace_all_uses_with(last)
    for node in [node for node, _ in last.uses()]:
        if node.op_type == "Transpose" and ints_attribute(node, "perm", ()) == _TO_FIRST:
            node.outputs[0].replace_all_uses_with(first, replace_graph_outputs=True)
            graph.remove(node, safe=True)
    if transpose is not None and not last.uses():
        graph.remove(transpose, safe=True)
