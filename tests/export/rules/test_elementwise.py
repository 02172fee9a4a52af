import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from engine.errors import ModelError, UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets, runtime, ties

OPS = ("Abs", "Cast", "Dropout", "Erf", "Exp", "Identity", "Log", "Neg", "Reciprocal", "Sqrt")
SHAPE = (3, 5, 4)


@dataclass(frozen=True)
class Elementary:
    """One function of one element, its derivative with the convention at kinks, torch's, and where it is defined."""

    value: Callable[[float], float]
    slope: Callable[[float], float]
    torch: Callable[[torch.Tensor], torch.Tensor]
    positive: bool = False


def sign(x: float) -> float:
    return (x > 0) - (x < 0)


ELEMENTARY = {
    "Abs": Elementary(abs, sign, torch.abs),
    "Erf": Elementary(math.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x), torch.erf),
    "Exp": Elementary(math.exp, math.exp, torch.exp),
    "Identity": Elementary(float, lambda _: 1.0, torch.clone),
    "Dropout": Elementary(float, lambda _: 1.0, torch.clone),
    "Log": Elementary(math.log, lambda x: 1 / x, torch.log, positive=True),
    "Neg": Elementary(lambda x: -x, lambda _: -1.0, torch.neg),
    "Reciprocal": Elementary(lambda x: 1 / x, lambda x: -1 / x**2, torch.reciprocal, positive=True),
    "Sqrt": Elementary(math.sqrt, lambda x: 0.5 / math.sqrt(x) if x else 0.0, torch.sqrt, positive=True),
}


def formula(op: str) -> Oracle:
    """Element by element, in plain Python."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(dy)
        for place in np.ndindex(*x.shape):
            y[place] = ELEMENTARY[op].value(float(x[place]))
            dx[place] = dy[place] * ELEMENTARY[op].slope(float(x[place]))
        return y, dx

    return oracle


def elementary_network(op: str, opset: int = 17, shape: tuple[int, int, int] = SHAPE) -> onnx.ModelProto:
    return network([node(op, "x", "y")], image=shape, opset=opset)


def slopes(op: str, x: Array) -> list[Array]:
    """The companion's gradient for dy = 1 at every element, in float64 and in ONNX Runtime."""
    model = elementary_network(op, shape=(1, 1, x.size))
    x = x.reshape(1, 1, 1, -1)
    exact, _ = function(companion(block_of(model, float64=True)))(x, np.ones_like(x))
    x = x.astype(np.float32)
    rounded, _ = runtime(companion(block_of(model)))(x, np.ones_like(x))
    return [exact.ravel(), rounded.ravel()]


@pytest.mark.parametrize("op", ELEMENTARY)
def test_rule_equals_the_formula_and_autograd_in_every_version(op: str, random: np.random.Generator) -> None:
    case = ELEMENTARY[op]

    def values(shape: tuple[int, ...]) -> Array:
        drawn = random.uniform(0.1, 3.0, shape)
        return drawn if case.positive else drawn * random.choice([-1.0, 1.0], shape)

    for _, opset in opsets(op):
        for oracle in (formula(op), autograd(case.torch)):
            check_companion(
                elementary_network(op, opset),
                oracle,
                random,
                values=values,
                in_onnx_reference=op != "Erf",  # onnx's own rounds to float32
            )


def test_abs_and_sqrt_have_gradient_zero_at_zero(random: np.random.Generator) -> None:
    for op, levels in (("Abs", (-2, -1e-30, -0.0, 0.0, 1e-30, 1)), ("Sqrt", (0.0, 0.25, 1, 9))):
        check_companion(elementary_network(op), formula(op), random, values=ties(random, *levels), smooth=False)


@pytest.mark.parametrize(
    ("op", "points"),
    {
        "Abs": {-3e38: -1, -1e-38: -1, -0.0: 0, 1e-38: 1, 3e38: 1},
        "Sqrt": {-0.0: 0, 1e-36: 5e17, 0.25: 1, 1e36: 5e-19},
        "Log": {1e-36: 1e36, 0.5: 2, 1e36: 1e-36},
        "Reciprocal": {-2: -0.25, -1e-18: -1e36, 1e18: -1e-36, 4: -0.0625},
        "Erf": {-1e19: 0, -1e38: 0, 0: 2 / math.sqrt(math.pi), 1: 2 / math.sqrt(math.pi) / math.e, 1e38: 0},
        "Exp": {-1e38: 0, 0: 1, 80: math.exp(80)},
    }.items(),
    ids=str,
)
def test_slopes_at_special_points(op: str, points: dict[float, float]) -> None:
    for found in slopes(op, np.array([*points], np.float32).astype(np.float64)):
        np.testing.assert_allclose(found, [*points.values()], rtol=5e-6, atol=0)


def test_sqrt_after_relu_has_no_nan(random: np.random.Generator) -> None:
    model = network([node("Relu", "x", "relu"), node("Sqrt", "relu", "y")], image=SHAPE)

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        root = np.sqrt(np.maximum(x, 0))
        return root, np.where(x > 0, dy / (2 * np.maximum(root, 1e-300)), 0.0)

    check_companion(model, oracle, random, values=ties(random, -1, 0, 0.25, 4), smooth=False)


def test_identity_and_dropout_add_no_node_but_the_sum() -> None:
    for op in ("Identity", "Dropout"):
        gradient = companion(block_of(elementary_network(op)))
        assert [entry.op_type for entry in gradient.graph] == ["ReduceSum", "Identity"]


@pytest.mark.parametrize(("op", "opset"), opsets("Dropout"))
def test_dropout_in_inference_form(op: str, opset: int, random: np.random.Generator) -> None:
    constants = {"ratio": np.float32(0.3), "training": np.array(False)}
    for inputs in ("x ratio", "x - training", "x ratio training"):
        model = network([node(op, inputs, "dropped mask"), node("Relu", "dropped", "y")], constants, opset=opset)
        check_companion(model, autograd(torch.relu), random)


def test_dropout_in_training_mode_is_refused() -> None:
    nodes = [node("Dropout", "x - training", "y")]
    message = (
        r"^Dropout node 'node_y': drops elements at random; expected training_mode = false: export the model for "
        r"inference$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, {"training": np.array(True)})))


def test_dropout_by_what_the_image_says_is_refused() -> None:
    nodes = [node("ReduceMean", "x", "ratio", keepdims=0), node("Dropout", "fixed ratio", "y")]
    model = network(nodes, {"fixed": np.ones((1, 3, 8, 8), np.float32)})
    message = r"^Dropout node 'node_y': its ratio or training_mode is computed from the image; expected constants$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))
    nodes = [
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Cast", "mean", "training", to=TensorProto.BOOL),
        node("Dropout", "x - training", "y"),
    ]
    message = r"^Dropout node 'node_y': input 2 \('training'\) is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes)))


@pytest.mark.parametrize(("op", "opset"), opsets("Cast"))
def test_cast_to_double_and_back(op: str, opset: int, random: np.random.Generator) -> None:
    nodes = [
        node(op, "x", "wide", to=TensorProto.DOUBLE),
        node("Tanh", "wide", "tanh"),
        node(op, "tanh", "y", to=TensorProto.FLOAT),
    ]
    check_companion(network(nodes, image=SHAPE, opset=opset), autograd(torch.tanh), random)


def test_cast_to_its_own_type(random: np.random.Generator) -> None:
    check_companion(network([node("Cast", "x", "y", to=TensorProto.FLOAT)], image=SHAPE), autograd(torch.clone), random)


@pytest.mark.parametrize("opset", [17, 19, 28])
def test_cast_to_half_precision_and_back(opset: int, random: np.random.Generator) -> None:
    """With values that float16 has, its rounding changes nothing."""
    nodes = [
        node("Cast", "x", "narrow", to=TensorProto.FLOAT16),
        node("Relu", "narrow", "relu"),
        node("Cast", "relu", "y", to=TensorProto.FLOAT),
    ]
    model = network(nodes, image=SHAPE, opset=opset)
    x, dy = (ties(random, -2, -1, 0, 0.5, 3)((2, *SHAPE)).astype(np.float32) for _ in range(2))
    dx, total = runtime(companion(block_of(model)))(x, dy)
    assert dx.dtype == total.dtype == np.float32
    np.testing.assert_array_equal(dx, dy * (x > 0))
    gradient = companion(block_of(model, float64=True))
    dx, _ = function(gradient)(x.astype(np.float64), dy.astype(np.float64))
    np.testing.assert_array_equal(dx, dy * (x > 0))
    assert {value.dtype for value in gradient.graph.outputs} == {
        block_of(model, float64=True).model.graph.inputs[0].dtype
    }


def test_gradient_of_a_half_precision_part_is_in_half_precision() -> None:
    """1 + 2⁻¹² rounds to 1 in float16 and bfloat16."""
    for dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        nodes = [node("Cast", "x", "narrow", to=dtype), node("Cast", "narrow", "y", to=TensorProto.FLOAT)]
        gradient = companion(block_of(network(nodes, image=(1, 1, 1))))
        dx, _ = runtime(gradient)(np.ones((1, 1, 1, 1), np.float32), np.full((1, 1, 1, 1), 1 + 2**-12, np.float32))
        assert dx.ravel().tolist() == [1.0]


@pytest.mark.parametrize("other", ["INT64", "FLOAT8E4M3FN"])
def test_cast_from_or_to_another_kind_of_type_is_refused(other: str) -> None:
    to_other = node("Cast", "x", "cut", to=getattr(TensorProto, other))
    from_other = node("Cast", "cut", "y", to=TensorProto.FLOAT)
    for nodes, output, casts in (
        ([to_other, from_other], "y", f"{other} to FLOAT"),
        ([to_other], "cut", f"FLOAT to {other}"),
    ):
        model = network(nodes, outputs=output, opset=19)
        model.graph.output[0].type.tensor_type.elem_type = nodes[-1].attribute[0].i
        message = (
            rf"^Cast node 'node_{output}': casts {casts}; expected a cast between FLOAT, DOUBLE, FLOAT16 or BFLOAT16, "
            r"through which a gradient flows$"
        )
        with pytest.raises(UnsupportedOpError, match=message):
            companion(block_of(model))


def test_booleans_carry_no_gradient() -> None:
    nodes = [node("Cast", "x", "cut", to=TensorProto.BOOL), node("Cast", "cut", "y", to=TensorProto.FLOAT)]
    with pytest.raises(
        ModelError, match=r"^the output does not depend on \['x'\]; expected feature layers that lead to "
    ):
        companion(block_of(network(nodes)))
