"""Gradient rules of normalisation layers.

Layers that take statistics from the image share one gradient: for x̂ = d/σ, where d = x − mean(x) and σ² = mean(d²) +
epsilon, and for the gradient g at x̂, it is dx = (g − mean(g) − x̂·mean(g·x̂))/σ.

Kinks: LpNormalization has gradient 0 for a zero vector, and takes 0 for that of |x| at x = 0. At equal elements
MeanVarianceNormalization has its true gradient, (dy − mean(dy))/1e-9.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    describe,
    expect_activation_first,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    static_shape,
)
from engine.export.windows import expect_images

_MEAN_VARIANCE_EPSILON = 1e-9  # of the ONNX specification; it has no attribute
_SMALLEST_NORM = float(np.finfo(np.float32).tiny)
_SMALLEST_DEVIATION = 1e-20


def batch_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·scale/√(var + epsilon): the running statistics are constants."""
    if int_attribute(node, "training_mode", 0) == 1:
        raise UnsupportedOpError(f"{describe(node)}: has training_mode = 1; expected inference form, training_mode = 0")
    expect_activation_first(node, index, "scale", "bias", "mean", "variance")
    scale, variance = input_at(node, 1), input_at(node, 4)
    epsilon = g.floats(float_attribute(node, "epsilon", 1e-5), variance)
    factor = g.op("Div", scale, g.op("Sqrt", g.op("Add", variance, epsilon)))
    spatial = len(static_shape(node.outputs[0])) - 1
    return g.op("Mul", dys[0], g.op("Reshape", factor, g.ints([-1, *[1] * spatial])))


def layer_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = (g − mean(g) − x̂·mean(g·x̂))/σ with g = dy·scale; means over the axes from `axis` on."""
    expect_activation_first(node, index, "scale", "bias")
    x, axes, count = _trailing_axes(node)
    statistics = _Statistics(g, axes, count)
    standardised, deviation = statistics.standardise(statistics.centre(x), float_attribute(node, "epsilon", 1e-5))
    return statistics.pull_back(g.op("Mul", dys[0], input_at(node, 1)), standardised, deviation)


def rms_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = (g − x̂·mean(g·x̂))/σ with g = dy·scale; x is not centred: d = x."""
    expect_activation_first(node, index, "scale")
    x, axes, count = _trailing_axes(node)
    statistics = _Statistics(g, axes, count)
    standardised, deviation = statistics.standardise(x, float_attribute(node, "epsilon", 1e-5))
    gradient = g.op("Mul", dys[0], input_at(node, 1))
    return g.op("Div", statistics.without(gradient, standardised), deviation)


def instance_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = (g − mean(g) − x̂·mean(g·x̂))/σ with g = dy·scale; means over the spatial axes."""
    expect_activation_first(node, index, "scale", "bias")
    return _group_gradient(g, node, dys[0], static_shape(input_at(node, 0))[0])


def group_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = (g − mean(g) − x̂·mean(g·x̂))/σ with g = dy·scale; means over the channels of a group and their pixels.

    Version 18 has one scale for each group, version 21 one for each channel.
    """
    expect_activation_first(node, index, "scale", "bias")
    return _group_gradient(g, node, dys[0], int_attribute(node, "num_groups", 1))


def mean_variance_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = (dy − mean(dy))/(σ + 1e-9) − y·mean(dy·y)/σ, with σ² = mean(d²); the last term is 0 where σ is."""
    x = input_at(node, index)
    sizes = [1, *static_shape(x)]
    axes = sorted({axis % len(sizes) for axis in ints_attribute(node, "axes", (0, 2, 3))})
    if 0 in axes:
        raise UnsupportedOpError(f"{describe(node)}: normalises over axis 0, the batch; expected other axes")
    statistics = _Statistics(g, axes, math.prod(sizes[axis] for axis in axes))
    centred = statistics.centre(x)
    deviation = g.op("Sqrt", statistics.mean(g.op("Mul", centred, centred)))
    divisor = g.op("Add", deviation, g.floats(_MEAN_VARIANCE_EPSILON, x))
    y = g.op("Div", centred, divisor)
    share = g.op("Div", statistics.mean(g.op("Mul", dys[0], y)), _at_least(g, deviation, _SMALLEST_DEVIATION))
    return g.op("Sub", g.op("Div", statistics.centre(dys[0]), divisor), g.op("Mul", y, share))


def lp_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = (dy − u·Σ(dy·y))/‖x‖, with u = y for the 2-norm and u = sign(x) for the 1-norm."""
    x, p = input_at(node, index), int_attribute(node, "p", 2)
    if p not in (1, 2):
        raise UnsupportedOpError(f"{describe(node)}: has p = {p}; expected 1 or 2")
    axis = g.ints([_axis(node)])
    magnitudes = g.op("Abs", x) if p == 1 else g.op("Mul", x, x)
    total = g.op("ReduceSum", magnitudes, axis, keepdims=1)
    norm = total if p == 1 else g.op("Sqrt", total)
    nonzero = g.cast(g.cast(norm, ir.DataType.BOOL), x.dtype)
    inverse = g.op("Div", nonzero, _at_least(g, norm, _SMALLEST_NORM))
    y = g.op("Mul", x, inverse)
    along = g.op("ReduceSum", g.op("Mul", dys[0], y), axis, keepdims=1)
    direction = g.op("Sign", x) if p == 1 else y
    return g.op("Mul", g.op("Sub", dys[0], g.op("Mul", direction, along)), inverse)


def local_response_normalization(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy·s^−β − x·2αβ/size·Wᵀ(dy·x·s^(−β−1)), with s = bias + α/size·W(x²).

    W sums over the channels of each window, [c − ⌊(size−1)/2⌋, c + ⌈(size−1)/2⌉]; a 1×1 Conv with a band matrix. On
    ONNX Runtime's CPU provider this gradient takes a quarter of the forward pass's time, and as long as with slices;
    an AveragePool over the channels takes 4 times as long. s^−β is exp(−β·log s), since Pow is slower.
    """
    x, size = input_at(node, index), int_attribute(node, "size", 1)
    channels, *spatial = static_shape(x)
    expect_images(node, spatial)
    alpha, beta = float_attribute(node, "alpha", 1e-4), float_attribute(node, "beta", 0.75)
    before = (size - 1) // 2
    offsets = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    window = ((offsets >= -before) & (offsets <= size - 1 - before)) * (alpha / size)
    bias = g.floats(np.full(channels, float_attribute(node, "bias", 1.0)), x)
    base = g.op("Conv", g.op("Mul", x, x), g.floats(window[:, :, None, None], x), bias)
    power = g.op("Exp", g.op("Mul", g.op("Log", base), g.floats(-beta, x)))
    direct = g.op("Mul", dys[0], power)
    spread = g.floats(2 * beta * window.T[:, :, None, None], x)
    across = g.op("Conv", g.op("Div", g.op("Mul", direct, x), base), spread)
    return g.op("Sub", direct, g.op("Mul", x, across))


def _group_gradient(g: GraphBuilder, node: ir.Node, dy: ir.Value, groups: int) -> ir.Value:
    """Return the gradient of a normalisation of each group of channels; all is done on [N, group, channel, pixel]."""
    channels, *spatial = sizes = static_shape(input_at(node, 0))
    pixels = math.prod(spatial)
    x, gradient = (
        g.op("Reshape", value, g.ints([-1, groups, channels // groups, pixels])) for value in (input_at(node, 0), dy)
    )
    scale = g.op("Reshape", input_at(node, 1), g.ints([groups, -1, 1]))
    statistics = _Statistics(g, (2, 3), channels // groups * pixels)
    standardised, deviation = statistics.standardise(statistics.centre(x), float_attribute(node, "epsilon", 1e-5))
    gradient = statistics.pull_back(g.op("Mul", gradient, scale), standardised, deviation)
    return g.op("Reshape", gradient, g.ints([-1, *sizes]))


class _Statistics:
    """Appends means over some axes, and what is made of them.

    Args:
        g: Builder of the graph that is appended to.
        axes: The axes.
        count: Number of elements along them.
    """

    def __init__(self, g: GraphBuilder, axes: Sequence[int], count: int) -> None:
        self._g, self._axes, self._count = g, g.ints(axes), count

    def mean(self, value: ir.Value) -> ir.Value:
        """Append the mean, as a sum: ReduceMean takes its axes another way from opset 18 on."""
        total = self._g.op("ReduceSum", value, self._axes, keepdims=1)
        return self._g.op("Mul", total, self._g.floats(1.0 / self._count, value))

    def centre(self, value: ir.Value) -> ir.Value:
        """Append the difference from the mean."""
        return self._g.op("Sub", value, self.mean(value))

    def standardise(self, centred: ir.Value, epsilon: float) -> tuple[ir.Value, ir.Value]:
        """Append d/σ and σ = √(mean(d²) + epsilon) for d."""
        variance = self.mean(self._g.op("Mul", centred, centred))
        deviation = self._g.op("Sqrt", self._g.op("Add", variance, self._g.floats(epsilon, centred)))
        return self._g.op("Div", centred, deviation), deviation

    def without(self, gradient: ir.Value, standardised: ir.Value) -> ir.Value:
        """Append g − x̂·mean(g·x̂)."""
        along = self.mean(self._g.op("Mul", gradient, standardised))
        return self._g.op("Sub", gradient, self._g.op("Mul", standardised, along))

    def pull_back(self, gradient: ir.Value, standardised: ir.Value, deviation: ir.Value) -> ir.Value:
        """Append (g − mean(g) − x̂·mean(g·x̂))/σ."""
        return self._g.op("Div", self.without(self.centre(gradient), standardised), deviation)


def _trailing_axes(node: ir.Node) -> tuple[ir.Value, list[int], int]:
    """Return the input, the axes from the attribute `axis` on, and the number of elements along them."""
    x, first = input_at(node, 0), _axis(node)
    sizes = [1, *static_shape(x)]
    return x, list(range(first, len(sizes))), math.prod(sizes[first:])


def _axis(node: ir.Node) -> int:
    """Return the attribute `axis`, by default the last.

    Raises:
        UnsupportedOpError: It is the batch.
    """
    axis = int_attribute(node, "axis", -1) % (1 + len(static_shape(input_at(node, 0))))
    if axis == 0:
        raise UnsupportedOpError(f"{describe(node)}: normalises over axis 0, the batch; expected another axis")
    return axis


def _at_least(g: GraphBuilder, value: ir.Value, bound: float) -> ir.Value:
    return g.op("Max", value, g.floats(bound, value))
