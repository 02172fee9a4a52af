"""Gradient rules of elementary functions, and of nodes that hand every element on as it is.

Kinks: Abs at 0 has gradient 0. Sqrt at 0, where its slope is infinite, has gradient 0 too, so that a Relu or a square
before it gives 0 there and not NaN. Log and Reciprocal at 0, where they have no value, have none.
"""

import math
from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, constant_array, describe, input_at

_CASTABLE = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def exp(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·y."""
    return g.op("Mul", dys[0], node.outputs[0])


def log(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy/x."""
    return g.op("Div", dys[0], input_at(node, 0))


def sqrt(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·½·y/(x + [x = 0]), which is dy/(2y) where x > 0, and 0 where x = 0."""
    x = input_at(node, 0)
    divisor = g.op("Add", x, g.cast(g.op("Equal", x, g.floats(0.0, x)), x.dtype))
    return g.op("Mul", dys[0], g.op("Mul", g.op("Div", node.outputs[0], divisor), g.floats(0.5, x)))


def neg(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = −dy."""
    return g.op("Neg", dys[0])


def absolute(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·sign(x)."""
    return g.op("Mul", dys[0], g.op("Sign", input_at(node, 0)))


def reciprocal(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = −dy·y²."""
    y = node.outputs[0]
    return g.op("Mul", dys[0], g.op("Mul", y, g.op("Neg", y)))


def erf(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·2/√π·exp(−x²); the factor is in the exponent."""
    x = input_at(node, 0)
    exponent = g.op("Sub", g.floats(math.log(2 / math.sqrt(math.pi)), x), g.op("Mul", x, x))
    return g.op("Mul", dys[0], g.op("Exp", exponent))


def identity(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy."""
    return dys[0]


def dropout(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy: in inference form nothing is dropped."""
    if index != 0:
        raise UnsupportedOpError(
            f"{describe(node)}: its ratio or training_mode is computed from the image; expected constants"
        )
    training = constant_array(node, 2)
    if training is not None and training.any():
        raise UnsupportedOpError(
            f"{describe(node)}: drops elements at random; expected training_mode = false: export the model for "
            "inference"
        )
    return dys[0]


def cast(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy in the element type of x; between floating-point types."""
    source, target = input_at(node, index).dtype, ir.DataType(node.attributes["to"].as_int())
    for dtype in (source, target):
        if dtype is not None and dtype not in _CASTABLE:
            raise UnsupportedOpError(
                f"{describe(node)}: casts {_named(source)} to {_named(target)}; expected a cast between "
                f"{', '.join(map(_named, _CASTABLE[:-1]))} or {_named(_CASTABLE[-1])}, through which a gradient flows"
            )
    return g.cast(dys[0], source)


def _named(dtype: ir.DataType | None) -> str:
    return "an unknown type" if dtype is None else dtype.name
