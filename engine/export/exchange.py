"""Letting two names change places in one step, where the system has one."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h of macOS
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def exchange(one: Path, other: Path) -> bool:
    """Let two names of one file system change places, so that at no moment either is missing.

    Linux does it by `renameat2` with RENAME_EXCHANGE, macOS by `renamex_np` with RENAME_SWAP. Windows, NFS and old
    kernels have no such step.

    Returns:
        Whether it was done; if not, because there is no such step here, both names are as they were.

    Raises:
        OSError: It is possible here, but was refused.
    """
    swap = _system_call()
    if swap is None:
        return False
    if swap(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _system_call() -> Callable[[bytes, bytes], int] | None:
    """Return the C library's function as two names → 0, or -1 with errno set; None if it has none."""
    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    linux = sys.platform == "linux"
    function = getattr(library, "renameat2" if linux else "renamex_np", None)
    if function is None:
        return None
    function.restype = ctypes.c_int
    if linux:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        return lambda one, other: function(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
    function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
    return lambda one, other: function(one, other, _RENAME_SWAP)
