import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import cache
from engine.cache import cache_folder, draft, find, find_fault, place_of

IDENTITY = {"bundle": "0" * 64, "batch_size": 64}


def written(root: Path, content: bytes = b"an engine", identity: dict[str, object] | None = None) -> Path:
    with draft(root, identity or IDENTITY) as folder:
        (folder / "a.engine").write_bytes(content)
        (folder / "a.profile").write_bytes(b"a profile")
    return place_of(root, identity or IDENTITY)


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ada-sise-engine"


def test_what_is_written_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "cache" / "tensorrt"
    assert find(root, IDENTITY) is None
    place = written(root)
    assert find(root, IDENTITY) == place
    assert find(root, {**IDENTITY, "batch_size": 32}) is None
    assert names(root) == [place.name]
    assert names(place) == ["a.engine", "a.profile", "key.json"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (root, place, place / "a.engine")] == [0o700, 0o700, 0o600]
    key = json.loads((place / "key.json").read_text())
    assert key["identity"] == IDENTITY
    assert key["files"]["a.engine"]["size_bytes"] == 9
    assert caplog.text == ""


def tamper(place: Path) -> None:
    (place / "a.engine").write_bytes(b"an enginf")


def foreign_key(place: Path) -> None:
    key = json.loads((place / "key.json").read_text())
    key["identity"]["batch_size"] = 32
    (place / "key.json").write_text(json.dumps(key))


def link(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))
    place.symlink_to(place.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (tamper, "its files are not those that were written"),
        (lambda place: (place / "a.engine").unlink(), "its files are not those that were written"),
        (lambda place: (place / "b.engine").touch(), "its files are not those that were written"),
        (foreign_key, "it was made with something else"),
        (lambda place: (place / "key.json").unlink(), "FileNotFoundError: "),
        (lambda place: (place / "key.json").write_text("{"), "JSONDecodeError: "),
        (lambda place: (place / "key.json").write_text("[]"), "TypeError: "),
        (lambda place: (place / "key.json").write_text("{}"), "KeyError: "),
        (lambda place: (place / "folder").mkdir(), "IsADirectoryError: "),
        (lambda place: place.chmod(0o770), "others may write to .*[0-9a-f]{64}"),
        (lambda place: (place / "a.engine").chmod(0o602), r"others may write to .*a\.engine"),
        (lambda place: place.parent.chmod(0o777), "others may write to .*root"),
        (link, "is a link"),
    ],
)
def test_what_cannot_be_trusted_is_removed(
    damage: Callable[[Path], object], says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = written(tmp_path / "root")
    damage(place)
    assert find(place.parent, IDENTITY) is None
    assert not os.path.lexists(place)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(rf"^{place}: is removed \(.*{says}", record.message)
    place.parent.chmod(0o700)
    assert find(written(place.parent).parent, IDENTITY) == place


def test_a_file_in_its_place(tmp_path: Path) -> None:
    place = place_of(tmp_path, IDENTITY)
    place.write_text("no folder")
    assert find(tmp_path, IDENTITY) is None
    assert names(tmp_path) == []


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = written(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert find_fault(place, IDENTITY) == f"{tmp_path} belongs to user {tmp_path.stat().st_uid}"
    monkeypatch.setattr(cache, "_find_stranger", _only_of(place))
    assert find_fault(place, IDENTITY) == f"{place} belongs to user {tmp_path.stat().st_uid}"
    assert find(tmp_path, IDENTITY) is None
    assert names(tmp_path) == []


def _only_of(place: Path) -> Callable[[Path], str | None]:
    """The check, of one path only."""
    check = cache._find_stranger
    return lambda path: check(path) if path == place else None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build() -> None:
        with draft(tmp_path, IDENTITY) as folder:
            (folder / "a.engine").write_bytes(b"half of")
            assert find(tmp_path, IDENTITY) is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert names(tmp_path) == []


def test_a_build_that_was_killed_is_no_entry_and_goes_after_a_day(tmp_path: Path) -> None:
    killed, under_way = tmp_path / ".draft-killed", tmp_path / ".draft-under-way"
    for folder in (killed, under_way):
        folder.mkdir()
        (folder / "a.engine").write_bytes(b"half of")
    os.utime(killed, (0, time.time() - 25 * 3600))
    assert find(tmp_path, IDENTITY) is None
    place = written(tmp_path)
    assert names(tmp_path) == [".draft-under-way", place.name]


def test_two_writers(tmp_path: Path) -> None:
    """The first that is done wins; the other's folder is gone, and what a third reads is whole."""
    with draft(tmp_path, IDENTITY) as slow:
        (slow / "a.engine").write_bytes(b"slow")
        place = written(tmp_path, b"fast")
        assert (place / "a.engine").read_bytes() == b"fast"
    assert (place / "a.engine").read_bytes() == b"fast"
    assert find(tmp_path, IDENTITY) == place
    assert names(tmp_path) == [place.name]


def test_replacing(tmp_path: Path) -> None:
    place = written(tmp_path, b"old")
    with draft(tmp_path, IDENTITY, replace=True) as folder:
        (folder / "a.engine").write_bytes(b"new")
    assert find(tmp_path, IDENTITY) == place
    assert (place / "a.engine").read_bytes() == b"new"
    assert names(tmp_path) == [place.name]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), draft(tmp_path / "file" / "root", IDENTITY):
        pass
