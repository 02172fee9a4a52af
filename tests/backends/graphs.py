"""Graphs for tests of backends."""

import onnx
from onnx import TensorProto, helper


def two_outputs() -> onnx.ModelProto:
    """Inputs a and b; outputs b − a and a·b, declared in that order."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("a", "b", "less", "times")]
    nodes = [helper.make_node("Mul", ["a", "b"], ["times"]), helper.make_node("Sub", ["b", "a"], ["less"])]
    made = helper.make_graph(nodes, "two", values[:2], values[2:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
