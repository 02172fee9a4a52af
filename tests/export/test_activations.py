import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from engine.errors import ModelError
from engine.export.activations import best_range, observe, sample_windows
from engine.export.windows import Windows, windows_of
from tests.export.networks import network, node, weight


def imported(model: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    """The rule of ONNX's QuantizeLinear and DequantizeLinear for uint8, value by value."""
    step = (high - low) / 255
    zero = np.clip(np.rint(-low / step), 0, 255)
    rounded = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    return float(((values - rounded) ** 2).mean())


def test_the_range_leaves_out_far_values_when_that_pays(random: np.random.Generator) -> None:
    values = np.concatenate([random.standard_normal(100_000), [-60.0, 90.0]])
    counts, _ = np.histogram(values, 2048, (-60.0, 90.0))
    low, high = best_range(counts.astype(np.float64), -60.0, 90.0)
    assert -60 < low < -4
    assert 4 < high < 90
    assert squared_error(values, low, high) < 0.8 * squared_error(values, -60.0, 90.0)
    grid = [(a, b) for a in -60 * np.linspace(1, 0.1, 10) for b in 90 * np.linspace(1, 0.1, 10)]
    assert squared_error(values, low, high) <= 1.02 * min(squared_error(values, *ends) for ends in grid)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 6.0, (0.0, 6.0)), (2.0, 3.0, (0.0, 3.0)), (-3.0, -2.0, (-3.0, 0.0)), (0.0, 0.0, (0.0, 0.0))],
)
def test_the_range_holds_zero(low: float, high: float, expected: tuple[float, float]) -> None:
    assert best_range(np.ones(2048), low, high) == pytest.approx(expected, rel=1e-2)


def test_windows_are_in_the_order_of_the_weights(random: np.random.Generator) -> None:
    """A convolution by hand at every drawn place is one of torch's outputs: strides, dilation, pads and groups."""
    x, w = random.standard_normal((2, 4, 9, 8)).astype(np.float32), random.standard_normal((6, 2, 3, 2))
    windows = Windows(
        input=(9, 8), output=(4, 9), kernel=(3, 2), stride=(2, 1), dilation=(2, 1), begin=(1, 1), end=(2, 1)
    )
    drawn = sample_windows(x, windows, 2, random)
    assert drawn.shape == (2, 2 * 64, 12)
    padded = torch.nn.functional.pad(torch.tensor(x, dtype=torch.float64), (1, 1, 1, 2))
    expected = torch.nn.functional.conv2d(padded, torch.tensor(w), stride=(2, 1), dilation=(2, 1), groups=2).numpy()
    found = np.einsum("gnk,gok->gno", drawn, w.reshape(2, 3, 12))
    for image in range(2):
        outputs = expected[image].reshape(2, 3, -1)
        for group in range(2):
            rows = found[group, image * 64 : (image + 1) * 64]
            distance = np.abs(rows[:, None] - outputs[group].T[None]).max(axis=2)
            assert distance.min(axis=1).max() < 1e-6
            assert len(set(distance.argmin(axis=1))) > 20


def test_only_windows_that_the_convolution_computes_are_drawn(random: np.random.Generator) -> None:
    """Of 4 x 4 padded pixels the 3 x 3 at the top left: a step of 2 leaves no room for another."""
    conv = node("Conv", "x w", "y", strides=[2, 2], pads=[1, 1, 1, 1])
    (entry,) = imported(network([conv], {"w": weight(random, 4, 3, 3, 3)}, image=(3, 2, 2))).graph
    x = random.standard_normal((2, 3, 2, 2)).astype(np.float32)
    drawn = sample_windows(x, windows_of(entry, (3, 3)), 1, random)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0))).reshape(2, 1, 27)
    np.testing.assert_array_equal(drawn.reshape(2, 64, 27), np.broadcast_to(padded, (2, 64, 27)))


def test_the_range_is_that_of_all_columns(random: np.random.Generator) -> None:
    """Every seventh value of maps that are 280 wide lies in the same columns: here in zeros, which any range holds."""
    model = imported(network([node("Relu", "x", "y")], image=(3, 280, 280)))
    images = random.standard_normal((4, 3, 280, 280)).astype(np.float32)
    images[..., ::7], images[0, 0, 0, 1] = 0.0, 60.0  # the far value is not among those that are counted
    ranges, _ = observe(model, [], ["x", "y"], images)
    images[0, 0, 0, 1] = 0.0
    grid = [(low, high) for low in np.linspace(-4, -2, 9) for high in np.linspace(2, 60, 59)]
    assert squared_error(images, *ranges["x"]) < 4 * min(squared_error(images, *ends) for ends in grid)


def test_moments_and_ranges_of_a_network(random: np.random.Generator) -> None:
    model = imported(
        network(
            [node("Relu", "x", "r"), node("Conv", "r w", "y", pads=[1, 1, 1, 1])], {"w": weight(random, 4, 3, 3, 3)}
        )
    )
    conv = next(entry for entry in model.graph if entry.op_type == "Conv")
    images = random.standard_normal((5, 3, 8, 8)).astype(np.float32)
    ranges, moments = observe(model, [conv], ["r", "x"], images)
    assert ranges["r"] == pytest.approx((0.0, images.max()), rel=0.3)
    assert ranges["x"][0] < 0 < ranges["x"][1]
    found = moments["y"]
    assert found.count == 5 * 64
    positive = np.maximum(images.astype(np.float64), 0)
    centre = found.mean.reshape(3, 3, 3)[:, 1, 1]  # the middle tap sees every pixel alike
    np.testing.assert_allclose(centre, positive.mean(axis=(0, 2, 3)), atol=0.1)
    assert found.covariance is not None
    variances = np.diagonal(found.covariance[0]).reshape(3, 3, 3)[:, 1, 1]
    np.testing.assert_allclose(variances, positive.var(axis=(0, 2, 3)), rtol=0.3)


def test_the_covariance_of_a_large_fan_in_is_not_kept(random: np.random.Generator) -> None:
    model = imported(network([node("Conv", "x w", "y")], {"w": weight(random, 1, 577, 2, 2)}, image=(577, 3, 3)))
    conv = next(iter(model.graph))
    _, moments = observe(model, [conv], ["x", "y"], random.standard_normal((1, 577, 3, 3)).astype(np.float32))
    assert moments["y"].covariance is None
    assert moments["y"].mean.shape == (1, 2308)


def test_an_activation_that_is_not_finite() -> None:
    model = imported(network([node("Log", "x", "l"), node("Exp", "l", "y")]))
    text = (
        "tensor 'l' holds NaN or infinity at a photo to calibrate on; expected finite activations: leave int8 out, or "
        "name other photos"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(text)}$"):
        observe(model, [], ["l"], np.zeros((1, 3, 8, 8), np.float32))
