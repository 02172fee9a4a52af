"""Normalisation operators for the float64 evaluator, where onnx's own are wrong or refuse float64."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array64 = NDArray[np.float64]


class GroupNormalization(OpRun):
    """GroupNormalization of the ONNX specification: onnx's own rounds to float32, by the default of `stash_type`."""

    op_domain = ""

    def _run(
        self, x: Array64, scale: Array64, bias: Array64, *, epsilon: float, num_groups: int, **_: object
    ) -> tuple[Array64]:
        grouped = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, -1)
        centred = grouped - grouped.mean(axis=(2, 3), keepdims=True)
        y = centred / np.sqrt(np.mean(centred**2, axis=(2, 3), keepdims=True) + epsilon)
        # One scale for each group up to opset 20, one for each channel since.
        y = y * scale.reshape(num_groups, -1, 1) + bias.reshape(num_groups, -1, 1)
        return (y.reshape(x.shape),)


class LRN(OpRun):
    """LRN of the ONNX specification: onnx's own normalises as many channels as there are images in the batch."""

    op_domain = ""

    def _run(self, x: Array64, *, alpha: float, beta: float, bias: float, size: int) -> tuple[Array64]:
        before = (size - 1) // 2
        squares = np.pad(x**2, ((0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)))
        windows = np.sum([squares[:, first : first + x.shape[1]] for first in range(size)], axis=0)
        return (x / (bias + float(alpha) / size * windows) ** beta,)  # the evaluator gives attributes as float32


class LpNormalization(OpRun):
    """LpNormalization of the ONNX specification: onnx's own adds up signed elements for the 1-norm."""

    op_domain = ""

    def _run(self, x: Array64, *, axis: int, p: int) -> tuple[Array64]:
        norm = np.sum(np.abs(x) ** p, axis=axis, keepdims=True) ** (1.0 / p)
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class MeanVarianceNormalization(OpRun):
    """MeanVarianceNormalization of the ONNX specification: onnx's own takes float32 alone."""

    op_domain = ""

    def _run(self, x: Array64, *, axes: Sequence[int]) -> tuple[Array64]:
        centred = x - x.mean(axis=tuple(axes), keepdims=True)
        return (centred / (np.sqrt(np.mean(centred**2, axis=tuple(axes), keepdims=True)) + 1e-9),)


NORMALIZATIONS: tuple[type[OpRun], ...] = (GroupNormalization, LRN, LpNormalization, MeanVarianceNormalization)
