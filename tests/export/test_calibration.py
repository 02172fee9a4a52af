"""The images to calibrate on, against masks made slowly in float64."""

from pathlib import Path

import numpy as np
import pytest

import engine
from engine.export.calibration import masked_photos, spread
from tests.reference import method


def test_every_image_is_its_photo_under_one_of_the_selected_masks(int8_bundle: Path) -> None:
    photos = sorted((int8_bundle.parent / "photos").iterdir())
    told: list[int] = []
    with engine.load(int8_bundle) as explainer:
        rest = masked_photos(explainer, photos, told.append)
        for photo in photos:
            best = np.argsort(-explainer.classify(photo))[:2].tolist()
            probe = explainer.probe(photo, best)
            tapped = probe.tap()
            possible = []
            for maps, averages in zip(tapped.maps, tapped.averages, strict=True):
                channels = sorted({int(channel) for alpha in averages for channel in method.select(alpha)})
                live = [channel for channel in channels if not method.is_flat(maps[channel])]
                possible += [probe.image[0] * mask for mask in method.masks(maps[live], *probe.size)]
            count = min(16, len(possible))  # 16 of each of 8 photos are 128
            own, rest = rest[:count], rest[count:]
            distance = np.abs(own[:, None] - np.array(possible)).max(axis=(2, 3, 4))
            drawn = distance.argmin(axis=1).tolist()
            assert distance.min(axis=1).max() < 1e-5
            assert len(set(drawn)) == count  # none twice
            assert drawn != sorted(drawn)  # at random
            assert np.abs(own - probe.image).max(axis=(1, 2, 3)).min() > 0.1
    assert len(rest) == 0
    assert told == [*range(8)]


@pytest.mark.parametrize(("count", "most"), [(17, 16), (33, 16), (8, 8), (3, 16), (5000, 128)])
def test_photos_are_spread_evenly(count: int, most: int) -> None:
    photos = [Path(f"{number}.jpg") for number in range(count)]
    taken = [int(photo.stem) for photo in spread(photos, most)]
    assert len(taken) == len(set(taken)) == min(count, most)
    assert taken[0] == 0
    step = count / len(taken)
    assert {*np.diff([*taken, count]).tolist()} <= {int(np.floor(step)), int(np.ceil(step))}
