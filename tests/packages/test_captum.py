"""captum beside the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import engine
from tests.packages.conftest import Subject
from tests.packages.squeezenet import SIDE
from tests.reference import attribution, cam

captum = pytest.importorskip("captum.attr", reason="needs captum: make test installs it", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")


def test_saliency_is_the_gradient(subject: Subject) -> None:
    made = captum.Saliency(subject.model).attribute(subject.x.clone().requires_grad_(), subject.target, abs=False)
    reference = attribution.input_gradient(subject.model, subject.image[0], subject.target)
    np.testing.assert_allclose(made[0].numpy(), reference, rtol=1e-9, atol=1e-12)


def test_integrated_gradients_by_the_midpoint_rule(subject: Subject) -> None:
    baseline = np.full_like(subject.image[0], 0.25)
    made, error = captum.IntegratedGradients(subject.model).attribute(
        subject.x,
        torch.tensor(baseline[None], dtype=torch.float64),
        target=subject.target,
        n_steps=10,
        method="riemann_middle",
        return_convergence_delta=True,
    )
    reference, reference_error = attribution.integrated_gradients(
        subject.model, subject.image[0], subject.target, 10, baseline
    )
    # captum's places between the ends and its weights are float32
    np.testing.assert_allclose(made[0].numpy(), reference, rtol=1e-6, atol=1e-7)
    assert float(error) == pytest.approx(reference_error, rel=1e-5)


def test_its_own_rule_of_integration_differs_little(subject: Subject) -> None:
    # Convention: captum integrates by Gauss-Legendre unless told otherwise.
    made = captum.IntegratedGradients(subject.model).attribute(subject.x, target=subject.target, n_steps=20)
    reference, _ = attribution.integrated_gradients(subject.model, subject.image[0], subject.target, 20)
    assert np.corrcoef(made.numpy().ravel(), reference.ravel())[0, 1] > 0.95


def test_smooth_grad_of_the_same_noise(subject: Subject) -> None:
    samples, deviation = 6, 0.3
    torch.manual_seed(20102)
    made = captum.NoiseTunnel(captum.Saliency(subject.model)).attribute(
        subject.x.clone().requires_grad_(),
        nt_type="smoothgrad",
        nt_samples=samples,
        stdevs=deviation,
        target=subject.target,
        abs=False,
    )
    torch.manual_seed(20102)
    noise = torch.normal(0, torch.full((samples, 3, SIDE, SIDE), deviation))
    reference = attribution.smooth_grad(subject.model, subject.image[0], subject.target, noise.numpy())
    np.testing.assert_allclose(made[0].detach().numpy(), reference, rtol=1e-9, atol=1e-12)


def test_layer_grad_cam(subject: Subject) -> None:
    made = captum.LayerGradCam(subject.model, subject.model.fires[7]).attribute(
        subject.x, subject.target, relu_attributions=True
    )
    reference = cam.grad_cam(*subject.maps_and_gradients)
    np.testing.assert_allclose(made[0, 0].detach().numpy(), reference, rtol=1e-9, atol=1e-12)


def assert_near(found: object, theirs: torch.Tensor) -> None:
    """The engine's float32 attribution [C, H, W] against theirs: single ReLUs may flip, so the whole is judged."""
    expected = theirs[0].detach().numpy()
    assert np.linalg.norm(np.asarray(found) - expected) <= 1e-3 * np.linalg.norm(expected)


def test_the_engine_agrees_on_the_gradient(subject: Subject, explainer: engine.Explainer) -> None:
    found = explainer.explain(subject.image, subject.target, method="gradient")
    x = subject.x.clone().requires_grad_()
    assert_near(found.attribution, captum.Saliency(subject.model).attribute(x, subject.target, abs=False))


def test_the_engine_agrees_on_integrated_gradients(subject: Subject, explainer: engine.Explainer) -> None:
    found = explainer.explain(subject.image, subject.target, method="integrated-gradients", steps=10)
    theirs, gap = captum.IntegratedGradients(subject.model).attribute(
        subject.x, target=subject.target, n_steps=10, method="riemann_middle", return_convergence_delta=True
    )
    assert_near(found.attribution, theirs)
    assert found.figures["completeness_gap"] == pytest.approx(float(gap), abs=1e-2)


def test_the_engine_agrees_on_smooth_grad(
    subject: Subject, explainer: engine.Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, share = 5, 0.1
    found = explainer.explain(subject.image, subject.target, method="smooth-grad", samples=samples, noise=share)
    drawn = [np.random.default_rng([0, i]).standard_normal(subject.image.shape[1:], np.float32) for i in range(samples)]
    noise = torch.tensor(np.stack(drawn) * np.float32(share * np.ptp(subject.image)), dtype=torch.float64)
    monkeypatch.setattr(torch, "normal", lambda _mean, _deviation: noise)
    x = subject.x.clone().requires_grad_()
    tunnel = captum.NoiseTunnel(captum.Saliency(subject.model))
    theirs = tunnel.attribute(x, nt_type="smoothgrad", nt_samples=samples, target=subject.target, abs=False)
    assert_near(found.attribution, theirs)
