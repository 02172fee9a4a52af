"""Bringing a graph into the one form that the exporter works on, without changing what it computes."""

import math
import re

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common as passes

from engine.errors import ModelError
from engine.export.graph import describe
from engine.export.windows import kernel_shape, windows_of

BATCH = "batch"
_PROBE_BATCH = 7919
_LARGEST_SHAPE_ARGUMENT = 1024
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"})
_SHAPE_UNKNOWN_TO_ONNX = frozenset({"GroupNormalization"})  # it is that of the input
_POOLS = frozenset({"AveragePool", "MaxPool"})
_RESERVED = re.compile(r"target|target_index|average_gradient_\d+|(gradient|gradient_of|sum_of_gradient_of)/.*")


def strip(message: Message) -> None:
    """Remove documentation and metadata, which hold paths and stack traces, from a message and all those in it."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for entry in (value,) if isinstance(value, Message) else value:
                strip(entry)


def simplify(model: ir.Model) -> None:
    """Inline functions, make all that is constant an initializer, drop what does nothing, and name every node."""
    ir.passes.Sequential(
        passes.InlinePass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.IdentityEliminationPass(),
    )(model)
    graph = model.graph
    _drop_dropout(graph)
    _fold_constants(graph, model.opset_imports[""])
    _name_nodes(graph)


def keep_only_outputs(model: ir.Model) -> None:
    """Remove what the outputs do not need, and put the nodes into topological order."""
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)


def settle_shapes(model: ir.Model) -> None:
    """Give every tensor its shape, [batch, sizes …].

    Shapes are inferred with a prime for the batch, so that a tensor whose axis 0 is anything else shows.

    Raises:
        ModelError: Axis 0 of a tensor is not the batch, or the size of another axis cannot be inferred.
        UnsupportedOpError: Runtimes give a pool another size than ONNX.
    """
    inferred = _infer_shapes(model)
    for node in model.graph:
        for value in node.outputs:
            if value.uses() or value.is_graph_output():
                value.shape, value.type = _settled(node, value, inferred.get(str(value.name)))
        if node.op_type in _POOLS and len(kernel_shape(node)) == 2:
            windows_of(node, kernel_shape(node))  # refuses windows that runtimes leave out


def free_names(graph: ir.Graph) -> None:
    """Rename tensors of the source that are called like what the exporter adds: `target` becomes `source/target`."""
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    taken = {value.name for value in values}
    for value in values:
        name = value.name or ""
        if _RESERVED.fullmatch(name):
            value.name = unique_name(f"source/{name}", taken)
            taken.add(value.name)


def unique_name(name: str, taken: set[str | None]) -> str:
    """Return the name, with underscores at the end while it is taken."""
    while name in taken:
        name += "_"
    return name


def _infer_shapes(model: ir.Model) -> dict[str, ir.Value]:
    """Infer types and shapes with the probe batch; values by name, but for those of which nothing is known."""
    proto = ir.to_proto(model)
    graph = proto.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = _PROBE_BATCH
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        if node.op_type in _SHAPE_UNKNOWN_TO_ONNX:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    kept = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= _LARGEST_SHAPE_ARGUMENT]
    others = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > _LARGEST_SHAPE_ARGUMENT]
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in others)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as err:
        raise ModelError(f"does not take batches of any size: {' '.join(str(err).split())}") from err
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return {value.name: ir.serde.deserialize_value_info_proto(value, None) for value in values}


def _settled(node: ir.Node, value: ir.Value, found: ir.Value | None) -> tuple[ir.Shape, ir.TypeProtocol | None]:
    if found is None or found.shape is None:
        foreign = f"is of the operator {node.domain}::{node.op_type}, none of ONNX's own"
        reason = foreign if node.domain else f"makes {value.name!r} of unknown shape"
        raise ModelError(f"{describe(node)}: {reason}; expected standard operators whose shapes ONNX can infer")
    sizes = tuple(found.shape)
    if sizes and sizes[0] == _PROBE_BATCH and all(isinstance(size, int) for size in sizes):
        return ir.Shape([BATCH, *sizes[1:]]), found.type
    raise ModelError(
        f"{describe(node)} makes {value.name!r} of shape [{', '.join(map(_shown, sizes))}]; expected the batch on axis "
        "0 and a known size on every other axis: export the model with a dynamic batch and a fixed image size"
    )


def _shown(size: object) -> str:
    if isinstance(size, int) and size % _PROBE_BATCH == 0:
        return BATCH if size == _PROBE_BATCH else f"{size // _PROBE_BATCH}·{BATCH}"
    return str(size)


def _drop_dropout(graph: ir.Graph) -> None:
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Dropout" and source is not None and not any(value.uses() for value in node.outputs[1:]):
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _fold_constants(graph: ir.Graph, opset: int) -> None:
    """Replace every node whose inputs are all constants by its outcome in onnx's reference implementation."""
    for node in list(graph):
        inputs = {str(value.name): value.const_value for value in node.inputs if value is not None}
        graphs = any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        if not inputs or None in inputs.values() or node.domain or graphs or node.op_type in _RANDOM:
            continue
        evaluator = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset})
        arrays = {name: tensor.numpy() for name, tensor in inputs.items() if tensor is not None}
        for output, outcome in zip(node.outputs, evaluator.run(None, arrays), strict=True):
            array = np.asarray(outcome)
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
