"""Giving every tensor its shape, [batch, sizes …], and every node shape arguments that are constants.

What people hold differs from that in two ways. Files traced with one image have the batch written into the arguments of
Reshape, Expand and Resize; files traced with a dynamic batch compute these arguments from the image's shape.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.export.constants import LARGEST_TENSOR, compute
from engine.export.graph import GraphBuilder, describe, from_image, input_at
from engine.export.simplify import is_random, keep_only_outputs, simplify
from engine.export.windows import kernel_shape, windows_of

BATCH = "batch"
_PROBES = (7919, 7907)
_LARGEST_SHAPE_ARGUMENT = 1024
_LONGEST_REASON = 300
_POOLS = frozenset({"AveragePool", "MaxPool"})
_SHAPE_UNKNOWN_TO_ONNX = frozenset({"GroupNormalization"})  # it is that of the input
_SHAPE_OPS = frozenset({"Shape", "Size"})
_SHAPE, _SIZES, _SCALES = 1, 3, 2
_WRITTEN_SIZES = {"Expand": _SHAPE, "Reshape": _SHAPE, "Resize": _SIZES}


@dataclass(frozen=True, slots=True)
class Inference:
    """What is known of a graph when the image input has one known shape.

    Attributes:
        values: Types and shapes by tensor name.
        arithmetic: Outcomes of the nodes that shapes alone decide, by tensor name.
    """

    values: dict[str, ir.Value]
    arithmetic: dict[str, NDArray[np.generic]]

    def sizes(self, name: str | None) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None when part of it is unknown."""
        known = self.values.get(str(name))
        if known is None or known.shape is None or not all(isinstance(size, int) for size in known.shape):
            return None
        return tuple(int(str(size)) for size in known.shape)


def free_batch(model: ir.Model, batch: int) -> None:
    """Rewrite the arguments in which the batch's size is written, so that the graph takes batches of any size.

    Reshape [1, 512] becomes [-1, 512], Expand [8, 4, 7, 7] becomes [1, 4, 7, 7], and the sizes of Resize become
    scales. `settle_shapes` then proves that the batch stays on axis 0, and names the node where it does not.

    Args:
        model: The model; its input says its shape, and may have any batch.
        batch: The size that the file was made for: its fixed batch, or 1.

    Raises:
        ModelError: The graph contradicts itself.
    """
    try:
        inference = _infer(model, batch)
    except onnx.shape_inference.InferenceError as err:
        raise ModelError(
            f"is not a valid ONNX model: {_one_line(err)}; expected nodes whose shapes agree: export the model again"
        ) from err
    g = GraphBuilder(model.graph, "batch")
    moving = from_image(model.graph)
    for node in list(model.graph):
        index = _WRITTEN_SIZES.get(node.op_type, len(node.inputs))
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.const_value is None or node.inputs[0] not in moving:
            continue
        argument = value.const_value.numpy()
        sizes = inference.sizes(node.outputs[0].name)
        if sizes and argument.size == len(sizes) and argument[0] == sizes[0] == batch:
            _take_any_batch(g, node, index, argument, inference)


def settle_shapes(model: ir.Model) -> None:
    """Give every tensor its shape and every node constant shape arguments.

    Shapes are inferred with a prime for the batch, so that a tensor whose axis 0 is anything else shows; where
    arguments are computed from shapes, with a second prime, so that what depends on the batch shows.

    Raises:
        ModelError: Axis 0 of an activation is not the batch, the size of another axis cannot be inferred, or a node
            depends on the batch's size in a way that cannot be written for all sizes.
        UnsupportedOpError: Runtimes give a pool another size than ONNX.
    """
    try:
        inference = _infer(model, _PROBES[0])
        while _resolve_branches(model, inference):
            inference = _infer(model, _PROBES[0])
        other = _infer(model, _PROBES[1]) if inference.arithmetic else inference
    except onnx.shape_inference.InferenceError as err:
        raise ModelError(
            f"does not take batches of any size: {_one_line(err)}; expected nodes that do: export the model with a "
            "dynamic batch"
        ) from err
    _make_arguments_constant(model.graph, inference, other)
    keep_only_outputs(model)
    moving = from_image(model.graph)
    for node in model.graph:
        for value in node.outputs:
            if value.uses() or value.is_graph_output():
                found = inference.values.get(str(value.name))
                value.shape, value.type = _settled(node, value, found, moving=value in moving)
        if node.op_type in _POOLS and len(kernel_shape(node)) == 2:
            windows_of(node, kernel_shape(node))  # refuses windows that runtimes leave out


def _infer(model: ir.Model, batch: int) -> Inference:
    """Infer types and shapes for batches of one size, and evaluate what shapes alone decide."""
    proto = _without_weights(model, batch)
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    arithmetic: dict[str, NDArray[np.generic]] = {}
    while True:
        _expect_sizes(proto)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
        values = {
            value.name: ir.serde.deserialize_value_info_proto(value, None)
            for value in (*inferred.value_info, *inferred.output, inferred.input[0])
        }
        inference = Inference(values, arithmetic)
        outcomes = dict(_evaluated(proto.graph, inference, known, model.opset_imports[""]))
        if not outcomes:
            return inference
        arithmetic |= outcomes
        known |= outcomes
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in outcomes.items())
        left = [node for node in proto.graph.node if not outcomes.keys() & set(node.output)]
        del proto.graph.node[:]
        proto.graph.node.extend(left)


def _expect_sizes(proto: onnx.ModelProto) -> None:
    """Check that no size is negative, as those of images smaller than a kernel are.

    onnx's inference gives such sizes without a word, and then ends the process at a Slice of one (measured: onnx 1.23).
    So shapes are inferred as if every Slice took everything.

    Raises:
        ModelError: A size is negative.
    """
    if not any(node.op_type == "Slice" for node in proto.graph.node):
        return
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    for node in whole.graph.node:
        if node.op_type == "Slice":
            node.op_type = "Identity"
            del node.input[1:]
    makers = {name: node for node in whole.graph.node for name in node.output}
    for value in onnx.shape_inference.infer_shapes(whole, data_prop=True).graph.value_info:
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim
        ]
        if any(isinstance(size, int) and size < 0 for size in sizes):
            raise _impossible(f"{makers[value.name].op_type} node {makers[value.name].name!r}", value.name, sizes)


def _impossible(subject: str, name: str | None, sizes: Sequence[object]) -> ModelError:
    return ModelError(
        f"{subject} makes {name!r} of shape [{', '.join(map(_shown, sizes))}]; expected sizes of 0 and more, and at "
        f"most {LARGEST_TENSOR} elements of one image: check its attributes and the image size"
    )


def _without_weights(model: ir.Model, batch: int) -> onnx.ModelProto:
    """Return the model for one batch size; constants too large for a shape argument are inputs without numbers."""
    light = model.clone()
    graph = light.graph
    image = graph.inputs[0]
    image.shape = ir.Shape([batch, *(image.shape or ())[1:]])
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > _LARGEST_SHAPE_ARGUMENT:
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    proto = ir.to_proto(light)
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        if node.op_type in _SHAPE_UNKNOWN_TO_ONNX:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return proto


def _evaluated(
    graph: onnx.GraphProto, inference: Inference, known: Mapping[str, NDArray[np.generic]], opset: int
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the outcomes of the nodes that take a shape, and of small ones that compute with such outcomes alone."""
    shaped = set(inference.arithmetic)
    values = dict(known)
    for node in graph.node:
        shape = inference.sizes(node.input[0]) if node.op_type in _SHAPE_OPS else None
        if shape is not None:
            feeds: dict[str, NDArray[np.generic]] = {node.input[0]: np.broadcast_to(np.float32(0), shape)}
        elif (
            not shaped.intersection(node.input)
            or any(name and name not in values for name in node.input)
            or any(_is_large(inference.sizes(name)) for name in node.output)
            or any(attribute.HasField("g") for attribute in node.attribute)
            or node.domain
            or is_random(node.op_type)
        ):
            continue
        else:
            feeds = {name: values[name] for name in node.input if name}
        for name, outcome in zip(node.output, compute(node, feeds, opset), strict=True):
            values[name] = outcome
            shaped.add(name)
            yield name, outcome


def _is_large(sizes: tuple[int, ...] | None) -> bool:
    return sizes is None or math.prod(sizes) > _LARGEST_SHAPE_ARGUMENT


def _resolve_branches(model: ir.Model, inference: Inference) -> bool:
    """Put the branch that is taken in the place of each If whose condition is known; return whether there was one."""
    graph = model.graph
    resolved = False
    for node in list(graph):
        if node.op_type != "If" or node.domain:
            continue
        condition = input_at(node, 0)
        constant = condition.const_value
        known = inference.arithmetic.get(str(condition.name)) if constant is None else constant.numpy()
        if known is None:
            continue
        branch = node.attributes["then_branch" if bool(known.reshape(())) else "else_branch"].as_graph()
        for value in list(branch.initializers.values()):
            del branch.initializers[str(value.name)]
            graph.register_initializer(value)
        body, results = list(branch), list(branch.outputs)
        branch.outputs.clear()
        branch.remove(body)
        graph.insert_before(node, body)
        for old, new in zip(node.outputs, results, strict=True):
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            if new.producer() in body:
                old.name, new.name = f"{old.name}/branch", old.name
        graph.remove(node, safe=True)
        resolved = True
    if resolved:
        simplify(model)
    return resolved


def _make_arguments_constant(graph: ir.Graph, inference: Inference, other: Inference) -> None:
    """Replace every argument that is computed from shapes by a constant that holds for all batches."""
    g = GraphBuilder(graph, "shape")
    for node in list(graph):
        if any(str(value.name) in inference.arithmetic for value in node.outputs):
            continue
        for index, value in enumerate(node.inputs):
            argument = None if value is None else inference.arithmetic.get(str(value.name))
            if value is None or argument is None:
                continue
            if np.array_equal(argument, other.arithmetic[str(value.name)]):
                node.replace_input_with(index, g.constant(argument))
            else:
                _take_any_batch(g, node, index, argument, inference)


def _take_any_batch(
    g: GraphBuilder, node: ir.Node, index: int, argument: NDArray[np.generic], inference: Inference
) -> None:
    """Rewrite a shape argument in which the batch's size is written.

    Raises:
        ModelError: The argument cannot be written for all batches.
    """
    sizes = inference.sizes(node.outputs[0].name)
    before = inference.sizes(input_at(node, 0).name)
    if node.op_type == "Reshape" and index == _SHAPE and sizes:
        node.replace_input_with(index, g.ints([-1, *sizes[1:]]))
    elif node.op_type == "Expand" and index == _SHAPE and sizes and argument.size == len(sizes):
        node.replace_input_with(index, g.ints([1, *argument[1:]]))
    elif node.op_type == "Resize" and index == _SIZES and sizes and before and argument.size == len(sizes):
        scales = [_scale(n, o) for n, o in zip(before[1:], sizes[1:], strict=True)]
        node.replace_input_with(index, None)
        node.replace_input_with(_SCALES, g.constant(np.array([1.0, *scales], np.float32)))
    else:
        raise ModelError(
            f"{describe(node)}: its input {index} ({input_at(node, index).name!r}) depends on the size of the batch; "
            "expected that only of Reshape, Expand and Resize, which can be written for any batch: export the model "
            "with a dynamic batch"
        )


def _scale(before: int, after: int) -> np.float32:
    """Return the float32 scale with which ⌊before·scale⌋ = after, in float32 as in float64."""
    scale = np.float32(after / before)
    while math.floor(before * float(scale)) < after or math.floor(np.float32(before) * scale) < after:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _settled(
    node: ir.Node, value: ir.Value, found: ir.Value | None, *, moving: bool
) -> tuple[ir.Shape, ir.TypeProtocol | None]:
    if found is None or found.shape is None:
        foreign = f"is of the operator {node.domain}::{node.op_type}, none of ONNX's own"
        reason = foreign if node.domain else f"makes {value.name!r} of unknown shape"
        raise ModelError(f"{describe(node)}: {reason}; expected standard operators whose shapes ONNX can infer")
    sizes = tuple(found.shape)
    known = [int(size) for size in sizes[moving:] if isinstance(size, int)]
    if min(known, default=1) < 0 or math.prod(known) > LARGEST_TENSOR:
        raise _impossible(describe(node), value.name, sizes)
    if all(isinstance(size, int) for size in sizes):
        if not moving:
            return ir.Shape(sizes), found.type
        if sizes and sizes[0] == _PROBES[0] and all(size % _PROBES[0] or not size for size in sizes[1:]):
            return ir.Shape([BATCH, *sizes[1:]]), found.type
    raise ModelError(
        f"{describe(node)} makes {value.name!r} of shape [{', '.join(map(_shown, sizes))}]; expected the batch on axis "
        "0 and a known size on every other axis: export the model with a dynamic batch and a fixed image size"
    )


def _shown(size: object) -> str:
    if isinstance(size, int) and size and size % _PROBES[0] == 0:
        return BATCH if size == _PROBES[0] else f"{size // _PROBES[0]}·{BATCH}"
    return str(size)


def _one_line(err: Exception) -> str:
    """Return what onnx says of the first node; the others follow from it."""
    return textwrap.shorten(str(err), _LONGEST_REASON, placeholder=" …")
