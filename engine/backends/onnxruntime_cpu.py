"""ONNX Runtime's CPU provider."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackendError, MissingRuntimeError, OptionError


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
    raise MissingRuntimeError(
        "both onnxruntime and onnxruntime-gpu are installed, and each has overwritten files of the other; expected one "
        "of them: pip uninstall onnxruntime onnxruntime-gpu, then pip install 'ada-sise-engine[cpu]' or "
        "'ada-sise-engine[gpu]'"
    )
try:
    import onnxruntime as ort
except ImportError as err:
    raise MissingRuntimeError(
        f"ONNX Runtime cannot be imported ({err}); install it with pip install 'ada-sise-engine[cpu]', or "
        "'ada-sise-engine[gpu]' for an NVIDIA GPU"
    ) from err

ONNXRUNTIME_VERSION: str = ort.__version__
_MOST_THREADS = 1024
_PROVIDER = "CPUExecutionProvider"


def session_options(*, threads: int = 0, optimize: bool = True) -> "ort.SessionOptions":
    """Return the options of every session that the engine opens on the CPU.

    Args:
        threads: Threads that work on one graph; 0 for one per physical core.
        optimize: Whether ONNX Runtime may rewrite graphs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what fails is raised, and need not be printed as well
    return options


class OnnxRuntimeCpu:
    """Opens graphs in ONNX Runtime on the CPU, the same bytes out for the same bytes in.

    Args:
        threads: Threads that work on one graph; None for one per physical core.
        optimize: Whether ONNX Runtime may rewrite graphs; without, it computes node by node what the graph says, which
            makes two forms of a quantized graph comparable.

    Raises:
        OptionError: The number of threads is not positive.
    """

    def __init__(self, *, threads: int | None = None, optimize: bool = True) -> None:
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS):
            raise OptionError(
                f"threads is {threads!r}; expected a whole number from 1 to {_MOST_THREADS}, or None for one per "
                "physical core"
            )
        self._threads = threads or 0
        self._optimize = optimize

    def open(self, graph: Path | bytes) -> "OnnxRuntimeSession":
        """Load a graph from a file or from the bytes of a model.

        Raises:
            BackendError: ONNX Runtime refused the graph.
        """
        options = session_options(threads=self._threads, optimize=self._optimize)
        name = str(graph) if isinstance(graph, Path) else "the source model"
        try:
            session = ort.InferenceSession(
                str(graph) if isinstance(graph, Path) else graph, options, providers=[_PROVIDER]
            )
        except Exception as err:  # ONNX Runtime's own exceptions share no base class below Exception
            reason = " ".join(str(err).split())
            raise BackendError(f"{name}: ONNX Runtime {ONNXRUNTIME_VERSION} refused the graph: {reason}") from err
        return OnnxRuntimeSession(name, session)


class OnnxRuntimeSession:
    """One graph loaded by ONNX Runtime.

    Args:
        name: What messages call the graph.
        session: The session, which this object owns.
    """

    def __init__(self, name: str, session: "ort.InferenceSession") -> None:
        self._name = name
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run the graph once; see `engine.backends.base.Session`."""
        try:
            outputs: list[NDArray[np.generic]] = self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))
        except Exception as err:  # ONNX Runtime's own exceptions share no base class below Exception
            reason = " ".join(str(err).split())
            raise BackendError(f"{self._name}: ONNX Runtime failed: {reason}") from err
        return outputs
