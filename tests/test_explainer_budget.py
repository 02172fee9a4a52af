"""Fewer masks than the rule selects, progress, and stopping early."""

import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import engine
from engine.backends import Brake
from tests.reference import kriging, method
from tests.tiny_cnn import photo_pixels

SIZE = (24, 32)


@pytest.fixture(scope="module")
def explainer(tiny_bundle: Path) -> engine.Explainer:
    return engine.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module", params=[1, 3])
def with_threads(tiny_bundle: Path, request: pytest.FixtureRequest) -> engine.Explainer:
    return engine.load(tiny_bundle, threads=request.param)


def test_max_masks_scores_those_that_tell_most(explainer: engine.Explainer) -> None:
    whole = explainer.explain(photo_pixels(), 1, rule="all")
    counts = [layer.scored for layer in whole.layers]
    assert whole.complete
    assert whole.scored == whole.scorable == sum(counts) > 25
    assert all(np.isnan(layer.estimated_scores).all() for layer in whole.layers)
    result = explainer.explain(photo_pixels(), 1, rule="all", max_masks=11)
    assert (result.max_masks, result.scored, result.scorable, result.complete) == (11, 11, sum(counts), False)
    assert sum(layer.scored for layer in result.layers) == 11
    for layer, own in zip(result.layers, whole.layers, strict=True):
        assert (layer.selected, layer.flat) == (own.selected, own.flat)
        np.testing.assert_array_equal(layer.selected_channels, own.selected_channels)
        scored, live = ~np.isnan(layer.scores), ~np.isnan(own.scores)
        assert layer.scored == scored.sum()
        np.testing.assert_allclose(layer.scores[scored], own.scores[scored], rtol=1e-6)
        np.testing.assert_array_equal(~np.isnan(layer.estimated_scores), live & ~scored)
    text = f"11 of {sum(counts)} masks were scored, the scores of the others estimated; the heatmap is an approximation"
    assert (
        result.warnings[-1]
        == f"{text}, whose correlation with that of half of these scores is {result.figures['settled']:.2f}"
    )
    one = explainer.explain(photo_pixels(), 1, rule="all", max_masks=1)
    assert one.warnings[-1] == text.replace("11", "1", 1)
    assert str(result).split(", ")[1] == f"11 of {sum(counts)} masks"


def test_the_heatmap_of_a_budget_equals_the_formula(explainer: engine.Explainer, random: np.random.Generator) -> None:
    x = random.normal(size=(1, 3, *SIZE)).astype(np.float32)
    result = explainer.explain(x, 2, rule="all", max_masks=9, visualization_maps=True)
    _, _, *rest = explainer._network.session("tapped").run([x, np.array([2])])
    assert result.visualization_maps is not None
    masks = [
        (maps[0, channel].astype(np.float64), score, guess)
        for layer, maps in zip(result.layers, rest[:3], strict=True)
        for channel, score, guess in zip(layer.selected_channels, layer.scores, layer.estimated_scores, strict=True)
        if not (np.isnan(score) and np.isnan(guess))
    ]
    points = np.stack([kriging.thumbnail(feature_map, *SIZE) for feature_map, _, _ in masks])
    scores, guesses = np.array([(score, guess) for _, score, guess in masks]).T
    known = np.flatnonzero(~np.isnan(scores))
    expected_scores = kriging.estimate(points, known.tolist(), scores[known])
    np.testing.assert_allclose(np.where(np.isnan(scores), guesses, scores), expected_scores, atol=1e-8)
    for step in range(9):
        others = [number for number in range(len(points)) if number not in known]
        left = kriging.remaining(points, known.tolist(), range(len(points)))
        for other in others[step::9]:  # no exchange of the last point that was taken makes the choice better
            assert left <= kriging.remaining(points, [*known[known != known[step]], other], range(len(points))) * 1.05

    for layer, maps, view in zip(result.layers, rest[:3], result.visualization_maps, strict=True):
        values = np.where(np.isnan(layer.scores), layer.estimated_scores, layer.scores)
        own = ~np.isnan(values)
        expected = method.visualization_map(values[own], maps[0, layer.selected_channels[own]], *SIZE)
        np.testing.assert_allclose(view, expected, atol=0.02)  # minima of maps that were not scored: before upsampling


def test_a_budget_where_a_layer_gives_no_mask(explainer: engine.Explainer) -> None:
    result = explainer.explain(photo_pixels() * 0, 1, max_masks=2)
    assert result.warnings[0] == "layer 'relu2' gave no mask: all 1 selected maps are constant"
    assert (result.scored, result.complete, result.heatmap.max()) == (2, False, 1.0)


def test_settled_compares_with_half_of_the_scores(explainer: engine.Explainer, random: np.random.Generator) -> None:
    x = random.normal(size=(1, 3, *SIZE)).astype(np.float32)
    whole, half = (explainer.explain(x, 2, rule="all", max_masks=most) for most in (13, 6))
    rows, columns = np.meshgrid(np.arange(0, SIZE[0], 4), np.arange(0, SIZE[1], 4), indexing="ij")
    expected = stats.spearmanr(whole.heatmap[rows, columns].ravel(), half.heatmap[rows, columns].ravel()).statistic
    assert whole.figures["settled"] == pytest.approx(expected, abs=1e-6)
    assert -1 < expected < 1
    assert explainer.explain(x, 2, rule="all").figures == {}
    assert explainer.explain(x, 2, rule="all", max_masks=1).figures == {}


@pytest.mark.parametrize(("preset", "scored"), [("fast", 25), ("balanced", 35), ("exact", 35)])
def test_presets(explainer: engine.Explainer, preset: str, scored: int) -> None:
    result = explainer.explain(photo_pixels(), 1, rule="all", preset=preset)
    whole = explainer.explain(photo_pixels(), 1, rule="all")
    assert (result.scored, whole.scored) == (scored, 35)
    assert result.options["preset"] == preset
    assert result.complete is (scored == 35)
    assert (result.heatmap.tobytes() == whole.heatmap.tobytes()) is (scored == 35)
    assert explainer.explain(photo_pixels(), 1, rule="all", preset=preset, max_masks=7).scored == 7


@pytest.mark.parametrize("max_masks", [1, 5, 12])
def test_classes_within_a_budget_are_as_alone(explainer: engine.Explainer, max_masks: int) -> None:
    together = explainer.explain(photo_pixels(), [0, 3, 4], rule="positive", max_masks=max_masks)
    for found in together:
        alone = explainer.explain(photo_pixels(), found.target, rule="positive", max_masks=max_masks)
        assert found.scored == alone.scored <= max_masks
        np.testing.assert_array_equal(found.heatmap, alone.heatmap)
        for own, other in zip(found.layers, alone.layers, strict=True):
            np.testing.assert_array_equal(own.scores, other.scores)


def test_a_budget_that_suffices_changes_nothing(explainer: engine.Explainer) -> None:
    whole = explainer.explain(photo_pixels())
    result = explainer.explain(photo_pixels(), max_masks=whole.scored, deadline_ms=600_000)
    assert result.complete
    assert (result.max_masks, result.deadline_ms) == (whole.scored, 600_000.0)
    assert result.heatmap.tobytes() == whole.heatmap.tobytes()
    assert result.warnings == whole.warnings


def test_progress_counts_the_masks_of_all_classes_once(explainer: engine.Explainer) -> None:
    told: list[tuple[int, int]] = []
    one, other = explainer.explain(
        photo_pixels(), [0, 1], batch_size=4, progress=lambda done, planned: told.append((done, planned))
    )
    union = sum(
        len(set(a.selected_channels[~np.isnan(a.scores)]) | set(b.selected_channels[~np.isnan(b.scores)]))
        for a, b in zip(one.layers, other.layers, strict=True)
    )
    assert told == [(done, union) for done in [*range(0, union, 4), union]]
    told.clear()
    explainer.explain(photo_pixels(), 0, max_masks=3, progress=lambda done, planned: told.append((done, planned)))
    assert told == [(0, 3), (3, 3)]


def scoring_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-scoring")]


def test_what_progress_raises_reaches_the_caller(
    with_threads: engine.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = with_threads._network.session("forward")

    class Slow:
        runs_at_once = forward.runs_at_once

        def run(self, inputs: list[np.ndarray], brake: Brake | None = None) -> list[np.ndarray]:
            time.sleep(0.02)  # so that the threads are still there when progress is told
            return forward.run(inputs, brake)

    monkeypatch.setitem(with_threads._network._sessions, "forward", Slow())

    def progress(done: int, _planned: int) -> None:
        assert len(scoring_threads()) > 0
        if done:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match=r"^enough$"):
        with_threads.explain(photo_pixels(), rule="all", batch_size=2, progress=progress)
    assert scoring_threads() == []


def test_cancelling(with_threads: engine.Explainer) -> None:
    flag, told = threading.Event(), []

    def progress(done: int, _planned: int) -> None:
        told.append(done)
        if done:
            flag.set()

    with pytest.raises(engine.CancelledError):
        with_threads.explain(photo_pixels(), rule="all", batch_size=2, progress=progress, cancel=flag)
    assert len(told) == 2
    with pytest.raises(engine.CancelledError):
        with_threads.explain(photo_pixels(), cancel=flag, progress=progress)
    assert len(told) == 2
    flag.clear()
    assert with_threads.explain(photo_pixels(), cancel=flag).complete
    assert scoring_threads() == []


def test_cancelling_by_another_thread_while_the_caller_waits(with_threads: engine.Explainer) -> None:
    """The lanes themselves ask for the flag: nobody tells the caller's thread."""

    class SetWhenAsked:
        asked = 0

        def is_set(self) -> bool:
            self.asked += threading.current_thread().name.startswith("engine-scoring")
            return self.asked > 2

    with pytest.raises(engine.CancelledError):
        with_threads.explain(photo_pixels(), rule="all", batch_size=1, cancel=SetWhenAsked())


def test_a_lane_that_fails_ends_the_others(with_threads: engine.Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = with_threads._network.session("forward")
    runs = []

    class Failing:
        runs_at_once = forward.runs_at_once

        def run(self, inputs: list[np.ndarray], brake: Brake | None = None) -> list[np.ndarray]:
            runs.append(len(inputs[0]))
            if len(runs) == 2:
                raise engine.BackendError("the runtime failed")
            return forward.run(inputs, brake)

    monkeypatch.setitem(with_threads._network._sessions, "forward", Failing())
    with pytest.raises(engine.BackendError, match=r"^the runtime failed$"):
        with_threads.explain(photo_pixels(), rule="all", batch_size=1)
    assert 2 <= len(runs) <= 1 + forward.runs_at_once + 1
    assert scoring_threads() == []


def test_a_system_without_more_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer, start = engine.load(tiny_bundle, threads=3), threading.Thread.start

    def start_two(thread: threading.Thread) -> None:
        if thread.name == "engine-scoring-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    text = (
        r"^only 2 of 3 threads could be started \(can't start new thread\); expected all: load the bundle with fewer "
        r"threads$"
    )
    with pytest.raises(engine.BackendError, match=text):
        explainer.explain(photo_pixels(), rule="all")
    assert scoring_threads() == []


def test_a_budget_with_several_threads(tiny_bundle: Path, explainer: engine.Explainer) -> None:
    several = engine.load(tiny_bundle, threads=3)
    expected = explainer.explain(photo_pixels(), rule="all", max_masks=11)
    found = several.explain(photo_pixels(), rule="all", max_masks=11)
    assert [layer.scored for layer in found.layers] == [layer.scored for layer in expected.layers]
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)


def test_what_is_logged(explainer: engine.Explainer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="engine"):
        result = explainer.explain(photo_pixels(), 1, max_masks=5)
        path = explainer.bundle.path
        engine.load(path, threads=1)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said[0] == ("INFO", str(result))
    assert said[1:-1] == [("WARNING", f"tiger cat (1): {warning}") for warning in result.warnings]
    assert len(result.warnings) > 0
    level, text = said[-1]
    assert (level, text.startswith(f"loaded {path} in ")) == ("INFO", True)
