"""Running an evaluation: every photo, every class that is on it and that the model sees, every method."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine._version import __version__
from engine.bundle import sha256_of
from engine.errors import CancelledError, EngineError, ImageError
from engine.evaluation.controls import EVALUATED
from engine.evaluation.labels import match_labels
from engine.evaluation.pairs import Choice, boxes_of, choose, expect_preprocess, find_pairs, open_photo
from engine.evaluation.sample import Dataset, Sample
from engine.evaluation.store import Facts, Outcome, Pair, Store
from engine.explainer import Explainer
from engine.methods import Method
from engine.metrics import Cascade, Explained, Metric, box_mask, create_metrics, measure
from engine.metrics.randomisation import Randomisation
from engine.pace import Cancel
from engine.spelling import option_texts, parse_method, spell

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is under way, how many steps are done, and how many there are."""

THUMBNAIL_SIDE = 224


def evaluate(
    explainer: Explainer,
    dataset: Dataset,
    methods: Sequence[str | Method],
    metrics: Sequence[str | Metric],
    store: Store,
    choice: Choice | None = None,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> None:
    """Explain every chosen pair of photo and class by every method, measure, and write all of it to the store.

    A pair is a photo and a class that is present on it and that the model sees: its score is at least the threshold.
    What the store has already is not done again, so that the same call continues one that was stopped, and another call
    adds methods, measures or photos. A measure that is added needs the explanations once more; the methods give the
    same ones. What goes wrong with a photo or a pair is written too; the rest goes on, the next call tries it again.

    Args:
        explainer: The model.
        dataset: The photos with their classes.
        methods: Methods, or names with options, as `engine.spelling.parse_method` reads them; the controls of
            `engine.evaluation.controls` are among them.
        metrics: Measures, or names of `engine.metrics.METRICS`. Those that need boxes have no value without.
        store: Where the results go.
        choice: Which photos, and how.
        progress: Told how far it is.
        cancel: A flag that is asked before each run of the network; set, it ends the call.

    Raises:
        OptionError: A method, measure or option has no meaning, or the store has results of another model, data set,
            threshold, activation, device or precision, or cannot be written.
        DatasetError: The data set has no class of the model's.
        BackendError: The explainer is closed.
        CancelledError: `cancel` was set.
    """
    choice = Choice() if choice is None else choice
    expect_preprocess(explainer)
    bundle = explainer.bundle
    activation = bundle.activation if choice.activation is None else choice.activation
    made = [parse_method(method, EVALUATED) if isinstance(method, str) else method for method in methods]
    named = {spell(method): method for method in made}
    measures = [create_metrics([metric])[0] if isinstance(metric, str) else metric for metric in metrics]
    matching = match_labels(dataset.samples, bundle.labels, bundle.classes)
    settings = {
        "bundle": str(bundle.manifest["sha256"]),
        "data set": dataset.fingerprint,
        "threshold": repr(float(choice.threshold)),
        "activation": activation,
        "device": explainer.device,
        "precision": explainer.precision,
    }
    left_out = ", ".join(f"{label} ({count})" for label, count in matching.left_out.items())
    notes = {"model": bundle.path.name, "form": dataset.form, "photos": str(len(dataset.samples)), "left out": left_out}
    store.agree(settings, notes)
    for name, method in named.items():
        store.add_method(name, {"name": method.name, "options": option_texts(method)})
    for metric in measures:
        store.add_metric(metric.name, _facts(metric))

    chosen = choose(dataset.samples, matching.classes, choice)
    _look(explainer, chosen, matching.classes, activation, choice.threshold, store, progress)
    steps = _steps(store, chosen, named, measures, choice.gallery)
    with ExitStack() as stack:
        cascades = [stack.enter_context(Cascade(explainer, m.seed)) for m in measures if isinstance(m, Randomisation)]
        hashes = {name: sha256 for name, (sha256, _) in store.photos().items()}
        runner = _Runner(explainer, matching.classes, hashes, activation, cascades, cancel)
        done, planned = 0, sum(map(len, steps.values()))
        for sample in chosen:
            for step in steps[sample.name]:
                if progress is not None:
                    progress(f"{sample.name}, {step.name}", done, planned)
                store.add(runner.run(sample, step, store))
                done += 1


def _facts(metric: Metric) -> Facts:
    return {
        "title": metric.title,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "needs_boxes": metric.needs_boxes,
        "made": repr(metric),
    }


def _look(
    explainer: Explainer,
    chosen: Sequence[Sample],
    classes: Mapping[str, int],
    activation: str,
    threshold: float,
    store: Store,
    progress: Progress | None,
) -> None:
    """Find the pairs of the photos that have not been looked at, or could not be."""
    known = {name for name, (sha256, _) in store.photos().items() if sha256 is not None}
    for number, sample in enumerate(chosen):
        if sample.name in known:
            continue
        if progress is not None:
            progress(f"{sample.name}, classes", number, len(chosen))
        try:
            picture = open_photo(sample, explainer)
            pairs = find_pairs(explainer, sample, picture, classes, activation, threshold)
        except ImageError as err:
            store.add_unread(sample.name, str(err))
        else:
            store.add_photo(sample.name, sha256_of(sample.photo), pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One method on one pair.

    Attributes:
        pair: The photo and the class.
        name: The method, as it is spelled.
        method: The method.
        metrics: What is to be measured still.
        known: What an earlier run found.
        heatmap: The heatmap that an earlier run kept.
        shown: Whether the gallery shows the pair.
    """

    pair: Pair
    name: str
    method: Method
    metrics: Sequence[Metric]
    known: Outcome | None
    heatmap: bytes | None
    shown: bool


def _steps(
    store: Store, chosen: Sequence[Sample], methods: Mapping[str, Method], metrics: Sequence[Metric], gallery: int
) -> dict[str, list[_Step]]:
    """Return what is to be done still for each photo."""
    pairs: dict[str, list[Pair]] = {sample.name: [] for sample in chosen}
    for pair in store.pairs():
        if pair.photo in pairs:
            pairs[pair.photo].append(pair)
    shown = {(pair.photo, pair.target) for pair in [pair for of_photo in pairs.values() for pair in of_photo][:gallery]}
    heatmaps = store.heatmaps()
    known = {(entry.photo, entry.target, entry.method): entry for entry in store.outcomes() if entry.error is None}
    steps: dict[str, list[_Step]] = {name: [] for name in pairs}
    for pair in (pair for of_photo in pairs.values() for pair in of_photo):
        for name, method in methods.items():
            key = (pair.photo, pair.target, name)
            found = known.get(key)
            missing = [metric for metric in metrics if found is None or metric.name not in found.measures]
            to_show = (pair.photo, pair.target) in shown
            if found is None or missing or (to_show and key not in heatmaps):
                steps[pair.photo].append(
                    _Step(
                        pair=pair,
                        name=name,
                        method=method,
                        metrics=missing,
                        known=found,
                        heatmap=heatmaps.get(key),
                        shown=to_show,
                    )
                )
    return steps


class _Runner:
    """Takes the steps of an evaluation; holds the photo of the last one, since the next is about the same."""

    def __init__(
        self,
        explainer: Explainer,
        classes: Mapping[str, int],
        hashes: Mapping[str, str | None],
        activation: str,
        cascades: Sequence[Cascade],
        cancel: Cancel | None,
    ) -> None:
        self._explainer = explainer
        self._classes = classes
        self._hashes = hashes
        self._activation = activation
        self._cascade = cascades[0] if cascades else None
        self._cancel = cancel
        self._name = ""
        self._picture: Image.Image | None = None

    def run(self, sample: Sample, step: _Step, store: Store) -> Outcome:
        """Explain and measure; an error becomes the outcome."""
        key = Outcome(photo=sample.name, target=step.pair.target, method=step.name, engine=__version__)
        try:
            return self._run(sample, step, store, key)
        except CancelledError:
            raise
        except EngineError as err:
            return replace(key, error=str(err))

    def _run(self, sample: Sample, step: _Step, store: Store, key: Outcome) -> Outcome:
        picture = self._open(sample)
        target = step.pair.target
        explanation = self._explainer.explain(
            picture,
            target,
            method=step.method,
            activation=self._activation,
            cancel=self._cancel,
        )
        heatmap = step.heatmap
        if step.shown:
            heatmap = _grey(explanation.heatmap)
            store.add_thumbnail(sample.name, _thumbnail(explanation.picture))
        probe = self._explainer.probe(picture, target, activation=self._activation, cancel=self._cancel)
        boxes = boxes_of(sample, target, self._classes)
        explained = Explained(
            explainer=self._explainer,
            probe=probe,
            explanation=explanation,
            method=step.method,
            box_mask=box_mask(boxes, picture.size, expect_preprocess(self._explainer)),
            cascade=self._cascade,
        )
        return replace(
            key,
            milliseconds=explanation.timings_ms["total"],
            scored=explanation.scored,
            scorable=explanation.scorable,
            evaluations=explanation.evaluations,
            warnings=explanation.warnings,
            measures={**({} if step.known is None else step.known.measures), **measure(explained, step.metrics)},
            heatmap=heatmap,
        )

    def _open(self, sample: Sample) -> Image.Image:
        if self._picture is None or self._name != sample.name:
            self._picture, self._name = None, sample.name
            picture = open_photo(sample, self._explainer)
            if sha256_of(sample.photo) != self._hashes[sample.name]:
                raise ImageError(f"{sample.photo}: is not the photo of the earlier results; expected the same file")
            self._picture = picture
        return self._picture


def _grey(heatmap: NDArray[np.float32]) -> bytes:
    return _file(Image.fromarray(np.rint(255 * heatmap).astype(np.uint8)), "png")


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
    return _file(small, "jpeg")


def _file(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return file.getvalue()
