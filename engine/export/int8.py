"""Adding the int8 scorer to a bundle: calibrate, quantize, write, and measure how well it agrees with float32."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engine.agreement import measure_agreement, within
from engine.backends.onnxruntime_cpu import OnnxRuntimeCpu
from engine.bundle import INT8, load_bundle
from engine.explainer import Explainer
from engine.export.calibration import masked_photos, spread
from engine.export.pack import Placed, write_graphs
from engine.export.quantize import METHOD, quantize

SPEARMAN_BOUND = 0.98
"""The least median of Spearman's ρ between heatmaps in float32 and in int8 with which the scorer is usable."""
SPEARMAN_WORST_BOUND = 0.9
"""The least that the worst heatmap may have."""
_COMPARED = 16  # photos: float32 scores all masks of each


def add_int8(
    folder: Path, model: ir.Model, photos: Sequence[Path], placed: Placed, step: Callable[[str], None]
) -> dict[str, object]:
    """Write `forward.int8.onnx` into a bundle that is whole without it; its manifest is left as it is.

    Args:
        folder: The bundle.
        model: Its forward graph, with constants in memory; it is changed.
        photos: Photos to calibrate on, at most `MOST_PHOTOS`.
        placed: What `weights.bin` holds already.
        step: Called with the name of each step before it starts.

    Returns:
        What the manifest says of it.

    Raises:
        ModelError: The graph cannot be quantized.
        ImageError: A photo cannot be read.
        BackendError: The runtime failed.
    """
    bundle = load_bundle(folder)
    with Explainer(bundle, OnnxRuntimeCpu()) as float32:
        images = masked_photos(
            float32, photos, lambda number: step(f"int8: masks of photo {number + 1} of {len(photos)}")
        )
        step("int8: quantize")
        quantized = quantize(model, images)
        write_graphs(folder, {INT8.removesuffix(".onnx"): quantized.model}, placed)
        bounds = {"spearman": SPEARMAN_BOUND, "spearman_worst": SPEARMAN_WORST_BOUND}
        record = {
            "method": METHOD,
            "photos": len(photos),
            "images": len(images),
            "convolutions": quantized.convolutions,
            "float32_convolutions": quantized.left_out,
            "bounds": bounds,
        }
        manifest: Any = bundle.manifest  # its shape is what the schema says
        graphs = {**manifest["graphs"], "int8": INT8}
        as_usable = replace(bundle, manifest={**manifest, "graphs": graphs, "int8": {**record, "usable": True}})
        with Explainer(as_usable, OnnxRuntimeCpu(), "int8") as int8:
            agreement = measure_agreement(
                float32,
                int8,
                spread(photos, _COMPARED),
                progress=lambda done, count: step(f"int8: agreement, photo {min(done + 1, count)} of {count}"),
            )
    found = agreement.report()  # as it is recorded and printed
    return {**record, "agreement": found, "usable": within(found, bounds)}
