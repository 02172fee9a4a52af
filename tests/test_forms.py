"""The same network in every form in which people hold models gives the same heatmap."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import engine
from engine.backends import OnnxRuntimeCpu
from engine.export import ExportReport, export
from engine.image import prepare
from tests import forms
from tests.comparison import Case
from tests.models import Exported, exported
from tests.reference import method
from tests.reference.network import TorchNetwork, quantization_left_out

NAME = "squeezenet1.1"
PHOTO = "other/goldfish.jpg"
CONVERTED = "the file's opset 17 was converted to 18"
NOTES = {
    "open H and W": (CONVERTED,),
    "batch fixed at 1": (CONVERTED, "the file's batch is fixed at 1; the bundle takes any"),
    "opset 11, IR 3": ("the file's opset 11 was converted to 18",),
    "channels last": (CONVERTED, "the file takes its images channels last; the bundle takes them channels first"),
    "float16": (CONVERTED, "the file computes in float16; the bundle computes in float32"),
}
NO_GRADIENT = (
    "the file is quantized, and gradients pass the rounding straight through, also where it cuts values off in the "
    "place of a ReLU: at the image they would not be the network's"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forms")


@pytest.fixture(scope="module")
def plain(assets: Path, folder: Path) -> Exported:
    return exported(assets, NAME, folder)


@cache
def compiled(path: Path, preprocess: Path) -> ExportReport:
    size = (forms.SIZE, forms.SIZE) if "open" in path.name else None
    return export(path, path.with_suffix(".ada"), preprocess=preprocess, activation="softmax", size=size)


def image(plain: Exported, assets: Path, photo: str = PHOTO) -> NDArray[np.float32]:
    bundle = plain.explainer.bundle
    return prepare(assets / "images" / photo, bundle.preprocess, bundle.image_shape).array


@pytest.mark.parametrize("form", forms.FORMS)
def test_every_form_gives_the_same_numbers(form: str, plain: Exported, assets: Path, folder: Path) -> None:
    """Logits, feature maps and average gradients, and the logits of a batch, are the same to the last bit."""
    preprocess = plain.source.parent / "preprocess.json"
    report = compiled(forms.write(plain.source, form, folder), preprocess)
    assert report.notes == NOTES[form]
    same = plain.explainer.bundle
    if form == "float16":
        rounded = onnx.load(plain.source)
        forms.rounded(rounded)
        onnx.save(rounded, folder / "rounded.onnx")
        same = compiled(folder / "rounded.onnx", preprocess).bundle
        assert report.verification.forward_error > 1e-5
    else:
        assert report.verification.forward_error <= 1e-6
    x = image(plain, assets)
    runtime = OnnxRuntimeCpu()
    for found, expected, inputs in (
        (report.bundle.tapped, same.tapped, [x, np.array([-1, 7])]),
        (report.bundle.forward, same.forward, [np.concatenate([x, -x, 0.3 * x])]),
    ):
        for array, right in zip(runtime.open(found).run(inputs), runtime.open(expected).run(inputs), strict=True):
            np.testing.assert_array_equal(array, right)


def test_a_batch_that_was_fixed_gives_the_same_heatmap(plain: Exported, assets: Path, folder: Path) -> None:
    report = compiled(folder / "batch_fixed_at_1.onnx", plain.source.parent / "preprocess.json")
    x = image(plain, assets)
    found, expected = engine.load(report.bundle.path).explain(x), plain.explainer.explain(x)
    assert str(found).rsplit(",", 1)[0] == str(expected).rsplit(",", 1)[0]
    np.testing.assert_array_equal(found.heatmap, expected.heatmap)


@pytest.fixture(scope="module")
def quantized(plain: Exported, assets: Path, folder: Path) -> Exported:
    photos = sorted((assets / "images" / "other").glob("*.jpg"))[:8]
    images = [image(plain, assets, f"other/{photo.name}") for photo in photos]
    path = forms.write_quantized(plain.source, images, folder)
    report = compiled(path, plain.source.parent / "preprocess.json")
    assert report.notes == (
        CONVERTED,
        "the file is quantized: it is scored in integers; gradients pass the rounding straight through",
        f"the bundle has no gradient.onnx and full_gradient.onnx, which Ada-SISE does not need: {NO_GRADIENT}",
    )
    bundle = report.bundle
    assert (bundle.gradient, bundle.full_gradient, bundle.no_gradient) == (None, None, NO_GRADIENT)
    assert bundle.companion("block1") == bundle.path / "block1.grad.onnx"
    assert report.verification.image_gradient_error is None
    assert report.verification.forward_error <= 1e-6
    return Exported(source=path, explainer=engine.load(report.bundle.path), activation="softmax")


def test_quantized_network_is_scored_in_integers(quantized: Exported, plain: Exported, assets: Path) -> None:
    """The scores are those of the quantized file itself on the masked images, which the float network's are not."""
    x = image(plain, assets)
    result = quantized.explainer.explain(x)
    file = OnnxRuntimeCpu().open(quantized.source)
    tapped = OnnxRuntimeCpu().open(quantized.explainer.bundle.tapped)
    maps = tapped.run([x, np.array([-1])])[2:]
    network = OnnxRuntimeCpu().open(plain.explainer.bundle.forward)
    float_differences = []
    for number, layer in enumerate(result.layers):
        for channel, score in list(zip(layer.selected_channels, layer.scores, strict=True))[::20]:
            if np.isnan(score):
                continue
            (mask,) = method.masks(maps[number][0][[channel]], *x.shape[2:])
            masked = (x * mask).astype(np.float32)
            for session, differences in ((file, None), (network, float_differences)):
                (logits,) = session.run([masked])
                exponentials = np.exp(logits[0].astype(np.float64) - logits.max())
                difference = abs(exponentials[result.target] / exponentials.sum() - score)
                if differences is None:
                    assert difference <= 2e-3  # one mask value that rounds to another step moves a few activations
                else:
                    differences.append(difference)
    assert np.max(float_differences) > 1e-2


def test_gradients_of_a_quantized_network_pass_straight_through(
    quantized: Exported, plain: Exported, assets: Path
) -> None:
    """Float64 autograd of the file without its rounding, with the activation decisions of the quantized run."""
    x = image(plain, assets)
    network = TorchNetwork(quantization_left_out(onnx.load(quantized.source)))
    Case(quantized, x, x, network).check_average_gradients()
