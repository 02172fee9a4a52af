"""Weights in half precision, rounded so that the sums of filters stay.

Rounded to the nearest, each weight is off by up to half a step. A filter adds these errors up, times its inputs: where
inputs are alike, as neighbouring pixels are, or of one sign, as channels after a ReLU are, the sum of the errors is
what shows. So some weights go to their other neighbour, until the sum of the kernel, or of a filter of one pixel, is
what it was. That takes no data, unlike what int8 needs (engine/export/rounding.py), and costs nothing at run time.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import numpy_helper

from engine.errors import BackendError

Floats = NDArray[np.float32]

_AT_ONCE = 1 << 18  # numbers that the caches hold, with what is worked out of each


def round_to_half(model: onnx.ModelProto, kind: DTypeLike) -> None:
    """Round the weights of convolutions and matrix products, in place: they are numbers of another type then.

    Args:
        model: With its weights inside.
        kind: NumPy's type of half precision.

    Raises:
        BackendError: A weight is beyond its range.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, by_columns in _filters(model):
        tensor = held.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        weights = numpy_helper.to_array(tensor)
        if weights.ndim < 2 or not weights.size:
            continue
        with np.errstate(over="ignore"):
            if not np.isfinite(weights.astype(kind)).all():
                raise BackendError(
                    f"{name} holds {weights.flat[np.abs(weights).argmax()]:g}, which is beyond the range of "
                    f"{np.dtype(kind).name}; expected weights within it: take precision 'float32'"
                )
        rows = weights.swapaxes(-1, -2) if by_columns else weights
        kernel = rows.shape[-1] if by_columns else int(np.prod(rows.shape[2:]))
        groups = rows.reshape(-1, kernel) if kernel > 1 else rows.reshape(len(rows), -1)
        kept = keep_sums(groups, kind).reshape(rows.shape)
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(kept.swapaxes(-1, -2) if by_columns else kept), name)
        )


def keep_sums(groups: Floats, kind: DTypeLike) -> Floats:
    """Round numbers to another type so that the sum of each row stays nearly as it is.

    From the nearest, one number of a row after the other goes to its other neighbour: whichever brings the sum nearest
    to what it was.

    Args:
        groups: float32 [n, K], within the range of the type.
        kind: NumPy's type of half precision.

    Returns:
        float32 [n, K], numbers of that type.
    """
    size = max(1, _AT_ONCE // groups.shape[1])
    return np.concatenate([_keep_sums(groups[i : i + size], kind) for i in range(0, len(groups), size)])


def _keep_sums(groups: Floats, kind: DTypeLike) -> Floats:
    nearest = groups.astype(kind)
    found = nearest.astype(np.float32)
    error = found - groups
    with np.errstate(over="ignore"):  # the largest number's other neighbour may be infinity, which brings no sum nearer
        other = np.nextafter(nearest, np.where(error > 0, -np.inf, np.inf).astype(kind)).astype(np.float32)
    step = np.where(error == 0, np.inf, other - found)
    rows, total = np.arange(len(groups)), error.sum(axis=1, dtype=np.float64)
    while len(rows):
        after = np.abs(total[:, None] + step)
        best = after.argmin(axis=1)
        here = np.arange(len(rows))
        better = after[here, best] < np.abs(total)
        rows, total, step, best = rows[better], total[better], step[better], best[better]
        here = here[: len(rows)]
        total += step[here, best]
        found[rows, best] += step[here, best]
        step[here, best] = np.inf
    return found


def _filters(model: onnx.ModelProto) -> Iterator[tuple[str, bool]]:
    """Yield the names of weights that filters are made of, and whether each column is one, or each row."""
    for node in model.graph.node:
        if node.op_type == "Conv":
            yield node.input[1], False
        elif node.op_type == "Gemm":
            yield node.input[1], not any(own.name == "transB" and own.i for own in node.attribute)
        elif node.op_type == "MatMul":
            yield node.input[1], True
