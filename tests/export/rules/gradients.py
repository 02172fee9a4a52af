"""Comparing a rule with an oracle: the companion of a one-node block in float64, in float32, and for several classes.

Every comparison looks at the companion's two outputs: the gradient at the input, and its sum over H and W.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from engine.export.differentiate import companion
from engine.export.evaluate import function, in_float64
from engine.export.rules import RULES
from tests.export.networks import block_of

Array = NDArray[np.floating]
Oracle = Callable[[Array, Array], tuple[Array, Array]]
"""(input, gradient at the output), in float64 → (output, gradient at the input)."""

FLOAT64_BOUND = 1e-8
FLOAT32_BOUND = 1e-5
ROUNDED_CONSTANTS_BOUND = 1e-6
DIFFERENCES_BOUND = 1e-6


def autograd(network: Callable[[torch.Tensor], torch.Tensor]) -> Oracle:
    """Make an oracle of a torch function."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        y = network(leaf)
        (dx,) = torch.autograd.grad(y, leaf, torch.tensor(dy, dtype=torch.float64))
        return y.detach().numpy(), dx.numpy()

    return oracle


def check_companion(
    model: onnx.ModelProto,
    oracle: Oracle,
    random: np.random.Generator,
    *,
    values: Callable[[tuple[int, ...]], Array] | None = None,
    smooth: bool = True,
    in_onnx_reference: bool = True,
) -> None:
    """Check the companion of a model that is one block with the 4-D input `x` and one output.

    Args:
        model: The block, float32.
        oracle: What is right.
        random: Draws inputs and gradients.
        values: Draws the inputs; by default standard normal.
        smooth: Whether to compare with central differences too: no input lies within 1e-6 of a kink.
        in_onnx_reference: Whether onnx's own evaluator can run the block and its companion, which are then compared in
            it too; otherwise both are compared in `engine.export.evaluate.function` only.
    """
    draw = random.standard_normal if values is None else values
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    block64 = block_of(model, float64=True)
    gradient64 = companion(block64)
    own = function(gradient64)
    companions, forwards = {"the project's operators": own}, [function(block64.model)]
    if in_onnx_reference:
        companions["onnx's operators"] = onnx_function(gradient64)
        forwards.append(onnx_function(block64.model))
    gradient32 = companion(block_of(model))
    run_forward, run = runtime(model), runtime(gradient32)
    rounded = function(in_float64(gradient32))

    for rows in (1, 3):
        x = draw((rows, *sizes)).astype(np.float32).astype(np.float64)
        (y,) = run_forward(as32(x))
        dy = random.standard_normal(y.shape).astype(np.float32).astype(np.float64)
        expected_y, expected = oracle(x, dy)
        assert error(y, expected_y) <= FLOAT32_BOUND
        for forward in forwards:
            assert error(forward(x)[0], expected_y) <= FLOAT64_BOUND
        for name, evaluate in companions.items():
            found, total = evaluate(x, dy)
            assert found.dtype == total.dtype == np.float64
            assert error(found, expected) <= FLOAT64_BOUND, name
            assert error_of_sum(total, expected) <= FLOAT64_BOUND, name
        assert error(rounded(x, dy)[0], expected) <= ROUNDED_CONSTANTS_BOUND
        found, total = run(as32(x), as32(dy))
        assert found.dtype == total.dtype == np.float32
        assert error(found, expected) <= FLOAT32_BOUND
        assert error_of_sum(total, expected) <= FLOAT32_BOUND
        if smooth:
            direction = random.standard_normal(x.shape)
            step = 1e-6 * direction
            difference = np.vdot(dy, oracle(x + step, dy)[0] - oracle(x - step, dy)[0]) / 2e-6
            scale = np.linalg.norm(expected) * np.linalg.norm(direction)
            assert abs(difference - np.vdot(expected, direction)) <= DIFFERENCES_BOUND * scale

    _check_classes(own, run, x[:1], dy, random)


def _check_classes(
    own: Callable[..., list[Array]],
    run: Callable[..., list[Array]],
    x: Array,
    dy: Array,
    random: np.random.Generator,
) -> None:
    """Check that one input with the gradients of three classes gives what three runs give."""
    dy = random.standard_normal((3, *dy.shape[1:])).astype(np.float32).astype(np.float64)
    for evaluate, cast, bound in ((own, np.asarray, 1e-13), (run, as32, 1e-6)):
        found, total = evaluate(cast(x), cast(dy))
        apart = [evaluate(cast(x), cast(dy[row : row + 1])) for row in range(3)]
        expected = np.concatenate([outputs[0] for outputs in apart])
        assert error(found, expected) <= bound
        assert error_of_sum(total, expected) <= bound
        assert error_of_sum(np.concatenate([outputs[1] for outputs in apart]), expected) <= bound


def onnx_function(model: ir.Model) -> Callable[..., list[Array]]:
    """Return a model in onnx's own evaluator, with none of the project's operators, as a function of its inputs."""
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    names = [value.name for value in model.graph.inputs]
    return lambda *inputs: evaluator.run(None, dict(zip(names, inputs, strict=True)))


def runtime(model: onnx.ModelProto | ir.Model) -> Callable[..., list[Array]]:
    """Return a float32 model in ONNX Runtime as a function of its inputs, in order."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def error(found: Array, expected: Array) -> float:
    """Return the L2 norm of the difference, relative to the expected values' unless these are all zero."""
    assert found.shape == expected.shape
    size = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found.astype(np.float64) - expected)) / (size or 1.0)


def error_of_sum(total: Array, gradient: Array) -> float:
    """Return the error of a gradient's sum over H and W, relative to the sum of magnitudes, since sums may cancel."""
    assert total.shape == gradient.shape[:2]
    size = float(np.linalg.norm(np.abs(gradient).sum(axis=(2, 3), dtype=np.float64)))
    difference = total.astype(np.float64) - gradient.sum(axis=(2, 3), dtype=np.float64)
    return float(np.linalg.norm(difference)) / (size or 1.0)


def as32(array: Array) -> NDArray[np.float32]:
    return array.astype(np.float32)


def ties(random: np.random.Generator, *levels: float) -> Callable[[tuple[int, ...]], Array]:
    """Draw inputs from a few levels, so that equal neighbours, zeros and bounds are hit often."""
    return lambda shape: random.choice(np.asarray(levels), shape)


def opsets(*op_types: str) -> list[tuple[str, int]]:
    """List (op, opset) with the first supported opset of each version that the op's rule covers."""
    return [(op_type, max(17, version)) for op_type in op_types for version in RULES[op_type].versions]
