import itertools
import math
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets, ties

OPS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")


@dataclass(frozen=True)
class Case:
    """One pooling node over images [2, H, W]."""

    size: tuple[int, int]
    attributes: dict[str, object]


def case(*size: int, **attributes: object) -> Case:
    return Case(size or (7, 6), attributes)


COMMON = {
    "2x2": case(8, 6, kernel_shape=[2, 2], strides=[2, 2]),
    "leftover": case(7, 9, kernel_shape=[2, 2], strides=[2, 2]),
    "overlapping": case(9, 8, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "stride 1": case(kernel_shape=[3, 2]),
    "stride 1, padded": case(kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "asymmetric": case(9, 8, kernel_shape=[3, 4], strides=[2, 3], pads=[0, 1, 2, 2]),
    "stride beyond the kernel": case(11, 10, kernel_shape=[2, 1], strides=[3, 4]),
    "stride in one axis": case(kernel_shape=[2, 3], strides=[1, 2]),
    "ceil_mode": case(8, 8, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "ceil_mode, padded": case(7, 8, kernel_shape=[3, 3], strides=[2, 3], pads=[1, 1, 1, 1], ceil_mode=1),
    "ceil_mode, last window in the padding": case(5, 6, kernel_shape=[2, 2], strides=[3, 4], ceil_mode=1),
    "ceil_mode without leftover": case(8, 6, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "SAME_UPPER": case(8, 7, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    "SAME_LOWER": case(8, 7, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    "SAME_UPPER, stride 1": case(5, 4, kernel_shape=[2, 4], auto_pad="SAME_UPPER"),
    "VALID": case(8, 7, kernel_shape=[3, 2], strides=[2, 2], auto_pad="VALID"),
    "whole image": case(5, 4, kernel_shape=[5, 4]),
    "one tap": case(5, 4, kernel_shape=[1, 1], strides=[2, 2]),
    "one row": case(1, 7, kernel_shape=[1, 3], strides=[1, 2]),
}
DILATED = {
    "dilated": case(9, 8, kernel_shape=[3, 2], dilations=[2, 3]),
    "dilated, stride 2, padded": case(9, 8, kernel_shape=[2, 3], dilations=[3, 2], strides=[2, 2], pads=[1, 1, 1, 1]),
    "dilated, ceil_mode": case(9, 9, kernel_shape=[2, 2], dilations=[2, 2], strides=[3, 3], ceil_mode=1),
}


def axis_windows(case: Case, axis: int) -> tuple[list[list[int]], int, int]:
    """Return the positions of every window's taps along one axis, and the padding before and after.

    By the formulas of the ONNX specification of MaxPool, AveragePool; positions below 0 or beyond the size are padding.
    """
    attributes = case.attributes
    size, kernel = case.size[axis], attributes["kernel_shape"][axis]
    stride = attributes.get("strides", (1, 1))[axis]
    dilation = attributes.get("dilations", (1, 1))[axis]
    extent = (kernel - 1) * dilation + 1
    auto_pad = attributes.get("auto_pad", "NOTSET")
    begin, end = attributes.get("pads", (0, 0, 0, 0))[axis::2]
    if auto_pad.startswith("SAME"):
        count = math.ceil(size / stride)
        total = max((count - 1) * stride + extent - size, 0)
        begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        end = total - begin
    elif auto_pad == "VALID":
        count = math.ceil((size - extent + 1) / stride)
    else:
        rounded = math.ceil if attributes.get("ceil_mode", 0) else math.floor
        count = rounded((size + begin + end - extent) / stride + 1)
        if (count - 1) * stride >= size + begin:
            count -= 1
    return [[i * stride + k * dilation - begin for k in range(kernel)] for i in range(count)], begin, end


def windows(case: Case) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """List every window with its taps in row-major order."""
    (rows, *_), (columns, *_) = axis_windows(case, 0), axis_windows(case, 1)
    return [
        (i, j, list(itertools.product(rows[i], columns[j])))
        for i, j in itertools.product(range(len(rows)), range(len(columns)))
    ]


def inside(case: Case, tap: tuple[int, int]) -> bool:
    return 0 <= tap[0] < case.size[0] and 0 <= tap[1] < case.size[1]


def output_size(case: Case) -> tuple[int, int]:
    return len(axis_windows(case, 0)[0]), len(axis_windows(case, 1)[0])


def slow_max_pool(case: Case) -> Oracle:
    """Each window's maximum; its first tap in row-major order that has it takes the gradient."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros((*x.shape[:2], *output_size(case))), np.zeros_like(x)
        for i, j, taps in windows(case):
            rows, columns = np.array([tap for tap in taps if inside(case, tap)]).T
            candidates = x[:, :, rows, columns]
            for n, c in np.ndindex(*x.shape[:2]):
                (first, *_) = np.flatnonzero(candidates[n, c] == max(candidates[n, c]))
                y[n, c, i, j] = candidates[n, c, first]
                dx[n, c, rows[first], columns[first]] += dy[n, c, i, j]
        return y, dx

    return oracle


def slow_average_pool(case: Case, *, include_pad: bool) -> Oracle:
    """Each window's mean over its taps on the image, or on the image and its padding."""
    (_, top, bottom), (_, left, right) = axis_windows(case, 0), axis_windows(case, 1)

    def counted(tap: tuple[int, int]) -> bool:
        on_padding = -top <= tap[0] < case.size[0] + bottom and -left <= tap[1] < case.size[1] + right
        return on_padding if include_pad else inside(case, tap)

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros((*x.shape[:2], *output_size(case))), np.zeros_like(x)
        for i, j, taps in windows(case):
            count = sum(map(counted, taps))
            rows, columns = np.array([tap for tap in taps if inside(case, tap)]).T
            y[:, :, i, j] = x[:, :, rows, columns].sum(axis=2) / count
            dx[:, :, rows, columns] += dy[:, :, i, j, None] / count
        return y, dx

    return oracle


def known_to_onnx(case: Case) -> bool:
    """Whether onnx's own evaluator can run it: its MaxPool pads SAME_LOWER as SAME_UPPER."""
    return case.attributes.get("auto_pad") != "SAME_LOWER"


def pool_network(op_type: str, case: Case, opset: int = 17, **attributes: object) -> onnx.ModelProto:
    return network([node(op_type, "x", "y", **case.attributes, **attributes)], image=(2, *case.size), opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_the_formula_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    if op == "GlobalAveragePool":
        model = network([node(op, "x", "y")], image=(2, 7, 6), opset=opset)
        expected = autograd(lambda x: x.mean(dim=(2, 3), keepdim=True))
    elif op == "GlobalMaxPool":
        model = network([node(op, "x", "y")], image=(2, 7, 6), opset=opset)
        expected = slow_max_pool(case(7, 6, kernel_shape=[7, 6]))
    else:
        model = pool_network(op, COMMON["overlapping"], opset)
        slow = {"MaxPool": slow_max_pool, "AveragePool": lambda case: slow_average_pool(case, include_pad=False)}
        expected = slow[op](COMMON["overlapping"])
    check_companion(model, expected, random)


@pytest.mark.parametrize("case", (COMMON | DILATED).values(), ids=COMMON | DILATED)
def test_max_pool(case: Case, random: np.random.Generator) -> None:
    model = pool_network("MaxPool", case, opset=22)
    check_companion(model, slow_max_pool(case), random, in_onnx_reference=known_to_onnx(case))


@pytest.mark.parametrize("case", (COMMON | DILATED).values(), ids=COMMON | DILATED)
def test_max_pool_gives_the_first_of_equal_maxima_everything(case: Case, random: np.random.Generator) -> None:
    check_companion(
        pool_network("MaxPool", case, opset=22),
        slow_max_pool(case),
        random,
        values=ties(random, -3, -2, 0),
        smooth=False,
        in_onnx_reference=False,
    )


def test_max_pool_of_a_constant_image(random: np.random.Generator) -> None:
    case = COMMON["overlapping"]
    check_companion(
        pool_network("MaxPool", case),
        slow_max_pool(case),
        random,
        values=lambda shape: np.full(shape, -1.5),
        smooth=False,
    )


@pytest.mark.parametrize("include_pad", [False, True], ids=["image", "with padding"])
@pytest.mark.parametrize("case", COMMON.values(), ids=COMMON)
def test_average_pool(case: Case, include_pad: bool, random: np.random.Generator) -> None:
    model = pool_network("AveragePool", case, opset=22, count_include_pad=int(include_pad))
    check_companion(model, slow_average_pool(case, include_pad=include_pad), random)


@pytest.mark.parametrize("include_pad", [False, True], ids=["image", "with padding"])
@pytest.mark.parametrize("name", ["ceil_mode", "asymmetric", "SAME_LOWER"])
def test_average_pool_of_the_oldest_opset(name: str, include_pad: bool, random: np.random.Generator) -> None:
    model = pool_network("AveragePool", COMMON[name], count_include_pad=int(include_pad))
    check_companion(model, slow_average_pool(COMMON[name], include_pad=include_pad), random)


@pytest.mark.parametrize("include_pad", [False, True], ids=["image", "with padding"])
@pytest.mark.parametrize("case", DILATED.values(), ids=DILATED)
def test_dilated_average_pool(case: Case, include_pad: bool, random: np.random.Generator) -> None:
    model = pool_network("AveragePool", case, opset=19, count_include_pad=int(include_pad))
    check_companion(model, slow_average_pool(case, include_pad=include_pad), random)


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_ceil_mode_with_a_window_in_the_padding_alone_is_refused_before_opset_22(op: str) -> None:
    message = (
        rf"^{op} node 'node_y': ONNX before opset 22 gives it a last window in the padding alone \(ceil_mode\), and "
        r"runtimes leave it out; expected windows that touch the input: convert the model to opset 22 or newer$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(pool_network(op, COMMON["ceil_mode, padded"], opset=21)))


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_than_two_spatial_axes_are_refused(op: str, dimensions: int) -> None:
    sizes = {1: [-1, 3, 64], 3: [-1, 3, 4, 4, 4]}[dimensions]
    nodes = [node("Reshape", "x shape", "folded"), node(op, "folded", "y", kernel_shape=[2] * dimensions)]
    message = rf"^{op} node 'node_y': has {dimensions} spatial axes; expected 2, since feature maps are images$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, {"shape": np.array(sizes, np.int64)})))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_windows_of_very_many_taps_are_refused(op: str) -> None:
    message = (
        rf"^{op} node 'node_y': has windows of 64×65; expected at most 4096 taps: use Global{op} where a window is the "
        r"whole map$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network([node(op, "x", "y", kernel_shape=[64, 65])], image=(1, 64, 65))))


def test_stride_of_a_single_window_is_of_no_consequence(random: np.random.Generator) -> None:
    strides = {"strides": [2**31, 65535]}
    model = network([node("MaxPool", "x", "y", kernel_shape=[3, 4], **strides)], image=(2, 5, 6))
    check_companion(model, autograd(lambda x: x[:, :, :3, :4].amax(dim=(2, 3), keepdim=True)), random)


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (3, 4)])
def test_global_average_pool(size: tuple[int, int], random: np.random.Generator) -> None:
    model = network([node("GlobalAveragePool", "x", "y")], image=(3, *size))
    check_companion(model, autograd(lambda x: x.mean(dim=(2, 3), keepdim=True)), random)


def test_global_average_pool_of_rows(random: np.random.Generator) -> None:
    nodes = [node("Reshape", "x shape", "rows"), node("GlobalAveragePool", "rows", "y")]
    model = network(nodes, {"shape": np.array([0, 3, -1], np.int64)}, image=(3, 4, 5))
    check_companion(model, autograd(lambda x: x.flatten(2).mean(dim=2, keepdim=True)), random)


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (3, 4)])
def test_global_max_pool(size: tuple[int, int], random: np.random.Generator) -> None:
    model = network([node("GlobalMaxPool", "x", "y")], image=(2, *size))
    check_companion(model, slow_max_pool(case(*size, kernel_shape=[*size])), random)
    check_companion(model, autograd(lambda x: x.amax(dim=(2, 3), keepdim=True)), random)


@pytest.mark.parametrize("levels", [(-3, -2, -1), (-0.0, 0.0), (2,)], ids=str)
def test_global_max_pool_gives_the_first_of_equal_maxima_everything(
    levels: tuple[float, ...], random: np.random.Generator
) -> None:
    model = network([node("GlobalMaxPool", "x", "y")], image=(2, 5, 4))
    oracle = slow_max_pool(case(5, 4, kernel_shape=[5, 4]))
    check_companion(model, oracle, random, values=ties(random, *levels), smooth=False)


def test_global_max_pool_of_rows(random: np.random.Generator) -> None:
    nodes = [node("Reshape", "x shape", "rows"), node("GlobalMaxPool", "rows", "y")]
    model = network(nodes, {"shape": np.array([0, 3, -1], np.int64)}, image=(3, 4, 5))
    check_companion(model, autograd(lambda x: x.flatten(2).amax(dim=2, keepdim=True)), random, in_onnx_reference=False)
