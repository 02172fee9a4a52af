"""Gradient rules of element-wise arithmetic with broadcasting.

Ties: Max and Min send the whole gradient to the first input that attains the extremum. Pow at base 0: gradient 0 with
an exponent between 0 and 1, where the slope is infinite, so that √Σx² has the same gradient as ReduceL2. The exponent's
gradient is 0 at base 0, and NaN at a negative base, where it does not exist.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, describe, input_at, static_shape


def add(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy, summed over the axes along which x was broadcast; for Add and Sum."""
    return unbroadcast(g, dys[0], node, index)


def expand(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy, summed over the axes along which x was repeated."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its shape is computed from the image; expected a constant shape")
    return unbroadcast(g, dys[0], node, index)


def sub(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """da = dy and db = −dy for y = a − b."""
    gradient = unbroadcast(g, dys[0], node, index)
    return gradient if index == 0 else g.op("Neg", gradient)


def mul(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """da = dy·b and db = dy·a for y = a·b."""
    return unbroadcast(g, g.op("Mul", dys[0], input_at(node, 1 - index)), node, index)


def div(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """da = dy/b and db = −dy·y/b for y = a/b."""
    divisor = input_at(node, 1)
    if index == 0:
        return unbroadcast(g, g.op("Div", dys[0], divisor), node, 0)
    product = unbroadcast(g, g.op("Mul", dys[0], node.outputs[0]), node, 1)
    return g.op("Neg", g.op("Div", product, divisor))


def power(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·p·xᵖ⁻¹ and dp = dy·y·ln(x + [x = 0]) for y = xᵖ."""
    if index == 0:
        exponent = _single_number(input_at(node, 1))
        if exponent == 1.0:
            return unbroadcast(g, dys[0], node, 0)
        return unbroadcast(g, g.op("Mul", dys[0], _slope_of_power(g, node, exponent)), node, 0)
    x = input_at(node, 0)
    logarithm = g.op("Log", g.op("Add", x, _is_zero(g, x)))
    return unbroadcast(g, g.op("Mul", dys[0], g.op("Mul", node.outputs[0], logarithm)), node, 1)


def extremum(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx_i = dy·[x_i = y and no x_j before it is]; for Max and Min."""
    y, last = node.outputs[0], len(node.inputs) - 1
    if last == 0:
        return dys[0]
    conditions = [g.op("Not", g.op("Equal", input_at(node, before), y)) for before in range(index)]
    if index < last:  # where no input before the last attains the extremum, the last does
        conditions.append(g.op("Equal", input_at(node, index), y))
    chosen = conditions[0]
    for condition in conditions[1:]:
        chosen = g.op("And", chosen, condition)
    return unbroadcast(g, g.op("Mul", dys[0], g.cast(chosen, y.dtype)), node, index)


def where(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """da = dy·[c] and db = dy·[not c] for y = a where c, else b.

    Casts and products: on ONNX Runtime's CPU provider a Where of dy and 0 takes 15 times as long.
    """
    condition = input_at(node, 0)
    chosen = condition if index == 1 else g.op("Not", condition)
    return unbroadcast(g, g.op("Mul", dys[0], g.cast(chosen, dys[0].dtype)), node, index)


def unbroadcast(g: GraphBuilder, gradient: ir.Value, node: ir.Node, index: int) -> ir.Value:
    """Sum a gradient of the output's shape over the axes along which input `index` was broadcast.

    The batch axis is never summed: every activation has it.

    Raises:
        UnsupportedOpError: The input has fewer axes than the output, so that its batch is not the output's.
    """
    value, y = input_at(node, index), node.outputs[0]
    sizes, wide = static_shape(value), static_shape(y)
    if len(sizes) != len(wide):
        raise UnsupportedOpError(
            f"{describe(node)}: broadcasts {value.name!r} {value.shape} to {y.shape}, and its batch with it; expected "
            "activations with the same number of axes"
        )
    axes = [axis for axis, (n, w) in enumerate(zip(sizes, wide, strict=True), start=1) if n == 1 and w != 1]
    return g.op("ReduceSum", gradient, g.ints(axes), keepdims=1) if axes else gradient


def _single_number(value: ir.Value) -> float | None:
    """Return the number that all elements of a constant are, or None for any other value."""
    if value.const_value is None:
        return None
    numbers = np.unique(value.const_value.numpy())
    return float(numbers[0]) if numbers.size == 1 else None


def _slope_of_power(g: GraphBuilder, node: ir.Node, number: float | None) -> ir.Value:
    """Return p·xᵖ⁻¹, as p·y/x away from x = 0: one division in place of another power.

    Args:
        g: Builder of the graph that is appended to.
        node: The Pow node.
        number: The exponent if it is one number, other than 1.
    """
    x, exponent, y = input_at(node, 0), input_at(node, 1), node.outputs[0]
    if number == 2.0:
        return g.op("Mul", x, g.floats(2.0, x))
    zero = _is_zero(g, x)
    ratio = g.op("Div", y, g.op("Add", x, zero))
    if number is not None:
        return g.op("Mul", ratio, g.floats(number, x))
    exponent = exponent if exponent.dtype == x.dtype else g.cast(exponent, x.dtype)
    linear = g.cast(g.op("Equal", exponent, g.floats(1.0, x)), x.dtype)
    return g.op("Add", g.op("Mul", ratio, exponent), g.op("Mul", zero, linear))


def _is_zero(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.cast(g.op("Not", g.cast(x, ir.DataType.BOOL)), x.dtype)
