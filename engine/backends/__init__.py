"""The runtimes that execute a bundle's graphs; one file each."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, Unpack

from engine.backends.base import Backend, Bound, Brake, Gpu, Session, Tensor
from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.errors import OptionError

__all__ = ["BACKENDS", "Backend", "Bound", "Brake", "Gpu", "OnnxRuntimeCpu", "Session", "Tensor", "create_backend"]


class _Options(TypedDict, total=False):
    """What every backend can be asked for; see `Backend`."""

    threads: int | None
    lanes: int | None
    spinning: bool | None
    providers: Sequence[str] | None


class _Create(Protocol):
    def __call__(self, **options: Unpack[_Options]) -> Backend: ...


def _create_openvino(**options: Unpack[_Options]) -> Backend:
    from engine.backends.openvino_cpu import OpenVinoCpu  # takes 0.2 s and may not be installed: for those who ask

    return OpenVinoCpu(**options)


def _create_cuda(*, cuda_graph: bool = False, **options: Unpack[_Options]) -> Backend:
    from engine.backends.onnxruntime_cuda import OnnxRuntimeCuda

    return OnnxRuntimeCuda(cuda_graph=cuda_graph, **options)


def _create_tensorrt(**options: Unpack[_Options]) -> Backend:
    from engine.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRt

    return OnnxRuntimeTensorRt(**options)


BACKENDS: dict[str, _Create] = {
    "cpu": OnnxRuntimeCpu,
    "openvino": _create_openvino,
    "cuda": _create_cuda,
    "tensorrt": _create_tensorrt,
}


def create_backend(device: str, *, cuda_graph: bool = False, **options: Unpack[_Options]) -> Backend:
    """Return the backend of a device; see `Backend` for the arguments.

    Args:
        device: One of `BACKENDS`.
        cuda_graph: Of device `cuda` alone: whether scoring runs are captured once, then replayed.
        options: As for `Backend`.

    Raises:
        OptionError: The device is unknown, the number of threads or lanes is not positive, a provider is not installed,
            or the device lacks an option.
        MissingRuntimeError: The device's runtime is not installed.
    """
    if not isinstance(device, str) or device not in BACKENDS:
        raise OptionError(f"device {device!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if cuda_graph is False:
        return BACKENDS[device](**options)
    if cuda_graph is not True or device != "cuda":
        raise OptionError(f"cuda_graph is {cuda_graph!r} on device {device!r}; expected False, or True on 'cuda'")
    return _create_cuda(cuda_graph=True, **options)
