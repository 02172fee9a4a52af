"""Gradient rules of quantized models: straight-through.

Rounding has derivative 0 almost everywhere; the gradient passes it as if it were not there, in range or out of range.
"""

from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, describe


def straight_through(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy, for QuantizeLinear and DequantizeLinear; the gradient at an integer tensor is a float tensor."""
    if index != 0:
        raise UnsupportedOpError(
            f"{describe(node)}: its scale or zero point is computed from the image; expected constants, as static "
            "quantization writes them"
        )
    return dys[0]
