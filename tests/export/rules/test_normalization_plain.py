"""Normalisations that have no scale: MeanVarianceNormalization, LpNormalization, LRN."""

import numpy as np
import pytest

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import block_of, network, node
from tests.export.rules.gradients import (
    as32,
    autograd,
    check_companion,
    error,
    onnx_function,
    runtime,
    ties,
)
from tests.export.rules.normalizations import (
    IMAGE,
    norm_network,
    slow_lp,
    slow_lrn,
    slow_normalise,
    torch_lrn,
    torch_mean_variance,
)


@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3), (1,), (3, 2), (-1, 1), (-2,)], ids=str)
def test_mean_variance_norm(axes: tuple[int, ...], random: np.random.Generator) -> None:
    model = norm_network("MeanVarianceNormalization", {}, axes=axes)
    kept = [axis for axis in range(4) if axis not in [axis % 4 for axis in axes]]
    slow = slow_normalise(lambda place: tuple(place[axis] for axis in kept), added=1e-9)
    check_companion(model, slow, random, in_onnx_reference=False)


def test_mean_variance_norm_of_small_differences(random: np.random.Generator) -> None:
    x, dy = random.standard_normal((2, 3, *IMAGE))
    gradient = function(companion(block_of(norm_network("MeanVarianceNormalization", {}, axes=[2, 3]), float64=True)))
    for size in (1e-8, 1e-9, 1e-10, 1e-12):
        expected = torch_mean_variance((2, 3))(size * x, dy)[1]
        assert error(gradient(size * x, dy)[0], expected) <= 1e-6


def test_mean_variance_norm_of_equal_elements_has_its_true_gradient(random: np.random.Generator) -> None:
    model = norm_network("MeanVarianceNormalization", {}, axes=[2, 3])
    x, dy = np.full((1, *IMAGE), 0.25), random.standard_normal((1, *IMAGE))
    expected = (dy - dy.mean(axis=(2, 3), keepdims=True)) / 1e-9
    assert error(function(companion(block_of(model, float64=True)))(x, dy)[0], expected) <= 1e-12
    assert error(runtime(companion(block_of(model)))(as32(x), as32(dy))[0], expected) <= 1e-6
    step = 1e-16 * random.standard_normal(x.shape)  # far below the 1e-9 that is added to σ
    forward = function(block_of(model, float64=True).model)
    np.testing.assert_allclose(np.vdot(dy, forward(step)[0]), np.vdot(expected, step), rtol=1e-6)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [1, 2, 3, -1, -3])
def test_lp_norm(axis: int, p: int, random: np.random.Generator) -> None:
    model = norm_network("LpNormalization", {}, axis=axis, p=p)
    check_companion(model, slow_lp(p, axis % 4), random, in_onnx_reference=p == 2)


@pytest.mark.parametrize("opset", [17, 22])
def test_lp_norm_is_by_default_the_2_norm_along_the_last_axis(opset: int, random: np.random.Generator) -> None:
    check_companion(norm_network("LpNormalization", {}, opset), slow_lp(2, 3), random)


def test_lp_norm_by_the_1_norm_equals_autograd_in_every_version(random: np.random.Generator) -> None:
    for opset in (17, 22):
        model = norm_network("LpNormalization", {}, opset, axis=1, p=1)
        expected = autograd(lambda x: x / x.abs().sum(dim=1, keepdim=True))
        check_companion(model, expected, random, in_onnx_reference=False)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_norm_of_zeros_has_gradient_zero(p: int, random: np.random.Generator) -> None:
    model = norm_network("LpNormalization", {}, image=(2, 3, 5), axis=1, p=p)
    values = ties(random, 0, 0, 0, -1, 2)
    check_companion(model, slow_lp(p, 1), random, values=values, smooth=False, in_onnx_reference=False)
    zeros = np.zeros((1, 2, 3, 5), np.float32)
    dx, total = runtime(companion(block_of(model)))(zeros, np.ones_like(zeros))
    assert not dx.any()
    assert not total.any()


@pytest.mark.parametrize("p", [1, 2])
def test_lp_norm_of_tiny_and_huge_vectors(p: int, random: np.random.Generator) -> None:
    model = norm_network("LpNormalization", {}, axis=1, p=p)
    for size in (1e-12, 1e12):
        expected = slow_lp(p, 1)
        values = lambda shape, size=size: size * random.standard_normal(shape)  # noqa: E731
        check_companion(model, expected, random, values=values, smooth=False, in_onnx_reference=False)


def test_lp_norm_by_another_norm_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"^LpNormalization node 'node_y': has p = 3; expected 1 or 2$"):
        companion(block_of(norm_network("LpNormalization", {}, p=3)))


LRNS = {
    "3": {"size": 3, "alpha": 0.5},
    "5": {"size": 5, "alpha": 0.9},
    "one channel": {"size": 1, "alpha": 0.9},
    "wider than the image": {"size": 15, "alpha": 2.0},
    "just as wide": {"size": 7, "alpha": 2.0},
    "beta": {"size": 3, "alpha": 0.5, "beta": 1.5},
    "small beta": {"size": 3, "alpha": 0.5, "beta": 0.01},
    "bias": {"size": 3, "alpha": 0.5, "bias": 2.5},
    "AlexNet's": {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0},
}


@pytest.mark.parametrize("attributes", LRNS.values(), ids=LRNS)
def test_lrn(attributes: dict[str, float], random: np.random.Generator) -> None:
    model = norm_network("LRN", {}, image=(7, 3, 2), **attributes)
    for expected in (slow_lrn(**attributes), torch_lrn(**attributes)):
        check_companion(model, expected, random, in_onnx_reference=False)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_lrn_of_an_even_window(size: int, random: np.random.Generator) -> None:
    """ONNX Runtime has no such LRN; its gradient runs there."""
    model = norm_network("LRN", {}, image=(7, 3, 2), size=size, alpha=0.5)
    block64 = block_of(model, float64=True)
    gradient64 = companion(block64)
    x, dy = random.standard_normal((2, 3, 7, 3, 2))
    for expected_y, expected in (slow_lrn(size, 0.5)(x, dy), torch_lrn(size, 0.5)(x, dy)):
        assert error(function(block64.model)(x)[0], expected_y) <= 1e-12
        assert error(function(gradient64)(x, dy)[0], expected) <= 1e-12
        assert error(onnx_function(gradient64)(x, dy)[0], expected) <= 1e-12
        assert error(runtime(companion(block_of(model)))(as32(x), as32(dy))[0], expected) <= 1e-5


def test_lrn_of_zeros(random: np.random.Generator) -> None:
    model = norm_network("LRN", {}, size=3, alpha=0.5)
    values = ties(random, 0, 0, 1, -3)
    check_companion(model, slow_lrn(3, 0.5), random, values=values, smooth=False, in_onnx_reference=False)


def test_lrn_of_large_values(random: np.random.Generator) -> None:
    """Not with `check_companion`: ONNX Runtime's forward pass, a running sum, loses digits there."""
    model = norm_network("LRN", {}, size=3, alpha=0.5)
    x, dy = ties(random, 0, 1, -1e6, 1e12)((1, *IMAGE)), random.standard_normal((1, *IMAGE))
    found = runtime(companion(block_of(model)))(as32(x), as32(dy))[0]
    assert error(found, slow_lrn(3, 0.5)(as32(x).astype(np.float64), as32(dy).astype(np.float64))[1]) <= 1e-5


def test_lrn_leaves_its_forward_pass_out() -> None:
    gradient = companion(block_of(norm_network("LRN", {}, size=5)))
    ops = ["Mul", "Conv", "Log", "Mul", "Exp", "Mul", "Mul", "Div", "Conv", "Mul", "Sub", "ReduceSum"]
    assert [entry.op_type for entry in gradient.graph] == ops


def test_lrn_of_rows_is_refused() -> None:
    nodes = [node("Reshape", "x shape", "rows"), node("LRN", "rows", "y", size=3)]
    model = network(nodes, {"shape": np.array([0, 3, -1], np.int64)}, image=(3, 4, 5))
    message = r"^LRN node 'node_y': has 1 spatial axes; expected 2, since feature maps are images$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))
