"""Splitting a graph at its feature layers into blocks and a head."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of the network, from one feature layer to the next.

    Attributes:
        name: `block1` … `blockL`, then `head`.
        model: The piece, with one input and one output.
    """

    name: str
    model: ir.Model


def split(model: ir.Model, layers: Sequence[str]) -> list[Block]:
    """Split the model into L blocks, each ending in a feature layer, and the head that ends in the logits.

    Args:
        model: The imported model, with one input and the logits as its one output.
        layers: Names of the L feature layers, shallow to deep; each the only live activation at its place.
    """
    graph = model.graph
    bounds = [graph.inputs[0].name or "", *layers, graph.outputs[0].name or ""]
    names = [f"block{number}" for number in range(1, len(layers) + 1)] + ["head"]
    return [
        Block(name, _piece(model, name, source, output))
        for name, source, output in zip(names, bounds, bounds[1:], strict=False)
    ]


def _piece(model: ir.Model, name: str, source: str, output: str) -> ir.Model:
    graph = ir.convenience.extract(model.graph, [source], [output])
    graph.name = name
    return ir.Model(graph, ir_version=model.ir_version, producer_name=model.producer_name)
