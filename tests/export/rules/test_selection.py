from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets

OPS = ("Gather", "Slice")
SHAPE = (3, 6, 7)
INT64_MAX, INT64_MIN, INT32_MAX = 2**63 - 1, -(2**63), 2**31 - 1


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Bounds:
    """One Slice of images `SHAPE`."""

    starts: Sequence[int]
    ends: Sequence[int]
    axes: Sequence[int] | None = None
    steps: Sequence[int] | None = None


def slice_network(bounds: Bounds, image: tuple[int, ...] = SHAPE, opset: int = 17) -> onnx.ModelProto:
    given = {"starts": bounds.starts, "ends": bounds.ends, "axes": bounds.axes, "steps": bounds.steps}
    names = [name if values is not None else "-" for name, values in given.items()]
    constants = {name: ints(*values) for name, values in given.items() if values is not None}
    return network([node("Slice", f"x {' '.join(names)}", "y")], constants, image=image, opset=opset)


def taken(bounds: Bounds, shape: Sequence[int]) -> list[list[int]]:
    """List the positions that are taken of every axis, by the specification's rules for bounds."""
    positions = [list(range(size)) for size in shape]
    for i, (start, end) in enumerate(zip(bounds.starts, bounds.ends, strict=True)):
        axis = i if bounds.axes is None else bounds.axes[i] % len(shape)
        step = 1 if bounds.steps is None else bounds.steps[i]
        size = shape[axis]
        start, end = start + size * (start < 0), end + size * (end < 0)
        low, high = (0, size) if step > 0 else (0, size - 1)
        start = min(max(start, low), high)
        end = min(max(end, 0), size) if step > 0 else min(max(end, -1), size - 1)
        positions[axis], place = [], start
        while (step > 0 and place < end) or (step < 0 and place > end):
            positions[axis].append(place)
            place += step
    return positions


def slow_slice(bounds: Bounds) -> Oracle:
    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        positions = taken(bounds, x.shape)
        y, dx = np.zeros([len(places) for places in positions]), np.zeros_like(x)
        for place in np.ndindex(*y.shape):
            origin = tuple(positions[axis][p] for axis, p in enumerate(place))
            y[place] = x[origin]
            dx[origin] = dy[place]
        return y, dx

    return oracle


SLICES = {
    "rows": Bounds([1], [4], [2]),
    "rows and columns": Bounds([1, 2], [-1, 7], [2, 3]),
    "channels": Bounds([1], [2], [1]),
    "negative": Bounds([-4, -3], [-1, INT64_MAX], [-2, -1]),
    "to the end": Bounds([2], [INT64_MAX], [3]),
    "beyond both ends": Bounds([-100, -8], [100, INT32_MAX], [2, 3]),
    "everything": Bounds([0], [INT64_MAX], [1]),
    "all axes": Bounds([0, 1, 2, 3], [INT64_MAX, INT64_MAX, 5, -1]),
    "all axes, 32 bits": Bounds([0, 1, 2, 3], [INT32_MAX, INT32_MAX, 5, -1]),
    "every other": Bounds([0, 0], [INT64_MAX, INT64_MAX], [2, 3], [2, 2]),
    "every other, shifted": Bounds([1, 1], [INT64_MAX, INT64_MAX], [3, 2], [2, 2]),
    "every third": Bounds([1, 0], [6, 5], [2, 3], [3, 3]),
    "rows alone": Bounds([0], [INT64_MAX], [2], [2]),
    "columns alone": Bounds([1], [INT64_MAX], [3], [4]),
    "every other channel": Bounds([0], [INT64_MAX], [1], [2]),
    "last of every other channel": Bounds([1], [INT64_MAX], [1], [2]),
    "all three": Bounds([0, 1, 2], [INT64_MAX, INT64_MAX, INT64_MAX], [1, 2, 3], [2, 2, 3]),
    "step beyond the size": Bounds([2], [INT64_MAX], [3], [100]),
    "one row by a step": Bounds([3], [5], [2], [2]),
    "backward": Bounds([-1], [INT64_MIN], [3], [-1]),
    "backward from the end": Bounds([INT64_MAX, -1], [-INT64_MAX, -8], [2, 3], [-1, -1]),
    "backward, a part": Bounds([4, 5], [1, 0], [2, 3], [-1, -1]),
    "backward, every other": Bounds([-1, -1], [INT64_MIN, INT64_MIN], [2, 3], [-2, -3]),
    "backward and forward": Bounds([-2, 1], [INT64_MIN, INT64_MAX], [2, 3], [-3, 2]),
    "backward channels": Bounds([-1], [INT64_MIN], [1], [-2]),
    "backward, one element": Bounds([2], [1], [3], [-5]),
}


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    if op == "Gather":
        model = gather_network(ints(2, 0), 1, opset=opset)
        check_companion(model, autograd(lambda x: x[:, [2, 0]]), random)
    else:
        bounds = Bounds([1, 0], [INT64_MAX, -1], [2, 3], [2, 1])
        check_companion(slice_network(bounds, opset=opset), autograd(lambda x: x[:, :, 1::2, :-1]), random)


@pytest.mark.parametrize("bounds", SLICES.values(), ids=SLICES)
def test_slice(bounds: Bounds, random: np.random.Generator) -> None:
    check_companion(slice_network(bounds), slow_slice(bounds), random)


@pytest.mark.parametrize("image", [(1, 1, 9), (4, 9, 1), (2, 8, 8), (2, 9, 9)], ids=str)
def test_slice_of_every_other_element(image: tuple[int, ...], random: np.random.Generator) -> None:
    bounds = Bounds([0, 0], [INT64_MAX, INT64_MAX], [2, 3], [2, 2])
    check_companion(slice_network(bounds, image), autograd(lambda x: x[:, :, ::2, ::2]), random)


def test_slice_of_rows_of_another_rank(random: np.random.Generator) -> None:
    nodes = [node("Reshape", "x flat", "rows"), node("Slice", "rows starts ends axes steps", "y")]
    constants = {"flat": ints(-1, 3, 42), "starts": ints(1, 0), "ends": ints(40, 3), "axes": ints(2, 1)}
    constants["steps"] = ints(5, 2)
    model = network(nodes, constants, image=SHAPE)
    check_companion(model, autograd(lambda x: x.flatten(2)[:, 0:3:2, 1:40:5]), random)


@pytest.mark.parametrize("sizes", [(3, 42), (3, 2, 3, 7)], ids=["three axes", "five axes"])
def test_slice_with_steps_of_another_rank(sizes: tuple[int, ...], random: np.random.Generator) -> None:
    nodes = [node("Reshape", "x flat", "rows"), node("Slice", "rows starts ends axes steps", "y")]
    constants = {
        "flat": ints(-1, *sizes),
        "starts": ints(0),
        "ends": ints(INT64_MAX),
        "axes": ints(2),
        "steps": ints(2),
    }
    model = network(nodes, constants, image=SHAPE)
    check_companion(model, autograd(lambda x: x.reshape(-1, *sizes)[:, :, ::2]), random)


def test_slice_of_nothing_has_gradient_zero(random: np.random.Generator) -> None:
    for steps in ([1], [2], [-1]):
        model = slice_network(Bounds([4], [4], [2], steps))
        dx, total = function(companion(block_of(model, float64=True)))(
            random.standard_normal((1, *SHAPE)), np.zeros((1, 3, 0, 7))
        )
        assert dx.shape == (1, *SHAPE)
        assert not dx.any()
        assert not total.any()


def test_slice_places_the_gradient_exactly() -> None:
    model = slice_network(Bounds([4], [0], [3], [-2]), (1, 1, 6))
    dx, _ = function(companion(block_of(model, float64=True)))(np.zeros((1, 1, 1, 6)), np.array([[[[1.0, 2.0]]]]))
    assert dx.ravel().tolist() == [0.0, 0.0, 2.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("bounds", "image", "ops"),
    [
        (SLICES["rows and columns"], SHAPE, ["Pad"]),
        (SLICES["everything"], SHAPE, []),
        (SLICES["every other"], (2, 8, 9), ["ConvTranspose"]),
        (SLICES["every other channel"], (4, 5, 6), ["Unsqueeze", "Pad", "Reshape"]),
    ],
    ids=["step 1", "everything", "step 2", "step 2, channels"],
)
def test_slice_takes_few_nodes(bounds: Bounds, image: tuple[int, ...], ops: list[str]) -> None:
    graph = companion(block_of(slice_network(bounds, image))).graph
    assert [entry.op_type for entry in graph if entry.op_type != "Identity"] == [*ops, "ReduceSum"]


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds([1], [INT64_MAX], [0]),
        Bounds([0], [1], [-4]),
        Bounds([0], [INT64_MAX], [0], [2]),
        Bounds([-1, 0], [INT64_MIN, 2], [0, 1], [-1, 1]),
    ],
    ids=["without the first", "the first", "every other", "backward"],
)
def test_slice_of_the_batch_is_refused(bounds: Bounds) -> None:
    message = r"^Slice node 'node_y': takes a part of axis 0, the batch; expected other axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(slice_network(bounds)))


def from_image(name: str) -> list[onnx.NodeProto]:
    """Nodes that compute an integer of shape [1] from the image."""
    return [
        node("ReduceMean", "x", "mean", axes=[0, 1, 2, 3], keepdims=0),
        node("Reshape", "mean one", "number"),
        node("Cast", "number", name, to=onnx.TensorProto.INT64),
    ]


@pytest.mark.parametrize("computed", ["starts", "ends", "axes", "steps"])
@pytest.mark.parametrize("sliced", ["x", "fixed"])
def test_slice_by_bounds_from_the_image_is_refused(computed: str, sliced: str) -> None:
    constants = {"one": ints(1), "fixed": np.ones((1, *SHAPE), np.float32)}
    constants |= {name: ints(1) for name in ("starts", "ends", "axes", "steps") if name != computed}
    nodes = [*from_image(computed), node("Slice", f"{sliced} starts ends axes steps", "y")]
    position = 1 + ("starts", "ends", "axes", "steps").index(computed)
    message = {
        "x": rf"input {position} \('{computed}'\) is computed from the image; expected a constant",
        "fixed": r"its bounds are computed from the image; expected constant bounds",
    }[sliced]
    with pytest.raises(UnsupportedOpError, match=rf"^Slice node 'node_y': {message}$"):
        companion(block_of(network(nodes, constants, image=SHAPE)))


@pytest.mark.parametrize("inputs", ["x - ends", "x starts -"])
def test_slice_without_bounds_is_refused(inputs: str) -> None:
    model = network([node("Slice", inputs, "y")], {inputs.strip("x -"): ints(0)}, image=SHAPE)
    message = r"^Slice node 'node_y': has no starts or no ends; expected constants as inputs 1 and 2$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


def gather_network(indices: np.ndarray, axis: int, image: tuple[int, ...] = SHAPE, opset: int = 17) -> onnx.ModelProto:
    return network([node("Gather", "x indices", "y", axis=axis)], {"indices": indices}, image=image, opset=opset)


def slow_gather(indices: np.ndarray, axis: int) -> Oracle:
    """output[…, k, …] = input[…, indices[k], …] for every multi-index k."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        at = axis % x.ndim
        y = np.zeros((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))
        dx = np.zeros_like(x)
        for before in np.ndindex(*x.shape[:at]):
            for k in np.ndindex(*indices.shape):
                for after in np.ndindex(*x.shape[at + 1 :]):
                    place = int(indices[k])
                    origin = (*before, place if place >= 0 else place + x.shape[at], *after)
                    y[(*before, *k, *after)] = x[origin]
                    dx[origin] += dy[(*before, *k, *after)]
        return y, dx

    return oracle


GATHERED: Mapping[str, np.ndarray] = {
    "scalar": np.array(1),
    "negative scalar": np.array(-1),
    "one": ints(2),
    "in a row": ints(0, 1),
    "shuffled": ints(2, 0, 1),
    "some": ints(2, 0),
    "negative": ints(-1, 0),
    "repeated": ints(1, 1, 0, 1),
    "repeated by its negative": ints(2, -1),
    "matrix": ints(2, 0, 1, 2, 2, 0).reshape(2, 3),
    "matrix without repetition": ints(0, 2).reshape(2, 1),
    "matrix in a row": ints(1, 2).reshape(1, 2),
    "32 bits": np.array([2, -3], np.int32),
}


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -3])
@pytest.mark.parametrize("indices", GATHERED.values(), ids=GATHERED)
def test_gather(indices: np.ndarray, axis: int, random: np.random.Generator) -> None:
    image = [2, 4, 5]
    image[axis % 4 - 1] = 3
    check_companion(gather_network(indices, axis, tuple(image)), slow_gather(indices, axis), random)


def test_gather_of_one_channel_again_and_again(random: np.random.Generator) -> None:
    model = gather_network(ints(*[1] * 8), 1)
    check_companion(model, autograd(lambda x: x[:, [1] * 8]), random)


def test_gather_of_rows_of_another_rank(random: np.random.Generator) -> None:
    """The class token of a transformer."""
    nodes = [
        node("Reshape", "x flat", "rows"),
        node("Transpose", "rows", "tokens", perm=[0, 2, 1]),
        node("Gather", "tokens first", "y", axis=1),
    ]
    model = network(nodes, {"flat": ints(-1, 3, 42), "first": np.array(0)}, image=SHAPE)
    check_companion(model, autograd(lambda x: x.flatten(2)[:, :, 0]), random)


def test_gather_adds_up_the_gradients_exactly() -> None:
    model = gather_network(ints(2, 0, 2), 3, (1, 1, 4))
    dx, _ = function(companion(block_of(model, float64=True)))(np.zeros((1, 1, 1, 4)), np.array([[[[1.0, 2.0, 4.0]]]]))
    assert dx.ravel().tolist() == [2.0, 0.0, 5.0, 0.0]


@pytest.mark.parametrize(
    ("name", "axis", "ops"),
    [
        ("in a row", 1, ["Pad"]),
        ("shuffled", 1, ["Gather"]),
        ("some", 1, ["Pad", "Gather"]),
        ("repeated", 3, ["MatMul"]),
        ("repeated", 2, ["Reshape", "MatMul", "Reshape"]),
    ],
)
def test_gather_takes_few_nodes(name: str, axis: int, ops: list[str]) -> None:
    graph = companion(block_of(gather_network(GATHERED[name], axis, (3, 3, 3)))).graph
    assert [entry.op_type for entry in graph] == [*ops, "ReduceSum"]


@pytest.mark.parametrize("axis", [0, -4])
def test_gather_of_the_batch_is_refused(axis: int) -> None:
    message = r"^Gather node 'node_y': gathers along axis 0, the batch; expected another axis$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(gather_network(ints(0), axis)))


def test_gather_of_no_axis_is_of_the_batch() -> None:
    model = network([node("Gather", "x indices", "y")], {"indices": ints(0)}, image=SHAPE)
    with pytest.raises(UnsupportedOpError, match=r"^Gather node 'node_y': gathers along axis 0, the batch; "):
        companion(block_of(model))


@pytest.mark.parametrize("source", ["x", "fixed"])
def test_gather_by_indices_from_the_image_is_refused(source: str) -> None:
    constants = {"one": ints(1), "fixed": np.ones((1, *SHAPE), np.float32)}
    nodes = [*from_image("indices"), node("Gather", f"{source} indices", "y", axis=1)]
    message = {
        "x": r"input 1 \('indices'\) is computed from the image; expected a constant",
        "fixed": r"its indices are not constant; expected constants as input 1",
    }[source]
    with pytest.raises(UnsupportedOpError, match=rf"^Gather node 'node_y': {message}$"):
        companion(block_of(network(nodes, constants, image=SHAPE)))
