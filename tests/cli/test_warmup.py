import json
import shutil
from pathlib import Path

import pytest

import engine
from engine.backends import BACKENDS
from tests.cli.test_agreement import call
from tests.devices import needs_openvino
from tests.emulator import EmulatedBackend


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The engine's cache, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ada-sise-engine"


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("openvino", marks=needs_openvino),
        pytest.param("cuda", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")),
    ],
)
def test_what_a_load_measures(
    device: str, tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKENDS, "cuda", lambda **_: EmulatedBackend())
    monkeypatch.setattr("engine.resident._SWEEP_S", 0.0)
    assert call(monkeypatch, "warmup", tiny_bundle, "--device", device) == 0
    (file,) = (folder / "setups").iterdir()
    identity = json.loads(file.read_text(encoding="utf-8"))["identity"]
    assert (identity["device"], identity["precision"]) == (device, "float32")
    first, second = capfd.readouterr().out.splitlines()
    assert first.startswith("measured how to score fastest (lanes: ")
    assert first.endswith(f"): {file}")
    assert second == f"done: the next load finds it in {folder}"

    monkeypatch.setattr("engine.tuning.sweep", lambda *_: pytest.fail("it was measured before"))
    engine.load(tiny_bundle, device=device).close()
    assert call(monkeypatch, "warmup", tiny_bundle, "--device", device) == 0
    assert capfd.readouterr().out == f"nothing to do: what it takes is in {folder}\n"


def test_every_option_reaches_the_load(
    int8_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "warmup", int8_bundle, "--precision", "int8", "--batch", "6") == 0
    (file,) = (folder / "setups").iterdir()
    identity = json.loads(file.read_text(encoding="utf-8"))["identity"]
    assert (identity["precision"], identity["fixed"]) == ("int8", {"batch_size": 6})
    assert "batch size: 6): " in capfd.readouterr().out


def test_a_cache_that_cannot_be_written(
    tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder.touch()
    assert call(monkeypatch, "warmup", tiny_bundle) == 2
    text = f"error: {folder}: cannot be written: File exists; expected a folder that can: set XDG_CACHE_HOME\n"
    assert capfd.readouterr().err == text


def test_a_device_that_is_not_there(
    tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "warmup", tiny_bundle, "--device", "tpu") == 2
    assert "device 'tpu' is unknown" in capfd.readouterr().err
    assert list(folder.iterdir()) == []
