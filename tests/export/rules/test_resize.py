import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, image_input, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets, runtime

OPS = ("Resize",)
COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Kernel:
    """The attributes of a Resize that say how elements are weighted."""

    mode: str = "nearest"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    antialias: int = 0

    def attributes(self, opset: int) -> dict[str, object]:
        names = ["mode", "nearest_mode", "cubic_coeff_a", "exclude_outside"] + ["antialias"] * (opset >= 18)
        return {name: getattr(self, name) for name in names}


KERNELS = {
    **{f"nearest, {mode}": Kernel(nearest_mode=mode) for mode in NEAREST},
    "linear": Kernel("linear"),
    "cubic": Kernel("cubic"),
    "cubic, a = -0.5, inside": Kernel("cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    "linear, antialias": Kernel("linear", antialias=1),
    "linear, antialias, inside": Kernel("linear", antialias=1, exclude_outside=1),
    "cubic, antialias": Kernel("cubic", antialias=1),
    "cubic, antialias, a = -0.5, inside": Kernel("cubic", antialias=1, cubic_coeff_a=-0.5, exclude_outside=1),
}
SIZES = {
    "grows": ((5, 4), (7, 8)),
    "shrinks": ((7, 5), (3, 1)),
    "both": ((3, 8), (4, 2)),
}


def resize_network(
    kernel: Kernel,
    coordinates: str,
    before: Sequence[int],
    *,
    sizes: Sequence[int] | None = None,
    scales: Sequence[float] | None = None,
    opset: int = 19,
    **attributes: object,
) -> onnx.ModelProto:
    """Resize images [2, *before] to sizes of H and W, or by scales of what `axes` says, by default of all axes."""
    if sizes is not None:
        inputs, constants = "x - - sizes", {"sizes": np.array(sizes, np.int64)}
        attributes = {"axes": [2, 3]} | attributes
    else:
        inputs, constants = "x - scales", {"scales": np.array(scales, np.float32)}
    resize = node(
        "Resize",
        inputs,
        "y",
        coordinate_transformation_mode=coordinates,
        **kernel.attributes(opset),
        **attributes,
    )
    return network([resize], constants, image=(2, *before), opset=opset)


def position(coordinates: str, i: int, before: int, after: int, scale: Fraction) -> Fraction:
    """The formulas of the specification, in exact arithmetic."""
    half = Fraction(1, 2)
    if coordinates == "align_corners":
        return Fraction(i * (before - 1), after - 1) if after > 1 else Fraction(0)
    if coordinates == "asymmetric":
        return i / scale
    if coordinates == "half_pixel_symmetric":
        adjustment = after / (scale * before)
        return Fraction(before, 2) * (1 - adjustment) + (i + half) / scale - half
    if coordinates == "pytorch_half_pixel" and after == 1:
        return Fraction(0)
    return (i + half) / scale - half


def weight(kernel: Kernel, distance: float) -> float:
    """The interpolation kernel at a distance; the cubic one is equation (4) of Keys, 1981."""
    s, a = abs(distance), kernel.cubic_coeff_a
    if kernel.mode == "linear":
        return max(1 - s, 0.0)
    if s <= 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


def slow_axis(kernel: Kernel, coordinates: str, before: int, after: int, scale: Fraction) -> list[dict[int, float]]:
    """For every element of an axis what it takes of which input element."""
    axis = []
    for i in range(after):
        place = position(coordinates, i, before, after, scale)
        if kernel.mode == "nearest":
            half = Fraction(1, 2)
            rounded = {
                "round_prefer_floor": math.ceil(place - half),
                "round_prefer_ceil": math.floor(place + half),
                "floor": math.floor(place),
                "ceil": math.ceil(place),
            }[kernel.nearest_mode]
            taken = {rounded: 1.0}
        else:
            stretch = max(1.0, float(1 / scale)) if kernel.antialias else 1.0
            reach = math.ceil(2 * stretch) + 1
            near = range(math.floor(place) - reach, math.ceil(place) + reach + 1)
            taken = {j: weight(kernel, float(place - j) / stretch) for j in near}
            if kernel.exclude_outside:
                taken = {j: w for j, w in taken.items() if 0 <= j < before}
        total, clamped = sum(taken.values()), dict.fromkeys(range(before), 0.0)
        for j, w in taken.items():
            clamped[min(max(j, 0), before - 1)] += w / total
        axis.append({j: w for j, w in clamped.items() if w})
    return axis


def slow_resize(
    kernel: Kernel,
    coordinates: str,
    before: Sequence[int],
    after: Sequence[int],
    scales: Sequence[Fraction] | None = None,
) -> Oracle:
    scales = [Fraction(m, n) for n, m in zip(before, after, strict=True)] if scales is None else scales
    rows, columns = (slow_axis(kernel, coordinates, n, m, s) for n, m, s in zip(before, after, scales, strict=True))

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros((*x.shape[:2], *after)), np.zeros_like(x)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                for p, v in row.items():
                    for q, w in column.items():
                        y[:, :, i, j] += v * w * x[:, :, p, q]
                        dx[:, :, p, q] += v * w * dy[:, :, i, j]
        return y, dx

    return oracle


def known_to_onnx(kernel: Kernel, coordinates: str, after: Sequence[int]) -> bool:
    """Whether onnx's own is exact: it rounds cubic coefficients to float32, and departs for a single pixel."""
    return kernel.mode != "cubic" and not (coordinates == "pytorch_half_pixel" and 1 in after)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_rule_equals_the_formula_in_every_version(op: str, opset: int, mode: str, random: np.random.Generator) -> None:
    model = resize_network(Kernel(mode), "half_pixel", (5, 4), scales=[1, 1, 1.5, 2], opset=opset)
    assert model.graph.node[0].op_type == op
    expected = slow_resize(Kernel(mode), "half_pixel", (5, 4), (7, 8), [Fraction(3, 2), Fraction(2)])
    check_companion(model, expected, random, in_onnx_reference=mode != "cubic")


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("before", "after"), SIZES.values(), ids=SIZES)
def test_resize(
    kernel: Kernel, coordinates: str, before: tuple[int, int], after: tuple[int, int], random: np.random.Generator
) -> None:
    check_companion(
        resize_network(kernel, coordinates, before, sizes=after),
        slow_resize(kernel, coordinates, before, after),
        random,
        in_onnx_reference=known_to_onnx(kernel, coordinates, after),
    )


def interpolated(size: Sequence[int], mode: str, **options: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: functional.interpolate(x, size=tuple(size), mode=mode, **options)


TORCH = {
    "nearest": (Kernel(nearest_mode="floor"), "asymmetric", {"mode": "nearest"}),
    "nearest-exact": (Kernel(nearest_mode="round_prefer_ceil"), "half_pixel", {"mode": "nearest-exact"}),
    "bilinear": (Kernel("linear"), "half_pixel", {"mode": "bilinear"}),
    "bilinear, corners": (Kernel("linear"), "align_corners", {"mode": "bilinear", "align_corners": True}),
    "bicubic": (Kernel("cubic"), "half_pixel", {"mode": "bicubic"}),
    "bicubic, corners": (Kernel("cubic"), "align_corners", {"mode": "bicubic", "align_corners": True}),
    "bilinear, antialias": (
        Kernel("linear", antialias=1, exclude_outside=1),
        "half_pixel",
        {"mode": "bilinear", "antialias": True},
    ),
    "bicubic, antialias": (
        Kernel("cubic", antialias=1, exclude_outside=1, cubic_coeff_a=-0.5),
        "half_pixel",
        {"mode": "bicubic", "antialias": True},
    ),
}


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize(
    ("before", "after"), [((5, 4), (10, 8)), ((7, 6), (12, 5)), ((9, 10), (4, 3))], ids=["x2", "mixed", "shrinks"]
)
def test_resize_equals_autograd(
    name: str, before: tuple[int, int], after: tuple[int, int], random: np.random.Generator
) -> None:
    kernel, coordinates, options = TORCH[name]
    model = resize_network(kernel, coordinates, before, sizes=after)
    check_companion(
        model,
        autograd(interpolated(after, **options)),
        random,
        in_onnx_reference=known_to_onnx(kernel, coordinates, after),
    )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    ("scales", "axes", "after"),
    [
        ((1, 1, 1.5, 0.5), None, (7, 3)),
        ((1.25, 1.75), [2, 3], (6, 10)),
        ((1.25, 1.75), [3, 2], (8, 7)),
        ((1.25, 1.75), [-1, -2], (8, 7)),
        ((2,), [3], (5, 12)),
        ((0.5, 1), [2, 1], (2, 6)),
    ],
    ids=str,
)
def test_scales_that_are_no_ratio_of_sizes(
    mode: str, scales: tuple[float, ...], axes: list[int] | None, after: tuple[int, int], random: np.random.Generator
) -> None:
    attributes = {} if axes is None else {"axes": axes}
    model = resize_network(Kernel(mode), "half_pixel", (5, 6), scales=scales, **attributes)
    by_axis = dict(zip(range(4) if axes is None else [axis % 4 for axis in axes], map(Fraction, scales), strict=True))
    expected = slow_resize(
        Kernel(mode), "half_pixel", (5, 6), after, [by_axis.get(axis, Fraction(1)) for axis in (2, 3)]
    )
    check_companion(model, expected, random, in_onnx_reference=axes is None and mode != "cubic")


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_linear_scales_that_are_no_ratio_of_sizes(coordinates: str, random: np.random.Generator) -> None:
    model = resize_network(Kernel("linear"), coordinates, (5, 6), scales=[1, 1, 1.25, 1.75])
    scales = [Fraction(5, 4), Fraction(7, 4)]
    expected = slow_resize(Kernel("linear"), coordinates, (5, 6), (6, 10), scales)
    check_companion(model, expected, random, in_onnx_reference=coordinates != "align_corners")


@pytest.mark.parametrize(
    ("policy", "sizes", "after", "scale"),
    [
        ("not_larger", (10, 7), (8, 7), Fraction(7, 5)),
        ("not_smaller", (10, 7), (10, 8), Fraction(10, 6)),
        ("not_larger", (3, 9), (3, 3), Fraction(1, 2)),
        ("not_smaller", (3, 2), (3, 3), Fraction(1, 2)),
        ("stretch", (3, 9), (3, 9), None),
    ],
    ids=str,
)
def test_aspect_ratio(
    policy: str, sizes: tuple[int, int], after: tuple[int, int], scale: Fraction | None, random: np.random.Generator
) -> None:
    model = resize_network(Kernel("linear"), "half_pixel", (6, 5), sizes=sizes, keep_aspect_ratio_policy=policy)
    scales = None if scale is None else [scale, scale]
    expected = slow_resize(Kernel("linear"), "half_pixel", (6, 5), after, scales)
    check_companion(model, expected, random)


def test_aspect_ratio_of_one_axis(random: np.random.Generator) -> None:
    attributes = {"keep_aspect_ratio_policy": "not_larger", "axes": [3]}
    model = resize_network(Kernel("linear"), "half_pixel", (6, 5), sizes=[8], **attributes)
    check_companion(model, slow_resize(Kernel("linear"), "half_pixel", (6, 5), (6, 8)), random)


@pytest.mark.parametrize("after", [(10, 8), (5, 12), (15, 4), (5, 4)], ids=str)
@pytest.mark.parametrize(("coordinates", "nearest"), [("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")])
def test_nearest_by_whole_scales_sums_blocks(
    coordinates: str, nearest: str, after: tuple[int, int], random: np.random.Generator
) -> None:
    kernel = Kernel(nearest_mode=nearest)
    model = resize_network(kernel, coordinates, (5, 4), sizes=after)
    ops = [entry.op_type for entry in companion(block_of(model)).graph]
    assert ops == (["ReduceSum", "Identity"] if after == (5, 4) else ["AveragePool", "Mul", "ReduceSum"])
    check_companion(model, slow_resize(kernel, coordinates, (5, 4), after), random)


def test_nearest_by_whole_scales_that_repeats_unevenly(random: np.random.Generator) -> None:
    kernel = Kernel(nearest_mode="ceil")
    model = resize_network(kernel, "asymmetric", (5, 4), sizes=(10, 8))
    assert "AveragePool" not in {entry.op_type for entry in companion(block_of(model)).graph}
    check_companion(model, slow_resize(kernel, "asymmetric", (5, 4), (10, 8)), random)


@pytest.mark.parametrize(("after", "products"), [((5, 8), 1), ((7, 4), 1), ((7, 8), 2)], ids=str)
def test_an_axis_that_stays_costs_nothing(after: tuple[int, int], products: int, random: np.random.Generator) -> None:
    model = resize_network(Kernel("linear"), "half_pixel", (5, 4), sizes=after)
    assert [entry.op_type for entry in companion(block_of(model)).graph] == ["MatMul"] * products + ["ReduceSum"]
    check_companion(model, slow_resize(Kernel("linear"), "half_pixel", (5, 4), after), random)


def test_doubling_sums_blocks_of_four_exactly() -> None:
    model = resize_network(Kernel(nearest_mode="floor"), "asymmetric", (1, 2), scales=[1, 1, 2, 2])
    dy = np.array([[[[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]]] * 2]).reshape(1, 2, 2, 4)
    dx, total = function(companion(block_of(model, float64=True)))(np.zeros((1, 2, 1, 2)), dy)
    assert dx[0].tolist() == [[[33.0, 77.0]]] * 2
    assert total.tolist() == [[110.0, 110.0]]


@pytest.mark.parametrize("nearest", NEAREST)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(
    ("before", "after"), [(7, 2), (12, 56), (28, 2), (30, 35), (30, 63), (14, 4), (23, 14), (30, 9), (21, 22)]
)
def test_ties_go_where_onnx_runtime_sends_them(
    before: int, after: int, coordinates: str, nearest: str, random: np.random.Generator
) -> None:
    """Half-way positions that float32 misses by a bit: the forward pass shows which neighbour is taken."""
    model = resize_network(Kernel(nearest_mode=nearest), coordinates, (before, 1), sizes=(after, 1))
    check_companion(model, from_runtime(model), random, in_onnx_reference=False)


def from_runtime(model: onnx.ModelProto) -> Oracle:
    """The gradient of a linear model, from what ONNX Runtime makes of unit impulses on axis 2."""
    run = runtime(model)

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        impulses = np.zeros((x.shape[2], *x.shape[1:]), np.float32)
        for row in range(x.shape[2]):
            impulses[row, :, row] = 1.0
        matrix = run(impulses)[0][:, 0, :, 0].astype(np.float64)
        return np.einsum("rm,ncrw->ncmw", matrix, x), np.einsum("rm,ncmw->ncrw", matrix, dy)

    return oracle


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
            r"has coordinate_transformation_mode 'tf_crop_and_resize'; expected one of half_pixel, "
            r"half_pixel_symmetric, pytorch_half_pixel, align_corners, asymmetric",
        ),
        ({"mode": "lanczos"}, r"has mode 'lanczos'; expected one of nearest, linear, cubic"),
        (
            {"nearest_mode": "up"},
            r"has nearest_mode 'up'; expected one of round_prefer_floor, round_prefer_ceil, floor, ceil",
        ),
    ],
    ids=["coordinates", "mode", "nearest mode"],
)
def test_unknown_modes_are_refused(attributes: dict, message: str) -> None:
    constants = {"scales": np.array([1, 1, 2, 2], np.float32), "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)}
    model = network([node("Resize", "x roi scales", "y", **attributes)], constants)
    with pytest.raises(UnsupportedOpError, match=rf"^Resize node 'node_y': {message}$"):
        companion(block_of(model))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((2, 1, 1, 1), r"resizes axis 0, the batch; expected H and W alone"),
        ((1, 2, 1, 1), r"resizes axis 1, the channels; expected H and W alone"),
        (
            (1, 1, 1.125, 1),
            r"has scales \(1\.125, 1\.0\) that leave the sizes as they are: ONNX resamples all the same and runtimes "
            r"do not; expected scales that change the size",
        ),
        (
            (1, 1, 1, 0.7),
            r"scale 0\.699999988 makes 20 elements 13 in ONNX and 14 in runtimes, which multiply in float32; expected "
            r"sizes in place of scales",
        ),
    ],
    ids=["batch", "channels", "same size", "rounded size"],
)
def test_scales_are_refused(scales: tuple[float, ...], message: str) -> None:
    model = resize_network(Kernel("linear"), "half_pixel", (5, 20), scales=scales)
    with pytest.raises(UnsupportedOpError, match=rf"^Resize node 'node_y': {message}$"):
        companion(block_of(model))


def test_other_than_four_axes_are_refused() -> None:
    nodes = [node("Reshape", "x flat", "rows"), node("Resize", "rows - scales", "y")]
    constants = {"flat": np.array([-1, 3, 64]), "scales": np.array([1, 1, 2], np.float32)}
    message = r"^Resize node 'node_y': its input has 3 axes; expected 4, \[N, C, H, W\]$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants)))


def test_aspect_ratio_of_the_batch_is_refused() -> None:
    resize = node("Resize", "x - - sizes", "y", keep_aspect_ratio_policy="not_larger")
    model = network([resize], {"sizes": np.array([2, 3, 16, 16])}, inputs=[image_input([2, 3, 8, 8])], opset=18)
    message = (
        r"^Resize node 'node_y': has keep_aspect_ratio_policy 'not_larger' and sizes that include axis 0, the batch; "
        r"expected sizes of H and W, with axes that say so$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


def test_sizes_from_the_image_are_refused() -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[0, 1, 2, 3]),
        node("Reshape", "mean one", "number"),
        node("Concat", "number number number number", "scales", axis=0),
        node("Resize", "fixed - scales", "y"),
    ]
    constants = {"one": np.array([1]), "fixed": np.ones((1, 3, 8, 8), np.float32)}
    message = r"^Resize node 'node_y': its scales or sizes are computed from the image; expected constants$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants)))
