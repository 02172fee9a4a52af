"""The whole path on real models: what design.md calls "Agreement", against the float64 reference."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

import engine
from engine.backends import OnnxRuntimeCpu
from engine.export.differentiate import companion
from engine.export.evaluate import function, in_float64
from engine.export.split import Block
from engine.image import prepare
from tests.models import MODELS, PHOTOS, Exported, exported
from tests.reference import agreement, method
from tests.reference.network import TorchNetwork, expose

# Every rule shares the reference's scores. To keep the suite short, SISE's rule is compared on one photo of each model,
# and `all` on the model with the fewest maps.
FIRST = [(model, PHOTOS[kind][0]) for model, kind in MODELS.items()]
SECOND = [(model, PHOTOS[kind][1]) for model, kind in MODELS.items()]
RULES: dict[tuple[str, str], tuple[method.Rule, ...]] = dict.fromkeys(FIRST, ("otsu", "otsu-count", "positive"))
RULES |= dict.fromkeys(SECOND, ("otsu", "otsu-count"))
RULES["squeezenet1.1", PHOTOS[MODELS["squeezenet1.1"]][0]] = ("otsu", "otsu-count", "positive", "all")


@dataclass
class Case:
    """One photo of one model: one run of the tapped graph, and reference scores that are computed once per channel."""

    model: Exported
    photo: Path
    x: NDArray[np.float32]
    network: TorchNetwork
    rules: tuple[method.Rule, ...] = ("otsu",)
    scored: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bundle = self.model.explainer.bundle
        self.layers = [layer.name for layer in bundle.layers]
        self.logits_name = bundle.manifest["output"]["name"]
        self.tapped = OnnxRuntimeCpu().open(bundle.tapped)
        self.logits, self.maps, self.alpha = self.tap([-1])

    def tap(self, targets: Sequence[int]):
        """Run the tapped graph: logits [classes], F_l [C_l, h, w] and α_l [K, C_l]."""
        logits, _, *rest = self.tapped.run([self.x, np.array(targets, np.int64)])
        count = len(self.layers)
        return logits[0], [maps[0] for maps in rest[:count]], rest[count:]

    def decisions(self) -> dict[str, NDArray[np.float32]]:
        """Values of the float32 run that decide: the tapped graph with more outputs, and the same average gradients."""
        names = self.network.decision_names([self.logits_name])
        model = expose(onnx.load(self.model.explainer.bundle.tapped), names)
        outputs = OnnxRuntimeCpu().open(model.SerializeToString()).run([self.x, np.array([-1])])
        exposed = {value.name: array for value, array in zip(model.graph.output, outputs, strict=True)}
        for number, alpha in enumerate(self.alpha, start=1):
            np.testing.assert_array_equal(exposed[f"average_gradient_{number}"], alpha)
        return {name: exposed[name] for name in names}

    def reference_scores(self, layer: int, channels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores [len(channels), classes] in torch float32, scored once for all tests; NaN for flat maps."""
        missing = [k for k in channels.tolist() if (layer, k) not in self.scored]
        if missing:
            rows = method.score_masks(
                self.network,
                self.x,
                self.maps[layer][missing],
                activation=self.model.activation,
                logits=self.logits_name,
            )
            self.scored |= {(layer, k): row for k, row in zip(missing, rows, strict=True)}
        return np.array([self.scored[layer, k] for k in channels.tolist()]).reshape(-1, len(self.logits))

    def check(
        self, result: engine.Explanation, alpha: Sequence[NDArray[np.float32]], rule: method.Rule, fusion: method.Fusion
    ) -> None:
        """Compare selection, scores, visualization maps and heatmap of a result with the reference."""
        size = self.x.shape[2:]
        views = []
        for number, layer in enumerate(result.layers):
            channels = layer.selected_channels
            np.testing.assert_array_equal(np.sort(channels), method.select(alpha[number], rule))
            assert layer.positive == np.count_nonzero(alpha[number] > 0)
            assert layer.threshold == alpha[number][channels].min()
            scores = self.reference_scores(number, channels)[:, result.target]
            agreement.assert_scores(layer.scores, scores)
            maps = self.maps[number][channels]
            flat = sum(map(method.is_flat, maps))
            assert (layer.selected, layer.flat, layer.scored) == (len(channels), flat, len(channels) - flat)
            views.append(method.visualization_map(scores, maps, *size))
            agreement.assert_visualization_map(result.visualization_maps[number], views[-1])
        heatmap, thresholds = method.fuse(views, fusion, size=size)
        for layer, view, threshold in zip(result.layers, views, thresholds, strict=True):
            assert (layer.fusion_threshold is None) == (threshold is None)
            if fusion == "hard" and threshold is not None:
                agreement.assert_threshold(layer.fusion_threshold, view)
        agreement.assert_heatmap(result.heatmap, heatmap, views, thresholds)


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


@pytest.fixture(scope="module", params=FIRST + SECOND, ids=lambda case: f"{case[0]}-{Path(case[1]).stem}")
def case(request: pytest.FixtureRequest, assets: Path, bundles: Path) -> Case:
    made = make_case(assets, bundles, *request.param)
    made.rules = RULES[request.param]
    return made


def test_average_gradients_equal_float64_autograd(case: Case) -> None:
    top = int(case.logits.argmax())
    reference = method.average_gradients(case.network, case.x, top, case.layers, case.logits_name, case.decisions())
    agreement.assert_alpha([alpha[0] for alpha in case.alpha], reference)


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


def test_same_input_gives_the_same_bytes(case: Case) -> None:
    first, second = (case.model.explainer.explain(case.photo) for _ in range(2))
    assert first.heatmap.tobytes() == second.heatmap.tobytes()
    assert [layer.scores.tobytes() for layer in first.layers] == [layer.scores.tobytes() for layer in second.layers]


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


def float64_gradients(bundle: engine.bundle.Bundle, x: NDArray[np.float32], target: int, evaluate) -> list[NDArray]:
    """Average gradients by the bundle's blocks in float64 and the companions made of them, one after the other."""
    names = [f"block{number}" for number in range(1, len(bundle.layers) + 1)] + ["head"]
    blocks = [Block(name, in_float64(ir.load(bundle.path / f"{name}.onnx"))) for name in names]
    inputs = [x.astype(np.float64)]
    for block in blocks:
        inputs.append(evaluate(block.model)(inputs[-1])[0])
    gradient = np.zeros_like(inputs.pop())
    gradient[0, target] = 1.0
    averages = []
    for block, block_input in zip(blocks[:0:-1], inputs[:0:-1], strict=True):
        gradient, total = evaluate(companion(block))(block_input, gradient)
        averages.append(total[0])
    return averages[::-1]


def pure_reference_evaluator(model: ir.Model):
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    names = [value.name for value in model.graph.inputs]
    return lambda *inputs: evaluator.run(None, dict(zip(names, inputs, strict=True)))


def assert_equals_float64_autograd(case: Case, evaluate) -> None:
    top = int(case.logits.argmax())
    reference = method.average_gradients(case.network, case.x, top, case.layers, case.logits_name)
    found = float64_gradients(case.model.explainer.bundle, case.x, top, evaluate)
    for average, expected in zip(found, reference, strict=True):
        assert np.linalg.norm(average - expected) <= 1e-8 * np.linalg.norm(expected)


@pytest.mark.parametrize(("name", "photo"), FIRST)
def test_companions_in_float64_equal_autograd(name: str, photo: str, assets: Path, bundles: Path) -> None:
    assert_equals_float64_autograd(make_case(assets, bundles, name, photo), function)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "photo"), FIRST)
def test_companions_in_onnx_own_evaluator_equal_autograd(name: str, photo: str, assets: Path, bundles: Path) -> None:
    assert_equals_float64_autograd(make_case(assets, bundles, name, photo), pure_reference_evaluator)
