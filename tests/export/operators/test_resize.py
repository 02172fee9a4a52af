import itertools

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.evaluate import function, in_float64
from tests.export.networks import imported, network, node
from tests.export.rules.gradients import onnx_function, runtime

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
KERNELS = [
    *(
        {"mode": "nearest", "nearest_mode": mode}
        for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    {"mode": "linear"},
    {"mode": "cubic"},
    {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
    {"mode": "linear", "antialias": 1},
    {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    {"mode": "cubic", "antialias": 1},
    {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
]
SIZES = [
    ((7, 6), (14, 9)),
    ((7, 9), (5, 13)),
    ((14, 12), (4, 5)),
    ((30, 23), (35, 14)),
    ((5, 6), (1, 2)),
    ((1, 4), (3, 4)),
]


def resize_network(
    before: tuple[int, int], constants: dict[str, list[float]], opset: int = 19, **attributes: object
) -> onnx.ModelProto:
    """Resize images [2, *before] by one of the constants `scales` and `sizes`."""
    arrays = {
        name: np.array(values, np.float32 if name == "scales" else np.int64) for name, values in constants.items()
    }
    inputs = "x - scales" if "scales" in constants else "x - - sizes"
    return network([node("Resize", inputs, "y", **attributes)], arrays, image=(2, *before), opset=opset)


def evaluate(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = function(in_float64(imported(model)))(x)
    assert y.dtype == np.float64
    return y


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_resize_equals_onnx_runtime(kernel: dict[str, object], coordinates: str, random: np.random.Generator) -> None:
    for before, after in SIZES:
        model = resize_network(
            before, {"sizes": [*after]}, axes=[2, 3], coordinate_transformation_mode=coordinates, **kernel
        )
        x = random.standard_normal((2, 2, *before)).astype(np.float32)
        np.testing.assert_allclose(
            evaluate(model, x.astype(np.float64)),
            runtime(model)(x)[0],
            rtol=1e-4,
            atol=2e-5,
            err_msg=f"{before} {after}",
        )


@pytest.mark.parametrize("coordinates", [mode for mode in COORDINATES if mode != "pytorch_half_pixel"])
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel["mode"] == "linear"], ids=str)
def test_resize_equals_onnx_where_its_coefficients_are_float64(
    kernel: dict[str, object], coordinates: str, random: np.random.Generator
) -> None:
    for before, after in SIZES:
        model = resize_network(before, {"sizes": [1, 2, *after]}, coordinate_transformation_mode=coordinates, **kernel)
        x = random.standard_normal((1, 2, *before))
        expected = onnx_function(in_float64(imported(model)))(x)[0]
        np.testing.assert_allclose(evaluate(model, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel["mode"] == "cubic"], ids=str)
def test_cubic_resize_is_close_to_onnx(kernel: dict[str, object], random: np.random.Generator) -> None:
    for before, after in SIZES:
        model = resize_network(before, {"sizes": [1, 2, *after]}, **kernel)
        x = random.standard_normal((1, 2, *before))
        expected = onnx_function(in_float64(imported(model)))(x)[0]
        np.testing.assert_allclose(evaluate(model, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "coordinates", "mode", "options"),
    [
        ({"mode": "nearest", "nearest_mode": "floor"}, "asymmetric", "nearest", {}),
        ({"mode": "nearest", "nearest_mode": "round_prefer_ceil"}, "half_pixel", "nearest-exact", {}),
        ({"mode": "linear"}, "half_pixel", "bilinear", {}),
        ({"mode": "linear"}, "align_corners", "bilinear", {"align_corners": True}),
        ({"mode": "cubic"}, "half_pixel", "bicubic", {}),
        ({"mode": "cubic"}, "align_corners", "bicubic", {"align_corners": True}),
        ({"mode": "linear", "antialias": 1, "exclude_outside": 1}, "half_pixel", "bilinear", {"antialias": True}),
        (KERNELS[-1], "half_pixel", "bicubic", {"antialias": True}),
    ],
    ids=str,
)
def test_resize_equals_torch(kernel, coordinates: str, mode: str, options, random: np.random.Generator) -> None:
    for before, after in itertools.product([(7, 6), (9, 10)], [(14, 12), (5, 11), (3, 2)]):
        model = resize_network(
            before, {"sizes": [*after]}, axes=[2, 3], coordinate_transformation_mode=coordinates, **kernel
        )
        x = random.standard_normal((3, 2, *before))
        expected = functional.interpolate(torch.tensor(x), size=after, mode=mode, **options).numpy()
        np.testing.assert_allclose(evaluate(model, x), expected, rtol=1e-11, atol=1e-11, err_msg=f"{before} {after}")


@pytest.mark.parametrize(
    ("scales", "axes"),
    [((1, 1, 1.5, 0.4), None), ((1.3, 2.7), (2, 3)), ((1.3, 0.6), (-1, 2)), ((3,), (3,)), ((1, 1.5), (1, 2))],
    ids=str,
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_by_scales_equals_onnx_runtime(mode: str, scales, axes, random: np.random.Generator) -> None:
    attributes = {} if axes is None else {"axes": axes}
    model = resize_network((7, 6), {"scales": scales}, mode=mode, **attributes)
    x = random.standard_normal((2, 2, 7, 6)).astype(np.float32)
    np.testing.assert_allclose(evaluate(model, x.astype(np.float64)), runtime(model)(x)[0], rtol=1e-4, atol=1e-5)


def test_scales_that_leave_the_sizes_resample_all_the_same(random: np.random.Generator) -> None:
    model = resize_network((7, 6), {"scales": [1, 1, 1.125, 1.125]}, mode="linear")
    x = random.standard_normal((2, 2, 7, 6))
    y = evaluate(model, x)
    assert np.abs(y - x).max() > 0.1
    np.testing.assert_allclose(y, onnx_function(in_float64(imported(model)))(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("sizes", [(10, 7), (3, 9), (13, 13)])
def test_aspect_ratio_equals_onnx_runtime(policy: str, sizes, random: np.random.Generator) -> None:
    attributes = {"axes": [2, 3], "mode": "linear", "keep_aspect_ratio_policy": policy}
    model = resize_network((6, 5), {"sizes": sizes}, **attributes)
    x = random.standard_normal((2, 2, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(evaluate(model, x.astype(np.float64)), runtime(model)(x)[0], rtol=1e-4, atol=1e-5)


def test_resize_of_the_oldest_opset(random: np.random.Generator) -> None:
    model = resize_network((7, 6), {"scales": [1, 1, 2, 2]}, opset=17, mode="cubic")
    x = random.standard_normal((2, 2, 7, 6)).astype(np.float32)
    np.testing.assert_allclose(evaluate(model, x.astype(np.float64)), runtime(model)(x)[0], rtol=1e-4, atol=1e-5)


def test_resize_of_channels_and_batch_is_exact() -> None:
    model = resize_network((1, 2), {"scales": [2, 2, 1, 1]}, mode="nearest")
    x = np.arange(4.0).reshape(1, 2, 1, 2)
    np.testing.assert_array_equal(evaluate(model, x), x.repeat(2, axis=0).repeat(2, axis=1))


def test_resize_that_crops_is_refused() -> None:
    constants = {"roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    resize = node("Resize", "x roi scales", "y", coordinate_transformation_mode="tf_crop_and_resize", mode="linear")
    message = r"^a Resize with tf_crop_and_resize is not verified; expected another mode$"
    with pytest.raises(UnsupportedOpError, match=message):
        evaluate(network([resize], constants), np.zeros((1, 3, 8, 8)))
