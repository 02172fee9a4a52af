"""ONNX Runtime's CUDA provider, with CuPy's memory and kernels."""

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime as ort

from engine.backends.bound import BoundSession, failure
from engine.backends.half import to_float16
from engine.backends.onnxruntime_cpu import ONNXRUNTIME_VERSION, OnnxRuntimeSession, expect_started, session_options
from engine.backends.threads import Threads
from engine.errors import BackendError, MissingRuntimeError, OptionError

CUDA = "CUDAExecutionProvider"
_INSTALL = "pip install 'ada-sise-engine[gpu]'"
_ELEMENTS: dict[str, type[np.generic]] = {"float16": np.float16}


def cuda_options(stream: int, *, tf32: bool = False, cuda_graph: bool = False) -> dict[str, str]:
    """Return the options of the CUDA provider: the same bytes out for the same bytes in, and float32 proper.

    Args:
        stream: The address of the stream that all runs are on.
        tf32: Whether products may be computed in TF32, with 10 bits of mantissa.
        cuda_graph: Whether runs are captured once, then replayed.
    """
    return {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "use_tf32": str(int(tf32)),
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": str(int(cuda_graph)),
    }


def expect_cuda() -> None:
    """Check that graphs can run on a GPU, so that nothing falls back to the CPU in silence.

    Raises:
        MissingRuntimeError: CuPy, ONNX Runtime's build for CUDA, a library that it needs, or the driver is not there.
        BackendError: There is no GPU, or the driver is too old for the CUDA that is installed.
    """
    try:
        import cupy
    except ImportError as err:
        raise MissingRuntimeError(
            f"a GPU needs CuPy, which cannot be imported ({err}); install it with {_INSTALL}"
        ) from err
    if CUDA not in ort.get_available_providers():
        raise MissingRuntimeError(
            f"ONNX Runtime {ONNXRUNTIME_VERSION} is the build for CPUs; expected onnxruntime-gpu: pip uninstall "
            f"onnxruntime, then {_INSTALL}"
        )
    runtime, driver, wanted = cupy.cuda.runtime, 0, 0
    try:
        driver, wanted = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if driver == 0:
            raise MissingRuntimeError("there is no NVIDIA driver (libcuda.so.1); expected one: install it")
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as err:
        if driver < wanted:
            raise BackendError(
                f"the NVIDIA driver is made for CUDA {_version(driver)}; expected {_version(wanted)} or newer: update "
                "the driver"
            ) from err
        raise BackendError(f"no GPU can be used: {' '.join(str(err).split())}") from err
    if count == 0:
        raise BackendError("there is no NVIDIA GPU that this process may use; check CUDA_VISIBLE_DEVICES")
    load_provider("cuda")


def load_provider(name: str) -> None:
    """Load the library of a provider, which says what it misses; ONNX Runtime itself would print it, and go on.

    Args:
        name: `cuda` or `tensorrt`.

    Raises:
        MissingRuntimeError: A library is not there.
    """
    ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    try:
        # The provider finds the functions of the first by their names, as when ONNX Runtime loads both.
        for library, mode in (("shared", ctypes.RTLD_GLOBAL), (name, ctypes.RTLD_LOCAL)):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{library}.so"), mode=mode)
    except OSError as err:
        raise MissingRuntimeError(
            f"ONNX Runtime's provider for {name} cannot be loaded: {err}; install what it needs: {REMEDIES[name]}"
        ) from err


REMEDIES = {"cuda": _INSTALL, "tensorrt": "pip install 'tensorrt-cu13>=10,<11'"}


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class OnnxRuntimeCuda:
    """Opens graphs in ONNX Runtime on a GPU.

    Args:
        threads: None: what runs on the GPU has none.
        lanes: None, as well.
        spinning: None, as well.
        providers: None, as well.
        cuda_graph: Whether scoring runs are captured when a batch size is new, and replayed. While ONNX Runtime
            captures, no other thread of the process may use CUDA.

    Raises:
        OptionError: One of the first four is given.
        MissingRuntimeError: Something is not installed; see `expect_cuda`.
        BackendError: There is no GPU.
    """

    device: ClassVar[str] = "cuda"
    precisions: ClassVar[tuple[str, ...]] = ("float32", "tf32", "float16")
    can_spin: ClassVar[bool] = False

    def __init__(
        self,
        *,
        threads: int | None = None,
        lanes: int | None = None,
        spinning: bool | None = None,
        providers: Sequence[str] | None = None,
        cuda_graph: bool = False,
    ) -> None:
        given = {"threads": threads, "lanes": lanes, "spinning": spinning, "providers": providers}
        expect_none(self.device, given)
        expect_cuda()
        self.threads = Threads(total=1, lanes=1, spinning=False)
        self.gpu = CudaGpu(cuda_graph=cuda_graph)
        self.runtime = f"ONNX Runtime {ONNXRUNTIME_VERSION} on {self.gpu.name}"

    def open(self, graph: Path | bytes, *, many_runs: bool = False, precision: str = "float32") -> OnnxRuntimeSession:
        """Load a graph whose arrays are the host's; see `engine.backends.base.Backend`."""
        del many_runs  # a GPU does one run at a time best
        return OnnxRuntimeSession(*self.gpu.session(graph, precision), runs_at_once=1, outlives_fork=False)


def expect_none(device: str, given: Mapping[str, object]) -> None:
    """Check that nothing was asked for that a GPU does not have.

    Raises:
        OptionError: Something was.
    """
    for name, value in given.items():
        if value is not None:
            raise OptionError(f"{name} is {value!r}; expected None on device {device!r}, which has no such choice")


class CudaGpu:
    """The first GPU that the process sees, with ONNX Runtime's CUDA provider.

    Args:
        cuda_graph: As for `OnnxRuntimeCuda`.

    Attributes:
        memory: Its memory and kernels.
        name: What it is called.
    """

    def __init__(self, *, cuda_graph: bool) -> None:
        from engine.backends.cupy_device import CupyDevice  # may not be installed: `expect_cuda` says so

        self.memory = CupyDevice()
        self.name = self.memory.name
        self._worker = ThreadPoolExecutor(1, "cuda-graphs") if cuda_graph else None

    def element(self, precision: str) -> type[np.generic]:
        """Return NumPy's type of the elements of scoring batches."""
        return _ELEMENTS.get(precision, np.float32)

    def open(self, graph: Path, *, precision: str = "float32", many_runs: bool = False) -> BoundSession:
        """Load a graph; see `engine.backends.base.Gpu`."""
        worker = self._worker if many_runs else None
        name, session = self.session(graph, precision, resident=True, cuda_graph=worker is not None)
        return BoundSession(name, session, self.memory, "cuda", worker)

    def session(
        self,
        graph: Path | bytes,
        precision: str,
        *,
        resident: bool = False,
        cuda_graph: bool = False,
    ) -> tuple[str, "ort.InferenceSession"]:
        """Open a session, and say what messages call it.

        Args:
            graph: The file, or the bytes of a model.
            precision: In what to compute it.
            resident: Whether images come in the type of that precision.
            cuda_graph: Whether its runs are captured.

        Raises:
            BackendError: ONNX Runtime refused the graph, or cannot run all of it on the GPU, for a CUDA graph.
        """
        name = str(graph) if isinstance(graph, Path) else "the source model"
        content: str | bytes = str(graph) if isinstance(graph, Path) else graph
        if precision == "float16" and isinstance(graph, Path):
            content = to_float16(graph, images=resident)
        options = session_options(threads=1)
        if cuda_graph:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        stream = self.memory.stream.ptr
        provider = cuda_options(stream, tf32=precision == "tf32", cuda_graph=cuda_graph)
        session = open_session(name, content, options, [(CUDA, provider)])
        if cuda_graph:
            expect_all_on(name, session, CUDA)
        return name, session


def open_session(
    name: str, content: str | bytes, options: "ort.SessionOptions", providers: list[tuple[str, dict[str, str]]]
) -> "ort.InferenceSession":
    """Open a session on providers of which none may be left out.

    Raises:
        BackendError: ONNX Runtime refused the graph, or started without one of them.
        DeviceMemoryError: There is no memory for it.
    """
    try:
        # enable_fallback: it would open the graph on the CPU, now or when a run fails, and lose the reason.
        session = ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as err:  # ONNX Runtime's own exceptions share no base class below Exception
        raise failure(name, "refused the graph", err) from err
    expect_started(name, session, [provider for provider, _ in providers])
    return session


def nodes_elsewhere(session: "ort.InferenceSession", provider: str) -> list[str]:
    """Return the nodes that do not run on a provider, `NAME (OPERATOR)`; the session must have recorded them."""
    return [
        f"{node.name} ({node.op_type})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    ]


def expect_all_on(name: str, session: "ort.InferenceSession", provider: str) -> None:
    """Check that no node runs elsewhere, which a captured graph cannot hold.

    Raises:
        BackendError: Some do.
    """
    elsewhere = nodes_elsewhere(session, provider)
    if elsewhere:
        raise BackendError(
            f"{name}: {len(elsewhere)} nodes do not run on {provider}: {', '.join(elsewhere[:5])}; a CUDA graph holds "
            "those alone: export the model without these operators, or load it without CUDA graphs"
        )
