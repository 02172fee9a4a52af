"""Checking `explain.onnx` against the engine, by numbers, before it becomes part of a bundle."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engine.backends import Session
from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.bundle import Bundle
from engine.errors import VerificationError
from engine.explainer import Explainer
from engine.export.explain.photo import photo_input, prepared
from engine.export.graph import GraphBuilder
from engine.export.source import IR_VERSION
from engine.image import prepare
from engine.preprocess import Preprocess

BOUND = 1e-3
_MASKS = 16


def verify_explain(bundle: Bundle, image: NDArray[np.float32]) -> float:
    """Compare the heatmap of `explain.onnx` with the engine's, for the top-1 class and 16 masks.

    Args:
        bundle: The bundle that holds it.
        image: float32 [1, C, H, W].

    Returns:
        The mean difference of the heatmaps.

    Raises:
        VerificationError: It is above 1e-3, or the two have selected or scored other numbers of masks.
    """
    runtime = OnnxRuntimeCpu()
    with Explainer(bundle, runtime) as explainer:
        expected = explainer.explain(image, max_masks=_MASKS)
    graph = runtime.open(bundle.explain)
    heatmap, target, _, _, selected, scored = graph.run([image, np.array([-1]), np.array([_MASKS])])
    found = [target.tolist(), selected.tolist(), scored.tolist()]
    layers = expected.layers
    right = [[expected.target], [layer.selected for layer in layers], [layer.scored for layer in layers]]
    if found != right:
        raise VerificationError(
            f"explain.onnx: has explained class {found[0]}, with {found[1]} maps selected and {found[2]} scored in its "
            f"layers; expected, as the engine has, {right[0]}, {right[1]} and {right[2]}; nothing was written"
        )
    error = float(np.abs(heatmap.astype(np.float64) - expected.heatmap).mean())
    if not error <= BOUND:
        raise VerificationError(
            f"explain.onnx: its heatmap differs from the engine's by {error:.2g} on average; expected at most "
            f"{BOUND:g}; nothing was written"
        )
    return error


def verify_preparation(preprocess: Preprocess, opset: int) -> None:
    """Compare how a photo is prepared in a graph with how the engine prepares it.

    Args:
        preprocess: The settings.
        opset: Of the graph.

    Raises:
        VerificationError: A pixel of the resized photo differs by more than 1 of 255.
    """
    height, width = preprocess.size
    y, x = np.mgrid[: height + height // 3 + 1, : width + width // 2 + 1]
    waves = [np.sin(x / 3.0) + np.cos(y / 5.0), np.sin((x + y) / 7.0) * 2.0, np.cos(x * y / 900.0) * 2.0]
    photo = np.rint(127.5 + 63.75 * np.stack(waves, axis=2)).astype(np.uint8)
    (found,) = preparation(preprocess, opset).run([photo])
    expected = prepare(photo, preprocess, (len(preprocess.mean), height, width)).array
    step = 1.0 / (preprocess.scale * np.array(preprocess.std))
    error = float((np.abs(np.asarray(found, np.float32) - expected) / step[:, None, None]).max())
    if not error <= 1.01:
        raise VerificationError(
            f"explain.onnx: a photo that it resizes ({preprocess.interp}) differs from the engine's by {error:.2g} of "
            "255; expected at most 1; nothing was written: leave out --embed-preprocess, and prepare photos in the host"
        )


def preparation(preprocess: Preprocess, opset: int) -> Session:
    """Open a graph that prepares a photo, uint8 [h, w, 3], and does nothing else."""
    photo = photo_input()
    graph = ir.Graph([photo], [], nodes=[], opset_imports={"": opset}, name="photo")
    made = prepared(GraphBuilder(graph, "photo"), photo, preprocess)
    made.shape = ir.Shape([1, len(preprocess.mean), *preprocess.size])
    graph.outputs.append(made)
    return OnnxRuntimeCpu().open(ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString())
