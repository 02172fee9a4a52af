import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import engine
from engine.__main__ import parse_target
from tests.tiny_cnn import photo_pixels, write_photo

REPOSITORY = Path(__file__).resolve().parents[1]


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
    assert Image.open(output).tobytes() == expected.overlay().tobytes()
    lines = done.stdout.splitlines()
    assert lines[0].strip().startswith(f"tabby cat (0): score {expected.class_score:.3f}, {expected.scored} masks, ")
    words = [re.findall(r"[\w.]+", line) for line in lines]
    assert ["layer", "maps", "positive", "selected", "flat", "scored"] in words
    for layer in expected.layers:
        counts = (layer.channels, layer.positive, layer.selected, layer.flat, layer.scored)
        assert [layer.name, *map(str, counts)] in words
    assert "rule otsu, fusion hard, activation softmax" in done.stdout


def test_every_option_reaches_the_explainer(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    done = explain(
        *(tiny_bundle, photo, "--output", output, "--target", "tiger cat", "--rule", "positive", "--fusion", "soft")
    )
    assert done.returncode == 0, done.stderr
    assert "tiger cat (1): score " in done.stdout
    assert "rule positive, fusion soft, activation softmax" in done.stdout
    expected = engine.load(tiny_bundle, threads=1).explain(photo, 1, rule="positive", fusion="soft")
    with np.load(output, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["heatmap"], expected.heatmap)


def test_a_class_index_and_its_warnings(tiny_bundle: Path, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.fromarray(photo_pixels() * 0).save(black)
    expected = engine.load(tiny_bundle, threads=1).explain(black, 1)
    assert expected.warnings == ("layer 'relu2' gave no mask: all 1 selected maps are constant",)
    output = tmp_path / "out.png"
    done = explain(tiny_bundle, black, "-o", output, "--target", "1")
    assert done.returncode == 0, done.stderr
    assert "tiger cat (1): score " in done.stdout
    assert done.stderr.splitlines() == [*(f"warning: {text}" for text in expected.warnings), f"wrote {output}"]


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
    photo = tmp_path / "[bold]none[/bold].jpg"  # no markup
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png"))
    assert line == f"{photo}: cannot be read as a photo: No such file or directory"


def test_a_bad_rule(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.png", "--rule", "best"))
    assert line == "rule is 'best'; expected one of otsu, otsu-count, positive, all"


def test_a_bad_ending(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    line = one_line(explain(tiny_bundle, photo, "-o", tmp_path / "out.gif"))
    assert line == f"{tmp_path / 'out.gif'}: cannot save as .gif; expected a name in .png or .npz"


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


@pytest.mark.parametrize(("target", "taken"), [("7", "7"), ("1", 1), ("-1", -1), ("cup", "cup"), (None, None)])
def test_a_label_that_is_a_number_comes_before_the_index(target: str | None, taken: int | str | None) -> None:
    explainer = SimpleNamespace(bundle=SimpleNamespace(labels=("cup", "7")))
    assert parse_target(target, explainer) == taken
