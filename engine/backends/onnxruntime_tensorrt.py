"""ONNX Runtime's TensorRT provider, which scores masks; everything else runs on its CUDA provider."""

import ctypes
import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from engine._version import __version__
from engine.backends.base import Bound, Placed, Tensor
from engine.backends.bound import BoundSession
from engine.backends.half import TYPES, read_graph, with_rounded_weights
from engine.backends.onnxruntime_cpu import ONNXRUNTIME_VERSION, OnnxRuntimeSession, session_options
from engine.backends.onnxruntime_cuda import (
    CUDA,
    REMEDIES,
    CudaGpu,
    cuda_options,
    expect_cuda,
    expect_none,
    load_provider,
    nodes_elsewhere,
    open_session,
)
from engine.backends.threads import Threads
from engine.cache import ENGINES, TIMINGS, cache_folder, draft, find, remove
from engine.errors import BackendError, DeviceMemoryError, MissingRuntimeError, OptionError

TENSORRT = "TensorrtExecutionProvider"
_LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
_LOG = logging.getLogger(__name__)


def tensorrt_options(
    stream: int, precision: str, shape: str, engines: Path | None, timings: Path | None
) -> dict[str, str]:
    """Return the options of the TensorRT provider.

    Runs are not captured as CUDA graphs: the host is batches ahead of the device anyway.

    Args:
        stream: The address of the stream that all runs are on.
        precision: In what TensorRT may compute beside float32; whether that is TF32 it reads from the environment.
        shape: The one shape that there is, `NAME:BxCxHxW`.
        engines: The folder of the engine; None to keep none.
        timings: The folder of what TensorRT measured of each layer; None where it measures nothing.
    """
    options = {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "trt_fp16_enable": str(precision == "float16"),  # of this provider it reads True and False alone
        "trt_bf16_enable": str(precision == "bfloat16"),
        "trt_profile_min_shapes": shape,
        "trt_profile_opt_shapes": shape,
        "trt_profile_max_shapes": shape,
    }
    if engines is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(engines)}
    if timings is not None:
        options |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(timings)}
    return options


def load_tensorrt() -> str:
    """Load TensorRT and ONNX Runtime's provider for it, and return TensorRT's version.

    Raises:
        MissingRuntimeError: A library is not there.
    """
    package = importlib.util.find_spec("tensorrt_libs")  # PyPI's, which the loader does not look into
    folders = [] if package is None else [Path(folder) for folder in package.submodule_search_locations or ()]
    loaded = []
    try:
        for name in _LIBRARIES:
            path = next((folder / name for folder in folders if (folder / name).exists()), name)
            loaded.append(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))
    except OSError as err:
        raise MissingRuntimeError(
            f"TensorRT cannot be loaded: {err}; expected TensorRT 10, which ONNX Runtime {ONNXRUNTIME_VERSION} needs: "
            f"{REMEDIES['tensorrt']}"
        ) from err
    load_provider("tensorrt")
    number = int(loaded[0].getInferLibVersion())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class OnnxRuntimeTensorRt:
    """Scores masks in TensorRT, through ONNX Runtime.

    An engine is built for each batch size and kept in the user's cache: the same engine gives the same bytes for the
    same bytes; one that is built anew may not.

    Args:
        threads: None: what runs on the GPU has none.
        lanes: None, as well.
        spinning: None, as well.
        providers: None, as well.

    Raises:
        OptionError: One of them is given.
        MissingRuntimeError: Something is not installed; see `expect_cuda` and `load_tensorrt`.
        BackendError: There is no GPU.
    """

    device: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[str, ...]] = ("float32", "tf32", "float16", "bfloat16")
    can_spin: ClassVar[bool] = False

    def __init__(
        self,
        *,
        threads: int | None = None,
        lanes: int | None = None,
        spinning: bool | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        given = {"threads": threads, "lanes": lanes, "spinning": spinning, "providers": providers}
        expect_none(self.device, given)
        expect_cuda()
        version = load_tensorrt()
        self.threads = Threads(total=1, lanes=1, spinning=False)
        self._cuda = CudaGpu(cuda_graph=False)
        self.gpu = TensorRtGpu(self._cuda, version)
        self.runtime = f"ONNX Runtime {ONNXRUNTIME_VERSION} with TensorRT {version} on {self.gpu.name}"

    def open(self, graph: Path | bytes, *, many_runs: bool = False, precision: str = "float32") -> OnnxRuntimeSession:
        """Load a graph whose arrays are the host's, on the CUDA provider; see `engine.backends.base.Backend`."""
        del many_runs  # a GPU does one run at a time best
        if precision == "bfloat16":
            raise OptionError(
                "precision is 'bfloat16', in which only methods ada-sise and sise score on device 'tensorrt'; expected "
                "'float32', 'tf32' or 'float16' for other methods"
            )
        return OnnxRuntimeSession(*self._cuda.session(graph, precision), runs_at_once=1, outlives_fork=False)


class TensorRtGpu:
    """A GPU whose scorer runs in TensorRT.

    Args:
        cuda: The GPU with the CUDA provider.
        version: TensorRT's.

    Attributes:
        memory: Its memory and kernels.
        name: What it is called.
    """

    def __init__(self, cuda: CudaGpu, version: str) -> None:
        import cupy  # may not be installed: `expect_cuda` says so

        self.memory, self.name = cuda.memory, cuda.name
        self._cuda = cuda
        self._versions = {
            "gpu": cuda.name,
            "driver": int(cupy.cuda.runtime.driverGetVersion()),
            "tensorrt": version,
            "onnxruntime": ONNXRUNTIME_VERSION,
            "engine": __version__,
        }

    def element(self, precision: str) -> type[np.generic]:
        """Return float32: TensorRT is given the graph of float32, and converts within it where that is faster."""
        del precision
        return np.float32

    def open(self, graph: Path, *, precision: str = "float32", many_runs: bool = False) -> Bound:
        """Load a graph: one that is run often in TensorRT, another as on device `cuda`.

        Raises:
            OptionError: The precision is float32, and TensorRT would compute in TF32.
            BackendError: The runtime refused the graph.
        """
        if not many_runs:
            return self._cuda.open(graph, precision=precision)
        override = os.environ.get(_OVERRIDE)
        if precision == "float32" and override != "0":
            raise OptionError(
                f"precision is 'float32', which TensorRT computes in TF32 unless the environment variable {_OVERRIDE} "
                f"is 0 when the process starts; it is {override!r}: set it to 0, or choose precision 'tf32'"
            )
        versions = {**self._versions, "precision": precision, _OVERRIDE: override}
        return TensorRtGraph(graph, self._cuda, precision, versions)


class TensorRtGraph:
    """A graph in TensorRT; see `engine.backends.base.Bound`. Its session has one batch size, that of the last `bind`.

    Args:
        graph: The file, beside which its weights lie.
        gpu: Where.
        precision: In what TensorRT may compute beside float32.
        versions: What an engine depends on beside the graph and the batch size.

    Raises:
        BackendError: It cannot be read.
    """

    def __init__(self, graph: Path, gpu: CudaGpu, precision: str, versions: dict[str, object]) -> None:
        model = read_graph(graph, weights=False).graph
        self.inputs, self.outputs = tuple(map(_describe, model.input)), tuple(map(_describe, model.output))
        self._image = model.input[0]
        self._graph, self._gpu, self._precision, self._versions = graph, gpu, precision, versions
        weights = {ExternalDataInfo(own).location for own in model.initializer if uses_external_data(own)}
        self._files = [graph, *(graph.parent / name for name in sorted(weights))]
        self._digest = self._hash()
        self._opened: tuple[int, BoundSession] | None = None

    def bind(self, inputs: Sequence[Placed], outputs: Sequence[Placed]) -> Callable[[], None]:
        """Say where the graph's inputs and outputs lie; the first time for a batch size, build its engine.

        Raises:
            BackendError: The runtime refused the graph, or it was changed after it had been opened.
        """
        size = inputs[0][1][0]
        if self._opened is None or self._opened[0] != size:
            self._opened = None  # its memory is free, if nobody keeps its runs, before the next takes some
            self._opened = size, self._open(size)
        return self._opened[1].bind(inputs, outputs)

    def _open(self, size: int) -> BoundSession:
        if self._hash() != self._digest:
            raise BackendError(f"{self._graph}: was changed after it had been opened; load the bundle again")
        half = self._precision in TYPES
        content = with_rounded_weights(self._graph, self._precision) if half else str(self._graph)
        digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else self._digest
        identity = {**self._versions, "graph": digest, "batch_size": size}
        try:
            place = find(cache_folder() / ENGINES, identity)
        except OSError as err:
            _LOG.warning("%s: the next load builds the engine again", err)
            return self._session(size, content)
        if place is not None:
            try:
                return self._session(size, content, place)
            except DeviceMemoryError:
                raise
            except BackendError as err:
                remove(place, str(err))
        return self._build(size, content, identity)

    def _build(self, size: int, content: str | bytes, identity: dict[str, object]) -> BoundSession:
        """Build an engine and keep it, and what TensorRT measured: that serves other weights, too.

        Raises:
            BackendError: The runtime refused the graph, or TensorRT took no part of it.
        """
        _LOG.info("building the TensorRT engine for batches of %d: this can take minutes …", size)
        timings, session = cache_folder() / TIMINGS, None
        try:
            known = find(timings, self._versions)
            with (
                draft(cache_folder() / ENGINES, identity) as engines,
                draft(timings, self._versions, replace=True) as measured,
            ):
                for file in () if known is None else known.glob("*.timing"):
                    shutil.copyfile(file, measured / file.name)
                session = self._session(size, content, engines, measured)
                if not any(engines.glob("*.engine")):
                    raise BackendError(f"{self._graph}: TensorRT took no part of the graph; choose device 'cuda'")
        except OSError as err:
            _LOG.warning("%s: the next load builds the engine again", err)
        return self._session(size, content) if session is None else session

    def _session(
        self, size: int, content: str | bytes, engines: Path | None = None, timings: Path | None = None
    ) -> BoundSession:
        stream, name = self._gpu.memory.stream.ptr, str(self._graph)
        batch, *image = self._image.type.tensor_type.shape.dim
        options = session_options(threads=1)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # Without it the inputs of a second part in TensorRT, behind a node that it lacks, would have no profile.
        options.add_free_dimension_override_by_name(batch.dim_param, size)
        shape = f"{self._image.name}:{'x'.join(str(own) for own in (size, *(own.dim_value for own in image)))}"
        providers = [
            (TENSORRT, tensorrt_options(stream, self._precision, shape, engines, timings)),
            (CUDA, cuda_options(stream, tf32=self._precision != "float32")),
        ]
        session = open_session(name, content, options, providers)
        others = nodes_elsewhere(session, TENSORRT)
        if others:
            _LOG.warning("%s: %d nodes do not run in TensorRT: %s", name, len(others), ", ".join(others[:5]))
        return BoundSession(name, session, self._gpu.memory, "cuda")

    def _hash(self) -> str:
        whole = hashlib.sha256()
        try:
            for file in self._files:
                with file.open("rb") as content:
                    whole.update(hashlib.file_digest(content, "sha256").digest())
        except OSError as err:
            raise BackendError(f"{self._graph}: cannot be read: {err}; export or copy the bundle again") from err
        return whole.hexdigest()


def _describe(value: onnx.ValueInfoProto) -> Tensor:
    """Return the type and shape of a graph's input or output."""
    own = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in own.shape.dim)
    return Tensor(onnx.helper.tensor_dtype_to_np_dtype(own.elem_type).name, sizes)
