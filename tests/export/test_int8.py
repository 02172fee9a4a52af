"""The int8 scorer from the command line to the result: what is written, when it is refused, and what it changes."""

import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import engine
from engine.agreement import Agreement, measure_agreement
from engine.bundle import load_bundle
from engine.errors import BundleError, ImageError, ModelError, OptionError
from engine.export import export, int8
from engine.methods import METHODS
from engine.pace import Pace
from tests.calibrated import write_photos
from tests.test_contract import edit
from tests.tiny_cnn import photo_pixels, tiny_cnn, write_tiny_cnn


@pytest.fixture
def own(int8_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_bundle, tmp_path / "own.ada"))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Any]:
    """Export the tiny CNN with these options."""
    model, preprocess, labels = write_tiny_cnn(tmp_path)

    def call(output: str = "made.ada", **options: Any) -> Any:
        given = {"preprocess": preprocess, "labels": labels, "activation": "softmax"} | options
        return export(model, tmp_path / output, **given)

    return call


def test_what_the_manifest_says(int8_bundle: Path) -> None:
    bundle = load_bundle(int8_bundle)
    assert bundle.int8 == int8_bundle / "forward.int8.onnx"
    manifest: Any = bundle.manifest
    assert manifest["graphs"]["int8"] == "forward.int8.onnx"
    record = manifest["int8"]
    assert record | {"agreement": None} == {
        "method": "qdq-static-per-channel-u8s8",
        "photos": 8,
        "images": 102,
        "convolutions": 2,
        "float32_convolutions": ["conv1"],
        "agreement": None,
        "bounds": {"spearman": 0.98, "spearman_worst": 0.9},
        "usable": True,
    }
    assert bundle.int8_disagreement is None
    photos = sorted((int8_bundle.parent / "photos").iterdir())
    with engine.load(int8_bundle) as reference, engine.load(int8_bundle, precision="int8") as other:
        assert measure_agreement(reference, other, photos).report() == record["agreement"]
    assert record["agreement"]["photos"] == 8
    assert 0.99 <= record["agreement"]["spearman_worst"] < 1


def test_large_integer_weights_lie_in_the_weight_file(int8_bundle: Path) -> None:
    graph = onnx.load(int8_bundle / "forward.int8.onnx", load_external_data=False).graph
    large = {entry.name: entry for entry in graph.initializer if entry.data_location == onnx.TensorProto.EXTERNAL}
    integers = [entry for entry in large.values() if entry.data_type == onnx.TensorProto.INT8]
    assert [list(entry.dims) for entry in integers] == [[16, 12, 3, 3]]
    assert {entry.value for item in integers for entry in item.external_data if entry.key == "location"} == {
        "weights.bin"
    }
    onnx.checker.check_model(str(int8_bundle / "forward.int8.onnx"), full_check=True)


def test_only_the_scores_of_masks_are_int8(int8_bundle: Path) -> None:
    photo = photo_pixels()
    with engine.load(int8_bundle) as explainer:
        exact = explainer.explain(photo)
    with engine.load(int8_bundle, precision="int8") as explainer:
        result = explainer.explain(photo)
        assert explainer.explain(photo).heatmap.tobytes() == result.heatmap.tobytes()
    assert (result.target, result.class_score, result.precision) == (exact.target, exact.class_score, "int8")
    assert result.evaluations == {"tapped": 1, "forward.int8": exact.scored}
    assert exact.evaluations == {"tapped": 1, "forward": exact.scored}
    for layer, right in zip(result.layers, exact.layers, strict=True):
        np.testing.assert_array_equal(layer.selected_channels, right.selected_channels)
        assert layer.threshold == right.threshold
        assert 0 < np.nanmax(np.abs(layer.scores - right.scores)) < 0.03


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_methods_that_score_no_mask_are_float32(int8_bundle: Path, method: str) -> None:
    options = {"iterations": 2} if method == "extremal-perturbation" else {}
    with engine.load(int8_bundle, precision="int8") as explainer:
        result = explainer.explain(photo_pixels(), method=method, **options)
    scoring = {"ada-sise", "sise", "rise", "score-cam", "group-cam"}
    assert result.precision == ("int8" if method in scoring else "float32")
    assert result.report()["precision"] == result.precision
    assert result.how.endswith(" · int8") is (method in scoring)


def test_maps_in_the_place_of_late_ones_are_float32(int8_bundle: Path) -> None:
    with engine.load(int8_bundle, precision="int8") as explainer:
        late = explainer.explain(photo_pixels(), deadline_ms=1e-6)
        assert (late.method, late.precision) == ("grad-cam", "float32")
        for _ in range(60):
            explainer._costs.note("row of forward.int8", 1e6)
        unscored = explainer.explain(photo_pixels(), deadline_ms=600_000)
    assert (unscored.method, unscored.scored, unscored.precision) == ("ada-sise", 0, "float32")


def test_a_class_for_which_no_mask_was_scored_is_float32(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "room", lambda _, started, planned: min(1, planned) - started)
    with engine.load(int8_bundle, precision="int8") as explainer:
        found = explainer.explain(photo_pixels(), [0, 4], deadline_ms=600_000)
    assert [(result.scored, result.precision) for result in found] == [(1, "int8"), (0, "float32")]


def test_the_same_bytes_twice_and_nothing_left(
    tiny: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    int8_bundle: Path,
) -> None:
    """No temporary file stays, and what the quantizer has to say reaches nobody."""
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    steps: list[str] = []
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        report = tiny(int8=True, calibrate=[int8_bundle.parent / "photos"], step=steps.append)
    assert [*scratch.iterdir()] == []
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert report.notes == ()
    names = {file.name for file in report.bundle.path.iterdir()}
    assert names == {file.name for file in int8_bundle.iterdir()}
    for name in names:
        assert (report.bundle.path / name).read_bytes() == (int8_bundle / name).read_bytes(), name
    assert steps[-11:-8] == ["int8: masks of photo 8 of 8", "int8: quantize", "int8: agreement, photo 1 of 8"]
    assert "bundle" in steps


def test_the_quantizer_is_imported_for_int8_only(int8_bundle: Path) -> None:
    code = (
        "import sys, engine, engine.export, engine.__main__; engine.load(sys.argv[1], precision='int8');"
        "print([name for name in sys.modules if name.startswith('onnxruntime.quantization')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, int8_bundle], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("figure", "value"), [("spearman", 0.9799), ("spearman_worst", 0.8999)])
def test_below_a_bound_it_is_kept_and_refused(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, int8_bundle: Path, figure: str, value: float
) -> None:
    def measured(*arguments: Any, **options: Any) -> Agreement:
        return replace(measure_agreement(*arguments, **options), **{figure: value})

    monkeypatch.setattr(int8, "measure_agreement", measured)
    report = tiny(int8=True, calibrate=[int8_bundle.parent / "photos"])
    record = report.bundle.manifest["int8"]
    assert (record["usable"], record["agreement"][figure]) == (False, value)
    found = record["agreement"]
    figures = (
        f"its heatmaps and those of float32 have a Spearman correlation of {found['spearman']:.4f} in the median and "
        f"{found['spearman_worst']:.4f} at worst on 8 calibration photos; expected 0.98 and 0.9 at least"
    )
    assert report.notes == (
        f"forward.int8.onnx is not usable, and precision int8 is refused: {figures}; calibrate on more or other photos",
    )
    text = (
        f"{report.bundle.path / 'forward.int8.onnx'}: is not usable: {figures}; export the model again with more or "
        "other photos to calibrate on, of the kind that the model sees, or take precision 'float32'"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        engine.load(report.bundle.path, precision="int8")
    assert engine.load(report.bundle.path).explain(photo_pixels()).precision == "float32"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"int8": True},
            OptionError,
            "int8 is asked for without photos to calibrate on; name some, or a folder, with --calibrate",
        ),
        (
            {"calibrate": [Path("cat.jpg")]},
            OptionError,
            "cat.jpg: photos to calibrate on serve int8 only; expected --int8 with --calibrate",
        ),
        (
            {"int8": True, "calibrate": [Path("photos")], "preprocess": None},
            OptionError,
            "int8 is calibrated on photos, and nothing says how they become the input; expected --preprocess",
        ),
        (
            {"int8": True, "calibrate": [Path("photos/00.png"), Path("photos/01.png")]},
            OptionError,
            "2 photos are given to calibrate on, without copies and photos of one colour; expected 8 at least, of the "
            "kind that the model will see: name more with --calibrate",
        ),
        (
            {"int8": True, "calibrate": [Path("copies"), Path("photos/00.png")]},
            OptionError,
            "1 photo is given to calibrate on, without copies and photos of one colour; expected 8 at least",
        ),
        (
            {"int8": True, "calibrate": [Path("photos"), Path("gone.png")]},
            ImageError,
            "gone.png: cannot be read as a photo: No such file or directory",
        ),
        (
            {"int8": True, "calibrate": [Path("empty")]},
            ImageError,
            "empty: the folder holds no photo; expected files such as .jpg or .png",
        ),
        (
            {"int8": True, "calibrate": [Path("photos"), Path("broken.png")]},
            ImageError,
            "broken.png: is in no format that is read",
        ),
    ],
)
def test_what_cannot_be_calibrated(
    tiny: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[engine.EngineError],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = write_photos(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (copies := tmp_path / "copies").mkdir()
    for number in range(9):
        Image.open(photos / "00.png").save(copies / f"{number}.bmp")
        Image.new("RGB", (60, 60), (number, 0, 0)).save(copies / f"plain{number}.png")
    steps: list[str] = []
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        tiny(**options, step=steps.append)
    assert "import" not in steps  # it is said before anything is compiled
    assert not [*tmp_path.glob("*.ada"), *tmp_path.glob(".*.ada*")]


def test_photos_that_give_no_mask(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Photos of which the preprocessing leaves zeros: every feature map is flat."""
    folder = write_photos(tmp_path / "photos")
    preprocess = tmp_path / "zero.json"
    settings = {"resize": 36, "interp": "bilinear", "scale": 1e30, "mean": [0.0] * 3, "std": [1e30] * 3}
    preprocess.write_text(json.dumps(settings))
    text = "none of the 8 photos to calibrate on gives a mask; expected photos that the model answers to"
    with pytest.raises(ImageError, match=f"^{re.escape(text)}$"):
        tiny(int8=True, calibrate=[folder], preprocess=preprocess)


def test_a_model_that_is_quantized_already(tmp_path: Path, int8_bundle: Path) -> None:
    from tests.forms import write_quantized

    model, preprocess, _ = write_tiny_cnn(tmp_path)
    images = [np.random.default_rng(0).normal(size=(1, 3, 24, 32)).astype(np.float32)]
    quantized = write_quantized(model, images, tmp_path)
    text = f"{quantized}: is quantized already, so that its forward.onnx scores in int8; leave out --int8"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        export(
            quantized,
            tmp_path / "made.ada",
            preprocess=preprocess,
            activation="softmax",
            int8=True,
            calibrate=[int8_bundle.parent / "photos"],
        )


def test_a_model_with_nothing_to_quantize(tmp_path: Path, int8_bundle: Path) -> None:
    from tests.export.networks import network, node, weight

    random = np.random.default_rng(0)
    (tmp_path / "preprocess.json").write_text(
        json.dumps({"resize": 10, "interp": "bilinear", "mean": [0.5] * 3, "std": [0.2] * 3})
    )
    onnx.save(
        network(
            [
                node("Conv", "x w", "c"),
                node("Relu", "c", "r"),
                node("GlobalAveragePool", "r", "g"),
                node("Flatten", "g", "f"),
                node("Gemm", "f v", "y"),
            ],
            {"w": weight(random, 4, 3, 3, 3), "v": weight(random, 4, 5)},
        ),
        tmp_path / "shallow.onnx",
    )
    with pytest.raises(
        ModelError, match=r"shallow\.onnx: no convolution of the model can be quantized: the first stays float32"
    ):
        export(
            tmp_path / "shallow.onnx",
            tmp_path / "made.ada",
            preprocess=tmp_path / "preprocess.json",
            activation="softmax",
            int8=True,
            calibrate=[int8_bundle.parent / "photos"],
        )


def test_one_logit_and_a_sigmoid(tmp_path: Path, int8_bundle: Path) -> None:
    """The forward graph makes two logits of it at its end, outside of what is quantized."""
    model = tiny_cnn()
    (head,) = (entry for entry in model.graph.initializer if entry.name == "head")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head)[:1], "head"))
    model.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["score"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1]))
    onnx.save(model, tmp_path / "one.onnx")
    _, preprocess, _ = write_tiny_cnn(tmp_path)
    photos = int8_bundle.parent / "photos"
    bundle = export(
        tmp_path / "one.onnx", tmp_path / "one.ada", preprocess=preprocess, int8=True, calibrate=[photos]
    ).bundle
    graph = onnx.load(bundle.path / "forward.int8.onnx").graph
    made = {name: entry for entry in graph.node for name in entry.output}
    last = made[graph.output[0].name]
    assert (last.op_type, [made[name].op_type for name in last.input]) == ("Concat", ["Neg", "Gemm"])
    with engine.load(bundle.path) as reference, engine.load(bundle.path, precision="int8") as other:
        for photo in photos.iterdir():
            for right, result in zip(reference.explain(photo, [0, 1]), other.explain(photo, [0, 1]), strict=True):
                for a, b in zip(right.layers, result.layers, strict=True):
                    np.testing.assert_allclose(b.scores, a.scores, atol=0.03)


def test_without_int8_the_precision_is_refused(tiny_bundle: Path) -> None:
    assert load_bundle(tiny_bundle).int8 is None
    assert load_bundle(tiny_bundle).int8_disagreement is None
    text = (
        f"{tiny_bundle}: has no forward.int8.onnx, which precision 'int8' needs; export the model again with --int8 "
        "--calibrate PHOTOS"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        engine.load(tiny_bundle, precision="int8")


@pytest.mark.parametrize("gone", ["graph", "record"])
def test_a_graph_without_its_record(own: Path, gone: str) -> None:
    def take(manifest: Any) -> None:
        if gone == "graph":
            manifest["graphs"]["int8"] = None
        else:
            manifest["int8"] = None

    edit(own, take)
    named = None if gone == "graph" else "forward.int8.onnx"
    text = (
        f"{own / 'manifest.json'}: $.graphs.int8 is {named!r}, and $.int8 does not fit that; expected a graph and its "
        "record, or neither: export the model again"
    )
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        load_bundle(own)


def test_an_int8_graph_of_another_model(own: Path, tiny_bundle: Path) -> None:
    shutil.copy(tiny_bundle / "head.onnx", own / "forward.int8.onnx")
    edit(own, lambda _: None)
    with pytest.raises(BundleError, match=r"own\.ada: forward\.int8\.onnx: inputs are float32 \[\?, 16, 6, 8\]; the "):
        engine.load(own, precision="int8")
