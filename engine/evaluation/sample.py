"""A photo of a data set, and what is said to be on it."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from engine.errors import DatasetError

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the photo: pixel 0 reaches from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBox:
    """One object of a photo.

    Attributes:
        label: Name of its class, as the data set spells it.
        box: Where it is.
        certain: Whether it makes its class present: an object marked as difficult, or a crowd, does not.
    """

    label: str
    box: Box
    certain: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One photo and its classes.

    Attributes:
        name: What results call the photo: its path within the data set, with `/`.
        photo: The file.
        labels: The classes that are present, as the data set spells them, each once.
        boxes: The boxes of each class; empty where the data set has none.
        size: Width and height of the photo that the boxes refer to; None if the data set does not say.
    """

    name: str
    photo: Path
    labels: tuple[str, ...]
    boxes: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Photos with their classes.

    Attributes:
        form: What the data set was recognised as.
        samples: Its photos.

    Raises:
        DatasetError: There is no photo, two have the same name, or one has a name that cannot be written as text.
    """

    form: str
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise DatasetError(f"{self.form}: holds no photo; expected at least one with its classes")
        names = set[str]()
        for sample in self.samples:
            if sample.name in names:
                raise DatasetError(f"{sample.name}: is listed twice; expected each photo once")
            names.add(sample.name)
            if not all(_is_text(name) for name in (sample.name, *sample.labels)):
                raise DatasetError(f"{sample.name!r}: has a name that is no text; expected names in UTF-8")

    @property
    def has_boxes(self) -> bool:
        """Whether any photo has boxes."""
        return any(sample.boxes for sample in self.samples)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the names, classes, boxes and sizes of all photos; not of their pixels."""
        facts = [
            [sample.name, sorted(sample.labels), sorted(sample.boxes.items()), sample.size]
            for sample in sorted(self.samples, key=lambda sample: sample.name)
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def sample_of(name: str, photo: Path, size: tuple[int, int] | None, objects: Iterable[LabelledBox]) -> Sample:
    """Gather the objects of a photo by class.

    A class whose every object is uncertain is not present. Where it is present, its uncertain objects are places where
    it can be seen too, so their boxes count.
    """
    labels: dict[str, None] = {}
    boxes: dict[str, list[Box]] = {}
    for entry in objects:
        boxes.setdefault(entry.label, []).append(entry.box)
        if entry.certain:
            labels[entry.label] = None
    return Sample(
        name=name, photo=photo, labels=tuple(labels), boxes={label: tuple(boxes[label]) for label in labels}, size=size
    )


def expect_box(values: object, subject: str) -> Box:
    """Return left, top, right and bottom, checked.

    Raises:
        DatasetError: They are not four finite numbers in order.
    """
    left, top, right, bottom = expect_numbers(values, subject)
    if right < left or bottom < top:
        raise DatasetError(
            f"{subject}: box is from ({left:g}, {top:g}) to ({right:g}, {bottom:g}); expected the upper left corner "
            "first"
        )
    return left, top, right, bottom


def expect_numbers(values: object, subject: str) -> Box:
    """Return the four numbers of a box, checked.

    Raises:
        DatasetError: They are not four finite numbers.
    """
    numbers = values if isinstance(values, list | tuple) else ()
    if len(numbers) != 4 or not all(_is_finite(number) for number in numbers):
        raise DatasetError(f"{subject}: box is {values!r}; expected four finite numbers")
    left, top, right, bottom = map(float, numbers)
    return left, top, right, bottom


def expect_size(width: object, height: object, subject: str) -> tuple[int, int]:
    """Return width and height of a photo, checked.

    Raises:
        DatasetError: They are no whole, positive numbers.
    """
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise DatasetError(f"{subject}: is {width!r}×{height!r} pixels; expected two positive whole numbers")
    return width, height


def expect_inside(folder: Path, name: object, subject: str) -> Path:
    """Return the path of a photo that a file names.

    Raises:
        DatasetError: The name is none, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise DatasetError(f"{subject}: names the photo {name!r}; expected the path of a file")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{subject}: names the photo {name!r}; expected a path within {folder}")
    return folder / path


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(name: str) -> bool:
    """Whether a name can be written: not if it holds half a character, as from a file name in another encoding."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
