"""What the tables make of names in a bundle that would steer the terminal, or look like markup."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import engine
from engine.bundle import load_bundle
from engine.cli.tables import print_contents, print_explanation, print_origin
from engine.errors import BundleError
from tests.tiny_cnn import write_photo

HOSTILE = "\x1b[2J[red]\n:cat:\u202e\\"
SHOWN = r"\x1b[2J[red]\n:cat:\u202e" + "\\"


@pytest.fixture
def console() -> Console:
    return Console(width=200, highlight=False, force_terminal=True, color_system="standard")


def test_names_of_a_bundle(tiny_bundle: Path, console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = load_bundle(tiny_bundle)
    manifest: Any = dict(bundle.manifest)
    block = {"forward": f"{HOSTILE}.onnx", "gradient": None, "ops": {HOSTILE: 7}}
    manifest["graphs"] = {**manifest["graphs"], "blocks": [block, *manifest["graphs"]["blocks"][1:]]}
    manifest["versions"] = {HOSTILE: HOSTILE}
    layers = (dataclasses.replace(bundle.layers[0], name=HOSTILE), *bundle.layers[1:])
    labels = (HOSTILE,) * 5
    bundle = dataclasses.replace(bundle, manifest=manifest, layers=layers, labels=labels, no_gradient=HOSTILE)
    print_contents(bundle, console)
    lines = printed(capsys)
    assert f"{SHOWN} {SHOWN} 8×24×32 7 {SHOWN} none" in lines
    print_origin(bundle, console)
    lines = printed(capsys)
    assert f"made by {SHOWN} {SHOWN}" in lines
    assert f"labels {SHOWN}, {SHOWN}, {SHOWN}, …" in lines
    assert f"input gradients none: {SHOWN}" in lines


def test_names_of_an_explanation(
    tiny_bundle: Path, tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    result = engine.load(tiny_bundle, threads=1).explain(write_photo(tmp_path / "photo.png"), max_masks=4)
    layers = (
        dataclasses.replace(result.layers[0], name=HOSTILE, channels=11, positive=12, selected=13, flat=14, scored=15),
    )
    print_explanation(dataclasses.replace(result, label=HOSTILE, layers=layers), console)
    lines = printed(capsys)
    assert lines[0].startswith(f"{SHOWN} ({result.target}): score ")
    assert f"{SHOWN} 11 12 13 14 15" in lines


def test_the_files_of_a_bundle_that_is_gone(tiny_bundle: Path, tmp_path: Path, console: Console) -> None:
    path = tmp_path / "tiny.ada"
    shutil.copytree(tiny_bundle, path)
    bundle = load_bundle(path)
    shutil.rmtree(path)
    text = f"{path}: cannot be read: No such file or directory; export or copy the bundle again"
    with pytest.raises(BundleError, match=f"^{re.escape(text)}$"):
        print_contents(bundle, console)


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The printed lines without the styles of a terminal, which are checked to be the only escapes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    return [" ".join(line.split()) for line in text.splitlines()]
