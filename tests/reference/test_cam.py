"""The replicas of class activation maps: hand-computed examples, and where methods must agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from . import attribution, cam
from .method import Float
from .test_method import small_network

A = np.array([[[1.0, 3.0], [0.0, 4.0]], [[2.0, 0.0], [0.0, 0.0]]])
G = np.array([[[0.5, -1.0], [0.0, 2.5]], [[-1.0, 0.0], [0.0, 0.0]]])


def pooling_head(maps: Tensor) -> Tensor:
    """Two logits: mean of map 0 minus three times that of map 1, and the mean of map 1."""
    means = maps.mean(dim=(2, 3))
    return torch.stack([means[:, 0] - 3 * means[:, 1], means[:, 1]], dim=1)


@pytest.fixture
def seen() -> tuple[Float, Float, Float]:
    """A network's image [3, 8, 10], last maps and gradients for class 2."""
    image = np.random.default_rng(3).standard_normal((1, 3, 8, 10))
    a, g = cam.maps_and_gradients(small_network(), image, 2, "f2")
    return image[0], a, g


def test_grad_cam_by_hand() -> None:
    # means 0.5 and -0.25
    np.testing.assert_allclose(cam.grad_cam(A, G), [[0, 1.5], [0, 2]])


def test_grad_cam_plus_plus_by_hand() -> None:
    # Map 0 sums to 8. g = 0.5: 0.25/(0.5 + 1) * 0.5 = 1/12; g = 2.5: 6.25/(12.5 + 125) * 2.5 = 5/44;
    # negative and zero gradients add nothing, so map 1 has no weight.
    weight = 1 / 12 + 5 / 44
    np.testing.assert_allclose(cam.grad_cam_plus_plus(A, G), weight * A[0])


def test_grad_cam_plus_plus_where_the_denominator_is_zero() -> None:
    # The map sums to -2 and g is 1: 2 - 2 = 0; the other cell, g = 0.5: 0.25/(0.5 - 0.25) * 0.5 = 0.5.
    a, g = np.array([[[1.0, -3.0]]]), np.array([[[1.0, 0.5]]])
    np.testing.assert_allclose(cam.grad_cam_plus_plus(a, g), [[0.5, 0]])


def test_xgrad_cam_by_hand() -> None:
    # Map 0: (0.5 - 3 + 10)/8; map 1: -2/2.
    weight = 7.5 / 8
    np.testing.assert_allclose(cam.xgrad_cam(A, G), [[max(weight - 2, 0), 3 * weight], [0, 4 * weight]])


def test_xgrad_cam_of_a_map_that_sums_to_zero() -> None:
    np.testing.assert_array_equal(cam.xgrad_cam(np.array([[[1.0, -1.0]]]), np.ones((1, 1, 2))), [[0, 0]])


def test_layer_cam_by_hand() -> None:
    np.testing.assert_allclose(cam.layer_cam(A, G), [[0.5, 0], [0, 10]])


def test_grad_cam_and_xgrad_cam_agree_behind_average_pooling(seen: tuple[Float, Float, Float]) -> None:
    _, a, g = seen
    assert np.ptp(g, axis=(1, 2)).max() < 1e-15
    np.testing.assert_allclose(cam.xgrad_cam(a, g), cam.grad_cam(a, g), rtol=1e-12)
    assert cam.grad_cam(a, g).max() > 0.01


def test_ablation_cam_behind_a_linear_head_is_grad_cam_with_each_weight_times_the_maps_sum() -> None:
    # Without map 0 the logit falls by its mean, 2; without map 1 it rises by 3 * 0.5.
    np.testing.assert_allclose(cam.ablation_cam(A, 0, pooling_head), np.maximum(2 * A[0] - 1.5 * A[1], 0))


def test_recipro_cam_of_one_cell_by_hand() -> None:
    made = cam.recipro_cam(A, 0, pooling_head, "none", gaussian=False)
    np.testing.assert_allclose(made, (A[0] - 3 * A[1]) / 4)


def test_recipro_cam_cuts_the_gaussian_at_the_border() -> None:
    # Cell 0, 0 of map 0 sees 1/4 of 1, 1/8 of 3, 1/8 of 0 and 1/16 of 4; of map 1, 1/4 of 2.
    made = cam.recipro_cam(A, 0, pooling_head, "none")
    assert made[0, 0] == pytest.approx((0.25 + 0.375 + 0.25 - 3 * 0.5) / 4)
    assert cam.GAUSSIAN.sum() == 1


def test_score_cam_by_hand() -> None:
    # The image is as large as the maps; its masks are A0/4 and A1/2; the logit is twice the sum of the masked image.
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    scores = np.array([2 * (0.25 + 1.5 + 4), 2.0])
    weights = np.exp(scores) / np.exp(scores).sum()

    def logits(batch: Tensor) -> Tensor:
        return 2 * batch.sum(dim=(2, 3))

    flat = np.concatenate([A, np.full((1, 2, 2), 9.0)])
    for maps in (A, flat):
        made = cam.score_cam(x, maps, 0, logits)
        np.testing.assert_allclose(made, weights[0] * A[0] + weights[1] * A[1], rtol=1e-12)
    made = cam.score_cam(x, flat, 0, logits, "score", "none")
    np.testing.assert_allclose(made, scores[0] * A[0] + scores[1] * A[1], rtol=1e-12)
    made = cam.score_cam(x, flat, 0, logits, "score", "sigmoid")
    np.testing.assert_allclose(made, (A[0] / (1 + np.exp(-11.5)) + A[1] / (1 + np.exp(-2))), rtol=1e-12)


def test_score_cam_of_flat_maps_is_zero() -> None:
    made = cam.score_cam(np.ones((1, 2, 2)), np.ones((3, 2, 2)), 0, lambda x: x.sum(dim=(2, 3)))
    np.testing.assert_array_equal(made, np.zeros((2, 2)))


def test_group_cam_by_hand() -> None:
    # Group 1 is map 0 with mean gradient 0.5: 0.5, 1.5, 0, 2; its median is 1, so 1.5 and 2 stay: mask 0, 3/4, 0, 1.
    # Group 2 is map 1 with a negative weight: nothing stays. Logit = sum; x = 1 and b = 3 everywhere.
    x, b = np.ones((1, 2, 2)), np.full((1, 2, 2), 3.0)
    made = cam.group_cam(x, b, A, G, 0, lambda batch: -batch.sum(dim=(2, 3)), "none", groups=2, percentile=50)
    mask = np.array([[0, 0.75], [0, 1]])
    np.testing.assert_allclose(made, 2 * 1.75 * mask)


def test_group_cam_keeps_only_what_raises_the_score(seen: tuple[Float, Float, Float]) -> None:
    image, a, g = seen
    logits = attribution.logits_of(small_network())
    made = cam.group_cam(image, np.zeros_like(image), a, g, 2, logits, "softmax", groups=4)
    assert made.shape == (8, 10)
    assert made.min() >= 0


def test_rise_mask_by_hand() -> None:
    # Cells of ceil(3/2) = 2 pixels: the grid becomes 6 wide. Half-pixel centres: -1/3, 0, 1/3, 2/3, 1, 4/3, clamped.
    made = cam.rise_mask([[0, 1], [0, 1]], (1, 1), (3, 3))
    np.testing.assert_allclose(made, [[0, 1 / 3, 2 / 3]] * 3, atol=1e-15)
    np.testing.assert_allclose(cam.rise_mask([[0, 1], [0, 1]], (0, 0), (3, 3)), [[0, 0, 1 / 3]] * 3, atol=1e-15)


def test_rise_by_hand() -> None:
    image = np.array([[[1.0, 2.0]]])
    masks = np.array([[[1.0, 0.0]], [[0.5, 1.0]]])
    made = cam.rise(image, masks, 0, lambda x: x.sum(dim=(2, 3)), "none", 0.5)
    np.testing.assert_allclose(made, [[1 * 1 + 2.5 * 0.5, 2.5]])
