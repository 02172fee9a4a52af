"""What a caller may choose, checked at the edge."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np

from engine.bundle import ACTIVATIONS
from engine.errors import OptionError, TargetError
from engine.image import Baseline
from engine.pace import Cancel, Progress

if TYPE_CHECKING:
    from engine.methods import Method

Target: TypeAlias = int | str | None
Targets: TypeAlias = list[int] | list[str] | list[Target] | tuple[Target, ...]

TOP_CLASS = -1
_TOO_LATE = ("grad-cam", "error")


class MethodOptions(TypedDict, total=False):
    """The options of all methods; each method documents, and takes, its own."""

    rule: str
    mu: float
    fusion: str
    baseline: Baseline
    preset: str
    layer: str | None
    weights: str
    gaussian: bool
    masks: int
    cells: int
    probability: float
    seed: int
    samples: int
    noise: float
    steps: int
    groups: int
    areas: Sequence[float]
    iterations: int


class Asked(TypedDict, total=False):
    """How to ask the network; `Explainer.explain` documents it."""

    activation: str | None
    batch_size: int | None
    max_masks: int | None
    deadline_ms: float | None
    too_late: str
    progress: Progress | None
    cancel: Cancel | None


class Choices(MethodOptions, Asked, total=False):
    """The keywords of `Explainer.explain`, which documents them."""

    method: "str | Method"
    visualization_maps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to ask the network; checked when made.

    Attributes:
        activation: What turns logits into class scores.
        batch_size: Changed images scored at a time.
        max_masks: The most masks to score for a class; None for all.
        deadline_ms: When the result shall be there, in milliseconds after the call; None for no deadline.
        too_late: What a deadline that is too short gives: `grad-cam` or `error`.
        progress: Told how far it is.
        cancel: Ends it.
    """

    activation: str
    batch_size: int = 8
    max_masks: int | None = None
    deadline_ms: float | None = None
    too_late: str = "grad-cam"
    progress: Progress | None = None
    cancel: Cancel | None = None

    def __post_init__(self) -> None:
        expect_known("activation", self.activation, ACTIVATIONS)
        expect_known("too_late", self.too_late, _TOO_LATE)
        expect_whole("batch_size", self.batch_size)
        if self.max_masks is not None and (not _is_whole(self.max_masks) or self.max_masks < 1):
            raise OptionError(
                f"max_masks is {self.max_masks!r}; expected a whole number of at least 1, or None for all"
            )
        if self.deadline_ms is not None and not (
            _is_number(self.deadline_ms) and 0 < _as_float(self.deadline_ms) < math.inf
        ):
            raise OptionError(
                f"deadline_ms is {self.deadline_ms!r}; expected a positive number of milliseconds, or None for none"
            )
        if self.progress is not None and not callable(self.progress):
            raise OptionError(
                f"progress is {self.progress!r}; expected a function of the masks scored and the masks planned"
            )
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise OptionError(f"cancel is {self.cancel!r}; expected a flag with is_set(), such as threading.Event")

    def within_budget(self, count: int) -> int:
        """Return how many of so many changed images the caller allows."""
        return count if self.max_masks is None else min(count, self.max_masks)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float | np.floating)


def expect_whole(name: str, value: object, least: int = 1) -> None:
    """Check an option that is a whole number.

    Raises:
        OptionError: It is something else, or too small.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} is {value!r}; expected a whole number of at least {least}")


def expect_number(name: str, value: object, inside: Callable[[float], bool], range_: str) -> None:
    """Check an option that is a number.

    Args:
        name: The option's name.
        value: What was given.
        inside: Tells whether a number is allowed.
        range_: Names the numbers that are allowed, after "a number".

    Raises:
        OptionError: It is something else, or not allowed.
    """
    if (
        not isinstance(value, int | float | np.integer | np.floating)
        or isinstance(value, bool)
        or not inside(_as_float(value))
    ):
        raise OptionError(f"{name} is {value!r}; expected a number {range_}")


def _as_float(value: float | np.integer | np.floating) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if value > 0 else -math.inf


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
