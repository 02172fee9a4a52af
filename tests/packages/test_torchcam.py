"""torchcam beside the engine and the float64 reference.

Its maps stay at feature resolution, min-max with 1e-8 added to the denominator.
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
from tests.reference.method import Float

Explain = Callable[[str], Float]


@pytest.fixture(scope="module")
def explain(subject: Subject) -> Explain:
    """A function from the name of its method to its map [h, w]."""
    torchcam: ModuleType = pytest.importorskip("torchcam.methods", reason="needs torchcam: make test installs it")

    @cache
    def made(method: str) -> Float:
        model, x = (subject.quick, subject.x.float()) if method == "ScoreCAM" else (subject.model, subject.x.clone())
        with getattr(torchcam, method)(model, model.fires[7]) as extractor:
            scores = model(x.requires_grad_())
            (found,) = extractor(subject.target, scores)
        return np.asarray(found[0].detach().numpy())

    return made


def assert_same(found: Float, reference: Float, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(found, attribution.heatmap(reference), atol=tolerance)


def test_grad_cam(explain: Explain, subject: Subject) -> None:
    assert_same(explain("GradCAM"), cam.grad_cam(*subject.maps_and_gradients))


def test_layer_cam(explain: Explain, subject: Subject) -> None:
    assert_same(explain("LayerCAM"), cam.layer_cam(*subject.maps_and_gradients))


def test_xgrad_cam(explain: Explain, subject: Subject) -> None:
    # Convention: 1e-8 is added to each map's sum.
    assert_same(explain("XGradCAM"), cam.xgrad_cam(*subject.maps_and_gradients))


def test_grad_cam_plus_plus_lacks_the_denominator(explain: Explain, subject: Subject) -> None:
    # Convention, of torchcam 0.5.0: it divides a copy by the denominator of eq. 19, so the weights are sums of
    # g^2 ReLU(g). (That denominator, too, would be another: the sum of A g^3 over the map.)
    a, g = subject.maps_and_gradients
    weights = (g**2 * np.maximum(g, 0)).sum(axis=(1, 2))
    assert_same(explain("GradCAMpp"), np.maximum((weights[:, None, None] * a).sum(axis=0), 0), 1e-3)


def test_score_cam_normalises_before_it_upsamples(explain: Explain, subject: Subject) -> None:
    # Conventions: each map is scaled to [0, 1] at feature resolution, before it is upsampled; scores are logits.
    a, _ = subject.maps_and_gradients
    scaled = torch.tensor(np.array([attribution.heatmap(m) for m in a]))
    masks = torch.nn.functional.interpolate(scaled[None], (SIDE, SIDE), mode="bilinear")[0]
    weights = torch.softmax(subject.scores_under(masks), 0).numpy()
    assert_same(explain("ScoreCAM"), np.maximum((weights[:, None, None] * a).sum(axis=0), 0), 2e-4)


@pytest.mark.parametrize(
    ("method", "theirs"),
    [("grad-cam", "GradCAM"), ("layer-cam", "LayerCAM"), ("xgrad-cam", "XGradCAM")],
)
def test_the_engine_agrees(
    explain: Explain, subject: Subject, explainer: engine.Explainer, method: str, theirs: str
) -> None:
    found = explainer.explain(subject.image, subject.target, method=method).heatmap
    np.testing.assert_allclose(found, attribution.heatmap(explain(theirs), (SIDE, SIDE)), atol=1e-3)


def test_the_engine_is_close_where_conventions_differ(
    explain: Explain, subject: Subject, explainer: engine.Explainer
) -> None:
    found = explainer.explain(subject.image, subject.target, method="score-cam").heatmap
    assert correlation(found, attribution.heatmap(explain("ScoreCAM"), (SIDE, SIDE))) > 0.9
