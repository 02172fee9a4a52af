"""Padding in float64."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array64 = NDArray[np.float64]
_PAD_MODES: dict[str, Literal["edge", "reflect", "wrap"]] = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}


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
