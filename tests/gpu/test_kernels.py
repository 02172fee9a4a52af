"""Every kernel on a real GPU against the same kernel on an emulated one, which equals its NumPy twin."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.kernels.launch import BATCH_TYPES, Kernels
from engine.kernels.select import RULES
from tests.emulator import EmulatedDevice
from tests.kernels.test_launch import IMAGES, SHAPES, awkward_averages

pytestmark = pytest.mark.gpu

ELEMENTS = {"float32": np.float32, "float16": np.float16}
LARGE = {"as in ResNet-50": [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]}
LARGE |= {"as in VGG-16": [(64, 224, 224), (512, 14, 14)]}


@pytest.fixture(scope="module")
def gpu() -> Any:
    from engine.backends.cupy_device import CupyDevice

    return CupyDevice()


class Case:
    """Feature maps and average gradients on two devices."""

    def __init__(
        self,
        gpu: Any,
        random: np.random.Generator,
        shapes: list[tuple[int, int, int]],
        image: tuple[int, int, int],
        precision: str = "float32",
    ) -> None:
        self.maps = [np.maximum(random.standard_normal(shape), 0).astype(np.float32) for shape in shapes]
        for own in self.maps:
            own[::3] += 100.0
            own[1::4] = own[1::4, :1, :1]
        self.averages = [random.standard_normal(shape[0]).astype(np.float32) for shape in shapes]
        self.image = random.standard_normal(image).astype(np.float32)
        self.baseline = random.standard_normal(image).astype(np.float32)
        self.devices = [gpu, EmulatedDevice()]
        self.kernels = [
            Kernels(
                device, *([device.upload(own) for own in part] for part in (self.maps, self.averages)), image, precision
            )
            for device in self.devices
        ]

    def both(self, step: Any) -> list[list[NDArray[Any]]]:
        """What a step gives on each device."""
        found = []
        for device, kernels in zip(self.devices, self.kernels, strict=True):
            found.append([device.download(array) for array in step(device, kernels)])
        return found


def assert_same(found: list[list[NDArray[Any]]]) -> None:
    for ours, emulated in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, emulated)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shapes", [*SHAPES, *LARGE], ids=str)
def test_choice(gpu: Any, shapes: str, rule: str, random: np.random.Generator) -> None:
    sizes = {**SHAPES, **LARGE}[shapes]
    kinds = awkward_averages(random, 5)
    for kind in (None, *kinds):
        case = Case(gpu, random, sizes, IMAGES["odd"])
        if kind is not None:
            awkward = [awkward_averages(random, size)[kind] for size, _, _ in sizes]
            for kernels, device in zip(case.kernels, case.devices, strict=True):
                case.averages = awkward
                placed = [device.upload(own) for own in awkward]
                maps = [device.upload(own) for own in case.maps]
                case.kernels[case.kernels.index(kernels)] = Kernels(device, maps, placed, IMAGES["odd"])

        def step(_: Any, kernels: Kernels) -> list[Any]:
            flat = kernels.find_flat()
            chosen = kernels.choose(flat, rule, 0.3 if rule == "positive" else 0.0)
            return [flat, chosen.counts, chosen.order, chosen.values]

        assert_same(case.both(step))


@pytest.mark.parametrize("precision", BATCH_TYPES)
@pytest.mark.parametrize("image", [*IMAGES, "photo"])
@pytest.mark.parametrize("shapes", [*SHAPES, "as in ResNet-50"], ids=str)
def test_masks(gpu: Any, shapes: str, image: str, precision: str, random: np.random.Generator) -> None:
    size = {**IMAGES, "photo": (3, 224, 224)}[image]
    case = Case(gpu, random, {**SHAPES, **LARGE}[shapes], size, precision)
    masks = [(layer, k, 1) for layer, own in enumerate(case.maps) for k in range(0, len(own), 1 + len(own) // 20)]

    def step(device: Any, kernels: Kernels) -> list[Any]:
        table = kernels.place(np.array(masks, np.int32))
        ranges = kernels.find_ranges(table)
        batch = device.empty((table.count, *size), ELEMENTS[precision])
        image, baseline = device.upload(case.image), device.upload(case.baseline)
        kernels.write_masks(batch, kernels.difference(image, baseline), baseline, table, ranges, range(table.count))
        return [batch, ranges.base, ranges.low, ranges.extent, ranges.minimum, ranges.span]

    ours, emulated = case.both(step)
    if precision == "float32":
        assert_same([ours, emulated])
    else:
        np.testing.assert_array_equal(ours[0].view(np.uint16), emulated[0].view(np.uint16))


@pytest.mark.parametrize("fusion", ["hard", "soft"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("shapes", [*SHAPES, *LARGE], ids=str)
def test_from_logits_to_the_heatmap(
    gpu: Any, shapes: str, activation: str, fusion: str, random: np.random.Generator
) -> None:
    sizes = {**SHAPES, **LARGE}[shapes]
    case = Case(gpu, random, sizes, IMAGES["odd"])
    masks = [
        (layer, k, k % 3 > 0) for layer, own in enumerate(case.maps) for k in range(0, len(own), 1 + len(own) // 50)
    ]
    logits = random.standard_normal((len(masks), 1000)).astype(np.float32) * 3

    def step(device: Any, kernels: Kernels) -> list[Any]:
        table = kernels.place(np.array(masks, np.int32))
        ranges = kernels.find_ranges(table)
        scores = device.empty((table.count, 2), np.float64)
        targets = device.upload(np.array([7, 999]))
        kernels.activate(device.upload(logits), table.count, targets, activation, scores)
        views, there = kernels.views(table, ranges, scores)
        return [scores, there, views, *kernels.fuse(views, there, fusion)]

    (scores, there, views, heatmap, cuts, made), emulated = case.both(step)
    np.testing.assert_allclose(scores, emulated[0], rtol=1e-12)
    np.testing.assert_array_equal(there, emulated[1])
    np.testing.assert_allclose(views[there > 0], emulated[2][there > 0], atol=1e-9)
    np.testing.assert_allclose(cuts, emulated[4], atol=1 / 256)
    assert np.abs(heatmap - emulated[3]).mean() < 1e-3
    assert made.tolist() == emulated[5].tolist()


def test_fusion_of_the_same_maps(gpu: Any, random: np.random.Generator) -> None:
    """Bit for bit."""
    views = random.beta(0.5, 2.0, (5, 224, 224))
    views = (views - views.min((1, 2), keepdims=True)) / np.ptp(views, axis=(1, 2), keepdims=True)
    case = Case(gpu, random, [(1, 2, 2)] * 5, (3, 224, 224))

    def step(device: Any, kernels: Kernels) -> list[Any]:
        return list(kernels.fuse(device.upload(views), device.upload(np.ones(5, np.int32)), "hard"))

    assert_same(case.both(step))
