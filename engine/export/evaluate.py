"""Evaluating graphs in float64, with onnx's own reference implementation of the operators."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from engine.export.windows import resolve_pads

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
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[ConvTranspose, MaxPool, Pad])
    names = [str(value.name) for value in model.graph.inputs]

    def call(*inputs: Array64) -> list[Array64]:
        return [np.asarray(output) for output in evaluator.run(None, dict(zip(names, inputs, strict=True)))]

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
        pads = pads or (0, 0, 0, 0)
        if output_shape or auto_pad.startswith("SAME"):
            wanted = output_shape or [o * s for o, s in zip(size, strides, strict=True)]
            less = [(f - o) // 2 for f, o in zip(full, wanted, strict=True)]
            more = [f - o - p for f, o, p in zip(full, wanted, less, strict=True)]
            pads = (*less, *more) if auto_pad == "SAME_UPPER" else (*more, *less)
        rows = x.reshape(n, group, channels // group, -1)
        taps = w.reshape(group, channels // group, *w.shape[1:])
        out = np.zeros((n, group, w.shape[1], *full), x.dtype)
        for i, j in np.ndindex(*kernel):
            down, right = i * dilations[0], j * dilations[1]
            place = out[:, :, :, down : down + (size[0] - 1) * strides[0] + 1 : strides[0]]
            place = place[..., right : right + (size[1] - 1) * strides[1] + 1 : strides[1]]
            place += np.matmul(taps[..., i, j].swapaxes(1, 2), rows).reshape(*out.shape[:3], *size)
        out = out.reshape(n, -1, *full)
        out = out[:, :, pads[0] : full[0] - pads[2], pads[1] : full[1] - pads[3]]
        return (out if b is None else out + b[:, None, None],)


class MaxPool(OpRun):
    """MaxPool of the ONNX specification, vectorised: onnx's own loops over windows in Python."""

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
        stride, dilation, size = strides or (1, 1), dilations or (1, 1), x.shape[2:]
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_shape, strict=True)]
        begin, end = resolve_pads(auto_pad, pads or (0, 0, 0, 0), size, stride, extent)
        counts = []
        for n, b, e, reach, s in zip(size, begin, end, extent, stride, strict=True):
            count = -(-(n + b + e - reach) // s) + 1 if ceil_mode else (n + b + e - reach) // s + 1
            counts.append(count - 1 if ceil_mode and (count - 1) * s >= n + b else count)
        last = [
            max(0, (c - 1) * s + r - n - b) for c, s, r, n, b in zip(counts, stride, extent, size, begin, strict=True)
        ]
        padded = np.pad(x, ((0, 0), (0, 0), (begin[0], last[0]), (begin[1], last[1])), constant_values=-np.inf)
        result = np.full((*x.shape[:2], *counts), -np.inf)
        for i, j in np.ndindex(*kernel_shape):
            rows = slice(i * dilation[0], i * dilation[0] + (counts[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (counts[1] - 1) * stride[1] + 1, stride[1])
            np.maximum(result, padded[:, :, rows, columns], out=result)
        return (result,)


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
