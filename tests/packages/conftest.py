"""What every comparison starts from: a trained network, a photo, and the float64 reference's view of them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

import engine
from engine.export import export
from tests.packages import squeezenet
from tests.reference import cam
from tests.reference.method import Float
from tests.reference.network import TorchNetwork


@dataclass(frozen=True)
class Subject:
    """A network, an image and a class.

    Attributes:
        source: The ONNX file.
        model: The same network as a float64 torch module; `quick` is it in float32, for hundreds of runs.
        image: Its input, float32 [1, 3, SIDE, SIDE].
    """

    source: Path
    model: squeezenet.SqueezeNet
    image: NDArray[np.float32]

    @cached_property
    def quick(self) -> squeezenet.SqueezeNet:
        return deepcopy(self.model).float()

    @cached_property
    def x(self) -> torch.Tensor:
        return torch.tensor(self.image, dtype=torch.float64)

    @cached_property
    def network(self) -> TorchNetwork:
        return TorchNetwork(self.source)

    @cached_property
    def target(self) -> int:
        with torch.no_grad():
            return int(self.model(self.x).argmax())

    @cached_property
    def maps_and_gradients(self) -> tuple[Float, Float]:
        return cam.maps_and_gradients(self.network, self.image, self.target, squeezenet.LAYER)

    def scores_under(self, masks: torch.Tensor) -> torch.Tensor:
        """The target's logits of the image under masks [K, SIDE, SIDE]."""
        x = self.x.float()
        with torch.no_grad():
            return torch.cat([self.quick(part[:, None] * x)[:, self.target] for part in masks.float().split(16)])


def correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation of two heatmaps."""
    return float(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small images gain nothing from torch's threads, and on a busy machine lose a factor of ten by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def subject(assets: Path) -> Subject:
    source = assets / "models" / "squeezenet1.1" / "model.onnx"
    photo = assets / "images" / "other" / "goldfish.jpg"
    return Subject(source, squeezenet.load(source), squeezenet.prepare(photo))


@pytest.fixture(scope="session")
def explainer(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> engine.Explainer:
    folder = tmp_path_factory.mktemp("squeezenet")
    model = squeezenet.write_smaller(subject.source, folder / "model.onnx")
    export(model, folder / "squeezenet.ada", activation="softmax")
    return engine.load(folder / "squeezenet.ada")
