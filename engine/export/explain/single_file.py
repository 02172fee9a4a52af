"""`explain.onnx` alone, with its weights inside: one file for hosts that take a model and nothing else."""

from pathlib import Path

import onnx_ir as ir

from engine.bundle import WEIGHTS, Bundle
from engine.errors import ModelError, OptionError
from engine.explanation import write_whole

_LARGEST = (1 << 31) - 1  # of a protobuf message


def expect_writable(file: Path, *, force: bool) -> None:
    """Check before the export that the file may be written after it.

    Raises:
        OptionError: What is there may not be replaced, or is no file; or there is no such folder.
    """
    try:
        if file.exists() and not file.is_file():
            raise OptionError(f"{file}: is no file; expected the name of one")
        if file.exists() and not force:
            raise OptionError(f"{file}: exists already; choose another name, or replace it with --force")
        if not file.parent.is_dir():
            raise OptionError(f"{file}: cannot be written: there is no folder {file.parent}")
    except (OSError, ValueError) as err:
        raise OptionError(f"{file}: cannot be written: {err}") from err


def write_single_file(bundle: Bundle, file: Path, largest: int = _LARGEST) -> None:
    """Write `explain.onnx` of a bundle with its weights inside: those of the network twice, as its graph has them.

    Args:
        bundle: The bundle.
        file: Where to write; what is there is replaced.
        largest: How many bytes it may have.

    Raises:
        ModelError: It would be larger than an ONNX file can be.
        OptionError: The file cannot be written.
    """
    model = ir.load(bundle.explain)
    constants = [value for graph in model.graphs() for value in graph.initializers.values()]
    size = sum(value.const_value.nbytes for value in constants if value.const_value is not None)
    if size <= largest:
        for value in constants:
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        message = ir.to_proto(model)
        size = message.ByteSize()
    if size > largest:
        raise ModelError(
            f"{file.name}: would hold {size / 1e9:.1f} GB, since the graph has the weights twice; an ONNX file has at "
            f"most {largest / 1e9:.1f} GB: take the bundle instead, whose graphs share the file {WEIGHTS}"
        )
    write_whole(file, message.SerializeToString(deterministic=True))
