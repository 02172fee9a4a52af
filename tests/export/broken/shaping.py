"""What moves, selects or quantizes elements: networks, and wrong rules."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder, input_at, static_shape
from tests.export.broken.case import (
    CHANNELS,
    RIGHT,
    SIZE,
    Case,
    as_if,
    as_if_inputs,
    exchanged,
    plain,
    with_constants,
)
from tests.export.networks import node


def transposed_layout(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """The gradient's elements in the order of [N, W, H, C]."""
    channels, *spatial = static_shape(input_at(node, 0))
    last = g.op("Reshape", dys[0], g.ints([-1, *spatial[::-1], channels]))
    return g.op("Transpose", last, perm=[0, *range(1 + len(spatial), 0, -1)])


def gather_without_adding(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """Elements that were taken twice get the gradient of the last place."""
    indices = input_at(node, 1).const_value
    assert indices is not None
    size = static_shape(input_at(node, 0))[0]
    places = [int(place) % size for place in indices.numpy().reshape(-1)]
    origin = [max((at for at, place in enumerate(places) if place == i), default=len(places)) for i in range(size)]
    padded = g.op("Pad", dys[0], g.ints([0, 0, 0, 0, 0, 1, 0, 0]))
    return g.op("Gather", padded, g.ints(origin), axis=1)


def reversed_parts(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    return RIGHT["Split"](g, node, dys[::-1], index)


def first_part_alone(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    return RIGHT["Split"](g, node, [dys[0], *(g.op("Mul", dy, g.floats(0.0, dy)) for dy in dys[1:])], index)


def first_part_to_all(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return RIGHT["Concat"](g, node, dys, 0)


def transposed_again(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return g.op("Transpose", dys[0], perm=node.attributes["perm"].as_ints())


def folded(op: str, *, moved: tuple[int, ...]) -> Case:
    """Adding and dropping an axis; `op` is one of the two."""
    nodes = [node("Unsqueeze", "maps axis", "five"), node("Squeeze", "five axis", "out")]
    return Case(
        op=op, nodes=nodes, constants={"axis": np.array([2])}, wrong={"transposed": transposed_layout}, moved=moved
    )


CASES: tuple[Case, ...] = (
    Case(
        op="Concat",
        nodes=[node("Tanh", "maps", "t"), node("Concat", "maps t", "out", axis=1)],
        wrong={"first to all": first_part_to_all, "exchanged": exchanged("Concat")},
    ),
    *(
        Case(
            op="DepthToSpace",
            form=mode,
            nodes=[
                node("Tanh", "maps", "t"),
                node("Concat", "maps t", "twice", axis=1),
                node("DepthToSpace", "twice", "out", blocksize=2, mode=mode),
            ],
            wrong={"other order": as_if("DepthToSpace", mode=other)},
        )
        for mode, other in (("DCR", "CRD"), ("CRD", "DCR"))
    ),
    Case(
        op="DequantizeLinear",
        nodes=[node("QuantizeLinear", "maps s z", "q"), node("DequantizeLinear", "q s z", "out")],
        constants={"s": np.float32(0.02), "z": np.int8(3)},
    ),
    Case(
        op="Flatten",
        nodes=[node("Flatten", "maps", "out")],
        wrong={"transposed": transposed_layout},
        block="head",
        tail="gemm",
    ),
    with_constants(
        "Gather",
        {"not added": gather_without_adding},
        {"indices": np.array([2, 0, -1, 2, 2])},
        **{"attributes": {"axis": 1}},
    ),
    Case(
        op="QuantizeLinear",
        nodes=[node("QuantizeLinear", "maps s z", "q"), node("DequantizeLinear", "q s z", "out")],
        constants={"s": np.float32(0.02), "z": np.int8(3)},
    ),
    with_constants("Reshape", {"transposed": transposed_layout}, {"shape": np.array([0, SIZE, CHANNELS, SIZE])}),
    with_constants(
        "Slice",
        {
            "offset": as_if_inputs("Slice", at_1=[6, 0], at_2=[-(2**31), 7]),
            "not reversed": as_if_inputs("Slice", at_1=[1, 1], at_2=[8, 8], at_4=[2, 1]),
        },
        {
            "starts": np.array([7, 1]),
            "ends": np.array([-(2**31), 8]),
            "axes": np.array([2, 3]),
            "steps": np.array([-2, 1]),
        },
    ),
    plain("SpaceToDepth", {"other order": as_if("SpaceToDepth", mode="CRD")}, blocksize=2),
    Case(
        op="Split",
        nodes=[
            node("Split", "maps parts", "a b", axis=1),
            node("Tanh", "a", "t"),
            node("Concat", "b t", "out", axis=1),
        ],
        constants={"parts": np.array([2, 2])},
        wrong={"parts reversed": reversed_parts, "first part alone": first_part_alone},
    ),
    folded("Squeeze", moved=(1, 3, 4)),
    Case(
        op="Transpose",
        nodes=[
            node("Tanh", "maps", "t"),
            node("Concat", "maps t", "cube", axis=1),  # [N, 8, 8, 8]: all orders have one shape
            node("Transpose", "cube", "out", perm=[0, 2, 3, 1]),
        ],
        wrong={"forward": transposed_again},
    ),
    folded("Unsqueeze", moved=(1, 2, 3)),
)
