"""Finding the logits: the tensor before the model's last activation."""

import math

import onnx_ir as ir

from engine.bundle import ACTIVATIONS
from engine.errors import ModelError, OptionError
from engine.export.graph import GraphBuilder, describe, input_at, int_attribute, static_shape

_BY_OP = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def cut_off_activation(graph: ir.Graph, output: str, activation: str | None) -> str:
    """Make the logits the graph's output and return the name of the activation.

    A trailing Softmax, LogSoftmax or Sigmoid is cut off, also when Squeeze, Reshape or Flatten follow it.

    Args:
        graph: The graph, with the class scores as its one output.
        output: Name of that output as the file has it, for messages.
        activation: What the user asked for, or None to take the model's own.

    Raises:
        OptionError: The activation asked for is unknown, or is not the one that the model ends in.
        ModelError: The model ends in no activation and none was asked for.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise OptionError(f"activation {activation!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    node = graph.outputs[0].producer()
    while node is not None and node.op_type in _VIEWS:
        node = input_at(node, 0).producer()
    own = None if node is None else _BY_OP.get(node.op_type)
    if own is None or node is None:
        if activation is None:
            raise ModelError(
                f"output {output!r} comes from no Softmax, LogSoftmax or Sigmoid, so what turns it into class scores "
                f"is unknown; choose with --activation: {', '.join(ACTIVATIONS)}"
            )
        return activation
    if activation not in (None, own):
        raise OptionError(
            f"activation {activation!r} contradicts the model, which ends in {describe(node)}; expected {own!r} or "
            "nothing"
        )
    logits = input_at(node, 0)
    if node.op_type in ("Softmax", "LogSoftmax") and logits.shape is not None:
        sizes = tuple(logits.shape)
        axis = int_attribute(node, "axis", -1)
        if math.prod(size for size in sizes[1:] if isinstance(size, int)) != sizes[axis]:
            raise ModelError(
                f"{describe(node)}: normalises axis {axis} of {logits.shape}; expected that of the classes"
            )
    graph.outputs[:] = [logits]
    return own


def flatten_logits(graph: ir.Graph) -> None:
    """Make logits of shape [N, classes, 1, 1], or [N, 1, 1, classes], into [N, classes].

    Raises:
        ModelError: The output has another shape.
    """
    logits = graph.outputs[0]
    sizes = () if logits.shape is None else tuple(logits.shape)
    if len(sizes) == 2:
        return
    if len(sizes) < 2 or sum(size != 1 for size in sizes[1:]) > 1:
        raise ModelError(f"output {logits.name!r} has shape {logits.shape}; expected class scores [N, classes]")
    flat = GraphBuilder(graph, "logits").op("Flatten", logits, axis=1)
    flat.shape = ir.Shape([sizes[0], math.prod(static_shape(logits))])
    graph.outputs[:] = [flat]


def expand_one_logit(graph: ir.Graph) -> None:
    """Make the one logit z of a sigmoid classifier into two, [-z, z]: its sigmoids are the scores of "no" and "yes"."""
    logit = graph.outputs[0]
    g = GraphBuilder(graph, "logits")
    negative = g.op("Neg", logit)
    both = g.op("Concat", negative, logit, axis=1)
    batch = (logit.shape or ())[:1]
    negative.shape, both.shape = ir.Shape([*batch, 1]), ir.Shape([*batch, 2])
    graph.outputs[:] = [both]
