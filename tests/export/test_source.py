import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from engine.backends import OnnxRuntimeCpu
from engine.errors import EngineError, ModelError, OptionError
from engine.export.source import IR_VERSION, load_source
from tests.export.networks import BATCH, image_input, network, node, small_cnn, weight, written
from tests.export.rules.gradients import error, runtime

HEAD = [node("GlobalAveragePool", "maps", "mean"), node("Flatten", "mean", "logits")]


@pytest.fixture
def kernel(random: np.random.Generator) -> np.ndarray:
    return weight(random, 5, 3, 1, 1)


def classifier(kernel: np.ndarray, **options: object) -> onnx.ModelProto:
    return network([node("Conv", "x w", "maps"), *HEAD], {"w": kernel}, outputs="logits", **options)


def refusal(model: onnx.ModelProto | bytes, folder: Path, *, output: str | None = None) -> str:
    """What `load_source` says about the model, which must start with the file's path."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load_source(path, output=output, activation="softmax")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def op_types(model: ir.Model) -> list[str]:
    return [entry.op_type for entry in model.graph]


def same_logits(model: onnx.ModelProto, source: ir.Model, image: tuple[int, ...], random) -> None:
    images = random.standard_normal((2, *image)).astype(np.float32)
    assert error(runtime(source)(images)[0], runtime(model)(images)[0].astype(np.float64)) <= 1e-6


def test_source_says_what_was_read(random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random, channels=1)
    path = written(model, tmp_path)
    source = load_source(path, activation="sigmoid")
    assert source.name == str(path)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source.output, source.activation, source.classes) == ("logits", "sigmoid", 5)
    assert (source.opset, source.image_shape) == (18, (1, 16, 12))
    assert (source.input.name, str(source.input.shape)) == ("x", "[batch,1,16,12]")
    assert (source.logits.name, str(source.logits.shape)) == ("logits", "[batch,5]")
    assert source.model.ir_version == IR_VERSION
    images = random.standard_normal((2, 1, 16, 12)).astype(np.float32)
    np.testing.assert_array_equal(source.original.open(OnnxRuntimeCpu())(images), runtime(model)(images)[0])
    assert "BatchNormalization" not in op_types(source.model)
    onnx.checker.check_model(ir.to_proto(source.model), full_check=True)
    same_logits(model, source.model, (1, 16, 12), random)


def test_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    with pytest.raises(ModelError) as caught:
        load_source(path)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory; expected an ONNX file"


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_source(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory; expected an ONNX file"


@pytest.mark.parametrize(("name", "reason"), [("n" * 300, "File name too long"), ("a\0.onnx", "embedded null byte")])
def test_names_that_no_system_takes(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_source(tmp_path / name)
    shown = f"{tmp_path / name}".replace("\0", r"\x00")
    assert str(caught.value) == f"{shown}: cannot be read: {reason}; expected an ONNX file"


def test_file_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(ModelError) as caught:
        load_source(tmp_path / "model.onnx")
    assert str(caught.value) == f"{tmp_path / 'model.onnx'}: cannot be read: Permission denied; expected an ONNX file"


def test_pipe_instead_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    os.mkfifo(path)
    with pytest.raises(ModelError) as caught:
        load_source(path)
    assert str(caught.value) == f"{path}: is no regular file; expected an ONNX file"


CHECKED = "; expected a file that onnx.checker accepts: export the model again"


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"PK\x03\x04 a zip of weights", b"\xff" * 100],
    ids=["empty", "photo", "checkpoint", "noise"],
)
def test_file_that_is_no_onnx_model(data: bytes, tmp_path: Path) -> None:
    reason = "Error parsing message with type 'onnx.ModelProto': Wire format was corrupt"
    if not data:
        reason = "The model does not have an ir_version set properly"
    assert refusal(data, tmp_path) == f"is not a valid ONNX model: {reason}{CHECKED}"


def test_model_that_breaks_the_specification(kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel)
    model.graph.node[0].input[1] = "gone"
    assert refusal(model, tmp_path) == (
        "is not a valid ONNX model: Nodes in a graph must be topologically sorted, however input 'gone' of node: name: "
        f"node_maps OpType: Conv is not output of any previous nodes{CHECKED}"
    )
    model.graph.node[0].input[1] = "w"
    model.graph.node[0].op_type = "Convolve"
    assert refusal(model, tmp_path) == (
        "is not a valid ONNX model: No Op registered for Convolve with domain_version of 18: Bad node spec for node. "
        f"Name: node_maps OpType: Convolve{CHECKED}"
    )


@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_tensor_that_holds_more_than_its_shape(place: str, kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel)
    if place == "constant":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=model.graph.initializer[0]))
        del model.graph.initializer[:]
        tensor = model.graph.node[0].attribute[0].t
    else:
        tensor = model.graph.initializer[0]
    tensor.raw_data += bytes(4)
    assert refusal(model, tmp_path) == (
        "tensor 'w' [5, 3, 1, 1] of type 1 holds other data than it says: cannot reshape array of size 16 into shape "
        "(5,3,1,1); expected numbers that fill its shape: the file is damaged, export the model again"
    )


def test_type_that_is_none(kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel)
    model.graph.value_info.append(image_input([BATCH, 5, 8, 8], "maps", dtype=99))
    assert refusal(model, tmp_path) == f"is not a valid ONNX model: 99 is not a valid DataType{CHECKED}"


def test_node_that_cannot_be_computed_from_its_constants(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Reshape", "flat shape", "w"), node("Conv", "x w", "maps"), *HEAD]
    constants = {"flat": kernel.ravel(), "shape": np.array([5, 3, 1, 1], np.int64)}
    model = network(nodes, constants, outputs="logits")
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([5, 4, 1, 1], np.int64), "shape"))
    assert refusal(model, tmp_path) == (
        "Reshape node 'node_w': cannot be computed from its constant inputs: cannot reshape array of size 15 into "
        "shape (5,4,1,1); expected a node that fits them, by the ONNX specification"
    )


def test_reason_of_many_lines_is_cut_short(random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random)
    model.graph.node[0].attribute[0].ints.append(1)
    message = refusal(model, tmp_path)
    assert message.startswith(
        "is not a valid ONNX model: [ShapeInferenceError] Inference error(s): (op_type:Conv, node name: node_conv1): "
        "[ShapeInferenceError] Attribute pads has incorrect size (op_type:BatchNormalization, node name: node_bn1): "
    )
    assert message.endswith(" …; expected nodes whose shapes agree: export the model again")
    assert len(message) < 400


def test_random_bits_of_the_file(random: np.random.Generator, tmp_path: Path) -> None:
    """Each gives another model, or is refused in one line."""
    right = small_cnn(random, ending="Softmax").SerializeToString()
    path, refused = tmp_path / "model.onnx", 0
    for position in random.integers(1200, size=200).tolist():  # where the nodes are; most else is weights
        data = bytearray(right)
        data[position] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        try:
            load_source(path)
        except EngineError as err:
            message, refused = str(err), refused + 1
            if message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1000:
                continue
            pytest.fail(message)
    assert 50 < refused < 200


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"raw_data": bytes(61)}, "buffer size must be a multiple of element size"),
        ({"raw_data": bytes(120)}, "cannot reshape array of size 30 into shape (5,3,1,1)"),
        ({"data_type": 99}, "99 is not a valid DataType"),
    ],
    ids=["a byte more", "twice the numbers", "unknown type"],
)
def test_tensor_that_holds_other_data_than_it_says(
    change: dict, reason: str, kernel: np.ndarray, tmp_path: Path
) -> None:
    model = classifier(kernel)
    tensor = model.graph.initializer[0]
    for field, value in change.items():
        setattr(tensor, field, value)
    assert refusal(model, tmp_path) == (
        f"tensor 'w' [5, 3, 1, 1] of type {tensor.data_type} holds other data than it says: {reason}; expected numbers "
        "that fill its shape: the file is damaged, export the model again"
    )


def test_name_that_is_no_text(kernel: np.ndarray, tmp_path: Path) -> None:
    assert refusal(classifier(kernel).SerializeToString().replace(b"maps", b"map\xff"), tmp_path) == (
        "holds b'map\\xff' as onnx.NodeProto.output; expected text in UTF-8: the file is damaged, export the model "
        "again"
    )


def with_a_function(kernel: np.ndarray, opset: int, function_opset: int) -> onnx.ModelProto:
    """The classifier, whose maps are its convolution twice, added up by a function of the file."""
    model = classifier(kernel, opset=opset)
    model.graph.node.insert(1, helper.make_node("Twice", ["conv"], ["maps"], domain="local"))
    model.graph.node[0].output[0] = "conv"
    opsets = [helper.make_opsetid("", function_opset)]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], opsets))
    model.opset_import.add(domain="local", version=1)
    return model


def test_function_that_cannot_be_inlined(kernel: np.ndarray, tmp_path: Path) -> None:
    assert refusal(with_a_function(kernel, 18, 19), tmp_path) == (
        "cannot be simplified: Opset mismatch when inlining function 'local::Twice': domain '' has version 18 in the "
        "model but version 19 in the function; export the model again"
    )


def test_function_of_an_old_file_is_converted(kernel: np.ndarray, tmp_path: Path) -> None:
    path = written(with_a_function(kernel, 17, 17), tmp_path)
    source = load_source(path, activation="none")
    assert (source.opset, [op.op_type for op in source.model.graph][:2]) == (18, ["Conv", "Add"])


def test_node_of_constants_that_cannot_be_computed(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Softplus", "w", "soft"), node("LRN", "soft", "normed", size=3), node("Conv", "x w", "maps"), *HEAD]
    model = network(nodes, {"w": kernel}, outputs="logits")
    model.graph.node[0].input[0] = "vector"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(6, np.float32), "vector"))
    assert refusal(model, tmp_path) == (
        "LRN node 'node_normed': cannot be computed from its constant inputs: LRN only applies on 4D tensors but shape "
        "is (6,).; expected a node that fits them, by the ONNX specification"
    )


def test_logits_that_do_not_depend_on_the_image(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Conv", "photo w", "maps"), *HEAD]
    model = network(nodes, {"w": kernel, "photo": np.ones((1, 3, 8, 8))}, outputs="logits")
    assert refusal(model, tmp_path) == "output 'logits' does not depend on the input 'x'; expected a classifier"


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ([-2, 3, 8, 8], "'x' [-2,3,8,8] has a size below 1; expected an image [N, C, H, W] or [N, H, W, C]"),
        (["n", 3, 0, 8], "'x' [n,3,0,8] has a size below 1; expected an image [N, C, H, W] or [N, H, W, C]"),
        (["n", 3, 1 << 20, 8192], "'x' [n,3,1048576,8192] is too large; expected at most 268435456 elements"),
        ([1 << 40, 3, 8, 8], "'x' [1099511627776,3,8,8] is too large; expected at most 268435456 elements"),
    ],
)
def test_size_of_the_image_that_cannot_be(shape: list, text: str, kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel)
    model.graph.input[0].CopyFrom(image_input(shape))
    assert refusal(model, tmp_path) == f"input {text}"


@pytest.mark.parametrize(
    ("op", "attributes", "sizes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2**31]}, "5, 7, -2147483639"),
        ("AveragePool", {"kernel_shape": [1, 1], "pads": [0, 0, 0, 2**31]}, "5, 8, 2147483656"),
    ],
)
def test_size_of_a_tensor_that_cannot_be(
    op: str, attributes: dict, sizes: str, kernel: np.ndarray, tmp_path: Path
) -> None:
    nodes = [node("Conv", "x w", "conv"), node(op, "conv", "maps", **attributes), *HEAD]
    assert refusal(network(nodes, {"w": kernel}, outputs="logits"), tmp_path) == (
        f"{op} node 'node_maps' makes 'maps' of shape [batch, {sizes}]; expected sizes of 0 and more, and at most "
        "268435456 elements of one image: check its attributes and the image size"
    )


@pytest.mark.parametrize("size", [(8, 32), (32, 8)])
def test_image_smaller_than_a_kernel_whose_output_is_sliced(
    size: tuple[int, int], random: np.random.Generator, tmp_path: Path
) -> None:
    nodes = [node("Conv", "x w", "conv"), node("Slice", "conv start end axis", "maps"), *HEAD]
    arguments = {"start": np.array([0]), "end": np.array([4]), "axis": np.array([2])}
    weights = {"w": weight(random, 5, 3, 11, 11)} | arguments
    model = network(nodes, weights, inputs=[image_input([BATCH, 3, "height", "width"])], outputs="logits")
    path = written(model, tmp_path)
    assert load_source(path, activation="softmax", size=(32, 32)).image_shape == (3, 32, 32)
    with pytest.raises(ModelError) as caught:
        load_source(path, activation="softmax", size=size)
    shape = ", ".join(str(length - 10) for length in size)
    assert str(caught.value) == (
        f"{path}: Conv node 'node_conv' makes 'conv' of shape [1, 5, {shape}]; expected sizes of 0 and more, and at "
        "most 268435456 elements of one image: check its attributes and the image size"
    )


def test_weights_beside_the_file(random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random)
    apart = onnx.ModelProto()
    apart.CopyFrom(model)
    onnx.save(apart, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    source = load_source(tmp_path / "model.onnx", activation="softmax")
    same_logits(model, source.model, (3, 16, 12), random)
    images = random.standard_normal((2, 3, 16, 12)).astype(np.float32)
    np.testing.assert_array_equal(source.original.open(OnnxRuntimeCpu())(images), runtime(model)(images)[0])

    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: is not a valid ONNX model: .*model\.data"):
        load_source(tmp_path / "model.onnx", activation="softmax")


def test_hash_covers_the_weights_beside_the_file(random: np.random.Generator, tmp_path: Path) -> None:
    hashes = []
    for gain in (1.0, 2.0):
        model = small_cnn(random)
        (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == "w1")
        kernel.CopyFrom(onnx.numpy_helper.from_array(np.full((6, 3, 3, 3), gain, np.float32), "w1"))
        onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
        graph, weights = (tmp_path / "model.onnx").read_bytes(), (tmp_path / "model.data").read_bytes()
        hashes.append(load_source(tmp_path / "model.onnx", activation="none").sha256)
        assert hashes[-1] == hashlib.sha256(graph + weights).hexdigest()
        (tmp_path / "model.data").unlink()
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("opset", [18, 21])
def test_pool_with_a_window_in_the_padding_alone(opset: int, kernel: np.ndarray, tmp_path: Path) -> None:
    pool = node("MaxPool", "x", "pooled", kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1)
    nodes = [pool, node("Conv", "pooled w", "maps"), *HEAD]
    model = network(nodes, {"w": kernel}, outputs="logits", opset=opset)
    assert refusal(model, tmp_path).startswith(
        "MaxPool node 'node_pooled': ONNX before opset 22 gives it a last window"
    )
    model = network(nodes, {"w": kernel}, outputs="logits", opset=22)
    assert load_source(written(model, tmp_path), activation="none").classes == 5


@pytest.mark.parametrize("opset", [18, 20, 22, onnx.defs.onnx_opset_version()])
def test_new_opset(opset: int, kernel: np.ndarray, tmp_path: Path) -> None:
    source = load_source(written(classifier(kernel, opset=opset), tmp_path), activation="none")
    assert source.opset == opset


def test_shapes_that_contradict_the_converter(kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel, opset=11)
    model.ir_version = 3
    model.graph.input.append(image_input([3, 1, 1], "w"))
    assert refusal(model, tmp_path) == (
        "onnx.version_converter: cannot be converted from opset 11 to 18: [ShapeInferenceError] Inferred shape and "
        "existing shape differ in rank: (4) vs (3); export the model again with opset 18 or newer"
    )


def test_opset_of_the_domain_s_full_name(kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel)
    model.opset_import[0].domain = "ai.onnx"
    assert load_source(written(model, tmp_path), activation="none").classes == 5


def test_two_opsets(kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel)
    model.opset_import.add(domain="", version=16)
    assert refusal(model, tmp_path) == (
        "imports the opsets 16, 18 of ONNX's operators; expected one: export the model again"
    )


def test_two_inputs(kernel: np.ndarray, tmp_path: Path) -> None:
    inputs = [image_input([BATCH, 3, 8, 8]), image_input([BATCH, 7], "sizes")]
    assert refusal(classifier(kernel, inputs=inputs), tmp_path) == (
        "has 2 inputs ('x' [batch,3,8,8], 'sizes' [batch,7]); expected one, the image [N, C, H, W]"
    )


def test_no_input(kernel: np.ndarray, tmp_path: Path) -> None:
    constants = {"w": kernel, "x": np.ones((1, 3, 4, 4), np.float32)}
    model = network([node("Conv", "x w", "maps"), *HEAD], constants, inputs=[], outputs="logits")
    assert refusal(model, tmp_path) == "has 0 inputs (); expected one, the image [N, C, H, W]"


@pytest.mark.parametrize(
    ("shape", "text"), [([BATCH, 3, "H", 8], r"[batch,3,H,8]"), ([BATCH, 3, 8, None], r"[batch,3,8,None]")]
)
def test_dynamic_size_without_a_choice(
    shape: list[int | str | None], text: str, kernel: np.ndarray, tmp_path: Path
) -> None:
    assert refusal(classifier(kernel, inputs=[image_input(shape)]), tmp_path) == (
        f"input 'x' {text} has no fixed image size; choose it with --size HEIGHTxWIDTH"
    )


def test_size_that_contradicts_the_file(kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel, inputs=[image_input([BATCH, 3, "H", 8])])
    with pytest.raises(
        OptionError, match=r"^size 9×9 contradicts the input 'x' \[batch,3,H,8\]; expected its own, or no size$"
    ):
        load_source(written(model, tmp_path), activation="none", size=(9, 9))


@pytest.mark.parametrize(("channels", "text"), [(4, "4"), ("C", "C")])
def test_wrong_channels(channels: int | str, text: str, tmp_path: Path, random: np.random.Generator) -> None:
    model = classifier(weight(random, 5, 4, 1, 1), inputs=[image_input([BATCH, channels, 8, 8])])
    assert refusal(model, tmp_path) == (
        f"input 'x' [batch,{text},8,8] has {text} channels; expected 1 or 3, as [N, C, H, W] or [N, H, W, C]"
    )


@pytest.mark.parametrize("shape", [[BATCH, 192], [BATCH, 3, 64], [BATCH, 3, 1, 8, 8]])
def test_input_of_another_rank(shape: list[int | str], tmp_path: Path) -> None:
    nodes = [node("Reshape", "x s", "y")]
    model = network(nodes, {"s": np.array([-1, 192], np.int64)}, inputs=[image_input(shape)])
    text = "[" + ",".join(map(str, shape)) + "]"
    assert refusal(model, tmp_path) == (
        f"input 'x' {text}; expected one image input of four axes, [N, C, H, W] or [N, H, W, C]"
    )


@pytest.mark.parametrize(
    ("dtype", "text"),
    [(TensorProto.DOUBLE, "DOUBLE"), (TensorProto.BFLOAT16, "BFLOAT16"), (TensorProto.UINT8, "UINT8")],
)
def test_input_of_another_type(dtype: int, text: str, kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "floats", to=TensorProto.FLOAT), node("Conv", "floats w", "maps"), *HEAD]
    inputs = [image_input([BATCH, 3, 8, 8], dtype=dtype)]
    model = network(nodes, {"w": kernel}, inputs=inputs, outputs="logits")
    assert refusal(model, tmp_path) == f"input 'x' holds {text}; expected float32 or float16 images"


def two_headed(kernel: np.ndarray) -> onnx.ModelProto:
    nodes = [node("Conv", "x w", "maps"), *HEAD, node("Sigmoid", "logits", "scores")]
    return network(nodes, {"w": kernel}, outputs="logits scores")


def test_several_outputs_without_a_choice(kernel: np.ndarray, tmp_path: Path) -> None:
    assert refusal(two_headed(kernel), tmp_path) == (
        "has the outputs logits, scores; choose the class scores with --output-name NAME"
    )


def test_unknown_output(kernel: np.ndarray, tmp_path: Path) -> None:
    message = refusal(two_headed(kernel), tmp_path, output="probabilities")
    assert message == "has no output 'probabilities'; its outputs are logits, scores"


@pytest.mark.parametrize(("output", "activation"), [("logits", "none"), ("scores", "sigmoid")])
def test_chosen_output(output: str, activation: str, kernel: np.ndarray, tmp_path: Path) -> None:
    source = load_source(written(two_headed(kernel), tmp_path), output=output, activation=activation)
    assert (source.output, source.activation, source.logits.name) == (output, activation, "logits")
    assert op_types(source.model) == ["Conv", "GlobalAveragePool", "Flatten"]
    assert source.original.logits == "logits"


def test_nodes_and_weights_that_the_logits_do_not_need_are_dropped(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "maps"), *HEAD, node("Conv", "x v", "aside"), node("Relu", "aside", "unused")]
    model = network(nodes, {"w": kernel, "v": kernel + 1, "stray": kernel}, outputs="logits")
    source = load_source(written(model, tmp_path), activation="none")
    assert op_types(source.model) == ["Conv", "GlobalAveragePool", "Flatten"]
    assert list(source.model.graph.initializers) == ["w"]


def test_batch_that_vanishes(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Reshape", "x shape", "one"), node("Conv", "one w", "maps"), *HEAD]
    model = network(nodes, {"w": kernel, "shape": np.array([2, 3, 8, -1], np.int64)}, outputs="logits")
    assert refusal(model, tmp_path) == (
        "Reshape node 'node_one' makes 'one' of shape [2, 3, 8, 4·batch]; expected the batch on axis 0 and a known "
        "size on every other axis: export the model with a dynamic batch and a fixed image size"
    )


def test_size_that_is_unknown(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [
        node("ReduceMean", "x", "average", keepdims=0),
        node("Unsqueeze", "average first", "one"),
        node("Concat", "ones ones one one", "scales", axis=0),
        node("Resize", "x - scales", "larger"),
        node("Conv", "larger w", "maps"),
        *HEAD,
    ]
    constants = {"w": kernel, "first": np.array([0], np.int64), "ones": np.ones(1, np.float32)}
    message = refusal(network(nodes, constants, outputs="logits"), tmp_path)
    assert message.startswith(
        "ReduceMean node 'node_average' makes 'average' of shape []; expected the batch on axis 0"
    )


def test_op_whose_shape_onnx_does_not_know(kernel: np.ndarray, tmp_path: Path) -> None:
    custom = helper.make_node("Blur", ["x"], ["soft"], name="blur", domain="com.acme")
    model = classifier(kernel)
    model.graph.node[0].input[0] = "soft"
    model.graph.node.insert(0, custom)
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    assert refusal(model, tmp_path).startswith(
        "Blur node 'blur': is of the operator com.acme::Blur, none of ONNX's own; expected standard operators"
    )


def test_op_whose_shape_onnx_does_not_know_is_named_before_the_logits(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [node("Conv", "soft w", "maps"), *HEAD, node("Softmax", "logits", "scores")]
    model = network(nodes, {"w": kernel, "soft": np.ones((1, 3, 8, 8), np.float32)}, outputs="scores")
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    model.graph.node.insert(0, helper.make_node("Blur", ["x"], ["soft"], name="blur", domain="com.acme"))
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(ModelError, match=r"Blur node 'blur'"):
        load_source(written(model, tmp_path))


@pytest.mark.parametrize("op", ["Reshape", "Flatten"])
def test_channels_that_are_merged_into_the_batch(op: str, kernel: np.ndarray, tmp_path: Path) -> None:
    merge = node("Reshape", "maps merged", "rows") if op == "Reshape" else node("Flatten", "maps", "rows", axis=2)
    nodes = [
        node("Conv", "x w", "maps"),
        merge,
        node("Relu", "rows", "cut"),
        node("Reshape", "cut apart", "again"),
        node("GlobalAveragePool", "again", "mean"),
        node("Flatten", "mean", "logits"),
    ]
    constants = {"w": kernel, "merged": np.array([-1, 64], np.int64), "apart": np.array([-1, 5, 8, 8], np.int64)}
    message = refusal(network(nodes, constants, outputs="logits"), tmp_path)
    assert message.startswith(
        f"{op} node 'node_rows' makes 'rows' of shape [5·batch, 64]; expected the batch on axis 0"
    )
    assert "; expected the batch on axis 0 and a known size on every other axis" in message


@pytest.mark.parametrize("name", ["target", "target_index", "average_gradient_2", "gradient_of/x", "gradient/Mul_0"])
def test_tensors_called_like_the_exporter_s_own_are_renamed(
    name: str, kernel: np.ndarray, tmp_path: Path, random
) -> None:
    for place in ("x", "w", "maps", "logits"):
        model = classifier(kernel)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), f"{name}_"))
        rename(model, place, name)
        source = load_source(written(model, tmp_path), activation="none")
        values = [*source.model.graph.inputs, *(value for entry in source.model.graph for value in entry.outputs)]
        names = [value.name for value in values] + list(source.model.graph.initializers)
        assert name not in names
        assert len(names) == len(set(names))
        assert source.output == ("logits" if place != "logits" else name)
        same_logits(model, source.model, (3, 8, 8), random)


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for holder in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        holder.name = new if holder.name == old else holder.name
    for entry in model.graph.node:
        for names in (entry.input, entry.output):
            names[:] = [new if value == old else value for value in names]


def test_output_of_a_node_that_nobody_uses(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "conv"),
        node("Split", "conv parts", "maps rest", axis=1),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "logits"),
    ]
    model = network(nodes, {"w": kernel, "parts": np.array([3, 2], np.int64)}, outputs="logits")
    assert load_source(written(model, tmp_path), activation="none").classes == 3


def test_node_that_takes_one_image_alone_is_named(
    kernel: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        node("Conv", "x w", "conv"),
        node("Concat", "conv token", "maps", axis=2),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "logits"),
    ]
    constants = {"w": kernel, "token": np.ones((1, 5, 1, 8), np.float32)}
    message = refusal(network(nodes, constants, outputs="logits"), tmp_path)
    assert message.startswith("does not take batches of any size: [ShapeInferenceError]")
    assert "(op_type:Concat, node name: node_maps)" in message
    assert caplog.records == []


TRACE = "/home/someone/model.py:12"


def traced(holder: object) -> None:
    holder.doc_string = TRACE
    entry = holder.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", TRACE


def test_traces_of_the_machine_are_stripped(random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random)
    model.producer_name = model.producer_version = model.domain = model.graph.name = TRACE
    model.model_version = 7
    for holder in (model.graph, *model.graph.node):
        traced(holder)
    stripped = ir.to_proto(load_source(written(model, tmp_path), activation="none").model)
    assert TRACE.encode() not in stripped.SerializeToString()
    assert stripped.producer_name == "ada-sise-engine"
    assert (stripped.ir_version, stripped.model_version, stripped.graph.name) == (IR_VERSION, 0, "network")


@pytest.mark.parametrize(
    "holders",
    [
        lambda model: [model],
        lambda model: [*model.graph.input, *model.graph.output],
        lambda model: model.graph.initializer,
    ],
    ids=["model", "values", "weights"],
)
def test_traces_are_stripped_from_everything(holders, random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random)
    for holder in holders(model):
        traced(holder)
    stripped = ir.to_proto(load_source(written(model, tmp_path), activation="none").model)
    assert TRACE.encode() not in stripped.SerializeToString()


def test_traces_are_stripped_from_attributes(random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random)
    for attribute in (attribute for entry in model.graph.node for attribute in entry.attribute):
        attribute.doc_string = TRACE
    stripped = ir.to_proto(load_source(written(model, tmp_path), activation="none").model)
    assert TRACE.encode() not in stripped.SerializeToString()


def test_initializers_listed_as_inputs(random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random)
    listed = [image_input(list(tensor.dims), tensor.name, tensor.data_type) for tensor in model.graph.initializer]
    model.graph.input.extend(listed)
    source = load_source(written(model, tmp_path), activation="none")
    assert [value.name for value in source.model.graph.inputs] == ["x"]
    same_logits(model, source.model, (3, 16, 12), random)


@pytest.mark.parametrize(
    "constant",
    [
        lambda: helper.make_node("Constant", [], ["low"], value=onnx.numpy_helper.from_array(np.float32(0.5))),
        lambda: helper.make_node("Constant", [], ["low"], value_float=0.5),
    ],
    ids=["tensor", "float"],
)
def test_constant_nodes_become_initializers(
    constant: Callable[[], onnx.NodeProto], kernel: np.ndarray, tmp_path: Path, random: np.random.Generator
) -> None:
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[-1, 5])
    nodes = [
        constant(),
        shape,
        node("Conv", "x w", "maps"),
        node("Clip", "maps low", "kept"),
        node("GlobalAveragePool", "kept", "mean"),
        node("Reshape", "mean shape", "logits"),
    ]
    model = network(nodes, {"w": kernel}, outputs="logits")
    source = load_source(written(model, tmp_path), activation="none")
    assert op_types(source.model) == ["Conv", "Clip", "GlobalAveragePool", "Reshape"]
    constants = {name: value.const_value.numpy().tolist() for name, value in source.model.graph.initializers.items()}
    assert (constants["low"], constants["shape"]) == (0.5, [-1, 5])
    same_logits(model, source.model, (3, 8, 8), random)


def test_identity_and_dropout_vanish(kernel: np.ndarray, tmp_path: Path, random: np.random.Generator) -> None:
    nodes = [
        node("Identity", "x", "same"),
        node("Conv", "same w", "conv"),
        node("Dropout", "conv ratio", "dropped mask"),
        node("Identity", "dropped", "maps"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Dropout", "mean", "kept"),
        node("Flatten", "kept", "flat"),
        node("Identity", "flat", "logits"),
    ]
    model = network(nodes, {"w": kernel, "ratio": np.float32(0.5)}, outputs="logits")
    source = load_source(written(model, tmp_path), activation="none")
    assert op_types(source.model) == ["Conv", "GlobalAveragePool", "Flatten"]
    assert (source.output, source.logits.name) == ("logits", "logits")
    same_logits(model, source.model, (3, 8, 8), random)


def test_dropout_at_the_end_keeps_the_output_s_name(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "maps"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "flat"),
        node("Dropout", "flat", "logits"),
    ]
    path = written(network(nodes, {"w": kernel}, outputs="logits"), tmp_path)
    source = load_source(path, output="logits", activation="none")
    assert (source.output, op_types(source.model)) == ("logits", ["Conv", "GlobalAveragePool", "Flatten"])


def test_unnamed_nodes_get_names(kernel: np.ndarray, tmp_path: Path) -> None:
    model = classifier(kernel)
    for entry in model.graph.node:
        entry.ClearField("name")
    source = load_source(written(model, tmp_path), activation="none")
    assert [entry.name for entry in source.model.graph] == ["Conv_0", "GlobalAveragePool_1", "Flatten_2"]


def test_batch_may_have_any_name(kernel: np.ndarray, tmp_path: Path) -> None:
    for name in ("N", "s0", None):
        model = classifier(kernel, inputs=[image_input([name, 3, 8, 8])])
        source = load_source(written(model, tmp_path), activation="none")
        assert str(source.input.shape) == "[batch,3,8,8]"


def test_logits_with_axes_of_one_are_flattened(random: np.random.Generator, tmp_path: Path) -> None:
    kernel = weight(random, 5, 3, 1, 1)
    model = network(
        [node("Conv", "x w", "maps"), node("GlobalAveragePool", "maps", "scores")], {"w": kernel}, outputs="scores"
    )
    source = load_source(written(model, tmp_path), activation="none")
    assert (source.output, source.logits.name, source.classes) == ("scores", "logits/Flatten_0", 5)
    images = random.standard_normal((3, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(runtime(source.model)(images)[0], runtime(model)(images)[0][:, :, 0, 0])


def test_output_that_is_no_list_of_scores(kernel: np.ndarray, tmp_path: Path) -> None:
    model = network([node("Conv", "x w", "y")], {"w": kernel})
    path = written(model, tmp_path)
    with pytest.raises(
        ModelError, match=r"model\.onnx: output 'y' has shape \[batch,5,8,8\]; expected class scores \[N, classes\]$"
    ):
        load_source(path, activation="none")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite_is_named(
    odd: float, dtype: type[np.floating], kernel: np.ndarray, tmp_path: Path
) -> None:
    kernel.flat[[3, 7]] = odd
    nodes = [node("Cast", "odd", "w", to=TensorProto.FLOAT), node("Conv", "x w", "maps"), *HEAD]
    model = network(nodes, {"odd": kernel.astype(dtype)}, outputs="logits")
    assert refusal(model, tmp_path) == (
        f"initializer 'odd' [5, 3, 1, 1] holds {odd} at 2 of 15 elements; expected finite weights: export the model "
        "again, from a checkpoint whose training did not diverge"
    )


def test_constant_node_that_is_not_finite_is_named(kernel: np.ndarray, tmp_path: Path) -> None:
    kernel[2, 1] = np.nan
    constants = [
        helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(kernel)),
        helper.make_node("Constant", [], ["unused"], value=onnx.numpy_helper.from_array(kernel)),
    ]
    model = network([*constants, node("Conv", "x w", "maps"), *HEAD], outputs="logits")
    expected = (
        "[5, 3, 1, 1] holds nan at 1 of 15 elements; expected finite weights: export the model again, from a "
        "checkpoint whose training did not diverge"
    )
    assert refusal(model, tmp_path) == f"Constant node 'w' {expected}"
    model.graph.node[0].name = "kernel"
    assert refusal(model, tmp_path) == f"Constant node 'kernel' {expected}"


@pytest.mark.parametrize("size", [(0, 8), (-5, 8), (3, 0, 8)])
def test_size_without_pixels(size: tuple[int, ...], kernel: np.ndarray, tmp_path: Path) -> None:
    path = written(classifier(kernel), tmp_path)
    text = "×".join(map(str, size))
    with pytest.raises(OptionError, match=f"^size {text} has no pixels; expected whole numbers of at least 1$"):
        load_source(path, activation="none", size=size)


def test_infinite_bound_and_unused_weight_are_no_mistakes(kernel: np.ndarray, tmp_path: Path) -> None:
    constants = {"w": kernel, "low": np.float32(-np.inf), "unused": np.full((2, 2), np.nan)}
    nodes = [node("Conv", "x w", "c"), node("Clip", "c low", "maps"), *HEAD]
    source = load_source(written(network(nodes, constants, outputs="logits"), tmp_path), activation="softmax")
    assert op_types(source.model) == ["Conv", "Clip", "GlobalAveragePool", "Flatten"]
