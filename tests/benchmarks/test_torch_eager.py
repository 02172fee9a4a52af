"""The rival computes the method: its masks, scores and heatmap are the reference's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import engine
from benchmarks import torch_eager
from benchmarks.torch_eager import HookedModule, InterpretedModel
from engine.image import prepare
from tests.reference import method
from tests.reference.network import TorchNetwork
from tests.tiny_cnn import photo_pixels, tiny_cnn, write_tiny_cnn

LAYERS = ("relu1", "relu2", "relu3")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> TorchNetwork:
    model, _, _ = write_tiny_cnn(tmp_path_factory.mktemp("tiny"))
    return TorchNetwork(model)


@pytest.fixture(scope="module")
def x(tiny_bundle: Path) -> np.ndarray:
    bundle = engine.load(tiny_bundle).bundle
    return prepare(photo_pixels(), bundle.preprocess, bundle.image_shape).array


def as_module() -> nn.Module:
    """The tiny CNN as torch modules."""
    initializers = tiny_cnn().graph.initializer
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in initializers}
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(((3, 8), (8, 12), (12, 16)), start=1):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        convolution.weight.data = weights[f"w{number}"]
        parts += [convolution, nn.ReLU(inplace=True), *([nn.MaxPool2d(2)] if number < 3 else [])]
    head = nn.Linear(16, 5, bias=False)
    head.weight.data = weights["head"]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


@pytest.fixture(params=["hooked", "interpreted", "padded batches"])
def found(request: pytest.FixtureRequest, network: TorchNetwork, x: np.ndarray) -> torch_eager.TorchExplanation:
    image = torch.from_numpy(x)
    if request.param == "interpreted":
        return torch_eager.explain(InterpretedModel(network, LAYERS), image, activation="softmax", batch=7)
    hooked = HookedModule(as_module(), ("1", "4", "7"))

    def forward(images: torch.Tensor) -> torch.Tensor:
        assert images.shape == (7, 3, 24, 32)
        assert images.is_contiguous(memory_format=torch.channels_last)
        return hooked(images)

    given = forward if request.param == "padded batches" else None
    return torch_eager.explain(hooked, image, activation="softmax", batch=7, forward=given)


def test_the_rival_equals_the_reference(
    network: TorchNetwork, x: np.ndarray, found: torch_eager.TorchExplanation
) -> None:
    with torch.inference_mode():
        logits = network.run(x, ["logits"])["logits"][0]
    target = int(logits.argmax())
    alpha = method.average_gradients(network, x, target, LAYERS, "logits")
    maps = method.feature_maps(network, x, LAYERS)
    views = []
    for layer, layer_maps in enumerate(maps):
        kept = method.select(alpha[layer])
        scored = [k for k in kept if not method.is_flat(layer_maps[k])]
        scores = method.score_masks(network, x, layer_maps[kept], logits="logits")[:, target]
        assert sorted(found.channels[layer].tolist()) == scored
        by_channel = dict(zip(kept.tolist(), scores, strict=True))
        expected = [by_channel[k] for k in found.channels[layer].tolist()]
        np.testing.assert_allclose(found.scores[layer].numpy(), expected, atol=1e-6)
        views.append(method.visualization_map(scores, layer_maps[kept], 24, 32))
    heatmap, _ = method.fuse(views)
    assert found.target == target
    assert found.masks == sum(map(len, found.channels)) > 7
    assert np.abs(found.heatmap.numpy() - heatmap).mean() <= 1e-5
    assert 0 < found.score_s <= found.total_s


def test_other_channels_may_be_scored(network: TorchNetwork, x: np.ndarray) -> None:
    given = [torch.tensor(kept) for kept in ([3, 1], [0], [5, 7, 2])]
    image, rival = torch.from_numpy(x), InterpretedModel(network, LAYERS)
    found = torch_eager.explain(rival, image, 2, activation="softmax", batch=4, channels=given)
    maps = method.feature_maps(network, x, LAYERS)
    for layer, kept in enumerate(given):
        expected = method.score_masks(network, x, maps[layer][kept.numpy()], logits="logits")[:, 2]
        np.testing.assert_allclose(found.scores[layer].numpy(), expected, atol=1e-6)
    assert [kept.tolist() for kept in found.channels] == [[3, 1], [0], [5, 7, 2]]
    own = torch_eager.explain(rival, image, 2, activation="softmax")
    assert [kept.tolist() for kept in found.selected] == [kept.tolist() for kept in own.selected]


def test_masks_are_batched_across_layers() -> None:
    maps = [torch.arange(2 * count * 4.0).reshape(2 * count, 2, 2).square() for count in (1, 3)]
    channels = [torch.tensor([1, 0]), torch.tensor([5, 2, 0])]
    given = list(torch_eager.batches(maps, channels, (4, 6), 2))
    assert [places for places, _ in given] == [[(0, 0, 2)], [(1, 0, 2)], [(1, 2, 1)]]
    given = list(torch_eager.batches(maps, channels, (4, 6), 3))
    assert [places for places, _ in given] == [[(0, 0, 2), (1, 0, 1)], [(1, 1, 2)]]
    rows = np.concatenate([maps[0][[1, 0]].numpy(), maps[1][[5, 2, 0]].numpy()])
    masks = torch.cat([masks for _, masks in given]).numpy()
    np.testing.assert_allclose(masks, method.masks(rows, 4, 6), atol=1e-6)


def test_flat_maps_make_no_mask() -> None:
    maps = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]], [[1.0, 1.0000005]], [[1.0, 1.00001]]])
    assert torch_eager.is_flat(maps).tolist() == [True, True, True, False]
    assert torch_eager.is_flat(maps[:0]).tolist() == []


@pytest.mark.parametrize(
    "alpha", [[0.5, 3.0, -1.0, 0.4, 2.5, 0.1], [1.0, 1.0, 1.0], [-1.0, 2.0], [-1.0, -2.0], [2.0, 1.0, 2.0, 1.0]]
)
@pytest.mark.parametrize("rule", ["otsu", "otsu-count"])
def test_selection_is_the_references(alpha: list[float], rule: str) -> None:
    assert sorted(torch_eager.select(torch.tensor(alpha), rule).tolist()) == method.select(alpha, rule).tolist()


def test_in_float16_the_method_stays_and_scores_round(network: TorchNetwork, x: np.ndarray) -> None:
    image = torch.from_numpy(x)
    hooked = HookedModule(as_module(), ("1", "4", "7"), torch.float16)
    seen: list[torch.dtype] = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.dtype)
        return hooked(images)

    found = torch_eager.explain(hooked, image, activation="softmax", rule="otsu-count", batch=7, forward=forward)
    exact = torch_eager.explain(InterpretedModel(network, LAYERS), image, activation="softmax", rule="otsu-count")
    assert set(seen) == {torch.float16}
    assert [kept.tolist() for kept in found.channels] == [kept.tolist() for kept in exact.channels]
    differences = torch.cat(found.scores) - torch.cat(exact.scores)
    assert torch.cat(found.scores).dtype == torch.float32
    assert 0 < float(differences.abs().max()) < 5e-3


def test_threshold_and_fusion_are_the_references(random: np.random.Generator) -> None:
    maps = [method.min_max(random.random((9, 11)) ** power) for power in (1, 2, 5)]
    for view in maps:
        assert float(torch_eager.otsu_threshold(torch.from_numpy(view))) == pytest.approx(method.otsu_threshold(view))
    fused = torch_eager.fuse([None, *map(torch.from_numpy, maps)])
    np.testing.assert_allclose(fused.numpy(), method.fuse(maps)[0], atol=1e-12)
