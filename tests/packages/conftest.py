"""What every comparison starts from: a trained network, a photo, and the float64 reference's view of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.packages import squeezenet
from tests.reference import cam
from tests.reference.method import Float
from tests.reference.network import TorchNetwork


@dataclass(frozen=True)
class Subject:
    """A network, an image and a class.

    Attributes:
        source: The ONNX file.
        model: The same network as a float64 torch module.
        image: Its input, float32 [1, 3, SIDE, SIDE].
    """

    source: Path
    model: squeezenet.SqueezeNet
    image: NDArray[np.float32]

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


@pytest.fixture(scope="session")
def subject(assets: Path) -> Subject:
    source = assets / "models" / "squeezenet1.1" / "model.onnx"
    photo = assets / "images" / "other" / "catdog.png"
    return Subject(source, squeezenet.load(source), squeezenet.prepare(photo))
