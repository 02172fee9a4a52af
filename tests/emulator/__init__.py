"""The engine's CUDA kernels on a CPU: compiled by g++, their arrays in the host's memory."""

import ctypes
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HEADER = Path(__file__).with_name("cuda.h")
_FOLDER = tempfile.TemporaryDirectory(prefix="kernels-")


@lru_cache
def compiled(file: Path, definitions: tuple[str, ...]) -> ctypes.CDLL:
    """Compile a file of kernels."""
    kernels = re.findall(r"__global__ void (\w+)\(", file.read_text(encoding="utf-8"))
    half = next((f"TO_ELEMENT({int(word == 'BATCH=-16')})" for word in definitions if word in ("BATCH=16", "BATCH=-16")), "")
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


class EmulatedDevice:
    """A device whose memory is the host's.

    Args:
        order: In which order the threads of a block run between two barriers: 0 forwards, −1 backwards, or another.
    """

    def __init__(self, order: int = 0) -> None:
        self.order = order

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(0xFF)  # NaN
        return array

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        return np.array(array, order="C")

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy()

    def address(self, array: NDArray[Any]) -> int:
        assert array.flags.c_contiguous
        return array.ctypes.data

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
