"""Gradient rules of Conv and ConvTranspose: the gradient of a convolution is a convolution."""

from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    describe,
    expect_activation_first,
    input_at,
    int_attribute,
    ints_attribute,
    parameter_shape,
    static_shape,
    string_attribute,
)
from engine.export.windows import Windows, expect_images, pad_spatial, transposed_pads, windows_of


def conv(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy ⋆ W, with W flipped and its channel axes exchanged within each group.

    Stride 1 is a Conv with the flipped weight: on ONNX Runtime's CPU provider 4.6 times as fast as ConvTranspose for
    depthwise weights. Any other stride is a ConvTranspose with the weight as it is. The flipping is left to the
    graph (ONNX Runtime folds it when it loads), so that a bundle holds each weight once.
    """
    expect_activation_first(node, index, "weight", "bias")
    shape = parameter_shape(node, 1)
    group = int_attribute(node, "group", 1)
    windows = windows_of(node, shape[2:])
    if windows.stride == (1, 1):
        return _flipped_conv(g, node, dys[0], shape, windows, group)
    output_padding = [
        n + b + e - r for n, b, e, r in zip(windows.input, windows.begin, windows.end, windows.reach, strict=True)
    ]
    return g.op(
        "ConvTranspose",
        dys[0],
        input_at(node, 1),
        kernel_shape=windows.kernel,
        strides=windows.stride,
        dilations=windows.dilation,
        pads=(*windows.begin, *windows.end),
        output_padding=output_padding,
        group=group,
    )


def conv_transpose(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = dy ⋆ W: a Conv with the same weight, strides, dilations and groups."""
    expect_activation_first(node, index, "weight", "bias")
    kernel = parameter_shape(node, 1)[2:]
    expect_images(node, kernel)
    size, output = static_shape(input_at(node, 0))[1:], static_shape(node.outputs[0])[1:]
    stride, dilation = (ints_attribute(node, name, (1, 1)) for name in ("strides", "dilations"))
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    begin, end = transposed_pads(
        string_attribute(node, "auto_pad", "NOTSET"),
        ints_attribute(node, "pads", (0, 0, 0, 0)),
        ints_attribute(node, "output_shape", ()),
        [n * s for n, s in zip(size, stride, strict=True)],
        full := [r + p for r, p in zip(reach, ints_attribute(node, "output_padding", (0, 0)), strict=True)],
    )
    if any(f - b - e != n for f, b, e, n in zip(full, begin, end, output, strict=True)):
        raise UnsupportedOpError(
            f"{describe(node)}: has output_shape {list(output)}; expected at most {full}, what its windows reach"
        )
    # Rows and columns beyond the windows' reach (output_padding) see no input. Less than a stride of them is no window.
    missing = [r - n - b for r, n, b in zip(reach, output, begin, strict=True)]
    crop = [m if -m >= s else 0 for m, s in zip(missing, stride, strict=True)]
    dy = pad_spatial(g, dys[0], (0, 0), (crop[0], crop[1]))
    return g.op(
        "Conv",
        dy,
        input_at(node, 1),
        kernel_shape=kernel,
        strides=stride,
        dilations=dilation,
        pads=[*begin, *(max(amount, 0) for amount in missing)],
        group=int_attribute(node, "group", 1),
    )


def _flipped_conv(
    g: GraphBuilder, node: ir.Node, dy: ir.Value, shape: tuple[int, ...], windows: Windows, group: int
) -> ir.Value:
    flipped = input_at(node, 1)
    outputs, inputs, *kernel = shape
    if windows.kernel != (1, 1):
        last = [-1, -1]
        flipped = g.op(
            "Slice",
            flipped,
            g.ints(last),
            g.ints([-size - 1 for size in kernel]),
            g.ints([2, 3]),
            g.ints(last),
        )
    if group == 1:
        flipped = g.op("Transpose", flipped, perm=[1, 0, 2, 3])
    elif not (inputs == 1 and outputs == group):
        grouped = g.op("Reshape", flipped, g.ints([group, outputs // group, inputs, *kernel]))
        exchanged = g.op("Transpose", grouped, perm=[0, 2, 1, 3, 4])
        flipped = g.op("Reshape", exchanged, g.ints([group * inputs, outputs // group, *kernel]))

    # Padding beyond the window's extent makes outputs that see no input: crop their gradient away.
    begin = [e - 1 - b for e, b in zip(windows.extent, windows.begin, strict=True)]
    end = [e - 1 - b for e, b in zip(windows.extent, windows.end, strict=True)]
    crop_begin, crop_end = ((min(a, 0), min(b, 0)) for a, b in (begin, end))
    dy = pad_spatial(g, dy, crop_begin, crop_end)
    return g.op(
        "Conv",
        dy,
        flipped,
        kernel_shape=windows.kernel,
        dilations=windows.dilation,
        pads=[max(amount, 0) for amount in (*begin, *end)],
        group=group,
    )
