import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets, runtime, ties

OPS = (
    "Celu",
    "Clip",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
)
SHAPE = (3, 5, 4)
SELU_ALPHA, SELU_GAMMA = float(np.float32(1.67326319217681884765625)), float(np.float32(1.05070102214813232421875))
SIXTH = float(np.float32(1 / 6))


@dataclass(frozen=True)
class Activation:
    """One activation function of one element, its derivative with the convention at kinks, and torch's function."""

    op: str
    value: Callable[[float], float]
    slope: Callable[[float], float]
    torch: Callable[[torch.Tensor], torch.Tensor]
    attributes: dict[str, float | str] = field(default_factory=dict)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_of_one_plus_exp(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def clipped(x: float) -> float:
    return min(max(x, 0.0), 1.0)


def leaky(alpha: float) -> Activation:
    alpha = float(np.float32(alpha))
    return Activation(
        "LeakyRelu",
        lambda x: x if x > 0 else alpha * x,
        lambda x: 1.0 if x > 0 else alpha,
        lambda x: functional.leaky_relu(x, alpha),
        {"alpha": alpha},
    )


def elu(alpha: float) -> Activation:
    return Activation(
        "Elu",
        lambda x: x if x > 0 else alpha * math.expm1(x),
        lambda x: 1.0 if x > 0 else alpha * math.exp(x),
        lambda x: torch.where(x > 0, x, alpha * torch.expm1(x)),
        {"alpha": alpha},
    )


def selu(alpha: float, gamma: float) -> Activation:
    return Activation(
        "Selu",
        lambda x: gamma * (x if x > 0 else alpha * math.expm1(x)),
        lambda x: gamma * (1.0 if x > 0 else alpha * math.exp(x)),
        lambda x: gamma * functional.elu(x, alpha),
        {"alpha": alpha, "gamma": gamma},
    )


def celu(alpha: float) -> Activation:
    return Activation(
        "Celu",
        lambda x: max(x, 0.0) + min(0.0, alpha * math.expm1(min(x, 0.0) / alpha)),
        lambda x: math.exp(min(x, 0.0) / alpha),
        lambda x: functional.celu(x, alpha),
        {"alpha": alpha},
    )


def thresholded(alpha: float) -> Activation:
    return Activation(
        "ThresholdedRelu",
        lambda x: x if x > alpha else 0.0,
        lambda x: 1.0 if x > alpha else 0.0,
        lambda x: functional.threshold(x, alpha, 0.0),
        {"alpha": alpha},
    )


def hard_sigmoid(alpha: float, beta: float) -> Activation:
    return Activation(
        "HardSigmoid",
        lambda x: clipped(alpha * x + beta),
        lambda x: alpha if 0 < alpha * x + beta < 1 else 0.0,
        lambda x: (alpha * x + beta).clamp(0, 1),
        {"alpha": alpha, "beta": beta},
    )


def swish(alpha: float) -> Activation:
    return Activation(
        "Swish",
        lambda x: x * sigma(alpha * x),
        lambda x: sigma(alpha * x) * (1 + alpha * x * sigma(-alpha * x)),
        lambda x: x * torch.sigmoid(alpha * x),
        {"alpha": alpha},
    )


def hard_swish_slope(x: float) -> float:
    if x <= -3:
        return 0.0
    return 2 * SIXTH * x + 0.5 if x < 3 else 1.0


def mish_slope(x: float) -> float:
    t = math.tanh(log_of_one_plus_exp(x))
    return t + x * sigma(x) * (1 - t**2)


def gelu_slope(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2)) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def exact_gelu(attributes: dict[str, str]) -> Activation:
    return Activation("Gelu", lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)), gelu_slope, functional.gelu, attributes)


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def tanh_gelu_slope(x: float) -> float:
    t = math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    rising = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * rising


ACTIVATIONS = {
    "Relu": Activation("Relu", lambda x: max(x, 0.0), lambda x: float(x > 0), torch.relu),
    "LeakyRelu": replace(leaky(0.01), attributes={}),
    "LeakyRelu, negative": leaky(-0.25),
    "LeakyRelu, zero": leaky(0.0),
    "LeakyRelu, steep": leaky(2.5),
    "Elu": replace(elu(1.0), attributes={}),
    "Elu, alpha": elu(0.75),
    "Elu, negative": elu(-0.5),
    "Elu, zero": elu(0.0),
    "Selu": replace(selu(SELU_ALPHA, SELU_GAMMA), attributes={}),
    "Selu, attributes": selu(0.75, 1.5),
    "Selu, alpha 1": selu(1.0, 1.0),
    "Celu": replace(celu(1.0), attributes={}),
    "Celu, alpha": celu(0.25),
    "ThresholdedRelu": replace(thresholded(1.0), attributes={}),
    "ThresholdedRelu, alpha": thresholded(0.25),
    "ThresholdedRelu, negative": thresholded(-0.5),
    "Sigmoid": Activation("Sigmoid", sigma, lambda x: sigma(x) * sigma(-x), torch.sigmoid),
    "HardSigmoid": replace(hard_sigmoid(float(np.float32(0.2)), 0.5), attributes={}),
    "HardSigmoid, attributes": hard_sigmoid(0.75, 0.25),
    "HardSigmoid, falling": hard_sigmoid(-0.75, 0.125),
    "HardSwish": Activation(
        "HardSwish",
        lambda x: x * clipped(SIXTH * x + 0.5),
        hard_swish_slope,
        lambda x: x * (SIXTH * x + 0.5).clamp(0, 1),
    ),
    "Tanh": Activation("Tanh", math.tanh, lambda x: 1 - math.tanh(x) ** 2, torch.tanh),
    "Gelu": exact_gelu({}),
    "Gelu, none": exact_gelu({"approximate": "none"}),
    "Gelu, tanh": Activation(
        "Gelu",
        tanh_gelu,
        tanh_gelu_slope,
        lambda x: functional.gelu(x, approximate="tanh"),
        {"approximate": "tanh"},
    ),
    "Softplus": Activation("Softplus", log_of_one_plus_exp, sigma, lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": Activation("Softsign", lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2, functional.softsign),
    "Mish": Activation("Mish", lambda x: x * math.tanh(log_of_one_plus_exp(x)), mish_slope, functional.mish),
    "Swish": replace(swish(1.0), attributes={}),
    "Swish, alpha": swish(1.75),
    "Swish, negative": swish(-0.5),
}


def opset_of(op: str) -> int:
    """The first supported opset that has the op."""
    return opsets(op)[0][1]


def activation_network(
    case: Activation, opset: int | None = None, shape: tuple[int, int, int] = SHAPE
) -> onnx.ModelProto:
    nodes = [node(case.op, "x", "y", **case.attributes)]
    return network(nodes, image=shape, opset=opset_of(case.op) if opset is None else opset)


def formula(case: Activation) -> Oracle:
    """Element by element, in plain Python."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(dy)
        for place in np.ndindex(*x.shape):
            y[place] = case.value(float(x[place]))
            dx[place] = dy[place] * case.slope(float(x[place]))
        return y, dx

    return oracle


def known_to_onnx(case: Activation) -> bool:
    """Whether onnx's own evaluator computes it and its gradient in float64: its Erf rounds to float32."""
    return case.op != "Gelu" or case.attributes.get("approximate") == "tanh"


def slopes(case: Activation, x: Array) -> list[Array]:
    """The companion's gradient for dy = 1 at every element, in float64 and in ONNX Runtime."""
    model = activation_network(case, shape=(1, 1, x.size))
    x = x.reshape(1, 1, 1, -1)
    exact, _ = function(companion(block_of(model, float64=True)))(x, np.ones_like(x))
    x = x.astype(np.float32)
    rounded, _ = runtime(companion(block_of(model)))(x, np.ones_like(x))
    return [exact.ravel(), rounded.ravel()]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rule_equals_the_formula(name: str, random: np.random.Generator) -> None:
    case = ACTIVATIONS[name]
    check_companion(
        activation_network(case),
        formula(case),
        random,
        values=lambda shape: 2.5 * random.standard_normal(shape),
        in_onnx_reference=known_to_onnx(case),
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rule_equals_autograd_in_every_version(name: str, random: np.random.Generator) -> None:
    case = ACTIVATIONS[name]
    for _, opset in opsets(case.op):
        check_companion(
            activation_network(case, opset), autograd(case.torch), random, in_onnx_reference=known_to_onnx(case)
        )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_large_inputs_neither_overflow_nor_lose_the_slope(name: str) -> None:
    case = ACTIVATIONS[name]
    sizes = np.array([1e-38, 1e-7, 0.01, 1, 6, 9, 10, 17, 40, 88, 90, 104, 710, 746, 1e4, 1e7, 2e13, 1e19, 1e38])
    x = np.concatenate([-sizes, sizes]).astype(np.float32).astype(np.float64)
    expected = np.array([case.slope(float(value)) for value in x])
    for found, bound in zip(slopes(case, x), (1e-8, 3e-6), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_ties_with_zero_and_with_each_other(name: str, random: np.random.Generator) -> None:
    case = ACTIVATIONS[name]
    values = ties(random, -3, -1, -0.5, -0.0, 0.0, 0.25, 0.5, 1, 3)
    check_companion(
        activation_network(case),
        formula(case),
        random,
        values=values,
        smooth=False,
        in_onnx_reference=known_to_onnx(case),
    )


@pytest.mark.parametrize(
    ("name", "kinks"),
    {
        "Relu": {-0.0: 0, 1e-30: 1},
        "LeakyRelu, negative": {-1: -0.25, 0: -0.25, 1: 1},
        "LeakyRelu, steep": {-1: 2.5, 0: 2.5, 1: 1},
        "Elu, alpha": {0: 0.75, 1e-6: 1},
        "Selu, attributes": {0: 1.125, 1e-6: 1.5},
        "Celu, alpha": {0: 1, 1e-6: 1},
        "ThresholdedRelu": {0.9999999: 0, 1: 0, 1.0000002: 1},
        "ThresholdedRelu, negative": {-0.5: 0, 0: 1},
        "HardSigmoid, attributes": {-1: 0, -1 / 3 - 1e-6: 0, -1 / 3 + 1e-6: 0.75, 1 - 1e-6: 0.75, 1: 0},
        "HardSwish": {-3.000001: 0, -3: 0, 3: 1, 3.000001: 1},
        "Sigmoid": {0: 0.25},
        "Tanh": {0: 1},
        "Softsign": {0: 1, 1: 0.25, -1: 0.25},
        "Gelu": {0: 0.5},
        "Gelu, tanh": {0: 0.5},
        "Mish": {0: 0.6},
        "Swish, alpha": {0: 0.5},
        "Softplus": {0: 0.5},
    }.items(),
    ids=str,
)
def test_slopes_at_special_points(name: str, kinks: dict[float, float]) -> None:
    for found in slopes(ACTIVATIONS[name], np.array([*kinks], np.float32).astype(np.float64)):
        np.testing.assert_allclose(found, [*kinks.values()], rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("name", "function_of_torch"),
    {
        "Relu": torch.relu,
        "LeakyRelu": functional.leaky_relu,
        "LeakyRelu, negative": lambda x: functional.leaky_relu(x, -0.25),
        "Elu": functional.elu,
        "Elu, alpha": lambda x: functional.elu(x, 0.75),
        "Selu": functional.selu,
        "Celu, alpha": lambda x: functional.celu(x, 0.25),
        "ThresholdedRelu": lambda x: functional.threshold(x, 1.0, 0.0),
        "HardSwish": functional.hardswish,
    }.items(),
    ids=str,
)
def test_kinks_are_those_of_torch(name: str, function_of_torch: Callable[[torch.Tensor], torch.Tensor]) -> None:
    kinks = np.array([-3.0, 0.0, 1.0, 3.0])
    exact, _ = slopes(ACTIVATIONS[name], kinks)
    np.testing.assert_allclose(exact, autograd(function_of_torch)(kinks, np.ones(4))[1], rtol=1e-7)


def test_leaky_relu_looks_at_its_output_when_that_keeps_the_sign() -> None:
    looked_at = {}
    for name in ("LeakyRelu", "LeakyRelu, zero", "LeakyRelu, negative"):
        (greater,) = [
            n for n in companion(block_of(activation_network(ACTIVATIONS[name]))).graph if n.op_type == "Greater"
        ]
        looked_at[name] = greater.inputs[0].name
    assert looked_at == {"LeakyRelu": "y", "LeakyRelu, zero": "x", "LeakyRelu, negative": "x"}


def prelu_network(slope: Array) -> onnx.ModelProto:
    return network([node("PRelu", "x slope", "y")], {"slope": slope}, image=SHAPE)


def prelu_formula(slope: Array) -> Oracle:
    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        factor = np.broadcast_to(slope, x.shape)
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for place in np.ndindex(*x.shape):
            rising = 1.0 if x[place] > 0 else factor[place]
            y[place], dx[place] = x[place] * rising, dy[place] * rising
        return y, dx

    return oracle


@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), (), (1, 3, 1, 1), (4,), (5, 1), (3, 5, 4)], ids=str)
def test_prelu_broadcasts_its_slope(shape: tuple[int, ...], random: np.random.Generator) -> None:
    slope = random.standard_normal(shape).astype(np.float32).astype(np.float64)
    check_companion(prelu_network(slope), prelu_formula(slope), random)
    check_companion(
        prelu_network(slope), prelu_formula(slope), random, values=ties(random, -2, -0.0, 0.0, 1), smooth=False
    )


def test_prelu_equals_autograd(random: np.random.Generator) -> None:
    slope = np.array([0.25, -0.5, 0.0])
    check_companion(
        prelu_network(slope.reshape(3, 1, 1)),
        autograd(lambda x: functional.prelu(x, torch.tensor(slope))),
        random,
        values=ties(random, -2, -1, 0.0, 1),
        smooth=False,
    )


def test_prelu_takes_a_slope_that_constants_are_computed_into(random: np.random.Generator) -> None:
    whole = np.array([-3, 0, 5], np.int8).reshape(3, 1, 1)
    nodes = [node("DequantizeLinear", "whole scale", "slope"), node("PRelu", "x slope", "y")]
    model = network(nodes, {"whole": whole, "scale": np.float32(0.125)}, image=SHAPE, opset=19)
    check_companion(model, prelu_formula(whole * 0.125), random)


def test_prelu_with_a_slope_from_the_image_is_refused() -> None:
    nodes = [node("GlobalAveragePool", "x", "slope"), node("PRelu", "x slope", "y")]
    with pytest.raises(
        UnsupportedOpError, match=r"^PRelu node 'node_y': its slope is computed from the image; expected a constant$"
    ):
        companion(block_of(network(nodes)))


def test_gelu_with_an_unknown_approximation_is_refused() -> None:
    model = network([node("Gelu", "x", "y", approximate="sigmoid")], opset=20)
    with pytest.raises(
        UnsupportedOpError, match=r"^Gelu node 'node_y': has approximate 'sigmoid'; expected 'none' or 'tanh'$"
    ):
        companion(block_of(model))


def clip_network(low: float | None, high: float | None, opset: int = 17) -> onnx.ModelProto:
    bounds = {name: np.float32(bound) for name, bound in (("low", low), ("high", high)) if bound is not None}
    names = [name if name in bounds else "-" for name in ("low", "high")]
    return network([node("Clip", f"x {' '.join(names)}", "y")], bounds, image=SHAPE, opset=opset)


def clip_gradient(low: float, high: float):
    """Y = min(max(x, low), high), element by element; gradient 0 at both bounds."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for place in np.ndindex(*x.shape):
            y[place] = min(max(x[place], low), high)
            dx[place] = dy[place] if low < x[place] < high else 0.0
        return y, dx

    return oracle


def test_clip_equals_autograd(random: np.random.Generator) -> None:
    for _, opset in opsets("Clip"):
        check_companion(clip_network(-0.5, 1.0, opset), autograd(lambda x: x.clamp(-0.5, 1.0)), random)


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
