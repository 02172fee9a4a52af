"""FullGrad against its formula in float64, with autograd."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import engine
from engine.export import export
from engine.methods.full_grad import channels_first, magnitudes
from tests.methods.conftest import Tiny
from tests.reference import attribution
from tests.reference.network import TorchNetwork
from tests.tiny_cnn import PREPROCESS, tiny_cnn


@pytest.fixture(scope="module", params=["Relu", "Sigmoid"])
def biased(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> engine.Explainer:
    """The tiny network with biases; the activation between its second and third layer is given."""
    generator = np.random.default_rng(20102)
    model = tiny_cnn()
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            kernel = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
            values = generator.normal(0, 0.3, kernel.dims[0]).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, f"{node.input[1]}_bias"))
            node.input.append(f"{node.input[1]}_bias")
        if list(node.output) == ["relu2"]:
            node.op_type = request.param
    folder = tmp_path_factory.mktemp(request.param)
    onnx.save(model, folder / "biased.onnx")
    (folder / "preprocess.json").write_text(json.dumps(PREPROCESS), encoding="utf-8")
    export(folder / "biased.onnx", folder / "biased.ada", preprocess=folder / "preprocess.json", activation="softmax")
    return engine.load(folder / "biased.ada", threads=2)


def test_the_formula(biased: engine.Explainer, tiny: Tiny) -> None:
    network = TorchNetwork(biased.bundle.path / "forward.onnx")
    for target, result in zip([1, 3], biased.explain(tiny.x, [1, 3], method="full-grad"), strict=True):
        image, parts, gap = attribution.full_gradient(network, tiny.x, target)
        assert len(parts) == 4
        np.testing.assert_allclose(
            result.heatmap, attribution.heatmap(attribution.full_grad_map(image, parts)), atol=1e-4
        )
        assert result.figures["completeness_gap"] == pytest.approx(gap, abs=1e-5)
        logit = image.sum() + sum(part.sum() for _, part in parts) - gap
        assert result.figures["completeness_error"] == pytest.approx(abs(gap / logit), abs=1e-5 / abs(logit))
        assert result.evaluations == {"forward": 1, "full_gradient": 2}
        assert (result.scored, result.scorable, result.attribution) == (0, 0, None)


def test_a_network_of_relus_is_complete_and_another_says_by_how_much_it_is_not(
    biased: engine.Explainer, tiny: Tiny
) -> None:
    error = biased.explain(tiny.x, 1, method="full-grad").figures["completeness_error"]
    ops = {node.op_type for node in onnx.load(biased.bundle.path / "forward.onnx", load_external_data=False).graph.node}
    assert error > 0.01 if "Sigmoid" in ops else error < 1e-5


def test_each_class_gives_the_bytes_that_it_gives_alone(biased: engine.Explainer, tiny: Tiny) -> None:
    single = engine.load(biased.bundle.path, threads=1)
    for result in biased.explain(tiny.x, [0, 4], method="full-grad"):
        for explainer in (biased, single):
            alone = explainer.explain(tiny.x, result.target, method="full-grad")
            np.testing.assert_array_equal(result.heatmap, alone.heatmap)


def test_no_bias_and_no_gradient(tiny: Tiny) -> None:
    dead = tiny.explainer.explain(np.zeros_like(tiny.x), 1, method="full-grad")
    assert not dead.heatmap.any()
    assert dead.warnings == ("the heatmap is all zeros: the method's map is constant, or nowhere positive",)
    assert dead.figures == {"completeness_error": 0.0, "completeness_gap": 0.0}
    alive = tiny.explainer.explain(tiny.x, 1, method="full-grad")
    part = tiny.x[0] * attribution.input_gradient(tiny.logits, tiny.x[0], 1)
    np.testing.assert_allclose(alive.heatmap, attribution.heatmap(attribution.full_grad_map(part, [])), atol=1e-4)


def test_magnitudes_by_hand() -> None:
    part = np.array([[[-2, 4]], [[3, 2]]], np.float32)  # scaled 0, 1 and 1/2, 0
    np.testing.assert_allclose(magnitudes(part, (1, 2)), [[0.5, 1]])
    np.testing.assert_allclose(magnitudes(part, (1, 4)), [[0.5, 0.625, 0.875, 1]])
    np.testing.assert_array_equal(magnitudes(np.array([[[-2, 2]]], np.float32), (3, 6)), np.zeros((3, 6)))


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((768, 7, 7), (224, 224), (768, 7, 7)),
        ((7, 7, 768), (224, 224), (768, 7, 7)),
        ((9, 12, 16), (24, 32), (9, 12, 16)),
        ((12, 16, 9), (24, 32), (9, 12, 16)),
        ((3, 7, 10), (224, 299), (3, 7, 10)),
        ((5, 1, 1), (224, 224), (5, 1, 1)),
        ((7, 7, 7), (224, 224), (7, 7, 7)),
    ],
)
def test_channels_first(shape: tuple[int, ...], size: tuple[int, int], expected: tuple[int, ...]) -> None:
    part = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = channels_first(part, size)
    assert found.shape == expected
    np.testing.assert_array_equal(found, part if shape == expected else part.transpose(2, 0, 1))


def test_a_constant_image(biased: engine.Explainer, tiny: Tiny) -> None:
    result = biased.explain(np.full_like(tiny.x, 0.5), 1, method="full-grad")
    assert np.isfinite(result.heatmap).all()
    assert result.heatmap.max() == 1.0


def test_options_of_another_method(tiny: Tiny) -> None:
    with pytest.raises(engine.OptionError, match=r"^steps: is no option of method 'full-grad'; it takes none$"):
        tiny.explainer.explain(tiny.x, 1, method="full-grad", steps=3)


def test_a_real_network_of_relus_is_complete(assets: Path, tmp_path: Path) -> None:
    model = assets / "models" / "squeezenet1.1"
    export(model / "model.onnx", tmp_path / "real.ada", preprocess=model / "preprocess.json", activation="softmax")
    result = engine.load(tmp_path / "real.ada").explain(assets / "images/other/catdog.png", method="full-grad")
    assert result.figures["completeness_error"] < 1e-5
