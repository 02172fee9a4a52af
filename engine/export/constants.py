"""Computing nodes whose inputs are all known, with onnx's own reference implementation of the operators."""

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from engine.errors import ModelError

LARGEST_TENSOR = 1 << 28
"""Elements of a tensor, of one image: 1 GiB of float32. No network that people explain comes near; broken files do."""
_LARGEST_ARGUMENT = 1024


def compute(node: onnx.NodeProto, inputs: Mapping[str, NDArray[np.generic]], opset: int) -> list[NDArray[np.generic]]:
    """Return the outputs of a node.

    Args:
        node: A node of an operator of ONNX's own, without graphs inside.
        inputs: Its inputs by name.
        opset: Version of the operators.

    Raises:
        ModelError: The node cannot be computed, or an output would be too large.
    """
    subject = f"{node.op_type} node {node.name or node.output[0]!r}"
    for name, sizes in _sizes(node, inputs, opset).items():
        if math.prod(sizes) > LARGEST_TENSOR:
            raise ModelError(
                f"{subject}: makes {name!r} of shape {list(sizes)} from constants; expected at most {LARGEST_TENSOR} "
                "elements: check the file"
            )
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are refused where they matter
            outputs = ReferenceEvaluator(node, opsets={"": opset}).run(None, dict(inputs))
        return [np.asarray(output) for _, output in zip(node.output, outputs, strict=True)]
    except Exception as err:  # the evaluator raises whatever it runs into
        raise ModelError(
            f"{subject}: cannot be computed from its constant inputs: {' '.join(str(err).split())}; expected a node "
            "that fits them, by the ONNX specification"
        ) from err


def _sizes(node: onnx.NodeProto, inputs: Mapping[str, NDArray[np.generic]], opset: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs that ONNX can infer without computing them."""
    graph = onnx.GraphProto(name="alone", node=[node])
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    for name, array in inputs.items():
        if array.size <= _LARGEST_ARGUMENT:
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred.output
        if value.type.tensor_type.HasField("shape")
    }
