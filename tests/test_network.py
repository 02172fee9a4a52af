"""The graphs that are opened when a method first needs them."""

import dataclasses
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.backends import OnnxRuntimeCpu, Session
from engine.bundle import load_bundle
from engine.errors import BundleError, OptionError
from engine.network import Network
from tests.tiny_cnn import photo_pixels


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "own.ada"))


def open_network(bundle: Path) -> Network:
    return Network(load_bundle(bundle), OnnxRuntimeCpu(threads=2))


@pytest.mark.parametrize(
    ("graph", "inputs"),
    [
        ("forward", [(None, 3, 24, 32)]),
        ("last_layer", [(1, 3, 24, 32), (None,)]),
        ("head", [(None, 16, 6, 8)]),
        ("head.grad", [(None, 16, 6, 8), (None, 5)]),
        ("block2.grad", [(None, 8, 24, 32), (None, 12, 12, 16)]),
        ("gradient", [(None, 3, 24, 32), (None,)]),
        ("full_gradient", [(None, 3, 24, 32), (None,)]),
    ],
)
def test_each_graph_by_its_name(tiny_bundle: Path, graph: str, inputs: list[tuple[int | None, ...]]) -> None:
    network = open_network(tiny_bundle)
    session = network.session(graph)
    assert [tensor.shape for tensor in session.inputs] == inputs
    assert session.runs_at_once == (2 if graph in ("forward", "head") else 1)
    assert network.session(graph) is session


@pytest.mark.parametrize(
    ("method", "file"),
    [("recipro-cam", "head.onnx"), ("layer-cam", "head.grad.onnx"), ("layer-cam", "weights.bin")],
)
def test_a_file_that_was_changed_after_loading(bundle: Path, method: str, file: str) -> None:
    """Another export may have taken the bundle's place: graphs of two models would give nonsense."""
    explainer = engine.load(bundle, threads=1)
    content = (bundle / file).read_bytes()
    (bundle / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    text = f"{bundle / file}: does not have the SHA-256 that manifest.json lists: it was changed, export it again"
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        explainer.explain(photo_pixels(), method=method)
    (bundle / file).write_bytes(content)
    assert explainer.explain(photo_pixels(), method=method).heatmap.any()


@pytest.mark.parametrize(
    ("method", "graph"),
    [
        ("gradient", "gradient"),
        ("smooth-grad", "gradient"),
        ("integrated-gradients", "gradient"),
        ("extremal-perturbation", "gradient"),
        ("full-grad", "full_gradient"),
    ],
)
def test_a_bundle_without_gradients_at_the_image(tiny_bundle: Path, method: str, graph: str) -> None:
    bundle = dataclasses.replace(load_bundle(tiny_bundle), no_gradient="a Sin has no rule")
    explainer = engine.Explainer(bundle, OnnxRuntimeCpu(threads=1))
    text = (
        f"{tiny_bundle}: has no {graph}.onnx, which this method needs: a Sin has no rule; choose a method that needs "
        "no gradient at the image"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        explainer.explain(photo_pixels(), method=method)
    assert explainer.explain(photo_pixels(), method="grad-cam").heatmap.max() == 1.0


def test_a_graph_of_another_form(bundle: Path) -> None:
    """The files are those of the manifest, and the manifest describes another head."""
    loaded = load_bundle(bundle)
    layers = (*loaded.layers[:-1], dataclasses.replace(loaded.layers[-1], channels=17))
    network = open_network(bundle)
    network._bundle = dataclasses.replace(loaded, layers=layers)
    with pytest.raises(BundleError, match=r"head\.onnx: inputs are float32 \[\?, 16, 6, 8\]; the manifest says "):
        network.session("head")


def test_threads_that_ask_at_once_share_one_session(tiny_bundle: Path) -> None:
    network = open_network(tiny_bundle)
    found: list[Session] = []
    threads = [threading.Thread(target=lambda: found.append(network.session("gradient"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(session) for session in found}) == 1


def test_the_head_follows_the_last_layer(tiny_bundle: Path) -> None:
    network = open_network(tiny_bundle)
    x = np.random.default_rng(0).normal(size=(1, 3, 24, 32)).astype(np.float32)
    logits, _, *rest = network.session("tapped").run([x, np.array([0])])
    (again,) = network.session("head").run([rest[2]])
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-6)


def test_a_precision_of_which_there_is_nothing(tiny_bundle: Path) -> None:
    with pytest.raises(OptionError, match=r"^precision is 'half'; expected one of float32, int8 on this device$"):
        engine.load(tiny_bundle, precision="half")
    text = (
        f"{tiny_bundle}: has no forward.int8.onnx, which precision 'int8' needs; export the model again with --int8 "
        "--calibrate PHOTOS"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        engine.load(tiny_bundle, precision="int8")
