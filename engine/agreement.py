"""How far explanations in one precision, or on one device, are from those in another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from engine.budget import Plan, plan_all, take_turns
from engine.errors import ImageError, OptionError
from engine.explainer import Explainer, top_classes
from engine.feature_masks import FeatureMasks, ScoredMasks
from engine.image import Photo
from engine.kernels import fuse
from engine.kernels.similarity import spearman, structural_similarity
from engine.methods.ada_sise import scores_of, views_of
from engine.methods.base import Map
from engine.options import expect_whole
from engine.photos import naming
from engine.probe import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two explainers are apart on some photos, over the same masks.

    Attributes:
        photos: How many photos were explained.
        heatmaps: How many heatmaps were compared: one for each photo and class that has a mask.
        masks: How many scores were compared: one for each class and mask of it.
        score_error: Mean of the absolute differences between the two scores of a mask.
        score_error_worst: The largest of them.
        spearman: Median over the heatmaps of Spearman's ρ between the two.
        spearman_worst: The smallest of them.
        ssim: Median of their structural similarity.
        ssim_worst: The smallest of them.
    """

    photos: int
    heatmaps: int
    masks: int
    score_error: float
    score_error_worst: float
    spearman: float
    spearman_worst: float
    ssim: float
    ssim_worst: float

    def report(self) -> dict[str, int | float]:
        """Return the figures in JSON's types, with four decimals."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def within(figures: Mapping[str, float], bounds: Mapping[str, float]) -> bool:
    """Tell whether figures are as high as the bounds of the same names, both as manifests hold them."""
    return all(figures[name] >= least for name, least in bounds.items())


def measure_agreement(
    reference: Explainer,
    other: Explainer,
    photos: Sequence[Photo],
    *,
    classes: int = 1,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Agreement:
    """Compare Ada-SISE's heatmaps of two explainers of one model.

    Both score the same masks, those that the reference's feature maps and average gradients give: what differs is what
    the networks make of them.

    Args:
        reference: What is right.
        other: The same model in another precision or on another device.
        photos: Photos, or prepared inputs, as `Explainer.explain` takes them.
        classes: Explain the classes of the so many highest scores of each photo.
        batch_size: Masked images that are scored at a time; None for what `load` found, or was given.
        progress: Told how many photos were done, and how many there are.

    Raises:
        ImageError: A photo cannot be read or does not fit, a network computes NaN or infinity for it, or no photo
            gives a mask.
        OptionError: There is no photo, `classes` or `batch_size` is not positive, or the two explain different models.
        BackendError: A runtime failed.
    """
    expect_whole("classes", classes)
    if not photos:
        raise OptionError("no photo was given to compare explanations on; expected one at least")
    bundles = reference.bundle, other.bundle
    first, second = ((own.manifest["source"], own.image_shape, own.activation) for own in bundles)
    if first != second:
        raise OptionError(
            f"{other.bundle.path}: was made from another model, image size or activation than {reference.bundle.path}; "
            "expected two explainers of one model"
        )
    errors: list[NDArray[np.float64]] = []
    ranks, structures = [], []
    for number, photo in enumerate(photos):
        progress(number, len(photos))
        with naming(photo):
            pairs = _explain_alike(reference, other, photo, classes, batch_size)
        for expected, found, error in pairs:
            if not len(error):  # nothing to score, in any precision
                continue
            errors.append(error)
            ranks.append(spearman(found, expected))
            structures.append(structural_similarity(found, expected))
    progress(len(photos), len(photos))
    if not errors:
        raise ImageError(f"none of {len(photos)} photos gives a mask to compare scores of; expected one at least")
    error = np.concatenate(errors)
    return Agreement(
        photos=len(photos),
        heatmaps=len(ranks),
        masks=len(error),
        score_error=float(error.mean()),
        score_error_worst=float(error.max()),
        spearman=float(np.median(ranks)),
        spearman_worst=min(ranks),
        ssim=float(np.median(structures)),
        ssim_worst=min(structures),
    )


def _explain_alike(
    reference: Explainer, other: Explainer, photo: Photo, classes: int, batch_size: int | None
) -> list[tuple[Map, Map, NDArray[np.float64]]]:
    """Return for each class the two heatmaps, and how far the scores of each mask are apart."""
    top = top_classes(reference, photo, classes)
    probe = reference.probe(photo, top, batch_size=batch_size)
    tapped = probe.tap()
    plans = plan_all(tapped.maps, tapped.averages)
    order = take_turns([own.pairs(np.arange(len(own.masks))) for own in plans])
    rows = FeatureMasks(probe.image[0], None, tapped.maps, order)
    expected = rows.by_layer(probe.score(rows))
    second = other.probe(photo, top, batch_size=batch_size)
    second.tap()  # knows the classes, so that no other graph is opened for them
    found = rows.by_layer(second.score(rows))
    pairs = []
    for k, own in enumerate(plans):
        right, scores = _heatmap(tapped.maps, expected, own, k, probe.size)
        heatmap, others = _heatmap(tapped.maps, found, own, k, probe.size)
        pairs.append((right, heatmap, np.abs(others - scores)))
    return pairs


def _heatmap(
    maps: Sequence[Floats], masks: Sequence[ScoredMasks], own: Plan, k: int, size: tuple[int, int]
) -> tuple[Map, NDArray[np.float64]]:
    """Return the heatmap of class number k, zeros where nothing is left, and the scores of its own masks."""
    scores = scores_of(own, np.arange(len(own.masks)), masks, k)
    heatmap, _ = fuse(views_of(maps, masks, own, scores, scores, size), "hard")
    return np.zeros(size) if heatmap is None else heatmap, scores
