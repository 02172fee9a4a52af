import numpy as np
import pytest
from scipy import stats

from engine.evaluation import bootstrap


def test_a_hand_computed_mean() -> None:
    found = bootstrap.bootstrap_mean([1.0, 3.0, 8.0], ["a", "a", "b"])
    assert found is not None
    assert (found.mean, found.pairs, found.photos) == (4.0, 3, 2)
    # Two photos: both a gives 2, both b gives 8, one of each 4; each end has probability 1/4.
    assert (found.low, found.high) == (2.0, 8.0)


def test_one_photo_has_no_interval_and_none_no_mean() -> None:
    found = bootstrap.bootstrap_mean([1.0, 2.0], ["a", "a"])
    assert found == bootstrap.Interval(mean=1.5, low=None, high=None, pairs=2, photos=1)
    assert bootstrap.bootstrap_mean([], []) is None


def test_the_same_values_have_the_same_interval() -> None:
    assert bootstrap.bootstrap_mean([2.5] * 9, list("aabbccdde")) == bootstrap.Interval(
        mean=2.5, low=2.5, high=2.5, pairs=9, photos=5
    )


def test_against_a_slow_replica(random: np.random.Generator) -> None:
    """The documented draws, one after the other: photos with replacement, and all pairs of each that is drawn."""
    photos = random.integers(0, 12, 40)
    values = random.normal(50, 20, 40)
    found = bootstrap.bootstrap_mean(values, photos)
    names = list(dict.fromkeys(photos.tolist()))
    means = []
    for counts in bootstrap._draws(len(names)):
        assert counts.sum() == len(names)
        drawn = [
            value for name, n in zip(names, counts, strict=True) for value in list(values[photos == name]) * int(n)
        ]
        means.append(np.mean(drawn))
    assert found is not None
    assert len(means) == 2000
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), rel=1e-12)


def test_against_scipy(random: np.random.Generator) -> None:
    """SciPy's percentile bootstrap of photos, each with its sum and its number of pairs, with draws of its own."""
    photos = np.repeat(np.arange(60), random.integers(1, 4, 60))
    values = random.normal(50, 5, len(photos)) + 20 * random.normal(size=60)[photos]
    found = bootstrap.bootstrap_mean(values, photos)
    expected = stats.bootstrap(
        (np.bincount(photos, values), np.bincount(photos)),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert found is not None
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.06 * width)
    by_pair = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1))
    assert width > 1.1 * (by_pair.confidence_interval.high - by_pair.confidence_interval.low)  # photos matter


def test_draws_are_uniform_and_always_the_same() -> None:
    draws = bootstrap._draws(7)
    bootstrap._draws.cache_clear()
    np.testing.assert_array_equal(draws, bootstrap._draws(7))
    assert draws.shape == (2000, 7)
    assert stats.chisquare(draws.sum(axis=0)).pvalue > 1e-3
    assert draws.var() == pytest.approx(7 * (1 / 7) * (6 / 7), rel=0.05)
