"""Bringing a graph into the one form that the exporter works on, without changing what it computes."""

import re
from collections.abc import Callable

import onnx_ir as ir
from google.protobuf.message import Message
from onnx_ir.passes import common as passes

from engine.errors import ModelError
from engine.export.constants import compute

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"})
_QUANTIZATION = frozenset({"DequantizeLinear", "QuantizeLinear"})
_RESERVED = re.compile(
    r"target|target_index|average_gradient_\d+|image_gradient|bias_attribution_\d+"
    r"|(gradient|gradient_of|sum_of_gradient_of)/.*"
)


def strip(message: Message) -> None:
    """Remove documentation and metadata, which hold paths and stack traces, from a message and all those in it."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for entry in (value,) if isinstance(value, Message) else value:
                strip(entry)


def simplify(model: ir.Model) -> None:
    """Inline functions, make all that is constant an initializer, drop what does nothing, and name every node.

    Raises:
        ModelError: A function cannot be inlined, or a node of constants cannot be computed.
    """
    try:
        ir.passes.Sequential(
            passes.InlinePass(),
            passes.RemoveInitializersFromInputsPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.IdentityEliminationPass(),
        )(model)
    except ir.passes.PassError as err:
        raise ModelError(f"cannot be simplified: {err.__cause__ or err}; export the model again") from err
    graph = model.graph
    _drop_dropout(graph)
    _fold_constants(graph, model.opset_imports[""])
    _name_nodes(graph)


def keep_only_outputs(model: ir.Model) -> None:
    """Remove what the outputs do not need, and put the nodes into topological order."""
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)


def free_names(graph: ir.Graph, reserved: Callable[[str], object] = _RESERVED.fullmatch) -> None:
    """Rename tensors of the source that are called like what the exporter adds: `target` becomes `source/target`.

    Args:
        graph: The graph.
        reserved: Whether a name is such; by default one that the linked graphs have.
    """
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    taken = {value.name for value in values}
    for value in values:
        name = value.name or ""
        if reserved(name):
            value.name = unique_name(f"source/{name}", taken)
            taken.add(value.name)


def has_graphs(node: ir.Node) -> bool:
    """Return whether the node holds graphs, as If and Loop do."""
    return any(attribute.type in _GRAPHS for attribute in node.attributes.values())


def is_random(op_type: str) -> bool:
    """Return whether the operator's outcome is drawn at random."""
    return op_type in _RANDOM


def unique_name(name: str, taken: set[str | None]) -> str:
    """Return the name, with underscores at the end while it is taken."""
    while name in taken:
        name += "_"
    return name


def _drop_dropout(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type != "Dropout" or any(value.uses() for value in node.outputs[1:]):
            continue
        source = node.inputs[0] if node.inputs else None
        if source is not None and _is_inference(node):
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _is_inference(node: ir.Node) -> bool:
    """Return whether a Dropout is known to drop nothing: its training_mode, input 2, is absent or false."""
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    return mode is None or (mode.const_value is not None and not mode.const_value.numpy().any())


def _fold_constants(graph: ir.Graph, opset: int) -> None:
    """Replace every node whose inputs are all constants by its outcome in onnx's reference implementation.

    In a graph that quantizes activations the quantized weights stay, so that runtimes may compute with integers.
    """
    quantized = any(node.op_type == "QuantizeLinear" for node in graph)
    for node in list(graph):
        inputs = {str(value.name): value.const_value for value in node.inputs if value is not None}
        if not inputs or None in inputs.values() or node.domain or has_graphs(node) or is_random(node.op_type):
            continue
        if quantized and node.op_type in _QUANTIZATION:
            continue
        arrays = {name: tensor.numpy() for name, tensor in inputs.items() if tensor is not None}
        for output, array in zip(node.outputs, compute(ir.to_proto(node), arrays, opset), strict=True):
            tensor = ir.tensor(array, name=output.name)
            value = ir.Value(name=output.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            output.replace_all_uses_with(value, replace_graph_outputs=True)
            output.name = f"{output.name}/folded"
            graph.register_initializer(value)
        graph.remove(node, safe=True)


def _name_nodes(graph: ir.Graph) -> None:
    taken: set[str | None] = set()
    for position, node in enumerate(graph):
        node.name = unique_name(node.name or f"{node.op_type}_{position}", taken)
        taken.add(node.name)
