from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, network, node, weight
from tests.export.rules.gradients import Array, Oracle, as32, autograd, check_companion, error, opsets, runtime

OPS = ("Conv", "ConvTranspose")


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
    if op == "ConvTranspose":
        case = TRANSPOSED["stride 2, output_padding"]
        kernel, bias = weight(random, *case.weight), weight(random, 5)
        model = transposed_network(case, {"w": kernel, "b": bias}, opset)
        check_companion(model, torch_transposed(case, kernel, bias), random)
        return
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


TRANSPOSED = {
    "1x1": case((4, 5, 1, 1)),
    "3x3": case((4, 5, 3, 3)),
    "3x3 padded": case((4, 5, 3, 3), pads=[1, 1, 1, 1]),
    "asymmetric pads": case((4, 5, 3, 4), pads=[0, 2, 1, 1]),
    "pads beyond the kernel": case((4, 5, 2, 1), pads=[3, 0, 2, 2]),
    "dilated": case((4, 5, 3, 2), dilations=[2, 3], pads=[2, 1, 1, 2]),
    "stride 2": case((4, 5, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    "stride 2 of 2x2": case((4, 5, 2, 2), strides=[2, 2]),
    "stride 2, output_padding": case((4, 5, 3, 3), strides=[2, 3], pads=[1, 1, 1, 1], output_padding=[1, 2]),
    "stride 2, output_padding, no pads": case((4, 5, 3, 3), strides=[2, 2], output_padding=[1, 0]),
    "stride beyond the kernel": case((4, 5, 2, 1), strides=[4, 3], pads=[1, 0, 0, 0]),
    "stride in one axis": case((4, 5, 3, 3), strides=[1, 2], pads=[1, 0, 1, 1]),
    "stride 2, dilated": case((4, 5, 3, 3), strides=[2, 2], dilations=[2, 1], pads=[2, 1, 1, 1]),
    "depthwise": case((4, 1, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], group=4),
    "depthwise with multiplier": case((4, 2, 3, 3), group=4, pads=[1, 1, 1, 1]),
    "groups": case((4, 3, 3, 2), strides=[2, 3], group=2, pads=[0, 1, 1, 0]),
    "output_shape": case((4, 5, 3, 3), strides=[2, 2], output_shape=[13, 12]),
    "output_shape, SAME_UPPER": case((4, 5, 4, 4), strides=[2, 2], output_shape=[13, 13], auto_pad="SAME_UPPER"),
    "output_shape before pads": case((4, 5, 4, 4), strides=[2, 2], output_shape=[15, 13], pads=[2, 2, 2, 2]),
    "output_shape, output_padding": case((4, 5, 3, 3), strides=[2, 2], output_shape=[15, 14], output_padding=[1, 1]),
    "SAME_UPPER": case((4, 5, 3, 4), auto_pad="SAME_UPPER", strides=[2, 1]),
    "SAME_LOWER": case((4, 5, 3, 4), auto_pad="SAME_LOWER", strides=[2, 1]),
    "SAME_LOWER, dilated": case((4, 5, 3, 2), auto_pad="SAME_LOWER", dilations=[2, 3]),
    "SAME_UPPER, stride beyond the kernel": case((4, 5, 1, 2), auto_pad="SAME_UPPER", strides=[3, 3]),
    "VALID": case((4, 5, 3, 3), auto_pad="VALID", strides=[2, 1]),
    "image of one row": case((4, 5, 1, 3), 4, 1, 6, pads=[0, 1, 0, 1]),
}


def transposed_crop(case: Case) -> list[tuple[int, int, int]]:
    """Rows and columns: size before cropping, and what is cropped before and after, by the ONNX specification."""
    attributes, crops = case.attributes, []
    for axis in range(2):
        size, kernel = case.image[1 + axis], case.weight[2 + axis]
        stride = attributes.get("strides", (1, 1))[axis]
        extent = (kernel - 1) * attributes.get("dilations", (1, 1))[axis] + 1
        full = stride * (size - 1) + attributes.get("output_padding", (0, 0))[axis] + extent
        auto_pad = attributes.get("auto_pad", "NOTSET")
        if "output_shape" in attributes or auto_pad.startswith("SAME"):
            output = attributes["output_shape"][axis] if "output_shape" in attributes else size * stride
            total = max(full - output, 0)
            begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            crops.append((full, begin, total - begin))
        else:
            crops.append((full, *attributes.get("pads", (0, 0, 0, 0))[axis::2]))
    return crops


def torch_transposed(case: Case, kernel: Array, bias: Array | None = None) -> Oracle:
    (high, top, bottom), (wide, left, right) = transposed_crop(case)

    def network(x: torch.Tensor) -> torch.Tensor:
        y = functional.conv_transpose2d(
            x,
            torch.tensor(kernel).double(),
            stride=case.attributes.get("strides", 1),
            dilation=case.attributes.get("dilations", 1),
            groups=case.attributes.get("group", 1),
        )
        y = functional.pad(y, (-left, wide - y.shape[3] - right, -top, high - y.shape[2] - bottom))
        return y if bias is None else y + torch.tensor(bias).double()[:, None, None]

    return autograd(network)


def slow_transposed(case: Case, kernel: Array) -> Oracle:
    """Y[n, o, i·s + a·d − top, j·s + b·d − left] += x[n, c, i, j]·w[c, o, a, b], one product at a time."""
    stride, dilation = case.attributes.get("strides", (1, 1)), case.attributes.get("dilations", (1, 1))
    group = case.attributes.get("group", 1)
    (high, top, bottom), (wide, left, right) = transposed_crop(case)
    inputs, outputs, rows, columns = case.weight

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros((len(x), outputs * group, high - top - bottom, wide - left - right)), np.zeros_like(x)
        for c, o, i, j, a, b in np.ndindex(inputs, outputs, *case.image[1:], rows, columns):
            row, column = i * stride[0] + a * dilation[0] - top, j * stride[1] + b * dilation[1] - left
            channel = c // (inputs // group) * outputs + o
            if 0 <= row < y.shape[2] and 0 <= column < y.shape[3]:
                y[:, channel, row, column] += x[:, c, i, j] * kernel[c, o, a, b]
                dx[:, c, i, j] += dy[:, channel, row, column] * kernel[c, o, a, b]
        return y, dx

    return oracle


def transposed_network(case: Case, constants: dict[str, Array], opset: int = 17) -> onnx.ModelProto:
    conv = node("ConvTranspose", f"x {' '.join(constants)}", "y", **case.attributes)
    return network([conv], constants, image=case.image, opset=opset)


def transposed_known_to_onnx(case: Case) -> bool:
    """Whether onnx's own evaluator is right: it fails with groups, and crops otherwise with auto_pad, output_shape."""
    attributes = case.attributes
    return attributes.get("group", 1) == 1 and not {"auto_pad", "output_shape"} & set(attributes)


@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_gradient_equals_autograd(case: Case, random: np.random.Generator) -> None:
    kernel = weight(random, *case.weight)
    model = transposed_network(case, {"w": kernel})
    for expected in (torch_transposed(case, kernel), slow_transposed(case, kernel)):
        check_companion(model, expected, random, in_onnx_reference=transposed_known_to_onnx(case))


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("stride 2, output_padding", ["Conv"]),
        ("SAME_LOWER", ["Conv"]),
    ],
)
def test_transposed_gradient_is_a_conv_with_the_same_weight(name: str, ops: list[str], random) -> None:
    kernel = weight(random, *TRANSPOSED[name].weight)
    gradient = companion(block_of(transposed_network(TRANSPOSED[name], {"w": kernel})))
    assert [entry.op_type for entry in gradient.graph] == [*ops, "ReduceSum"]
    assert next(entry for entry in gradient.graph if entry.op_type == "Conv").inputs[1].name == "w"


def test_output_padding_of_a_stride_or_more(random: np.random.Generator) -> None:
    """ONNX allows less than the dilation; ONNX Runtime has no such ConvTranspose, but its gradient runs there."""
    transposed = case((4, 5, 2, 2), strides=[2, 1], dilations=[3, 3], output_padding=[2, 2])
    kernel = weight(random, *transposed.weight)
    model = transposed_network(transposed, {"w": kernel})
    x, dy = random.standard_normal((2, *transposed.image)), random.standard_normal((2, 5, 18, 11))
    expected_y, expected = torch_transposed(transposed, kernel)(x, dy)
    block64 = block_of(model, float64=True)
    assert error(function(block64.model)(x)[0], expected_y) <= 1e-12
    assert error(function(companion(block64))(x, dy)[0], expected) <= 1e-12
    assert error(runtime(companion(block_of(model)))(as32(x), as32(dy))[0], expected) <= 1e-5


def test_output_shape_beyond_the_reach_is_refused(random: np.random.Generator) -> None:
    transposed = case((4, 5, 3, 3), strides=[2, 2], output_shape=[16, 12])
    message = (
        r"^ConvTranspose node 'node_y': has output_shape \[16, 12\]; expected at most \[15, 13\], "
        r"what its windows reach$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(transposed_network(transposed, {"w": weight(random, *transposed.weight)})))


@pytest.mark.parametrize("strides", [[1, 1], [2, 2]], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_weight_that_is_dequantised(op: str, strides: list[int], random: np.random.Generator) -> None:
    stored = random.integers(-127, 128, (4, 4, 3, 3), np.int8)
    scale = random.uniform(0.001, 0.005, 4).astype(np.float32)
    nodes = [
        node("DequantizeLinear", "stored scale zero", "w", axis=0),
        node(op, "x w", "y", strides=strides, pads=[1, 0, 1, 1]),
    ]
    constants = {"stored": stored, "scale": scale, "zero": np.zeros(4, np.int8)}
    model = network(nodes, constants, image=(4, 7, 6), opset=21)  # onnx's own evaluator has none of an older version
    assert block_of(model).model.graph.node(0).outputs[0].const_value is None
    kernel = stored * scale.astype(np.float64)[:, None, None, None]
    like = case((4, 4, 3, 3), strides=strides, pads=[1, 0, 1, 1])
    check_companion(model, {"Conv": torch_conv, "ConvTranspose": torch_transposed}[op](like, kernel), random)


@pytest.mark.parametrize("op", OPS)
def test_weight_from_the_image_is_refused(op: str) -> None:
    nodes = [node("Relu", "x", "w"), node(op, "fixed w", "y")]
    model = network(nodes, {"fixed": np.ones((1, 3, 8, 8), np.float32)}, image=(3, 8, 8))
    message = rf"^{op} node 'node_y': its weight is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize("op", OPS)
def test_weight_and_input_from_the_image_are_refused(op: str) -> None:
    message = rf"^{op} node 'node_y': input 1 \('x'\) has shape \[batch,3,8,8\]; expected a constant, of known size on "
    with pytest.raises(UnsupportedOpError, match=message + r"every axis$"):
        companion(block_of(network([node(op, "x x", "y")])))


@pytest.mark.parametrize("op", OPS)
def test_bias_from_the_image_is_refused(op: str, random: np.random.Generator) -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[0, 2, 3], keepdims=0),
        node(op, "fixed w mean", "y"),
    ]
    model = network(nodes, {"fixed": np.ones((1, 3, 8, 8), np.float32), "w": weight(random, 3, 3, 1, 1)})
    message = rf"^{op} node 'node_y': its bias is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_than_two_spatial_axes_are_refused(dimensions: int, op: str, random: np.random.Generator) -> None:
    sizes = {1: [-1, 3, 64], 3: [-1, 3, 4, 4, 4]}[dimensions]
    kernel = weight(random, 3, 3, *[1] * dimensions)
    nodes = [node("Reshape", "x shape", "folded"), node(op, "folded w", "y")]
    model = network(nodes, {"shape": np.array(sizes, np.int64), "w": kernel})
    message = rf"^{op} node 'node_y': has {dimensions} spatial axes; expected 2, since feature maps are images$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))
