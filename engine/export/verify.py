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
from engine.export.evaluate import Array64, function, in_float64
from engine.export.source import Source
from engine.export.split import Block

FORWARD_BOUND = 1e-5
GRADIENT_BOUND = 1e-3
LINK_BOUND = 1e-4
_STEPS = (1e-6, 1e-5, 1e-7)
_SEED = 20102
_DIRECTIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Figures of one export; every one lies within its bound, or the export has failed.

    Attributes:
        forward_error: Largest difference between the forward graph and the source in ONNX Runtime, over batches of 1
            and 3, as a share of the largest logit.
        blocks_error: The same, of the blocks and the head run one after the other.
        gradient_errors: For each block with a companion, the relative L2 difference between directional derivatives
            from the companion and from central differences, in float64.
        average_gradient_errors: For each feature layer, the relative L2 difference between the average gradients of
            the tapped graph and of the companions run one after the other, in ONNX Runtime.
    """

    forward_error: float
    blocks_error: float
    gradient_errors: Mapping[str, float]
    average_gradient_errors: Mapping[str, float]

    def rounded(self) -> dict[str, object]:
        """Return the figures with two digits, as the manifest holds them."""
        return {
            name: {key: _two_digits(entry) for key, entry in value.items()}
            if isinstance(value, dict)
            else _two_digits(value)
            for name, value in asdict(self).items()
        }


def verify(
    source: Source,
    layers: Sequence[CutPoint],
    blocks: Sequence[Block],
    companions: Mapping[str, ir.Model],
    folder: Path,
    step: Callable[[str], None],
) -> Verification:
    """Compare everything that was compiled with the source model.

    Args:
        source: The source model.
        layers: Its feature layers.
        blocks: The blocks and the head.
        companions: Gradient companions by block name.
        folder: Holds the graphs as they will be shipped: `forward.onnx`, `tapped.onnx`, the blocks and companions.
        step: Called with the name of each check before it starts.

    Raises:
        VerificationError: A figure is outside its bound; the message names the graph.
    """
    runtime = OnnxRuntimeCpu()
    images = photo_like(source.image_shape, rows=3)
    step("forward")
    forward_error, blocks_error = _verify_forward(runtime, source, blocks, folder, images)
    gradient_errors = {}
    generic: Array64 = images[:1].astype(np.float64)
    for block in blocks:
        model = in_float64(block.model)
        if block.name in companions:
            step(f"gradient of {block.name}")
            error = directional_error(function(model), function(in_float64(companions[block.name])), generic)
            if not error <= GRADIENT_BOUND:
                raise VerificationError(
                    f"gradient companion of {block.name}: differs from central differences by {error:.2g} of their "
                    f"size; expected at most {GRADIENT_BOUND:g}. A gradient rule is wrong for an op of this block; "
                    "nothing was written"
                )
            gradient_errors[block.name] = error
        (generic,) = function(model)(generic)
    step("tapped")
    return Verification(
        forward_error=forward_error,
        blocks_error=blocks_error,
        gradient_errors=gradient_errors,
        average_gradient_errors=_verify_tapped(runtime, source, layers, blocks, folder, images[:1]),
    )


def directional_error(
    block: Callable[..., list[Array64]], companion: Callable[..., list[Array64]], point: Array64
) -> float:
    """Compare a companion with central differences of its block, in float64.

    Random weights on the block's outputs make a scalar function; its derivatives along two random directions and along
    the companion's own gradient are compared in L2, with the best of three step lengths (a step that crosses kinks of
    ReLU or MaxPool spoils a difference, a too short one drowns in rounding).

    Args:
        block: The block as a function of its input.
        companion: The companion as a function of the block's input and of the gradient at its output.
        point: Where to compare: an input of the block. It is moved a little, away from ties between equal elements.

    Returns:
        The relative difference.
    """
    random = np.random.default_rng(_SEED)
    size = float(np.sqrt(np.mean(point**2))) or 1.0
    point = point + 1e-2 * size * random.standard_normal(point.shape)
    (output,) = block(point)
    weights = random.standard_normal(output.shape)
    gradient, total = companion(point, weights)
    if not np.isfinite(gradient).all() or not np.allclose(
        total, gradient.sum(axis=(2, 3)), rtol=1e-9, atol=1e-9 * np.abs(gradient).max()
    ):
        return float("inf")
    directions = [random.standard_normal(point.shape) for _ in range(_DIRECTIONS)]
    directions.append(gradient)
    directions = [direction * (size / max(np.sqrt(np.mean(direction**2)), 1e-300)) for direction in directions]
    expected = np.array([float(np.vdot(gradient, direction)) for direction in directions])
    best = float("inf")
    for step in _STEPS:
        differences = np.array(
            [
                float(np.vdot(weights, block(point + step * direction)[0] - block(point - step * direction)[0]))
                / (2 * step)
                for direction in directions
            ]
        )
        scale = max(float(np.linalg.norm(differences)), float(np.linalg.norm(expected)))
        best = min(best, float(np.linalg.norm(differences - expected)) / scale if scale > 0 else 0.0)
        if best <= 0.1 * GRADIENT_BOUND:
            break
    return best


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
) -> tuple[float, float]:
    try:
        original = _network(runtime, source.original.SerializeToString())
    except BackendError as err:
        raise ModelError(f"{source.path}: {err}") from err
    forward = _network(runtime, folder / "forward.onnx")
    pieces = [_network(runtime, folder / f"{block.name}.onnx") for block in blocks]
    errors = {"forward.onnx": 0.0, "the chain of blocks": 0.0}
    for rows in (images[:1], images):
        expected = original(rows)[0].reshape(len(rows), -1)
        (logits,) = forward(rows)
        chained = rows
        for piece in pieces:
            (chained,) = piece(chained)
        for name, found in (("forward.onnx", logits), ("the chain of blocks", chained)):
            error = float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
            if not error <= FORWARD_BOUND:
                raise VerificationError(
                    f"{name}: differs from {source.path.name} by {error:.2g} of the largest logit with a batch of "
                    f"{len(rows)}; expected at most {FORWARD_BOUND:g}; nothing was written"
                )
            errors[name] = max(errors[name], error)
    return errors["forward.onnx"], errors["the chain of blocks"]


def _verify_tapped(
    runtime: OnnxRuntimeCpu,
    source: Source,
    layers: Sequence[CutPoint],
    blocks: Sequence[Block],
    folder: Path,
    image: NDArray[np.float32],
) -> dict[str, float]:
    count = len(layers)
    targets = np.array([-1, source.classes - 1], np.int64)
    logits, chosen, *rest = _network(runtime, folder / "tapped.onnx")(image, targets)
    maps, averages = rest[:count], rest[count:]
    top = int(np.argmax(logits[0]))
    taken, expected = chosen.astype(int).tolist(), [top, source.classes - 1]
    if taken != expected:
        raise VerificationError(f"tapped.onnx: took the classes {taken}; expected {expected}; nothing was written")
    gradient = np.zeros((2, source.classes), np.float32)
    gradient[[0, 1], expected] = 1.0
    errors = {}
    for number in range(count, 0, -1):
        name = blocks[number].name
        gradient, total = _network(runtime, folder / f"{name}.grad.onnx")(maps[number - 1], gradient)
        size = float(np.linalg.norm(total))
        difference = float(np.linalg.norm(averages[number - 1] - total))
        error = difference / size if size > 0 else difference
        if not error <= LINK_BOUND:
            raise VerificationError(
                f"tapped.onnx: average gradients of layer {layers[number - 1].name!r} differ from the companions' by "
                f"{error:.2g}; expected at most {LINK_BOUND:g}; nothing was written"
            )
        errors[layers[number - 1].name] = error
    return dict(reversed(errors.items()))


def _network(runtime: OnnxRuntimeCpu, graph: Path | bytes) -> Callable[..., list[NDArray[np.float32]]]:
    """Return a graph as a function of its inputs, in order, that returns its outputs, in order, as float32."""
    session = runtime.open(graph)
    return lambda *inputs: [output.astype(np.float32, copy=False) for output in session.run(inputs)]


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
