"""Small helpers over onnx-ir: facts about values, and appending nodes to a graph.

Every activation has its batch on axis 0 and all other axes of known size: `source.load_source` has made sure.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from engine.errors import ModelError, UnsupportedOpError

_COMPARISONS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "Not", "Or"})
_INDICES = frozenset({"ArgMax", "NonZero", "Shape"})

AttributeValue: TypeAlias = int | float | str | Sequence[int] | Sequence[float] | ir.Graph


def describe(node: ir.Node) -> str:
    """Return `Conv node 'stem/conv'`, the way messages name a node."""
    return f"{node.op_type} node {node.name!r}"


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """Return the sizes of all axes but the first of an activation: (C, H, W) of [N, C, H, W].

    Raises:
        ModelError: An axis other than the first has no known size.
    """
    sizes = None if value.shape is None else value.shape[1:]
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        raise ModelError(
            f"tensor {value.name!r} has shape {value.shape}; expected a known size on every axis but the "
            "first, the batch: export the model with a fixed image size"
        )
    return tuple(int(str(size)) for size in sizes)


def input_at(node: ir.Node, index: int) -> ir.Value:
    """Return a required input of the node.

    Raises:
        ModelError: The node lacks it.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ModelError(f"{describe(node)}: has no input {index}; expected one, by the ONNX specification")
    return value


def fixed_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the sizes of all axes of a value, or None if one is unknown.

    Parameters have known sizes: constants, and what is computed from constants alone. Activations have not: their
    batch is symbolic.
    """
    shape = value.shape if value.const_value is None else value.const_value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(int(str(size)) for size in shape)


def parameter_shape(node: ir.Node, index: int) -> tuple[int, ...]:
    """Return the sizes of the parameter at input `index` of the node.

    Raises:
        UnsupportedOpError: The input is an activation.
        ModelError: The node lacks it.
    """
    value = input_at(node, index)
    shape = fixed_shape(value)
    if shape is None:
        raise UnsupportedOpError(
            f"{describe(node)}: input {index} ({value.name!r}) has shape {value.shape}; expected a constant, of known "
            "size on every axis"
        )
    return shape


def expect_activation_first(node: ir.Node, index: int, *parameters: str) -> None:
    """Check that a gradient is asked for at input 0, where all other inputs are parameters.

    Args:
        node: The node.
        index: The input that the gradient is asked for at.
        parameters: What the inputs from 1 on are called.

    Raises:
        UnsupportedOpError: A parameter is computed from the image.
    """
    if index != 0:
        raise UnsupportedOpError(
            f"{describe(node)}: its {parameters[index - 1]} is computed from the image; expected a constant"
        )


def constant_array(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    """Return the constant at input `index` of the node, or None if that optional input is absent.

    Raises:
        UnsupportedOpError: The input is computed from the image.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    if value.const_value is None:
        raise UnsupportedOpError(
            f"{describe(node)}: input {index} ({value.name!r}) is computed from the image; expected a constant"
        )
    return value.const_value.numpy()


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute or its default of the ONNX specification."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """Return an integer-list attribute or its default of the ONNX specification."""
    attribute = node.attributes.get(name)
    return tuple(default) if attribute is None else tuple(attribute.as_ints())


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute or its default of the ONNX specification, both of float32 precision."""
    attribute = node.attributes.get(name)
    return float(np.float32(default if attribute is None else attribute.as_float()))


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """Return a string attribute or its default of the ONNX specification.

    Raises:
        ModelError: It is no text.
    """
    attribute = node.attributes.get(name)
    if attribute is not None and not isinstance(attribute.value, str):
        raise ModelError(f"{describe(node)}: its attribute {name!r} is {attribute.value!r}; expected text in UTF-8")
    return default if attribute is None else attribute.as_string()


def from_image(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors that are computed from the image, and the image; the graph is in topological order."""
    moving = set(graph.inputs)
    for node in graph:
        if any(value in moving for value in node.inputs):
            moving.update(node.outputs)
    return moving


class GraphBuilder:
    """Appends nodes and constants to a graph, with names that are unique and the same on every run.

    Args:
        graph: The graph to append to.
        prefix: Leads every name that the builder gives, so that generated nodes stand out from the source's.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._taken = {value.name for value in graph.inputs} | set(graph.initializers)
        for node in graph:
            self._taken.add(node.name)
            self._taken.update(output.name for output in node.outputs)
        self._count = 0

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: AttributeValue) -> ir.Value:
        """Append one node and return its single output, of the element type that the operator gives."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, count: int, *inputs: ir.Value | None, **attributes: AttributeValue) -> list[ir.Value]:
        """Append one node and return its outputs, of the element type that the operator gives the first."""
        name = self._unique(op_type)
        outputs = [ir.Value(name=self._unique(op_type) if number else name) for number in range(count)]
        data = [value for value in inputs if value is not None]
        dtype = data[1 if op_type == "Where" else 0].dtype
        dtype = ir.DataType.BOOL if op_type in _COMPARISONS else ir.DataType.INT64 if op_type in _INDICES else dtype
        for output in outputs:
            output.type = None if dtype is None else ir.TensorType(dtype)
        self.graph.append(
            ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes), outputs=outputs, name=name)
        )
        return outputs

    def cast(self, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        """Append a Cast.

        Raises:
            ModelError: The element type to cast to is unknown.
        """
        if dtype is None:
            raise ModelError(f"tensor {value.name!r}: its gradient's element type is unknown; expected a typed graph")
        output = self.op("Cast", value, to=int(dtype))
        output.dtype = dtype
        return output

    def count_up(self, count: ir.Value) -> ir.Value:
        """Append the numbers from 0 up to a count int64 [1], without it: int64 [count]."""
        return self.op("Range", self.ints(0), self.op("Squeeze", count, self.ints([0])), self.ints(1))

    def positions(self, wanted: ir.Value) -> ir.Value:
        """Append the numbers of the elements of bool [n] that are true, int64 [m]."""
        return self.op("Reshape", self.op("NonZero", wanted), self.ints([-1]))

    def inner(self, name: str) -> "GraphBuilder":
        """Return the builder of a graph within this one, which may use its values."""
        name = self._unique(name)
        versions = self.graph.opset_imports
        return GraphBuilder(ir.Graph([], [], nodes=[], name=name, opset_imports=versions), name)

    def branch(
        self,
        condition: ir.Value,
        then: "GraphBuilder",
        results: Sequence[ir.Value],
        other: "GraphBuilder",
        other_results: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """Append an If.

        Args:
            condition: bool [1].
            then: Builder of the graph that runs if it is true.
            results: Its outputs.
            other: Builder of the graph that runs if it is false.
            other_results: Its outputs.
        """
        then.graph.outputs.extend(results)
        other.graph.outputs.extend(other_results)
        found = self.ops("If", len(results), condition, then_branch=then.graph, else_branch=other.graph)
        for value, result in zip(found, results, strict=True):
            value.type = result.type
        return found

    def loop_body(self, name: str, start: Mapping[str, ir.Value]) -> tuple["GraphBuilder", ir.Value, list[ir.Value]]:
        """Begin the body of a Loop. What it carries keeps its shape: not every runtime lets it grow.

        Args:
            name: What its names begin with.
            start: What it carries from one step to the next, by name, as it is before the first.

        Returns:
            The body's builder, the number of the step, int64 [], and what is carried, as it is before that step.
        """
        body = self.inner(name)
        number = ir.Value(name=body._unique("step"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        going = ir.Value(name=body._unique("going"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        carried = [ir.Value(name=body._unique(key), type=value.type) for key, value in start.items()]
        body.graph.inputs.extend([number, going, *carried])
        body.graph.outputs.append(body.op("Identity", going))
        return body, number, carried

    def loop(
        self, body: "GraphBuilder", steps: ir.Value, start: Mapping[str, ir.Value], after: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Append a Loop, and return what it carries, as it is after the last step.

        Args:
            body: Builder of its body, from `loop_body`.
            steps: int64 [1], how many.
            start: As for `loop_body`.
            after: What the body carries, as it is after a step.
        """
        body.graph.outputs.extend(after)
        count = self.op("Squeeze", steps, self.ints([0]))
        found = self.ops("Loop", len(start), count, None, *start.values(), body=body.graph)
        for value, first in zip(found, start.values(), strict=True):
            value.type = first.type
        return found

    def ints(self, values: ArrayLike) -> ir.Value:
        """Return an int64 constant."""
        return self.constant(np.asarray(values, np.int64))

    def doubles(self, values: ArrayLike) -> ir.Value:
        """Return a float64 constant."""
        return self.constant(np.asarray(values, np.float64))

    def floats(self, values: ArrayLike, like: ir.Value) -> ir.Value:
        """Return a floating-point constant of the element type of `like`."""
        if like.dtype is None:
            raise ModelError(f"tensor {like.name!r} has no known element type")
        return self.constant(np.asarray(values, like.dtype.numpy()))

    def constant(self, array: NDArray[np.generic]) -> ir.Value:
        """Return a constant of the array's element type; equal ones are made once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unique("constant")
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def _unique(self, stem: str) -> str:
        while True:
            name = f"{self.prefix}/{stem}_{self._count}"
            self._count += 1
            if name not in self._taken:
                self._taken.add(name)
                return name
