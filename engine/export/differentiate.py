"""Reverse-mode differentiation of an ONNX graph, by appending nodes to it."""

from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir
from onnx_ir.passes import common as passes

from engine.errors import ModelError, UnsupportedOpError
from engine.export.graph import GraphBuilder, describe, static_shape
from engine.export.rules import Entry, entry_for
from engine.export.split import Block


def append_gradients(
    g: GraphBuilder, seeds: Mapping[ir.Value, ir.Value], wanted: Collection[ir.Value], opset: int
) -> dict[ir.Value, ir.Value]:
    """Append the nodes that compute ∂⟨output, seed⟩/∂v for every wanted value v.

    No gradient flows through booleans: the condition of a Where is a constant to it.

    Args:
        g: Builder of the graph, whose nodes are in topological order.
        seeds: For each output that is differentiated, the gradient at it.
        wanted: Values of the graph whose gradients are asked for.
        opset: The graph's opset, by which rules are chosen.

    Returns:
        For each wanted value its gradient, of its shape but for the batch, which is the seed's.

    Raises:
        UnsupportedOpError: A node between a wanted value and an output has no rule, or its rule does not cover it.
        ModelError: An output does not depend on a wanted value.
    """
    forward = list(g.graph)
    carrying = reached_by(forward, wanted)
    gradients = dict(seeds)
    for node in reversed(forward):
        indices = [index for index, value in enumerate(node.inputs) if value in carrying]
        if not indices or not any(output in gradients for output in node.outputs):
            continue
        entry = entry_for(node, opset)
        dys = _gradients_at(g, node, gradients, entry)
        for index in indices:
            value = node.inputs[index]
            contribution = entry.rule(g, node, dys, index)
            if value is not None:
                known = gradients.get(value)
                gradients[value] = contribution if known is None else g.op("Add", known, contribution)

    missing = [value.name for value in wanted if value not in gradients]
    if missing:
        raise ModelError(f"the output does not depend on {missing}; expected feature layers that lead to the logits")
    return {value: gradients[value] for value in wanted}


def reached_by(nodes: Iterable[ir.Node], wanted: Iterable[ir.Value]) -> set[ir.Value]:
    """Return the wanted values and all that a gradient may flow back from to one of them: no booleans.

    Args:
        nodes: The nodes of a graph, in topological order.
        wanted: Values of the graph.
    """
    carrying = set(wanted)
    for node in nodes:
        if any(value in carrying for value in node.inputs):
            carrying.update(output for output in node.outputs if output.dtype != ir.DataType.BOOL)
    return carrying


def _gradients_at(
    g: GraphBuilder, node: ir.Node, gradients: Mapping[ir.Value, ir.Value], entry: Entry
) -> list[ir.Value]:
    """Return the gradients at the node's outputs: at the first, or at all, with zeros where nothing flows back."""
    known = [gradients.get(output) for output in node.outputs]
    if not entry.every_output:
        first, *others = known
        if first is None or any(dy is not None for dy in others):
            position = next(place for place in range(len(known) - 1, -1, -1) if known[place] is not None)
            raise UnsupportedOpError(
                f"{describe(node)}: its output {position} ({node.outputs[position].name!r}) leads to the logits; the "
                "gradient rule covers output 0 only: choose feature layers (--layer) that come after this node"
            )
        return [first]
    batch = g.op("Shape", next(dy for dy in known if dy is not None), start=0, end=1)
    batch.dtype = ir.DataType.INT64
    dys = []
    for output, dy in zip(node.outputs, known, strict=True):
        if dy is None:
            sizes = g.op("Concat", batch, g.ints(static_shape(output)), axis=0)
            dy = g.op("Expand", g.floats(0.0, output), sizes)
        dys.append(dy)
    return dys


def sum_over_space(g: GraphBuilder, gradient: ir.Value) -> ir.Value:
    """Sum a gradient [K, C, H, W] over H and W: the average gradients [K, C] of the method, up to a factor."""
    return g.op("ReduceSum", gradient, g.ints([2, 3]), keepdims=0)


def companion(block: Block) -> ir.Model:
    """Build a block's gradient companion.

    The companion takes the block's input [N, C, H, W] and the gradient at its output [M, …], recomputes what it needs
    of the block, and returns the gradient at the input [M, C, H, W] and its sum over H and W [M, C]. M equals N, or N
    is 1 and M the number of classes.

    Raises:
        UnsupportedOpError: A node of the block has no gradient rule.
    """
    model = block.model.clone()
    graph = model.graph
    source, output = graph.inputs[0], graph.outputs[0]
    shape = None if output.shape is None else ir.Shape(["gradient_batch", *output.shape[1:]])
    seed = ir.Value(name=f"gradient_of/{output.name}", shape=shape, type=output.type)
    graph.inputs.append(seed)
    g = GraphBuilder(graph, "gradient")
    gradient = append_gradients(g, {output: seed}, [source], model.opset_imports[""])[source]
    total = sum_over_space(g, gradient)
    if gradient is seed:
        gradient = g.op("Identity", gradient)
    for value, name, sizes in (
        (gradient, f"gradient_of/{source.name}", source.shape[1:] if source.shape else []),
        (total, f"sum_of_gradient_of/{source.name}", source.shape[1:2] if source.shape else []),
    ):
        value.name = name
        value.shape = ir.Shape(["gradient_batch", *sizes])
    graph.outputs.clear()
    graph.outputs.extend([gradient, total])
    passes.RemoveUnusedNodesPass()(model)
    return model
