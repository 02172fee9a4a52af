import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from engine.errors import OptionError
from engine.image import prepare
from engine.metrics import BboxShare, EnergyInBoxes, Explained, PointingGame, box_mask, measure
from engine.metrics.boxes import bbox_share, energy_in_boxes, pointing_game
from engine.preprocess import Preprocess

HEATMAP = np.array([[0.0, 0.5, 0.25], [0.5, 1.0, 0.25]], np.float32)
LEFT = np.array([[True, False, False], [True, False, False]])


def settings(height: int, width: int, resize: int | str) -> Preprocess:
    return Preprocess.from_json(
        {"mean": 0, "std": 1, "scale": 1, "resize": resize, "interp": "nearest"},
        image_shape=(3, height, width),
        origin="test",
    )


def test_energy_by_hand() -> None:
    assert energy_in_boxes(HEATMAP, LEFT) == 0.5 / 2.5
    assert energy_in_boxes(HEATMAP, ~LEFT) == 2.0 / 2.5
    assert energy_in_boxes(HEATMAP, np.ones((2, 3), np.bool_)) == 1.0
    assert energy_in_boxes(np.zeros((2, 3)), LEFT) is None
    assert energy_in_boxes(np.full((2, 3), 0.3), LEFT) == pytest.approx(2 / 6, rel=1e-15)


def test_energy_equals_a_loop(random: np.random.Generator) -> None:
    heatmap, mask = random.random((13, 17)).astype(np.float32), random.random((13, 17)) < 0.3
    inside = sum(float(heatmap[i, j]) for i in range(13) for j in range(17) if mask[i, j])
    whole = sum(float(value) for value in heatmap.ravel())
    assert energy_in_boxes(heatmap, mask) == pytest.approx(inside / whole, rel=1e-12)


def test_bbox_by_hand() -> None:
    # n = 2: the 1.0 at (1, 1), then of the two 0.5 the first in reading order, at (0, 1)
    assert bbox_share(HEATMAP, LEFT) == 0.0
    assert bbox_share(HEATMAP, np.array([[False, True, False], [True, False, False]])) == 0.5
    assert bbox_share(HEATMAP, np.array([[False, True, False], [False, True, False]])) == 1.0
    assert bbox_share(HEATMAP, np.ones((2, 3), np.bool_)) == 1.0
    assert bbox_share(np.full((2, 3), 0.7), LEFT) is None


def test_pointing_by_hand() -> None:
    heatmap = np.zeros((5, 6))
    heatmap[2, 1] = 1.0
    mask = np.zeros((5, 6), np.bool_)
    mask[4, 4] = True  # 2 down and 3 to the right: √13 away
    assert pointing_game(heatmap, mask, 3.6) == 0.0
    assert pointing_game(heatmap, mask, 3.61) == 1.0
    assert pointing_game(heatmap, mask, 0) == 0.0
    mask[2, 1] = True
    assert pointing_game(heatmap, mask, 0) == 1.0
    heatmap[0, 5] = heatmap[4, 0] = heatmap[4, 4] = 1.0  # four maxima, of which two lie in the boxes
    assert pointing_game(heatmap, mask, 0) == 0.5
    assert pointing_game(np.zeros((5, 6)), mask) is None


def test_the_tolerance_is_4_percent_of_the_shorter_side() -> None:
    heatmap, mask = np.zeros((100, 200)), np.zeros((100, 200), np.bool_)
    heatmap[50, 50] = 1.0
    mask[50, 54] = True
    assert pointing_game(heatmap, mask) == 1.0
    mask[50, 54], mask[50, 55] = False, True
    assert pointing_game(heatmap, mask) == 0.0


def test_a_stretched_box_by_hand() -> None:
    # pixels of the view are 10 wide and 5 high; their centres lie at 5, 15, 25, 35 and 2.5, 7.5, 12.5
    mask = box_mask([(5, 3, 25, 12.5)], (40, 15), settings(3, 4, "stretch"))
    assert mask is not None
    assert mask.astype(int).tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_a_cropped_box_by_hand() -> None:
    # 16×8 is resized to 8×4 and cropped to columns 2…5: the view shows 4…12 of the photo, with centres 5, 7, 9, 11
    preprocess = settings(4, 4, 4)
    mask = box_mask([(0, 0, 6, 8), (9, 5.5, 16, 8)], (16, 8), preprocess)
    assert mask is not None
    assert mask.astype(int).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]]
    assert box_mask([(0, 0, 4, 8), (13, 0, 16, 8)], (16, 8), preprocess) is None  # cropped away
    assert box_mask([(7.1, 0, 8.9, 8)], (16, 8), preprocess) is None  # between two centres
    assert box_mask([], (16, 8), preprocess) is None
    whole = box_mask([(0, 0, 16, 8)], (16, 8), preprocess)
    assert whole is not None
    assert whole.all()


@pytest.mark.parametrize("resize", ["stretch", 48, 61])
@pytest.mark.parametrize(("width", "height"), [(480, 360), (333, 500), (97, 1000), (48, 32)])
def test_boxes_go_where_the_pixels_go(random: np.random.Generator, width: int, height: int, resize: int | str) -> None:
    """Paint the boxes into a photo, and prepare it: at whole-pixel borders nearest neighbours show the same mask."""
    preprocess = settings(32, 48, resize)
    photo = Image.new("RGB", (width, height))
    boxes = []
    for _ in range(3):
        x1, y1 = int(random.integers(0, width // 2)), int(random.integers(0, height // 2))
        x2, y2 = x1 + int(random.integers(8, width // 2)), y1 + int(random.integers(8, height // 2))
        ImageDraw.Draw(photo).rectangle((x1, y1, x2 - 1, y2 - 1), fill="white")
        boxes.append((x1, y1, x2, y2))
    seen = prepare(photo, preprocess, (3, 32, 48)).array[0, 0] == 255
    mask = box_mask(boxes, (width, height), preprocess)
    assert mask is not None
    assert 0.02 < mask.mean() < 0.98
    assert (seen != mask).mean() < 0.01  # Pillow's nearest neighbour rounds at the borders


def test_the_measures_are_percentages(explained: Explained) -> None:
    mask = np.zeros(explained.heatmap.shape, np.bool_)
    mask[4:15, 3:20] = True
    values = measure(replace(explained, box_mask=mask), [EnergyInBoxes(), BboxShare(), PointingGame(tolerance_px=0)])
    heatmap = explained.heatmap
    assert values["ebpg"] == pytest.approx(100 * heatmap[mask].sum(dtype=np.float64) / heatmap.sum(dtype=np.float64))
    order = sorted(range(heatmap.size), key=lambda pixel: (-heatmap.ravel()[pixel], pixel))
    assert values["bbox"] == pytest.approx(100 * np.mean([mask.ravel()[pixel] for pixel in order[: 11 * 17]]))
    peaks = heatmap == heatmap.max()
    assert values["pointing"] == pytest.approx(100 * (peaks & mask).sum() / peaks.sum())


def test_without_boxes_there_is_no_value(explained: Explained) -> None:
    values = measure(explained, [EnergyInBoxes(), BboxShare(), PointingGame()])
    assert values == {"ebpg": None, "bbox": None, "pointing": None}


def test_a_mask_of_no_pixel(explained: Explained) -> None:
    text = "box_mask holds no pixel; expected None when no box is left, as box_mask returns it"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        replace(explained, box_mask=np.zeros(explained.heatmap.shape, np.bool_))


@pytest.mark.parametrize("tolerance", [-1, np.nan, True, "15"])
def test_a_tolerance_that_is_none(tolerance: object) -> None:
    text = f"tolerance_px is {tolerance!r}; expected a number of at least 0, or None"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        PointingGame(tolerance_px=tolerance)


@pytest.mark.parametrize("mask", [np.ones((24, 31), np.bool_), np.ones((24, 32), np.uint8)])
def test_a_mask_that_does_not_fit(explained: Explained, mask: NDArray[np.bool_]) -> None:
    text = (
        f"box_mask is {mask.dtype} {list(mask.shape)}; expected bool [24, 32], the heatmap's shape: make it with "
        "engine.metrics.box_mask"
    )
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        replace(explained, box_mask=mask)
