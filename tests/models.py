"""The pretrained models of the shared assets, exported once per test session, and their photos."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import engine
from engine.export import export

IMAGENET, VOC = "imagenet", "voc20"
MODELS = {
    "efficientnet-lite0": IMAGENET,
    "mobilenet-v2": IMAGENET,
    "squeezenet1.1": IMAGENET,
    "efficientnet-lite0-voc20": VOC,
    "resnet50-thin-voc20": VOC,
}
PHOTOS = {
    IMAGENET: ("other/goldfish.jpg", "other/catdog.png"),
    VOC: ("other/horses.jpg", "voc/JPEGImages/000012.jpg"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A pretrained model and its bundle.

    Attributes:
        source: The ONNX file.
        explainer: The bundle, loaded.
        activation: What its logits go through.
    """

    source: Path
    explainer: engine.Explainer
    activation: str


@cache
def exported(assets: Path, name: str, folder: Path) -> Exported:
    """Export a model into the folder, the first time it is asked for, and load it."""
    source = assets / "models" / name
    kind = MODELS[name]
    activation = "softmax" if kind == IMAGENET else "sigmoid"
    own = source / "labels.txt"
    bundle = folder / f"{name}.ada"
    export(
        source / "model.onnx",
        bundle,
        preprocess=source / "preprocess.json",
        labels=own if own.exists() else None,
        activation=activation,
    )
    return Exported(source=source / "model.onnx", explainer=engine.load(bundle), activation=activation)
