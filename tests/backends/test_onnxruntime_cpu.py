import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from engine.backends import BACKENDS, Brake, OnnxRuntimeCpu, Tensor, create_backend
from engine.errors import BackendError, OptionError
from tests.tiny_cnn import tiny_cnn

REPOSITORY = Path(__file__).resolve().parents[2]
REFUSED = f"ONNX Runtime {ort.__version__} refused the graph: "


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save(tiny_cnn(), tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def two_outputs() -> onnx.ModelProto:
    """Inputs a and b; outputs b − a and a·b, declared in that order."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("a", "b", "less", "times")]
    nodes = [helper.make_node("Mul", ["a", "b"], ["times"]), helper.make_node("Sub", ["b", "a"], ["less"])]
    made = helper.make_graph(nodes, "two", values[:2], values[2:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_runs(random: np.random.Generator, graph: Path, batch: int) -> None:
    images = random.normal(size=(batch, 3, 24, 32)).astype(np.float32)
    before = images.copy()
    expected = ReferenceEvaluator(tiny_cnn()).run(None, {"image": images})[0]
    for source in (graph, graph.read_bytes()):
        (logits,) = OnnxRuntimeCpu().open(source).run([images])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(images, before)


def test_weights_may_lie_beside_the_graph(random: np.random.Generator, graph: Path, tmp_path: Path) -> None:
    images = random.normal(size=(2, 3, 24, 32)).astype(np.float32)
    (tmp_path / "apart").mkdir()
    apart = tmp_path / "apart" / "graph.onnx"
    onnx.save(tiny_cnn(), apart, save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert (tmp_path / "apart" / "weights.bin").stat().st_size > 10_000
    (expected,) = OnnxRuntimeCpu().open(graph).run([images])
    (found,) = OnnxRuntimeCpu().open(apart).run([images])
    assert found.tobytes() == expected.tobytes()


def test_inputs_and_outputs_are_in_the_graphs_order() -> None:
    session = OnnxRuntimeCpu().open(two_outputs().SerializeToString())
    less, times = session.run([np.array([1, 2], np.float32), np.array([5, 7], np.float32)])
    assert less.tolist() == [4.0, 5.0]
    assert times.tolist() == [5.0, 14.0]


def test_each_run_gives_new_arrays_of_the_same_bytes(random: np.random.Generator, graph: Path) -> None:
    images = random.normal(size=(4, 3, 24, 32)).astype(np.float32)
    session = OnnxRuntimeCpu(threads=2).open(graph)
    (first,) = session.run([images])
    kept = first.tobytes()
    (second,) = session.run([images])
    second[:] = 0
    assert first.tobytes() == kept
    assert OnnxRuntimeCpu(threads=2).open(graph).run([images])[0].tobytes() == kept


def test_a_session_serves_several_threads(random: np.random.Generator, graph: Path) -> None:
    batches = [random.normal(size=(n % 3 + 1, 3, 24, 32)).astype(np.float32) for n in range(24)]
    session = OnnxRuntimeCpu(threads=1).open(graph)
    expected = [session.run([images])[0].tobytes() for images in batches]
    with ThreadPoolExecutor(6) as pool:
        found = [future.result()[0].tobytes() for future in [pool.submit(session.run, [b]) for b in batches]]
    assert found == expected


@pytest.mark.parametrize(
    ("threads", "many_runs", "used"),
    [(None, False, len(os.sched_getaffinity(0))), (1, False, 1), (3, False, 3), (3, True, 1), (None, True, 1)],
)
def test_what_onnx_runtime_is_asked_for(
    graph: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, many_runs: bool, used: int
) -> None:
    asked: list[tuple[Any, ...]] = []
    real = ort.InferenceSession

    def spy(path: str, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
        asked.append((path, options.intra_op_num_threads, options.use_deterministic_compute, providers))
        return real(path, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    session = create_backend("cpu", threads=threads).open(graph, many_runs=many_runs)
    assert asked == [(str(graph), used, True, ["CPUExecutionProvider"])]
    assert session.runs_at_once == ((threads or len(os.sched_getaffinity(0))) if many_runs else 1)


@pytest.mark.parametrize("threads", [0, -1, -100, 1.5, "2", 10**10, True])
def test_threads_must_be_positive(threads: int) -> None:
    text = rf"^threads is {threads!r}; expected a whole number from 1 to 1024, or None for one per CPU$"
    with pytest.raises(OptionError, match=text):
        OnnxRuntimeCpu(threads=threads)
    with pytest.raises(OptionError, match=text):
        create_backend("cpu", threads=threads)


def test_providers(graph: Path, random: np.random.Generator) -> None:
    images = random.normal(size=(1, 3, 24, 32)).astype(np.float32)
    (expected,) = OnnxRuntimeCpu().open(graph).run([images])
    (found,) = create_backend("cpu", providers=["CPUExecutionProvider"]).open(graph).run([images])
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "providers", [[], ["MadeUpExecutionProvider"], "CPUExecutionProvider", ["CPUExecutionProvider", "cpu"], [{}], 3]
)
def test_providers_that_are_not_there(providers: list[str]) -> None:
    known = ", ".join(ort.get_available_providers())
    text = f"providers is {providers!r}; expected a list of those that are in this ONNX Runtime: {known}"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        create_backend("cpu", providers=providers)


def test_a_provider_that_does_not_start(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime does without its CUDA libraries: it says so in its log, and runs on the CPU."""
    real = ort.InferenceSession
    asked = ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def without_cuda(path: str, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
        assert providers == asked
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: asked)
    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    text = (
        f"{graph}: ONNX Runtime {ort.__version__} could not start CUDAExecutionProvider and would run on "
        "CPUExecutionProvider; expected CUDAExecutionProvider, CPUExecutionProvider: install what the provider needs, "
        "or ask for another"
    )
    with pytest.raises(BackendError, match=f"^{re.escape(text)}$"):
        create_backend("cpu", providers=asked).open(graph)


def test_what_a_session_takes_and_gives() -> None:
    session = OnnxRuntimeCpu().open(two_outputs().SerializeToString())
    assert session.inputs == (Tensor("float32", (None,)), Tensor("float32", (None,)))
    assert session.outputs == (Tensor("float32", (None,)), Tensor("float32", (None,)))
    session = OnnxRuntimeCpu().open(tiny_cnn().SerializeToString())
    assert session.inputs == (Tensor("float32", (None, 3, 24, 32)),)
    assert session.outputs == (Tensor("float32", (None, 5)),)


def test_devices() -> None:
    assert list(BACKENDS) == ["cpu"]
    assert isinstance(create_backend("cpu", threads=None), OnnxRuntimeCpu)
    for device in ("tpu", "CPU", ""):
        with pytest.raises(OptionError, match=rf"^device '{device}' is unknown; expected one of cpu$"):
            create_backend(device, threads=1)


def test_a_graph_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=rf"none\.onnx: {REFUSED}.*File doesn't exist") as caught:
        OnnxRuntimeCpu().open(tmp_path / "none.onnx")
    assert caught.value.__cause__ is not None


def test_a_graph_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match=rf"graph\.onnx: {REFUSED}.*Protobuf parsing failed"):
        OnnxRuntimeCpu().open(tmp_path / "graph.onnx")
    with pytest.raises(BackendError, match=rf"^the source model: {REFUSED}.*protobuf parsing failed"):
        OnnxRuntimeCpu().open(b"no model")


def test_a_graph_with_an_unknown_op(graph: Path) -> None:
    model = onnx.load(graph)
    model.graph.node[0].op_type = "Convolve"
    onnx.save(model, graph)
    with pytest.raises(BackendError, match=rf"graph\.onnx: {REFUSED}.*No Op registered for Convolve"):
        OnnxRuntimeCpu().open(graph)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((1, 3, 24, 31), np.float32), r"Got invalid dimensions for input: image.*Got: 31 Expected: 32"),
        (np.zeros((3, 24, 32), np.float32), r"Invalid rank for input: image Got: 3 Expected: 4"),
        (np.zeros((1, 3, 24, 32), np.float64), r"Unexpected input data type.*tensor\(double\).*tensor\(float\)"),
    ],
    ids=["shape", "rank", "type"],
)
def test_inputs_that_do_not_fit(graph: Path, image: np.ndarray, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    session = OnnxRuntimeCpu().open(graph)
    with pytest.raises(BackendError, match=rf"^[^\n]*graph\.onnx: ONNX Runtime failed: .*{text}") as caught:
        session.run([image])
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")
    session.run([np.zeros((1, 3, 24, 32), np.float32)])  # the session lives on


def test_too_few_or_too_many_inputs(graph: Path) -> None:
    session = OnnxRuntimeCpu().open(graph)
    for inputs in ([], [np.zeros((1, 3, 24, 32), np.float32)] * 2):
        with pytest.raises(BackendError, match=r"graph\.onnx: ONNX Runtime failed: zip"):
            session.run(inputs)


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the engine, and what lies in `paths` before it."""
    path = [str(entry) for entry in (*paths, REPOSITORY)]
    program = f"import sys\nsys.path[:0] = {path!r}\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


CATCH = """
try:
    import engine
except ImportError as error:
    print(type(error).__module__, type(error).__name__, sep=".")
    print(", ".join(base.__name__ for base in type(error).__mro__[1:4]))
    print(error)
"""


def test_no_onnx_runtime() -> None:
    block = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)

sys.meta_path.insert(0, Block())
"""
    done = python(block + CATCH)
    assert done.stdout.splitlines() == [
        "engine.errors.MissingRuntimeError",
        "BackendError, EngineError, ImportError",
        "ONNX Runtime cannot be imported (No module named 'onnxruntime'); install it with pip install "
        "'ada-sise-engine[cpu]', or 'ada-sise-engine[gpu]' for an NVIDIA GPU",
    ], done.stderr


@pytest.mark.parametrize("present", [("onnxruntime", "onnxruntime_gpu"), ("onnxruntime_gpu",)])
def test_both_distributions(tmp_path: Path, present: tuple[str, ...]) -> None:
    for name in present:
        folder = tmp_path / f"{name}-1.31.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.0\n", encoding="utf-8"
        )
    only_gpu = """
import importlib.metadata
real = importlib.metadata.version
def version(name):
    if name == "onnxruntime":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
"""
    done = python((only_gpu if len(present) == 1 else "") + CATCH + "else:\n    print('imported')", tmp_path)
    if len(present) == 1:
        assert done.stdout.splitlines() == ["imported"], done.stderr
        return
    assert done.stdout.splitlines() == [
        "engine.errors.MissingRuntimeError",
        "BackendError, EngineError, ImportError",
        "both onnxruntime and onnxruntime-gpu are installed, and each has overwritten files of the other; expected "
        "one of them: pip uninstall onnxruntime onnxruntime-gpu, then pip install 'ada-sise-engine[cpu]' or "
        "'ada-sise-engine[gpu]'",
    ], done.stderr


def slow() -> onnx.ModelProto:
    """A loop of 10⁹ additions: hours, if nobody stops it."""
    scalar = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("before", "after")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("going", "going_on")]
    number = helper.make_tensor_value_info("number", TensorProto.INT64, [])
    nodes = [
        helper.make_node("Add", ["before", "before"], ["after"]),
        helper.make_node("Identity", ["going"], ["going_on"]),
    ]
    body = helper.make_graph(nodes, "body", [number, flags[0], scalar[0]], [flags[1], scalar[1]])
    loop = helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("x", "y")]
    times = helper.make_tensor("times", TensorProto.INT64, [], [10**9])
    graph = helper.make_graph([loop], "slow", ends[:1], ends[1:], [times])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_run_is_stopped_by_another_thread() -> None:
    session = OnnxRuntimeCpu(threads=1).open(slow().SerializeToString())
    brake = Brake()
    threading.Timer(0.1, brake.pull).start()
    text = r"^the source model: ONNX Runtime failed: .*Exiting due to terminate flag being set to true"
    for _ in range(2):  # the second time it is pulled already
        with pytest.raises(BackendError, match=text):
            session.run([np.array(1.0, np.float32)], brake)
    assert brake.pulled


def test_a_brake_that_is_not_pulled(random: np.random.Generator, graph: Path) -> None:
    images = random.normal(size=(1, 3, 24, 32)).astype(np.float32)
    session = OnnxRuntimeCpu().open(graph)
    assert session.run([images], Brake())[0].tobytes() == session.run([images])[0].tobytes()
