"""The tiny network, two of whose maps are dead, before the engine and before the float64 references."""

import json
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import engine
from engine.export import export
from tests.reference.attribution import Logits, logits_of
from tests.reference.cam import maps_and_gradients
from tests.reference.network import TorchNetwork
from tests.tiny_cnn import PREPROCESS, photo_pixels, tiny_cnn

Float = NDArray[np.float64]
LAYER = "relu3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """The tiny network and a photo.

    Attributes:
        explainer: The engine.
        x: The network's input, float32 [1, C, H, W].
        network: The reference.
        logits: The reference as a function of images.
        head: The reference's part behind the last feature layer, as a function of feature maps.
    """

    explainer: engine.Explainer
    x: NDArray[np.float32]
    network: TorchNetwork
    logits: Logits
    head: Logits

    @property
    def size(self) -> tuple[int, int]:
        """H and W of the input."""
        return self.x.shape[2], self.x.shape[3]

    def maps_and_gradients(self, target: int, layer: str = LAYER) -> tuple[Float, Float]:
        """Return A and ∂logit/∂A of a layer, float64 [K, h, w]."""
        return maps_and_gradients(self.network, self.x, target, layer)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("methods")
    model = tiny_cnn()
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w3")
    values = numpy_helper.to_array(weight).copy()
    values[[3, 8]] = 0.0
    weight.CopyFrom(numpy_helper.from_array(values, "w3"))
    onnx.save(model, folder / "tiny.onnx")
    (folder / "preprocess.json").write_text(json.dumps(PREPROCESS), encoding="utf-8")
    bundle = folder / "tiny.ada"
    export(folder / "tiny.onnx", bundle, preprocess=folder / "preprocess.json", activation="softmax")
    explainer = engine.load(bundle, threads=2)
    network, head = TorchNetwork(bundle / "forward.onnx"), TorchNetwork(bundle / "head.onnx")
    return Tiny(
        explainer=explainer,
        x=explainer.probe(photo_pixels()).image,
        network=network,
        logits=logits_of(network),
        head=logits_of(head),
    )
