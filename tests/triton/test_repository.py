"""The model repository: what Triton reads in it, and a real Triton server that answers with it: `make triton`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import engine
from engine.export import export
from tests.tiny_cnn import LABELS, photo_pixels, write_tiny_cnn

pytest.importorskip("pytriton", reason="needs nvidia-pytriton in .venv-triton: make triton")
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import model_config_pb2

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(np.__file__).parents[1]
START_S = 120


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    model, preprocess, labels = write_tiny_cnn(folder)
    options = {"preprocess": preprocess, "labels": labels, "activation": "softmax", "embed_preprocess": True}
    report = export(model, triton=folder / "models", **options)
    assert [path.name for path in report.written] == ["tiny-explain", "tiny-explain-engine"]
    return folder / "models"


def config_of(file: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


@pytest.mark.parametrize(("file", "kind"), [("config.pbtxt", "KIND_CPU"), ("configs/gpu.pbtxt", "KIND_GPU")])
def test_the_graph(file: str, kind: str, repository: Path) -> None:
    config = config_of(repository / "tiny-explain" / file)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny-explain", "onnxruntime", 0)
    (group,) = config.instance_group
    assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == kind
    assert not config.optimization.HasField("execution_accelerators")
    graph = engine.backends.create_backend("cpu").open(repository / "tiny-explain" / "1" / "model.onnx")
    kinds = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "float32", "TYPE_INT64": "int64"}
    for listed, tensors in ((config.input, graph.inputs), (config.output, graph.outputs)):
        for entry, tensor in zip(listed, tensors, strict=True):
            assert kinds[model_config_pb2.DataType.Name(entry.data_type)] == tensor.dtype
            assert [None if size == -1 else size for size in entry.dims] == list(tensor.shape)
    (warmup,) = config.model_warmup
    assert {name: list(given.dims) for name, given in warmup.inputs.items()} == {
        "image": [24, 32, 3],
        "target": [1],
        "max_masks": [1],
    }


@pytest.mark.parametrize(
    ("file", "kind", "device"), [("config.pbtxt", "KIND_CPU", "cpu"), ("configs/gpu.pbtxt", "KIND_GPU", "cuda")]
)
def test_the_engine(file: str, kind: str, device: str, repository: Path) -> None:
    folder = repository / "tiny-explain-engine"
    config = config_of(folder / file)
    assert (config.name, config.backend) == ("tiny-explain-engine", "python")
    (group,) = config.instance_group
    assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == kind
    assert config.parameters["device"].string_value == device
    assert device in engine.backends.BACKENDS
    assert [entry.name for entry in config.input] == ["image", "target", "max_masks"]
    assert "logits" not in [entry.name for entry in config.output]
    assert engine.load(folder / "1" / "model.ada").bundle.labels == LABELS


def test_prepared_images(tmp_path: Path) -> None:
    model, _, _ = write_tiny_cnn(tmp_path)
    export(model, tmp_path / "my net.ada", triton=tmp_path / "models", activation="none")
    for name in ("my-net-explain", "my-net-explain-engine"):
        image = config_of(tmp_path / "models" / name / "config.pbtxt").input[0]
        assert model_config_pb2.DataType.Name(image.data_type) == "TYPE_FP32"
        assert list(image.dims) == [1, 3, 24, 32]


def test_models_that_are_there_are_kept(repository: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(repository, tmp_path / "models")
    model, _, _ = write_tiny_cnn(tmp_path)
    steps: list[str] = []
    with pytest.raises(engine.OptionError, match=r"tiny-explain: exists already; choose another repository, or repl"):
        export(model, triton=copied, activation="none", step=steps.append)
    before = (copied / "tiny-explain" / "1" / "model.onnx").read_bytes()
    export(model, triton=copied, activation="none", force=True)
    assert sorted(path.name for path in copied.iterdir()) == ["tiny-explain", "tiny-explain-engine"]
    assert (copied / "tiny-explain" / "1" / "model.onnx").read_bytes() != before
    (copied / "tiny-explain-engine" / "2").mkdir()
    with pytest.raises(engine.OptionError, match=r"tiny-explain-engine: is no model that --triton wrote, so --force"):
        export(model, triton=copied, activation="none", force=True, step=steps.append)
    assert steps == []
    (tmp_path / "photo").write_bytes(b"")
    with pytest.raises(engine.OptionError, match="photo: cannot be written: "):
        export(model, triton=tmp_path / "photo", activation="none")


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A Triton server with the Python backend, and the ports at which it listens for HTTP and gRPC."""
    found = PACKAGES / "pytriton" / "tritonserver"
    models = tmp_path_factory.mktemp("served")
    shutil.copytree(repository / "tiny-explain-engine", models / "tiny-explain-engine")
    model, _, _ = write_tiny_cnn(models.parent)
    prepared = export(model, models.parent / "prepared.ada", triton=models.parent / "more", activation="none").written[
        1
    ]
    shutil.copytree(prepared, models / prepared.name)  # it is ready only if its warm-up went well
    ports = [free_port() for _ in range(3)]
    library = Path(sys.base_prefix) / "lib"
    paths = {
        "LD_LIBRARY_PATH": f"{PACKAGES / 'nvidia_pytriton.libs'}:{library}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{PACKAGES}:{ROOT}",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    backends = tmp_path_factory.mktemp("backends") / "python"
    shutil.copytree(found / "backends" / "python", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(found / "python_backend_stubs" / version / "triton_python_backend_stub", backends)
    command = [found / "bin" / "tritonserver", f"--model-repository={models}"]
    command += [f"--backend-directory={backends.parent}", "--allow-metrics=false"]
    command += [f"--http-port={ports[0]}", f"--grpc-port={ports[1]}"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **paths}, stdout=output, stderr=output)
    try:
        wait_until_ready(process, ports[0], log)
        yield ports[0], ports[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}")
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(errors="replace")[-6000:]
        try:
            if client.is_server_ready() and client.is_model_ready("prepared-explain-engine"):
                return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-6000:])


@pytest.mark.parametrize("protocol", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_a_server_answers(protocol, server: tuple[int, int], tiny_bundle: Path) -> None:
    port = server[0] if protocol is tritonclient.http else server[1]
    client = protocol.InferenceServerClient(f"127.0.0.1:{port}")

    def ask(photo: np.ndarray, target: int, max_masks: int):
        given = {"image": photo, "target": np.array([target]), "max_masks": np.array([max_masks])}
        inputs = []
        for name, value in given.items():
            kind = "UINT8" if name == "image" else "INT64"
            inputs.append(protocol.InferInput(name, list(value.shape), kind))
            inputs[-1].set_data_from_numpy(value)
        return client.infer("tiny-explain-engine", inputs)

    with engine.load(tiny_bundle) as explainer:
        for target, max_masks in ((-1, 0), (3, 0), (2, 7)):
            found = ask(photo_pixels(70, 50), target, max_masks)
            result = explainer.explain(
                photo_pixels(70, 50), None if target == -1 else target, max_masks=max_masks or None
            )
            np.testing.assert_allclose(found.as_numpy("heatmap"), result.heatmap, rtol=0, atol=1e-5)
            assert found.as_numpy("target_index").tolist() == [result.target]
            assert found.as_numpy("class_score")[0] == pytest.approx(result.class_score, abs=1e-6)
            assert found.as_numpy("selected").tolist() == [layer.selected for layer in result.layers]
            assert found.as_numpy("scored").tolist() == [layer.scored for layer in result.layers]
    with pytest.raises(tritonclient.utils.InferenceServerException, match="target 99: is out of range"):
        ask(photo_pixels(), 99, 0)
