from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from engine.errors import ModelError
from engine.export import export
from engine.export.opset import expand_group_normalization, modernise
from engine.export.source import load_source
from tests.export.networks import BATCH, image_input, network, node, small_cnn, weight, written
from tests.export.rules.gradients import runtime

CHANNELS = 6
HEAD = [node("GlobalAveragePool", "maps", "mean"), node("Flatten", "mean", "flat"), node("Gemm", "flat head", "logits")]


def grouped(
    random: np.random.Generator, groups: int, opset: int, **attributes: object
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A classifier with a GroupNormalization, and its weights."""
    constants = {
        "w": weight(random, CHANNELS, 3, 3, 3),
        "scale": (1 + 0.5 * random.standard_normal(groups)).astype(np.float32),
        "bias": random.standard_normal(groups).astype(np.float32),
        "v": weight(random, 8, CHANNELS, 3, 3),
        "head": weight(random, 8, 5),
    }
    nodes = [
        node("Conv", "x w", "conv"),
        node("GroupNormalization", "conv scale bias", "normal", num_groups=groups, **attributes),
        node("Relu", "normal", "relu"),
        node("Conv", "relu v", "maps"),
        *HEAD,
    ]
    model = network(nodes, constants, outputs="logits", opset=opset)
    model.graph.output[0].CopyFrom(image_input([BATCH, 5], "logits"))  # onnx infers none after GroupNormalization
    return model, constants


def by_torch(images: np.ndarray, constants: dict[str, np.ndarray], groups: int, epsilon: float) -> np.ndarray:
    tensors = {name: torch.tensor(array).double() for name, array in constants.items()}
    scale, bias = (tensors[name].repeat_interleave(CHANNELS // groups) for name in ("scale", "bias"))
    x = functional.conv2d(torch.tensor(images).double(), tensors["w"])
    x = functional.conv2d(functional.group_norm(x, groups, scale, bias, epsilon).relu(), tensors["v"])
    return (x.mean((2, 3)) @ tensors["head"]).numpy()


@pytest.mark.parametrize("opset", [18, 19, 20])
@pytest.mark.parametrize(("groups", "epsilon"), [(1, None), (2, 0.5), (3, None), (CHANNELS, 0.5)])
def test_group_normalization_that_onnx_has_deprecated(
    groups: int, epsilon: float | None, opset: int, random: np.random.Generator, tmp_path: Path
) -> None:
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    model, constants = grouped(random, groups, opset, **attributes)
    with pytest.raises(onnx.checker.ValidationError, match="GroupNormalization is deprecated"):
        onnx.checker.check_model(model)
    source = load_source(written(model, tmp_path), activation="none")
    assert source.opset == opset
    images = random.standard_normal((3, 3, 8, 8)).astype(np.float32)
    expected = by_torch(images, constants, groups, 1e-5 if epsilon is None else epsilon)
    (logits,) = runtime(source.model)(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_network_with_it_is_exported_and_verified(random: np.random.Generator, tmp_path: Path) -> None:
    model, _ = grouped(random, 3, 18)
    report = export(written(model, tmp_path), tmp_path / "new.ada", activation="softmax")
    assert set(report.verification.gradient_errors) == {"block1", "block2", "head"}


@pytest.mark.parametrize("place", ["name", "domain", "taken"])
def test_names_do_not_matter(place: str, random: np.random.Generator, tmp_path: Path) -> None:
    model, constants = grouped(random, 2, 18)
    if place == "name":
        model.graph.node[1].ClearField("name")
    elif place == "domain":
        model.graph.node[1].domain = model.opset_import[0].domain = "ai.onnx"
    else:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(7), "normal/groups"))
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = "normal/grouped"
    source = load_source(written(model, tmp_path), activation="none")
    names = [entry.name for entry in source.model.graph]
    assert len(set(names)) == len(names)
    images = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = by_torch(images, constants, 2, 1e-5)
    (logits,) = runtime(source.model)(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_other_group_normalizations_are_left_as_they_are(random: np.random.Generator) -> None:
    model, _ = grouped(random, 2, 18)
    incomplete, foreign = onnx.ModelProto(), onnx.ModelProto()
    for copy in (incomplete, foreign):
        copy.CopyFrom(model)
    del incomplete.graph.node[1].attribute[:]
    foreign.graph.node[1].domain = "com.acme"
    new, _ = grouped(random, CHANNELS, 21)
    for each in (incomplete, foreign, new, small_cnn(random, opset=18)):
        before = each.SerializeToString()
        assert not expand_group_normalization(each)
        assert each.SerializeToString() == before


def test_opset_that_is_newer_than_onnx(random: np.random.Generator, tmp_path: Path) -> None:
    model = small_cnn(random)
    newest = onnx.defs.onnx_opset_version()
    model.opset_import[0].version = newest + 1
    path = written(model, tmp_path)
    with pytest.raises(ModelError) as caught:
        load_source(path, activation="none")
    assert str(caught.value) == (
        f"{path}: has opset {newest + 1}; expected at most {newest}, which onnx {onnx.__version__} knows: export the "
        "model again with an older opset, or install a newer onnx"
    )
    model.opset_import[0].version = newest
    assert modernise(model) is model
