import numpy as np
import onnx
import pytest
import torch

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, autograd, check_companion, opsets, runtime, ties

OPS = ("Clip", "Relu")
SHAPE = (3, 5, 4)


def relu_network(opset: int = 17) -> onnx.ModelProto:
    return network([node("Relu", "x", "y")], image=SHAPE, opset=opset)


def clip_network(low: float | None, high: float | None, opset: int = 17) -> onnx.ModelProto:
    bounds = {name: np.float32(bound) for name, bound in (("low", low), ("high", high)) if bound is not None}
    names = [name if name in bounds else "-" for name in ("low", "high")]
    return network([node("Clip", f"x {' '.join(names)}", "y")], bounds, image=SHAPE, opset=opset)


def relu_gradient(x: Array, dy: Array) -> tuple[Array, Array]:
    """y = max(x, 0), element by element; gradient 0 at 0."""
    y, dx = np.zeros_like(x), np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        if x[place] > 0:
            y[place], dx[place] = x[place], dy[place]
    return y, dx


def clip_gradient(low: float, high: float):
    """Y = min(max(x, low), high), element by element; gradient 0 at both bounds."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for place in np.ndindex(*x.shape):
            y[place] = min(max(x[place], low), high)
            dx[place] = dy[place] if low < x[place] < high else 0.0
        return y, dx

    return oracle


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    model, expected = {
        "Relu": (relu_network(opset), autograd(torch.relu)),
        "Clip": (clip_network(-0.5, 1.0, opset), autograd(lambda x: x.clamp(-0.5, 1.0))),
    }[op]
    check_companion(model, expected, random)


def test_relu_has_gradient_zero_at_zero(random: np.random.Generator) -> None:
    check_companion(relu_network(), relu_gradient, random, values=ties(random, -1, -0.0, 0.0, 1e-30, 2), smooth=False)


def test_relu_at_zero_in_float32() -> None:
    gradient = companion(block_of(network([node("Relu", "x", "y")], image=(1, 1, 5))))
    x = np.array([-1.0, -0.0, 0.0, 1e-30, 1.0], np.float32).reshape(1, 1, 1, 5)
    dx, total = runtime(gradient)(x, np.full_like(x, 2.0))
    assert dx.ravel().tolist() == [0.0, 0.0, 0.0, 2.0, 2.0]
    assert total.tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 6.0), (-0.5, None), (None, 0.5), (None, None), (0.0, 0.0), (1.0, -1.0), (0.1, 0.3)],
    ids=["relu6", "low", "high", "unbounded", "empty", "reversed", "inexact"],
)
def test_clip_between_bounds(low: float | None, high: float | None, random: np.random.Generator) -> None:
    exact_low = -np.inf if low is None else float(np.float32(low))
    exact_high = np.inf if high is None else float(np.float32(high))
    check_companion(clip_network(low, high), clip_gradient(exact_low, exact_high), random)


def test_clip_has_gradient_zero_at_both_bounds(random: np.random.Generator) -> None:
    values = ties(random, -1, 0, 0.25, 3, 6, 7)
    check_companion(clip_network(0, 6), clip_gradient(0, 6), random, values=values, smooth=False)


def test_clip_at_its_bounds_in_float32() -> None:
    model = network([node("Clip", "x low high", "y")], {"low": np.float32(0), "high": np.float32(6)}, image=(1, 1, 5))
    gradient = companion(block_of(model))
    x = np.array([-1.0, 0.0, 3.0, 6.0, 7.0], np.float32).reshape(1, 1, 1, 5)
    dx, _ = runtime(gradient)(x, np.full_like(x, 2.0))
    assert dx.ravel().tolist() == [0.0, 0.0, 2.0, 0.0, 0.0]


def test_clip_without_bounds_adds_no_node_but_the_sum() -> None:
    gradient = companion(block_of(clip_network(None, None)))
    assert [entry.op_type for entry in gradient.graph] == ["ReduceSum", "Identity"]


def test_clip_by_a_bound_from_the_image_is_refused() -> None:
    nodes = [node("ReduceMean", "x", "low", keepdims=0), node("Clip", "x low", "y")]
    with pytest.raises(
        UnsupportedOpError,
        match=r"^Clip node 'node_y': input 1 \('low'\) is computed from the image; expected a constant$",
    ):
        companion(block_of(network(nodes)))
    nodes = [node("ReduceMean", "x", "low", keepdims=0), node("Clip", "fixed low", "y")]
    with pytest.raises(
        UnsupportedOpError, match=r"^Clip node 'node_y': a bound is computed from the image; expected constant bounds$"
    ):
        companion(block_of(network(nodes, {"fixed": np.ones((1, 3, 8, 8), np.float32)})))
