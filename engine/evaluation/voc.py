"""Data sets in the form of Pascal VOC: `JPEGImages`, `Annotations`, `ImageSets/Main`.

Source: The PASCAL Visual Object Classes Challenge 2012 development kit, section 4 "Development kit" and 8 "Using the
development kit"; boxes are pixel numbers from 1, the last one included.
"""

import re
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from engine.decode import photos_among
from engine.errors import DatasetError
from engine.evaluation.sample import Dataset, LabelledBox, Sample, expect_box, expect_size, sample_of

_LARGEST_XML_BYTES = 1 << 20
"""More than 2,000 objects."""
_IDENTITY = re.compile(r"[\w.-]+", re.ASCII)


def read_voc(folder: Path, split: str | None) -> Dataset:
    """Read a folder with `JPEGImages` and `Annotations`.

    Objects that are marked as difficult do not make their class present, as in the development kit's evaluation, which
    leaves them out; see `engine.evaluation.sample.sample_of` for their boxes.

    Args:
        folder: The folder.
        split: Name of a list in `ImageSets/Main`, without `.txt`; None for every photo that has an annotation.

    Raises:
        DatasetError: The list, an annotation or a photo's entry in the folder is missing or damaged.
    """
    photos = {photo.stem: photo for photo in photos_among((folder / "JPEGImages").iterdir())}
    annotations = folder / "Annotations"
    if split is None:
        identities = sorted(file.stem for file in annotations.glob("*.xml"))
    else:
        identities = _identities(folder / "ImageSets" / "Main", split)
    samples = [
        _sample(identity, annotations / f"{identity}.xml", photos.get(identity), folder) for identity in identities
    ]
    return Dataset(form="Pascal VOC folder", samples=tuple(samples))


def _identities(folder: Path, split: str) -> list[str]:
    """Return the photos of a list, without those that a class's own list (`cat_val`) marks as negative, −1."""
    known = sorted(file.stem for file in folder.glob("*.txt"))
    if split not in known:
        expected = f"expected one of {', '.join(known)}" if known else "it has no lists: leave the split out"
        raise DatasetError(f"{folder}: has no list {split!r}; {expected}")
    file = folder / f"{split}.txt"
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as err:
        raise DatasetError(f"{file}: cannot be read: {err}; expected one photo a line") from err
    for line in lines:
        if not _IDENTITY.fullmatch(line[0]) or len(line) > 2:
            raise DatasetError(f"{file}: has the line {' '.join(line)!r}; expected a photo's name without .jpg")
    return [line[0] for line in lines if line[1:] != ["-1"]]


def _sample(identity: str, file: Path, photo: Path | None, folder: Path) -> Sample:
    if photo is None:
        photo = folder / "JPEGImages" / f"{identity}.jpg"  # reading it says what is wrong, for this photo alone
    root = _parse(file)
    objects = []
    for number, entry in enumerate(root.findall("object"), start=1):
        subject = f"{file}: object {number}"
        label = (entry.findtext("name") or "").strip()
        if not label:
            raise DatasetError(f"{subject}: has no name; expected the name of its class")
        corners = [_number(entry.findtext(f"bndbox/{name}"), subject) for name in ("xmin", "ymin", "xmax", "ymax")]
        first = (corners[0] - 1, corners[1] - 1)  # VOC counts pixels from 1
        box = expect_box([*first, corners[2], corners[3]], subject)
        difficult = (entry.findtext("difficult") or "").strip() == "1"
        objects.append(LabelledBox(label=label, box=box, certain=not difficult))
    return sample_of(photo.name, photo, _size(root, file), objects)


def _size(root: ElementTree.Element, file: Path) -> tuple[int, int] | None:
    if root.find("size") is None:
        return None
    width, height = (_number(root.findtext(f"size/{side}"), f"{file}: size") for side in ("width", "height"))
    if width == height == 0:  # some tools write that when they do not know
        return None
    return expect_size(_whole(width), _whole(height), str(file))


def _whole(number: float) -> object:
    return int(number) if number.is_integer() else number


def _number(text: str | None, subject: str) -> float:
    try:
        return float(text or "")
    except ValueError as err:
        raise DatasetError(f"{subject}: has {text!r} in the place of a number; expected pixels") from err


def _parse(file: Path) -> ElementTree.Element:
    """Parse an annotation; without a document type no entities can be declared that grow, or read other files."""
    parser = ElementTree.XMLParser(target=_WithoutDoctype(file))
    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST_XML_BYTES + 1)
        if len(data) > _LARGEST_XML_BYTES:
            raise DatasetError(f"{file}: holds more than {_LARGEST_XML_BYTES} bytes; expected one photo's annotation")
        parser.feed(data)
        root: ElementTree.Element = parser.close()
    except OSError as err:
        raise DatasetError(f"{file}: cannot be read: {err.strerror}; expected the annotation of a photo") from err
    except (ElementTree.ParseError, ValueError, LookupError) as err:  # the last two are about its encoding
        raise DatasetError(f"{file}: is not XML ({err}); expected a Pascal VOC annotation") from err
    if root.tag != "annotation":
        raise DatasetError(f"{file}: begins with <{root.tag}>; expected <annotation>, as of Pascal VOC")
    return root


class _WithoutDoctype(ElementTree.TreeBuilder):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def doctype(self, *_: object) -> NoReturn:
        """Refuse what no annotation of Pascal VOC has."""
        raise DatasetError(f"{self._file}: declares a document type; expected a plain Pascal VOC annotation")
