"""Writing a bundle: the graphs, the one weight file they share, and the manifest."""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import onnx_ir as ir

from engine.bundle import LARGEST_MANIFEST_BYTES, MANIFEST, OLD, WEIGHTS, list_files, seal
from engine.errors import BundleError
from engine.export.exchange import exchange

_ALIGNMENT = 4096
_SMALLEST = 1024
_EXPECTED = "expected an existing folder that may be written to and has room"
_SHARED = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8}
)
Places: TypeAlias = dict[bytes, tuple[int, int]]
Placed: TypeAlias = Mapping[bytes, tuple[int, int]]
"""Offset and length in the weight file by the SHA-256 of the content."""


def write_graphs(folder: Path, graphs: Mapping[str, ir.Model], placed: Placed | None = None) -> Placed:
    """Write graphs as `NAME.onnx`, with their weights in one shared file.

    Constants of 1 KiB and more of floats and of int8 go to `weights.bin`, each distinct content once, at offsets that
    are multiples of 4096 so that a host may map them. Other integers and small constants stay in the graphs: ONNX
    Runtime refuses an external shape. The bytes written depend on the graphs alone.

    Args:
        folder: An existing folder.
        graphs: Models by name; their constants are replaced by references to the weight file.
        placed: What an earlier call has written into the weight file, which is then written on; None for a new one.

    Returns:
        Where the weight file holds what, by the hash of the content.
    """
    places: Places = {} if placed is None else dict(placed)
    with (folder / WEIGHTS).open("wb" if placed is None else "ab") as file:
        for name, model in graphs.items():
            for graph in model.graphs():
                _share(graph.initializers, folder, file, places)
            (folder / f"{name}.onnx").write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return places


def _share(constants: MutableMapping[str, ir.Value], folder: Path, file: BinaryIO, places: Places) -> None:
    """Put the large constants of one graph into the weight file, and sort all by name."""
    ordered = sorted(constants.items())
    constants.clear()
    for key, value in ordered:
        constants[key] = value
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _SHARED or tensor.nbytes < _SMALLEST:
            continue
        content = tensor.tobytes()
        digest = hashlib.sha256(content).digest()
        if digest not in places:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            places[digest] = (file.tell(), len(content))
            file.write(content)
        offset, length = places[digest]
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            WEIGHTS, offset, length, tensor.dtype, shape=shape, name=key, base_dir=folder
        )


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write the manifest, or write it anew, with the size and hash of every other file in the folder, and its own hash.

    Raises:
        BundleError: It would be larger than what is loaded.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    data = seal({**manifest, "files": list_files(folder)})
    if len(data) > LARGEST_MANIFEST_BYTES:
        raise BundleError(
            f"{MANIFEST}: would hold {len(data)} bytes; expected at most {LARGEST_MANIFEST_BYTES}: shorten the labels"
        )
    (folder / MANIFEST).write_bytes(data)


@contextmanager
def new_bundle(target: Path, *, force: bool) -> Iterator[Path]:
    """Give a folder beside the target to write into, which becomes the target when all went well.

    The folder is called `.NAME.` and a random number. A bundle that is replaced changes places with it in one step
    (`engine.export.exchange`), and is removed then: whenever the process is killed, the target is the whole old bundle
    or the whole new one, and what is left beside it is a hidden folder that nothing reads, which may be removed. A
    reader keeps the files that it has open.

    Where the system has no such step, the old bundle is renamed to `NAME.old-` and the random number, and the new one
    to its name. A process that is killed between the two leaves the old bundle there, and `load_bundle` says so.

    Args:
        target: Where the bundle shall be.
        force: Whether a bundle that is there already may be replaced.

    Raises:
        BundleError: Something is at the target that may not be replaced, or the folder cannot be written.
    """
    try:
        target = target.resolve()
        replacing = target.exists()
        if replacing and not force:
            raise BundleError(f"{target}: exists already; choose another name, or replace it with --force")
        if replacing:
            _expect_bundle(target)
    except (OSError, ValueError, RuntimeError) as err:  # a RuntimeError is about links in a circle
        raise BundleError(f"{target}: cannot be written: {_reason(err)} in {target.parent}; {_EXPECTED}") from err
    number = secrets.token_hex(4)
    work = target.with_name(f".{target.name}.{number}")
    try:
        try:
            work.mkdir()
        except OSError as err:
            raise BundleError(f"{target}: cannot be written: {_reason(err)} in {target.parent}; {_EXPECTED}") from err
        yield work
        if not target.exists():
            work.rename(target)
        elif not replacing:
            raise BundleError(f"{target}: has appeared while the model was compiled; choose another name")
        else:
            _expect_bundle(target)
            if not exchange(work, target):
                _rename_twice(work, target, target.with_name(f"{target.name}{OLD}{number}"))
    except OSError as err:
        place = Path(err.filename or work)
        if not (place.is_relative_to(work) or place == target):
            raise  # it is about a file of the model
        raise BundleError(f"{target}: cannot be written: {_reason(err)}; {_EXPECTED}") from err
    finally:
        _remove(work)


def _rename_twice(work: Path, target: Path, old: Path) -> None:
    """Put the new bundle in the place of the old one, or the old one back if that fails."""
    try:
        target.rename(old)
        work.rename(target)
    finally:  # by what is there: a signal may come right after either step
        if old.exists():
            if target.exists() and not work.exists():
                _remove(old)
            else:
                old.rename(target)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:  # again, when a signal has ended the first try
        shutil.rmtree(folder, ignore_errors=True)


def _reason(err: Exception) -> str:
    return (err.strerror if isinstance(err, OSError) else None) or str(err)


def _expect_bundle(folder: Path) -> None:
    if not _is_bundle(folder):
        raise BundleError(f"{folder}: is not a bundle, so --force does not replace it; choose another name")


def _is_bundle(folder: Path) -> bool:
    """Tell whether a folder holds a manifest and only files that it lists, so that nothing foreign would be lost."""
    manifest = folder / MANIFEST
    try:
        if not manifest.is_file() or manifest.stat().st_size > LARGEST_MANIFEST_BYTES:
            return False
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return {entry.name for entry in folder.iterdir()} <= {MANIFEST, *listed}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
