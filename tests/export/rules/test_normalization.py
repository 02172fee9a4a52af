from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from engine.export.evaluate import function
from tests.export.networks import BATCH, block_of, image_input, network, node, statistics
from tests.export.rules.gradients import (
    Array,
    Oracle,
    as32,
    autograd,
    check_companion,
    error,
    onnx_function,
    opsets,
    runtime,
    ties,
)

OPS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
)
PARAMETERS = "bn_scale bn_bias bn_mean bn_var"
IMAGE = (6, 3, 5)
FLAT = node("Flatten", "x", "flat")
MEAN = node("ReduceMean", "x", "mean", axes=[0, 2, 3], keepdims=0)

Place = tuple[int, ...]
Key = Callable[[Place], Hashable]
"""Of an element's place → which elements are normalised together: those of equal key."""


def exact(value: float) -> float:
    """The value as a float attribute holds it."""
    return float(np.float32(value))


def together(x: Array, key: Key) -> list[list[Place]]:
    """List the places of the elements that are normalised together."""
    sets = defaultdict(list)
    for place in np.ndindex(*x.shape):
        sets[key(place)].append(place)
    return list(sets.values())


def slow_normalise(
    key: Key,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 0.0,
    centred: bool = True,
    added: float = 0.0,
) -> Oracle:
    """Y = scale·d/(σ + added) + bias with σ² = mean(d²) + epsilon, and the product of dy with the whole Jacobian.

    Scale and bias have the shape of an image.
    """

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for places in together(x, key):
            n = len(places)
            mean = sum(x[place] for place in places) / n if centred else 0.0
            sigma = np.sqrt(sum((x[place] - mean) ** 2 for place in places) / n + epsilon)
            unit = [(x[place] - mean) / (sigma + added) for place in places]
            factor = [1.0 if scale is None else scale[place[1:]] for place in places]
            for i, place in enumerate(places):
                y[place] = factor[i] * unit[i] + (0.0 if bias is None else bias[place[1:]])
                dx[place] = sum(
                    dy[other]
                    * factor[j]
                    * (((i == j) - (1 / n if centred else 0.0)) / (sigma + added) - unit[i] * unit[j] / n / sigma)
                    for j, other in enumerate(places)
                )
        return y, dx

    return oracle


def slow_lp(p: int, axis: int) -> Oracle:
    """Y = x/‖x‖ and dx_i = Σ_j dy_j·(δ_ij − y_j·∂‖x‖/∂x_i)/‖x‖; all zero for a zero vector."""

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for places in together(x, lambda place: place[:axis] + place[axis + 1 :]):
            norm = sum(abs(x[place]) ** p for place in places) ** (1 / p)
            for place in places if norm else []:
                y[place] = x[place] / norm
                slope = np.sign(x[place]) if p == 1 else x[place] / norm
                dx[place] = sum(dy[o] * ((o == place) - x[o] / norm * slope) / norm for o in places)
        return y, dx

    return oracle


def slow_lrn(size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Oracle:
    """Y_c = x_c·s_c^−β with s_c = bias + α/size·Σ x_k² over the window of c; dx by the quotient rule, pair by pair."""
    alpha, beta, bias = exact(alpha), exact(beta), exact(bias)

    def oracle(x: Array, dy: Array) -> tuple[Array, Array]:
        channels = x.shape[1]
        y, dx = np.zeros_like(x), np.zeros_like(x)
        for n, c, i, j in np.ndindex(*x.shape):
            window = [k for k in range(c - (size - 1) // 2, c + int(np.ceil((size - 1) / 2)) + 1) if 0 <= k < channels]
            s = bias + alpha / size * sum(x[n, k, i, j] ** 2 for k in window)
            y[n, c, i, j] = x[n, c, i, j] / s**beta
            dx[n, c, i, j] += dy[n, c, i, j] / s**beta
            for k in window:
                slope = -beta * s ** (-beta - 1) * 2 * alpha / size * x[n, k, i, j]
                dx[n, k, i, j] += dy[n, c, i, j] * x[n, c, i, j] * slope
        return y, dx

    return oracle


def torch_lrn(size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Oracle:
    """Torch's has the larger half of an even window before the channel, ONNX's after it."""
    values = (exact(alpha), exact(beta), exact(bias))
    return autograd(lambda x: functional.local_response_norm(x.flip(1), size, *values).flip(1))


def torch_mean_variance(axes: tuple[int, ...]) -> Oracle:
    return autograd(
        lambda x: (x - x.mean(axes, keepdim=True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9),
    )


def drawn(random: np.random.Generator, *shape: int) -> dict[str, Array]:
    """Draw a scale around 1 and a bias."""
    scale, bias = random.standard_normal((2, *shape)).astype(np.float32)
    return {"scale": 1 + np.float32(0.4) * scale, "bias": bias}


def double(array: Array) -> torch.Tensor:
    return torch.tensor(array).double()


def norm_network(
    op_type: str,
    constants: dict[str, Array],
    opset: int = 17,
    image: tuple[int, int, int] = IMAGE,
    **attributes: object,
) -> onnx.ModelProto:
    model = network(
        [node(op_type, " ".join(["x", *constants]), "y", **attributes)], constants, image=image, opset=opset
    )
    model.graph.output[0].CopyFrom(image_input([BATCH, *image], "y"))  # onnx infers none for GroupNormalization
    return model


def torch_batch_norm(constants: dict[str, Array], epsilon: float, flatten: bool = False) -> Oracle:
    scale, bias, mean, variance = (double(constants[name]) for name in PARAMETERS.split())
    return autograd(
        lambda x: functional.batch_norm(
            x.flatten(1) if flatten else x, mean, variance, scale, bias, False, 0.0, exact(epsilon)
        )
    )


def batch_norm_network(constants: dict[str, Array], opset: int = 17, **attributes: object) -> onnx.ModelProto:
    return network([node("BatchNormalization", f"x {PARAMETERS}", "y", **attributes)], constants, opset=opset)


@pytest.mark.parametrize(("op", "opset"), opsets(*OPS))
def test_rule_equals_autograd_in_every_version(op: str, opset: int, random: np.random.Generator) -> None:
    constants: dict[str, Array] = {}
    attributes: dict[str, object] = {}
    if op == "BatchNormalization":
        constants = statistics(random, "bn", 6)
        expected = torch_batch_norm(constants, 1e-5)
    elif op == "GroupNormalization":
        constants, attributes = drawn(random, 2 if opset < 21 else 6), {"num_groups": 2}
        scale, bias = (double(np.repeat(v, 6 // len(v))) for v in constants.values())
        expected = autograd(lambda x: functional.group_norm(x, 2, scale, bias, exact(1e-5)))
    elif op == "InstanceNormalization":
        constants = drawn(random, 6)
        expected = autograd(partial(functional.instance_norm, **torch_parameters(constants), eps=exact(1e-5)))
    elif op == "LRN":
        attributes, expected = {"size": 3, "alpha": 0.5}, torch_lrn(3, 0.5)
    elif op == "LayerNormalization":
        constants = drawn(random, 5)
        expected = torch_layer_norm(constants)
    elif op == "LpNormalization":
        attributes, expected = {"axis": 1}, autograd(lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True))
    elif op == "MeanVarianceNormalization":
        attributes, expected = {"axes": [2, 3]}, torch_mean_variance((2, 3))
    else:
        constants = {"scale": drawn(random, 5)["scale"]}
        expected = autograd(lambda x: functional.rms_norm(x, [5], double(constants["scale"]), exact(1e-5)))
    onnx_is_right = op not in ("GroupNormalization", "LRN", "MeanVarianceNormalization")
    check_companion(norm_network(op, constants, opset, **attributes), expected, random, in_onnx_reference=onnx_is_right)


def torch_parameters(constants: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {"weight": double(constants["scale"]), "bias": double(constants["bias"])}


def torch_layer_norm(constants: dict[str, Array], epsilon: float = 1e-5) -> Oracle:
    shape = constants["scale"].shape
    bias = double(constants["bias"]) if "bias" in constants else None
    return autograd(lambda x: functional.layer_norm(x, shape, double(constants["scale"]), bias, exact(epsilon)))


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_batch_norm_with_an_epsilon(epsilon: float, random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    model = batch_norm_network(constants, epsilon=epsilon)
    check_companion(model, torch_batch_norm(constants, epsilon), random)


def test_batch_norm_with_zero_variance_and_zero_scale(random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    constants["bn_var"][0] = 0.0
    constants["bn_scale"][1:] = 0.0, -2.0
    check_companion(
        batch_norm_network(constants, epsilon=1e-3), torch_batch_norm(constants, 1e-3), random, smooth=False
    )


def test_batch_norm_of_rows_of_features(random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 24)
    nodes = [FLAT, node("BatchNormalization", f"flat {PARAMETERS}", "y")]
    model = network(nodes, constants, image=(2, 3, 4))
    check_companion(model, torch_batch_norm(constants, 1e-5, flatten=True), random)


def test_batch_norm_with_parameters_computed_from_constants(random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    expected = torch_batch_norm(constants, 1e-5)
    halves = {f"{name}_half": values / 2 for name, values in constants.items()}
    nodes = [node("Add", f"{name}_half {name}_half", name) for name in constants]
    nodes.append(node("BatchNormalization", f"x {PARAMETERS}", "y"))
    check_companion(network(nodes, halves), expected, random)


def test_batch_norm_in_training_form_is_refused(random: np.random.Generator) -> None:
    constants = statistics(random, "bn", 3)
    nodes = [node("BatchNormalization", f"x {PARAMETERS}", "y mean var", training_mode=1)]
    message = r"^BatchNormalization node 'node_y': has training_mode = 1; expected inference form, training_mode = 0$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants)))


@pytest.mark.parametrize(
    ("computed", "called"), [("scale", "scale"), ("bias", "bias"), ("mean", "mean"), ("var", "variance")]
)
def test_batch_norm_with_parameters_from_the_image_is_refused(
    computed: str, called: str, random: np.random.Generator
) -> None:
    constants = statistics(random, "bn", 3)
    del constants[f"bn_{computed}"]
    nodes = [
        node("ReduceMean", "x", f"bn_{computed}", axes=[0, 2, 3], keepdims=0),
        node("BatchNormalization", f"x {PARAMETERS}", "y"),
    ]
    message = rf"^BatchNormalization node 'node_y': its {called} is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(network(nodes, constants)))


@pytest.mark.parametrize(
    ("op", "constants", "called"),
    [
        ("GroupNormalization", "scale", "bias"),
        ("InstanceNormalization", "bias", "scale"),
        ("InstanceNormalization", "scale", "bias"),
        ("LayerNormalization", "scale", "bias"),
        ("RMSNormalization", "", "scale"),
    ],
)
def test_parameters_from_the_image_are_refused(op: str, constants: str, called: str) -> None:
    inputs = {"scale": "x scale", "bias": "x scale bias"}[called if op == "RMSNormalization" else "bias"]
    attributes = {"GroupNormalization": {"num_groups": 1}}.get(op, {})
    nodes = [node("ReduceMean", "x zero", called, keepdims=0), node(op, inputs, "y", **attributes)]
    given = {"zero": np.array([0, 2, 3], np.int64)} | ({constants: np.ones(3, np.float32)} if constants else {})
    model = network(nodes, given, image=(3, 4, 3), opset=23)
    model.graph.output[0].CopyFrom(image_input([BATCH, 3, 4, 3], "y"))
    message = rf"^{op} node 'node_y': its {called} is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("axis", "first"), [(1, 1), (2, 2), (3, 3), (-1, 3), (-2, 2), (-3, 1), (None, 3)])
def test_layer_norm(axis: int | None, first: int, biased: bool, random: np.random.Generator) -> None:
    constants = drawn(random, *IMAGE[first - 1 :])
    if not biased:
        del constants["bias"]
    attributes = {"epsilon": 0.02} | ({} if axis is None else {"axis": axis})
    model = norm_network("LayerNormalization", constants, **attributes)
    check_companion(model, torch_layer_norm(constants, 0.02), random)
    wide = [np.broadcast_to(constants[name], IMAGE) if name in constants else None for name in ("scale", "bias")]
    slow = slow_normalise(lambda place: place[:first], *wide, epsilon=exact(0.02))
    check_companion(model, slow, random, smooth=False)


@pytest.mark.parametrize("shape", [(), (5,), (6, 1, 5), (6, 3, 5)], ids=str)
def test_layer_norm_with_a_scale_that_is_broadcast(shape: tuple[int, ...], random: np.random.Generator) -> None:
    constants = drawn(random, *shape)
    wide = [np.broadcast_to(values, IMAGE) for values in constants.values()]
    model = norm_network("LayerNormalization", constants, axis=2)
    check_companion(model, slow_normalise(lambda place: place[:2], *wide, epsilon=exact(1e-5)), random)


def test_layer_norm_of_rows_of_features(random: np.random.Generator) -> None:
    constants = drawn(random, 90)
    model = network([FLAT, node("LayerNormalization", "flat scale bias", "y")], constants, image=IMAGE)
    scale, bias = map(double, constants.values())
    expected = autograd(lambda x: functional.layer_norm(x.flatten(1), [90], scale, bias, exact(1e-5)))
    check_companion(model, expected, random)


def test_layer_norm_with_its_other_outputs_unused(random: np.random.Generator) -> None:
    constants = drawn(random, 5)
    model = network([node("LayerNormalization", "x scale bias", "y mean inverse")], constants, image=IMAGE)
    check_companion(model, torch_layer_norm(constants), random)


def test_layer_norm_whose_mean_leads_to_the_logits_is_refused() -> None:
    nodes = [node("LayerNormalization", "x scale", "n mean"), node("Add", "n mean", "y")]
    model = network(nodes, {"scale": np.ones(5, np.float32)}, image=IMAGE)
    message = r"^LayerNormalization node 'node_n': its output 1 \('mean'\) leads to the logits; "
    with pytest.raises(UnsupportedOpError, match=message):
        companion(block_of(model))


@pytest.mark.parametrize(("axis", "first"), [(1, 1), (-2, 2), (None, 3)])
def test_rms_norm(axis: int | None, first: int, random: np.random.Generator) -> None:
    scale = drawn(random, *IMAGE[first - 1 :])["scale"]
    attributes = {"epsilon": 0.02} | ({} if axis is None else {"axis": axis})
    model = norm_network("RMSNormalization", {"scale": scale}, 23, **attributes)
    wide = np.broadcast_to(scale, IMAGE)
    slow = slow_normalise(lambda place: place[:first], wide, epsilon=exact(0.02), centred=False)
    check_companion(model, slow, random)


@pytest.mark.parametrize("image", [(6, 3, 5), (3, 1, 7), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("epsilon", [1e-5, 0.4])
def test_instance_norm(image: tuple[int, int, int], epsilon: float, random: np.random.Generator) -> None:
    constants = drawn(random, image[0])
    wide = [np.broadcast_to(values[:, None, None], image) for values in constants.values()]
    model = norm_network("InstanceNormalization", constants, image=image, epsilon=epsilon)
    check_companion(model, slow_normalise(lambda place: place[:2], *wide, epsilon=exact(epsilon)), random)


def test_instance_norm_of_rows(random: np.random.Generator) -> None:
    constants = drawn(random, 3) | {"shape": np.array([0, 3, -1], np.int64)}
    nodes = [node("Reshape", "x shape", "rows"), node("InstanceNormalization", "rows scale bias", "y")]
    expected = autograd(
        lambda x: functional.instance_norm(x.flatten(2), **torch_parameters(constants), eps=exact(1e-5))
    )
    check_companion(network(nodes, constants, image=(3, 4, 5)), expected, random)


def test_group_norm_as_torch_exports_it(random: np.random.Generator) -> None:
    """Groups as the channels of an InstanceNormalization, then a scale and a bias for each channel."""
    constants = {
        "grouped": np.array([0, 2, -1], np.int64),
        "image": np.array([0, 6, 3, 5], np.int64),
        "one": np.ones(2, np.float32),
        "zero": np.zeros(2, np.float32),
        "bias": random.standard_normal((6, 1, 1)).astype(np.float32),
    }
    nodes = [
        node("Reshape", "x grouped", "groups"),
        node("InstanceNormalization", "groups one zero", "normal"),
        node("Reshape", "normal image", "shaped"),
        node("Add", "shaped bias", "y"),
    ]
    expected = autograd(lambda x: functional.group_norm(x, 2, None, double(constants["bias"]).flatten(), exact(1e-5)))
    check_companion(network(nodes, constants, image=IMAGE), expected, random)


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm(groups: int, opset: int, random: np.random.Generator) -> None:
    constants = drawn(random, groups if opset < 21 else 6)
    model = norm_network("GroupNormalization", constants, opset, num_groups=groups, epsilon=0.03)
    wide = [np.broadcast_to(np.repeat(values, 6 // len(values))[:, None, None], IMAGE) for values in constants.values()]
    slow = slow_normalise(lambda place: (place[0], place[1] // (6 // groups)), *wide, epsilon=exact(0.03))
    check_companion(model, slow, random, in_onnx_reference=False)


def test_group_norm_of_rows_of_features(random: np.random.Generator) -> None:
    constants = drawn(random, 90)
    model = network(
        [FLAT, node("GroupNormalization", "flat scale bias", "y", num_groups=9)], constants, image=IMAGE, opset=21
    )
    model.graph.output[0].CopyFrom(image_input([BATCH, 90], "y"))
    expected = autograd(
        lambda x: functional.group_norm(x.flatten(1), 9, **torch_parameters(constants), eps=exact(1e-5))
    )
    check_companion(model, expected, random, in_onnx_reference=False)


def test_normalisations_of_equal_elements_have_finite_gradients(random: np.random.Generator) -> None:
    constants = drawn(random, 6)
    wide = [np.broadcast_to(values[:, None, None], IMAGE) for values in constants.values()]
    slow = slow_normalise(lambda place: place[:2], *wide, epsilon=exact(1e-5))
    constant = lambda shape: np.full(shape, 0.25)  # noqa: E731
    model = norm_network("InstanceNormalization", constants)
    check_companion(model, slow, random, values=constant, smooth=False)


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


@pytest.mark.parametrize(
    ("op", "attributes", "text"),
    [
        ("LayerNormalization", {"axis": 0}, "another axis"),
        ("LayerNormalization", {"axis": -4}, "another axis"),
        ("RMSNormalization", {"axis": 0}, "another axis"),
        ("LpNormalization", {"axis": 0}, "another axis"),
        ("MeanVarianceNormalization", {}, "other axes"),
        ("MeanVarianceNormalization", {"axes": [-4]}, "other axes"),
    ],
    ids=str,
)
def test_normalising_over_the_batch_is_refused(op: str, attributes: dict[str, object], text: str) -> None:
    constants = {"scale": np.ones((1, *IMAGE), np.float32)} if op.startswith(("Layer", "RMS")) else {}
    with pytest.raises(
        UnsupportedOpError, match=rf"^{op} node 'node_y': normalises over axis 0, the batch; expected {text}$"
    ):
        companion(block_of(norm_network(op, constants, 23, **attributes)))
