from collections.abc import Callable

import numpy as np
import pytest

from engine.export.directional import directional_error
from engine.export.evaluate import Array64


def quadratic(point: Array64) -> list[Array64]:
    return [np.stack([(point**2).sum(axis=(1, 2, 3)), np.sin(point).sum(axis=(1, 2, 3))], axis=1)]


def companion_of_quadratic(factor: float = 1.0, total: float = 1.0) -> Callable[..., list[Array64]]:
    def run(point: Array64, weights: Array64) -> list[Array64]:
        squared, sine = weights.T[:, :, None, None, None]
        gradient = factor * (squared * 2 * point + sine * np.cos(point))
        return [gradient, total * gradient.sum(axis=(2, 3))]

    return run


POINT = np.random.default_rng(1).standard_normal((1, 2, 3, 4))


def test_directional_error_of_the_right_gradient() -> None:
    assert directional_error(quadratic, companion_of_quadratic(), POINT) <= 1e-8


@pytest.mark.parametrize("factor", [-1.0, 1.01, 2.0, 0.5, 0.0])
def test_directional_error_is_the_share_by_which_a_gradient_is_off(factor: float) -> None:
    error = directional_error(quadratic, companion_of_quadratic(factor), POINT)
    assert error == pytest.approx(abs(1 - factor) / max(1, abs(factor)), rel=1e-5)


def test_directional_error_of_a_constant_says_that_nothing_was_compared() -> None:
    def zeros(point: Array64, weights: Array64) -> list[Array64]:  # noqa: ARG001
        return [np.zeros_like(point), np.zeros(point.shape[:2])]

    assert np.isnan(directional_error(lambda point: [np.ones((len(point), 2))], zeros, POINT))
    assert directional_error(quadratic, zeros, POINT) == pytest.approx(1.0)


def test_directional_error_at_zero_still_compares() -> None:
    zeros = np.zeros_like(POINT)
    assert directional_error(quadratic, companion_of_quadratic(), zeros) <= 1e-6
    assert directional_error(quadratic, companion_of_quadratic(-1.0), zeros) == pytest.approx(2.0)


def test_directional_error_of_a_wrong_sum() -> None:
    assert directional_error(quadratic, companion_of_quadratic(total=1.001), POINT) == float("inf")


def test_directional_error_of_a_gradient_that_is_not_a_number() -> None:
    assert directional_error(quadratic, companion_of_quadratic(float("nan")), POINT) == float("inf")


def test_directional_error_away_from_ties() -> None:
    def maximum(point: Array64) -> list[Array64]:
        return [point.max(axis=(1, 2, 3), keepdims=True)[..., 0, 0]]

    def right(point: Array64, weights: Array64) -> list[Array64]:
        gradient = (point == point.max()) * weights[..., None, None]
        return [gradient, gradient.sum(axis=(2, 3))]

    assert directional_error(maximum, right, np.ones((1, 1, 4, 4))) <= 1e-6


def test_directional_error_keeps_what_is_not_negative_so() -> None:
    def root(point: Array64) -> list[Array64]:
        return [np.sqrt(point).sum(axis=(1, 2, 3))[:, None]]

    def right(point: Array64, weights: Array64) -> list[Array64]:
        gradient = weights[:, :, None, None] * 0.5 / np.sqrt(point)
        return [gradient, gradient.sum(axis=(2, 3))]

    point = np.maximum(np.random.default_rng(2).standard_normal((1, 3, 20, 20)), 0)
    assert directional_error(root, right, point) <= 1e-6


def test_directional_error_counts_the_random_directions() -> None:
    points = []

    def counted(point: Array64) -> list[Array64]:
        points.append(point)
        return quadratic(point)

    for directions in (1, 2):
        points.clear()
        directional_error(counted, companion_of_quadratic(), POINT, directions=directions)
        assert len(points) == 1 + 2 * (directions + 1)
