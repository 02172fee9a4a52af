import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import BATCH, block_of, image_input, network, node, weight
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets, runtime, ties

OPS = ("Add", "Div", "Expand", "Max", "Min", "Mul", "Pow", "Sub", "Sum", "Where")
BINARY = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum")
SHAPE = (3, 4, 5)
SHAPES = {"scalar": (), "channels": (3, 1, 1), "image": (1, 3, 4, 5), "row": (5,), "one": (1,)}

Slope = Callable[[float, float], tuple[float, float, float]]

FORMULAS: dict[str, Slope] = {
    "Add": lambda a, b: (a + b, 1.0, 1.0),
    "Div": lambda a, b: (a / b, 1.0 / b, -a / b**2),
    "Max": lambda a, b: (a, 1.0, 0.0) if a >= b else (b, 0.0, 1.0),
    "Min": lambda a, b: (a, 1.0, 0.0) if a <= b else (b, 0.0, 1.0),
    "Mul": lambda a, b: (a * b, b, a),
    "Pow": lambda a, b: (a**b, b * a ** (b - 1), a**b * math.log(a)),
    "Sub": lambda a, b: (a - b, 1.0, -1.0),
    "Sum": lambda a, b: (a + b, 1.0, 1.0),
}
"""For each op, (a, b) → (y, ∂y/∂a, ∂y/∂b)."""

TORCH = {
    "Add": torch.add,
    "Div": torch.div,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "Sub": torch.sub,
    "Sum": torch.add,
}


def slow_binary(op: str, a: Array, b: Array, dy: Array | None = None) -> tuple[Array, Array, Array]:
    """Return y, da and db, element by element: what a was broadcast over is summed, and the same for b."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    y, da, db = np.zeros(shape), np.zeros_like(a), np.zeros_like(b)
    for place in np.ndindex(*shape):
        of_a, of_b = (
            tuple(0 if size == 1 else at for at, size in zip(place[len(shape) - x.ndim :], x.shape, strict=True))
            for x in (a, b)
        )
        y[place], slope_a, slope_b = FORMULAS[op](float(a[of_a]), float(b[of_b]))
        if dy is not None:
            da[of_a] += dy[place] * slope_a
            db[of_b] += dy[place] * slope_b
    return y, da, db


def against_mean(op: str, axes: tuple[int, ...], *, mean_first: bool = False) -> Oracle:
    """An image and its mean over some axes: each mean's gradient is shared by what was averaged."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        mean = x.mean(axis=axes, keepdims=True)
        count = x.size // mean.size
        if mean_first:
            y, d_mean, dx = slow_binary(op, mean, x, dy)
        else:
            y, dx, d_mean = slow_binary(op, x, mean, dy)
        return y, dx + d_mean / count

    return oracle


def against_constant(op: str, constant: Array, *, constant_first: bool = False) -> Oracle:
    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        if constant_first:
            y, _, dx = slow_binary(op, constant, x, dy)
        else:
            y, dx, _ = slow_binary(op, x, constant, dy)
        return y, dx

    return oracle


def positive(random: np.random.Generator) -> Callable[[tuple[int, ...]], Array]:
    return lambda shape: random.uniform(0.4, 2.0, shape)


def binary_network(
    op: str, inputs: str, *before: onnx.NodeProto, opset: int = 17, **constants: np.ndarray
) -> onnx.ModelProto:
    return network([*before, node(op, inputs, "y")], constants, image=SHAPE, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*BINARY))
@pytest.mark.parametrize("inputs", ["x mean", "mean x"])
def test_rule_equals_the_formula_in_every_version(
    op: str, opset: int, inputs: str, random: np.random.Generator
) -> None:
    model = binary_network(op, inputs, node("ReduceMean", "x", "mean", axes=[1]), opset=opset)
    oracle = against_mean(op, (1,), mean_first=inputs == "mean x")
    check_companion(model, oracle, random, values=positive(random))


@pytest.mark.parametrize("inputs", ["x other", "other x"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("op", BINARY)
def test_constant_of_any_rank(op: str, shape: tuple[int, ...], inputs: str, random: np.random.Generator) -> None:
    other = np.asarray(random.uniform(0.4, 2.0, shape), np.float32)
    oracle = against_constant(op, other.astype(np.float64), constant_first=inputs == "other x")
    check_companion(binary_network(op, inputs, other=other), oracle, random, values=positive(random))


@pytest.mark.parametrize("op", BINARY)
def test_rule_equals_autograd_with_two_activations(op: str, random: np.random.Generator) -> None:
    model = binary_network(op, "x other", node("ReduceMean", "x", "other", axes=[1]))
    check_companion(
        model, autograd(lambda x: TORCH[op](x, x.mean(dim=1, keepdim=True))), random, values=positive(random)
    )


@pytest.mark.parametrize("inputs", ["x mean", "mean x"])
@pytest.mark.parametrize("axes", [(2,), (3,), (1, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("op", ["Add", "Div", "Max", "Mul", "Pow"])
def test_activation_broadcast_over_any_axes(
    op: str, axes: tuple[int, ...], inputs: str, random: np.random.Generator
) -> None:
    model = binary_network(op, inputs, node("ReduceMean", "x", "mean", axes=axes))
    oracle = against_mean(op, axes, mean_first=inputs == "mean x")
    check_companion(model, oracle, random, values=positive(random))


@pytest.mark.parametrize(("op", "sign"), [("Add", 1), ("Mul", 1), ("Div", 1), ("Div", -1)])
def test_both_inputs_broadcast(op: str, sign: int, random: np.random.Generator) -> None:
    before = [node("ReduceMean", "x", "rows", axes=[3]), node("ReduceMean", "x", "columns", axes=[2])]
    model = binary_network(op, "rows columns", *before)
    check_companion(
        model,
        autograd(lambda x: TORCH[op](x.mean(dim=3, keepdim=True), x.mean(dim=2, keepdim=True))),
        random,
        values=lambda shape: sign * random.uniform(0.4, 2.0, shape),
    )


@pytest.mark.parametrize("op", BINARY)
def test_activation_broadcast_against_a_larger_constant(op: str, random: np.random.Generator) -> None:
    other = random.uniform(0.4, 2.0, (1, 7, 4, 5)).astype(np.float32)
    nodes = [node("ReduceMean", "x", "mean", axes=[1, 3]), node(op, "mean other", "y")]
    check_companion(
        network(nodes, {"other": other}, image=SHAPE, opset=17),
        autograd(lambda x: TORCH[op](x.mean(dim=(1, 3), keepdim=True), torch.tensor(other).double())),
        random,
        values=positive(random),
    )


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Add", lambda x: 2 * x),
        ("Sum", lambda x: 2 * x),
        ("Sub", lambda x: 0 * x),
        ("Mul", lambda x: x**2),
        ("Div", lambda x: x**0),
        ("Pow", lambda x: torch.exp(x * torch.log(x))),
        ("Max", lambda x: 1.0 * x),
        ("Min", lambda x: 1.0 * x),
    ],
)
def test_same_tensor_as_both_inputs(
    op: str, expected: Callable[[torch.Tensor], torch.Tensor], random: np.random.Generator
) -> None:
    cancels = op in ("Sub", "Div")
    model = binary_network(op, "x x")
    check_companion(model, autograd(expected), random, values=positive(random), smooth=not cancels)


def test_square_of_a_tensor_with_zeros_and_both_signs(random: np.random.Generator) -> None:
    values = ties(random, -2, 0, 1.5)
    check_companion(binary_network("Mul", "x x"), autograd(lambda x: x * x), random, values=values)


def test_gate_of_squeeze_and_excitation(random: np.random.Generator) -> None:
    squeeze = weight(random, 3, 3, 1, 1)
    before = [node("GlobalAveragePool", "x", "mean"), node("Conv", "mean squeeze", "gate")]
    model = binary_network("Mul", "gate x", *before, squeeze=squeeze)
    check_companion(
        model,
        autograd(
            lambda x: (
                x * torch.nn.functional.conv2d(x.mean(dim=(2, 3), keepdim=True), torch.tensor(squeeze, dtype=x.dtype))
            )
        ),
        random,
    )
    assert [entry.op_type for entry in companion(block_of(model)).graph].count("ReduceSum") == 2


@pytest.mark.parametrize("op", ["Add", "Sum"])
def test_axes_of_size_one_that_did_not_grow(op: str, random: np.random.Generator) -> None:
    nodes = [node("Relu", "x", "positive"), node(op, "x positive", "y")]
    model = network(nodes, image=(1, 1, 5))
    check_companion(model, autograd(lambda x: x + torch.relu(x)), random)
    assert [entry.op_type for entry in companion(block_of(model)).graph].count("ReduceSum") == 1


@pytest.mark.parametrize("op", ["Add", "Mul", "Max", "Where"])
def test_activations_of_different_ranks_are_refused(op: str) -> None:
    """Features [N, 5] meet the images' columns: their batch would become the images' rows."""
    inputs = "always x features" if op == "Where" else "x features"
    nodes = [node("Reshape", "x shape", "features"), node(op, inputs, "y")]
    constants = {"shape": np.array([-1, 5], np.int64)} | ({"always": np.array(True)} if op == "Where" else {})
    block = block_of(network(nodes, constants, image=(3, 1, 5)))
    features, y = (entry.outputs[0] for entry in block.model.graph)
    features.shape, y.shape = ir.Shape(["batch", 5]), ir.Shape(["batch", 3, 7, 5])
    message = (
        rf"^{op} node 'node_y': broadcasts 'features' \[batch,5\] to \[batch,3,7,5\], and its batch with it; expected "
        r"activations with the same number of axes$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block)


@pytest.mark.parametrize("op", ["Sum", "Max", "Min"])
@pytest.mark.parametrize("inputs", ["x", "x mean other", "other mean x", "x x other x", "other x mean other"])
def test_any_number_of_inputs(op: str, inputs: str, random: np.random.Generator) -> None:
    other = random.standard_normal((4, 1)).astype(np.float32)
    used = inputs.split()
    before = [node("GlobalAveragePool", "x", "mean")] if "mean" in used else []
    model = binary_network(op, inputs, *before, **({"other": other} if "other" in used else {}))

    def expected(x: torch.Tensor) -> torch.Tensor:
        tensors = {"x": x, "mean": x.mean(dim=(2, 3), keepdim=True), "other": torch.tensor(other).double()}
        y = 1.0 * tensors[used[0]]
        for name in used[1:]:
            y = y + tensors[name] if op == "Sum" else torch.where(wins[op](tensors[name], y), tensors[name], y)
        return y

    wins = {"Max": torch.gt, "Min": torch.lt}
    check_companion(model, autograd(expected), random)


@pytest.mark.parametrize(("op", "best"), [("Max", max), ("Min", min)])
def test_first_of_equal_inputs_takes_the_gradient(
    op: str, best: Callable[[list[float]], float], random: np.random.Generator
) -> None:
    """Inputs x, x's channels in reverse order, and 0: at a tie the first of them."""
    mirror = np.eye(3, dtype=np.float32)[::-1].reshape(3, 3, 1, 1)
    nodes = [node("Conv", "x mirror", "mirrored"), node(op, "x mirrored zero", "y")]

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for n, c, i, j in np.ndindex(*x.shape):
            candidates = [x[n, c, i, j], x[n, 2 - c, i, j], 0.0]
            y[n, c, i, j] = best(candidates)
            first = candidates.index(y[n, c, i, j])
            if first < 2:
                dx[n, (c, 2 - c)[first], i, j] += dy[n, c, i, j]
        return y, dx

    model = network(nodes, {"mirror": mirror, "zero": np.float32(0)}, image=SHAPE)
    check_companion(model, oracle, random, values=ties(random, -1, 0, 1), smooth=False)


@pytest.mark.parametrize(
    ("op", "inputs", "expected"),
    [
        ("Max", "x zero", [0.0, 2.0, 2.0, 2.0]),
        ("Max", "zero x", [0.0, 0.0, 0.0, 2.0]),
        ("Min", "x zero", [2.0, 2.0, 2.0, 0.0]),
        ("Min", "zero x", [2.0, 0.0, 0.0, 0.0]),
    ],
)
def test_extremum_with_zero_at_zero(op: str, inputs: str, expected: list[float]) -> None:
    model = network([node(op, inputs, "y")], {"zero": np.float32(0)}, image=(1, 1, 4))
    x = np.array([-1.0, -0.0, 0.0, 1.0], np.float32).reshape(1, 1, 1, 4)
    dx, _ = runtime(companion(block_of(model)))(x, np.full_like(x, 2.0))
    assert dx.ravel().tolist() == expected


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 1.0, 0.0, -1.0, -2.0], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int32])
def test_whole_exponent_of_either_sign(exponent: float, dtype: type, random: np.random.Generator) -> None:
    model = binary_network("Pow", "x exponent", exponent=np.asarray(exponent, dtype))
    sign = ties(random, -1, 1)
    check_companion(
        model,
        autograd(lambda x: x ** int(exponent)),
        random,
        values=lambda shape: sign(shape) * random.uniform(0.4, 2.0, shape),
        smooth=exponent != 0.0,
    )


@pytest.mark.parametrize("exponent", [0.5, -0.5, 1.5, 2.7, 1 / 3, -1.3], ids=str)
def test_fractional_exponent(exponent: float, random: np.random.Generator) -> None:
    exact = float(np.float32(exponent))
    model = binary_network("Pow", "x exponent", exponent=np.float32(exponent))
    check_companion(model, autograd(lambda x: x**exact), random, values=positive(random))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_exponent_for_each_channel(dtype: type, random: np.random.Generator) -> None:
    exponents = np.array([1, 2, -3]).reshape(3, 1, 1)
    model = binary_network("Pow", "x exponent", exponent=exponents.astype(dtype))
    expected = autograd(lambda x: x ** torch.tensor(exponents))
    check_companion(model, expected, random, values=positive(random))


def test_equal_exponents_that_broadcast_the_base(random: np.random.Generator) -> None:
    nodes = [node("ReduceMean", "x", "mean", axes=[1]), node("Pow", "mean squares", "y")]
    model = network(nodes, {"squares": np.full((3, 1, 1), 2.0, np.float32)}, image=SHAPE, opset=17)
    check_companion(model, autograd(lambda x: (x.mean(dim=1, keepdim=True) ** 2).repeat(1, 3, 1, 1)), random)


def gradient_of_power(x: list[float], exponents: np.ndarray) -> list[float]:
    """The gradient of x ** exponents in ONNX Runtime, for the gradient 2 at the output."""
    model = network([node("Pow", "x exponents", "y")], {"exponents": exponents}, image=(1, 1, len(x)))
    point = np.array(x, np.float32).reshape(1, 1, 1, -1)
    dx, _ = runtime(companion(block_of(model)))(point, np.full_like(point, 2.0))
    return dx.ravel().tolist()


def test_power_at_base_zero() -> None:
    exponents = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
    expected = [0.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    assert gradient_of_power([0.0] * 6, np.array(exponents, np.float32)) == expected
    assert gradient_of_power([-0.0] * 6, np.array(exponents, np.float32)) == expected
    for exponent, slope in zip(exponents, expected, strict=True):
        assert gradient_of_power([0.0], np.float32(exponent)) == [slope]


def test_power_of_large_and_small_bases() -> None:
    assert gradient_of_power([-1e18, 1e18, 1e-30], np.float32(2)) == pytest.approx([-4e18, 4e18, 4e-30])
    assert gradient_of_power([1e36, 1e-36], np.float32(0.5)) == pytest.approx([1e-18, 1e18])
    assert gradient_of_power([1e30, 1e-10], np.float32(-0.5)) == pytest.approx([0.0, -1e15], rel=1e-6, abs=1e-44)


@pytest.mark.parametrize("base", [2.0, 0.3, 1.0])
def test_constant_base(base: float, random: np.random.Generator) -> None:
    exact = float(np.float32(base))
    model = binary_network("Pow", "base x", base=np.float32(base))
    check_companion(model, autograd(lambda x: exact**x), random, smooth=base != 1.0)


def test_base_zero_gives_its_exponent_no_gradient(random: np.random.Generator) -> None:
    base = np.array([0.0, 2.0, 0.0], np.float32).reshape(3, 1, 1)
    model = binary_network("Pow", "base x", base=base)
    expected = autograd(lambda x: torch.tensor(base).double() ** x)
    check_companion(model, expected, random, values=positive(random))


def test_power_of_two_activations_with_exponents_of_one(random: np.random.Generator) -> None:
    """At base 0 the slope is the exponent's where that is 1, and 0 where it is 2."""
    nodes = [node("Relu", "x", "base"), node("Clip", "x one two", "exponent"), node("Pow", "base exponent", "y")]
    model = network(nodes, {"one": np.float32(1), "two": np.float32(2)}, image=SHAPE)
    check_companion(
        model,
        autograd(lambda x: torch.relu(x) ** torch.where((x > 1) & (x < 2), x, x.detach().clamp(1, 2))),
        random,
        values=ties(random, -1, 0, 0.5, 1, 1.5, 2, 3),
        smooth=False,
    )


@pytest.mark.parametrize(("op", "opset"), opsets("Expand"))
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 4, 5), (1, 1, 1, 1), (4, 1), (1,), (5,)], ids=str)
def test_expand(op: str, opset: int, shape: tuple[int, ...], random: np.random.Generator) -> None:
    nodes = [node("GlobalAveragePool", "x", "mean"), node(op, "mean shape", "y")]
    model = network(nodes, {"shape": np.array(shape, np.int64)}, image=SHAPE, opset=opset)
    full = (3, *np.broadcast_shapes((3, 1, 1), shape[-3:])[1:])

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        mean = x.mean(axis=(2, 3), keepdims=True)
        y, d_mean = np.zeros((len(x), *full)), np.zeros_like(mean)
        for n, c, i, j in np.ndindex(*y.shape):
            y[n, c, i, j] = mean[n, c, 0, 0]
            d_mean[n, c, 0, 0] += dy[n, c, i, j]
        return y, np.broadcast_to(d_mean / 20, x.shape)

    check_companion(model, oracle, random)
    second = autograd(lambda x: x.mean(dim=(2, 3), keepdim=True).expand(-1, *full))
    check_companion(model, second, random)


def test_expand_of_channels(random: np.random.Generator) -> None:
    nodes = [node("ReduceMean", "x", "mean", axes=[1, 3]), node("Expand", "mean shape", "y")]
    model = network(nodes, {"shape": np.array([1, 7, 1, 2], np.int64)}, image=SHAPE, opset=17)
    check_companion(model, autograd(lambda x: x.mean(dim=(1, 3), keepdim=True).expand(-1, 7, -1, 2)), random)


def test_expand_to_a_shape_from_the_image_is_refused() -> None:
    nodes = [node("Shape", "x", "shape"), node("Expand", "fixed shape", "y")]
    message = r"^Expand node 'node_y': its shape is computed from the image; expected a constant shape$"
    model = network(nodes, {"fixed": np.ones((1, 3, 1, 1), np.float32)}, inputs=[image_input([BATCH, 3, 8, 8])])
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


CONDITIONS = {"scalar": (), "channels": (3, 1, 1), "image": (1, 3, 4, 5), "row": (5,)}


@pytest.mark.parametrize(("op", "opset"), opsets("Where"))
@pytest.mark.parametrize("inputs", ["condition x other", "condition other x", "condition x mean", "condition mean x"])
@pytest.mark.parametrize("shape", CONDITIONS.values(), ids=CONDITIONS)
def test_where_with_a_constant_condition(
    op: str, opset: int, inputs: str, shape: tuple[int, ...], random: np.random.Generator
) -> None:
    condition = np.asarray(random.uniform(size=shape) < 0.5)
    other = random.standard_normal((4, 1)).astype(np.float32)
    constants = {"condition": condition} | ({"other": other} if "other" in inputs else {})
    before = [node("GlobalAveragePool", "x", "mean")] if "mean" in inputs else []
    model = network([*before, node(op, inputs, "y")], constants, image=SHAPE, opset=opset)
    _, first, second = inputs.split()

    def slow(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for n, c, i, j in np.ndindex(*x.shape):
            place = [(1, c, i, j)[axis] if size > 1 else 0 for axis, size in enumerate(shape, start=4 - len(shape))]
            taken = first if condition[tuple(place)] else second
            y[n, c, i, j] = {"x": x[n, c, i, j], "mean": x[n, c].mean(), "other": other[i, 0]}[taken]
            if taken == "x":
                dx[n, c, i, j] += dy[n, c, i, j]
            elif taken == "mean":
                dx[n, c] += dy[n, c, i, j] / 20
        return y, dx

    def expected(x: torch.Tensor) -> torch.Tensor:
        tensors = {"x": x, "mean": x.mean(dim=(2, 3), keepdim=True), "other": torch.tensor(other).double()}
        return torch.where(torch.tensor(condition), tensors[first], tensors[second])

    check_companion(model, slow, random)
    check_companion(model, autograd(expected), random)


def test_where_with_a_condition_from_the_image(random: np.random.Generator) -> None:
    """A leaky ReLU with slope 0 at 0, whose condition is computed by operators without a rule."""
    nodes = [
        node("Greater", "x zero", "positive"),
        node("Mul", "x slope", "scaled"),
        node("Where", "positive x scaled", "y"),
    ]
    model = network(nodes, {"zero": np.float32(0), "slope": np.float32(0.25)}, image=SHAPE)

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for place in np.ndindex(*x.shape):
            slope = 1.0 if x[place] > 0 else 0.25
            y[place], dx[place] = slope * x[place], slope * dy[place]
        return y, dx

    check_companion(model, oracle, random, values=ties(random, -1, 0, 2), smooth=False)
    check_companion(model, autograd(lambda x: torch.where(x > 0, x, 0.25 * x)), random)


def test_where_with_a_condition_from_the_image_that_is_broadcast(random: np.random.Generator) -> None:
    nodes = [
        node("ReduceMean", "x", "level", axes=[1]),
        node("Greater", "level zero", "bright"),
        node("GlobalAveragePool", "x", "mean"),
        node("Where", "bright mean zero", "y"),
    ]
    model = network(nodes, {"zero": np.float32(0)}, image=SHAPE, opset=17)

    def expected(x: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros((), dtype=x.dtype)
        return torch.where(x.mean(dim=1, keepdim=True) > 0, x.mean(dim=(2, 3), keepdim=True), zero)

    check_companion(model, autograd(expected), random)


def test_where_hides_infinite_constants(random: np.random.Generator) -> None:
    mask = np.array([True, False, True, True, False])
    constants = {"mask": mask, "lowest": np.float32(-np.inf), "none": np.float32(0)}
    nodes = [node("Where", "mask x lowest", "masked"), node("Max", "masked none", "y")]
    model = network(nodes, constants, image=SHAPE)
    check_companion(model, autograd(lambda x: torch.relu(x) * torch.tensor(mask)), random)
