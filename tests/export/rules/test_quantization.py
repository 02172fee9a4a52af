import numpy as np
import pytest

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function, in_float64
from tests.export.networks import block_of, image_input, network, node
from tests.export.rules.gradients import error, opsets, runtime

OPS = ("DequantizeLinear", "QuantizeLinear")
NODES = [
    node("QuantizeLinear", "x scale zero", "q"),
    node("DequantizeLinear", "q scale zero", "d"),
    node("Relu", "d", "y"),
]
FIRST_OPSET_WITHOUT_A_RUNTIME = 28  # ONNX Runtime 1.32 has no QuantizeLinear of that version
CONSTANTS = {"scale": np.float32(0.02), "zero": np.uint8(100)}


@pytest.mark.parametrize("opset", sorted({opset for _, opset in opsets(*OPS)}))
def test_gradient_passes_straight_through(opset: int, random: np.random.Generator) -> None:
    """Where the quantized value is positive, the gradient is 1, in range and out of range."""
    gradient = companion(block_of(network(NODES, CONSTANTS, image=(2, 9, 7), opset=opset)))
    x = (4 * random.standard_normal((3, 2, 9, 7))).astype(np.float32)
    dy = random.standard_normal(x.shape).astype(np.float32)
    stored = np.clip(np.rint(x.astype(np.float64) / np.float32(0.02)) + 100, 0, 255)
    assert {0, 255} <= set(stored.ravel())
    expected = dy * (stored > 100)
    if opset >= FIRST_OPSET_WITHOUT_A_RUNTIME:
        found, total = function(in_float64(gradient))(x.astype(np.float64), dy.astype(np.float64))
        expected = dy * (x > 0)
    else:
        found, total = runtime(gradient)(x, dy)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    np.testing.assert_allclose(total, expected.sum(axis=(2, 3)), rtol=1e-5, atol=1e-5)


def test_float64_leaves_activations_unrounded(random: np.random.Generator) -> None:
    block = block_of(network(NODES, CONSTANTS, image=(2, 5, 4))).model
    x = random.standard_normal((2, 2, 5, 4))
    np.testing.assert_array_equal(function(in_float64(block))(x)[0], np.maximum(x, 0))


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("axis", "zeros"), [(0, True), (0, False), (1, True), (-3, True), (None, True), (None, False)])
def test_float64_takes_constants_for_what_they_stand_for(
    axis: int | None, zeros: bool, opset: int, random: np.random.Generator
) -> None:
    count = {0: 5, 1: 3, -3: 3, None: 1}[axis]
    constants = {
        "stored": random.integers(-128, 128, (5, 3, 2, 2), np.int8),
        "scale": random.uniform(0.01, 0.02, count).astype(np.float32)[slice(None) if axis is not None else 0],
        "zero": random.integers(-3, 4, count, np.int8)[slice(None) if axis is not None else 0],
    }
    attributes = {} if axis is None else {"axis": axis}
    names = "stored scale zero" if zeros else "stored scale"
    nodes = [node("DequantizeLinear", names, "w", **attributes), node("Conv", "x w", "y")]
    model = network(nodes, constants, image=(3, 6, 5), opset=opset)
    if not zeros:
        constants["zero"] = np.zeros_like(constants["zero"])
    shape = [5, 1, 1, 1] if axis == 0 else [1, 3, 1, 1] if axis is not None else []
    scale, zero = (constants[name].astype(np.float64).reshape(shape) for name in ("scale", "zero"))
    plain = network([node("Conv", "x w", "y")], {"w": np.ones((5, 3, 2, 2))}, image=(3, 6, 5), opset=opset)
    expected = block_of(plain, float64=True).model
    expected.graph.initializers["w"].const_value = onnx_tensor((constants["stored"] - zero) * scale)
    x = random.standard_normal((2, 3, 6, 5))
    assert error(function(in_float64(block_of(model).model))(x)[0], function(expected)(x)[0]) <= 1e-14
    assert error(runtime(model)(x.astype(np.float32))[0], function(expected)(x)[0]) <= 1e-6


def onnx_tensor(array: np.ndarray):
    import onnx_ir as ir

    return ir.tensor(array, name="w")


def test_float64_takes_blocks_of_constants(random: np.random.Generator) -> None:
    constants = {
        "stored": random.integers(-128, 128, (5, 8, 1, 1), np.int8),
        "scale": random.uniform(0.01, 0.02, (5, 3, 1, 1)).astype(np.float32),
    }
    nodes = [node("DequantizeLinear", "stored scale", "w", axis=1, block_size=3), node("Conv", "x w", "y")]
    block = block_of(network(nodes, constants, image=(8, 6, 5), opset=21)).model
    kernel = constants["stored"] * np.repeat(constants["scale"].astype(np.float64), 3, axis=1)[:, :8]
    x = random.standard_normal((2, 8, 6, 5))
    assert error(function(in_float64(block))(x)[0], np.einsum("oc,nchw->nohw", kernel[..., 0, 0], x)) <= 1e-13


@pytest.mark.parametrize("op", OPS)
def test_scale_from_the_image_is_refused(op: str) -> None:
    nodes = [
        node("ReduceMax", "x", "scale", keepdims=0),
        node("QuantizeLinear", f"x {'scale' if op == 'QuantizeLinear' else 'fixed'} zero", "q"),
        node("DequantizeLinear", f"q {'scale' if op == 'DequantizeLinear' else 'fixed'} zero", "y"),
    ]
    inputs = [image_input([1, 3, 8, 8])]
    model = network(nodes, {"fixed": np.float32(0.02), "zero": np.uint8(0)}, inputs=inputs)
    output = "q" if op == "QuantizeLinear" else "y"
    message = (
        rf"^{op} node 'node_{output}': its scale or zero point is computed from the image; expected constants, as "
        r"static quantization writes them$"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))
