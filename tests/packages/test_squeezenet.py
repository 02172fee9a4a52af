import numpy as np
import torch

from tests.packages.conftest import Subject
from tests.packages.squeezenet import LAYER


def test_the_module_is_the_network_of_the_onnx_file(subject: Subject) -> None:
    with torch.no_grad():
        expected = subject.network.run(subject.image, ["logits", LAYER])
        logits = subject.model(subject.x)
    np.testing.assert_allclose(logits.numpy(), expected["logits"].numpy(), rtol=1e-12, atol=1e-12)
    assert expected[LAYER].shape == (1, 512, 5, 5)
    assert logits.max() > 5
