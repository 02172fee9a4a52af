"""The pieces of extremal perturbation: hand-computed examples, TorchRay's sizes, finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from . import extremal


def test_the_mask_has_the_authors_sizes() -> None:
    # 224 pixels in steps of 7 are 32 cells; with the margins TorchRay computes 260 pixels.
    mask, whole = extremal.smooth_mask(torch.zeros(32, 2, dtype=torch.float64), (224, 14))
    assert mask.shape == (224, 14)
    assert whole.shape == (260, 50)


def test_one_parameter_spreads_as_its_kernel() -> None:
    parameters = torch.zeros(4, 5, dtype=torch.float64)
    parameters[1, 2] = 1
    step, sigma = 7, 21.0
    mask, _ = extremal.smooth_mask(parameters, (28, 35), step, sigma)
    for row, column in ((7, 14), (7, 20), (27, 0), (0, 34)):
        kernel = math.exp(-2 * max(math.hypot(row - 7, column - 14) / sigma - 0.5, 0) ** 2)
        # 81 candidates, one of which has a value; all the others count exp(0) below.
        expected = kernel * math.exp(20 * kernel) / (math.exp(20 * kernel) + 80)
        assert float(mask[row, column]) == pytest.approx(expected, rel=1e-12)


def test_a_cell_out_of_the_window_is_not_seen() -> None:
    parameters = torch.zeros(9, 1, dtype=torch.float64)
    parameters[0, 0] = 1
    mask, _ = extremal.smooth_mask(parameters, (36, 4), 4, 4.0)
    # Radius 2 and padding 3: at pixel u of the mask with its margin, cells floor(u/4) - 3 ... floor(u/4) + 1.
    assert float(mask[11, 0]) > 0  # u = 15: cells 0 to 4
    assert float(mask[12, 0]) == 0  # u = 16: cells 1 to 5


def test_the_area_term_by_hand() -> None:
    whole = torch.tensor([[0.9, 0.2], [0.1, 0.6]], dtype=torch.float64)
    # Half of the pixels: 0.1, 0.2 should be 0 and 0.6, 0.9 should be 1.
    assert float(extremal.area_term(whole, 0.5)) == pytest.approx((0.01 + 0.04 + 0.16 + 0.01) / 4)
    # int(4 * 0.7) = 2 zeros too
    assert float(extremal.area_term(whole, 0.3)) == pytest.approx((0.01 + 0.04 + 0.16 + 0.01) / 4)


def test_blurring_keeps_what_is_constant_and_no_blur_keeps_everything(random: np.random.Generator) -> None:
    np.testing.assert_allclose(extremal.blur(np.full((2, 5, 7), 1.5), 3.0), np.full((2, 5, 7), 1.5), rtol=1e-12)
    image = random.standard_normal((2, 5, 7))
    np.testing.assert_array_equal(extremal.blur_pyramid(image)[-1].numpy(), image)
    spike = np.zeros((1, 1, 201))
    spike[0, 0, 100] = 1
    blurred = extremal.blur(spike, 4.0)[0, 0]
    assert float((blurred * (np.arange(201) - 100) ** 2).sum()) == pytest.approx(16, rel=1e-6)


def test_a_mask_takes_pixels_from_between_two_levels() -> None:
    pyramid = torch.tensor([0.0, 10.0, 40.0], dtype=torch.float64)[:, None, None, None].expand(3, 2, 1, 4)
    mask = torch.tensor([[0.0, 0.25, 0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    made = extremal.perturb(pyramid, mask)
    np.testing.assert_allclose(made.detach().numpy(), [[[0, 5, 10, 40]]] * 2)
    made[0].sum().backward()
    assert mask.grad is not None
    np.testing.assert_allclose(mask.grad.numpy(), [[20, 20, 60, 0]])


def brightness(x: Tensor) -> Tensor:
    """One logit that likes the left half of the image and dislikes the rest."""
    return (x[..., :12].mean(dim=(1, 2, 3)) - x[..., 12:].mean(dim=(1, 2, 3)))[:, None]


def test_the_gradient_of_the_objective_is_its_slope(random: np.random.Generator) -> None:
    image = random.standard_normal((3, 20, 24))
    pyramid = extremal.blur_pyramid(image)
    parameters = torch.tensor(random.uniform(0.2, 0.9, (3, 4)), requires_grad=True)
    (gradient,) = torch.autograd.grad(
        extremal.objective(parameters, pyramid, brightness, 0, 0.2, 300.0, mirrored=True), parameters
    )
    step = 1e-6
    for place in ((0, 0), (1, 2), (2, 3)):
        ends = []
        for sign in (1, -1):
            moved = parameters.detach().clone()
            moved[place] += sign * step
            ends.append(float(extremal.objective(moved, pyramid, brightness, 0, 0.2, 300.0, mirrored=True)))
        assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_steps_follow_the_momentum_by_hand(random: np.random.Generator) -> None:
    image = random.standard_normal((1, 14, 24))
    pyramid = extremal.blur_pyramid(image)
    ((parameters, _),) = extremal.extremal_perturbation(pyramid, 0, brightness, [0.3], iterations=3)
    q = torch.ones(2, 4, dtype=torch.float64)
    velocity = None
    for t in range(3):
        q.requires_grad_(True)
        value = extremal.objective(q, pyramid, brightness, 0, 0.3, 300 * 1.0035**t, mirrored=t % 2 == 0)
        (gradient,) = torch.autograd.grad(value, q)
        velocity = gradient if velocity is None else 0.9 * velocity + (1 - 0.9) * gradient
        q = (q.detach() + 0.01 * velocity).clamp(0, 1)
    np.testing.assert_allclose(parameters, q.numpy(), rtol=1e-12)
