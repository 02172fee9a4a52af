"""An explanation of the tiny network to measure, and that network again in float64."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

import engine
from engine.methods import AdaSise
from engine.metrics import Explained
from tests.tiny_cnn import HEIGHT, WIDTH, photo_pixels, tiny_cnn

TARGET = 0
"""The top-1 class, of score 0.95: under the heatmap of the fixture it gains."""
RIVAL = 4
"""The second, of score 0.05: it loses."""
Scores = Callable[..., NDArray[np.float64]]


@pytest.fixture(scope="session")
def explainer(tiny_bundle: Path) -> engine.Explainer:
    return engine.load(tiny_bundle, threads=2)


@pytest.fixture
def heatmap(random: np.random.Generator) -> NDArray[np.float32]:
    """A heatmap with many ties, and many zeros."""
    steps = np.rint(random.random((HEIGHT, WIDTH)) * 8) / 8
    steps[random.random((HEIGHT, WIDTH)) < 0.4] = 0
    return steps.astype(np.float32)


@pytest.fixture
def explained(explainer: engine.Explainer, heatmap: NDArray[np.float32]) -> Explained:
    """An explanation of one class by Ada-SISE, but with another heatmap."""
    return with_heatmap(explainer, heatmap)


def with_heatmap(
    explainer: engine.Explainer, heatmap: NDArray[np.float32], target: int = TARGET, activation: str = "softmax"
) -> Explained:
    method = AdaSise()
    explanation = explainer.explain(photo_pixels(), target, method=method, activation=activation)
    probe = explainer.probe(photo_pixels(), target, activation=activation, batch_size=3)
    explanation = replace(explanation, heatmap=heatmap)
    return Explained(explainer=explainer, probe=probe, explanation=explanation, method=method)


@pytest.fixture(scope="session")
def scores() -> Scores:
    """The softmax scores of a class for images [C, H, W], by torch in float64."""
    weights = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float64))
        for tensor in tiny_cnn().graph.initializer
    }

    def of(images: Sequence[NDArray[np.floating]], target: int = TARGET) -> NDArray[np.float64]:
        value = torch.from_numpy(np.stack(images).astype(np.float64))
        for number in (1, 2, 3):
            value = torch.nn.functional.conv2d(value, weights[f"w{number}"], padding=1).relu()
            value = torch.nn.functional.max_pool2d(value, 2) if number < 3 else value
        logits = value.mean(dim=(2, 3)) @ weights["head"].T
        return torch.softmax(logits, dim=1)[:, target].numpy()

    return of
