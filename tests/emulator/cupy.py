"""What `engine.backends.cupy_device` uses of CuPy, on the emulated GPU: that every line of it was run."""

import re
import time
from pathlib import Path
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
    known: ClassVar[dict[int, "Event"]] = {}

    def __init__(self) -> None:
        self.at, self.ptr = time.perf_counter(), id(self)
        self.known[self.ptr] = self

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


class Device:
    def __init__(self, number: int) -> None:
        assert number == 0

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is ours to end."""


class CudaError(RuntimeError):
    pass


class Module:
    """Kernels by their source: the emulated ones of the same file."""

    def load(self, binary: tuple[Path, tuple[str, ...]]) -> None:
        self.file, self.definitions = binary

    def get_function(self, name: str) -> Any:
        assert re.search(rf"__global__ void .*\b{name}\(", self.file.read_text(encoding="utf-8"))

        def run(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            EmulatedDevice().launch(self.file, name, grid, block, arguments, self.definitions)

        return run


def compile_using_nvrtc(source: str, options: tuple[str, ...], *, filename: str) -> tuple[object, None]:
    file = SOURCES / filename
    assert file.read_text(encoding="utf-8") == source
    assert options[:3] == ("--std=c++17", "--fmad=false", f"-I{SOURCES}")
    return (file, tuple(word.removeprefix("-D") for word in options[3:])), None


def made(array: Any) -> Array:
    return np.asarray(array).view(Array)


def fake(fits: int = 1 << 40) -> SimpleNamespace:
    """CuPy with memory for arrays of so many bytes."""

    class OutOfMemoryError(MemoryError):
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

    asked: list[tuple[str, bool, int]] = []
    runtime = SimpleNamespace(
        CUDARuntimeError=CudaError,
        getDeviceProperties=lambda _: {"name": b"a GPU"},
        driverGetVersion=lambda: 13000,
        eventRecord=lambda event, stream: asked.append(("record", event in Event.known, stream)),
        streamWaitEvent=lambda stream, event: asked.append(("wait", event in Event.known, stream)),
    )
    cuda = SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Event=Event,
        UnownedMemory=unowned,
        MemoryPointer=lambda memory, offset: SimpleNamespace(address=memory.address + offset, size=memory.size),
        get_elapsed_time=lambda begin, end: (end.at - begin.at) * 1e3,
        runtime=runtime,
        driver=SimpleNamespace(CUDADriverError=CudaError, ctxGetCurrent=lambda: 0),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        compiler=SimpleNamespace(CompileException=CudaError, compile_using_nvrtc=compile_using_nvrtc),
        function=SimpleNamespace(Module=Module),
    )
    return SimpleNamespace(
        cuda=cuda,
        empty=empty,
        array=lambda array, dtype=None, order="C": made(np.array(array, dtype, order=order)),
        asarray=made,
        ndarray=ndarray,
        from_dlpack=from_dlpack,
        asked=asked,
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    )
