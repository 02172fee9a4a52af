"""Reading the source model and bringing it into the one form that the exporter works on.

After `load_source` the graph has one float32 image input [N, C, H, W] with a symbolic batch, one output, the logits [N,
classes], only constants and nodes that the logits need, and no names, times or paths from the machine that wrote the
file.
"""

import hashlib
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from engine.errors import ModelError, OptionError
from engine.export.constants import LARGEST_TENSOR
from engine.export.fold import fold_batch_normalization
from engine.export.graph import static_shape
from engine.export.layout import take_channels_first
from engine.export.logits import cut_off_activation, expand_one_logit, flatten_logits
from engine.export.opset import expand_group_normalization, modernise, opset_of
from engine.export.original import Original
from engine.export.shapes import BATCH, free_batch, settle_shapes
from engine.export.simplify import free_names, keep_only_outputs, simplify, strip
from engine.export.widen import widen

IR_VERSION = 10
_INVALID = (DecodeError, onnx.checker.ValidationError, ValueError, OSError)
_CHANNELS = (1, 3)
_LONGEST_REASON = 300
Kind = TypeVar("Kind", bound=Message)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The source model as it was read, and as the exporter works on it.

    Attributes:
        name: What messages call the model: its file.
        sha256: Hash of the file and, in the order of their names, of the files of its external weights; in hexadecimal.
        output: Name of the output that was compiled, as the file names it.
        original: The file's model as it is: what the export is compared with.
        model: The imported model: image in, logits out.
        activation: `softmax`, `sigmoid` or `none`: what turns logits into class scores.
        classes: Number of logits.
        notes: How the model differed from the form that it was brought into.
    """

    name: str
    sha256: str
    output: str
    original: Original
    model: ir.Model
    activation: str
    classes: int
    notes: tuple[str, ...]

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


def load_source(
    path: Path,
    *,
    name: str | None = None,
    output: str | None = None,
    activation: str | None = None,
    size: tuple[int, ...] | None = None,
) -> Source:
    """Read an ONNX classifier.

    Args:
        path: The ONNX file.
        name: What messages call the model; by default the file.
        output: Name of the output that holds the class scores; needed when the model has several.
        activation: `softmax`, `sigmoid` or `none`; needed when the model does not end in its activation.
        size: Height and width of the images, or channels, height and width; needed when the file leaves them open.

    Raises:
        ModelError: The file is not an ONNX classifier of the form that is expected; the message says what was found.
        OptionError: The activation or the size contradicts the file.
    """
    name = name or str(path)
    try:
        return _load(path, name, output, activation, size)
    except ModelError as err:
        raise type(err)(f"{name}: {err}") from err


def _load(path: Path, name: str, output: str | None, activation: str | None, size: tuple[int, ...] | None) -> Source:
    proto, sha256 = _read(path)
    opset = opset_of(proto)
    proto = modernise(proto)
    strip(proto)
    try:
        model = ir.from_proto(proto)
    except ir.serde.SerdeError as err:
        raise _invalid(err) from err
    model.ir_version = IR_VERSION
    graph = model.graph
    chosen = _choose_output(graph, output)
    _expect_finite(graph)
    simplify(model)
    quantized = any(node.op_type == "QuantizeLinear" for node in graph)
    half_input = len(graph.inputs) == 1 and graph.inputs[0].dtype == ir.DataType.FLOAT16
    half = widen(graph)
    batch, channels_last = _settle_input(graph, size)
    keep_only_outputs(model)
    if not graph.inputs[0].uses():
        raise ModelError(
            f"output {chosen!r} does not depend on the input {graph.inputs[0].name!r}; expected a classifier"
        )
    free_batch(model, batch or 1)
    graph.inputs[0].shape = ir.Shape([BATCH, *static_shape(graph.inputs[0])])
    settle_shapes(model)
    own_or_asked = cut_off_activation(graph, chosen, activation)
    logits = str(graph.outputs[0].name)
    flatten_logits(graph)
    one_logit = own_or_asked == "sigmoid" and static_shape(graph.outputs[0]) == (1,)
    if one_logit:
        expand_one_logit(graph)
    fold_batch_normalization(graph)
    keep_only_outputs(model)
    free_names(graph)

    model.producer_name, model.producer_version = "ada-sise-engine", None
    model.model_version, model.domain, graph.name = None, None, "network"
    (classes,) = static_shape(graph.outputs[0])
    original = Original(
        path=path,
        logits=logits,
        batch=batch,
        channels_last=channels_last,
        half=half,
        half_input=half_input,
        one_logit=one_logit,
        quantized=quantized,
    )
    return Source(
        name=name,
        sha256=sha256,
        output=chosen,
        original=original,
        model=model,
        activation=own_or_asked,
        classes=classes,
        notes=_notes(original, opset, model.opset_imports[""]),
    )


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read a model with its external weights; return it and the hash of all its bytes."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError("is no regular file; expected an ONNX file")  # reading from a pipe would wait for ever
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except (OSError, ValueError) as err:  # a ValueError is about a name that no system takes
        reason = err.strerror if isinstance(err, OSError) else err
        raise ModelError(f"cannot be read: {reason}; expected an ONNX file") from err
    try:
        proto = onnx.load_model(path, load_external_data=False)
        _expect_text(proto)
        external = {_location(tensor) for tensor in proto.graph.initializer} - {None}
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto if expand_group_normalization(proto) else str(path))
        for location in sorted(map(str, external)):
            digest.update((path.parent / location).read_bytes())
    except _INVALID as err:
        raise _invalid(err) from err
    _expect_readable(proto)
    for entry in proto.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for node in proto.graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
    return proto, digest.hexdigest()


def _invalid(err: BaseException) -> ModelError:
    """Return the error that says in few words why a file is refused."""
    while err.__cause__ is not None:
        err = err.__cause__
    reason = " ".join(str(err).split()).replace(" ==> Context:", ":").removesuffix(".")
    reason = textwrap.shorten(reason, _LONGEST_REASON, placeholder=" …")
    return ModelError(
        f"is not a valid ONNX model: {reason}; expected a file that onnx.checker accepts: export the model again"
    )


def _expect_readable(proto: onnx.ModelProto) -> None:
    """Check that the numbers of every tensor in the file fill its shape, which onnx's checker does not.

    Raises:
        ModelError: There are more or fewer, or of an unknown type.
    """
    for tensor in _messages(proto, onnx.TensorProto):
        try:
            fits = ir.from_proto(tensor).numpy().shape == tuple(tensor.dims)
            reason = "a size is negative"
        except (TypeError, ValueError, RuntimeError) as err:
            fits, reason = False, " ".join(str(err).split())
        if not fits:
            raise ModelError(
                f"tensor {tensor.name!r} {list(tensor.dims)} of type {tensor.data_type} holds other data than it says: "
                f"{reason}; expected numbers that fill its shape: the file is damaged, export the model again"
            )


def _expect_text(proto: onnx.ModelProto) -> None:
    """Check that all names in the file are text.

    Raises:
        ModelError: One is not UTF-8, and protobuf has left it bytes.
    """
    for message in _messages(proto, Message):
        for field, value in message.ListFields():
            if field.type != field.TYPE_STRING:
                continue
            for entry in (value,) if isinstance(value, bytes | str) else value:
                if isinstance(entry, bytes):
                    raise ModelError(
                        f"holds {entry[:100]!r} as {field.full_name}; expected text in UTF-8: the file is damaged, "
                        "export the model again"
                    )


def _messages(message: Message, kind: type[Kind]) -> Iterator[Kind]:
    """Yield a message and all those in it, as far as they are of one kind."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for entry in (value,) if isinstance(value, Message) else value:
                yield from _messages(entry, kind)


def _expect_finite(graph: ir.Graph) -> None:
    """Check the weights. A single number may be infinite: Clip, Pad and Where take such.

    Raises:
        ModelError: A weight is NaN or infinite.
    """
    weights = [(f"initializer {name!r}", value, value.const_value) for name, value in graph.initializers.items()]
    for node in graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            value = node.outputs[0]
            weights.append((f"Constant node {node.name or value.name!r}", value, node.attributes["value"].as_tensor()))
    for subject, value, tensor in weights:
        if tensor is None or tensor.dtype not in _FLOATS or not value.uses():
            continue
        array = tensor.numpy()
        odd = np.isnan(array) if array.size == 1 else ~np.isfinite(array)
        count = int(odd.sum())
        if count:
            found = array[odd][0]
            raise ModelError(
                f"{subject} {list(array.shape)} holds {found} at {count} of {array.size} elements; expected finite "
                "weights: export the model again, from a checkpoint whose training did not diverge"
            )


def _notes(original: Original, opset: int, working: int) -> tuple[str, ...]:
    said = {
        f"the file's opset {opset} was converted to {working}": opset != working,
        f"the file's batch is fixed at {original.batch}; the bundle takes any": original.batch is not None,
        "the file takes its images channels last; the bundle takes them channels first": original.channels_last,
        "the file computes in float16; the bundle computes in float32": original.half,
        "the one logit z became two classes: 0 with -z, and 1 with z": original.one_logit,
        "the file is quantized: it is scored in integers; gradients pass the rounding straight through": (
            original.quantized
        ),
    }
    return tuple(note for note, holds in said.items() if holds)


def _location(tensor: onnx.TensorProto) -> str | None:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), None)


def _settle_input(graph: ir.Graph, size: tuple[int, ...] | None) -> tuple[int | None, bool]:
    """Make the image input [N, C, H, W]; return the batch that it was fixed at, and whether its channels were last."""
    found = ", ".join(f"{value.name!r} {value.shape}" for value in graph.inputs)
    if len(graph.inputs) != 1:
        raise ModelError(f"has {len(graph.inputs)} inputs ({found}); expected one, the image [N, C, H, W]")
    image = graph.inputs[0]
    if image.dtype != ir.DataType.FLOAT:
        raise ModelError(f"input {image.name!r} holds {image.dtype}; expected float32 or float16 images")
    if image.shape is None or image.shape.rank() != 4:
        raise ModelError(f"input {found}; expected one image input of four axes, [N, C, H, W] or [N, H, W, C]")
    batch, *sizes = image.shape
    if any(isinstance(own, int) and own < 1 for own in image.shape):
        raise ModelError(f"input {found} has a size below 1; expected an image [N, C, H, W] or [N, H, W, C]")
    if math.prod(own for own in image.shape if isinstance(own, int)) > LARGEST_TENSOR:
        raise ModelError(f"input {found} is too large; expected at most {LARGEST_TENSOR} elements")
    channels_last = sizes[0] not in _CHANNELS and sizes[2] in _CHANNELS
    if channels_last:
        sizes = [sizes[2], *sizes[:2]]
    channels, *spatial = sizes
    if channels not in _CHANNELS:
        raise ModelError(f"input {found} has {channels} channels; expected 1 or 3, as [N, C, H, W] or [N, H, W, C]")
    if size is not None:
        asked = "×".join(map(str, size))
        if min(size) < 1:
            raise OptionError(f"size {asked} has no pixels; expected whole numbers of at least 1")
        known = sizes[-len(size) :]
        if any(isinstance(own, int) and own != wanted for own, wanted in zip(known, size, strict=True)):
            raise OptionError(f"size {asked} contradicts the input {found}; expected its own, or no size")
        spatial = list(size[-2:])
    if not all(isinstance(own, int) for own in spatial):
        raise ModelError(f"input {found} has no fixed image size; choose it with --size HEIGHTxWIDTH")
    image.shape = ir.Shape([batch, *spatial, channels] if channels_last else [batch, channels, *spatial])
    if channels_last:
        take_channels_first(graph)
    return batch if isinstance(batch, int) else None, channels_last


def _choose_output(graph: ir.Graph, output: str | None) -> str:
    names = [value.name or "" for value in graph.outputs]
    if output is None and len(names) != 1:
        raise ModelError(f"has the outputs {', '.join(names)}; choose the class scores with --output-name NAME")
    if output is not None and output not in names:
        raise ModelError(f"has no output {output!r}; its outputs are {', '.join(names)}")
    chosen = output or names[0]
    graph.outputs[:] = [graph.outputs[names.index(chosen)]]
    return chosen
