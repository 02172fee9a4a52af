"""Resize of the ONNX specification in float64, for checking gradients.

onnx's own rounds the coefficients of the cubic kernel to float32, differs from ONNX Runtime at half-way cases and, with
`pytorch_half_pixel`, for a single pixel; older releases loop over elements. This one shares no code with the gradient
rule: it lists every element's samples and gathers them, and never forms a matrix. What the two have in common is the
convention of `engine.export.rules.resize` for half-way cases.

Source: ONNX operator specification, Resize.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from engine.errors import UnsupportedOpError

Array64 = NDArray[np.float64]
Samples = list[tuple[int, float]]
_TIE = 1e-6


class Resize(OpRun):
    """Resize of the ONNX specification, all modes but `tf_crop_and_resize`."""

    op_domain = ""

    def _run(
        self,
        x: Array64,
        _roi: Array64 | None = None,
        scales: Array64 | None = None,
        sizes: NDArray[np.int64] | None = None,
        *,
        mode: str,
        coordinate_transformation_mode: str,
        nearest_mode: str,
        cubic_coeff_a: float,
        exclude_outside: int,
        antialias: int = 0,
        axes: Sequence[int] | None = None,
        keep_aspect_ratio_policy: str = "stretch",
        **_: object,
    ) -> tuple[Array64]:
        if coordinate_transformation_mode == "tf_crop_and_resize":
            raise UnsupportedOpError("a Resize with tf_crop_and_resize is not verified; expected another mode")
        a = float(cubic_coeff_a)  # as float32 it would round the coefficients, as in onnx's own
        chosen = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
        for axis, (scale, size) in _sizes(x.shape, chosen, scales, sizes, keep_aspect_ratio_policy).items():
            before = x.shape[axis]
            if scale == 1.0 and size == before:
                continue
            places = [
                _position(coordinate_transformation_mode, i, before, size, scale, single=mode == "nearest")
                for i in range(size)
            ]
            if mode == "nearest":
                samples: list[Samples] = [[(_nearest(nearest_mode, place), 1.0)] for place in places]
            elif antialias and scale < 1:
                samples = [_stretched(place, 1 / scale, mode, a) for place in places]
            else:
                samples = [_between(place, mode, a) for place in places]
            if exclude_outside:
                samples = [[(j, weight) for j, weight in taken if 0 <= j < before] for taken in samples]
            x = _gathered(x, axis, samples)
        return (x,)


def _sizes(
    shape: Sequence[int],
    axes: Sequence[int],
    scales: Array64 | None,
    sizes: NDArray[np.int64] | None,
    policy: str,
) -> dict[int, tuple[float, int]]:
    """Return each axis's scale and size after."""
    if scales is not None and len(scales):
        given = {axis: float(scale) for axis, scale in zip(axes, scales, strict=True)}
        return {axis: (scale, math.floor(scale * shape[axis])) for axis, scale in given.items()}
    asked = {axis: int(size) for axis, size in zip(axes, () if sizes is None else sizes, strict=True)}
    ratios = {axis: size / shape[axis] for axis, size in asked.items()}
    if policy == "stretch":
        return {axis: (ratios[axis], size) for axis, size in asked.items()}
    scale = min(ratios.values()) if policy == "not_larger" else max(ratios.values())
    return {axis: (scale, math.floor(scale * shape[axis] + 0.5)) for axis in asked}


def _position(coordinates: str, i: int, before: int, after: int, scale: float, *, single: bool) -> float:
    """Return where output element i lies among the input's, computed in float32 if `single`."""
    real = np.float32 if single else np.float64
    place, ratio = real(i), real(scale)
    if coordinates == "asymmetric":
        return float(place / ratio)
    if coordinates == "align_corners":
        return float(place * real(before - 1) / real(after - 1)) if after > 1 else 0.0
    if coordinates == "half_pixel_symmetric":
        adjustment = real(after) / (ratio * real(before))
        offset = real(before) / real(2) * (real(1) - adjustment)
        return float(real(float(offset) + (i + 0.5) / float(ratio) - 0.5))
    if coordinates == "pytorch_half_pixel" and after == 1:
        return 0.0
    return float((place + real(0.5)) / ratio - real(0.5))


def _nearest(mode: str, place: float) -> int:
    below = math.floor(place)
    if mode in ("floor", "ceil"):
        return below if mode == "floor" else math.ceil(place)
    fraction = place - below
    tie = abs(fraction - 0.5) <= _TIE
    up = mode == "round_prefer_ceil" if tie else fraction > 0.5
    return below + 1 if up else below


def _between(place: float, mode: str, a: float) -> Samples:
    """Return the neighbours of a position with the coefficients of the specification's formulas."""
    below = math.floor(place)
    r = place - below
    if mode == "linear":
        return [(below, 1 - r), (below + 1, r)]
    return [
        (below - 1, ((a * (r + 1) - 5 * a) * (r + 1) + 8 * a) * (r + 1) - 4 * a),
        (below, ((a + 2) * r - (a + 3)) * r * r + 1),
        (below + 1, ((a + 2) * (1 - r) - (a + 3)) * (1 - r) * (1 - r) + 1),
        (below + 2, ((a * (2 - r) - 5 * a) * (2 - r) + 8 * a) * (2 - r) - 4 * a),
    ]


def _stretched(place: float, stretch: float, mode: str, a: float) -> Samples:
    """Return the samples within the filter that is stretched against aliasing, with weights that sum to 1."""
    support = stretch * (1 if mode == "linear" else 2)
    samples = []
    for j in range(math.ceil(place - support), math.floor(place + support) + 1):
        t = abs(j - place) / stretch
        if mode == "linear":
            weight = 1 - t
        elif t <= 1:
            weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
        else:
            weight = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        samples.append((j, weight))
    total = sum(weight for _, weight in samples)
    return [(j, weight / total) for j, weight in samples]


def _gathered(x: Array64, axis: int, samples: Sequence[Samples]) -> Array64:
    """Return the weighted sums of samples along an axis; beyond its ends it goes on with its end elements."""
    taps = max(map(len, samples))
    index, weight = np.zeros((taps, len(samples)), np.int64), np.zeros((taps, len(samples)))
    for i, taken in enumerate(samples):
        total = sum(w for _, w in taken)
        for tap, (j, w) in enumerate(taken):
            index[tap, i], weight[tap, i] = min(max(j, 0), x.shape[axis] - 1), w / total
    across = [1] * (x.ndim - axis - 1)
    y: Array64 = sum(
        np.take(x, index[tap], axis=axis) * weight[tap].reshape(-1, *across).astype(x.dtype) for tap in range(taps)
    )
    return y
