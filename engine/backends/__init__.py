"""The runtimes that execute a bundle's graphs; one file each."""

from collections.abc import Sequence
from typing import Protocol

from engine.backends.base import Backend, Bound, Brake, Gpu, Session, Tensor
from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.errors import OptionError

__all__ = ["BACKENDS", "Backend", "Bound", "Brake", "Gpu", "OnnxRuntimeCpu", "Session", "Tensor", "create_backend"]


class _Create(Protocol):
    def __call__(
        self, *, threads: int | None, lanes: int | None, spinning: bool | None, providers: Sequence[str] | None
    ) -> Backend: ...


def _create_openvino(
    *, threads: int | None, lanes: int | None, spinning: bool | None, providers: Sequence[str] | None
) -> Backend:
    from engine.backends.openvino_cpu import OpenVinoCpu  # takes 0.2 s and may not be installed: for those who ask

    return OpenVinoCpu(threads=threads, lanes=lanes, spinning=spinning, providers=providers)


def _create_cuda(
    *, threads: int | None, lanes: int | None, spinning: bool | None, providers: Sequence[str] | None
) -> Backend:
    from engine.backends.onnxruntime_cuda import OnnxRuntimeCuda

    return OnnxRuntimeCuda(threads=threads, lanes=lanes, spinning=spinning, providers=providers)


def _create_tensorrt(
    *, threads: int | None, lanes: int | None, spinning: bool | None, providers: Sequence[str] | None
) -> Backend:
    from engine.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRt

    return OnnxRuntimeTensorRt(threads=threads, lanes=lanes, spinning=spinning, providers=providers)


BACKENDS: dict[str, _Create] = {
    "cpu": OnnxRuntimeCpu,
    "openvino": _create_openvino,
    "cuda": _create_cuda,
    "tensorrt": _create_tensorrt,
}


def create_backend(
    device: str,
    *,
    threads: int | None = None,
    lanes: int | None = None,
    spinning: bool | None = None,
    providers: Sequence[str] | None = None,
) -> Backend:
    """Return the backend of a device; see `Backend` for the arguments.

    Raises:
        OptionError: The device is unknown, the number of threads or lanes is not positive, a provider is not installed,
            or the device lacks an option.
        MissingRuntimeError: The device's runtime is not installed.
    """
    if not isinstance(device, str) or device not in BACKENDS:
        raise OptionError(f"device {device!r} is unknown; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[device](threads=threads, lanes=lanes, spinning=spinning, providers=providers)
