"""Finding the feature layers of a network.

Source: SISE (arXiv 2010.00672), "Feature map extraction": the feature maps are taken at the inputs of the pooling
layers, which divide a CNN into blocks.
Departs: a "pooling layer" is any place where the resolution falls, whichever op does it, so that networks that
downsample by strided convolutions have the same blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from engine.errors import ModelError
from engine.export.graph import from_image, ints_attribute

_POOLING = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CHANNELS_FIRST = frozenset({"BatchNormalization", "Conv", "ConvTranspose"}) | _POOLING
_STAGE_RATIO = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPoint:
    """A tensor through which everything that comes after it is computed.

    Attributes:
        name: The tensor's name.
        channels: Size of axis C.
        height: Size of axis H.
        width: Size of axis W.
    """

    name: str
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.name} ({self.channels}×{self.height}×{self.width})"


def cut_points(graph: ir.Graph) -> list[CutPoint]:
    """List the tensors at which the graph may be cut, shallow to deep.

    A tensor is a cut point when it is the only live activation, is [N, C, H, W] with H and W above 1, is not made by a
    pooling op, and has a Conv before it and an op with weights after it.

    Args:
        graph: The imported graph, in topological order, with one input and one output.
    """
    nodes = list(graph)
    moving = from_image(graph)
    last_use = {value: position for position, node in enumerate(nodes) for value in node.inputs if value in moving}
    last_use[graph.outputs[0]] = len(nodes)
    last_weighted = max((i for i, node in enumerate(nodes) if node.op_type in _WEIGHTED), default=-1)

    points: list[CutPoint] = []
    live = {graph.inputs[0]}
    convolved = False
    for position, node in enumerate(nodes):
        convolved = convolved or node.op_type == "Conv"
        live = {value for value in live if last_use[value] > position}
        live.update(value for value in node.outputs if last_use.get(value, -1) > position)
        if len(live) != 1 or not convolved or position >= last_weighted:
            continue
        (value,) = live
        producer = value.producer()
        if producer is node and node.op_type not in _POOLING:
            point = _as_point(value)
            if point is not None and _is_channels_first(value):
                points.append(point)
    return points


def feature_layers(graph: ir.Graph, names: Sequence[str] = ()) -> list[CutPoint]:
    """Choose the feature layers, shallow to deep: the last cut point of each stage, or those that were named.

    A stage is a run of cut points whose height shrinks by less than a factor of 1.5 from one to the next.

    Args:
        graph: The imported graph.
        names: Tensor names that override the choice.

    Raises:
        ModelError: There is no cut point, or a name is none.
    """
    points = cut_points(graph)
    if not points:
        counts = ", ".join(sorted({node.op_type for node in graph}))
        raise ModelError(
            "the model has no feature layer: expected a CNN with a tensor [N, C, H, W], H and W above 1, that lies "
            "between a Conv and a later Conv, Gemm or MatMul and that every path passes through; found the ops "
            f"{counts}"
        )
    if names:
        return _named(points, names)
    return [
        point
        for point, after in zip(points, [*points[1:], None], strict=True)
        if after is None or point.height >= _STAGE_RATIO * after.height
    ]


def _named(points: Sequence[CutPoint], names: Sequence[str]) -> list[CutPoint]:
    known = {point.name: point for point in points}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(
            f"no feature layer is possible at {', '.join(map(repr, unknown))}; possible are, shallow to deep: "
            + ", ".join(map(str, points))
        )
    return [point for point in points if point.name in set(names)]


def _is_channels_first(value: ir.Value) -> bool:
    """Return whether axis 1 still holds what was channels at the last Conv or image: no Transpose moved it."""
    order = list(range(4))
    producer = value.producer()
    while producer is not None and producer.op_type not in _CHANNELS_FIRST:
        if producer.op_type == "Transpose":
            perm = ints_attribute(producer, "perm", (3, 2, 1, 0))
            order = [perm[axis] for axis in order]
        before = next((x for x in producer.inputs if x is not None and x.const_value is None), None)
        if before is None or before.shape is None or before.shape.rank() != 4:
            break
        producer = before.producer()
    return order == sorted(order)


def _as_point(value: ir.Value) -> CutPoint | None:
    if value.shape is None or value.shape.rank() != 4:
        return None
    channels, height, width = value.shape[1:]
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        return None
    if height <= 1 or width <= 1 or value.name is None:
        return None
    return CutPoint(name=value.name, channels=channels, height=height, width=width)
