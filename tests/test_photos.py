"""Files, folders and patterns on the command line, and their names in errors."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.errors import DeadlineError, EngineError, ImageError
from engine.image import Photo
from engine.photos import find_photos, naming


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "c.tiff", "notes.txt", "report.pdf", ".hidden.png", "in/d.webp", "in/deep/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder: Path, *named: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_photos([str(folder / name) for name in named])]


def test_files_are_taken_as_they_are_named(folder: Path) -> None:
    assert names(folder, "c.tiff", "a.png", "notes.txt", "none.jpg") == ["c.tiff", "a.png", "notes.txt", "none.jpg"]


def test_a_folder_stands_for_the_photos_in_it(folder: Path) -> None:
    assert names(folder, "") == ["a.png", "b.JPG", "c.tiff"]
    assert names(folder, "in/deep", "in") == ["in/deep/e.png", "in/d.webp"]


def test_patterns(folder: Path) -> None:
    assert names(folder, "*.png") == ["a.png"]
    assert names(folder, "[ab].*") == ["a.png", "b.JPG"]
    assert names(folder, "in/**/*") == ["in/d.webp", "in/deep/e.png"]
    assert names(folder, "*") == ["a.png", "b.JPG", "c.tiff"]


def test_a_file_whose_name_looks_like_a_pattern(folder: Path) -> None:
    (folder / "[ab].png").touch()
    assert names(folder, "[ab].png") == ["[ab].png"]


def test_each_photo_once(folder: Path) -> None:
    assert names(folder, "c.tiff", "", "*.png") == ["c.tiff", "a.png", "b.JPG"]


@pytest.mark.parametrize(("name", "found"), [("empty", "the folder holds"), ("x*.png", "the pattern matches")])
def test_nothing_found(folder: Path, name: str, found: str) -> None:
    (folder / "empty").mkdir()
    text = f"{folder / name}: {found} no photo; expected files such as .jpg or .png"
    with pytest.raises(ImageError, match=f"^{re.escape(text)}$"):
        find_photos([str(folder / name)])


def test_a_name_that_no_system_takes_is_left_to_the_decoder() -> None:
    for name in ("n" * 300, "a\0.jpg", ""):
        assert find_photos([name]) == [Path(name)]


def test_patterns_that_no_system_takes(folder: Path) -> None:
    for name, reason in (
        (f"{folder}/{'n' * 300}*.jpg", "the pattern matches no photo; expected files such as .jpg or .png"),
        ("a\0b/*.jpg", "cannot be read: embedded null byte; expected a folder or a pattern of photos"),
    ):
        text = f"{name}: {reason}".replace("\0", r"\x00")
        with pytest.raises(ImageError, match=f"^{re.escape(text)}$"):
            find_photos([name])


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    text = f"{folder}: cannot be read: Permission denied; expected a folder or a pattern of photos"
    with pytest.raises(ImageError, match=f"^{re.escape(text)}$"):
        find_photos([str(folder)])


def test_photos_that_may_not_be_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    for name in (str(folder), f"{folder}/*.png"):
        text = f"{name}: cannot be read: Permission denied; expected a folder or a pattern of photos"
        with pytest.raises(ImageError, match=f"^{re.escape(text)}$"):
            find_photos([name])


@pytest.mark.parametrize("photo", ["cat.jpg", Path("cat.jpg")])
@pytest.mark.parametrize("kind", [ImageError, DeadlineError])
def test_an_error_says_which_file_it_is_about(kind: type[EngineError], photo: str | Path) -> None:
    with pytest.raises(kind, match=r"^cat\.jpg: holds NaN$") as caught, naming(photo):
        raise (within := kind("holds NaN"))
    assert caught.value.__cause__ is within


@pytest.mark.parametrize(
    ("photo", "text"),
    [("cat.jpg", "cat.jpg: holds NaN"), (np.zeros((1, 3, 2, 2), np.float32), "holds NaN"), (b"cat.jpg", "holds NaN")],
)
def test_an_error_that_has_the_name_and_one_of_no_file_stay(photo: Photo, text: str) -> None:
    with pytest.raises(ImageError) as caught, naming(photo):
        raise (within := ImageError(text))
    assert caught.value is within
    assert within.__cause__ is None
