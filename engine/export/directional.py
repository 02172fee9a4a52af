"""Comparing gradient companions with central differences of their blocks, in float64."""

from collections.abc import Callable

import numpy as np

from engine.export.evaluate import Array64

BOUND = 1e-3
_STEPS = (1e-7, 1e-6, 1e-8, 1e-5, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13)
_SEED = 20102


def directional_error(
    block: Callable[..., list[Array64]],
    companion: Callable[..., list[Array64]],
    point: Array64,
    *,
    directions: int = 2,
) -> float:
    """Compare a companion with central differences of its block.

    Random weights on the block's outputs make a scalar function; its derivatives along random directions and along the
    companion's own gradient are compared in L2, with the best of several step lengths (a step that crosses kinks of
    ReLU or MaxPool, or that is long beside the curvature, spoils a difference; a too short one drowns in rounding).

    Args:
        block: The block as a function of its input.
        companion: The companion as a function of the block's input and of the gradient at its output.
        point: Where to compare: an input of the block [1, C, H, W]. It is moved a little, away from ties between equal
            elements; where nothing is negative, nothing becomes negative, for the sake of roots and logarithms.
        directions: Number of random directions.

    Returns:
        The relative difference; infinite when the gradient is not finite, or its sum over H and W is not the
        companion's second output; NaN when all derivatives are zero, so that nothing was compared.
    """
    random = np.random.default_rng(_SEED)
    size = float(np.sqrt(np.mean(point**2))) or 1.0
    positive = bool((point >= 0).all())
    away = random.uniform(0.5, 1.5, point.shape) if positive else random.standard_normal(point.shape)
    point = point + 1e-2 * size * away
    (output,) = block(point)
    weights = random.standard_normal(output.shape)
    gradient, total = companion(point, weights)
    if not np.isfinite(gradient).all() or not np.allclose(
        total, gradient.sum(axis=(2, 3)), rtol=1e-9, atol=1e-9 * np.abs(gradient).max()
    ):
        return float("inf")
    chosen = [random.standard_normal(point.shape) for _ in range(directions)]
    chosen.append(gradient)
    chosen = [direction * (size / max(np.sqrt(np.mean(direction**2)), 1e-300)) for direction in chosen]
    expected = np.array([float(np.vdot(gradient, direction)) for direction in chosen])
    best = float("nan")
    for step in _STEPS:
        differences = np.array(
            [
                float(np.vdot(weights, block(point + step * direction)[0] - block(point - step * direction)[0]))
                / (2 * step)
                for direction in chosen
            ]
        )
        scale = max(float(np.linalg.norm(differences)), float(np.linalg.norm(expected)))
        if scale > 0:
            best = float(np.fmin(best, np.linalg.norm(differences - expected) / scale))
        if best <= 0.1 * BOUND:
            break
    return best
