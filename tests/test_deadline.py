"""What becomes of an explanation for which there is too little time; the estimates are the test's own."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.backends import Brake
from engine.costs import Costs
from engine.deadline import Deadline
from engine.methods import ada_sise
from engine.network import Tapped
from engine.options import Options
from engine.pace import Pace
from engine.probe import Probe
from tests.tiny_cnn import photo_pixels

NEVER_LATE = 600_000.0
REMEDY = (
    "expected a longer one, or too_late='grad-cam', which gives a map of the last layer in the place of a late one$"
)
WARNING = "600000 ms were too short for {}: this is the map of grad-cam for the last layer"


@pytest.fixture
def explainer(tiny_bundle: Path) -> engine.Explainer:
    """An explainer of one's own, which has taken no estimate yet."""
    return engine.load(tiny_bundle, threads=2)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("engine-"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def takes(explainer: engine.Explainer, work: str, seconds: float) -> None:
    """Make the explainer believe that a piece of work takes so long; what it measures itself is the minority."""
    for _ in range(60):
        explainer._costs.note(work, seconds)


def is_grad_cam(result: engine.Explanation, explainer: engine.Explainer, asked: str = "ada-sise") -> None:
    expected = explainer.explain(photo_pixels(), result.target, method="grad-cam")
    np.testing.assert_allclose(result.heatmap, expected.heatmap, atol=1e-5)
    assert (result.method, result.options, result.complete) == ("grad-cam", {"layer": None}, False)
    assert result.warnings == (WARNING.format(asked),)
    assert (result.layers, result.scored, result.scorable, result.deadline_ms) == ((), 0, 0, NEVER_LATE)
    assert result.class_score == pytest.approx(expected.class_score, rel=1e-6)


def test_enough_time(explainer: engine.Explainer) -> None:
    free = explainer.explain(photo_pixels())
    result = explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE)
    assert result.complete
    assert result.heatmap.tobytes() == free.heatmap.tobytes()
    assert result.evaluations == {**free.evaluations, "last_layer": 2}  # the first call measures it
    assert explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE).evaluations == free.evaluations


def test_too_little_for_the_tapped_pass(explainer: engine.Explainer) -> None:
    takes(explainer, "tapped of 1", 1e6)
    result = explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, visualization_maps=True)
    is_grad_cam(result, explainer)
    assert result.visualization_maps is None
    assert result.evaluations == {"last_layer": 2}
    again = explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE)
    is_grad_cam(again, explainer)
    assert again.evaluations == {"last_layer": 1}
    text = rf"^deadline_ms is 600000, and there was no time to run tapped\.onnx; {REMEDY}"
    with pytest.raises(engine.DeadlineError, match=text):
        explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, too_late="error")


@pytest.mark.parametrize(
    ("tapped_s", "reserve_s", "method"),
    [
        (400.0, 100.0, "ada-sise"),  # there is time for both
        (400.0, 250.0, "ada-sise"),  # the tapped pass will hardly be late: 400 s and a quarter more
        (500.0, 250.0, "grad-cam"),  # it may be late, and then nothing would be left
        (700.0, 1.0, "grad-cam"),
    ],
)
def test_the_tapped_pass_is_tried_if_it_is_safe_or_something_is_left(
    explainer: engine.Explainer, tapped_s: float, reserve_s: float, method: str
) -> None:
    takes(explainer, "tapped of 1", tapped_s)
    takes(explainer, "last_layer of 1", reserve_s)
    takes(explainer, "finish ada-sise", 1e-3)
    assert explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE).method == method


def test_what_was_refused_long_enough_is_tried_again(explainer: engine.Explainer) -> None:
    for seconds in (1.0, 1.0, 1e6, 1e6):  # the first does not count, and the median does not fit
        explainer._costs.note("tapped of 1", seconds)
    explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE)
    methods = [explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE).method for _ in range(9)]
    assert methods == ["grad-cam"] * 7 + ["ada-sise"] * 2


def test_calls_at_the_same_time_are_planned_apart(explainer: engine.Explainer) -> None:
    for _ in range(2):
        explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE)
    with explainer._costs.call(), explainer._costs.call():
        takes(explainer, "tapped of 1", 1e6)
    with explainer._costs.call():
        is_grad_cam(explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE), explainer)
        for result in explainer.explain_many([photo_pixels()], deadline_ms=NEVER_LATE):
            is_grad_cam(result, explainer)
        with pytest.raises(engine.DeadlineError):
            explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, too_late="error")
    assert explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE).complete


def test_a_call_that_begins_meanwhile_is_reckoned_with(
    explainer: engine.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE).method == "ada-sise"
    with explainer._costs.call(), explainer._costs.call():
        takes(explainer, "finish ada-sise", 1e6)
    tap = Probe.tap
    with ExitStack() as others:

        def joined(probe: Probe) -> Tapped:
            others.enter_context(explainer._costs.call())
            return tap(probe)

        monkeypatch.setattr(Probe, "tap", joined)
        is_grad_cam(explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE), explainer)


@pytest.mark.parametrize("too_late", ["grad-cam", "error"])
@pytest.mark.parametrize(("slow", "refusals"), [(1, 8), (64, 64)])
def test_a_finish_that_was_slow_is_tried_again(
    explainer: engine.Explainer, slow: int, refusals: int, too_late: str
) -> None:
    for seconds in (*[1e-3] * 60, *[1e6] * slow):
        explainer._costs.note("finish ada-sise", seconds)
    for _ in range(refusals):
        if too_late == "grad-cam":
            assert explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE).method == "grad-cam"
        else:
            with pytest.raises(engine.DeadlineError):
                explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, too_late="error")
    assert explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, too_late=too_late).method == "ada-sise"


def test_masks_that_were_slow_are_tried_again(explainer: engine.Explainer) -> None:
    for _ in range(65):
        explainer._costs.note("row of forward", 1e6)
    found = [explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE) for _ in range(65)]
    assert [result.scored for result in found] == [0] * 64 + [found[-1].scorable]


def test_a_tapped_pass_that_takes_longer_than_it_should(
    explainer: engine.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()

    class Stuck:
        def run(self, _inputs: list[np.ndarray], brake: Brake | None = None) -> list[np.ndarray]:
            assert brake is not None
            with brake.on(stopped.set):
                assert stopped.wait(timeout=60)
            raise engine.BackendError("stopped")

    explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE)
    monkeypatch.setitem(explainer._network._sessions, "tapped", Stuck())
    with pytest.raises(engine.DeadlineError, match=r"^deadline_ms is 100, and tapped\.onnx had to be stopped; "):
        explainer.explain(photo_pixels(), deadline_ms=100, too_late="error")
    assert stopped.is_set()
    stopped.clear()
    result = explainer.explain(photo_pixels(), deadline_ms=1000)
    assert stopped.is_set()
    assert (result.method, result.complete) == ("grad-cam", False)


@pytest.mark.parametrize("too_late", ["grad-cam", "error"])
def test_no_time_for_a_mask(explainer: engine.Explainer, too_late: str) -> None:
    """Ada-SISE still has a map, in which all masks count alike."""
    takes(explainer, "row of forward", 1e6)
    result = explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, too_late=too_late)
    assert (result.method, result.scored, result.complete) == ("ada-sise", 0, False)
    assert result.heatmap.max() == 1.0
    for layer in result.layers:
        assert set(layer.estimated_scores[~np.isnan(layer.estimated_scores)]) <= {1.0}
    text = f"none of {result.scorable} masks was scored, and all count alike; the heatmap is an approximation"
    assert result.warnings[-1] == text


@pytest.mark.parametrize("method", ["rise", "score-cam", "group-cam", "smooth-grad", "integrated-gradients"])
def test_no_time_for_a_mask_of_another_method(explainer: engine.Explainer, method: str) -> None:
    takes(explainer, "row of forward", 1e6)
    takes(explainer, "row of gradient", 1e6)
    is_grad_cam(explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, method=method), explainer, method)
    text = rf"^deadline_ms is 600000, and there was time for 0 of at least 1 masks; {REMEDY}"
    with pytest.raises(engine.DeadlineError, match=text):
        explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, method=method, too_late="error")


@pytest.mark.parametrize("method", ["recipro-cam", "ablation-cam"])
def test_no_time_for_a_run_of_the_head(explainer: engine.Explainer, method: str) -> None:
    takes(explainer, "row of head", 1e6)
    is_grad_cam(explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, method=method), explainer, method)


def test_no_time_for_what_comes_after_the_masks(explainer: engine.Explainer) -> None:
    takes(explainer, "finish ada-sise", 1e6)
    result = explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE)
    is_grad_cam(result, explainer)
    assert result.evaluations == {"tapped": 1, "last_layer": 2}
    text = rf"^deadline_ms is 600000, and there was no time to run tapped\.onnx; {REMEDY}"
    with pytest.raises(engine.DeadlineError, match=text):
        explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, too_late="error")


def test_what_was_in_vain_is_no_part_of_what_grad_cam_does(
    explainer: engine.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes(explainer, "finish ada-sise", 1e6)

    def slowly(*planned: object) -> object:
        time.sleep(0.4)
        return plan_all(*planned)

    plan_all = ada_sise.plan_all
    monkeypatch.setattr(ada_sise, "plan_all", slowly)
    for _ in range(2):
        assert explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE).method == "grad-cam"
    assert explainer._costs.high("finish grad-cam") < 0.4


def test_what_comes_after_the_masks_is_noted_for_each_class(
    explainer: engine.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = []
    monkeypatch.setattr(explainer._costs, "note", lambda work, _, times=1: noted.append((work, times)))
    explainer.explain(photo_pixels(), [0, 1, 2])
    explainer.explain(photo_pixels(), [0, 1], deadline_ms=1e-6)
    assert [what for what in noted if "finish" in what[0]] == [("finish ada-sise", 3), ("finish grad-cam", 2)]


def test_each_class_leaves_time_for_its_own_map(explainer: engine.Explainer) -> None:
    takes(explainer, "finish ada-sise", 200.0)  # and a quarter more: twice that fits, three times does not
    for targets, method in (([0, 1], "ada-sise"), ([0, 1, 2], "grad-cam")):
        found = explainer.explain(photo_pixels(), targets, deadline_ms=NEVER_LATE)
        assert [result.method for result in found] == [method] * len(targets)


def of_100_s(too_late: str, finish_s: float) -> tuple[float, Deadline]:
    """A deadline of 100 s for 20 classes, and when it began; Grad-CAM takes 2.5 s a run and 0.5 s a class at most."""
    costs = Costs()
    for work, seconds in (("last_layer of 8", 2.0), ("finish grad-cam", 0.4)):
        for _ in range(2):
            costs.note(work, seconds)
    options = Options(activation="softmax", deadline_ms=100_000.0, too_late=too_late)
    began = time.perf_counter()
    return began, Deadline(options, costs, began, lambda: finish_s, classes=20, spare="last_layer of 8", spare_runs=3)


@pytest.mark.parametrize(
    ("too_late", "has_spare", "until_s"),
    [
        ("grad-cam", False, 82.5),  # three runs, and a map for each class
        ("grad-cam", True, 90.0),
        ("error", False, 40.0),  # what the method does for each class
        ("error", True, 40.0),
    ],
)
def test_until_when_a_run_may_last(too_late: str, has_spare: bool, until_s: float) -> None:
    began, deadline = of_100_s(too_late, 3.0)
    until = deadline.expect_time_for("tapped of 8", "tapped", has_spare=has_spare)
    assert until is not None
    assert until - began == pytest.approx(until_s)


def test_no_time_left_for_masks() -> None:
    began, deadline = of_100_s("error", 4.0)
    ends = deadline.expect_time_to_score()
    assert ends is not None
    assert ends - began == pytest.approx(20.0)
    _, late = of_100_s("error", 6.0)
    with pytest.raises(
        engine.DeadlineError, match=rf"^deadline_ms is 100000, and there was no time left for masks; {REMEDY}"
    ):
        late.expect_time_to_score()


def test_more_than_eight_classes_need_several_runs_of_the_last_layer(explainer: engine.Explainer) -> None:
    takes(explainer, "last_layer of 8", 4.0)
    takes(explainer, "finish grad-cam", 0.8)
    for classes, spare_s in ((8, 5.0 + 8.0), (9, 10.0 + 9.0)):
        assert explainer.probe(photo_pixels(), [0] * classes, deadline_ms=1.0).deadline.spare_s == spare_s


def test_after_the_tapped_pass_no_run_is_kept_free(explainer: engine.Explainer) -> None:
    takes(explainer, "tapped of 1", 100.0)
    takes(explainer, "last_layer of 1", 1000.0)
    result = explainer.explain(photo_pixels(), method="layer-cam", layer="relu1", deadline_ms=NEVER_LATE)
    assert (result.method, result.complete) == ("layer-cam", True)


def test_a_class_for_which_nothing_was_scored(explainer: engine.Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "room", lambda _, started, planned: min(1, planned) - started)
    choices = {"method": "integrated-gradients", "deadline_ms": NEVER_LATE}
    first, second = explainer.explain(photo_pixels(), [0, 1], **choices)
    assert (first.method, first.scored, first.complete) == ("integrated-gradients", 1, False)
    is_grad_cam(second, explainer, "integrated-gradients")
    text = rf"^deadline_ms is 600000, and there was no time for a mask of every class; {REMEDY}"
    with pytest.raises(engine.DeadlineError, match=text):
        explainer.explain(photo_pixels(), [0, 1], too_late="error", **choices)


def test_methods_that_score_nothing(explainer: engine.Explainer) -> None:
    takes(explainer, "gradient of 1", 1e6)
    is_grad_cam(explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, method="gradient"), explainer, "gradient")
    takes(explainer, "last_layer of 1", 1e6)
    shorter = explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, method="grad-cam")
    assert (shorter.method, shorter.complete, shorter.warnings) == ("grad-cam", True, ())  # there is nothing shorter
    with pytest.raises(engine.DeadlineError, match=r"there was no time to run last_layer\.onnx; "):
        explainer.explain(photo_pixels(), deadline_ms=NEVER_LATE, method="grad-cam", too_late="error")


def test_a_deadline_that_has_passed_at_the_first_call(explainer: engine.Explainer) -> None:
    result = explainer.explain(photo_pixels(), deadline_ms=1e-6)
    assert (result.method, result.complete) == ("grad-cam", False)


def test_a_run_is_stopped_when_the_caller_cancels(explainer: engine.Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = threading.Event()

    class Stuck:
        def run(self, _inputs: list[np.ndarray], brake: Brake | None = None) -> list[np.ndarray]:
            assert brake is not None
            stopped = threading.Event()
            with brake.on(stopped.set):
                flag.set()
                assert stopped.wait(timeout=60)
            raise engine.BackendError("stopped")

    monkeypatch.setitem(explainer._network._sessions, "tapped", Stuck())
    with pytest.raises(engine.CancelledError):
        explainer.explain(photo_pixels(), cancel=flag)
