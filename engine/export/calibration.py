"""The images on which the int8 scorer is calibrated: photos under masks, as scoring will see them."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.budget import plan_all
from engine.decode import decode
from engine.errors import ImageError, OptionError
from engine.explainer import Explainer, top_classes
from engine.feature_masks import FeatureMasks
from engine.photos import naming

LEAST_PHOTOS = 8
"""Fewer say little about the worst heatmap, and the rounding of weights would be fitted to them."""
MOST_PHOTOS = 128
"""More only take longer: this is one image of each."""
_CLASSES = 2
_SEED = 20102


def different(photos: Sequence[Path]) -> list[Path]:
    """Decode photos, and leave out copies of others and those of one colour: they say nothing about other photos.

    Raises:
        ImageError: A photo cannot be read.
        OptionError: Fewer than `LEAST_PHOTOS` are left.
    """
    found: dict[bytes, Path] = {}
    for photo in photos:
        picture = decode(photo, "RGB")
        if picture.getcolors(1) is None:  # it has more than one
            found.setdefault(hashlib.sha256(picture.tobytes()).digest(), photo)
    if len(found) < LEAST_PHOTOS:
        raise OptionError(
            f"{len(found)} photo{' is' if len(found) == 1 else 's are'} given to calibrate on, without copies and "
            f"photos of one colour; expected {LEAST_PHOTOS} at least, of the kind that the model will see: name more "
            "with --calibrate"
        )
    return list(found.values())


def spread(photos: Sequence[Path], most: int) -> list[Path]:
    """Return at most so many of the photos, evenly from among them."""
    count = min(most, len(photos))
    return [photos[number * len(photos) // count] for number in range(count)]


def masked_photos(explainer: Explainer, photos: Sequence[Path], progress: Callable[[int], None]) -> NDArray[np.float32]:
    """Make masked images from photos, as Ada-SISE makes them for the two best classes of each.

    Args:
        explainer: The model in float32.
        photos: Files, at most `MOST_PHOTOS`.
        progress: Told how many photos were done.

    Returns:
        float32 [n, C, H, W], from 128 to 255 images, or fewer where photos have few masks: the same number of each
        photo, drawn at random with a fixed seed.

    Raises:
        ImageError: A photo cannot be read, or no feature map of any photo makes a mask.
        BackendError: The runtime failed.
    """
    random = np.random.default_rng(_SEED)
    share = -(-MOST_PHOTOS // len(photos))
    images = []
    for number, photo in enumerate(photos):
        progress(number)
        with naming(photo):
            probe = explainer.probe(photo, top_classes(explainer, photo, _CLASSES))
            tapped = probe.tap()
        plans = plan_all(tapped.maps, tapped.averages)
        masks = np.unique(np.concatenate([own.masks for own in plans]), axis=0)
        drawn = [(int(layer), int(channel)) for layer, channel in masks[random.permutation(len(masks))[:share]]]
        rows = FeatureMasks(probe.image[0], None, tapped.maps, drawn)
        batch = np.empty((len(drawn), *rows.shape), np.float32)
        rows.writer()(range(len(drawn)), batch)
        images.append(batch)
    found = np.concatenate(images)
    if not len(found):
        raise ImageError(
            f"none of the {len(photos)} photos to calibrate on gives a mask; expected photos that the model answers to"
        )
    return found
