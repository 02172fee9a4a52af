"""One pretrained network in every form in which people hold models: SqueezeNet 1.1, which has only old operators."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

SIZE = 224


def open_sizes(model: onnx.ModelProto) -> None:
    """Leave H and W open."""
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name


def fixed_batch(model: onnx.ModelProto) -> None:
    """Fix the batch at 1, and flatten as a traced `x.view(x.size(0), -1)` does."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    flatten = model.graph.node[-1]
    assert flatten.op_type == "Flatten"
    flatten.op_type = "Reshape"
    del flatten.attribute[:]
    flatten.input.append("traced")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "traced"))


def opset_11(model: onnx.ModelProto) -> None:
    """Say opset 11 and IR version 3, whose initializers are inputs too; this network's operators are as old."""
    model.opset_import[0].version = 11
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def channels_last(model: onnx.ModelProto) -> None:
    """Take images [N, H, W, C] and transpose them, as tf2onnx does."""
    image = model.graph.input[0]
    model.graph.node[0].input[0] = "channels_first"
    model.graph.node.insert(0, helper.make_node("Transpose", [image.name], ["channels_first"], perm=[0, 3, 1, 2]))
    image.CopyFrom(helper.make_tensor_value_info(image.name, TensorProto.FLOAT, ["batch", SIZE, SIZE, 3]))


def float16(model: onnx.ModelProto) -> None:
    """Round weights, images and logits to float16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]


def rounded(model: onnx.ModelProto, kind: DTypeLike = np.float16) -> None:
    """Keep float32, with weights that a type of half precision can hold."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(kind).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


FORMS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "open H and W": open_sizes,
    "batch fixed at 1": fixed_batch,
    "opset 11, IR 3": opset_11,
    "channels last": channels_last,
    "float16": float16,
}
"""Forms that keep the network's numbers, but for float16, which rounds its weights."""


def write(source: Path, form: str, folder: Path) -> Path:
    """Write the network in one of the `FORMS`."""
    model = onnx.load(source)
    FORMS[form](model)
    path = folder / f"{form.replace(' ', '_')}.onnx"
    onnx.save(model, path)
    return path


def write_quantized(source: Path, images: list[NDArray[np.float32]], folder: Path) -> Path:
    """Quantize the network statically by ONNX Runtime's own tool: QDQ, int8, per channel.

    Args:
        source: The network.
        images: Calibration batches, float32 [N, C, H, W].
        folder: Where to write.
    """
    name = onnx.load(source).graph.input[0].name

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            self._left: Iterator[NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._left, None)
            return None if image is None else {name: image}

    path = folder / "int8.onnx"
    quantization.quantize_static(
        source,
        path,
        Calibration(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    return path
