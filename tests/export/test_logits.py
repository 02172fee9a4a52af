import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.backends import OnnxRuntimeCpu
from engine.errors import ModelError, OptionError
from engine.export.logits import cut_off_activation, flatten_logits
from engine.export.source import load_source
from tests.export.networks import imported, network, node, small_cnn, weight, written
from tests.export.rules.gradients import runtime

FEATURES = [node("GlobalAveragePool", "x", "mean"), node("Flatten", "mean", "features")]
DENSE = [*FEATURES, node("MatMul", "features w", "logits")]
CONVOLUTIONAL = [node("Conv", "x w", "maps"), node("GlobalAveragePool", "maps", "logits")]


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None) -> ir.Graph:
    model = network(nodes, constants, outputs=nodes[-1].output[0], opset=17)
    return imported(model).graph


@pytest.fixture
def dense(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {"w": weight(random, 3, 5)}


@pytest.fixture
def convolutional(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {"w": weight(random, 5, 3, 1, 1)}


@pytest.mark.parametrize(
    ("op", "activation"), [("Softmax", "softmax"), ("LogSoftmax", "softmax"), ("Sigmoid", "sigmoid")]
)
@pytest.mark.parametrize("asked", [False, True])
def test_last_activation_is_cut_off(op: str, activation: str, asked: bool, dense: dict[str, np.ndarray]) -> None:
    graph = graph_of([*DENSE, node(op, "logits", "scores")], dense)
    assert cut_off_activation(graph, "scores", activation if asked else None) == activation
    assert [value.name for value in graph.outputs] == ["logits"]


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Sigmoid"])
@pytest.mark.parametrize(
    ("view", "constants"),
    [
        (node("Flatten", "scored", "scores"), {}),
        (node("Squeeze", "scored axes", "scores"), {"axes": np.array([2, 3], np.int64)}),
        (node("Reshape", "scored shape", "scores"), {"shape": np.array([-1, 5], np.int64)}),
        (node("Identity", "scored", "scores"), {}),
    ],
    ids=["Flatten", "Squeeze", "Reshape", "Identity"],
)
def test_activation_before_a_view_is_cut_off(view, constants, op, axis, convolutional) -> None:
    attributes = {} if op == "Sigmoid" else {"axis": axis}
    graph = graph_of([*CONVOLUTIONAL, node(op, "logits", "scored", **attributes), view], convolutional | constants)
    assert cut_off_activation(graph, "scores", None) == ("sigmoid" if op == "Sigmoid" else "softmax")
    assert [value.name for value in graph.outputs] == ["logits"]


def test_views_in_a_row_are_passed(dense: dict[str, np.ndarray]) -> None:
    nodes = [
        *DENSE,
        node("Softmax", "logits", "scored"),
        node("Unsqueeze", "scored last", "wide"),
        node("Squeeze", "wide last", "scores"),
    ]
    graph = graph_of(nodes, dense | {"last": np.array([2], np.int64)})
    assert cut_off_activation(graph, "scores", None) == "softmax"
    assert [value.name for value in graph.outputs] == ["logits"]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_model_without_activation_takes_what_is_asked_for(activation: str, dense: dict[str, np.ndarray]) -> None:
    graph = graph_of(DENSE, dense)
    assert cut_off_activation(graph, "logits", activation) == activation
    assert [value.name for value in graph.outputs] == ["logits"]


def test_activation_inside_the_model_is_none_of_the_logits(dense: dict[str, np.ndarray]) -> None:
    nodes = [*FEATURES, node("Sigmoid", "features", "gate"), node("MatMul", "gate w", "logits")]
    graph = graph_of(nodes, dense)
    assert cut_off_activation(graph, "logits", "softmax") == "softmax"
    assert [value.name for value in graph.outputs] == ["logits"]


def test_model_without_activation_needs_a_choice(dense: dict[str, np.ndarray]) -> None:
    message = (
        r"^output 'class_scores' comes from no Softmax, LogSoftmax or Sigmoid, so what turns it into class scores is "
        r"unknown; choose with --activation: softmax, sigmoid, none$"
    )
    with pytest.raises(ModelError, match=message):
        cut_off_activation(graph_of(DENSE, dense), "class_scores", None)


def test_image_as_output_needs_a_choice() -> None:
    graph = graph_of([node("Identity", "x", "y")])
    with pytest.raises(ModelError, match=r"^output 'y' comes from no Softmax"):
        cut_off_activation(graph, "y", None)


@pytest.mark.parametrize(("op", "own", "asked"), [("Softmax", "softmax", "sigmoid"), ("Sigmoid", "sigmoid", "none")])
def test_contradicting_activation_is_refused(op: str, own: str, asked: str, dense: dict[str, np.ndarray]) -> None:
    graph = graph_of([*DENSE, node(op, "logits", "scores")], dense)
    message = (
        rf"^activation '{asked}' contradicts the model, which ends in {op} node 'node_scores'; expected '{own}' or "
        "nothing$"
    )
    with pytest.raises(OptionError, match=message):
        cut_off_activation(graph, "scores", asked)


def test_unknown_activation_is_refused(dense: dict[str, np.ndarray]) -> None:
    message = r"^activation 'Softmax' is unknown; expected one of softmax, sigmoid, none$"
    with pytest.raises(OptionError, match=message):
        cut_off_activation(graph_of(DENSE, dense), "logits", "Softmax")


@pytest.mark.parametrize("axis", [-1, 2, 3, 0])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_over_another_axis_is_refused(op: str, axis: int, convolutional: dict[str, np.ndarray]) -> None:
    graph = graph_of([*CONVOLUTIONAL, node(op, "logits", "scores", axis=axis)], convolutional)
    message = rf"^{op} node 'node_scores': normalises axis {axis} of \[batch,5,1,1\]; expected that of the classes$"
    with pytest.raises(ModelError, match=message):
        cut_off_activation(graph, "scores", None)


def test_softmax_without_axis_takes_the_last(convolutional: dict[str, np.ndarray]) -> None:
    graph = graph_of([*CONVOLUTIONAL, node("Softmax", "logits", "scores")], convolutional)
    with pytest.raises(ModelError, match=r"normalises axis -1 of \[batch,5,1,1\]"):
        cut_off_activation(graph, "scores", None)


def test_flat_logits_stay(dense: dict[str, np.ndarray]) -> None:
    graph = graph_of(DENSE, dense)
    flatten_logits(graph)
    assert [value.name for value in graph.outputs] == ["logits"]
    assert len(list(graph)) == 3


def test_logits_with_axes_of_one_are_flattened(convolutional: dict[str, np.ndarray], random) -> None:
    model = imported(network(CONVOLUTIONAL, convolutional, outputs="logits"))
    flatten_logits(model.graph)
    assert [value.name for value in model.graph.outputs] == ["logits/Flatten_0"]
    x = random.standard_normal((3, 3, 8, 8)).astype(np.float32)
    (found,) = runtime(model)(x)
    (expected,) = runtime(network(CONVOLUTIONAL, convolutional, outputs="logits"))(x)
    assert found.shape == (3, 5)
    np.testing.assert_array_equal(found, expected[:, :, 0, 0])


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Relu", "x", "y")], r"\[batch,3,8,8\]"),
        ([node("ReduceMean", "x", "y", axes=[2])], r"\[batch,3,1,8\]"),
        ([node("ReduceMean", "x", "y", axes=[1, 2, 3], keepdims=0)], r"\[batch\]"),
    ],
)
def test_logits_of_another_shape_are_refused(nodes: list[onnx.NodeProto], shape: str) -> None:
    with pytest.raises(ModelError, match=rf"^output 'y' has shape {shape}; expected class scores \[N, classes\]$"):
        flatten_logits(graph_of(nodes))


def test_logits_of_a_file_are_those_before_the_activation(random: np.random.Generator, tmp_path) -> None:
    scored = small_cnn(random, ending="Softmax")
    source = load_source(written(scored, tmp_path))
    assert (source.activation, source.output, source.logits.name, source.classes) == ("softmax", "scores", "logits", 5)
    images = random.standard_normal((3, 3, 16, 12)).astype(np.float32)
    (logits,) = runtime(source.model)(images)
    (scores,) = runtime(scored)(images)
    exponentials = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(scores, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-5)
    original = source.original.open(OnnxRuntimeCpu())(images)
    np.testing.assert_allclose(original, logits, rtol=1e-5, atol=1e-6)
