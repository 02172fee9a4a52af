"""`gradient.onnx` and `full_gradient.onnx` against float64 autograd, and the completeness of what they give."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.biases import biased_ops
from engine.export.evaluate import function, in_float64
from engine.export.link import full_gradient, gradient
from engine.export.source import Source, load_source
from tests.comparison import pure_reference_evaluator
from tests.export.networks import BIASED_OPS, biased_cnn, network, node, small_cnn, weight, written
from tests.export.rules.gradients import Array, error, runtime
from tests.reference.network import TorchNetwork

TARGETS = np.array([3, 0, 4], np.int64)


@pytest.fixture
def proto(random: np.random.Generator) -> onnx.ModelProto:
    return biased_cnn(random)


@pytest.fixture
def source(proto: onnx.ModelProto, tmp_path: Path) -> Source:
    return load_source(written(proto, tmp_path), activation="softmax")


@pytest.fixture
def images(random: np.random.Generator) -> Array:
    return random.standard_normal((3, 3, 12, 10)).astype(np.float32)


def in_double(source: Source) -> Source:
    """The source in float64, so that graphs made of it have constants that are not rounded."""
    return replace(source, model=in_float64(source.model))


def full(source: Source) -> ir.Model:
    return full_gradient(source, biased_ops(source.model.graph))


def torch_biased_cnn(proto: onnx.ModelProto, image: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The network of `biased_cnn` in torch; its logits, and for each biased op its output and its bias."""
    c = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)).double() for tensor in proto.graph.initializer}
    ops: list[tuple[Tensor, Tensor]] = []

    def biased(output: Tensor, bias: Tensor) -> Tensor:
        y = output + bias
        ops.append((y, bias))
        return y

    def along(bias: Tensor) -> Tensor:
        return bias.reshape(-1, 1, 1)

    x = biased(-image, c["white"])
    x = functional.conv2d(functional.pad(x, (1, 0, 1, 1)), c["w1"], stride=(1, 2))
    x = functional.leaky_relu(biased(x, along(c["b1"])), float(np.float32(0.1)))
    slope = c["bn_scale"] / torch.sqrt(c["bn_var"] + float(np.float32(0.01)))
    x = biased(x * along(slope), along(c["bn_bias"] - c["bn_mean"] * slope))
    x = functional.max_pool2d(x, 2, stride=(2, 1))
    x = torch.relu(biased(functional.conv2d(x, c["w2"], padding=1, groups=2), along(c["b2"])))
    x = biased(functional.conv_transpose2d(x, c["w3"], stride=(2, 1)), along(c["b3"]))
    total = biased(x, c["c1"] + c["c2"][0])
    x = biased(functional.conv2d(total, c["w4"], padding=1), along(c["b4"])) + total
    x = biased(torch.relu(x), c["map"])
    x = functional.avg_pool2d(x, (4, 2), stride=(4, 2)).flatten(1)
    x = torch.relu(biased(x @ c["head"], 0.5 * c["head_bias"]))
    return biased(x @ c["last"], c["last_bias"]), ops


def torch_gradients(proto: onnx.ModelProto, images: Array) -> tuple[Array, list[Array]]:
    """∂logit/∂image, and for each biased op the gradient at its output times its bias."""
    leaf = torch.tensor(images, dtype=torch.float64, requires_grad=True)
    logits, ops = torch_biased_cnn(proto, leaf)
    logit = logits[torch.arange(len(images)), torch.tensor(TARGETS)].sum()
    at_image, *at_ops = torch.autograd.grad(logit, [leaf, *(output for output, _ in ops)])
    return at_image.numpy(), [(dy * bias).detach().numpy() for dy, (_, bias) in zip(at_ops, ops, strict=True)]


def test_inputs_and_outputs(source: Source) -> None:
    for model, name in ((gradient(source), "gradient"), (full(source), "full_gradient")):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert model.graph.name == name
        assert {entry.domain for entry in model.graph} == {""}
        described = [(value.name, str(value.shape), str(value.dtype)) for value in model.graph.inputs]
        assert described == [("x", "[batch,3,12,10]", "FLOAT"), ("target", "[batch]", "INT64")]
    described = [(value.name, str(value.shape), str(value.dtype)) for value in model.graph.outputs]
    sizes = ("3,12,10", "6,12,5", "6,12,5", "8,6,4", "6,12,5", "6,12,5", "6,12,5", "6,12,5", "7", "5")
    assert described == [
        ("logits", "[batch,5]", "FLOAT"),
        ("image_gradient", "[batch,3,12,10]", "FLOAT"),
        *((f"bias_attribution_{place}", f"[batch,{size}]", "FLOAT") for place, size in enumerate(sizes, start=1)),
    ]
    assert [value.name for value in gradient(source).graph.outputs] == ["logits", "image_gradient"]


def test_every_kind_of_bias_is_found(source: Source) -> None:
    assert tuple(op.op for op in biased_ops(source.model.graph)) == BIASED_OPS


def test_the_source_stays_as_it_was(source: Source) -> None:
    before = ir.to_proto(source.model).SerializeToString(deterministic=True)
    gradient(source)
    full(source)
    assert ir.to_proto(source.model).SerializeToString(deterministic=True) == before


def test_rows_of_several_classes_equal_autograd(source: Source, proto: onnx.ModelProto, images: Array) -> None:
    at_image, attributions = torch_gradients(proto, images)
    assert min(np.linalg.norm(expected) for expected in (at_image, *attributions)) > 0.01
    double = in_double(source)
    for model in (gradient(double), full(double)):
        _, found, *rest = pure_reference_evaluator(model)(images.astype(np.float64), TARGETS)
        assert error(found, at_image) <= 1e-12
        for place, expected in enumerate(attributions if rest else ()):
            assert rest[place].shape == expected.shape
            assert error(rest[place], expected) <= 1e-12, BIASED_OPS[place]
    _, found, *rest = runtime(full(source))(images, TARGETS)
    for single, expected in zip((found, *rest), (at_image, *attributions), strict=True):
        assert error(single, expected) <= 1e-5


def test_image_and_biases_make_up_the_logit(source: Source, images: Array) -> None:
    for x in (images, np.zeros_like(images), 1e3 * images):
        run = pure_reference_evaluator(full(in_double(source)))
        logits, found, *attributions = run(x.astype(np.float64), TARGETS)
        terms = [(x * found), *attributions]
        total = sum(term.reshape(3, -1).sum(axis=1) for term in terms)
        logit = logits[np.arange(3), TARGETS]
        assert np.abs(logit).min() > 0.01
        assert np.abs(total - logit).max() <= 1e-9 * np.abs(logit).max()


def test_rows_equal_runs_of_one(source: Source, images: Array) -> None:
    run = runtime(full(source))
    together = run(images, TARGETS)
    apart = [run(images[row : row + 1], TARGETS[row : row + 1]) for row in range(3)]
    for found, *rows in zip(together, *apart, strict=True):
        assert error(found, np.concatenate(rows).astype(np.float64)) <= 1e-6


def test_a_target_that_is_no_class_has_no_gradient(source: Source, images: Array) -> None:
    logits, *gradients = runtime(full(source))(images, np.array([-1, 5, 99]))
    assert np.abs(logits).max() > 0.01
    assert not any(values.any() for values in gradients)


def test_saturation_is_not_counted(tmp_path: Path) -> None:
    """ReLU6 of 8 is 6, with slope 0: no gradient reaches the image, and the bias of the Gemm is all that is counted."""
    nodes = [
        node("Conv", "x w", "maps"),
        node("Clip", "maps zero six", "clip"),
        node("GlobalAveragePool", "clip", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head bias", "logits"),
    ]
    constants = {
        "w": np.ones((1, 1, 1, 1)),
        "zero": np.float32(0),
        "six": np.float32(6),
        "head": np.array([[2.0, 3.0]]),
        "bias": np.array([0.25, 0.5]),
    }
    source = load_source(
        written(network(nodes, constants, image=(1, 4, 4), outputs="logits"), tmp_path), activation="softmax"
    )
    logits, at_image, attribution = runtime(full(source))(np.full((1, 1, 4, 4), 8, np.float32), np.array([1]))
    assert (logits[0, 1], np.abs(at_image).max(), attribution.tolist()) == (18.5, 0, [[0, 0.5]])


def test_conventions_at_kinks(tmp_path: Path) -> None:
    """At an image of zeros without biases ReLU passes nothing; of equal elements MaxPool takes the first."""
    nodes = [
        node("MaxPool", "x", "largest", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "largest w", "maps"),
        node("Relu", "maps", "relu"),
        node("GlobalAveragePool", "relu", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head", "logits"),
    ]
    constants = {"w": np.ones((1, 1, 1, 1)), "head": np.array([[1.0, 4.0]])}
    source = load_source(
        written(network(nodes, constants, image=(1, 4, 4), outputs="logits"), tmp_path), activation="softmax"
    )
    run = runtime(gradient(source))
    images = np.stack([np.zeros((1, 4, 4)), np.ones((1, 4, 4))]).astype(np.float32)
    _, found = run(images, np.array([1, 1]))
    assert not found[0].any()
    np.testing.assert_array_equal(found[1, 0], [[1, 0, 1, 0], [0, 0, 0, 0]] * 2)


def test_a_network_without_biases(random: np.random.Generator, tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "maps"), node("GlobalAveragePool", "maps", "mean"), node("Flatten", "mean", "logits")]
    model = network(nodes, {"w": weight(random, 5, 3, 3, 3)}, outputs="logits")
    source = load_source(written(model, tmp_path), activation="softmax")
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    logits, found, *rest = runtime(full(source))(x, np.array([1, 2]))
    assert rest == []
    np.testing.assert_allclose((x * found).sum(axis=(1, 2, 3)), logits[[0, 1], [1, 2]], rtol=1e-4)


def test_saturating_network_equals_autograd(random: np.random.Generator, tmp_path: Path) -> None:
    """With Clip and a folded BatchNormalization, against the interpreter of the reference."""
    source = load_source(written(small_cnn(random), tmp_path), activation="softmax")
    x = random.standard_normal((3, 3, 16, 12)).astype(np.float32)
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    logits = TorchNetwork(ir.to_proto(source.model)).run(leaf, ["logits"])["logits"]
    (expected,) = torch.autograd.grad(logits[torch.arange(3), torch.tensor(TARGETS)].sum(), leaf)
    _, found = function(gradient(in_double(source)))(x.astype(np.float64), TARGETS)
    assert error(found, expected.numpy()) <= 1e-8
    assert error(runtime(gradient(source))(x, TARGETS)[1], expected.numpy()) <= 1e-5


def test_an_op_without_a_rule_is_named(random: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        node("Sin", "x", "wave"),
        node("Conv", "wave w", "maps"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "logits"),
    ]
    model = network(nodes, {"w": weight(random, 5, 3, 3, 3)}, outputs="logits")
    source = load_source(written(model, tmp_path), activation="softmax")
    for make in (gradient, full):
        with pytest.raises(UnsupportedOpError, match=r"^Sin node 'node_wave': operator Sin has no gradient rule"):
            make(source)


@pytest.mark.parametrize("name", ["target", "image_gradient", "bias_attribution_1"])
def test_source_may_use_the_names_of_the_graphs(
    name: str, source: Source, proto: onnx.ModelProto, images: Array, tmp_path: Path
) -> None:
    expected = runtime(full(source))(images, TARGETS)
    for entry in proto.graph.node:
        for names in (entry.input, entry.output):
            names[:] = [name if value == "relu2" else value for value in names]
    renamed = load_source(written(proto, tmp_path), activation="softmax")
    for found, right in zip(runtime(full(renamed))(images, TARGETS), expected, strict=True):
        np.testing.assert_array_equal(found, right)
