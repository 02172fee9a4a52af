import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node, statistics
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets

OPS = ("BatchNormalization",)
PARAMETERS = "bn_scale bn_bias bn_mean bn_var"


def torch_batch_norm(constants: dict[str, Array], epsilon: float, flatten: bool = False) -> Oracle:
    scale, bias, mean, variance = (torch.tensor(constants[name]).double() for name in PARAMETERS.split())
    exact = float(np.float32(epsilon))
    return autograd(
        lambda x: functional.batch_norm(x.flatten(1) if flatten else x, mean, variance, scale, bias, False, 0.0, exact)
    )


def batch_norm_network(constants: dict[str, Array], opset: int = 17, **attributes: object) -> onnx.ModelProto:
    return network([node("BatchNormalization", f"x {PARAMETERS}", "y", **attributes)], constants, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    assert op == "BatchNormalization"
    constants = statistics(random, "bn", 3)
    check_companion(batch_norm_network(constants, opset), torch_batch_norm(constants, 1e-5), random)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_epsilon(epsilon: float, random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    model = batch_norm_network(constants, epsilon=epsilon)
    check_companion(model, torch_batch_norm(constants, epsilon), random)


def test_zero_variance_and_zero_scale(random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    constants["bn_var"][0] = 0.0
    constants["bn_scale"][1:] = 0.0, -2.0
    check_companion(
        batch_norm_network(constants, epsilon=1e-3), torch_batch_norm(constants, 1e-3), random, smooth=False
    )


def test_rows_of_features(random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 24)
    nodes = [node("Flatten", "x", "flat"), node("BatchNormalization", f"flat {PARAMETERS}", "y")]
    model = network(nodes, constants, image=(2, 3, 4))
    check_companion(model, torch_batch_norm(constants, 1e-5, flatten=True), random)


def test_training_form_is_refused(random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    nodes = [node("BatchNormalization", f"x {PARAMETERS}", "y mean var", training_mode=1)]
    message = (
        r"^BatchNormalization node 'node_y': expected inference form \(training_mode = 0\) with constant scale and "
        "variance$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants)))


@pytest.mark.parametrize(("computed", "index"), [("scale", 1), ("var", 4)])
def test_parameters_from_the_image_are_refused(computed: str, index: int, random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    del constants[f"bn_{computed}"]
    nodes = [
        node("ReduceMean", "x", f"bn_{computed}", axes=[0, 2, 3], keepdims=0),
        node("BatchNormalization", f"x {PARAMETERS}", "y"),
    ]
    message = (
        rf"^BatchNormalization node 'node_y': input {index} \('bn_{computed}'\) is computed from the image; "
        "expected a constant$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants)))


@pytest.mark.parametrize("computed", ["bias", "mean"])
def test_offsets_from_the_image_are_refused(computed: str, random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    del constants[f"bn_{computed}"]
    nodes = [
        node("ReduceMean", "x", f"bn_{computed}", axes=[0, 2, 3], keepdims=0),
        node("BatchNormalization", f"x {PARAMETERS}", "y"),
    ]
    with pytest.raises(UnsupportedOpError, match=r"^BatchNormalization node 'node_y': .*expected inference form"):
        companion(block_of(network(nodes, constants)))
