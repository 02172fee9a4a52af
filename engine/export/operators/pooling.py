"""Pooling in float64: onnx's own is slow, and wrong in places."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from engine.export.windows import resolve_pads

Array64 = NDArray[np.float64]


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
