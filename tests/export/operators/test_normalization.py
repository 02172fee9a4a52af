import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.export.evaluate import function, in_float64
from tests.export.networks import BATCH, image_input, imported, network, node
from tests.export.rules.gradients import runtime

IMAGE = (6, 3, 4)


def norm_network(op_type: str, opset: int = 17, channels: int = 0, **attributes: object) -> onnx.ModelProto:
    """A normalisation of images [6, 3, 4]; with a scale and a bias for so many channels or groups."""
    values = np.arange(1.0, channels + 1)
    constants = {"scale": values, "bias": -0.5 * values} if channels else {}
    model = network(
        [node(op_type, " ".join(["x", *constants]), "y", **attributes)], constants, image=IMAGE, opset=opset
    )
    model.graph.output[0].CopyFrom(image_input([BATCH, *IMAGE], "y"))  # onnx infers none for GroupNormalization
    return model


def evaluate(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = function(in_float64(imported(model)))(x)
    assert y.dtype == np.float64
    return y


NORMALISATIONS = {
    "group, by group": norm_network("GroupNormalization", 18, 3, num_groups=3, epsilon=0.1),
    "group, by channel": norm_network("GroupNormalization", 21, 6, num_groups=3),
    "LRN": norm_network("LRN", size=3, alpha=0.5),
    "wide LRN": norm_network("LRN", size=13, alpha=0.5, beta=1.5, bias=2.0),
    "LRN of one channel": norm_network("LRN", size=1),
    "1-norm": norm_network("LpNormalization", axis=1, p=1),
    "2-norm": norm_network("LpNormalization", 22, axis=-2),
    "norm by default": norm_network("LpNormalization"),
    "mean and variance": norm_network("MeanVarianceNormalization", axes=[2, 3]),
    "mean and variance of channels": norm_network("MeanVarianceNormalization", axes=[-3]),
    "mean and variance by default": norm_network("MeanVarianceNormalization"),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("model", NORMALISATIONS.values(), ids=NORMALISATIONS)
def test_normalisation_equals_onnx_runtime(model: onnx.ModelProto, rows: int, random: np.random.Generator) -> None:
    x = random.standard_normal((rows, *IMAGE)).astype(np.float32)
    np.testing.assert_allclose(evaluate(model, x.astype(np.float64)), runtime(model)(x)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_group_norm_equals_torch(rows: int, random: np.random.Generator) -> None:
    x = random.standard_normal((rows, *IMAGE))
    values = torch.arange(1.0, 7.0).double()
    expected = functional.group_norm(torch.tensor(x), 3, values, -0.5 * values, float(np.float32(0.1)))
    found = evaluate(norm_network("GroupNormalization", 21, 6, num_groups=3, epsilon=0.1), x)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 11, 12])
def test_lrn_equals_torch(size: int, random: np.random.Generator) -> None:
    x = random.standard_normal((2, *IMAGE))
    alpha, beta = (float(np.float32(value)) for value in (0.9, 0.6))
    # Torch has the larger half of an even window before the channel, ONNX after it.
    expected = functional.local_response_norm(torch.tensor(x).flip(1), size, alpha, beta, 2.0).flip(1)
    found = evaluate(norm_network("LRN", size=size, alpha=0.9, beta=0.6, bias=2.0), x)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [1, -1])
def test_lp_norm_equals_torch(axis: int, p: int, random: np.random.Generator) -> None:
    x = random.standard_normal((2, *IMAGE))
    expected = functional.normalize(torch.tensor(x), p, axis, eps=0.0)
    np.testing.assert_allclose(evaluate(norm_network("LpNormalization", axis=axis, p=p), x), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_norm_of_zeros_is_zero(p: int) -> None:
    assert not evaluate(norm_network("LpNormalization", p=p), np.zeros((1, *IMAGE))).any()


def test_mean_variance_norm_adds_to_the_deviation() -> None:
    x = np.tile([1e-9, -1e-9, 1e-9, -1e-9], (1, 6, 3, 1))
    found = evaluate(norm_network("MeanVarianceNormalization", axes=[3]), x)
    np.testing.assert_allclose(found, x / 2e-9, rtol=1e-12)


def test_mean_variance_norm_of_equal_elements_is_zero() -> None:
    assert not evaluate(norm_network("MeanVarianceNormalization", axes=[2, 3]), np.full((1, *IMAGE), 0.25)).any()
