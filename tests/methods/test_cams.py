"""Class activation maps of the engine against their formulas in float64."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.errors import OptionError
from engine.methods import METHODS, GradCam
from engine.methods.base import Method
from tests.methods.conftest import LAYER, Float, Tiny
from tests.reference import cam, method
from tests.reference.attribution import heatmap

CLASSES = [2, 0, 4]
BY_GRADIENT: dict[str, Callable[[Float, Float], Float]] = {
    "grad-cam": cam.grad_cam,
    "grad-cam++": cam.grad_cam_plus_plus,
    "xgrad-cam": cam.xgrad_cam,
    "layer-cam": cam.layer_cam,
}


class Plain:
    name = "mine"
    layered = False

    def __repr__(self) -> str:
        return self.name

    def explain(self, probe: object) -> list[object]:
        raise AssertionError(probe)


def agrees(found: NDArray[np.float32], expected: Float, *, may_be_empty: bool = False) -> None:
    assert may_be_empty or expected.max() == 1.0  # a map of zeros proves little
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", BY_GRADIENT)
@pytest.mark.parametrize("layer", [None, "relu1", "relu2"])
def test_maps_by_gradients(tiny: Tiny, name: str, layer: str | None) -> None:
    results = tiny.explainer.explain(tiny.x, CLASSES, method=name, layer=layer)
    for target, result in zip(CLASSES, results, strict=True):
        expected = BY_GRADIENT[name](*tiny.maps_and_gradients(target, layer or LAYER))
        agrees(result.heatmap, heatmap(expected, tiny.size))
        assert (result.method, result.options, result.scorable) == (name, {"layer": layer}, 0)
        assert result.complete


def test_what_gradients_cost(tiny: Tiny) -> None:
    assert tiny.explainer.explain(tiny.x, 2, method="grad-cam").evaluations == {"last_layer": 1}
    result = tiny.explainer.explain(tiny.x, 2, method="layer-cam")
    assert result.evaluations == {"last_layer": 1, "head.grad": 1}
    result, *_ = tiny.explainer.explain(tiny.x, CLASSES, method="layer-cam", layer="relu1")
    assert result.evaluations == {"tapped": 1, "head.grad": 1, "block3.grad": 1, "block2.grad": 1}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("weights", ["softmax", "score"])
def test_score_cam(tiny: Tiny, weights: str, activation: str) -> None:
    results = tiny.explainer.explain(tiny.x, CLASSES, method="score-cam", weights=weights, activation=activation)
    for target, result in zip(CLASSES, results, strict=True):
        maps, _ = tiny.maps_and_gradients(target)
        expected = cam.score_cam(tiny.x[0], maps, target, tiny.logits, weights, activation)
        agrees(result.heatmap, heatmap(expected, tiny.size), may_be_empty=activation == "none")
        live = sum(not method.is_flat(of_channel) for of_channel in maps)
        assert result.scored == result.scorable == live < len(maps)
        assert result.evaluations == {"tapped": 1, "forward": live}


@pytest.mark.parametrize(("groups", "activation"), [(32, "softmax"), (5, "sigmoid"), (1, "none")])
def test_group_cam(tiny: Tiny, groups: int, activation: str) -> None:
    results = tiny.explainer.explain(tiny.x, CLASSES, method="group-cam", groups=groups, activation=activation)
    blurred = tiny.explainer.probe(tiny.x).baseline("blur")
    for target, result in zip(CLASSES, results, strict=True):
        maps, gradients = tiny.maps_and_gradients(target)
        expected = cam.group_cam(tiny.x[0], blurred, maps, gradients, target, tiny.logits, activation, groups=groups)
        agrees(result.heatmap, heatmap(expected), may_be_empty=True)
    assert any(result.heatmap.any() for result in results)


def test_ablation_cam(tiny: Tiny) -> None:
    results = tiny.explainer.explain(tiny.x, CLASSES, method="ablation-cam")
    for target, result in zip(CLASSES, results, strict=True):
        maps, _ = tiny.maps_and_gradients(target)
        agrees(result.heatmap, heatmap(cam.ablation_cam(maps, target, tiny.head), tiny.size))
        live = int(maps.any(axis=(1, 2)).sum())
        assert result.evaluations == {"last_layer": 1, "head": live}
        assert result.scored == result.scorable == live < len(maps)


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_recipro_cam(tiny: Tiny, gaussian: bool, activation: str) -> None:
    results = tiny.explainer.explain(tiny.x, CLASSES, method="recipro-cam", gaussian=gaussian, activation=activation)
    for target, result in zip(CLASSES, results, strict=True):
        maps, _ = tiny.maps_and_gradients(target)
        expected = cam.recipro_cam(maps, target, tiny.head, activation, gaussian=gaussian)
        agrees(result.heatmap, heatmap(expected, tiny.size))
        assert result.evaluations == {"last_layer": 1, "head": maps[0].size}


@pytest.mark.parametrize("name", ["score-cam", "group-cam", "ablation-cam", "recipro-cam"])
def test_a_budget_leaves_the_least_important_out(tiny: Tiny, name: str) -> None:
    most = 4
    results = tiny.explainer.explain(tiny.x, CLASSES, method=name, max_masks=most)
    for target, result in zip(CLASSES, results, strict=True):
        alone = tiny.explainer.explain(tiny.x, target, method=name, max_masks=most)
        assert (result.scored, alone.scored, result.complete) == (most, most, False)
        assert result.warnings[0] == f"4 of {result.scorable} {result.unit} were used; the heatmap is an approximation"
        np.testing.assert_allclose(result.heatmap, alone.heatmap, atol=1e-5)  # batches of another make-up


def test_which_channels_a_budget_keeps(tiny: Tiny) -> None:
    maps, gradients = tiny.maps_and_gradients(2)
    alpha = gradients.sum(axis=(1, 2))
    live = [channel for channel in np.argsort(-alpha) if not method.is_flat(maps[channel])]
    kept = np.zeros_like(maps)
    kept[live[:3]] = maps[live[:3]]
    result = tiny.explainer.explain(tiny.x, 2, method="score-cam", max_masks=3)
    agrees(result.heatmap, heatmap(cam.score_cam(tiny.x[0], kept, 2, tiny.logits), tiny.size))
    kept[:] = 0
    strongest = [channel for channel in np.argsort(-np.abs(alpha)) if maps[channel].any()][:3]
    whole = cam.ablation_cam  # each map's loss is that in the whole layer
    weights = [
        float(tiny.head(_tensor(maps))[0, 2] - tiny.head(_tensor(_without(maps, channel)))[0, 2])
        for channel in strongest
    ]
    expected = np.maximum(sum(w * maps[channel] for w, channel in zip(weights, strongest, strict=True)), 0)
    assert whole(maps, 2, tiny.head).shape == expected.shape
    result = tiny.explainer.explain(tiny.x, 2, method="ablation-cam", max_masks=3)
    agrees(result.heatmap, heatmap(expected, tiny.size))


def test_which_places_a_budget_keeps(tiny: Tiny) -> None:
    maps, _ = tiny.maps_and_gradients(2)
    whole = cam.recipro_cam(maps, 2, tiny.head, "softmax")
    strongest = np.argsort(-np.abs(maps).sum(axis=0).ravel(), kind="stable")[:10]
    expected = np.full(whole.size, whole.ravel()[strongest].min())
    expected[strongest] = whole.ravel()[strongest]
    result = tiny.explainer.explain(tiny.x, 2, method="recipro-cam", max_masks=10)
    agrees(result.heatmap, heatmap(expected.reshape(whole.shape), tiny.size))


@pytest.mark.parametrize("name", [*BY_GRADIENT, "score-cam", "group-cam", "ablation-cam", "recipro-cam", "rise"])
def test_an_image_of_nothing_gives_no_nan(tiny: Tiny, name: str) -> None:
    """The tiny network has no biases: every map of a black image is 0, and every gradient."""
    options = {"masks": 5} if name == "rise" else {}
    result = tiny.explainer.explain(np.zeros_like(tiny.x), 1, method=name, **options)
    if name == "rise":  # the score is that of nothing for every mask, so the map is the masks' own mean
        assert result.heatmap.max() == 1.0
    else:
        assert not result.heatmap.any()
        assert result.warnings == ("the heatmap is all zeros: the method's map is constant, or nowhere positive",)


def test_hand_made_weights() -> None:
    """Two maps of 1×2 cells."""
    maps = np.array([[[1.0, 3.0]], [[2.0, -2.0]]])
    gradients = np.array([[[2.0, -1.0]], [[1.0, 1.0]]])
    layer, plus, x = (METHODS[name].make(maps, gradients) for name in ("layer-cam", "grad-cam++", "xgrad-cam"))
    np.testing.assert_allclose(layer, [[2 * 1 + 1 * 2, 0 + 1 * -2]])
    # map 1: ΣA = 4; a(0) = 4/(8 + 32) = 0.1, a(1) belongs to a negative gradient; map 2: ΣA = 0: a = 1/2 both
    np.testing.assert_allclose(plus, [[0.2 * 1 + 1 * 2, 0.2 * 3 - 1 * 2]])
    # map 1: (1·2 − 3·1)/4 = −0.25; map 2: its sum is 0, so it has no weight
    np.testing.assert_allclose(x, [[-0.25, -0.75]])


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("grad-cam", {"layer": "relu9"}, "layer is 'relu9'; expected one of relu1, relu2, relu3, or None for the last"),
        ("layer-cam", {"layer": 2}, "layer is 2; expected one of relu1, relu2, relu3, or None for the last"),
        ("grad-cam", {"rule": "otsu"}, "rule: is no option of method 'grad-cam'; expected some of layer"),
        ("ablation-cam", {"layer": None}, "layer: is no option of method 'ablation-cam'; it takes none"),
        ("score-cam", {"weights": "sum"}, "weights is 'sum'; expected one of softmax, score"),
        ("group-cam", {"groups": 0}, "groups is 0; expected a whole number of at least 1"),
        ("recipro-cam", {"gaussian": 1}, "gaussian is 1; expected True or False"),
        ("rise", {"masks": 2.0}, "masks is 2.0; expected a whole number of at least 1"),
        ("rise", {"probability": 1}, "probability is 1; expected a number above 0 and below 1"),
        ("rise", {"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ("lime", {}, f"method is 'lime'; expected one of {', '.join(METHODS)}"),
        (None, {}, f"method is None; expected one of {', '.join(METHODS)}, or a method object"),
        (Plain(), {}, "method is mine, of a class that is no dataclass; expected one, as Method describes"),
        (GradCam, {}, f"method is {GradCam!r}; expected one of {', '.join(METHODS)}, or a method object"),
        (METHODS["rise"](), {"masks": 3}, "masks: given beside a method object, which has its options already"),
    ],
)
def test_options_without_meaning(tiny: Tiny, name: str | Method, options: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        tiny.explainer.explain(tiny.x, 1, method=name, **options)


def test_maps_of_every_layer_are_for_methods_that_make_them(tiny: Tiny) -> None:
    text = "visualization_maps is True; expected False with method 'grad-cam', which makes no such maps"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        tiny.explainer.explain(tiny.x, 1, method="grad-cam", visualization_maps=True)
    assert len(tiny.explainer.explain(tiny.x, 1, method="sise", visualization_maps=True).visualization_maps) == 3


def test_sise_is_the_rule_positive(tiny: Tiny) -> None:
    one = tiny.explainer.explain(tiny.x, 1, method="sise", mu=0.2, fusion="soft", baseline="blur")
    other = tiny.explainer.explain(tiny.x, 1, rule="positive", mu=0.2, fusion="soft", baseline="blur")
    np.testing.assert_array_equal(one.heatmap, other.heatmap)
    assert one.options == {"mu": 0.2, "fusion": "soft", "baseline": "blur"}
    assert one.method == "sise"


def test_a_method_object(tiny: Tiny) -> None:
    made = METHODS["score-cam"](weights="score")
    result = tiny.explainer.explain(tiny.x, 1, method=made)
    np.testing.assert_array_equal(
        result.heatmap, tiny.explainer.explain(tiny.x, 1, method="score-cam", weights="score").heatmap
    )


def _tensor(maps: Float):
    import torch

    return torch.tensor(maps[None])


def _without(maps: Float, channel: int) -> Float:
    ablated = maps.copy()
    ablated[channel] = 0
    return ablated
