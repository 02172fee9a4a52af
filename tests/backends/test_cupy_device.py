"""CuPy's memory and kernels, with a CuPy whose GPU is emulated."""

import ctypes
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import current_thread
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

import engine
from engine import interop
from engine.backends import bound, onnxruntime_cuda
from engine.errors import DeviceMemoryError
from tests.emulator.cupy import CudaError, fake
from tests.tiny_cnn import photo_pixels

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to run CUDA kernels without a GPU")

NAME = "engine.backends.cupy_device"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[SimpleNamespace], ModuleType]]:
    """Imports the module with a CuPy."""

    def loaded(cupy: SimpleNamespace) -> ModuleType:
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.delitem(sys.modules, NAME, raising=False)
        return importlib.import_module(NAME)

    yield loaded
    sys.modules.pop(NAME, None)


def test_memory(on: Callable[[SimpleNamespace], ModuleType]) -> None:
    device = on(fake()).CupyDevice()
    assert device.name == "a GPU"
    array = device.upload(np.arange(6).reshape(2, 3)[:, ::-1])
    assert device.download(array).tolist() == [[2, 1, 0], [5, 4, 3]]
    device.copy(array, device.upload(np.array([[1, 2, 3], [4, 5, 6]])))
    assert device.download(array).tolist() == [[1, 2, 3], [4, 5, 6]]
    device.clear(array)
    assert device.download(array).tolist() == [[0] * 3] * 2
    assert device.address(array) == array.ctypes.data
    first, second = device.mark(), device.mark()
    second.wait()
    assert second.ms_since(first) >= 0


def test_streams(on: Callable[[SimpleNamespace], ModuleType]) -> None:
    cupy = fake()
    device = on(cupy).CupyDevice()
    device.come_after(77)
    assert len(device.stream.waited) == 1
    device.come_before(78)
    assert cupy.asked == [("record", True, 77), ("wait", True, 78)]


def test_failures(on: Callable[[SimpleNamespace], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = fake(fits=100)
    device = on(cupy).CupyDevice()
    with pytest.raises(DeviceMemoryError, match="the GPU has no more memory: Out of memory allocating"):
        device.empty((101,), np.uint8)

    def fail(*_: object, **__: object) -> None:
        raise CudaError("cudaErrorIllegalAddress:\nan illegal memory access")

    monkeypatch.setattr(cupy, "array", fail)
    with pytest.raises(engine.BackendError, match="the GPU failed: cudaErrorIllegalAddress: an illegal memory access"):
        device.upload(np.zeros(1))


def test_images_of_others(on: Callable[[SimpleNamespace], ModuleType]) -> None:
    device = on(fake()).CupyDevice()
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    pointer = interop.DevicePointer(address=image.ctypes.data, shape=(4, 3), strides=(4, 16))
    assert device.adopt(pointer).tolist() == image.T.tolist()
    assert device.adopt(SimpleNamespace(__cuda_array_interface__={}, __array__=lambda *_, **__: image)).shape == (3, 4)
    assert device.adopt(image).tolist() == image.tolist()  # over DLPack
    with pytest.raises(engine.ImageError, match="cannot be taken over DLPack: on the CPU; expected one on the GPU"):
        device.adopt(type("Cpu", (list,), {"__dlpack__": None})())
    with pytest.raises(engine.ImageError, match="the image is a str; expected a DevicePointer"):
        device.adopt("photo.jpg")


@pytest.mark.parametrize(("current", "primary"), [(0, None), (5, 5), (5, 6)])
def test_contexts(
    current: int,
    primary: int | None,
    on: Callable[[SimpleNamespace], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cupy = fake()
    cupy.cuda.driver.ctxGetCurrent = lambda: current

    def retain(place: object, device: int) -> None:
        assert device == 0
        place._obj.value = primary

    library = SimpleNamespace(cuDevicePrimaryCtxRetain=retain, cuDevicePrimaryCtxRelease_v2=lambda _: None)
    module = on(cupy)
    monkeypatch.setattr(
        module, "ctypes", SimpleNamespace(CDLL=lambda _: library, c_void_p=ctypes.c_void_p, byref=ctypes.byref)
    )
    if current in (0, primary):
        module.CupyDevice()
        return
    with pytest.raises(
        engine.BackendError, match=r"expected the GPU's primary context, .* instead of pycuda\.autoinit"
    ):
        module.CupyDevice()


def test_the_whole_way(
    on: Callable[[SimpleNamespace], ModuleType], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Device `cuda`, whose graphs run on the CPU; what was asked of ONNX Runtime is as it should be.

    Captured runs are of one thread, whoever explains: ONNX Runtime has captured graphs for that thread alone.
    """
    on(fake())
    opened: list[dict[str, str]] = []
    open_session, own_bind = onnxruntime_cuda.open_session, bound.BoundSession.bind
    own_run, ran = ort.InferenceSession.run_with_iobinding, dict[str, set[str]]()
    captured, checked = dict[str, set[int]](), list[str]()

    def on_cpu(name: str, content: str | bytes, options: ort.SessionOptions, providers: list[object]) -> object:
        ((provider, asked),) = providers
        assert provider == onnxruntime_cuda.CUDA
        opened.append(asked)
        return open_session(name, content, options, [("CPUExecutionProvider", {})])

    def bind(self: bound.BoundSession, *arrays: object) -> Callable[[], None]:
        assert self._place == ("cuda", 0)
        self._place = ("cpu", 0)
        try:
            return own_bind(self, *arrays)
        finally:
            self._place = ("cuda", 0)

    def run(self: ort.InferenceSession, binding: object, options: ort.RunOptions) -> None:
        ran.setdefault(self.get_outputs()[-1].name, set()).add(current_thread().name)
        if current_thread().name.startswith("cuda-graphs"):
            captured.setdefault(options.get_run_config_entry("gpu_graph_id"), set()).add(id(binding))
        own_run(self, binding, options)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run)
    monkeypatch.setattr(onnxruntime_cuda, "expect_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime_cuda, "open_session", on_cpu)
    monkeypatch.setattr(onnxruntime_cuda, "expect_all_on", lambda name, *_: checked.append(Path(name).name))
    monkeypatch.setattr(bound.BoundSession, "bind", bind)
    with engine.load(tiny_bundle, tune=False) as cpu:
        expected, over_blur = cpu.explain(photo_pixels(), 2), cpu.explain(photo_pixels(), 2, baseline="blur")
    for precision, atol in (("float32", 1e-5), ("tf32", 1e-5), ("float16", 0.05)):
        opened.clear()
        for noted in (ran, captured, checked):
            noted.clear()
        with engine.load(tiny_bundle, device="cuda", precision=precision, batch_size=4, cuda_graph=True) as gpu:
            with ThreadPoolExecutor(1, "other") as other:
                found = other.submit(gpu.explain, photo_pixels(), 2).result()
            assert ran.pop("logits") == {"cuda-graphs_0"}
            ((_, names),) = ran.items()
            assert names == {current_thread().name, "other_0"}
            np.testing.assert_array_equal(gpu.explain(photo_pixels(), 2).heatmap, found.heatmap)
            assert [len(own) for own in captured.values()] == [1]  # a graph of its own for each place of the arrays
            blurred = gpu.explain(photo_pixels(), 2, baseline="blur", batch_size=3)
            assert [len(own) for own in captured.values()] == [1, 1]
            assert np.abs(blurred.heatmap - over_blur.heatmap).mean() <= atol
            assert checked == ["forward.onnx"]
            gpu.explain(photo_pixels(), 2, method="rise", masks=10)
        assert np.abs(found.heatmap - expected.heatmap).mean() <= atol
        assert found.precision == precision
        assert {asked["user_compute_stream"] for asked in opened} == {"4711"}
        tapped, scorer, *_ = opened
        names = ("enable_cuda_graph", "use_tf32")
        assert [tapped[name] for name in names] == ["0", "0"]
        assert [scorer[name] for name in names] == ["1", str(int(precision == "tf32"))]
