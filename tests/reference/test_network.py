"""TorchNetwork against ONNX's reference evaluator, ONNX Runtime, finite differences and hand-made kinks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .network import DECIDED_BY, TorchNetwork, expose
from .operators import OPERATORS

Array = NDArray[Any]
IMAGENET = ("efficientnet-lite0", "mobilenet-v2", "squeezenet1.1")
VOC = ("efficientnet-lite0-voc20", "resnet50-thin-voc20")


@pytest.fixture
def generator() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20102)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: tensors this small only wait for a second one, for seconds when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: Mapping[str, Array] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    elem_type: int = TensorProto.DOUBLE,
) -> onnx.ModelProto:
    """A model from the input `x`; floating constants take the type of the input."""
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(elem_type)
    initializers = []
    for name, array in (constants or {}).items():
        typed = array.astype(dtype) if array.dtype.kind == "f" else array
        initializers.append(numpy_helper.from_array(typed, name))
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", elem_type, list(shape))],
        [helper.make_tensor_value_info(name, elem_type, None) for name in outputs],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@dataclass(frozen=True)
class Case:
    """One operator, often with awkward attributes."""

    op: str
    shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("x",)
    constants: dict[str, Array] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    evaluator_errs: str = ""
    """How onnx.reference 1.23 departs from the specification; ONNX Runtime is the only witness then."""
    runtime_errs: str = ""
    """The same of ONNX Runtime 1.32; onnx.reference is the only witness then."""

    def model(self, elem_type: int = TensorProto.DOUBLE) -> onnx.ModelProto:
        """The operator alone in a graph."""
        others = [f"y{number}" for number in range(1, self.outputs)]
        node = helper.make_node(self.op, list(self.inputs), [*others, "y"], **self.attributes)
        return make_model([node], self.shape, self.constants, opset=self.opset, elem_type=elem_type)


def values(*shape: int) -> Array:
    """Fixed irregular numbers around 0, for constants."""
    wave: Array = np.sin(1.7 * np.arange(1, int(np.prod(shape)) + 1))
    return wave.reshape(shape)


def ints(*numbers: int) -> Array:
    """An int64 constant."""
    return np.array(numbers, dtype=np.int64)


W3 = {"w": values(6, 4, 3, 3), "b": values(6)}
STATS = {"s": values(4), "b": values(4) + 1, "m": values(4) * 2, "v": np.abs(values(4)) + 0.1}
BN = ("x", "s", "b", "m", "v")
CASES = [
    Case("Conv", (2, 4, 7, 8), {}, ("x", "w"), {"w": values(6, 4, 3, 2)}),
    Case("Conv", (2, 4, 9, 8), {"strides": [2, 3], "pads": [0, 1, 2, 0]}, ("x", "w", "b"), W3),
    Case("Conv", (1, 4, 9, 9), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}, ("x", "w", "b"), W3),
    Case("Conv", (1, 4, 6, 5), {"group": 2, "pads": [1, 1, 1, 1]}, ("x", "w"), {"w": values(6, 2, 3, 3)}),
    Case("Conv", (3, 4, 6, 5), {"group": 4, "strides": [2, 2]}, ("x", "w"), {"w": values(8, 1, 2, 2)}),
    Case("Conv", (1, 4, 8, 7), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, ("x", "w", "b"), W3),
    Case(
        "Conv",
        (1, 4, 8, 8),
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        ("x", "w"),
        {"w": values(6, 4, 4, 3)},
    ),
    Case("Conv", (1, 4, 8, 7), {"auto_pad": "VALID", "strides": [3, 2]}, ("x", "w", "b"), W3),
    Case("BatchNormalization", (2, 4, 3, 5), {"epsilon": 0.02}, BN, STATS),
    Case("BatchNormalization", (2, 4), {}, BN, STATS),
    Case("LayerNormalization", (2, 3, 5), {"epsilon": 0.02}, ("x", "s", "b"), {"s": values(5), "b": values(5) + 1}),
    Case("LayerNormalization", (2, 3, 5), {"axis": 1}, ("x", "s"), {"s": values(3, 5)}),
    Case("Relu", (2, 3, 4, 4)),
    Case("Clip", (2, 3, 4, 4), {}, ("x", "lo", "hi"), {"lo": np.array(-0.3), "hi": np.array(0.6)}),
    Case("Clip", (2, 3, 4, 4), {}, ("x", "", "hi"), {"hi": np.array(0.2)}),
    Case("Clip", (2, 3, 4, 4), {}, ("x", "lo"), {"lo": np.array(-0.1)}),
    Case("Clip", (2, 3, 4, 4)),
    Case("Clip", (2, 3, 4, 4), {}, ("x", "lo", "hi"), {"lo": np.array(0.5), "hi": np.array(-0.5)}),
    Case("Clip", (2, 3, 4, 4), {"min": -0.25, "max": 0.5}, opset=9),
    Case("HardSigmoid", (2, 3, 4, 4)),
    Case("HardSigmoid", (2, 3, 4, 4), {"alpha": 0.7, "beta": 0.3}),
    Case("HardSwish", (4, 3, 8, 8), {}),
    Case("Gelu", (2, 3, 4), opset=20),
    Case("Gelu", (2, 3, 4), {"approximate": "tanh"}, opset=20),
    Case("MaxPool", (2, 3, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 2]}),
    Case("MaxPool", (2, 3, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("MaxPool", (1, 3, 8, 9), {"kernel_shape": [3, 2], "pads": [1, 1, 0, 0], "dilations": [2, 3]}),
    Case("MaxPool", (1, 3, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case(
        "MaxPool",
        (1, 2, 6, 5),
        {"kernel_shape": [2, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    Case("MaxPool", (1, 2, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case(
        "MaxPool",
        (1, 2, 8, 7),
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        evaluator_errs="loses the last window",
    ),
    Case(
        "MaxPool",
        (1, 2, 8, 8),
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID", "ceil_mode": 1},
        runtime_errs="has one window more",
    ),
    Case("AveragePool", (2, 3, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    Case(
        "AveragePool",
        (2, 3, 7, 8),
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1},
    ),
    Case("AveragePool", (1, 3, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case(
        "AveragePool",
        (1, 2, 8, 8),
        {
            "kernel_shape": [3, 3],
            "strides": [2, 2],
            "pads": [1, 1, 0, 0],
            "ceil_mode": 1,
            "count_include_pad": 1,
        },
    ),
    Case("AveragePool", (1, 2, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case(
        "AveragePool",
        (1, 2, 9, 9),
        {"kernel_shape": [2, 3], "dilations": [3, 2], "strides": [2, 1]},
        opset=19,
    ),
    Case("GlobalAveragePool", (2, 3, 5, 4)),
    Case("ReduceMean", (2, 3, 5, 4), {"axes": [2, -1], "keepdims": 0}),
    Case("ReduceMean", (2, 3, 5, 4)),
    Case("ReduceMean", (2, 3, 5, 4), {}, ("x", "a"), {"a": ints(-2, 3)}, opset=18),
    Case("ReduceMean", (2, 3), {"noop_with_empty_axes": 1}, opset=18),
    Case("Add", (2, 3, 5, 4), {}, ("x", "c"), {"c": values(3, 1, 1)}),
    Case("Add", (3, 1), {}, ("c", "x"), {"c": values(2, 1, 4)}),
    Case("Mul", (2, 3, 5, 4), {}, ("x", "c"), {"c": values(3, 1, 1)}),
    Case("Mul", (3, 1), {}, ("c", "x"), {"c": values(2, 1, 4)}),
    Case("Concat", (2, 3, 5), {"axis": -2}, ("x", "c", "x"), {"c": values(2, 2, 5)}),
    Case("Split", (2, 7, 3), {"axis": 1}, ("x", "s"), {"s": ints(2, 1, 4)}, outputs=3),
    Case("Split", (2, 3, 6), {"axis": -1}, outputs=2),
    Case("Split", (2, 7), {"axis": 1, "num_outputs": 3}, opset=18, outputs=3),
    Case("Transpose", (2, 3, 4, 5), {"perm": [0, 2, 3, 1]}),
    Case("Transpose", (2, 3, 4)),
    Case("Pad", (2, 3, 5, 4), {}, ("x", "p"), {"p": ints(0, 0, 1, 2, 0, 1, 0, 3)}),
    Case(
        "Pad",
        (2, 3, 5, 4),
        {},
        ("x", "p", "c"),
        {"p": ints(0, 0, -1, 2, 0, 0, 1, -2), "c": np.array(0.7)},
        evaluator_errs="cannot crop",
    ),
    Case("Pad", (2, 3, 5, 4), {}, ("x", "p", "", "a"), {"p": ints(1, 2, 0, 3), "a": ints(-1, 2)}, opset=18),
    Case("Pad", (2, 3, 4), {"pads": [0, 1, 0, 0, 0, 2], "value": 0.5}, opset=9),
    Case(
        "Gemm",
        (5, 3),
        {"alpha": 0.5, "beta": 2.0, "transB": 1},
        ("x", "w", "b"),
        {"w": values(4, 3), "b": values(4)},
    ),
    Case("Gemm", (3, 5), {"transA": 1}, ("x", "w"), {"w": values(3, 4)}),
    Case("Gemm", (5, 3), {}, ("x", "w", "b"), {"w": values(3, 4), "b": values(5, 1)}),
    Case("MatMul", (2, 5, 3), {}, ("x", "w"), {"w": values(3, 4)}),
    Case("Flatten", (2, 3, 4, 5)),
    Case("Flatten", (2, 3, 4), {"axis": 0}),
    Case("Flatten", (2, 3, 4), {"axis": -1}),
    Case("Flatten", (2, 3, 4), {"axis": 3}),
    Case("Reshape", (2, 3, 4), {}, ("x", "s"), {"s": ints(0, -1)}),
    Case("Reshape", (2, 3, 4), {}, ("x", "s"), {"s": ints(-1, 0, 1, 2)}),
    Case("Identity", (2, 3)),
    Case("Dropout", (2, 3), {}, ("x", "r"), {"r": np.array(0.4)}),
    Case("Softmax", (2, 3, 4), {"axis": 1}),
    Case("Softmax", (2, 3, 4)),
    Case("Softmax", (2, 3, 4), opset=11, evaluator_errs="takes the axis as from opset 13 on"),
    Case("LogSoftmax", (2, 5), {"axis": -1}),
    Case("LogSoftmax", (2, 3, 4), {"axis": 1}, opset=11, evaluator_errs="takes the axis as from opset 13 on"),
    Case("Sigmoid", (2, 5)),
    Case("Squeeze", (2, 1, 3, 1), {"axes": [-1]}, opset=11),
    Case("Squeeze", (2, 1, 3, 1), {}, ("x", "a"), {"a": ints(1, 3)}),
    Case("Squeeze", (2, 1, 3, 1)),
]


def name_case(case: Case) -> str:
    """Operator and attributes, as the test's name."""
    attributes = "-".join(f"{key}={value}".replace(" ", "") for key, value in case.attributes.items())
    return f"{case.op}-{len(case.constants)}-{attributes}-{case.opset}"


def one_output(tensors: Mapping[str, torch.Tensor]) -> Array:
    """The tensor `y` as an array."""
    array: Array = tensors["y"].detach().numpy()
    return array


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize("case", [case for case in CASES if not case.evaluator_errs], ids=name_case)
def test_operator_equals_onnx_reference_evaluator(case: Case, generator: np.random.Generator) -> None:
    x = generator.standard_normal(case.shape)
    result = one_output(TorchNetwork(case.model()).run(x, ["y"]))
    (expected,) = np.asarray(ReferenceEvaluator(case.model()).run(["y"], {"x": x}))
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", [case for case in CASES if not case.runtime_errs], ids=name_case)
def test_operator_equals_onnx_runtime(case: Case, generator: np.random.Generator) -> None:
    model = case.model(TensorProto.FLOAT)
    x = generator.standard_normal(case.shape).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = np.asarray(session.run(["y"], {"x": x}))
    result = one_output(TorchNetwork(model).run(x, ["y"], dtype=torch.float32))
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=name_case)
def test_operator_gradient_equals_finite_differences(case: Case, generator: np.random.Generator) -> None:
    network = TorchNetwork(case.model())
    x = torch.tensor(generator.standard_normal(case.shape), requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: network.run(t, ["y"])["y"], [x], eps=1e-6, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("case", [c for c in CASES if c.op in DECIDED_BY], ids=name_case)
def test_paths_with_and_without_gradient_agree(case: Case, generator: np.random.Generator) -> None:
    network = TorchNetwork(case.model())
    x = np.round(generator.standard_normal(case.shape), 1)
    plain = network.run(x, ["y"])["y"]
    with_gradient = network.run(torch.tensor(x, requires_grad=True), ["y"])["y"].detach()
    own = network.run(x, ["y"], decisions={"y": plain.numpy()})["y"]
    assert torch.equal(plain, with_gradient)
    assert torch.equal(plain, own)


def gradient_of_sum(model: onnx.ModelProto, x: Array, weights: Array | None = None, **options: Any) -> Array:
    """Gradient of the (weighted) sum of `y` with respect to `x`."""
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = TorchNetwork(model).run(t, ["y"], **options)["y"]
    (gradient,) = torch.autograd.grad(y, [t], torch.ones_like(y) if weights is None else torch.tensor(weights))
    array: Array = gradient.numpy()
    return array


def test_relu_gradient_at_zero_is_zero() -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], (1, 4))
    np.testing.assert_array_equal(gradient_of_sum(model, np.array([[-1.0, 0.0, -0.0, 2.0]])), [[0, 0, 0, 1]])


def test_clip_gradient_at_its_bounds_is_zero() -> None:
    bounds = {"lo": np.array(0.0), "hi": np.array(6.0)}
    model = make_model([helper.make_node("Clip", ["x", "lo", "hi"], ["y"])], (1, 5), bounds)
    np.testing.assert_array_equal(gradient_of_sum(model, np.array([[-1.0, 0.0, 3.0, 6.0, 7.0]])), [[0, 0, 1, 0, 0]])


def test_hard_sigmoid_gradient_at_its_bounds_is_zero() -> None:
    model = make_model([helper.make_node("HardSigmoid", ["x"], ["y"], alpha=0.5, beta=0.5)], (1, 5))
    gradient = gradient_of_sum(model, np.array([[-2.0, -1.0, 0.5, 1.0, 2.0]]))
    np.testing.assert_array_equal(gradient, [[0, 0, 0.5, 0, 0]])


def test_hard_swish_gradient_at_its_kinks() -> None:
    model = make_model([helper.make_node("HardSwish", ["x"], ["y"])], (1, 5))
    gradient = gradient_of_sum(model, np.array([[-4.0, -3.0, 0.0, 3.0, 4.0]]))
    np.testing.assert_array_equal(gradient, [[0, 0, 0.5, 1, 1]])


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_max_pool_gradient_goes_to_the_first_maximum(pads: list[int]) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=pads)
    model = make_model([node], (1, 1, 4, 4))
    gradient = gradient_of_sum(model, np.full((1, 1, 4, 4), -3.0))[0, 0]
    first = np.zeros((4, 4))
    if pads[0]:
        first[np.ix_([0, 1, 3], [0, 1, 3])] = 1
    else:
        first[::2, ::2] = 1
    np.testing.assert_array_equal(gradient, first)


def test_max_pool_prefers_the_row_above_to_the_column_before() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    gradient = gradient_of_sum(make_model([node], (1, 1, 2, 2)), np.array([[[[0.0, 5.0], [5.0, 1.0]]]]))
    np.testing.assert_array_equal(gradient[0, 0], [[0, 1], [0, 0]])


def test_relu_takes_the_active_set_from_decisions() -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], (1, 4))
    x = np.array([[-1e-9, 1e-9, 1.0, -1.0]])
    decisions = {"y": np.array([[1e-8, 0.0, 1.0, 0.0]], dtype=np.float32)}
    y = one_output(TorchNetwork(model).run(x, ["y"], decisions=decisions))
    np.testing.assert_array_equal(y, [[-1e-9, 0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(gradient_of_sum(model, x, decisions=decisions), [[1, 0, 1, 0]])


def test_clip_takes_the_active_set_and_the_bound_from_decisions() -> None:
    bounds = {"lo": np.array(-1.0), "hi": np.array(6.0)}
    model = make_model([helper.make_node("Clip", ["x", "lo", "hi"], ["y"])], (1, 5), bounds)
    x = np.array([[-1 - 1e-9, -1 + 1e-9, 6 + 1e-9, 6 - 1e-9, 2.0]])
    decided = np.array([[-0.9999999, -1.0, 5.9999995, 6.0, 2.0]], dtype=np.float32)
    y = one_output(TorchNetwork(model).run(x, ["y"], decisions={"y": decided}))
    np.testing.assert_array_equal(y, [[-1 - 1e-9, -1.0, 6 + 1e-9, 6.0, 2.0]])
    np.testing.assert_array_equal(gradient_of_sum(model, x, decisions={"y": decided}), [[1, 0, 1, 0, 1]])


def test_hard_sigmoid_takes_the_active_set_from_decisions() -> None:
    model = make_model([helper.make_node("HardSigmoid", ["x"], ["y"], alpha=0.5, beta=0.5)], (1, 3))
    x = np.array([[1 + 1e-9, 1 - 1e-9, 0.0]])
    decisions = {"y": np.array([[0.9999999, 1.0, 0.5]], dtype=np.float32)}
    y = one_output(TorchNetwork(model).run(x, ["y"], decisions=decisions))
    np.testing.assert_array_equal(y, [[1 + 5e-10, 1.0, 0.5]])
    np.testing.assert_array_equal(gradient_of_sum(model, x, decisions=decisions), [[0.5, 0, 0.5]])


def test_hard_swish_takes_its_piece_from_decisions() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["z"]), helper.make_node("HardSwish", ["z"], ["y"])]
    model = make_model(nodes, (1, 3))
    decisions = {"z": np.array([[3.0, 2.9999998, -3.0]], dtype=np.float32)}
    gradient = gradient_of_sum(model, np.array([[3 - 1e-9, 3 + 1e-9, -3 + 1e-9]]), decisions=decisions)
    np.testing.assert_allclose(gradient, [[1, 1.5, 0]], atol=1e-8)


def test_split_gives_every_part(generator: np.random.Generator) -> None:
    node = helper.make_node("Split", ["x", "s"], ["a", "b", "c"], axis=1)
    model = make_model([node], (2, 7), {"s": ints(2, 1, 4)}, outputs=("a", "c"))
    x = generator.standard_normal((2, 7))
    parts = TorchNetwork(model).run(x, ["a", "c"])
    np.testing.assert_array_equal(parts["a"], x[:, :2])
    np.testing.assert_array_equal(parts["c"], x[:, 3:])


def test_max_pool_takes_the_position_from_decisions_and_the_value_from_this_run() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["z"]),
        helper.make_node("MaxPool", ["z"], ["y"], kernel_shape=[2, 2]),
    ]
    model = make_model(nodes, (1, 1, 2, 2))
    x = np.array([[[[1.0, 1 + 1e-9], [0.0, 0.5]]]])
    decisions = {"z": x.astype(np.float32)}
    assert one_output(TorchNetwork(model).run(x, ["y"], decisions=decisions)).item() == 1.0
    assert one_output(TorchNetwork(model).run(x, ["y"])).item() == 1 + 1e-9
    np.testing.assert_array_equal(gradient_of_sum(model, x, decisions=decisions)[0, 0], [[1, 0], [0, 0]])


def residual_nodes() -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A small network with every kind of decision and a convolution's result that is read twice."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p", "w1"], ["c"], name="first"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "c"], ["a"]),
        helper.make_node("Clip", ["a", "", "hi"], ["k"], name="cap"),
        helper.make_node("MaxPool", ["k"], ["q"], kernel_shape=[2, 2], name="pool"),
        helper.make_node("GlobalAveragePool", ["q"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    return nodes, {"w1": values(4, 3, 2, 2), "hi": np.array(1.0)}


def test_decision_names_lists_what_decides_and_the_input_decides_for_itself(
    generator: np.random.Generator,
) -> None:
    nodes, constants = residual_nodes()
    network = TorchNetwork(make_model(nodes, (1, 3, 6, 6), constants))
    assert network.decision_names() == ["r", "k"]
    assert network.decision_names(["a"]) == ["r"]
    x = generator.standard_normal((1, 3, 6, 6)).astype(np.float32)
    with torch.no_grad():
        run32 = {name: t.numpy() for name, t in network.run(x, ["r", "k"], dtype=torch.float32).items()}
    np.testing.assert_array_equal(one_output(network.run(x, ["y"], decisions=run32)), one_output(network.run(x, ["y"])))


def test_missing_and_misshapen_decisions_are_refused() -> None:
    nodes, constants = residual_nodes()
    network = TorchNetwork(make_model(nodes, (1, 3, 6, 6), constants))
    x = np.zeros((1, 3, 6, 6))
    r = np.zeros((1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"Clip 'cap': decisions lack the tensor 'k'"):
        network.run(x, ["y"], decisions={"r": r})
    with pytest.raises(ValueError, match=r"Clip 'cap': decisions\['k'\] has shape \(1, 4, 2, 2\), expected"):
        network.run(x, ["y"], decisions={"r": r, "k": r[:, :, ::2, ::2]})


def test_inference_mode_overwrites_nothing_that_is_read_again(generator: np.random.Generator) -> None:
    nodes, constants = residual_nodes()
    network = TorchNetwork(make_model(nodes, (2, 3, 6, 6), constants))
    x = torch.tensor(generator.standard_normal((2, 3, 6, 6)))
    kept = x.clone()
    names = ["c", "r", "a", "k", "y"]
    expected = {name: t.clone() for name, t in network.run(x, names).items()}
    with torch.inference_mode():
        for name in names:
            assert torch.equal(network.run(x, [name])[name], expected[name]), name
    assert torch.equal(x, kept)
    alias = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("Relu", ["i"], ["y"])]
    for nodes in (alias, [helper.make_node("Relu", ["x"], ["y"])]):
        with torch.inference_mode():
            TorchNetwork(make_model(nodes, (2, 3, 6, 6))).run(x, ["y"])
        assert torch.equal(x, kept)


def test_gradients_work_after_a_pass_in_inference_mode(generator: np.random.Generator) -> None:
    nodes, constants = residual_nodes()
    network = TorchNetwork(make_model(nodes, (1, 3, 6, 6), constants))
    x = generator.standard_normal((1, 3, 6, 6))
    with torch.inference_mode():
        network.run(x, ["y"])
    t = torch.tensor(x, requires_grad=True)
    tensors = network.run(t, ["y", "a"])
    (gradient,) = torch.autograd.grad(tensors["y"][0, 1], [tensors["a"]])
    assert gradient.shape == (1, 4, 4, 4)
    assert (gradient[:, 0] == 0).all()


def test_constants_may_come_from_nodes() -> None:
    nodes = [
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(ints(1, -1))),
        helper.make_node("Constant", [], ["lo"], value_float=-0.5),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Clip", ["r", "lo"], ["c"]),
        helper.make_node("Squeeze", ["c", "axes"], ["y"]),
    ]
    model = make_model(nodes, (2, 2), elem_type=TensorProto.FLOAT)
    result = one_output(TorchNetwork(model).run(np.array([[-1.0, 2.0], [3.0, -4.0]]), ["y"]))
    np.testing.assert_array_equal(result, [-0.5, 2, 3, -0.5])
    text = [helper.make_node("Constant", [], ["y"], name="word", value_string="a")]
    with pytest.raises(ValueError, match=r"Constant 'word': received the attributes \['value_string'\]"):
        TorchNetwork(make_model(text, (1,)))


def test_unknown_operator_is_refused_by_name() -> None:
    model = make_model([helper.make_node("Mish", ["x"], ["y"], name="act")], (1, 2), opset=18)
    with pytest.raises(ValueError, match=r"node 'act': operator ai\.onnx::Mish is unknown"):
        TorchNetwork(model)
    foreign = make_model([helper.make_node("Relu", ["x"], ["y"], name="act", domain="other")], (1, 2))
    with pytest.raises(ValueError, match="node 'act': operator other::Relu is unknown"):
        TorchNetwork(foreign)


def test_two_inputs_and_unknown_outputs_are_refused() -> None:
    model = make_model([helper.make_node("Add", ["x", "z"], ["y"])], (1, 2))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.DOUBLE, [1, 2]))
    with pytest.raises(ValueError, match=r"received the inputs \['x', 'z'\], expected one"):
        TorchNetwork(model)
    network = TorchNetwork(make_model([helper.make_node("Relu", ["x"], ["y"])], (1, 2)))
    with pytest.raises(ValueError, match=r"the tensors \['nothing'\] are made by no node"):
        network.run(np.zeros((1, 2)), ["y", "nothing"])


UNSUPPORTED = [
    (helper.make_node("Pad", ["x", "p"], ["y"], name="n", mode="edge"), "mode 'edge' is not supported"),
    (helper.make_node("MaxPool", ["x"], ["y", "i"], name="n", kernel_shape=[2, 2]), "second output"),
    (helper.make_node("MaxPool", ["x"], ["y"], name="n", kernel_shape=[2]), "received a kernel of 1 axes"),
    (
        helper.make_node("MaxPool", ["x"], ["y"], name="n", kernel_shape=[5, 5]),
        "window of 5 does not fit into 4",
    ),
    (helper.make_node("Conv", ["x", "w"], ["y"], name="n"), "received a weight of 3 axes"),
    (helper.make_node("Conv", ["x", "v"], ["y"], name="n", auto_pad="SAME"), "auto_pad 'SAME' is unknown"),
    (helper.make_node("Gelu", ["x"], ["y"], name="n", approximate="erf"), "approximate 'erf' is unknown"),
    (helper.make_node("LayerNormalization", ["x", "s"], ["y", "m"], name="n"), "second output \\(Mean\\) is not"),
    (helper.make_node("Dropout", ["x", "", "t"], ["y"], name="n"), "training_mode=1 is not supported"),
    (
        helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], name="n", training_mode=1),
        "training_mode=1 is not supported",
    ),
]


@pytest.mark.parametrize(("node", "message"), UNSUPPORTED, ids=[message for _, message in UNSUPPORTED])
def test_unsupported_attributes_are_refused(node: onnx.NodeProto, message: str) -> None:
    constants = {
        "p": ints(0, 0, 1, 1, 0, 0, 1, 1),
        "w": values(3, 2, 3),
        "v": values(3, 2, 1, 1),
        "s": values(2),
    }
    model = make_model([node], (1, 2, 4, 4), {**constants, "t": np.array(True)})
    with pytest.raises(ValueError, match=f"{node.op_type} 'n': {message}"):
        TorchNetwork(model).run(np.zeros((1, 2, 4, 4)), ["y"])


def random_input(folder: Path, batch: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Smooth random pictures (to noise a network gives one answer), normalised as the model wants."""
    preprocess = json.loads((folder / "preprocess.json").read_text())
    coarse = torch.tensor(generator.uniform(0, 1, (batch, 3, 14, 14)))
    pixels = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")
    mean, std = (torch.tensor(preprocess[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    normalised: NDArray[np.float32] = ((pixels - mean) / std).to(torch.float32).numpy()
    return normalised


@pytest.mark.parametrize("name", [*IMAGENET, *VOC])
def test_network_equals_onnx_runtime(assets: Path, name: str, generator: np.random.Generator) -> None:
    folder = assets / "models" / name
    model = onnx.load(folder / "model.onnx")
    network = TorchNetwork(folder / "model.onnx")
    x = random_input(folder, 2, generator)
    names = ["logits", *network.decision_names()[:: 8 if name in IMAGENET else 12]]
    session = ort.InferenceSession(expose(model, names).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip(names, session.run(names, {network.input: x}), strict=True))
    with torch.inference_mode():
        results = network.run(x, names, dtype=torch.float32)
        results64 = network.run(x[:1], names)
    assert network.outputs == ["logits"]
    assert np.abs(expected["logits"]).max() > 1
    for tensor in names:
        scale = np.abs(expected[tensor]).max()
        assert np.abs(results[tensor].numpy() - expected[tensor]).max() <= 2e-5 * scale, tensor
        assert np.abs(results64[tensor].numpy() - expected[tensor][:1]).max() <= 2e-5 * scale, tensor
