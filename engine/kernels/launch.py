"""The arithmetic of the method on a GPU: what its CUDA kernels are launched with.

Each `.cu` file is the twin of the module of the same name, which is its oracle: `select`, `mask`, `combine`, `fuse`.
Masks are equal to the last bit; what is summed up in float64 differs by the order of its terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.kernels.device import Array, Device
from engine.kernels.fuse import FUSIONS
from engine.kernels.resample import axis
from engine.kernels.select import RULES

SOURCES = Path(__file__).parent
ACTIVATIONS = ("softmax", "sigmoid", "none")
BATCH_TYPES = {"float32": 32, "float16": 16}
_POINTERS = (
    *("maps", "averages", "row_low", "column_low", "row_weight", "column_weight"),
    *("row_weight_32", "column_weight_32", "row_total", "column_total", "row_ends"),
)
_SIZES = ("channels", "height", "width", "first", "padded", "first_padded", "row_end_count")
_LAYER = np.dtype([(name, np.uint64) for name in _POINTERS] + [(name, np.int32) for name in _SIZES], align=True)
_BLOCK = 256
_WHOLE = 1024  # threads of a block that does all of one thing
_MASKS = 4  # rows of a thread in mask.cu
_COLUMNS, _ROWS = 32, 16  # of a block of sum_maps


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What was chosen for one class, on the device.

    Attributes:
        values: float32 [sum of padded], the average gradients of each layer, the largest first.
        order: int32 [sum of padded], their channels.
        counts: int32 [L, 3], how many are positive, were chosen, and make masks.
        thresholds: float32 [L], the least that was chosen.
        masks: int32 [sum of channels], of each layer the chosen channels that are not flat.
    """

    values: Array
    order: Array
    counts: Array
    thresholds: Array
    masks: Array


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Masks on the device, in the order in which they are scored or summed up.

    Attributes:
        masks: int32 [n, 3]: layer and channel of each, and whether it is scored (1) or estimated (0).
        starts: int32 [L + 1], where each layer's begin, if they are sorted by layer.
        count: n.
    """

    masks: Array
    starts: Array
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """The ranges of the masks of a table, on the device; see `find_ranges` in mask.cu."""

    base: Array
    low: Array
    extent: Array
    minimum: Array
    span: Array
    mass: Array


class Kernels:
    """Launches the kernels for one network, whose feature maps and average gradients lie where they always do.

    Args:
        device: The GPU.
        maps: F_l of each layer, float32 [C_l, h_l, w_l], on the device.
        averages: α_l of each layer for the first class, float32 [C_l] or more, on the device.
        image_shape: Sizes C, H and W of the network's input.
        precision: The type of scoring batches: `float32` or `float16`.
    """

    def __init__(
        self,
        device: Device,
        maps: Sequence[Array],
        averages: Sequence[Array],
        image_shape: tuple[int, int, int],
        precision: str = "float32",
    ) -> None:
        self._device = device
        self._channels, self._height, self._width = image_shape
        self._pixels = self._height * self._width
        widest = 4 if precision == "float32" else 8  # 16 bytes
        self._vector = next(size for size in (widest, 4, 1) if self._width % size == 0)
        batch = (f"BATCH={BATCH_TYPES[precision]}", f"CHANNELS={self._channels}", f"VECTOR={self._vector}")
        self._plain, self._over_baseline = (*batch, "BASELINE=0"), (*batch, "BASELINE=1")
        self.shapes = [tuple(map(int, own.shape)) for own in maps]
        sizes = [channels for channels, _, _ in self.shapes]
        padded = [1 << (size - 1).bit_length() for size in sizes]
        self._total, self._padded = sum(sizes), sum(padded)
        self.firsts = [sum(sizes[:layer]) for layer in range(len(sizes))]
        self.firsts_padded = [sum(padded[:layer]) for layer in range(len(sizes))]
        self._kept: list[Array] = []
        table = np.zeros(len(maps), _LAYER)
        for layer, (channels, height, width) in enumerate(self.shapes):
            rows, columns = axis(height, self._height), axis(width, self._width)
            arrays: dict[str, NDArray[Any]] = {
                "row_low": rows.low.astype(np.int32),
                "column_low": columns.low.astype(np.int32),
                "row_weight": rows.weight,
                "column_weight": columns.weight,
                "row_weight_32": rows.weight.astype(np.float32),
                "column_weight_32": columns.weight.astype(np.float32),
                "row_total": rows.total,
                "column_total": columns.total,
                "row_ends": _ends(rows.low),
            }
            placed = {name: device.upload(np.ascontiguousarray(array)) for name, array in arrays.items()}
            self._kept += placed.values()
            placed |= {"maps": maps[layer], "averages": averages[layer]}
            for name, array in placed.items():
                table[layer][name] = device.address(array)
            firsts = (self.firsts[layer], padded[layer], self.firsts_padded[layer])
            whole = (channels, height, width, *firsts, len(arrays["row_ends"]))
            for name, size in zip(_SIZES, whole, strict=True):
                table[layer][name] = size
        self._kept += [*maps, *averages]
        self._layers = device.upload(table.view(np.uint8))
        places = np.cumsum([0, *(height * width for _, height, width in self.shapes)]).astype(np.int32)
        self._places, self._map_pixels = device.upload(places), int(places[-1])
        self._largest = max(height * width for _, height, width in self.shapes)
        self.begin()

    def compile(self) -> None:
        """Make the kernels ready, so that the first image waits for none."""
        for file in ("select", "combine", "fuse"):
            self._device.compile(SOURCES / f"{file}.cu")
        for definitions in (self._plain, self._over_baseline):
            self._device.compile(SOURCES / "mask.cu", definitions)

    def begin(self) -> None:
        """Forget whether something was not finite: a new image has come."""
        self.strange = self._device.upload(np.zeros(1, np.int32))
        """int32 [1]: 1 once something was not finite."""

    def difference(self, image: Array, baseline: Array) -> Array:
        """Return the image less the baseline, float32 [C, H, W]."""
        count = self._channels * self._pixels
        contrast = self._device.empty((self._channels, self._height, self._width), np.float32)
        arguments = (image, baseline, np.int32(count), contrast)
        self._launch("mask", "subtract", (-(-count // _BLOCK),), (_BLOCK,), *arguments, definitions=self._plain)
        return contrast

    def find_flat(self) -> Array:
        """Tell which feature maps are constant, uint8 [sum of channels]."""
        flat = self._device.empty((self._total,), np.uint8)
        count = np.int32(len(self.shapes))
        self._launch("select", "find_flat", (self._total,), (128,), self._layers, count, flat, self.strange)
        return flat

    def choose(self, flat: Array, rule: str, mu: float) -> Chosen:
        """Choose the feature maps of each layer; see `engine.kernels.select.select_channels`."""
        layers, empty = len(self.shapes), self._device.empty
        chosen = Chosen(
            values=empty((self._padded,), np.float32),
            order=empty((self._padded,), np.int32),
            counts=empty((layers, 3), np.int32),
            thresholds=empty((layers,), np.float32),
            masks=empty((self._total,), np.int32),
        )
        sums = empty((2, self._padded), np.float64)
        settings = (np.int32(RULES.index(rule)), np.float64(mu), np.int32(self._padded))
        places = (chosen.values, chosen.order, sums, chosen.masks, chosen.counts, chosen.thresholds)
        self._launch("select", "choose", (layers,), (_WHOLE,), self._layers, flat, *settings, *places, self.strange)
        return chosen

    def list_masks(self, chosen: Chosen, count: int) -> Table:
        """List the masks that were chosen, layer after layer.

        Args:
            chosen: What was chosen.
            count: How many there are.
        """
        table = Table(
            self._device.empty((count, 3), np.int32), self._device.empty((len(self.shapes) + 1,), np.int32), count
        )
        arguments = (self._layers, chosen.masks, chosen.counts, table.masks, table.starts)
        self._launch("select", "list_masks", (len(self.shapes),), (_BLOCK,), *arguments)
        return table

    def place(self, masks: NDArray[np.int32]) -> Table:
        """Bring masks, int32 [n, 3] as in a `Table`, to the device."""
        counts = np.bincount(masks[:, 0], minlength=len(self.shapes))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return Table(self._device.upload(masks), self._device.upload(starts), len(masks))

    def find_ranges(self, table: Table) -> Ranges:
        """Find the extrema of each upsampled map, and what its area is made of."""
        empty, count = self._device.empty, (table.count,)
        single = [empty(count, np.float32) for _ in range(3)]
        double = [empty(count, np.float64) for _ in range(3)]
        size = (np.int32(self._height), np.int32(self._width))
        if table.count:
            arguments = (self._layers, table.masks, *size, *single, *double)
            self._launch("mask", "find_ranges", count, (_BLOCK,), *arguments, definitions=self._plain)
        return Ranges(*single, *double)

    def write_masks(
        self, batch: Array, contrast: Array, baseline: Array | None, table: Table, ranges: Ranges, part: range
    ) -> None:
        """Write the masked images of a part of a table over the first rows of a batch.

        Args:
            batch: [n, C, H, W], of the type of scoring batches.
            contrast: The image less the baseline, float32 [C, H, W].
            baseline: What masked-out pixels become, float32 [C, H, W], or None for zeros.
            table: The masks.
            ranges: Theirs.
            part: Which of them.
        """
        grid = (-(-self._pixels // (self._vector * _BLOCK)), -(-len(part) // _MASKS))
        numbers = (np.int32(part.start), np.int32(len(part)), np.int32(self._height), np.int32(self._width))
        arguments = (batch, contrast, baseline, self._layers, table.masks, ranges.base, ranges.low, ranges.extent)
        definitions = self._plain if baseline is None else self._over_baseline
        self._launch("mask", "write_masks", grid, (_BLOCK,), *arguments, *numbers, definitions=definitions)

    def activate(
        self, logits: Array, rows: int, targets: Array, activation: str, scores: Array, first: int = 0
    ) -> None:
        """Turn logits into the class scores of some classes.

        Args:
            logits: float32 [n, classes].
            rows: How many of them.
            targets: int64 [K], the classes.
            activation: `softmax`, `sigmoid` or `none`.
            scores: float64 [all masks, K], written from row `first` on.
            first: That row.
        """
        arguments = (logits, np.int32(logits.shape[1]), targets, np.int32(targets.shape[0]))
        kind = np.int32(ACTIVATIONS.index(activation))
        places = (scores, np.int32(first), self.strange)
        self._launch("combine", "activate", (rows,), (_BLOCK,), *arguments, kind, *places)

    def views(self, table: Table, ranges: Ranges, scores: Array) -> tuple[Array, Array]:
        """Make the visualization map of every layer; see `engine.kernels.combine.visualization_map`.

        Args:
            table: The masks of one class, sorted by layer.
            ranges: Theirs.
            scores: float64 [n, K] or [n]; the first of each row counts.

        Returns:
            float64 [L, H, W] from 0 to 1; and int32 [L], 0 for a layer that has none.
        """
        empty, layers, count = self._device.empty, len(self.shapes), table.count
        weights, offsets = empty((max(count, 1),), np.float64), empty((max(count, 1),), np.float64)
        stride = np.int32(scores.shape[1] if len(scores.shape) > 1 else 1)
        if count:
            arguments = (scores, stride, ranges.minimum, ranges.span, ranges.mass, np.int32(count), weights, offsets)
            self._launch("combine", "weigh", (-(-count // _BLOCK),), (_BLOCK,), *arguments)
        sums = empty((self._map_pixels,), np.float64)
        grid = (-(-self._largest // _COLUMNS), layers)
        summed = (self._layers, table.masks, table.starts, self._places, weights, sums)
        self._launch("combine", "sum_maps", grid, (_COLUMNS, _ROWS), *summed)
        views, there = empty((layers, self._height, self._width), np.float64), empty((layers,), np.int32)
        size = (np.int32(self._height), np.int32(self._width))
        placed = (self._layers, table.starts, self._places, offsets, sums)
        self._launch("combine", "make_views", (layers,), (_WHOLE,), *placed, *size, views, there)
        return views, there

    def fuse(self, views: Array, there: Array, fusion: str) -> tuple[Array, Array, Array]:
        """Fuse visualization maps; see `engine.kernels.fuse.fuse`.

        Returns:
            The heatmap float32 [H, W], all zeros if it is constant; the thresholds float64 [L], NaN where nothing is
            cut; and int32 [1], 0 if the heatmap is constant.
        """
        empty, layers = self._device.empty, len(self.shapes)
        fused, heatmap = empty((self._pixels,), np.float64), empty((self._height, self._width), np.float32)
        cuts, made = empty((layers,), np.float64), empty((1,), np.int32)
        settings = (np.int32(layers), np.int32(self._pixels), np.int32(FUSIONS.index(fusion)))
        self._launch("fuse", "fuse", (1,), (_WHOLE,), views, there, *settings, fused, heatmap, cuts, made)
        return heatmap, cuts, made

    def _launch(
        self,
        file: str,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *arguments: Any,
        definitions: tuple[str, ...] = (),
    ) -> None:
        self._device.launch(SOURCES / f"{file}.cu", kernel, grid, block, arguments, definitions)


def _ends(low: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the first and the last of the rows of an image that lie between the same two rows of a map."""
    last = np.append(np.flatnonzero(np.diff(low)), len(low) - 1)
    return np.unique(np.concatenate([[0], last, last[:-1] + 1])).astype(np.int32)
