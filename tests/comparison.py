"""Comparing the engine's results with the float64 reference: design.md, section 3, Agreement (a) to (e)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import engine
from engine.backends import create_backend
from engine.export.differentiate import companion
from engine.export.evaluate import in_float64
from engine.export.split import Block
from tests.models import Exported
from tests.reference import agreement, method
from tests.reference.network import TorchNetwork, expose

COMPANIONS = 1e-8
Evaluate = Callable[[ir.Model], Callable[..., list[NDArray[np.float64]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a comparison found, all within the bounds of `agreement`.

    Attributes:
        scores: (d) Largest difference of a score.
        visualization_maps: (d) Largest difference of a visualization map.
        heatmap_mean: (e) Mean difference of the heatmap.
        heatmap_largest: (e) Its largest difference outside pixels near a threshold.
    """

    scores: float
    visualization_maps: float
    heatmap_mean: float
    heatmap_largest: float


@dataclass
class Case:
    """One image and class of one model: one run of the tapped graph, and reference scores computed once per channel.

    The class is the top-1 one unless another is named.
    """

    model: Exported
    photo: Path | NDArray[np.float32]
    x: NDArray[np.float32]
    network: TorchNetwork
    rules: tuple[method.Rule, ...] = ("otsu",)
    target: int = -1
    device: str = "cpu"
    scored: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bundle = self.model.explainer.bundle
        self.backend = create_backend(self.device)
        self.layers = [layer.name for layer in bundle.layers]
        self.logits_name = bundle.manifest["output"]["name"]
        self.tapped = self.backend.open(bundle.tapped)
        self.logits, self.maps, self.alpha = self.tap([self.target])
        self.target = int(self.logits.argmax()) if self.target == -1 else self.target

    def tap(self, targets: Sequence[int]):
        """Run the tapped graph: logits [classes], F_l [C_l, h, w] and α_l [K, C_l]."""
        logits, _, *rest = self.tapped.run([self.x, np.array(targets, np.int64)])
        count = len(self.layers)
        return logits[0], [maps[0] for maps in rest[:count]], rest[count:]

    def decisions(self) -> dict[str, NDArray[np.float32]]:
        """Values of the float32 run that decide: the tapped graph with more outputs, and the same average gradients."""
        names = self.network.decision_names([self.logits_name])
        model = expose(onnx.load(self.model.explainer.bundle.tapped), names)
        outputs = self.backend.open(model.SerializeToString()).run([self.x, np.array([self.target])])
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

    def check_companions(self, evaluate: Evaluate) -> float:
        """(a) Compare companions that were generated in float64 with float64 autograd; return the largest distance."""
        reference = method.average_gradients(self.network, self.x, self.target, self.layers, self.logits_name)
        found = float64_gradients(self.model.explainer.bundle, self.x, self.target, evaluate)
        distances = []
        for name, average, expected in zip(self.layers, found, reference, strict=True):
            distances.append(float(np.linalg.norm(average - expected) / np.linalg.norm(expected)))
            assert distances[-1] <= COMPANIONS, f"companions at {name}: relative L2 {distances[-1]:.3e}"
        return max(distances)

    def check_average_gradients(self, bound: float = agreement.ALPHA) -> float:
        """(b) Compare float32 average gradients with float64 autograd that repeats this run's decisions."""
        reference = method.average_gradients(
            self.network, self.x, self.target, self.layers, self.logits_name, self.decisions()
        )
        return agreement.assert_alpha([alpha[0] for alpha in self.alpha], reference, bound)

    def check_input_gradients(self, bound: float = agreement.ALPHA) -> None:
        """(b) Compare `full_gradient.onnx` with float64 autograd that repeats this run's decisions, in a batch of two.

        The rows are the image with this class, and the image turned over with the first class. All biased ops are Conv
        or Gemm. `gradient.onnx` gives the same.
        """
        bundle = self.model.explainer.bundle
        images, targets = np.concatenate([self.x, self.x[..., ::-1]]), np.array([self.target, 0], np.int64)
        names = self.network.decision_names([self.logits_name])
        graph = onnx.load(bundle.full_gradient)
        model = expose(graph, names)
        outputs = self.backend.open(model.SerializeToString()).run([images, targets])
        exposed = {value.name: array for value, array in zip(model.graph.output, outputs, strict=True)}

        leaf = torch.tensor(images, dtype=torch.float64, requires_grad=True)
        ops = [bias.name for bias in bundle.biases]
        decisions = {name: exposed[name] for name in names}
        values = self.network.run(leaf, [self.logits_name, *ops], decisions=decisions)
        logit = values[self.logits_name][[0, 1], targets.tolist()].sum()
        expected, *at_ops = torch.autograd.grad(logit, [leaf, *(values[name] for name in ops)])
        pairs = [(exposed["image_gradient"], expected.numpy())]
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        made_by = {entry.output[0]: entry for entry in graph.graph.node}
        for number, (name, gradient) in enumerate(zip(ops, at_ops, strict=True), start=1):
            bias = arrays[made_by[name].input[2]].astype(np.float64)
            product = gradient.numpy() * bias.reshape(-1, *[1] * (gradient.ndim - 2))
            pairs.append((exposed[f"bias_attribution_{number}"], product))
        for place, (found, right) in enumerate(pairs):
            distance = float(np.linalg.norm(found - right) / np.linalg.norm(right))
            assert distance <= bound, f"output {place} of the gradients: relative L2 {distance:.3e}"
        alone = self.backend.open(bundle.gradient).run([images, targets])[1]
        assert np.linalg.norm(alone - expected.numpy()) <= bound * np.linalg.norm(expected.numpy())

    def check(
        self, result: engine.Explanation, alpha: Sequence[NDArray[np.float32]], rule: method.Rule, fusion: method.Fusion
    ) -> Figures:
        """(c), (d), (e) Compare selection, scores, visualization maps and heatmap of a result with the reference."""
        size = self.x.shape[2:]
        views: list[NDArray[np.float64] | None] = []
        score_errors, map_errors = [], []
        for number, layer in enumerate(result.layers):
            channels = layer.selected_channels
            np.testing.assert_array_equal(np.sort(channels), method.select(alpha[number], rule))
            assert layer.positive == np.count_nonzero(alpha[number] > 0)
            assert layer.threshold == alpha[number][channels].min()
            scores = self.reference_scores(number, channels)[:, result.target]
            score_errors.append(agreement.assert_scores(layer.scores, scores))
            maps = self.maps[number][channels]
            flat = sum(map(method.is_flat, maps))
            assert (layer.selected, layer.flat, layer.scored) == (len(channels), flat, len(channels) - flat)
            views.append(method.visualization_map(scores, maps, *size))
            map_errors.append(agreement.assert_visualization_map(result.visualization_maps[number], views[-1]))
        heatmap, thresholds = method.fuse(views, fusion, size=size)
        for layer, view, threshold in zip(result.layers, views, thresholds, strict=True):
            assert (layer.fusion_threshold is None) == (threshold is None)
            if fusion == "hard" and threshold is not None:
                agreement.assert_threshold(layer.fusion_threshold, view)
        mean, largest = agreement.assert_heatmap(result.heatmap, heatmap, views, thresholds)
        return Figures(
            scores=max(score_errors), visualization_maps=max(map_errors), heatmap_mean=mean, heatmap_largest=largest
        )

    def check_one_graph(self, result: engine.Explanation, max_masks: int = 0) -> None:
        """(e) Compare `explain.onnx` with a result of the engine that has its visualization maps: the same counts."""
        graph = self.backend.open(self.model.explainer.bundle.explain)
        budget = np.array([max_masks], np.int64)
        heatmap, target, score, logits, selected, scored = graph.run([self.x, np.array([result.target]), budget])
        assert target.tolist() == [result.target]
        np.testing.assert_allclose(score, [result.class_score], rtol=0, atol=1e-6)
        np.testing.assert_allclose(logits[0], self.logits, rtol=0, atol=1e-5 * np.abs(self.logits).max())
        assert selected.tolist() == [layer.selected for layer in result.layers]
        assert scored.tolist() == [layer.scored for layer in result.layers]
        cuts = [layer.fusion_threshold for layer in result.layers]
        agreement.assert_heatmap(heatmap, result.heatmap, list(result.visualization_maps), cuts)


def float64_gradients(
    bundle: engine.bundle.Bundle, x: NDArray[np.float32], target: int, evaluate: Evaluate
) -> list[NDArray[np.float64]]:
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


def pure_reference_evaluator(model: ir.Model) -> Callable[..., list[NDArray[np.float64]]]:
    """Return a model as a function, run by onnx's own evaluator with none of the engine's operators."""
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    names = [value.name for value in model.graph.inputs]
    return lambda *inputs: evaluator.run(None, dict(zip(names, inputs, strict=True)))
