"""The replicas of input-gradient methods: hand-computed examples and what their papers promise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from . import attribution
from .network import TorchNetwork


def linear(x: Tensor) -> Tensor:
    """Two logits of images [N, 2, 1, 2]: 3a - 4b + c + 2 and -a, for pixels a, b of channel 0 and c, d of 1."""
    a, b, c, _ = x.reshape(len(x), 4).T
    return torch.stack([3 * a - 4 * b + c + 2, -a], dim=1)


def cubic(x: Tensor) -> Tensor:
    """One logit, the sum of the cubes."""
    return (x**3).sum(dim=(1, 2, 3), keepdim=True)[:, :, 0, 0]


IMAGE = np.array([[[1.0, 2.0]], [[5.0, 7.0]]])


def test_gradient_of_a_linear_classifier_is_its_weights() -> None:
    gradient = attribution.input_gradient(linear, IMAGE, 0)
    np.testing.assert_array_equal(gradient, [[[3, -4]], [[1, 0]]])
    np.testing.assert_array_equal(attribution.gradient_map(gradient), [[3, 4]])
    np.testing.assert_array_equal(attribution.integrated_gradients_map(gradient), [[4, 4]])


def test_smooth_grad_averages_signed_gradients() -> None:
    # d x^3 = 3 x^2 at 1 + 1 and 1 - 3: 3 * 4 both; at 2 + 1 and 2 - 3: 27 and 3.
    noise = np.array([[[[1.0, 1.0]]], [[[-3.0, -3.0]]]])
    smoothed = attribution.smooth_grad(cubic, IMAGE[:1], 0, noise)
    np.testing.assert_allclose(smoothed, [[[12, 15]]])


def test_integrated_gradients_of_a_linear_classifier_are_exact_in_one_step() -> None:
    baseline = np.array([[[0.5, 0.0]], [[0.0, 0.0]]])
    made, error = attribution.integrated_gradients(linear, IMAGE, 0, 1, baseline)
    np.testing.assert_allclose(made, [[[1.5, -8]], [[5, 0]]])
    assert abs(error) < 1e-12


def test_integrated_gradients_converge_with_the_square_of_the_steps() -> None:
    # The midpoint rule of 3 t^2 over [0, 1] is 1 - 1/(4 m^2), for every cube alike.
    total = float((IMAGE**3).sum())
    for steps in (1, 2, 10):
        made, error = attribution.integrated_gradients(cubic, IMAGE, 0, steps)
        np.testing.assert_allclose(made, IMAGE**3 * (1 - 1 / (4 * steps**2)), rtol=1e-12)
        assert error == pytest.approx(-total / (4 * steps**2), rel=1e-9)


BIASED = {
    "w1": np.array([[[[2.0]]], [[[-1.0]]]]),
    "b1": np.array([-3.0, 0.5]),
    "shift": np.array([[[[1.0]], [[0.0]]]]),
    "w2": np.array([[1.0, 2.0], [0.0, 1.0]]),
    "b2": np.array([10.0, 20.0]),
    "scale": np.array([2.0, 1.0]),
    "beta": np.array([1.0, 0.0]),
    "mean": np.array([0.5, 0.0]),
    "variance": np.array([4.0, 1.0]),
    "weight": np.array([[1.0, 1.0]]),
}


def network(*nodes: onnx.NodeProto) -> TorchNetwork:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, None)],
        [helper.make_tensor_value_info("logits", TensorProto.DOUBLE, None)],
        [numpy_helper.from_array(array, name) for name, array in BIASED.items()],
    )
    return TorchNetwork(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def pooled(value: str) -> tuple[onnx.NodeProto, ...]:
    return (
        helper.make_node("GlobalAveragePool", [value], ["average"]),
        helper.make_node("Flatten", ["average"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["logits"], transB=1),
    )


def test_full_gradient_of_a_small_relu_network_by_hand() -> None:
    made = network(
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Add", ["shift", "relu"], ["sum"]),
        *pooled("sum"),
    )
    # x = 1, 4. Channel 0: 2x - 3 = -1, 5, after the ReLU 0, 5; channel 1: 0.5 - x < 0, so 0, 0.
    # logit 0 = mean(0 + 1, 5 + 1) + 2 * 0 + 10 = 13.5; a pixel's gradient is 1/2 on channel 0, where the ReLU lets it.
    input_part, parts, error = attribution.full_gradient(made, np.array([[[[1.0, 4.0]]]]), 0)
    np.testing.assert_allclose(input_part, [[[0, 4]]])
    assert [name for name, _ in parts] == ["conv", "sum", "logits"]
    np.testing.assert_allclose(parts[0][1], [[[0, -1.5]], [[0, 0]]])
    np.testing.assert_allclose(parts[1][1], [[[0.5, 0.5]], [[0, 0]]])
    np.testing.assert_allclose(parts[2][1], [10, 0])
    assert abs(error) < 1e-12
    # |parts| rescaled: 0, 1 from the input; 0, 1 in channel 0 of conv; 1, 1 in channel 0 of sum; logits has no place.
    np.testing.assert_allclose(attribution.full_grad_map(input_part, parts), [[1, 3]])


def test_full_gradient_counts_what_a_batch_norm_adds() -> None:
    statistics = ["scale", "beta", "mean", "variance"]
    made = network(
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv"]),
        helper.make_node("BatchNormalization", ["conv", *statistics], ["norm"], epsilon=0.0),
        helper.make_node("Relu", ["norm"], ["relu"]),
        *pooled("relu"),
    )
    # Channel 0 of norm: 2 (z - 0.5)/2 + 1 = z + 0.5, so its bias is 0.5, and z = -1, 5.
    image = np.array([[[[1.0, 4.0]]]])
    _, parts, error = attribution.full_gradient(made, image, 0)
    assert [name for name, _ in parts] == ["conv", "norm", "logits"]
    np.testing.assert_allclose(parts[1][1], [[[0, 0.25]], [[0, 0]]])
    assert abs(error) < 1e-12


def test_the_gap_of_full_gradient_is_the_bias_of_an_activation_that_is_not_relu() -> None:
    made = network(
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv"]),
        helper.make_node("Sigmoid", ["conv"], ["y"]),
        *pooled("y"),
    )
    _, _, error = attribution.full_gradient(made, np.array([[[[1.0, 4.0]]]]), 0)
    z = np.array([[-1.0, 5.0], [-0.5, -3.5]])
    s = 1 / (1 + np.exp(-z))
    implicit = s - s * (1 - s) * z  # f(z) - f'(z) z
    assert error == pytest.approx(-(implicit[0].mean() + 2 * implicit[1].mean()), rel=1e-12)


def test_a_constant_map_makes_a_heatmap_of_zeros() -> None:
    np.testing.assert_array_equal(attribution.heatmap(np.full((2, 3), 0.7)), np.zeros((2, 3)))
    np.testing.assert_array_equal(attribution.heatmap(np.zeros((1, 1)), (4, 5)), np.zeros((4, 5)))


def test_a_heatmap_is_upsampled_before_it_is_scaled() -> None:
    # Half-pixel centres from 2 to 4 samples: 0, 1/4, 3/4, 1.
    np.testing.assert_allclose(attribution.heatmap([[-1.0, 3.0]], (1, 4)), [[0, 0.25, 0.75, 1]])
