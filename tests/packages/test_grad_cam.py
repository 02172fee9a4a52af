"""grad-cam (pytorch_grad_cam) beside the float64 reference.

It computes in float32 and scales each map twice, with 1e-7 in the denominator, before and after cv2's resize (bilinear,
half-pixel centres); so maps agree to about 1e-5.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from tests.packages.conftest import Subject
from tests.packages.squeezenet import SIDE
from tests.reference import attribution, cam
from tests.reference.method import Float, upsample

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def grad_cam() -> ModuleType:
    import tests.architectures  # noqa: F401  makes torchvision importable, which grad-cam imports

    return pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: make test installs it")


def grad_cam_map(grad_cam: ModuleType, subject: Subject, method: str) -> Float:
    """Its heatmap [SIDE, SIDE] of the subject."""
    target = grad_cam.utils.model_targets.ClassifierOutputTarget(subject.target)
    layers = [] if method == "FullGrad" else [subject.model.fires[7]]
    with getattr(grad_cam, method)(model=subject.model, target_layers=layers) as made:
        made.batch_size = 16
        return np.asarray(made(input_tensor=subject.x.clone(), targets=[target])[0], dtype=np.float64)


def assert_same(made: Float, reference: Float) -> None:
    np.testing.assert_allclose(made, attribution.heatmap(reference, (SIDE, SIDE)), atol=TOLERANCE)


def test_grad_cam(grad_cam: ModuleType, subject: Subject) -> None:
    assert_same(grad_cam_map(grad_cam, subject, "GradCAM"), cam.grad_cam(*subject.maps_and_gradients))


def test_layer_cam(grad_cam: ModuleType, subject: Subject) -> None:
    assert_same(grad_cam_map(grad_cam, subject, "LayerCAM"), cam.layer_cam(*subject.maps_and_gradients))


def test_xgrad_cam(grad_cam: ModuleType, subject: Subject) -> None:
    # Convention: 1e-7 is added to each map's sum.
    assert_same(grad_cam_map(grad_cam, subject, "XGradCAM"), cam.xgrad_cam(*subject.maps_and_gradients))


def test_grad_cam_plus_plus_adds_to_the_denominator(grad_cam: ModuleType, subject: Subject) -> None:
    # Convention: 1e-6 is added to 2 g^2 + g^3 sum A, which is of that size itself in this network.
    a, g = subject.maps_and_gradients
    total = a.sum(axis=(1, 2), keepdims=True)
    weights = (np.maximum(g, 0) * g**2 / (2 * g**2 + total * g**3 + 1e-6)).sum(axis=(1, 2))
    made = grad_cam_map(grad_cam, subject, "GradCAMPlusPlus")
    assert_same(made, np.maximum((weights[:, None, None] * a).sum(axis=0), 0))
    reference = attribution.heatmap(cam.grad_cam_plus_plus(a, g), (SIDE, SIDE))
    assert np.corrcoef(made.ravel(), reference.ravel())[0, 1] > 0.9


def test_ablation_cam(grad_cam: ModuleType, subject: Subject) -> None:
    # Convention: the fall is divided by the logit, which is positive here.
    a, _ = subject.maps_and_gradients
    rest = subject.network.behind(subject.network.nodes[-5].outputs[0])
    reference = cam.ablation_cam(a, subject.target, attribution.logits_of(rest))
    assert_same(grad_cam_map(grad_cam, subject, "AblationCAM"), reference)


def test_score_cam_upsamples_corner_to_corner(grad_cam: ModuleType, subject: Subject) -> None:
    # Conventions: masks are upsampled with align_corners=True; 1e-8 is added to their extent; scores are logits.
    made = grad_cam_map(grad_cam, subject, "ScoreCAM")
    a, _ = subject.maps_and_gradients
    masks = torch.nn.functional.interpolate(torch.tensor(a)[None], (SIDE, SIDE), mode="bilinear", align_corners=True)[0]
    low, high = masks.amin(dim=(1, 2), keepdim=True), masks.amax(dim=(1, 2), keepdim=True)
    masks = (masks - low) / (high - low + 1e-8)
    with torch.no_grad():
        logits = torch.cat([subject.model(chunk[:, None] * subject.x)[:, subject.target] for chunk in masks.split(16)])
    weights = torch.softmax(logits, 0).numpy()
    assert_same(made, np.maximum((weights[:, None, None] * a).sum(axis=0), 0))


def test_full_grad_scales_every_channel_by_itself(grad_cam: ModuleType, subject: Subject) -> None:
    # Convention: the magnitudes of every channel, of the image too, are scaled to [0, 1] by themselves (eq. 4 read
    # literally), where the authors' code and ours scale those of an operator together.
    made = grad_cam_map(grad_cam, subject, "FullGrad")
    input_part, parts, error = attribution.full_gradient(subject.network, subject.image, subject.target)
    assert abs(error) < 1e-9
    assert len(parts) == 26
    total = np.zeros((SIDE, SIDE))
    for part in [input_part, *(part for _, part in parts)]:
        for channel in np.abs(part):
            lifted = channel - channel.min()
            total += upsample((lifted / (1e-7 + lifted.max()))[None], SIDE, SIDE)[0]
    np.testing.assert_allclose(made, attribution.heatmap(total), atol=1e-3)
    reference = attribution.heatmap(attribution.full_grad_map(input_part, parts))
    assert np.corrcoef(made.ravel(), reference.ravel())[0, 1] > 0.5
