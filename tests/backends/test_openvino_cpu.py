import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from engine.backends import OnnxRuntimeCpu, create_backend
from engine.errors import BackendError, OptionError
from tests.devices import OPENVINO, needs_openvino
from tests.models import IMAGENET, PHOTOS, exported

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = np.random.default_rng(20102).normal(size=(4, 3, 24, 32)).astype(np.float32)


def python(code: str) -> list[str]:
    """What code prints in a fresh interpreter that finds the engine."""
    program = f"import sys\nsys.path[:0] = [{str(REPOSITORY)!r}]\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_no_openvino() -> None:
    code = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name=name)

sys.meta_path.insert(0, Block())
import engine
from engine.backends import create_backend
create_backend("cpu", threads=1)
try:
    create_backend("openvino", threads=1)
except engine.MissingRuntimeError as error:
    print(error)
"""
    assert python(code) == [
        "OpenVINO cannot be imported (No module named 'openvino'); install it with pip install "
        "'ada-sise-engine[openvino]'"
    ]


def test_nothing_else_imports_openvino() -> None:
    code = "import engine.__main__\nengine.backends.create_backend('cpu')\nprint('openvino' in sys.modules)"
    assert python(code) == ["False"]


@needs_openvino
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_float32_operators_are_exact(graph: Path, precision: str) -> None:
    """On CPUs that have it OpenVINO's own choice is bfloat16."""
    (expected,) = OnnxRuntimeCpu().open(graph).run([IMAGES])
    (found,) = create_backend(OPENVINO).open(graph, precision=precision).run([IMAGES])
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@needs_openvino
def test_bfloat16(graph: Path) -> None:
    """It has 8 bits: a result that is a sum of products is off by about 2⁻⁹ of its size, and not by nothing."""
    backend = create_backend(OPENVINO)
    try:
        session = backend.open(graph, precision="bfloat16")
    except BackendError as err:
        pytest.skip(str(err))
    (expected,) = backend.open(graph).run([IMAGES])
    (found,) = session.run([IMAGES])
    assert found.dtype == np.float32
    distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-5 < distance < 2**-6


@needs_openvino
def test_bfloat16_weights_keep_the_sums_of_kernels(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Logits are nearer to those of float32 than if OpenVINO rounds the weights itself."""
    from engine.backends.openvino_cpu import _CORE

    explainer = exported(assets, "mobilenet-v2", tmp_path_factory.getbasetemp()).explainer
    graph, images = (
        explainer.bundle.forward,
        [explainer.probe(assets / "images" / name).image for name in PHOTOS[IMAGENET]],
    )
    batch = np.concatenate([*images, *(image * np.linspace(0, 1, 224, dtype=np.float32) for image in images)])
    backend = create_backend(OPENVINO)
    try:
        (found,) = backend.open(graph, precision="bfloat16").run([batch])
    except BackendError as err:
        pytest.skip(str(err))
    plain = _CORE.compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})(batch)[0]
    (exact,) = backend.open(graph).run([batch])
    assert np.linalg.norm(found - exact) < 0.7 * np.linalg.norm(plain - exact)


@needs_openvino
def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "forward.onnx").write_bytes(b"no model")
    for precision in ("float32", "bfloat16"):
        with pytest.raises(BackendError, match=r"forward\.onnx: "):
            create_backend(OPENVINO).open(tmp_path / "forward.onnx", precision=precision)


@needs_openvino
def test_a_cpu_without_bfloat16(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.backends import openvino_cpu

    def get_property(device: str, name: str) -> object:
        assert device == "CPU"
        return {"OPTIMIZATION_CAPABILITIES": ["INT8", "FP32"], "FULL_DEVICE_NAME": "Old CPU"}[name]

    core = openvino_cpu._CORE
    old = SimpleNamespace(get_property=get_property, read_model=core.read_model, compile_model=core.compile_model)
    monkeypatch.setattr(openvino_cpu, "_CORE", old)
    backend = create_backend(OPENVINO)
    text = (
        f"{graph}: Old CPU computes in FP32, INT8; expected BF16 among them (AVX-512 BF16 or AMX): choose precision "
        "'float32' or 'int8'"
    )
    with pytest.raises(BackendError, match=f"^{re.escape(text)}$"):
        backend.open(graph, precision="bfloat16")
    backend.open(graph)


class Photos(CalibrationDataReader):
    def __init__(self) -> None:
        self._batches: Iterator[np.ndarray] = iter([IMAGES[:2], IMAGES[2:]])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


@needs_openvino
def test_int8_is_computed_as_the_graph_says(graph: Path, tmp_path: Path) -> None:
    """The reference computes node by node: dequantize, float32 operator, quantize."""
    quantized = tmp_path / "quantized.onnx"
    quantize_static(graph, quantized, Photos(), quant_format=QuantFormat.QDQ, per_channel=True)
    (plain,) = OnnxRuntimeCpu().open(graph).run([IMAGES])
    (expected,) = OnnxRuntimeCpu(optimize=False).open(quantized).run([IMAGES])
    (found,) = create_backend(OPENVINO).open(quantized, precision="int8").run([IMAGES])
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)


@needs_openvino
def test_copies_of_what_it_takes_live_as_long_as_the_run(tiny_bundle: Path) -> None:
    """Arrays that cannot be written are copied; the memory of a copy that is gone is soon another's."""
    session = create_backend(OPENVINO).open(tiny_bundle / "tapped.onnx")
    inputs: list[np.ndarray] = [IMAGES[:1].copy(), np.array([1, 3])]
    expected = [array.tobytes() for array in session.run(inputs)]
    for array in inputs:
        array.flags.writeable = False
    for _ in range(20):
        assert [array.tobytes() for array in session.run(inputs)] == expected


@needs_openvino
def test_options_that_openvino_has_not() -> None:
    text = r"^spinning is True; expected False or None: OpenVINO's threads do not spin$"
    with pytest.raises(OptionError, match=text):
        create_backend(OPENVINO, threads=2, lanes=1, spinning=True)
    text = r"^providers is \['CPUExecutionProvider'\]; expected None: providers are of ONNX Runtime, on device 'cpu'$"
    with pytest.raises(OptionError, match=text):
        create_backend(OPENVINO, providers=["CPUExecutionProvider"])


@needs_openvino
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps, which Linux has")
def test_no_file_stays_mapped(tiny_bundle: Path) -> None:
    """What is written over a mapped file would reach the loaded network, and cutting it off would end the process."""
    session = create_backend(OPENVINO).open(tiny_bundle / "forward.onnx")
    assert str(tiny_bundle) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    session.run([IMAGES])


@needs_openvino
def test_signals_are_handled_when_sessions_have_come_and_gone(tiny_bundle: Path) -> None:
    code = f"""
import gc, signal
from pathlib import Path
from engine.backends import create_backend

graph = Path({str(tiny_bundle / "forward.onnx")!r})
sessions = [create_backend("openvino", threads=1).open(graph) for _ in range(2)]
while sessions:
    del sessions[0]
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    assert python(code) == ["interrupted"]
