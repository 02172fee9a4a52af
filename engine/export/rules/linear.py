"""Gradient rules of matrix products."""

from collections.abc import Sequence

import onnx_ir as ir

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    describe,
    fixed_shape,
    float_attribute,
    input_at,
    int_attribute,
    static_shape,
)


def gemm(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dA = alpha·dy·Bᵀ for Y = alpha·A·B + beta·C with constant B and C."""
    if index != 0 or int_attribute(node, "transA", 0) == 1:
        raise UnsupportedOpError(
            f"{describe(node)}: expected the activation as input A, with transA = 0, and constants as B and C"
        )
    return g.op(
        "Gemm",
        dys[0],
        input_at(node, 1),
        alpha=float_attribute(node, "alpha", 1.0),
        transB=1 - int_attribute(node, "transB", 0),
    )


def matmul(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dA = dy·Bᵀ and dB = Aᵀ·dy for Y = A·B.

    One factor is a constant matrix, or both are activations with the same leading axes.
    """
    here, other = input_at(node, index), input_at(node, 1 - index)
    sizes, fixed = static_shape(here), fixed_shape(other)
    if fixed is not None:
        rank = len(fixed)
        fits = rank == 2 and len(sizes) > index  # a matrix before [N, K] would mix the rows of the batch
    else:
        rank = 1 + len(sizes)
        fits = rank > 2 and len(static_shape(other)) == len(sizes) and static_shape(other)[:-2] == sizes[:-2]
    if not fits:
        raise UnsupportedOpError(
            f"{describe(node)}: multiplies {here.name!r} {here.shape} and {other.name!r} {other.shape}; expected a "
            "constant matrix, or two activations with the same leading axes"
        )
    transposed = g.op("Transpose", other, perm=[*range(rank - 2), rank - 1, rank - 2])
    return g.op("MatMul", dys[0], transposed) if index == 0 else g.op("MatMul", transposed, dys[0])
