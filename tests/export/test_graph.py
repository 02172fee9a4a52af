import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import ModelError, UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    constant_array,
    describe,
    expect_activation_first,
    fixed_shape,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    parameter_shape,
    static_shape,
    string_attribute,
)
from engine.export.rules import RULES
from tests.export.networks import imported, network, node


def value(name: str, *sizes: int | str | None, dtype: ir.DataType | None = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(sizes), type=None if dtype is None else ir.TensorType(dtype))


def builder(*inputs: ir.Value) -> GraphBuilder:
    return GraphBuilder(ir.Graph(inputs, [], nodes=[], opset_imports={"": 17}, name="tiny"), "g")


def test_static_shape() -> None:
    assert static_shape(value("x", "batch", 3, 8, 6)) == (3, 8, 6)
    assert static_shape(value("x", 1, 5)) == (5,)
    assert static_shape(value("x", None)) == ()


@pytest.mark.parametrize(
    ("tensor", "shown"),
    [(value("x", "batch", 3, "H"), r"\[batch,3,H\]"), (value("x", "batch", None), r"\[batch,None\]")],
    ids=["named", "unknown"],
)
def test_unknown_size_is_refused(tensor: ir.Value, shown: str) -> None:
    message = (
        rf"^tensor 'x' has shape {shown}; expected a known size on every axis but the first, the batch: export the "
        "model with a fixed image size$"
    )
    with pytest.raises(ModelError, match=message):
        static_shape(tensor)


def test_unknown_shape_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^tensor 'x' has shape None; expected a known size on every axis but"):
        static_shape(ir.Value(name="x"))


def test_inputs_of_a_node() -> None:
    x = value("x", "batch", 3)
    lonely = ir.Node("", "Add", [x, None], name="stem/add")
    assert describe(lonely) == "Add node 'stem/add'"
    assert input_at(lonely, 0) is x
    for index in (1, 2):
        message = rf"^Add node 'stem/add': has no input {index}; expected one, by the ONNX specification$"
        with pytest.raises(ModelError, match=message):
            input_at(lonely, index)


def test_parameters_have_a_fixed_shape_and_activations_none() -> None:
    nodes = [node("Add", "half half", "w"), node("MatMul", "x w", "y")]
    add, product = imported(network(nodes, {"half": np.ones((8, 5), np.float32)})).graph
    assert fixed_shape(add.inputs[0]) == fixed_shape(add.outputs[0]) == (8, 5)
    assert add.outputs[0].const_value is None
    assert fixed_shape(product.inputs[0]) is None
    assert fixed_shape(ir.Value(name="unknown")) is None
    assert parameter_shape(product, 1) == (8, 5)
    message = (
        r"^MatMul node 'node_y': input 0 \('x'\) has shape \[batch,3,8,8\]; expected a constant, of known size on "
    )
    with pytest.raises(UnsupportedOpError, match=message + r"every axis$"):
        parameter_shape(product, 0)


def test_gradients_are_asked_for_at_the_activation_alone() -> None:
    conv = ir.Node("", "Conv", [value(name, 1) for name in ("x", "w", "b")], name="stem/conv")
    expect_activation_first(conv, 0, "weight", "bias")
    for index, called in ((1, "weight"), (2, "bias")):
        message = rf"^Conv node 'stem/conv': its {called} is computed from the image; expected a constant$"
        with pytest.raises(UnsupportedOpError, match=message):
            expect_activation_first(conv, index, "weight", "bias")


def test_float_attributes_and_their_defaults_are_float32() -> None:
    given = ir.Node("", "LRN", [value("x", 1)], [ir.AttrFloat32("alpha", 0.1)], name="lrn")
    assert float_attribute(given, "alpha", 0.5) == float_attribute(given, "beta", 0.1) == float(np.float32(0.1))


def test_constant_input_of_a_node() -> None:
    (read,) = imported(network([node("Clip", "x low", "y")], {"low": np.float32(0.5)})).graph
    assert constant_array(read, 1) == np.float32(0.5)
    assert constant_array(read, 2) is None
    message = r"^Clip node 'node_y': input 0 \('x'\) is computed from the image; expected a constant$"
    with pytest.raises(UnsupportedOpError, match=message):
        constant_array(read, 0)
    (read,) = imported(network([node("Clip", "x - low", "y")], {"low": np.float32(0.5)})).graph
    assert constant_array(read, 1) is None


def test_attributes_and_their_defaults() -> None:
    entry = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 3], auto_pad="VALID", alpha=0.5)
    read = ir.from_proto(entry)
    assert (int_attribute(read, "group", 1), int_attribute(read, "axis", -1)) == (2, -1)
    assert (ints_attribute(read, "strides", ()), ints_attribute(read, "pads", [0, 1])) == ((2, 3), (0, 1))
    assert (string_attribute(read, "auto_pad", ""), string_attribute(read, "mode", "constant")) == ("VALID", "constant")
    assert (float_attribute(read, "alpha", 1.0), float_attribute(read, "beta", 1.5)) == (0.5, 1.5)
    assert float_attribute(read, "gamma", 0.1) == float(np.float32(0.1)) != 0.1


def test_string_attribute_that_is_no_text() -> None:
    pool = ir.Node("", "MaxPool", [value("x", 1)], [ir.Attr("auto_pad", ir.AttributeType.STRING, b"\xff")], name="pool")
    text = r"MaxPool node 'pool': its attribute 'auto_pad' is b'\\xff'; expected text in UTF-8"
    with pytest.raises(ModelError, match=f"^{text}$"):
        string_attribute(pool, "auto_pad", "NOTSET")


def test_builder_names_are_unique_and_avoid_the_graph_s() -> None:
    model = imported(network([node("Relu", "x", "g/Relu_0"), node("Relu", "g/Relu_0", "y")], {"g/constant_1": 1.0}))
    g = GraphBuilder(model.graph, "g")
    made = [g.ints([1]), g.op("Relu", model.graph.inputs[0]), g.ints([2]), g.op("Relu", model.graph.inputs[0])]
    names = [entry.name for entry in made]
    assert len(set(names)) == 4
    assert all(name.startswith("g/") for name in names)
    assert not {"g/Relu_0", "g/constant_1"}.intersection(names)
    assert [entry.name for entry in model.graph][-2:] == [names[1], names[3]]


def test_builder_makes_each_constant_once() -> None:
    x, d = value("x", "batch", 3), value("d", "batch", 3, dtype=ir.DataType.DOUBLE)
    g = builder(x, d)
    assert g.ints([1, 2]) is g.ints((1, 2))
    assert g.ints([1, 2]) is not g.ints([[1, 2]])
    assert g.ints([1]) is not g.ints(1)
    assert g.floats(1.0, x) is g.floats(1.0, x)
    assert g.floats(1.0, x) is not g.floats(1.0, d)
    assert (g.ints([1]).dtype, g.floats(0.1, x).dtype) == (ir.DataType.INT64, ir.DataType.FLOAT)
    assert g.floats(0.1, x).const_value.numpy() == np.float32(0.1)
    assert g.floats(0.1, d).const_value.numpy() == 0.1
    assert len(g.graph.initializers) == 8


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Add", ir.DataType.FLOAT),
        ("Equal", ir.DataType.BOOL),
        ("Less", ir.DataType.BOOL),
        ("Greater", ir.DataType.BOOL),
    ],
)
def test_builder_knows_the_type_of_what_it_makes(op: str, expected: ir.DataType) -> None:
    x = value("x", "batch", 3)
    assert builder(x).op(op, x, x).dtype == expected


def test_builder_casts() -> None:
    x = value("x", "batch", 3)
    g = builder(x)
    made = g.cast(x, ir.DataType.BOOL)
    assert made.dtype == ir.DataType.BOOL
    assert x.dtype == ir.DataType.FLOAT
    assert made.producer().attributes["to"].as_int() == ir.DataType.BOOL


def test_unknown_element_type_is_refused() -> None:
    x = value("x", "batch", 3, dtype=None)
    g = builder(x)
    message = r"^tensor 'x': its gradient's element type is unknown; expected a typed graph$"
    with pytest.raises(ModelError, match=message):
        g.cast(x, None)
    with pytest.raises(ModelError, match=r"^tensor 'x' has no known element type$"):
        g.floats(1.0, x)


@pytest.mark.parametrize(
    ("op", "error", "message"),
    [
        ("Conv", ModelError, "has no input 1; expected one, by the ONNX specification"),
        ("Pad", UnsupportedOpError, "has no amounts to pad by; expected constants as input 1"),
        ("BatchNormalization", ModelError, "has no input 1; expected one, by the ONNX specification"),
    ],
)
def test_rules_refuse_a_node_that_lacks_its_constants(op: str, error: type[Exception], message: str) -> None:
    x = value("x", "batch", 3, 8, 8)
    bare = ir.Node("", op, [x], name="bare", outputs=[value("y", "batch", 3, 8, 8)])
    with pytest.raises(error, match=rf"^{op} node 'bare': {message}$"):
        RULES[op].rule(builder(x), bare, [value("dy", "batch", 3, 8, 8)], 0)
