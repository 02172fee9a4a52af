"""The operators of the float64 evaluator that replace onnx's own: each docstring says why.

Gradients are verified in onnx's reference implementation, in float64, where some operators are slow, round to float32,
or are wrong. What replaces them is tested against onnx's own where that is right, and against torch and ONNX Runtime.
"""

from onnx.reference.op_run import OpRun

from engine.export.operators.convolution import Conv, ConvTranspose
from engine.export.operators.elementwise import Erf, Gelu, LogSoftmax
from engine.export.operators.normalization import (
    LRN,
    GroupNormalization,
    LpNormalization,
    MeanVarianceNormalization,
)
from engine.export.operators.padding import Pad
from engine.export.operators.pooling import AveragePool, GlobalMaxPool, MaxPool
from engine.export.operators.resize import Resize

OPERATORS: tuple[type[OpRun], ...] = (
    AveragePool,
    Conv,
    ConvTranspose,
    Erf,
    Gelu,
    GlobalMaxPool,
    GroupNormalization,
    LRN,
    LogSoftmax,
    LpNormalization,
    MaxPool,
    MeanVarianceNormalization,
    Pad,
    Resize,
)
