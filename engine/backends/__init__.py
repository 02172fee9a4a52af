"""The runtimes that execute a bundle's graphs; one file each."""

from collections.abc import Sequence

from engine.backends.base import Backend, Brake, Session, Tensor
from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.errors import OptionError

__all__ = ["BACKENDS", "Backend", "Brake", "OnnxRuntimeCpu", "Session", "Tensor", "create_backend"]

BACKENDS: dict[str, type[Backend]] = {"cpu": OnnxRuntimeCpu}


def create_backend(device: str, *, threads: int | None = None, providers: Sequence[str] | None = None) -> Backend:
    """Return the backend of a device; see `Backend` for the arguments.

    Raises:
        OptionError: The device is unknown, the number of threads is not positive, or a provider is not installed.
    """
    if not isinstance(device, str) or device not in BACKENDS:
        raise OptionError(f"device {device!r} is unknown; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[device](threads=threads, providers=providers)
