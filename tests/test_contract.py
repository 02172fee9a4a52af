"""Graphs that are whole and hashed, but not those that the manifest describes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine.backends import OnnxRuntimeCpu, Tensor
from engine.bundle import seal, sha256_of
from engine.contract import expect_contract
from engine.errors import BundleError
from tests.tiny_cnn import photo_pixels

IMAGE = "float32 [?, 3, 24, 32]"
TAPPED = (
    "float32 [1, 5], int64 [?], float32 [1, 8, 24, 32], float32 [1, 12, 12, 16], float32 [1, 16, 6, 8], "
    "float32 [?, 8], float32 [?, 12], float32 [?, 16]"
)
REMEDY = "they belong to different exports, export the model again"


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.ada"))


def edit(bundle: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    for name, facts in manifest["files"].items():
        facts.update(sha256=sha256_of(bundle / name), size_bytes=(bundle / name).stat().st_size)
    (bundle / "manifest.json").write_bytes(seal(manifest))


def refuses(bundle: Path, text: str) -> None:
    with pytest.raises(BundleError, match=f"^{re.escape(f'{bundle}: {text}: {REMEDY}')}$"):
        engine.load(bundle, threads=1)


def test_another_image_size(bundle: Path) -> None:
    edit(bundle, lambda manifest: (manifest["input"].update(height=25), manifest.update(preprocess=None)))
    refuses(bundle, f"forward.onnx: inputs are {IMAGE}; the manifest says float32 [?, 3, 25, 32]")


def test_another_number_of_classes(bundle: Path) -> None:
    edit(bundle, lambda manifest: (manifest["output"].update(classes=10**12), manifest.update(labels=None)))
    refuses(bundle, "forward.onnx: outputs are float32 [?, 5]; the manifest says float32 [?, 1000000000000]")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda layers: layers.pop(), "float32 [1, 5], int64 [?], float32 [1, 8, 24, 32], float32 [1, 12, 12, 16], "
         "float32 [?, 8], float32 [?, 12]"),
        (lambda layers: layers[1].update(channels=13), TAPPED.replace("12, 12, 16", "13, 12, 16").replace(
            "[?, 12]", "[?, 13]")),
        (lambda layers: layers[2].update(width=9), TAPPED.replace("6, 8]", "6, 9]")),
    ],
    ids=["one less", "channels", "width"],
)  # fmt: skip
def test_other_layers(bundle: Path, change: Callable[[Any], object], said: str) -> None:
    def change_layers(manifest: Any) -> None:
        change(manifest["layers"])
        del manifest["graphs"]["blocks"][len(manifest["layers"]) + 1 :]

    edit(bundle, change_layers)
    refuses(bundle, f"tapped.onnx: outputs are {TAPPED}; the manifest says {said}")


def test_graphs_that_changed_places(bundle: Path) -> None:
    (bundle / "forward.onnx").rename(bundle / "other")
    (bundle / "tapped.onnx").rename(bundle / "forward.onnx")
    (bundle / "other").rename(bundle / "tapped.onnx")
    edit(bundle, lambda _: None)
    refuses(bundle, f"forward.onnx: inputs are float32 [1, 3, 24, 32], int64 [?]; the manifest says {IMAGE}")


def test_a_tapped_graph_without_targets(bundle: Path) -> None:
    loaded = engine.load(bundle, threads=1).bundle
    forward = OnnxRuntimeCpu(threads=1).open(loaded.forward)
    text = f"{bundle}: tapped.onnx: inputs are {IMAGE}; the manifest says float32 [1, 3, 24, 32], int64 [?]: {REMEDY}"
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        expect_contract(loaded, forward, forward)


def test_a_tapped_graph_that_explains_another_class(tiny_bundle: Path) -> None:
    explainer = engine.load(tiny_bundle, threads=1)
    tapped = explainer._network.session("tapped")

    class Forged:
        def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
            logits, classes, *rest = tapped.run(inputs)
            return [logits, classes - 1, *rest]

    explainer._network._sessions["tapped"] = Forged()
    text = (
        "tapped.onnx: says that it explained the classes [2, -1]; expected [3, 0]: it is not what python -m "
        "engine.export writes, export the model again"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        explainer.explain(photo_pixels(), [3, None])


def test_tensors_as_text() -> None:
    assert str(Tensor("float32", (None, 3, 24, 32))) == IMAGE
    assert str(Tensor("int64", ())) == "int64 []"
