"""Graphs that are whole and hashed, but not those that the manifest describes."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import engine
from engine.backends import OnnxRuntimeCpu, Session, Tensor
from engine.bundle import Bundle, seal, sha256_of
from engine.contract import (
    expect_companion,
    expect_forward,
    expect_full_gradient,
    expect_gradient,
    expect_head,
    expect_last_layer,
    expect_tapped,
)
from engine.errors import BundleError
from engine.export import export
from tests.tiny_cnn import photo_pixels, tiny_cnn

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
        expect_tapped(loaded, forward)


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


CHECKS: dict[str, Callable[[Bundle, Session], None]] = {
    "forward.onnx": expect_forward,
    "tapped.onnx": expect_tapped,
    "last_layer.onnx": expect_last_layer,
    "head.onnx": expect_head,
    "gradient.onnx": expect_gradient,
    "full_gradient.onnx": expect_full_gradient,
    "block1.grad.onnx": partial(expect_companion, name="block1"),
    "block2.grad.onnx": partial(expect_companion, name="block2"),
    "head.grad.onnx": partial(expect_companion, name="head"),
}
INTERFACES = {
    "last_layer.onnx": (
        "float32 [1, 3, 24, 32], int64 [?]",
        "float32 [1, 5], int64 [?], float32 [1, 16, 6, 8], float32 [?, 16]",
    ),
    "head.onnx": ("float32 [?, 16, 6, 8]", "float32 [?, 5]"),
    "gradient.onnx": (f"{IMAGE}, int64 [?]", f"float32 [?, 5], {IMAGE}"),
    "full_gradient.onnx": (f"{IMAGE}, int64 [?]", f"float32 [?, 5], {IMAGE}, float32 [?, 8, 24, 32], float32 [?, 5]"),
    "block1.grad.onnx": (f"{IMAGE}, float32 [?, 8, 24, 32]", f"{IMAGE}, float32 [?, 3]"),
    "block2.grad.onnx": (
        "float32 [?, 8, 24, 32], float32 [?, 12, 12, 16]",
        "float32 [?, 8, 24, 32], float32 [?, 8]",
    ),
    "head.grad.onnx": ("float32 [?, 16, 6, 8], float32 [?, 5]", "float32 [?, 16, 6, 8], float32 [?, 16]"),
}


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the tiny CNN with a bias in its first Conv and in its Gemm."""
    model = tiny_cnn()
    for op, size in (("Conv", 8), ("Gemm", 5)):
        layer = next(entry for entry in model.graph.node if entry.op_type == op)
        layer.input.append(f"bias of {op}")
        model.graph.initializer.append(numpy_helper.from_array(np.full(size, 0.1, np.float32), f"bias of {op}"))
    folder = tmp_path_factory.mktemp("biased")
    onnx.save(model, folder / "biased.onnx")
    return export(folder / "biased.onnx", folder / "biased.ada", activation="softmax").bundle


@pytest.mark.parametrize("graph", CHECKS)
def test_every_graph_is_what_the_manifest_says(graph: str, biased: Bundle) -> None:
    CHECKS[graph](biased, session=OnnxRuntimeCpu(threads=1).open(biased.path / graph))


@pytest.mark.parametrize("graph", INTERFACES)
def test_a_graph_that_takes_or_gives_something_else(graph: str, biased: Bundle) -> None:
    @dataclass(frozen=True)
    class Forged:
        inputs: Sequence[Tensor]
        outputs: Sequence[Tensor]

    right = OnnxRuntimeCpu(threads=1).open(biased.path / graph)
    for what, place in (("inputs", 0), ("outputs", 1)):
        sides = [right.inputs, right.outputs]
        sides[place] = [*sides[place][:-1], Tensor("float32", (7,))]
        found = ", ".join(map(str, sides[place]))
        text = f"{biased.path}: {graph}: {what} are {found}; the manifest says {INTERFACES[graph][place]}: {REMEDY}"
        with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
            CHECKS[graph](biased, session=Forged(*sides))


def test_tensors_as_text() -> None:
    assert str(Tensor("float32", (None, 3, 24, 32))) == IMAGE
    assert str(Tensor("int64", ())) == "int64 []"
