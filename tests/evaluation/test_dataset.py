from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import DatasetError
from engine.evaluation.dataset import FORMS, read_dataset

Save = Callable[..., Path]


def test_folders_by_class(tmp_path: Path, save_photo: Save) -> None:
    for name in ("dog/2.png", "dog/1.png", "tabby cat/1.png", ".hidden/1.png"):
        save_photo(tmp_path / name)
    (tmp_path / "dog" / "notes.txt").write_text("none")
    dataset = read_dataset(tmp_path)
    assert [(sample.name, sample.labels) for sample in dataset.samples] == [
        ("dog/1.png", ("dog",)),
        ("dog/2.png", ("dog",)),
        ("tabby cat/1.png", ("tabby cat",)),
    ]
    assert not dataset.has_boxes
    with pytest.raises(DatasetError, match=r"is a folder of folders by class, without split 'val'; leave the split"):
        read_dataset(tmp_path, "val")


def test_a_table_of_labels(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('\ufeffFile,Label\na/1.png, dog\n\n"b, c.png",cat\na/1.png,cat\n', encoding="utf-8")
    first, second = read_dataset(table).samples
    assert (first.name, first.photo, first.labels) == ("a/1.png", tmp_path / "a" / "1.png", ("dog", "cat"))
    assert (second.name, second.labels) == ("b, c.png", ("cat",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png\n", "line 1 is 'a.png'; expected file,label"),
        (b"a.png,dog\nb.png,\n", "line 2 is 'b.png,'; expected file,label"),
        (b"\xff\xff\n", "is no text in UTF-8 with lines file,label ("),
        (b"/etc/a.png,dog\n", "names the photo '/etc/a.png'; expected a path within "),
    ],
)
def test_a_table_of_another_form(tmp_path: Path, content: bytes, message: str) -> None:
    table = tmp_path / "labels.txt"
    table.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_dataset(table)
    assert str(caught.value).startswith(f"{table}: {message}")


def test_what_is_no_data_set_lists_the_forms(tmp_path: Path, save_photo: Save) -> None:
    photo = save_photo(tmp_path / "a.png")
    for path, found in (
        (tmp_path, "holds none of the forms that are known"),
        (tmp_path / "none", "is no file and no folder"),
        (photo, "is a file of another kind"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
    ):
        with pytest.raises(DatasetError) as caught:
            read_dataset(path)
        assert str(caught.value) == f"{path}: {found}; expected {FORMS}"


def test_a_split_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a.png,dog\n")
    with pytest.raises(DatasetError, match=r"is one file, which has no split 'val'; leave the split out, or give the"):
        read_dataset(tmp_path / "a.csv", "val")
