"""The ops that add a bias on the way from the image to the logits, and what they add.

Source: FullGrad (arXiv 1905.00780), sections 3 and 3.2: around an image a network of ReLUs is linear in the image and
its biases, so that logit = ⟨image, ∂logit/∂image⟩ + Σ ⟨bias, ∂logit/∂bias⟩. The bias of a batch normalisation is
implicit: what it adds, once its running statistics are constants.
Departs: what an op that is not linear adds beyond its slope, y − x·∂y/∂x, is counted for none: the bound that a Clip
holds its input at, the offset of a sigmoid, the value that a Pad fills in. The sum misses the logit by these.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from engine.export.differentiate import reached_by
from engine.export.graph import GraphBuilder, float_attribute, input_at, static_shape

_SUMS = frozenset({"Add", "Sub", "Sum"})
_ALONG_CHANNELS = frozenset(
    {"BatchNormalization", "Conv", "ConvTranspose", "GroupNormalization", "InstanceNormalization"}
)
_BIASED = _ALONG_CHANNELS | {"Gemm", "LayerNormalization"}
_BIAS = 2
"""The bias's place among the inputs of each of these."""
_LINEAR = frozenset(
    {
        *("Abs", "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "Dropout"),
        *("Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu"),
        *("MaxPool", "Neg", "PRelu", "ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu"),
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze"),
    }
)
_LINEAR_OF_ACTIVATIONS = frozenset({"Concat", "Max", "Min"})
_LINEAR_BY_CONSTANT = frozenset({"MatMul", "Mul"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasedOp:
    """An op that adds a bias to what it makes of the image.

    Attributes:
        name: Its output's name.
        op: Its operator.
        shape: Sizes of its output, but for the batch.
        inputs: Places of the inputs that make the bias.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]


def biased_ops(graph: ir.Graph) -> list[BiasedOp]:
    """List the ops with a bias between the image and the logits, in topological order.

    Args:
        graph: The imported graph, in topological order, with one input and the logits as its one output.
    """
    nodes, carrying = _way(graph)
    return [
        BiasedOp(
            name=str(node.outputs[0].name), op=node.op_type, shape=static_shape(node.outputs[0]), inputs=tuple(inputs)
        )
        for node in nodes
        if (inputs := _bias_inputs(node, carrying))
    ]


def is_piecewise_linear(graph: ir.Graph) -> bool:
    """Tell whether every op between the image and the logits is known to be linear, piece by piece, but for its bias.

    Then the image and the biases account for the whole logit. False says only that this is not known.
    """
    nodes, carrying = _way(graph)
    for node in nodes:
        moving = sum(value in carrying for value in node.inputs)
        if not (
            node.op_type in _LINEAR
            or (node.op_type in _LINEAR_OF_ACTIVATIONS and moving == len(node.inputs))
            or (node.op_type in _LINEAR_BY_CONSTANT and moving == 1)
        ):
            return False
    return True


def append_bias(g: GraphBuilder, node: ir.Node, inputs: Iterable[int]) -> ir.Value:
    """Append what an op adds, in a shape that broadcasts to its output's.

    Args:
        g: Builder of the graph that holds the node.
        node: The op.
        inputs: Places of the inputs that make its bias.
    """
    if node.op_type in _SUMS:
        first, *others = [_term(g, node, index) for index in inputs]
        for other in others:
            first = g.op("Add", first, other)
        return first
    bias = input_at(node, _BIAS)
    if node.op_type == "Gemm":
        return g.op("Mul", bias, g.floats(float_attribute(node, "beta", 1.0), bias))
    if node.op_type == "BatchNormalization":
        scale, mean, variance = (input_at(node, index) for index in (1, 3, 4))
        deviation = g.op("Sqrt", g.op("Add", variance, g.floats(float_attribute(node, "epsilon", 1e-5), variance)))
        bias = g.op("Sub", bias, g.op("Div", g.op("Mul", mean, scale), deviation))
    if node.op_type in _ALONG_CHANNELS:
        spatial = len(static_shape(node.outputs[0])) - 1
        bias = g.op("Reshape", bias, g.ints([-1, *[1] * spatial]))
    return bias


def _way(graph: ir.Graph) -> tuple[list[ir.Node], set[ir.Value]]:
    """Return the nodes through which a gradient flows from the logits to the image, and the values that carry it."""
    nodes = list(graph)
    carrying = reached_by(nodes, graph.inputs)
    leading = set(graph.outputs)
    way = []
    for node in reversed(nodes):
        moving = [value for value in node.inputs if value in carrying]
        if moving and any(value in leading for value in node.outputs):
            leading.update(value for value in moving if value is not None)
            way.append(node)
    return way[::-1], carrying


def _bias_inputs(node: ir.Node, carrying: set[ir.Value]) -> Sequence[int]:
    if node.op_type in _SUMS:
        return [index for index, value in enumerate(node.inputs) if value not in carrying]
    present = len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None
    return [_BIAS] if node.op_type in _BIASED and present else []


def _term(g: GraphBuilder, node: ir.Node, index: int) -> ir.Value:
    value = input_at(node, index)
    return g.op("Neg", value) if node.op_type == "Sub" and index == 1 else value
