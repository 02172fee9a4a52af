import numpy as np
import onnx
import pytest
import torch

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node, weight
from tests.export.rules.gradients import Array, autograd, check_companion, opsets

OPS = ("Gemm", "MatMul")
SHAPE = (2, 3, 4)
FLAT = node("Flatten", "x", "flat")


def double(array: Array) -> torch.Tensor:
    return torch.tensor(array).double()


def gemm_network(constants: dict[str, Array], opset: int = 17, **attributes: object) -> onnx.ModelProto:
    gemm = node("Gemm", f"flat {' '.join(constants)}", "y", **attributes)
    return network([FLAT, gemm], constants, image=SHAPE, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    matrix = weight(random, 24, 5)
    model = network([FLAT, node(op, "flat b", "y")], {"b": matrix}, image=SHAPE, opset=opset)
    check_companion(model, autograd(lambda x: x.flatten(1) @ double(matrix)), random)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"transB": 1}, {"alpha": 0.3}, {"alpha": -2.0, "beta": 0.5, "transB": 1}, {"beta": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("biased", [False, True])
def test_gemm(attributes: dict[str, float], biased: bool, random: np.random.Generator) -> None:
    transposed = attributes.get("transB", 0)
    matrix = weight(random, *((5, 24) if transposed else (24, 5)))
    bias = weight(random, 5)
    alpha, beta = (float(np.float32(attributes.get(name, 1.0))) for name in ("alpha", "beta"))

    def expected(x: torch.Tensor) -> torch.Tensor:
        y = alpha * (x.flatten(1) @ (double(matrix).T if transposed else double(matrix)))
        return y + beta * double(bias) if biased else y

    model = gemm_network({"b": matrix, "c": bias} if biased else {"b": matrix}, **attributes)
    check_companion(model, autograd(expected), random)


def test_gemm_of_a_transposed_batch_is_refused(random: np.random.Generator) -> None:
    model = gemm_network({"b": weight(random, 1, 5)}, transA=1)
    with pytest.raises(
        UnsupportedOpError,
        match=r"^Gemm node 'node_y': expected the activation as input A, with transA = 0, and constants as B and C$",
    ):
        companion(block_of(model))


@pytest.mark.parametrize(("inputs", "index"), [("a flat", 1), ("flat flat", 1), ("a b flat", 2)])
def test_gemm_with_an_activation_elsewhere_is_refused(inputs: str, index: int, random: np.random.Generator) -> None:
    constants = {"a": weight(random, 1, 24), "b": weight(random, 24, 24)}
    model = network([FLAT, node("Gemm", inputs, "y", transB=int(index == 1))], constants, image=SHAPE)
    message = r"^Gemm node 'node_y': expected the activation as input A, with transA = 0, and constants as B and C$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize(("op", "attributes"), [("Gemm", {}), ("Gemm", {"transB": 1, "alpha": 0.5}), ("MatMul", {})])
def test_matrix_computed_from_constants(op: str, attributes: dict[str, float], random: np.random.Generator) -> None:
    matrix = weight(random, 24, 24)
    nodes = [FLAT, node("Add", "half half", "b"), node(op, "flat b", "y", **attributes)]
    model = network(nodes, {"half": matrix / 2}, image=SHAPE)
    assert block_of(model).model.graph.node(1).outputs[0].const_value is None
    factor = attributes.get("alpha", 1.0) * (double(matrix).T if "transB" in attributes else double(matrix))
    check_companion(model, autograd(lambda x: x.flatten(1) @ factor), random)


def test_matmul_by_a_matrix_in_front_computed_from_constants(random: np.random.Generator) -> None:
    matrix = weight(random, 6, 3)
    model = network([node("Add", "half half", "a"), node("MatMul", "a x", "y")], {"half": matrix / 2}, image=SHAPE)
    check_companion(model, autograd(lambda x: double(matrix) @ x), random)


def test_matmul_by_a_matrix_on_four_axes(random: np.random.Generator) -> None:
    matrix = weight(random, 4, 6)
    model = network([node("MatMul", "x b", "y")], {"b": matrix}, image=SHAPE)
    check_companion(model, autograd(lambda x: x @ double(matrix)), random)


def test_matmul_by_a_matrix_in_front(random: np.random.Generator) -> None:
    matrix = weight(random, 6, 3)
    model = network([node("MatMul", "a x", "y")], {"a": matrix}, image=SHAPE)
    check_companion(model, autograd(lambda x: double(matrix) @ x), random)


def test_matmul_of_three_axes(random: np.random.Generator) -> None:
    matrix = weight(random, 12, 5)
    nodes = [node("Reshape", "x shape", "rows"), node("MatMul", "rows b", "y")]
    model = network(nodes, {"shape": np.array([-1, 2, 12], np.int64), "b": matrix}, image=SHAPE)
    check_companion(model, autograd(lambda x: x.reshape(-1, 2, 12) @ double(matrix)), random)


def test_matmul_of_two_activations(random: np.random.Generator) -> None:
    nodes = [node("Relu", "x", "positive"), node("MatMul", "x positive", "y")]
    model = network(nodes, image=(2, 4, 4))
    check_companion(model, autograd(lambda x: x @ torch.relu(x)), random)


def test_matmul_of_two_activations_of_different_sizes(random: np.random.Generator) -> None:
    shapes = {"tall": np.array([0, 0, 6, 2], np.int64), "broad": np.array([0, 0, 2, 6], np.int64)}
    nodes = [node("Reshape", f"x {name}", name[0]) for name in shapes]
    model = network([*nodes, node("MatMul", "t b", "y")], shapes, image=SHAPE)
    expected = autograd(lambda x: x.reshape(-1, 2, 6, 2) @ x.reshape(-1, 2, 2, 6))
    check_companion(model, expected, random)


def test_matmul_of_an_activation_with_itself(random: np.random.Generator) -> None:
    model = network([node("MatMul", "x x", "y")], image=(2, 4, 4))
    check_companion(model, autograd(lambda x: x @ x), random)


@pytest.mark.parametrize(
    ("nodes", "constants", "text"),
    [
        (
            [FLAT, node("MatMul", "a flat", "y")],
            {"a": np.ones((5, 1), np.float32)},
            r"multiplies 'flat' \[batch,24\] and 'a' \[5,1\]",
        ),
        ([FLAT, node("MatMul", "flat a", "y")], {"a": np.ones(24, np.float32)}, r"multiplies 'flat' .* and 'a' \[24\]"),
        (
            [node("Add", "half half", "a"), node("MatMul", "x a", "y")],
            {"half": np.ones(4, np.float32)},
            r"multiplies 'x' \[batch,2,3,4\] and 'a' \[4\]",
        ),
        (
            [node("MatMul", "x a", "y")],
            {"a": np.ones((1, 2, 4, 5), np.float32)},
            r"multiplies 'x' \[batch,2,3,4\] and 'a' \[1,2,4,5\]",
        ),
        (
            [
                node("ReduceMean", "x", "mean", axes=[1]),
                node("Reshape", "mean tall", "m"),
                node("MatMul", "x m", "y"),
            ],
            {"tall": np.array([0, 1, 4, 3], np.int64)},
            r"multiplies '(x|m)' \[batch,[12],\d,\d\] and '(m|x)' \[batch,[12],\d,\d\]",
        ),
    ],
    ids=["matrix before rows", "vector", "vector computed from constants", "stack of matrices", "leading axes differ"],
)
def test_matmul_of_other_forms_is_refused(nodes: list[onnx.NodeProto], constants: dict[str, Array], text: str) -> None:
    message = (
        rf"^MatMul node 'node_y': {text}; expected a constant matrix, or two activations with the same leading axes$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, image=SHAPE)))
