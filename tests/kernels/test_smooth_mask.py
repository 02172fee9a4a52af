"""The smooth mask of extremal perturbation against its formula in float64, and its gradient against autograd."""

import numpy as np
import pytest
import torch

from engine.kernels import SmoothMask
from tests.reference import extremal

SIZES = [(24, 32), (7, 1), (50, 33), (8, 71)]


def both(size: tuple[int, int], parameters: np.ndarray, gradient: np.ndarray | None = None):
    """The mask and the gradient at its parameters, of the engine and of the formula."""
    smooth = SmoothMask(size)
    given = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
    inner, whole = extremal.smooth_mask(given, size)
    made = smooth.make(parameters.astype(np.float32))
    np.testing.assert_allclose(made[smooth.inside], inner.detach().numpy(), atol=1e-6)
    upstream = np.ones(made.shape) if gradient is None else gradient
    (expected,) = torch.autograd.grad(whole, given, torch.tensor(upstream))
    return made, whole.detach().numpy(), smooth.differentiate(upstream.astype(np.float32)), expected.numpy()


@pytest.mark.parametrize("size", SIZES)
def test_the_mask_and_its_gradient_equal_the_formula(size: tuple[int, int], random: np.random.Generator) -> None:
    smooth = SmoothMask(size)
    assert smooth.grid == (-(-size[0] // 7), -(-size[1] // 7))
    parameters = random.random(smooth.grid)
    gradient = random.normal(size=smooth.make(np.zeros(smooth.grid, np.float32)).shape)
    made, mask, differentiated, expected = both(size, parameters, gradient)
    np.testing.assert_allclose(made, mask, atol=1e-6)
    assert np.linalg.norm(differentiated - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_parameters_at_their_bounds(value: float) -> None:
    made, mask, differentiated, expected = both((20, 40), np.full((3, 6), value))
    np.testing.assert_allclose(made, mask, atol=1e-6)
    assert 0 <= made.min() <= made.max() <= 1
    np.testing.assert_allclose(differentiated, expected, rtol=1e-5)


def test_the_mask_has_the_authors_sizes() -> None:
    smooth = SmoothMask((224, 224))
    assert smooth.grid == (32, 32)
    assert smooth.make(np.zeros((32, 32), np.float32)).shape == (260, 260)


def test_one_mask_leaves_nothing_behind_for_the_next(random: np.random.Generator) -> None:
    smooth, fresh = SmoothMask((24, 32)), SmoothMask((24, 32))
    parameters = random.random(smooth.grid).astype(np.float32)
    first = smooth.make(np.ones_like(parameters))
    smooth.differentiate(first)
    again = smooth.make(parameters)
    np.testing.assert_array_equal(again, fresh.make(parameters))
    np.testing.assert_array_equal(smooth.differentiate(first), fresh.differentiate(first))
