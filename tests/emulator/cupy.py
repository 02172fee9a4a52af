"""What `engine.backends.cupy_device` uses of CuPy, on the emulated GPU: that every line of it was run."""

import re
import time
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from engine.kernels.device import DevicePointer
from engine.kernels.launch import SOURCES
from tests.emulator import EmulatedDevice


class Array(np.ndarray):
    """An array whose address CuPy's way tells."""

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self, stream: object) -> np.ndarray:
        assert isinstance(stream, Stream)
        return np.array(self)


class Event:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Everything is done at once."""


class Stream:
    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking
        self.ptr = 4711
        self.waited: list[Event] = []

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is ours to end."""

    def record(self) -> Event:
        return Event()

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)


class ExternalStream(Stream):
    known: ClassVar[dict[int, "ExternalStream"]] = {}

    def __new__(cls, ptr: int) -> "ExternalStream":
        return cls.known.setdefault(ptr, super().__new__(cls))

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr
        self.waited = getattr(self, "waited", [])


class Device:
    def __init__(self, number: int) -> None:
        assert number == 0

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is ours to end."""


class CudaError(Exception):
    pass


class RawModule:
    """Kernels by their source: the emulated ones of the same file."""

    def __init__(self, code: str, options: tuple[str, ...], backend: str) -> None:
        assert backend == "nvrtc"
        assert options[:2] == ("--std=c++17", "--fmad=false")
        (self.file,) = (file for file in SOURCES.glob("*.cu") if file.read_text(encoding="utf-8") == code)
        assert f"-I{SOURCES}" in options
        self.definitions = tuple(word.removeprefix("-D") for word in options if word.startswith("-D"))

    def get_function(self, name: str) -> Any:
        assert re.search(rf"__global__ void .*\b{name}\(", self.file.read_text(encoding="utf-8"))

        def run(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            EmulatedDevice().launch(self.file, name, grid, block, arguments, self.definitions)

        return run


def made(array: Any) -> Array:
    return np.asarray(array).view(Array)


def fake(fits: int = 1 << 40) -> SimpleNamespace:
    """CuPy with memory for arrays of so many bytes."""

    class OutOfMemoryError(Exception):
        pass

    def empty(shape: tuple[int, ...], dtype: Any) -> Array:
        if np.prod(shape) * np.dtype(dtype).itemsize > fits:
            raise OutOfMemoryError("Out of memory allocating")
        return made(np.empty(shape, dtype))

    def ndarray(shape: tuple[int, ...], dtype: Any, place: Any, strides: Any) -> Array:
        memory = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * place.size).from_address(place.address))
        return made(np.ndarray(shape, dtype, memory, 0, strides))

    def unowned(address: int, size: int, owner: object, device: int) -> SimpleNamespace:
        assert isinstance(owner, DevicePointer)
        assert device == 0
        return SimpleNamespace(address=address, size=size)

    def from_dlpack(array: Any) -> Array:
        if isinstance(array, list):
            raise BufferError("on the CPU")
        return made(np.from_dlpack(array))

    runtime = SimpleNamespace(
        CUDARuntimeError=CudaError, getDeviceProperties=lambda _: {"name": b"a GPU"}, driverGetVersion=lambda: 13000
    )
    cuda = SimpleNamespace(
        Device=Device,
        Stream=Stream,
        ExternalStream=ExternalStream,
        Event=Event,
        UnownedMemory=unowned,
        MemoryPointer=lambda memory, offset: SimpleNamespace(address=memory.address + offset, size=memory.size),
        get_elapsed_time=lambda begin, end: (end.at - begin.at) * 1e3,
        runtime=runtime,
        driver=SimpleNamespace(CUDADriverError=CudaError, ctxGetCurrent=lambda: 0),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        compiler=SimpleNamespace(CompileException=CudaError),
    )
    return SimpleNamespace(
        cuda=cuda,
        empty=empty,
        array=lambda array, dtype=None, order="C": made(np.array(array, dtype, order=order)),
        asarray=made,
        ndarray=ndarray,
        from_dlpack=from_dlpack,
        RawModule=RawModule,
    )
