"""A CNN of six weighted and pooling layers that exports in a second, for tests of everything around the method."""

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

HEIGHT, WIDTH = 24, 32
LABELS = ("tabby cat", "tiger cat", "bull mastiff", "espresso", "cup")
PREPROCESS: dict[str, object] = {
    "resize": 36,
    "interp": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def tiny_cnn(channels: int = 3, seed: int = 20102) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, Conv, Relu, MaxPool, Conv, Relu, GlobalAveragePool, Gemm: logits of order 1.

    Its feature layers are `relu1` [8, 24, 32], `relu2` [12, 12, 16] and `relu3` [16, 6, 8].
    """
    generator = np.random.default_rng(seed)
    nodes, weights = [], []

    def weight(name: str, *shape: int, gain: float = 2.0) -> str:
        values = generator.normal(0, np.sqrt(gain / np.prod(shape[1:])), shape)
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    value, before = "image", channels
    for number, after in enumerate((8, 12, 16), start=1):
        kernel = weight(f"w{number}", after, before, 3, 3)
        nodes.append(helper.make_node("Conv", [value, kernel], [f"conv{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]))
        value, before = f"relu{number}", after
        if number < 3:
            nodes.append(helper.make_node("MaxPool", [value], [f"pool{number}"], kernel_shape=[2, 2], strides=[2, 2]))
            value = f"pool{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["average"]))
    nodes.append(helper.make_node("Flatten", ["average"], ["features"]))
    head = weight("head", len(LABELS), before, gain=20.0)
    nodes.append(helper.make_node("Gemm", ["features", head], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def write_tiny_cnn(folder: Path) -> tuple[Path, Path, Path]:
    """Write the model, its preprocessing and its labels; return the three paths."""
    model, preprocess, labels = folder / "tiny.onnx", folder / "preprocess.json", folder / "labels.txt"
    onnx.save(tiny_cnn(), model)
    preprocess.write_text(json.dumps(PREPROCESS), encoding="utf-8")
    labels.write_text("\n".join(LABELS), encoding="utf-8")
    return model, preprocess, labels


def photo_pixels(height: int = 60, width: int = 90) -> NDArray[np.uint8]:
    """A photo of two coloured blobs on a gradient, uint8 [height, width, 3]; no two channels are alike."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    blob = np.exp(-(((x - 0.35) ** 2 + (y - 0.4) ** 2) / 0.02))
    disc = ((x - 0.75) ** 2 + (y - 0.65) ** 2 < 0.03) * 1.0
    stacked = np.stack([0.2 + 0.7 * blob, 0.3 * x + 0.6 * disc, 0.2 * y + 0.3 * blob + 0.2], axis=2)
    return np.rint(255 * np.clip(stacked, 0, 1)).astype(np.uint8)


def write_photo(path: Path) -> Path:
    """Write the photo without loss."""
    Image.fromarray(photo_pixels()).save(path)
    return path
