"""Normalisations and Softmax: networks, and wrong rules."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder, input_at, static_shape
from engine.export.rules import Rule
from tests.export.broken.case import CHANNELS, SIZE, Case, as_if, passes, plain, with_constants
from tests.export.networks import node, statistics

RANDOM = np.random.default_rng(20102)
BY_CHANNEL = RANDOM.uniform(0.5, 2.0, CHANNELS)
SQUARE = np.array([[0.7, -0.9, 0.2, 0.1], [0.4, 0.8, -0.3, 0.5], [-0.6, 0.2, 0.9, -0.1], [0.3, 0.5, 0.1, -0.8]])


def log_softmax_without_shares(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return g.op("Sub", dys[0], g.op("ReduceSum", dys[0], g.ints([1]), keepdims=1))


def normalised(
    *axes: int, epsilon: float = 1e-5, mean: bool = True, cross: bool = True, scaled: bool = True, groups: int = 0
) -> Rule:
    """The gradient of a normalisation over axes, or over each group of channels, with terms left out."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
        x, dy = input_at(node, 0), dys[0]
        sizes = list(static_shape(x))
        if scaled and len(node.inputs) > 1:
            scale = input_at(node, 1)
            by_channel = node.op_type in ("InstanceNormalization", "GroupNormalization")
            dy = g.op("Mul", dy, g.op("Reshape", scale, g.ints([-1, 1, 1])) if by_channel else scale)
        inner, over = [1, *sizes], list(axes)
        if groups:
            inner, over = [1, groups, math.prod(sizes) // groups], [2]
            x, dy = (g.op("Reshape", value, g.ints([-1, *inner[1:]])) for value in (x, dy))
        share = 1 / math.prod(inner[axis] for axis in over)

        def average(value: ir.Value) -> ir.Value:
            return g.op("Mul", g.op("ReduceSum", value, g.ints(over), keepdims=1), g.floats(share, value))

        centred = x if node.op_type == "RMSNormalization" else g.op("Sub", x, average(x))
        deviation = g.op("Sqrt", g.op("Add", average(g.op("Mul", centred, centred)), g.floats(epsilon, x)))
        standard = g.op("Div", centred, deviation)
        result = g.op("Sub", dy, average(dy)) if mean else dy
        if cross:
            result = g.op("Sub", result, g.op("Mul", standard, average(g.op("Mul", dy, standard))))
        return g.op("Reshape", g.op("Div", result, deviation), g.ints([-1, *sizes]))

    return rule


def batch_normalization_without_variance(
    g: GraphBuilder,
    node: ir.Node,
    dys: Sequence[ir.Value],
    index: int,  # noqa: ARG001
) -> ir.Value:
    return g.op("Mul", dys[0], g.op("Reshape", input_at(node, 1), g.ints([-1, 1, 1])))


def lp_without_projection(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    x = input_at(node, 0)
    norm = g.op("Sqrt", g.op("ReduceSum", g.op("Mul", x, x), g.ints([1]), keepdims=1))
    return g.op("Div", dys[0], norm)


def response_without_cross_term(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """dx = dy·s^−β = dy·y/x."""
    return g.op("Mul", dys[0], g.op("Div", node.outputs[0], input_at(node, 0)))


def softmax_without_sum(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return g.op("Mul", dys[0], node.outputs[0])


CASES: tuple[Case, ...] = (
    Case(
        op="BatchNormalization",
        nodes=[node("Tanh", "maps", "t"), node("BatchNormalization", "t n_scale n_bias n_mean n_var", "out")],
        constants=statistics(RANDOM, "n", CHANNELS),
        wrong={
            "no variance": batch_normalization_without_variance,
            "other epsilon": as_if("BatchNormalization", epsilon=0.1),
        },
    ),
    with_constants(
        "GroupNormalization",
        {
            "no mean term": normalised(groups=2, mean=False),
            "no cross term": normalised(groups=2, cross=False),
            "no scale": normalised(groups=2, scaled=False),
            "other groups": as_if("GroupNormalization", num_groups=4),
        },
        {"scale": BY_CHANNEL, "bias": SQUARE[0]},
        attributes={"num_groups": 2},
        opset=21,
    ),
    with_constants(
        "InstanceNormalization",
        {
            "no mean term": normalised(2, 3, mean=False),
            "no cross term": normalised(2, 3, cross=False),
            "no scale": normalised(2, 3, scaled=False),
        },
        {"scale": BY_CHANNEL, "bias": SQUARE[0]},
    ),
    plain(
        "LRN",
        {"no cross term": response_without_cross_term, "other size": as_if("LRN", size=1)},
        size=3,
        alpha=0.5,
        beta=0.75,
        bias=1.0,
    ),
    with_constants(
        "LayerNormalization",
        {
            "no mean term": normalised(3, mean=False),
            "no cross term": normalised(3, cross=False),
            "no scale": normalised(3, scaled=False),
            "no epsilon": as_if("LayerNormalization", epsilon=1e-12),
            "other axis": as_if("LayerNormalization", axis=2),
        },
        {"scale": RANDOM.uniform(0.5, 2, SIZE), "bias": RANDOM.standard_normal(SIZE)},
        attributes={"epsilon": 0.1},
    ),
    plain(
        "LogSoftmax",
        {
            "no sum": passes,
            "sum not shared": log_softmax_without_shares,
            "other axis": as_if("LogSoftmax", axis=2),
        },
        axis=1,
    ),
    plain("LpNormalization", {"no projection": lp_without_projection, "p = 1": as_if("LpNormalization", p=1)}, axis=1),
    Case(
        op="LpNormalization",
        form="of p = 1",
        nodes=[node("LpNormalization", "maps", "out", axis=1, p=1)],
        wrong={"p = 2": as_if("LpNormalization", p=2)},
    ),
    Case(
        op="MeanVarianceNormalization",
        nodes=[node("MeanVarianceNormalization", "maps", "n", axes=[2, 3]), node("Relu", "n", "out")],
        wrong={
            "no mean term": normalised(2, 3, epsilon=0.0, mean=False),
            "no cross term": normalised(2, 3, epsilon=0.0, cross=False),
            "other axes": as_if("MeanVarianceNormalization", axes=[1, 2, 3]),
        },
    ),
    with_constants(
        "RMSNormalization",
        {
            "no cross term": normalised(3, mean=False, cross=False),
            "centred": normalised(3),
            "no scale": normalised(3, mean=False, scaled=False),
        },
        {"scale": RANDOM.uniform(0.5, 2, SIZE)},
        opset=23,
    ),
    plain("Softmax", {"no sum": softmax_without_sum, "other axis": as_if("Softmax", axis=3), "passes": passes}, axis=1),
)
