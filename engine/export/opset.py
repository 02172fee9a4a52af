"""Converting files of old opsets, through onnx's own converter."""

import onnx

from engine.errors import ModelError

_REFUSALS = (
    RuntimeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
)
OLDEST_OPSET = 11
WORKING_OPSET = 17
"""The oldest opset that the exporter works on; files of older ones are converted to it."""


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
    """Return the model in opset 17 or newer; one that is new enough as it is.

    That the converted model computes the same is checked with the export: its graphs are compared with the file as it
    is.

    Raises:
        ModelError: The opset is older than 11, or the converter refuses a node, which is named.
    """
    opset = opset_of(proto)
    if opset >= WORKING_OPSET:
        return proto
    if opset < OLDEST_OPSET:
        raise ModelError(f"has opset {opset}; expected {OLDEST_OPSET} or newer: export the model again")
    try:
        return onnx.version_converter.convert_version(proto, WORKING_OPSET)
    except _REFUSALS as err:
        node = _culprit(proto)
        subject = "onnx.version_converter" if node is None else f"{node.op_type} node {node.name or node.output[0]!r}"
        raise ModelError(
            f"{subject}: cannot be converted from opset {opset} to {WORKING_OPSET}: {' '.join(str(err).split())}; "
            f"export the model again with opset {WORKING_OPSET} or newer"
        ) from err


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
