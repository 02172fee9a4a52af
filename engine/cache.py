"""The engine's folder in the user's cache, and folders in it that are trusted only as they were written."""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

SETUPS = "setups"
"""The folder of what was measured to score fastest."""
ENGINES = "tensorrt"
"""The folder of TensorRT's engines, one for each bundle, GPU, precision, batch size and set of versions."""
TIMINGS = "tensorrt-timings"
"""The folder of what TensorRT measured of layers, for each GPU, precision and set of versions."""
_KEY = "key.json"
_DRAFT = ".draft-"
_ABANDONED_S = 24 * 3600.0
_LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder in the user's cache; it may not be there yet."""
    return platformdirs.user_cache_path("ada-sise-engine")


def place_of(root: Path, identity: Mapping[str, object]) -> Path:
    """Return where the folder of an identity is.

    Args:
        root: In which folder.
        identity: What its contents depend on; of JSON's types.
    """
    return root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def find(root: Path, identity: Mapping[str, object]) -> Path | None:
    """Return the folder of an identity if it can be trusted; one that cannot be is removed.

    Args:
        root: In which folder.
        identity: What its contents depend on.

    Returns:
        The folder, or None if there is none.
    """
    place = place_of(root, identity)
    if not os.path.lexists(place):
        return None
    fault = find_fault(place, identity)
    if fault is not None:
        remove(place, fault)
        return None
    return place


def remove(place: Path, fault: str) -> None:
    """Remove a folder that cannot be used, and log why."""
    _LOG.warning("%s: is removed (%s)", place, fault)
    _discard(place)


def find_fault(place: Path, identity: Mapping[str, object]) -> str | None:
    """Return why a folder cannot be trusted, in words, or None.

    Args:
        place: The folder.
        identity: What its contents must depend on.
    """
    try:
        for path in (place.parent, place, *place.iterdir()):
            fault = _find_stranger(path)
            if fault is not None:
                return fault
        if identity_of(place) != identity:
            return "it was made with something else"
        if _key(place)["files"] != _describe(place):
            return "its files are not those that were written"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as err:
        return f"{type(err).__name__}: {err}"
    return None


def identity_of(place: Path) -> dict[str, object]:
    """Return what a folder says that its contents depend on."""
    return _key(place)["identity"]


def _key(place: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((place / _KEY).read_text(encoding="utf-8"))
    return found


@contextmanager
def draft(root: Path, identity: Mapping[str, object], *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder within a `with` block, which becomes that of the identity at its end.

    Of several processes that do so at a time one wins, and none sees another's folder before it is whole. If the block
    fails, nothing is left; what a process has left that was killed is removed a day later.

    Args:
        root: In which folder; made if it is not there.
        identity: What the contents depend on.
        replace: Whether it takes the place of one that is there.

    Raises:
        OSError: It cannot be written.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in root.glob(f"{_DRAFT}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=root))
    try:
        yield folder
        key = {"identity": identity, "files": _describe(folder)}
        (folder / _KEY).write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(0o600)
        place = place_of(root, identity)
        if replace and os.path.lexists(place):
            _discard(place)
        try:
            folder.rename(place)
        except OSError as err:
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_stranger(path: Path) -> str | None:
    """Return who else may have written to a file or folder, in words, or None."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a link"
    if status.st_uid != os.getuid():
        return f"{path} belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to {path}"
    return None


def _describe(folder: Path) -> dict[str, dict[str, object]]:
    """Return the size and the SHA-256 of every file in a folder but the key's.

    Raises:
        OSError: One cannot be read.
    """
    found: dict[str, dict[str, object]] = {}
    for file in folder.iterdir():
        if file.name != _KEY:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            found[file.name] = {"size_bytes": file.stat().st_size, "sha256": digest}
    return found


def _discard(place: Path) -> None:
    """Remove what lies at a place: at once for those who look there.

    Raises:
        OSError: It cannot be moved away.
    """
    aside = place.with_name(f"{_DRAFT}{secrets.token_hex(8)}")
    try:
        place.rename(aside)  # beside it: another user's folder cannot be moved elsewhere
    except FileNotFoundError:  # another process was faster
        return
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()
