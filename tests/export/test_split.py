import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.export.evaluate import function, in_float64
from engine.export.split import split
from tests.export.networks import CNN_LAYERS, imported, network, node, small_cnn, weight
from tests.export.rules.gradients import runtime

LAYERS = [layer[0] for layer in CNN_LAYERS]


def test_blocks_end_in_the_layers_and_the_head_in_the_logits(random: np.random.Generator) -> None:
    blocks = split(imported(small_cnn(random)), LAYERS)
    assert [block.name for block in blocks] == ["block1", "block2", "block3", "head"]
    ends = [(block.model.graph.inputs[0], block.model.graph.outputs[0]) for block in blocks]
    assert [(source.name, output.name) for source, output in ends] == [
        ("x", "relu1"),
        ("relu1", "relu3"),
        ("relu3", "clip4"),
        ("clip4", "logits"),
    ]
    assert [(str(source.shape), str(output.shape)) for source, output in ends] == [
        ("[batch,3,16,12]", "[batch,6,16,12]"),
        ("[batch,6,16,12]", "[batch,8,8,6]"),
        ("[batch,8,8,6]", "[batch,10,4,3]"),
        ("[batch,10,4,3]", "[batch,5]"),
    ]
    assert [(len(block.model.graph.inputs), len(block.model.graph.outputs)) for block in blocks] == [(1, 1)] * 4


def test_blocks_share_the_nodes_and_weights_out_among_them(random: np.random.Generator) -> None:
    model = imported(small_cnn(random))
    blocks = split(model, LAYERS)
    assert [entry.name for block in blocks for entry in block.model.graph] == [entry.name for entry in model.graph]
    assert [set(block.model.graph.initializers) for block in blocks] == [
        {"w1", "b1", "bn_scale", "bn_bias", "bn_mean", "bn_var"},
        {"w2", "w3", "b3"},
        {"w4", "zero", "six"},
        {"head", "head_bias"},
    ]


def test_blocks_are_models_of_their_own(random: np.random.Generator) -> None:
    model = imported(small_cnn(random, opset=18))
    model.ir_version = 10
    for block in split(model, LAYERS):
        proto = ir.to_proto(block.model)
        onnx.checker.check_model(proto, full_check=True)
        assert (proto.graph.name, proto.ir_version, proto.opset_import[0].version) == (block.name, 10, 18)
    assert len(list(model.graph)) == 15


@pytest.mark.parametrize("layers", [LAYERS, ["conv1"], ["bn1", "conv2", "add3", "conv4"]], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_chain_of_blocks_is_the_network(layers: list[str], rows: int, random: np.random.Generator) -> None:
    proto = small_cnn(random)
    images = random.standard_normal((rows, 3, 16, 12)).astype(np.float32)
    value = images
    for block in split(imported(proto), layers):
        (value,) = runtime(block.model)(value)
    np.testing.assert_allclose(value, runtime(proto)(images)[0], rtol=1e-5, atol=1e-6)

    value = images.astype(np.float64)
    for block in split(in_float64(imported(proto)), layers):
        (value,) = function(block.model)(value)
    np.testing.assert_array_equal(value, function(in_float64(imported(proto)))(images.astype(np.float64))[0])


def test_weight_used_in_two_blocks_is_in_both(random: np.random.Generator) -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "a w", "b"), node("Conv", "b w", "y")]
    model = imported(network(nodes, {"w": weight(random, 3, 3, 1, 1)}))
    blocks = split(model, ["a", "b"])
    assert [list(block.model.graph.initializers) for block in blocks] == [["w"]] * 3
