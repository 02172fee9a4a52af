"""Edits of ONNX models that keep them models: nodes, edges, attributes, constants, inputs, outputs, versions."""

from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.fuzz.extremes import FLOATS, INT64, TEXTS, edit_bytes

Edit = Callable[[Random, onnx.ModelProto], str]

_OPS = (
    *(
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Relu",
        "Clip",
        "Softmax",
    ),
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Sqrt", "Exp", "Log", "Neg", "Abs", "Erf", "Gelu", "Elu"),
    *("Gemm", "MatMul", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Pad"),
    *("Expand", "Tile", "Gather", "Where", "Resize", "Cast", "Identity", "Dropout", "Constant", "ConstantOfShape"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "BatchNormalization", "InstanceNormalization", "LRN"),
    *("LayerNormalization", "GroupNormalization", "DepthToSpace", "SpaceToDepth", "QuantizeLinear", "DequantizeLinear"),
    *("Shape", "Size", "NonZero", "Range", "OneHot", "TopK", "ArgMax", "RandomNormalLike", "RandomNormal", "Bernoulli"),
    *("If", "Loop", "Scan", "SequenceConstruct", "SequenceAt", "Optional", "StringNormalizer", "Einsum", "LSTM"),
    *("NonMaxSuppression", "ScatterND", "GatherND", "CumSum", "Upsample", "Mish", "HardSwish", "PRelu", "Selu", "Det"),
    *("Nonsense", ""),
)
_ATTRIBUTES = (
    *("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad", "ceil_mode", "count_include_pad", "axis"),
    *("axes", "keepdims", "perm", "alpha", "beta", "transA", "transB", "epsilon", "to", "mode", "blocksize", "value"),
    *(
        "output_padding",
        "output_shape",
        "storage_order",
        "training_mode",
        "min",
        "max",
        "size",
        "allowzero",
        "batch_dims",
    ),
    *("num_outputs", "coordinate_transformation_mode", "nearest_mode", "equation", "nonsense", ""),
)
_LISTS = (
    (),
    (0,),
    (-1,),
    (1, 1),
    (0, 0),
    (2, 2),
    (-1, -1, -1, -1),
    (1, 0, 0, 1),
    (0, 1, 2, 3),
    (3, 2, 1, 0),
    (5, 5, 5),
)
_OPSETS = (0, -1, 1, 7, 9, 10, 11, 13, 16, 17, 18, 20, 21, 22, 23, 24, 25, 99, 2**31, 2**63 - 1)
_IR_VERSIONS = (0, -1, 1, 2, 3, 4, 8, 10, 11, 12, 13, 14, 99, 2**31, 2**63 - 1)
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "local", "nonsense")
_KEYS = ("location", "offset", "length", "checksum", "nonsense")
_PLACES = (*TEXTS[:12], "weights.data", "./weights.data", "../model.onnx", "model.onnx", "/dev/zero", "/proc/self/mem")
_LARGEST_ARRAY = 4096


def edit_graph(random: Random, model: onnx.ModelProto) -> str:
    """Change one thing of a model, and say what."""
    return random.choice(EDITS)(random, model)


def _drop_node(random: Random, model: onnx.ModelProto) -> str:
    nodes = _body(random, model).node
    at = random.randrange(len(nodes))
    gone = _name(nodes[at])
    del nodes[at]
    return f"drop {gone}"


def _bypass_node(random: Random, model: onnx.ModelProto) -> str:
    """Drop a node, and give its input to those who took its output."""
    graph = _body(random, model)
    node = random.choice(graph.node)
    if not node.input or not node.output:
        return "nothing"
    for other in graph.node:
        for index, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[index] = node.input[0]
    return f"bypass {_name(node)}"


def _duplicate_node(random: Random, model: onnx.ModelProto) -> str:
    graph = _body(random, model)
    node = onnx.NodeProto()
    node.CopyFrom(random.choice(graph.node))
    if random.random() < 0.5:
        node.output[:] = [f"{name}_copy" for name in node.output]
    graph.node.insert(random.randrange(len(graph.node) + 1), node)
    return f"duplicate {_name(node)}"


def _move_node(random: Random, model: onnx.ModelProto) -> str:
    nodes = _body(random, model).node
    node = nodes.pop(random.randrange(len(nodes)))
    at = random.randrange(len(nodes) + 1)
    nodes.insert(at, node)
    return f"move {_name(node)} to {at}"


def _insert_node(random: Random, model: onnx.ModelProto) -> str:
    """Put a node of any operator on an edge."""
    graph = _body(random, model)
    node = random.choice(graph.node)
    if not node.input:
        return "nothing"
    index = random.randrange(len(node.input))
    op_type = random.choice(_OPS)
    extra = [random.choice(_edges(graph)) for _ in range(random.choice((0, 0, 1, 2)))]
    inserted = helper.make_node(op_type, [node.input[index], *extra], ["inserted"], name="inserted")
    for _ in range(random.choice((0, 0, 1, 2))):
        inserted.attribute.append(_attribute(random))
    at = next(i for i, other in enumerate(graph.node) if other is node or other == node)
    node.input[index] = "inserted"
    graph.node.insert(at, inserted)
    return f"insert {op_type} of {list(inserted.input)} before {_name(node)}: {_text(inserted.attribute)}"


def _rewire(random: Random, model: onnx.ModelProto) -> str:
    """Give an input or output another name: of another edge, of its own node, of none, or nothing."""
    graph = _body(random, model)
    node = random.choice(graph.node)
    names = random.choice((node.input, node.input, node.output))
    if not names:
        return "nothing"
    index = random.randrange(len(names))
    names[index] = random.choice((*_edges(graph), *node.output, "dangling", "", random.choice(TEXTS[:-1])))
    return f"rewire {_name(node)}: {list(node.input)} → {list(node.output)}"[:300]


def _change_arity(random: Random, model: onnx.ModelProto) -> str:
    graph = _body(random, model)
    node = random.choice(graph.node)
    names = random.choice((node.input, node.output))
    if names and random.random() < 0.5:
        del names[random.randrange(len(names))]
    else:
        names.append(random.choice((*_edges(graph), "more", "")))
    return f"change the edges of {_name(node)}: {list(node.input)} → {list(node.output)}"


def _change_op(random: Random, model: onnx.ModelProto) -> str:
    node = random.choice(_body(random, model).node)
    before = _name(node)
    if random.random() < 0.8:
        node.op_type = random.choice(_OPS)
    else:
        node.domain = random.choice(_DOMAINS)
    return f"{before} becomes {node.domain}::{node.op_type}"


def _change_attribute(random: Random, model: onnx.ModelProto) -> str:
    """Delete, add, duplicate or change an attribute, now and then into one of another type."""
    graph = _body(random, model)
    node = random.choice([node for node in graph.node if node.attribute] or list(graph.node))
    edit = random.randrange(8)
    if edit == 0 and node.attribute:
        del node.attribute[random.randrange(len(node.attribute))]
    elif edit == 1:
        node.attribute.append(_attribute(random))
    elif node.attribute:
        attribute = random.choice(node.attribute)
        if edit == 2:
            node.attribute.append(attribute)
        elif edit == 3:
            attribute.CopyFrom(_attribute(random, attribute.name))
        else:
            _change_number(random, attribute)
    return f"attributes of {_name(node)}: {_text(node.attribute)}"


def _change_number(random: Random, attribute: AttributeProto) -> None:
    if attribute.type == AttributeProto.INT:
        attribute.i = random.choice(INT64)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = random.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = random.choice(
            (b"", b"\xff", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"cubic", b"nearest", b"edge")
        )
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(INT64)
    elif attribute.type == AttributeProto.INTS:
        attribute.ints.append(random.choice(INT64))
    elif attribute.type == AttributeProto.TENSOR:
        _spoil(random, attribute.t)
    else:
        attribute.type = random.choice((0, 1, 2, 5, 7))


def _change_initializer(random: Random, model: onnx.ModelProto) -> str:
    """Change the shape, type, name, numbers or data of a constant, or drop or duplicate it."""
    graph = model.graph
    if not graph.initializer:
        return "nothing"
    at = random.randrange(len(graph.initializer))
    tensor = graph.initializer[at]
    edit = random.randrange(5)
    if edit == 0:
        del graph.initializer[at]
        return f"drop initializer {at}"
    if edit == 1:
        graph.initializer.append(tensor)
        return f"duplicate initializer {tensor.name}"
    return f"initializer {tensor.name}: {_spoil(random, tensor)}"


def _spoil(random: Random, tensor: TensorProto) -> str:
    edit = random.randrange(6)
    if edit == 0:
        if tensor.dims and random.random() < 0.6:
            tensor.dims[random.randrange(len(tensor.dims))] = random.choice(INT64)
        elif tensor.dims and random.random() < 0.5:
            del tensor.dims[-1]
        else:
            tensor.dims.append(random.choice(INT64))
        return f"dims {list(tensor.dims)}"
    if edit == 1:
        tensor.data_type = random.choice((*range(24), 99, -1))
        return f"data type {tensor.data_type}"
    if edit == 2:
        tensor.name = random.choice(("", "x", "w1", "logits", "dangling", "weight", "two\nlines", "x" * 300))
        return f"name {tensor.name!r}"
    if edit == 3:
        tensor.raw_data = random.choice((b"", tensor.raw_data[:-1], tensor.raw_data + b"\0", tensor.raw_data * 2))
        return f"{len(tensor.raw_data)} bytes"
    return f"numbers {_set_number(random, tensor)}"


def _set_number(random: Random, tensor: TensorProto) -> object:
    """Replace one number, or all, by an extreme one."""
    if tensor.data_location == TensorProto.EXTERNAL or not 0 < np.prod(tensor.dims, dtype=float) <= _LARGEST_ARRAY:
        return "left alone"
    try:
        array = numpy_helper.to_array(tensor).copy()
    except (ValueError, TypeError, KeyError):  # an edit before has made it no tensor
        return "left alone"
    if array.dtype.kind not in "fiu":
        return "left alone"
    with np.errstate(all="ignore"):
        value = np.asarray(random.choice(FLOATS if array.dtype.kind == "f" else INT64)).astype(array.dtype)
    if random.random() < 0.3:
        array[...] = value
    else:
        array.reshape(-1)[random.randrange(array.size)] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return value


def _change_external(random: Random, model: onnx.ModelProto) -> str:
    """Point a constant at another file, place or length."""
    if not model.graph.initializer:
        return "nothing"
    tensor = random.choice(model.graph.initializer)
    if tensor.data_location != TensorProto.EXTERNAL:
        tensor.data_location = TensorProto.EXTERNAL
        if random.random() < 0.5:
            tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value=str(random.choice(_PLACES)))
    key = random.choice(_KEYS)
    entry = next((entry for entry in tensor.external_data if entry.key == key), None) or tensor.external_data.add(
        key=key
    )
    entry.value = str(random.choice(_PLACES)) if key == "location" else str(random.choice((*INT64, "", "x", "1e3")))
    if random.random() < 0.1:
        del tensor.external_data[random.randrange(len(tensor.external_data))]
    return f"external data of {tensor.name}: {[(entry.key, entry.value) for entry in tensor.external_data]}"[:300]


def _change_input(random: Random, model: onnx.ModelProto) -> str:
    graph = model.graph
    edit = random.randrange(8)
    if edit == 0 and graph.input:
        del graph.input[random.randrange(len(graph.input))]
    elif edit == 1 and graph.input:
        graph.input.append(random.choice(graph.input))
    elif edit == 2:
        graph.input.append(helper.make_tensor_value_info(random.choice(_edges(graph)), TensorProto.FLOAT, [1]))
    elif graph.input:
        return f"input: {_change_value(random, graph.input[0])}"
    return f"{len(graph.input)} inputs"


def _change_output(random: Random, model: onnx.ModelProto) -> str:
    graph = _body(random, model)
    edit = random.randrange(8)
    if edit == 0 and graph.output:
        del graph.output[random.randrange(len(graph.output))]
    elif edit == 1 and graph.output:
        graph.output.append(random.choice(graph.output))
    elif edit < 5 and graph.output:
        graph.output[0].name = random.choice((*_edges(graph), "dangling", ""))
        graph.output[0].type.tensor_type.ClearField("shape")
        return f"output {graph.output[0].name!r}"
    elif graph.output:
        return f"output: {_change_value(random, graph.output[0])}"
    return f"{len(graph.output)} outputs"


def _change_value(random: Random, value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = kind.shape.dim
    edit = random.randrange(8)
    if edit == 0:
        kind.elem_type = random.choice((0, 1, 2, 7, 8, 9, 10, 11, 16, 99))
    elif edit == 1:
        value.name = random.choice(("", "dangling", "w1", "logits", "conv1", "target", "two\nlines"))
    elif edit == 2:
        value.ClearField("type")
    elif edit == 3 and dims:
        del dims[random.randrange(len(dims))]
    elif edit == 4:
        dims.add().dim_value = random.choice(INT64)
    elif dims:
        dim = random.choice(dims)
        dim.Clear()
        if random.random() < 0.8:
            dim.dim_value = random.choice((*INT64, 16, 32, 100))
        elif random.random() < 0.8:
            dim.dim_param = random.choice(("n", "batch", "", "two\nlines"))
    shape = [dim.dim_value or dim.dim_param for dim in dims]
    return f"{value.name!r} of type {kind.elem_type} {shape}"


def _add_value_info(random: Random, model: onnx.ModelProto) -> str:
    """State a shape or type of an inner tensor, mostly a false one."""
    graph = _body(random, model)
    name = random.choice(_edges(graph))
    shape = [random.choice(INT64) for _ in range(random.randrange(5))]
    graph.value_info.append(helper.make_tensor_value_info(name, random.choice((1, 7, 10)), shape))
    return f"{name} is said to be {shape}"


def _change_version(random: Random, model: onnx.ModelProto) -> str:
    edit = random.randrange(5)
    if edit < 2 and model.opset_import:
        random.choice(model.opset_import).version = random.choice(_OPSETS)
    elif edit == 2:
        model.ir_version = random.choice(_IR_VERSIONS)
    elif edit == 3:
        model.opset_import.add(domain=random.choice(_DOMAINS), version=random.choice(_OPSETS))
    elif model.opset_import:
        del model.opset_import[random.randrange(len(model.opset_import))]
    return f"IR {model.ir_version}, opsets {[(entry.domain, entry.version) for entry in model.opset_import]}"


def _change_function(random: Random, model: onnx.ModelProto) -> str:
    """Make a node a call of a local function, which may call itself."""
    node = random.choice(model.graph.node)
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.input[:] = [f"in{index}" for index in range(len(node.input))]
    inner.output[:] = [f"out{index}" for index in range(len(node.output))]
    if random.random() < 0.3:
        inner.op_type, inner.domain = "Called", "local"
    imports = [helper.make_opsetid("", random.choice((11, 17, 18))), helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function("local", "Called", inner.input, inner.output, [inner], imports))
    if all(entry.domain != "local" for entry in model.opset_import):
        model.opset_import.add(domain="local", version=1)
    node.op_type, node.domain = "Called", "local"
    del node.attribute[:]
    return f"{node.name} calls a function of one {inner.domain}::{inner.op_type}"


EDITS: tuple[Edit, ...] = (
    *(_drop_node, _bypass_node, _duplicate_node, _move_node, _insert_node, _insert_node, _rewire, _rewire),
    *(_change_arity, _change_op, _change_op, _change_attribute, _change_attribute, _change_attribute),
    *(_change_initializer, _change_initializer, _change_initializer, _change_external, _change_input, _change_input),
    *(_change_output, _add_value_info, _change_version, _change_function),
)


def mutate(random: Random, model: onnx.ModelProto) -> tuple[bytes, list[str]]:
    """Return a file's bytes after one to three edits, or after edits of its bytes, and what was done."""
    if random.random() < 0.1:
        return edit_bytes(random, model.SerializeToString()), ["edit the file's bytes"]
    done: list[str] = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if model.graph.node:
            done.append(edit_graph(random, model))
    return model.SerializeToString(), done


def _body(random: Random, model: onnx.ModelProto) -> onnx.GraphProto:
    """Return the graph, or now and then one that a node of it holds."""
    inner = [
        attribute.g
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.type == AttributeProto.GRAPH and attribute.g.node
    ]
    return random.choice(inner) if inner and random.random() < 0.2 else model.graph


def _edges(graph: onnx.GraphProto) -> list[str]:
    names = [value.name for value in (*graph.input, *graph.initializer)]
    return [*names, *(name for node in graph.node for name in node.output)] or ["nothing"]


def _attribute(random: Random, name: str | None = None) -> AttributeProto:
    name = random.choice(_ATTRIBUTES) if name is None else name
    kind = random.randrange(7)
    if kind == 0:
        return helper.make_attribute(name, random.choice((b"", b"SAME_UPPER", b"\xff\xfe", b"cubic")))
    if kind == 1:
        return helper.make_attribute(name, float(random.choice((0.0, 1.0, -1.0, float("nan"), 1e38))))
    if kind < 4:
        return helper.make_attribute(name, random.choice(INT64))
    if kind == 4:
        return helper.make_attribute(name, numpy_helper.from_array(np.array(random.choice(INT64))))
    return helper.make_attribute(name, list(random.choice(_LISTS)), attr_type=AttributeProto.INTS)


def _text(attributes: object) -> str:
    return ", ".join(" ".join(str(entry).split()) for entry in attributes)[:300]  # type: ignore[attr-defined]


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name[:40]}"
