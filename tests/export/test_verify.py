from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engine.errors import VerificationError
from engine.export import compile as compilation
from engine.export import differentiate, export, link, windows
from engine.export.graph import GraphBuilder, input_at
from engine.export.operators import pooling
from engine.export.rules import RULES, Entry
from engine.export.split import Block
from engine.export.verify import (
    CHAIN_BOUND,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    LINK_BOUND,
    Verification,
    photo_like,
)
from engine.export.windows import resolve_pads
from tests.export.networks import network, node, small_cnn, statistics, weight, written
from tests.export.rules.gradients import runtime

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


@pytest.mark.parametrize("factor", [-1.0, 1.01, 0.0, float("nan")], ids=["sign", "scale", "zero", "nan"])
@pytest.mark.parametrize("op", FIRST_BLOCK_WITH)
def test_wrong_factor_in_a_rule_is_found(op: str, factor: float, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_rule(monkeypatch, op, times(factor, op))
    message = refusal(model)
    assert message.startswith(f"gradient companion of {FIRST_BLOCK_WITH[op]}: ")
    share = "is not finite, or its sum over H and W is not its second output"
    if np.isfinite(factor):
        share = f"of their size; expected at most {GRADIENT_BOUND:g}"
        assert ": differs from central differences by " in message
    assert message.endswith(f"{share}. A gradient rule is wrong for an op of it; nothing was written")


def passes_everything(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return dys[0]


def only_the_first_input(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    return dys[0] if index == 0 else g.op("Mul", dys[0], g.floats(0.0, dys[0]))


def conv_without_flipping(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:  # noqa: ARG001
    weights = input_at(node, 1)
    outputs, inputs, *_ = weights.shape
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    shape = [group, int(outputs) // group, int(inputs), *map(int, weights.shape[2:])]
    exchanged = g.op("Transpose", g.op("Reshape", weights, g.ints(shape)), perm=[0, 2, 1, 3, 4])
    kernel = g.op("Reshape", exchanged, g.ints([group * shape[2], shape[1], *shape[3:]]))
    pads = [size // 2 for size in shape[3:]] * 2
    return g.op("Conv", dys[0], kernel, group=group, pads=pads)


def conv_moved_by_one(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    result = RULES_AT_IMPORT["Conv"](g, node, dys, index)
    moved = g.op("Pad", result, g.ints([0, 0, 1, 0, 0, 0, 0, 0]), g.floats(0.0, result))
    return g.op("Slice", moved, g.ints([0]), g.ints([-1]), g.ints([2]))


def average_of_all_taps(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    result = RULES_AT_IMPORT["AveragePool"](g, node, dys, index)
    return g.op("ReduceMean", g.op("Concat", result, result, axis=1), axes=[1])


def max_pool_to_every_tap(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    return RULES["AveragePool"].rule(g, node, dys, index)


RULES_AT_IMPORT = {op: entry.rule for op, entry in RULES.items()}


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("Relu", passes_everything),
        ("Clip", passes_everything),
        ("Add", only_the_first_input),
        ("Conv", conv_without_flipping),
        ("Conv", conv_moved_by_one),
        ("MaxPool", max_pool_to_every_tap),
    ],
    ids=["Relu passes all", "Clip passes all", "Add forgets one", "Conv unflipped", "Conv moved", "MaxPool to all"],
)
def test_wrong_form_of_a_rule_is_found(op: str, wrong, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_rule(monkeypatch, op, wrong)
    assert refusal(model).startswith(f"gradient companion of {FIRST_BLOCK_WITH[op]}: differs from central differences")


@pytest.mark.parametrize("op", ["BatchNormalization", "Concat", "MatMul", "Pad", "ReduceMean", "Reshape"])
@pytest.mark.parametrize("factor", [-1.0, 1.01])
def test_wrong_factor_in_the_other_rules_is_found(
    op: str, factor: float, random: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "r bn_scale bn_bias bn_mean bn_var", "n"),
        node("Pad", "n pads", "p"),
        node("Concat", "p p", "j", axis=1),
        node("ReduceMean", "j", "m", axes=[2, 3]),
        node("Reshape", "m shape", "f"),
        node("MatMul", "f head", "logits"),
    ]
    nodes.insert(1, node("Relu", "c", "r"))
    constants = {
        "w": weight(random, 4, 3, 3, 3),
        "head": weight(random, 8, 5),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64),
        "shape": np.array([-1, 8], np.int64),
        **statistics(random, "bn", 4),
    }
    nodes.append(node("Softmax", "logits", "y"))
    model = written(network(nodes, constants), tmp_path)
    export(model, tmp_path / "right.ada", layers=["r"])
    for file in (tmp_path / "right.ada").iterdir():
        file.unlink()
    (tmp_path / "right.ada").rmdir()
    replace_rule(monkeypatch, op, times(factor, op))
    with pytest.raises(VerificationError, match=r"^gradient companion of head: differs from central differences by "):
        export(model, tmp_path / "new.ada", layers=["r"])
    assert [entry.name for entry in tmp_path.iterdir()] == [model.name]


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


def test_network_that_is_dead_at_the_check_s_images_is_refused(random: np.random.Generator, tmp_path: Path) -> None:
    """All-negative biases keep every ReLU shut: derivatives of zero agree with any gradient of zero."""
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
    model = written(network(nodes, constants), tmp_path)
    with pytest.raises(VerificationError) as caught:
        export(model, tmp_path / "new.ada", layers=["alive"])
    assert str(caught.value) == (
        "gradient companion of head: all derivatives are zero at the images of the check, so it cannot be verified; "
        "expected a network that is alive there: give one of its photos with --photo; nothing was written"
    )


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
        result.graph.outputs[:] = [g.op("Add", logits, g.op("Sub", logits, g.op("ReduceMean", logits, axes=[0])))]
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
        differentiate, "sum_over_space", lambda g, gradient: g.op("ReduceMean", gradient, axes=[2, 3], keepdims=0)
    )
    assert refusal(model).startswith("gradient companion of block1: is not finite, or its sum over H and W is not ")


def test_wrong_average_gradient_of_the_tapped_graph_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "sum_over_space", times_two_sum)
    message = refusal(model)
    assert message.startswith("tapped.onnx: average gradients of layer 'clip4' differ from the companions' by 1; ")
    assert message.endswith(f"expected at most {LINK_BOUND:g}; nothing was written")


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
    )
    assert figures.rounded() == {
        "forward_error": 1.2e-7,
        "blocks_error": 0.0,
        "float64_error": None,
        "gradient_errors": {"block1": 1.0e-11},
        "average_gradient_errors": {"relu1": 1.3e-4},
    }
