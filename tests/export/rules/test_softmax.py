import math

import numpy as np
import onnx
import pytest
import torch

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets, ties

OPS = ("LogSoftmax", "Softmax")
SHAPE = (3, 5, 4)


def softmax_network(op: str, axis: int | None, opset: int = 17, shape: tuple[int, int, int] = SHAPE) -> onnx.ModelProto:
    attributes = {} if axis is None else {"axis": axis}
    return network([node(op, "x", "y", **attributes)], image=shape, opset=opset)


def after_tanh(op: str, axis: int | None) -> onnx.ModelProto:
    """After a Tanh the gradient's sum over H and W is not 0, as Softmax's own along these axes is."""
    attributes = {} if axis is None else {"axis": axis}
    return network([node("Tanh", "x", "tanh"), node(op, "tanh", "y", **attributes)], image=SHAPE)


def softmax_formula(op: str, axis: int) -> Oracle:
    """Line by line along the axis: dx_i = Σ_j dy_j·∂y_j/∂x_i."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        lines = [np.moveaxis(array, axis, -1) for array in (x, dy, y, dx)]
        for place in np.ndindex(*lines[0].shape[:-1]):
            values, gradient, result, wanted = (line[place] for line in lines)
            powers = [math.exp(value - max(values)) for value in values]
            for i, power in enumerate(powers):
                share = power / sum(powers)
                result[i] = share if op == "Softmax" else values[i] - max(values) - math.log(sum(powers))
                for j, other in enumerate(powers):
                    outer = other / sum(powers) if op == "Softmax" else 1.0
                    wanted[i] += gradient[j] * outer * (float(i == j) - share)
        return y, dx

    return oracle


SOFTMAX = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}


@pytest.mark.parametrize("axis", [None, 1, 2, 3, -1, -2, -3])
@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax_along_any_axis(op: str, axis: int | None, random: np.random.Generator) -> None:
    chosen = -1 if axis is None else axis

    def slow(x: Array, dy: Array) -> tuple[Array, Array]:
        y, gradient = softmax_formula(op, chosen)(np.tanh(x), dy)
        return y, gradient * (1 - np.tanh(x) ** 2)

    check_companion(after_tanh(op, axis), slow, random)
    check_companion(after_tanh(op, axis), autograd(lambda x: SOFTMAX[op](torch.tanh(x), chosen)), random)


@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax_along_channels(op: str, random: np.random.Generator) -> None:
    check_companion(softmax_network(op, 1), softmax_formula(op, 1), random)
    check_companion(softmax_network(op, -3), autograd(lambda x: SOFTMAX[op](x, 1)), random)


@pytest.mark.parametrize(("op", "opset"), opsets(*SOFTMAX))
def test_softmax_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    check_companion(softmax_network(op, 1, opset), autograd(lambda x: SOFTMAX[op](x, 1)), random)


@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax_of_one_class_has_gradient_zero(op: str, random: np.random.Generator) -> None:
    check_companion(softmax_network(op, 1, shape=(1, 5, 4)), lambda x, dy: (0 * x + (op == "Softmax"), 0 * dy), random)


@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax_of_ties_and_large_logits(op: str, random: np.random.Generator) -> None:
    for levels in ((-1, 0, 1), (-1e4, 0, 1e4), (-300, 500, 501)):
        check_companion(
            softmax_network(op, 1),
            softmax_formula(op, 1),
            random,
            values=ties(random, *levels),
            smooth=False,
            in_onnx_reference=op == "Softmax" or levels[-1] == 1,  # onnx's LogSoftmax underflows to log 0
        )


@pytest.mark.parametrize("axis", [0, -4])
@pytest.mark.parametrize("op", SOFTMAX)
def test_softmax_along_the_batch_is_refused(op: str, axis: int) -> None:
    message = rf"^{op} node 'node_y': normalises along axis 0, the batch; expected another axis$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(softmax_network(op, axis)))
