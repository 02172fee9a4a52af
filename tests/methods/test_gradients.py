"""The methods at the input against their formulas in float64, with autograd."""

import re
import threading

import numpy as np
import pytest

import engine
from engine.image import make_baseline
from engine.methods.gradients import completeness, spread_order
from engine.pace import Pace
from engine.preprocess import Preprocess
from tests.methods.conftest import Tiny
from tests.reference import attribution

TARGETS = [1, 3]
ALL = ["gradient", "smooth-grad", "integrated-gradients"]
ZEROS = "the heatmap is all zeros: the method's map is constant, or nowhere positive"


def assert_found(result: engine.Explanation, expected: np.ndarray, expected_map: np.ndarray) -> None:
    """The attribution within 1e-5 of its norm, the heatmap within 1e-4."""
    assert result.attribution is not None
    assert result.attribution.dtype == np.float32
    assert np.linalg.norm(result.attribution - expected) <= 1e-5 * np.linalg.norm(expected)
    np.testing.assert_allclose(result.heatmap, attribution.heatmap(expected_map), atol=1e-4)


def test_gradient(tiny: Tiny) -> None:
    for target, result in zip(TARGETS, tiny.explainer.explain(tiny.x, TARGETS, method="gradient"), strict=True):
        expected = attribution.input_gradient(tiny.logits, tiny.x[0], target)
        assert_found(result, expected, attribution.gradient_map(expected))
        assert result.evaluations == {"forward": 1, "gradient": 2}
        assert (result.scored, result.scorable, result.complete, result.warnings) == (0, 0, True, ())


def noise(samples: int, share: float, seed: int, image: np.ndarray) -> np.ndarray:
    """Sample i from a generator of its own, [n, C, H, W]."""
    drawn = [np.random.default_rng([seed, i]).standard_normal(image.shape, np.float32) for i in range(samples)]
    return np.stack(drawn) * share * (image.max() - image.min())


@pytest.mark.parametrize(("samples", "share", "seed", "batch_size"), [(7, 0.15, 0, 8), (3, 1.0, 9, 1), (1, 0.0, 0, 3)])
def test_smooth_grad(tiny: Tiny, samples: int, share: float, seed: int, batch_size: int) -> None:
    options = {"samples": samples, "noise": share, "seed": seed, "batch_size": batch_size}
    results = tiny.explainer.explain(tiny.x, TARGETS, method="smooth-grad", **options)
    added = noise(samples, share, seed, tiny.x[0])
    for target, result in zip(TARGETS, results, strict=True):
        expected = attribution.smooth_grad(tiny.logits, tiny.x[0], target, added)
        assert_found(result, expected, attribution.gradient_map(expected))
        assert result.evaluations == {"forward": 1, "gradient": 2 * samples}
        assert result.scored == result.scorable == samples


@pytest.mark.parametrize("baseline", ["zero", "blur", (0, 0, 0)], ids=str)
@pytest.mark.parametrize("steps", [1, 10])
def test_integrated_gradients(tiny: Tiny, baseline: str | tuple[int, ...], steps: int) -> None:
    results = tiny.explainer.explain(
        tiny.x, TARGETS, method="integrated-gradients", steps=steps, baseline=baseline, batch_size=3
    )
    preprocess = tiny.explainer.bundle.preprocess
    assert isinstance(preprocess, Preprocess)
    start = make_baseline(baseline, tiny.x, preprocess)
    start = np.zeros_like(tiny.x[0]) if start is None else start
    for target, result in zip(TARGETS, results, strict=True):
        expected, gap = attribution.integrated_gradients(tiny.logits, tiny.x[0], target, steps, start)
        assert_found(result, expected, attribution.integrated_gradients_map(expected))
        assert result.figures["completeness_gap"] == pytest.approx(gap, abs=2e-5)
        rise = expected.sum() - gap
        assert result.figures["completeness_error"] == pytest.approx(abs(gap / rise), abs=2e-5 / abs(rise))
        assert result.evaluations == {"forward": 2, "gradient": 2 * steps}


def test_many_steps_are_complete(tiny: Tiny) -> None:
    result = tiny.explainer.explain(tiny.x, 1, method="integrated-gradients", steps=300, baseline="blur")
    assert result.figures["completeness_error"] < 0.01


def test_completeness() -> None:
    assert completeness(3.0, 4.0) == {"completeness_error": 0.25, "completeness_gap": -1.0}
    assert completeness(-3.0, -2.0) == {"completeness_error": 0.5, "completeness_gap": -1.0}
    assert completeness(0.0, 0.0) == {"completeness_error": 0.0, "completeness_gap": 0.0}
    assert np.isfinite(completeness(1.0, 0.0)["completeness_error"])


def test_every_beginning_of_the_order_is_spread() -> None:
    assert spread_order(1) == [0]
    assert spread_order(8) == [4, 2, 6, 1, 5, 3, 7, 0]
    for count in (2, 3, 7, 50, 100):
        order = spread_order(count)
        assert sorted(order) == list(range(count))
        for taken in range(1, count):
            places = np.array([0, *sorted((place + 0.5) / count for place in order[:taken]), 1])
            assert np.diff(places).max() <= 2 / (taken + 1) + 1 / count  # twice an even share, to a step


def test_a_budget_makes_fewer_steps(tiny: Tiny) -> None:
    few = tiny.explainer.explain(tiny.x, 1, method="integrated-gradients", steps=9)
    cut = tiny.explainer.explain(tiny.x, 1, method="integrated-gradients", steps=30, max_masks=9)
    assert few.attribution is not None
    np.testing.assert_array_equal(few.attribution, cut.attribution)
    assert (few.complete, cut.complete, cut.scored, cut.scorable) == (True, False, 9, 30)
    assert cut.warnings == ("9 of 30 steps were used; the heatmap is an approximation",)


def test_fewer_samples_are_the_first_of_more(tiny: Tiny) -> None:
    few = tiny.explainer.explain(tiny.x, 1, method="smooth-grad", samples=9)
    cut = tiny.explainer.explain(tiny.x, 1, method="smooth-grad", samples=30, max_masks=9)
    assert few.attribution is not None
    np.testing.assert_array_equal(few.attribution, cut.attribution)
    assert (few.complete, cut.complete, cut.scored, cut.scorable) == (True, False, 9, 30)


def test_a_deadline_leaves_the_step_in_the_middle(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "room", lambda _, started, planned: min(1, planned) - started)
    first, second = tiny.explainer.explain(tiny.x, TARGETS, method="integrated-gradients", steps=5)
    middle = attribution.input_gradient(tiny.logits, tiny.x[0] / 2, TARGETS[0])
    assert first.attribution is not None
    np.testing.assert_allclose(first.attribution, tiny.x[0] * middle, atol=1e-5 * np.abs(middle).max())
    assert (first.scored, second.scored, second.scorable) == (1, 0, 5)
    assert second.warnings == ("0 of 5 steps were used; the heatmap is an approximation", ZEROS)
    assert second.figures["completeness_error"] == 1.0


@pytest.mark.parametrize("method", ALL)
def test_classes_together_and_threads_change_nothing(tiny: Tiny, method: str) -> None:
    together = tiny.explainer.explain(tiny.x, [4, 0, 2], method=method)
    single = engine.load(tiny.explainer.bundle.path, threads=1)
    for result in together:
        alone = tiny.explainer.explain(tiny.x, result.target, method=method)
        np.testing.assert_allclose(result.heatmap, alone.heatmap, atol=1e-5)
        np.testing.assert_allclose(result.attribution, alone.attribution, atol=1e-6)
        for again in (tiny.explainer, single):
            same = again.explain(tiny.x, result.target, method=method)
            assert same.attribution is not None
            np.testing.assert_array_equal(same.attribution, alone.attribution)
            np.testing.assert_array_equal(same.heatmap, alone.heatmap)


def test_seeds(tiny: Tiny) -> None:
    one, other = (tiny.explainer.explain(tiny.x, 1, method="smooth-grad", seed=seed, samples=3) for seed in (1, 2))
    assert np.abs(one.heatmap - other.heatmap).max() > 0.01


@pytest.mark.parametrize("method", ALL)
def test_no_gradient_anywhere(tiny: Tiny, method: str) -> None:
    result = tiny.explainer.explain(np.zeros_like(tiny.x), 1, method=method)  # a network without biases is dead there
    assert not result.heatmap.any()
    assert result.attribution is not None
    assert not result.attribution.any()
    assert result.warnings == (ZEROS,)
    assert set(result.figures.values()) <= {0.0}


def test_a_constant_image_has_no_noise(tiny: Tiny) -> None:
    x = np.full_like(tiny.x, 0.7)
    smooth, plain = (tiny.explainer.explain(x, 1, method=method) for method in ("smooth-grad", "gradient"))
    np.testing.assert_allclose(smooth.attribution, plain.attribution, atol=1e-6)


def test_progress_and_cancelling(tiny: Tiny) -> None:
    told: list[tuple[int, int]] = []
    tiny.explainer.explain(
        tiny.x, TARGETS, method="smooth-grad", samples=4, batch_size=3, progress=lambda *counts: told.append(counts)
    )
    assert told == [(0, 8), (3, 8), (6, 8), (8, 8)]
    cancel = threading.Event()
    cancel.set()
    for method in ALL:
        with pytest.raises(engine.CancelledError, match=r"^the explanation was cancelled by its caller"):
            tiny.explainer.explain(tiny.x, 1, method=method, cancel=cancel)


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("smooth-grad", {"samples": 0}, "samples is 0; expected a whole number of at least 1"),
        ("smooth-grad", {"noise": -0.1}, "noise is -0.1; expected a number of at least 0"),
        ("smooth-grad", {"noise": np.nan}, "noise is nan; expected a number of at least 0"),
        ("smooth-grad", {"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ("integrated-gradients", {"steps": 2.0}, "steps is 2.0; expected a whole number of at least 1"),
        (
            "integrated-gradients",
            {"baseline": "grey"},
            "baseline is 'grey'; expected 'zero', 'blur', or 3 colour values from 0 to 255",
        ),
    ],
)
def test_options_without_meaning(tiny: Tiny, method: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(engine.OptionError, match=f"^{re.escape(text)}$"):
        tiny.explainer.explain(tiny.x, 1, method=method, **options)
