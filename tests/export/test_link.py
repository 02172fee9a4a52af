from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from engine.export.cut import feature_layers
from engine.export.evaluate import function, in_float64
from engine.export.link import forward, last_layer, tapped
from engine.export.source import Source, load_source
from tests.export.networks import CNN_CLASSES, CNN_LAYERS, small_cnn, written
from tests.export.rules.gradients import Array, error, runtime
from tests.reference.network import TorchNetwork

LAYERS = [layer[0] for layer in CNN_LAYERS]


@pytest.fixture
def source(random: np.random.Generator, tmp_path: Path) -> Source:
    return load_source(written(small_cnn(random), tmp_path), activation="softmax")


@pytest.fixture
def image(random: np.random.Generator) -> Array:
    return random.standard_normal((1, 3, 16, 12)).astype(np.float32)


def tapped_graph(source: Source) -> ir.Model:
    return tapped(source, feature_layers(source.model.graph))


def torch_averages(source: Source, image: Array, classes: list[int]) -> list[Array]:
    """Sums over H and W of ∂logit/∂F for every layer, by torch in float64: [K, C] each."""
    values = TorchNetwork(ir.to_proto(source.model)).run(
        torch.tensor(image, dtype=torch.float64, requires_grad=True), [*LAYERS, "logits"]
    )
    maps = [values[layer] for layer in LAYERS]
    rows = [torch.autograd.grad(values["logits"][0, index], maps, retain_graph=True) for index in classes]
    return [np.stack([row[layer][0].sum(dim=(1, 2)).numpy() for row in rows]) for layer in range(len(LAYERS))]


def test_forward_is_the_source(source: Source, random: np.random.Generator) -> None:
    model = forward(source)
    images = random.standard_normal((3, 3, 16, 12)).astype(np.float32)
    assert model.graph.name == "forward"
    assert [value.name for value in model.graph.outputs] == ["logits"]
    np.testing.assert_array_equal(runtime(model)(images)[0], runtime(source.model)(images)[0])
    assert source.model.graph.name == "network"


def test_inputs_and_outputs_of_tapped(source: Source) -> None:
    model = tapped_graph(source)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    described = [(value.name, str(value.shape), str(value.dtype)) for value in model.graph.inputs]
    assert described == [("x", "[1,3,16,12]", "FLOAT"), ("target", "[targets]", "INT64")]
    assert [(value.name, str(value.shape), str(value.dtype)) for value in model.graph.outputs] == [
        ("logits", "[1,5]", "FLOAT"),
        ("target_index", "[targets]", "INT64"),
        ("relu1", "[1,6,16,12]", "FLOAT"),
        ("relu3", "[1,8,8,6]", "FLOAT"),
        ("clip4", "[1,10,4,3]", "FLOAT"),
        ("average_gradient_1", "[targets,6]", "FLOAT"),
        ("average_gradient_2", "[targets,8]", "FLOAT"),
        ("average_gradient_3", "[targets,10]", "FLOAT"),
    ]
    assert {node.domain for node in model.graph} == {""}


def test_inner_tensors_of_tapped_claim_no_shape(source: Source) -> None:
    values = [value for entry in tapped_graph(source).graph for value in entry.outputs]
    assert {value.shape for value in values if not value.is_graph_output()} == {None}


def test_tapped_leaves_the_source_as_it_was(source: Source) -> None:
    before = ir.to_proto(source.model).SerializeToString(deterministic=True)
    tapped_graph(source)
    forward(source)
    assert ir.to_proto(source.model).SerializeToString(deterministic=True) == before


def test_logits_and_maps_of_tapped_are_the_network_s(source: Source, image: Array) -> None:
    logits, chosen, *rest = runtime(tapped_graph(source))(image, np.array([2], np.int64))
    values = TorchNetwork(ir.to_proto(source.model)).run(image, [*LAYERS, "logits"])
    assert chosen.tolist() == [2]
    assert error(logits, values["logits"].numpy()) <= 1e-5
    for found, layer in zip(rest[:3], LAYERS, strict=True):
        assert error(found, values[layer].numpy()) <= 1e-5


@pytest.mark.parametrize("classes", [[3], [0, 1, 2, 3, 4], [4, 0, 4]], ids=str)
def test_average_gradients_equal_torch(classes: list[int], source: Source, image: Array) -> None:
    targets = np.array(classes, np.int64)
    expected = torch_averages(source, image, classes)
    assert all(np.linalg.norm(average) > 0.01 for average in expected)
    model = tapped_graph(source)
    outputs = runtime(model)(image, targets)
    outputs64 = function(in_float64(model))(image.astype(np.float64), targets)
    assert outputs[1].tolist() == outputs64[1].tolist() == classes
    for found, found64, average in zip(outputs[5:], outputs64[5:], expected, strict=True):
        assert found64.shape == average.shape
        assert error(found64, average) <= 1e-7  # constants such as 1/(H·W) were rounded to float32
        assert error(found, average) <= 1e-5


def test_negative_target_is_the_top_class(source: Source, image: Array) -> None:
    run = runtime(tapped_graph(source))
    logits, chosen, *rest = run(image, np.array([-1, 2, -7], np.int64))
    top = int(np.argmax(logits[0]))
    assert chosen.tolist() == [top, 2, top]
    _, _, *expected = run(image, np.array([top, 2, top], np.int64))
    for found, wanted in zip(rest, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_several_classes_equal_single_runs(source: Source, image: Array) -> None:
    run = runtime(tapped_graph(source))
    together = run(image, np.arange(CNN_CLASSES))[5:]
    apart = [run(image, np.array([index], np.int64))[5:] for index in range(CNN_CLASSES)]
    for layer, found in enumerate(together):
        expected = np.concatenate([outputs[layer] for outputs in apart])
        assert error(found, expected.astype(np.float64)) <= 1e-6


def test_chosen_layers_are_tapped_in_the_network_s_order(source: Source, image: Array) -> None:
    layers = feature_layers(source.model.graph, ["conv4", "relu1"])
    model = tapped(source, layers)
    names = [value.name for value in model.graph.outputs]
    assert names == ["logits", "target_index", "relu1", "conv4", "average_gradient_1", "average_gradient_2"]
    outputs = runtime(model)(image, np.array([1], np.int64))
    assert [output.shape for output in outputs[4:]] == [(1, 6), (1, 10)]
    assert error(outputs[4], torch_averages(source, image, [1])[0]) <= 1e-5


@pytest.mark.parametrize("name", ["target", "target_index", "average_gradient_1"])
def test_source_may_use_the_names_of_tapped(
    name: str, image: Array, random: np.random.Generator, tmp_path: Path
) -> None:
    proto = small_cnn(random)
    for entry in proto.graph.node:
        for names in (entry.input, entry.output):
            names[:] = [name if value == "relu2" else value for value in names]
    renamed = load_source(written(proto, tmp_path), activation="softmax")
    expected = torch_averages(renamed, image, [1])
    outputs = runtime(tapped_graph(renamed))(image, np.array([1], np.int64))
    for found, average in zip(outputs[5:], expected, strict=True):
        assert error(found, average) <= 1e-5


def test_the_last_layer_alone(source: Source, image: Array) -> None:
    layers = feature_layers(source.model.graph)
    model = last_layer(source, layers)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.graph.name == "last_layer"
    assert [(value.name, str(value.shape)) for value in model.graph.inputs] == [
        ("x", "[1,3,16,12]"),
        ("target", "[targets]"),
    ]
    assert [(value.name, str(value.shape), str(value.dtype)) for value in model.graph.outputs] == [
        ("logits", "[1,5]", "FLOAT"),
        ("target_index", "[targets]", "INT64"),
        ("clip4", "[1,10,4,3]", "FLOAT"),
        ("average_gradient_3", "[targets,10]", "FLOAT"),
    ]
    logits, chosen, maps, averages = runtime(model)(image, np.array([4, -1], np.int64))
    values = TorchNetwork(ir.to_proto(source.model)).run(image, ["clip4", "logits"])
    assert error(logits, values["logits"].numpy()) <= 1e-5
    assert error(maps, values["clip4"].numpy()) <= 1e-5
    classes = [4, int(values["logits"].argmax())]
    assert chosen.tolist() == classes
    assert error(averages, torch_averages(source, image, classes)[2]) <= 1e-5
    assert len(model.graph) < len(tapped(source, layers).graph)
