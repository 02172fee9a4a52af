"""Ada-SISE on a bundle: the method's phases, in the order of the paper.

    tap       one run of the network: logits, feature maps F_l, average gradients α_l
    select    per layer, the channels whose α the rule keeps
    score     each kept feature map becomes a mask; the network scores the masked images
    combine   per layer, the masks weighted by their scores: the visualization map V_l
    fuse      V_1 … V_L, shallow to deep: the heatmap

Source: SISE, arXiv 2010.00672; Ada-SISE, arXiv 2102.07799.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from engine.backends import Backend, Session, create_backend
from engine.budget import Plan, plan, scoring_order
from engine.bundle import ACTIVATIONS, Bundle, Layer, load_bundle
from engine.contract import expect_contract
from engine.errors import BackendError, BundleError
from engine.explanation import Explanation, LayerReport
from engine.image import Baseline, Photo, make_baseline, prepare
from engine.kernels import Selection, activate, fuse, is_flat, select_channels, visualization_map
from engine.options import TOP_CLASS, Choices, Options, Target, Targets, class_indices, expect_callbacks, expect_known
from engine.pace import Cancel, Pace, Progress, expect_wanted
from engine.scoring import ScoredMasks, finite, score_masks

Floats = NDArray[np.float32]
Map = NDArray[np.float64]

_FINISH_S = 2e-8  # per layer and pixel
_CLASSES_AT_ONCE = 8  # bounds the memory of the backward pass
_LOG = logging.getLogger(__name__)


def load(
    path: str | Path, *, device: str = "cpu", threads: int | None = None, providers: Sequence[str] | None = None
) -> "Explainer":
    """Load a bundle, ready to explain.

    Args:
        path: The bundle `NAME.ada`.
        device: `cpu`.
        threads: Threads that work on one explanation; None for one per CPU that this process may use.
        providers: ONNX Runtime's execution providers, in order of preference; None for the device's own.

    Raises:
        BundleError: The bundle is missing, damaged, foreign or of another schema.
        BackendError: The runtime refused a graph.
        OptionError: The device or a provider is unknown, or the number of threads is not positive.
    """
    began = time.perf_counter()
    explainer = Explainer(load_bundle(Path(path)), create_backend(device, threads=threads, providers=providers))
    _LOG.info("loaded %s in %.0f ms", path, (time.perf_counter() - began) * 1e3)
    return explainer


class Explainer:
    """Explains the answers of one model. Any number of threads may use it at the same time.

    It holds two copies of the model's weights until it is closed, or leaves its `with` block. A forked process may use
    it only if it was loaded with `threads=1`; a spawned one loads its own.

    Args:
        bundle: The compiled model.
        backend: The runtime that executes its graphs.

    Raises:
        BundleError: A graph has other inputs or outputs than the manifest says.
        BackendError: The runtime refused a graph.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        tapped, forward = backend.open(bundle.tapped), backend.open(bundle.forward, many_runs=True)
        expect_contract(bundle, tapped, forward)
        self._sessions: tuple[Session, Session] | None = (tapped, forward)
        # What combining and fusing take for one class: an estimate, until it has been measured.
        self._finish_s = _FINISH_S * len(bundle.layers) * bundle.image_shape[1] * bundle.image_shape[2]

    def close(self) -> None:
        """Release the sessions; explanations that other threads have begun are carried out."""
        self._sessions = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"an Explainer cannot be pickled; load {self.bundle.path} in each process")

    def classify(self, image: Photo, activation: str | None = None) -> Map:
        """Return the class scores of an image, float64 [classes].

        Args:
            image: As for `explain`.
            activation: `softmax`, `sigmoid` or `none` instead of the bundle's own.

        Raises:
            ImageError: The image cannot be read or does not fit, or the network computes NaN or infinity for it.
            OptionError: The activation is unknown.
            BackendError: The explainer is closed, or the runtime failed.
        """
        activation = self.bundle.activation if activation is None else activation
        expect_known("activation", activation, ACTIVATIONS)
        _, forward = self._open_sessions()
        prepared = prepare(image, self.bundle.preprocess, self.bundle.image_shape)
        (logits,) = forward.run([prepared.array])
        scores: Map = activate(finite(logits), activation)[0]
        return scores

    @overload
    def explain(self, image: Photo, target: Target = None, **choices: Unpack[Choices]) -> Explanation: ...

    @overload
    def explain(self, image: Photo, target: Targets, **choices: Unpack[Choices]) -> list[Explanation]: ...

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
        max_masks: int | None = None,
        deadline_ms: float | None = None,
        visualization_maps: bool = False,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
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
            batch_size: Masked images that are scored at a time, by all threads together; one at least by each.
            max_masks: The most masks to score for a class: the strongest of each layer, in proportion to the layer's
                masks; see `engine.budget`. None for all.
            deadline_ms: When the result shall be there, in milliseconds after the call. Masks that do not fit are left
                out in the same proportion; one at least is scored. None for no deadline.
            visualization_maps: Whether to keep V_l of every layer in the result.
            progress: Called in the caller's thread with the masks scored and the masks planned: at first, and whenever
                more were scored.
            cancel: A flag, such as `threading.Event`, that is asked before each run of the network; set, it ends the
                call when the runs under way have ended.

        Returns:
            One explanation, or a list of them for a list of targets.

        Raises:
            ImageError: The image cannot be read or does not fit, or the network computes NaN or infinity for it.
            TargetError: The model has no such class.
            OptionError: An option has no meaning.
            CancelledError: `cancel` was set.
            BackendError: The explainer is closed, the runtime failed, or the system has no more threads.
            BundleError: The tapped graph is not one that the exporter writes.
        """
        clock = _Clock()
        options = Options(
            rule=rule,
            mu=mu,
            fusion=fusion,
            activation=self.bundle.activation if activation is None else activation,
            batch_size=batch_size,
            max_masks=max_masks,
            deadline_ms=deadline_ms,
        )
        expect_callbacks(progress, cancel)
        targets = class_indices(target, self.bundle.classes, self.bundle.labels)
        tapped, forward = self._open_sessions()
        with clock("prepare"):
            prepared = prepare(image, self.bundle.preprocess, self.bundle.image_shape)
            replacement = make_baseline(baseline, prepared.array, self.bundle.preprocess)
        with clock("tap"):
            logits, classes, maps, averages = _tap(tapped, prepared.array, targets, cancel)
        with clock("select"):
            chosen = [[select_channels(alpha[k], rule, mu) for alpha in averages] for k in range(len(classes))]
            flat = [_flat(*layer) for layer in zip(maps, zip(*chosen, strict=True), strict=True)]
            plans = [plan(selections, flat, max_masks) for selections in chosen]
        with clock("score"):
            order = scoring_order(plans)
            ends = None if deadline_ms is None else clock.began + deadline_ms / 1e3 - self._finish_s * len(classes)
            mask_s = clock.timings_ms["tap"] / 1e3 * forward.runs_at_once  # a tapped run holds a forward one
            pace = Pace(ends=ends, mask_s=mask_s, progress=progress, cancel=cancel)
            masks = score_masks(
                forward, prepared.array[0], replacement, maps, order, classes, options.activation, batch_size, pace
            )

        size = self.bundle.image_shape[1:]
        fused = []
        for k in range(len(classes)):
            with clock("combine"):
                views = [_combine(*layer, k, size) for layer in zip(maps, masks, plans[k], strict=True)]
            with clock("fuse"):
                fused.append((views, *fuse(views, fusion)))
        self._finish_s = (clock.timings_ms["combine"] + clock.timings_ms["fuse"]) / 1e3 / len(classes)
        clock.stop()

        class_scores = activate(logits, options.activation)[0]
        results = []
        for k, (index, (views, heatmap, cuts)) in enumerate(zip(classes, fused, strict=True)):
            layers = tuple(_report(*layer, k) for layer in zip(self.bundle.layers, masks, plans[k], cuts, strict=True))
            scored, scorable = sum(layer.scored for layer in layers), sum(len(layer.scorable) for layer in plans[k])
            result = Explanation(
                heatmap=(np.zeros(size) if heatmap is None else heatmap).astype(np.float32),
                target=index,
                label=None if self.bundle.labels is None else self.bundle.labels[index],
                class_score=float(class_scores[index]),
                activation=options.activation,
                rule=rule,
                mu=float(mu),
                fusion=fusion,
                baseline=baseline if isinstance(baseline, str) else tuple(map(float, baseline)),
                max_masks=None if max_masks is None else int(max_masks),
                deadline_ms=None if deadline_ms is None else float(deadline_ms),
                layers=layers,
                scored=scored,
                scorable=scorable,
                complete=scored == scorable,
                timings_ms=dict(clock.timings_ms),
                warnings=_warnings(layers, views, scored=scored, scorable=scorable, empty=heatmap is None),
                picture=prepared.picture,
                visualization_maps=tuple(map(_as_float32, views)) if visualization_maps else None,
            )
            _LOG.info("%s", result)
            for warning in result.warnings:
                _LOG.warning("%s: %s", result.name, warning)
            results.append(result)
        return results if isinstance(target, list | tuple) else results[0]

    def _open_sessions(self) -> tuple[Session, Session]:
        if self._sessions is None:
            raise BackendError(f"{self.bundle.path}: the explainer was closed; load the bundle again")
        return self._sessions


def _tap(
    tapped: Session, array: Floats, targets: Sequence[int], cancel: Cancel | None
) -> tuple[Floats, list[int], list[Floats], list[Floats]]:
    """Run the tapped graph: logits [1, classes], class indices, F_l [1, C_l, h_l, w_l] and α_l [K, C_l]."""
    classes: list[int] = []
    averages: list[list[Floats]] = []
    for start in range(0, len(targets), _CLASSES_AT_ONCE):
        expect_wanted(cancel)
        part = np.array(targets[start : start + _CLASSES_AT_ONCE], np.int64)
        logits, indices, *rest = tapped.run([array, part])
        count = len(rest) // 2
        top = int(finite(logits).argmax())
        meant = [top if target == TOP_CLASS else int(target) for target in part]
        if indices.tolist() != meant:
            raise BundleError(
                f"tapped.onnx: says that it explained the classes {indices.tolist()}; expected {meant}: it is not what "
                "python -m engine.export writes, export the model again"
            )
        classes += meant
        averages.append([finite(alpha) for alpha in rest[count:]])
    maps = [finite(layer) for layer in rest[:count]]
    return finite(logits), classes, maps, [np.concatenate(alphas) for alphas in zip(*averages, strict=True)]


def _flat(maps: Floats, selections: Sequence[Selection]) -> NDArray[np.bool_]:
    """Tell which of the feature maps that any class selected are constant; the others are not looked at."""
    selected = np.unique(np.concatenate([selection.channels for selection in selections]))
    flat = np.zeros(maps.shape[1], np.bool_)
    flat[selected] = is_flat(maps[0, selected])
    return flat


def _combine(maps: Floats, masks: ScoredMasks, plan: Plan, k: int, size: tuple[int, int]) -> Map | None:
    """Make the visualization map of one layer for class number k, from that class's own masks."""
    own = masks.positions_of(plan.planned)
    own = own[own >= 0]
    return visualization_map(
        maps[0, masks.channels[own]], masks.scores[own, k], masks.minimum[own], masks.extent[own], size
    )


def _report(layer: Layer, masks: ScoredMasks, plan: Plan, cut: float | None, k: int) -> LayerReport:
    """Say what happened in one layer for class number k."""
    channels = plan.selection.channels
    own = masks.positions_of(channels)
    scored = (own >= 0) & np.isin(
        channels, plan.planned
    )  # another class may have had more of this layer's masks scored
    scores = np.full(len(channels), np.nan)
    scores[scored] = masks.scores[own[scored], k]
    return LayerReport(
        name=layer.name,
        channels=layer.channels,
        height=layer.height,
        width=layer.width,
        positive=plan.selection.positive,
        selected=len(channels),
        flat=len(channels) - len(plan.scorable),
        scored=int(scored.sum()),
        threshold=plan.selection.threshold,
        fusion_threshold=cut,
        selected_channels=channels,
        scores=scores,
    )


def _warnings(
    layers: Sequence[LayerReport], views: Sequence[Map | None], *, scored: int, scorable: int, empty: bool
) -> tuple[str, ...]:
    """Say what the reader of the heatmap should know."""
    warnings = []
    for layer, view in zip(layers, views, strict=True):
        if layer.selected == 0:
            warnings.append(f"layer {layer.name!r} gave no mask: no feature map was selected")
        elif layer.flat == layer.selected:
            warnings.append(f"layer {layer.name!r} gave no mask: all {layer.flat} selected maps are constant")
        elif layer.scored == 0:
            warnings.append(f"layer {layer.name!r} gave no mask: none was scored")
        elif view is None:
            all_zero = np.nanmax(np.abs(layer.scores)) == 0
            found = f"all {layer.scored} scored masks score 0" if all_zero else "its visualization map is constant"
            warnings.append(f"layer {layer.name!r} is left out of the fusion: {found}")
    if scored < scorable:
        warnings.append(f"{scored} of {scorable} masks were scored; the heatmap is an approximation")
    if empty:
        warnings.append("the heatmap is all zeros: no layer gave a visualization map, or fusion cut everything away")
    return tuple(warnings)


def _as_float32(view: Map | None) -> Floats | None:
    return None if view is None else view.astype(np.float32)


class _Clock:
    """Adds up the time spent in each phase, in milliseconds; began now, by `time.perf_counter`."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}
        self.began = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.timings_ms[phase] = self.timings_ms.get(phase, 0.0) + (time.perf_counter() - began) * 1e3

    def stop(self) -> None:
        """Note the time since the clock was made as `total`."""
        self.timings_ms["total"] = (time.perf_counter() - self.began) * 1e3
