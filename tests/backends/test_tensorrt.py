"""Device `tensorrt` as far as it can be checked without a GPU: what is asked of ONNX Runtime, and what is kept.

ONNX Runtime's CPU provider takes the place of TensorRT; it writes an engine where it is told to, as TensorRT does.
"""

import ctypes
import importlib.util
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import engine
from engine.backends import onnxruntime_cuda, onnxruntime_tensorrt
from engine.backends.bound import BoundSession
from engine.backends.half import with_rounded_weights
from engine.backends.onnxruntime_cpu import ONNXRUNTIME_VERSION
from engine.backends.onnxruntime_cuda import CUDA
from engine.backends.onnxruntime_tensorrt import TENSORRT, TensorRtGraph, load_tensorrt, tensorrt_options
from engine.errors import DeviceMemoryError
from tests.cli.test_agreement import call
from tests.emulator import EmulatedDevice
from tests.tiny_cnn import photo_pixels


class Device(EmulatedDevice):
    name = "H200"
    stream = SimpleNamespace(ptr=4711)


@dataclass
class Runtime:
    """What was asked of ONNX Runtime, and how it shall answer."""

    opened: list[tuple[str, list[tuple[str, dict[str, str]]]]] = field(default_factory=list)
    given: list[str | bytes] = field(default_factory=list)
    shapes: dict[str, list[object]] = field(default_factory=dict)
    built: list[str] = field(default_factory=list)
    knew: list[bytes] = field(default_factory=list)
    refuses: Exception | None = None
    engines: bool = True

    def open_session(
        self, name: str, content: str | bytes, options: Any, providers: list[tuple[str, dict[str, str]]]
    ) -> ort.InferenceSession:
        self.opened.append((Path(name).name, providers))
        self.given.append(content)
        own = providers[0][1]
        folder, shape = own.get("trt_engine_cache_path"), own.get("trt_profile_opt_shapes", "")
        if folder is not None and not (Path(folder) / "a.engine").exists():
            assert "trt_timing_cache_path" in own
            self.built.append(shape)
            timings = Path(own["trt_timing_cache_path"], "a.timing")
            self.knew.append(timings.read_bytes() if timings.exists() else b"")
            timings.write_bytes(b"".join([*self.knew, shape.encode()]))
            if self.engines:
                Path(folder, "a.engine").write_text(shape)
        elif self.refuses is not None and folder is not None:
            raise self.refuses
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.shapes[Path(name).name] = session.get_inputs()[0].shape
        return session


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    """TensorRT that is there, and an empty cache."""
    if not shutil.which("g++"):
        pytest.skip("needs g++ to run CUDA kernels without a GPU")
    found = Runtime()

    class OnCpu(BoundSession):
        def __init__(self, name: str, session: Any, memory: Any, kind: str, worker: object = None) -> None:
            assert (kind, worker) == ("cuda", None)
            super().__init__(name, session, memory, "cpu")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(driverGetVersion=lambda: 13020)))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "engine.backends.cupy_device", SimpleNamespace(CupyDevice=Device))
    for module in (onnxruntime_cuda, onnxruntime_tensorrt):
        monkeypatch.setattr(module, "open_session", found.open_session)
        monkeypatch.setattr(module, "BoundSession", OnCpu)
    monkeypatch.setattr(onnxruntime_tensorrt, "expect_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime_tensorrt, "load_tensorrt", lambda: "10.16.1")
    return found


def load(bundle: Path, precision: str = "tf32", batch_size: int | None = 4) -> engine.Explainer:
    return engine.load(bundle, device="tensorrt", precision=precision, batch_size=batch_size)


def engines(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "ada-sise-engine" / "tensorrt").iterdir())


def test_provider_options(tmp_path: Path) -> None:
    shape = "image:64x3x224x224"
    assert tensorrt_options(4711, "tf32", shape, None, None) == {
        "device_id": "0",
        "user_compute_stream": "4711",
        "trt_fp16_enable": "False",
        "trt_bf16_enable": "False",
        "trt_profile_min_shapes": shape,
        "trt_profile_opt_shapes": shape,
        "trt_profile_max_shapes": shape,
    }
    half = tensorrt_options(1, "float16", shape, tmp_path / "engines", tmp_path / "timings")
    assert (half["trt_fp16_enable"], half["trt_bf16_enable"]) == ("True", "False")
    assert half["trt_engine_cache_enable"] == half["trt_timing_cache_enable"] == "True"
    assert half["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert half["trt_timing_cache_path"] == str(tmp_path / "timings")
    half = tensorrt_options(1, "bfloat16", shape, None, None)
    assert (half["trt_fp16_enable"], half["trt_bf16_enable"]) == ("False", "True")


def test_the_scorer_runs_in_tensorrt_and_the_tapped_pass_on_cuda(tiny_bundle: Path, runtime: Runtime) -> None:
    with load(tiny_bundle, "float16") as gpu, engine.load(tiny_bundle, threads=1) as cpu:
        found, expected = gpu.explain(photo_pixels(), 1), cpu.explain(photo_pixels(), 1)
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)
    assert found.precision == "float16"
    opened = dict(runtime.opened)
    assert list(opened) == ["tapped.onnx", "forward.onnx"]
    assert runtime.shapes["forward.onnx"] == [4, 3, 24, 32]
    ((provider, options),) = opened["tapped.onnx"]
    assert (provider, options["use_tf32"], options["enable_cuda_graph"]) == (CUDA, "0", "0")
    (first, options), (second, behind) = opened["forward.onnx"]
    assert (first, second) == (TENSORRT, CUDA)
    assert options["trt_profile_opt_shapes"] == "image:4x3x24x32"
    assert options["trt_fp16_enable"] == "True"
    assert options["user_compute_stream"] == behind["user_compute_stream"] == "4711"
    assert behind["use_tf32"] == "1"


def test_an_engine_for_each_batch_size_is_built_once(
    tiny_bundle: Path, runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "engine.backends")
    with load(tiny_bundle) as gpu:
        assert runtime.built == ["image:4x3x24x32"]
        text = "building the TensorRT engine for batches of 4: this can take minutes …"
        assert text in caplog.messages
        expected = gpu.explain(photo_pixels(), 1).heatmap
        np.testing.assert_allclose(gpu.explain(photo_pixels(), 1, batch_size=3).heatmap, expected, atol=1e-6)
        gpu.explain(photo_pixels(), 1, batch_size=4)
    load(tiny_bundle).close()
    assert runtime.built == ["image:4x3x24x32", "image:3x3x24x32"]
    assert len(engines(tmp_path)) == 2


def test_what_an_engine_depends_on(
    tiny_bundle: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def builds() -> bool:
        before = len(runtime.built)
        load(tiny_bundle).close()
        return len(runtime.built) > before

    assert builds()
    assert not builds()
    for patch in (
        lambda: monkeypatch.setattr(Device, "name", "H100"),
        lambda: monkeypatch.setattr(onnxruntime_tensorrt, "load_tensorrt", lambda: "10.15.1"),
        lambda: monkeypatch.setattr(onnxruntime_tensorrt, "ONNXRUNTIME_VERSION", "1.99"),
        lambda: monkeypatch.setattr(onnxruntime_tensorrt, "__version__", "99"),
        lambda: monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "driverGetVersion", lambda: 13030),
        lambda: monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0"),
    ):
        patch()
        assert builds()
        assert not builds()
    load(tiny_bundle, "float16").close()
    other = tmp_path / "other.ada"
    shutil.copytree(tiny_bundle, other)
    load(other).close()  # the same graph and weights
    assert len(engines(tmp_path)) == len(runtime.built) == 8


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "tf32"])
def test_half_precision_has_rounded_weights(precision: str, tiny_bundle: Path, runtime: Runtime) -> None:
    load(tiny_bundle, precision).close()
    graph = tiny_bundle / "forward.onnx"
    assert runtime.given[-1] == (str(graph) if precision == "tf32" else with_rounded_weights(graph, precision))


def test_an_engine_of_other_weights_is_not_taken(
    tiny_bundle: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those that another version has rounded otherwise."""
    load(tiny_bundle, "float16").close()
    other = onnx.load(str(tiny_bundle / "forward.onnx")).SerializeToString()
    monkeypatch.setattr(onnxruntime_tensorrt, "with_rounded_weights", lambda *_: other)
    load(tiny_bundle, "float16").close()
    assert len(runtime.built) == 2


def test_timings_serve_the_next_build(tiny_bundle: Path, runtime: Runtime) -> None:
    load(tiny_bundle).close()
    load(tiny_bundle, batch_size=8).close()
    assert runtime.knew == [b"", b"image:4x3x24x32"]


def test_a_damaged_engine_is_built_again(
    tiny_bundle: Path, runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tiny_bundle).close()
    (place,) = engines(tmp_path)
    (place / "a.engine").write_text("image:4x3x24x33")
    load(tiny_bundle).close()
    assert runtime.built == ["image:4x3x24x32"] * 2
    assert f"{place}: is removed (its files are not those that were written)" in caplog.messages
    assert (place / "a.engine").read_text() == "image:4x3x24x32"


def test_an_engine_that_the_runtime_refuses_is_built_again(
    tiny_bundle: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    load(tiny_bundle).close()
    runtime.refuses = engine.BackendError("could not deserialize engine")
    load(tiny_bundle).close()
    assert len(runtime.built) == 2
    assert "is removed (could not deserialize engine)" in caplog.text


def test_an_engine_without_memory_is_kept(tiny_bundle: Path, runtime: Runtime, tmp_path: Path) -> None:
    load(tiny_bundle).close()
    runtime.refuses = DeviceMemoryError("out of memory")
    load(tiny_bundle).close()
    assert runtime.built == ["image:4x3x24x32", "image:2x3x24x32"]
    assert len(engines(tmp_path)) == 2


def test_a_cache_that_cannot_be_written(
    tiny_bundle: Path, runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()
    load(tiny_bundle).close()
    assert runtime.built == []
    assert "trt_engine_cache_enable" not in dict(runtime.opened)["forward.onnx"][0][1]
    assert "the next load builds the engine again" in caplog.text


def test_tensorrt_takes_no_part(tiny_bundle: Path, runtime: Runtime, tmp_path: Path) -> None:
    runtime.engines = False
    with pytest.raises(engine.BackendError, match=r"forward\.onnx: TensorRT took no part of the graph; choose .*cuda"):
        load(tiny_bundle)
    assert engines(tmp_path) == []


def test_nodes_outside_of_tensorrt_are_named(
    tiny_bundle: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    load(tiny_bundle).close()
    assert runtime.built
    assert any("nodes do not run in TensorRT: " in text and "(Conv)" in text for text in caplog.messages)


@pytest.mark.parametrize("override", [None, "1"])
def test_float32_proper_needs_a_variable(
    override: str | None, tiny_bundle: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    if override is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    text = rf"TF32 unless .* NVIDIA_TF32_OVERRIDE is 0 .*; it is {override!r}: set it to 0, or choose precision 'tf32'"
    with pytest.raises(engine.OptionError, match=text):
        load(tiny_bundle, "float32")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    load(tiny_bundle, "float32").close()
    assert dict(runtime.opened)["forward.onnx"][1][1]["use_tf32"] == "0"


def test_other_methods_score_on_cuda(tiny_bundle: Path, runtime: Runtime) -> None:
    with load(tiny_bundle, "tf32") as gpu:
        gpu.explain(photo_pixels(), 1, method="rise", masks=9)
    name, ((provider, options),) = runtime.opened[-1]
    assert (name, provider, options["use_tf32"]) == ("forward.onnx", CUDA, "1")
    with load(tiny_bundle, "bfloat16") as gpu:
        gpu.explain(photo_pixels(), 1)
        with pytest.raises(engine.OptionError, match="in which only methods ada-sise and sise score on device"):
            gpu.explain(photo_pixels(), 1, method="rise", masks=9)


def test_a_graph_that_changes_after_it_was_opened(tiny_bundle: Path, runtime: Runtime, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "own.ada")
    with load(tmp_path / "own.ada") as gpu:
        weights = tmp_path / "own.ada" / "weights.bin"
        weights.write_bytes(weights.read_bytes()[::-1])
        with pytest.raises(engine.BackendError, match=r"forward\.onnx: was changed after it had been opened"):
            gpu.explain(photo_pixels(), 1, batch_size=2)
        weights.unlink()
        with pytest.raises(
            engine.BackendError, match=r"forward\.onnx: cannot be read: .*weights\.bin.*copy the bundle"
        ):
            gpu.explain(photo_pixels(), 1, batch_size=2)
    assert runtime.built == ["image:4x3x24x32"]


def test_the_command_builds_what_a_load_needs(
    tiny_bundle: Path,
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("engine.resident._SWEEP_S", 0.0)
    command = ("warmup", tiny_bundle, "--device", "tensorrt", "--precision", "float16")
    assert call(monkeypatch, *command, "--batch", 4) == 0
    folder = tmp_path / "cache" / "ada-sise-engine"
    (place,) = engines(tmp_path)
    (timings,) = (folder / "tensorrt-timings").iterdir()
    built = [
        f"built the TensorRT engine for batches of 4, 0.0 MiB: {place}",
        f"kept what TensorRT measured of each layer: {timings}",
        f"done: the next load finds it in {folder}",
    ]
    assert capfd.readouterr().out.splitlines() == built
    load(tiny_bundle, "float16").close()
    assert runtime.built == ["image:4x3x24x32"]
    assert call(monkeypatch, *command, "--batch", 4) == 0
    assert capfd.readouterr().out == f"nothing to do: what it takes is in {folder}\n"

    (place / "a.engine").write_text("damaged")
    assert call(monkeypatch, *command, "--batch", 4) == 0
    told = capfd.readouterr()
    assert told.out.splitlines() == built
    assert f"warning: {place}: is removed (its files are not those that were written)" in told.err

    assert call(monkeypatch, *command) == 0
    measured, *_ = (line for line in capfd.readouterr().out.splitlines() if "measured how" in line)
    assert measured.startswith("measured how to score fastest (lanes: 1, threads in each: 1, batch size: 64): ")
    load(tiny_bundle, "float16", None).close()
    assert runtime.built[2:] == ["image:64x3x24x32"]


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "forward.onnx").write_bytes(b"no model")
    with pytest.raises(engine.BackendError, match=r"forward\.onnx: is no ONNX graph: "):
        TensorRtGraph(tmp_path / "forward.onnx", None, "tf32", {})  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"threads": 2}, {"lanes": 1}, {"spinning": True}, {"providers": [TENSORRT]}])
def test_choices_that_a_gpu_does_not_have(given: dict[str, object], tiny_bundle: Path) -> None:
    (name,) = given
    with pytest.raises(engine.OptionError, match=f"{name} is .* expected None on device 'tensorrt'"):
        engine.load(tiny_bundle, device="tensorrt", **given)


def test_tensorrt_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **_: int) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    text = (
        r"^TensorRT cannot be loaded: libnvinfer\.so\.10: cannot open .*; expected TensorRT 10, which ONNX Runtime "
        rf"{ONNXRUNTIME_VERSION} needs: pip install 'tensorrt-cu13>=10,<11'$"
    )
    with pytest.raises(engine.MissingRuntimeError, match=text):
        load_tensorrt()


def test_libraries_of_the_package_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libnvinfer.so.10").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    loaded: list[str] = []

    def load_library(name: str, **_: int) -> SimpleNamespace:
        loaded.append(name)
        return SimpleNamespace(getInferLibVersion=lambda: 101601)

    monkeypatch.setattr(ctypes, "CDLL", load_library)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    assert load_tensorrt() == "10.16.1"
    assert loaded[:2] == [str(tmp_path / "libnvinfer.so.10"), "libnvonnxparser.so.10"]
    assert Path(loaded[-1]).name == "libonnxruntime_providers_tensorrt.so"


def test_the_runtime_has_a_name(runtime: Runtime) -> None:
    assert not runtime.opened
    backend = onnxruntime_tensorrt.OnnxRuntimeTensorRt()
    assert backend.runtime == f"ONNX Runtime {ONNXRUNTIME_VERSION} with TensorRT 10.16.1 on H200"
    assert {backend.gpu.element(precision) for precision in backend.precisions} == {np.float32}
