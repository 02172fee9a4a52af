import numpy as np
import onnx
import onnx_ad
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from engine.errors import ModelError, UnsupportedOpError
from engine.export.differentiate import append_gradients, companion, sum_over_space
from engine.export.evaluate import function
from engine.export.graph import GraphBuilder
from engine.export.split import split
from tests.export.networks import (
    CNN_CLASSES,
    CNN_LAYERS,
    block_of,
    imported,
    network,
    node,
    small_cnn,
    statistics,
    weight,
)
from tests.export.rules.gradients import autograd, check_companion, error, runtime


def op_types(model: ir.Model) -> list[str]:
    return [entry.op_type for entry in model.graph]


def test_inputs_and_outputs_of_a_companion(random: np.random.Generator) -> None:
    blocks = split(imported(small_cnn(random)), [layer[0] for layer in CNN_LAYERS])
    described = {}
    for block in blocks:
        model = companion(block)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert {entry.domain for entry in model.graph} == {""}
        assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
        described[block.name] = [
            [f"{value.name} {value.shape}" for value in values] for values in (model.graph.inputs, model.graph.outputs)
        ]
    assert described["block2"] == [
        ["relu1 [batch,6,16,12]", "gradient_of/relu3 [gradient_batch,8,8,6]"],
        ["gradient_of/relu1 [gradient_batch,6,16,12]", "sum_of_gradient_of/relu1 [gradient_batch,6]"],
    ]
    assert described["head"] == [
        ["clip4 [batch,10,4,3]", "gradient_of/logits [gradient_batch,5]"],
        ["gradient_of/clip4 [gradient_batch,10,4,3]", "sum_of_gradient_of/clip4 [gradient_batch,10]"],
    ]


def test_companion_leaves_the_block_as_it_was(random: np.random.Generator) -> None:
    block = block_of(small_cnn(random))
    before = ir.to_proto(block.model).SerializeToString(deterministic=True)
    companion(block)
    assert ir.to_proto(block.model).SerializeToString(deterministic=True) == before


def test_companion_is_the_same_every_time(random: np.random.Generator) -> None:
    proto = small_cnn(random)
    first, second = (ir.to_proto(companion(block_of(proto))).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_names_of_the_source_are_left_alone(random: np.random.Generator) -> None:
    nodes = [node("Relu", "x", "gradient/Mul_0"), node("Relu", "gradient/Mul_0", "gradient/Cast_1")]
    model = network([*nodes, node("Add", "gradient/Cast_1 gradient/Mul_0", "y")])
    check_companion(model, autograd(lambda x: 2 * torch.relu(x)), random)


def test_forward_nodes_that_the_gradient_does_not_need_are_dropped(random: np.random.Generator) -> None:
    constants = {"w": weight(random, 4, 3, 3, 3), **statistics(random, "bn", 4)}
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c bn_scale bn_bias bn_mean bn_var", "n"),
        node("Relu", "n", "r"),
        node("AveragePool", "r", "y", kernel_shape=[2, 2]),
    ]
    kept = op_types(companion(block_of(network(nodes, constants))))
    assert kept[:3] == ["Conv", "BatchNormalization", "Relu"]
    assert "AveragePool" not in kept
    linear = op_types(
        companion(block_of(network([nodes[0], *nodes[1:2], node("GlobalAveragePool", "n", "y")], constants)))
    )
    factor = ["Add", "Sqrt", "Div", "Reshape", "Mul"]
    assert linear == ["Mul", "Expand", *factor, "Slice", "Transpose", "Conv", "ReduceSum"]


def test_value_that_is_used_three_times_sums_its_gradients(random: np.random.Generator) -> None:
    kernel = weight(random, 3, 3, 3, 3)
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w", "c", pads=[1, 1, 1, 1]),
        node("Add", "c r", "sum"),
        node("Concat", "sum r", "y", axis=1),
    ]

    def expected(x: torch.Tensor) -> torch.Tensor:
        r = torch.relu(x)
        return torch.cat([functional.conv2d(r, torch.tensor(kernel).double(), padding=1) + r, r], dim=1)

    check_companion(network(nodes, {"w": kernel}), autograd(expected), random)


def test_branches_that_are_joined(random: np.random.Generator) -> None:
    left, right = weight(random, 4, 3, 3, 3), weight(random, 2, 3, 1, 1)
    nodes = [
        node("Conv", "x left", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Clip", "a low high", "b"),
        node("AveragePool", "x", "c", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "c right", "d"),
        node("MaxPool", "x", "e", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Concat", "b d e", "y", axis=1),
    ]
    constants = {"left": left, "right": right, "low": np.float32(-0.5), "high": np.float32(0.5)}

    def expected(x: torch.Tensor) -> torch.Tensor:
        first = functional.conv2d(x, torch.tensor(left).double(), stride=2, padding=1).clamp(-0.5, 0.5)
        second = functional.conv2d(functional.avg_pool2d(x, 2), torch.tensor(right).double())
        return torch.cat([first, second, functional.max_pool2d(x, 3, 2, 1)], dim=1)

    check_companion(network(nodes, constants), autograd(expected), random)


def test_branch_from_constants_gets_no_gradient(random: np.random.Generator) -> None:
    nodes = [node("Relu", "fixed", "positive"), node("Add", "x positive", "y")]
    model = network(nodes, {"fixed": random.standard_normal((1, 3, 8, 8)).astype(np.float32)})
    gradient = companion(block_of(model))
    assert op_types(gradient) == ["ReduceSum", "Identity"]


def test_branch_with_an_op_without_a_rule_does_no_harm_beside_the_path(random: np.random.Generator) -> None:
    nodes = [node("Sin", "x", "aside"), node("Relu", "x", "y")]
    model = network(nodes, outputs="y")
    check_companion(model, autograd(torch.relu), random, values=lambda shape: random.uniform(0.1, 1, shape))


def test_booleans_carry_no_gradient(random: np.random.Generator) -> None:
    """Less and Or have no rule, and a count of what holds changes nothing."""
    nodes = [
        node("Less", "x low", "dark"),
        node("Less", "high x", "bright"),
        node("Or", "dark bright", "outside"),
        node("Cast", "outside", "counted", to=1),
        node("Add", "x counted", "y"),
    ]
    model = network(nodes, {"low": np.float32(-0.5), "high": np.float32(0.5)})

    def expected(x: torch.Tensor) -> torch.Tensor:
        return x + (x.abs() > 0.5).double()

    check_companion(model, autograd(expected), random)
    assert op_types(companion(block_of(model))) == ["ReduceSum", "Identity"]


def test_op_without_a_rule_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"^Sin node 'node_y': operator Sin has no gradient rule; known are "):
        companion(block_of(network([node("Relu", "x", "r"), node("Sin", "r", "y")])))


def test_whole_network_equals_onnx_ad(random: np.random.Generator) -> None:
    proto = small_cnn(random)
    own = runtime(companion(block_of(proto)))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    other = runtime(onnx_ad.reverse(onnx.shape_inference.infer_shapes(proto), layout="onnx"))
    x = random.standard_normal((1, 3, 16, 12)).astype(np.float32)
    classes = np.eye(CNN_CLASSES, dtype=np.float32)
    gradient, total = own(x, classes)
    (_, expected) = other(x, classes[None])
    expected = np.moveaxis(expected, -1, 0)[:, 0].astype(np.float64)
    assert np.linalg.norm(expected) > 0.1
    assert error(gradient, expected) <= 1e-5
    assert error(total, expected.sum(axis=(2, 3))) <= 1e-5


@pytest.mark.parametrize("opset", [17, 18, 22, onnx.defs.onnx_opset_version()])
def test_chain_of_companions_is_the_companion_of_the_network(opset: int, random: np.random.Generator) -> None:
    proto = small_cnn(random, opset=opset)
    blocks = split(imported(proto), [layer[0] for layer in CNN_LAYERS])
    x = random.standard_normal((3, 3, 16, 12)).astype(np.float32)
    inputs = [x]
    for block in blocks[:-1]:
        inputs.extend(runtime(block.model)(inputs[-1]))
    gradient = random.standard_normal((3, CNN_CLASSES)).astype(np.float32)
    expected, _ = runtime(companion(block_of(proto)))(x, gradient)
    for block, source in zip(reversed(blocks), reversed(inputs), strict=True):
        gradient, _ = runtime(companion(block))(source, gradient)
    assert error(gradient, expected.astype(np.float64)) <= 1e-5


def builder_of(model: onnx.ModelProto) -> tuple[GraphBuilder, dict[str, ir.Value], ir.Model]:
    converted = block_of(model, float64=True).model
    values = {value.name: value for entry in converted.graph for value in entry.outputs}
    values |= {value.name: value for value in converted.graph.inputs}
    return GraphBuilder(converted.graph, "gradient"), values, converted


def seed_for(g: GraphBuilder, output: ir.Value) -> ir.Value:
    seed = ir.Value(name="seed", shape=output.shape, type=output.type)
    g.graph.inputs.append(seed)
    return seed


def test_gradients_of_several_values_at_once(random: np.random.Generator) -> None:
    kernel = weight(random, 4, 3, 3, 3)
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w", "c"),
        node("Relu", "c", "s"),
        node("GlobalAveragePool", "s", "y"),
    ]
    g, values, model = builder_of(network(nodes, {"w": kernel}))
    wanted = [values[name] for name in ("s", "r", "x")]
    gradients = append_gradients(g, {values["y"]: seed_for(g, values["y"])}, wanted, 17)
    assert list(gradients) == wanted
    model.graph.outputs[:] = list(gradients.values())
    x, dy = random.standard_normal((2, 3, 8, 8)), random.standard_normal((2, 4, 1, 1))
    found = function(model)(x, dy)

    leaf = torch.tensor(x, requires_grad=True)
    r = torch.relu(leaf)
    s = torch.relu(functional.conv2d(r, torch.tensor(kernel).double()))
    y = s.mean(dim=(2, 3), keepdim=True)
    for gradient, expected in zip(found, torch.autograd.grad(y, [s, r, leaf], torch.tensor(dy)), strict=True):
        assert error(gradient, expected.numpy()) <= 1e-8


def test_wanted_output_is_its_own_gradient() -> None:
    g, values, _ = builder_of(network([node("Relu", "x", "y")]))
    seed = seed_for(g, values["y"])
    assert append_gradients(g, {values["y"]: seed}, [values["y"]], 17) == {values["y"]: seed}


def test_output_that_does_not_depend_is_named() -> None:
    nodes = [node("Relu", "x", "aside"), node("Relu", "fixed", "y")]
    g, values, _ = builder_of(network(nodes, {"fixed": np.ones((1, 3), np.float32)}, outputs="y"))
    message = r"^the output does not depend on \['x', 'aside'\]; expected feature layers that lead to the logits$"
    with pytest.raises(ModelError, match=message):
        append_gradients(g, {values["y"]: seed_for(g, values["y"])}, [values["x"], values["aside"]], 17)


@pytest.mark.parametrize("beside", [[], [node("Cast", "places", "aside", to=onnx.TensorProto.FLOAT)]])
def test_second_output_that_does_not_lead_to_the_logits(
    beside: list[onnx.NodeProto], random: np.random.Generator
) -> None:
    pool = node("MaxPool", "x", "y places", kernel_shape=[2, 2], strides=[2, 2])
    gradient = companion(block_of(network([pool, *beside], outputs="y")))
    x = random.standard_normal((3, 3, 8, 8)).astype(np.float32)
    dy = random.standard_normal((3, 3, 4, 4)).astype(np.float32)
    _, expected = autograd(lambda x: functional.max_pool2d(x, 2))(x, dy)
    assert error(runtime(gradient)(x, dy)[0], expected) <= 1e-6


def test_sum_over_space(random: np.random.Generator) -> None:
    g, values, model = builder_of(network([node("Relu", "x", "y")]))
    model.graph.outputs[:] = [sum_over_space(g, values["x"])]
    x = random.standard_normal((3, 3, 8, 8))
    (found,) = function(model)(x)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found, x.sum(axis=(2, 3)), rtol=1e-13)
