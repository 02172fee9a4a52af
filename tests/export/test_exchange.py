import ctypes
import errno
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.export.exchange import exchange


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders, each with a file that tells which it is."""
    one, other = tmp_path / "one", tmp_path / "ötherŁ"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    return one, other


def names(pair: tuple[Path, Path]) -> list[str]:
    return [(folder / "name").read_text() for folder in pair]


def system(monkeypatch: pytest.MonkeyPatch, platform: str, **functions: object) -> None:
    """Pretend to be on another system, whose C library has these functions."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name, **_: SimpleNamespace(**functions))


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system has no such step")
def test_two_folders_change_places(pair: tuple[Path, Path]) -> None:
    assert exchange(*pair)
    assert names(pair) == ["ötherŁ", "one"]
    assert exchange(*pair)
    assert names(pair) == ["one", "ötherŁ"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system has no such step")
def test_a_name_that_is_missing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        exchange(pair[0], tmp_path / "none")
    assert (caught.value.filename, caught.value.filename2) == (str(pair[0]), str(tmp_path / "none"))
    assert names(pair) == ["one", "ötherŁ"]


def failing(code: int):
    """A function of the C library that fails; `ctypes` sets attributes of it."""

    def function(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    return function


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_it(code: int, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    system(monkeypatch, "linux", renameat2=failing(code))
    assert not exchange(*pair)
    assert names(pair) == ["one", "ötherŁ"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EXDEV], ids=errno.errorcode.get)
def test_what_is_refused_is_raised(code: int, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    system(monkeypatch, "linux", renameat2=failing(code))
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
        exchange(*pair)
    assert caught.value.errno == code


@pytest.mark.parametrize("platform", ["win32", "linux", "darwin"])
def test_a_system_without_it(platform: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    system(monkeypatch, platform)
    assert not exchange(*pair)


def test_how_macos_is_asked(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def renamex_np(*arguments: object) -> int:
        calls.append(arguments)
        return 0

    system(monkeypatch, "darwin", renamex_np=renamex_np)
    assert exchange(*pair)
    assert calls == [(os.fsencode(pair[0]), os.fsencode(pair[1]), 2)]
    assert renamex_np.argtypes == [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
    assert renamex_np.restype is ctypes.c_int
