"""Checking the compiled graphs against the source model, by numbers, before they become a bundle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.errors import BackendError, ModelError, VerificationError
from engine.export.cut import CutPoint
from engine.export.directional import BOUND as GRADIENT_BOUND
from engine.export.directional import directional_error, tied_error
from engine.export.evaluate import Array64, function, in_float64
from engine.export.linked import companion_name, open_graph, verify_input_gradients, verify_tapped
from engine.export.source import Source
from engine.export.split import Block

FORWARD_BOUND = 1e-5
HALF_BOUND = 2e-2
CHAIN_BOUND = 1e-3
_SEED = 20102
_WIDER = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Figures of one export; every one that has a bound lies within it, or the export has failed.

    Attributes:
        forward_error: Largest difference between the forward graph and the source in ONNX Runtime, over batches of 1
            and 3, as a share of the largest logit.
        blocks_error: The same, of the blocks and the head run one after the other.
        float64_error: The same, of the blocks and the head run one after the other in float64, in which the gradients
            are checked; None for a quantized network, which float64 does not quantize.
        gradient_errors: For each block with a companion, the relative L2 difference between directional derivatives
            from the companion and from central differences, in float64: the worst of those at a photo-like image, at
            features eight times as large, which drives activations beyond their bounds, at features with many equal
            elements, and at the photo if there is one.
        average_gradient_errors: For each feature layer, the L2 difference between the average gradients of the tapped
            graph and of the companions run one after the other, in ONNX Runtime, relative to the sums of the
            gradients' absolute values.
        image_gradient_error: The relative L2 difference between the image gradients of `gradient.onnx` and of all
            companions run one after the other, or between their logits, of two images and classes; None without that
            graph.
        full_gradient_error: The same, between `full_gradient.onnx` and `gradient.onnx`.
        completeness_gap: By how much the image and the biases miss the logit, as a share of the largest logit: of a
            piecewise linear network a figure with a bound, of any other a fact; None without `full_gradient.onnx`.
        explain_error: Mean difference between the heatmaps of `explain.onnx` and of the engine, for 16 masks; None as
            long as the bundle is not whole.
    """

    forward_error: float
    blocks_error: float
    float64_error: float | None
    gradient_errors: Mapping[str, float]
    average_gradient_errors: Mapping[str, float]
    image_gradient_error: float | None
    full_gradient_error: float | None
    completeness_gap: float | None
    explain_error: float | None = None

    def rounded(self) -> dict[str, object]:
        """Return the figures with two digits, as the manifest holds them."""
        return {
            name: {key: _two_digits(entry) for key, entry in value.items()}
            if isinstance(value, dict)
            else None
            if value is None
            else _two_digits(value)
            for name, value in asdict(self).items()
        }


def expect_runnable(source: Source) -> None:
    """Check that ONNX Runtime runs the source model, before anything is derived from it.

    onnx's checker and shape inference pass many a broken attribute, such as groups that do not divide the channels.

    Raises:
        ModelError: ONNX Runtime refuses the model, or fails to run it.
    """
    try:
        source.original.open(_runtime(source))(photo_like(source.image_shape, rows=1))
    except BackendError as err:
        raise ModelError(
            f"{source.name}: {err}; expected a model that this runtime runs: export it again with an older opset, or "
            "install a newer runtime"
        ) from err


def verify(
    source: Source,
    layers: Sequence[CutPoint],
    blocks: Sequence[Block],
    companions: Mapping[str, ir.Model],
    folder: Path,
    step: Callable[[str], None],
    photo: NDArray[np.float32] | None = None,
    *,
    input_gradients: bool,
) -> Verification:
    """Compare everything that was compiled with the source model.

    Args:
        source: The source model.
        layers: Its feature layers.
        blocks: The blocks and the head.
        companions: Gradient companions by block name.
        folder: Holds the graphs as they will be shipped.
        step: Called with the name of each check before it starts.
        photo: One more image at which gradients are checked, float32 [1, C, H, W].
        input_gradients: Whether there are `gradient.onnx` and `full_gradient.onnx`.

    Raises:
        VerificationError: A figure is outside its bound; the message names the graph.
    """
    runtime = _runtime(source)
    images = photo_like(source.image_shape, rows=3)
    step("forward")
    logits, forward_error, blocks_error = _verify_forward(runtime, source, blocks, folder, images)
    points = images[:1] if photo is None else np.concatenate([images[:1], photo])
    gradient_errors, chained = _verify_gradients(blocks, companions, points.astype(np.float64), step)
    float64_error = None if source.original.quantized else _verify_float64(logits, chained[0])
    step("tapped")
    average_gradient_errors, chain = verify_tapped(runtime, source, layers, blocks, folder, images)
    at_image: tuple[float | None, float | None, float | None] = (None, None, None)
    if input_gradients:
        step("input gradients")
        at_image = verify_input_gradients(runtime, source, folder, images[:2], chain)
    image_gradient_error, full_gradient_error, completeness_gap = at_image
    return Verification(
        forward_error=forward_error,
        blocks_error=blocks_error,
        float64_error=float64_error,
        gradient_errors=gradient_errors,
        average_gradient_errors=average_gradient_errors,
        image_gradient_error=image_gradient_error,
        full_gradient_error=full_gradient_error,
        completeness_gap=completeness_gap,
    )


def photo_like(shape: tuple[int, int, int], rows: int) -> NDArray[np.float32]:
    """Make seeded images with the smooth statistics of photos, standardised: float32 [rows, C, H, W]."""
    random = np.random.default_rng(_SEED)
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = 1.0 / np.maximum(frequency, 1.0 / max(height, width))
    noise = np.fft.rfft2(random.standard_normal((rows, channels, height, width)))
    images = np.fft.irfft2(noise * amplitude, s=(height, width))
    images -= images.mean(axis=(1, 2, 3), keepdims=True)
    images /= images.std(axis=(1, 2, 3), keepdims=True)
    return images.astype(np.float32)


def _verify_forward(
    runtime: OnnxRuntimeCpu,
    source: Source,
    blocks: Sequence[Block],
    folder: Path,
    images: NDArray[np.float32],
) -> tuple[NDArray[np.float32], float, float]:
    """Compare the forward graph and the blocks with the source; return the first image's logits and the errors."""
    batches = (images[:1], images)
    original = source.original.open(runtime)
    expected = [original(batch) for batch in batches]
    del original
    forward = open_graph(runtime, folder / "forward.onnx")
    found = [forward(batch)[0] for batch in batches]
    del forward
    chained = list(batches)
    for block in blocks:
        piece = open_graph(runtime, folder / f"{block.name}.onnx")
        chained = [piece(batch)[0] for batch in chained]
    bound = HALF_BOUND if source.original.half else FORWARD_BOUND
    errors = []
    for name, logits in (("forward.onnx", found), ("the chain of blocks", chained)):
        errors.append(0.0)
        for rows, right in zip(logits, expected, strict=True):
            error = _share_of_largest(rows - right, right)
            if not error <= bound:
                raise VerificationError(
                    f"{name}: differs from {source.name} by {error:.2g} of the largest logit with a batch of "
                    f"{len(rows)}; expected at most {bound:g}; nothing was written"
                )
            errors[-1] = max(errors[-1], error)
    return found[0][0], errors[0], errors[1]


def _verify_gradients(
    blocks: Sequence[Block], companions: Mapping[str, ir.Model], points: Array64, step: Callable[[str], None]
) -> tuple[dict[str, float], Array64]:
    """Compare every companion with central differences; return the errors, and what the points become at the end."""
    errors = {}
    for block in blocks:
        arrays: dict[int, Array64] = {}
        forward = function(in_float64(block.model, arrays))
        if block.name in companions:
            step(f"gradient of {block.name}")
            checked = in_float64(companions[block.name], arrays)
            checked.graph.name = companion_name(block.name)
            gradient = function(checked)
            found = [directional_error(forward, gradient, point[None]) for point in points]
            found.append(directional_error(forward, gradient, _WIDER * points[:1], by_channel=False))
            found.append(tied_error(forward, gradient, points[:1]))
            errors[block.name] = _worst(block.name, found)
        (points,) = forward(points)
    return errors, points


def _worst(name: str, errors: Sequence[float]) -> float:
    """Return the largest error of a companion.

    Raises:
        VerificationError: It is out of bounds, or nothing was compared.
    """
    subject = companion_name(name)
    if np.isnan(errors).all():
        raise VerificationError(
            f"{subject}: all derivatives are zero at the images of the check, so it cannot be verified; expected a "
            "network that is alive there: give one of its photos with --photo; nothing was written"
        )
    worst = float(np.nanmax(errors))
    if worst > GRADIENT_BOUND:
        what = (
            "is not finite or not of its input's shape, or its sum over H and W is not its second output"
            if np.isinf(worst)
            else f"differs from central differences by {worst:.2g} of their size; expected at most {GRADIENT_BOUND:g}"
        )
        raise VerificationError(f"{subject}: {what}. A gradient rule is wrong for an op of it; nothing was written")
    return worst


def _verify_float64(logits: NDArray[np.float32], chained: Array64) -> float:
    """Compare ONNX Runtime's logits with those of the evaluator that the gradients are checked in."""
    largest, exact = float(np.abs(logits).max()), float(np.abs(chained).max())
    if exact < CHAIN_BOUND * largest:
        raise VerificationError(
            f"the logits are {largest:.2g} in ONNX Runtime and {exact:.2g} in float64: rounding alone; expected logits "
            "that depend on the image; nothing was written"
        )
    error = _share_of_largest(chained - logits, chained)
    if not error <= CHAIN_BOUND:
        raise VerificationError(
            f"onnx's reference implementation and ONNX Runtime disagree about the blocks by {error:.2g} of the largest "
            f"logit; expected at most {CHAIN_BOUND:g}, so the gradients cannot be verified; nothing was written"
        )
    return error


def _share_of_largest(difference: NDArray[np.floating], values: NDArray[np.floating]) -> float:
    return float(np.abs(difference).max()) / max(float(np.abs(values).max()), 1e-30)


def _runtime(source: Source) -> OnnxRuntimeCpu:
    return OnnxRuntimeCpu(optimize=not source.original.quantized)


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
