"""The GPU that is measured: what benchmarks/gpu.py asks of CUDA itself, because the engine has no use for it."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Protocol
from unittest.mock import patch

import onnxruntime as ort
import torch

from engine.backends import Backend, Gpu, create_backend, onnxruntime_cuda
from engine.errors import BackendError

_COPIED_BYTES = 1 << 30  # far beyond the second-level cache
_SIDE = 8192  # of the matrices
_REPEATS, _ROUNDS = 20, 5


class Hardware(Protocol):
    """A GPU.

    Attributes:
        torch_device: What torch calls it.
        ballast_bytes: How much to overwrite so that it is busy while the host asks for what is timed next.
    """

    torch_device: str
    ballast_bytes: int

    def facts(self) -> dict[str, str]:
        """What it is, and the versions of what drives it."""
        ...

    def backend(self, *, cuda_graph: bool) -> Backend:
        """The engine's backend on it."""
        ...

    def tensorrt(self) -> Backend:
        """The engine's backend on it by TensorRT."""
        ...

    def gpu_with(self, options: Mapping[str, str]) -> Gpu:
        """The engine's GPU without CUDA graphs, its provider with other options."""
        ...

    def used_mb(self) -> float:
        """How much of its memory is taken, by all that use it."""
        ...

    def copy_gb_per_s(self) -> float:
        """Bytes read and written by a copy within its memory."""
        ...

    def gemm_tflops(self) -> float:
        """Operations of a product of large float16 matrices."""
        ...


class Cuda:
    """The first NVIDIA GPU; see `Hardware`.

    Raises:
        MissingRuntimeError: Something is not installed.
        BackendError: There is no GPU, or torch is a build without CUDA.
    """

    torch_device = "cuda"
    ballast_bytes = 8 << 30

    def __init__(self) -> None:
        onnxruntime_cuda.expect_cuda()
        if not torch.cuda.is_available():
            raise BackendError(f"torch {torch.__version__} finds no GPU; expected a build for CUDA")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # the tapped pass is float32 proper, as the engine's

    def facts(self) -> dict[str, str]:
        """See `Hardware`."""
        import cupy

        runtime = cupy.cuda.runtime
        return {
            "GPU": torch.cuda.get_device_name(0),
            "GPU memory": f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB",
            "driver's CUDA": str(runtime.driverGetVersion()),
            "CuPy": cupy.__version__,
            "CuPy's CUDA": str(runtime.runtimeGetVersion()),
            "torch's CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "onnxruntime-gpu": ort.__version__,
        }

    def backend(self, *, cuda_graph: bool) -> Backend:
        """See `Hardware`."""
        return onnxruntime_cuda.OnnxRuntimeCuda(cuda_graph=cuda_graph)

    def tensorrt(self) -> Backend:
        """See `Hardware`."""
        return create_backend("tensorrt")

    def gpu_with(self, options: Mapping[str, str]) -> Gpu:
        """See `Hardware`."""
        return _OtherOptions(options)

    def used_mb(self) -> float:
        """See `Hardware`."""
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e6

    def copy_gb_per_s(self) -> float:
        """See `Hardware`."""
        source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return 2 * _COPIED_BYTES / 1e6 / _median_ms(lambda: target.copy_(source))

    def gemm_tflops(self) -> float:
        """See `Hardware`."""
        a, b = (torch.randn(_SIDE, _SIDE, dtype=torch.float16, device="cuda") for _ in range(2))
        out = torch.empty_like(a)
        return 2 * _SIDE**3 / 1e9 / _median_ms(lambda: torch.matmul(a, b, out=out))


class _OtherOptions(onnxruntime_cuda.CudaGpu):
    """The engine's GPU, its provider with other options.

    Args:
        options: These, beside the engine's own.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(cuda_graph=False)
        self._options = options

    def session(self, *arguments: Any, **named: Any) -> Any:
        """See `CudaGpu`."""
        own = onnxruntime_cuda.cuda_options
        with patch.object(onnxruntime_cuda, "cuda_options", lambda *a, **k: own(*a, **k) | dict(self._options)):
            return super().session(*arguments, **named)


def _median_ms(step: Callable[[], object]) -> float:
    """What a step takes on torch's stream, in milliseconds."""
    times = []
    for _ in range(1 + _ROUNDS):  # the first warms up
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(_REPEATS):
            step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / _REPEATS)
    return median(times[1:])
