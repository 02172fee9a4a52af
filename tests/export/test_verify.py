import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from engine.errors import VerificationError
from engine.export import compile as compilation
from engine.export import differentiate, export, link, windows
from engine.export.graph import GraphBuilder
from engine.export.linked import LINK_BOUND, ROWS_BOUND
from engine.export.operators import pooling
from engine.export.rules import RULES, Entry
from engine.export.split import Block
from engine.export.verify import CHAIN_BOUND, FORWARD_BOUND, GRADIENT_BOUND, Verification, photo_like
from engine.export.windows import resolve_pads
from tests.export.networks import network, node, small_cnn, weight, written
from tests.export.rules.gradients import runtime

RULES_AT_IMPORT = {op: entry.rule for op, entry in RULES.items()}
FIRST_BLOCK_WITH = {
    "Conv": "block1",
    "Relu": "block1",
    "MaxPool": "block2",
    "Add": "block2",
    "AveragePool": "block3",
    "Clip": "block3",
    "GlobalAveragePool": "head",
    "Flatten": "head",
    "Gemm": "head",
}


@pytest.fixture
def model(random: np.random.Generator, tmp_path: Path) -> Path:
    return written(small_cnn(random, ending="Softmax"), tmp_path)


def refusal(model: Path) -> str:
    """What the export says when its check fails; nothing may be left beside the model."""
    with pytest.raises(VerificationError) as caught:
        export(model, model.parent / "new.ada")
    assert [entry.name for entry in model.parent.iterdir()] == [model.name]
    return str(caught.value)


def replace_rule(monkeypatch: pytest.MonkeyPatch, op: str, rule: Callable[..., ir.Value]) -> None:
    monkeypatch.setitem(RULES, op, Entry(rule, RULES[op].versions))


def times(factor: float, op: str) -> Callable[..., ir.Value]:
    """The op's rule with its result multiplied."""
    right = RULES[op].rule

    def wrong(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        result = right(g, node, dys, index)
        return g.op("Mul", result, g.floats(factor, result))

    return wrong


@pytest.mark.parametrize("factor", [-1.0, float("nan")], ids=["sign", "nan"])
@pytest.mark.parametrize("op", FIRST_BLOCK_WITH)
def test_first_block_with_a_wrong_rule_is_named(
    op: str, factor: float, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_rule(monkeypatch, op, times(factor, op))
    message = refusal(model)
    assert message.startswith(f"gradient companion of {FIRST_BLOCK_WITH[op]}: ")
    share = "is not finite or not of its input's shape, or its sum over H and W is not its second output"
    if np.isfinite(factor):
        share = f"of their size; expected at most {GRADIENT_BOUND:g}"
        assert ": differs from central differences by " in message
    assert message.endswith(f"{share}. A gradient rule is wrong for an op of it; nothing was written")


def test_right_export_has_small_figures(model: Path) -> None:
    checks = export(model, model.parent / "right.ada").verification
    assert 0 <= checks.forward_error <= 1e-6 < FORWARD_BOUND
    assert 0 <= checks.blocks_error <= 1e-6
    assert 0 < checks.float64_error <= 1e-6 < CHAIN_BOUND
    assert list(checks.gradient_errors) == ["block1", "block2", "block3", "head"]
    assert max(checks.gradient_errors.values()) <= 1e-6 < GRADIENT_BOUND
    assert list(checks.average_gradient_errors) == ["relu1", "relu3", "clip4"]
    assert max(checks.average_gradient_errors.values()) <= 1e-5 < LINK_BOUND


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_mistake_that_the_evaluator_shares_with_the_rules_is_found(
    op: str, random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both take the pads of auto_pad from one function: central differences agree, ONNX Runtime does not."""
    pool = node(op, "relu", "pool", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    nodes = [
        node("Conv", "x w", "conv"),
        node("Relu", "conv", "relu"),
        pool,
        node("Conv", "pool v", "last"),
        node("GlobalAveragePool", "last", "mean"),
        node("Flatten", "mean", "logits"),
        node("Softmax", "logits", "y"),
    ]
    constants = {"w": weight(random, 4, 3, 1, 1), "v": weight(random, 5, 4, 1, 1)}
    model = written(network(nodes, constants, image=(3, 9, 8)), tmp_path)

    def wrong(auto_pad: str, *arguments: object):
        begin, end = resolve_pads(auto_pad, *arguments)
        return (end, begin) if auto_pad == "SAME_UPPER" else (begin, end)

    monkeypatch.setattr(windows, "resolve_pads", wrong)
    monkeypatch.setattr(pooling, "resolve_pads", wrong)
    assert refusal(model).startswith("onnx's reference implementation and ONNX Runtime disagree about the blocks by ")


def clip_without_upper_bound(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    y = node.outputs[0]
    return g.op("Mul", dys[0], g.cast(g.op("Greater", y, g.floats(0.0, y)), y.dtype))


def test_bound_that_images_hardly_reach_is_checked(
    random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        node("Conv", "x w", "conv"),
        node("Relu", "conv", "relu"),
        node("Conv", "relu v", "last"),
        node("Clip", "last zero high", "clip"),
        node("GlobalAveragePool", "clip", "mean"),
        node("Flatten", "mean", "logits"),
        node("Softmax", "logits", "y"),
    ]
    constants = {
        "w": weight(random, 4, 3, 1, 1),
        "v": weight(random, 5, 4, 1, 1),
        "zero": np.float32(0),
        "high": np.float32(8),
    }
    model = written(network(nodes, constants), tmp_path)
    inner = network(nodes[:4], constants, outputs="clip")
    assert runtime(inner)(photo_like((3, 8, 8), rows=1))[0].max() < 8
    replace_rule(monkeypatch, "Clip", clip_without_upper_bound)
    assert refusal(model).startswith("gradient companion of head: differs from central differences by ")


def hardly_alive(random: np.random.Generator) -> onnx.ModelProto:
    """A network whose negative biases keep every ReLU shut but for very bright images."""
    nodes = [
        node("Conv", "x w", "conv"),
        node("Relu", "conv", "alive"),
        node("Conv", "alive v b", "low"),
        node("Relu", "low", "dead"),
        node("Conv", "dead u", "last"),
        node("GlobalAveragePool", "last", "mean"),
        node("Flatten", "mean", "logits"),
        node("Softmax", "logits", "y"),
    ]
    constants = {
        "w": weight(random, 4, 3, 1, 1),
        "v": weight(random, 4, 4, 1, 1),
        "b": np.full(4, -1e3),
        "u": weight(random, 5, 4, 1, 1),
    }
    return network(nodes, constants)


def test_network_that_is_dead_at_the_check_s_images_is_refused(random: np.random.Generator, tmp_path: Path) -> None:
    """Derivatives of zero agree with any gradient of zero."""
    model = written(hardly_alive(random), tmp_path)
    with pytest.raises(VerificationError) as caught:
        export(model, tmp_path / "new.ada", layers=["alive"])
    assert str(caught.value) == (
        "gradient companion of head: all derivatives are zero at the images of the check, so it cannot be verified; "
        "expected a network that is alive there: give one of its photos with --photo; nothing was written"
    )


def test_photo_at_which_the_network_is_alive_lets_it_be_checked(
    random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(hardly_alive(random), tmp_path)
    Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    settings = {"resize": "stretch", "interp": "bilinear", "scale": 0.01, "mean": [0.0] * 3, "std": [1.0] * 3}
    (tmp_path / "preprocess.json").write_text(json.dumps(settings | {"bgr": False}))
    files = {"photo": tmp_path / "photo.png", "preprocess": tmp_path / "preprocess.json"}
    checks = export(model, tmp_path / "right.ada", layers=["alive"], **files).verification
    assert max(checks.gradient_errors.values()) <= 1e-6
    right, wrong = RULES["Relu"].rule, times(1.01, "Relu")
    replace_rule(
        monkeypatch,
        "Relu",
        lambda g, entry, *arguments: (wrong if entry.name == "node_dead" else right)(g, entry, *arguments),
    )
    with pytest.raises(VerificationError, match=r"^gradient companion of head: differs from central differences by "):
        export(model, tmp_path / "new.ada", layers=["alive"], **files)


def spoil(model: ir.Model, name: str) -> ir.Model:
    """Double one element of a weight."""
    value = model.graph.initializers[name]
    array = value.const_value.numpy().copy()
    array.flat[0] *= 2
    value.const_value = ir.tensor(array, name=name)
    return model


def test_wrong_forward_graph_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "forward", lambda source: spoil(link.forward(source), "head"))
    message = refusal(model)
    assert message.startswith(f"forward.onnx: differs from {model} by ")
    assert message.endswith(
        f" of the largest logit with a batch of 1; expected at most {FORWARD_BOUND:g}; nothing was written"
    )


def test_forward_graph_that_is_wrong_for_larger_batches_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch_mixed(source) -> ir.Model:
        result = link.forward(source)
        g = GraphBuilder(result.graph, "wrong")
        logits = result.graph.outputs[0]
        result.graph.outputs[:] = [g.op("Add", logits, g.op("Sub", logits, g.op("ReduceMean", logits, g.ints([0]))))]
        return result

    monkeypatch.setattr(compilation, "forward", batch_mixed)
    assert "of the largest logit with a batch of 3; expected" in refusal(model)


def test_wrong_block_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = compilation.split

    def wrong(*arguments: object) -> list[Block]:
        blocks = right(*arguments)
        spoil(blocks[1].model, "w2")
        return blocks

    monkeypatch.setattr(compilation, "split", wrong)
    assert refusal(model).startswith(f"the chain of blocks: differs from {model} by ")


def test_wrong_folding_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.export import source

    right = source.fold_batch_normalization

    def wrong(graph: ir.Graph) -> None:
        right(graph)
        (name,) = (name for name, value in graph.initializers.items() if "folded" in name and len(value.shape) == 1)
        value = graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() + np.float32(0.01), name=name)

    monkeypatch.setattr(source, "fold_batch_normalization", wrong)
    assert refusal(model).startswith(f"forward.onnx: differs from {model} by ")


def test_wrong_sum_of_a_companion_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        differentiate, "sum_over_space", lambda g, gradient: g.op("ReduceMean", gradient, g.ints([2, 3]), keepdims=0)
    )
    assert refusal(model).startswith(
        "gradient companion of block1: is not finite or not of its input's shape, or its sum over H and W is not "
    )


@pytest.mark.parametrize("size", [(8, 8), (24, 20)])
def test_average_gradient_that_is_zero_but_for_rounding(
    size: tuple[int, int], random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an InstanceNormalization the sum of the gradient is 0; the two graphs add up its rounding in two orders."""
    nodes = [
        node("Conv", "x w", "maps"),
        node("InstanceNormalization", "maps scale bias", "normal"),
        node("Relu", "normal", "alive"),
        node("Conv", "alive v", "last"),
        node("GlobalAveragePool", "last", "mean"),
        node("Flatten", "mean", "logits"),
        node("Softmax", "logits", "y"),
    ]
    constants = {
        "w": weight(random, 4, 3, 1, 1),
        "scale": np.ones(4),
        "bias": np.ones(4),
        "v": weight(random, 5, 4, 3, 3),
    }
    model = written(network(nodes, constants, image=(3, *size)), tmp_path)

    def by_columns(g: GraphBuilder, gradient: ir.Value) -> ir.Value:
        columns = g.op("ReduceSum", gradient, g.ints([2]), keepdims=0)
        return g.op("ReduceSum", columns, g.ints([2]), keepdims=0)

    monkeypatch.setattr(link, "sum_over_space", by_columns)
    checks = export(model, tmp_path / "right.ada", layers=["maps"]).verification
    assert checks.average_gradient_errors["maps"] <= 1e-6
    monkeypatch.setattr(link, "sum_over_space", lambda g, gradient: by_columns(g, g.op("Abs", gradient)))
    with pytest.raises(VerificationError, match=r"^tapped\.onnx: average gradients of layer 'maps' differ from the "):
        export(model, tmp_path / "wrong.ada", layers=["maps"])


@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["zero", "constant"])
def test_logits_that_do_not_depend_on_the_image_are_refused(
    bias: float, random: np.random.Generator, tmp_path: Path
) -> None:
    nodes = [
        node("Conv", "x w", "maps"),
        node("Relu", "maps", "alive"),
        node("GlobalAveragePool", "alive", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat u b", "logits"),
        node("Softmax", "logits", "y"),
    ]
    constants = {"w": weight(random, 4, 3, 1, 1), "u": np.zeros((4, 5)), "b": bias * np.arange(5)}
    assert refusal(written(network(nodes, constants), tmp_path)).startswith(
        "gradient companion of head: all derivatives are zero at the images of the check, so it cannot be verified; "
    )


def test_logits_that_are_rounding_alone_are_refused(random: np.random.Generator, tmp_path: Path) -> None:
    """The mean of a centred map is 0."""
    nodes = [
        node("Conv", "x w", "maps"),
        node("MeanVarianceNormalization", "maps", "normal", axes=[2, 3]),
        node("Conv", "normal v", "last"),
        node("GlobalAveragePool", "last", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat u", "logits"),
        node("Softmax", "logits", "y"),
    ]
    constants = {"w": weight(random, 4, 3, 1, 1), "v": weight(random, 5, 4, 1, 1), "u": weight(random, 5, 5)}
    model = written(network(nodes, constants), tmp_path)
    with pytest.raises(VerificationError) as caught:
        export(model, tmp_path / "new.ada", layers=["maps", "last"])
    assert str(caught.value).startswith("the logits are ")
    assert str(caught.value).endswith(
        " in float64: rounding alone; expected logits that depend on the image; nothing was written"
    )


@pytest.mark.parametrize(("op", "block"), [("Gemm", "head"), ("Clip", "block3"), ("MaxPool", "block2")])
def test_rule_that_mixes_the_rows_of_a_batch_is_found(
    op: str, block: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one row it is right, and the tapped graph and the companions agree about it."""

    def mixed(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
        right = RULES_AT_IMPORT[op](g, node, dys, index)
        mean = g.op("ReduceMean", right, g.ints([0]), keepdims=1)
        return g.op("Add", g.op("Sub", right, right), mean)

    replace_rule(monkeypatch, op, mixed)
    message = refusal(model)
    assert message.startswith(f"gradient companion of {block}: its gradients of two classes at once differ from those ")
    assert message.endswith(
        f"expected at most {ROWS_BOUND:g}. A gradient rule mixes the rows of a batch; nothing was written"
    )


def test_rule_that_takes_the_first_image_for_all_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
        y = g.op("Slice", node.outputs[0], g.ints([0]), g.ints([1]), g.ints([0]))
        return g.op("Mul", dys[0], g.cast(g.op("Greater", y, g.floats(0.0, y)), y.dtype))

    replace_rule(monkeypatch, "Relu", wrong)
    assert refusal(model).startswith("gradient companion of block2: its gradients of two images at once differ from ")


def test_gradient_that_cannot_be_computed_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
        return g.op("Reshape", dys[0], g.ints([-1, 7]))

    replace_rule(monkeypatch, "Flatten", wrong)
    assert refusal(model).startswith(
        "gradient companion of head: onnx's reference implementation cannot run it in float64 ("
    )


def test_wrong_average_gradient_of_the_tapped_graph_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "sum_over_space", times_two_sum)
    message = refusal(model)
    assert message.startswith("tapped.onnx: average gradients of layer 'clip4' differ from the companions' by ")
    assert message.endswith(f" of the gradients' size; expected at most {LINK_BOUND:g}; nothing was written")


def times_two_sum(g: GraphBuilder, gradient: ir.Value) -> ir.Value:
    total = differentiate.sum_over_space(g, gradient)
    return g.op("Add", total, total)


def test_tapped_graph_that_takes_other_classes_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = compilation.tapped

    def reversed_where(*arguments: object) -> ir.Model:
        result = right(*arguments)
        (where,) = (entry for entry in result.graph if entry.op_type == "Where")
        top, target = where.inputs[1:]
        where.replace_input_with(1, target)
        where.replace_input_with(2, top)
        return result

    monkeypatch.setattr(compilation, "tapped", reversed_where)
    message = refusal(model)
    assert message.startswith("tapped.onnx: took the classes [-1")
    assert "; expected [" in message


@pytest.mark.parametrize(
    ("number", "what"),
    [(0, "logits"), (2, "feature maps"), (3, "average gradients")],
    ids=["logits", "maps", "gradients"],
)
def test_wrong_graph_of_the_last_layer_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    right = compilation.last_layer

    def wrong(*arguments: object) -> ir.Model:
        result = right(*arguments)
        value = result.graph.outputs[number]
        name, value.name = value.name, "right"
        g = GraphBuilder(result.graph, "wrong")
        doubled = g.op("Mul", value, g.floats(2.0, value))
        doubled.name, doubled.shape, doubled.type = name, value.shape, value.type
        result.graph.outputs[number] = doubled
        return result

    monkeypatch.setattr(compilation, "last_layer", wrong)
    assert refusal(model) == (
        f"last_layer.onnx: its {what} differ from those of tapped.onnx by 1 of their size; expected at most "
        f"{LINK_BOUND:g}; nothing was written"
    )


@pytest.mark.parametrize("shape", [(3, 24, 32), (1, 7, 5), (3, 1, 8)])
def test_photo_like_images(shape: tuple[int, int, int]) -> None:
    images = photo_like(shape, rows=3)
    assert images.shape == (3, *shape)
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    np.testing.assert_allclose(images.std(axis=(1, 2, 3)), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(images, photo_like(shape, rows=3))
    assert np.abs(images[0] - images[1]).max() > 0.1


def test_photo_like_images_are_smooth() -> None:
    images = photo_like((3, 64, 64), rows=2)
    for axis in (2, 3):
        here, there = (np.moveaxis(images, axis, 0)[part].ravel() for part in (slice(1, None), slice(None, -1)))
        assert np.corrcoef(here, there)[0, 1] > 0.6


def test_figures_are_rounded_to_two_digits() -> None:
    figures = Verification(
        forward_error=1.2345e-7,
        blocks_error=0.0,
        float64_error=None,
        gradient_errors={"block1": 9.96e-12},
        average_gradient_errors={"relu1": 0.00012999},
        image_gradient_error=None,
        full_gradient_error=3.14159e-6,
        completeness_gap=21.7,
        explain_error=4.56e-8,
    )
    assert figures.rounded() == {
        "forward_error": 1.2e-7,
        "blocks_error": 0.0,
        "float64_error": None,
        "gradient_errors": {"block1": 1.0e-11},
        "average_gradient_errors": {"relu1": 1.3e-4},
        "image_gradient_error": None,
        "full_gradient_error": 3.1e-6,
        "completeness_gap": 22.0,
        "explain_error": 4.6e-8,
    }
