"""The graphs of a bundle, when a method first needs them."""

import dataclasses
import re
from pathlib import Path

import pytest

import engine
from engine.backends import OnnxRuntimeCpu, Session
from engine.bundle import load_bundle
from engine.errors import BundleError
from engine.network import Network
from tests.tiny_cnn import photo_pixels

GRAPHS = ["head", "head.grad", "block1.grad", "block3.grad", "gradient", "full_gradient"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_is_opened_once(tiny_bundle: Path, graph: str) -> None:
    network = Network(load_bundle(tiny_bundle), OnnxRuntimeCpu(threads=1))
    assert network.session(graph) is network.session(graph)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_that_is_another(tiny_bundle: Path, graph: str) -> None:
    class Confused(OnnxRuntimeCpu):
        def open(self, graph: Path | bytes, *, many_runs: bool = False) -> Session:
            file = graph.parent if isinstance(graph, Path) else Path()
            known = graph in (file / "tapped.onnx", file / "forward.onnx")
            return super().open(graph if known else file / "block2.onnx", many_runs=many_runs)

    network = Network(load_bundle(tiny_bundle), Confused(threads=1))
    text = f"{tiny_bundle}: {graph}.onnx: inputs are float32 [?, 8, 24, 32]; the manifest says "
    with pytest.raises(BundleError, match=f"^{re.escape(text)}.*: they belong to different exports"):
        network.session(graph)


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
