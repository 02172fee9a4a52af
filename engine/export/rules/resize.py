"""Gradient rule of Resize: resampling is linear and acts on one axis at a time, so its gradient is two matrix products.

Source: ONNX operator specification, Resize.
Departs: positions of the mode `nearest` are computed in float32, and those within 1e-6 of half-way count as half-way,
as in ONNX Runtime: exact arithmetic would take other neighbours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engine.errors import UnsupportedOpError
from engine.export.graph import (
    GraphBuilder,
    constant_array,
    describe,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    static_shape,
    string_attribute,
)

Array64 = NDArray[np.float64]
_MODES = ("nearest", "linear", "cubic")
_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
_HALF = 0.5 + 1e-6
_NEAREST: dict[str, Callable[[Array64], Array64]] = {
    "round_prefer_floor": lambda position: np.ceil(position - _HALF),
    "round_prefer_ceil": lambda position: np.floor(position + _HALF),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How a Resize node makes one axis.

    Attributes:
        input: Size of the axis before.
        output: Size of the axis after.
        scale: The node's scale, which is about output/input.
        mode: `nearest`, `linear` or `cubic`.
        coordinates: The node's `coordinate_transformation_mode`.
        nearest: The node's `nearest_mode`.
        cubic: The coefficient a of the cubic kernel.
        exclude_outside: Whether the weights of samples outside the axis are dropped and the others made to sum to 1.
        antialias: Whether the kernel is stretched where the axis shrinks.
    """

    input: int
    output: int
    scale: float
    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool

    def positions(self) -> Array64:
        """Return where each output element lies on the input axis, in input elements; float64 [output]."""
        dtype = np.float32 if self.mode == "nearest" else np.float64
        place: NDArray[np.floating] = np.arange(self.output, dtype=dtype)
        scale = np.full_like(place, self.scale)
        if self.coordinates == "align_corners":
            place = place * (self.input - 1) / max(self.output - 1, 1)
        elif self.coordinates == "asymmetric":
            place = place / scale
        elif self.coordinates == "half_pixel_symmetric":
            offset = self.input / 2 * (1 - self.output / (scale * self.input))
            exact = offset + (place + 0.5) / scale.astype(np.float64) - 0.5
            place = exact.astype(dtype)
        elif self.coordinates == "pytorch_half_pixel" and self.output == 1:
            place = np.zeros_like(place)
        else:
            place = (place + 0.5) / scale - 0.5
        return place.astype(np.float64)

    def matrix(self) -> Array64:
        """Return R of y = R·x: what each output element takes of each input element; float64 [output, input]."""
        positions = self.positions()
        if self.mode == "nearest":
            samples = _NEAREST[self.nearest](positions)[:, None]
            weights = np.ones_like(samples)
        else:
            stretch = max(1.0, 1.0 / self.scale) if self.antialias else 1.0
            support = stretch * (1 if self.mode == "linear" else 2)
            samples = np.arange(math.floor(positions.min() - support), math.ceil(positions.max() + support) + 1.0)
            samples = np.broadcast_to(samples, (self.output, samples.size))
            weights = self._kernel(np.abs(positions[:, None] - samples) / stretch)
            if self.exclude_outside:
                weights = np.where((samples < 0) | (samples >= self.input), 0.0, weights)
            weights = weights / weights.sum(axis=1, keepdims=True)
        matrix = np.zeros((self.output, self.input))
        columns = np.clip(samples, 0, self.input - 1).astype(np.int64)
        np.add.at(matrix, (np.arange(self.output)[:, None], columns), weights)
        return matrix

    def _kernel(self, distance: Array64) -> Array64:
        """Return the weight at a distance: 1 at 0, and 0 from 1 (linear) or 2 (cubic) on."""
        if self.mode == "linear":
            return np.maximum(1.0 - distance, 0.0)
        a, d = self.cubic, distance
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def resize(g: GraphBuilder, node: ir.Node, dys: Sequence[ir.Value], index: int) -> ir.Value:
    """dx = R_hᵀ·dy·R_w, with the matrices of y = R_h·x·R_wᵀ; their sum over blocks for `nearest` with whole scales.

    On ONNX Runtime's CPU provider AveragePool sums the blocks 3 to 15 times as fast as the products do.
    """
    if index != 0:
        raise UnsupportedOpError(
            f"{describe(node)}: its scales or sizes are computed from the image; expected constants"
        )
    rows, columns = (resampling.matrix() for resampling in _resamplings(node))
    blocks = [_block(matrix) for matrix in (rows, columns)]
    dx = dys[0]
    if None not in blocks:
        height, width = (int(block or 1) for block in blocks)
        if height * width == 1:
            return dx
        mean = g.op("AveragePool", dx, kernel_shape=[height, width], strides=[height, width])
        return g.op("Mul", mean, g.floats(height * width, mean))
    if blocks[1] != 1:
        dx = g.op("MatMul", dx, g.floats(columns, dx))
    return dx if blocks[0] == 1 else g.op("MatMul", g.floats(rows.T, dx), dx)


def _block(matrix: Array64) -> int | None:
    """Return b if the matrix repeats each element b times, else None; 1 for the identity."""
    output, size = matrix.shape
    block = output // size
    fits = block * size == output and np.array_equal(matrix, np.repeat(np.eye(size), block, axis=0))
    return block if fits else None


def _resamplings(node: ir.Node) -> tuple[Resampling, Resampling]:
    """Return how the node makes H and W.

    Raises:
        UnsupportedOpError: It changes other axes, or has a mode that the rule does not cover.
    """
    mode = string_attribute(node, "mode", "nearest")
    coordinates = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
    nearest = string_attribute(node, "nearest_mode", "round_prefer_floor")
    for name, received, known in (
        ("mode", mode, _MODES),
        ("coordinate_transformation_mode", coordinates, _COORDINATES),
        ("nearest_mode", nearest, tuple(_NEAREST)),
    ):
        if received not in known:
            raise UnsupportedOpError(f"{describe(node)}: has {name} {received!r}; expected one of {', '.join(known)}")
    sizes, outputs = static_shape(input_at(node, 0)), static_shape(node.outputs[0])
    if len(sizes) != 3:
        raise UnsupportedOpError(f"{describe(node)}: its input has {1 + len(sizes)} axes; expected 4, [N, C, H, W]")
    channels, *scales = _scales(node, sizes, outputs)
    if channels != 1:
        raise UnsupportedOpError(f"{describe(node)}: resizes axis 1, the channels; expected H and W alone")
    if sizes == outputs and scales != [1, 1]:
        raise UnsupportedOpError(
            f"{describe(node)}: has scales {tuple(scales)} that leave the sizes as they are: ONNX resamples all the "
            "same and runtimes do not; expected scales that change the size"
        )
    height, width = (
        Resampling(
            input=sizes[axis],
            output=outputs[axis],
            scale=scale,
            mode=mode,
            coordinates=coordinates,
            nearest=nearest,
            cubic=float_attribute(node, "cubic_coeff_a", -0.75),
            exclude_outside=int_attribute(node, "exclude_outside", 0) == 1,
            antialias=int_attribute(node, "antialias", 0) == 1,
        )
        for axis, scale in zip((1, 2), scales, strict=True)
    )
    return height, width


def _scales(node: ir.Node, sizes: Sequence[int], outputs: Sequence[int]) -> list[float]:
    """Return the scales of C, H and W.

    Raises:
        UnsupportedOpError: The node resizes the batch, or ONNX and runtimes round a size differently.
    """
    axes = [axis % 4 for axis in ints_attribute(node, "axes", range(4))]
    given = constant_array(node, 2)
    if given is not None and given.size:
        by_axis = {axis: float(scale) for axis, scale in zip(axes, given, strict=True)}
        if by_axis.get(0, 1.0) != 1.0:
            raise UnsupportedOpError(f"{describe(node)}: resizes axis 0, the batch; expected H and W alone")
        scales = [by_axis.get(axis, 1.0) for axis in (1, 2, 3)]
        for size, output, scale in zip(sizes, outputs, scales, strict=True):
            rounded = int(np.float32(scale) * np.float32(size))
            if rounded != output:
                raise UnsupportedOpError(
                    f"{describe(node)}: scale {scale:.9g} makes {size} elements {output} in ONNX and {rounded} in "
                    "runtimes, which multiply in float32; expected sizes in place of scales"
                )
        return scales
    policy = string_attribute(node, "keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [m / n for m, n in zip(outputs, sizes, strict=True)]
    asked = constant_array(node, 3)
    if asked is None or 0 in axes:
        raise UnsupportedOpError(
            f"{describe(node)}: has keep_aspect_ratio_policy {policy!r} and sizes that include axis 0, the batch; "
            "expected sizes of H and W, with axes that say so"
        )
    ratios = [int(size) / sizes[axis - 1] for axis, size in zip(axes, asked, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [scale if axis in axes else 1.0 for axis in (1, 2, 3)]
