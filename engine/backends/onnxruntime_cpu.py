"""ONNX Runtime's CPU provider."""

import importlib.metadata
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Brake, Tensor
from engine.backends.threads import Threads, expect_same_process
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
_PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
}


def session_options(*, threads: int, spinning: bool = False, optimize: bool = True) -> "ort.SessionOptions":
    """Return the options of every session that the engine opens on the CPU.

    Args:
        threads: Threads that work on one run.
        spinning: Whether a thread that waits for the others keeps its CPU busy.
        optimize: Whether ONNX Runtime may rewrite graphs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.use_deterministic_compute = True
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what fails is raised, and need not be printed as well
    return options


class OnnxRuntimeCpu:
    """Opens graphs in ONNX Runtime on the CPU, the same bytes out for the same bytes in.

    Args:
        threads: As for every `Backend`, and so are the next two.
        lanes: Runs at a time of a graph that is run often.
        spinning: Whether threads that wait keep their CPU busy.
        providers: ONNX Runtime's execution providers, in order of preference; None for its own CPU kernels. Whichever
            they are, arrays pass through the host's memory.
        optimize: Whether ONNX Runtime may rewrite graphs; without, it computes node by node what the graph says, which
            makes two forms of a quantized graph comparable.

    Raises:
        OptionError: The number of threads or lanes is not positive, or a provider is not in this build of ONNX Runtime.
    """

    device: ClassVar[str] = "cpu"
    precisions: ClassVar[tuple[str, ...]] = ("float32", "int8")
    runtime: ClassVar[str] = f"ONNX Runtime {ONNXRUNTIME_VERSION}"
    can_spin: ClassVar[bool] = True
    gpu: ClassVar[None] = None

    def __init__(
        self,
        *,
        threads: int | None = None,
        lanes: int | None = None,
        spinning: bool | None = None,
        providers: Sequence[str] | None = None,
        optimize: bool = True,
    ) -> None:
        self.threads = Threads.of(threads, lanes, spinning)
        known = ort.get_available_providers()
        asked = [_PROVIDER] if providers is None else providers
        if not isinstance(asked, list | tuple) or not asked or not all(provider in known for provider in asked):
            raise OptionError(
                f"providers is {providers!r}; expected a list of those that are in this ONNX Runtime: "
                f"{', '.join(known)}"
            )
        self._providers = list(asked)
        self._optimize = optimize

    def open(
        self,
        graph: Path | bytes,
        *,
        many_runs: bool = False,
        precision: str = "float32",  # noqa: ARG002  # these kernels compute as the graph says
    ) -> "OnnxRuntimeSession":
        """Load a graph from a file or from the bytes of a model.

        Several runs at a time with one thread each do more than one run with all threads: they do not wait for one
        another, and the work between two runs is shared out as well (decision 6).

        Args:
            graph: The file, or the bytes.
            many_runs: Whether several runs may be under way, each with its share of the threads.
            precision: That of the graph: its operators have it in themselves.

        Raises:
            BackendError: ONNX Runtime refused the graph, or a provider that was asked for does not work here.
        """
        run_threads, runs = self.threads.shared_out(many_runs)
        options = session_options(threads=run_threads, spinning=self.threads.spinning, optimize=self._optimize)
        name = str(graph) if isinstance(graph, Path) else "the source model"
        try:
            session = ort.InferenceSession(
                str(graph) if isinstance(graph, Path) else graph, options, providers=self._providers
            )
        except Exception as err:  # ONNX Runtime's own exceptions share no base class below Exception
            reason = " ".join(str(err).split())
            raise BackendError(f"{name}: {self.runtime} refused the graph: {reason}") from err
        expect_started(name, session, self._providers)
        session.disable_fallback()  # a provider that fails in a run is not replaced in silence
        return OnnxRuntimeSession(name, session, runs_at_once=runs, outlives_fork=run_threads == 1)


class OnnxRuntimeSession:
    """One graph loaded by ONNX Runtime.

    Args:
        name: What messages call the graph.
        session: The session, which this object owns.
        runs_at_once: How many runs at a time make the best use of the machine.
        outlives_fork: Whether a process forked from this one may run it: threads do not survive a fork.
    """

    def __init__(self, name: str, session: "ort.InferenceSession", *, runs_at_once: int, outlives_fork: bool) -> None:
        self.runs_at_once = runs_at_once
        self._name = name
        self._session = session
        self._process = None if outlives_fork else os.getpid()
        self._names = [value.name for value in session.get_inputs()]
        self.inputs = tuple(map(describe, session.get_inputs()))
        self.outputs = tuple(map(describe, session.get_outputs()))

    def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> list[NDArray[np.generic]]:
        """Run the graph once; see `engine.backends.base.Session`."""
        if self._process is not None:
            remedy = "load the bundle in each process, or before the fork with threads=1"
            expect_same_process(self._name, self._process, remedy)
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True  # asked for between two nodes

        try:
            feeds = dict(zip(self._names, inputs, strict=True))
            with nullcontext() if brake is None else brake.on(stop):
                outputs: list[NDArray[np.generic]] = self._session.run(None, feeds, options)
        except Exception as err:  # ONNX Runtime's own exceptions share no base class below Exception
            reason = " ".join(str(err).split())
            raise BackendError(f"{self._name}: ONNX Runtime failed: {reason}") from err
        return outputs


def expect_started(name: str, session: "ort.InferenceSession", providers: Sequence[str]) -> None:
    """Check that a session has every provider that was asked for: ONNX Runtime leaves out what it cannot start.

    Args:
        name: What messages call the graph.
        session: The session.
        providers: Those that were asked for.

    Raises:
        BackendError: One is missing.
    """
    missing = [provider for provider in providers if provider not in session.get_providers()]
    if missing:
        raise BackendError(
            f"{name}: ONNX Runtime {ONNXRUNTIME_VERSION} could not start {', '.join(missing)} and would run on "
            f"{', '.join(session.get_providers())}; expected {', '.join(providers)}: install what the provider needs, "
            "or ask for another"
        )


def describe(value: "ort.NodeArg") -> Tensor:
    """Return the type and shape of a graph's input or output."""
    sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
    return Tensor(_DTYPES.get(value.type, value.type), sizes)
