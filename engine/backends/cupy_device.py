"""Memory and kernels of an NVIDIA GPU, through CuPy."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Self

import cupy
import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.errors import BackendError, DeviceMemoryError, ImageError
from engine.kernels.device import Array, DevicePointer

_OPTIONS = ("--std=c++17", "--fmad=false")  # a fused product and sum would round once less than NumPy does


class CupyDevice:
    """The first GPU that the process sees, and one stream on it, which waits for no other.

    Raises:
        BackendError: The calling thread's CUDA context is not the GPU's primary one, which CUDA's runtime works in.

    Attributes:
        name: What the GPU is called.
        stream: Its stream.
    """

    def __init__(self) -> None:
        with _told():
            _expect_primary_context()
            self._device = cupy.cuda.Device(0)
            with self._device:
                self.stream = cupy.cuda.Stream(non_blocking=True)
            properties = cupy.cuda.runtime.getDeviceProperties(0)
        self.name: str = properties["name"].decode()
        self._lock = Lock()
        self._modules: dict[tuple[Path, tuple[str, ...]], Any] = {}

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return memory that holds anything; see `engine.kernels.device.Device`, and so for the others."""
        with self._here():
            return cupy.empty(shape, dtype)

    def free_unused(self) -> None:
        """Give memory back that is kept for later."""
        with self._here():
            cupy.get_default_memory_pool().free_all_blocks()

    def clear(self, array: Array) -> None:
        """Fill an array with zeros."""
        with self._here():
            array.fill(0)

    def copy(self, target: Array, source: Array) -> None:
        """Write an array over another of the same shape, as numbers of its type."""
        with self._here():
            target[...] = source

    def upload(self, array: NDArray[Any]) -> Array:
        """Return a copy of an array of the host."""
        with self._here():
            return cupy.array(array, order="C")

    def download(self, array: Array) -> NDArray[Any]:
        """Return a copy of an array, when all that was asked for before is done."""
        with self._here():
            return np.asarray(array.get(stream=self.stream))

    def adopt(self, image: object) -> Array:
        """Return another owner's array as one of this device."""
        with self._here():
            if isinstance(image, DevicePointer):
                memory = cupy.cuda.UnownedMemory(image.address, image.size_bytes, image, 0)
                place = cupy.cuda.MemoryPointer(memory, 0)
                return cupy.ndarray(image.shape, np.dtype(image.dtype), place, image.strides)
            if hasattr(image, "__cuda_array_interface__"):
                return cupy.asarray(image)
            if hasattr(image, "__dlpack__"):
                try:
                    return cupy.from_dlpack(image)
                except (BufferError, TypeError, RuntimeError) as err:
                    raise ImageError(f"the image cannot be taken over DLPack: {err}; expected one on the GPU") from err
        raise ImageError(
            f"the image is a {type(image).__name__}; expected a DevicePointer, or an array on the GPU that has "
            "__cuda_array_interface__ or __dlpack__"
        )

    def come_after(self, stream: int) -> None:
        """Do what comes next when another stream has done all that was asked of it so far."""
        with self._here():
            event = cupy.cuda.Event()
            cupy.cuda.runtime.eventRecord(event.ptr, stream)
            self.stream.wait_event(event)

    def come_before(self, stream: int) -> None:
        """Let another stream do what comes next there when this one has done all that was asked of it so far."""
        with self._here():
            cupy.cuda.runtime.streamWaitEvent(stream, self.stream.record().ptr)

    def address(self, array: Array) -> int:
        """Return where an array lies."""
        return int(array.data.ptr)

    def mark(self) -> "CupyMark":
        """Return a mark of how far the stream is when it comes here."""
        with self._here():
            return CupyMark(self.stream.record())

    def compile(self, file: Path, definitions: tuple[str, ...] = ()) -> None:
        """Make kernels ready to be launched."""
        with self._here():
            self._module(file, definitions)

    def launch(
        self,
        file: Path,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        definitions: tuple[str, ...] = (),
    ) -> None:
        """Run a kernel, which is compiled when it is first asked for."""
        with self._here():
            values = tuple(np.uint64(0) if argument is None else argument for argument in arguments)
            self._module(file, definitions).get_function(kernel)(grid, block, values)

    def _module(self, file: Path, definitions: tuple[str, ...]) -> Any:
        key = file, definitions
        with self._lock:
            if key not in self._modules:
                options = (*_OPTIONS, f"-I{file.parent}", *(f"-D{word}" for word in definitions))
                # Not RawModule, which takes subnormal numbers for 0, and keeps binaries whatever the headers say.
                source = file.read_text(encoding="utf-8")
                binary, _ = cupy.cuda.compiler.compile_using_nvrtc(source, options, filename=file.name)
                module = cupy.cuda.function.Module()
                module.load(binary)
                self._modules[key] = module
            return self._modules[key]

    @contextmanager
    def _here(self) -> Iterator[None]:
        with _told(), self._device, self.stream:
            yield


class CupyMark:
    """A moment on a stream; see `engine.kernels.device.Mark`."""

    def __init__(self, event: "cupy.cuda.Event") -> None:
        self._event = event

    def wait(self) -> None:
        """Wait until the stream has come here."""
        with _told():
            self._event.synchronize()

    def ms_since(self, other: Self) -> float:
        """Return what the stream took from another mark to this one, in milliseconds."""
        return float(cupy.cuda.get_elapsed_time(other._event, self._event))


def _expect_primary_context() -> None:
    current = cupy.cuda.driver.ctxGetCurrent()
    if not current:  # CUDA's runtime makes the primary one current by itself
        return
    driver, primary = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(primary), 0)  # which CuPy does not have
    driver.cuDevicePrimaryCtxRelease_v2(0)
    if current != primary.value:
        raise BackendError(
            "the current CUDA context is one of its own; expected the GPU's primary context, which the engine shares "
            "with its host: in pycuda, drv.Device(0).retain_primary_context() and push() instead of pycuda.autoinit"
        )


@contextmanager
def _told() -> Iterator[None]:
    """Turn CuPy's errors into the engine's.

    Raises:
        DeviceMemoryError: There is no more memory.
        BackendError: The GPU failed.
    """
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as err:
        raise DeviceMemoryError(f"the GPU has no more memory: {err}") from err
    except (RuntimeError, cupy.cuda.compiler.CompileException) as err:  # CUDA's errors, or a library that is missing
        raise BackendError(f"the GPU failed: {' '.join(str(err).split())}") from err
