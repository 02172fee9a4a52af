"""Convolutions in float64: onnx's own take most of an export's time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from engine.export.windows import resolve_pads, transposed_pads

Array64 = NDArray[np.float64]
_MOST_ELEMENTS = 2**22


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
