"""Graphs whose weights, or all of whose numbers, have half precision."""

from pathlib import Path

import numpy as np
import onnx

from engine.backends.half_weights import round_to_half
from engine.errors import BackendError

TYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16),
}
"""NumPy's types of the precisions."""


def with_rounded_weights(graph: Path, precision: str) -> bytes:
    """Read a graph of float32, and round the weights of its filters as `round_to_half` does: they stay float32.

    Args:
        graph: The file, beside which its weights lie.
        precision: One of `TYPES`.

    Returns:
        The model, with its weights inside.

    Raises:
        BackendError: The file cannot be read, a weight is beyond the range of that precision, or there are too many.
    """
    return _bytes(graph, _rounded(graph, precision))


def read_graph(graph: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read a graph, and the weights beside it if they are wanted.

    Raises:
        BackendError: It cannot be read.
    """
    try:
        return onnx.load(str(graph), load_external_data=weights)
    except Exception as err:  # the errors of onnx and of protobuf share no base class below Exception
        raise BackendError(f"{graph}: is no ONNX graph: {' '.join(str(err).split())}") from err


def _rounded(graph: Path, precision: str) -> onnx.ModelProto:
    model = read_graph(graph)
    try:
        round_to_half(model, TYPES[precision])
    except BackendError as err:
        raise BackendError(f"{graph}: {err}") from None
    return model


def to_float16(graph: Path, *, images: bool) -> bytes:
    """Convert a graph from float32 to float16, by ONNX Runtime's own tool; its outputs stay float32.

    Args:
        graph: The file, beside which its weights lie.
        images: Whether its input becomes float16 too.

    Returns:
        The model, with its weights inside.

    Raises:
        BackendError: It has operators that cannot be converted, a weight is beyond the range of float16, or there are
            too many.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # takes a while, and not all need it

    model = _rounded(graph, "float16")
    kept = [value.name for value in (*model.graph.output, *(() if images else model.graph.input))]
    try:
        converted = convert_float_to_float16(model, keep_io_types=kept)
    except Exception as err:  # the tool says in words what it cannot do
        raise BackendError(
            f"{graph}: cannot be converted to float16: {' '.join(str(err).split())}; expected a graph that can: take "
            "precision 'float32' or 'tf32'"
        ) from err
    return _bytes(graph, converted)


def _bytes(graph: Path, model: onnx.ModelProto) -> bytes:
    try:
        return model.SerializeToString()
    except Exception as err:  # protobuf's own
        raise BackendError(
            f"{graph}: has too many weights for half precision, which takes them in one piece of at most 2 GiB: "
            f"{' '.join(str(err).split())}; take precision 'float32'"
        ) from err
