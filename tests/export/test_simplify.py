from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from engine.export.shapes import settle_shapes
from engine.export.simplify import free_names, keep_only_outputs, simplify, strip, unique_name
from engine.export.source import load_source
from tests.export.networks import imported, network, node, small_cnn, weight, written
from tests.export.rules.gradients import error, runtime

CONV = [node("Conv", "x kernel", "y")]


def simplified(model: onnx.ModelProto) -> ir.Model:
    converted = ir.from_proto(model)
    simplify(converted)
    keep_only_outputs(converted)
    return converted


def op_types(model: ir.Model) -> list[str]:
    return [entry.op_type for entry in model.graph]


def same_outputs(found: ir.Model, expected: onnx.ModelProto, random: np.random.Generator) -> None:
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert error(runtime(found)(x)[0], runtime(expected)(x)[0].astype(np.float64)) <= 1e-6


def test_strip_reaches_every_message(random: np.random.Generator) -> None:
    model = small_cnn(random)
    clean = model.SerializeToString(deterministic=True)
    for holder in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.initializer):
        holder.doc_string = "here"
        entry = holder.metadata_props.add()
        entry.key, entry.value = "path", "here"
    model.graph.node[0].attribute[0].doc_string = "here"
    strip(model)
    assert model.SerializeToString(deterministic=True) == clean


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Mul", "w two", "kernel")], {"two": np.float32(2)}),
        ([node("Mul", "w two", "doubled"), node("Neg", "doubled", "kernel")], {"two": np.float32(2)}),
        (
            [node("DequantizeLinear", "q scale zero", "kernel")],
            {"q": np.arange(15, dtype=np.int8).reshape(5, 3, 1, 1), "scale": np.float32(0.1), "zero": np.int8(3)},
        ),
        ([node("Identity", "w", "kernel")], {}),
        ([node("Dropout", "w", "kernel")], {}),
    ],
    ids=["one", "chain", "DequantizeLinear", "Identity", "Dropout"],
)
def test_nodes_of_constants_become_constants(nodes, constants, random: np.random.Generator) -> None:
    model = network([*nodes, *CONV], {"w": weight(random, 5, 3, 1, 1), **constants})
    found = simplified(model)
    assert op_types(found) == ["Conv"]
    same_outputs(found, model, random)


def test_nodes_of_constants_with_two_outputs_become_constants(random: np.random.Generator) -> None:
    split = node("Split", "w parts", "kernel rest", axis=0)
    model = network([split, *CONV], {"w": weight(random, 8, 3, 1, 1), "parts": np.array([5, 3], np.int64)})
    found = simplified(model)
    assert op_types(found) == ["Conv"]
    same_outputs(found, model, random)


def test_random_nodes_are_left(random: np.random.Generator) -> None:
    model = network([node("RandomNormalLike", "w", "kernel"), *CONV], {"w": weight(random, 5, 3, 1, 1)})
    assert op_types(simplified(model)) == ["RandomNormalLike", "Conv"]


def test_branch_by_a_constant_condition_is_left_or_resolved(random: np.random.Generator) -> None:
    def branch(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, [5, 3, 1, 1])
        return helper.make_graph([helper.make_node("Identity", [name], ["chosen"])], name, [], [output])

    choice = node("If", "condition", "kernel", then_branch=branch("w"), else_branch=branch("v"))
    constants = {"condition": np.array(True), "w": weight(random, 5, 3, 1, 1), "v": weight(random, 5, 3, 1, 1)}
    model = network([choice, *CONV], constants)
    same_outputs(simplified(model), model, random)


def test_functions_are_inlined(random: np.random.Generator) -> None:
    model = network([node("Relu", "x", "cut"), *CONV], {"kernel": weight(random, 5, 3, 1, 1)})
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    body = [helper.make_node("Relu", ["a"], ["b"], name="inner")]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("local", "Cut", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Cut", "local"
    model.graph.node[1].input[0] = expected.graph.node[1].input[0] = "cut"
    found = simplified(ir.to_proto(ir.from_proto(model)))
    assert op_types(found) == ["Relu", "Conv"]
    assert {entry.domain for entry in found.graph} == {""}
    same_outputs(found, expected, random)


def test_nodes_get_names_of_their_own(random: np.random.Generator) -> None:
    nodes = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "c"), node("Conv", "c kernel", "y")]
    nodes[0].name = nodes[1].name = "act"
    nodes[2].ClearField("name")
    found = simplified(network(nodes, {"kernel": weight(random, 5, 3, 1, 1)}))
    assert [entry.name for entry in found.graph] == ["act", "act_", "Relu_2", "node_y"]


def test_unique_name() -> None:
    assert unique_name("conv", set()) == "conv"
    assert unique_name("conv", {"conv", "conv_"}) == "conv__"


def test_names_that_the_exporter_uses_are_freed(random: np.random.Generator) -> None:
    nodes = [
        node("Relu", "x", "target"),
        node("Relu", "target", "source/target"),
        node("Conv", "source/target kernel", "targets"),
    ]
    model = imported(network(nodes, {"kernel": weight(random, 5, 3, 1, 1)}, outputs="targets"))
    free_names(model.graph)
    assert [entry.outputs[0].name for entry in model.graph] == ["source/target_", "source/target", "targets"]


def test_shapes_are_settled(random: np.random.Generator) -> None:
    model = imported(small_cnn(random))
    settle_shapes(model)
    shapes = {value.name: str(value.shape) for entry in model.graph for value in entry.outputs}
    assert (shapes["conv1"], shapes["pool3"], shapes["logits"]) == (
        "[batch,6,16,12]",
        "[batch,8,4,3]",
        "[batch,5]",
    )


def test_source_is_simplified(random: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        node("Mul", "w two", "kernel"),
        node("Conv", "x kernel", "maps"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "logits"),
    ]
    model = network(nodes, {"w": weight(random, 5, 3, 1, 1), "two": np.float32(2)}, outputs="logits")
    source = load_source(written(model, tmp_path), activation="none")
    assert op_types(source.model) == ["Conv", "GlobalAveragePool", "Flatten"]
    same_outputs(source.model, model, random)


def test_shape_of_a_group_norm_is_its_inputs() -> None:
    nodes = [
        node("GroupNormalization", "x scale bias", "normal", num_groups=3),
        node("MaxPool", "normal", "pooled", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "pooled", "y"),
    ]
    model = ir.from_proto(network(nodes, {"scale": np.ones(3), "bias": np.ones(3)}, opset=21))
    settle_shapes(model)
    shapes = {entry.op_type: str(entry.outputs[0].shape) for entry in model.graph}
    assert shapes == {"GroupNormalization": "[batch,3,8,8]", "MaxPool": "[batch,3,4,4]", "Flatten": "[batch,48]"}


@pytest.mark.parametrize(("mode", "ops"), [(None, ["Conv"]), (False, ["Conv"]), (True, ["Dropout", "Conv"])])
def test_dropout_is_dropped_unless_it_drops(mode: bool | None, ops: list[str], random: np.random.Generator) -> None:
    inputs = "x" if mode is None else "x ratio mode"
    constants = {"kernel": weight(random, 5, 3, 1, 1), "ratio": np.float32(0.5), "mode": np.array(bool(mode))}
    nodes = [node("Dropout", inputs, "dropped"), node("Conv", "dropped kernel", "y")]
    assert op_types(simplified(network(nodes, constants))) == ops


def test_dropout_whose_mode_is_computed_stays(random: np.random.Generator) -> None:
    nodes = [
        node("ReduceMax", "x", "largest", keepdims=0),
        node("Greater", "largest ratio", "mode"),
        node("Dropout", "x ratio mode", "dropped"),
        node("Conv", "dropped kernel", "y"),
    ]
    model = network(nodes, {"kernel": weight(random, 5, 3, 1, 1), "ratio": np.float32(0.5)})
    assert "Dropout" in op_types(simplified(model))
