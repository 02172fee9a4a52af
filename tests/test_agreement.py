"""The whole path on real models: what design.md calls "Agreement", against the float64 reference."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine.export.evaluate import function
from engine.image import prepare
from tests.comparison import Case, pure_reference_evaluator
from tests.models import MODELS, PHOTOS, exported
from tests.reference import agreement, method
from tests.reference.network import TorchNetwork

# Every rule shares the reference's scores. To keep the suite short, SISE's rule is compared on one photo of each model,
# and `all` on the model with the fewest maps.
FIRST = [(model, PHOTOS[kind][0]) for model, kind in MODELS.items()]
SECOND = [(model, PHOTOS[kind][1]) for model, kind in MODELS.items()]
RULES: dict[tuple[str, str], tuple[method.Rule, ...]] = dict.fromkeys(FIRST, ("otsu", "otsu-count", "positive"))
RULES |= dict.fromkeys(SECOND, ("otsu", "otsu-count"))
RULES["squeezenet1.1", PHOTOS[MODELS["squeezenet1.1"]][0]] = ("otsu", "otsu-count", "positive", "all")
QUICK = ("resnet50-thin-voc20", "squeezenet1.1")
"""Models whose float64 gradients at the image take a second or two; depthwise ones take torch half a minute."""


def make_case(assets: Path, folder: Path, name: str, photo: str) -> Case:
    model = exported(assets, name, folder)
    bundle = model.explainer.bundle
    path = assets / "images" / photo
    x = prepare(path, bundle.preprocess, bundle.image_shape).array
    return Case(model, path, x, network(model.source))


@cache
def network(source: Path) -> TorchNetwork:
    return TorchNetwork(source)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(
    scope="module",
    params=[*FIRST, *(pytest.param(case, marks=pytest.mark.slow) for case in SECOND)],  # the suite has 15 minutes
    ids=lambda case: f"{case[0]}-{Path(case[1]).stem}",
)
def case(request: pytest.FixtureRequest, assets: Path, bundles: Path) -> Case:
    made = make_case(assets, bundles, *request.param)
    made.rules = RULES[request.param]
    return made


def test_average_gradients_equal_float64_autograd(case: Case) -> None:
    case.check_average_gradients()


def test_one_class_equals_reference(case: Case) -> None:
    alpha = [layer[0] for layer in case.alpha]
    for rule in case.rules:
        result = case.model.explainer.explain(case.photo, rule=rule, visualization_maps=True)
        assert result.target == case.logits.argmax()
        case.check(result, alpha, rule, "hard")
    scores = np.concatenate([layer.scores for layer in result.layers])
    agreement.assert_proves_something(case.logits, alpha, scores, trained=True)


def test_several_classes_equal_reference_and_the_single_results(case: Case) -> None:
    targets = np.argsort(-case.logits, kind="stable")[:2].tolist()
    _, _, alpha = case.tap(targets)
    explainer = case.model.explainer
    together = explainer.explain(case.photo, targets, fusion="soft", visualization_maps=True)
    assert [result.target for result in together] == targets
    for k, result in enumerate(together):
        case.check(result, [layer[k] for layer in alpha], "otsu", "soft")
    alone = explainer.explain(case.photo, targets[1], fusion="soft", visualization_maps=True)
    for layer, single in zip(together[1].layers, alone.layers, strict=True):
        np.testing.assert_array_equal(layer.selected_channels, single.selected_channels)
        agreement.assert_scores(layer.scores, single.scores)
    for view, single_view in zip(together[1].visualization_maps, alone.visualization_maps, strict=True):
        agreement.assert_visualization_map(view, single_view)


@pytest.mark.parametrize("max_masks", [0, 40])
def test_one_graph_gives_the_same(case: Case, max_masks: int) -> None:
    result = case.model.explainer.explain(case.photo, max_masks=max_masks or None, visualization_maps=True)
    assert result.complete == (max_masks == 0)
    case.check_one_graph(result, max_masks)


def test_same_input_gives_the_same_bytes(case: Case) -> None:
    first, second = (case.model.explainer.explain(case.photo) for _ in range(2))
    assert first.heatmap.tobytes() == second.heatmap.tobytes()
    assert [layer.scores.tobytes() for layer in first.layers] == [layer.scores.tobytes() for layer in second.layers]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_input_gradients_equal_float64_autograd(name: str, assets: Path, bundles: Path) -> None:
    make_case(assets, bundles, name, PHOTOS[MODELS[name]][1]).check_input_gradients()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_photo_equals_reference(name: str, assets: Path, bundles: Path) -> None:
    images = assets / "images"
    photos = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".png"))
    assert len(photos) == 158
    for photo in photos:
        case = make_case(assets, bundles, name, str(photo.relative_to(images)))
        result = case.model.explainer.explain(photo, visualization_maps=True)
        case.check(result, [layer[0] for layer in case.alpha], "otsu", "hard")


@pytest.mark.parametrize(("name", "photo"), FIRST)
def test_companions_in_float64_equal_autograd(name: str, photo: str, assets: Path, bundles: Path) -> None:
    make_case(assets, bundles, name, photo).check_companions(function)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "photo"), FIRST)
def test_companions_in_onnx_own_evaluator_equal_autograd(name: str, photo: str, assets: Path, bundles: Path) -> None:
    make_case(assets, bundles, name, photo).check_companions(pure_reference_evaluator)
