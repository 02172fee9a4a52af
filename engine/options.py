"""What a caller may choose of the method, checked at the edge."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np

from engine.bundle import ACTIVATIONS
from engine.errors import OptionError, TargetError
from engine.image import Baseline
from engine.kernels import FUSIONS, RULES
from engine.pace import Cancel, Progress

Target: TypeAlias = int | str | None
Targets: TypeAlias = list[int] | list[str] | list[Target] | tuple[Target, ...]

TOP_CLASS = -1


class Choices(TypedDict, total=False):
    """The keywords of `Explainer.explain`, which documents them."""

    rule: str
    mu: float
    fusion: str
    activation: str | None
    baseline: Baseline
    batch_size: int
    max_masks: int | None
    deadline_ms: float | None
    visualization_maps: bool
    progress: Progress | None
    cancel: Cancel | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to explain; checked when made.

    Attributes:
        rule: One of `RULES`.
        mu: For rule `positive`: keep maps whose average gradient exceeds mu times the largest, from 0 up to 1.
        fusion: One of `FUSIONS`.
        activation: What turns logits into class scores.
        batch_size: Masked images scored in one run of the network.
        max_masks: The most masks to score for a class; None for all.
        deadline_ms: When the result shall be there, in milliseconds after the call; None for no deadline.
    """

    rule: str
    mu: float
    fusion: str
    activation: str
    batch_size: int
    max_masks: int | None
    deadline_ms: float | None

    def __post_init__(self) -> None:
        for name, known in (("rule", RULES), ("fusion", FUSIONS), ("activation", ACTIVATIONS)):
            expect_known(name, getattr(self, name), known)
        if not _is_number(self.mu) or not 0 <= self.mu < 1:
            raise OptionError(f"mu is {self.mu!r}; expected a number from 0 up to 1")
        if self.mu > 0 and self.rule != "positive":
            raise OptionError(f"mu is {self.mu:g} with rule {self.rule!r}; only rule 'positive' takes mu")
        if not _is_whole(self.batch_size) or self.batch_size < 1:
            raise OptionError(f"batch_size is {self.batch_size!r}; expected a whole number of at least 1")
        if self.max_masks is not None and (not _is_whole(self.max_masks) or self.max_masks < 1):
            raise OptionError(
                f"max_masks is {self.max_masks!r}; expected a whole number of at least 1, or None for all"
            )
        if self.deadline_ms is not None and not (_is_number(self.deadline_ms) and 0 < self.deadline_ms < math.inf):
            raise OptionError(
                f"deadline_ms is {self.deadline_ms!r}; expected a positive number of milliseconds, or None for none"
            )


def expect_callbacks(progress: Progress | None, cancel: Cancel | None) -> None:
    """Check what the caller gives to watch and to stop an explanation.

    Raises:
        OptionError: They are of another kind.
    """
    if progress is not None and not callable(progress):
        raise OptionError(f"progress is {progress!r}; expected a function of the masks scored and the masks planned")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise OptionError(f"cancel is {cancel!r}; expected a flag with is_set(), such as threading.Event")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float | np.floating)


def expect_known(name: str, value: str, known: Sequence[str]) -> None:
    """Check an option that is one of a few words.

    Raises:
        OptionError: It is another.
    """
    if value not in known:
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def class_indices(target: Target | Targets, classes: int, labels: Sequence[str] | None) -> list[int]:
    """Return the index of every class that was asked for, `TOP_CLASS` for None.

    Args:
        target: Class index, label or None, or a list of these.
        classes: Number of classes.
        labels: One name per class, or None.

    Raises:
        TargetError: The list is empty, or the model has no such class, or several of that name.
    """
    asked = target if isinstance(target, list | tuple) else [target]
    if not asked:
        raise TargetError(
            "target is an empty list; expected at least one class index or label, or None for the top-1 class"
        )
    return [_class_index(entry, classes, labels) for entry in asked]


def _class_index(target: Target, classes: int, labels: Sequence[str] | None) -> int:
    if target is None:
        return TOP_CLASS
    if isinstance(target, str):
        return _labelled(target, classes, labels)
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise TargetError(f"target {target!r}: is a {type(target).__name__}; expected a class index, a label or None")
    if not 0 <= target < classes:
        raise TargetError(f"target {target}: is out of range; expected a class index from 0 to {classes - 1}")
    return int(target)


def _labelled(label: str, classes: int, labels: Sequence[str] | None) -> int:
    if labels is None:
        raise TargetError(f"target {label!r}: the bundle has no labels; give a class index from 0 to {classes - 1}")
    indices = [index for index, name in enumerate(labels) if name == label]
    if not indices:
        near = difflib.get_close_matches(label, labels, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise TargetError(f"target {label!r}: is none of the bundle's {classes} labels{hint}")
    if len(indices) > 1:
        raise TargetError(f"target {label!r}: is the label of classes {indices}; give one of these indices")
    return indices[0]
