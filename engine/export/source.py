"""Reading the source model and bringing it into the one form that the exporter works on.

After `load_source` the graph has one image input [N, C, H, W] with a symbolic batch, one output, the logits [N,
classes], only constants and nodes that the logits need, and no names, times or paths from the machine that wrote the
file.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx_ir.passes import common as passes

from engine.errors import ModelError
from engine.export.fold import fold_batch_normalization
from engine.export.graph import describe, static_shape
from engine.export.logits import cut_off_activation, flatten_logits

IR_VERSION = 10
OLDEST_OPSET = 17
BATCH = "batch"
_PROBE_BATCH = 7919
_RESERVED = re.compile(r"target|target_index|average_gradient_\d+|(gradient|gradient_of|sum_of_gradient_of)/.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The source model as it was read, and as the exporter works on it.

    Attributes:
        path: The ONNX file.
        sha256: Hash of the file, in hexadecimal.
        output: Name of the output that was compiled, as the file names it.
        original: The file's model with the logits as its one output: what the export is compared with.
        model: The imported model: image in, logits out.
        activation: `softmax`, `sigmoid` or `none`: what turns logits into class scores.
        classes: Number of logits.
    """

    path: Path
    sha256: str
    output: str
    original: onnx.ModelProto
    model: ir.Model
    activation: str
    classes: int

    @property
    def opset(self) -> int:
        """The model's version of the `ai.onnx` operators."""
        return self.model.opset_imports[""]

    @property
    def input(self) -> ir.Value:
        """The image input [N, C, H, W]."""
        return self.model.graph.inputs[0]

    @property
    def logits(self) -> ir.Value:
        """The logits [N, classes]."""
        return self.model.graph.outputs[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Sizes C, H and W of the image input."""
        channels, height, width = static_shape(self.input)
        return channels, height, width


def load_source(path: Path, *, output: str | None = None, activation: str | None = None) -> Source:
    """Read an ONNX classifier.

    Args:
        path: The ONNX file.
        output: Name of the output that holds the class scores; needed when the model has several.
        activation: `softmax`, `sigmoid` or `none`; needed when the model does not end in its activation.

    Raises:
        ModelError: The file is not an ONNX classifier of the form that is expected; the message says what was found.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror}; expected an ONNX file") from err
    try:
        proto = onnx.load_model_from_string(data)
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as err:
        raise ModelError(f"{path}: is not a valid ONNX model: {str(err).strip().splitlines()[0]}") from err
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"{path}: has opset {opset}; expected {OLDEST_OPSET} or newer: convert it with onnx.version_converter, or "
            "export the model again"
        )

    _strip(proto)
    model = ir.from_proto(proto)
    chosen = _choose_output(path, model.graph, output)
    ir.passes.Sequential(
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.IdentityEliminationPass(),
    )(model)
    graph = model.graph
    _drop_dropout(graph)
    _check_input(path, graph)
    passes.ShapeInferencePass()(model)
    used = cut_off_activation(graph, chosen, activation)
    del proto.graph.output[:]
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info(str(graph.outputs[0].name), onnx.TensorProto.FLOAT, None)
    )
    _keep_only_logits(model)
    flatten_logits(graph)
    fold_batch_normalization(graph)
    _keep_only_logits(model)
    _settle_shapes(path, model)
    _name_nodes(graph)
    _free_names(graph)
    (classes,) = static_shape(graph.outputs[0])
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "ada-sise-engine", None
    model.model_version, model.domain, graph.name = None, None, "network"
    return Source(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        output=chosen,
        original=proto,
        model=model,
        activation=used,
        classes=classes,
    )


def _drop_dropout(graph: ir.Graph) -> None:
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Dropout" and source is not None and not any(value.uses() for value in node.outputs[1:]):
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _check_input(path: Path, graph: ir.Graph) -> None:
    found = ", ".join(f"{value.name!r} {value.shape}" for value in graph.inputs)
    if len(graph.inputs) != 1:
        raise ModelError(f"{path}: has {len(graph.inputs)} inputs ({found}); expected one, the image [N, C, H, W]")
    image = graph.inputs[0]
    if image.dtype != ir.DataType.FLOAT:
        raise ModelError(f"{path}: input {image.name!r} holds {image.dtype}; expected float32 images")
    if image.shape is None or image.shape.rank() != 4:
        raise ModelError(f"{path}: input {found}; expected one image input of four axes [N, C, H, W]")
    batch, channels, height, width = image.shape
    if isinstance(batch, int):
        raise ModelError(
            f"{path}: input {found} has its batch fixed at {batch}; expected a symbolic first axis: export the model "
            "with a dynamic batch (torch.onnx.export: dynamic_shapes, or dynamic_axes={0: 'batch'})"
        )
    if not (isinstance(height, int) and isinstance(width, int)):
        raise ModelError(f"{path}: input {found} has no fixed image size; expected a known H and W")
    if channels not in (1, 3):
        raise ModelError(f"{path}: input {found} has {channels} channels; expected 1 or 3, as [N, C, H, W]")
    image.shape = ir.Shape([BATCH, channels, height, width])


def _choose_output(path: Path, graph: ir.Graph, output: str | None) -> str:
    names = [value.name or "" for value in graph.outputs]
    if output is None and len(names) != 1:
        raise ModelError(f"{path}: has the outputs {', '.join(names)}; choose the class scores with --output-name NAME")
    if output is not None and output not in names:
        raise ModelError(f"{path}: has no output {output!r}; its outputs are {', '.join(names)}")
    chosen = output or names[0]
    graph.outputs[:] = [graph.outputs[names.index(chosen)]]
    return chosen


def _keep_only_logits(model: ir.Model) -> None:
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)


def _settle_shapes(path: Path, model: ir.Model) -> None:
    """Give every tensor its shape, [batch, sizes …].

    Shapes are inferred with a prime for the batch, so that a tensor whose axis 0 is anything else shows.

    Raises:
        ModelError: Axis 0 of a tensor is not the batch, or the size of another axis cannot be inferred.
    """
    probe = model.clone()
    image = probe.graph.inputs[0]
    image.shape = ir.Shape([_PROBE_BATCH, *static_shape(image)])
    for node in probe.graph:
        for value in node.outputs:
            value.shape = None
    passes.ShapeInferencePass()(probe)
    for node, probed in zip(model.graph, probe.graph, strict=True):
        for value, found in zip(node.outputs, probed.outputs, strict=True):
            if not value.uses() and not value.is_graph_output():
                continue
            sizes = () if found.shape is None else tuple(found.shape)
            if not sizes or sizes[0] != _PROBE_BATCH or not all(isinstance(size, int) for size in sizes):
                shown = (
                    "unknown"
                    if found.shape is None
                    else ", ".join("batch" if size == _PROBE_BATCH else str(size) for size in sizes)
                )
                raise ModelError(
                    f"{path}: {describe(node)} makes {value.name!r} of shape [{shown}]; "
                    "expected the batch on axis 0 and a known size on every other axis: export the model with a "
                    "dynamic batch and a fixed image size"
                )
            value.shape = ir.Shape([BATCH, *sizes[1:]])


def _strip(message: Message) -> None:
    """Remove documentation and metadata, which hold paths and stack traces, from a message and all those in it."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for entry in value if field.is_repeated else (value,):
                _strip(entry)


def _free_names(graph: ir.Graph) -> None:
    """Rename tensors of the source that are called like what the exporter adds."""
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    taken = {value.name for value in values}
    for value in values:
        name = value.name or ""
        if _RESERVED.fullmatch(name):
            while name in taken:
                name += "_"
            taken.add(name)
            value.name = name


def _name_nodes(graph: ir.Graph) -> None:
    for position, node in enumerate(graph):
        node.name = node.name or f"{node.op_type}_{position}"
