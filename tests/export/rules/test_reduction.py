import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
import torch

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import Array, Oracle, autograd, check_companion, opsets, runtime, ties

OPS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "ReduceSumSquare",
)
SHAPE = (3, 4, 5)
WITH_AXES_AS_INPUT = 18


AXES = ([1], [2], [3], [-1, -2], [3, 1], [1, 2], [1, 2, 3], [-3])


def first(values: Sequence[float], best: float) -> list[float]:
    place = list(values).index(best)
    return [1.0 if at == place else 0.0 for at in range(len(values))]


FORMULAS: dict[str, Callable[[Sequence[float]], tuple[float, list[float]]]] = {
    "ReduceL1": lambda v: (math.fsum(map(abs, v)), [float(np.sign(x)) for x in v]),
    "ReduceL2": lambda v: (math.hypot(*v), [x / (math.hypot(*v) or 1.0) for x in v]),
    "ReduceLogSumExp": lambda v: (
        max(v) + math.log(sum(math.exp(x - max(v)) for x in v)),
        [math.exp(x - max(v)) / sum(math.exp(other - max(v)) for other in v) for x in v],
    ),
    "ReduceMax": lambda v: (max(v), first(v, max(v))),
    "ReduceMean": lambda v: (math.fsum(v) / len(v), [1 / len(v)] * len(v)),
    "ReduceMin": lambda v: (min(v), first(v, min(v))),
    "ReduceSum": lambda v: (math.fsum(v), [1.0] * len(v)),
    "ReduceSumSquare": lambda v: (math.fsum(x * x for x in v), [2 * x for x in v]),
}
"""For each op, the reduced elements in row-major order → (y, ∂y/∂element of each)."""

TORCH = {
    "ReduceL1": lambda x, dim, keep: x.abs().sum(dim=dim, keepdim=keep),
    "ReduceL2": lambda x, dim, keep: torch.linalg.vector_norm(x, dim=dim, keepdim=keep),
    "ReduceLogSumExp": lambda x, dim, keep: torch.logsumexp(x, dim=dim, keepdim=keep),
    "ReduceMax": lambda x, dim, keep: x.amax(dim=dim, keepdim=keep),
    "ReduceMean": lambda x, dim, keep: x.mean(dim=dim, keepdim=keep),
    "ReduceMin": lambda x, dim, keep: x.amin(dim=dim, keepdim=keep),
    "ReduceSum": lambda x, dim, keep: x.sum(dim=dim, keepdim=keep),
    "ReduceSumSquare": lambda x, dim, keep: x.square().sum(dim=dim, keepdim=keep),
}


def slow_reduction(op: str, axes: Sequence[int], *, keepdims: bool = True) -> Oracle:
    """Gather the elements of each reduced set in row-major order, and apply the formula to them."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        reduced = {axis % 4 for axis in axes}
        kept = [1 if axis in reduced else size for axis, size in enumerate(x.shape)]
        y, dx = np.zeros(kept), np.zeros_like(x)
        for place in np.ndindex(*kept):
            choices = [range(n) if axis in reduced else [place[axis]] for axis, n in enumerate(x.shape)]
            places = list(itertools.product(*choices))
            y[place], slopes = FORMULAS[op]([float(x[one]) for one in places])
            for one, slope in zip(places, slopes, strict=True):
                dx[one] = slope * dy.reshape(kept)[place]
        return (y if keepdims else y.squeeze(tuple(reduced))), dx

    return oracle


def reduce_network(
    op: str,
    axes: Sequence[int] | None,
    opset: int,
    shape: tuple[int, int, int] = SHAPE,
    **attributes: object,
) -> onnx.ModelProto:
    """Reduce over axes that are an attribute before opset 18 (ReduceSum: never) and a constant input since."""
    if opset < WITH_AXES_AS_INPUT and op != "ReduceSum":
        given = {} if axes is None else {"axes": list(axes)}
        return network([node(op, "x", "y", **given, **attributes)], image=shape, opset=opset)
    constants = {} if axes is None else {"axes": np.asarray(axes, np.int64)}
    return network([node(op, " ".join(["x", *constants]), "y", **attributes)], constants, image=shape, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
@pytest.mark.parametrize("axes", [[2, 3], [1, -1]], ids=str)
def test_rule_equals_the_formula_in_every_version(
    op: str, opset: int, axes: list[int], random: np.random.Generator
) -> None:
    check_companion(reduce_network(op, axes, opset), slow_reduction(op, axes), random)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_rule_equals_autograd_over_any_axes(
    op: str, axes: list[int], keepdims: int, opset: int, random: np.random.Generator
) -> None:
    model = reduce_network(op, axes, opset, keepdims=keepdims)
    check_companion(model, autograd(lambda x: TORCH[op](x, axes, bool(keepdims))), random)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_first_of_equal_extrema_takes_the_gradient(
    op: str, axes: list[int], keepdims: int, random: np.random.Generator
) -> None:
    model = reduce_network(op, axes, 18, keepdims=keepdims)
    oracle = slow_reduction(op, axes, keepdims=bool(keepdims))
    check_companion(model, oracle, random, values=ties(random, -1, -0.0, 0.0, 2), smooth=False)


@pytest.mark.parametrize("axes", [[1, 3], [1, 4], [2, 4], [1, 2, 4], [1, 3, 4], [2, 3]], ids=str)
def test_extremum_over_any_of_five_axes(axes: list[int], random: np.random.Generator) -> None:
    nodes = [node("Reshape", "x shape", "groups"), node("ReduceMax", "groups", "y", axes=axes)]
    model = network(nodes, {"shape": np.array([0, 2, 3, 4, 5], np.int64)}, image=(6, 4, 5), opset=17)
    check_companion(model, autograd(lambda x: x.unflatten(1, (2, 3)).amax(dim=axes, keepdim=True)), random)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremum_of_a_constant_image(op: str, random: np.random.Generator) -> None:
    oracle = slow_reduction(op, [1, 2, 3])
    model = reduce_network(op, [1, 2, 3], 17)
    check_companion(model, oracle, random, values=lambda shape: np.full(shape, -1.5), smooth=False)


@pytest.mark.parametrize(("op", "place"), [("ReduceMax", 1), ("ReduceMin", 2)])
def test_extremum_in_float32(op: str, place: int) -> None:
    model = reduce_network(op, [3], 17, (1, 1, 5))
    x = np.array([1.0, 3.0, -2.0, 3.0, -2.0], np.float32).reshape(1, 1, 1, 5)
    dx, total = runtime(companion(block_of(model)))(x, np.full((1, 1, 1, 1), 2.0, np.float32))
    assert dx.ravel().tolist() == [2.0 if at == place else 0.0 for at in range(5)]
    assert total.tolist() == [[2.0]]


@pytest.mark.parametrize("op", ["ReduceL1", "ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize("axes", [[1], [2, 3]], ids=str)
def test_norms_of_vectors_with_zeros(op: str, axes: list[int], random: np.random.Generator) -> None:
    def values(shape: tuple[int, ...]) -> Array:
        x = random.choice([-1.0, -0.0, 0.0, 2.0], shape)
        x[:, 1] = 0.0
        x[:, :, 2] = 0.0
        return x

    check_companion(reduce_network(op, axes, 17), slow_reduction(op, axes), random, values=values, smooth=False)


@pytest.mark.parametrize(
    ("op", "expected"),
    [("ReduceL1", [2.0, 0.0, -2.0]), ("ReduceL2", [1.2, 0.0, -1.6]), ("ReduceSumSquare", [12.0, 0.0, -16.0])],
)
def test_norms_in_float32(op: str, expected: list[float]) -> None:
    run = runtime(companion(block_of(reduce_network(op, [3], 17, (1, 1, 3)))))
    dy = np.full((1, 1, 1, 1), 2.0, np.float32)
    dx, _ = run(np.array([3.0, 0.0, -4.0], np.float32).reshape(1, 1, 1, 3), dy)
    assert dx.ravel().tolist() == pytest.approx(expected)
    dx, total = run(np.zeros((1, 1, 1, 3), np.float32), dy)
    assert dx.ravel().tolist() == [0.0, 0.0, 0.0]
    assert total.tolist() == [[0.0]]


def test_logarithm_of_a_sum_of_large_exponentials(random: np.random.Generator) -> None:
    check_companion(
        reduce_network("ReduceLogSumExp", [1, 3], 18),
        slow_reduction("ReduceLogSumExp", [1, 3]),
        random,
        values=lambda shape: 1000.0 * random.choice([-1, 1], shape[:1] + (1,) * 3) + random.standard_normal(shape),
        smooth=False,
    )
    run = runtime(companion(block_of(reduce_network("ReduceLogSumExp", [3], 17, (1, 1, 3)))))
    dx, _ = run(np.array([-3e38, 500.0, 500.0], np.float32).reshape(1, 1, 1, 3), np.ones((1, 1, 1, 1), np.float32))
    assert dx.ravel().tolist() == pytest.approx([0.0, 0.5, 0.5], abs=1e-4)


def test_mean_of_features_after_a_mean(random: np.random.Generator) -> None:
    nodes = [node("ReduceMean", "x", "rows", axes=[3], keepdims=0), node("ReduceMean", "rows", "y", axes=[2])]
    model = network(nodes, image=SHAPE, opset=17)
    check_companion(model, autograd(lambda x: x.mean(dim=3).mean(dim=2, keepdim=True)), random)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", OPS)
def test_axis_of_size_one(op: str, keepdims: int, random: np.random.Generator) -> None:
    model = reduce_network(op, [1, 2], 17, (1, 4, 5), keepdims=keepdims)
    check_companion(model, autograd(lambda x: TORCH[op](x, [1, 2], bool(keepdims))), random)


@pytest.mark.parametrize("axes", [None, []], ids=["absent", "empty"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", OPS)
def test_no_axes_with_noop_reduces_nothing(
    op: str, keepdims: int, axes: list[int] | None, random: np.random.Generator
) -> None:
    """Each element is a set of its own: ReduceSum is the identity, and ReduceL1 still takes the absolute value."""
    opset = 17 if op == "ReduceSum" else 18
    model = reduce_network(op, axes, opset, noop_with_empty_axes=1, keepdims=keepdims)
    check_companion(model, slow_reduction(op, []), random)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("axes", "opset"), [(None, 17), ([0, 2], 17), ([-4], 17), (None, 18), ([], 18), ([0], 18)], ids=str
)
def test_reduction_over_the_batch_is_refused(op: str, axes: list[int] | None, opset: int) -> None:
    message = rf"^{op} node 'node_y': reduces over axis 0, the batch; expected other axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(reduce_network(op, axes, opset)))


@pytest.mark.parametrize("op", OPS)
def test_axes_from_the_image_are_refused(op: str) -> None:
    nodes = [
        node("ReduceMean", "x one", "mean", keepdims=0),
        node("Cast", "mean", "axes", to=onnx.TensorProto.INT64),
        node(op, "fixed axes", "y"),
    ]
    constants = {"fixed": np.ones((1, 3, 8, 8), np.float32), "one": np.array([0, 1, 2], np.int64)}
    message = rf"^{op} node 'node_y': its axes are computed from the image; expected constant axes$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, opset=18)))
    nodes[-1] = node(op, "x axes", "y")
    message = rf"^{op} node 'node_y': input 1 \('axes'\) is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants, opset=18)))
