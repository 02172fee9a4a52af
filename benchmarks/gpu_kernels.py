"""The CUDA kernels alone: whether each equals its NumPy twin, what it takes, and how many bytes it has to move."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.backends import Gpu
from engine.bundle import Bundle
from engine.kernels import MaskWriter, activate, fuse, is_flat, select_channels, visualization_map
from engine.kernels.device import Array, Device
from engine.kernels.launch import Kernels
from engine.resident import Resident

RULE = "otsu-count"
_COMPARED_MASKS = 64
_FLOAT64 = 1e-9  # sums in another order
_ELEMENTS: Mapping[str, DTypeLike] = {"float32": np.float32, "float16": np.float16}
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """What the tapped pass gave for an image, in the host's memory.

    Attributes:
        image: float32 [1, C, H, W].
        logits: float32 [1, classes].
        maps: F_l of each layer, float32 [C_l, h_l, w_l].
        averages: α_l of each layer, float32 [C_l].
    """

    image: Floats
    logits: Floats
    maps: Sequence[Floats]
    averages: Sequence[Floats]

    def kernels(self, device: Device, precision: str) -> Kernels:
        """The kernels for them on a device, where they are copied to."""
        placed = [[device.upload(array) for array in arrays] for arrays in (self.maps, self.averages)]
        _, channels, height, width = self.image.shape
        return Kernels(device, *placed, (channels, height, width), precision)


def tap(bundle: Bundle, gpu: Gpu, image: Floats) -> Taps:
    """Run the tapped pass for the top-1 class."""
    resident = Resident(bundle, gpu, "float32", 1)
    resident.begin(image, None)
    resident.tap([-1])
    logits, _ = resident.read(1)
    averages = [own[0] for own in resident.averages(1)]
    return Taps(image=image, logits=logits, maps=resident.maps(), averages=averages)


def compare(device: Device, taps: Taps) -> dict[str, tuple[float, float]]:
    """Run every kernel and its twin; return how far they are apart, and how far they may be."""
    found: dict[str, tuple[float, float]] = {}
    kernels, size = taps.kernels(device, "float32"), taps.image.shape[2:]
    flat = kernels.find_flat()
    expected = [is_flat(own) for own in taps.maps]
    found["find_flat: maps"] = int((device.download(flat) != np.concatenate(expected)).sum()), 0
    chosen = kernels.choose(flat, RULE, 0.0)
    selections = [select_channels(alpha, RULE, 0.0) for alpha in taps.averages]
    pairs = [
        (layer, channel, 1)
        for layer, (own, constant) in enumerate(zip(selections, expected, strict=True))
        for channel in own.channels
        if not constant[channel]
    ]
    count = int(device.download(chosen.counts)[:, 2].sum())
    listed = set(map(tuple, device.download(kernels.list_masks(chosen, count).masks).tolist()))
    found["choose, list_masks: masks"] = len(listed ^ set(pairs)), 0
    masks = np.array(pairs[:: 1 + len(pairs) // _COMPARED_MASKS], np.int32)
    for precision in _ELEMENTS:
        found[f"find_ranges, write_masks in {precision}: pixels"] = _other_pixels(device, taps, masks, precision), 0
    table = kernels.place(masks)
    ranges = kernels.find_ranges(table)
    logits = np.random.default_rng(0).standard_normal((table.count, taps.logits.shape[1])).astype(np.float32)
    scores = device.empty((table.count, 1), np.float64)
    kernels.activate(device.upload(logits), table.count, device.upload(np.zeros(1, np.int64)), "softmax", scores)
    probabilities = activate(logits, "softmax")[:, 0]
    found["activate: largest difference"] = _largest(device.download(scores)[:, 0], probabilities), _FLOAT64
    placed, there = kernels.views(table, ranges, scores)
    views, minimum, span = (device.download(array) for array in (placed, ranges.minimum, ranges.span))
    apart = [0.0]
    for layer, own in enumerate(taps.maps):
        of_layer = masks[:, 0] == layer
        arguments = own[masks[of_layer, 1]], probabilities[of_layer], minimum[of_layer], span[of_layer]
        view = visualization_map(*arguments, size) if of_layer.any() else None
        if (view is None) == bool(device.download(there)[layer]):
            raise ValueError(f"layer {layer}: the kernel and its twin disagree on whether there is a map")
        apart += [] if view is None else [_largest(views[layer], view)]
    found["weigh, sum_maps, make_views: largest difference"] = max(apart), _FLOAT64
    made = device.download(there)
    heatmap, cuts = fuse([view if ok else None for view, ok in zip(views, made, strict=True)], "hard")
    shown, cut, *_ = (device.download(array) for array in kernels.fuse(placed, there, "hard"))
    expected_cuts = [np.nan if own is None else own for own in cuts]
    found["fuse: thresholds"] = int((~np.isclose(cut, expected_cuts, rtol=0, atol=0, equal_nan=True)).sum()), 0
    found["fuse: largest difference"] = _largest(shown, np.zeros(size) if heatmap is None else heatmap), 1e-7
    return found


def _other_pixels(device: Device, taps: Taps, masks: NDArray[np.int32], precision: str) -> int:
    """How many elements of masked images are not the twin's, to the last bit."""
    kernels, (_, *shape) = taps.kernels(device, precision), taps.image.shape
    table = kernels.place(masks)
    batch = device.empty((len(masks), *shape), _ELEMENTS[precision])
    ranges = kernels.find_ranges(table)
    kernels.write_masks(batch, device.upload(taps.image[0]), None, table, ranges, range(len(masks)))
    writer, row, others = MaskWriter(taps.image[0], None), np.empty(shape, np.float32), 0
    for (layer, channel, _), written in zip(masks, device.download(batch), strict=True):
        writer.write(taps.maps[layer][channel], row)
        others += int((written != row.astype(_ELEMENTS[precision])).sum())
    return others


def _largest(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.abs(found - expected).max(initial=0.0))


class LaunchTimer:
    """A device that runs every kernel several times, and notes what one takes.

    Before them the GPU is kept busy, so that the host, which takes longer to ask for a small kernel than the GPU to run
    it, has asked for all when the first begins. Every kernel gives the same when it is run again.

    Args:
        device: The device, which has all else.
        repeats: How often.
        ballast_bytes: How much is overwritten before.

    Attributes:
        times_ms: Of each kernel the milliseconds of each launch.
    """

    def __init__(self, device: Device, repeats: int, ballast_bytes: int) -> None:
        self._device, self._repeats = device, repeats
        self._ballast = device.empty((ballast_bytes,), np.uint8)
        self.times_ms: defaultdict[str, list[float]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, file: Path, kernel: str, *arguments: Any) -> None:
        """Run a kernel; see `engine.kernels.device.Device`."""
        self._device.launch(file, kernel, *arguments)  # compiled now, if it was not before
        self._device.clear(self._ballast)
        begin = self._device.mark()
        for _ in range(self._repeats):
            self._device.launch(file, kernel, *arguments)
        end = self._device.mark()
        begin.wait()
        end.wait()
        self.times_ms[kernel].append(end.ms_since(begin) / self._repeats)


def time_kernels(
    device: Device, taps: Taps, precision: str, batch_size: int, *, repeats: int, ballast_bytes: int
) -> dict[str, Any]:
    """Run every kernel on the masks of an image as the engine does; the milliseconds and the bytes of each.

    Args:
        device: The GPU.
        taps: The tapped pass of the image.
        precision: The type of scoring batches.
        batch_size: Masked images that the engine scores at a time.
        repeats: How often each is run.
        ballast_bytes: As for `LaunchTimer`.

    Returns:
        The number of masks; and for each kernel `ms`, `bytes` and `gb_per_s`. `write_masks` writes all masks, which is
        more than the caches hold; `write_masks, a batch` as many as the engine does at a time.
    """
    timer = LaunchTimer(device, repeats, ballast_bytes)
    kernels = taps.kernels(timer, precision)
    chosen = kernels.choose(kernels.find_flat(), RULE, 0.0)
    count = int(timer.download(chosen.counts)[:, 2].sum())
    table = kernels.list_masks(chosen, count)
    ranges = kernels.find_ranges(table)
    batch = timer.empty((count, *taps.image.shape[1:]), _ELEMENTS[precision])
    image, rows = timer.upload(taps.image[0]), min(batch_size, count)
    for size in (count, rows):
        kernels.write_masks(batch, image, None, table, ranges, range(size))
    scores = timer.empty((count, 1), np.float64)
    logits: Array = timer.upload(np.repeat(taps.logits, rows, axis=0))
    kernels.activate(logits, rows, timer.upload(np.zeros(1, np.int64)), "softmax", scores)
    views, there = kernels.views(table, ranges, timer.upload(np.full((count, 1), 0.5)))
    kernels.fuse(views, there, "hard")
    took = {name: times[0] for name, times in timer.times_ms.items()}
    took["write_masks, a batch"] = timer.times_ms["write_masks"][1]
    shapes = [own.shape for own in taps.maps]
    pairs = timer.download(table.masks)[:, :2]
    moved = kernel_bytes(shapes, pairs, taps.image.shape[1:], np.dtype(_ELEMENTS[precision]).itemsize, logits.shape)
    moved["write_masks, a batch"] = moved["write_masks"] // count * rows
    return {
        "masks": count,
        "batch_size": rows,
        "kernels": {
            name: {"ms": ms, "bytes": moved[name], "gb_per_s": moved[name] / ms / 1e6} for name, ms in took.items()
        },
    }


def kernel_bytes(
    shapes: Sequence[tuple[int, ...]],
    masks: NDArray[np.int32],
    image_shape: Sequence[int],
    element_bytes: int,
    logits: Sequence[int],
) -> dict[str, int]:
    """The bytes that each kernel must read or write at the least, as the comment at the head of its file says.

    Args:
        shapes: Sizes [C_l, h_l, w_l] of each layer's feature maps.
        masks: Layer and channel of each mask, int32 [n, 2].
        image_shape: Sizes C, H and W of the network's input.
        element_bytes: Of an element of a scoring batch.
        logits: Rows and classes.
    """
    channels, height, width = image_shape
    count, layers, pixels = len(masks), len(shapes), height * width
    of_map = np.array([4 * rows * columns for _, rows, columns in shapes])
    maps = sum(own[0] for own in shapes)
    scored = int(of_map[masks[:, 0]].sum())
    rows, classes = logits
    return {
        "find_flat": int(sum(own[0] * size for own, size in zip(shapes, of_map, strict=True))) + maps,
        "choose": 4 * maps,
        "list_masks": (4 + 12) * count,
        "find_ranges": scored,
        "write_masks": count * channels * pixels * element_bytes,
        "activate": 4 * rows * classes,
        "weigh": (4 + 2) * 8 * count,
        "sum_maps": scored,
        "make_views": 8 * layers * pixels,
        "fuse": 8 * layers * pixels + 4 * pixels,
    }
