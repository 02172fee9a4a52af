"""Reading the source model and bringing it into the one form that the exporter works on.

After `load_source` the graph has one image input [N, C, H, W] with a symbolic batch, one output, the logits [N,
classes], only constants and nodes that the logits need, and no names, times or paths from the machine that wrote the
file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from engine.errors import ModelError
from engine.export.fold import fold_batch_normalization
from engine.export.graph import static_shape
from engine.export.logits import cut_off_activation, flatten_logits
from engine.export.simplify import BATCH, free_names, keep_only_outputs, settle_shapes, simplify, strip

IR_VERSION = 10
OLDEST_OPSET = 17
_INVALID = (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The source model as it was read, and as the exporter works on it.

    Attributes:
        path: The ONNX file.
        sha256: Hash of the file and, in the order of their names, of the files of its external weights; in hexadecimal.
        output: Name of the output that was compiled, as the file names it.
        original: The file's model as it is, but with the logits as its one output: what the export is compared with.
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
    proto, sha256 = _read(path)
    original = onnx.ModelProto()
    original.CopyFrom(proto)
    strip(proto)
    model = ir.from_proto(proto)
    chosen = _choose_output(path, model.graph, output)
    simplify(model)
    graph = model.graph
    _check_input(path, graph)
    keep_only_outputs(model)
    _settle_shapes(path, model)
    own_or_asked = cut_off_activation(graph, chosen, activation)
    logits = str(graph.outputs[0].name)
    flatten_logits(graph)
    fold_batch_normalization(graph)
    keep_only_outputs(model)
    _settle_shapes(path, model)
    free_names(graph)

    del original.graph.output[:]
    original.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, "ada-sise-engine", None
    model.model_version, model.domain, graph.name = None, None, "network"
    (classes,) = static_shape(graph.outputs[0])
    return Source(
        path=path,
        sha256=sha256,
        output=chosen,
        original=original,
        model=model,
        activation=own_or_asked,
        classes=classes,
    )


def _settle_shapes(path: Path, model: ir.Model) -> None:
    try:
        settle_shapes(model)
    except ModelError as err:
        raise type(err)(f"{path}: {err}") from err


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read a model with its external weights; return it and the hash of all its bytes."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ModelError(f"{path}: cannot be read: {err.strerror}; expected an ONNX file") from err
    digest = hashlib.sha256(data)
    try:
        proto = onnx.load_model_from_string(data)
        external = {_location(tensor) for tensor in proto.graph.initializer} - {None}
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto, full_check=True)
        for location in sorted(map(str, external)):
            digest.update((path.parent / location).read_bytes())
    except _INVALID as err:
        raise ModelError(f"{path}: is not a valid ONNX model: {str(err).strip().splitlines()[0]}") from err
    for entry in proto.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for node in proto.graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
    opset = next((entry.version for entry in proto.opset_import if entry.domain == ""), 0)
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"{path}: has opset {opset}; expected {OLDEST_OPSET} or newer: convert it with onnx.version_converter, or "
            "export the model again"
        )
    return proto, digest.hexdigest()


def _location(tensor: onnx.TensorProto) -> str | None:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), None)


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
