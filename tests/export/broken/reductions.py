"""Reductions and matrix products: networks, and wrong rules."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder, input_at, int_attribute
from engine.export.rules import Rule
from tests.export.broken.case import (
    CHANNELS,
    Case,
    all_elements,
    all_ties,
    as_if,
    only,
    sum_in_place_of_mean,
    times,
    times_input,
)
from tests.export.networks import node

RANDOM = np.random.default_rng(20102)
BY_CHANNEL = RANDOM.uniform(0.5, 2.0, CHANNELS)
SQUARE = np.array([[0.7, -0.9, 0.2, 0.1], [0.4, 0.8, -0.3, 0.5], [-0.6, 0.2, 0.9, -0.1], [0.3, 0.5, 0.1, -0.8]])


def mean_in_place_of_sum(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    return all_elements(g, node, dys, index)


def gemm_untransposed(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return g.op("Gemm", dys[0], input_at(node, 1), transB=int_attribute(node, "transB", 0), alpha=0.5)


def matmul_untransposed(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    other = input_at(node, 1 - index)
    return g.op("MatMul", dys[0], other) if index == 0 else g.op("MatMul", other, dys[0])


def reduction(op: str, wrong: Mapping[str, Rule], **options: object) -> Case:
    """A reduction of the channels, half of which are twice there, so that extrema are tied."""
    nodes = [
        node("Concat", "maps maps", "twice", axis=1),
        node(op, "twice", "out", axes=[1], keepdims=1),
    ]
    if op == "ReduceSum":
        nodes[1] = node(op, "twice axes", "out", keepdims=1)
        options["constants"] = {"axes": np.array([1])}
    return Case(op=op, nodes=nodes, wrong=wrong, **options)


CASES: tuple[Case, ...] = (
    Case(
        op="Gemm",
        nodes=[
            node("GlobalAveragePool", "maps", "squeezed"),
            node("Flatten", "squeezed", "flat"),
            node("Gemm", "flat square bias", "logits", transB=1, alpha=0.5),
        ],
        constants={"square": SQUARE, "bias": BY_CHANNEL},
        wrong={"no alpha": as_if("Gemm", alpha=1.0), "not transposed": gemm_untransposed},
        block="head",
        tail=None,
        moved=(1,),
    ),
    Case(
        op="MatMul",
        nodes=[node("Tanh", "maps", "t"), node("MatMul", "maps t", "out")],
        wrong={
            "not transposed": matmul_untransposed,
            "first only": only("MatMul", 0),
            "second only": only("MatMul", 1),
        },
    ),
    reduction("ReduceL1", {"no sign": sum_in_place_of_mean}),
    reduction("ReduceL2", {"no length": times_input(), "length squared": times_input(divided=True)}),
    reduction("ReduceLogSumExp", {"same shares": all_elements, "sum": sum_in_place_of_mean}),
    reduction("ReduceMax", {"to all": all_elements, "to all ties": all_ties}),
    reduction("ReduceMean", {"sum": sum_in_place_of_mean}, moved=(2, 3)),
    reduction("ReduceMin", {"to all": all_elements, "to all ties": all_ties}),
    reduction("ReduceSum", {"mean": mean_in_place_of_sum}, moved=(2, 3)),
    reduction("ReduceSumSquare", {"not twice": times_input(), "no x": times(op="ReduceSumSquare", factor=0.5)}),
)
