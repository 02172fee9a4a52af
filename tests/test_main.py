import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import engine
from engine.__main__ import parse_target
from engine.explanation import draw_panel
from engine.export import export
from tests.terminal import REPOSITORY, run_in_terminal
from tests.tiny_cnn import photo_pixels, write_photo, write_tiny_cnn


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_photo(tmp_path / "photo.png")


def run(*arguments: str | Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m engine`, or code that does the like, in a terminal of 120 columns."""
    start = ["-m", "engine"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=REPOSITORY,
        env={"COLUMNS": "120", "PATH": "", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )


def explain(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("explain", *arguments, "--threads", "1")


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that ended in a user's mistake."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_a_table_and_a_picture(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    done = explain(tiny_bundle, photo, "-o", output)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"wrote {output}"]
    expected = engine.load(tiny_bundle, threads=1).explain(photo)
    assert Image.open(output).tobytes() == expected.figure().tobytes()
    lines = done.stdout.splitlines()
    assert lines[0].strip().startswith(f"tabby cat (0): score {expected.class_score:.3f}, {expected.scored} masks, ")
    words = [re.findall(r"[\w.]+", line) for line in lines]
    assert ["layer", "maps", "positive", "selected", "flat", "scored"] in words
    for layer in expected.layers:
        counts = (layer.channels, layer.positive, layer.selected, layer.flat, layer.scored)
        assert [layer.name, *map(str, counts)] in words
    assert "ada-sise · rule otsu · fusion hard · baseline zero · " in done.stdout


def test_every_option_reaches_the_explainer(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    done = explain(
        *(tiny_bundle, photo, "--output", output, "--target", "tiger cat", "--rule", "positive", "--fusion", "soft")
    )
    assert done.returncode == 0, done.stderr
    assert "tiger cat (1): score " in done.stdout
    assert "ada-sise · rule positive · fusion soft · baseline zero · " in done.stdout
    expected = engine.load(tiny_bundle, threads=1).explain(photo, 1, rule="positive", fusion="soft")
    with np.load(output, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["heatmap"], expected.heatmap)


def test_a_preset(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    done = explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--rule", "all", "--preset", "fast")
    assert done.returncode == 0, done.stderr
    assert "ada-sise · rule all · fusion hard · baseline zero · preset fast · 25 of 35 masks · " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--method", "rise", "--option", "masks=9", "--option", "seed=3"),
        ("--method", "rise:masks=9:seed=3"),
        ("--method", "rise:seed=3", "--option", "masks=9"),
    ],
)
def test_another_method_with_its_options(
    tiny_bundle: Path, photo: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    output = tmp_path / "out.npz"
    done = explain(tiny_bundle, photo, "-o", output, *arguments)
    assert done.returncode == 0, done.stderr
    expected = engine.load(tiny_bundle, threads=1).explain(photo, method="rise", masks=9, seed=3)
    with np.load(output, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["heatmap"], expected.heatmap)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--method", "rice"), "method is 'rice'; expected one of ada-sise, sise, "),
        (("--method", "grad-cam", "--rule", "all"), "rule: is no option of method 'grad-cam'; expected "),
        (("--option", "rule"), "option 'rule': has no value; expected NAME=VALUE"),
        (("--option", "rule=all", "--rule", "all"), "option 'rule': is given twice; expected each once"),
        (("--option", "mu=little"), "mu is 'little'; expected a number"),
    ],
)
def test_methods_and_options_without_meaning(
    tiny_bundle: Path, photo: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png", *arguments))
    assert line.startswith(expected)


def test_a_class_index_and_its_warnings(tiny_bundle: Path, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.fromarray(photo_pixels() * 0).save(black)
    expected = engine.load(tiny_bundle, threads=1).explain(black, 1)
    assert expected.warnings == ("layer 'relu2' gave no mask: all 1 selected maps are constant",)
    output = tmp_path / "out.png"
    done = explain(tiny_bundle, black, "-o", output, "--target", "1")
    assert done.returncode == 0, done.stderr
    assert "tiger cat (1): score " in done.stdout
    warnings = [f"warning: {black}, tiger cat (1): {text}" for text in expected.warnings]
    assert done.stderr.splitlines() == [*warnings, f"wrote {output}"]


def test_the_remaining_options_reach_the_explainer(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    done = explain(
        *(tiny_bundle, photo, "-o", output, "--baseline", "10,20,30", "--activation", "sigmoid", "--batch", "3"),
        *("--max-masks", "5", "--deadline-ms", "600000", "--provider", "CPUExecutionProvider", "--maps"),
    )
    assert done.returncode == 0, done.stderr
    expected = engine.load(tiny_bundle, threads=1).explain(
        photo, baseline=(10, 20, 30), activation="sigmoid", batch_size=3, max_masks=5, visualization_maps=True
    )
    with np.load(output, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["heatmap"], expected.heatmap)
        np.testing.assert_array_equal(arrays["visualization_map_3"], expected.visualization_maps[2])
        report = json.loads(str(arrays["report"]))
    assert report["deadline_ms"] == 600000.0
    assert report["options"]["baseline"] == [10.0, 20.0, 30.0]
    kept = ("activation", "max_masks", "scored", "scorable", "complete", "class_score")
    assert {key: report[key] for key in kept} == {key: expected.report()[key] for key in kept[:1]} | {
        "max_masks": 5,
        "scored": 5,
        "scorable": expected.scorable,
        "complete": False,
        "class_score": expected.class_score,
    }


def test_several_photos_and_classes(tiny_bundle: Path, tmp_path: Path) -> None:
    """A folder, a pattern and a file; each photo for the two best classes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    write_photo(photos / "one.png")
    (photos / "notes.txt").write_text("no photo")
    Image.fromarray(255 - photo_pixels()).save(photos / "two.bmp")
    Image.fromarray(photo_pixels()[:, ::-1]).save(tmp_path / "three.png")
    Image.fromarray(photo_pixels()[::-1]).save(tmp_path / "four.png")
    output = tmp_path / "heatmaps"
    done = explain(tiny_bundle, photos, tmp_path / "th*.png", tmp_path / "four.png", "-o", output, "--top", "2")
    assert done.returncode == 0, done.stderr
    explainer = engine.load(tiny_bundle, threads=1)
    files, lines = [], []
    for photo in (photos / "one.png", photos / "two.bmp", tmp_path / "three.png", tmp_path / "four.png"):
        best = np.argsort(-explainer.classify(photo))[:2].tolist()
        for result in explainer.explain(photo, best):
            label = re.sub(" ", "-", result.label)
            files.append(output / f"{photo.stem}.{result.target}-{label}.png")
            lines.append(f"{photo}: {result.name}: score {result.class_score:.3f}, {result.scored} masks, ")
            assert Image.open(files[-1]).tobytes() == result.figure().tobytes()
    assert len(files) == 8
    assert sorted(output.iterdir()) == sorted(files)
    assert [line[: len(start)] for line, start in zip(done.stdout.splitlines(), lines, strict=True)] == lines
    assert done.stderr.splitlines() == [f"wrote {file}" for file in files]


def test_several_targets_into_a_folder_with_panels(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "heatmaps"
    done = explain(tiny_bundle, photo, "-o", output, "--target", "cup", "--target", "0", "--maps")
    assert done.returncode == 0, done.stderr
    names = ["photo.0-tabby-cat.png", "photo.4-cup.png", "photo.maps.png"]
    assert sorted(file.name for file in output.iterdir()) == names
    explainer = engine.load(tiny_bundle, threads=1)
    results = explainer.explain(photo, ["cup", 0], visualization_maps=True)
    expected = draw_panel(results)
    with Image.open(output / "photo.maps.png") as panel:
        assert panel.size == expected.size


def test_the_best_classes_are_those_of_the_logits(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    """A sigmoid may be 1 for several classes, and softmax 0."""
    done = explain(tiny_bundle, photo, "-o", tmp_path / "out", "--top", "5", "--activation", "sigmoid", "--json")
    assert done.returncode == 0, done.stderr
    logits = engine.load(tiny_bundle, threads=1).classify(photo, "none")
    assert [json.loads(line)["target"] for line in done.stdout.splitlines()] == np.argsort(-logits).tolist()


def test_the_best_class_into_one_file(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    assert explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--top", "1").returncode == 0
    assert (tmp_path / "out.png").exists()


def test_a_refused_option_leaves_no_folder(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    for option in (["--rule", "best"], ["--baseline", "grey"], ["--deadline-ms", "0"], ["--batch", "0"]):
        one_line(explain(tiny_bundle, photo, "-o", tmp_path / "new", *option))
        assert not (tmp_path / "new").exists()


def test_what_a_deadline_that_is_too_short_gives(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    short = ("-o", tmp_path / "out.png", "--deadline-ms", "0.001")
    line = one_line(explain(tiny_bundle, photo, *short, "--too-late", "error"))
    assert line.startswith(
        f"{photo}: deadline_ms is 0.001, and there was no time to run tapped.onnx; expected a longer one"
    )
    assert not (tmp_path / "out.png").exists()
    done = explain(tiny_bundle, photo, *short, "--json")
    assert (done.returncode, json.loads(done.stdout)["method"]) == (0, "grad-cam")
    line = one_line(explain(tiny_bundle, photo, *short, "--too-late", "never", "--force"))
    assert line == "too_late is 'never'; expected one of grad-cam, error"


def test_a_photo_that_is_too_late_does_not_stop_the_others(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    other = write_photo(tmp_path / "other.png")
    done = explain(
        *(tiny_bundle, photo, other, "-o", tmp_path / "out", "--deadline-ms", "0.001", "--too-late", "error")
    )
    assert done.returncode == 2
    *errors, last = done.stderr.splitlines()
    assert [line.split("; ")[0] for line in errors] == [
        f"error: {file}: deadline_ms is 0.001, and there was no time to run tapped.onnx" for file in (photo, other)
    ]
    assert last == "error: 2 of 2 photos could not be explained, for the reasons above"


def test_maps_of_a_method_that_makes_none(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--method", "rise", "--maps"))
    assert line == "--maps: method 'rise' makes no maps of layers; ada-sise and sise do"


def test_a_class_asked_for_twice_is_explained_once(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    done = explain(tiny_bundle, photo, "-o", tmp_path / "out", "--target", "4", "--target", "cup")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["photo.4-cup.png"]


def test_no_output_into_the_bundle(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "copy.ada"))
    before = sorted(bundle.iterdir())
    for output in (bundle, bundle / "out.png", bundle / "out"):
        line = one_line(explain(bundle, photo, "-o", output))
        assert line == f"{output}: lies in the bundle, which holds its own files only; choose another place"
    assert sorted(bundle.iterdir()) == before


def test_a_bundle_without_preprocessing(photo: Path, tmp_path: Path) -> None:
    model, *_ = write_tiny_cnn(tmp_path)
    export(model, tmp_path / "tiny.ada", activation="softmax")
    line = one_line(explain(tmp_path / "tiny.ada", photo, photo.parent, "-o", tmp_path / "out"))
    assert line == (
        f"{tmp_path / 'tiny.ada'}: holds no preprocessing, so it explains prepared arrays, from Python; export it with "
        "--preprocess to explain photos"
    )


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_output_without_room(tiny_bundle: Path, photo: Path, tmp_path: Path, arguments: list[str]) -> None:
    command = ["-m", "engine", "explain", tiny_bundle, photo, "-o", tmp_path / "out.png", "--threads", "1", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: the output cannot be written: No space left on device; choose another place for it"
    )


def test_a_photo_whose_name_is_no_text(tiny_bundle: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"cat\xff.png")
    photo = write_photo(tmp_path / name)
    done = explain(tiny_bundle, photo, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["photo"] == str(photo)
    assert (tmp_path / "out" / name).exists()
    done = explain(tiny_bundle, photo, photo, "-o", tmp_path / "out2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"wrote {tmp_path}/out2/cat\\udcff.png\n"


def test_a_panel_beside_one_picture(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    done = explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--maps")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.maps.png").exists()
    assert done.stderr.splitlines() == [f"wrote {tmp_path / 'out.png'}", f"wrote {tmp_path / 'out.maps.png'}"]


def test_reports_in_json(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "heatmaps"
    done = explain(tiny_bundle, photo, "-o", output, "--target", "cup", "--target", "0", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for said, result in zip(found, engine.load(tiny_bundle, threads=1).explain(photo, [4, 0]), strict=True):
        report = json.loads(json.dumps(result.report()))
        assert said.pop("photo") == str(photo)
        assert said.pop("heatmap") == str(output / f"photo.{result.target}-{result.label.replace(' ', '-')}.png")
        assert said.pop("timings_ms").keys() == report.pop("timings_ms").keys()
        assert said == report


def test_a_photo_that_cannot_be_read_does_not_stop_the_others(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    output = tmp_path / "heatmaps"
    done = explain(tiny_bundle, tmp_path / "broken.png", photo, tmp_path / "none.png", "-o", output)
    assert done.returncode == 2
    assert [file.name for file in output.iterdir()] == ["photo.png"]
    first, wrote, second, last = done.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path / 'broken.png'}: ")
    assert wrote == f"wrote {output / 'photo.png'}"
    assert second == f"error: {tmp_path / 'none.png'}: cannot be read as a photo: No such file or directory"
    assert last == "error: 2 of 3 photos could not be explained, for the reasons above"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--top", "2", "--target", "cup"], "--target and --top both choose the classes; expected one of them"),
        (["--top", "0"], "top is 0; expected a whole number of at least 1"),
        (["--top", "2"], "{output}: is one file for the heatmaps of several classes; give a folder"),
        (
            ["--target", "0", "--target", "1"],
            "{output}: is one file for the heatmaps of several classes; give a folder",
        ),
        (["{folder}"], "{output}: is one file for the heatmaps of 2 photos; give a folder"),
        (["--baseline", "1,2"], "baseline is (1.0, 2.0); expected 'zero', 'blur', or 3 colour values from 0 to 255"),
        (["--baseline", "grey"], "baseline is 'grey'; expected 'zero', 'blur', or 3 colour values from 0 to 255"),
        (["--max-masks", "0"], "max_masks is 0; expected a whole number of at least 1, or None for all"),
        (
            ["--provider", "Fast"],
            "providers is ['Fast']; expected a list of those that are in this ONNX Runtime: {known}",
        ),
    ],
)
def test_options_that_make_no_sense(
    tiny_bundle: Path, photo: Path, tmp_path: Path, arguments: list[str], text: str
) -> None:
    output, folder = tmp_path / "out.png", tmp_path / "more"
    folder.mkdir()
    write_photo(folder / "other.png")
    known = ", ".join(onnxruntime.get_available_providers())
    arguments = [argument.format(folder=folder) for argument in arguments]
    line = one_line(explain(tiny_bundle, photo, *arguments, "-o", output))
    assert line == text.format(output=output, known=known)
    assert not output.exists()


def test_files_that_exist_are_replaced_only_by_force(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    for name, arguments in (
        ("out.png", ["-o", "out.png"]),
        ("out.maps.png", ["-o", "out.png", "--maps"]),
        ("folder/photo.png", ["-o", "folder"]),
        ("folder/photo.1-tiger-cat.png", ["-o", "folder", "--target", "0", "--target", "1"]),
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"old")
        arguments = [str(tmp_path / word) if word in ("out.png", "folder") else word for word in arguments]
        line = one_line(explain(tiny_bundle, photo, *arguments))
        assert line == f"{file}: exists already; choose another name, or replace it with --force"
        assert file.read_bytes() == b"old"
        assert explain(tiny_bundle, photo, *arguments, "--force").returncode == 0
        assert file.read_bytes()[:4] == b"\x89PNG"
        file.unlink()
        for other in tmp_path.glob("out*.png"):
            other.unlink()


def test_photos_of_the_same_name(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = write_photo(tmp_path / "more" / "photo.bmp")
    line = one_line(explain(tiny_bundle, photo, other, "-o", tmp_path / "heatmaps"))
    assert line == (f"{other}: its heatmap would have the same name as that of {photo}; explain them into two folders")
    assert not (tmp_path / "heatmaps").exists()


def test_a_folder_that_cannot_be_made(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "none" / "heatmaps"))
    assert line == f"{tmp_path / 'none' / 'heatmaps'}: cannot be made: No such file or directory; expected a folder"


def test_progress_is_shown_in_a_terminal_only(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    """The bar is drawn there, and stdout holds the table alone."""
    out, drawn = run_in_terminal(
        "explain", tiny_bundle, photo, "-o", tmp_path / "out.png", "--threads", "1", "--batch", "2"
    )
    assert re.search(r"photo\.png: \d+ of \d+ masks", drawn)
    assert "tabby cat (0): score" in out
    assert "\x1b" not in out


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ada-sise-engine {engine.__version__}, onnxruntime {onnxruntime.__version__}\n"


@pytest.mark.parametrize("command", ["explain", "evaluate", "inspect"])
def test_the_help_has_examples_and_exit_codes(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert f"Example: python -m engine {command} resnet50.ada" in text
    assert "Exit codes: 0 done; 2 a mistake" in text


def test_inspect_says_what_is_in_a_bundle(tiny_bundle: Path) -> None:
    done = run("inspect", tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    manifest = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    figures = manifest["verification"]
    for start in (
        f"block1 relu1 8×24×32 1 Conv, 1 Relu {figures['gradient_errors']['block1']:.1e}",
        f"head logits 5, softmax 1 Flatten, 1 Gemm, 1 GlobalAveragePool {figures['gradient_errors']['head']:.1e}",
        f"forward against the source: {figures['forward_error']:.1e} of the largest logit",
        f"source SHA-256 {manifest['source']['sha256']}, output 'logits'",
        f"made by engine {engine.__version__}, numpy {np.__version__}, onnx ",
        "graphs opset 18, ONNX IR version 10",
        "image 'image', float32 [N, 3, 24, 32]",
        "preprocessing size [24, 32], resize 36, interp bilinear, scale 255.0, bgr False, mean [0.485, 0.456, 0.406], ",
        "classes 5, softmax",
        "labels tabby cat, tiger cat, bull mastiff, …",
        "input gradients at the image and at 0 biased ops",
        f"what image and biases miss of the logit: {figures['completeness_gap']:.1e} of the largest logit",
    ):
        assert any(line.startswith(start) for line in lines), start
    for name, facts in manifest["files"].items():
        assert f"{name} {facts['size_bytes'] / 1024:,.0f}" in lines
    assert lines[-1] == "every file has the size and the SHA-256 that the manifest lists"


def test_inspect_in_json(tiny_bundle: Path) -> None:
    done = run("inspect", tiny_bundle, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))


def test_inspect_checks_the_hashes(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "copy.ada"))
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[100] ^= 1
    (bundle / "weights.bin").write_bytes(data)
    line = one_line(run("inspect", bundle))
    assert line.startswith(f"{bundle / 'weights.bin'}: does not have the SHA-256 that manifest.json lists")


def test_an_unknown_label(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--target", "tigre cat"))
    assert line == "target 'tigre cat': is none of the bundle's 5 labels; did you mean 'tiger cat'?"
    assert not (tmp_path / "out.png").exists()


def test_a_class_index_out_of_range(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--target=-1"))
    assert line == "target -1: is out of range; expected a class index from 0 to 4"


def test_a_missing_bundle(photo: Path, tmp_path: Path) -> None:
    # Long paths must not be broken into lines either.
    bundle = tmp_path / ("long" * 40) / "none.ada"
    line = one_line(explain(bundle, photo, "-o", tmp_path / "out.png"))
    assert line == f"{bundle}: does not exist; expected a bundle made by python -m engine.export"


def test_a_missing_photo(tiny_bundle: Path, tmp_path: Path) -> None:
    photo = tmp_path / "none.jpg"
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png"))
    assert line == f"{photo}: cannot be read as a photo: No such file or directory"
    photo = tmp_path / "[bold]none[/bold].jpg"  # a pattern, and no markup
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png"))
    assert line == (f"{photo}: the pattern matches no photo; expected files such as .jpg or .png")


def test_a_bad_rule(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--rule", "best"))
    assert line == "rule is 'best'; expected one of otsu, otsu-count, positive, all"


def test_a_bad_ending(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.gif"))
    assert (
        line == f"{tmp_path / 'out.gif'}: cannot save as .gif; expected a name in .png or .npz, or a folder that exists"
    )


def test_no_command_shows_the_help() -> None:
    done = run()
    assert "explain" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_stack_and_exits_1(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    code = (
        "import engine.__main__ as main\n"
        "def load(*_, **__): raise RuntimeError('a bug')\n"
        "main.load = load\n"
        "main.run(main.app)\n"
    )
    done = run("explain", tiny_bundle, photo, "-o", tmp_path / "out.png", code=code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "RuntimeError: a bug"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_masks_are_scored(
    tiny_bundle: Path, photo: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    code = (
        "import signal\n"
        "import engine.__main__ as main\n"
        "original = main.Explainer.explain\n"
        "def explain(self, photo, targets, *, progress, **choices):\n"
        f"    stop = lambda done, planned: done and signal.raise_signal({number.value})\n"
        "    return original(self, photo, targets, progress=stop, **choices)\n"
        "main.Explainer.explain = explain\n"
        "main.run(main.app)\n"
    )
    output = tmp_path / "out.png"
    done = run("explain", tiny_bundle, photo, "-o", output, "--batch", "2", "--threads", "2", code=code)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"error: interrupted by {number.name}; nothing was left half-written\n"
    assert not output.exists()


@pytest.mark.parametrize("target", ["²", "--5"])
def test_a_target_that_only_looks_like_a_number(tiny_bundle: Path, photo: Path, tmp_path: Path, target: str) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png", f"--target={target}"))
    assert line == f"target {target!r}: is none of the bundle's 5 labels"


@pytest.mark.parametrize("module", ["engine", "engine.export"])
def test_without_onnx_runtime(module: str, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: ONNX Runtime cannot be imported (not here); install it with pip install 'ada-sise-engine[cpu]', or "
        "'ada-sise-engine[gpu]' for an NVIDIA GPU\n"
    )


def test_a_foreign_program_that_can_do_without_the_engine_goes_on(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')", encoding="utf-8")
    package = tmp_path / "foreign"
    package.mkdir()
    (package / "__init__.py").write_text("try:\n    import engine\nexcept ImportError:\n    engine = None\n")
    (package / "__main__.py").write_text("print('fine')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    command = [sys.executable, "-m", "foreign", "engine"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


@pytest.mark.parametrize(
    ("target", "taken"), [("7", "7"), ("1", 1), ("-1", -1), ("cup", "cup"), ("9" * 5000, "9" * 5000)]
)
def test_a_label_that_is_a_number_comes_before_the_index(target: str, taken: int | str) -> None:
    assert parse_target(target, ("cup", "7")) == taken
