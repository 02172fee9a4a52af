"""Activation functions: networks, and wrong rules."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder, input_at
from engine.export.rules import Rule
from tests.export.broken.case import (
    CHANNELS,
    Case,
    as_if,
    as_if_inputs,
    by_x,
    by_y,
    linear,
    passes,
    plain,
    step,
    times_output,
    with_constants,
)
from tests.export.networks import node

RANDOM = np.random.default_rng(20102)
BY_CHANNEL = RANDOM.uniform(0.5, 2.0, CHANNELS)


def piecewise(threshold: float, below: float, above: float) -> Rule:
    """dx = dy·below up to a threshold of x, and dy·above after it."""

    return by_x(lambda g, x: linear(g, step(g, x, threshold), above - below, below))


def gelu_without_second_term(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return g.op("Mul", dys[0], g.op("Div", node.outputs[0], input_at(node, 0)))


CASES: tuple[Case, ...] = (
    plain(
        "Celu",
        {
            "no kink": by_x(lambda g, x: g.op("Exp", g.op("Div", x, g.floats(0.5, x)))),
            "no alpha": as_if("Celu", alpha=1.0),
            "passes": passes,
        },
        alpha=0.5,
    ),
    with_constants(
        "Clip",
        {
            "no lower bound": as_if_inputs("Clip", at_1=-1e9),
            "no upper bound": as_if_inputs("Clip", at_2=1e9),
            "passes": passes,
        },
        {"low": np.float32(-0.7), "high": np.float32(6.0)},
    ),
    plain(
        "Elu",
        {
            "no kink": by_x(lambda g, x: g.op("Mul", g.op("Exp", x), g.floats(0.5, x))),
            "no alpha": as_if("Elu", alpha=1.0),
            "passes": passes,
        },
        alpha=0.5,
    ),
    plain(
        "Gelu",
        {
            "no second term": by_x(
                lambda g, x: linear(g, g.op("Erf", g.op("Mul", x, g.floats(math.sqrt(0.5), x))), 0.5, 0.5)
            ),
            "density alone": by_x(
                lambda g, x: g.op("Exp", linear(g, g.op("Mul", x, x), -0.5, -0.5 * math.log(2 * math.pi)))
            ),
        },
        opset=20,
    ),
    Case(
        op="Gelu",
        form="by tanh",
        nodes=[node("Gelu", "maps", "out", approximate="tanh")],
        wrong={"no second term": gelu_without_second_term},
        opset=20,
    ),
    plain(
        "HardSigmoid",
        {
            "no bounds": by_x(lambda g, x: g.op("Expand", g.floats(0.4, x), g.op("Shape", x))),
            "default alpha": as_if("HardSigmoid", alpha=0.2),
            "no lower bound": by_y(lambda g, y: g.op("Mul", step(g, y, 1.0, "Less"), g.floats(0.4, y))),
            "no upper bound": by_y(lambda g, y: g.op("Mul", step(g, y), g.floats(0.4, y))),
        },
        alpha=0.4,
        beta=0.45,
    ),
    plain(
        "HardSwish",
        {
            "no second term": by_x(lambda g, x: g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
            "no bounds": by_x(lambda g, x: linear(g, x, 1 / 3, 0.5)),
            "no upper bound": by_x(
                lambda g, x: g.op("Mul", step(g, x, -3.0), linear(g, x, 1 / 3, 0.5)),
            ),
            "passes": passes,
        },
    ),
    plain(
        "LeakyRelu",
        {"passes": passes, "as Relu": by_x(lambda g, x: step(g, x)), "no alpha": as_if("LeakyRelu", alpha=0.01)},
        alpha=0.3,
    ),
    plain(
        "Mish",
        {
            "no second term": by_x(lambda g, x: g.op("Tanh", g.op("Softplus", x))),
            "as Swish": by_x(lambda g, x: g.op("Sigmoid", x)),
            "passes": passes,
        },
        opset=18,
    ),
    with_constants(
        "PRelu",
        {
            "passes": passes,
            "as Relu": by_x(lambda g, x: step(g, x)),
            "slope everywhere": by_x(
                lambda g, x: g.op("Add", g.op("Mul", x, g.floats(0.0, x)), g.floats(0.3 * BY_CHANNEL[:, None, None], x))
            ),
        },
        {"slope": 0.3 * BY_CHANNEL[:, None, None]},
    ),
    plain("Relu", {"passes": passes, "where x < 0": by_x(lambda g, x: step(g, x, comparison="Less"))}),
    plain(
        "Selu",
        {
            "passes": passes,
            "no gamma": as_if("Selu", gamma=1.0),
            "as Elu": piecewise(0.0, 1.758, 1.0507),
            "other alpha": as_if("Selu", alpha=1.0),
        },
    ),
    plain("Sigmoid", {"y": times_output, "1 - y": by_y(lambda g, y: linear(g, y, -1.0, 1.0))}),
    plain("Softplus", {"passes": passes, "as Relu": by_x(lambda g, x: step(g, x))}),
    plain(
        "Softsign",
        {
            "not squared": by_x(lambda g, x: g.op("Reciprocal", linear(g, g.op("Abs", x), 1.0, 1.0))),
            "no absolute value": by_x(lambda g, x: g.op("Reciprocal", linear(g, g.op("Mul", x, x), 1.0, 1.0))),
        },
    ),
    plain(
        "Swish",
        {
            "no second term": by_x(lambda g, x: g.op("Sigmoid", g.op("Mul", x, g.floats(1.5, x)))),
            "no alpha": as_if("Swish", alpha=1.0),
            "passes": passes,
        },
        opset=24,
        alpha=1.5,
    ),
    plain(
        "Tanh",
        {
            "1 - y": by_y(lambda g, y: linear(g, y, -1.0, 1.0)),
            "y(1 - y)": by_y(lambda g, y: g.op("Mul", y, linear(g, y, -1.0, 1.0))),
        },
    ),
    plain(
        "ThresholdedRelu",
        {"passes": passes, "at 0": as_if("ThresholdedRelu", alpha=0.0), "at 1": as_if("ThresholdedRelu", alpha=1.0)},
        alpha=0.6,
    ),
)
