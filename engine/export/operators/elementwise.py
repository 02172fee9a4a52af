"""Activation functions in float64: onnx's own round to float32 or underflow."""

import math

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array64 = NDArray[np.float64]


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


def _erf(x: Array64) -> Array64:
    return np.fromiter(map(math.erf, x.ravel().tolist()), x.dtype, x.size).reshape(x.shape)
