import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import stats

import engine
from engine.backends import OnnxRuntimeCpu
from engine.bundle import load_bundle
from engine.errors import BundleError, OptionError
from engine.metrics import Cascade, Explained, Randomisation, create_metrics, measure
from engine.metrics.permute import learned_tensors

BLOCKS = ("head", "block3", "block2", "block1")
WEIGHTS = {"head": "head", "block3": "w3", "block2": "w2", "block1": "w1"}


@pytest.fixture
def cascade(explainer: engine.Explainer) -> Iterator[Cascade]:
    with Cascade(explainer) as cascade:
        yield cascade


@pytest.fixture
def own(explainer: engine.Explainer, explained: Explained) -> Explained:
    """An explanation whose heatmap is its method's."""
    return replace(explained, explanation=explainer.explain(explained.image, 0))


def constants(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """All constants by the file's and their own name."""
    return {
        (file.stem, tensor.name): numpy_helper.to_array(tensor, str(folder))
        for file in sorted(folder.glob("*.onnx"))
        for tensor in onnx.load(file).graph.initializer
    }


def test_the_cascade_goes_down_from_the_head(explainer: engine.Explainer, cascade: Cascade) -> None:
    trained = constants(explainer.bundle.path)
    assert cascade.blocks == BLOCKS
    for depth, (block, other) in enumerate(cascade.explainers(), start=1):
        assert block == BLOCKS[depth - 1]
        assert {file.name for file in other.bundle.path.iterdir()} == {
            file.name for file in explainer.bundle.path.iterdir()
        } - {"manifest.json"}
        changed = {WEIGHTS[name] for name in BLOCKS[:depth]}
        found = constants(other.bundle.path)
        assert found.keys() == trained.keys()
        for (graph, name), values in found.items():
            before = trained[graph, name]
            assert values.dtype == before.dtype
            if name not in changed:
                np.testing.assert_array_equal(values, before)
                continue
            assert (values != before).mean() > 0.8
            np.testing.assert_array_equal(np.sort(values, axis=None), np.sort(before, axis=None))
            np.testing.assert_array_equal(values, found["forward", name])  # all graphs hold one network


def test_the_graphs_still_belong_together(cascade: Cascade, explained: Explained) -> None:
    """Blocks and head, one after the other, compute what forward computes; so does tapped."""
    for _, other in cascade.explainers():
        probe = other.probe(explained.image, 0)
        value: list[np.ndarray] = [explained.image]
        for block in ("block1", "block2", "block3", "head"):
            value = OnnxRuntimeCpu(threads=1).open(other.bundle.path / f"{block}.onnx").run(value)
        forward = probe.run("forward", [explained.image])[0]
        np.testing.assert_allclose(value[0], forward, atol=1e-4)
        probe.tap()
        np.testing.assert_allclose(probe.logits, forward, atol=1e-4)


def test_compare_equals_explaining_each_network(own: Explained, cascade: Cascade) -> None:
    heatmaps = [other.explain(own.image, 0).heatmap for _, other in cascade.explainers()]
    depths = cascade.compare(own)
    assert [depth.block for depth in depths] == list(BLOCKS)
    expected = [stats.spearmanr(own.heatmap.ravel(), heatmap.ravel()).statistic for heatmap in heatmaps]
    assert [depth.spearman for depth in depths] == pytest.approx(expected, rel=1e-6)
    assert max(expected) < 0.99
    assert all(-1 <= depth.structural_similarity < 1 for depth in depths)
    value = measure(replace(own, cascade=cascade), [Randomisation()])["randomisation"]
    assert value == pytest.approx(np.mean(expected), rel=1e-6)
    assert create_metrics(["randomisation"])[0].compute(own) == value  # a cascade of its own is the same


def test_the_seed_chooses_the_network(explainer: engine.Explainer) -> None:
    weights = []
    for seed in (0, 0, 1):
        with Cascade(explainer, seed) as cascade:
            _, other = next(cascade.explainers())
            weights.append(constants(other.bundle.path)["forward", "head"])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()


def test_the_folder_is_gone_afterwards(explainer: engine.Explainer) -> None:
    with Cascade(explainer) as cascade:
        folders = [other.bundle.path for _, other in cascade.explainers()]
        assert all(folder.is_dir() for folder in folders)
    assert not any(folder.parent.exists() for folder in folders)


def test_a_cascade_of_another_explainer(cascade: Cascade, own: Explained, tiny_bundle: Path) -> None:
    other = replace(own, explainer=engine.load(tiny_bundle, threads=1))
    text = f"cascade is of {tiny_bundle}, the explanation of {tiny_bundle}; expected the same explainer: make one casc"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}"):
        cascade.compare(other)


def test_a_cascade_that_was_left(explainer: engine.Explainer, own: Explained) -> None:
    with Cascade(explainer) as cascade:
        pass
    text = ": the randomised graphs cannot be written: No such file or directory; use a cascade within its with block"
    with pytest.raises(BundleError, match=re.escape(text)):
        cascade.compare(own)


def test_only_learned_tensors_are_listed(tmp_path: Path, tiny_bundle: Path) -> None:
    """A block of every kind of constant: input statistics, bounds, scales of Resize, and weights, also quantized."""
    nodes = [
        helper.make_node("Sub", ["image", "mean"], ["centred"]),
        helper.make_node("Conv", ["centred", "weight", "bias"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "running_mean", "running_var"], ["b"]),
        helper.make_node("Clip", ["b", "low", "high"], ["c"]),
        helper.make_node("Mul", ["c", "layer_scale"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["e"]),
        helper.make_node("Resize", ["e", "", "scales"], ["f"]),
        helper.make_node("DequantizeLinear", ["quantized", "step"], ["dequantized"]),
        helper.make_node("Conv", ["f", "dequantized"], ["out"]),
    ]
    floats = {
        "mean": (3, 1, 1),
        "weight": (3, 3, 1, 1),
        "bias": (3,),
        "gamma": (3,),
        "beta": (3,),
        "running_mean": (3,),
        "running_var": (3,),
        "low": (),
        "high": (),
        "layer_scale": (3, 1, 1),
        "half": (),
        "scales": (4,),
        "step": (),
    }
    stored = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in floats.items()]
    stored.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.int8), "quantized"))
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 4, 4]) for name in ("image", "out")]
    folder = tmp_path / "kinds"
    shutil.copytree(tiny_bundle, folder)
    graph = helper.make_graph(nodes, "kinds", value[:1], value[1:], stored)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), folder / "block1.onnx"
    )
    learned = learned_tensors(replace(load_bundle(tiny_bundle), path=folder))
    assert learned == {
        "block1": ["weight", "bias", "gamma", "beta", "running_mean", "running_var", "layer_scale", "quantized"],
        "block2": ["w2"],
        "block3": ["w3"],
        "head": ["head"],
    }


@pytest.mark.parametrize("seed", [-1, 0.5, True, None])
def test_a_seed_that_is_none(explainer: engine.Explainer, seed: object) -> None:
    text = f"seed is {seed!r}; expected a whole number of at least 0"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        Randomisation(seed=seed)
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        Cascade(explainer, seed)
