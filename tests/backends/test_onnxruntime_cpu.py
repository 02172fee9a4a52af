import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from engine.backends import OnnxRuntimeCpu, create_backend
from engine.errors import BackendError, OptionError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("asked_for", "many_runs", "threads", "spins", "runs"),
    [
        ({}, False, len(os.sched_getaffinity(0)), "0", 1),
        ({}, True, 1, "0", len(os.sched_getaffinity(0))),
        ({"threads": 1}, False, 1, "0", 1),
        ({"threads": 3}, False, 3, "0", 1),
        ({"threads": 3}, True, 1, "0", 3),
        ({"threads": 5, "lanes": 2}, True, 2, "0", 2),
        ({"threads": 5, "lanes": 2}, False, 5, "0", 1),
        ({"threads": 2, "lanes": 1, "spinning": True}, True, 2, "1", 1),
    ],
)
def test_what_onnx_runtime_is_asked_for(
    graph: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked_for: dict[str, Any],
    many_runs: bool,
    threads: int,
    spins: str,
    runs: int,
) -> None:
    asked: list[tuple[Any, ...]] = []
    real = ort.InferenceSession

    def spy(path: str, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
        spinning = options.get_session_config_entry("session.intra_op.allow_spinning")
        asked.append((path, options.intra_op_num_threads, spinning, options.use_deterministic_compute, providers))
        return real(path, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    session = create_backend("cpu", **asked_for).open(graph, many_runs=many_runs)
    assert asked == [(str(graph), threads, spins, True, ["CPUExecutionProvider"])]
    assert session.runs_at_once == runs


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
