"""The pretrained SqueezeNet 1.1 of the assets as a torch module, which is what the packages explain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

SIDE = 80
LAYER = "/fires.7/Concat_output_0"
"""The last feature layer in the ONNX file: 512 maps, 4 x 4 for an image of `SIDE` pixels."""
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Fire(nn.Module):
    """One convolution that squeezes, and two beside each other that expand."""

    def __init__(self, before: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeezed, 1)
        self.e1 = nn.Conv2d(squeezed, expanded, 1)
        self.e3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.e1(x).relu(), self.e3(x).relu()], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1; its parameters have the names of the ONNX file's initializers.

    Source: Iandola et al., arXiv 1602.07360, and version 1.1 in the authors' repository.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = [(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)]
        sizes += [(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)]
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        self.fires = nn.ModuleList(Fire(*size) for size in sizes)
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        for number, fire in enumerate(self.fires):
            if number in (0, 2, 4):
                x = nn.functional.max_pool2d(x, 3, stride=2)
            x = fire(x)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """The part behind the last feature layer, from its maps to logits."""
        return self.conv10(x).relu().mean(dim=(2, 3))


def load(source: Path) -> SqueezeNet:
    """The module with the weights of an ONNX file, in float64."""
    weights = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in onnx.load(source).graph.initializer}
    model = SqueezeNet().eval()
    model.load_state_dict(weights)
    return model.double()


def write_smaller(source: Path, path: Path) -> Path:
    """Write the ONNX file for images of `SIDE` pixels; it has none but convolutions and poolings."""
    model = onnx.load(source)
    del model.graph.value_info[:]
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = SIDE
    onnx.save(model, path)
    return path


def prepare(photo: Path) -> NDArray[np.float32]:
    """A photo as the network's input, float32 [1, 3, SIDE, SIDE]."""
    with Image.open(photo) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32))
