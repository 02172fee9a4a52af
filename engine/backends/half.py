"""A graph in float16, made by ONNX Runtime's own tool."""

from pathlib import Path

import onnx

from engine.errors import BackendError


def to_float16(graph: Path, *, images: bool) -> bytes:
    """Convert a graph from float32 to float16; its outputs stay float32.

    Args:
        graph: The file, beside which its weights lie.
        images: Whether its input becomes float16 too.

    Returns:
        The model, with its weights inside.

    Raises:
        BackendError: It has operators that cannot be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # takes a while, and not all need it

    model = onnx.load(str(graph))
    kept = [value.name for value in (*model.graph.output, *(() if images else model.graph.input))]
    try:
        converted = convert_float_to_float16(model, keep_io_types=kept)
    except Exception as err:  # the tool says in words what it cannot do
        raise BackendError(
            f"{graph}: cannot be converted to float16: {' '.join(str(err).split())}; expected a graph that can: take "
            "precision 'float32' or 'tf32'"
        ) from err
    content: bytes = converted.SerializeToString()
    return content
