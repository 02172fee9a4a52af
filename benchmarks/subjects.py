"""The models whose latency is measured: their files, an image, and the same network in torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.torch_eager import HookedModule, InterpretedModel, Network
from engine.bundle import load_bundle
from engine.export import export
from engine.image import prepare
from tests.architectures import build, make_case, torchvision, write
from tests.conftest import ASSETS
from tests.models import IMAGENET, MODELS, PHOTOS
from tests.reference.network import TorchNetwork

RANDOM = {
    "resnet50": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "vgg16": ("features.3", "features.8", "features.15", "features.22", "features.29"),
}
"""Architectures of torchvision with seeded, normalised weights, and the modules that are their feature layers."""
PRETRAINED = ("efficientnet-lite0", "resnet50-thin-voc20")
NAMES = (*RANDOM, *PRETRAINED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that lies in a folder, exported.

    Attributes:
        name: One of `NAMES`.
        source: The ONNX file.
        bundle: Its bundle.
        image: The network's input as .npy, float32 [1, 3, H, W].
        target: The class to explain, or None for the top-1 class.
    """

    name: str
    source: Path
    bundle: Path
    image: Path
    target: int | None

    def x(self) -> NDArray[np.float32]:
        """The network's input."""
        return np.asarray(np.load(self.image), np.float32)

    def network(self) -> Network:
        """The same network in torch."""
        if self.name in RANDOM:
            return HookedModule(self.module(), RANDOM[self.name])
        layers = [layer.name for layer in load_bundle(self.bundle).layers]
        return InterpretedModel(TorchNetwork(self.source), layers)

    def module(self) -> nn.Module:
        """The torch module of a model of `RANDOM`, on the CPU."""
        module: nn.Module = torchvision.models.get_model(self.name, weights=None).eval()
        module.load_state_dict(torch.load(_weights(self.source), weights_only=True))
        return module


def make(name: str, folder: Path) -> Subject:
    """Write a model and all that belongs to it into a folder."""
    bundle, image = folder / f"{name}.ada", folder / "input.npy"
    if name in RANDOM:
        network = build(name)
        source = write(name, network, folder)
        torch.save(network.state_dict(), _weights(source))
        export(source, bundle, activation="softmax")
        case = make_case(source, bundle)
        np.save(image, case.x)
        return Subject(name=name, source=source, bundle=bundle, image=image, target=case.target)
    files = ASSETS / "models" / name
    activation = "softmax" if MODELS[name] == IMAGENET else "sigmoid"
    export(files / "model.onnx", bundle, preprocess=files / "preprocess.json", activation=activation)
    loaded = load_bundle(bundle)
    photo = ASSETS / "images" / PHOTOS[MODELS[name]][0]
    np.save(image, prepare(photo, loaded.preprocess, loaded.image_shape).array)
    return Subject(name=name, source=files / "model.onnx", bundle=bundle, image=image, target=None)


def missing() -> list[str]:
    """The names of the models whose files are not there."""
    return [name for name in PRETRAINED if not (ASSETS / "models" / name).is_dir()]


def _weights(source: Path) -> Path:
    return source.with_suffix(".state.pt")
