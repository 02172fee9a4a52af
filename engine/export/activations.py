"""What a network's activations are like on calibration images: their ranges, and the moments of convolution inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engine.backends import OnnxRuntimeCpu
from engine.errors import ModelError
from engine.export.graph import parameter_shape
from engine.export.windows import Windows, windows_of

Floats = NDArray[np.float32]

LEVELS = 255
"""Steps of an 8-bit range."""
LARGEST_FAN_IN = 2304
"""Of a convolution whose covariance is kept: 3×3 windows of 256 channels. The products of one hold 42 MB."""
_BATCH = 2  # all activations are held at a time
_BINS = 2048
_WINDOWS = 64  # taken of each image
_COUNTED = 65_536  # values of an activation that are counted in a batch, or all of fewer
_SHRINKS = np.linspace(1.0, 0.1, 37)
_SEED = 20102


@dataclass(slots=True, kw_only=True)
class Moments:
    """Sums over windows of a convolution's input, for each of its G groups.

    Attributes:
        count: Number of windows.
        total: Σ x, float64 [G, K], where K is the fan-in: channels of a group times kernel taps.
        products: Σ x·xᵀ, float64 [G, K, K]; None where K is larger than `LARGEST_FAN_IN`.
    """

    count: int
    total: NDArray[np.float64]
    products: NDArray[np.float64] | None

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the windows, float64 [G, K]."""
        return self.total / self.count

    @property
    def covariance(self) -> NDArray[np.float64] | None:
        """Their covariance, float64 [G, K, K]; None without products."""
        if self.products is None:
            return None
        mean = self.mean
        return np.asarray(self.products / self.count - mean[:, :, None] * mean[:, None, :])


def observe(
    model: ir.Model, convs: Sequence[ir.Node], tensors: Sequence[str], images: Floats
) -> tuple[dict[str, tuple[float, float]], dict[str, Moments]]:
    """Run a network on calibration images, twice.

    Args:
        model: The network.
        convs: Its Conv nodes whose inputs' moments are wanted.
        tensors: Names of the activations whose ranges are wanted, inputs of these nodes among them.
        images: float32 [n, C, H, W].

    Returns:
        The range of each tensor that 8 bits hold best, from at most 0 to at least 0; and the moments of each node's
        input, by the name of its output.

    Raises:
        ModelError: An activation is not finite.
        BackendError: The runtime failed.
    """
    whole = _Whole(model, tensors)
    extremes = {name: [np.inf, -np.inf] for name in tensors}
    for arrays in whole.run(images):
        for name, values in arrays.items():
            low, high = extremes[name]
            extremes[name] = [min(low, float(values.min())), max(high, float(values.max()))]
            if not np.isfinite(values).all():
                raise ModelError(
                    f"tensor {name!r} holds NaN or infinity at a photo to calibrate on; expected finite activations: "
                    "leave int8 out, or name other photos"
                )

    random = np.random.default_rng(_SEED)
    counts = {name: np.zeros(_BINS) for name in tensors}
    windows = {str(conv.outputs[0].name): windows_of(conv, parameter_shape(conv, 1)[2:]) for conv in convs}
    moments: dict[str, Moments] = {}
    for arrays in whole.run(images):
        for name, values in arrays.items():
            low, high = extremes[name]
            # From another place in every batch: a stride that divides the width sees the same columns of all maps.
            stride = max(1, values.size // _COUNTED)
            some = values.ravel()[random.integers(stride) :: stride]
            counts[name] += np.histogram(some, _BINS, (low, high))[0]
        for conv in convs:
            name, source = str(conv.outputs[0].name), conv.inputs[0]
            groups = conv.attributes.get_int("group", 1)
            _add(moments, name, sample_windows(arrays[str(source and source.name)], windows[name], groups, random))
    return {name: best_range(counts[name], *extremes[name]) for name in tensors}, moments


def best_range(counts: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Return the range whose 8-bit rounding and clipping have the smallest squared error.

    Both ends are searched among shares of what was seen, from 1 down to 0.1: a range that leaves out a few far values
    has finer steps for all others.

    Args:
        counts: Histogram of the values in equal bins from `low` to `high`.
        low: Smallest value.
        high: Largest value.

    Returns:
        Its ends, the first at most 0 and the second at least 0, so that 0 is exact: padding is 0.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    best, least = (min(low, 0.0), max(high, 0.0)), np.inf
    for bottom in low * _SHRINKS if low < 0 else (0.0,):
        for top in high * _SHRINKS if high > 0 else (0.0,):
            step = (top - bottom) / LEVELS
            if step > 0:
                zero = np.clip(np.round(-bottom / step), 0, LEVELS)
                rounded = (np.clip(np.round(centres / step) + zero, 0, LEVELS) - zero) * step
                error = float(counts @ (centres - rounded) ** 2)
                if error < least:
                    best, least = (float(bottom), float(top)), error
    return best


def sample_windows(values: Floats, windows: Windows, groups: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Draw windows of a convolution's input.

    Args:
        values: The input, float32 [N, C, H, W].
        windows: Geometry of the convolution; its padding is not negative.
        groups: Groups of its channels.
        random: Draws the places.

    Returns:
        float64 [groups, windows, C/groups·taps], in the order of a group's weights.
    """
    padding = [(0, 0), (0, 0), *zip(windows.begin, windows.end, strict=True)]
    images, channels = values.shape[:2]
    sliding = np.lib.stride_tricks.sliding_window_view(np.pad(values, padding), windows.extent, axis=(2, 3))
    taken = sliding[:, :, :: windows.stride[0], :: windows.stride[1], :: windows.dilation[0], :: windows.dilation[1]]
    height, width = windows.output  # one window goes nowhere, whatever the stride
    places = random.integers(0, height * width, (images, _WINDOWS))
    drawn = np.stack([image[:, at // width, at % width] for image, at in zip(taken, places, strict=True)])
    grouped = np.moveaxis(drawn, 1, 0).reshape(groups, channels // groups, images * _WINDOWS, -1)
    return np.moveaxis(grouped, 1, 2).reshape(groups, images * _WINDOWS, -1).astype(np.float64)


def _add(moments: dict[str, Moments], name: str, windows: NDArray[np.float64]) -> None:
    products = None
    if windows.shape[2] <= LARGEST_FAN_IN:
        products = np.matmul(np.swapaxes(windows, 1, 2), windows)
    if name not in moments:
        none_yet = None if products is None else np.zeros_like(products)
        moments[name] = Moments(count=0, total=np.zeros(windows.shape[::2]), products=none_yet)
    entry = moments[name]
    entry.count += windows.shape[1]
    entry.total += windows.sum(axis=1)
    if products is not None and entry.products is not None:
        entry.products += products


class _Whole:
    """A network with some of its activations as outputs."""

    def __init__(self, model: ir.Model, tensors: Sequence[str]) -> None:
        opened = model.clone()
        graph = opened.graph
        self._image = str(graph.inputs[0].name)
        values = {str(value.name): value for node in graph for value in node.outputs}
        self._names = [name for name in tensors if name != self._image]
        self._wanted = set(tensors)
        graph.outputs[:] = [values[name] for name in self._names]
        self._session = OnnxRuntimeCpu().open(ir.to_proto(opened).SerializeToString())

    def run(self, images: Floats) -> Iterator[Mapping[str, Floats]]:
        """Yield the activations of some images after the others."""
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            found = [output.astype(np.float32, copy=False) for output in self._session.run([batch])]
            arrays = dict(zip(self._names, found, strict=True))
            yield arrays | ({self._image: batch} if self._image in self._wanted else {})
