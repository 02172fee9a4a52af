"""Which photos and classes an evaluation explains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.bundle import ACTIVATIONS
from engine.decode import decode
from engine.errors import ImageError, OptionError
from engine.evaluation.sample import Box, Sample
from engine.evaluation.store import Pair
from engine.explainer import Explainer
from engine.image import visible_part
from engine.metrics import box_mask
from engine.options import expect_known, expect_number, expect_whole
from engine.preprocess import Preprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is asked of an evaluation beside its methods and measures.

    Attributes:
        threshold: The least score at which a class that is present is explained.
        activation: `softmax`, `sigmoid` or `none` instead of the bundle's own.
        limit: Take the first so many photos among those with a class of the bundle; None for all.
        sample: Of these take so many, drawn at random; a smaller sample is part of a larger one. None for all.
        seed: Seed of the order in which photos are taken: of the sample and of the gallery.
        gallery: Keep the heatmaps of the first so many pairs in that order, for the report.

    Raises:
        OptionError: One of them has no meaning.
    """

    threshold: float = 0.5
    activation: str | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    gallery: int = 0

    def __post_init__(self) -> None:
        expect_number("threshold", self.threshold, lambda threshold: bool(np.isfinite(threshold)), "that is finite")
        if self.activation is not None:
            expect_known("activation", self.activation, ACTIVATIONS)
        for name, number in (("limit", self.limit), ("sample", self.sample)):
            if number is not None:
                expect_whole(name, number)
        expect_whole("seed", self.seed, least=0)
        expect_whole("gallery", self.gallery, least=0)


def choose(samples: Sequence[Sample], classes: Mapping[str, int], choice: Choice) -> list[Sample]:
    """Return the photos to take, in random order: then what a stopped run leaves is a random sample too.

    Args:
        samples: All photos.
        classes: Index of the bundle's class by label.
        choice: How many.
    """
    usable = [sample for sample in samples if any(label in classes for label in sample.labels)][: choice.limit]
    order = np.random.default_rng(choice.seed).permutation(len(usable))
    return [usable[number] for number in order[: choice.sample]]


def expect_preprocess(explainer: Explainer) -> Preprocess:
    """Return a bundle's settings for photos.

    Raises:
        OptionError: It has none.
    """
    if explainer.bundle.preprocess is None:
        raise OptionError(
            f"{explainer.bundle.path}: holds no preprocessing, so it takes prepared arrays only; export it with "
            "--preprocess to evaluate on photos"
        )
    return explainer.bundle.preprocess


def open_photo(sample: Sample, explainer: Explainer) -> Image.Image:
    """Decode a photo.

    Raises:
        ImageError: It cannot be read, or has another size than the data set says.
    """
    picture = decode(sample.photo, "L" if explainer.bundle.image_shape[0] == 1 else "RGB")
    if sample.size is not None and picture.size != sample.size:
        found, expected = ("×".join(map(str, size)) for size in (picture.size, sample.size))
        raise ImageError(f"{sample.photo}: has {found} pixels; expected {expected}, to which its boxes refer")
    return picture


def find_pairs(
    explainer: Explainer,
    sample: Sample,
    picture: Image.Image,
    classes: Mapping[str, int],
    activation: str,
    threshold: float,
) -> list[Pair]:
    """Return the classes that are present on a photo and that the model sees.

    Args:
        explainer: The model.
        sample: The photo.
        picture: Its pixels.
        classes: Index of the bundle's class by label.
        activation: What turns logits into scores.
        threshold: The least score.

    Raises:
        ImageError: The network computes NaN or infinity for it.
        BackendError: The runtime failed.
    """
    scores = explainer.classify(picture, activation)
    labels = {classes[label]: label for label in reversed(sample.labels) if label in classes}  # of several the first
    preprocess = expect_preprocess(explainer)
    pairs = []
    for target, label in sorted(labels.items()):
        if scores[target] >= threshold:
            boxes = boxes_of(sample, target, classes)
            mask = box_mask(boxes, picture.size, preprocess)
            pairs.append(
                Pair(
                    photo=sample.name,
                    target=target,
                    label=label,
                    score=float(scores[target]),
                    box_share=None if mask is None else float(mask.mean()),
                    boxes=_seen(boxes, picture.size, preprocess),
                )
            )
    return pairs


def boxes_of(sample: Sample, target: int, classes: Mapping[str, int]) -> list[Box]:
    """Return the boxes of a class on a photo, in pixels of the photo."""
    return [box for label in sample.labels if classes.get(label) == target for box in sample.boxes.get(label, ())]


def _seen(boxes: Sequence[Box], size: tuple[int, int], preprocess: Preprocess) -> tuple[Box, ...]:
    """Return boxes as shares of width and height of the network's view, cut at its border; those outside left out."""
    left, top, right, bottom = visible_part(size, preprocess)
    corners = np.array(boxes, np.float64).reshape(-1, 2, 2)
    shares = np.clip((corners - (left, top)) / (right - left, bottom - top), 0.0, 1.0)
    kept = shares[(shares[:, 1] > shares[:, 0]).all(axis=1)].reshape(-1, 4)
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in kept)
