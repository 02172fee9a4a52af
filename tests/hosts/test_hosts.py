"""`explain.onnx` in hosts that nobody here wrote: the same heatmap in each.

Node and browser are installed by `make hosts`; without them their tests are skipped.
"""

import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias
from urllib.parse import urlencode, urlsplit

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from PIL import Image

import engine
from engine.export import export
from engine.export.explain.single_file import write_single_file
from engine.image import prepare
from tests.models import PHOTOS, VOC, exported
from tests.reference import agreement
from tests.tiny_cnn import photo_pixels, write_photo, write_tiny_cnn

HERE = Path(__file__).parent
PACKAGES = HERE / "node_modules"
NODE, BROWSER = shutil.which("node"), shutil.which("chromium") or shutil.which("google-chrome")
TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}
WAIT_S = 240

Outputs: TypeAlias = Mapping[str, NDArray[np.float64]]
Host: TypeAlias = Callable[[Path, NDArray[np.float32], int, int], Outputs]


def in_openvino(model: Path, image: NDArray[np.float32], target: int, max_masks: int) -> Outputs:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([image, np.array([target]), np.array([max_masks])])
    names = ("heatmap", "target_index", "class_score", "selected", "scored")
    return {name: np.asarray(found[name], np.float64) for name in names}


def in_node(model: Path, image: NDArray[np.float32], target: int, max_masks: int) -> Outputs:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(image.tobytes())
        sizes = json.dumps(image.shape)
        command = [str(NODE), str(HERE / "node.mjs"), str(model), file.name, sizes, str(target), str(max_masks)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return outputs_of(json.loads(done.stdout))


def in_browser(model: Path, image: NDArray[np.float32], target: int, max_masks: int) -> Outputs:
    answers: SimpleQueue[bytes] = SimpleQueue()
    served = {"/model": model.read_bytes(), "/image": image.tobytes()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, served, answers))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = urlencode({"sizes": json.dumps(image.shape), "target": target, "max_masks": max_masks})
    address = f"http://127.0.0.1:{server.server_port}/page.html?{asked}"
    with tempfile.TemporaryDirectory() as profile:
        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            answer = json.loads(answers.get(timeout=WAIT_S))
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
            server.server_close()
    assert "error" not in answer, answer["error"]
    return outputs_of(answer)


class Pages(BaseHTTPRequestHandler):
    """Serves the files of this folder, the model and the image; takes the page's answer."""

    def __init__(self, served: Mapping[str, bytes], answers: "SimpleQueue[bytes]", *arguments: object) -> None:
        self.served, self.answers = served, answers
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        file = HERE / path.lstrip("/")
        content = self.served.get(path) or (file.read_bytes() if file.is_file() else None)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Type", TYPES.get(file.suffix, "application/octet-stream"))
        self.end_headers()
        self.wfile.write(content or b"")

    def do_POST(self) -> None:
        self.answers.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def outputs_of(answer: Mapping[str, Sequence[float]]) -> Outputs:
    return {name: np.array(values) for name, values in answer.items()}


installed = pytest.mark.skipif(NODE is None or not PACKAGES.is_dir(), reason="needs Node and its packages: make hosts")
browsing = pytest.mark.skipif(
    BROWSER is None or not PACKAGES.is_dir(), reason="needs Chromium, and Node's packages: make hosts"
)
HOSTS = [
    pytest.param(in_openvino, id="openvino"),
    pytest.param(in_node, id="node", marks=installed),
    pytest.param(in_browser, id="browser", marks=browsing),
]


def check(found: Outputs, result: engine.Explanation) -> None:
    heatmap = found["heatmap"].reshape(result.heatmap.shape)
    views = list(result.visualization_maps)
    agreement.assert_heatmap(heatmap, result.heatmap, views, [layer.fusion_threshold for layer in result.layers])
    assert found["target_index"].tolist() == [result.target]
    np.testing.assert_allclose(found["class_score"], [result.class_score], rtol=0, atol=1e-5)
    assert found["selected"].tolist() == [layer.selected for layer in result.layers]
    assert found["scored"].tolist() == [layer.scored for layer in result.layers]


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[engine.Explainer, Path]:
    explainer, file = engine.load(tiny_bundle), tmp_path_factory.mktemp("hosts") / "explain.onnx"
    write_single_file(explainer.bundle, file)
    return explainer, file


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("target", [-1, 3])
def test_the_same_heatmap(host: Host, target: int, tiny: tuple[engine.Explainer, Path]) -> None:
    explainer, file = tiny
    bundle = explainer.bundle
    image = prepare(photo_pixels(), bundle.preprocess, bundle.image_shape).array
    result = explainer.explain(image, None if target == -1 else target, visualization_maps=True)
    check(host(file, image, target, 0), result)


@pytest.mark.parametrize("host", HOSTS[1:])
def test_the_same_masks_in_a_budget(host: Host, tiny: tuple[engine.Explainer, Path]) -> None:
    """OpenVINO computes in float32, and takes other ones among masks that tell equally much."""
    explainer, file = tiny
    bundle = explainer.bundle
    image = prepare(photo_pixels(), bundle.preprocess, bundle.image_shape).array
    check(host(file, image, -1, 7), explainer.explain(image, max_masks=7, visualization_maps=True))


@pytest.mark.parametrize("host", HOSTS[1:])
def test_a_budget_and_a_layer_without_masks(host: Host, tiny: tuple[engine.Explainer, Path]) -> None:
    """ONNX Runtime up to 1.31, which these hosts have, refuses some products of nothing."""
    explainer, file = tiny
    image = np.full((1, *explainer.bundle.image_shape), -2.0, np.float32)
    result = explainer.explain(image, 1, max_masks=2, visualization_maps=True)
    assert any(layer.selected == layer.flat for layer in result.layers)
    assert not result.complete
    check(host(file, image, 1, 2), result)


@pytest.mark.parametrize("interp", ["bilinear", "bicubic", "lanczos"])
def test_a_photo_in_openvino(interp: str, tmp_path: Path) -> None:
    model, settings, _ = write_tiny_cnn(tmp_path)
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "interp": interp}))
    explainer = export(model, tmp_path / "photos.ada", preprocess=settings, activation="softmax", embed_preprocess=True)
    photo = photo_pixels(300, 200)
    with engine.load(explainer.bundle.path, tune=False) as own:
        result = own.explain(photo, 2, visualization_maps=True)
    check(in_openvino(explainer.bundle.explain, photo, 2, 0), result)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example for Node beside its packages, where Node looks for them, a model and a photo."""
    folder = tmp_path_factory.mktemp("example")
    model, preprocess, _ = write_tiny_cnn(folder)
    file = folder / "explain.onnx"
    export(model, single_file=file, preprocess=preprocess, activation="softmax", embed_preprocess=True)
    write_photo(folder / "photo.png")
    (folder / "node_modules").symlink_to(PACKAGES)
    shutil.copy(HERE.parents[1] / "examples" / "node" / "explain.mjs", folder)
    return folder


def run_example(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(NODE), "explain.mjs", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=folder)


@installed
def test_the_example_for_node(tiny_bundle: Path, example: Path) -> None:
    done = run_example(example, "explain.onnx", "photo.png", "heatmap.png", "2")
    result = engine.load(tiny_bundle).explain(example / "photo.png", 2)
    told = re.fullmatch(r"class 2: score (\S+), (\d+) masks\n", done.stdout)
    assert told is not None, done.stderr
    assert (float(told[1]), int(told[2])) == (pytest.approx(result.class_score, rel=1e-3), result.scored)
    with Image.open(example / "heatmap.png") as picture:
        grey = np.asarray(picture.convert("L"), np.float64)
    assert np.abs(grey - 255 * result.heatmap).max() <= 0.51


MISTAKES = [
    (
        "explain.onnx none.png x.png",
        "none.png: ENOENT: no such file or directory, open 'none.png'; expected a PNG picture",
    ),
    ("explain.onnx labels.txt x.png", "labels.txt: unrecognised content at end of stream; expected a PNG picture"),
    ("tiny.onnx photo.png x.png", "tiny.onnx: takes no photos; expected EXPLAINER"),
    ("PREPARED photo.png x.png", "PREPARED: takes no photos; expected EXPLAINER"),
    (
        "photo.png photo.png x.png",
        "photo.png: Load model from photo.png failed:Protobuf parsing failed.; expected EXPLAINER",
    ),
    ("explain.onnx photo.png x.png x", "TARGET is x; expected a whole number from -1 to 4"),
    ("explain.onnx photo.png x.png 5", "TARGET is 5; expected a whole number from -1 to 4"),
    ("explain.onnx photo.png x.png -2", "TARGET is -2; expected a whole number from -1 to 4"),
    ("explain.onnx photo.png x.png 0 -1", "MAX_MASKS is -1; expected a whole number from 0 to 9223372036854775807"),
    ("explain.onnx photo.png photo.png", "photo.png: is the model or the photo; expected another file for the heatmap"),
    (
        "explain.onnx photo.png explain.onnx",
        "explain.onnx: is the model or the photo; expected another file for the heatmap",
    ),
    (
        "explain.onnx photo.png none/x.png",
        "none/x.png: ENOENT: no such file or directory, open 'none/x.png'; expected a file that can be written",
    ),
]


@installed
@pytest.mark.parametrize(("words", "text"), MISTAKES)
def test_a_mistake_is_one_line_of_the_example(words: str, text: str, example: Path, tiny_bundle: Path) -> None:
    prepared = str(tiny_bundle / "explain.onnx")
    done = run_example(example, *words.replace("PREPARED", prepared).split())
    text = text.replace("PREPARED", prepared)
    text = text.replace("EXPLAINER", "an explain.onnx that was exported with --embed-preprocess")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {text}\n")


@pytest.mark.parametrize("host", HOSTS)
def test_a_pretrained_network(
    host: Host, assets: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    explainer = exported(assets, "resnet50-thin-voc20", tmp_path_factory.getbasetemp()).explainer
    write_single_file(explainer.bundle, tmp_path / "explain.onnx")
    photo = assets / "images" / PHOTOS[VOC][0]
    image = prepare(photo, explainer.bundle.preprocess, explainer.bundle.image_shape).array
    most = 0 if host is in_openvino else 12  # one thread of WebAssembly is slow
    result = explainer.explain(image, max_masks=most or None, visualization_maps=True)
    check(host(tmp_path / "explain.onnx", image, -1, most), result)
