from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets

OPS = ("Pad",)
SHAPE = (3, 4, 5)
MODES = ("edge", "reflect", "wrap")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def pad_network(mode: str, begin: Sequence[int], end: Sequence[int], opset: int = 19) -> onnx.ModelProto:
    """Pad C, H and W of an image."""
    return network(
        [node("Pad", "x pads", "y", mode=mode)], {"pads": ints(0, *begin, 0, *end)}, image=SHAPE, opset=opset
    )


def source(mode: str, size: int) -> Callable[[int], int]:
    """Return which of `size` elements the element at a position shows, by the definition of the mode."""

    def edge(position: int) -> int:
        return min(max(position, 0), size - 1)

    def reflect(position: int) -> int:
        return -position if position < 0 else 2 * (size - 1) - position if position >= size else position

    return {"edge": edge, "reflect": reflect, "wrap": lambda position: position % size}[mode]


def slow_pad(mode: str, begin: Sequence[int], end: Sequence[int]) -> Oracle:
    """Each element of the output looks up its source; negative amounts crop before anything is copied."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        before, after = (0, *begin), (0, *end)
        sizes = [n + b + e for n, b, e in zip(x.shape, before, after, strict=True)]
        first = [max(-b, 0) for b in before]
        kept = [n - f + min(e, 0) for n, f, e in zip(x.shape, first, after, strict=True)]
        y, dx = np.zeros(sizes), np.zeros_like(x)
        for place in np.ndindex(*sizes):
            origin = tuple(
                f + source(mode, k)(p - max(b, 0)) for p, b, f, k in zip(place, before, first, kept, strict=True)
            )
            y[place] = x[origin]
            dx[origin] += dy[place]
        return y, dx

    return oracle


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    model = network([node(op, "x pads", "y")], {"pads": ints(0, 0, 1, 2, 0, 0, 3, 4)}, image=SHAPE, opset=opset)
    check_companion(model, autograd(lambda x: functional.pad(x, (2, 4, 1, 3))), random)


@pytest.mark.parametrize(
    ("mode", "opset"),
    [(mode, opset) for mode in MODES for _, opset in opsets(*OPS) if mode != "wrap" or opset >= 19],
)
def test_mode_equals_the_definition_in_every_version(mode: str, opset: int, random: np.random.Generator) -> None:
    check_companion(pad_network(mode, (0, 1, 2), (0, 3, 1), opset), slow_pad(mode, (0, 1, 2), (0, 3, 1)), random)


AMOUNTS = {
    "one side": ((0, 0, 2), (0, 0, 0)),
    "other side": ((0, 0, 0), (0, 1, 0)),
    "channels": ((1, 0, 0), (2, 0, 0)),
    "all it can": ((2, 3, 4), (2, 3, 4)),
    "both sides, apart": ((0, 1, 1), (0, 1, 1)),
    "both sides, meeting": ((0, 2, 2), (0, 2, 2)),
    "nothing": ((0, 0, 0), (0, 0, 0)),
    "crops": ((0, -1, 0), (-1, 0, -2)),
    "crops and pads": ((0, -1, 2), (0, 2, -2)),
    "crops to one row": ((0, -3, 1), (0, 0, 1)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("begin", "end"), AMOUNTS.values(), ids=AMOUNTS)
def test_mode(mode: str, begin: tuple[int, ...], end: tuple[int, ...], random: np.random.Generator) -> None:
    check_companion(
        pad_network(mode, begin, end),
        slow_pad(mode, begin, end),
        random,
        in_onnx_reference=min(*begin, *end) >= 0,  # its Pad refuses negative amounts
    )


@pytest.mark.parametrize(("mode", "torch_mode"), [("edge", "replicate"), ("reflect", "reflect"), ("wrap", "circular")])
def test_mode_equals_autograd(mode: str, torch_mode: str, random: np.random.Generator) -> None:
    model = pad_network(mode, (0, 1, 3), (0, 2, 1))
    check_companion(model, autograd(lambda x: functional.pad(x, (3, 1, 1, 2), mode=torch_mode)), random)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("image", [(2, 2, 2), (2, 3, 2), (2, 2, 3)], ids=str)
def test_short_axes(mode: str, image: tuple[int, int, int], random: np.random.Generator) -> None:
    model = network(
        [node("Pad", "x pads", "y", mode=mode)], {"pads": ints(0, 1, 1, 1, 0, 1, 1, 1)}, image=image, opset=19
    )
    check_companion(model, slow_pad(mode, (1, 1, 1), (1, 1, 1)), random)


def test_an_axis_that_stays_costs_nothing() -> None:
    for mode, ops in (("edge", 6), ("reflect", 10)):
        graph = companion(block_of(pad_network(mode, (0, 0, 1), (0, 0, 1)))).graph
        assert len(list(graph)) == ops + 1


def test_edge_repeats_as_often_as_it_likes(random: np.random.Generator) -> None:
    check_companion(pad_network("edge", (0, 9, 0), (0, 6, 11)), slow_pad("edge", (0, 9, 0), (0, 6, 11)), random)


def test_wrap_of_a_whole_turn(random: np.random.Generator) -> None:
    check_companion(pad_network("wrap", (0, 4, 0), (0, 4, 5)), slow_pad("wrap", (0, 4, 0), (0, 4, 5)), random)


@pytest.mark.parametrize("mode", ["edge", "wrap"])
def test_one_element_takes_the_gradient_of_all_its_copies(mode: str) -> None:
    model = network(
        [node("Pad", "x pads", "y", mode=mode)], {"pads": ints(0, 0, 0, 1, 0, 0, 0, 1)}, image=(1, 1, 1), opset=19
    )
    dx, total = function(companion(block_of(model, float64=True)))(
        np.zeros((1, 1, 1, 1)), np.array([[[[1.0, 20.0, 300.0]]]])
    )
    assert dx.ravel().tolist() == total.ravel().tolist() == [321.0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("edge", [11.0, 100.0, 11000.0]), ("reflect", [10.0, 10101.0, 1000.0]), ("wrap", [10010.0, 100.0, 1001.0])],
)
def test_gradients_of_copies_fold_back(mode: str, expected: list[float]) -> None:
    model = network(
        [node("Pad", "x pads", "y", mode=mode)], {"pads": ints(0, 0, 0, 1, 0, 0, 0, 1)}, image=(1, 1, 3), opset=19
    )
    dx, _ = function(companion(block_of(model, float64=True)))(
        np.zeros((1, 1, 1, 3)), np.array([[[[1.0, 10.0, 100.0, 1000.0, 10000.0]]]])
    )
    assert dx.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("mode", "amounts", "shown"),
    [
        ("reflect", (0, 0, 4, 0, 0, 0, 0, 0), r"pads axis 2 of size 4 by 4 in mode 'reflect'; expected at most 3"),
        ("reflect", (0, 0, 0, 0, 0, 0, 0, 7), r"pads axis 3 of size 5 by 7 in mode 'reflect'; expected at most 4"),
        ("reflect", (0, 0, 0, 3, 0, 0, 0, -2), r"pads axis 3 of size 3 by 3 in mode 'reflect'; expected at most 2"),
        ("wrap", (0, 0, 0, 0, 0, 4, 0, 0), r"pads axis 1 of size 3 by 4 in mode 'wrap'; expected at most 3"),
    ],
    ids=["reflect before", "reflect after", "reflect of what a crop leaves", "wrap"],
)
def test_padding_that_copies_twice_is_refused(mode: str, amounts: tuple[int, ...], shown: str) -> None:
    model = network([node("Pad", "x pads", "y", mode=mode)], {"pads": ints(*amounts)}, image=SHAPE, opset=19)
    with pytest.raises(UnsupportedOpError, match=rf"^Pad node 'node_y': {shown}$"):
        companion(block_of(model))


def test_unknown_mode_is_refused() -> None:
    model = network([node("Pad", "x pads", "y", mode="mirror")], {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)})
    message = r"^Pad node 'node_y': has mode 'mirror'; expected one of constant, edge, reflect, wrap$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


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


def test_pad_by_no_amounts_is_refused() -> None:
    message = r"^Pad node 'node_y': has no amounts to pad by; expected constants as input 1$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network([node("Pad", "x -", "y")], image=SHAPE)))


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
