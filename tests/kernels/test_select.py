from fractions import Fraction

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from engine.kernels import RULES, otsu_split, select_channels
from tests.reference import method


def split_by_formula(values: np.ndarray) -> int:
    """i* from the formula, in exact fractions; ties go to the smallest i."""
    v = [Fraction(float(value)) for value in values]
    n = len(v)
    best, chosen = Fraction(-1), 0
    for i in range(1, n):
        apart = sum(v[i:]) / (n - i) - sum(v[:i]) / i
        tau = Fraction(i, n) * Fraction(n - i, n) * apart**2
        if tau > best:
            best, chosen = tau, i
    return chosen


def alpha_of(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("values", "lower"),
    [
        ([], 0),
        ([3.0], 0),
        ([2.0, 2.0], 0),
        ([2.0] * 9, 0),
        ([1.0, 2.0], 1),
        ([1.0, 1.0, 2.0], 2),
        ([1.0, 2.0, 2.0], 1),
        # i = 1: 3/16·(mean(2, 9, 10) − 1)² = 6.75; i = 2: 1/4·(9.5 − 1.5)² = 16; i = 3: 3/16·(10 − 4)² = 6.75
        ([1.0, 2.0, 9.0, 10.0], 2),
        # i = 1: 3/16·(22/9)² = 1.12; i = 2: 1/4·(8/3)² = 1.78; i = 3: 3/16·(14/3)² = 4.08
        ([0.0, 1.0, 1.0, 16 / 3], 3),
        # a far outlier is its own class; a far low value too
        ([1.0, 1.1, 1.2, 1.3, 50.0], 4),
        ([1.0, 48.0, 49.0, 50.0], 1),
        ([1e-45, 1e-44], 1),
        ([1e30, 3e38], 1),
    ],
)
def test_split_of_examples_by_hand(values: list[float], lower: int) -> None:
    assert otsu_split(np.array(values, np.float64)) == lower


@pytest.mark.parametrize("n", [2, 3, 4, 7, 32, 101])
def test_split_equals_the_formula(random: np.random.Generator, n: int) -> None:
    for draw in (random.exponential, random.random, random.standard_cauchy):
        values = np.sort(np.abs(draw(size=n)).astype(np.float32).astype(np.float64))
        split = otsu_split(values)
        assert split == split_by_formula(values)
        assert split == method.otsu_split(values)[0]


def test_split_agrees_with_a_fine_histogram(random: np.random.Generator) -> None:
    # skimage's Otsu has 2^16 bins here: fine enough that no two of these values share one.
    values = np.sort(np.concatenate([random.normal(1, 0.2, 60), random.normal(3, 0.4, 25)]))
    assert np.diff(values).min() > np.ptp(values) / 2**16
    threshold = threshold_otsu(values, nbins=2**16)
    lower = otsu_split(values)
    assert values[lower - 1] <= threshold + np.ptp(values) / 2**16
    assert values[lower] > threshold - np.ptp(values) / 2**16


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 1e-20, 1e20])
def test_equal_tau_gives_the_smallest_lower_class(scale: float) -> None:
    # Mirror images have equal τ on both sides: 0, a, a, 1 … in exact arithmetic, not in floats for every scale.
    for values in ([0, 1, 2], [0, 1, 1, 2], [0, 3, 4, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8]):
        mirrored = np.array(values, np.float64)
        exact = split_by_formula(mirrored)
        assert otsu_split(mirrored * scale) == exact
    assert otsu_split(np.array([0.0, 1.0, 2.0]) * scale) == 1


def test_tau_within_1e_12_counts_as_equal() -> None:
    # τ(1) = (1.5 − v_1)²·2/9 and τ(2) = (v_3 − 0.5)²·2/9: raising the last value a little makes τ(2) the larger.
    def tau_ratio(last: float) -> float:
        return float((last - 0.5) ** 2 / ((1 + last) / 2) ** 2)

    within, beyond = 2.0 + 3e-13, 2.0 + 3e-11
    assert 1 < tau_ratio(within) < 1 + 1e-12
    assert tau_ratio(beyond) > 1 + 1e-11
    assert otsu_split(np.array([0.0, 1.0, within])) == 1
    assert otsu_split(np.array([0.0, 1.0, beyond])) == 2


def test_split_does_not_change_its_input(random: np.random.Generator) -> None:
    values = np.sort(random.random(20))
    before = values.copy()
    otsu_split(values)
    np.testing.assert_array_equal(values, before)


#                     0    1     2    3    4     5    6
ALPHA = alpha_of(0.5, -9.0, 8.0, 0.25, 0.0, 10.0, 1.0)
# positives ascending: 0.25, 0.5, 1, 8, 10: the split leaves {0.25, 0.5, 1} below


@pytest.mark.parametrize(
    ("rule", "mu", "channels", "threshold"),
    [
        ("otsu", 0.0, [5, 2], 8.0),
        ("otsu-count", 0.0, [5, 2, 6], 1.0),
        ("positive", 0.0, [5, 2, 6, 0, 3], 0.25),
        ("positive", 0.05, [5, 2, 6], 1.0),
        ("positive", 0.1, [5, 2], 8.0),  # α = mu·max α is not above it
        ("positive", 0.8, [5], 10.0),
        ("positive", 0.99, [5], 10.0),
        ("all", 0.0, [5, 2, 6, 0, 3, 4, 1], -9.0),
    ],
)
def test_each_rule_by_hand(rule: str, mu: float, channels: list[int], threshold: float) -> None:
    selection = select_channels(ALPHA, rule, mu)
    assert selection.channels.tolist() == channels
    assert selection.channels.dtype == np.int64
    assert selection.positive == 5
    assert selection.threshold == threshold
    assert isinstance(selection.threshold, float)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 5, 64, 257])
def test_rules_equal_the_reference(random: np.random.Generator, rule: str, count: int) -> None:
    for skew in (0.0, 0.5, -3.0):
        alpha = (random.normal(skew, 1, count) ** 3).astype(np.float32)
        for mu in (0.0, 0.25) if rule == "positive" else (0.0,):
            selection = select_channels(alpha, rule, mu)
            assert sorted(selection.channels) == method.select(alpha, rule, mu).tolist()
            assert selection.positive == sum(1 for value in alpha if value > 0)
            strengths = alpha[selection.channels]
            assert (np.diff(strengths) <= 0).all()
            assert selection.threshold == (float(strengths.min()) if len(strengths) else None)


@pytest.mark.parametrize("rule", ["otsu", "otsu-count", "positive"])
@pytest.mark.parametrize("alpha", [alpha_of(), alpha_of(0.0), alpha_of(-0.0, 0.0), alpha_of(-1.0, -2.0, -0.5)])
def test_no_positive_gradient_selects_nothing(rule: str, alpha: np.ndarray) -> None:
    selection = select_channels(alpha, rule)
    assert selection.channels.shape == (0,)
    assert selection.channels.dtype == np.int64
    assert selection.positive == 0
    assert selection.threshold is None


def test_all_keeps_maps_without_a_positive_gradient() -> None:
    selection = select_channels(alpha_of(-2.0, -1.0, 0.0), "all")
    assert selection.channels.tolist() == [2, 1, 0]
    assert selection.positive == 0
    assert selection.threshold == -2.0


@pytest.mark.parametrize("rule", ["otsu", "otsu-count"])
@pytest.mark.parametrize(
    ("alpha", "channels"),
    [(alpha_of(-1, 4, -1), [1]), (alpha_of(2, 2, -1, 2), [0, 1, 3])],
    ids=["one positive", "all positives equal"],
)
def test_what_cannot_be_split_is_kept_whole(rule: str, alpha: np.ndarray, channels: list[int]) -> None:
    selection = select_channels(alpha, rule)
    assert selection.channels.tolist() == channels
    assert selection.positive == len(channels)


def test_ties_at_the_cut_keep_the_lower_channel() -> None:
    # Positives 1, 1, 1, 6: the lower class is the three 1s, so `otsu-count` keeps three of four: 6 and two of the 1s.
    selection = select_channels(alpha_of(1, 1, 6, 1), "otsu-count")
    assert selection.channels.tolist() == [2, 0, 1]
    assert select_channels(alpha_of(1, 1, 1, 6), "otsu-count").channels.tolist() == [3, 0, 1]
    assert select_channels(alpha_of(1, 1, 1, 6), "otsu").channels.tolist() == [3]
    assert select_channels(alpha_of(6, 1, 6, 1, 6), "otsu").channels.tolist() == [0, 2, 4]
    assert select_channels(alpha_of(6, 1, 6, 1, 6), "otsu-count").channels.tolist() == [0, 2]


@pytest.mark.parametrize("rule", RULES)
def test_permuted_channels_keep_the_same_values(random: np.random.Generator, rule: str) -> None:
    alpha = random.integers(-2, 6, 40).astype(np.float32)
    kept = alpha[select_channels(alpha, rule).channels]
    for _ in range(10):
        order = random.permutation(len(alpha))
        selection = select_channels(alpha[order], rule)
        np.testing.assert_array_equal(alpha[order][selection.channels], kept)
        for value in np.unique(kept):
            channels = selection.channels[alpha[order][selection.channels] == value]
            candidates = np.flatnonzero(alpha[order] == value)
            np.testing.assert_array_equal(channels, candidates[: len(channels)])


def test_mu_compares_exact_float32_values() -> None:
    # 0.1f is a little above 0.1, so 0.1·1 is below it in float64 though equal in float32.
    assert select_channels(alpha_of(1.0, 0.1), "positive", 0.1).channels.tolist() == [0, 1]
    below = np.nextafter(np.float32(0.1), np.float32(0))
    assert select_channels(np.array([1.0, below], np.float32), "positive", 0.1).channels.tolist() == [0]
