from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import autograd, check_companion, opsets

OPS = ("ReduceMean",)
SHAPE = (3, 4, 5)
WITH_AXES_AS_INPUT = 18


def reduce_network(op: str, axes: Sequence[int] | None, opset: int, **attributes: object) -> onnx.ModelProto:
    """Reduce over axes that are an attribute before opset 18 and a constant input since."""
    if opset < WITH_AXES_AS_INPUT:
        given = {} if axes is None else {"axes": list(axes)}
        return network([node(op, "x", "y", **given, **attributes)], image=SHAPE, opset=opset)
    constants = {} if axes is None else {"axes": np.asarray(axes, np.int64)}
    return network([node(op, " ".join(["x", *constants]), "y", **attributes)], constants, image=SHAPE, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    model = reduce_network(op, [2, 3], opset)
    check_companion(model, autograd(lambda x: x.mean(dim=(2, 3), keepdim=True)), random)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[1], [2], [3], [-1, -2], [3, 1], [1, 2, 3], [-3]], ids=str)
def test_reduce_mean(axes: list[int], keepdims: int, opset: int, random: np.random.Generator) -> None:
    model = reduce_network("ReduceMean", axes, opset, keepdims=keepdims)
    check_companion(
        model,
        autograd(lambda x: x.mean(dim=axes, keepdim=bool(keepdims))),
        random,
        in_onnx_reference=len(axes) > 1,
    )


def test_mean_of_features_after_a_mean(random: np.random.Generator) -> None:
    nodes = [node("ReduceMean", "x", "rows", axes=[3], keepdims=0), node("ReduceMean", "rows", "y", axes=[2])]
    model = network(nodes, image=SHAPE)
    check_companion(model, autograd(lambda x: x.mean(dim=3).mean(dim=2, keepdim=True)), random)


def test_axis_of_size_one(random: np.random.Generator) -> None:
    model = network([node("ReduceMean", "x", "y", axes=[1, 2], keepdims=0)], image=(1, 4, 5))
    check_companion(model, autograd(lambda x: x.mean(dim=(1, 2))), random)


@pytest.mark.parametrize("axes", [None, []], ids=["absent", "empty"])
def test_no_axes_with_noop_is_the_identity(axes: list[int] | None, random: np.random.Generator) -> None:
    model = reduce_network("ReduceMean", axes, 18, noop_with_empty_axes=1)
    check_companion(model, autograd(lambda x: 1.0 * x), random)


@pytest.mark.parametrize(
    ("axes", "opset"), [(None, 17), ([0, 2], 17), ([-4], 17), (None, 18), ([], 18), ([0], 18)], ids=str
)
def test_reduction_over_the_batch_is_refused(axes: list[int] | None, opset: int) -> None:
    message = r"^ReduceMean node 'node_y': reduces over axis 0, the batch; expected other axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(reduce_network("ReduceMean", axes, opset)))


def test_axes_from_the_image_are_refused() -> None:
    nodes = [
        node("ReduceMean", "x one", "mean", keepdims=0),
        node("Cast", "mean", "axes", to=onnx.TensorProto.INT64),
        node("ReduceMean", "fixed axes", "y"),
    ]
    constants = {"fixed": np.ones((1, 3, 8, 8), np.float32), "one": np.array([0, 1, 2], np.int64)}
    message = r"^ReduceMean node 'node_y': its axes are computed from the image; expected constant axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, opset=18)))
    nodes[-1] = node("ReduceMean", "x axes", "y")
    message = r"^ReduceMean node 'node_y': input 1 \('axes'\) is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, opset=18)))
