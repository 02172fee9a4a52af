"""Evaluating graphs in float64, with onnx's own reference implementation of the operators."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from engine.errors import EngineError, VerificationError
from engine.export.evaluate_normalization import NORMALIZATIONS
from engine.export.graph import constant_array, int_attribute
from engine.export.resampling import Resize
from engine.export.windows import resolve_pads, transposed_pads

Array64 = NDArray[np.float64]
_MOST_ELEMENTS = 2**22
_PAD_MODES: dict[str, Literal["edge", "reflect", "wrap"]] = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
_NARROW = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def in_float64(model: ir.Model, arrays: dict[int, Array64] | None = None) -> ir.Model:
    """Return a copy of a float32 model whose constants, activations and casts are float64.

    What the model computes in float16 or bfloat16 becomes float64 too: its rounding would hide the derivatives.
    Nodes that quantize activations become Identity, since central differences would see their steps and not the
    straight-through gradient; quantized constants become the numbers that they stand for.

    Args:
        model: The model.
        arrays: Float64 constants that were made before, by the identity of the float32 tensor; new ones are added.
            With it models that share tensors share their float64 numbers too.
    """
    arrays = {} if arrays is None else arrays
    copy = model.clone()
    graph = copy.graph
    _dequantize(graph)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _NARROW:
            if id(tensor) not in arrays:
                arrays[id(tensor)] = tensor.numpy().astype(np.float64)
            value.const_value = ir.tensor(arrays[id(tensor)], name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for node in graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() in _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.DOUBLE))
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.dtype in _NARROW:
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    return copy


def _dequantize(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") or node.inputs[0] is None:
            continue
        output = node.outputs[0]
        if all(value is None or value.const_value is not None for value in node.inputs):
            tensor = ir.tensor(_stands_for(node), name=output.name)
            value = ir.Value(name=output.name, shape=output.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            output.replace_all_uses_with(value, replace_graph_outputs=True)
            output.name = f"{output.name}/quantized"
            graph.register_initializer(value)
            graph.remove(node, safe=True)
        else:
            plain = ir.Node("", "Identity", [node.inputs[0]], name=node.name)
            plain.outputs[0].name, plain.outputs[0].shape = output.name, output.shape
            plain.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            ir.convenience.replace_nodes_and_values(graph, node, [node], [plain], [output], [plain.outputs[0]])


def _stands_for(node: ir.Node) -> Array64:
    """Return the numbers that the constants of a DequantizeLinear node stand for: (x − zero point)·scale."""
    x, scale, zero = (constant_array(node, index) for index in range(3))
    assert x is not None
    assert scale is not None
    axis, block = int_attribute(node, "axis", 1), int_attribute(node, "block_size", 0)

    def along(parameter: NDArray[np.generic]) -> Array64:
        wide = parameter.astype(np.float64)
        if block:
            return np.repeat(wide, block, axis=axis)[tuple(map(slice, x.shape))]
        return wide.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim)) if wide.size > 1 else wide.reshape(())

    shifted = x.astype(np.float64) - (0.0 if zero is None else along(zero))
    return shifted * along(scale)


def function(model: ir.Model) -> Callable[..., list[Array64]]:
    """Return the model as a function of its inputs, in order, that returns its outputs, in order.

    Constants are fed as inputs are, so that no copy of them is made.
    """
    names = [str(value.name) for value in model.graph.inputs]
    constants = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    light = model.clone()
    light.graph.inputs.extend(light.graph.initializers.values())
    light.graph.initializers.clear()
    evaluator = ReferenceEvaluator(ir.to_proto(light), new_ops=_own_operators())

    def call(*inputs: Array64) -> list[Array64]:
        feeds = constants | dict(zip(names, inputs, strict=True))
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # in branches that np.where then leaves out
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


def _own_operators() -> list[type[OpRun]]:
    """List the operators that replace onnx's own, and say in their docstrings why."""
    return [
        AveragePool,
        Conv,
        ConvTranspose,
        Erf,
        Gelu,
        GlobalMaxPool,
        LogSoftmax,
        MaxPool,
        Pad,
        Resize,
        *NORMALIZATIONS,
    ]


class Conv(OpRun):
    """Conv of the ONNX specification in 2-D, by matrix products: onnx's own takes most of an export's time."""

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
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
        **_: object,
    ) -> tuple[Array64]:
        n, channels, *size = x.shape
        (kh, kw), (sh, sw), (dh, dw) = w.shape[2:], strides or (1, 1), dilations or (1, 1)
        extent = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
        begin, end = resolve_pads(auto_pad, pads or (0, 0, 0, 0), size, (sh, sw), extent)
        padded = np.pad(x, ((0, 0), (0, 0), *zip(begin, end, strict=True))) if any((*begin, *end)) else x
        height, width = ((p - e) // s + 1 for p, e, s in zip(padded.shape[2:], extent, (sh, sw), strict=True))
        matrix = w.reshape(group, w.shape[0] // group, -1)
        out = np.empty((n, group, matrix.shape[1], height, width), x.dtype)
        step = max(1, _MOST_ELEMENTS // (n * channels * kh * kw * width))
        for top in range(0, height, step):
            count = min(step, height - top)
            taps = np.empty((n, channels, kh, kw, count, width), x.dtype)
            for i, j in np.ndindex(kh, kw):
                rows = slice(top * sh + i * dh, (top + count - 1) * sh + i * dh + 1, sh)
                taps[:, :, i, j] = padded[:, :, rows, j * dw : (width - 1) * sw + j * dw + 1 : sw]
            product = matrix @ taps.reshape(n, group, matrix.shape[2], -1)
            out[..., top : top + count, :] = product.reshape(*out.shape[:3], count, width)
        out = out.reshape(n, -1, height, width)
        return (out if b is None else out + b[:, None, None],)


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


class Erf(OpRun):
    """Erf of the ONNX specification, by the C library's: onnx's own rounds to float32 and takes twice as long."""

    op_domain = ""

    def _run(self, x: Array64) -> tuple[Array64]:
        return (_erf(x),)


class Gelu(OpRun):
    """Gelu of the ONNX specification: onnx's own expands it to its own Erf."""

    op_domain = ""

    def _run(self, x: Array64, *, approximate: str) -> tuple[Array64]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class LogSoftmax(OpRun):
    """LogSoftmax of the ONNX specification: onnx's own takes the logarithm of a Softmax that has underflown to 0."""

    op_domain = ""

    def _run(self, x: Array64, *, axis: int) -> tuple[Array64]:
        shifted = x - x.max(axis=axis, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)),)


class GlobalMaxPool(OpRun):
    """GlobalMaxPool of the ONNX specification: onnx's own is right for four axes only."""

    op_domain = ""

    def _run(self, x: Array64) -> tuple[Array64]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


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


def _erf(x: Array64) -> Array64:
    return np.fromiter(map(math.erf, x.ravel().tolist()), x.dtype, x.size).reshape(x.shape)
