"""Element-wise arithmetic and functions: networks, and wrong rules."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx import TensorProto

from engine.export.graph import GraphBuilder, input_at, static_shape
from engine.export.rules import Rule
from engine.export.rules.arithmetic import unbroadcast
from tests.export.broken.case import (
    CHANNELS,
    RIGHT,
    SIZE,
    Case,
    at,
    by_x,
    by_y,
    exchanged,
    linear,
    only,
    passes,
    plain,
    times_input,
    times_output,
    with_constants,
)
from tests.export.networks import node


def unsummed(op: str) -> Rule:
    """The mean over the axes along which the input was broadcast, in place of the sum."""

    def mean(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        right = RIGHT[op](g, node, dys, index)
        wide, narrow = static_shape(node.outputs[0]), static_shape(input_at(node, index))
        return g.op("Mul", right, g.floats(math.prod(narrow) / math.prod(wide), right))

    return mean


def own_factor(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """The gradient of Mul with the input's own value in place of the other's."""
    return unbroadcast(g, g.op("Mul", dys[0], input_at(node, index)), node, index)


def no_factor(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    return unbroadcast(g, dys[0], node, index)


def db_of_div(*, power: int, sign: float) -> Rule:
    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        if index == 0:
            return RIGHT["Div"](g, node, dys, index)
        a, b = input_at(node, 0), input_at(node, 1)
        quotient = g.op("Div", a, b) if power == 1 else g.op("Div", g.op("Div", a, b), g.op("Mul", b, b))
        return unbroadcast(g, g.op("Mul", dys[0], g.op("Mul", quotient, g.floats(sign, b))), node, 1)

    return rule


def power_slope(*, exponent: bool, lowered: bool) -> Rule:
    """dx = dy·xᵖ⁻¹ without the factor p, or dy·p·xᵖ."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        if index == 1:
            return RIGHT["Pow"](g, node, dys, index)
        x, p = input_at(node, 0), input_at(node, 1)
        value = g.op("Div", node.outputs[0], x) if lowered else node.outputs[0]
        return g.op("Mul", dys[0], g.op("Mul", value, p) if exponent else value)

    return rule


def exponent_without_logarithm(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    return g.op("Mul", dys[0], node.outputs[0]) if index == 1 else RIGHT["Pow"](g, node, dys, index)


def extremum_at_all_ties(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """Every input that attains the extremum gets the whole gradient."""
    y = node.outputs[0]
    return unbroadcast(g, g.op("Mul", dys[0], g.cast(g.op("Equal", input_at(node, index), y), y.dtype)), node, index)


def other_extremum(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """The gradient of Max for Min, and of Min for Max, of the first two inputs."""
    x, y = input_at(node, index), node.outputs[0]
    return unbroadcast(g, g.op("Mul", dys[0], g.cast(g.op("Not", g.op("Equal", x, y)), y.dtype)), node, index)


def gated(op: str, wrong: Mapping[str, Rule]) -> Case:
    """An operator of `maps` and of a gate for each channel, which is positive."""
    nodes = [
        node("GlobalAveragePool", "maps", "squeezed"),
        node("Sigmoid", "squeezed", "gate"),
        node(op, "maps gate", "out"),
    ]
    return Case(op=op, nodes=nodes, wrong=wrong)


CASES: tuple[Case, ...] = (
    plain("Abs", {"passes": passes}),
    Case(
        op="Add",
        nodes=[
            node("GlobalAveragePool", "maps", "squeezed"),
            node("Tanh", "squeezed", "gate"),
            node("Add", "maps gate", "out"),
        ],
        wrong={"first only": only("Add", 0), "second only": only("Add", 1), "mean": unsummed("Add")},
    ),
    Case(
        op="Cast",
        nodes=[
            node("Cast", "maps", "wide", to=TensorProto.DOUBLE),
            node("Cast", "wide", "narrow", to=TensorProto.FLOAT),
            node("Cast", "narrow", "out", to=TensorProto.FLOAT),  # an odd number: two wrong signs would be a right one
        ],
    ),
    gated(
        "Div",
        {
            "no db": only("Div", 0),
            "sign of db": db_of_div(power=2, sign=1.0),
            "db not squared": db_of_div(power=1, sign=-1.0),
            "da not divided": at("Div", 0, no_factor),
        },
    ),
    Case(
        op="Dropout",
        nodes=[
            node("Dropout", "maps", "kept mask"),
            node("Tanh", "maps", "t"),
            node("Where", "mask kept t", "out"),
        ],
    ),
    plain(
        "Erf",
        {
            "no factor": by_x(lambda g, x: g.op("Exp", g.op("Neg", g.op("Mul", x, x)))),
            "of the normal distribution": by_x(
                lambda g, x: g.op("Exp", linear(g, g.op("Mul", x, x), -0.5, math.log(2 / math.sqrt(math.pi))))
            ),
        },
    ),
    plain("Exp", {"times x": times_input(), "passes": passes}),
    Case(
        op="Expand",
        nodes=[
            node("GlobalAveragePool", "maps", "squeezed"),
            node("Expand", "squeezed wide", "gate"),
            node("Mul", "maps gate", "out"),
        ],
        constants={"wide": np.array([1, CHANNELS, SIZE, SIZE])},
        wrong={"mean": unsummed("Expand")},
        moved=(1,),
    ),
    plain("Identity"),
    plain("Log", {"no slope": passes, "by y": by_y(lambda g, y: g.op("Reciprocal", y))}, positive=True),
    Case(
        op="Max",
        nodes=[node("Relu", "maps", "b"), node("Sigmoid", "maps", "c"), node("Max", "maps b c", "out")],
        wrong={
            "to all ties": extremum_at_all_ties,
            "to all": no_factor,
            "to the other": other_extremum,
            "first only": only("Max", 0),
        },
    ),
    Case(
        op="Min",
        nodes=[
            node("Neg", "maps", "n"),
            node("Relu", "n", "r"),
            node("Neg", "r", "b"),
            node("Sigmoid", "n", "s"),
            node("Neg", "s", "c"),
            node("Min", "maps b c", "out"),
        ],
        wrong={
            "to all ties": extremum_at_all_ties,
            "to all": no_factor,
            "to the other": other_extremum,
            "first only": only("Min", 0),
        },
    ),
    gated(
        "Mul",
        {
            "no factor": no_factor,
            "own factor": at("Mul", 0, no_factor),
            "first only": only("Mul", 0),
            "second only": only("Mul", 1),
            "mean": unsummed("Mul"),
        },
    ),
    Case(
        op="Mul",
        form="of equal shapes",
        nodes=[node("Tanh", "maps", "t"), node("Mul", "maps t", "out")],
        wrong={"own factor": own_factor},
    ),
    plain("Neg", {"passes": passes}),
    with_constants(
        "Pow",
        {
            "no exponent": power_slope(exponent=False, lowered=True),
            "exponent not lowered": power_slope(exponent=True, lowered=False),
        },
        {"exponent": np.float32(2.5)},
        positive=True,
    ),
    Case(
        op="Pow",
        form="of two activations",
        nodes=[node("Sigmoid", "maps", "p"), node("Pow", "maps p", "out")],
        wrong={"no dp": only("Pow", 0), "no logarithm": exponent_without_logarithm, "no dx": only("Pow", 1)},
        positive=True,
    ),
    plain(
        "Reciprocal",
        {"not squared": by_y(lambda g, y: g.op("Neg", y)), "no sign": by_y(lambda g, y: g.op("Mul", y, y))},
        positive=True,
    ),
    plain(
        "Sqrt",
        {"y": times_output, "not half": by_y(lambda g, y: g.op("Reciprocal", y))},
        positive=True,
    ),
    Case(
        op="Sub",
        nodes=[
            node("GlobalAveragePool", "maps", "squeezed"),
            node("Tanh", "squeezed", "gate"),
            node("Sub", "maps gate", "out"),
        ],
        wrong={"sign of db": no_factor, "first only": only("Sub", 0), "mean": unsummed("Sub")},
    ),
    Case(
        op="Sum",
        nodes=[node("Tanh", "maps", "a"), node("Sigmoid", "maps", "b"), node("Sum", "maps a b", "out")],
        wrong={f"only input {index}": only("Sum", index) for index in range(3)},
    ),
    Case(
        op="Where",
        nodes=[
            node("Tanh", "maps", "t"),
            node("Greater", "maps limit", "above"),
            node("Where", "above maps t", "out"),
        ],
        constants={"limit": np.float32(0.1)},
        wrong={
            "other branch": exchanged("Where", 1, 2),
            "both branches": passes,
            "first only": only("Where", 1),
            "second only": only("Where", 2),
        },
    ),
)
