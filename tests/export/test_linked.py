"""The checks of the two graphs of input gradients, each failed on purpose."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engine.errors import VerificationError
from engine.export import compile as compilation
from engine.export import export, link
from engine.export.graph import GraphBuilder
from engine.export.linked import COMPLETENESS_BOUND, LINK_BOUND, completeness_gap
from tests.export.networks import biased_cnn, small_cnn, written


@pytest.fixture
def linear(random: np.random.Generator, tmp_path: Path) -> Path:
    return written(biased_cnn(random), tmp_path)


@pytest.fixture
def saturating(random: np.random.Generator, tmp_path: Path) -> Path:
    return written(small_cnn(random), tmp_path)


def refusal(model: Path) -> str:
    """What the export says when its check fails; nothing may be left beside the model."""
    with pytest.raises(VerificationError) as caught:
        export(model, model.parent / "new.ada", activation="softmax")
    assert [entry.name for entry in model.parent.iterdir()] == [model.name]
    return str(caught.value)


def change_output(model: ir.Model, place: int, change: Callable[[GraphBuilder, ir.Value], ir.Value]) -> ir.Model:
    """Put something else into the place of an output, under its name."""
    graph = model.graph
    output = graph.outputs[place]
    other = change(GraphBuilder(graph, "other"), output)
    name, output.name = output.name, f"{output.name}/right"
    other.name, other.shape = name, output.shape
    graph.outputs[place] = other
    return model


def doubled(g: GraphBuilder, value: ir.Value) -> ir.Value:
    return g.op("Add", value, value)


def first_row_for_all(g: GraphBuilder, value: ir.Value) -> ir.Value:
    row = g.op("Slice", value, g.ints([0]), g.ints([1]), g.ints([0]))
    return g.op("Add", row, g.op("Sub", value, value))


def test_a_right_export_has_small_figures(linear: Path) -> None:
    checks = export(linear, linear.parent / "right.ada", activation="softmax").verification
    assert checks.image_gradient_error is not None
    assert checks.full_gradient_error is not None
    assert checks.completeness_gap is not None
    assert checks.image_gradient_error <= 1e-5 < LINK_BOUND
    assert checks.full_gradient_error <= 1e-5
    assert checks.completeness_gap <= 1e-5 < COMPLETENESS_BOUND


@pytest.mark.parametrize("place", [0, 1], ids=["logits", "image gradients"])
@pytest.mark.parametrize(
    ("name", "right"), [("gradient", "the companions"), ("full_gradient", "gradient.onnx")], ids=["gradient", "full"]
)
@pytest.mark.parametrize("change", [doubled, first_row_for_all])
def test_a_wrong_graph_is_refused(
    place: int,
    name: str,
    right: str,
    change: Callable[[GraphBuilder, ir.Value], ir.Value],
    linear: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = getattr(link, name)
    monkeypatch.setattr(compilation, name, lambda *arguments: change_output(build(*arguments), place, change))
    message = refusal(linear)
    what = ("logits", "image gradients")[place]
    assert message.startswith(f"{name}.onnx: its {what} differ from those of {right} by ")
    assert message.endswith(f" of their size; expected at most {LINK_BOUND:g}; nothing was written")


def test_a_graph_that_takes_one_class_for_all_is_refused(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = link._one_hot

    def wrong(g: GraphBuilder, target: ir.Value, logits: ir.Value, classes: int) -> ir.Value:
        first = g.op("ReduceMin", target, g.ints([0]), keepdims=1)
        return right(g, g.op("Add", first, g.op("Sub", target, target)), logits, classes)

    def broken(source: object) -> ir.Model:
        with monkeypatch.context() as patch:
            patch.setattr(link, "_one_hot", wrong)
            return link.gradient(source)

    monkeypatch.setattr(compilation, "gradient", broken)
    assert refusal(linear).startswith("gradient.onnx: its image gradients differ from those of the companions by ")


def test_a_wrong_bias_is_refused_where_the_network_is_linear(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = link.append_bias
    monkeypatch.setattr(link, "append_bias", lambda g, *arguments: doubled(g, right(g, *arguments)))
    message = refusal(linear)
    assert message.startswith("full_gradient.onnx: the image and the biases miss the logits by ")
    assert message.endswith(
        f" of the largest; expected at most {COMPLETENESS_BOUND:g}, since the network is linear piece by piece; "
        "nothing was written"
    )


def test_the_gap_of_another_network_is_recorded(saturating: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "append_bias", lambda g, node, _: g.floats(50.0, node.outputs[0]))
    report = export(saturating, saturating.parent / "new.ada", activation="softmax")
    assert report.verification.completeness_gap is not None
    assert report.verification.completeness_gap > 1
    checks = report.bundle.manifest["verification"]
    assert isinstance(checks, dict)
    assert checks["completeness_gap"] == float(f"{report.verification.completeness_gap:.1e}")


def test_attributions_that_are_not_finite_are_refused(saturating: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "append_bias", lambda g, node, _: g.floats(np.inf, node.outputs[0]))
    message = refusal(saturating)
    assert message.startswith("full_gradient.onnx: the image and the biases miss the logits by ")
    assert message.endswith(" of the largest; expected finite attributions; nothing was written")


def test_completeness_gap_by_hand() -> None:
    images = np.array([1, 2, 3, 4], np.float32).reshape(2, 1, 1, 2)
    gradient = np.array([1, 1, 0, -1], np.float32).reshape(2, 1, 1, 2)
    attributions = [np.array([[1, 0], [0, 0.5]], np.float32), np.array([[[2.0]], [[1.0]]], np.float32)]
    logits = np.array([[6, -8], [-2, 3]], np.float32)
    # Sums 3 + 1 + 2 = 6 and -4 + 0.5 + 1 = -2.5 for the logits 6 and -2.
    assert completeness_gap(images, np.array([0, 0]), logits, gradient, attributions) == 0.5 / 8
    assert completeness_gap(images, np.array([0, 1]), logits, gradient, attributions) == 5.5 / 8
