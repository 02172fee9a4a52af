"""torchcam beside the float64 reference.

Its maps stay at feature resolution, min-max with 1e-8 added to the denominator.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.packages.conftest import Subject
from tests.reference import attribution, cam
from tests.reference.method import Float

torchcam = pytest.importorskip("torchcam.methods", reason="needs torchcam: make test installs it")


def torchcam_map(subject: Subject, method: str, *, raw: bool = False) -> Float:
    """Its map [h, w] of the subject, in float64."""
    options = {"batch_size": 16} if method == "ScoreCAM" else {}
    with getattr(torchcam, method)(subject.model, subject.model.fires[7], **options) as extractor:
        scores = subject.model(subject.x.clone().requires_grad_())
        (made,) = extractor(subject.target, scores, normalized=not raw)
    return made[0].detach().numpy()


def assert_same(made: Float, reference: Float, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(made, attribution.heatmap(reference), atol=tolerance)


def test_grad_cam(subject: Subject) -> None:
    assert_same(torchcam_map(subject, "GradCAM"), cam.grad_cam(*subject.maps_and_gradients))


def test_layer_cam(subject: Subject) -> None:
    assert_same(torchcam_map(subject, "LayerCAM"), cam.layer_cam(*subject.maps_and_gradients))


def test_xgrad_cam(subject: Subject) -> None:
    # Convention: 1e-8 is added to each map's sum.
    assert_same(torchcam_map(subject, "XGradCAM"), cam.xgrad_cam(*subject.maps_and_gradients))


def test_grad_cam_plus_plus_lacks_the_denominator(subject: Subject) -> None:
    # Convention, of torchcam 0.5.0: it divides a copy by the denominator of eq. 19, so the weights are sums of
    # g^2 ReLU(g). (That denominator, too, would be another: the sum of A g^3 over the map.)
    a, g = subject.maps_and_gradients
    weights = (g**2 * np.maximum(g, 0)).sum(axis=(1, 2))
    made = torchcam_map(subject, "GradCAMpp")
    assert_same(made, np.maximum((weights[:, None, None] * a).sum(axis=0), 0), 1e-3)
    reference = attribution.heatmap(cam.grad_cam_plus_plus(a, g))
    assert np.abs(made - reference).max() > 0.1


def test_score_cam_normalises_before_it_upsamples(subject: Subject) -> None:
    # Conventions: each map is scaled to [0, 1] at feature resolution, before it is upsampled; scores are logits.
    # Half-pixel centres never reach the outer cells' middle but at the border, so nearly nothing changes here.
    made = torchcam_map(subject, "ScoreCAM")
    a, _ = subject.maps_and_gradients
    reference = attribution.heatmap(cam.score_cam(subject.image[0], a, subject.target, subject.model))
    assert np.corrcoef(made.ravel(), reference.ravel())[0, 1] > 0.99
    scaled = np.array([attribution.heatmap(m) for m in a])
    masks = torch.nn.functional.interpolate(torch.tensor(scaled)[None], subject.image.shape[2:], mode="bilinear")[0]
    with torch.no_grad():
        logits = torch.cat([subject.model(chunk[:, None] * subject.x)[:, subject.target] for chunk in masks.split(16)])
    weights = torch.softmax(logits, 0).numpy()
    assert_same(made, np.maximum((weights[:, None, None] * a).sum(axis=0), 0))
