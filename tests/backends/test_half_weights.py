"""Weights in half precision that keep their sums."""

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine
from engine.backends.half import TYPES, to_float16, with_rounded_weights
from engine.backends.half_weights import keep_sums, round_to_half
from engine.backends.onnxruntime_cpu import session_options
from tests.models import MODELS, PHOTOS, exported


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> np.dtype:
    return TYPES[request.param]


def neighbours(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The numbers of the type that are next to each, [2, n]: found among all 65,536 of them."""
    grid = np.sort(np.arange(1 << 16, dtype=np.uint16).view(kind).astype(np.float32))
    grid = np.unique(grid[~np.isnan(grid)])
    return np.array([grid[np.searchsorted(grid, values, "right") - 1], grid[np.searchsorted(grid, values, "left")]])


def test_every_weight_goes_to_a_neighbour(kind: np.dtype, random: np.random.Generator) -> None:
    groups = (random.standard_normal((50, 9)) * 10.0 ** random.uniform(-9, 3, (50, 9))).astype(np.float32)
    groups[0] = groups[0].astype(kind)  # nothing to round
    groups[1, :4] = 0, -0.0, 1, -65504
    groups[2, :2] = 65510, 65504
    found = keep_sums(groups, kind)
    below, above = neighbours(groups, kind)
    assert ((found == below) | (found == above)).all()
    np.testing.assert_array_equal(found[0], groups[0])


def test_sums_are_kept(kind: np.dtype, random: np.random.Generator) -> None:
    """Never worse than by the nearest numbers, far better as a rule, and no better than the best of all 512 ways."""
    groups = random.standard_normal((100, 9)).astype(np.float32)
    pairs = neighbours(groups, kind).astype(np.float64)
    ways = np.array(list(product([0, 1], repeat=9)))
    sums = np.take_along_axis(pairs.transpose(1, 2, 0)[:, None], ways[None, :, :, None], 3).sum((2, 3))
    exact = groups.sum(1, dtype=np.float64)
    best = np.abs(sums - exact[:, None]).min(1)
    nearest = np.abs(groups.astype(kind).astype(np.float64).sum(1) - exact)
    found = np.abs(keep_sums(groups, kind).sum(1, dtype=np.float64) - exact)
    assert (found <= nearest).all()
    assert (found >= best * (1 - 1e-9)).all()
    assert (found**2).mean() < 0.25**2 * (nearest**2).mean()


def test_which_weights(random: np.random.Generator) -> None:
    """Kernels of several pixels, filters of one, rows or columns of products; biases and what else there is stay."""
    sizes = {"a": (40, 3, 3, 3), "b": (30, 24, 1, 1), "c": (30, 24), "d": (24, 30), "e": (30, 27), "f": (40, 3, 7)}
    sizes |= {"g": (2, 27, 30), "bias": (40,), "one": (27,), "none": (27, 0)}
    values = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["1"]),
        helper.make_node("Conv", ["1", "b"], ["2"]),
        helper.make_node("Gemm", ["2", "c"], ["3"], transB=1),
        helper.make_node("Gemm", ["2", "d"], ["4"], transB=0),
        helper.make_node("MatMul", ["3", "e"], ["5"]),
        helper.make_node("Conv", ["x", "f"], ["6"]),
        helper.make_node("MatMul", ["5", "g"], ["8"]),
        helper.make_node("MatMul", ["5", "one"], ["9"]),
        helper.make_node("MatMul", ["5", "none"], ["10"]),
        helper.make_node("Conv", ["x", "computed"], ["7"]),
    ]
    held = [numpy_helper.from_array(value, name) for name, value in values.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], held))
    round_to_half(model, np.float16)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("bias", "one", "none"):
        np.testing.assert_array_equal(found.pop(name), values[name])
    axes = {"a": (2, 3), "b": (1, 2, 3), "c": (1,), "d": (0,), "e": (0,), "f": (2,), "g": (1,)}
    for name, own in found.items():
        assert own.dtype == np.float32
        np.testing.assert_array_equal(own, own.astype(np.float16))
        assert np.abs(own - values[name]).max() < 2e-3
        sums, exact = (each.sum(axes[name], dtype=np.float64) for each in (own, values[name]))
        nearest = values[name].astype(np.float16).sum(axes[name], dtype=np.float64)
        assert ((sums - exact) ** 2).mean() < 0.3**2 * ((nearest - exact) ** 2).mean()


@pytest.mark.parametrize("precision", TYPES)
def test_what_a_runtime_is_given(precision: str, tiny_bundle: Path) -> None:
    """The weights rounded in that precision, as they are."""
    graph = tiny_bundle / "forward.onnx"
    expected = onnx.load(str(graph))
    round_to_half(expected, TYPES[precision])
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in expected.graph.initializer}
    given = [with_rounded_weights(graph, precision)]
    if precision == "float16":
        given += [to_float16(graph, images=images) for images in (True, False)]
    filters = {node.input[1] for node in expected.graph.node if node.op_type in ("Conv", "Gemm")}
    assert len(filters) >= 3
    for content in given:
        found = {own.name: numpy_helper.to_array(own) for own in onnx.load_from_string(content).graph.initializer}
        for name in filters:
            np.testing.assert_array_equal(found[name].astype(np.float32), weights[name])
            np.testing.assert_array_equal(weights[name], weights[name].astype(TYPES[precision]).astype(np.float32))


def test_too_many_weights(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> bytes:
        raise ValueError("Failed to serialize proto")

    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", refuse)
    text = (
        r"forward\.onnx: has too many weights for half precision, .* 2 GiB: Failed to serialize proto; take precision"
    )
    with pytest.raises(engine.BackendError, match=text):
        with_rounded_weights(tiny_bundle / "forward.onnx", "float16")


def test_weights_beyond_the_range(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(str(tiny_bundle / "forward.onnx"))
    first = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == first)
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[5] = -70000
    tensor.CopyFrom(numpy_helper.from_array(weights, first))
    assert tensor.data_type == TensorProto.FLOAT
    onnx.save(model, str(tmp_path / "forward.onnx"))
    with pytest.raises(engine.BackendError, match=rf"forward\.onnx: {first} holds -70000, .* range of float16; "):
        to_float16(tmp_path / "forward.onnx", images=True)


def test_logits_of_real_networks(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of photos and of darker ones, as masked images are: nearer to float32 than with the nearest weights."""
    ratios = []
    for name, photos in MODELS.items():
        explainer = exported(assets, name, tmp_path_factory.getbasetemp()).explainer
        images = np.concatenate([explainer.probe(assets / "images" / photo).image for photo in PHOTOS[photos]])
        images = np.concatenate([images, 0.1 * images, images * np.linspace(0, 1, 224, dtype=np.float32)])
        model = onnx.load(str(explainer.bundle.forward))
        logits = [_run(model, images)]
        for way in (_nearest, lambda model: round_to_half(model, np.float16)):
            other = onnx.ModelProto()
            other.CopyFrom(model)
            way(other)
            logits.append(_run(other, images))
        exact, nearest, kept = logits
        ratios.append(np.sqrt(((kept - exact) ** 2).mean() / ((nearest - exact) ** 2).mean()))
        assert ratios[-1] < 1
    assert np.exp(np.mean(np.log(ratios))) < 0.7
    assert ratios[list(MODELS).index("mobilenet-v2")] < 0.4


def _nearest(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim >= 2:
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16).astype(np.float32), tensor.name))


def _run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), session_options(threads=2))
    (logits,) = session.run(None, {model.graph.input[0].name: images})
    return np.asarray(logits, np.float64)
