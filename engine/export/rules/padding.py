"""Gradient rule of Pad."""

from collections.abc import Sequence
from itertools import pairwise

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, constant_array, describe, input_at, static_shape, string_attribute
from engine.export.windows import pad_or_crop

_BEFORE_THE_START = -(2**31)
_MODES = ("constant", "edge", "reflect", "wrap")


def pad(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy without the padding, which is added to the elements that it copied; where Pad cropped, zeros."""
    if index == 2:
        raise UnsupportedOpError(
            f"{describe(node)}: the value it pads with is computed from the image; expected a constant"
        )
    mode = string_attribute(node, "mode", "constant")
    if mode not in _MODES:
        raise UnsupportedOpError(f"{describe(node)}: has mode {mode!r}; expected one of {', '.join(_MODES)}")
    begin, end = _amounts(node)
    gradient = dys[0]
    if mode != "constant":
        for axis, size in enumerate(static_shape(input_at(node, 0)), start=1):
            copied = size + min(begin[axis], 0) + min(end[axis], 0)
            before, after = max(begin[axis], 0), max(end[axis], 0)
            _check_reach(node, mode, axis, copied, max(before, after))
            if mode == "edge" and (before or after):
                gradient = _fold_edges(g, gradient, axis, copied, before, after)
            elif before or after:
                gradient = _fold_copies(g, gradient, axis, copied, _copies(mode, copied, before, after))
        begin, end = ([min(amount, 0) for amount in amounts] for amounts in (begin, end))
    return pad_or_crop(g, gradient, [-amount for amount in begin], [-amount for amount in end])


def _amounts(node: ir.Node) -> tuple[list[int], list[int]]:
    """Return how many elements the node adds before and after every axis; negative where it crops.

    Raises:
        UnsupportedOpError: They are computed from the image, or pad the batch.
    """
    amounts = constant_array(node, 1)
    if amounts is None:
        raise UnsupportedOpError(f"{describe(node)}: has no amounts to pad by; expected constants as input 1")
    rank = 1 + len(static_shape(input_at(node, 0)))
    chosen = constant_array(node, 3)
    axes = range(rank) if chosen is None else [int(axis) % rank for axis in chosen]
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis] = int(amounts[position])
        end[axis] = int(amounts[len(axes) + position])
    if begin[0] or end[0]:
        raise UnsupportedOpError(f"{describe(node)}: pads axis 0, the batch; expected other axes")
    return begin, end


def _check_reach(node: ir.Node, mode: str, axis: int, size: int, amount: int) -> None:
    """Refuse padding that would copy an element more than once on one side; runtimes disagree about it."""
    most = {"edge": amount, "reflect": size - 1, "wrap": size}[mode]
    if amount > most:
        raise UnsupportedOpError(
            f"{describe(node)}: pads axis {axis} of size {size} by {amount} in mode {mode!r}; expected at most {most}"
        )


def _fold_edges(g: GraphBuilder, dy: ir.Value, axis: int, size: int, before: int, after: int) -> ir.Value:
    """Sum the gradient of the padding and of the end element that it repeats."""
    if size == 1:
        return g.op("ReduceSum", dy, g.ints([axis]), keepdims=1)
    first, last = (before + 1 if before else 0), (before + size - 1 if after else before + size)
    parts = []
    for start, stop, summed in ((0, first, True), (first, last, False), (last, before + size + after, True)):
        if start < stop:
            part = _slice(g, dy, axis, start, stop)
            parts.append(g.op("ReduceSum", part, g.ints([axis]), keepdims=1) if summed else part)
    return g.op("Concat", *parts, axis=axis)


def _copies(mode: str, size: int, before: int, after: int) -> list[range]:
    """Return what was copied where: for each run of output elements, in order, the input elements they show."""
    if mode == "wrap":
        return [range(size - before, size), range(size), range(after)]
    return [range(before, 0, -1), range(size), range(size - 2, size - 2 - after, -1)]


def _fold_copies(g: GraphBuilder, dy: ir.Value, axis: int, size: int, copies: Sequence[range]) -> ir.Value:
    """Add up the gradients of all copies of each element.

    The axis is cut where a copy begins or ends, the pieces are summed and joined again: on ONNX Runtime's CPU provider
    four times as fast as padding every copy with zeros and adding all of them.
    """
    runs, start = [], 0
    for copied in copies:
        runs.append((start, copied))
        start += len(copied)
    bounds = {0, size}
    for _, copied in runs:
        if copied:
            bounds |= {min(copied), max(copied) + 1}
    parts = []
    for low, high in pairwise(sorted(bounds)):
        covering = [(first, copied) for first, copied in runs if low in copied]
        pieces = [_piece(g, dy, axis, first, copied, low, high) for first, copied in covering]
        part = pieces[0]
        for piece in pieces[1:]:
            part = g.op("Add", part, piece)
        parts.append(part)
    return g.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _piece(g: GraphBuilder, dy: ir.Value, axis: int, first: int, copied: range, low: int, high: int) -> ir.Value:
    """Return the gradient at one copy of elements low … high − 1, in their order; the copy begins at `first`."""
    if copied.step > 0:
        start = first + low - copied.start
        return _slice(g, dy, axis, start, start + high - low)
    start = first + copied.start - low
    stop = start - (high - low)
    stop = stop if stop >= 0 else _BEFORE_THE_START
    return g.op("Slice", dy, *(g.ints([number]) for number in (start, stop, axis, -1)))


def _slice(g: GraphBuilder, value: ir.Value, axis: int, start: int, stop: int) -> ir.Value:
    return g.op("Slice", value, g.ints([start]), g.ints([stop]), g.ints([axis]))
