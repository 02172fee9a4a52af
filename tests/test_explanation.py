import dataclasses
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import engine
from engine.errors import OptionError
from engine.explanation import Explanation, LayerReport, draw_panel
from engine.picture import overlay
from tests.tiny_cnn import photo_pixels

HEATMAP = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
LAYERS = (
    LayerReport(
        name="relu1",
        channels=4,
        height=6,
        width=8,
        positive=3,
        selected=3,
        flat=1,
        scored=2,
        threshold=0.25,
        fusion_threshold=None,
        selected_channels=np.array([2, 0, 3]),
        scores=np.array([0.5, np.nan, 0.125]),
        estimated_scores=np.array([np.nan, 0.25, np.nan]),
    ),
    LayerReport(
        name="relu2",
        channels=8,
        height=3,
        width=4,
        positive=0,
        selected=0,
        flat=0,
        scored=0,
        threshold=None,
        fusion_threshold=None,
        selected_channels=np.empty(0, np.int64),
        scores=np.empty(0),
        estimated_scores=np.empty(0),
    ),
)


def make(**changes: object) -> Explanation:
    values: dict[str, object] = {
        "heatmap": HEATMAP,
        "target": 3,
        "label": "espresso",
        "class_score": 0.87654,
        "activation": "softmax",
        "method": "ada-sise",
        "options": {"rule": "otsu", "mu": 0.0, "fusion": "hard", "baseline": (1.0, 2.0, 3.0)},
        "layers": LAYERS,
        "max_masks": None,
        "deadline_ms": None,
        "unit": "masks",
        "precision": "float32",
        "scored": 2,
        "scorable": 2,
        "complete": True,
        "evaluations": {"tapped": 1, "forward": 2},
        "figures": {},
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
    "method": "ada-sise",
    "options": {"rule": "otsu", "mu": 0.0, "fusion": "hard", "baseline": [1.0, 2.0, 3.0]},
    "layers": [
        {
            "name": "relu1",
            "channels": 4,
            "height": 6,
            "width": 8,
            "positive": 3,
            "selected": 3,
            "flat": 1,
            "scored": 2,
            "threshold": 0.25,
            "fusion_threshold": None,
            "selected_channels": [2, 0, 3],
            "scores": [0.5, None, 0.125],
            "estimated_scores": [None, 0.25, None],
        },
        {
            "name": "relu2",
            "channels": 8,
            "height": 3,
            "width": 4,
            "positive": 0,
            "selected": 0,
            "flat": 0,
            "scored": 0,
            "threshold": None,
            "fusion_threshold": None,
            "selected_channels": [],
            "scores": [],
            "estimated_scores": [],
        },
    ],
    "max_masks": None,
    "deadline_ms": None,
    "precision": "float32",
    "unit": "masks",
    "scored": 2,
    "scorable": 2,
    "complete": True,
    "evaluations": {"tapped": 1, "forward": 2},
    "figures": {},
    "timings_ms": {"tap": 1.5, "total": 12.49},
    "warnings": ["layer 'relu2' gave no mask: no feature map was selected"],
}


def strict_json(report: object) -> object:
    """Through JSON and back; NaN is no JSON."""
    return json.loads(json.dumps(report, allow_nan=False))


def test_str() -> None:
    assert str(make()) == "espresso (3): score 0.877, 2 masks, 12 ms"
    assert str(make(scorable=7)) == "espresso (3): score 0.877, 2 of 7 masks, 12 ms"
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
    assert set(make().report()) == names - {"heatmap", "picture", "attribution", "visualization_maps"}
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
    assert report["options"]["rule"] == options.get("rule", "otsu")
    assert report["class_score"] == explanation.class_score
    assert [layer["scored"] for layer in report["layers"]] == [layer.scored for layer in explanation.layers]
    assert report["scored"] == sum(layer["scored"] for layer in report["layers"]) > 0
    assert report["scorable"] == sum(layer["selected"] - layer["flat"] for layer in report["layers"])
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


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on pictures, in order."""
    written: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, place: tuple[float, float], words: str, **options: object) -> None:
        written.append(words)
        original(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


HEAD = ["espresso", "class 3 · score 87.7% (softmax)"]
HOW = "ada-sise · rule otsu · fusion hard · baseline (1, 2, 3) · 2 masks"
WARNING = "Warning: layer 'relu2' gave no mask: no feature map was selected"


def test_a_figure_says_what_it_shows(texts: list[str]) -> None:
    drawn = make().figure()
    assert texts[:3] == [*HEAD, HOW]
    assert texts[-1] == WARNING
    picture = make().picture.resize((480, 356), Image.Resampling.BICUBIC)
    pixels = np.asarray(drawn)
    top, *_ = np.flatnonzero((pixels[:, 28:508] == np.asarray(picture)[0]).all(axis=(1, 2)))
    np.testing.assert_array_equal(pixels[top : top + 356, 28:508], picture)
    np.testing.assert_array_equal(pixels[top : top + 356, 530:1010], overlay(HEATMAP, picture))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"label": None}, ["class 3", "score 87.7% (softmax)", HOW]),
        ({"activation": "sigmoid", "class_score": 1.0}, [HEAD[0], "class 3 · score 100.0% (sigmoid)", HOW]),
        ({"class_score": 0.99951}, [HEAD[0], "class 3 · score above 99.9% (softmax)", HOW]),
        ({"class_score": 0.9994}, [HEAD[0], "class 3 · score 99.9% (softmax)", HOW]),
        ({"class_score": 0.0005}, [HEAD[0], "class 3 · score 0.1% (softmax)", HOW]),
        ({"class_score": 0.00049}, [HEAD[0], "class 3 · score below 0.1% (softmax)", HOW]),
        ({"class_score": 0.0}, [HEAD[0], "class 3 · score 0.0% (softmax)", HOW]),
        ({"activation": "none", "class_score": -7.30612}, [HEAD[0], "class 3 · score -7.306 (logit)", HOW]),
        (
            {"method": "sise", "options": {"mu": 0.25, "fusion": "soft", "baseline": "zero"}, "scorable": 7},
            [*HEAD, "sise · mu 0.25 · fusion soft · baseline zero · 2 of 7 masks"],
        ),
    ],
)
def test_the_head_of_a_figure_and_of_a_panel(texts: list[str], changes: dict[str, object], lines: list[str]) -> None:
    make(**changes).figure()
    assert texts[: len(lines)] == lines
    texts.clear()
    make(visualization_maps=(HEATMAP, None), **changes).panel()
    assert texts[: len(lines)] == lines


def test_a_method_without_layers_and_masks(texts: list[str]) -> None:
    explanation = make(method="grad-cam", options={"layer": None}, layers=(), scored=0, scorable=0, warnings=())
    explanation.figure()
    assert texts[:3] == [*HEAD, "grad-cam"]
    assert str(explanation) == "espresso (3): score 0.877, 12 ms"


def test_options_that_are_false_or_zero_are_named() -> None:
    options = {"mu": 0.0, "layer": None, "gaussian": False, "seed": 0, "noise": 0.0}
    result = make(method="other", options=options, layers=(), scored=0, scorable=0)
    assert result.how == "other · gaussian False · seed 0 · noise 0"


@pytest.mark.parametrize(
    ("preset", "complete", "how"),
    [
        ("exact", True, "ada-sise · preset exact · 2 masks"),
        ("exact", False, "ada-sise · 2 of 7 masks"),  # of a budget or a deadline
        ("fast", False, "ada-sise · preset fast · 2 of 7 masks"),
    ],
)
def test_a_preset_is_exact_with_all_masks_only(preset: str, complete: bool, how: str) -> None:
    assert make(options={"preset": preset}, complete=complete, scorable=2 if complete else 7).how == how


def test_a_panel_says_what_each_layer_did(texts: list[str]) -> None:
    layers = (
        LAYERS[0],
        LAYERS[1],
        dataclasses.replace(LAYERS[0], name="relu3", channels=16, selected=9, flat=2, fusion_threshold=0.437),
        dataclasses.replace(LAYERS[0], name="relu4", selected=12, flat=12, scored=0),
        dataclasses.replace(LAYERS[0], name="relu5"),
    )
    maps = (HEATMAP, None, HEATMAP[::-1].copy(), None, None)
    make(layers=layers, visualization_maps=maps).panel()
    assert " ".join(texts) == " ".join(
        [
            *(*HEAD, HOW, "what the network saw"),
            *("layer 1", "relu1", "4x6x8, 2 scored", "not cut"),
            *("no feature map was selected", "layer 2", "relu2", "8x3x4, 0 scored"),
            *("layer 3", "relu3", "16x6x8, 2 of 7 scored", "cut at 0.44"),
            *("all 12 selected maps are constant", "layer 4", "relu4", "4x6x8, 0 scored"),
            *("its masks add up to a constant map", "layer 5", "relu5", "4x6x8, 2 scored"),
            *("heatmap", "all layers fused", WARNING),
            *("importance within this image: 0 least", "1 most", "White line: where fusion cuts the layer."),
        ]
    )


def test_a_panel_draws_every_map() -> None:
    drawn = np.asarray(make(visualization_maps=(HEATMAP[::-1].copy(), None)).panel())
    picture = make().picture.resize((220, 163), Image.Resampling.BICUBIC)
    top, *_ = np.flatnonzero((drawn[:, 28:248] == np.asarray(picture)[0]).all(axis=(1, 2)))
    for column, expected in ((0, picture), (1, overlay(HEATMAP[::-1].copy(), picture)), (3, overlay(HEATMAP, picture))):
        left = 28 + column * (220 + 22)
        np.testing.assert_array_equal(drawn[top : top + 163, left : left + 220], expected)


def test_a_panel_of_several_explanations(texts: list[str]) -> None:
    maps = (HEATMAP, None)
    both = draw_panel([make(visualization_maps=maps), make(visualization_maps=maps, label="cup", target=4)])
    assert [text for text in texts if text in ("espresso", "cup")] == ["espresso", "cup"]
    assert both.height > 1.5 * make(visualization_maps=maps).panel().height


def test_a_panel_needs_visualization_maps() -> None:
    text = "the explanation holds no visualization maps to draw in a panel; explain with visualization_maps=True"
    for draw in (make().panel, lambda: draw_panel([make(visualization_maps=(HEATMAP, None)), make()])):
        with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
            draw()
    with pytest.raises(OptionError, match=r"^a panel of no explanations was asked for; expected at least one$"):
        draw_panel([])


def test_a_panel_of_a_real_explanation(tiny_bundle: Path, texts: list[str]) -> None:
    explanation = engine.load(tiny_bundle, threads=1).explain(photo_pixels(), "cup", visualization_maps=True)
    assert explanation.panel().width > 5 * 200
    for layer in explanation.layers:
        part = "" if layer.scored == layer.selected - layer.flat else f" of {layer.selected - layer.flat}"
        assert f"{layer.channels}x{layer.height}x{layer.width}, {layer.scored}{part} scored" in texts


def test_a_notebook_shows_the_figure() -> None:
    content = make()._repr_png_()
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert image.tobytes() == make().figure().tobytes()


@pytest.mark.parametrize("name", ["out.png", "OUT.PNG", "two.dots.png"])
@pytest.mark.parametrize("kind", [str, Path])
def test_png_holds_the_figure(tmp_path: Path, name: str, kind: type) -> None:
    explanation = make()
    explanation.save(kind(tmp_path / name))
    with Image.open(tmp_path / name) as image:
        assert image.format == "PNG"
        assert image.tobytes() == explanation.figure().tobytes()
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
    assert Image.open(tmp_path / "out.png").tobytes() == make().figure().tobytes()
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
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "none" / f"out{ending}", "No such file or directory"),
        (tmp_path / f"folder{ending}", "Is a directory"),
        (tmp_path / "file" / f"out{ending}", "Not a directory"),
        (tmp_path / ("n" * 252 + ending), "File name too long"),
        (tmp_path / ("n" * 300) / f"out{ending}", "File name too long"),
        (tmp_path / f"a\0{ending}", "embedded null byte"),
        (tmp_path / "a\0b" / f"out{ending}", "embedded null byte"),
    ):
        text = f"{path}: cannot be written: {reason}".replace("\0", r"\x00")
        with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
            make().save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", f"folder{ending}"]


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

    def write_bytes(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OptionError, match=r"out\.png: cannot be written: No space left on device$"):
        make().save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]
    with path.open("rb") as file:
        assert file.read() == b"old"


def test_the_longest_name_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    make().save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_explanations_saved_at_once_under_one_name_give_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    with ThreadPoolExecutor(8) as pool:
        for saved in [pool.submit(make().save, path) for _ in range(40)]:
            saved.result()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["heatmap"], HEATMAP)
