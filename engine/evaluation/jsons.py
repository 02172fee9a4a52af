"""Data sets in JSON: COCO's `instances_*.json`, and a plain list of photos with boxes."""

import json
from collections.abc import Mapping
from pathlib import Path

from engine.errors import DatasetError
from engine.evaluation.sample import (
    Box,
    Dataset,
    LabelledBox,
    Sample,
    expect_box,
    expect_inside,
    expect_numbers,
    expect_size,
    sample_of,
)

_LIST_FORM = '[{"file", "width", "height", "boxes": [{"label", "xyxy"}]}]'
_COCO_KEYS = ("images", "annotations", "categories")
_COCO_FORM = '{"images", "annotations", "categories"}'


def read_json(file: Path) -> Dataset:
    """Read either form, told apart by whether the file holds a list or an object.

    Raises:
        DatasetError: It is neither, or an entry is damaged.
    """
    try:
        content: object = json.loads(file.read_bytes())
    except OSError as err:
        raise DatasetError(f"{file}: cannot be read: {err.strerror}; expected a data set in JSON") from err
    except (ValueError, RecursionError) as err:
        raise DatasetError(f"{file}: is not JSON ({err}); expected a data set") from err
    if isinstance(content, list):
        samples = [_listed(entry, file, number) for number, entry in enumerate(content)]
        return Dataset(form="JSON list", samples=tuple(samples))
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in _COCO_KEYS):
        return _read_coco(content, file)
    raise DatasetError(f"{file}: is no data set; expected {_COCO_FORM} as of COCO, or {_LIST_FORM}")


def _listed(entry: object, file: Path, number: int) -> Sample:
    """Read one entry of the plain list; its boxes are left, top, right, bottom in pixels."""
    subject = f"{file}: entry {number}"
    found = _fields(entry, ("file", "width", "height", "boxes"), subject, _LIST_FORM)
    boxes = found["boxes"]
    if not isinstance(boxes, list):
        raise DatasetError(f"{subject}: boxes is {boxes!r}; expected a list")
    objects = []
    for box in boxes:
        fields = _fields(box, ("label", "xyxy"), subject, _LIST_FORM)
        objects.append(LabelledBox(label=_text(fields["label"], subject), box=expect_box(fields["xyxy"], subject)))
    photo = expect_inside(file.parent, found["file"], subject)
    return sample_of(str(found["file"]), photo, expect_size(found["width"], found["height"], subject), objects)


def _read_coco(content: Mapping[str, list[object]], file: Path) -> Dataset:
    """Read COCO's form: a box is left, top, width, height; a crowd does not make its class present.

    Source: cocodataset.org, "Data format", 1. Object Detection.
    """
    names: dict[object, str] = {}
    for entry in content["categories"]:
        category = _fields(entry, ("id", "name"), f"{file}: a category", _COCO_FORM)
        names[_identity(category["id"], file)] = _text(category["name"], f"{file}: a category")
    objects: dict[object, list[LabelledBox]] = {}
    for number, entry in enumerate(content["annotations"]):
        subject = f"{file}: annotation {number}"
        found = _fields(entry, ("image_id", "category_id", "bbox"), subject, _COCO_FORM)
        category_id = _identity(found["category_id"], file)
        if category_id not in names:
            raise DatasetError(f"{subject}: is of category {category_id!r}; expected one of those that are listed")
        box = _corners(found["bbox"], subject)
        certain = not found.get("iscrowd", 0)
        labelled = LabelledBox(label=names[category_id], box=box, certain=certain)
        objects.setdefault(_identity(found["image_id"], file), []).append(labelled)
    images = [
        _fields(entry, ("id", "file_name", "width", "height"), f"{file}: an image", _COCO_FORM)
        for entry in content["images"]
    ]
    folder = _photos_folder(file, [str(image["file_name"]) for image in images])
    samples = []
    for image in images:
        subject = f"{file}: image {image['id']!r}"
        photo = expect_inside(folder, image["file_name"], subject)
        size = expect_size(image["width"], image["height"], subject)
        found_objects = objects.get(_identity(image["id"], file), [])
        samples.append(sample_of(str(image["file_name"]), photo, size, found_objects))
    return Dataset(form="COCO JSON", samples=tuple(samples))


def _corners(values: object, subject: str) -> Box:
    """Return left, top, right, bottom of a box that is given as left, top, width, height."""
    left, top, width, height = expect_numbers(values, subject)
    return expect_box([left, top, left + width, top + height], subject)


def _photos_folder(file: Path, names: list[str]) -> Path:
    """Find the photos as COCO's archives lie when unpacked: `annotations/instances_val2017.json` beside `val2017`."""
    split = file.stem.removeprefix("instances_")
    above = file.parent.parent
    places = [above / split, above / "images" / split, above / "images", file.parent / split, file.parent / "images"]
    for folder in (*places, file.parent):
        if any((folder / name).is_file() for name in names[:100]):
            return folder
    tried = ", ".join(map(str, places))
    raise DatasetError(f"{file}: its photos are in none of {tried}, {file.parent}; put the image folder there")


def _fields(entry: object, needed: tuple[str, ...], subject: str, form: str) -> Mapping[str, object]:
    if not isinstance(entry, dict) or any(key not in entry for key in needed):
        found = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise DatasetError(f"{subject}: has {found}; expected {', '.join(needed)}, as in {form}")
    return entry


def _text(value: object, subject: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{subject}: has the class name {value!r}; expected a text")
    return value.strip()


def _identity(value: object, file: Path) -> object:
    if not isinstance(value, int | str):
        raise DatasetError(f"{file}: has the id {value!r}; expected a number or a text")
    return value
