"""Finding the logits: the tensor before the model's last activation."""

import onnx_ir as ir

from engine.bundle import ACTIVATIONS
from engine.errors import ModelError, OptionError
from engine.export.graph import GraphBuilder, describe, input_at, int_attribute

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
    if node.op_type in ("Softmax", "LogSoftmax"):
        rank = 0 if logits.shape is None else logits.shape.rank()
        axis = int_attribute(node, "axis", -1)
        if rank and axis % rank != 1:
            raise ModelError(
                f"{describe(node)}: normalises axis {axis} of {logits.shape}; expected axis 1, the classes"
            )
    graph.outputs[:] = [logits]
    return own


def flatten_logits(graph: ir.Graph) -> None:
    """Make logits of shape [N, classes, 1, 1] into [N, classes].

    Raises:
        ModelError: The output has another shape.
    """
    logits = graph.outputs[0]
    sizes = () if logits.shape is None else tuple(logits.shape)
    if len(sizes) == 2:
        return
    if len(sizes) < 2 or any(size != 1 for size in sizes[2:]):
        raise ModelError(f"output {logits.name!r} has shape {logits.shape}; expected class scores [N, classes]")
    graph.outputs[:] = [GraphBuilder(graph, "logits").op("Flatten", logits, axis=1)]
