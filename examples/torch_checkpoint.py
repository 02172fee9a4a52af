"""Read a PyTorch state dict without PyTorch, and without trusting its pickle.

A `.pth` file is a pickle, and a pickle can call any function it names. Here it can name only what a state
dict of float32 and int64 tensors needs; any other global is refused by its name, before anything is called.

Source: `torch.serialization._legacy_save`, the format before PyTorch 1.6: five pickles (magic number,
protocol version, system facts, the object, the storages' keys), then for each storage an int64 element count
and its raw elements.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_ZIP_SIGNATURE = b"PK\x03\x04"
_Dtype = np.dtype[np.float32] | np.dtype[np.int64]
_STORAGE_DTYPES: dict[str, _Dtype] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_ALLOWED_GLOBALS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{name}" for name in _STORAGE_DTYPES),
)
# What the unpickler raises on damaged or hostile bytes (the `pickle` documentation leaves the list open).
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


class CheckpointError(ValueError):
    """A file is no PyTorch state dict that this reader takes."""


@dataclass
class _Storage:
    """A flat run of elements that tensors are views of; they follow the pickles, so they come later."""

    dtype: _Dtype
    element_count: int
    elements: bytes | None = None


@dataclass
class _TensorView:
    """A tensor of the pickle: which part of which storage, counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Return the tensor as a read-only view; NumPy itself checks that it stays within its storage."""
        if self.storage.elements is None:
            raise ValueError("its storage is not in the file")
        item_bytes = self.storage.dtype.itemsize
        return np.ndarray(
            self.shape,
            self.storage.dtype,
            buffer=self.storage.elements,
            offset=self.offset * item_bytes,
            strides=tuple(stride * item_bytes for stride in self.strides),
        )


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickles tensors as `_TensorView` and knows no global but the allowed ones."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str, /) -> object:
        """Resolve an allowed global; storage types stay plain strings, which a pickle can't alter."""
        qualified = f"{module}.{name}"
        if qualified not in _ALLOWED_GLOBALS:
            raise CheckpointError(
                f"{self._path}: the pickle asks for the global {qualified}, expected only "
                f"{', '.join(_ALLOWED_GLOBALS)}; take a plain state dict from a source you trust"
            )
        if qualified == "collections.OrderedDict":
            return OrderedDict
        return self._rebuild_tensor if name == "_rebuild_tensor_v2" else name

    def persistent_load(self, pid: object, /) -> _Storage:
        """Return the storage named by a persistent id ('storage', type, key, device, element count, view)."""
        match pid:
            case ("storage", str(type_name), str(key), str(), int(element_count), None):
                pass
            case _:
                raise CheckpointError(f"{self._path}: received the persistent id {pid!r}, expected a storage")
        if type_name not in _STORAGE_DTYPES:
            raise CheckpointError(
                f"{self._path}: storage {key} is a {type_name}, expected one of {', '.join(_STORAGE_DTYPES)}"
            )
        return self.storages.setdefault(key, _Storage(_STORAGE_DTYPES[type_name], element_count))

    def _rebuild_tensor(
        self,
        storage: object,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_autograd: object,
    ) -> _TensorView:
        """Stand in for `torch._utils._rebuild_tensor_v2`."""
        if not isinstance(storage, _Storage):
            raise CheckpointError(f"{self._path}: a tensor received {storage!r}, expected a storage")
        return _TensorView(storage, offset, shape, strides)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch state dict in the format before PyTorch 1.6.

    Args:
        path: The `.pth` file.

    Returns:
        Each tensor by its name, in the file's order: read-only float32 or int64 views with the tensor's own
        strides (a convolution's weight may be stored channels-last), sharing memory where the tensors did.

    Raises:
        CheckpointError: The file is in the zip format, is damaged, is something else, holds other things than
            float32 and int64 tensors, or names a global that no state dict needs.
    """
    path = Path(path)
    with path.open("rb") as file:
        _refuse_other_formats(file, path)
        try:
            return _read_legacy(file, path)
        except CheckpointError:
            raise
        except _UNPICKLING_ERRORS as err:
            raise CheckpointError(
                f"{path}: damaged after byte {file.tell()} ({err}), expected a whole PyTorch state dict; "
                "fetch the file again"
            ) from err


def _refuse_other_formats(file: BinaryIO, path: Path) -> None:
    """Raise unless the file starts like a legacy checkpoint, and leave it at its start."""
    start = file.read(len(_ZIP_SIGNATURE))
    file.seek(0)
    if start == _ZIP_SIGNATURE:
        raise CheckpointError(
            f"{path}: received PyTorch's zip format, expected the format before PyTorch 1.6; "
            "save it again with torch.save(state_dict, path, _use_new_zipfile_serialization=False)"
        )
    if start[:1] != pickle.PROTO:
        raise CheckpointError(f"{path}: starts with {start!r}, expected a PyTorch state dict (a pickle)")


def _read_legacy(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    """Read the five pickles and the storages behind them."""
    header = [_RestrictedUnpickler(file, path).load() for _ in range(3)]
    if header[:2] != [_MAGIC_NUMBER, _PROTOCOL_VERSION]:
        raise CheckpointError(
            f"{path}: a pickle, but its header is {header[:2]!r}, expected PyTorch's "
            f"{[_MAGIC_NUMBER, _PROTOCOL_VERSION]!r}"
        )
    if header[2].get("little_endian") is not True:
        raise CheckpointError(f"{path}: was written on a big-endian machine, expected little-endian elements")
    unpickler = _RestrictedUnpickler(file, path)
    state = unpickler.load()
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a state dict (tensors by name)")
    for key in _RestrictedUnpickler(file, path).load():
        _read_elements(file, unpickler.storages[key], key)
    return {name: _tensor(name, value, path) for name, value in state.items()}


def _read_elements(file: BinaryIO, storage: _Storage, key: str) -> None:
    """Read one storage's element count and elements."""
    element_count = int.from_bytes(file.read(8), "little", signed=True)
    if element_count != storage.element_count:
        raise ValueError(f"storage {key} says {element_count} elements, its tensors {storage.element_count}")
    size_bytes = element_count * storage.dtype.itemsize
    storage.elements = file.read(size_bytes)
    if len(storage.elements) != size_bytes:
        raise EOFError(f"storage {key} ends after {len(storage.elements)} of {size_bytes} bytes")


def _tensor(name: object, value: object, path: Path) -> np.ndarray:
    """Return one entry of the state dict as an array."""
    if not isinstance(value, _TensorView):
        raise CheckpointError(f"{path}: entry {name!r} is a {type(value).__name__}, expected a tensor")
    try:
        return value.array()
    except (TypeError, ValueError) as err:
        raise CheckpointError(f"{path}: tensor {name!r} does not fit its storage ({err})") from err
