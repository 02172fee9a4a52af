import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import DatasetError
from engine.evaluation.dataset import read_dataset

Save = Callable[..., Path]
IMAGE = {"id": 7, "file_name": "a.png", "width": 8, "height": 6}
DOG = {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 1.5], "iscrowd": 0}
CATEGORIES = [{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}]
COCO: dict[str, object] = {"images": [IMAGE], "annotations": [DOG], "categories": CATEGORIES}
ENTRY = {"file": "in/a.png", "width": 8, "height": 6, "boxes": [{"label": "dog", "xyxy": [1, 2, 4, 3.5]}]}


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def test_a_list(tmp_path: Path) -> None:
    both = {**ENTRY, "file": "b.png", "boxes": [*ENTRY["boxes"], {"label": "cat", "xyxy": [0, 0, 1, 1]}]}
    dataset = read_dataset(write(tmp_path / "list.json", [ENTRY, both]))
    first, second = dataset.samples
    assert (dataset.form, first.name, first.photo) == ("JSON list", "in/a.png", tmp_path / "in" / "a.png")
    assert (first.labels, first.boxes, first.size) == (("dog",), {"dog": ((1.0, 2.0, 4.0, 3.5),)}, (8, 6))
    assert second.labels == ("dog", "cat")


@pytest.mark.parametrize("place", ["val2017", "images/val2017", "images", "annotations/val2017", "annotations"])
def test_coco_with_its_photos_where_people_put_them(tmp_path: Path, save_photo: Save, place: str) -> None:
    photo = save_photo(tmp_path / place / "a.png")
    file = write(tmp_path / "annotations" / "instances_val2017.json", COCO)
    for path in (file, tmp_path):
        (sample,) = read_dataset(path).samples
        assert (sample.name, sample.photo, sample.size) == ("a.png", photo, (8, 6))
        assert sample.boxes == {"dog": ((1.0, 2.0, 4.0, 3.5),)}


def test_a_crowd_does_not_make_its_class_present(tmp_path: Path, save_photo: Save) -> None:
    save_photo(tmp_path / "a.png")
    crowds = [{**DOG, "bbox": [0, 0, 8, 6], "iscrowd": 1}, {**DOG, "category_id": 5, "iscrowd": 1}]
    file = write(tmp_path / "c.json", {**COCO, "annotations": [DOG, *crowds]})
    (sample,) = read_dataset(file).samples
    assert sample.boxes == {"dog": ((1.0, 2.0, 4.0, 3.5), (0.0, 0.0, 8.0, 6.0))}


def test_a_photo_without_objects_has_no_class(tmp_path: Path, save_photo: Save) -> None:
    save_photo(tmp_path / "a.png")
    (sample,) = read_dataset(write(tmp_path / "c.json", {**COCO, "annotations": []})).samples
    assert (sample.labels, sample.boxes) == ((), {})


def test_a_split_of_coco(tmp_path: Path, save_photo: Save) -> None:
    save_photo(tmp_path / "val" / "a.png")
    for split in ("val", "train"):
        write(tmp_path / "annotations" / f"instances_{split}.json", COCO)
    assert len(read_dataset(tmp_path, "val").samples) == 1
    with pytest.raises(DatasetError, match=r": no split is given; expected one of train, val$"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r": there is no split 'test'; expected one of train, val$"):
        read_dataset(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (5, ": is no data set; expected"),
        ({"images": []}, ": is no data set; expected"),
        ([5], ": entry 0: has int; expected file, width, height, boxes, as in [{"),
        ([{"file": "a.png", "width": 8}], ": entry 0: has file, width; expected file, width, height, boxes, as in [{"),
        ([{**ENTRY, "boxes": 5}], ": entry 0: boxes is 5; expected a list"),
        ([{**ENTRY, "width": 0}], ": entry 0: is 0×6 pixels; expected two positive whole numbers"),
        ([{**ENTRY, "boxes": [{"label": " ", "xyxy": [0, 0, 1, 1]}]}], ": entry 0: has the class name ' '; expected a"),
        ([{**ENTRY, "boxes": [{"label": "a", "xyxy": [0, 1]}]}], ": entry 0: box is [0, 1]; expected four finite"),
        ([{**ENTRY, "boxes": [{"label": "a", "xyxy": "abcd"}]}], ": entry 0: box is 'abcd'; expected four finite"),
        (
            [{**ENTRY, "boxes": [{"label": "a", "xyxy": [0, 1, 2, True]}]}],
            ": entry 0: box is [0, 1, 2, True]; expected",
        ),
        ([{**ENTRY, "file": "/a.png"}], ": entry 0: names the photo '/a.png'; expected a path within "),
        ([{**ENTRY, "file": "../a.png"}], ": entry 0: names the photo '../a.png'; expected a path within "),
        ([{**ENTRY, "file": 5}], ": entry 0: names the photo 5; expected the path of a file"),
        ({**COCO, "categories": [{"id": [], "name": "dog"}]}, ": has the id []; expected a number or a text"),
        ({**COCO, "annotations": [{**DOG, "category_id": 9}]}, ": annotation 0: is of category 9; expected one of"),
        ({**COCO, "annotations": [{**DOG, "bbox": [0, 0, -1, 5]}]}, ": annotation 0: box is from (0, 0) to (-1, 5); "),
        ({**COCO, "images": [{**IMAGE, "file_name": "b.png"}]}, ": its photos are in none of "),
    ],
)
def test_a_file_of_another_form(tmp_path: Path, save_photo: Save, content: object, message: str) -> None:
    save_photo(tmp_path / "a.png")
    file = write(tmp_path / "c.json", content)
    with pytest.raises(DatasetError) as caught:
        read_dataset(file)
    assert str(caught.value).startswith(f"{file}{message}")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, b"\xff"])
def test_a_file_that_is_no_json(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=r"c.json: is not JSON \(.*\); expected a data set$"):
        read_dataset(file)


def test_photos_twice_none_or_with_half_letters(tmp_path: Path) -> None:
    for content, message in (
        ([ENTRY, ENTRY], r"^in/a.png: is listed twice; expected each photo once$"),
        ([], r"^JSON list: holds no photo; expected at least one with its classes$"),
        ([{**ENTRY, "file": "\ud800.png"}], r"has a name that is no text; expected names in UTF-8$"),
    ):
        with pytest.raises(DatasetError, match=message):
            read_dataset(write(tmp_path / "c.json", content))


def test_the_fingerprint_is_that_of_the_annotations(tmp_path: Path) -> None:
    first = read_dataset(write(tmp_path / "a" / "list.json", [ENTRY, {**ENTRY, "file": "b.png"}])).fingerprint
    again = read_dataset(write(tmp_path / "b" / "list.json", [{**ENTRY, "file": "b.png"}, ENTRY])).fingerprint
    other = {**ENTRY, "boxes": [{"label": "dog", "xyxy": [1, 2, 4, 3]}]}
    assert first == again
    assert first != read_dataset(write(tmp_path / "list.json", [other, {**ENTRY, "file": "b.png"}])).fingerprint
    assert first != read_dataset(write(tmp_path / "list.json", [ENTRY])).fingerprint
