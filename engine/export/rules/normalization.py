"""Gradient rules of normalisation layers in inference form."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    constant_array,
    describe,
    float_attribute,
    int_attribute,
    static_shape,
)


def batch_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·scale/√(var + epsilon): the running statistics are constants."""
    scale, variance = constant_array(node, 1), constant_array(node, 4)
    if index != 0 or scale is None or variance is None or int_attribute(node, "training_mode", 0) == 1:
        raise UnsupportedOpError(
            f"{describe(node)}: expected inference form (training_mode = 0) with constant scale and variance"
        )
    epsilon = float_attribute(node, "epsilon", 1e-5)
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    spatial = len(static_shape(node.outputs[0])) - 1
    return g.op("Mul", dys[0], g.floats(factor.reshape(1, -1, *[1] * spatial), dys[0]))
