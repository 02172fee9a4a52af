import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, image_input, network, node
from tests.export.rules.gradients import Oracle, autograd, check_companion, opsets

OPS = (
    "Concat",
    "DepthToSpace",
    "Flatten",
    "Reshape",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
SHAPE = (3, 4, 5)
POSITIVE = node("Relu", "x", "positive")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def example(op: str, opset: int) -> tuple[onnx.ModelProto, Oracle]:
    image = {"DepthToSpace": (8, 2, 3), "SpaceToDepth": (2, 4, 6), "Squeeze": (3, 1, 5)}.get(op, SHAPE)
    nodes, constants, expected = {
        "Concat": (
            [POSITIVE, node("Concat", "x positive", "y", axis=1)],
            {},
            lambda x: torch.cat([x, torch.relu(x)], dim=1),
        ),
        "DepthToSpace": (
            [node("DepthToSpace", "x", "y", blocksize=2, mode="CRD")],
            {},
            lambda x: functional.pixel_shuffle(x, 2),
        ),
        "Flatten": ([node("Flatten", "x", "y")], {}, lambda x: x.flatten(1)),
        "Reshape": (
            [node("Reshape", "x shape", "y")],
            {"shape": ints(0, 6, -1)},
            lambda x: x.reshape(-1, 6, 10),
        ),
        "SpaceToDepth": (
            [node("SpaceToDepth", "x", "y", blocksize=2)],
            {},
            lambda x: x.reshape(-1, 2, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(-1, 8, 2, 3),
        ),
        "Split": (
            [node("Split", "x sizes", "a b", axis=1), node("Concat", "b a", "y", axis=1)],
            {"sizes": ints(1, 2)},
            lambda x: torch.cat([x[:, 1:], x[:, :1]], dim=1),
        ),
        "Squeeze": ([node("Squeeze", "x axes", "y")], {"axes": ints(2)}, lambda x: x.squeeze(2)),
        "Transpose": ([node("Transpose", "x", "y", perm=[0, 3, 1, 2])], {}, lambda x: x.permute(0, 3, 1, 2)),
        "Unsqueeze": ([node("Unsqueeze", "x axes", "y")], {"axes": ints(1, -1)}, lambda x: x[:, None, ..., None]),
    }[op]
    return network(nodes, constants, image=image, opset=opset), autograd(expected)


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
    model = network(nodes, image=SHAPE, opset=17)
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
    model = network(nodes, {"fixed": np.ones((1, 3, 4, 5), np.float32)}, image=SHAPE, opset=17)
    message = r"^Reshape node 'node_y': its shape is computed from the image; expected a constant shape$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize("axis", [1, -3])
def test_flatten(axis: int, random: np.random.Generator) -> None:
    model = network([node("Flatten", "x", "y", axis=axis)], image=SHAPE)
    check_companion(model, autograd(lambda x: x.flatten(1)), random)


def from_image() -> list[onnx.NodeProto]:
    """Nodes that compute the integers `computed`, of the shape `target`, from the image."""
    return [
        node("ReduceMean", "x", "mean", axes=[0, 1, 2, 3]),
        node("Cast", "mean", "integer", to=onnx.TensorProto.INT64),
        node("Expand", "integer target", "wide"),
        node("Reshape", "wide target", "computed"),
    ]


PARTS = {
    "sizes": (ints(1, 3, 1), {}, 17, (1, 3, 1)),
    "one empty": (ints(0, 4, 1), {}, 17, (0, 4, 1)),
    "equal": (None, {}, 17, (2, 2, 2)),
    "num_outputs": (None, {"num_outputs": 3}, 18, (2, 2, 2)),
    "uneven": (None, {"num_outputs": 3}, 18, (2, 2, 1)),
    "sizes of opset 18": (ints(3, 1, 1), {}, 18, (3, 1, 1)),
}


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -3])
@pytest.mark.parametrize("case", PARTS.values(), ids=PARTS)
def test_split(case, axis: int, random: np.random.Generator) -> None:
    sizes, attributes, opset, expected = case
    image = [3, 4, 5]
    image[axis % 4 - 1] = sum(expected)
    constants = {} if sizes is None else {"sizes": sizes}
    nodes = [
        node("Split", "x" if sizes is None else "x sizes", "a b c", axis=axis, **attributes),
        node("Concat", "c a b b", "y", axis=axis),
    ]

    def joined(x: torch.Tensor) -> torch.Tensor:
        a, b, c = torch.split(x, list(expected), dim=axis)
        return torch.cat([c, a, b, b], dim=axis)

    check_companion(network(nodes, constants, image=tuple(image), opset=opset), autograd(joined), random)


def test_split_into_one_part(random: np.random.Generator) -> None:
    model = network([node("Split", "x sizes", "a", axis=1), node("Relu", "a", "y")], {"sizes": ints(3)}, image=SHAPE)
    check_companion(model, autograd(torch.relu), random)


@pytest.mark.parametrize("used", ["a", "b", "c"])
def test_split_of_which_one_part_is_used(used: str, random: np.random.Generator) -> None:
    nodes = [node("Split", "x sizes", "a b c", axis=1), node("Relu", used, "y")]
    first = {"a": 0, "b": 1, "c": 3}[used]
    last = {"a": 1, "b": 3, "c": 6}[used]
    model = network(nodes, {"sizes": ints(1, 2, 3)}, image=(6, 4, 5))
    check_companion(model, autograd(lambda x: torch.relu(x[:, first:last])), random)


def test_split_gives_exactly_the_parts() -> None:
    nodes = [node("Split", "x sizes", "a b", axis=3), node("Concat", "b a", "y", axis=3)]
    model = network(nodes, {"sizes": ints(1, 2)}, image=(1, 1, 3))
    dx, _ = function(companion(block_of(model, float64=True)))(np.zeros((1, 1, 1, 3)), np.array([[[[1.0, 2.0, 3.0]]]]))
    assert dx.ravel().tolist() == [3.0, 1.0, 2.0]


def test_split_of_the_batch_is_refused() -> None:
    nodes = [node("Split", "x sizes", "a b", axis=-4), node("Concat", "a b", "y", axis=1)]
    message = r"^Split node 'node_a': splits axis 0, the batch; expected another axis$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, {"sizes": ints(1, 1)}, image=SHAPE)))


def test_split_by_sizes_from_the_image_is_refused() -> None:
    nodes = [*from_image(), node("Split", "fixed computed", "a", axis=1), node("Relu", "a", "y")]
    constants = {"fixed": np.ones((1, 3, 4, 5), np.float32), "target": ints(1)}
    message = r"^Split node 'node_a': its sizes are computed from the image; expected constant sizes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, image=SHAPE)))


@pytest.mark.parametrize("perm", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3), (0, 3, 2, 1)], ids=str)
def test_transpose(perm: tuple[int, ...], random: np.random.Generator) -> None:
    def moved(x, dy):
        y, dx = np.zeros([x.shape[axis] for axis in perm]), np.zeros_like(x)
        for place in np.ndindex(*y.shape):
            source = tuple(place[perm.index(axis)] for axis in range(4))
            y[place] = x[source]
            dx[source] = dy[place]
        return y, dx

    check_companion(network([node("Transpose", "x", "y", perm=perm)], image=SHAPE), moved, random)


def test_transpose_of_five_axes(random: np.random.Generator) -> None:
    """The channel shuffle of ShuffleNet."""
    nodes = [
        node("Reshape", "x apart", "groups"),
        node("Transpose", "groups", "shuffled", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "shuffled together", "y"),
    ]
    constants = {"apart": ints(-1, 2, 3, 4, 5), "together": ints(-1, 6, 4, 5)}
    check_companion(
        network(nodes, constants, image=(6, 4, 5)), autograd(lambda x: functional.channel_shuffle(x, 2)), random
    )


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [({"perm": [1, 0, 2, 3]}, r"\(1, 0, 2, 3\)"), ({}, r"\(3, 2, 1, 0\)")],
    ids=["perm", "none"],
)
def test_transpose_of_the_batch_is_refused(attributes: dict, shown: str) -> None:
    message = rf"^Transpose node 'node_y': moves axis 0, the batch, by perm {shown}; expected it to stay first$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network([node("Transpose", "x", "y", **attributes)], image=SHAPE)))


@pytest.mark.parametrize("axes", [(1,), (3,), (1, 3), (-1, -3)], ids=str)
def test_squeeze(axes: tuple[int, ...], random: np.random.Generator) -> None:
    model = network([node("Squeeze", "x axes", "y")], {"axes": ints(*axes)}, image=(1, 4, 1))
    check_companion(model, autograd(lambda x: x.squeeze(axes)), random)


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [((1,), (1, 3, 4, 5)), ((4,), (3, 4, 5, 1)), ((-1, 2), (3, 1, 4, 5, 1)), ((-3, 1), (1, 3, 1, 4, 5))],
    ids=["first", "last", "both ends", "unordered"],
)
def test_unsqueeze(axes: tuple[int, ...], sizes: tuple[int, ...], random: np.random.Generator) -> None:
    model = network([node("Unsqueeze", "x axes", "y")], {"axes": ints(*axes)}, image=SHAPE)
    check_companion(model, autograd(lambda x: x.reshape(-1, *sizes)), random)


def test_squeeze_there_and_back(random: np.random.Generator) -> None:
    nodes = [node("Squeeze", "x axes", "rows"), node("Relu", "rows", "cut"), node("Unsqueeze", "cut axes", "y")]
    check_companion(network(nodes, {"axes": ints(-2)}, image=(3, 1, 5)), autograd(torch.relu), random)


@pytest.mark.parametrize(("op", "axis"), [("Squeeze", 0), ("Squeeze", -4), ("Unsqueeze", 0), ("Unsqueeze", -5)])
def test_axes_before_the_batch_are_refused(op: str, axis: int) -> None:
    image = ir_image_of_one(op)
    message = rf"^{op} node 'node_y': adds or drops axis 0, before the batch; expected other axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network([node(op, "x axes", "y")], {"axes": ints(axis)}, image=SHAPE, inputs=image)))


def ir_image_of_one(op: str) -> list[onnx.ValueInfoProto] | None:
    """An input with a batch of one, which Squeeze can drop."""
    return [image_input([1, *SHAPE])] if op == "Squeeze" else None


def test_squeeze_of_unnamed_axes_is_refused() -> None:
    message = r"^Squeeze node 'node_y': names no axes, so that it drops the batch of a single image; expected axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network([node("Squeeze", "x", "y")], image=(3, 1, 5), inputs=[image_input([2, 3, 1, 5])])))


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze"])
def test_axes_from_the_image_are_refused(op: str) -> None:
    nodes = [*from_image(), node(op, "fixed computed", "y")]
    constants = {"fixed": np.ones((1, 3, 1, 5), np.float32), "target": ints(1)}
    message = rf"^{op} node 'node_y': its axes are computed from the image; expected constant axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, image=SHAPE)))


def slow_depth_to_space(block: int, mode: str) -> Oracle:
    """Each channel and place of a block, by the formula; the gradient of SpaceToDepth is the same the other way."""

    def oracle(x, dy):
        n, channels, height, width = x.shape
        depth = channels // block**2
        y, dx = np.zeros((n, depth, height * block, width * block)), np.zeros_like(x)
        for b, c, h, w, i, j in np.ndindex(n, depth, height, width, block, block):
            source = (i * block + j) * depth + c if mode == "DCR" else (c * block + i) * block + j
            y[b, c, h * block + i, w * block + j] = x[b, source, h, w]
            dx[b, source, h, w] = dy[b, c, h * block + i, w * block + j]
        return y, dx

    return oracle


def reversed_roles(oracle: Oracle) -> Oracle:
    """The oracle of the inverse of an operator that only moves elements."""

    def inverse(x, dy):
        (dx, y) = oracle(dy, x)
        return y, dx

    return inverse


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("mode", ["DCR", "CRD", None])
def test_depth_to_space(mode: str | None, block: int, random: np.random.Generator) -> None:
    attributes = {"blocksize": block} | ({} if mode is None else {"mode": mode})
    model = network([node("DepthToSpace", "x", "y", **attributes)], image=(2 * block**2, 3, 2))
    check_companion(model, slow_depth_to_space(block, mode or "DCR"), random)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize(("mode", "opset"), [(None, 17), (None, 28), ("DCR", 28), ("CRD", 28)])
def test_space_to_depth(mode: str | None, opset: int, block: int, random: np.random.Generator) -> None:
    attributes = {"blocksize": block} | ({} if mode is None else {"mode": mode})
    model = network([node("SpaceToDepth", "x", "y", **attributes)], image=(2, 3 * block, 2 * block), opset=opset)
    check_companion(model, reversed_roles(slow_depth_to_space(block, mode or "DCR")), random)
