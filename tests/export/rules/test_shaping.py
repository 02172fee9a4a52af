import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Oracle, autograd, check_companion, opsets

OPS = ("Concat", "Flatten", "Pad", "Reshape")
SHAPE = (3, 4, 5)
POSITIVE = node("Relu", "x", "positive")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def example(op: str, opset: int) -> tuple[onnx.ModelProto, Oracle]:
    nodes, constants, expected = {
        "Concat": (
            [POSITIVE, node("Concat", "x positive", "y", axis=1)],
            {},
            lambda x: torch.cat([x, torch.relu(x)], dim=1),
        ),
        "Flatten": ([node("Flatten", "x", "y")], {}, lambda x: x.flatten(1)),
        "Pad": (
            [node("Pad", "x pads", "y")],
            {"pads": ints(0, 0, 1, 2, 0, 0, 3, 4)},
            lambda x: functional.pad(x, (2, 4, 1, 3)),
        ),
        "Reshape": (
            [node("Reshape", "x shape", "y")],
            {"shape": ints(0, 6, -1)},
            lambda x: x.reshape(-1, 6, 10),
        ),
    }[op]
    return network(nodes, constants, image=SHAPE, opset=opset), autograd(expected)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    model, expected = example(op, opset)
    check_companion(model, expected, random)


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -3])
def test_concat_of_branches_and_of_one_tensor_twice(axis: int, random: np.random.Generator) -> None:
    model = network([POSITIVE, node("Concat", "positive x positive", "y", axis=axis)], image=SHAPE)
    check_companion(model, autograd(lambda x: torch.cat([torch.relu(x), x, torch.relu(x)], dim=axis)), random)


def test_concat_of_unequal_sizes(random: np.random.Generator) -> None:
    nodes = [
        node("MaxPool", "x", "pooled", kernel_shape=[1, 3]),
        node("ReduceMean", "x", "mean", axes=[3]),
        node("Concat", "mean x pooled", "y", axis=3),
    ]
    model = network(nodes, image=SHAPE)
    check_companion(
        model,
        autograd(lambda x: torch.cat([x.mean(dim=3, keepdim=True), x, functional.max_pool2d(x, (1, 3), 1)], dim=3)),
        random,
    )


def test_concat_with_a_constant(random: np.random.Generator) -> None:
    border = random.standard_normal((1, 3, 2, 5)).astype(np.float32)
    model = network([node("Concat", "border x", "y", axis=2)], {"border": border}, image=SHAPE)
    dy = random.standard_normal((1, 3, 6, 5))
    dx, _ = function(companion(block_of(model, float64=True)))(np.zeros((1, *SHAPE)), dy)
    np.testing.assert_array_equal(dx, dy[:, :, 2:])


def test_concat_along_the_batch_is_refused() -> None:
    model = network([POSITIVE, node("Concat", "x positive", "y", axis=-4)], image=SHAPE)
    message = r"^Concat node 'node_y': joins along axis 0, the batch; expected another axis$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((-1, 60), (60,)),
        ((0, -1), (60,)),
        ((0, 0, -1), (3, 20)),
        ((-1, 3, 2, 10), (3, 2, 10)),
        ((0, 3, 4, 5), (3, 4, 5)),
        ((-1, 1, 60, 1), (1, 60, 1)),
    ],
    ids=str,
)
def test_reshape(shape: tuple[int, ...], sizes: tuple[int, ...], random: np.random.Generator) -> None:
    model = network([node("Reshape", "x shape", "y")], {"shape": ints(*shape)}, image=SHAPE)
    check_companion(model, autograd(lambda x: x.reshape(len(x), *sizes)), random)


def test_reshape_there_and_back(random: np.random.Generator) -> None:
    shapes = {"there": ints(-1, 5, 12), "back": ints(-1, 3, 4, 5)}
    nodes = [node("Reshape", "x there", "rows"), node("Relu", "rows", "cut"), node("Reshape", "cut back", "y")]
    check_companion(network(nodes, shapes, image=SHAPE), autograd(torch.relu), random)


def test_reshape_to_a_shape_from_the_image_is_refused() -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[0, 2, 3], keepdims=0),
        node("Cast", "mean", "shape", to=onnx.TensorProto.INT64),
        node("Reshape", "fixed shape", "y"),
    ]
    model = network(nodes, {"fixed": np.ones((1, 3, 4, 5), np.float32)}, image=SHAPE)
    message = r"^Reshape node 'node_y': its shape is computed from the image; expected a constant shape$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize("axis", [1, -3])
def test_flatten(axis: int, random: np.random.Generator) -> None:
    model = network([node("Flatten", "x", "y", axis=axis)], image=SHAPE)
    check_companion(model, autograd(lambda x: x.flatten(1)), random)


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ((0, 1, 2), (3, 0, 1)),
        ((0, -1, -2), (0, -1, 0)),
        ((0, 2, -1), (0, -3, 4)),
        ((-1, 0, 0), (-1, 5, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((2, 0, 0), (0, 0, 7)),
    ],
    ids=["grows", "crops", "both", "channels", "nothing", "channels and width"],
)
def test_pad(begin: tuple[int, ...], end: tuple[int, ...], random: np.random.Generator) -> None:
    amounts = ints(0, *begin, 0, *end)
    model = network([node("Pad", "x pads value", "y")], {"pads": amounts, "value": np.float32(0.5)}, image=SHAPE)
    torch_order = [amount for pair in reversed(list(zip(begin, end, strict=True))) for amount in pair]
    check_companion(
        model,
        autograd(lambda x: functional.pad(x, torch_order, value=0.5)),
        random,
        in_onnx_reference=min(amounts) >= 0,  # its Pad refuses negative amounts
    )


@pytest.mark.parametrize("axes", [(2, 3), (-1, -3), (1,)], ids=str)
def test_pad_of_chosen_axes(axes: tuple[int, ...], random: np.random.Generator) -> None:
    begin, end = [1, 0][: len(axes)], [2, 3][: len(axes)]
    constants = {"pads": ints(*begin, *end), "axes": ints(*axes)}
    model = network([node("Pad", "x pads - axes", "y")], constants, image=SHAPE, opset=18)
    torch_order = [0] * 8
    for position, axis in enumerate(axes):
        torch_order[2 * (3 - axis % 4)], torch_order[2 * (3 - axis % 4) + 1] = begin[position], end[position]
    check_companion(model, autograd(lambda x: functional.pad(x, torch_order)), random)


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_pad_of_other_modes_is_refused(mode: str) -> None:
    model = network([node("Pad", "x pads", "y", mode=mode)], {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)}, opset=19)
    with pytest.raises(UnsupportedOpError, match=rf"^Pad node 'node_y': has mode '{mode}'; expected 'constant'$"):
        companion(block_of(model))


def test_pad_of_the_batch_is_refused() -> None:
    model = network([node("Pad", "x pads", "y")], {"pads": ints(0, 0, 0, 0, 1, 0, 0, 0)})
    with pytest.raises(UnsupportedOpError, match=r"^Pad node 'node_y': pads axis 0, the batch; expected other axes$"):
        companion(block_of(model))


@pytest.mark.parametrize("inputs", ["x shape", "fixed shape"])
def test_pad_by_amounts_from_the_image_is_refused(inputs: str) -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[0, 2, 3], keepdims=0),
        node("Concat", "mean mean two", "rows", axis=0),
        node("Cast", "rows", "shape", to=onnx.TensorProto.INT64),
        node("Pad", inputs, "y"),
    ]
    constants = {"fixed": np.ones((1, 3, 4, 5), np.float32), "two": np.zeros(2, np.float32)}
    message = r"^Pad node 'node_y': input 1 \('shape'\) is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, image=SHAPE)))


def test_pad_with_a_value_from_the_image_is_refused() -> None:
    nodes = [node("ReduceMean", "x", "value", keepdims=0), node("Pad", "fixed pads value", "y")]
    constants = {"fixed": np.ones((1, 3, 4, 5), np.float32), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1)}
    message = r"^Pad node 'node_y': the value it pads with is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, image=SHAPE)))
