"""The whole path on torchvision's architectures: feature layers, export, and the Agreement of design.md."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.export import export
from engine.export.cut import feature_layers
from engine.export.evaluate import function
from engine.export.source import load_source
from tests.architectures import ALPHA, LAYERS, SIZE, build, make_case, photo_like, write
from tests.comparison import Case
from tests.reference import agreement
from tests.reference.network import TorchNetwork

pytestmark = pytest.mark.filterwarnings("ignore:The default weight initialization of:FutureWarning")
SAMPLE = ("mobilenet_v3_large", "regnet_y_400mf", "shufflenet_v2_x1_0")
SLOW = [name for name in LAYERS if name not in SAMPLE]
NAMES = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An architecture as a module and as an ONNX file."""

    name: str
    network: nn.Module
    path: Path


@pytest.fixture(scope="module", params=NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp(request.param)
    network = build(request.param)
    yield Written(name=request.param, network=network, path=write(request.param, network, folder))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def case(written: Written) -> Case:
    bundle = written.path.with_suffix(".ada")
    export(written.path, bundle, activation="softmax")
    return make_case(written.path, bundle)


def test_feature_layers_are_those_of_the_table(written: Written) -> None:
    graph = load_source(written.path, activation="softmax").model.graph
    found = [(point.channels, point.height) for point in feature_layers(graph)]
    assert found == list(LAYERS[written.name])


def test_the_reference_computes_what_the_module_computes(written: Written) -> None:
    x = photo_like(2, SIZE, seed=7)
    network = TorchNetwork(written.path)
    with torch.inference_mode():
        expected = written.network(torch.from_numpy(x)).numpy()
        for dtype in (torch.float32, torch.float64):  # centred logits show the rounding of all that cancels
            found = network.run(x, network.outputs, dtype=dtype)[network.outputs[0]].numpy()
            assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max()


def test_average_gradients_equal_float64_autograd(case: Case) -> None:
    case.check_average_gradients(ALPHA)


def test_the_heatmap_equals_the_references_and_that_of_one_graph(case: Case) -> None:
    alpha = [layer[0] for layer in case.alpha]
    result = case.model.explainer.explain(case.x, case.target, visualization_maps=True)
    scores = np.concatenate([layer.scores for layer in result.layers])
    agreement.assert_proves_something(case.logits, alpha, scores)
    assert result.target == case.target
    case.check(result, alpha, "otsu", "hard")
    case.check_one_graph(result)


def test_companions_in_float64_equal_autograd(case: Case) -> None:
    case.check_companions(function)
