import itertools
import math

import numpy as np
import onnx_ir as ir
import pytest

from engine.errors import UnsupportedOpError
from engine.export.evaluate import function
from engine.export.graph import GraphBuilder
from engine.export.windows import (
    Windows,
    covered_taps,
    expect_images,
    gather_taps,
    kernel_shape,
    pad_or_crop,
    pad_spatial,
    resolve_pads,
    scatter_taps,
    transposed_pads,
    windows_of,
)
from tests.export.networks import imported, network, node

CHANNELS = 2
WINDOWS = {
    "3x3": {"input": (6, 5), "kernel": (3, 3)},
    "padded": {"input": (6, 5), "kernel": (3, 3), "begin": (1, 2), "end": (0, 1)},
    "stride 2": {"input": (7, 8), "kernel": (2, 3), "stride": (2, 2), "begin": (1, 1), "end": (1, 0)},
    "stride in one axis": {"input": (7, 8), "kernel": (2, 3), "stride": (1, 3)},
    "stride beyond the kernel": {"input": (11, 9), "kernel": (2, 1), "stride": (3, 4)},
    "dilated": {"input": (7, 8), "kernel": (2, 3), "dilation": (3, 2), "begin": (1, 0), "end": (2, 3)},
    "dilated, strided": {"input": (9, 8), "kernel": (3, 2), "dilation": (2, 3), "stride": (3, 2), "begin": (2, 1)},
    "pads beyond the extent": {"input": (4, 5), "kernel": (2, 3), "begin": (3, 5), "end": (4, 3)},
    "pads beyond the extent, strided": {
        "input": (4, 5),
        "kernel": (2, 2),
        "stride": (2, 3),
        "begin": (3, 4),
        "end": (4, 3),
    },
    "one tap": {"input": (5, 4), "kernel": (1, 1), "stride": (2, 2)},
    "one window": {"input": (3, 4), "kernel": (3, 4)},
    "beyond the padding": {"input": (5, 6), "kernel": (2, 2), "stride": (3, 4), "output": (2, 2)},
}


def windows(facts: dict[str, tuple[int, int]]) -> Windows:
    """Make windows whose number is, unless given, that of the formula without ceil_mode."""
    filled = {"stride": (1, 1), "dilation": (1, 1), "begin": (0, 0), "end": (0, 0)} | facts
    if "output" not in filled:
        filled["output"] = tuple(
            (n + b + e - d * (k - 1) - 1) // s + 1
            for n, k, s, d, b, e in zip(
                *(filled[name] for name in ("input", "kernel", "stride", "dilation", "begin", "end")), strict=True
            )
        )
    return Windows(**filled)


def graph_of(*inputs: tuple[int | str, ...]) -> tuple[GraphBuilder, list[ir.Value]]:
    values = [
        ir.Value(name=f"in{position}", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.DOUBLE))
        for position, shape in enumerate(inputs)
    ]
    return GraphBuilder(ir.Graph(values, [], nodes=[], opset_imports={"": 17}, name="tiny"), "g"), values


def run(g: GraphBuilder, outputs: list[ir.Value], *inputs: np.ndarray) -> list[np.ndarray]:
    g.graph.outputs.extend(outputs)
    return function(ir.Model(g.graph, ir_version=10))(*inputs)


def numpy_gather(facts: Windows, x: np.ndarray) -> np.ndarray:
    """The taps [kH·kW, N, C, *output], zero outside the image, from the definition."""
    taps = np.zeros((math.prod(facts.kernel), *x.shape[:2], *facts.output))
    for tap, (a, b) in enumerate(np.ndindex(*facts.kernel)):
        for i, j in np.ndindex(*facts.output):
            row = i * facts.stride[0] + a * facts.dilation[0] - facts.begin[0]
            column = j * facts.stride[1] + b * facts.dilation[1] - facts.begin[1]
            if 0 <= row < facts.input[0] and 0 <= column < facts.input[1]:
                taps[tap, :, :, i, j] = x[:, :, row, column]
    return taps


def numpy_scatter(facts: Windows, taps: np.ndarray) -> np.ndarray:
    """Every tap's value added at its place in the image."""
    x = np.zeros((*taps.shape[1:3], *facts.input))
    for tap, (a, b) in enumerate(np.ndindex(*facts.kernel)):
        for i, j in np.ndindex(*facts.output):
            row = i * facts.stride[0] + a * facts.dilation[0] - facts.begin[0]
            column = j * facts.stride[1] + b * facts.dilation[1] - facts.begin[1]
            if 0 <= row < facts.input[0] and 0 <= column < facts.input[1]:
                x[:, :, row, column] += taps[tap, :, :, i, j]
    return x


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("facts", WINDOWS.values(), ids=WINDOWS)
def test_gather_takes_every_window_s_tap(facts: dict, rows: int, random: np.random.Generator) -> None:
    geometry = windows(facts)
    x = random.standard_normal((rows, CHANNELS, *geometry.input))
    g, (value,) = graph_of(("batch", CHANNELS, *geometry.input))
    missing = [r - n - b for r, n, b in zip(geometry.reach, geometry.input, geometry.begin, strict=True)]
    padded = pad_spatial(g, value, geometry.begin, tuple(missing))
    taps = run(g, [gather_taps(g, geometry, padded, offset) for offset in geometry.offsets()], x)
    np.testing.assert_array_equal(taps, numpy_gather(geometry, x))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("facts", WINDOWS.values(), ids=WINDOWS)
def test_scatter_is_the_transpose_of_gather(facts: dict, rows: int, random: np.random.Generator) -> None:
    geometry = windows(facts)
    count = math.prod(geometry.kernel)
    taps = random.standard_normal((count, rows, CHANNELS, *geometry.output))
    x = random.standard_normal((rows, CHANNELS, *geometry.input))
    g, values = graph_of(*[("batch", CHANNELS, *geometry.output)] * count)
    scattered = scatter_taps(g, geometry, CHANNELS, dict(zip(geometry.offsets(), values, strict=True)))
    (found,) = run(g, [scattered], *taps)
    assert found.shape == x.shape
    np.testing.assert_allclose(found, numpy_scatter(geometry, taps), rtol=1e-13, atol=1e-13)
    assert np.vdot(found, x) == pytest.approx(np.vdot(taps, numpy_gather(geometry, x)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("include_pad", [False, True], ids=["image", "with padding"])
@pytest.mark.parametrize("facts", WINDOWS.values(), ids=WINDOWS)
def test_covered_taps_are_counted(facts: dict, include_pad: bool) -> None:
    geometry = windows(facts)
    expected = np.zeros(geometry.output)
    for (i, j), (a, b) in itertools.product(np.ndindex(*geometry.output), np.ndindex(*geometry.kernel)):
        row = i * geometry.stride[0] + a * geometry.dilation[0] - geometry.begin[0]
        column = j * geometry.stride[1] + b * geometry.dilation[1] - geometry.begin[1]
        (top, left), (bottom, right) = (geometry.begin, geometry.end) if include_pad else ((0, 0), (0, 0))
        on = -top <= row < geometry.input[0] + bottom and -left <= column < geometry.input[1] + right
        expected[i, j] += on
    counts = covered_taps(geometry, include_pad=include_pad)
    assert counts.dtype == np.float64
    np.testing.assert_array_equal(counts, np.maximum(expected, 1))


def test_covered_taps_of_a_window_that_sees_nothing_is_one() -> None:
    counts = covered_taps(
        windows({"input": (1, 2), "kernel": (1, 1), "begin": (1, 0), "end": (1, 0)}), include_pad=False
    )
    assert counts.tolist() == [[1, 1], [1, 1], [1, 1]]


def test_extent_reach_and_offsets() -> None:
    geometry = windows({"input": (9, 9), "kernel": (2, 3), "dilation": (3, 2), "stride": (2, 3)})
    assert geometry.output == (3, 2)
    assert geometry.extent == (4, 5)
    assert geometry.reach == (8, 8)
    assert geometry.offsets() == [(0, 0), (0, 2), (0, 4), (3, 0), (3, 2), (3, 4)]


@pytest.mark.parametrize(
    ("auto_pad", "size", "stride", "extent", "begin", "end"),
    [
        ("NOTSET", (9, 9), (2, 2), (3, 3), (1, 2), (3, 4)),
        ("VALID", (9, 9), (2, 2), (3, 3), (0, 0), (0, 0)),
        ("SAME_UPPER", (5, 5), (1, 1), (3, 2), (1, 0), (1, 1)),
        ("SAME_LOWER", (5, 5), (1, 1), (3, 2), (1, 1), (1, 0)),
        ("SAME_UPPER", (8, 7), (2, 2), (3, 3), (0, 1), (1, 1)),
        ("SAME_LOWER", (8, 7), (2, 2), (3, 3), (1, 1), (0, 1)),
        ("SAME_UPPER", (8, 8), (3, 4), (1, 2), (0, 0), (0, 0)),
        ("SAME_LOWER", (6, 6), (1, 1), (7, 4), (3, 2), (3, 1)),
    ],
)
def test_auto_pad_is_resolved(auto_pad: str, size, stride, extent, begin, end) -> None:
    assert resolve_pads(auto_pad, (1, 2, 3, 4), size, stride, extent) == (begin, end)


def test_windows_of_a_node() -> None:
    conv = node("Conv", "x w", "y", strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 3])
    model = imported(network([conv], {"w": np.ones((4, 3, 2, 3), np.float32)}, image=(3, 7, 8)))
    (read,) = model.graph
    assert windows_of(read, (2, 3)) == Windows(
        input=(7, 8), output=(5, 7), kernel=(2, 3), stride=(2, 1), dilation=(1, 2), begin=(1, 0), end=(2, 3)
    )
    pool = node("MaxPool", "x", "y", kernel_shape=[3, 2], auto_pad="SAME_LOWER")
    (read,) = imported(network([pool], image=(3, 7, 8))).graph
    assert windows_of(read, kernel_shape(read)) == Windows(
        input=(7, 8), output=(7, 8), kernel=(3, 2), stride=(1, 1), dilation=(1, 1), begin=(1, 1), end=(1, 0)
    )


def test_stride_of_a_single_window_does_not_matter() -> None:
    model = imported(network([node("MaxPool", "x", "y", kernel_shape=[8, 2], strides=[2**31, 2])]))
    (pool,) = model.graph
    found = windows_of(pool, kernel_shape(pool))
    assert (found.output, found.stride) == ((1, 4), (1, 2))


@pytest.mark.parametrize("kernel", [(), (3,), (3, 3, 3)])
def test_windows_of_other_dimensions_are_refused(kernel: tuple[int, ...]) -> None:
    (read,) = imported(network([node("MaxPool", "x", "y", kernel_shape=[2, 2])])).graph
    message = rf"^MaxPool node 'node_y': has {len(kernel)} spatial axes; expected 2, since feature maps are images$"
    with pytest.raises(UnsupportedOpError, match=message):
        windows_of(read, kernel)


def test_windows_of_a_node_without_input_are_refused() -> None:
    lonely = ir.Node("", "MaxPool", [None], name="lonely", outputs=[ir.Value(name="y")])
    message = r"^MaxPool node 'lonely': has no input 0; expected an activation \[N, C, H, W\]$"
    with pytest.raises(UnsupportedOpError, match=message):
        windows_of(lonely, (2, 2))


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ((0, 0, 1, 2), (0, 0, 3, 0)),
        ((0, 0, -1, -2), (0, 0, -1, 0)),
        ((0, 1, -2, 1), (0, -1, 3, -2)),
        ((0, 0, 0, 0), (0, 0, 0, 0)),
    ],
    ids=["pads", "crops", "both", "nothing"],
)
def test_pad_or_crop(begin: tuple[int, ...], end: tuple[int, ...], random: np.random.Generator) -> None:
    x = random.standard_normal((2, 3, 5, 6))
    g, (value,) = graph_of(("batch", 3, 5, 6))
    (found,) = run(g, [g.op("Identity", pad_or_crop(g, value, begin, end, fill=7.0))], x)
    expected = np.pad(x, [(max(b, 0), max(e, 0)) for b, e in zip(begin, end, strict=True)], constant_values=7.0)
    cropped = tuple(slice(max(-b, 0), min(e, 0) or None) for b, e in zip(begin, end, strict=True))
    np.testing.assert_array_equal(found, expected[cropped])


def test_padding_by_nothing_adds_no_node() -> None:
    g, (value,) = graph_of(("batch", 3, 5, 6))
    assert pad_spatial(g, value, (0, 0), (0, 0)) is value
    assert not list(g.graph)


@pytest.mark.parametrize(
    ("auto_pad", "output_shape", "begin", "end"),
    [
        ("NOTSET", (), (1, 2), (3, 4)),
        ("VALID", (), (0, 0), (0, 0)),
        ("SAME_UPPER", (), (0, 1), (1, 1)),
        ("SAME_LOWER", (), (1, 1), (0, 1)),
        ("NOTSET", (8, 7), (1, 3), (0, 2)),
        ("SAME_LOWER", (8, 7), (1, 3), (0, 2)),
        ("SAME_UPPER", (8, 7), (0, 2), (1, 3)),
        ("NOTSET", (10, 12), (0, 0), (0, 0)),
    ],
)
def test_transposed_pads(auto_pad: str, output_shape: tuple[int, ...], begin, end) -> None:
    """By the ONNX specification of ConvTranspose, for outputs [9, 12] of inputs [4, 5] with strides of 2."""
    assert transposed_pads(auto_pad, (1, 2, 3, 4), output_shape, (8, 10), (9, 12)) == (begin, end)


def test_images_have_two_spatial_axes() -> None:
    pool = ir.Node("", "MaxPool", [], name="pool")
    expect_images(pool, (4, 5))
    message = r"^MaxPool node 'pool': has 1 spatial axes; expected 2, since feature maps are images$"
    with pytest.raises(UnsupportedOpError, match=message):
        expect_images(pool, (4,))
