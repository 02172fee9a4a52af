"""The forms in which people hold their models: each is read, and gives the logits of the file as it is."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engine.backends import OnnxRuntimeCpu
from engine.errors import ModelError
from engine.export.source import Source, load_source
from tests.export.networks import BATCH, image_input, network, node, small_cnn, statistics, weight, written
from tests.export.rules.gradients import runtime
from tests.forms import write_quantized

FEATURES = [node("Conv", "x w", "conv"), node("Relu", "conv", "maps"), node("GlobalAveragePool", "maps", "mean")]
Images = NDArray[np.float32]


@pytest.fixture
def kernel(random: np.random.Generator) -> NDArray[np.float32]:
    return weight(random, 5, 3, 1, 1)


def images_of(random: np.random.Generator, *shape: int) -> Images:
    return random.standard_normal(shape).astype(np.float32)


def logits_of(source: Source, images: Images) -> Images:
    """The imported model's logits, one run for all images."""
    return runtime(source.model)(images)[0]


def op_types(source: Source) -> list[str]:
    return [entry.op_type for entry in source.model.graph]


def row_by_row(model: onnx.ModelProto, images: Images) -> Images:
    run = runtime(model)
    return np.concatenate([run(row[None])[0].reshape(1, -1) for row in images])


def load(model: onnx.ModelProto, folder: Path, *, activation: str = "none", **options: object) -> Source:
    source = load_source(written(model, folder), activation=activation, **options)
    onnx.checker.check_model(ir.to_proto(source.model), full_check=True)
    return source


def refusal(model: onnx.ModelProto, folder: Path) -> str:
    path = written(model, folder)
    with pytest.raises(ModelError) as caught:
        load_source(path, activation="none")
    return str(caught.value).removeprefix(f"{path}: ")


# Batch fixed at 1, and other sizes.


def fixed(nodes: list[onnx.NodeProto], constants: dict[str, object], batch: int = 1, **options: object):
    return network(nodes, constants, inputs=[image_input([batch, 3, 8, 8])], outputs="logits", **options)


@pytest.mark.parametrize("shape", [[1, -1], [1, 5], [-1, 5], [0, -1]])
def test_reshape_traced_with_one_image(
    shape: list[int], kernel: np.ndarray, tmp_path: Path, random: np.random.Generator
) -> None:
    model = fixed([*FEATURES, node("Reshape", "mean shape", "logits")], {"w": kernel, "shape": np.array(shape)})
    source = load(model, tmp_path)
    images = images_of(random, 3, 3, 8, 8)
    np.testing.assert_allclose(logits_of(source, images), row_by_row(model, images), rtol=1e-6)
    assert (source.original.batch, str(source.input.shape), str(source.logits.shape)) == (
        1,
        "[batch,3,8,8]",
        "[batch,5]",
    )


def test_literal_one_in_a_file_that_says_its_batch_is_free(
    kernel: np.ndarray, tmp_path: Path, random: np.random.Generator
) -> None:
    nodes = [*FEATURES, node("Reshape", "mean shape", "logits")]
    model = network(nodes, {"w": kernel, "shape": np.array([1, -1])}, outputs="logits")
    model.graph.output[0].CopyFrom(image_input([1, 5], "logits"))
    source = load(model, tmp_path)
    images = images_of(random, 3, 3, 8, 8)
    np.testing.assert_allclose(logits_of(source, images), row_by_row(model, images), rtol=1e-6)
    assert source.original.batch is None


def test_channel_shuffle_traced_with_one_image(tmp_path: Path, random: np.random.Generator) -> None:
    nodes = [
        node("Conv", "x w", "conv"),
        node("Reshape", "conv apart", "groups"),
        node("Transpose", "groups", "shuffled", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "shuffled together", "maps"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "logits"),
    ]
    constants = {
        "w": weight(random, 6, 3, 1, 1),
        "apart": np.array([1, 2, 3, 8, 8]),
        "together": np.array([1, 6, 8, 8]),
    }
    model = fixed(nodes, constants)
    images = images_of(random, 3, 3, 8, 8)
    np.testing.assert_allclose(logits_of(load(model, tmp_path), images), row_by_row(model, images), rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 4])
def test_expand_of_a_traced_batch(batch: int, kernel: np.ndarray, tmp_path: Path, random: np.random.Generator) -> None:
    nodes = [
        *FEATURES,
        node("Expand", "mean wide", "gate"),
        node("Add", "maps gate", "sum"),
        node("GlobalMaxPool", "sum", "logits"),
    ]
    model = fixed(nodes, {"w": kernel, "wide": np.array([batch, 5, 8, 8])}, batch)
    source = load(model, tmp_path)
    images = images_of(random, 3, 3, 8, 8)
    padded = np.concatenate([images, images[:1]]) if batch == 4 else images
    expected = runtime(model)(padded)[0].reshape(4, 5)[:3] if batch == 4 else row_by_row(model, images)
    np.testing.assert_allclose(logits_of(source, images), expected, rtol=1e-6)
    assert source.original.batch == batch
    np.testing.assert_array_equal(source.original.open(OnnxRuntimeCpu())(images), expected)


@pytest.mark.parametrize("opset", [11, 17, 18, 23])
@pytest.mark.parametrize("size", [(16, 16), (13, 20), (8, 3)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_sizes_with_a_traced_batch(
    mode: str, size: tuple[int, int], opset: int, kernel: np.ndarray, tmp_path: Path, random: np.random.Generator
) -> None:
    nodes = [
        node("Resize", "x roi scales sizes", "larger", mode=mode, coordinate_transformation_mode="half_pixel"),
        node("Conv", "larger w", "maps"),
        node("MaxPool", "maps", "logits", kernel_shape=list(size)),
    ]
    constants = {
        "w": kernel,
        "roi": np.zeros(0, np.float32),
        "scales": np.zeros(0, np.float32),
        "sizes": np.array([1, 3, *size]),
    }
    if opset > 11:
        nodes[0].input[1] = nodes[0].input[2] = ""
    model = fixed(nodes, constants, opset=opset)
    images = images_of(random, 3, 3, 8, 8)
    source = load(model, tmp_path)
    np.testing.assert_allclose(logits_of(source, images), row_by_row(model, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("Tile", {"argument": np.array([2, 1, 1, 1])}, {}),
        ("Gather", {"argument": np.array([0])}, {"axis": 0}),
        ("Squeeze", {"argument": np.array([0])}, {}),
    ],
)
def test_node_that_loses_the_batch_is_named(
    op: str,
    constants: dict[str, np.ndarray],
    attributes: dict[str, int],
    kernel: np.ndarray,
    tmp_path: Path,
) -> None:
    nodes = [*FEATURES, node(op, "mean argument", "odd", **attributes), node("Reshape", "odd shape", "logits")]
    model = fixed(nodes, {"w": kernel, "shape": np.array([-1, 5]), **constants})
    message = refusal(model, tmp_path)
    assert message.startswith((f"{op} node 'node_odd' makes 'odd' of shape [", "does not take batches of any size: "))
    assert "node_odd" in message


def test_parameters_that_look_like_a_shape_are_none(tmp_path: Path, random: np.random.Generator) -> None:
    """Four channels, scaled by 1 and more: as many numbers as the output has axes, and the first is the batch."""
    nodes = [
        node("Conv", "x w", "conv"),
        node("InstanceNormalization", "conv scale bias", "normal"),
        node("Tile", "normal repeats", "maps"),
        node("GlobalMaxPool", "maps", "mean"),
        node("Flatten", "mean", "logits"),
    ]
    constants = {
        "w": weight(random, 4, 3, 1, 1),
        "scale": np.ones(4),
        "bias": np.ones(4),
        "repeats": np.array([1, 1, 2, 1]),
    }
    model = fixed(nodes, constants)
    images = images_of(random, 3, 3, 8, 8)
    np.testing.assert_allclose(logits_of(load(model, tmp_path), images), row_by_row(model, images), rtol=1e-5)


# Shapes that are computed from the image's.


def shape_arithmetic(prefix: str, source: str, batch: str) -> list[onnx.NodeProto]:
    """Nodes that compute [N, -1] as older exporters of torch write `x.view(x.size(0), -1)`."""
    return [
        node("Shape", source, f"{prefix}_sizes"),
        node("Gather", f"{prefix}_sizes zero", f"{prefix}_{batch}", axis=0),
        node("Unsqueeze", f"{prefix}_{batch} axis", f"{prefix}_first"),
        node("Concat", f"{prefix}_first rest", f"{prefix}_shape", axis=0),
    ]


ARITHMETIC = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}


def test_flattening_by_the_batch_s_own_size(kernel: np.ndarray, tmp_path: Path, random: np.random.Generator) -> None:
    nodes = [*FEATURES, *shape_arithmetic("flat", "mean", "rows"), node("Reshape", "mean flat_shape", "logits")]
    model = network(nodes, {"w": kernel, **ARITHMETIC}, outputs="logits")
    source = load(model, tmp_path)
    assert op_types(source) == ["Conv", "Relu", "GlobalAveragePool", "Reshape"]
    images = images_of(random, 3, 3, 8, 8)
    np.testing.assert_array_equal(logits_of(source, images), runtime(model)(images)[0])


def test_sizes_that_are_computed(kernel: np.ndarray, tmp_path: Path, random: np.random.Generator) -> None:
    """Upsampling to twice the size of H and W that the graph looks up, and an average over as many elements."""
    nodes = [
        node("Shape", "x", "sizes"),
        node("Slice", "sizes two four", "spatial"),
        node("Mul", "spatial twice", "larger"),
        node("Slice", "sizes zero2 two", "outer"),
        node("Concat", "outer larger", "wanted", axis=0),
        node("Resize", "x - - wanted", "big", mode="nearest"),
        node("Conv", "big w", "maps"),
        node("ReduceSum", "maps plane", "total", keepdims=0),
        node("ReduceProd", "larger", "count", keepdims=0),
        node("Cast", "count", "elements", to=TensorProto.FLOAT),
        node("Div", "total elements", "logits"),
    ]
    constants = {
        "w": kernel,
        "two": np.array([2]),
        "four": np.array([4]),
        "zero2": np.array([0]),
        "twice": np.array([2]),
        "plane": np.array([2, 3]),
    }
    model = network(nodes, constants, outputs="logits")
    source = load(model, tmp_path)
    assert op_types(source) == ["Resize", "Conv", "ReduceSum", "Div"]
    images = images_of(random, 3, 3, 8, 8)
    np.testing.assert_allclose(logits_of(source, images), runtime(model)(images)[0], rtol=1e-6)


def test_argument_that_grows_with_the_batch_is_named(kernel: np.ndarray, tmp_path: Path) -> None:
    nodes = [
        *FEATURES,
        *shape_arithmetic("flat", "mean", "rows"),
        node("Cast", "flat_rows", "floats", to=TensorProto.FLOAT),
        node("Flatten", "mean", "features"),
        node("Div", "features floats", "logits"),
    ]
    assert refusal(network(nodes, {"w": kernel, **ARITHMETIC}, outputs="logits"), tmp_path) == (
        "Div node 'node_logits': its input 1 ('floats') depends on the size of the batch; expected that only of "
        "Reshape, Expand and Resize, which can be written for any batch: export the model with a dynamic batch"
    )


def test_batch_that_meets_another_axis_is_refused(kernel: np.ndarray, tmp_path: Path) -> None:
    """[N, 5, 1, 5] + [N, 5]: by the rules of broadcasting N rows meet the axis of size 1."""
    nodes = [
        node("Conv", "x w", "maps"),
        node("ReduceMean", "maps", "row", axes=[2]),
        node("Slice", "row zero five three", "part"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "flat"),
        node("Add", "part flat", "odd"),
        node("ReduceMean", "odd", "logits", axes=[2, 3], keepdims=0),
    ]
    constants = {"w": kernel, "zero": np.array([0]), "five": np.array([5]), "three": np.array([3])}
    message = refusal(network(nodes, constants, outputs="logits", opset=17), tmp_path)
    assert message.startswith(
        "Add node 'node_odd' makes 'odd' of shape [batch, 5, batch, 5]; expected the batch on axis 0"
    )


def branch(name: str, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.generic]]) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}_result", TensorProto.FLOAT, [None] * (2 if name == "yes" else 4))
    tensors = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    return helper.make_graph(nodes, name, [], [output], tensors)


@pytest.mark.parametrize("rank", [4, 2])
def test_branch_that_shapes_decide(rank: int, kernel: np.ndarray, tmp_path: Path, random: np.random.Generator) -> None:
    """`squeeze` of torch's older exporter: If the axis has size 1, Squeeze it; else leave it."""
    yes = branch("yes", [node("Squeeze", "mean yes_axes", "yes_result")], {"yes_axes": np.array([2, 3])})
    no = branch("no", [node("Mul", "mean no_gain", "no_result")], {"no_gain": np.float32(7)})
    nodes = [
        *FEATURES,
        node("Shape", "mean", "sizes"),
        node("Gather", "sizes two", "height", axis=0),
        node("Equal", "height one", "flat"),
        node("If", "flat", "logits", then_branch=yes, else_branch=no),
    ]
    model = network(nodes, {"w": kernel, "two": np.array(2), "one": np.array(1 if rank == 2 else 5)}, outputs="logits")
    model.graph.output[0].CopyFrom(image_input([None] * rank, "logits"))
    source = load(model, tmp_path)
    assert op_types(source)[:3] == ["Conv", "Relu", "GlobalAveragePool"]
    assert op_types(source)[3:] == (["Squeeze"] if rank == 2 else ["Mul", "Flatten"])
    images = images_of(random, 3, 3, 8, 8)
    expected = runtime(model)(images)[0].reshape(3, 5)
    np.testing.assert_array_equal(logits_of(source, images), expected)
    np.testing.assert_array_equal(source.original.open(OnnxRuntimeCpu())(images), expected)


# Symbolic H and W.


def test_size_is_chosen(kernel: np.ndarray, tmp_path: Path, random: np.random.Generator) -> None:
    nodes = [*FEATURES, *shape_arithmetic("flat", "mean", "rows"), node("Reshape", "mean flat_shape", "logits")]
    inputs = [image_input(["n", 3, "h", "w"])]
    model = network(nodes, {"w": kernel, **ARITHMETIC}, inputs=inputs, outputs="logits")
    source = load(model, tmp_path, size=(6, 10))
    assert source.image_shape == (3, 6, 10)
    images = images_of(random, 3, 3, 6, 10)
    np.testing.assert_array_equal(logits_of(source, images), runtime(model)(images)[0])


# Channels last.


def channels_last(nodes: list[onnx.NodeProto], constants: dict[str, object], *sizes: object) -> onnx.ModelProto:
    return network(nodes, constants, inputs=[image_input(sizes or [BATCH, 8, 6, 3])], outputs="logits")


def test_images_with_channels_last(kernel: np.ndarray, tmp_path: Path, random: np.random.Generator) -> None:
    """As tf2onnx writes them: one Transpose, then everything with channels first."""
    nodes = [node("Transpose", "x", "first", perm=[0, 3, 1, 2]), *FEATURES[1:], node("Flatten", "mean", "logits")]
    nodes.insert(1, node("Conv", "first w", "conv"))
    model = channels_last(nodes, {"w": kernel})
    source = load(model, tmp_path)
    assert op_types(source) == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]
    assert (source.image_shape, source.original.channels_last) == ((3, 8, 6), True)
    images = images_of(random, 2, 3, 8, 6)
    expected = runtime(model)(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))[0]
    np.testing.assert_array_equal(logits_of(source, images), expected)
    np.testing.assert_array_equal(source.original.open(OnnxRuntimeCpu())(images), expected)


def test_channels_last_with_work_before_the_transpose(
    kernel: np.ndarray, tmp_path: Path, random: np.random.Generator
) -> None:
    nodes = [
        node("Sub", "x mean3", "centred"),
        node("Transpose", "centred", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first w", "conv"),
        *FEATURES[1:],
        node("Flatten", "mean", "logits"),
    ]
    model = channels_last(nodes, {"w": kernel, "mean3": np.array([0.4, 0.5, 0.6], np.float32)})
    source = load(model, tmp_path)
    assert op_types(source) == ["Transpose", "Sub", "Transpose", "Conv", "Relu", "GlobalAveragePool", "Flatten"]
    images = images_of(random, 2, 3, 8, 6)
    expected = runtime(model)(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))[0]
    np.testing.assert_array_equal(logits_of(source, images), expected)


def test_channels_last_of_open_size_with_logits_channels_last(
    kernel: np.ndarray, tmp_path: Path, random: np.random.Generator
) -> None:
    nodes = [
        node("Transpose", "x", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first w", "conv"),
        *FEATURES[1:],
        node("Transpose", "mean", "last", perm=[0, 2, 3, 1]),
        node("Softmax", "last", "logits"),
    ]
    model = channels_last(nodes, {"w": kernel}, BATCH, None, None, 3)
    source = load(model, tmp_path, activation="softmax", size=(8, 6))
    assert (source.image_shape, source.classes, source.activation) == ((3, 8, 6), 5, "softmax")
    images = images_of(random, 2, 3, 8, 6)
    scores = runtime(model)(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))[0].reshape(2, 5)
    exponentials = np.exp(logits_of(source, images).astype(np.float64))
    np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), scores, rtol=1e-5)


# Old opsets.


@pytest.mark.parametrize("opset", range(11, 18))
@pytest.mark.parametrize("listed", [False, True], ids=["", "initializers are inputs too"])
def test_old_opset_is_converted(opset: int, listed: bool, tmp_path: Path, random: np.random.Generator) -> None:
    nodes = [
        node("Conv", "x w", "conv"),
        node("BatchNormalization", "conv bn_scale bn_bias bn_mean bn_var", "norm"),
        node("Relu", "norm", "maps"),
        node("Conv", "maps v", "last"),
        node("GlobalAveragePool", "last", "mean"),
        node("Squeeze", "mean", "rows", axes=[2, 3]) if opset < 13 else node("Squeeze", "mean axes", "rows"),
        node("Softmax", "rows", "scores"),
    ]
    constants = {"w": weight(random, 5, 3, 1, 1), "v": weight(random, 4, 5, 1, 1), **statistics(random, "bn", 5)}
    if opset >= 13:
        constants["axes"] = np.array([2, 3])
    model = network(nodes, constants, outputs="scores", opset=opset)
    if listed:
        model.ir_version = 3
        model.graph.input.extend(image_input(list(t.dims), t.name, t.data_type) for t in model.graph.initializer)
    source = load(model, tmp_path, activation="softmax")
    assert (source.opset, source.logits.name, source.activation) == (18, "rows", "softmax")
    images = images_of(random, 3, 3, 8, 8)
    exponentials = np.exp(logits_of(source, images).astype(np.float64))
    expected = runtime(model)(images)[0]
    np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), expected, rtol=1e-5)
    original = source.original.open(OnnxRuntimeCpu())(images)
    np.testing.assert_allclose(logits_of(source, images), original, rtol=1e-5, atol=1e-6)


def test_opset_that_is_too_old(kernel: np.ndarray, tmp_path: Path) -> None:
    model = network([*FEATURES, node("Flatten", "mean", "logits")], {"w": kernel}, outputs="logits", opset=10)
    assert refusal(model, tmp_path) == "has opset 10; expected 11 or newer: export the model again"


def test_node_that_cannot_be_converted_is_named(
    kernel: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converter says what is wrong, not where."""
    right = onnx.version_converter.convert_version

    def without_flatten(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        if any(entry.op_type == "Flatten" for entry in model.graph.node):
            raise RuntimeError("adapt_\nassertion failed")
        return right(model, version)

    monkeypatch.setattr(onnx.version_converter, "convert_version", without_flatten)
    model = network([*FEATURES, node("Flatten", "mean", "logits")], {"w": kernel}, outputs="logits", opset=12)
    assert refusal(model, tmp_path) == (
        "Flatten node 'node_logits': cannot be converted from opset 12 to 18: adapt_ assertion failed; export the "
        "model again with opset 18 or newer"
    )


# float16.


def in_float16(model: onnx.ModelProto, *, image: bool) -> onnx.ModelProto:
    """Round the weights; with float32 images, cast them, as converters do that keep the types of inputs."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    if image:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    else:
        model.graph.node[0].input[0] = "halved"
        model.graph.node.insert(0, node("Cast", "x", "halved", to=TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize("image", [False, True])
def test_float16_is_widened(image: bool, tmp_path: Path, random: np.random.Generator) -> None:
    model = in_float16(small_cnn(random), image=image)
    source = load(model, tmp_path)
    types = {value.dtype for entry in source.model.graph for value in (*entry.inputs, *entry.outputs) if value}
    assert types == {ir.DataType.FLOAT}
    assert (source.original.half, source.original.half_input) == (True, image)
    images = images_of(random, 3, 3, 16, 12).astype(np.float16)
    expected = runtime(model)(images if image else images.astype(np.float32))[0].astype(np.float64)
    found = logits_of(source, images.astype(np.float32))
    assert 0 < np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()
    given = source.original.open(OnnxRuntimeCpu())(images.astype(np.float32))
    np.testing.assert_array_equal(given, expected.astype(np.float32))


# One logit.


@pytest.mark.parametrize("ending", [[], [node("Sigmoid", "logit", "score")]], ids=["logit", "score"])
def test_one_logit_of_a_sigmoid_is_two_classes(
    ending: list[onnx.NodeProto], tmp_path: Path, random: np.random.Generator
) -> None:
    nodes = [*FEATURES, node("Flatten", "mean", "features"), node("MatMul", "features head", "logit"), *ending]
    constants = {"w": weight(random, 5, 3, 1, 1), "head": weight(random, 5, 1)}
    model = network(nodes, constants, outputs="score" if ending else "logit")
    source = load(model, tmp_path, activation="sigmoid")
    assert (source.classes, source.original.one_logit) == (2, True)
    images = images_of(random, 3, 3, 8, 8)
    (z,) = runtime(network(nodes[:5], constants, outputs="logit"))(images)
    np.testing.assert_array_equal(logits_of(source, images), np.concatenate([-z, z], axis=1))
    np.testing.assert_array_equal(source.original.open(OnnxRuntimeCpu())(images), np.concatenate([-z, z], axis=1))


def test_one_output_that_is_no_class_stays(tmp_path: Path, random: np.random.Generator) -> None:
    nodes = [*FEATURES, node("Flatten", "mean", "features"), node("MatMul", "features head", "logit")]
    model = network(nodes, {"w": weight(random, 5, 3, 1, 1), "head": weight(random, 5, 1)}, outputs="logit")
    assert load(model, tmp_path, activation="none").classes == 1


# Quantized.


def test_quantized_weights_stay_integers(tmp_path: Path, random: np.random.Generator) -> None:
    plain_file = written(small_cnn(random), tmp_path)
    path = write_quantized(plain_file, [images_of(random, 4, 3, 16, 12) for _ in range(4)], tmp_path)
    source = load(onnx.load(path), tmp_path)
    assert source.original.quantized
    assert op_types(source).count("DequantizeLinear") > op_types(source).count("QuantizeLinear") > 0
    integers = [value for value in source.model.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    assert {value.const_value.shape.rank() for value in integers} >= {2, 4}
    images = images_of(random, 3, 3, 16, 12)
    plain = OnnxRuntimeCpu(optimize=False)
    (found,) = plain.open(ir.to_proto(source.model).SerializeToString()).run([images])
    np.testing.assert_array_equal(found, source.original.open(plain)(images))
