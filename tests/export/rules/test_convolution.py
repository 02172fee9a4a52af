from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node, weight
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets

OPS = ("Conv",)


@dataclass(frozen=True)
class Case:
    """One Conv: weight [out, in/group, kH, kW], input [in, H, W], attributes."""

    weight: tuple[int, int, int, int]
    image: tuple[int, int, int] = (4, 7, 6)
    attributes: dict[str, object] = field(default_factory=dict)


def case(weight_shape: tuple[int, int, int, int], *image: int, **attributes: object) -> Case:
    return Case(weight_shape, image or (4, 7, 6), attributes)


CASES = {
    "1x1": case((5, 4, 1, 1)),
    "3x3": case((5, 4, 3, 3)),
    "3x3 padded": case((5, 4, 3, 3), pads=[1, 1, 1, 1]),
    "even kernel": case((5, 4, 2, 4), pads=[1, 2, 0, 1]),
    "odd sizes": case((2, 3, 3, 5), 3, 5, 9, pads=[1, 2, 1, 2]),
    "asymmetric pads": case((5, 4, 3, 3), pads=[0, 1, 2, 1]),
    "pads beyond the kernel": case((5, 4, 3, 2), pads=[4, 0, 3, 5]),
    "pads beyond a 1x1": case((5, 4, 1, 1), pads=[1, 0, 2, 3]),
    "dilated": case((5, 4, 3, 2), dilations=[2, 3], pads=[2, 1, 1, 2]),
    "kernel as large as the input": case((5, 4, 7, 6)),
    "depthwise": case((4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    "depthwise with multiplier": case((8, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    "groups": case((6, 2, 3, 3), group=2, pads=[1, 0, 1, 2]),
    "groups of 1x1": case((6, 2, 1, 1), group=2),
    "groups, dilated": case((6, 2, 2, 3), group=2, dilations=[3, 2], pads=[3, 0, 0, 4]),
    "stride 2": case((5, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    "stride 2, even size": case((5, 4, 3, 3), 4, 8, 8, strides=[2, 2], pads=[1, 1, 1, 1]),
    "stride 2 of 1x1": case((5, 4, 1, 1), strides=[2, 2]),
    "stride beyond the kernel": case((5, 4, 2, 2), 4, 9, 10, strides=[4, 3]),
    "stride in one axis": case((5, 4, 3, 3), strides=[1, 2], pads=[1, 0, 1, 1]),
    "stride with leftover": case((5, 4, 3, 3), 4, 11, 10, strides=[3, 4], pads=[0, 1, 1, 0]),
    "stride 2, pads beyond the kernel": case((5, 4, 2, 3), strides=[2, 2], pads=[4, 5, 3, 4]),
    "stride 2, dilated": case((5, 4, 3, 3), 4, 9, 8, strides=[2, 2], dilations=[2, 1], pads=[2, 1, 1, 1]),
    "stride 2, depthwise": case((4, 1, 3, 3), strides=[2, 2], group=4, pads=[1, 1, 1, 1]),
    "stride 2, groups": case((6, 2, 3, 2), strides=[2, 3], group=2, pads=[0, 1, 1, 1]),
    "SAME_UPPER": case((5, 4, 2, 3), auto_pad="SAME_UPPER"),
    "SAME_LOWER": case((5, 4, 2, 4), auto_pad="SAME_LOWER"),
    "SAME_UPPER, stride 2": case((5, 4, 3, 3), 4, 8, 7, auto_pad="SAME_UPPER", strides=[2, 2]),
    "SAME_LOWER, stride 2": case((5, 4, 3, 3), 4, 8, 7, auto_pad="SAME_LOWER", strides=[2, 2]),
    "SAME_UPPER, stride beyond the kernel": case((5, 4, 1, 2), 4, 8, 8, auto_pad="SAME_UPPER", strides=[3, 3]),
    "VALID": case((5, 4, 3, 3), auto_pad="VALID", strides=[2, 1]),
    "image of one row": case((5, 4, 1, 3), 4, 1, 6, pads=[0, 1, 0, 1]),
}


def onnx_pads(case: Case) -> tuple[int, int, int, int]:
    """Top, left, bottom and right padding, by the formulas of the ONNX specification of Conv."""
    attributes = case.attributes
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        return tuple(attributes.get("pads", (0, 0, 0, 0)))
    if auto_pad == "VALID":
        return (0, 0, 0, 0)
    pads = [0, 0, 0, 0]
    for axis in range(2):
        size, kernel = case.image[1 + axis], case.weight[2 + axis]
        stride = attributes.get("strides", (1, 1))[axis]
        extent = (kernel - 1) * attributes.get("dilations", (1, 1))[axis] + 1
        output = int(np.ceil(size / stride))
        total = max((output - 1) * stride + extent - size, 0)
        smaller, larger = total // 2, total - total // 2
        pads[axis], pads[axis + 2] = (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
    return tuple(pads)


def torch_conv(case: Case, kernel: Array, bias: Array | None = None) -> Oracle:
    top, left, bottom, right = onnx_pads(case)
    return autograd(
        lambda x: functional.conv2d(
            functional.pad(x, (left, right, top, bottom)),
            torch.tensor(kernel).double(),
            None if bias is None else torch.tensor(bias).double(),
            stride=case.attributes.get("strides", 1),
            dilation=case.attributes.get("dilations", 1),
            groups=case.attributes.get("group", 1),
        )
    )


def slow_conv(case: Case, kernel: Array) -> Oracle:
    """Y[n, o, i, j] = Σ x[n, c, i·s + a·d − top, j·s + b·d − left]·w[o, c, a, b], one product at a time."""
    stride, dilation = case.attributes.get("strides", (1, 1)), case.attributes.get("dilations", (1, 1))
    group = case.attributes.get("group", 1)
    top, left, bottom, right = onnx_pads(case)
    _, height, width = case.image
    outputs, inputs, rows, columns = case.weight
    high = (height + top + bottom - (rows - 1) * dilation[0] - 1) // stride[0] + 1
    wide = (width + left + right - (columns - 1) * dilation[1] - 1) // stride[1] + 1

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros((len(x), outputs, high, wide)), np.zeros_like(x)
        for out, i, j, c, a, b in np.ndindex(outputs, high, wide, inputs, rows, columns):
            row, column = i * stride[0] + a * dilation[0] - top, j * stride[1] + b * dilation[1] - left
            channel = out // (outputs // group) * inputs + c
            if 0 <= row < height and 0 <= column < width:
                y[:, out, i, j] += x[:, channel, row, column] * kernel[out, c, a, b]
                dx[:, channel, row, column] += dy[:, out, i, j] * kernel[out, c, a, b]
        return y, dx

    return oracle


def known_to_onnx(case: Case) -> bool:
    """Whether onnx's own evaluator can run the gradient: its ConvTranspose fails with 1 < group < channels."""
    group = case.attributes.get("group", 1)
    return "strides" not in case.attributes or group in (1, case.image[0])


def conv_network(case: Case, constants: dict[str, Array], opset: int = 17) -> onnx.ModelProto:
    conv = node("Conv", f"x {' '.join(constants)}", "y", **case.attributes)
    return network([conv], constants, image=case.image, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    assert op == "Conv"
    padded = CASES["3x3 padded"]
    kernel, bias = weight(random, *padded.weight), weight(random, 5)
    model = conv_network(padded, {"w": kernel, "b": bias}, opset)
    check_companion(model, torch_conv(padded, kernel, bias), random)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient_of_each_form_equals_autograd(case: Case, random: np.random.Generator) -> None:
    kernel = weight(random, *case.weight)
    check_companion(
        conv_network(case, {"w": kernel}), torch_conv(case, kernel), random, in_onnx_reference=known_to_onnx(case)
    )


@pytest.mark.parametrize(
    "name", ["asymmetric pads", "groups, dilated", "stride 2, groups", "SAME_LOWER, stride 2", "stride with leftover"]
)
def test_gradient_equals_the_formula(name: str, random: np.random.Generator) -> None:
    case = CASES[name]
    kernel = weight(random, *case.weight)
    check_companion(
        conv_network(case, {"w": kernel}), slow_conv(case, kernel), random, in_onnx_reference=known_to_onnx(case)
    )


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("1x1", ["Transpose", "Conv"]),
        ("3x3 padded", ["Slice", "Transpose", "Conv"]),
        ("depthwise", ["Slice", "Conv"]),
        ("groups", ["Slice", "Reshape", "Transpose", "Reshape", "Conv"]),
        ("pads beyond the kernel", ["Slice", "Transpose", "Slice", "Conv"]),
        ("stride 2", ["ConvTranspose"]),
    ],
)
def test_stride_one_is_a_flipped_conv_and_the_rest_a_transposed_one(name: str, ops: list[str], random) -> None:
    kernel = weight(random, *CASES[name].weight)
    gradient = companion(block_of(conv_network(CASES[name], {"w": kernel})))
    assert [entry.op_type for entry in gradient.graph] == [*ops, "ReduceSum"]


def test_weight_from_the_image_is_refused() -> None:
    nodes = [node("Relu", "x", "w"), node("Conv", "fixed w", "y")]
    model = network(nodes, {"fixed": np.ones((1, 3, 8, 8), np.float32)})
    message = r"^Conv node 'node_y': input 1 \('w'\) is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


def test_bias_from_the_image_is_refused(random: np.random.Generator) -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[0, 2, 3], keepdims=0),
        node("Conv", "fixed w mean", "y"),
    ]
    model = network(nodes, {"fixed": np.ones((1, 3, 8, 8), np.float32), "w": weight(random, 3, 3, 1, 1)})
    with pytest.raises(
        UnsupportedOpError, match=r"^Conv node 'node_y': its bias is computed from the image; expected a constant$"
    ):
        companion(block_of(model))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_than_two_spatial_axes_are_refused(dimensions: int, random: np.random.Generator) -> None:
    sizes = {1: [-1, 3, 64], 3: [-1, 3, 4, 4, 4]}[dimensions]
    kernel = weight(random, 2, 3, *[1] * dimensions)
    nodes = [node("Reshape", "x shape", "folded"), node("Conv", "folded w", "y")]
    model = network(nodes, {"shape": np.array(sizes, np.int64), "w": kernel})
    message = rf"^Conv node 'node_y': has {dimensions} spatial axes; expected 2, since feature maps are images$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))
