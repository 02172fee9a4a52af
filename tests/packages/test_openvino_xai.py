"""openvino-xai beside the engine and the float64 reference; it runs in another environment and leaves .npy files."""

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import engine
from tests.packages import squeezenet
from tests.packages.conftest import Subject, correlation
from tests.reference import attribution, cam

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-openvino" / "bin" / "python"
MASKS, CELLS = 48, 7

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs openvino-xai in .venv-openvino: make openvino")


@pytest.fixture(scope="module")
def folder(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its maps."""
    work = tmp_path_factory.mktemp("openvino")
    path = squeezenet.write_smaller(subject.source, work / "model.onnx")
    model = onnx.load(path)
    node = next(node.name for node in model.graph.node if squeezenet.LAYER in node.output)
    np.save(work / "image.npy", subject.image)
    arguments = ["--target", subject.target, "--layer", node, "--masks", MASKS, "--cells", CELLS]
    command = [PYTHON, ROOT / "scripts" / "openvino_maps.py", work, *arguments]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return work


def test_recipro_cam(subject: Subject, folder: Path) -> None:
    # Conventions: one cell, no Gaussian; the score is what the network gives, here the logit; no upsampling.
    a, _ = subject.maps_and_gradients
    reference = cam.recipro_cam(a, subject.target, subject.model.head, "none", gaussian=False)
    np.testing.assert_allclose(np.load(folder / "recipro_cam.npy"), reference, rtol=1e-4, atol=1e-4)


def test_rise_of_the_same_masks(subject: Subject, folder: Path) -> None:
    # Conventions: masks are upsampled by cubics and cut to [0, 1]; the sum is not divided; scores as the network's.
    masks = np.load(folder / "rise_masks.npy")
    reference = cam.rise(subject.image[0], masks, subject.target, subject.model, "none", 0.5)
    np.testing.assert_allclose(np.load(folder / "rise.npy") / (MASKS * 0.5), reference, rtol=1e-4)


def test_the_engine_agrees_on_recipro_cam(subject: Subject, folder: Path, explainer: engine.Explainer) -> None:
    found = explainer.explain(
        subject.image, subject.target, method="recipro-cam", gaussian=False, activation="none"
    ).heatmap
    theirs = attribution.heatmap(np.load(folder / "recipro_cam.npy"), subject.image.shape[2:])
    np.testing.assert_allclose(found, theirs, atol=1e-3)


def test_the_engine_is_close_on_rise(subject: Subject, folder: Path, explainer: engine.Explainer) -> None:
    # The same seed gives the same grids and places: only the upsampling differs.
    found = explainer.explain(
        subject.image, subject.target, method="rise", masks=MASKS, cells=CELLS, activation="none"
    ).heatmap
    assert correlation(found, np.load(folder / "rise.npy")) > 0.95
