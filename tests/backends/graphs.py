"""Graphs for tests of backends."""

import onnx
from onnx import TensorProto, helper


def two_outputs() -> onnx.ModelProto:
    """Inputs a and b; outputs b − a and a·b, declared in that order."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("a", "b", "less", "times")]
    nodes = [helper.make_node("Mul", ["a", "b"], ["times"]), helper.make_node("Sub", ["b", "a"], ["less"])]
    made = helper.make_graph(nodes, "two", values[:2], values[2:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def slow() -> onnx.ModelProto:
    """Input x [1024, 1024], which 400 times is multiplied by itself and cut off: many seconds, if nobody stops it."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1024, 1024]) for name in ("x", "y400")]
    nodes = []
    for number in range(400):
        before = f"y{number}" if number else "x"
        nodes.append(helper.make_node("MatMul", [before, "x"], [f"product{number}"]))
        nodes.append(helper.make_node("Relu", [f"product{number}"], [f"y{number + 1}"]))
    made = helper.make_graph(nodes, "slow", ends[:1], ends[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
