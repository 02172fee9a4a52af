"""Explaining the answers of one model: an image and its classes in, explanations out."""

import logging
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from engine.backends import Backend, create_backend
from engine.bundle import Bundle, list_files, load_bundle
from engine.errors import BackendError, OptionError
from engine.explanation import Explanation
from engine.image import Photo
from engine.kernels import activate
from engine.methods import Attribution, Method, create_method
from engine.network import Network, open_scorer
from engine.options import Choices, MethodOptions, Options, Target, Targets, class_indices
from engine.pace import Cancel, Progress
from engine.probe import Probe
from engine.tuning import Setup
from engine.tuning import tune as tune_setup

_FINISH_S = 2e-8  # per layer and pixel
_LOG = logging.getLogger(__name__)


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    lanes: int | None = None,
    spinning: bool | None = None,
    batch_size: int | None = None,
    tune: bool = True,
    providers: Sequence[str] | None = None,
) -> "Explainer":
    """Load a bundle, ready to explain.

    What is None of `threads`, `lanes`, `spinning` and `batch_size` is measured, in two to three seconds, when the
    bundle is first loaded on this machine, and remembered in the user's cache folder. It changes no result.

    Args:
        path: The bundle `NAME.ada`.
        device: `cpu` is ONNX Runtime; `openvino` is OpenVINO on the CPU, if it is installed.
        precision: In what masks are scored: `float32`, or `int8` if the bundle was exported with it. Gradients, the
            selection of masks, the reported class score and all measures are float32 in any case. `openvino` has
            `bfloat16` too, on a CPU that computes in it.
        threads: Threads that work on one explanation; at most, and by default, one per CPU that this process may use.
        lanes: Runs of the scorer at a time, which share the threads out; by default one per thread.
        spinning: Whether a thread that waits for the others of its run keeps its CPU busy; by default not.
        batch_size: Changed images that are scored at a time, by all lanes together; by default 8.
        tune: Whether to measure; else the defaults stay.
        providers: ONNX Runtime's execution providers, in order of preference; None for the device's own.

    Raises:
        BundleError: The bundle is missing, damaged, foreign or of another schema, or has no graph of the precision.
        BackendError: The runtime refused a graph.
        MissingRuntimeError: The device's runtime is not installed.
        OptionError: The device, the precision or a provider is unknown, a number is not positive, or the device lacks
            an option.
    """
    began = time.perf_counter()

    def create(setup: Setup) -> Backend:
        return create_backend(
            device, threads=setup.threads, lanes=setup.lanes, spinning=setup.spinning, providers=providers
        )

    backend = create_backend(device, threads=threads, lanes=lanes, spinning=spinning, providers=providers)
    setup = Setup.of(backend.threads, batch_size)
    bundle = load_bundle(Path(path))
    if tune:
        given = {"threads": threads, "lanes": lanes, "spinning": spinning, "batch_size": batch_size}
        setup = tune_setup(
            lambda setup: open_scorer(bundle, create(setup), precision),
            bundle.image_shape,
            setup,
            fixed=[name for name, value in given.items() if value is not None],
            can_spin=backend.can_spin,
            identity={
                "bundle": bundle.manifest["sha256"],
                "device": device,
                "runtime": backend.runtime,
                "precision": precision,
                "providers": providers,
            },
        )
    explainer = Explainer(bundle, create(setup), precision, setup.batch_size)
    _LOG.info("loaded %s in %.0f ms (%s)", path, (time.perf_counter() - began) * 1e3, setup)
    return explainer


class Explainer:
    """Explains the answers of one model. Any number of threads may use it at the same time.

    It holds two copies of the model's weights until it is closed, or leaves its `with` block; methods that ask for
    other graphs of the bundle add a copy for each. A forked process may use it only if it was loaded with `threads=1`;
    a spawned one loads its own.

    Args:
        bundle: The compiled model.
        backend: The runtime that executes its graphs.
        precision: In what masks are scored, as for `load`.
        batch_size: Changed images that are scored at a time, where `explain` is given no other number.

    Raises:
        OptionError: The backend has no such precision.
        BundleError: A graph has other inputs or outputs than the manifest says, or there is none of the precision.
        BackendError: The runtime refused a graph.
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: str = "float32", batch_size: int = 8) -> None:
        self.bundle = bundle
        self.precision = precision
        self._batch_size = batch_size
        self._backend = backend
        self._network: Network | None = Network(bundle, backend, precision)
        # What each method takes for one class after its last run of the network, once it has been measured.
        self._finish_s: dict[str, float] = {}

    def close(self) -> None:
        """Release the sessions; explanations that other threads have begun are carried out."""
        self._network = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"an Explainer cannot be pickled; load {self.bundle.path} in each process")

    def with_graphs(self, folder: Path) -> "Explainer":
        """Open another network of the same form, such as one with other weights, in the same runtime.

        Args:
            folder: Holds the graphs of the bundle under their names; no manifest is read.

        Raises:
            BundleError: A graph has other inputs or outputs than the manifest says.
            BackendError: The runtime refused a graph.
        """
        manifest = {**self.bundle.manifest, "files": list_files(folder)}
        return Explainer(
            replace(self.bundle, path=folder, manifest=manifest), self._backend, self.precision, self._batch_size
        )

    def classify(self, image: Photo, activation: str | None = None) -> NDArray[np.float64]:
        """Return the class scores of an image, float64 [classes].

        Args:
            image: As for `explain`.
            activation: `softmax`, `sigmoid` or `none` instead of the bundle's own.

        Raises:
            ImageError: The image cannot be read or does not fit, or the network computes NaN or infinity for it.
            OptionError: The activation is unknown.
            BackendError: The explainer is closed, or the runtime failed.
        """
        probe = self.probe(image, activation=activation)
        scores: NDArray[np.float64] = activate(probe.logits, probe.options.activation)[0]
        return scores

    def probe(
        self,
        image: Photo,
        target: Target | Targets = None,
        *,
        activation: str | None = None,
        batch_size: int | None = None,
        max_masks: int | None = None,
        deadline_ms: float | None = None,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        finish_s: float = 0.0,
    ) -> Probe:
        """Take up one image, to put changed forms of it to the network: what methods and measures work with.

        Args:
            image: As for `explain`, and so are the others.
            target: The classes that are asked about.
            activation: Instead of the bundle's own.
            batch_size: Changed images that are scored at a time; None for what `load` found.
            max_masks: The most masks to score for a class.
            deadline_ms: When the result shall be there.
            progress: Told how far it is.
            cancel: Ends it.
            finish_s: What is to be done for each class after the last run of the network, in seconds.

        Raises:
            ImageError: The image cannot be read or does not fit.
            TargetError: The model has no such class.
            OptionError: An option has no meaning.
            BackendError: The explainer is closed.
        """
        options = Options(
            activation=self.bundle.activation if activation is None else activation,
            batch_size=self._batch_size if batch_size is None else batch_size,
            max_masks=max_masks,
            deadline_ms=deadline_ms,
            progress=progress,
            cancel=cancel,
        )
        targets = class_indices(target, self.bundle.classes, self.bundle.labels)
        if self._network is None:
            raise BackendError(f"{self.bundle.path}: the explainer was closed; load the bundle again")
        return Probe(self.bundle, self._network, image, targets, options, finish_s)

    @overload
    def explain(self, image: Photo, target: Target = None, **choices: Unpack[Choices]) -> Explanation: ...

    @overload
    def explain(self, image: Photo, target: Targets, **choices: Unpack[Choices]) -> list[Explanation]: ...

    def explain(
        self,
        image: Photo,
        target: Target | Targets = None,
        *,
        method: str | Method = "ada-sise",
        activation: str | None = None,
        batch_size: int | None = None,
        max_masks: int | None = None,
        deadline_ms: float | None = None,
        visualization_maps: bool = False,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        **options: Unpack[MethodOptions],
    ) -> Explanation | list[Explanation]:
        """Explain one class of one image, or several classes with one scoring.

        Args:
            image: A photo (path, PIL image or uint8 [h, w, 3]), or the prepared input float32 [1, C, H, W].
            target: Class index or label; None for the top-1 class; or a list of these. Classes in a list share what
                they can: one run of the network and one scoring of all their masks; each gives the result that it gives
                alone.
            method: One of `engine.methods.METHODS`, or such a method itself, with its options.
            activation: `softmax`, `sigmoid` or `none` instead of the bundle's own.
            batch_size: Changed images that are scored at a time, by all lanes together; one at least by each. None for
                what `load` found, or was given.
            max_masks: The most masks to score for a class: the most important, as the method sees them. None for all.
            deadline_ms: When the result shall be there, in milliseconds after the call. Masks that do not fit are left
                out; one at least is scored, of one class. None for no deadline.
            visualization_maps: Whether to keep V_l of every layer in the result, for methods that have it.
            progress: Called in the caller's thread with the masks scored and the masks planned: at first, and whenever
                more were scored. Methods that change no image never call it, and leave nothing out for a budget or a
                deadline.
            cancel: A flag, such as `threading.Event`, that is asked before each run of the network; set, it ends the
                call when the runs under way have ended.
            options: The method's own; of Ada-SISE `rule`, `mu`, `fusion` and `baseline`, see `engine.methods.AdaSise`.

        Returns:
            One explanation, or a list of them for a list of targets.

        Raises:
            ImageError: The image cannot be read or does not fit, or the network computes NaN or infinity for it.
            TargetError: The model has no such class.
            OptionError: The method or an option has no meaning.
            CancelledError: `cancel` was set.
            BackendError: The explainer is closed, the runtime failed, or the system has no more threads.
            BundleError: The bundle lacks a graph that the method needs, or has one that the exporter does not write.
        """
        chosen = create_method(method, options)
        if visualization_maps and not chosen.layered:
            raise OptionError(
                f"visualization_maps is True; expected False with method {chosen.name!r}, which makes no such maps"
            )
        _, height, width = self.bundle.image_shape
        probe = self.probe(
            image,
            target,
            activation=activation,
            batch_size=batch_size,
            max_masks=max_masks,
            deadline_ms=deadline_ms,
            progress=progress,
            cancel=cancel,
            finish_s=self._finish_s.get(chosen.name, _FINISH_S * len(self.bundle.layers) * height * width),
        )
        found = chosen.explain(probe)
        self._finish_s[chosen.name] = (time.perf_counter() - probe.scored_at) / len(found)
        class_scores = probe.class_scores()
        probe.clock.stop()
        results = [
            _explanation(probe, chosen, attribution, index, float(score), visualization_maps)
            for attribution, index, score in zip(found, probe.classes, class_scores, strict=True)
        ]
        for result in results:
            _LOG.info("%s", result)
            for warning in result.warnings:
                _LOG.warning("%s: %s", result.name, warning)
        return results if isinstance(target, list | tuple) else results[0]


def _explanation(
    probe: Probe, method: Method, found: Attribution, index: int, class_score: float, visualization_maps: bool
) -> Explanation:
    """Put together what is known of one class."""
    bundle, options = probe.bundle, probe.options
    heatmap = np.zeros(probe.size) if found.heatmap is None else found.heatmap
    views = tuple(None if view is None else view.astype(np.float32) for view in found.visualization_maps)
    return Explanation(
        heatmap=heatmap.astype(np.float32),
        target=index,
        label=None if bundle.labels is None else bundle.labels[index],
        class_score=class_score,
        activation=options.activation,
        method=method.name,
        options={field.name: getattr(method, field.name) for field in fields(method)},
        max_masks=None if options.max_masks is None else int(options.max_masks),
        deadline_ms=None if options.deadline_ms is None else float(options.deadline_ms),
        layers=found.layers,
        precision=probe.precision,
        unit=method.unit,
        scored=found.scored,
        scorable=found.scorable,
        complete=found.scored == found.scorable,
        evaluations=dict(probe.evaluations),
        figures=dict(found.figures),
        timings_ms=dict(probe.clock.timings_ms),
        warnings=(*found.warnings, *_warnings(found, method.unit)),
        picture=probe.picture,
        attribution=found.attribution,
        visualization_maps=views if visualization_maps else None,
    )


def _warnings(found: Attribution, unit: str) -> list[str]:
    """Say what the reader of any heatmap should know."""
    warnings = []
    if found.scored < found.scorable:
        done = "scored, the scores of the others estimated" if found.layers else "used"
        warnings.append(f"{found.scored} of {found.scorable} {unit} were {done}; the heatmap is an approximation")
    if found.heatmap is None:
        why = "the method's map is constant, or nowhere positive"
        if found.layers:
            why = "no layer gave a visualization map, or fusion cut everything away"
        warnings.append(f"the heatmap is all zeros: {why}")
    return warnings
