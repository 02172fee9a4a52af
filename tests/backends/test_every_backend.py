"""What every backend must do."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from engine.backends import BACKENDS, Backend, Brake, Tensor, create_backend
from engine.errors import BackendError, OptionError
from tests.backends.graphs import slow, two_outputs
from tests.devices import CPU, DEVICES, OPENVINO
from tests.tiny_cnn import tiny_cnn

MISSING = {CPU: "File doesn't exist", OPENVINO: "Could not open the file"}
NO_MODEL = {CPU: "(P|p)rotobuf parsing failed", OPENVINO: "Unable to read the model"}
UNKNOWN_OP = {CPU: "No Op registered for Convolve", OPENVINO: "No conversion rule found for operations: Convolve"}
SHAPE = {
    CPU: "Got invalid dimensions for input: image.*Got: 31 Expected: 32",
    OPENVINO: r"\(1\.3\.24\.31\).*incompatible",
}
RANK = {CPU: "Invalid rank for input: image Got: 3 Expected: 4", OPENVINO: r"\(3\.24\.32\).*incomp"}
TYPE = {CPU: r"Unexpected input data type.*tensor\(double\)", OPENVINO: "precision: f64.*precision is: f32"}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def backend(device: str) -> Backend:
    return create_backend(device, threads=2)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_runs(backend: Backend, random: np.random.Generator, graph: Path, batch: int) -> None:
    images = random.normal(size=(batch, 3, 24, 32)).astype(np.float32)
    before = images.copy()
    expected = ReferenceEvaluator(tiny_cnn()).run(None, {"image": images})[0]
    for source in (graph, graph.read_bytes()):
        (logits,) = backend.open(source).run([images])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(images, before)


def test_weights_may_lie_beside_the_graph(
    backend: Backend, random: np.random.Generator, graph: Path, tmp_path: Path
) -> None:
    images = random.normal(size=(2, 3, 24, 32)).astype(np.float32)
    (tmp_path / "apart").mkdir()
    apart = tmp_path / "apart" / "graph.onnx"
    onnx.save(tiny_cnn(), apart, save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert (tmp_path / "apart" / "weights.bin").stat().st_size > 10_000
    (expected,) = backend.open(graph).run([images])
    (found,) = backend.open(apart).run([images])
    assert found.tobytes() == expected.tobytes()


def test_inputs_and_outputs_are_in_the_graphs_order(backend: Backend) -> None:
    session = backend.open(two_outputs().SerializeToString())
    less, times = session.run([np.array([1, 2], np.float32), np.array([5, 7], np.float32)])
    assert less.tolist() == [4.0, 5.0]
    assert times.tolist() == [5.0, 14.0]


def test_each_run_gives_new_arrays_of_the_same_bytes(device: str, random: np.random.Generator, graph: Path) -> None:
    images = random.normal(size=(4, 3, 24, 32)).astype(np.float32)
    session = create_backend(device, threads=2).open(graph)
    (first,) = session.run([images])
    kept = first.tobytes()
    (second,) = session.run([images])
    second[:] = 0
    assert first.tobytes() == kept
    assert create_backend(device, threads=2).open(graph).run([images])[0].tobytes() == kept


@pytest.mark.parametrize(("threads", "lanes", "many_runs"), [(1, 1, True), (2, 1, True), (2, 2, True), (2, 2, False)])
def test_batches_and_threads_do_not_change_a_byte(
    device: str, random: np.random.Generator, graph: Path, threads: int, lanes: int, many_runs: bool
) -> None:
    images = random.normal(size=(8, 3, 24, 32)).astype(np.float32)
    (expected,) = create_backend(device, threads=1).open(graph).run([images])
    session = create_backend(device, threads=threads, lanes=lanes).open(graph, many_runs=many_runs)
    for size in (1, 2, 3, 8):
        parts = [session.run([images[start : start + size]])[0] for start in range(0, 8, size)]
        assert np.concatenate(parts).tobytes() == expected.tobytes()


def test_arrays_of_any_layout(backend: Backend, random: np.random.Generator, graph: Path) -> None:
    images = random.normal(size=(2, 3, 24, 32)).astype(np.float32)
    session = backend.open(graph)
    (expected,) = session.run([images])
    turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    fixed = images.copy()
    fixed.flags.writeable = False
    for same in (turned, fixed):
        assert session.run([same])[0].tobytes() == expected.tobytes()


def test_a_session_serves_several_threads(device: str, random: np.random.Generator, graph: Path) -> None:
    batches = [random.normal(size=(n % 3 + 1, 3, 24, 32)).astype(np.float32) for n in range(24)]
    for lanes in (1, 2):
        session = create_backend(device, threads=lanes).open(graph, many_runs=True)
        expected = [session.run([images])[0].tobytes() for images in batches]
        with ThreadPoolExecutor(6) as pool:
            found = [future.result()[0].tobytes() for future in [pool.submit(session.run, [b]) for b in batches]]
        assert found == expected


@pytest.mark.parametrize("threads", [0, -1, -100, 1.5, "2", 10**10, True])
def test_threads_must_be_positive(device: str, threads: int) -> None:
    text = rf"^threads is {threads!r}; expected a whole number from 1 to 1024, or None for one per CPU$"
    with pytest.raises(OptionError, match=text):
        create_backend(device, threads=threads)


@pytest.mark.parametrize("lanes", [0, -1, 3, 1.0, "2", True])
def test_lanes_must_be_positive_and_have_a_thread_each(device: str, lanes: int) -> None:
    text = rf"^lanes is {lanes!r}; expected a whole number from 1 to the number of threads, 2, or None for one per "
    with pytest.raises(OptionError, match=text + "thread$"):
        create_backend(device, threads=2, lanes=lanes)


@pytest.mark.parametrize("cuda_graph", [True, 1, "yes", None])
def test_cuda_graphs_are_for_cuda(device: str, cuda_graph: bool) -> None:
    text = rf"^cuda_graph is {cuda_graph!r} on device '{device}'; expected False, or True on 'cuda'$"
    with pytest.raises(OptionError, match=text):
        create_backend(device, cuda_graph=cuda_graph)


@pytest.mark.parametrize("spinning", [1, "yes", 0.0])
def test_spinning_is_true_or_false(device: str, spinning: bool) -> None:
    text = rf"^spinning is {spinning!r}; expected True, False, or None for the best choice$"
    with pytest.raises(OptionError, match=text):
        create_backend(device, spinning=spinning)


def test_what_a_session_takes_and_gives(backend: Backend) -> None:
    session = backend.open(two_outputs().SerializeToString())
    assert session.inputs == (Tensor("float32", (None,)), Tensor("float32", (None,)))
    assert session.outputs == (Tensor("float32", (None,)), Tensor("float32", (None,)))
    session = backend.open(tiny_cnn().SerializeToString())
    assert session.inputs == (Tensor("float32", (None, 3, 24, 32)),)
    assert session.outputs == (Tensor("float32", (None, 5)),)


@pytest.mark.parametrize(
    ("many_runs", "lanes", "runs"), [(False, None, 1), (True, None, 2), (True, 1, 1), (True, 2, 2)]
)
def test_how_many_runs_there_are_at_a_time(
    device: str, graph: Path, many_runs: bool, lanes: int | None, runs: int
) -> None:
    session = create_backend(device, threads=2, lanes=lanes).open(graph, many_runs=many_runs)
    assert session.runs_at_once == runs


def test_devices() -> None:
    assert list(BACKENDS) == [CPU, OPENVINO, "cuda", "tensorrt"]
    for device in ("tpu", "CPU", ""):
        with pytest.raises(
            OptionError, match=rf"^device '{device}' is unknown; expected one of cpu, openvino, cuda, tensorrt$"
        ):
            create_backend(device, threads=1)


def test_a_graph_that_is_missing(device: str, backend: Backend, tmp_path: Path) -> None:
    text = rf"none\.onnx: {re.escape(backend.runtime)} refused the graph: .*{MISSING[device]}"
    with pytest.raises(BackendError, match=text) as caught:
        backend.open(tmp_path / "none.onnx")
    assert caught.value.__cause__ is not None


def test_a_graph_that_is_no_model(device: str, backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no model")
    text = f"{re.escape(backend.runtime)} refused the graph: .*{NO_MODEL[device]}"
    with pytest.raises(BackendError, match=rf"graph\.onnx: {text}"):
        backend.open(tmp_path / "graph.onnx")
    with pytest.raises(BackendError, match=f"^the source model: {text}"):
        backend.open(b"no model")


def test_a_graph_with_an_unknown_op(device: str, backend: Backend, graph: Path) -> None:
    model = onnx.load(graph)
    model.graph.node[0].op_type = "Convolve"
    onnx.save(model, graph)
    text = rf"graph\.onnx: {re.escape(backend.runtime)} refused the graph: .*{UNKNOWN_OP[device]}"
    with pytest.raises(BackendError, match=text):
        backend.open(graph)


@pytest.mark.parametrize(
    ("image", "texts"),
    [
        (np.zeros((1, 3, 24, 31), np.float32), SHAPE),
        (np.zeros((3, 24, 32), np.float32), RANK),
        (np.zeros((1, 3, 24, 32), np.float64), TYPE),
    ],
    ids=["shape", "rank", "type"],
)
def test_inputs_that_do_not_fit(
    device: str,
    backend: Backend,
    graph: Path,
    image: np.ndarray,
    texts: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    session = backend.open(graph)
    name = backend.runtime.rpartition(" ")[0]
    with pytest.raises(BackendError, match=rf"^[^\n]*graph\.onnx: {name} failed: .*{texts[device]}") as caught:
        session.run([image])
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")
    session.run([np.zeros((1, 3, 24, 32), np.float32)])  # the session lives on


def test_too_few_or_too_many_inputs(backend: Backend, graph: Path) -> None:
    session = backend.open(graph)
    for inputs in ([], [np.zeros((1, 3, 24, 32), np.float32)] * 2):
        with pytest.raises(BackendError, match=r"graph\.onnx: .* failed: zip"):
            session.run(inputs)


def test_a_run_is_stopped_by_another_thread(backend: Backend) -> None:
    session = backend.open(slow().SerializeToString())
    brake = Brake()
    threading.Timer(0.1, brake.pull).start()
    for _ in range(2):  # the second time it is pulled already
        with pytest.raises(BackendError, match=r"^the source model: .*(terminate flag|cancel)"):
            session.run([np.zeros((1024, 1024), np.float32)], brake)
    assert brake.pulled


def test_a_brake_that_is_not_pulled(backend: Backend, random: np.random.Generator, graph: Path) -> None:
    images = random.normal(size=(1, 3, 24, 32)).astype(np.float32)
    session = backend.open(graph)
    assert session.run([images], Brake())[0].tobytes() == session.run([images])[0].tobytes()
