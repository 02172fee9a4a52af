import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from engine.errors import ModelError
from engine.export.fold import fold_batch_normalization
from tests.export.networks import imported, network, node, statistics, weight
from tests.export.rules.gradients import Array, error, runtime

BN = "bn_scale bn_bias bn_mean bn_var"


def fold(model: onnx.ModelProto) -> ir.Model:
    folded = imported(model)
    fold_batch_normalization(folded.graph)
    return folded


def op_types(model: ir.Model) -> list[str]:
    return [entry.op_type for entry in model.graph]


def torch_batch_norm(x: torch.Tensor, constants: dict[str, Array], epsilon: float = 1e-5) -> torch.Tensor:
    scale, bias, mean, variance = (torch.tensor(constants[name]).double() for name in BN.split())
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, float(np.float32(epsilon)))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((5, 4, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ((4, 1, 3, 3), {"group": 4, "dilations": [2, 1]}),
        ((6, 2, 1, 1), {"group": 2}),
    ],
    ids=["dense", "depthwise", "groups"],
)
def test_conv_and_batch_normalization_become_one_conv(
    shape: tuple[int, ...], attributes: dict, biased: bool, random: np.random.Generator
) -> None:
    constants = {"w": weight(random, *shape), **statistics(random, "bn", shape[0])}
    if biased:
        constants["b"] = weight(random, shape[0])
    nodes = [
        node("Conv", "x w b" if biased else "x w", "c", **attributes),
        node("BatchNormalization", f"c {BN}", "y", epsilon=0.01),
    ]
    model = network(nodes, constants, image=(4, 7, 6))
    folded = fold(model)
    assert op_types(folded) == ["Conv"]
    (conv,) = folded.graph
    assert conv.name == "node_c"
    assert {name: value.value for name, value in conv.attributes.items()} == {
        name: value if isinstance(value, int) else tuple(value) for name, value in attributes.items()
    }
    assert [value.name for value in folded.graph.outputs] == ["y"]

    x = random.standard_normal((3, 4, 7, 6)).astype(np.float32)
    (found,) = runtime(folded)(x)
    assert error(found, runtime(model)(x)[0]) <= 1e-6
    pads = attributes.get("pads", [0, 0, 0, 0])
    convolved = functional.conv2d(
        functional.pad(torch.tensor(x).double(), (pads[1], pads[3], pads[0], pads[2])),
        torch.tensor(constants["w"]).double(),
        torch.tensor(constants["b"]).double() if biased else None,
        attributes.get("strides", 1),
        0,
        attributes.get("dilations", 1),
        attributes.get("group", 1),
    )
    assert error(found, torch_batch_norm(convolved, constants, 0.01).numpy()) <= 1e-6


def test_folded_parameters_are_rounded_once(random: np.random.Generator) -> None:
    constants = {"w": weight(random, 5, 3, 1, 1), "b": weight(random, 5), **statistics(random, "bn", 5)}
    nodes = [node("Conv", "x w b", "c"), node("BatchNormalization", f"c {BN}", "y")]
    (conv,) = fold(network(nodes, constants)).graph
    scale, bias, mean, variance = (constants[name].astype(np.float64) for name in BN.split())
    factor = scale / np.sqrt(variance + np.float32(1e-5))
    found_weight, found_bias = (value.const_value.numpy() for value in conv.inputs[1:])
    assert found_weight.dtype == found_bias.dtype == np.float32
    np.testing.assert_array_equal(found_weight, (constants["w"] * factor[:, None, None, None]).astype(np.float32))
    np.testing.assert_array_equal(found_bias, ((constants["b"] - mean) * factor + bias).astype(np.float32))


def test_chain_of_pairs_is_folded(random: np.random.Generator) -> None:
    constants = {"w1": weight(random, 4, 3, 3, 3), "w2": weight(random, 5, 4, 1, 1)}
    constants |= {**statistics(random, "bn1", 4), **statistics(random, "bn2", 5)}
    nodes = [
        node("Conv", "x w1", "c1"),
        node("BatchNormalization", f"c1 {BN.replace('bn', 'bn1')}", "n1"),
        node("Relu", "n1", "r1"),
        node("Conv", "r1 w2", "c2"),
        node("BatchNormalization", f"c2 {BN.replace('bn', 'bn2')}", "y"),
    ]
    model = network(nodes, constants)
    folded = fold(model)
    assert op_types(folded) == ["Conv", "Relu", "Conv"]
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert error(runtime(folded)(x)[0], runtime(model)(x)[0]) <= 1e-6


def test_weight_that_two_convs_share_is_folded_for_each(random: np.random.Generator) -> None:
    constants = {"w": weight(random, 3, 3, 1, 1)}
    constants |= {**statistics(random, "bn1", 3), **statistics(random, "bn2", 3)}
    nodes = [
        node("Conv", "x w", "c1"),
        node("BatchNormalization", f"c1 {BN.replace('bn', 'bn1')}", "n1"),
        node("Conv", "n1 w", "c2"),
        node("BatchNormalization", f"c2 {BN.replace('bn', 'bn2')}", "n2"),
        node("Conv", "n2 w", "y"),
    ]
    model = network(nodes, constants)
    folded = fold(model)
    assert op_types(folded) == ["Conv", "Conv", "Conv"]
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert error(runtime(folded)(x)[0], runtime(model)(x)[0]) <= 1e-6


def test_unnamed_pairs_are_folded(random: np.random.Generator) -> None:
    constants = {"w1": weight(random, 4, 3, 3, 3), "w2": weight(random, 5, 4, 1, 1)}
    constants |= {**statistics(random, "bn1", 4), **statistics(random, "bn2", 5)}
    nodes = [
        node("Conv", "x w1", "c1"),
        node("BatchNormalization", f"c1 {BN.replace('bn', 'bn1')}", "n1"),
        node("Conv", "n1 w2", "c2"),
        node("BatchNormalization", f"c2 {BN.replace('bn', 'bn2')}", "y"),
    ]
    for entry in nodes:
        entry.ClearField("name")
    model = network(nodes, constants)
    folded = fold(model)
    assert op_types(folded) == ["Conv", "Conv"]
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert error(runtime(folded)(x)[0], runtime(model)(x)[0]) <= 1e-6


@pytest.mark.parametrize(("dimensions", "sizes"), [(1, [-1, 3, 64]), (3, [-1, 3, 4, 4, 4])])
def test_convs_of_other_dimensions_are_folded_or_left(
    dimensions: int, sizes: list[int], random: np.random.Generator
) -> None:
    constants = {"sizes": np.array(sizes, np.int64), "w": weight(random, 3, 3, *[2] * dimensions)}
    nodes = [
        node("Reshape", "x sizes", "volume"),
        node("Conv", "volume w", "c"),
        node("BatchNormalization", f"c {BN}", "y"),
    ]
    model = network(nodes, constants | statistics(random, "bn", 3))
    (kernel,) = (entry.inputs[1] for entry in fold(model).graph if entry.op_type == "Conv")
    assert kernel.const_value.shape == constants["w"].shape
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert error(runtime(fold(model))(x)[0], runtime(model)(x)[0]) <= 1e-6


def kept(nodes: list[onnx.NodeProto], random: np.random.Generator, outputs: str = "y", **constants: Array) -> None:
    """Assert that folding leaves the graph as it was."""
    model = network(
        nodes, {"w": weight(random, 3, 3, 1, 1), **statistics(random, "bn", 3), **constants}, outputs=outputs
    )
    before = op_types(imported(model))
    folded = fold(model)
    assert op_types(folded) == before
    assert "BatchNormalization" in before
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    for found, expected in zip(runtime(folded)(x), runtime(model)(x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_batch_normalization_stays_when_the_conv_has_two_users(random: np.random.Generator) -> None:
    kept([node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "n"), node("Add", "c n", "y")], random)


def test_batch_normalization_stays_when_the_conv_is_an_output(random: np.random.Generator) -> None:
    kept([node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "y")], random, outputs="y c")


def test_batch_normalization_stays_without_a_conv_before_it(random: np.random.Generator) -> None:
    kept([node("BatchNormalization", f"x {BN}", "y")], random)
    kept([node("Relu", "x", "r"), node("BatchNormalization", f"r {BN}", "y")], random)


def test_batch_normalization_with_computed_parameters_stays(random: np.random.Generator) -> None:
    nodes = [
        node("ReduceMean", "x", "bn_bias", axes=[0, 2, 3], keepdims=0),
        node("Conv", "x w", "c"),
        node("BatchNormalization", f"c {BN}", "y"),
    ]
    model = network(nodes, {"w": weight(random, 3, 3, 1, 1), **statistics(random, "bn", 3)}, opset=17)
    del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("bn_bias")]
    assert op_types(fold(model)) == ["ReduceMean", "Conv", "BatchNormalization"]


@pytest.mark.parametrize("computed", ["w", "b"])
def test_conv_with_computed_parameters_stays(computed: str, random: np.random.Generator) -> None:
    nodes = [node("Conv", "x w b", "c"), node("BatchNormalization", f"c {BN}", "y")]
    constants = {"w": weight(random, 3, 3, 1, 1), "b": weight(random, 3), **statistics(random, "bn", 3)}
    constants["source"] = constants.pop(computed)
    model = network([node("Relu", "source", computed), *nodes], constants)
    assert op_types(fold(model)) == ["Relu", "Conv", "BatchNormalization"]


def test_training_form_stays(random: np.random.Generator) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", f"c {BN}", "y running_mean running_var", training_mode=1),
    ]
    model = network(nodes, {"w": weight(random, 3, 3, 1, 1), **statistics(random, "bn", 3)})
    assert op_types(fold(model)) == ["Conv", "BatchNormalization"]


def damaged(random: np.random.Generator, **parameters: np.ndarray) -> str:
    """What is said of a pair with these parameters."""
    constants = {"w": weight(random, 4, 3, 3, 3), **statistics(random, "bn", 4), **parameters}
    conv = node("Conv", "x w b" if "b" in parameters else "x w", "c")
    model = network([conv, node("BatchNormalization", f"c {BN}", "y", epsilon=0.5)], constants)
    with pytest.raises(ModelError) as caught:
        fold(model)
    return str(caught.value)


def test_variance_that_is_negative_is_refused(random: np.random.Generator) -> None:
    variance = np.array([1, 0, -0.75, 2], np.float32)
    assert damaged(random, bn_var=variance) == (
        "BatchNormalization node 'node_y': has the variance + epsilon -0.25 in a channel; expected positive ones: "
        "export the model again, from a checkpoint that is not damaged"
    )


def test_parameters_that_do_not_fit_the_channels_are_refused(random: np.random.Generator) -> None:
    assert damaged(random, bn_mean=np.zeros(1, np.float32)) == (
        "BatchNormalization node 'node_y': has 4, 4, 1, 4 parameters; expected 4, one for each channel: export the "
        "model again"
    )
    assert damaged(random, b=np.zeros(6, np.float32)) == (
        "Conv node 'node_c': has 6 parameters; expected 4, one for each channel: export the model again"
    )
