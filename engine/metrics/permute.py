"""Permuting the learned tensors of a bundle's graphs, for the randomisation check."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engine.bundle import Bundle
from engine.errors import BundleError
from engine.export.pack import write_graphs

_LEARNED = {
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
}
"""The inputs of each op that hold learned parameters, where they are constants."""
_SCALED = {"Add": (0, 1), "Div": (1,), "Mul": (0, 1), "Sub": (0, 1)}
"""The same of ops whose constants are learned only after the first op of `_LEARNED`; a single number never is."""


def learned_tensors(bundle: Bundle) -> dict[str, list[str]]:
    """Return the names of the learned tensors of each block, by the block's name; a shared one is listed in each.

    Constants that are not learned are left out: means and scales of the input, bounds of Clip, scales of Resize.
    """
    learned: dict[str, list[str]] = {}
    met = False
    for name in (*(f"block{number}" for number in range(1, len(bundle.layers) + 1)), "head"):
        learned[name] = []
        for node in ir.load(bundle.path / f"{name}.onnx").graph:
            met = met or node.op_type in _LEARNED
            positions = _LEARNED.get(node.op_type) or (_SCALED.get(node.op_type, ()) if met else ())
            for value in (node.inputs[index] for index in positions if index < len(node.inputs)):
                constant = _stored(value)
                if constant is not None and constant.name and constant.const_value and constant.const_value.size > 1:
                    learned[name].append(constant.name)
    return learned


def _stored(value: ir.Value | None) -> ir.Value | None:
    """Return the initializer behind an input, through the DequantizeLinear of a quantized weight."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "DequantizeLinear":
        value = node.inputs[0]
    return value if value is not None and value.is_initializer() else None


def write_permuted(bundle: Bundle, blocks: Iterable[str], folder: Path, seed: int) -> None:
    """Write all graphs of a bundle with the learned tensors of some blocks permuted.

    Args:
        bundle: The compiled model.
        blocks: Names of the blocks.
        folder: Where the graphs go; it is made.
        seed: Chooses the permutations.

    Raises:
        BundleError: The graphs cannot be written.
    """
    learned = learned_tensors(bundle)
    names = {name for block in blocks for name in learned[block]}
    graphs = {file.stem: ir.load(file) for file in sorted(bundle.path.glob("*.onnx"))}
    for model in graphs.values():
        for graph in (model.graph, *model.graph.subgraphs()):
            _permute(graph.initializers, names, seed)
    work = folder.with_suffix(".part")
    try:
        work.mkdir(exist_ok=True)
        write_graphs(work, graphs)
        work.rename(folder)
    except OSError as err:
        raise BundleError(
            f"{work}: the randomised graphs cannot be written: {err.strerror}; use a cascade within its with block, "
            "and make room in the folder for temporary files, or choose another by the environment variable TMPDIR"
        ) from err


def _permute(constants: Mapping[str, ir.Value], names: set[str], seed: int) -> None:
    for name in names & constants.keys():
        tensor = constants[name].const_value
        if tensor is not None:
            content = tensor.numpy()
            digest = hashlib.sha256(name.encode()).digest()
            generator = np.random.default_rng([seed, *digest])
            permuted = generator.permutation(content.ravel()).reshape(content.shape)
            constants[name].const_value = ir.Tensor(permuted, dtype=tensor.dtype, name=name)
