"""Each part of `explain.onnx` alone, run by ONNX Runtime, against the kernel whose twin it is."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from engine.budget import interleave, telling_first
from engine.export.cut import CutPoint
from engine.export.explain.combine import Masks, upsample, visualization_map
from engine.export.explain.fuse import fuse
from engine.export.explain.kriging import Process, estimate
from engine.export.explain.kriging import telling_first as telling_first_graph
from engine.export.explain.kriging import thumbnails as thumbnails_graph
from engine.export.explain.plan import plan
from engine.export.explain.score import activate
from engine.export.explain.select import choose
from engine.export.graph import GraphBuilder
from engine.kernels import Kriging, is_flat, select_channels, thumbnails
from engine.kernels import activate as activate_kernel
from engine.kernels import fuse as fuse_kernel
from engine.kernels import upsample as upsample_kernel
from engine.kernels import visualization_map as visualization_map_kernel

Array = NDArray[np.generic]


def run(build: Callable[..., Sequence[ir.Value]], *inputs: Array) -> list[Array]:
    """Build a graph of these inputs, and run it."""
    values = [
        ir.Value(
            name=f"in{number}",
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape([None] * array.ndim),
        )
        for number, array in enumerate(inputs)
    ]
    graph = ir.Graph(values, [], nodes=[], name="part", opset_imports={"": 18})
    graph.outputs.extend(build(GraphBuilder(graph, "part"), *values))
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {f"in{number}": array for number, array in enumerate(inputs)})


AVERAGES = {
    "random": lambda random: random.standard_normal(40),
    "skewed": lambda random: np.exp(3 * random.standard_normal(300)) - 1,
    "ties": lambda random: random.integers(-2, 4, 64),
    "two values": lambda _: [1, 5, 1, 5, 5, 1],
    "all equal": lambda _: [2, 2, 2, 2],
    "one positive": lambda _: [-1, 3, -2],
    "none positive": lambda _: [-1, 0, -2],
    "one channel": lambda _: [0.5],
    "tiny": lambda random: 1e-30 * random.standard_normal(16),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_selection(name: str, random: np.random.Generator) -> None:
    alpha = np.array(AVERAGES[name](random), np.float32)
    maps = random.standard_normal((len(alpha), 3, 4)).astype(np.float32)
    maps[::3] = 7.0
    maps[1::5] *= 1e-8
    maps[1::5] += 1.0  # flat, but for rounding

    def build(g: GraphBuilder, maps: ir.Value, average: ir.Value) -> list[ir.Value]:
        chosen = choose(g, maps, average, len(alpha))
        return [chosen.channels, chosen.selected]

    channels, selected = run(build, maps, alpha)
    expected = select_channels(alpha, "otsu").channels
    assert selected.tolist() == [len(expected)]
    assert channels.tolist() == [k for k in expected.tolist() if not is_flat(maps[[k]])[0]]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_scores(activation: str, random: np.random.Generator) -> None:
    logits = (30 * random.standard_normal((3, 7))).astype(np.float32)
    (found,) = run(lambda g, logits: [activate(g, logits, activation)], logits)
    np.testing.assert_allclose(found, activate_kernel(logits, activation), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(("source", "size"), [((5, 7), (12, 20)), ((1, 1), (6, 4)), ((9, 9), (5, 3)), ((6, 8), (6, 8))])
def test_upsampling(source: tuple[int, int], size: tuple[int, int], random: np.random.Generator) -> None:
    image = random.standard_normal(source)
    (found,) = run(lambda g, image: [upsample(g, image, source, size)], image)
    np.testing.assert_allclose(found, upsample_kernel(image, size), rtol=0, atol=1e-14)


def view_of(maps: NDArray[np.float32], masks: list[Array], size: tuple[int, int]) -> tuple[Array, bool]:
    def build(g: GraphBuilder, maps: ir.Value, *masks: ir.Value) -> tuple[ir.Value, ir.Value]:
        names = ("channels", "values", "scored", "minimum", "extent")
        return visualization_map(g, maps, Masks(**dict(zip(names, masks, strict=True))), (9, 5, 6), size)

    view, there = run(build, maps, *masks)
    return view, bool(there[0])


@pytest.mark.parametrize("scored", [4, 2, 0])
def test_visualization_map(scored: int, random: np.random.Generator) -> None:
    """Of the masks that were not scored, the map's own minimum is taken, and its extent plays no part."""
    maps, size = random.random((9, 5, 6)).astype(np.float32), (20, 18)
    channels = np.array([7, 2, 0, 5])
    values, own = random.random(4), maps[channels]
    minimum, extent = own.min(axis=(1, 2)).astype(np.float64), np.ones(4)
    minimum[:scored] += 0.01
    extent[:scored] = random.random(scored)
    found, there = view_of(maps, [channels, values, channels[:scored], minimum[:scored], extent[:scored]], size)
    assert there
    expected = visualization_map_kernel(own, values, minimum, extent, size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", [0.0, None])
def test_no_visualization_map(score: float | None, random: np.random.Generator) -> None:
    """Scores of 0, and no masks at all."""
    maps = random.random((9, 5, 6)).astype(np.float32)
    channels = np.array([], np.int64) if score is None else np.array([1, 4])
    none = np.zeros(0)
    _, there = view_of(maps, [channels, np.full(len(channels), score or 0.0), channels[:0], none, none], (20, 18))
    assert not there


@pytest.mark.parametrize("there", [(True, True, True), (False, True, True), (True, False, True), (False, False, False)])
def test_fusion(there: tuple[bool, ...], random: np.random.Generator) -> None:
    y, x = np.mgrid[:30, :40]
    views = [
        np.exp(-((x - 9 * k) ** 2 + (y - 15) ** 2) / (90 + 40 * k)) + 0.1 * random.random((30, 40)) for k in range(3)
    ]
    views = [(view - view.min()) / np.ptp(view) for view in views]
    flags = [np.array([flag]) for flag in there]

    def build(g: GraphBuilder, *values: ir.Value) -> list[ir.Value]:
        return [fuse(g, list(zip(values[:3], values[3:], strict=True)))]

    (found,) = run(build, *views, *flags)
    expected, _ = fuse_kernel([view if flag else None for view, flag in zip(views, there, strict=True)], "hard")
    np.testing.assert_allclose(found, np.zeros((30, 40)) if expected is None else expected, rtol=0, atol=1e-14)


def test_thresholds_at_the_edges_of_bins() -> None:
    """Multiples of 1/256 belong to the bin above, and 1 to the last."""
    values = np.array([0, 1, 2, 3, 128, 200, 200, 255, 256]).reshape(3, 3) / 256

    def build(g: GraphBuilder, *values: ir.Value) -> list[ir.Value]:
        return [fuse(g, [(value, g.constant(np.array([True]))) for value in values])]

    (found,) = run(build, np.ones((3, 3)) * np.linspace(0, 1, 9).reshape(3, 3), values)
    expected, _ = fuse_kernel([np.linspace(0, 1, 9).reshape(3, 3), values], "hard")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_thumbnails(random: np.random.Generator) -> None:
    maps = random.random((6, 5, 9)).astype(np.float32)
    for size in ((30, 36), (5, 40)):
        build = lambda g, maps, channels: [thumbnails_graph(g, maps, channels, (5, 9), size)]  # noqa: E731, B023
        (found,) = run(build, maps, np.array([4, 0, 3]))
        np.testing.assert_allclose(found, thumbnails(maps[[4, 0, 3]], size), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "count"), [(2, 1), (40, 15), (40, 39), (300, 200), (640, 560)])
def test_kriging(n: int, count: int, random: np.random.Generator) -> None:
    """Up to 128 masks are chosen one by one, variances summed over 256 of them, and estimates rest on 512 scores."""
    points = random.random((n, 9)) @ random.random((9, 49))
    kriging = Kriging(points)
    order = telling_first(kriging, n, count, count)
    scores = np.sin(points.sum(axis=1))[order]

    def build(g: GraphBuilder, points: ir.Value, most: ir.Value, scores: ir.Value) -> list[ir.Value]:
        process = Process.of(g, points)
        chosen = telling_first_graph(g, process, g.op("Shape", points, end=1), most)
        return [chosen, estimate(g, process, chosen, scores)]

    found, estimates = run(build, points, np.array([count]), scores)
    assert found.tolist() == order.tolist()
    np.testing.assert_allclose(estimates, kriging.estimate(order, scores), rtol=0, atol=1e-8)


def test_points_that_are_all_alike() -> None:
    points = np.ones((5, 49))

    def build(g: GraphBuilder, points: ir.Value, known: ir.Value, scores: ir.Value) -> list[ir.Value]:
        return [estimate(g, Process.of(g, points), known, scores)]

    known, scores = np.array([3, 1]), np.array([0.2, 0.6])
    (found,) = run(build, points, known, scores)
    np.testing.assert_allclose(found, Kriging(points).estimate(known, scores), rtol=0, atol=1e-9)


def test_masks_are_planned_in_proportion(random: np.random.Generator) -> None:
    """Layers with 5, 0 and 8 masks; of equal shares the deeper layer comes first."""
    layers = [CutPoint(name=f"l{k}", channels=9, height=4, width=4) for k in range(3)]
    maps = [random.random((9, 4, 4)).astype(np.float32) for _ in layers]
    channels = [random.permutation(9)[:count] for count in (5, 0, 8)]

    def build(g: GraphBuilder, *values: ir.Value) -> list[ir.Value]:
        found = plan(g, layers, values[:3], values[3:6], values[6], (8, 8))
        return [found.layers, found.channels, found.partial, found.order]

    numbers, chosen, partial, order = run(build, *maps, *channels, np.array([0]))
    right = interleave([5, 0, 8])
    assert list(zip(numbers, chosen, strict=True)) == [(layer, channels[layer][rank]) for layer, rank in right]
    assert (partial.tolist(), order.tolist()) == ([False], list(range(13)))
    for most in (13, 14, -1):
        assert run(build, *maps, *channels, np.array([most]))[3].tolist() == list(range(13))
    _, _, partial, order = run(build, *maps, *channels, np.array([6]))
    points = np.concatenate([thumbnails(maps[layer][[channels[layer][rank]]], (8, 8)) for layer, rank in right])
    assert (partial.tolist(), order.tolist()) == ([True], Kriging(points).order(6).tolist())
