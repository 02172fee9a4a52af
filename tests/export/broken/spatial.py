"""Convolutions, poolings, Pad and Resize: networks, and wrong rules."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from engine.export.graph import GraphBuilder, input_at, int_attribute, static_shape
from engine.export.rules import Rule
from engine.export.windows import gather_taps, kernel_shape, pad_spatial, scatter_taps, windows_of
from tests.export.broken.case import (
    CHANNELS,
    RIGHT,
    Case,
    all_elements,
    all_ties,
    as_if,
    as_if_inputs,
    rolled,
    sum_in_place_of_mean,
    with_constants,
)
from tests.export.networks import node

RANDOM = np.random.default_rng(20102)
GROUPED = 0.5 * RANDOM.standard_normal((CHANNELS, 2, 3, 2))


def max_pool_at_all_ties(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    y = node.outputs[0]
    windows = windows_of(node, kernel_shape(node))
    padded = pad_spatial(g, input_at(node, index), windows.begin, windows.end, fill=-math.inf)
    taps = {
        offset: g.op("Mul", dys[0], g.cast(g.op("Equal", gather_taps(g, windows, padded, offset), y), y.dtype))
        for offset in windows.offsets()
    }
    return scatter_taps(g, windows, static_shape(y)[0], taps)


def conv_with(*, flipped: bool = True, by_group: bool = True) -> Rule:
    """The gradient of a Conv of stride 1 without flipping, or with channels exchanged as if there were one group."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
        weights, group = input_at(node, 1), int_attribute(node, "group", 1)
        outputs, inputs, *kernel = (int(str(size)) for size in weights.shape or ())
        if flipped:
            ends, axes = g.ints([-(2**31)] * 2), g.ints([2, 3])
            weights = g.op("Slice", weights, g.ints([-1, -1]), ends, axes, g.ints([-1, -1]))
        if by_group:
            apart = g.op("Reshape", weights, g.ints([group, outputs // group, inputs, *kernel]))
            weights = g.op("Transpose", apart, perm=[0, 2, 1, 3, 4])
        weights = g.op("Reshape", weights, g.ints([group * inputs, outputs // group, *kernel]))
        begin, end = np.split(np.array(node.attributes["pads"].as_ints() if "pads" in node.attributes else [0] * 4), 2)
        pads = [*(np.array(kernel) - 1 - begin).tolist(), *(np.array(kernel) - 1 - end).tolist()]
        return g.op("Conv", dys[0], weights, group=group, pads=pads)

    return rule


def conv_transpose_unlike(change: Callable[[GraphBuilder, ir.Value], ir.Value]) -> Rule:
    """The right rule with another weight."""

    def rule(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        right = RIGHT["ConvTranspose"](g, node, dys, index)
        producer = right.producer()
        assert producer is not None
        changed = change(g, input_at(node, 1))
        return g.op("Conv", producer.inputs[0], changed, **{key: a.value for key, a in producer.attributes.items()})

    return rule


def flipped(g: GraphBuilder, weights: ir.Value) -> ir.Value:
    ends, axes = g.ints([-(2**31)] * 2), g.ints([2, 3])
    return g.op("Slice", weights, g.ints([-1, -1]), ends, axes, g.ints([-1, -1]))


def crop_alone(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    """Pad's gradient without that of the padding."""
    amounts = input_at(node, 1).const_value
    assert amounts is not None
    rank = amounts.size // 2
    start = [int(amount) for amount in amounts.numpy()[:rank]]
    stop = [first + size for first, size in zip(start[1:], static_shape(input_at(node, 0)), strict=True)]
    return g.op("Slice", dys[0], g.ints(start[1:]), g.ints(stop), g.ints(range(1, rank)))


CASES: tuple[Case, ...] = (
    Case(
        op="AveragePool",
        nodes=[
            node("AveragePool", "maps", "out", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]),
        ],
        wrong={
            "padding counted": as_if("AveragePool", count_include_pad=1),
            "pads exchanged": as_if("AveragePool", pads=[0, 1, 1, 0]),
        },
    ),
    Case(
        op="AveragePool",
        form="counting its padding",
        nodes=[node("AveragePool", "maps", "out", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        wrong={"padding not counted": as_if("AveragePool", count_include_pad=0)},
    ),
    Case(
        op="Conv",
        nodes=[node("Conv", "maps k", "out", pads=[1, 0, 1, 1])],
        constants={"k": 0.5 * RANDOM.standard_normal((CHANNELS, CHANNELS, 3, 3))},
        wrong={"not flipped": conv_with(flipped=False), "pads exchanged": as_if("Conv", pads=[1, 1, 1, 0])},
    ),
    Case(
        op="Conv",
        form="of groups",
        nodes=[node("Conv", "maps k", "out", pads=[1, 0, 1, 1], group=2)],
        constants={"k": GROUPED},
        wrong={"exchanged as one group": conv_with(by_group=False)},
    ),
    Case(
        op="Conv",
        form="with strides",
        nodes=[node("Conv", "maps k", "out", pads=[1, 0, 0, 1], strides=[2, 2], group=2)],
        constants={"k": GROUPED},
        wrong={"pads exchanged": as_if("Conv", pads=[0, 1, 1, 0])},
    ),
    Case(
        op="ConvTranspose",
        nodes=[
            node("ConvTranspose", "maps k", "out", strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0], group=2)
        ],
        constants={"k": GROUPED},
        wrong={
            "flipped": conv_transpose_unlike(flipped),
            "other channels": conv_transpose_unlike(lambda g, weights: rolled(g, weights, 0)),
            "pads exchanged": as_if("ConvTranspose", pads=[0, 1, 1, 0]),
        },
    ),
    Case(
        op="GlobalAveragePool",
        nodes=[node("GlobalAveragePool", "maps", "squeezed"), node("Flatten", "squeezed", "out")],
        wrong={"sum": sum_in_place_of_mean},
        block="head",
        tail="gemm",
        moved=(1,),
    ),
    Case(
        op="GlobalMaxPool",
        nodes=[
            node("Resize", "maps - scales", "large", mode="nearest", coordinate_transformation_mode="asymmetric"),
            node("GlobalMaxPool", "large", "largest"),
            node("Flatten", "largest", "out"),
        ],
        constants={"scales": np.array([1, 1, 2, 2], np.float32)},
        wrong={"to all": all_elements, "to all ties": all_ties},
        block="head",
        tail="gemm",
        moved=(1,),
    ),
    Case(
        op="MaxPool",
        form="of elements that are there four times",
        nodes=[
            node("Resize", "maps - scales", "large", mode="nearest", coordinate_transformation_mode="asymmetric"),
            node("MaxPool", "large", "out", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1]),
        ],
        constants={"scales": np.array([1, 1, 2, 2], np.float32)},
        wrong={"to all ties": max_pool_at_all_ties, "pads exchanged": as_if("MaxPool", pads=[0, 1, 1, 0])},
        moved=(1,),
    ),
    Case(
        op="MaxPool",
        nodes=[node("MaxPool", "maps", "out", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1])],
        wrong={
            "to all taps": RIGHT["AveragePool"],
            "to all ties": max_pool_at_all_ties,
            "pads exchanged": as_if("MaxPool", pads=[0, 1, 1, 0]),
        },
    ),
    *(
        with_constants(
            "Pad",
            {"padding not folded": crop_alone, "pads exchanged": as_if_inputs("Pad", at_1=[0, 0, 1, 2, 0, 0, 2, 1])},
            {"pads": np.array([0, 0, 2, 1, 0, 0, 1, 2])},
            attributes={"mode": mode},
            form=mode,
        )
        for mode in ("edge", "reflect")
    ),
    with_constants(
        "Pad",
        {"pads exchanged": as_if_inputs("Pad", at_1=[0, 0, 1, 2, 0, 0, 2, -1])},
        {"pads": np.array([0, 0, 2, -1, 0, 0, 1, 2])},
        form="constant",
    ),
    with_constants(
        "Resize",
        {
            "align_corners": as_if("Resize", coordinate_transformation_mode="align_corners"),
            "asymmetric": as_if("Resize", coordinate_transformation_mode="asymmetric"),
            "cubic": as_if("Resize", mode="cubic"),
        },
        {"-": np.zeros(0), "scales": np.array([1, 1, 2, 1.5], np.float32)},
        attributes={"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ),
    with_constants(
        "Resize",
        {"ceil": as_if("Resize", nearest_mode="ceil"), "linear": as_if("Resize", mode="linear")},
        {"-": np.zeros(0), "scales": np.array([1, 1, 1.5, 0.5], np.float32)},
        attributes={"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        form="nearest",
    ),
)
