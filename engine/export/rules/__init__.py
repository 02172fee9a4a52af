"""The gradient rules, one for each operator of the `ai.onnx` domain.

A rule is a function `rule(g, node, dys, index)`: it appends to the graph the nodes that compute the gradient with
respect to input `index` of `node`, and returns that gradient.

* `g`: the `GraphBuilder` to append with. The node's own inputs and outputs may be used: the forward pass is in the
graph.
* `dys`: the gradient at the node's first output; at every output, in order, for operators that are registered with
  `every_output`.
* `index`: an input that the gradient flows through. Constants are never asked for.
* Axis 0 of every activation is the batch, and it is symbolic. A gradient's batch equals the activation's, or the
  activation's is 1 and the gradient's is the number of classes: a rule broadcasts along axis 0 and never sums over it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import GraphBuilder, describe
from engine.export.rules import (
    activation,
    arithmetic,
    convolution,
    linear,
    normalization,
    pooling,
    reduction,
    shaping,
)

Rule = Callable[[GraphBuilder, ir.Node, Sequence[ir.Value], int], ir.Value]


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and the versions of the operator that it was written for.

    Attributes:
        rule: The function.
        versions: The operator's schema versions, the opsets in which its specification changed.
        every_output: Whether gradients may come from every output; otherwise only from the first.
    """

    rule: Rule
    versions: tuple[int, ...]
    every_output: bool = False


RULES: Mapping[str, Entry] = {
    "Add": Entry(arithmetic.add, (14,)),
    "AveragePool": Entry(pooling.average_pool, (11, 19, 22)),
    "BatchNormalization": Entry(normalization.batch_normalization, (15,)),
    "Clip": Entry(activation.clip, (13,)),
    "Concat": Entry(shaping.concat, (13,)),
    "Conv": Entry(convolution.conv, (11, 22)),
    "ConvTranspose": Entry(convolution.conv_transpose, (11, 22)),
    "Flatten": Entry(shaping.reshape, (13, 21, 23, 24, 25)),
    "Gemm": Entry(linear.gemm, (13,)),
    "GlobalAveragePool": Entry(pooling.global_average_pool, (1, 22)),
    "GroupNormalization": Entry(normalization.group_normalization, (18, 21)),
    "InstanceNormalization": Entry(normalization.instance_normalization, (6, 22)),
    "LRN": Entry(normalization.local_response_normalization, (13,)),
    "LayerNormalization": Entry(normalization.layer_normalization, (17,)),
    "LpNormalization": Entry(normalization.lp_normalization, (1, 22)),
    "MatMul": Entry(linear.matmul, (13,)),
    "MaxPool": Entry(pooling.max_pool, (12, 22)),
    "MeanVarianceNormalization": Entry(normalization.mean_variance_normalization, (13,)),
    "Pad": Entry(shaping.pad, (13, 18, 19, 21, 23, 24, 25)),
    "RMSNormalization": Entry(normalization.rms_normalization, (23,)),
    "ReduceMean": Entry(reduction.reduce_mean, (13, 18)),
    "Relu": Entry(activation.relu, (14,)),
    "Reshape": Entry(shaping.reshape, (14, 19, 21, 23, 24, 25)),
}


def entry_for(node: ir.Node, opset: int) -> Entry:
    """Return the gradient rule of a node, and what it covers.

    Raises:
        UnsupportedOpError: The operator, or its version in this opset, has no rule.
    """
    entry = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if entry is None:
        op_type = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise UnsupportedOpError(
            f"{describe(node)}: operator {op_type} has no gradient rule; known are {', '.join(sorted(RULES))}. Add one "
            "(docs/add-an-op.md in the engine's repository tells how), or choose feature layers (--layer) that come "
            "after this node"
        )
    version = onnx.defs.get_schema(node.op_type, opset).since_version
    if version not in entry.versions:
        raise UnsupportedOpError(
            f"{describe(node)}: is version {version} of {node.op_type}, by the model's opset {opset}; the gradient "
            f"rule covers versions {', '.join(map(str, entry.versions))}: convert the model with onnx.version_converter"
        )
    return entry
