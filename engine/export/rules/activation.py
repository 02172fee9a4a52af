"""Gradient rules of activation functions.

Kinks: Relu at 0 has gradient 0, and so have Clip at either bound, ThresholdedRelu at its threshold and HardSigmoid
where it meets 0 or 1. LeakyRelu and PRelu at 0 have their slope, Elu alpha and Selu gamma·alpha, as in torch. HardSwish
has 0 at −3 and 1 at 3.

No rule selects with Where: on ONNX Runtime's CPU provider a Where between tensors takes 6 to 10 times as long as a
product with a mask.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    constant_array,
    describe,
    float_attribute,
    input_at,
    string_attribute,
)

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875
_SIXTH = float(np.float32(1 / 6))  # HardSwish is specified by a HardSigmoid, whose attributes are float32
_GELU_CUBIC = 0.044715
_GELU_SATURATED = 10.0


def relu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·[y ≠ 0].

    The mask comes from the output, so that ONNX Runtime may still fuse the Relu into the node before it.
    """
    y = node.outputs[0]
    return g.op("Mul", dys[0], g.cast(g.cast(y, ir.DataType.BOOL), y.dtype))


def leaky_relu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·(alpha + (1 − alpha)·[x > 0]).

    A positive alpha keeps the sign, so that the mask may come from the output, as Relu's does.
    """
    alpha = float_attribute(node, "alpha", 0.01)
    signed = node.outputs[0] if alpha > 0 else input_at(node, 0)
    above = g.op("Mul", _above(g, signed, 0.0), g.floats(1.0 - alpha, signed))
    return g.op("Mul", dys[0], g.op("Add", above, g.floats(alpha, signed)))


def prelu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·(slope + (1 − slope)·[x > 0]); the slope is broadcast to x."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: its slope is computed from the image; expected a constant")
    x, slope = input_at(node, 0), input_at(node, 1)
    above = g.op("Mul", _above(g, x, 0.0), g.op("Sub", g.floats(1.0, x), slope))
    return g.op("Mul", dys[0], g.op("Add", above, slope))


def elu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·[x > 0] + dy·alpha·exp(x)·[x ≤ 0]."""
    return _exponential(g, node, dys[0], below=float_attribute(node, "alpha", 1.0), above=1.0)


def selu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = gamma·(dy·[x > 0] + dy·alpha·exp(x)·[x ≤ 0])."""
    gamma = float_attribute(node, "gamma", _SELU_GAMMA)
    below = gamma * float_attribute(node, "alpha", _SELU_ALPHA)
    return _exponential(g, node, dys[0], below=below, above=gamma)


def celu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·exp(min(x, 0)/alpha)."""
    x = input_at(node, 0)
    below = g.op("Min", x, g.floats(0.0, x))
    return g.op("Mul", dys[0], g.op("Exp", g.op("Div", below, g.floats(float_attribute(node, "alpha", 1.0), x))))


def thresholded_relu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·[x > alpha]."""
    return g.op("Mul", dys[0], _above(g, input_at(node, 0), float_attribute(node, "alpha", 1.0)))


def clip(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·[min < y < max]."""
    if index != 0:
        raise UnsupportedOpError(f"{describe(node)}: a bound is computed from the image; expected constant bounds")
    y = node.outputs[0]
    inside = []
    for position, comparison in ((1, "Greater"), (2, "Less")):
        bound = constant_array(node, position)
        if bound is not None:
            inside.append(g.op(comparison, y, g.floats(bound.reshape(()), y)))
    if not inside:
        return dys[0]
    active = inside[0] if len(inside) == 1 else g.op("And", *inside)
    return g.op("Mul", dys[0], g.cast(active, y.dtype))


def sigmoid(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·y·(1 − y)."""
    y = node.outputs[0]
    return g.op("Mul", dys[0], g.op("Mul", y, _one_minus(g, y)))


def hard_sigmoid(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·alpha·[0 < y < 1]."""
    y = node.outputs[0]
    inside = g.op("And", g.op("Greater", y, g.floats(0.0, y)), g.op("Less", y, g.floats(1.0, y)))
    slope = g.op("Mul", g.cast(inside, y.dtype), g.floats(float_attribute(node, "alpha", 0.2), y))
    return g.op("Mul", dys[0], slope)


def hard_swish(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·(h + x/6·[−3 < x < 3]) for y = x·h, with h = HardSigmoid of slope 1/6."""
    x = input_at(node, 0)
    gate = g.op("HardSigmoid", x, alpha=_SIXTH, beta=0.5)
    inside = g.cast(g.op("Less", g.op("Abs", x), g.floats(3.0, x)), x.dtype)
    slope = g.op("Mul", inside, g.op("Mul", x, g.floats(_SIXTH, x)))
    return g.op("Mul", dys[0], g.op("Add", gate, slope))


def tanh(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·(1 − y²)."""
    y = node.outputs[0]
    return g.op("Mul", dys[0], _one_minus(g, g.op("Mul", y, y)))


def softplus(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·σ(x)."""
    return g.op("Mul", dys[0], g.op("Sigmoid", input_at(node, 0)))


def softsign(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy/(1 + |x|)²."""
    x = input_at(node, 0)
    root = g.op("Add", g.op("Abs", x), g.floats(1.0, x))
    return g.op("Div", dys[0], g.op("Mul", root, root))


def gelu(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·(Φ(x) + x·φ(x)), or, approximated with tanh, the gradient of that approximation."""
    approximate = string_attribute(node, "approximate", "none")
    if approximate not in ("none", "tanh"):
        raise UnsupportedOpError(f"{describe(node)}: has approximate {approximate!r}; expected 'none' or 'tanh'")
    slope = _gelu_by_erf(g, input_at(node, 0)) if approximate == "none" else _gelu_by_tanh(g, input_at(node, 0))
    return g.op("Mul", dys[0], slope)


def swish(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·p·(1 + alpha·x·(1 − p)) with p = σ(alpha·x)."""
    x = input_at(node, 0)
    scaled = g.op("Mul", x, g.floats(float_attribute(node, "alpha", 1.0), x))
    return g.op("Mul", dys[0], _gated(g, g.op("Sigmoid", scaled), scaled))


def mish(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·(t + x·p·(1 − t²)) with p = σ(x) and t = tanh(softplus(x)).

    With q = 1 − p: t = p·(1 + q)/(1 + q²) and 1 − t² = 4q²/(1 + q²)². On ONNX Runtime's CPU provider this takes a fifth
    of the time of Softplus and Tanh.
    """
    x = input_at(node, 0)
    p = g.op("Sigmoid", x)
    q = _one_minus(g, p)
    square = g.op("Mul", q, q)
    divisor = g.op("Add", square, g.floats(1.0, x))
    share = g.op("Div", g.op("Mul", square, g.floats(4.0, x)), divisor)
    rising = g.op("Mul", g.op("Mul", x, p), share)
    gate = g.op("Mul", p, g.op("Add", q, g.floats(1.0, x)))
    return g.op("Mul", dys[0], g.op("Div", g.op("Add", gate, rising), divisor))


def _above(g: GraphBuilder, value: ir.Value, threshold: float) -> ir.Value:
    """Return [value > threshold] as 0 or 1 of its element type."""
    return g.cast(g.op("Greater", value, g.floats(threshold, value)), value.dtype)


def _one_minus(g: GraphBuilder, value: ir.Value) -> ir.Value:
    return g.op("Sub", g.floats(1.0, value), value)


def _exponential(g: GraphBuilder, node: ir.Node, dy: ir.Value, *, below: float, above: float) -> ir.Value:
    """Return dy·above where x > 0, and dy·below·exp(x) elsewhere.

    The exponent ends at 0: a large x does not overflow.
    """
    x = input_at(node, 0)
    slope = g.op("Exp", g.op("Min", x, g.floats(0.0, x)))
    if below != 1.0:
        slope = g.op("Mul", slope, g.floats(below, x))
    if above != below:
        slope = g.op("Add", slope, g.op("Mul", _above(g, x, 0.0), g.floats(above - below, x)))
    return g.op("Mul", dy, slope)


def _gelu_by_erf(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Return ½ + ½·(erf(u) + u·2/√π·exp(−u²)) with u = x/√2; the factor 2/√π is in the exponent."""
    u = g.op("Mul", x, g.floats(math.sqrt(0.5), x))
    exponent = g.op("Sub", g.floats(math.log(2 / math.sqrt(math.pi)), x), g.op("Mul", u, u))
    twice = g.op("Add", g.op("Erf", u), g.op("Mul", u, g.op("Exp", exponent)))
    half = g.floats(0.5, x)
    return g.op("Add", g.op("Mul", twice, half), half)


def _gelu_by_tanh(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Return p·(1 + (1 − p)·x·v'(x)) for y = x·p, with p = ½·(1 + tanh(v/2)) = σ(v), v = 2√(2/π)·(x + 0.044715·x³).

    Beyond ±10 it is 0 or 1 to the last digit of float64, so that x may be clipped there: x³ does not overflow.
    """
    x = g.op("Clip", x, g.floats(-_GELU_SATURATED, x), g.floats(_GELU_SATURATED, x))
    linear = 2 * math.sqrt(2 / math.pi)
    cubic = linear * _GELU_CUBIC
    square = g.op("Mul", x, x)
    exponent, rising = (
        g.op("Mul", x, g.op("Add", g.op("Mul", square, g.floats(factor, x)), g.floats(linear, x)))
        for factor in (cubic, 3 * cubic)
    )
    return _gated(g, g.op("Sigmoid", exponent), rising)


def _gated(g: GraphBuilder, p: ir.Value, rising: ir.Value) -> ir.Value:
    """Return p·(1 + (1 − p)·x·v'(x)), the derivative of x·p for p = σ(v(x)), from p and x·v'(x)."""
    return g.op("Mul", p, g.op("Add", g.op("Mul", _one_minus(g, p), rising), g.floats(1.0, p)))
