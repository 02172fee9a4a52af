"""Data sets without boxes: a folder of folders named by class, or a table of files and labels."""

import csv
from pathlib import Path

from engine.decode import photos_among
from engine.errors import DatasetError
from engine.evaluation.sample import Dataset, Sample, expect_inside

_HEADER = ("file", "label")


def read_class_folders(folder: Path, classes: list[Path]) -> Dataset:
    """Read photos that lie in a folder named by their class.

    Args:
        folder: The folder.
        classes: The folders in it, at least one.

    Raises:
        DatasetError: There is no photo.
    """
    samples = []
    for place in classes:
        samples += [
            Sample(name=photo.relative_to(folder).as_posix(), photo=photo, labels=(place.name,))
            for photo in photos_among(place.iterdir())
        ]
    return Dataset(form="folders by class", samples=tuple(samples))


def read_table(file: Path) -> Dataset:
    """Read a CSV or text file of lines `file,label`; a photo of several classes has several lines.

    Args:
        file: The table; its paths begin in its own folder. A first line `file,label` is a heading.

    Raises:
        DatasetError: It cannot be read, or a line is of another form.
    """
    labels: dict[str, dict[str, None]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            for number, row in enumerate(csv.reader(opened, skipinitialspace=True), start=1):
                words = tuple(word.strip() for word in row)
                if not any(words) or (number == 1 and tuple(word.lower() for word in words) == _HEADER):
                    continue
                if len(words) != 2 or not all(words):
                    raise DatasetError(f"{file}: line {number} is {','.join(row)!r}; expected file,label")
                labels.setdefault(words[0], {})[words[1]] = None
    except OSError as err:
        raise DatasetError(f"{file}: cannot be read: {err.strerror}; expected lines file,label") from err
    except (ValueError, csv.Error) as err:
        raise DatasetError(f"{file}: is no text in UTF-8 with lines file,label ({err})") from err
    samples = [
        Sample(name=name, photo=expect_inside(file.parent, name, str(file)), labels=tuple(found))
        for name, found in labels.items()
    ]
    return Dataset(form="table of labels", samples=tuple(samples))
