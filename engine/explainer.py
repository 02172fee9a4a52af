"""Ada-SISE on a bundle: the method's phases, in the order of the paper.

    tap       one run of the network: logits, feature maps F_l, average gradients α_l
    select    per layer, the channels whose α the rule keeps
    score     each kept feature map becomes a mask; the network scores the masked images
    combine   per layer, the masks weighted by their scores: the visualization map V_l
    fuse      V_1 … V_L, shallow to deep: the heatmap

Source: SISE, arXiv 2010.00672; Ada-SISE, arXiv 2102.07799.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from engine.backends import Backend, create_backend
from engine.bundle import Bundle, Layer, load_bundle
from engine.explanation import Explanation, LayerReport
from engine.image import Baseline, Photo, make_baseline, prepare
from engine.kernels import MaskWriter, Selection, activate, fuse, is_flat, select_channels, visualization_map
from engine.options import Options, Target, Targets, class_indices
from engine.scoring import ScoredMasks, finite, score_masks

Floats = NDArray[np.float32]
Map = NDArray[np.float64]

_CLASSES_AT_ONCE = 8  # bounds the memory of the backward pass


def load(path: str | Path, *, device: str = "cpu", threads: int | None = None) -> "Explainer":
    """Load a bundle, ready to explain.

    Args:
        path: The bundle `NAME.ada`.
        device: `cpu`.
        threads: Threads that work on one graph; None for one per physical core.

    Raises:
        BundleError: The bundle is missing, damaged, foreign or of another schema.
        BackendError: The runtime refused a graph.
        OptionError: The device is unknown or the number of threads is not positive.
    """
    return Explainer(load_bundle(Path(path)), create_backend(device, threads=threads))


class Explainer:
    """Explains the answers of one model.

    Args:
        bundle: The compiled model.
        backend: The runtime that executes its graphs.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._tapped = backend.open(bundle.tapped)
        self._forward = backend.open(bundle.forward)

    @overload
    def explain(
        self,
        image: Photo,
        target: Target = None,
        *,
        rule: str = ...,
        mu: float = ...,
        fusion: str = ...,
        activation: str | None = ...,
        baseline: Baseline = ...,
        batch_size: int = ...,
        visualization_maps: bool = ...,
    ) -> Explanation: ...

    @overload
    def explain(
        self,
        image: Photo,
        target: Targets,
        *,
        rule: str = ...,
        mu: float = ...,
        fusion: str = ...,
        activation: str | None = ...,
        baseline: Baseline = ...,
        batch_size: int = ...,
        visualization_maps: bool = ...,
    ) -> list[Explanation]: ...

    def explain(
        self,
        image: Photo,
        target: Target | Targets = None,
        *,
        rule: str = "otsu",
        mu: float = 0.0,
        fusion: str = "hard",
        activation: str | None = None,
        baseline: Baseline = "zero",
        batch_size: int = 8,
        visualization_maps: bool = False,
    ) -> Explanation | list[Explanation]:
        """Explain one class of one image, or several classes with one scoring.

        Args:
            image: A photo (path, PIL image or uint8 [h, w, 3]), or the prepared input float32 [1, C, H, W].
            target: Class index or label; None for the top-1 class; or a list of these. Classes in a list share one run
                of the network and one scoring of all their masks, and each gives the result that it gives alone.
            rule: `otsu` (Ada-SISE), `otsu-count`, `positive` (SISE) or `all`; see `engine.kernels.select`.
            mu: For rule `positive`: keep maps whose average gradient exceeds mu times the largest.
            fusion: `hard` (the paper's) or `soft`; see `engine.kernels.fuse`.
            activation: `softmax`, `sigmoid` or `none` instead of the bundle's own.
            baseline: What masked-out pixels become: `zero` in the network's input space, `blur`, or a colour (r, g, b).
            batch_size: Masked images scored in one run of the network.
            visualization_maps: Whether to keep V_l of every layer in the result.

        Returns:
            One explanation, or a list of them for a list of targets.

        Raises:
            ImageError: The image cannot be read or does not fit, or the network computes NaN or infinity for it.
            TargetError: The model has no such class.
            OptionError: An option has no meaning.
        """
        activation = self.bundle.activation if activation is None else activation
        options = Options(rule=rule, mu=mu, fusion=fusion, activation=activation, batch_size=batch_size)
        targets = class_indices(target, self.bundle.classes, self.bundle.labels)
        clock = _Clock()
        with clock("prepare"):
            prepared = prepare(image, self.bundle.preprocess, self.bundle.image_shape)
            replacement = make_baseline(baseline, prepared.array, self.bundle.preprocess)
        with clock("tap"):
            logits, classes, maps, averages = self._tap(prepared.array, targets)
        with clock("select"):
            chosen = [[select_channels(alpha[k], rule, mu) for alpha in averages] for k in range(len(classes))]
        with clock("score"):
            writer = MaskWriter(prepared.array[0], replacement)
            masks = self._score(writer, maps, chosen, classes, options)

        results = []
        size = self.bundle.image_shape[1:]
        class_scores = activate(logits, activation)[0]
        for k, index in enumerate(classes):
            with clock("combine"):
                views = [_combine(*layer, k, size) for layer in zip(maps, masks, chosen[k], strict=True)]
            with clock("fuse"):
                heatmap, cuts = fuse(views, fusion)
            layers = tuple(_report(*layer, k) for layer in zip(self.bundle.layers, masks, chosen[k], cuts, strict=True))
            results.append(
                Explanation(
                    heatmap=(np.zeros(size) if heatmap is None else heatmap).astype(np.float32),
                    target=index,
                    label=None if self.bundle.labels is None else self.bundle.labels[index],
                    class_score=float(class_scores[index]),
                    activation=activation,
                    rule=rule,
                    mu=float(mu),
                    fusion=fusion,
                    baseline=baseline if isinstance(baseline, str) else tuple(map(float, baseline)),
                    layers=layers,
                    scored=sum(layer.scored for layer in layers),
                    scorable=sum(layer.selected - layer.flat for layer in layers),
                    complete=True,
                    timings_ms=clock.timings_ms,
                    warnings=_warnings(layers, empty=heatmap is None),
                    picture=prepared.picture,
                    visualization_maps=tuple(map(_as_float32, views)) if visualization_maps else None,
                )
            )
        clock.stop()
        return results if isinstance(target, list | tuple) else results[0]

    def _tap(self, array: Floats, targets: Sequence[int]) -> tuple[Floats, list[int], list[Floats], list[Floats]]:
        """Run the tapped graph: logits [1, classes], class indices, F_l [1, C_l, h_l, w_l] and α_l [K, C_l]."""
        count = len(self.bundle.layers)
        classes: list[int] = []
        averages: list[list[Floats]] = []
        for start in range(0, len(targets), _CLASSES_AT_ONCE):
            part = np.array(targets[start : start + _CLASSES_AT_ONCE], np.int64)
            logits, indices, *rest = self._tapped.run([array, part])
            classes += indices.tolist()
            averages.append([finite(alpha) for alpha in rest[count:]])
        maps = [finite(layer) for layer in rest[:count]]
        return finite(logits), classes, maps, [np.concatenate(alphas) for alphas in zip(*averages, strict=True)]

    def _score(
        self,
        writer: MaskWriter,
        maps: Sequence[Floats],
        chosen: Sequence[Sequence[Selection]],
        classes: Sequence[int],
        options: Options,
    ) -> list[ScoredMasks]:
        """Score the masks of all classes once: in every layer the union of their channels, without the flat maps."""
        channels = []
        for layer_maps, selections in zip(maps, zip(*chosen, strict=True), strict=True):
            union = np.unique(np.concatenate([selection.channels for selection in selections]))
            channels.append(union[~is_flat(layer_maps[0, union])])
        rows = max(1, min(options.batch_size, sum(map(len, channels))))
        batch = np.empty((rows, *self.bundle.image_shape), np.float32)
        return score_masks(self._forward, writer, maps, channels, classes, options.activation, batch)


def _combine(maps: Floats, masks: ScoredMasks, selection: Selection, k: int, size: tuple[int, int]) -> Map | None:
    """Make the visualization map of one layer for class number k, from that class's own channels."""
    own = masks.positions_of(selection.channels)
    own = own[own >= 0]
    return visualization_map(
        maps[0, masks.channels[own]], masks.scores[own, k], masks.minimum[own], masks.extent[own], size
    )


def _report(layer: Layer, masks: ScoredMasks, selection: Selection, cut: float | None, k: int) -> LayerReport:
    """Say what happened in one layer for class number k."""
    own = masks.positions_of(selection.channels)
    scores = np.full(len(own), np.nan)
    scores[own >= 0] = masks.scores[own[own >= 0], k]
    scored = int(np.count_nonzero(own >= 0))
    return LayerReport(
        name=layer.name,
        channels=layer.channels,
        positive=selection.positive,
        selected=len(own),
        flat=len(own) - scored,
        scored=scored,
        threshold=selection.threshold,
        fusion_threshold=cut,
        selected_channels=selection.channels,
        scores=scores,
    )


def _warnings(layers: Sequence[LayerReport], *, empty: bool) -> tuple[str, ...]:
    warnings = [
        f"layer {layer.name!r} gave no mask: "
        + ("no feature map was selected" if layer.selected == 0 else f"all {layer.flat} selected maps are constant")
        for layer in layers
        if layer.scored == 0
    ]
    if empty:
        warnings.append("the heatmap is all zeros: no layer gave a visualization map, or fusion cut everything away")
    return tuple(warnings)


def _as_float32(view: Map | None) -> Floats | None:
    return None if view is None else view.astype(np.float32)


class _Clock:
    """Adds up the time spent in each phase, in milliseconds."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.timings_ms[phase] = self.timings_ms.get(phase, 0.0) + (time.perf_counter() - began) * 1e3

    def stop(self) -> None:
        """Note the time since the clock was made as `total`."""
        self.timings_ms["total"] = (time.perf_counter() - self._began) * 1e3
