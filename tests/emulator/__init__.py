"""A GPU on a CPU: kernels compiled by g++, arrays in the host's memory, ONNX Runtime's CPU provider bound to them."""

import ctypes
import hashlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from engine.backends import OnnxRuntimeCpu
from engine.backends.base import Placed
from engine.backends.bound import BoundSession
from engine.backends.onnxruntime_cpu import session_options
from engine.errors import DeviceMemoryError, ImageError
from engine.kernels.device import DevicePointer

_HEADER = Path(__file__).with_name("cuda.h")
_EDGE = 256  # bytes
_FOLDER = tempfile.TemporaryDirectory(prefix="kernels-")


@lru_cache
def compiled(file: Path, definitions: tuple[str, ...]) -> ctypes.CDLL:
    """Compile a file of kernels."""
    kernels = re.findall(r"__global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(", file.read_text(encoding="utf-8"))
    half = "HALF" if "BATCH=16" in definitions else ""
    lines = [f'#include "{_HEADER}"', f'#include "{file}"', half, *(f"EMULATED({name})" for name in kernels)]
    text = "\n".join([*lines, ""])
    name = hashlib.sha256(repr((text, definitions)).encode()).hexdigest()[:16]
    source, library = Path(_FOLDER.name, f"{name}.cpp"), Path(_FOLDER.name, f"{name}.so")
    source.write_text(text, encoding="utf-8")
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-w", f"-I{file.parent}"]
    command = ["g++", *options, *(f"-D{word}" for word in definitions), str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


class EmulatedMark:
    """A moment on a device that does everything at once."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def wait(self) -> None:
        pass

    def ms_since(self, other: "EmulatedMark") -> float:
        return (self.at - other.at) * 1e3


class EmulatedDevice:
    """A device whose memory is the host's.

    Args:
        order: In which order the threads of a block run between two barriers: 0 forwards, −1 backwards, or another.
    """

    def __init__(self, order: int = 0) -> None:
        self.order = order
        self.waits: list[tuple[str, int]] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * _EDGE, 0xFF, np.uint8)  # NaN, and what lies beside is NaN
        return memory[_EDGE : _EDGE + size].view(dtype).reshape(shape)

    def free_unused(self) -> None:
        """There is nothing."""

    def clear(self, array: NDArray[Any]) -> None:
        array[...] = 0

    def copy(self, target: NDArray[Any], source: NDArray[Any]) -> None:
        assert target.shape == source.shape
        target[...] = source

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        placed = self.empty(array.shape, array.dtype)
        placed[...] = array
        return placed

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy()

    def adopt(self, image: Any) -> NDArray[Any]:
        if isinstance(image, DevicePointer):
            memory = (ctypes.c_char * image.size_bytes).from_address(image.address)
            return np.ndarray(image.shape, image.dtype, memory, 0, image.strides)
        if not hasattr(image, "__array_interface__"):
            raise ImageError(f"the image is a {type(image).__name__}")
        return np.asarray(image)

    def come_after(self, stream: int) -> None:
        self.waits.append(("after", stream))

    def come_before(self, stream: int) -> None:
        self.waits.append(("before", stream))

    def address(self, array: NDArray[Any]) -> int:
        assert array.flags.c_contiguous
        return array.ctypes.data

    def mark(self) -> "EmulatedMark":
        return EmulatedMark()

    def compile(self, file: Path, definitions: tuple[str, ...] = ()) -> None:
        compiled(file, definitions)

    def launch(
        self,
        file: Path,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        definitions: tuple[str, ...] = (),
    ) -> None:
        values = [np.array([self._value(argument)]) for argument in arguments]
        places = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = [(ctypes.c_uint * 3)(*(*dims, 1, 1)[:3]) for dims in (grid, block)]
        run = getattr(compiled(file, definitions), f"emulate_{kernel}")
        failed = run(places, len(values), *sizes, self.order)
        assert failed == 0, f"{kernel}: {('', 'other arguments', 'a barrier that not all threads reach')[failed]}"

    def _value(self, argument: Any) -> Any:
        if argument is None:
            return np.uint64(0)
        return np.uint64(self.address(argument)) if isinstance(argument, np.ndarray) else argument


class EmulatedGpu:
    """A GPU whose graphs run on the CPU.

    Args:
        fits: How many masked images fit into its memory.
    """

    name = "emulated"

    def __init__(self, fits: int | None = None) -> None:
        self.memory = EmulatedDevice()
        self.fits = fits
        self.runs: list[str] = []

    def open(self, graph: Path, *, precision: str = "float32", many_runs: bool = False) -> "EmulatedGraph":
        assert precision in EmulatedBackend.precisions
        assert many_runs == (graph.name == "forward.onnx")
        session = onnxruntime.InferenceSession(str(graph), session_options(threads=2))
        return EmulatedGraph(self, graph.name, session)

    def element(self, precision: str) -> type[np.generic]:
        assert precision in EmulatedBackend.precisions
        return np.float32


class EmulatedGraph(BoundSession):
    """A graph of an emulated GPU, which has little memory."""

    def __init__(self, gpu: EmulatedGpu, name: str, session: onnxruntime.InferenceSession) -> None:
        super().__init__(name, session, gpu.memory, "cpu")
        self._gpu = gpu

    def bind(self, inputs: Sequence[Placed], outputs: Sequence[Placed]) -> Callable[[], None]:
        run, rows = super().bind(inputs, outputs), inputs[0][1][0]

        def run_if_it_fits() -> None:
            if self._name == "forward.onnx" and self._gpu.fits is not None and rows > self._gpu.fits:
                raise DeviceMemoryError("out of memory")
            self._gpu.runs.append(f"{self._name} of {rows}")
            run()

        return run_if_it_fits


class EmulatedBackend(OnnxRuntimeCpu):
    """A backend with an emulated GPU."""

    precisions = ("float32", "tf32")

    def __init__(self, fits: int | None = None) -> None:
        super().__init__(threads=2)
        self.gpu = EmulatedGpu(fits)
