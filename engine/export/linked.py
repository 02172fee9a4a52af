"""Checking the linked graphs of gradients in ONNX Runtime: against the companions run one after the other."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.errors import VerificationError
from engine.export.biases import is_piecewise_linear
from engine.export.cut import CutPoint
from engine.export.source import Source
from engine.export.split import Block

LINK_BOUND = 1e-4
ROWS_BOUND = 1e-2
COMPLETENESS_BOUND = 1e-3

Array = NDArray[np.float32]
Graph = Callable[..., list[Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What the companions make of two images and a class for each, down to the first feature layer.

    Attributes:
        classes: The classes, int64 [2].
        logits: The images' logits, float32 [2, classes].
        gradient: The gradients of the classes' logits at the first feature layer, float32 [2, C, h, w].
    """

    classes: NDArray[np.int64]
    logits: Array
    gradient: Array


def open_graph(runtime: OnnxRuntimeCpu, graph: Path) -> Graph:
    """Return a graph as a function of its inputs, in order, that returns its outputs, in order, as float32."""
    session = runtime.open(graph)
    return lambda *inputs: [output.astype(np.float32, copy=False) for output in session.run(inputs)]


def companion_name(block: str) -> str:
    """Return what messages call a block's companion."""
    return f"gradient companion of {block}"


def verify_tapped(
    runtime: OnnxRuntimeCpu,
    source: Source,
    layers: Sequence[CutPoint],
    blocks: Sequence[Block],
    folder: Path,
    images: Array,
) -> tuple[dict[str, float], Chain]:
    """Compare the tapped graph with the companions run one after the other, and those with themselves, row by row.

    And `last_layer.onnx` with the tapped graph.

    Returns:
        The errors of the average gradients by feature layer, and what the companions made of the first two images.

    Raises:
        VerificationError: A figure is outside its bound; the message names the graph.
    """
    count = len(layers)
    targets = np.array([-1, source.classes - 1], np.int64)
    tapped = open_graph(runtime, folder / "tapped.onnx")
    logits, chosen, *rest = tapped(images[:1], targets)
    maps, averages = rest[:count], rest[count:]
    other_logits, _, *rest = tapped(images[1:2], targets)
    others = rest[:count]
    del tapped
    top = int(np.argmax(logits[0]))
    taken, expected = chosen.astype(int).tolist(), [top, source.classes - 1]
    if taken != expected:
        raise VerificationError(f"tapped.onnx: took the classes {taken}; expected {expected}; nothing was written")
    gradient = np.zeros((2, source.classes), np.float32)
    gradient[[0, 1], expected] = 1.0
    of_other = both = gradient[1:]
    errors = {}
    for number in range(count, 0, -1):
        name = blocks[number].name
        companion = open_graph(runtime, folder / f"{name}.grad.onnx")
        given = gradient
        gradient, total = companion(maps[number - 1], given)
        both = _verify_rows(name, companion, maps[number - 1], others[number - 1], given, of_other, gradient)
        of_other = both[1:]
        # Not of the sum itself: after an InstanceNormalization it is 0 but for rounding.
        error = _share(averages[number - 1] - total, np.abs(gradient).sum(axis=(2, 3)))
        if not error <= LINK_BOUND:
            raise VerificationError(
                f"tapped.onnx: average gradients of layer {layers[number - 1].name!r} differ from the companions' by "
                f"{error:.2g} of the gradients' size; expected at most {LINK_BOUND:g}; nothing was written"
            )
        errors[layers[number - 1].name] = error
    _verify_last_layer(runtime, folder, images[:1], targets, [logits, chosen, maps[-1], averages[-1]])
    chain = Chain(classes=np.array(expected), logits=np.concatenate([logits, other_logits]), gradient=both)
    return dict(reversed(errors.items())), chain


def _verify_last_layer(
    runtime: OnnxRuntimeCpu, folder: Path, image: Array, targets: NDArray[np.int64], expected: Sequence[Array]
) -> None:
    found = open_graph(runtime, folder / "last_layer.onnx")(image, targets)
    for what, value, right in zip(
        ("logits", "classes", "feature maps", "average gradients"), found, expected, strict=True
    ):
        error = _share(value - right, right) if value.shape == right.shape else float("inf")
        if not error <= LINK_BOUND:
            raise VerificationError(
                f"last_layer.onnx: its {what} differ from those of tapped.onnx by {error:.2g} of their size; expected "
                f"at most {LINK_BOUND:g}; nothing was written"
            )


def verify_input_gradients(
    runtime: OnnxRuntimeCpu, source: Source, folder: Path, images: Array, chain: Chain
) -> tuple[float, float, float]:
    """Compare `gradient.onnx` with the companions, `full_gradient.onnx` with that, and its sum with the logits.

    Args:
        runtime: Opens the graphs.
        source: The source model.
        folder: Holds the graphs as they will be shipped.
        images: The two images that the chain began with, float32 [2, C, H, W].
        chain: What the companions made of them down to the first feature layer.

    Returns:
        The errors of the two graphs, and by how much image and biases miss the logit.

    Raises:
        VerificationError: A figure is outside its bound; the message names the graph.
    """
    companion = open_graph(runtime, folder / "block1.grad.onnx")
    expected = [chain.logits, companion(images, chain.gradient)[0]]
    del companion
    graph = open_graph(runtime, folder / "gradient.onnx")
    found = graph(images, chain.classes)
    del graph
    error = _input_gradient_error("gradient.onnx", "the companions", found, expected)
    full_graph = open_graph(runtime, folder / "full_gradient.onnx")
    logits, gradient, *attributions = full_graph(images, chain.classes)
    del full_graph
    full_error = _input_gradient_error("full_gradient.onnx", "gradient.onnx", [logits, gradient], found)
    gap = completeness_gap(images, chain.classes, logits, gradient, attributions)
    linear = is_piecewise_linear(source.model.graph)
    if not gap <= (COMPLETENESS_BOUND if linear else sys.float_info.max):
        expectation = f"at most {COMPLETENESS_BOUND:g}, since the network is linear piece by piece"
        raise VerificationError(
            f"full_gradient.onnx: the image and the biases miss the logits by {gap:.2g} of the largest; expected "
            f"{expectation if linear else 'finite attributions'}; nothing was written"
        )
    return error, full_error, gap


def completeness_gap(
    images: Array, classes: NDArray[np.int64], logits: Array, gradient: Array, attributions: Sequence[Array]
) -> float:
    """Return by how much Σ image·gradient + Σ attributions misses the classes' logits, as a share of the largest logit.

    Args:
        images: The images, float32 [N, C, H, W].
        classes: The class of each, int64 [N].
        logits: Their logits, float32 [N, classes].
        gradient: The gradients of the classes' logits at the images, float32 [N, C, H, W].
        attributions: What each biased op adds to the logits, float32 [N, …] each.

    Source: FullGrad (arXiv 1905.00780), section 3: completeness.
    """
    rows = len(images)
    missed = logits[np.arange(rows), classes] - np.einsum("nchw,nchw->n", images, gradient, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # of infinities, the caller sees the NaN
        for attribution in attributions:
            missed -= attribution.reshape(rows, -1).sum(axis=1, dtype=np.float64)
    return float(np.abs(missed).max()) / max(float(np.abs(logits).max()), 1e-30)


def _input_gradient_error(name: str, right: str, found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the larger of the errors of the logits and of the image gradients."""
    errors = []
    for what, values, others in zip(("logits", "image gradients"), found, expected, strict=True):
        error = _share(values - others, others) if values.shape == others.shape else float("inf")
        if not error <= LINK_BOUND:
            raise VerificationError(
                f"{name}: its {what} differ from those of {right} by {error:.2g} of their size; expected at most "
                f"{LINK_BOUND:g}; nothing was written"
            )
        errors.append(error)
    return max(errors)


def _verify_rows(
    name: str,
    companion: Graph,
    maps: Array,
    other_maps: Array,
    seeds: Array,
    other_seed: Array,
    gradient: Array,
) -> Array:
    """Compare a companion's gradients of two classes, and of two images, with those of one at a time.

    Args:
        name: The block's name.
        companion: The companion.
        maps: Its input for one image.
        other_maps: Its input for another.
        seeds: Gradients of two classes at the block's output for the first image.
        other_seed: The gradient of the second class at the block's output for the other image.
        gradient: What the companion made of the seeds for the first image.

    Returns:
        Its gradients of the first class for the first image, and of the second class for the other.

    Raises:
        VerificationError: They differ.
    """
    first, second = seeds[:1], seeds[1:]
    alone = [companion(maps, seed)[0] for seed in (first, second)]
    alone_other = companion(other_maps, other_seed)[0]
    both = companion(np.concatenate([maps, other_maps]), np.concatenate([first, other_seed]))[0]
    for what, found, right in (
        ("classes", gradient, np.concatenate(alone)),
        ("images", both, np.concatenate([alone[0], alone_other])),
    ):
        error = _share(found - right, right) if found.shape == right.shape else float("inf")
        if not error <= ROWS_BOUND:
            raise VerificationError(
                f"{companion_name(name)}: its gradients of two {what} at once differ from those of one at a time by "
                f"{error:.2g} of their size; expected at most {ROWS_BOUND:g}. A gradient rule mixes the rows of a "
                "batch; nothing was written"
            )
    return both


def _share(difference: Array, of: Array) -> float:
    size, distance = float(np.linalg.norm(of)), float(np.linalg.norm(difference))
    return distance / size if size > 0 else distance
