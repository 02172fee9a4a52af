"""The CUDA kernels against their NumPy twins, and against formulas in float64; without a GPU, on an emulated one."""

import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.budget import plan_all
from engine.kernels import MaskWriter, activate, fuse, is_flat, otsu_threshold, select_channels, visualization_map
from engine.kernels.launch import Kernels, Ranges, Table
from engine.kernels.select import RULES
from tests.emulator import EmulatedDevice
from tests.reference import method

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to run CUDA kernels without a GPU")

SHAPES = {
    "one map": [(1, 5, 7)],
    "odd sizes": [(5, 13, 9), (8, 7, 5), (33, 3, 4)],
    "a single pixel": [(3, 1, 1), (4, 2, 1)],
    "larger than the image": [(6, 40, 37), (9, 8, 8)],
    "many maps": [(2048, 7, 7), (700, 2, 3)],
}
IMAGES = {"odd": (3, 23, 31), "even": (3, 24, 32), "grey": (1, 16, 20)}
ORDERS = [0, -1, 5]


class Network:
    """Feature maps and average gradients, on the host and on a device."""

    def __init__(
        self,
        random: np.random.Generator,
        shapes: Sequence[tuple[int, int, int]],
        image: tuple[int, int, int],
        order: int = 0,
        precision: str = "float32",
    ) -> None:
        self.device = EmulatedDevice(order)
        upload = self.device.upload  # so that what is read beside an array is NaN
        self.maps = [upload(np.maximum(random.standard_normal(shape), 0).astype(np.float32)) for shape in shapes]
        self.averages = [upload(random.standard_normal(shape[0]).astype(np.float32)) for shape in shapes]
        for own in self.maps:
            own[::3] += 100.0  # a large offset
            own[1::4] = own[1::4, :1, :1]  # constant
        self.image = upload(random.standard_normal(image).astype(np.float32))
        self.kernels = Kernels(self.device, self.maps, self.averages, image, precision)

    def masks(self, some: int = 40) -> NDArray[np.int32]:
        """Masks of maps that are not constant, sorted by layer."""
        pairs = [(layer, k, 1) for layer, own in enumerate(self.maps) for k in np.flatnonzero(~is_flat(own))[:some]]
        return np.array(pairs, np.int32)


@pytest.fixture(params=SHAPES, ids=str)
def network(request: pytest.FixtureRequest, random: np.random.Generator) -> Network:
    return Network(random, SHAPES[request.param], IMAGES["odd"])


def test_flat_maps(network: Network) -> None:
    expected = np.concatenate([is_flat(own) for own in network.maps])
    assert network.kernels.find_flat().astype(bool).tolist() == expected.tolist()
    assert expected.any() or len(expected) == 1
    assert network.kernels.strange.tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["maps", "averages"])
def test_what_is_not_finite(bad: float, where: str, network: Network) -> None:
    getattr(network, where)[-1].flat[-1] = bad
    flat = network.kernels.find_flat()
    network.kernels.choose(flat, "otsu", 0.0)
    assert network.kernels.strange.tolist() == [1]


@pytest.mark.parametrize("rule", RULES)
def test_no_channel_beyond_the_last_where_averages_are_nan(rule: str, random: np.random.Generator) -> None:
    network = Network(random, [(5, 2, 2)], IMAGES["grey"])
    network.averages[0][:] = np.nan
    chosen = network.kernels.choose(network.kernels.find_flat(), rule, 0.0)
    assert chosen.order[:5].tolist() == [0, 1, 2, 3, 4]
    assert network.kernels.strange.tolist() == [1]


def awkward_averages(random: np.random.Generator, size: int) -> dict[str, NDArray[np.float32]]:
    ties = random.integers(-2, 4, size).astype(np.float32)
    wide = (10.0 ** random.uniform(-30, 30, size)).astype(np.float32)
    return {
        "ties": ties,
        "no positive one": -np.abs(ties),
        "all equal": np.ones(size, np.float32),
        "one positive": np.where(np.arange(size) == size // 2, 3.0, -1.0).astype(np.float32),
        "zeros of both signs": np.where(ties > 2, 1.0, np.copysign(0.0, ties - 0.5)).astype(np.float32),
        "wide": wide,
        "mirrored": np.linspace(1.0, 2.0, size, dtype=np.float32),  # two equal maxima of tau
        "tiny": random.random(size).astype(np.float32) * np.float32(1e-42),
    }


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", RULES)
def test_choice(rule: str, order: int, random: np.random.Generator) -> None:
    """Exactly the twin's, ties included."""
    shapes = [(1, 2, 2), (7, 2, 2), (64, 2, 2), (100, 2, 3), (1500, 2, 2)]
    cases = [awkward_averages(random, channels) for channels, _, _ in shapes]
    for case in (None, *cases[0]):
        network = Network(random, shapes, IMAGES["grey"], order)
        for layer, own in enumerate(network.averages):
            own[:] = own if case is None else cases[layer][case]
        mu = 0.3 if rule == "positive" else 0.0
        flat = network.kernels.find_flat()
        chosen = network.kernels.choose(flat, rule, mu)
        table = network.kernels.list_masks(chosen, int(chosen.counts[:, 2].sum()))
        pairs = []
        for layer, (maps, alpha) in enumerate(zip(network.maps, network.averages, strict=True)):
            expected = select_channels(alpha, rule, mu)
            constant = is_flat(maps)
            own = [int(channel) for channel in expected.channels if not constant[channel]]
            first = network.kernels.firsts_padded[layer]
            assert chosen.counts[layer].tolist() == [expected.positive, len(expected.channels), len(own)], case
            assert chosen.order[first:][: len(expected.channels)].tolist() == expected.channels.tolist(), case
            if len(expected.channels):
                assert float(chosen.thresholds[layer]) == expected.threshold
            pairs += [(layer, channel, 1) for channel in own]
        assert [tuple(mask) for mask in table.masks.tolist()] == pairs
        assert table.starts.tolist() == [0, *np.cumsum(chosen.counts[:, 2])]


@pytest.mark.parametrize("values", [[1, 2, 7, 12, 17, 22, 23], [2, 3, 5, 12, 19, 21, 22]])
def test_equal_measures_give_the_smaller_lower_class(values: list[int], random: np.random.Generator) -> None:
    """By fractions, 3 and 4 of them are equally good as the lower class; in float64 the latter is better."""
    network = Network(random, [(7, 2, 2)], IMAGES["grey"])
    network.averages[0][:] = values
    chosen = network.kernels.choose(network.kernels.find_flat(), "otsu", 0.0)
    assert chosen.counts[0].tolist()[:2] == [7, 4]


def test_choice_equals_the_reference(random: np.random.Generator) -> None:
    network = Network(random, [(300, 2, 2)], IMAGES["grey"])
    network.averages[0][:] = random.exponential(size=300)
    chosen = network.kernels.choose(network.kernels.find_flat(), "otsu", 0.0)
    lower, _ = method.otsu_split(np.sort(network.averages[0].astype(np.float64)))
    assert chosen.counts[0].tolist()[:2] == [300, 300 - lower]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("image", IMAGES)
def test_masks_to_the_last_bit(shapes: str, image: str, order: int, random: np.random.Generator) -> None:
    network = Network(random, SHAPES[shapes], IMAGES[image], order)
    for baseline in (None, random.standard_normal(IMAGES[image]).astype(np.float32)):
        table = network.kernels.place(network.masks())
        ranges = network.kernels.find_ranges(table)
        contrast = network.image if baseline is None else network.image - baseline
        part = range(1, table.count)
        batch = network.device.empty((len(part) + 1, *IMAGES[image]), np.float32)
        if part:
            network.kernels.write_masks(batch, contrast, baseline, table, ranges, part)
        writer, row = MaskWriter(network.image, baseline), np.empty(IMAGES[image], np.float32)
        for number, mask in enumerate(table.masks):
            low, extent = writer.write(network.maps[mask[0]][mask[1]], row)
            assert (ranges.minimum[number], ranges.span[number]) == (low, extent)
            if number in part:
                np.testing.assert_array_equal(batch[number - 1], row)
        assert np.isnan(batch[-1]).all()  # nothing beyond the part


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-18, 1.0, 1e13, 1e30, 3e38])
def test_masks_of_small_and_large_maps(scale: float, random: np.random.Generator) -> None:
    """Quotients come from a reciprocal only where its remainders are exact."""
    network = Network(random, [(20, 5, 4)], IMAGES["even"])
    powers = scale * 10.0 ** random.uniform(-25, 0, (20, 5, 4))
    network.maps[0][:] = powers * (powers > scale * 1e-20)
    table = network.kernels.place(network.masks())
    ranges = network.kernels.find_ranges(table)
    batch = network.device.empty((table.count, *IMAGES["even"]), np.float32)
    network.kernels.write_masks(batch, network.image, None, table, ranges, range(table.count))
    writer, row = MaskWriter(network.image, None), np.empty(IMAGES["even"], np.float32)
    for number, mask in enumerate(table.masks):
        writer.write(network.maps[mask[0]][mask[1]], row)
        np.testing.assert_array_equal(batch[number], row)


@pytest.mark.parametrize("image", IMAGES)
def test_masks_in_float16(image: str, random: np.random.Generator) -> None:
    network = Network(random, SHAPES["odd sizes"], IMAGES[image], precision="float16")
    table = network.kernels.place(network.masks())
    ranges = network.kernels.find_ranges(table)
    batch = network.device.empty((table.count, *IMAGES[image]), np.float16)
    network.kernels.write_masks(batch, network.image, None, table, ranges, range(table.count))
    writer, row = MaskWriter(network.image, None), np.empty(IMAGES[image], np.float32)
    for number, mask in enumerate(table.masks):
        writer.write(network.maps[mask[0]][mask[1]], row)
        np.testing.assert_array_equal(batch[number], row.astype(np.float16))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("classes", [1, 2, 5, 1000])
def test_scores(classes: int, activation: str, order: int, random: np.random.Generator) -> None:
    network = Network(random, SHAPES["one map"], IMAGES["grey"], order)
    logits = (random.standard_normal((7, classes)) * [[1], [10], [100], [700], [1e-3], [1], [1]]).astype(np.float32)
    logits[5] = 800.0
    targets = np.array([0, classes - 1], np.int64)
    scores = network.device.empty((9, 2), np.float64)
    network.kernels.activate(logits, 6, targets, activation, scores, 2)
    expected = activate(logits, activation)[:6, targets]
    np.testing.assert_allclose(scores[2:8], expected, rtol=1e-12, atol=0)
    assert np.isnan(scores[[0, 1, 8]]).all()
    assert network.kernels.strange.tolist() == [0]
    logits[3, -1] = np.nan
    network.kernels.activate(logits, 3, targets, activation, scores)
    assert network.kernels.strange.tolist() == [0]
    network.kernels.activate(logits, 4, targets, activation, scores)
    assert network.kernels.strange.tolist() == [1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_visualization_maps(shapes: str, order: int, random: np.random.Generator) -> None:
    network = Network(random, SHAPES[shapes], IMAGES["odd"], order)
    masks = network.masks()
    masks[:, 2] = np.arange(len(masks)) % 5 > 0
    table = network.kernels.place(masks)
    ranges = network.kernels.find_ranges(table)
    scores = random.random((table.count, 2))
    views, there = network.kernels.views(table, ranges, scores)
    for layer, maps in enumerate(network.maps):
        own = np.flatnonzero(masks[:, 0] == layer)
        chosen = maps[masks[:, 1][own]]
        rows = method.upsample(chosen, *IMAGES["odd"][1:])
        scored = masks[:, 2][own] > 0
        minimum = np.array([up.min() if ok else one.min() for up, one, ok in zip(rows, chosen, scored, strict=True)])
        extent = np.array([np.ptp(up) if ok else 1.0 for up, ok in zip(rows, scored, strict=True)])
        expected = visualization_map(chosen, scores[own, 0], minimum, extent, IMAGES["odd"][1:])
        assert there[layer] == (expected is not None)
        if expected is not None:
            np.testing.assert_allclose(views[layer], expected, atol=2e-5)


def test_a_layer_without_masks(random: np.random.Generator) -> None:
    network = Network(random, SHAPES["odd sizes"], IMAGES["odd"])
    masks = network.masks()
    table = network.kernels.place(masks[masks[:, 0] != 1])
    _, there = network.kernels.views(table, network.kernels.find_ranges(table), np.ones(table.count))
    assert there.tolist() == [1, 0, 1]
    empty = network.kernels.place(masks[:0])
    _, there = network.kernels.views(empty, network.kernels.find_ranges(empty), np.ones(0))
    assert there.tolist() == [0, 0, 0]


def test_a_map_is_constant_less_what_all_masks_have_in_common(random: np.random.Generator) -> None:
    """Two maps that nearly make up for each other, far from zero: their sum varies by 1e-7 of itself."""
    network = Network(random, [(2, 4, 4)], IMAGES["even"])
    ramp = np.linspace(0.0, 1.0, 16, dtype=np.float32).reshape(4, 4)
    network.maps[0][0], network.maps[0][1] = 1000 + 0.01 * ramp, 1000.01 - 0.0099 * ramp**1.01
    table = network.kernels.place(np.array([[0, 0, 1], [0, 1, 1]], np.int32))
    ranges = network.kernels.find_ranges(table)
    scores = np.array([0.5, 0.5])
    _, there = network.kernels.views(table, ranges, scores)
    expected = visualization_map(network.maps[0], scores, ranges.minimum, ranges.span, (24, 32))
    assert expected is not None
    assert there.tolist() == [1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fusion", ["hard", "soft"])
@pytest.mark.parametrize("missing", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_fusion(missing: tuple[int, ...], fusion: str, order: int, random: np.random.Generator) -> None:
    shapes = [(2, 3, 3)] * 3
    network = Network(random, shapes, IMAGES["even"], order)
    views = random.beta(0.5, 2.0, (3, 24, 32))
    views = (views - views.min((1, 2), keepdims=True)) / np.ptp(views, axis=(1, 2), keepdims=True)
    views[2, 3:9] = np.round(views[2, 3:9] * 256) / 256  # edges of bins
    there = np.array([layer not in missing for layer in range(3)], np.int32)
    for view in views:  # pixels at the threshold itself
        cut = otsu_threshold(view)
        view[(view * 256).astype(int) == int(cut * 256)] = cut
    expected, cuts = fuse([view if ok else None for view, ok in zip(views, there, strict=True)], fusion)
    heatmap, found, made = network.kernels.fuse(views, there, fusion)
    assert made.tolist() == [expected is not None]
    assert [None if np.isnan(cut) else cut for cut in found] == cuts  # bit for bit
    if expected is None:
        assert not heatmap.any()
    elif fusion == "hard":
        np.testing.assert_array_equal(heatmap, expected.astype(np.float32))
    else:
        np.testing.assert_allclose(heatmap, expected, atol=1e-7)


def test_everything_cut_away(random: np.random.Generator) -> None:
    network = Network(random, [(2, 3, 3)] * 2, IMAGES["even"])
    views = np.zeros((2, 24, 32))
    views[0, 12:] = views[1, :12] = 1.0
    gates = fuse(list(views), "hard")[1]
    heatmap, cuts, _ = network.kernels.fuse(views, np.ones(2, np.int32), "hard")
    assert [None if np.isnan(cut) else cut for cut in cuts] == gates
    np.testing.assert_array_equal(heatmap, views[1].astype(np.float32))
    heatmap, _, _ = network.kernels.fuse(views, np.zeros(2, np.int32), "hard")
    assert not heatmap.any()


def test_large_maps(random: np.random.Generator) -> None:
    """64 maps of 224 x 224, and 2048 of 7 x 7, as in real networks."""
    shapes = [(64, 224, 224), (2048, 7, 7)]
    network = Network(random, shapes, (3, 224, 224))
    plans = plan_all(network.maps, [alpha[None] for alpha in network.averages])
    chosen = network.kernels.choose(network.kernels.find_flat(), "otsu", 0.0)
    assert int(chosen.counts[:, 2].sum()) == len(plans[0].masks)
    some = network.masks(3)
    table = network.kernels.place(some)
    ranges: Ranges = network.kernels.find_ranges(table)
    batch = network.device.empty((table.count, 3, 224, 224), np.float32)
    network.kernels.write_masks(batch, network.image, None, table, ranges, range(table.count))
    writer, row = MaskWriter(network.image, None), np.empty((3, 224, 224), np.float32)
    for number, mask in enumerate(some):
        writer.write(network.maps[mask[0]][mask[1]], row)
        np.testing.assert_array_equal(batch[number], row)
    assert isinstance(table, Table)
