"""An ONNX classifier interpreted in torch, node by node: values and float64 gradients for the tests.

Conventions at kinks (design.md, section 5): ReLU has gradient 0 at 0, Clip and HardSigmoid 0 at both bounds,
HardSwish 0 at -3 and 1 at 3, MaxPool gives the gradient to the first maximum in row-major order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from .operators import OPERATORS, Node

DECIDED_BY = {"Clip": "output", "HardSigmoid": "output", "HardSwish": "input", "MaxPool": "input", "Relu": "output"}
"""Operators that decide something per element, and the tensor that shows what they decided."""


class TorchNetwork:
    """A classifier read from an ONNX file; tensors keep the names they have there.

    Args:
        model: Path of an ONNX file, or a loaded model. One input that is not an initializer.

    Raises:
        ValueError: The graph has several inputs, or an operator that is not in `OPERATORS`.
    """

    def __init__(self, model: str | Path | onnx.ModelProto) -> None:
        proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
        graph = proto.graph
        opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
        self._arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._constants: dict[torch.dtype, dict[str, Tensor]] = {}
        inputs = [value.name for value in graph.input if value.name not in self._arrays]
        if len(inputs) != 1:
            raise ValueError(f"network: received the inputs {inputs}, expected one")
        self.input = inputs[0]
        self.outputs = [value.name for value in graph.output]
        self.nodes: list[Node] = []
        for entry in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in entry.attribute}
            name = entry.name or entry.output[0]
            if entry.op_type == "Constant" and entry.domain in ("", "ai.onnx"):
                self._arrays[entry.output[0]] = _constant(name, attributes)
            elif entry.op_type in OPERATORS and entry.domain in ("", "ai.onnx"):
                outputs = tuple(output for output in entry.output if output)
                self.nodes.append(Node(entry.op_type, name, tuple(entry.input), outputs, attributes, opset))
            else:
                raise ValueError(
                    f"node '{name}': operator {entry.domain or 'ai.onnx'}::{entry.op_type} is unknown, "
                    f"known are {', '.join(sorted(OPERATORS))}"
                )

    def decision_names(self, outputs: Sequence[str] | None = None) -> list[str]:
        """Tensors of which `run` needs float32 values to repeat a float32 run's decisions.

        The network's input may be among what decides; it is the same in both runs, so it is not listed.

        Args:
            outputs: Only what these tensors depend on; by default the network's outputs.
        """
        names = [_decider(node) for node in self._nodes_for(self.outputs if outputs is None else outputs)]
        return list(dict.fromkeys(name for name in names if name is not None and name != self.input))

    def run(
        self,
        x: NDArray[np.floating] | Tensor,
        outputs: Sequence[str],
        *,
        dtype: torch.dtype = torch.float64,
        decisions: Mapping[str, NDArray[np.floating]] | None = None,
    ) -> dict[str, Tensor]:
        """Computes tensors by name; differentiable with respect to `x` and every tensor on the way.

        Args:
            x: Network input [N, C, H, W].
            outputs: Names of the tensors to return.
            dtype: Type of the whole computation.
            decisions: Values of a float32 run by tensor name, at least `decision_names(outputs)`. The active
                set of Relu, Clip and their kin and the position of each maximum come from there, values from this run.

        Raises:
            ValueError: A name in `outputs` or a needed name in `decisions` is missing, or a shape differs.
        """
        nodes = self._nodes_for(outputs)
        start = x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
        constants = self._constants_in(dtype)
        values = {**constants, self.input: start.to(dtype)}
        uses = Counter(name for node in nodes for name in node.inputs) + Counter(outputs)
        made_by = {name: node.op for node in nodes for name in node.outputs}
        remaining = uses.copy()
        for node in nodes:
            inputs = [values[name] if name else None for name in node.inputs]
            source = node.inputs[0]
            options: dict[str, Tensor | bool] = {}
            if decisions is not None and node.op in DECIDED_BY:
                options["decision"] = self._decision(node, decisions, values)
            elif torch.is_inference_mode_enabled() and node.op in ("Relu", "Clip"):
                # Much of the time is memory traffic: reuse a convolution's result that nobody else reads.
                options["overwrite"] = uses[source] == 1 and made_by.get(source) == "Conv"
            made = OPERATORS[node.op](node, *inputs, **options)
            values |= zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True)
            remaining.subtract(node.inputs)
            for name in set(node.inputs):
                if remaining[name] == 0 and name not in constants:
                    values.pop(name, None)
        return {name: values[name] for name in outputs}

    def constant(self, name: str) -> NDArray[np.float64] | None:
        """Value of a weight or constant, None for a tensor that a node computes."""
        return None if name not in self._arrays else np.asarray(self._arrays[name], dtype=np.float64)

    def _nodes_for(self, outputs: Sequence[str]) -> list[Node]:
        """The nodes that the tensors depend on, in graph order."""
        made = {name for node in self.nodes for name in node.outputs}
        unknown = [name for name in outputs if name not in made and name != self.input]
        if unknown:
            raise ValueError(f"network: the tensors {unknown} are made by no node")
        needed = set(outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        return kept[::-1]

    def _constants_in(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Weights in the computation's type (integers as they are), made once per type."""
        if dtype not in self._constants:
            with torch.inference_mode(False):
                self._constants[dtype] = {name: _weight(array, dtype) for name, array in self._arrays.items()}
        return self._constants[dtype]

    def _decision(
        self, node: Node, decisions: Mapping[str, NDArray[np.floating]], values: Mapping[str, Tensor]
    ) -> Tensor:
        """The float32 values that decide for a node, as float64 (exact)."""
        name = _decider(node)
        assert name is not None
        if name not in decisions and name == self.input:
            return values[name].detach().to(torch.float32).to(torch.float64)
        if name not in decisions:
            raise node.refuse(f"decisions lack the tensor '{name}', see decision_names()")
        decision = torch.from_numpy(np.array(decisions[name], dtype=np.float64))
        expected = values[node.inputs[0]].shape
        if decision.shape != expected:
            raise node.refuse(f"decisions['{name}'] has shape {tuple(decision.shape)}, expected {tuple(expected)}")
        return decision


def expose(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Copy of a model that also returns the tensors `names`, after its own outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return copy


def quantization_left_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy of a quantized model that does not round: activations pass, constants become what they stand for."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            values, scale, zero = (arrays[name].astype(np.float64) for name in node.input)
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            shape = [-1 if place == axis and scale.size > 1 else 1 for place in range(values.ndim)]
            numbers = (values - zero.reshape(shape)) * scale.reshape(shape)
            graph.initializer.append(numpy_helper.from_array(numbers, node.output[0]))
        elif node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            kept.append(onnx.helper.make_node("Identity", node.input[:1], node.output[:1]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return copy


def _decider(node: Node) -> str | None:
    """Name of the tensor that shows what a node decided; None for a node that decides nothing."""
    if node.op not in DECIDED_BY:
        return None
    return node.inputs[0] if DECIDED_BY[node.op] == "input" else node.outputs[0]


def _weight(array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    """A constant as tensor; 4-D float32 weights channels last, which is twice as fast in torch on a CPU."""
    tensor = torch.from_numpy(np.array(array))
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(dtype)
    if tensor.ndim == 4 and dtype == torch.float32:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _constant(name: str, attributes: Mapping[str, object]) -> NDArray[np.generic]:
    """Value of a Constant node."""
    for attribute, value in attributes.items():
        if isinstance(value, onnx.TensorProto):
            return numpy_helper.to_array(value)
        if attribute in ("value_float", "value_floats"):
            return np.array(value, dtype=np.float32)
        if attribute in ("value_int", "value_ints"):
            return np.array(value, dtype=np.int64)
    raise ValueError(f"Constant '{name}': received the attributes {list(attributes)}, expected one numeric value")
