"""The assertions of Agreement: each passes at its bound, fails beyond it, and says by how much."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from . import agreement, method


@pytest.fixture
def generator() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(1234)


def test_alpha_is_judged_by_relative_distance_per_layer() -> None:
    reference = [np.array([3.0, 4.0]), np.array([300.0, -400.0])]
    good = [np.array([3.0, 4.0 + 4.9e-5]), np.array([300.0, -400.0 + 4.9e-3])]
    assert agreement.assert_alpha(good, reference) == pytest.approx(9.8e-6, rel=1e-3)
    with pytest.raises(
        AssertionError, match=r"alpha of layer 1: relative L2 1\.020e-05 > 1e-05 .*channel 1: 4\.000051"
    ):
        agreement.assert_alpha([reference[0] + [0, 5.1e-5], reference[1]], reference)
    with pytest.raises(AssertionError, match="alpha: 1 != 2 layers"):
        agreement.assert_alpha(good[:1], reference)
    with pytest.raises(AssertionError, match=r"alpha of layer 1: shape \(1,\), reference \(2,\)"):
        agreement.assert_alpha([[1.0]], [[1.0, 2.0]])
    with pytest.raises(AssertionError, match="relative L2 nan"):
        agreement.assert_alpha([[np.nan]], [[1.0]])


def test_alpha_of_a_dead_layer_must_be_zero() -> None:
    assert agreement.assert_alpha([[0.0, 0.0]], [[0.0, 0.0]]) == 0
    with pytest.raises(AssertionError, match="relative L2 inf"):
        agreement.assert_alpha([[0.0, 1e-30]], [[0.0, 0.0]])


def test_scores_within_1e_4_and_nan_in_the_same_places() -> None:
    reference = np.array([[0.1, 0.5], [np.nan, np.nan]])
    assert agreement.assert_scores(reference + 0.99e-4, reference) == pytest.approx(0.99e-4)
    with pytest.raises(AssertionError, match=r"scores: largest difference 2\.000e-04 > 1e-04 at \(0, 1\) .*1 of 4"):
        agreement.assert_scores(reference + np.array([0, 2e-4]), reference)
    with pytest.raises(AssertionError, match="scores: 2 of 4 are NaN on one side only"):
        agreement.assert_scores(np.nan_to_num(reference), reference)


def test_visualization_maps_agree_or_are_both_missing() -> None:
    v = np.array([[0.0, 1.0]])
    assert agreement.assert_visualization_map(v, v + 0.99e-4) == pytest.approx(0.99e-4)
    assert agreement.assert_visualization_map(None, None) == 0
    with pytest.raises(AssertionError, match=r"visualization map: largest difference 1\.100e-04 > 1e-04 at \(0, 0\)"):
        agreement.assert_visualization_map(v, v + np.array([1.1e-4, 0]))
    with pytest.raises(AssertionError, match="visualization map: none, reference a map"):
        agreement.assert_visualization_map(None, v)


def test_threshold_must_be_a_centre_of_nearly_the_largest_variance(generator: np.random.Generator) -> None:
    v = method.min_max(generator.beta(2, 3, (50, 50)))
    t = method.otsu_threshold(v)
    assert agreement.assert_threshold(t, v) == 0
    assert 0 < agreement.assert_threshold(t + 1 / 256, v, slack=1e-2) < 1e-2
    with pytest.raises(AssertionError, match=r"threshold 0\.\d+: 1\.9e-03 from the centre of bin \d+"):
        agreement.assert_threshold(t + 0.002, v)
    with pytest.raises(AssertionError, match=r"whose variance is .* below the largest"):
        agreement.assert_threshold(t + 20 / 256, v)


def ramp() -> NDArray[np.float64]:
    """A map of 10,000 pixels, 1e-4 apart from one another."""
    return np.linspace(0, 1, 10_000).reshape(100, 100)


def test_heatmap_is_judged_by_mean_and_by_maximum_away_from_thresholds() -> None:
    reference = ramp()
    thresholds = [None, 0.50005]
    near = np.abs(reference - 0.50005) <= 1e-4
    assert near.sum() == 1
    flipped = np.where(near, 0.9, reference)
    mean, largest = agreement.assert_heatmap(flipped, reference, [reference, reference], thresholds)
    assert 0 < mean <= 1e-4
    assert largest == 0
    with pytest.raises(AssertionError, match=r"heatmap: mean difference .*, largest 3\.999e-01 .* 1 pixels beyond"):
        agreement.assert_heatmap(flipped, reference, [reference, reference], [None, None])
    with pytest.raises(AssertionError, match=r"heatmap: mean difference 1\.100e-04 \(allowed 1e-04\)"):
        agreement.assert_heatmap(reference + 1.1e-4, reference, [None, reference], thresholds)


def test_heatmap_with_too_many_pixels_near_a_threshold_proves_nothing() -> None:
    reference = ramp()
    flat = np.where(reference > 0.994, 0.5, reference)
    with pytest.raises(AssertionError, match=r"outside the 0\.\d+% of pixels near a threshold \(allowed 0\.5%\)"):
        agreement.assert_heatmap(reference, reference, [reference, flat], [None, 0.5])


def test_a_heatmap_with_nan_never_agrees() -> None:
    with pytest.raises(AssertionError, match="mean difference nan"):
        agreement.assert_heatmap([[np.nan, 0.0]], [[0.0, 0.0]], [], [])


def test_what_proves_nothing() -> None:
    scores = np.array([0.1, 0.2, np.nan, 0.3])
    alphas = [[0.0, 1e-9], [-1.0]]
    agreement.assert_proves_something([-15.0, 3.0], alphas, scores)
    agreement.assert_proves_something([150.0], alphas, scores, trained=True)
    with pytest.raises(AssertionError, match=r"max \|logit\| is 1\.500e\+02, expected 0\.1 to 20"):
        agreement.assert_proves_something([150.0], alphas, scores)
    with pytest.raises(AssertionError, match=r"max \|logit\| is 4\.000e-16, expected at least 0\.1"):
        agreement.assert_proves_something([4e-16], alphas, scores, trained=True)
    with pytest.raises(AssertionError, match=r"alpha is zero in the layers \[2\]"):
        agreement.assert_proves_something([1.0], [[1.0], [0.0]], scores)
    with pytest.raises(AssertionError, match=r"the 3 scores' standard deviation is 8\.165e-04, expected > 0\.01"):
        agreement.assert_proves_something([1.0], alphas, scores / 100)
    with pytest.raises(AssertionError, match=r"scores: received shape \(1, 4\), expected one axis"):
        agreement.assert_proves_something([1.0], alphas, scores[None])
