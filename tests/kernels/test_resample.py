import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from engine.kernels.resample import axis, upsample
from tests.reference import method

# (h, w) → (H, W): odd and even, H ≠ W, one row or column, whole and broken factors, equal size
SIZES = [
    ((2, 2), (5, 5)),
    ((1, 1), (3, 4)),
    ((1, 5), (6, 11)),
    ((5, 1), (7, 2)),
    ((7, 7), (224, 224)),
    ((7, 5), (33, 48)),
    ((13, 9), (26, 10)),
    ((6, 4), (6, 4)),
    ((3, 8), (3, 9)),
    ((55, 27), (56, 64)),
]


def resize_by_onnx(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The operator of the specification, in float64."""
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"
    )
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 1, *image.shape])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 1, *size])],
        [helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, *size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": image[None, None]})[0][0, 0])


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_upsample_equals_torch(random: np.random.Generator, source: tuple[int, int], size: tuple[int, int]) -> None:
    image = random.normal(size=source)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], size=size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(upsample(image, size), expected[0, 0].numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("source", "size"), [pair for pair in SIZES if np.prod(pair[1]) < 3000])
def test_upsample_equals_onnx_resize(
    random: np.random.Generator, source: tuple[int, int], size: tuple[int, int]
) -> None:
    image = random.normal(size=source)
    np.testing.assert_allclose(upsample(image, size), resize_by_onnx(image, size), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_upsample_equals_the_formula(
    random: np.random.Generator, source: tuple[int, int], size: tuple[int, int]
) -> None:
    image = random.normal(size=source)
    np.testing.assert_allclose(upsample(image, size), method.upsample(image[None], *size)[0], rtol=0, atol=1e-13)


def test_two_samples_to_four_by_hand() -> None:
    # Output centres 0.5 … 3.5 lie at −0.25, 0.25, 0.75 and 1.25 of the input's samples; beyond the border it repeats.
    expected = [0.0, 0.25, 0.75, 1.0]
    np.testing.assert_array_equal(upsample(np.array([[0.0, 1.0]]), (1, 4))[0], expected)
    np.testing.assert_array_equal(upsample(np.array([[0.0], [1.0]]), (4, 1))[:, 0], expected)
    np.testing.assert_array_equal(upsample(np.array([[0.0, 1.0], [1.0, 0.0]]), (4, 4))[1], [0.25, 0.375, 0.625, 0.75])


def test_equal_size_changes_nothing(random: np.random.Generator) -> None:
    image = random.normal(size=(6, 11))
    np.testing.assert_array_equal(upsample(image, (6, 11)), image)


def test_one_sample_fills_everything() -> None:
    np.testing.assert_array_equal(upsample(np.array([[-2.5]]), (3, 4)), np.full((3, 4), -2.5))


@pytest.mark.parametrize(("source", "size"), [(1, 1), (1, 7), (2, 5), (7, 224), (9, 9), (13, 26), (27, 64), (112, 224)])
def test_axis_equals_the_interpolation_matrix(source: int, size: int) -> None:
    matrix = method.interpolation_matrix(source, size)
    found = axis(source, size)
    assert found.low.dtype == found.high.dtype == np.int64
    assert found.weight.dtype == found.total.dtype == np.float64
    rebuilt = np.zeros((size, source))
    np.add.at(rebuilt, (np.arange(size), found.low), 1 - found.weight)
    np.add.at(rebuilt, (np.arange(size), found.high), found.weight)
    np.testing.assert_allclose(rebuilt, matrix, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.total, matrix.sum(axis=0), rtol=1e-13)
    assert found.total.sum() == pytest.approx(size, rel=1e-13)
    assert ((found.high == found.low + 1) | (found.high == source - 1)).all()
    assert ((found.weight >= 0) & (found.weight < 1)).all()


def test_an_axis_is_made_once_and_cannot_be_changed() -> None:
    found = axis(7, 31)
    assert axis(7, 31) is found
    for array in (found.low, found.high, found.weight, found.total):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
