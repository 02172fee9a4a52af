"""Evaluating graphs in float64, with onnx's own reference implementation of the operators."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from engine.errors import EngineError, VerificationError
from engine.export.evaluate_normalization import NORMALIZATIONS
from engine.export.windows import resolve_pads, transposed_pads

Array64 = NDArray[np.float64]
_PAD_MODES: dict[str, Literal["edge", "reflect", "wrap"]] = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}


def in_float64(model: ir.Model) -> ir.Model:
    """Return a copy of a float32 model whose constants, activations and casts are float64."""
    copy = model.clone()
    graph = copy.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float64), name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    return copy


def function(model: ir.Model) -> Callable[..., list[Array64]]:
    """Return the model as a function of its inputs, in order, that returns its outputs, in order."""
    operators: list[type[OpRun]] = [AveragePool, ConvTranspose, MaxPool, Pad, *NORMALIZATIONS]
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=operators)
    names = [str(value.name) for value in model.graph.inputs]

    def call(*inputs: Array64) -> list[Array64]:
        feeds = dict(zip(names, inputs, strict=True))
        try:
            outputs = evaluator.run(None, feeds)
        except EngineError:
            raise
        except Exception as err:  # the evaluator raises whatever it runs into
            raise VerificationError(
                f"{model.graph.name}: onnx's reference implementation cannot run it in float64 ({err}), so its "
                "gradients cannot be verified; nothing was written"
            ) from err
        return [np.asarray(output) for output in outputs]

    return call


class ConvTranspose(OpRun):
    """ConvTranspose of the ONNX specification in 2-D, vectorised: onnx's own takes seconds for a depthwise weight."""

    op_domain = ""

    def _run(
        self,
        x: Array64,
        w: Array64,
        b: Array64 | None = None,
        *,
        auto_pad: str,
        dilations: Sequence[int] | None,
        group: int,
        output_padding: Sequence[int] | None,
        output_shape: Sequence[int] | None,
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
        **_: object,
    ) -> tuple[Array64]:
        n, channels, *size = x.shape
        kernel, strides, dilations = w.shape[2:], strides or (1, 1), dilations or (1, 1)
        reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(size, strides, dilations, kernel, strict=True)]
        full = [r + p for r, p in zip(reach, output_padding or (0, 0), strict=True)]
        same = [o * s for o, s in zip(size, strides, strict=True)]
        begin, end = transposed_pads(auto_pad, pads or (0, 0, 0, 0), output_shape or (), same, full)
        rows = x.reshape(n, group, channels // group, -1)
        taps = w.reshape(group, channels // group, *w.shape[1:])
        out = np.zeros((n, group, w.shape[1], *full), x.dtype)
        for i, j in np.ndindex(*kernel):
            down, right = i * dilations[0], j * dilations[1]
            place = out[:, :, :, down : down + (size[0] - 1) * strides[0] + 1 : strides[0]]
            place = place[..., right : right + (size[1] - 1) * strides[1] + 1 : strides[1]]
            place += np.matmul(taps[..., i, j].swapaxes(1, 2), rows).reshape(*out.shape[:3], *size)
        out = out.reshape(n, -1, *full)
        out = out[:, :, begin[0] : full[0] - end[0], begin[1] : full[1] - end[1]]
        return (out if b is None else out + b[:, None, None],)


class MaxPool(OpRun):
    """MaxPool of the ONNX specification in 2-D, vectorised: onnx's own loops over windows in Python."""

    op_domain = ""

    def _run(
        self,
        x: Array64,
        *,
        auto_pad: str,
        ceil_mode: int,
        dilations: Sequence[int] | None,
        kernel_shape: Sequence[int],
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
        **_: object,
    ) -> tuple[Array64]:
        pool = _Pool(x.shape[2:], auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
        return (np.max(list(pool.taps(x, -np.inf, -np.inf)), axis=0),)


class AveragePool(OpRun):
    """AveragePool of the ONNX specification in 2-D: onnx's own is wrong with ceil_mode and some asymmetric pads."""

    op_domain = ""

    def _run(
        self,
        x: Array64,
        *,
        auto_pad: str,
        ceil_mode: int,
        count_include_pad: int,
        kernel_shape: Sequence[int],
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None = None,
    ) -> tuple[Array64]:
        pool = _Pool(x.shape[2:], auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
        counted = np.sum(list(pool.taps(np.ones((1, 1, *x.shape[2:])), float(count_include_pad), 0.0)), axis=0)
        return (np.sum(list(pool.taps(x, 0.0, 0.0)), axis=0) / np.maximum(counted, 1.0),)


class _Pool:
    """The windows of a pooling node, from its attributes."""

    def __init__(
        self,
        size: Sequence[int],
        auto_pad: str,
        ceil_mode: int,
        dilations: Sequence[int] | None,
        kernel: Sequence[int],
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
    ) -> None:
        self._kernel, self._stride, self._dilation = kernel, strides or (1, 1), dilations or (1, 1)
        extent = [d * (k - 1) + 1 for d, k in zip(self._dilation, kernel, strict=True)]
        self._begin, self._end = resolve_pads(auto_pad, pads or (0, 0, 0, 0), size, self._stride, extent)
        self._counts, self._beyond = [], []
        for n, b, e, reach, s in zip(size, self._begin, self._end, extent, self._stride, strict=True):
            count = (-(-(n + b + e - reach) // s) if ceil_mode else (n + b + e - reach) // s) + 1
            count -= 1 if ceil_mode and (count - 1) * s >= n + b else 0
            self._counts.append(count)
            self._beyond.append(max(0, (count - 1) * s + reach - n - b - e))

    def taps(self, x: Array64, padding: float, beyond: float) -> Iterator[Array64]:
        """Yield, tap by tap, what the windows see: `padding` in the padding, `beyond` after it."""
        around = ((0, 0), (0, 0), *zip(self._begin, self._end, strict=True))
        padded = np.pad(x, around, constant_values=padding)
        padded = np.pad(padded, ((0, 0), (0, 0), *((0, more) for more in self._beyond)), constant_values=beyond)
        for tap in np.ndindex(*self._kernel):
            rows, columns = (
                slice(t * d, t * d + (c - 1) * s + 1, s)
                for t, d, c, s in zip(tap, self._dilation, self._counts, self._stride, strict=True)
            )
            yield padded[:, :, rows, columns]


class Pad(OpRun):
    """Pad of the ONNX specification, with the negative amounts, which crop, that onnx's own refuses."""

    op_domain = ""

    def _run(
        self,
        data: Array64,
        pads: NDArray[np.int64],
        value: Array64 | None = None,
        axes: NDArray[np.int64] | None = None,
        *,
        mode: str,
    ) -> tuple[Array64]:
        chosen = range(data.ndim) if axes is None else [int(axis) % data.ndim for axis in axes]
        widths = [(0, 0)] * data.ndim
        for axis, first, last in zip(chosen, pads[: len(chosen)], pads[len(chosen) :], strict=True):
            data = np.take(data, np.arange(max(-first, 0), data.shape[axis] - max(-last, 0)), axis=axis)
            widths[axis] = (max(int(first), 0), max(int(last), 0))
        if mode == "constant":
            return (np.pad(data, widths, constant_values=0.0 if value is None else float(value)),)
        return (np.pad(data, widths, mode=_PAD_MODES[mode]),)
