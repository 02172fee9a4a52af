"""Replacing a bundle, killed at any moment: the old or the new bundle is there, whole."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bundle import load_bundle
from engine.export import export
from tests.export.networks import written
from tests.tiny_cnn import tiny_cnn

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 40
# It forks, so that what takes a second, the imports, is done once.
REPLACER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
from engine.bundle import load_bundle
from engine.errors import BundleError
from engine.export.pack import new_bundle

target, kills, *sources = Path(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:])
contents = [{file.name: file.read_bytes() for file in sorted(source.iterdir())} for source in sources]

def replace_for_ever(ready):
    number = 0
    while True:
        number += 1
        with new_bundle(target, force=True) as folder:
            for name, data in contents[number % 2].items():
                (folder / name).write_bytes(data)
        os.write(ready, b".")

def found():
    try:
        bundle = load_bundle(target)
    except BundleError as err:
        return str(err)
    return ("first", "second")[int(bundle.manifest["source"]["sha256"] == digests[1])]

digests = [load_bundle(source).manifest["source"]["sha256"] for source in sources]
delays, outcomes, missing = random.Random(20102), [], 0
for _ in range(kills):
    begun, ready = os.pipe()
    child = os.fork()
    if child == 0:
        replace_for_ever(ready)
    os.read(begun, 1)  # it has replaced the bundle once
    end = time.monotonic() + delays.uniform(0, 0.02)
    while time.monotonic() < end:
        missing += not (target / "manifest.json").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    outcomes.append(found())
    os.close(begun)
    os.close(ready)
left = [entry.name for entry in target.parent.iterdir() if entry != target]
print(json.dumps({"outcomes": outcomes, "missing": missing, "left": left}))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two bundles of different weights."""
    folder = tmp_path_factory.mktemp("sources")
    models = [written(tiny_cnn(seed=seed), folder, f"{seed}.onnx") for seed in (20102, 7459)]
    return [export(model, model.with_suffix(".ada"), activation="softmax").bundle.path for model in models]


@pytest.mark.skipif(sys.platform != "linux", reason="where two names cannot change places, there is a moment between")
def test_a_bundle_can_be_loaded_whenever_its_replacement_is_killed(sources: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "network.ada"
    shutil.copytree(sources[0], target)
    done = subprocess.run(
        [sys.executable, "-c", REPLACER, target, str(KILLS), *sources],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert set(report["outcomes"]) == {"first", "second"}
    assert len(report["outcomes"]) == KILLS
    assert report["missing"] == 0
    # The kills did come in between, and what they left is hidden, is no obstacle, and has not become the target.
    assert report["left"]
    assert all(name.startswith(".network.ada.") for name in report["left"])
    again = export(sources[1].with_suffix(".onnx"), target, activation="softmax", force=True).bundle
    assert again.manifest == load_bundle(sources[1]).manifest
