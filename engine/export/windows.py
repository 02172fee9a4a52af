"""Sliding windows of Conv and pooling nodes: their geometry, and their gradient's scatter.

Source: ONNX operator specification, Conv, MaxPool, AveragePool (output shape formulas, auto_pad).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, describe, int_attribute, ints_attribute, static_shape, string_attribute

Pair = tuple[int, int]
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Geometry of the windows that slide over [H, W]; every pair is (vertical, horizontal).

    Attributes:
        input: Size of the input.
        output: Number of windows.
        kernel: Size of one window, in taps.
        stride: Step from window to window.
        dilation: Step from tap to tap.
        begin: Padding before the first row and column.
        end: Padding after the last row and column; with `ceil_mode` a window may reach beyond it.
    """

    input: Pair
    output: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    begin: Pair
    end: Pair

    @property
    def extent(self) -> Pair:
        """Size of the span from a window's first tap to its last, both counted."""
        return _pair(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def reach(self) -> Pair:
        """Size of the padded input that the windows touch."""
        return _pair((o - 1) * s + e for o, s, e in zip(self.output, self.stride, self.extent, strict=True))

    def offsets(self) -> list[Pair]:
        """Positions of the taps inside a window, in row-major order."""
        rows, columns = (range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True))
        return [(row, column) for row in rows for column in columns]


def expect_images(node: ir.Node, spatial: Sequence[int]) -> None:
    """Check that a node works on images, by the sizes of its spatial axes.

    Raises:
        UnsupportedOpError: The sizes are not two.
    """
    if len(spatial) != 2:
        raise UnsupportedOpError(
            f"{describe(node)}: has {len(spatial)} spatial axes; expected 2, since feature maps are images"
        )


def windows_of(node: ir.Node, kernel: tuple[int, ...]) -> Windows:
    """Read the windows of a Conv, MaxPool or AveragePool node, with `auto_pad` resolved.

    Args:
        node: The node; its input 0 and output 0 are [N, C, H, W].
        kernel: Size of the window: the weight's for Conv, else the attribute `kernel_shape`.

    Raises:
        UnsupportedOpError: The windows are not two-dimensional.
    """
    expect_images(node, kernel)
    source, result = node.inputs[0], node.outputs[0]
    if source is None:
        raise UnsupportedOpError(f"{describe(node)}: has no input 0; expected an activation [N, C, H, W]")
    size = _pair(static_shape(source)[1:])
    stride = _pair(ints_attribute(node, "strides", (1, 1)))
    dilation = _pair(ints_attribute(node, "dilations", (1, 1)))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    auto_pad = string_attribute(node, "auto_pad", "NOTSET")
    begin, end = resolve_pads(auto_pad, ints_attribute(node, "pads", (0, 0, 0, 0)), size, stride, extent)
    output = _pair(static_shape(result)[1:])
    stride = _pair(1 if o == 1 else s for o, s in zip(output, stride, strict=True))  # one window goes nowhere
    outside = any((o - 1) * s >= n + b for o, s, n, b in zip(output, stride, size, begin, strict=True))
    if outside and int_attribute(node, "ceil_mode", 0) == 1:
        raise UnsupportedOpError(
            f"{describe(node)}: ONNX before opset 22 gives it a last window in the padding alone (ceil_mode), "
            "and runtimes leave it out; expected windows that touch the input: convert the model to opset 22 or newer"
        )
    return Windows(
        input=size,
        output=output,
        kernel=_pair(kernel),
        stride=stride,
        dilation=dilation,
        begin=begin,
        end=end,
    )


def pad_or_crop(
    g: GraphBuilder, value: ir.Value, begin: Sequence[int], end: Sequence[int], fill: float = 0.0
) -> ir.Value:
    """Pad every axis by `begin` and `end`; negative amounts crop.

    Cropping is a Slice: ONNX allows negative pads, but not every runtime does.
    """
    cropped = [axis for axis in range(len(begin)) if begin[axis] < 0 or end[axis] < 0]
    if cropped:
        start = [max(-begin[axis], 0) for axis in cropped]
        stop = [end[axis] if end[axis] < 0 else _TO_THE_END for axis in cropped]
        value = g.op("Slice", value, g.ints(start), g.ints(stop), g.ints(cropped))
    amounts = [max(amount, 0) for amount in (*begin, *end)]
    return g.op("Pad", value, g.ints(amounts), g.floats(fill, value), mode="constant") if any(amounts) else value


def resolve_pads(
    auto_pad: str, pads: Sequence[int], size: Sequence[int], stride: Sequence[int], extent: Sequence[int]
) -> tuple[Pair, Pair]:
    """Return the padding before and after, in rows and columns, that `auto_pad` and `pads` stand for."""
    if auto_pad == "NOTSET":
        return _pair(pads[:2]), _pair(pads[2:])
    if auto_pad == "VALID":
        return (0, 0), (0, 0)
    total = [max(0, (-(-n // s) - 1) * s + e - n) for n, s, e in zip(size, stride, extent, strict=True)]
    less, more = _pair(t // 2 for t in total), _pair(t - t // 2 for t in total)
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def transposed_pads(
    auto_pad: str, pads: Sequence[int], output_shape: Sequence[int], size: Sequence[int], full: Sequence[int]
) -> tuple[Pair, Pair]:
    """Return what a ConvTranspose crops before and after, in rows and columns.

    Source: ONNX operator specification, ConvTranspose: `output_shape` before `auto_pad`, which makes outputs of input
    size times stride, before `pads`. Nothing is cropped where the output would have to grow.

    Args:
        auto_pad: The attribute.
        pads: The attribute.
        output_shape: The attribute; empty if absent.
        size: What SAME_UPPER and SAME_LOWER make the output: input size times stride.
        full: Size of the output before cropping, with `output_padding`.
    """
    if not output_shape and not auto_pad.startswith("SAME"):
        return ((0, 0), (0, 0)) if auto_pad == "VALID" else (_pair(pads[:2]), _pair(pads[2:]))
    total = [max(0, f - n) for f, n in zip(full, output_shape or size, strict=True)]
    less, more = _pair(t // 2 for t in total), _pair(t - t // 2 for t in total)
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def kernel_shape(node: ir.Node) -> tuple[int, ...]:
    """Return the attribute `kernel_shape` of a pooling node."""
    return ints_attribute(node, "kernel_shape", ())


def pad_spatial(g: GraphBuilder, value: ir.Value, begin: Pair, end: Pair, fill: float = 0.0) -> ir.Value:
    """Pad H and W of [N, C, H, W]; negative amounts crop."""
    return pad_or_crop(g, value, (0, 0, *begin), (0, 0, *end), fill)


def slice_spatial(g: GraphBuilder, value: ir.Value, start: Pair, stop: Pair, step: Pair = (1, 1)) -> ir.Value:
    """Take rows and columns `start:stop:step` of [N, C, H, W]."""
    return g.op("Slice", value, g.ints(start), g.ints(stop), g.ints([2, 3]), g.ints(step))


def gather_taps(g: GraphBuilder, windows: Windows, padded: ir.Value, offset: Pair) -> ir.Value:
    """Take the tap at `offset` of every window: [N, C, *reach] → [N, C, *output]."""
    stop = _pair(o + (n - 1) * s + 1 for o, n, s in zip(offset, windows.output, windows.stride, strict=True))
    return slice_spatial(g, padded, offset, stop, windows.stride)


def scatter_taps(g: GraphBuilder, windows: Windows, channels: int, taps: Mapping[Pair, ir.Value]) -> ir.Value:
    """Add each window's tap values back onto the input: the transpose of padding and `gather_taps`.

    Taps whose offsets leave the same remainder modulo the stride fall on the same sub-grid of the padded input.
    Each sub-grid is summed at the windows' resolution; one Transpose then interleaves them. No Scatter and no
    ConvTranspose: plain copies and additions.

    Args:
        g: Builder of the graph that is appended to.
        windows: The windows' geometry.
        channels: Size of axis C.
        taps: For each tap offset, values [N, C, *output].

    Returns:
        [N, C, *input].
    """
    (sh, sw), (oh, ow) = windows.stride, windows.output
    rows = oh + max(row // sh for row, _ in taps)
    columns = ow + max(column // sw for _, column in taps)
    phases: dict[Pair, ir.Value] = {}
    for (row, column), value in taps.items():
        down, right = row // sh, column // sw
        placed = pad_spatial(g, value, (down, right), (rows - oh - down, columns - ow - right))
        phase = (row % sh, column % sw)
        phases[phase] = placed if phase not in phases else g.op("Add", phases[phase], placed)

    if windows.stride == (1, 1):
        padded = phases[0, 0]
    else:
        first = next(iter(phases.values()))
        empty = g.op("Mul", first, g.floats(0.0, first)) if len(phases) < sh * sw else first
        grid = [phases.get((row, column), empty) for row in range(sh) for column in range(sw)]
        stacked = g.op("Concat", *(g.op("Unsqueeze", value, g.ints([2])) for value in grid), axis=2)
        split = g.op("Reshape", stacked, g.ints([-1, channels, sh, sw, rows, columns]))
        interleaved = g.op("Transpose", split, perm=[0, 1, 4, 2, 5, 3])
        padded = g.op("Reshape", interleaved, g.ints([-1, channels, rows * sh, columns * sw]))
    size = (rows * sh, columns * sw)
    begin = _pair(-b for b in windows.begin)
    end = _pair(n + b - s for n, b, s in zip(windows.input, windows.begin, size, strict=True))
    return pad_spatial(g, padded, begin, end)


def covered_taps(windows: Windows, *, include_pad: bool) -> np.ndarray:
    """Count the taps of each window that lie on the input, or on the input with its padding.

    Returns:
        float64 [*output], at least 1 everywhere.
    """
    counts = []
    for axis in range(2):
        first = np.arange(windows.output[axis]) * windows.stride[axis] - windows.begin[axis]
        position = first[:, None] + np.arange(windows.kernel[axis]) * windows.dilation[axis]
        low, high = 0, windows.input[axis]
        if include_pad:
            low, high = -windows.begin[axis], windows.input[axis] + windows.end[axis]
        counts.append(((position >= low) & (position < high)).sum(axis=1))
    return np.maximum(np.outer(counts[0], counts[1]), 1).astype(np.float64)


def _pair(values: Iterable[int]) -> Pair:
    first, second = values
    return first, second
