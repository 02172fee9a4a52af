"""The torch module that the packages explain is the network that the engine explains."""

import numpy as np
import torch

import engine
from tests.packages.conftest import Subject
from tests.packages.squeezenet import LAYER


def test_the_module_is_the_network_of_the_onnx_file(subject: Subject) -> None:
    with torch.no_grad():
        expected = subject.network.run(subject.image, ["logits", LAYER])
        logits = subject.model(subject.x)
    np.testing.assert_allclose(logits.numpy(), expected["logits"].numpy(), rtol=1e-12, atol=1e-12)
    assert expected[LAYER].shape == (1, 512, 4, 4)
    assert logits.max() > 5


def test_the_bundle_is_the_same_network(subject: Subject, explainer: engine.Explainer) -> None:
    assert explainer.bundle.layers[-1].name == LAYER
    result = explainer.explain(subject.image, method="grad-cam")
    with torch.no_grad():
        scores = torch.softmax(subject.model(subject.x)[0], 0)
    assert result.target == subject.target
    np.testing.assert_allclose(result.class_score, scores[subject.target], rtol=1e-4)
