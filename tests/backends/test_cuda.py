"""Device `cuda` as far as it can be checked without a GPU: what is asked of ONNX Runtime, and what is missing."""

import ctypes
import gc
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import engine
from engine.backends import BACKENDS, bound
from engine.backends.half import to_float16
from engine.backends.onnxruntime_cpu import session_options
from engine.backends.onnxruntime_cuda import CUDA, cuda_options, expect_all_on, expect_cuda, open_session
from engine.bundle import load_bundle
from engine.errors import DeviceMemoryError
from engine.kernels.launch import SOURCES
from engine.resident import BATCH_SIZES, BatchStopwatch
from engine.tuning import Setup
from tests.emulator import EmulatedBackend, EmulatedGpu, EmulatedGraph
from tests.models import PHOTOS, VOC, exported
from tests.tiny_cnn import photo_pixels

needs_gxx = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to run CUDA kernels without a GPU")


class CudaError(Exception):
    pass


def fake_cupy(driver: int = 13020, runtime: int = 13000, devices: int | None = 1) -> SimpleNamespace:
    """CuPy as `expect_cuda` sees it."""

    def count() -> int:
        if devices is None:
            raise CudaError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        return devices

    return SimpleNamespace(
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(
                CUDARuntimeError=CudaError,
                driverGetVersion=lambda: driver,
                runtimeGetVersion=lambda: runtime,
                getDeviceCount=count,
            )
        )
    )


@pytest.fixture
def on_gpu_build(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """ONNX Runtime's build for CUDA, whose libraries can be loaded, and CuPy with one GPU."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: None)
    return monkeypatch


@pytest.mark.usefixtures("on_gpu_build")
def test_nothing_is_missing() -> None:
    expect_cuda()


def test_without_cupy(on_gpu_build: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    on_gpu_build.setitem(sys.modules, "cupy", None)
    with pytest.raises(engine.MissingRuntimeError, match=r"needs CuPy, which .* pip install 'ada-sise-engine\[gpu\]'"):
        engine.load(tiny_bundle, device="cuda")


def test_onnx_runtime_for_cpus(on_gpu_build: pytest.MonkeyPatch) -> None:
    on_gpu_build.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(engine.MissingRuntimeError, match="is the build for CPUs; expected onnxruntime-gpu"):
        expect_cuda()


@pytest.mark.parametrize(
    ("cupy", "says"),
    [
        (fake_cupy(driver=0, devices=None), r"there is no NVIDIA driver \(libcuda\.so\.1\)"),
        (fake_cupy(driver=12080, devices=None), r"driver is made for CUDA 12\.8; expected 13\.0 or newer"),
        (fake_cupy(devices=None), "no GPU can be used: cudaErrorInsufficientDriver"),
        (fake_cupy(devices=0), "there is no NVIDIA GPU that this process may use; check CUDA_VISIBLE_DEVICES"),
    ],
)
def test_no_gpu_or_driver(cupy: SimpleNamespace, says: str, on_gpu_build: pytest.MonkeyPatch) -> None:
    on_gpu_build.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(engine.BackendError, match=says):
        expect_cuda()


def test_a_library_is_missing(on_gpu_build: pytest.MonkeyPatch) -> None:
    def load(name: str, **_: int) -> None:
        if "cuda" in name:
            raise OSError("libcudnn.so.9: cannot open shared object file: No such file or directory")

    on_gpu_build.setattr(ctypes, "CDLL", load)
    with pytest.raises(engine.MissingRuntimeError, match=r"provider for cuda cannot be loaded: libcudnn\.so\.9: .*gpu"):
        expect_cuda()


@pytest.mark.parametrize("given", [{"threads": 2}, {"lanes": 1}, {"spinning": True}, {"providers": [CUDA]}])
def test_choices_that_a_gpu_does_not_have(given: dict[str, object], tiny_bundle: Path) -> None:
    (name,) = given
    with pytest.raises(engine.OptionError, match=f"{name} is .* expected None on device 'cuda'"):
        engine.load(tiny_bundle, device="cuda", **given)


def test_provider_options() -> None:
    assert cuda_options(4711) == {
        "device_id": "0",
        "user_compute_stream": "4711",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "0",
    }
    assert cuda_options(1, tf32=True)["use_tf32"] == "1"
    assert cuda_options(1, cuda_graph=True)["enable_cuda_graph"] == "1"


def test_nodes_that_run_elsewhere_are_named(tiny_bundle: Path) -> None:
    options = session_options(threads=1)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    file = tiny_bundle / "forward.onnx"
    session = open_session("forward.onnx", str(file), options, [("CPUExecutionProvider", {})])
    expect_all_on("forward.onnx", session, "CPUExecutionProvider")
    with pytest.raises(engine.BackendError, match=r"^forward\.onnx: \d+ nodes do not run on CUDAExec.*: .*\(Conv\)"):
        expect_all_on("forward.onnx", session, CUDA)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", DeviceMemoryError),
        ("Available memory of 1 is smaller than requested bytes of 2", DeviceMemoryError),
        ("BFCArena: Failed to allocate memory for requested buffer of size 5", DeviceMemoryError),
        ("CUDNN_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("Invalid input name", engine.BackendError),
    ],
)
@needs_gxx
def test_failures_of_a_run(said: str, kind: type, tiny_bundle: Path) -> None:
    class Session(ort.InferenceSession):
        def run_with_iobinding(self, *_: object) -> None:
            raise RuntimeError(said)

    gpu = EmulatedGpu()
    graph = bound.BoundSession("forward.onnx", Session(str(tiny_bundle / "forward.onnx")), gpu.memory, "cpu")
    images, logits = np.zeros((2, 3, 24, 32), np.float32), np.zeros((2, 5), np.float32)
    run = graph.bind([(images, images.shape)], [(logits, logits.shape)])
    with pytest.raises(engine.BackendError, match="ONNX Runtime failed: ") as caught:
        run()
    assert type(caught.value) is kind


@pytest.mark.parametrize("images", [True, False])
def test_float16(images: bool, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The types of what goes in and out, and logits within what 10 bits of mantissa leave."""
    explainer = exported(assets, "efficientnet-lite0-voc20", tmp_path_factory.getbasetemp()).explainer
    x = explainer.probe(assets / "images" / PHOTOS[VOC][0]).image
    session = ort.InferenceSession(to_float16(explainer.bundle.forward, images=images), session_options(threads=2))
    kind = np.float16 if images else np.float32
    (image,) = session.get_inputs()
    assert image.type == ("tensor(float16)" if images else "tensor(float)")
    (found,) = session.run(None, {image.name: x.astype(kind)})
    assert found.dtype == np.float32
    expected = explainer.classify(assets / "images" / PHOTOS[VOC][0], "none")
    assert 0 < np.abs(found[0] - expected).max() < 0.01 * np.abs(expected).max()


def test_a_graph_that_cannot_be_converted(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    from onnxruntime.transformers import float16

    def convert(*_: object, **__: object) -> None:
        raise ValueError("no such\nthing")

    monkeypatch.setattr(float16, "convert_float_to_float16", convert)
    with pytest.raises(engine.BackendError, match=r"forward\.onnx: cannot be converted to float16: no such thing"):
        to_float16(tiny_bundle / "forward.onnx", images=True)


@needs_gxx
def test_load_measures_batch_sizes_once(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `load` and `explain`, on an emulated GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(BACKENDS, "cuda", lambda **_: EmulatedBackend())
    with engine.load(tiny_bundle, device="cuda") as gpu, engine.load(tiny_bundle) as cpu:
        found, expected = gpu.explain(photo_pixels()), cpu.explain(photo_pixels())
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)
    files = [file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.json")]
    assert sum('"device": "cuda"' in text for text in files) == 1
    monkeypatch.setattr(BatchStopwatch, "__call__", lambda *_: pytest.fail("it was measured before"))
    engine.load(tiny_bundle, device="cuda").close()


@needs_gxx
def test_with_cuda_graphs_batch_sizes_are_measured_anew(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("engine.resident._SWEEP_S", 0.1)
    monkeypatch.setitem(BACKENDS, "cuda", lambda **_: EmulatedBackend())
    monkeypatch.setattr("engine.backends._create_cuda", lambda **_: EmulatedBackend())
    for cuda_graph in (False, True):
        engine.load(tiny_bundle, device="cuda", cuda_graph=cuda_graph).close()
    assert len(list(tmp_path.rglob("*.json"))) == 2


@needs_gxx
def test_an_interrupt_leaves_no_run_under_way(tiny_bundle: Path) -> None:
    """What comes next on the stream would be part of what is captured."""
    done = []

    class Session(ort.InferenceSession):
        def run_with_iobinding(self, *_: object) -> None:
            time.sleep(0.3)
            done.append(True)

    class Worker(ThreadPoolExecutor):
        def submit(self, *arguments: Any) -> Any:
            future = super().submit(*arguments)

            def interrupted() -> None:
                raise KeyboardInterrupt

            future.result = interrupted  # type: ignore[method-assign]
            return future

    session = Session(str(tiny_bundle / "forward.onnx"))
    graph = bound.BoundSession("forward.onnx", session, EmulatedGpu().memory, "cpu", Worker(1))
    images, logits = np.zeros((2, 3, 24, 32), np.float32), np.zeros((2, 5), np.float32)
    run = graph.bind([(images, images.shape)], [(logits, logits.shape)])
    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == [True]


@needs_gxx
def test_arrays_stay_while_a_run_may_use_them(tiny_bundle: Path) -> None:
    session = ort.InferenceSession(str(tiny_bundle / "forward.onnx"), session_options(threads=1))
    graph = bound.BoundSession("forward.onnx", session, EmulatedGpu().memory, "cpu")
    images, logits = np.zeros((2, 3, 24, 32), np.float32), np.zeros((2, 5), np.float32)
    run = graph.bind([(images, images.shape)], [(logits, logits.shape)])
    kept = [weakref.ref(images), weakref.ref(logits)]
    del images, logits
    run()
    assert all(own() is not None for own in kept)
    del run
    gc.collect()
    assert all(own() is None for own in kept)


@needs_gxx
def test_batch_sizes(tiny_bundle: Path) -> None:
    def setup(size: int) -> Setup:
        return Setup(threads=1, lanes=1, spinning=False, batch_size=size)

    gpu = EmulatedGpu(fits=40)
    rate = BatchStopwatch(load_bundle(tiny_bundle), gpu, "float32")
    assert rate(setup(16)) > 0
    assert rate(setup(64)) == 0
    assert gpu.runs.count("forward.onnx of 16") > 2
    assert list(BATCH_SIZES) == sorted(BATCH_SIZES)
    rate._ends = 0.0
    assert rate(setup(16)) == 0


@needs_gxx
def test_what_a_runtime_builds_for_a_size_is_not_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = EmulatedGraph.bind

    def slow_bind(*arguments: Any) -> Callable[[], None]:
        time.sleep(0.5)
        return bind(*arguments)

    monkeypatch.setattr(EmulatedGraph, "bind", slow_bind)
    monkeypatch.setattr("engine.resident._SWEEP_S", 0.4)
    monkeypatch.setattr("engine.resident._SLOT_MS", 1.0)
    rate = BatchStopwatch(load_bundle(tiny_bundle), EmulatedGpu(), "float32")
    for size in (16, 32):
        assert rate(Setup(threads=1, lanes=1, spinning=False, batch_size=size)) > 0


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc to compile CUDA kernels")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_kernels_compile(architecture: str, tmp_path: Path) -> None:
    forms = {
        "mask": [
            f"-DBATCH={batch} -DCHANNELS={c} -DVECTOR={v} -DBASELINE={c // 3}"
            for batch, c, v in ((32, 3, 4), (16, 3, 8), (16, 1, 1))
        ]
    }
    for file in sorted(SOURCES.glob("*.cu")):
        for definitions in forms.get(file.stem, [""]):
            options = ["-std=c++17", "--fmad=false", f"-arch={architecture}", *definitions.split()]
            command = ["nvcc", *options, "-Werror", "all-warnings", "-cubin", str(file), "-o", str(tmp_path / "out")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
