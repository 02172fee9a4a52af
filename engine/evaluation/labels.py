"""Finding a data set's classes among those of a bundle."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import DatasetError
from engine.evaluation.sample import Sample

SAME_CLASS = (
    ("aeroplane", "airplane"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tvmonitor", "tv"),
    ("diningtable", "dining table"),
    ("pottedplant", "potted plant"),
)
"""The classes that Pascal VOC and COCO call by two names; their other common classes have one."""

_CANONICAL = {name: names[0] for names in SAME_CLASS for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Which class of the bundle each label of a data set is.

    Attributes:
        classes: Index of the class by label; labels that the bundle lacks are not in it.
        left_out: How many photos have each label that the bundle lacks.
    """

    classes: Mapping[str, int]
    left_out: Mapping[str, int]


def match_labels(samples: Iterable[Sample], labels: Sequence[str] | None, classes: int) -> Matching:
    """Match by name, whatever the case and with `SAME_CLASS`; a number that is no name is a class index.

    A name that several classes of the bundle have is left out, since which one is meant cannot be told.

    Args:
        samples: The photos.
        labels: One name per class of the bundle, or None.
        classes: Number of classes.

    Raises:
        DatasetError: No label is a class of the bundle.
    """
    wanted = Counter(label for sample in samples for label in sample.labels)
    known: dict[str, list[int]] = {}
    for index, name in enumerate(labels or ()):
        known.setdefault(_canonical(name), []).append(index)
    found: dict[str, int] = {}
    for label in wanted:
        indices = known.get(_canonical(label), [])
        if len(indices) == 1:
            found[label] = indices[0]
        elif not indices and label.isascii() and label.isdecimal() and len(label) < 10 and int(label) < classes:
            found[label] = int(label)
    if not found:
        raise DatasetError(
            f"the data set has the classes {_some(list(wanted))}, the bundle {_some(labels)}; expected some in common"
        )
    return Matching(classes=found, left_out={label: wanted[label] for label in wanted if label not in found})


def _canonical(name: str) -> str:
    plain = " ".join(name.replace("_", " ").casefold().split())
    return _CANONICAL.get(plain, plain)


def _some(names: Sequence[str] | None) -> str:
    if names is None:
        return "no labels"
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
