"""grad-cam (pytorch_grad_cam) beside the engine and the float64 reference.

It computes in float32 and scales each map twice, with 1e-7 in the denominator, before and after cv2's resize (bilinear,
half-pixel centres); so maps agree to about 1e-5.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np
import pytest
import torch

import engine
from tests.packages.conftest import Subject, correlation
from tests.packages.squeezenet import SIDE
from tests.reference import attribution, cam
from tests.reference.method import Float, upsample

Explain = Callable[[str], Float]


@pytest.fixture(scope="module")
def explain(subject: Subject) -> Explain:
    """A function from the name of its method to its heatmap [SIDE, SIDE]."""
    import tests.architectures  # noqa: F401  makes torchvision importable, which grad-cam imports

    grad_cam: ModuleType = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: make test installs it")

    @cache
    def made(method: str) -> Float:
        target = grad_cam.utils.model_targets.ClassifierOutputTarget(subject.target)
        quick = method in ("AblationCAM", "ScoreCAM")
        model, x = (subject.quick, subject.x.float()) if quick else (subject.model, subject.x.clone())
        layers = [] if method == "FullGrad" else [model.fires[7]]
        with getattr(grad_cam, method)(model=model, target_layers=layers) as extractor:
            return np.asarray(extractor(input_tensor=x, targets=[target])[0], dtype=np.float64)

    return made


def assert_same(found: Float, reference: Float, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, attribution.heatmap(reference, (SIDE, SIDE)), atol=tolerance)


def test_grad_cam(explain: Explain, subject: Subject) -> None:
    assert_same(explain("GradCAM"), cam.grad_cam(*subject.maps_and_gradients))


def test_layer_cam(explain: Explain, subject: Subject) -> None:
    assert_same(explain("LayerCAM"), cam.layer_cam(*subject.maps_and_gradients))


def test_xgrad_cam(explain: Explain, subject: Subject) -> None:
    # Convention: 1e-7 is added to each map's sum.
    assert_same(explain("XGradCAM"), cam.xgrad_cam(*subject.maps_and_gradients))


def test_ablation_cam(explain: Explain, subject: Subject) -> None:
    # Convention: what the logit loses is divided by the logit, which is positive here.
    a, _ = subject.maps_and_gradients
    assert_same(explain("AblationCAM"), cam.ablation_cam(a, subject.target, subject.model.head), 2e-4)


def test_grad_cam_plus_plus_adds_to_the_denominator(explain: Explain, subject: Subject) -> None:
    # Convention: 1e-6 is added to 2 g^2 + g^3 sum A, which is of that size itself in this network.
    a, g = subject.maps_and_gradients
    total = a.sum(axis=(1, 2), keepdims=True)
    weights = (np.maximum(g, 0) * g**2 / (2 * g**2 + total * g**3 + 1e-6)).sum(axis=(1, 2))
    assert_same(explain("GradCAMPlusPlus"), np.maximum((weights[:, None, None] * a).sum(axis=0), 0))


def test_score_cam_upsamples_corner_to_corner(explain: Explain, subject: Subject) -> None:
    # Conventions: masks are upsampled with align_corners=True; 1e-8 is added to their extent; scores are logits.
    a, _ = subject.maps_and_gradients
    masks = torch.nn.functional.interpolate(torch.tensor(a)[None], (SIDE, SIDE), mode="bilinear", align_corners=True)[0]
    low, high = masks.amin(dim=(1, 2), keepdim=True), masks.amax(dim=(1, 2), keepdim=True)
    weights = torch.softmax(subject.scores_under((masks - low) / (high - low + 1e-8)), 0).numpy()
    assert_same(explain("ScoreCAM"), np.maximum((weights[:, None, None] * a).sum(axis=0), 0), 2e-4)


def test_full_grad_scales_every_channel_by_itself(explain: Explain, subject: Subject) -> None:
    # Convention: the magnitudes of every channel, of the image too, are scaled to [0, 1] by themselves (eq. 4 read
    # literally), where the authors' code and ours scale those of an operator together.
    input_part, parts, error = attribution.full_gradient(subject.network, subject.image, subject.target)
    assert abs(error) < 1e-9
    assert len(parts) == 26
    total = np.zeros((SIDE, SIDE))
    for part in [input_part, *(part for _, part in parts)]:
        for channel in np.abs(part):
            lifted = channel - channel.min()
            total += upsample((lifted / (1e-7 + lifted.max()))[None], SIDE, SIDE)[0]
    assert_same(explain("FullGrad"), total, 1e-3)


@pytest.mark.parametrize(
    ("method", "theirs"),
    [("grad-cam", "GradCAM"), ("layer-cam", "LayerCAM"), ("xgrad-cam", "XGradCAM"), ("ablation-cam", "AblationCAM")],
)
def test_the_engine_agrees(
    explain: Explain, subject: Subject, explainer: engine.Explainer, method: str, theirs: str
) -> None:
    found = explainer.explain(subject.image, subject.target, method=method).heatmap
    np.testing.assert_allclose(found, explain(theirs), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "theirs"),
    [("grad-cam++", "GradCAMPlusPlus"), ("full-grad", "FullGrad")],
)
def test_the_engine_is_close_where_conventions_differ(
    explain: Explain, subject: Subject, explainer: engine.Explainer, method: str, theirs: str
) -> None:
    found = explainer.explain(subject.image, subject.target, method=method).heatmap
    assert correlation(found, explain(theirs)) > 0.9
