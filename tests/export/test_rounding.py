import itertools

import numpy as np
import pytest

from engine.export.rounding import round_weights


def loss(rounded: np.ndarray, weights: np.ndarray, step: float, covariance: np.ndarray) -> float:
    error = rounded * step - weights
    return float(error @ covariance @ error)


def windows(random: np.random.Generator, fan_in: int) -> np.ndarray:
    """Windows of a smooth image: neighbours are nearly equal."""
    return 5 * random.standard_normal((500, 1)) + 0.1 * random.standard_normal((500, fan_in))


def test_against_all_integers_nearby(random: np.random.Generator) -> None:
    """Against all 3^5 integers around the nearest, for filters on neighbours that are nearly equal."""
    covariance = np.cov(windows(random, 5).T)
    damped = covariance + 1e-2 * np.trace(covariance) / 5 * np.eye(5)
    weights, step = random.standard_normal((1, 40, 5)), 0.04
    found = round_weights(weights, np.full((1, 40), step), covariance[None])[0]
    nearest = np.round(weights[0] / step)
    changes = list(itertools.product((-1, 0, 1), repeat=5))
    losses = np.empty((40, 3))
    for row, near, q, w in zip(losses, nearest, found, weights[0], strict=True):
        least = min(loss(near + change, w, step, damped) for change in changes)
        row[:] = loss(near, w, step, damped), loss(q, w, step, damped), least
    at_nearest, at_found, at_best = losses.mean(axis=0)
    assert at_found < 0.2 * at_nearest
    assert at_found < 1.5 * at_best
    assert (losses[:, 1] <= losses[:, 0]).all()


def test_each_group_and_channel_is_rounded_by_itself(random: np.random.Generator) -> None:
    covariance = np.stack([np.cov(windows(random, 4).T) for _ in range(3)])
    weights = random.standard_normal((3, 70, 4))
    step = np.abs(weights).max(axis=2) / 127
    together = round_weights(weights, step, covariance)
    for group, channel in ((0, 0), (1, 63), (2, 64), (2, 69)):
        one = (slice(group, group + 1), slice(channel, channel + 1))
        alone = round_weights(weights[one], step[one], covariance[group : group + 1])
        np.testing.assert_array_equal(together[one], alone)


def test_without_a_covariance_the_nearest_and_ties_to_even() -> None:
    weights = np.array([[[0.5, 1.5, -2.5, 1000.0, -1000.0]]])
    np.testing.assert_array_equal(round_weights(weights, np.ones((1, 1)), None), [[[0, 2, -2, 127, -127]]])


def test_independent_inputs_get_the_nearest(random: np.random.Generator) -> None:
    weights = random.standard_normal((1, 8, 6))
    step = np.abs(weights).max(axis=2) / 127
    found = round_weights(weights, step, np.eye(6)[None])
    np.testing.assert_array_equal(found, np.round(weights / step[:, :, None]))


@pytest.mark.parametrize("fan_in", [1, 4])
def test_inputs_that_never_vary(fan_in: int) -> None:
    """A dead channel: its bias is corrected by the mean, and its weights do not matter."""
    weights = np.linspace(-1.0, 1.0, fan_in)[None, None]
    found = round_weights(weights, np.full((1, 1), 0.01), np.zeros((1, fan_in, fan_in)))
    np.testing.assert_array_equal(found, np.round(weights / 0.01))
