import dataclasses
import json
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

import engine
from engine.errors import OptionError
from engine.explanation import Explanation, LayerReport
from engine.image import overlay
from tests.tiny_cnn import photo_pixels

HEATMAP = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
LAYERS = (
    LayerReport(
        name="relu1",
        channels=4,
        positive=3,
        selected=3,
        flat=1,
        scored=2,
        threshold=0.25,
        fusion_threshold=None,
        selected_channels=np.array([2, 0, 3]),
        scores=np.array([0.5, np.nan, 0.125]),
    ),
    LayerReport(
        name="relu2",
        channels=8,
        positive=0,
        selected=0,
        flat=0,
        scored=0,
        threshold=None,
        fusion_threshold=None,
        selected_channels=np.empty(0, np.int64),
        scores=np.empty(0),
    ),
)


def make(**changes: object) -> Explanation:
    values: dict[str, object] = {
        "heatmap": HEATMAP,
        "target": 3,
        "label": "espresso",
        "class_score": 0.87654,
        "activation": "softmax",
        "rule": "otsu",
        "mu": 0.0,
        "fusion": "hard",
        "baseline": (1.0, 2.0, 3.0),
        "layers": LAYERS,
        "max_masks": None,
        "deadline_ms": None,
        "scored": 2,
        "scorable": 2,
        "complete": True,
        "timings_ms": {"tap": 1.5, "total": 12.49},
        "warnings": ("layer 'relu2' gave no mask: no feature map was selected",),
        "picture": Image.fromarray(photo_pixels(40, 54)),
    }
    return Explanation(**{**values, **changes})  # type: ignore[arg-type]


REPORT = {
    "target": 3,
    "label": "espresso",
    "class_score": 0.87654,
    "activation": "softmax",
    "rule": "otsu",
    "mu": 0.0,
    "fusion": "hard",
    "baseline": [1.0, 2.0, 3.0],
    "layers": [
        {
            "name": "relu1",
            "channels": 4,
            "positive": 3,
            "selected": 3,
            "flat": 1,
            "scored": 2,
            "threshold": 0.25,
            "fusion_threshold": None,
            "selected_channels": [2, 0, 3],
            "scores": [0.5, None, 0.125],
        },
        {
            "name": "relu2",
            "channels": 8,
            "positive": 0,
            "selected": 0,
            "flat": 0,
            "scored": 0,
            "threshold": None,
            "fusion_threshold": None,
            "selected_channels": [],
            "scores": [],
        },
    ],
    "max_masks": None,
    "deadline_ms": None,
    "scored": 2,
    "scorable": 2,
    "complete": True,
    "timings_ms": {"tap": 1.5, "total": 12.49},
    "warnings": ["layer 'relu2' gave no mask: no feature map was selected"],
}


def strict_json(report: object) -> object:
    """Through JSON and back; NaN is no JSON."""
    return json.loads(json.dumps(report, allow_nan=False))


def test_str() -> None:
    assert str(make()) == "espresso (3): score 0.877, 2 masks, 12 ms"
    assert str(make(label=None, class_score=0.0)) == "class 3: score 0.000, 2 masks, 12 ms"
    assert str(make(scorable=7, complete=False)) == "espresso (3): score 0.877, 2 of 7 masks, 12 ms"


def test_name() -> None:
    assert make().name == "espresso (3)"
    assert make(label=None).name == "class 3"


def test_repr_leaves_the_images_out() -> None:
    assert "picture" not in repr(make())
    assert "visualization_maps" not in repr(make())


def test_report_in_json() -> None:
    assert strict_json(make().report()) == REPORT


def test_report_says_everything_but_the_images() -> None:
    names = {field.name for field in dataclasses.fields(Explanation)}
    assert set(make().report()) == names - {"heatmap", "picture", "visualization_maps"}
    (first, _) = LAYERS
    assert set(first.as_json()) == {field.name for field in dataclasses.fields(LayerReport)}


def test_a_report_is_the_callers_to_change() -> None:
    explanation = make()
    report = explanation.report()
    report["timings_ms"]["total"] = 0.0  # type: ignore[index]
    report["layers"][0]["selected_channels"].clear()  # type: ignore[index]
    assert strict_json(explanation.report()) == REPORT


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "positive", "mu": 0.25, "baseline": (1, 2, 3)},
        {"fusion": "soft", "baseline": "blur", "activation": "sigmoid"},
        {"rule": "all", "target": np.int64(1), "visualization_maps": True},
    ],
)
def test_a_real_report_in_json(tiny_bundle: Path, options: dict[str, object]) -> None:
    explanation = engine.load(tiny_bundle, threads=1).explain(photo_pixels(), **options)
    report = strict_json(explanation.report())
    assert isinstance(report, dict)
    assert report["target"] == explanation.target == options.get("target", 0)
    assert report["rule"] == options.get("rule", "otsu")
    assert report["class_score"] == explanation.class_score
    assert [layer["scored"] for layer in report["layers"]] == [layer.scored for layer in explanation.layers]
    assert report["scored"] == sum(layer["scored"] for layer in report["layers"]) > 0
    assert report["timings_ms"]["total"] >= report["timings_ms"]["score"] > 0


@pytest.mark.parametrize(
    "options",
    [{"rule": "positive", "mu": np.float32(0.25)}, {"baseline": (np.uint8(1), np.uint8(2), np.uint8(3))}],
    ids=["mu", "baseline"],
)
def test_options_given_as_numpy_numbers(tiny_bundle: Path, options: dict[str, object]) -> None:
    strict_json(engine.load(tiny_bundle, threads=1).explain(photo_pixels(), **options).report())


def test_overlay_is_drawn_on_the_picture() -> None:
    explanation = make()
    drawn = explanation.overlay()
    assert drawn.size == explanation.picture.size == (54, 40)
    assert drawn.tobytes() == overlay(HEATMAP, explanation.picture, 0.7).tobytes()
    assert explanation.overlay(0.25).tobytes() == overlay(HEATMAP, explanation.picture, 0.25).tobytes()
    assert explanation.overlay(0.0).tobytes() == explanation.picture.tobytes()
    with pytest.raises(OptionError, match=r"^opacity is 1\.1; expected a number from 0 to 1$"):
        explanation.overlay(1.1)


@pytest.mark.parametrize("name", ["out.png", "OUT.PNG", "two.dots.png"])
@pytest.mark.parametrize("kind", [str, Path])
def test_png_holds_the_overlay(tmp_path: Path, name: str, kind: type) -> None:
    explanation = make()
    explanation.save(kind(tmp_path / name))
    with Image.open(tmp_path / name) as image:
        assert image.format == "PNG"
        assert image.tobytes() == explanation.overlay().tobytes()
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.npz", "OUT.NPZ"])
@pytest.mark.parametrize("kind", [str, Path])
def test_npz_holds_arrays_and_the_report(tmp_path: Path, name: str, kind: type) -> None:
    make().save(kind(tmp_path / name))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with np.load(tmp_path / name, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["heatmap", "report"]
        assert arrays["heatmap"].dtype == np.float32
        np.testing.assert_array_equal(arrays["heatmap"], HEATMAP)
        assert json.loads(str(arrays["report"])) == REPORT
        assert json.loads(arrays["report"].item()) == REPORT


def test_npz_holds_the_visualization_maps_that_are_there(tmp_path: Path) -> None:
    maps = (HEATMAP * 0.5, None, HEATMAP[::-1].copy())
    make(visualization_maps=maps).save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["heatmap", "report", "visualization_map_1", "visualization_map_3"]
        np.testing.assert_array_equal(arrays["visualization_map_1"], maps[0])
        np.testing.assert_array_equal(arrays["visualization_map_3"], maps[2])


def test_npz_of_a_real_explanation(tiny_bundle: Path, tmp_path: Path) -> None:
    explanation = engine.load(tiny_bundle, threads=1).explain(photo_pixels(), "cup", visualization_maps=True)
    explanation.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["heatmap", "report", *(f"visualization_map_{number}" for number in (1, 2, 3))]
        np.testing.assert_array_equal(arrays["heatmap"], explanation.heatmap)
        assert arrays["visualization_map_3"].shape == (24, 32)
        assert json.loads(str(arrays["report"])) == strict_json(explanation.report())


def test_saving_replaces_a_file(tmp_path: Path) -> None:
    for name in ("out.png", "out.npz"):
        make(heatmap=HEATMAP[::-1].copy()).save(tmp_path / name)
        make().save(tmp_path / name)
    assert Image.open(tmp_path / "out.png").tobytes() == make().overlay().tobytes()
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["heatmap"], HEATMAP)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("out.jpg", ".jpg"), ("out.png.txt", ".txt"), ("out", "a file without ending"), (".png", "a file without ending")],
)
def test_other_endings(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    text = f"{path}: cannot save as {kind}; expected a name in .png or .npz"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        make().save(path)
    assert not path.exists()


@pytest.mark.parametrize("ending", [".png", ".npz"])
def test_places_that_cannot_be_written(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"folder{ending}").mkdir()
    for path, reason in (
        (tmp_path / "none" / f"out{ending}", "No such file or directory"),
        (tmp_path / f"folder{ending}", "Is a directory"),
    ):
        text = f"{path}: cannot be written: {reason}"
        with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
            make().save(path)


def test_results_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().target = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        LAYERS[0].scored = 4  # type: ignore[misc]


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def save(_self: Image.Image, file: BinaryIO, _kind: str) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OptionError, match=r"out\.png: cannot be written: No space left on device$"):
        make().save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]
    assert path.read_bytes() == b"old"
