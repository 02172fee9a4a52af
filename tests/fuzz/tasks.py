"""What the worker does with an example; what comes back is right, or these functions raise."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import engine
from engine.export import export
from tests.fuzz.photos import Array


class WrongResultError(Exception):
    """The engine returned what cannot be right."""


@lru_cache(maxsize=1)
def loaded(bundle: Path) -> engine.Explainer:
    """Load a bundle that does not change."""
    return engine.load(bundle, threads=1)


def load_and_explain(bundle: Path, image: NDArray[np.float32], photo: Path, expected: bytes | None) -> str:
    """Load a bundle and explain one prepared array and one photo.

    Args:
        bundle: The bundle.
        image: The prepared array, float32 [1, C, H, W]; one of the manifest's own shape is tried too.
        photo: The photo.
        expected: The bytes of the array's heatmap, where the graphs are as they were.
    """
    explainer = engine.load(bundle, threads=1)
    shape = (1, *explainer.bundle.image_shape)
    if shape != image.shape and np.prod(shape, dtype=float) < 1e6:
        check(explainer, explainer.explain(np.resize(image, shape)))
    result = explainer.explain(image, activation="softmax")
    check(explainer, result)
    if expected is not None and result.heatmap.tobytes() != expected:
        raise WrongResultError("the graphs are as they were, and the heatmap is not")
    if explainer.bundle.preprocess is not None:
        check(explainer, explainer.explain(photo))
    return "explained"


def export_and_explain(model: Path, bundle: Path, activation: str | None) -> str:
    """Export a model, and explain an image by its bundle."""
    report = export(model, bundle, activation=activation)
    explainer = engine.load(bundle, threads=1)
    image = np.random.default_rng(7).standard_normal((1, *report.bundle.image_shape)).astype(np.float32)
    try:
        results = explainer.explain(image, [None, report.bundle.classes - 1])
    except engine.ImageError:  # a weight so large that some images overflow, though those of the verification do not
        return "exported, but not finite for every image"
    for result in results:
        check(explainer, result)
    return "exported"


def explain(bundle: Path, image: object, options: dict[str, object]) -> str:
    """Explain anything, with any options."""
    explainer = loaded(bundle)
    image = image.make() if isinstance(image, Array) else image
    found = explainer.explain(image, **options)  # type: ignore[call-overload]  # that is the point
    for result in found if isinstance(found, list) else [found]:
        check(explainer, result)
        if result.picture.width < 1 or result.picture.height < 1:
            raise WrongResultError(f"the picture is {result.picture.size}")
    return "explained"


def check(explainer: engine.Explainer, result: engine.Explanation) -> None:
    """Check that a result is consistent with itself and with its bundle.

    Raises:
        WrongResultError: It is not; the message says where.
    """
    bundle, heatmap = explainer.bundle, result.heatmap
    facts = {
        "the heatmap is float32": heatmap.dtype == np.float32,
        "the heatmap has the image's size": heatmap.shape == bundle.image_shape[1:],
        "the heatmap lies in 0 … 1": bool(((heatmap >= 0) & (heatmap <= 1)).all()),
        "the class is one of the model's": 0 <= result.target < bundle.classes,
        "the label is the class's": result.label == (bundle.labels[result.target] if bundle.labels else None),
        "the score is finite": bool(np.isfinite(result.class_score)),
        "every layer is reported": [layer.name for layer in result.layers] == [layer.name for layer in bundle.layers],
    }
    for layer in result.layers:
        channels = layer.selected_channels
        facts |= {
            f"{layer.name}: channels exist": bool(((channels >= 0) & (channels < layer.channels)).all()),
            f"{layer.name}: the counts agree": layer.flat + layer.scored == layer.selected == len(channels),
            f"{layer.name}: the scores of scored maps": int(np.isfinite(layer.scores).sum()) == layer.scored,
        }
    wrong = [fact for fact, holds in facts.items() if not holds]
    if wrong:
        raise WrongResultError(f"does not hold: {'; '.join(wrong)}")
