"""The runtimes that execute a bundle's graphs; one file each."""

from engine.backends.base import Backend, Session
from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.errors import OptionError

__all__ = ["BACKENDS", "Backend", "OnnxRuntimeCpu", "Session", "create_backend"]

BACKENDS: dict[str, type[Backend]] = {"cpu": OnnxRuntimeCpu}


def create_backend(device: str, *, threads: int | None) -> Backend:
    """Return the backend of a device.

    Raises:
        OptionError: The device is unknown, or the number of threads is not positive.
    """
    if not isinstance(device, str) or device not in BACKENDS:
        raise OptionError(f"device {device!r} is unknown; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[device](threads=threads)
