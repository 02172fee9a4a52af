"""Ada-SISE on a bundle: the method's phases, in the order of the paper.

    tap       one run of the network: logits, feature maps F_l, average gradients α_l
    select    per layer, the channels whose α the rule keeps
    score     each kept feature map becomes a mask; the network scores the masked images
    combine   per layer, the masks weighted by their scores: the visualization map V_l
    fuse      V_1 … V_L, shallow to deep: the heatmap

Source: SISE, arXiv 2010.00672; Ada-SISE, arXiv 2102.07799.
"""

import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from engine.backends import Backend, create_backend
from engine.bundle import ACTIVATIONS, Bundle, load_bundle
from engine.errors import OptionError, TargetError
from engine.explanation import Explanation, LayerReport
from engine.image import Baseline, Photo, make_baseline, prepare
from engine.kernels import (
    FUSIONS,
    RULES,
    MaskWriter,
    Selection,
    activate,
    fuse,
    is_flat,
    select_channels,
    visualization_map,
)

Target: TypeAlias = int | str | None
Targets: TypeAlias = list[int] | list[str] | list[Target] | tuple[Target, ...]
Maps: TypeAlias = list[NDArray[np.float32]]

_TOP = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to explain; checked when made.

    Attributes:
        rule: One of `RULES`.
        mu: For rule `positive`: keep maps whose average gradient exceeds mu times the largest, from 0 up to 1.
        fusion: One of `FUSIONS`.
        activation: What turns logits into class scores.
        batch_size: Masked images scored in one run of the network.
    """

    rule: str
    mu: float
    fusion: str
    activation: str
    batch_size: int

    def __post_init__(self) -> None:
        for name, known in (("rule", RULES), ("fusion", FUSIONS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if not 0 <= self.mu < 1:
            raise OptionError(f"mu is {self.mu:g}; expected a number from 0 up to 1")
        if self.mu > 0 and self.rule != "positive":
            raise OptionError(f"mu is {self.mu:g} with rule {self.rule!r}; only rule 'positive' takes mu")
        if self.batch_size < 1:
            raise OptionError(f"batch_size is {self.batch_size}; expected at least 1")


@dataclass(frozen=True, slots=True, eq=False)
class LayerScores:
    """The scored masks of one layer, of all classes together.

    Attributes:
        channels: int64 [n], ascending.
        scores: float64 [n, K], the masks' scores for the K classes.
        minimum: float64 [n], minimum of each upsampled map.
        extent: float64 [n], maximum less minimum of each upsampled map.
    """

    channels: NDArray[np.int64]
    scores: NDArray[np.float64]
    minimum: NDArray[np.float64]
    extent: NDArray[np.float64]


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
            ImageError: The image cannot be read or does not fit.
            TargetError: The model has no such class.
            OptionError: An option has no meaning.
        """
        options = Options(
            rule=rule,
            mu=mu,
            fusion=fusion,
            activation=activation or self.bundle.activation,
            batch_size=batch_size,
        )
        several = isinstance(target, list | tuple)
        targets = [self._class_index(entry) for entry in (target if isinstance(target, list | tuple) else [target])]
        timings: dict[str, float] = {}
        with _timed(timings, "total"):
            with _timed(timings, "prepare"):
                prepared = prepare(image, self.bundle.preprocess, self.bundle.image_shape)
                baseline_array = make_baseline(baseline, prepared.array, self.bundle.preprocess)
            with _timed(timings, "tap"):
                logits, classes, maps, averages = self._tap(prepared.array, targets)
                class_scores = activate(logits, options.activation)[0]
            with _timed(timings, "select"):
                chosen = [[select_channels(alpha[k], rule, mu) for alpha in averages] for k in range(len(classes))]
                flat = [is_flat(layer[0]) for layer in maps]
            with _timed(timings, "score"):
                writer = MaskWriter(prepared.array[0], baseline_array)
                scored = self._score(writer, maps, flat, chosen, classes, options)
            with _timed(timings, "combine"):
                size = prepared.array.shape[2:]
                views = [
                    [
                        _combine(layer[0], selection.channels, masks, k, size)
                        for layer, selection, masks in zip(maps, row, scored, strict=True)
                    ]
                    for k, row in enumerate(chosen)
                ]
            with _timed(timings, "fuse"):
                fused = [fuse(row, options.fusion) for row in views]

        results = []
        for k, index in enumerate(classes):
            heatmap, cuts = fused[k]
            layers = tuple(
                self._layer_report(number, chosen[k][number], flat[number], cuts[number])
                for number in range(len(self.bundle.layers))
            )
            results.append(
                Explanation(
                    heatmap=np.zeros(size, np.float32) if heatmap is None else heatmap.astype(np.float32),
                    target=index,
                    label=None if self.bundle.labels is None else self.bundle.labels[index],
                    class_score=float(class_scores[index]),
                    activation=options.activation,
                    rule=rule,
                    mu=mu,
                    fusion=fusion,
                    baseline=baseline,
                    layers=layers,
                    scored=sum(layer.scored for layer in layers),
                    complete=True,
                    timings_ms=timings,
                    warnings=_warnings(layers, heatmap is None),
                    picture=prepared.picture,
                    visualization_maps=tuple(None if v is None else v.astype(np.float32) for v in views[k])
                    if visualization_maps
                    else None,
                )
            )
        return results if several else results[0]

    def _tap(
        self, array: NDArray[np.float32], targets: Sequence[int]
    ) -> tuple[NDArray[np.float32], list[int], Maps, Maps]:
        """Run the tapped graph: logits [1, classes], class indices, F_l [1, C_l, h_l, w_l] and α_l [K, C_l]."""
        logits, classes, *rest = self._tapped.run([array, np.array(targets, np.int64)])
        tensors = [tensor.astype(np.float32, copy=False) for tensor in rest]
        count = len(self.bundle.layers)
        return logits.astype(np.float32, copy=False), classes.tolist(), tensors[:count], tensors[count:]

    def _score(
        self,
        writer: MaskWriter,
        maps: Maps,
        flat: Sequence[NDArray[np.bool_]],
        chosen: Sequence[Sequence[Selection]],
        classes: Sequence[int],
        options: Options,
    ) -> list[LayerScores]:
        """Score the masks of all classes once: the union of their channels, layer after layer."""
        scored = []
        for number, layer_flat in enumerate(flat):
            union = np.unique(np.concatenate([row[number].channels for row in chosen]))
            channels = union[~layer_flat[union]]
            n = len(channels)
            scored.append(LayerScores(channels, np.empty((n, len(classes))), np.empty(n), np.empty(n)))
        places = [(number, position) for number, masks in enumerate(scored) for position in range(len(masks.channels))]
        batch = np.empty((min(options.batch_size, max(len(places), 1)), *self.bundle.image_shape), np.float32)
        for start in range(0, len(places), len(batch)):
            part = places[start : start + len(batch)]
            for row, (number, position) in zip(batch, part, strict=False):
                masks = scored[number]
                feature_map = maps[number][0, masks.channels[position]]
                masks.minimum[position], masks.extent[position] = writer.write(feature_map, row)
            (logits,) = self._forward.run([batch[: len(part)]])
            scores = activate(logits.astype(np.float32, copy=False), options.activation)[:, classes]
            for (number, position), score in zip(part, scores, strict=True):
                scored[number].scores[position] = score
        return scored

    def _class_index(self, target: Target) -> int:
        """Return the index of a class, or −1 for top-1.

        Raises:
            TargetError: The model has no such class, or several of that name.
        """
        classes, labels = self.bundle.classes, self.bundle.labels
        if target is None:
            return _TOP
        if isinstance(target, str):
            if labels is None:
                raise TargetError(
                    f"target {target!r}: the bundle has no labels; give a class index from 0 to {classes - 1}"
                )
            indices = [index for index, label in enumerate(labels) if label == target]
            if not indices:
                near = difflib.get_close_matches(target, labels, n=3)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise TargetError(f"target {target!r}: is none of the bundle's {classes} labels{hint}")
            if len(indices) > 1:
                raise TargetError(f"target {target!r}: is the label of classes {indices}; give one of these indices")
            return indices[0]
        if isinstance(target, bool) or not isinstance(target, int | np.integer):
            raise TargetError(
                f"target {target!r}: is a {type(target).__name__}; expected a class index, a label or None"
            )
        if not 0 <= target < classes:
            raise TargetError(f"target {target}: is out of range; expected a class index from 0 to {classes - 1}")
        return int(target)

    def _layer_report(
        self, number: int, selection: Selection, flat: NDArray[np.bool_], cut: float | None
    ) -> LayerReport:
        layer = self.bundle.layers[number]
        selected = len(selection.channels)
        constant = int(np.count_nonzero(flat[selection.channels]))
        return LayerReport(
            name=layer.name,
            channels=layer.channels,
            positive=selection.positive,
            selected=selected,
            flat=constant,
            scored=selected - constant,
            threshold=selection.threshold,
            fusion_threshold=cut,
            selected_channels=selection.channels,
        )


def _combine(
    maps: NDArray[np.float32],
    channels: NDArray[np.int64],
    masks: LayerScores,
    k: int,
    size: tuple[int, int],
) -> NDArray[np.float64] | None:
    """Make the visualization map of one layer for class number k, from that class's own channels."""
    own = np.isin(masks.channels, channels)
    return visualization_map(
        maps[masks.channels[own]], masks.scores[own, k], masks.minimum[own], masks.extent[own], size
    )


def _warnings(layers: Sequence[LayerReport], empty: bool) -> tuple[str, ...]:
    warnings = [
        f"layer {layer.name!r} gave no mask: "
        + ("no feature map was selected" if layer.selected == 0 else f"all {layer.flat} selected maps are constant")
        for layer in layers
        if layer.scored == 0
    ]
    if empty:
        warnings.append("the heatmap is all zeros: no layer gave a visualization map, or fusion cut everything away")
    return tuple(warnings)


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[phase] = (time.perf_counter() - began) * 1e3
