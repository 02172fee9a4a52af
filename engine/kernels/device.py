"""What the kernels ask of a GPU: memory, a stream, and launches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.errors import ImageError

Array: TypeAlias = Any
"""An array in device memory: it has `shape` and `dtype`."""


class Mark(Protocol):
    """A moment on a stream."""

    def wait(self) -> None:
        """Wait until the stream has come here."""
        ...

    def ms_since(self, other: Self) -> float:
        """Return what the stream took from another mark to this one, in milliseconds; both have been waited for."""
        ...


class Device(Protocol):
    """Memory and kernels of a GPU, all on one stream: what is asked for is done in its order.

    Every method raises `DeviceMemoryError` if there is no more memory, and `BackendError` if the GPU failed.
    """

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return memory that holds anything."""
        ...

    def free_unused(self) -> None:
        """Give memory back that is kept for later: the runtime may need it."""
        ...

    def clear(self, array: Array) -> None:
        """Fill an array with zeros."""
        ...

    def copy(self, target: Array, source: Array) -> None:
        """Write an array over another of the same shape, as numbers of its type."""
        ...

    def upload(self, array: NDArray[Any]) -> Array:
        """Return a copy of an array of the host, which may be changed at once."""
        ...

    def download(self, array: Array) -> NDArray[Any]:
        """Return a copy of an array, when all that was asked for before is done."""
        ...

    def adopt(self, image: object) -> Array:
        """Return another owner's array as one of this device, which lies where it lies, with its strides.

        Args:
            image: A `DevicePointer`, or what has `__cuda_array_interface__` or `__dlpack__`.

        Raises:
            ImageError: It is none of these, or lies elsewhere.
        """
        ...

    def come_after(self, stream: int) -> None:
        """Do what comes next when another stream has done all that was asked of it so far.

        Args:
            stream: Its address; 0 for the default stream.
        """
        ...

    def come_before(self, stream: int) -> None:
        """Let another stream do what comes next there when this one has done all that was asked of it so far."""
        ...

    def address(self, array: Array) -> int:
        """Return where an array lies."""
        ...

    def mark(self) -> Mark:
        """Return a mark of how far the stream is when it comes here."""
        ...

    def compile(self, file: Path, definitions: tuple[str, ...] = ()) -> None:
        """Make kernels ready to be launched: it takes up to a second for each file, once.

        Args:
            file: Their source.
            definitions: Macros, `NAME=VALUE`.
        """
        ...

    def launch(
        self,
        file: Path,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        definitions: tuple[str, ...] = (),
    ) -> None:
        """Run a kernel.

        Args:
            file: Its source.
            kernel: Its name.
            grid: Numbers of blocks.
            block: Numbers of threads in a block.
            arguments: Arrays, None for a null pointer, and NumPy scalars of the types of its parameters.
            definitions: Macros, `NAME=VALUE`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePointer:
    """An array that lies in device memory, of somebody who has nothing but its address.

    Attributes:
        address: Where it begins.
        shape: Its sizes.
        dtype: NumPy's name of the type of its elements.
        strides: Bytes from one element to the next along each axis; None if there are no gaps.

    Raises:
        ImageError: NumPy knows no such type.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        try:
            np.dtype(self.dtype)
        except TypeError as err:
            raise ImageError(
                f"dtype is {self.dtype!r}; expected NumPy's name of a float type, such as float32"
            ) from err

    @property
    def size_bytes(self) -> int:
        """How many bytes there are from the first to the last."""
        item = np.dtype(self.dtype).itemsize
        if self.strides is None:
            return item * math.prod(self.shape)
        return item + sum(stride * (size - 1) for size, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class DeviceImage:
    """An image that is in device memory already, in the place of a photo.

    Attributes:
        source: The network's input, what `Device.adopt` takes: floats [1, C, H, W] or [C, H, W].
        stream: The address of its owner's stream: there it is ready, and there the heatmaps are waited for.
        heatmaps: Takes the heatmap of each class, float32 [H, W], on the device.
    """

    source: object
    stream: int
    heatmaps: list[Array] = field(default_factory=list)
