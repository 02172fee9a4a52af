import numpy as np
import onnx
import pytest
import torch

from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node, weight
from tests.export.rules.gradients import autograd, check_companion, opsets

OPS = ("Add",)
SHAPE = (3, 4, 5)


def add_network(inputs: str, *before: onnx.NodeProto, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    return network([*before, node("Add", inputs, "y")], constants, image=SHAPE, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    assert op == "Add"
    model = add_network("x positive", node("Relu", "x", "positive"), opset=opset)
    check_companion(model, autograd(lambda x: x + torch.relu(x)), random)


@pytest.mark.parametrize("inputs", ["x bias", "bias x"])
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (1, 3, 4, 5), (5,)], ids=["scalar", "channels", "image", "row"])
def test_constant_is_added(inputs: str, shape: tuple[int, ...], random: np.random.Generator) -> None:
    bias = np.asarray(random.standard_normal(shape), np.float32)
    check_companion(add_network(inputs, bias=bias), autograd(lambda x: x + torch.tensor(bias).double()), random)


def test_input_added_to_itself_counts_twice(random: np.random.Generator) -> None:
    check_companion(add_network("x x"), autograd(lambda x: x + x), random)


@pytest.mark.parametrize("inputs", ["x mean", "mean x"])
def test_activation_broadcast_over_height_and_width(inputs: str, random: np.random.Generator) -> None:
    model = add_network(inputs, node("GlobalAveragePool", "x", "mean"))
    check_companion(model, autograd(lambda x: x + x.mean(dim=(2, 3), keepdim=True)), random)


@pytest.mark.parametrize(("axes", "inputs"), [([1], "x mean"), ([2], "mean x"), ([3], "x mean"), ([1, 3], "mean x")])
def test_activation_broadcast_over_any_axes(axes: list[int], inputs: str, random: np.random.Generator) -> None:
    model = add_network(inputs, node("ReduceMean", "x", "mean", axes=axes))
    check_companion(model, autograd(lambda x: x + x.mean(dim=axes, keepdim=True)), random)


def test_both_inputs_broadcast(random: np.random.Generator) -> None:
    before = [node("ReduceMean", "x", "rows", axes=[3]), node("ReduceMean", "x", "columns", axes=[2])]
    model = add_network("rows columns", *before)
    check_companion(model, autograd(lambda x: x.mean(dim=3, keepdim=True) + 1.0 * x.mean(dim=2, keepdim=True)), random)


def test_activation_broadcast_against_a_larger_constant(random: np.random.Generator) -> None:
    bias = weight(random, 1, 7, 4, 5)
    nodes = [node("ReduceMean", "x", "mean", axes=[1, 3]), node("Add", "mean bias", "y")]
    check_companion(
        network(nodes, {"bias": bias}, image=SHAPE),
        autograd(lambda x: x.mean(dim=(1, 3), keepdim=True) + torch.tensor(bias).double()),
        random,
    )


def test_axes_of_size_one_that_did_not_grow(random: np.random.Generator) -> None:
    nodes = [node("Relu", "x", "positive"), node("Add", "x positive", "y")]
    model = network(nodes, image=(1, 1, 5))
    check_companion(model, autograd(lambda x: x + torch.relu(x)), random)
    assert [entry.op_type for entry in companion(block_of(model)).graph].count("ReduceSum") == 1
