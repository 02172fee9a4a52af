import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

import engine
from engine.errors import OptionError
from engine.metrics import (
    Adcc,
    Deletion,
    Drop,
    Explained,
    Gain,
    Increase,
    Insertion,
    SoftDrop,
    SoftIncrease,
    measure,
)
from engine.metrics.changes import ChangedImages, Keep, Weigh, blur
from engine.metrics.perturbation import area_under, drop_percent, gain_percent, increase_percent
from tests.metrics.conftest import RIVAL, TARGET, Scores, with_heatmap


def reading_order(heatmap: NDArray[np.float32]) -> list[tuple[int, int]]:
    """All pixels, the most salient first; equal ones row by row from the top, from the left."""
    pixels = [(i, j) for i in range(heatmap.shape[0]) for j in range(heatmap.shape[1])]
    return sorted(pixels, key=lambda pixel: (-float(heatmap[pixel]), pixel))


def authors_blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """RISE's substrate of insertion, by the description of its code."""
    dirac = np.zeros((11, 11))
    dirac[5, 5] = 1
    kernel = ndimage.gaussian_filter(dirac, 5)
    return np.stack([ndimage.correlate(channel, kernel, mode="constant") for channel in image])


def test_formulas_by_hand() -> None:
    assert drop_percent(0.8, 0.6) == pytest.approx(25.0)
    assert drop_percent(0.8, 0.9) == 0.0
    assert drop_percent(0.0, 0.1) is None
    assert drop_percent(-2.0, -3.0) is None
    assert increase_percent(0.8, 0.81) == 100.0
    assert increase_percent(0.8, 0.8) == 0.0
    assert gain_percent(0.8, 0.85) == pytest.approx(25.0)
    assert gain_percent(0.8, 0.7) == 0.0
    assert gain_percent(1.0, 1.0) is None
    assert gain_percent(-0.1, 0.5) is None
    assert gain_percent(0.0, 0.5) == 50.0


def test_area_by_hand() -> None:
    assert area_under([0, 1, 2], np.array([1.0, 0.0, 0.0])) == 0.25
    assert area_under([0, 1, 4], np.array([1.0, 0.5, 0.0])) == pytest.approx((0.75 + 3 * 0.25) / 4)
    assert area_under([0, 7], np.array([0.3, 0.5])) == pytest.approx(0.4)


def test_changed_images_by_hand() -> None:
    image = np.arange(1.0, 13.0, dtype=np.float32).reshape(2, 2, 3)
    heatmap = np.array([[0.5, 0.0, 1.0], [0.5, 0.0, 0.0]], np.float32)  # order: 2, 0, 3, 1, 4, 5
    changes = [Keep(first=0, end=2), Weigh(), Keep(first=2, end=6), Keep(first=0, end=0, blurred=True)]
    rows = ChangedImages(image, heatmap, changes)
    batch = np.full((5, 2, 2, 3), np.nan, np.float32)
    assert rows.shape == (2, 2, 3)
    assert len(rows) == 4
    rows.writer()(range(4), batch)
    assert batch[0].tolist() == [[[1, 0, 3], [0, 0, 0]], [[7, 0, 9], [0, 0, 0]]]
    assert batch[1].tolist() == [[[0.5, 0, 3], [2, 0, 0]], [[3.5, 0, 9], [5, 0, 0]]]
    assert batch[2].tolist() == [[[0, 2, 0], [4, 5, 6]], [[0, 8, 0], [10, 11, 12]]]
    np.testing.assert_array_equal(batch[3], blur(image))
    assert np.isnan(batch[4]).all()
    rows.writer()(range(1, 3), batch)
    assert batch[1, 0].tolist() == [[0, 2, 0], [4, 5, 6]]


@pytest.mark.parametrize("shape", [(3, 24, 32), (1, 30, 11), (2, 4, 7)])
def test_blur_equals_the_authors_kernel(random: np.random.Generator, shape: tuple[int, int, int]) -> None:
    image = random.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(blur(image), authors_blur(image.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("target", [TARGET, RIVAL])
def test_drop_increase_and_gain_equal_the_formulas(
    explainer: engine.Explainer, heatmap: NDArray[np.float32], scores: Scores, target: int
) -> None:
    explained = with_heatmap(explainer, heatmap, target)
    image = explained.image[0].astype(np.float64)
    kept = np.zeros(heatmap.shape)
    for pixel in reading_order(heatmap)[: round(0.15 * heatmap.size)]:
        kept[pixel] = 1
    before, hard, soft = scores([image, image * kept, image * heatmap], target)
    assert len({round(value, 3) for value in (before, hard, soft)}) == 3
    assert (hard > before, soft > before) == ((True, True) if target == TARGET else (False, False))
    values = measure(explained, [Drop(), Increase(), SoftDrop(), SoftIncrease(), Gain()])
    assert explained.class_score == pytest.approx(before, rel=1e-5)
    assert values["drop"] == pytest.approx(100 * max(0, before - hard) / before, rel=1e-4)
    assert values["increase"] == 100 * (hard > before)
    assert values["soft-drop"] == pytest.approx(100 * max(0, before - soft) / before, rel=1e-4)
    assert values["soft-increase"] == 100 * (soft > before)
    assert values["gain"] == pytest.approx(100 * max(0, soft - before) / (1 - before), rel=1e-4)
    assert explained.probe.evaluations == {"forward": 3}  # the image, and two changed ones for five measures


def test_a_heatmap_of_zeros(explainer: engine.Explainer, scores: Scores) -> None:
    explained = with_heatmap(explainer, np.zeros((24, 32), np.float32), RIVAL)
    image = explained.image[0].astype(np.float64)
    top = image.copy()
    top.reshape(3, -1)[:, round(0.15 * 24 * 32) :] = 0  # the first pixels in reading order
    before, hard, zero = scores([image, top, 0 * image], RIVAL)
    assert zero == pytest.approx(0.2)  # all logits are 0
    values = measure(explained, [Drop(), SoftDrop(), SoftIncrease(), Gain()])
    expected = [100 * max(0, before - hard) / before, 0.0, 100.0, 100 * (0.2 - before) / (1 - before)]
    assert list(values.values()) == pytest.approx(expected, rel=1e-4)


def test_the_share_that_stays_can_be_chosen(explained: Explained) -> None:
    assert measure(
        explained,
        [
            Drop(share=1.0),
        ],
    ) == {"drop": pytest.approx(0.0, abs=1e-4)}


@pytest.mark.parametrize("steps", [1, 5, 28])
def test_deletion_and_insertion_equal_the_formulas(explained: Explained, scores: Scores, steps: int) -> None:
    image, order = explained.image[0].astype(np.float64), reading_order(explained.heatmap)
    deleted, inserted = image.copy(), authors_blur(image)
    curves = [[deleted.copy()], [inserted.copy()]]
    counts = [round(step * len(order) / steps) for step in range(steps + 1)]
    for first, end in pairwise(counts):
        for i, j in order[first:end]:
            deleted[:, i, j] = 0
            inserted[:, i, j] = image[:, i, j]
        curves[0].append(deleted.copy())
        curves[1].append(inserted.copy())
    expected = [np.trapezoid(scores(curve), np.array(counts) / len(order)) for curve in curves]
    values = measure(explained, [Deletion(steps=steps), Insertion(steps=steps)])
    assert values["deletion"] == pytest.approx(expected[0], rel=1e-5)
    assert values["insertion"] == pytest.approx(expected[1], rel=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_there_are_no_more_steps_than_pixels() -> None:
    assert len(Deletion(steps=1000).changes(10)) == 10
    assert Deletion(steps=4).changes(10) == [Keep(first=end, end=10) for end in (2, 5, 8, 10)]
    assert Insertion(steps=2).changes(10) == [Keep(first=0, end=end, blurred=True) for end in (0, 5)]


def test_the_last_image_of_deletion_is_scored_once(explained: Explained) -> None:
    measure(explained, [Deletion(steps=4), Insertion(steps=6)])
    assert explained.probe.evaluations == {"forward": 1 + 4 + 6}


def test_logits_have_no_gain(explainer: engine.Explainer, heatmap: NDArray[np.float32]) -> None:
    explained = with_heatmap(explainer, heatmap, target=1, activation="none")
    assert 0 < explained.class_score < 1  # a logit, although it could be a probability
    values = measure(explained, [Gain(), SoftIncrease()])
    assert values["gain"] is None
    assert values["soft-increase"] in (0.0, 100.0)


def test_a_score_of_0_has_no_drop(explained: Explained) -> None:
    explained.probe.logits[:] = [[-2000, 0, 0, 0, 0]]  # softmax gives the class exactly 0
    assert explained.class_score == 0.0
    values = measure(explained, [Drop(), Increase(), SoftDrop(), Adcc()])
    assert values == {"drop": None, "increase": 100.0, "soft-drop": None, "adcc": None}


@pytest.mark.parametrize("share", [0, 1.01, np.nan, True, "0.15"])
def test_a_share_that_is_none(share: object) -> None:
    text = f"share is {share!r}; expected a number above 0 and at most 1"
    for metric in (Drop, Increase):
        with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
            metric(share=share)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_that_are_none(steps: object) -> None:
    for metric in (Deletion, Insertion):
        with pytest.raises(OptionError, match=f"^{re.escape(f'steps is {steps!r}; expected a whole number of at')}"):
            metric(steps=steps)


def test_a_probe_that_does_not_fit(explainer: engine.Explainer, explained: Explained) -> None:
    image = explained.image
    with pytest.raises(OptionError, match=r"^probe asks about the classes \[1\]; expected \[0\], that of the expl"):
        replace(explained, probe=explainer.probe(image, 1))
    with pytest.raises(OptionError, match=r"^probe asks about the classes \[0, 1\]; expected \[0\], that of the expl"):
        replace(explained, probe=explainer.probe(image, [0, 1]))
    text = "probe has a deadline of 500 ms; expected none: a measure needs all its scores"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        replace(explained, probe=explainer.probe(image, 0, deadline_ms=500))
