"""The forward graph in int8: 8-bit activations, and 8-bit weights with a scale for each output channel.

ONNX Runtime's quantizer writes QuantizeLinear and DequantizeLinear around the ops. What it is told is chosen here:
which ops stay float32, the ranges of the activations, and weights that lie on their grid already (decision 10).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from engine.errors import ModelError
from engine.export.activations import LEVELS, Floats, Moments, observe
from engine.export.graph import input_at
from engine.export.rounding import LARGEST, round_weights
from engine.export.simplify import keep_only_outputs, strip, unique_name
from engine.export.windows import windows_of

METHOD = "qdq-static-per-channel-u8s8"
_ALONG = ("Relu", "Clip", "MaxPool", "AveragePool", "Concat", "Add")  # between convolutions; the others stay float32
_LARGEST_BIAS = 2**30  # of an int32


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantized graph.

    Attributes:
        model: The graph, of the same input and output.
        convolutions: How many convolutions compute in int8.
        left_out: Names of the outputs of those that stay float32.
    """

    model: ir.Model
    convolutions: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Convolution:
    """A convolution that can be quantized.

    Attributes:
        node: The Conv node.
        weight: float32 [O, C/groups, kh, kw].
        bias: float32 [O], zeros where the node has none.
    """

    node: ir.Node
    weight: Floats
    bias: Floats

    @property
    def name(self) -> str:
        """The name of its output."""
        return str(self.node.outputs[0].name)


def quantize(model: ir.Model, images: Floats) -> Quantized:
    """Quantize a forward graph.

    The first convolution stays float32, and so does a depthwise one right behind it: a rounded image costs more than
    all other activations together. All that is not a convolution, or moves and adds what convolutions make, stays
    float32 as well, such as the linear layers.

    Args:
        model: Its constants are in memory; it is changed.
        images: Calibration images, float32 [n, C, H, W].

    Raises:
        ModelError: No convolution can be quantized, or an activation is not finite.
        BackendError: The runtime failed.
    """
    graph = model.graph
    convolutions = quantizable(graph)
    if not convolutions:
        raise ModelError(
            "no convolution of the model can be quantized: the first stays float32, and so does one whose weights are "
            "no constants; expected a deeper network, or an export without int8"
        )
    convs = [convolution.node for convolution in convolutions]
    chosen = [*convs, *_along(graph, convs)]
    ranges, moments = observe(model, convs, _activations(graph, chosen), images)
    grids = {}
    for convolution in convolutions:
        low, high = ranges[str(input_at(convolution.node, 0).name)]
        weight, steps = _put_on_grid(graph, convolution, moments[convolution.name], (high - low) / LEVELS)
        grids[weight] = steps
    for value in [value for value in graph.initializers.values() if not value.uses()]:
        del graph.initializers[str(value.name)]
    proto = _with_qdq(ir.to_proto(model), [str(node.name) for node in chosen], ranges, grids)
    return Quantized(
        model=_without_traces(proto),
        convolutions=len(convs),
        left_out=tuple(str(node.outputs[0].name) for node in graph if node.op_type == "Conv" and node not in convs),
    )


def quantizable(graph: ir.Graph) -> list[Convolution]:
    """Return the convolutions to quantize: those with constant weights, but for the first ones."""
    depth: dict[ir.Value, int] = {}  # how many convolutions a value has behind it
    found = []
    for node in graph:
        behind = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        if node.op_type == "Conv":
            convolution = _read(node)
            if convolution is not None and behind >= (2 if convolution.weight.shape[1] == 1 else 1):
                found.append(convolution)
            behind += 1
        depth |= dict.fromkeys(node.outputs, behind)
    return found


def _read(node: ir.Node) -> Convolution | None:
    """Return a Conv node of images with constant weights, that pads rather than crops; None if it is another."""
    weight, bias = _constant(node, 1), _constant(node, 2)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if weight is None or weight.ndim != 4 or (has_bias and bias is None):
        return None
    windows = windows_of(node, weight.shape[2:])
    if min(*windows.begin, *windows.end) < 0:
        return None
    return Convolution(node=node, weight=weight, bias=np.zeros(len(weight), np.float32) if bias is None else bias)


def _constant(node: ir.Node, index: int) -> Floats | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy().astype(np.float32)


def _along(graph: ir.Graph, convs: Sequence[ir.Node]) -> list[ir.Node]:
    """Return the nodes that move or add what quantized convolutions make; none of them makes the logits."""
    carried, found = {conv.outputs[0] for conv in convs}, []
    for node in graph:
        if _goes_along(node) and node.outputs[0] not in graph.outputs and not carried.isdisjoint(node.inputs):
            carried.add(node.outputs[0])
            found.append(node)
    return found


def _goes_along(node: ir.Node) -> bool:
    """Tell whether a node is one of `_ALONG` and computes with activations alone, but for the bounds of a Clip.

    The quantizer leaves a Clip to the range of the 8 bits, which holds 0: the Clip must let it through.
    """
    if node.op_type == "Clip":
        low, high = _constant(node, 1), _constant(node, 2)
        return low is not None and high is not None and float(low) <= 0 <= float(high)
    return node.op_type in _ALONG and all(value is not None and value.const_value is None for value in node.inputs)


def _activations(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[str]:
    """Return the names of the activations that go into these nodes and come out of them, but for the logits."""
    values = (value for node in nodes for value in (*node.inputs, *node.outputs))
    names = (str(v.name) for v in values if v is not None and v.const_value is None and v not in graph.outputs)
    return list(dict.fromkeys(names))


def _put_on_grid(
    graph: ir.Graph, convolution: Convolution, moments: Moments, input_step: float
) -> tuple[str, NDArray[np.float64]]:
    """Give a convolution weights that 8 bits hold, and a bias that makes up for what rounding adds to the mean.

    Args:
        graph: The graph that it is in; other nodes may share the constants that it had.
        convolution: The convolution.
        moments: Those of its input.
        input_step: The step of its input's 8 bits.

    Returns:
        The name of the new weights, and the step of each output channel, float64 [O].

    Source: Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019,
        section 4.2. Departs: the mean is that of the calibration images.
    """
    groups = len(moments.total)
    weight = convolution.weight.astype(np.float64).reshape(groups, len(convolution.bias) // groups, -1)
    bias = convolution.bias.astype(np.float64).reshape(groups, -1)
    step = np.abs(weight).max(axis=2) / LARGEST
    if input_step > 0:  # the bias counts in steps of the weights times those of the input
        step = np.maximum(step, np.abs(bias) / (input_step * _LARGEST_BIAS))
    step = step.astype(np.float32).astype(np.float64)
    step[step == 0] = 1.0
    rounded = round_weights(weight, step, moments.covariance) * step[:, :, None]
    bias -= np.einsum("gok,gk->go", rounded - weight, moments.mean)
    convolution.node.resize_inputs(3)
    parts = (("weight", rounded.reshape(convolution.weight.shape)), ("bias", bias.ravel()))
    for index, (role, values) in enumerate(parts, start=1):
        name = unique_name(f"{convolution.name}/{role}", set(graph.initializers))
        array = values.astype(np.float32)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
        value.const_value = ir.tensor(array, name=name)
        graph.register_initializer(value)
        convolution.node.replace_input_with(index, value)
    return str(input_at(convolution.node, 1).name), np.asarray(step.ravel())


def _with_qdq(
    proto: onnx.ModelProto,
    nodes: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
    grids: Mapping[str, NDArray[np.float64]],
) -> onnx.ModelProto:
    """Let ONNX Runtime's quantizer insert QuantizeLinear and DequantizeLinear around some nodes."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType  # no one else needs it
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    seen = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    overrides = {
        name: [
            {"quant_type": QuantType.QInt8, "axis": 0, "scale": np.float32(step), "zero_point": np.int8(0)}
            for step in steps
        ]
        for name, steps in grids.items()
    }
    quantizer = QDQQuantizer(
        proto,
        True,  # a scale for each output channel
        False,  # all 8 bits of the weights
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, seen),
        list(nodes),
        [],
        [*_ALONG, "Conv"],
        {"TensorQuantOverrides": overrides, "QDQDisableWeightAdjustForInt32Bias": True},
    )
    quantized: onnx.ModelProto = quantizer.quantize_model()
    return quantized


def _without_traces(proto: onnx.ModelProto) -> ir.Model:
    """Return a model in order, without what the quantizer writes about itself."""
    strip(proto)
    proto.ClearField("producer_name")
    proto.ClearField("producer_version")
    model = ir.from_proto(proto)
    keep_only_outputs(model)  # the quantizer appends its nodes in no order
    return model
