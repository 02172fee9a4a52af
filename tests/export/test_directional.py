from collections.abc import Callable

import numpy as np
import pytest

from engine.export.directional import directional_error, tied_error
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
    assert directional_error(quadratic, companion_of_quadratic(), POINT) <= 1e-7


@pytest.mark.parametrize("factor", [-1.0, 1.01, 2.0, 0.5, 0.0])
def test_directional_error_is_the_share_by_which_a_gradient_is_off(factor: float) -> None:
    error = directional_error(quadratic, companion_of_quadratic(factor), POINT)
    assert error == pytest.approx(abs(1 - factor) / max(1, abs(factor)), rel=1e-2)


def test_directional_error_of_a_constant_says_that_nothing_was_compared() -> None:
    def zeros(point: Array64, weights: Array64) -> list[Array64]:  # noqa: ARG001
        return [np.zeros_like(point), np.zeros(point.shape[:2])]

    assert np.isnan(directional_error(lambda point: [np.ones((len(point), 2))], zeros, POINT))
    assert directional_error(quadratic, zeros, POINT) == pytest.approx(1.0)


def test_directional_error_at_zero_still_compares() -> None:
    zeros = np.zeros_like(POINT)
    assert directional_error(quadratic, companion_of_quadratic(), zeros) <= 1e-6
    assert directional_error(quadratic, companion_of_quadratic(-1.0), zeros) == pytest.approx(2.0, rel=1e-3)


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


@pytest.mark.parametrize(("by_channel", "count"), [(True, 3), (False, 2)])
def test_directional_error_runs_the_block_twice_for_each_direction(by_channel: bool, count: int) -> None:
    points = []

    def counted(point: Array64) -> list[Array64]:
        points.append(point)
        return quadratic(point)

    directional_error(counted, companion_of_quadratic(), POINT, by_channel=by_channel)
    assert len(points) == 1 + 2 * count


LARGE = np.random.default_rng(3).standard_normal((1, 4, 112, 112))


def linear(network: Callable[[Array64], Array64]) -> Callable[..., list[Array64]]:
    """The companion of a linear block that equals its own transpose."""

    def run(point: Array64, weights: Array64) -> list[Array64]:  # noqa: ARG001
        gradient = network(weights)
        return [gradient, gradient.sum(axis=(2, 3))]

    return run


def centred(x: Array64) -> Array64:
    return x - x.mean(axis=(2, 3), keepdims=True)


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: centred(x) + 0.1 * x.mean(axis=(2, 3), keepdims=True)])
def test_directional_error_finds_a_term_that_is_missing_from_a_large_mean(wrong) -> None:
    """It is 1/√n of the gradient's length, and nearly orthogonal to it; for the average gradient it is everything."""
    assert directional_error(lambda x: [centred(x)], linear(centred), LARGE) <= 1e-6
    assert directional_error(lambda x: [centred(x)], linear(wrong), LARGE) >= 0.05


def test_directional_error_finds_a_mistake_at_the_border_of_a_large_image() -> None:
    """One column in 112 is one per cent too large: a thousandth of the gradient's length."""

    def wrong(x: Array64) -> Array64:
        y = x.copy()
        y[..., 0] *= 1.1
        return y

    assert directional_error(lambda x: [x], linear(wrong), LARGE) >= 2e-3


def test_directional_error_of_rounding_is_none() -> None:
    """The sum over pixels of a centred gradient is 0: its rounding must not be compared with itself."""
    assert directional_error(lambda x: [1e3 * centred(x)], linear(lambda x: 1e3 * centred(x)), LARGE) <= 1e-5


@pytest.mark.parametrize("sizes", [(1, 2, 3, 3), (1, 2, 1, 1), (2, 2, 3, 4), (1, 24)])
def test_directional_error_of_a_gradient_of_another_shape(sizes: tuple[int, ...]) -> None:
    def wrong(point: Array64, weights: Array64) -> list[Array64]:  # noqa: ARG001
        return [np.ones(sizes), np.ones(sizes[:2])]

    assert directional_error(quadratic, wrong, POINT) == float("inf")


def largest(point: Array64) -> list[Array64]:
    return [point.max(axis=(2, 3))]


def at_ties(share: Callable[[Array64], Array64]) -> Callable[..., list[Array64]]:
    """The companion of `largest` that gives the elements that attain the maximum shares of the gradient."""

    def run(point: Array64, weights: Array64) -> list[Array64]:
        ties = (point == point.max(axis=(2, 3), keepdims=True)).reshape(*point.shape[:2], -1)
        gradient = (share(ties) * weights[..., None]).reshape(point.shape)
        return [gradient, gradient.sum(axis=(2, 3))]

    return run


def first(ties: Array64) -> Array64:
    return ties & (np.cumsum(ties, axis=-1) == 1)


@pytest.mark.parametrize("share", [first, lambda ties: ties / ties.sum(axis=-1, keepdims=True)], ids=["first", "even"])
def test_tied_error_accepts_any_one_gradient_of_equal_elements(share) -> None:
    for point in (POINT, np.maximum(POINT, 0), np.ones((1, 2, 3, 4)), np.zeros((1, 2, 3, 4))):
        assert tied_error(largest, at_ties(share), point) <= 1e-6


def test_tied_error_finds_a_gradient_that_is_given_more_than_once() -> None:
    assert directional_error(largest, at_ties(lambda ties: ties), POINT) <= 1e-6
    assert tied_error(largest, at_ties(lambda ties: ties), POINT) >= 0.5
