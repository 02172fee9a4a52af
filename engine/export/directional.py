"""Comparing gradient companions with central differences of their blocks, in float64."""

from collections.abc import Callable

import numpy as np

from engine.export.evaluate import Array64

BOUND = 1e-3
_STEPS = (1e-8, 1e-9, 1e-10, 1e-6)
_AWAY = 1e-2
_SEED = 20102


def directional_error(
    block: Callable[..., list[Array64]],
    companion: Callable[..., list[Array64]],
    point: Array64,
    *,
    by_channel: bool = True,
) -> float:
    """Compare a companion with central differences of its block.

    Random weights on the block's outputs make a scalar function. Its derivatives are compared along a random direction,
    along one that is the same at all pixels of a channel, and along the companion's own gradient, each with the best of
    four step lengths: a step that crosses kinks of ReLU or MaxPool spoils a difference, a too short one drowns in
    rounding. On ResNet-50, MobileNet-V2 and SqueezeNet a step of 1e-8 leaves at most 2e-6, one of 1e-6 up to 1e-2; on a
    ResNet-50 of half width one of 1e-8 leaves 6e-4 once, one of 1e-9 then 5e-5.

    A difference counts as a share of the derivative or, where that is small, of what the gradient's length makes of a
    random direction. The derivative along the gradient is √n times that for n elements: as a share of it, a term that
    is missing from a mean over n elements would not show.

    Args:
        block: The block as a function of its input.
        companion: The companion as a function of the block's input and of the gradient at its output.
        point: Where to compare: an input of the block [1, C, H, W]. It is moved a little, away from ties between equal
            elements; where nothing is negative, nothing becomes negative, for the sake of roots and logarithms.
        by_channel: Whether to compare along the direction that is the same at all pixels of a channel.

    Returns:
        The largest relative difference; infinite when the gradient is not finite or not of the point's shape, or its
        sum over H and W is not the companion's second output; NaN when all derivatives are zero, so that nothing was
        compared.
    """
    random = np.random.default_rng(_SEED)
    size = _size(point)
    away = random.uniform(0.5, 1.5, point.shape) if (point >= 0).all() else random.standard_normal(point.shape)
    point = point + _AWAY * size * away
    directions = [random.standard_normal(point.shape)]
    if by_channel:
        directions.append(np.broadcast_to(random.standard_normal((*point.shape[:2], 1, 1)), point.shape))
    return _error(block, companion, point, size, directions, random, along_gradient=True)


def tied_error(block: Callable[..., list[Array64]], companion: Callable[..., list[Array64]], point: Array64) -> float:
    """Compare a companion with central differences of its block where many elements of a channel are equal.

    Along a direction that is the same at all pixels of a channel equal elements stay equal, so that a maximum has a
    derivative, and the gradient must be that of one of them. The ends of every channel's values are cut off: the
    largest are equal, and the smallest.

    Args:
        block: The block as a function of its input.
        companion: The companion as a function of the block's input and of the gradient at its output.
        point: An input of the block [1, C, H, W].

    Returns:
        As `directional_error` does.
    """
    random = np.random.default_rng(_SEED)
    size = _size(point)
    mean, deviation = point.mean(axis=(2, 3), keepdims=True), point.std(axis=(2, 3), keepdims=True)
    cut = np.clip(point, mean - 0.5 * deviation, mean + 0.5 * deviation)
    point = cut + _AWAY * size * random.uniform(0.5, 1.5, mean.shape)
    direction = np.broadcast_to(random.standard_normal(mean.shape), point.shape)
    return _error(block, companion, point, size, [direction], random, along_gradient=False)


def _error(
    block: Callable[..., list[Array64]],
    companion: Callable[..., list[Array64]],
    point: Array64,
    size: float,
    directions: list[Array64],
    random: np.random.Generator,
    *,
    along_gradient: bool,
) -> float:
    """Compare derivatives at the point along directions, which are brought to the point's size."""
    (output,) = block(point)
    weights = random.standard_normal(output.shape)
    gradient, total = companion(point, weights)
    if (gradient.shape, total.shape) != (point.shape, point.shape[:2]) or not np.isfinite(gradient).all():
        return float("inf")
    if not np.allclose(total, gradient.sum(axis=(2, 3)), rtol=1e-9, atol=1e-9 * np.abs(gradient).max()):
        return float("inf")
    least = size * float(np.linalg.norm(gradient))
    errors = []
    for direction in [*directions, gradient] if along_gradient else directions:
        scaled = direction * (size / max(float(np.sqrt(np.mean(direction**2))), 1e-300))
        expected = float(np.vdot(gradient, scaled))
        errors.append(_best(block, point, scaled, weights, expected, least))
    return float("nan") if np.isnan(errors).all() else float(np.nanmax(errors))


def _best(
    block: Callable[..., list[Array64]],
    point: Array64,
    direction: Array64,
    weights: Array64,
    expected: float,
    least: float,
) -> float:
    """Return the relative difference of a derivative from the one expected, of the best step; NaN if both are zero."""
    best = float("nan")
    for step in _STEPS:
        ahead, behind = block(point + step * direction)[0], block(point - step * direction)[0]
        difference = float(np.vdot(weights, ahead - behind)) / (2 * step)
        scale = max(abs(difference), abs(expected), least)
        if scale > 0:
            best = float(np.fmin(best, abs(difference - expected) / scale))
        if best <= 0.1 * BOUND:
            break
    return best


def _size(point: Array64) -> float:
    return float(np.sqrt(np.mean(point**2))) or 1.0
