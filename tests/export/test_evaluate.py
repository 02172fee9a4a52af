import decimal
import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from engine.export.evaluate import function, in_float64
from tests.export.networks import BATCH, image_input, imported, network, node, weight
from tests.export.rules.gradients import runtime


def evaluate(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    return function(in_float64(imported(model)))(*inputs)


def onnx_evaluate(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(ir.to_proto(in_float64(imported(model)))).run(None, {"x": x})[0]


def dtypes(model: ir.Model) -> dict[str, ir.DataType]:
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    return {value.name: value.dtype for value in values}


def typed_network() -> onnx.ModelProto:
    """Constants of three types, a Cast to float and one to integers."""
    nodes = [
        node("Relu", "x", "cut"),
        node("Cast", "cut", "whole", to=TensorProto.INT64),
        node("Cast", "whole", "back", to=TensorProto.FLOAT),
        node("Reshape", "back shape", "rows"),
        node("Add", "rows half", "y"),
    ]
    return network(nodes, {"shape": np.array([-1, 192], np.int64), "half": np.float32(0.1)})


def test_in_float64_converts_constants_activations_and_casts() -> None:
    model = in_float64(imported(typed_network()))
    double, integer = ir.DataType.DOUBLE, ir.DataType.INT64
    assert dtypes(model) == {
        "x": double,
        "shape": integer,
        "half": double,
        "cut": double,
        "whole": integer,
        "back": double,
        "rows": double,
        "y": double,
    }
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (y,) = function(model)(np.full((1, 3, 8, 8), 1.75))
    assert y.dtype == np.float64
    assert np.unique(y).tolist() == [1 + float(np.float32(0.1))]


def test_in_float64_keeps_the_values_of_the_model_it_copies() -> None:
    original = imported(typed_network())
    in_float64(original)
    half = original.graph.initializers["half"].const_value
    assert half.dtype == ir.DataType.FLOAT
    assert [entry.attributes["to"].as_int() for entry in original.graph if entry.op_type == "Cast"] == [
        TensorProto.INT64,
        TensorProto.FLOAT,
    ]


def test_in_float64_keeps_the_types_of_the_model_it_copies() -> None:
    original = imported(typed_network())
    before = dtypes(original)
    in_float64(original)
    assert dtypes(original) == before


@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_in_float64_widens_what_is_in_half_precision(half: int) -> None:
    nodes = [
        node("Cast", "x", "narrow", to=half),
        node("Cast", "third", "narrow_third", to=half),
        node("Add", "narrow narrow_third", "sum"),
        node("Add", "sum tenth", "narrow_y"),
        node("Cast", "narrow_y", "y", to=TensorProto.FLOAT),
    ]
    model = network(nodes, {"third": np.float32(1 / 3)}, opset=19)
    tenth = helper.make_tensor("tenth", half, [], [0.1])
    model.graph.initializer.append(tenth)
    widened = in_float64(imported(model))
    assert set(dtypes(widened).values()) == {ir.DataType.DOUBLE}
    (y,) = function(widened)(np.full((1, 3, 8, 8), 1 + 2**-40))
    rounded_tenth = float(numpy_helper.to_array(tenth))
    assert rounded_tenth != float(np.float32(0.1))
    np.testing.assert_array_equal(y, 1 + 2**-40 + float(np.float32(1 / 3)) + rounded_tenth)


def test_function_does_not_warn_of_overflow_in_a_branch_that_is_left_out() -> None:
    (y,) = evaluate(network([node("Sigmoid", "x", "y")], image=(1, 1, 2)), np.array([[[[-1e4, 1e4]]]]))
    assert y.ravel().tolist() == [0.0, 1.0]


def test_function_takes_and_returns_values_in_order(random: np.random.Generator) -> None:
    inputs = [image_input([BATCH, 4], name) for name in ("b", "a")]
    model = network([node("Sub", "b a", "z"), node("Div", "a b", "y")], inputs=inputs, outputs="z y")
    b, a = random.standard_normal((2, 3, 4))
    z, y = evaluate(model, b, a)
    np.testing.assert_array_equal(z, b - a)
    np.testing.assert_array_equal(y, a / b)


def test_function_wants_every_input() -> None:
    with pytest.raises(ValueError, match="zip"):
        evaluate(network([node("Relu", "x", "y")]))


@dataclass(frozen=True)
class Transposed:
    """One ConvTranspose: weight [in, out/group, kH, kW], input [in, H, W]."""

    weight: tuple[int, int, int, int]
    size: tuple[int, int] = (4, 5)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    output_padding: tuple[int, int] = (0, 0)
    group: int = 1


TRANSPOSED = {
    "3x3": Transposed((3, 4, 3, 3)),
    "stride 2": Transposed((3, 4, 3, 2), strides=(2, 2), pads=(1, 0, 1, 0)),
    "output padding": Transposed((3, 4, 3, 3), strides=(2, 3), pads=(1, 1, 1, 1), output_padding=(1, 2)),
    "asymmetric": Transposed((3, 4, 2, 3), strides=(3, 1), pads=(0, 2, 1, 1)),
    "dilated": Transposed((3, 4, 2, 3), strides=(2, 1), dilations=(3, 2), pads=(1, 2, 1, 2)),
    "pads beyond the extent": Transposed((3, 4, 1, 1), pads=(1, 2, 1, 1)),
    "depthwise": Transposed((4, 1, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1), group=4),
    "depthwise with multiplier": Transposed((3, 2, 3, 3), strides=(2, 2), group=3),
    "groups": Transposed((6, 2, 2, 3), strides=(2, 2), pads=(1, 0, 0, 1), group=3),
    "1x1": Transposed((3, 4, 1, 1), strides=(2, 2), output_padding=(1, 1)),
}


def transposed_network(case: Transposed, kernel: np.ndarray) -> onnx.ModelProto:
    attributes = {name: list(getattr(case, name)) for name in ("strides", "dilations", "pads", "output_padding")}
    conv = node("ConvTranspose", "x w", "y", kernel_shape=case.weight[2:], group=case.group, **attributes)
    return network([conv], {"w": kernel}, image=(case.weight[0], *case.size))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)
def test_conv_transpose_equals_torch_and_onnx(case: Transposed, rows: int, random: np.random.Generator) -> None:
    kernel = weight(random, *case.weight)
    model = transposed_network(case, kernel)
    x = random.standard_normal((rows, case.weight[0], *case.size))
    (found,) = evaluate(model, x)
    uncropped = functional.conv_transpose2d(
        functional.pad(torch.tensor(x), (0, 0)),
        torch.tensor(kernel).double(),
        stride=case.strides,
        dilation=case.dilations,
        groups=case.group,
    )
    uncropped = functional.pad(uncropped, (0, case.output_padding[1], 0, case.output_padding[0]))
    top, left, bottom, right = case.pads
    expected = uncropped[:, :, top : uncropped.shape[2] - bottom, left : uncropped.shape[3] - right].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    if case.group in (1, case.weight[0]) and case.weight[1] != 2:  # onnx's own fails with other groups
        np.testing.assert_allclose(found, onnx_evaluate(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inputs", ["x w", "x w b"])
def test_conv_transpose_of_a_source_model(inputs: str, random: np.random.Generator) -> None:
    kernel, bias = weight(random, 3, 4, 2, 2), weight(random, 4)
    constants = {"w": kernel, "b": bias} if inputs.endswith("b") else {"w": kernel}
    x = random.standard_normal((2, 3, 8, 8))
    (found,) = evaluate(network([node("ConvTranspose", inputs, "y")], constants), x)
    expected = functional.conv_transpose2d(torch.tensor(x), torch.tensor(kernel).double())
    if "b" in constants:
        expected += torch.tensor(bias).double()[:, None, None]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)


PADDED_BY_OUTPUT = [
    {"auto_pad": "VALID", "strides": [2, 3]},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 1], "dilations": [2, 3]},
    {"auto_pad": "SAME_UPPER", "strides": [4, 5]},
    {"output_shape": [7, 9], "strides": [2, 2]},
    {"output_shape": [8, 10], "strides": [2, 2]},
    {"output_shape": [8, 10], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"output_shape": [8, 10], "strides": [2, 2], "auto_pad": "SAME_LOWER", "output_padding": [1, 1]},
    {"output_shape": [9, 11], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "output_padding": [1, 0], "pads": [0, 1, 1, 0]},
]


@pytest.mark.parametrize("attributes", PADDED_BY_OUTPUT, ids=str)
def test_conv_transpose_equals_onnx_runtime(attributes: dict, random: np.random.Generator) -> None:
    constants = {"w": weight(random, 3, 4, 3, 3), "b": weight(random, 4)}
    model = network([node("ConvTranspose", "x w b", "y", **attributes)], constants, image=(3, 4, 5))
    x = random.standard_normal((2, 3, 4, 5)).astype(np.float32)
    (found,) = evaluate(model, x.astype(np.float64))
    np.testing.assert_allclose(found, runtime(model)(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "top", "left"),
    [
        ({"auto_pad": "SAME_UPPER"}, 0, 1),
        ({"auto_pad": "SAME_LOWER"}, 1, 1),
        ({"output_shape": [8, 10]}, 1, 1),
        ({"output_shape": [8, 10], "auto_pad": "SAME_UPPER"}, 0, 1),
        ({"output_shape": [9, 12], "auto_pad": "SAME_LOWER"}, 0, 0),
    ],
    ids=str,
)
def test_conv_transpose_that_pads_by_its_output_equals_torch(attributes, top, left, random) -> None:
    """Of the 9 rows and 12 columns, the attributes keep those from `top` and `left` on."""
    kernel = weight(random, 3, 4, 3, 4)
    conv = node("ConvTranspose", "x w", "y", strides=[2, 2], **attributes)
    x = random.standard_normal((2, 3, 4, 5))
    (found,) = evaluate(network([conv], {"w": kernel}, image=(3, 4, 5)), x)
    full = functional.conv_transpose2d(torch.tensor(x), torch.tensor(kernel).double(), stride=2).numpy()
    assert full.shape[2:] == (9, 12)
    assert found.shape[2:] == tuple(attributes.get("output_shape", (8, 10)))
    expected = full[:, :, top : top + found.shape[2], left : left + found.shape[3]]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


POOLED = {
    "2x2": ((8, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "default strides": ((5, 4), {"kernel_shape": [3, 2]}),
    "padded": ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "asymmetric": ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 0]}),
    "dilated": ((9, 8), {"kernel_shape": [2, 3], "dilations": [3, 2], "strides": [2, 1]}),
    "ceil_mode": ((8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "ceil_mode, last window in the padding": (
        (7, 8),
        {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    "SAME_UPPER": ((8, 7), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "VALID": ((8, 7), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"}),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", POOLED)
def test_max_pool_equals_onnx(name: str, rows: int, random: np.random.Generator) -> None:
    size, attributes = POOLED[name]
    model = network([node("MaxPool", "x", "y", **attributes)], image=(2, *size), opset=22)
    x = random.standard_normal((rows, 2, *size))
    np.testing.assert_array_equal(evaluate(model, x)[0], onnx_evaluate(model, x))


def test_max_pool_equals_torch_where_torch_has_it(random: np.random.Generator) -> None:
    for kernel, stride, pad, dilation, ceil in itertools.product((2, 3), (1, 2, 3), (0, 1), (1, 2), (False, True)):
        attributes = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [pad] * 4,
            "dilations": [dilation, dilation],
            "ceil_mode": int(ceil),
        }
        model = network([node("MaxPool", "x", "y", **attributes)], image=(2, 9, 8), opset=22)
        x = random.standard_normal((2, 2, 9, 8))
        expected = functional.max_pool2d(torch.tensor(x), kernel, stride, pad, dilation, ceil_mode=ceil)
        np.testing.assert_array_equal(evaluate(model, x)[0], expected.numpy(), err_msg=str(attributes))


def test_max_pool_same_lower_pads_in_front() -> None:
    pool = node("MaxPool", "x", "y", kernel_shape=[1, 2], auto_pad="SAME_LOWER")
    x = np.array([3.0, 1.0, 2.0]).reshape(1, 1, 1, 3)
    assert evaluate(network([pool], image=(1, 1, 3)), x)[0].ravel().tolist() == [3.0, 3.0, 2.0]


@pytest.mark.parametrize("include_pad", [0, 1])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", POOLED)
def test_average_pool_equals_onnx_runtime(name: str, rows: int, include_pad: int, random: np.random.Generator) -> None:
    size, attributes = POOLED[name]
    pool = node("AveragePool", "x", "y", count_include_pad=include_pad, **attributes)
    model = network([pool], image=(2, *size), opset=22)
    x = random.standard_normal((rows, 2, *size)).astype(np.float32)
    np.testing.assert_allclose(evaluate(model, x.astype(np.float64))[0], runtime(model)(x)[0], rtol=1e-5, atol=1e-6)


def test_average_pool_equals_torch_where_torch_has_it(random: np.random.Generator) -> None:
    for kernel, stride, pad, ceil, include in itertools.product(
        (2, 3), (1, 2, 3), (0, 1), (False, True), (False, True)
    ):
        attributes = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [pad] * 4,
            "ceil_mode": int(ceil),
            "count_include_pad": int(include),
        }
        model = network([node("AveragePool", "x", "y", **attributes)], image=(2, 9, 8), opset=22)
        x = random.standard_normal((2, 2, 9, 8))
        expected = functional.avg_pool2d(torch.tensor(x), kernel, stride, pad, ceil, include)
        np.testing.assert_allclose(evaluate(model, x)[0], expected.numpy(), rtol=1e-12, err_msg=str(attributes))


@pytest.mark.parametrize("spatial", [(7,), (5, 4), (3, 2, 4)], ids=str)
def test_global_max_pool_of_any_number_of_axes(spatial: tuple[int, ...], random: np.random.Generator) -> None:
    """In onnx's own, of [N, C, L] the result has the wrong shape."""
    model = network([node("GlobalMaxPool", "x", "y")], inputs=[image_input([BATCH, 3, *spatial])])
    x = random.standard_normal((2, 3, *spatial)).astype(np.float32)
    (y,) = evaluate(model, x.astype(np.float64))
    np.testing.assert_array_equal(y, x.reshape(2, 3, -1).max(axis=2).reshape(2, 3, *[1] * len(spatial)))
    np.testing.assert_array_equal(y, runtime(model)(x)[0])
    if len(spatial) == 2:
        np.testing.assert_array_equal(y, onnx_evaluate(model, x.astype(np.float64)))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize(
    ("amounts", "axes"),
    [
        ((0, 0, 1, 2, 0, 0, 3, 0), None),
        ((1, 2, 0, 3), (2, 3)),
        ((2, 1), (-1,)),
        ((0, 0, -1, -2, 0, 0, 0, -3), None),
        ((0, 0, -1, 2, 0, 0, 3, -3), None),
    ],
    ids=["all axes", "two axes", "one axis", "crops", "crops and pads"],
)
def test_pad_equals_onnx_runtime(amounts, axes, mode: str, random: np.random.Generator) -> None:
    constants = {"pads": np.array(amounts, np.int64)}
    names = "x pads"
    if mode == "constant":
        constants["value"] = np.float32(0.5)
        names = "x pads value"
    if axes is not None:
        constants["axes"] = np.array(axes, np.int64)
        names = f"{names if mode == 'constant' else 'x pads -'} axes"
    model = network([node("Pad", names, "y", mode=mode)], constants, opset=19)
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    (found,) = evaluate(model, x.astype(np.float64))
    np.testing.assert_array_equal(found, runtime(model)(x)[0])


def test_pad_without_a_value_is_of_zeros(random: np.random.Generator) -> None:
    model = network([node("Pad", "x pads", "y")], {"pads": np.array([0, 0, -1, 2, 0, 0, 0, -3], np.int64)})
    x = random.standard_normal((2, 3, 8, 8))
    (found,) = evaluate(model, x)
    np.testing.assert_array_equal(found, np.pad(x[:, :, 1:, :5], ((0, 0), (0, 0), (0, 0), (2, 0))))


def slow_erf(x: float) -> float:
    """2/√π·Σ (−1)ⁿ·x²ⁿ⁺¹/(n!·(2n + 1)), with 80 digits."""
    with decimal.localcontext(prec=80):
        exact = decimal.Decimal(x)
        power, total = exact, exact
        for n in range(1, 400):
            power *= -exact * exact / n
            total += power / (2 * n + 1)
        root_of_pi = decimal.Decimal(
            "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899"
        ).sqrt()
        return float(2 * total / root_of_pi)


def test_erf_is_exact_to_two_units_in_the_last_place(random: np.random.Generator) -> None:
    x = np.concatenate([random.uniform(-6, 6, 90), random.uniform(-1e-3, 1e-3, 6)]).reshape(1, 4, 4, 6)
    (found,) = evaluate(network([node("Erf", "x", "y")], image=(4, 4, 6)), x)
    assert found.dtype == np.float64
    expected = np.array([slow_erf(float(value)) for value in x.ravel()]).reshape(x.shape)
    np.testing.assert_allclose(found, expected, rtol=4.5e-16, atol=0)
    np.testing.assert_allclose(found, torch.erf(torch.tensor(x)).numpy(), rtol=1e-15, atol=0)


def test_erf_of_special_values() -> None:
    x = np.array([-np.inf, -30, -0.0, 0.0, 5e-324, 30, np.inf, np.nan]).reshape(1, 1, 1, 8)
    (found,) = evaluate(network([node("Erf", "x", "y")], image=(1, 1, 8)), x)
    np.testing.assert_array_equal(found.ravel(), [-1, -1, 0, 0, 5e-324, 1, 1, np.nan])
    assert np.signbit(found.ravel()[2:4]).tolist() == [True, False]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_equals_torch(approximate: str, random: np.random.Generator) -> None:
    x = 2 * random.standard_normal((2, 3, 8, 8))
    (found,) = evaluate(network([node("Gelu", "x", "y", approximate=approximate)], opset=20), x)
    expected = functional.gelu(torch.tensor(x), approximate=approximate).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_gelu_is_exact_unless_told() -> None:
    (found,) = evaluate(network([node("Gelu", "x", "y")], image=(1, 1, 1), opset=20), np.ones((1, 1, 1, 1)))
    assert found.item() == pytest.approx((1 + slow_erf(0.5**0.5)) / 2, rel=1e-15)


@pytest.mark.parametrize("axis", [None, 1, -2])
def test_log_softmax_equals_torch(axis: int | None, random: np.random.Generator) -> None:
    x = 3 * random.standard_normal((2, 3, 8, 8))
    attributes = {} if axis is None else {"axis": axis}
    (found,) = evaluate(network([node("LogSoftmax", "x", "y", **attributes)]), x)
    expected = torch.log_softmax(torch.tensor(x), -1 if axis is None else axis).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def test_log_softmax_does_not_underflow() -> None:
    x = np.array([-1e4, 0.0, 1e4]).reshape(1, 3, 1, 1)
    (found,) = evaluate(network([node("LogSoftmax", "x", "y", axis=1)], image=(3, 1, 1)), x)
    assert found.ravel().tolist() == [-2e4, -1e4, 0.0]
