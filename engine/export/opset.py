"""Converting files of old opsets, through onnx's own converter, and an operator that it converts wrongly."""

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from engine.errors import ModelError
from engine.export.simplify import unique_name

_REFUSALS = (
    RuntimeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
)
OLDEST_OPSET = 11
WORKING_OPSET = 18
"""The oldest opset that the exporter works on; files of older ones are converted to it."""
_DEPRECATED_GROUPS = range(18, 21)


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the `ai.onnx` operators that a model uses, or 0.

    Raises:
        ModelError: It imports several, of which libraries take the first or the last.
    """
    versions = sorted({entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")})
    if len(versions) > 1:
        raise ModelError(
            f"imports the opsets {', '.join(map(str, versions))} of ONNX's operators; expected one: export the "
            "model again"
        )
    return versions[0] if versions else 0


def modernise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in opset 18 or newer; one that is new enough as it is.

    That the converted model computes the same is checked with the export: its graphs are compared with the file as it
    is.

    Raises:
        ModelError: The opset is older than 11 or newer than the installed onnx, or the converter refuses a node, which
            is named.
    """
    opset, newest = opset_of(proto), onnx.defs.onnx_opset_version()
    if opset > newest:
        raise ModelError(
            f"has opset {opset}; expected at most {newest}, which onnx {onnx.__version__} knows: export the model "
            "again with an older opset, or install a newer onnx"
        )
    if opset >= WORKING_OPSET:
        return proto
    if opset < OLDEST_OPSET:
        raise ModelError(f"has opset {opset}; expected {OLDEST_OPSET} or newer: export the model again")
    try:
        if proto.functions:  # the converter takes the graph's nodes only
            proto = onnx.inliner.inline_local_functions(proto)
        return onnx.version_converter.convert_version(proto, WORKING_OPSET)
    except _REFUSALS as err:
        node = _culprit(proto)
        subject = "onnx.version_converter" if node is None else f"{node.op_type} node {node.name or node.output[0]!r}"
        raise ModelError(
            f"{subject}: cannot be converted from opset {opset} to {WORKING_OPSET}: {' '.join(str(err).split())}; "
            f"export the model again with opset {WORKING_OPSET} or newer"
        ) from err


def expand_group_normalization(proto: onnx.ModelProto) -> bool:
    """Write each GroupNormalization of opset 18 to 20 as an InstanceNormalization of its groups, in place.

    ONNX has deprecated these versions, so its checker refuses what ONNX Runtime runs. Its converter calls them version
    21 and leaves one scale for each group, where version 21 takes one for each channel.

    Returns:
        Whether there was any.
    """
    graph = proto.graph
    if opset_of(proto) not in _DEPRECATED_GROUPS or not any(map(_is_group_normalization, graph.node)):
        return False
    taken: set[str | None] = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    expanded = onnx.GraphProto()
    for node in graph.node:
        if _is_group_normalization(node):
            expanded.node.extend(_by_instance(node, graph, taken))
        else:
            expanded.node.append(node)
    del graph.node[:]
    graph.node.extend(expanded.node)
    return True


def _is_group_normalization(node: onnx.NodeProto) -> bool:
    """Return whether it is one, and complete; onnx's checker says what the others lack."""
    standard = node.op_type == "GroupNormalization" and node.domain in ("", "ai.onnx")
    return standard and len(node.input) == 3 and any(entry.name == "num_groups" for entry in node.attribute)


def _by_instance(node: onnx.NodeProto, graph: onnx.GraphProto, taken: set[str | None]) -> list[onnx.NodeProto]:
    """Return nodes that reshape x to [N, groups, …], normalise each group, and reshape back to what x was."""
    x, scale, bias = node.input
    y = node.output[0]
    (count,) = (entry.i for entry in node.attribute if entry.name == "num_groups")
    names = [unique_name(f"{y}/{part}", taken) for part in ("groups", "shape", "grouped", "normalized")]
    taken.update(names)
    groups, shape, grouped, normalized = names
    graph.initializer.append(numpy_helper.from_array(np.array([0, count, -1], np.int64), groups))
    nodes = [
        helper.make_node("Shape", [x], [shape]),
        helper.make_node("Reshape", [x, groups], [grouped]),
        helper.make_node("InstanceNormalization", [grouped, scale, bias], [normalized]),
        helper.make_node("Reshape", [normalized, shape], [y]),
    ]
    nodes[2].attribute.extend(entry for entry in node.attribute if entry.name == "epsilon")
    for made in nodes:
        made.name = f"{node.name or y}/{made.output[0].removeprefix(f'{y}/')}"
    return nodes


def _culprit(proto: onnx.ModelProto) -> onnx.NodeProto | None:
    """Return the first node that the converter refuses when it is a model of its own."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto).graph
    except _REFUSALS:
        return None
    constants = {tensor.name: tensor for tensor in inferred.initializer}
    values = {value.name: value for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    for node in inferred.node:
        names = [name for name in node.input if name]
        alone = onnx.helper.make_graph(
            [node],
            "alone",
            [values.get(name, onnx.ValueInfoProto(name=name)) for name in names if name not in constants],
            [values.get(name, onnx.ValueInfoProto(name=name)) for name in node.output if name],
            [constants[name] for name in names if name in constants],
        )
        model = onnx.helper.make_model(alone, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        try:
            onnx.version_converter.convert_version(model, WORKING_OPSET)
        except _REFUSALS:
            return node
    return None
