"""How far explanations in one precision, or on one device, are from those in another."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import OptionError
from engine.explainer import Explainer, top_classes
from engine.feature_masks import FeatureMasks, ScoredMasks
from engine.image import Photo
from engine.kernels import fuse, is_flat, select_channels, visualization_map
from engine.kernels.similarity import spearman, structural_similarity
from engine.options import expect_whole
from engine.photos import naming
from engine.probe import Floats, Probe

Map = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two explainers are apart on some photos, over the same masks.

    Attributes:
        photos: How many photos were explained.
        heatmaps: How many heatmaps were compared: one for each photo and class.
        masks: How many masks were scored by both.
        score_error: Mean of the differences between the two scores of a mask.
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


def measure_agreement(
    reference: Explainer,
    other: Explainer,
    photos: Sequence[Photo],
    *,
    classes: int = 1,
    batch_size: int = 8,
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
        batch_size: Masked images that are scored at a time.
        progress: Told how many photos were done, and how many there are.

    Raises:
        ImageError: A photo cannot be read or does not fit, or a network computes NaN or infinity for it.
        OptionError: There is no photo, `classes` or `batch_size` is not positive, or the two explain different models.
        BackendError: A runtime failed.
    """
    expect_whole("classes", classes)
    if not photos:
        raise OptionError("no photo was given to compare explanations on; expected one at least")
    sources = [explainer.bundle.manifest["source"] for explainer in (reference, other)]
    if sources[0] != sources[1]:
        raise OptionError(
            f"{other.bundle.path}: was made from another model than {reference.bundle.path}; expected two "
            "explainers of one model"
        )
    errors: list[NDArray[np.float64]] = []
    ranks, structures = [], []
    for number, photo in enumerate(photos):
        progress(number, len(photos))
        with naming(photo):
            pairs = _explain_alike(reference, other, photo, classes, batch_size)
        for expected, found, error in pairs:
            errors.append(error)
            ranks.append(spearman(found, expected))
            structures.append(structural_similarity(found, expected))
    progress(len(photos), len(photos))
    error = np.concatenate(errors)
    return Agreement(
        photos=len(photos),
        heatmaps=len(ranks),
        masks=len(error),
        score_error=float(error.mean()) if len(error) else 0.0,
        score_error_worst=float(error.max(initial=0.0)),
        spearman=float(np.median(ranks)),
        spearman_worst=min(ranks),
        ssim=float(np.median(structures)),
        ssim_worst=min(structures),
    )


def _explain_alike(
    reference: Explainer, other: Explainer, photo: Photo, classes: int, batch_size: int
) -> list[tuple[Map, Map, NDArray[np.float64]]]:
    """Return for each class the two heatmaps, and how far the scores of each mask are apart."""
    top = top_classes(reference, photo, classes)
    probe = reference.probe(photo, top, batch_size=batch_size)
    tapped = probe.tap()
    chosen = selected_masks(tapped.maps, tapped.averages)
    order = list(dict.fromkeys(mask for masks in chosen for mask in masks))
    rows = FeatureMasks(probe.image[0], None, tapped.maps, order)
    expected = probe.score(rows)
    second = other.probe(photo, top, batch_size=batch_size)
    second.tap()  # knows the classes, so that no other graph is opened for them
    found = second.score(rows)
    layers = rows.by_layer(expected), rows.by_layer(found)
    place = {mask: number for number, mask in enumerate(order)}
    return [
        (
            _heatmap(probe, tapped.maps, layers[0], masks, k),
            _heatmap(probe, tapped.maps, layers[1], masks, k),
            np.abs(expected - found)[[place[mask] for mask in masks], k],
        )
        for k, masks in enumerate(chosen)
    ]


def selected_masks(maps: Sequence[Floats], averages: Sequence[Floats]) -> list[list[tuple[int, int]]]:
    """Return for each class (layer, channel) of the masks that Ada-SISE selects; none of them is flat.

    Args:
        maps: F_l of each layer, float32 [C_l, h_l, w_l].
        averages: α_l of each layer, float32 [K, C_l].
    """
    chosen: list[list[tuple[int, int]]] = [[] for _ in averages[0]]
    for layer, (features, alphas) in enumerate(zip(maps, averages, strict=True)):
        for k, alpha in enumerate(alphas):
            channels = select_channels(alpha, "otsu").channels
            chosen[k] += [(layer, int(channel)) for channel in channels[~is_flat(features[channels])]]
    return chosen


def _heatmap(
    probe: Probe, maps: Sequence[Floats], layers: Sequence[ScoredMasks], masks: Sequence[tuple[int, int]], k: int
) -> Map:
    """Combine and fuse the scores of class number k, with its own masks; zeros where nothing is left."""
    views = []
    for layer, scored in enumerate(layers):
        own = scored.positions_of(np.array([channel for at, channel in masks if at == layer], np.int64))
        features = maps[layer][scored.channels[own]]
        views.append(
            visualization_map(features, scored.scores[own, k], scored.minimum[own], scored.extent[own], probe.size)
        )
    heatmap, _ = fuse(views, "hard")
    return np.zeros(probe.size) if heatmap is None else heatmap
