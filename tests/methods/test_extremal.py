"""Extremal perturbation against its formula in float64: its objective's gradient, its steps, its budgets."""

import re
import threading

import numpy as np
import pytest
import torch

import engine
from engine.methods.extremal import Ascent, Perturbation
from engine.pace import Pace
from tests.methods.conftest import Tiny
from tests.reference import extremal
from tests.reference.attribution import heatmap, input_gradient

METHOD = "extremal-perturbation"
AREA, WEIGHT = 0.3, 400.0


@pytest.fixture
def parameters(tiny: Tiny, random: np.random.Generator) -> np.ndarray:
    return random.uniform(0.05, 0.95, extremal_grid(tiny))


def extremal_grid(tiny: Tiny) -> tuple[int, int]:
    return -(-tiny.size[0] // 7), -(-tiny.size[1] // 7)


def objective(tiny: Tiny, parameters: torch.Tensor) -> torch.Tensor:
    pyramid = extremal.blur_pyramid(tiny.x[0])
    return extremal.objective(parameters, pyramid, tiny.logits, 1, AREA, WEIGHT, mirrored=False)


def test_the_image_under_a_mask(tiny: Tiny, parameters: np.ndarray) -> None:
    made = Perturbation(tiny.x[0]).make(parameters.astype(np.float32))
    mask, _ = extremal.smooth_mask(torch.tensor(parameters), tiny.size)
    expected = extremal.perturb(extremal.blur_pyramid(tiny.x[0]), mask).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_at_its_bounds(tiny: Tiny, value: float) -> None:
    perturbation = Perturbation(tiny.x[0])
    made = perturbation.make(np.full(perturbation.smooth.grid, value, np.float32))
    if value == 0:  # all is blurred by 20 pixels
        np.testing.assert_allclose(made, extremal.blur(tiny.x[0], 20), atol=1e-5)
    assert np.isfinite(perturbation.differentiate(tiny.x[0], AREA, WEIGHT)[0]).all()


def test_the_gradient_of_the_objective(tiny: Tiny, parameters: np.ndarray) -> None:
    perturbation = Perturbation(tiny.x[0])
    made = perturbation.make(parameters.astype(np.float32))
    upstream = input_gradient(tiny.logits, made, 1).astype(np.float32)
    found, led = perturbation.differentiate(upstream, AREA, WEIGHT)
    assert led
    given = torch.tensor(parameters, requires_grad=True)
    (expected,) = torch.autograd.grad(objective(tiny, given), given)
    assert np.linalg.norm(found - expected.numpy()) <= 1e-4 * np.linalg.norm(expected.numpy())
    step = 1e-5
    for place in ((0, 0), (1, 3), (3, 4)):
        ends = []
        for sign in (1, -1):
            moved = torch.tensor(parameters)
            moved[place] += sign * step
            ends.append(float(objective(tiny, moved)))
        assert found[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.01, abs=1e-3)


@pytest.mark.parametrize("area", [0.1, 0.5, 1e-18])
def test_the_area_term_with_ties(area: float, random: np.random.Generator) -> None:
    perturbation = Perturbation(random.normal(size=(1, 9, 11)).astype(np.float32))
    perturbation.make(np.ones(perturbation.smooth.grid, np.float32))
    whole = perturbation._mask = np.round(perturbation._mask, 1)  # so that many values are equal
    perturbation.smooth.differentiate = lambda slope: slope  # type: ignore[method-assign]
    slope, _ = perturbation.differentiate(np.zeros((1, 9, 11), np.float32), area, WEIGHT)
    given = torch.tensor(whole, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(-WEIGHT * extremal.area_term(given, area), given)
    np.testing.assert_allclose(slope, expected.numpy(), atol=1e-6)


def test_steps_equal_the_formula(tiny: Tiny, parameters: np.ndarray) -> None:
    ascent = Ascent(Perturbation(tiny.x[0]), AREA)
    ascent._parameters = parameters.astype(np.float32)  # at the start, all 1, the mask has nothing but ties
    expected = torch.tensor(parameters, requires_grad=True)
    optimizer = torch.optim.SGD([expected], lr=0.01, momentum=0.9, dampening=0.9, maximize=True)
    pyramid = extremal.blur_pyramid(tiny.x[0])
    for step in range(3):
        image = ascent.image()
        ascent.climb(0.5 * step, input_gradient(tiny.logits, image, 1).astype(np.float32))
        optimizer.zero_grad()
        weight = 300 * 1.0035**step
        extremal.objective(expected, pyramid, tiny.logits, 1, AREA, weight, mirrored=step % 2 == 0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            expected.clamp_(0, 1)
    np.testing.assert_allclose(ascent._parameters, expected.detach().numpy(), atol=1e-5)
    assert np.abs(ascent._parameters - parameters).max() > 0.05
    assert (ascent.steps, ascent.reward, ascent.led) == (3, 1.0, True)


def test_a_mask_is_made_beside_an_image_that_is_being_made(tiny: Tiny, parameters: np.ndarray) -> None:
    perturbation = Perturbation(tiny.x[0])
    ascent = Ascent(perturbation, AREA)
    perturbation.make(parameters.astype(np.float32))
    expected, _ = perturbation.differentiate(tiny.x[0], AREA, WEIGHT)
    perturbation.make(parameters.astype(np.float32))
    assert ascent.mask().min() > 0.9
    found, _ = perturbation.differentiate(tiny.x[0], AREA, WEIGHT)
    np.testing.assert_array_equal(found, expected)


def test_the_method_equals_the_formula(tiny: Tiny) -> None:
    areas = [0.2, 0.4]
    result = tiny.explainer.explain(tiny.x, 3, method=METHOD, areas=areas, iterations=2)
    found = extremal.extremal_perturbation(extremal.blur_pyramid(tiny.x[0]), 3, tiny.logits, areas, 2)
    masks = [mask for _, mask in found]
    np.testing.assert_allclose(result.heatmap, heatmap(np.sum(masks, axis=0)), atol=0.01)  # rounding breaks ties
    for area, mask in zip(areas, masks, strict=True):
        assert result.figures[f"area_{area}"] == pytest.approx(float(mask.mean()), abs=5e-3)
    assert (result.scored, result.scorable, result.complete) == (4, 4, True)
    assert result.evaluations == {"forward": 1, "gradient": 4}


def test_many_steps_reach_the_area_and_keep_the_class(tiny: Tiny) -> None:
    result = tiny.explainer.explain(tiny.x, 1, method=METHOD, areas=[0.25], iterations=400)
    blurred = extremal.blur(tiny.x[0], 20)[None]
    assert result.figures["reward_0.25"] > float(tiny.logits(torch.tensor(blurred))[0, 1]) + 0.1
    # A quarter of the mask with its margin, 64 x 71 pixels, is more than the image: the margin takes a part of it.
    assert 0.5 < result.figures["area_0.25"] < 1.0


def test_a_budget_takes_the_last_steps(tiny: Tiny) -> None:
    few = tiny.explainer.explain(tiny.x, 1, method=METHOD, iterations=4)
    cut = tiny.explainer.explain(tiny.x, 1, method=METHOD, iterations=9, max_masks=4)
    np.testing.assert_array_equal(few.heatmap, cut.heatmap)
    assert few.figures == cut.figures
    assert (cut.scored, cut.scorable, cut.complete) == (4, 9, False)


def test_a_budget_smaller_than_the_areas_leaves_areas_out(tiny: Tiny) -> None:
    one = tiny.explainer.explain(tiny.x, 1, method=METHOD, areas=(0.2,), iterations=1)
    cut = tiny.explainer.explain(tiny.x, 1, method=METHOD, areas=(0.2, 0.4), iterations=1, max_masks=1)
    np.testing.assert_array_equal(one.heatmap, cut.heatmap)
    assert one.figures.keys() == cut.figures.keys() == {"area_0.2", "reward_0.2"}


def test_a_deadline_leaves_the_mask_so_far(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hurried:
        hurried.setattr(Pace, "room", lambda _, started, planned: min(1, planned) - started)
        first, second = tiny.explainer.explain(tiny.x, [1, 3], method=METHOD)
    one = tiny.explainer.explain(tiny.x, 1, method=METHOD, iterations=1)
    np.testing.assert_array_equal(first.heatmap, one.heatmap)
    assert (first.scored, first.scorable, second.scored) == (1, 800, 0)
    assert not second.heatmap.any()
    assert second.figures == {}


def test_each_class_gives_the_bytes_that_it_gives_alone(tiny: Tiny) -> None:
    single = engine.load(tiny.explainer.bundle.path, threads=1)
    for result in tiny.explainer.explain(tiny.x, [4, 0, 4], method=METHOD, areas=[0.1, 0.3], iterations=5):
        for explainer in (tiny.explainer, single):
            alone = explainer.explain(tiny.x, result.target, method=METHOD, areas=[0.1, 0.3], iterations=5)
            np.testing.assert_array_equal(result.heatmap, alone.heatmap)
            assert result.figures == alone.figures


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_an_image_that_no_blur_changes(tiny: Tiny, value: float) -> None:
    result = tiny.explainer.explain(np.full_like(tiny.x, value), 1, method=METHOD, iterations=3)
    assert not result.heatmap.any()
    assert result.warnings == ("the heatmap is all zeros: the method's map is constant, or nowhere positive",)
    assert np.isfinite(list(result.figures.values())).all()


def test_progress_and_cancelling(tiny: Tiny) -> None:
    told: list[tuple[int, int]] = []
    tiny.explainer.explain(tiny.x, 1, method=METHOD, iterations=3, progress=lambda *counts: told.append(counts))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    cancel = threading.Event()

    def stop(done: int, _planned: int) -> None:
        if done == 2:
            cancel.set()

    with pytest.raises(engine.CancelledError, match=r"^the explanation was cancelled by its caller"):
        tiny.explainer.explain(tiny.x, 1, method=METHOD, progress=stop, cancel=cancel)


EXPECTED = "expected a list of numbers between 0 and 1, such as [0.05, 0.1]"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"areas": []}, f"areas is []; {EXPECTED}"),
        ({"areas": 0.1}, f"areas is 0.1; {EXPECTED}"),
        ({"areas": [0.1, 1.0]}, f"areas is [0.1, 1.0]; {EXPECTED}"),
        ({"areas": [0.0]}, f"areas is [0.0]; {EXPECTED}"),
        ({"areas": ["0.1"]}, f"areas is ['0.1']; {EXPECTED}"),
        ({"areas": [np.nan]}, f"areas is [nan]; {EXPECTED}"),
        ({"iterations": 0}, "iterations is 0; expected a whole number of at least 1"),
        ({"iterations": 10_001}, "iterations is 10001; expected at most 10000"),
    ],
    ids=str,
)
def test_options_without_meaning(tiny: Tiny, options: dict[str, object], text: str) -> None:
    with pytest.raises(engine.OptionError, match=f"^{re.escape(text)}$"):
        tiny.explainer.explain(tiny.x, 1, method=METHOD, **options)
