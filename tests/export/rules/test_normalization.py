from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from engine.errors import UnsupportedOpError
from engine.export.differentiate import companion
from tests.export.networks import BATCH, block_of, image_input, network, node, statistics
from tests.export.rules.gradients import (
    Array,
    autograd,
    check_companion,
    opsets,
)
from tests.export.rules.normalizations import (
    FLAT,
    IMAGE,
    PARAMETERS,
    batch_norm_network,
    double,
    drawn,
    exact,
    norm_network,
    slow_normalise,
    torch_batch_norm,
    torch_layer_norm,
    torch_lrn,
    torch_mean_variance,
    torch_parameters,
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
