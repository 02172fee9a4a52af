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
from engine.export.source import Source
from engine.export.split import Block

FORWARD_BOUND = 1e-5
HALF_BOUND = 2e-2
LINK_BOUND = 1e-4
CHAIN_BOUND = 1e-3
ROWS_BOUND = 1e-2
_SEED = 20102
_WIDER = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Figures of one export; every one lies within its bound, or the export has failed.

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
    """

    forward_error: float
    blocks_error: float
    float64_error: float | None
    gradient_errors: Mapping[str, float]
    average_gradient_errors: Mapping[str, float]

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
) -> Verification:
    """Compare everything that was compiled with the source model.

    Args:
        source: The source model.
        layers: Its feature layers.
        blocks: The blocks and the head.
        companions: Gradient companions by block name.
        folder: Holds the graphs as they will be shipped: `forward.onnx`, `tapped.onnx`, the blocks and companions.
        step: Called with the name of each check before it starts.
        photo: One more image at which gradients are checked, float32 [1, C, H, W].

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
    return Verification(
        forward_error=forward_error,
        blocks_error=blocks_error,
        float64_error=float64_error,
        gradient_errors=gradient_errors,
        average_gradient_errors=_verify_tapped(runtime, source, layers, blocks, folder, images),
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
    forward = _network(runtime, folder / "forward.onnx")
    found = [forward(batch)[0] for batch in batches]
    del forward
    chained = list(batches)
    for block in blocks:
        piece = _network(runtime, folder / f"{block.name}.onnx")
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
            checked.graph.name = _companion(block.name)
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
    subject = _companion(name)
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


def _companion(block: str) -> str:
    return f"gradient companion of {block}"


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


def _verify_tapped(
    runtime: OnnxRuntimeCpu,
    source: Source,
    layers: Sequence[CutPoint],
    blocks: Sequence[Block],
    folder: Path,
    images: NDArray[np.float32],
) -> dict[str, float]:
    """Compare the tapped graph with the companions run one after the other, and those with themselves, row by row."""
    count = len(layers)
    targets = np.array([-1, source.classes - 1], np.int64)
    tapped = _network(runtime, folder / "tapped.onnx")
    logits, chosen, *rest = tapped(images[:1], targets)
    maps, averages = rest[:count], rest[count:]
    others = tapped(images[1:2], targets)[2 : 2 + count]
    del tapped
    top = int(np.argmax(logits[0]))
    taken, expected = chosen.astype(int).tolist(), [top, source.classes - 1]
    if taken != expected:
        raise VerificationError(f"tapped.onnx: took the classes {taken}; expected {expected}; nothing was written")
    gradient = np.zeros((2, source.classes), np.float32)
    gradient[[0, 1], expected] = 1.0
    errors = {}
    for number in range(count, 0, -1):
        name = blocks[number].name
        companion = _network(runtime, folder / f"{name}.grad.onnx")
        given = gradient
        gradient, total = companion(maps[number - 1], given)
        _verify_rows(name, companion, maps[number - 1], others[number - 1], given, gradient)
        # Not of the sum itself: after an InstanceNormalization it is 0 but for rounding.
        error = _share(averages[number - 1] - total, np.abs(gradient).sum(axis=(2, 3)))
        if not error <= LINK_BOUND:
            raise VerificationError(
                f"tapped.onnx: average gradients of layer {layers[number - 1].name!r} differ from the companions' by "
                f"{error:.2g} of the gradients' size; expected at most {LINK_BOUND:g}; nothing was written"
            )
        errors[layers[number - 1].name] = error
    return dict(reversed(errors.items()))


def _verify_rows(
    name: str,
    companion: Callable[..., list[NDArray[np.float32]]],
    maps: NDArray[np.float32],
    other_maps: NDArray[np.float32],
    seeds: NDArray[np.float32],
    gradient: NDArray[np.float32],
) -> None:
    """Compare a companion's gradients of two classes, and of two images, with those of one at a time.

    Args:
        name: The block's name.
        companion: The companion.
        maps: Its input for one image.
        other_maps: Its input for another.
        seeds: Gradients of two classes at the block's output.
        gradient: What the companion made of them for the first image.

    Raises:
        VerificationError: They differ.
    """
    first, second = seeds[:1], seeds[1:]
    alone = [companion(maps, seed)[0] for seed in (first, second)]
    alone_other = companion(other_maps, second)[0]
    both = companion(np.concatenate([maps, other_maps]), seeds)[0]
    for what, found, right in (
        ("classes", gradient, np.concatenate(alone)),
        ("images", both, np.concatenate([alone[0], alone_other])),
    ):
        error = _share(found - right, right) if found.shape == right.shape else float("inf")
        if not error <= ROWS_BOUND:
            raise VerificationError(
                f"{_companion(name)}: its gradients of two {what} at once differ from those of one at a time by "
                f"{error:.2g} of their size; expected at most {ROWS_BOUND:g}. A gradient rule mixes the rows of a "
                "batch; nothing was written"
            )


def _runtime(source: Source) -> OnnxRuntimeCpu:
    return OnnxRuntimeCpu(optimize=not source.original.quantized)


def _share(difference: NDArray[np.float32], of: NDArray[np.float32]) -> float:
    size, distance = float(np.linalg.norm(of)), float(np.linalg.norm(difference))
    return distance / size if size > 0 else distance


def _network(runtime: OnnxRuntimeCpu, graph: Path) -> Callable[..., list[NDArray[np.float32]]]:
    """Return a graph as a function of its inputs, in order, that returns its outputs, in order, as float32."""
    session = runtime.open(graph)
    return lambda *inputs: [output.astype(np.float32, copy=False) for output in session.run(inputs)]


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
