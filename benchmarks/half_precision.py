"""Heatmaps by weights in half precision beside those of float32: nearest weights, and the engine's; writes a table.

`python -m benchmarks.half_precision PHOTO… -o docs/half-precision.md` takes the pretrained models of the tests, and
writes `docs/half-precision.json` beside the table. The weights of filters and the biases are rounded, and nothing else:
the arithmetic is float32, on the CPU.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import engine
from benchmarks.gpu_figures import differences
from benchmarks.machine import heading, listed, machine, write_report
from benchmarks.which_method import ASSETS
from engine.backends.half import TYPES
from engine.backends.half_weights import round_to_half
from tests import forms
from tests.models import MODELS, exported

NEAREST, KEPT = "nearest", "sums kept"
INTRODUCTION = """# Weights in half precision

What rounding a network's weights to half precision does to its heatmaps: each weight to the nearest number, or as the
engine does it for `float16` and `bfloat16`, so that every kernel keeps its sum (`engine/backends/half_weights.py`).
Written by `python -m benchmarks.half_precision PHOTO… -o docs/half-precision.md`.
"""
READING = """Only weights and biases are rounded; the arithmetic is float32, on the CPU. *Maps* is by how much the worst
pixel of all visualization maps is off, in the median over photos and at worst. ρ is Spearman's correlation of the
heatmap with that of float32. *Same cuts* counts the photos whose heatmaps are fused at the same thresholds: where one
moves to the next of 256 bins, hard fusion moves many pixels at once, whatever the precision; soft fusion does not.
"""


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.half_precision", description=main.__doc__)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "photos": len(arguments.photos), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            explainer = exported(ASSETS, name, Path(folder)).explainer
            report["rows"] += compare(name, explainer, arguments.photos, Path(folder))
            write_report(report, table(report), arguments.output)
            print(f"{name}: done", flush=True)


def compare(name: str, explainer: engine.Explainer, photos: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """Explain the photos by the network as it is, and by its weights in half precision."""
    expected = [explainer.explain(photo, visualization_maps=True) for photo in photos]
    rows = []
    for precision in TYPES:
        for way in (NEAREST, KEPT):
            graphs = folder / f"{name}-{precision}-{way}"
            shutil.copytree(explainer.bundle.path, graphs)
            (graphs / "forward.onnx").write_bytes(rounded(explainer.bundle.forward, precision, way))
            with explainer.with_graphs(graphs) as other:
                pairs = [
                    (other.explain(photo, exact.target, visualization_maps=True), exact)
                    for photo, exact in zip(photos, expected, strict=True)
                ]
            rows.append({"network": name, "precision": precision, "weights": way, **figures(pairs)})
    return rows


def rounded(graph: Path, precision: str, way: str) -> bytes:
    """A graph whose weights and biases are numbers of that precision."""
    model = onnx.load(str(graph))
    if way == KEPT:
        round_to_half(model, TYPES[precision])
    forms.rounded(model, TYPES[precision])
    return model.SerializeToString()


def figures(pairs: Sequence[tuple[engine.Explanation, engine.Explanation]]) -> dict[str, Any]:
    """How far pairs of explanations are apart."""
    off, ranks, same = [], [], []
    for found, exact in pairs:
        apart = differences(found, exact)
        off.append(apart["views"])
        ranks.append(1 - apart["apart"])
        cuts = [[layer.fusion_threshold for layer in one.layers] for one in (found, exact)]
        same.append(cuts[0] == cuts[1])
    alike = [rank for rank, cut in zip(ranks, same, strict=True) if cut]
    return {
        "maps_median": float(np.median(off)),
        "maps_largest": max(off),
        "rho_median": float(np.median(ranks)),
        "rho_tenth": float(np.quantile(ranks, 0.1)),
        "rho_worst": min(ranks),
        "same_cuts": len(alike),
        "rho_worst_with_same_cuts": min(alike, default=None),
    }


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [INTRODUCTION, f"{report['photos']} photos. Measured with {listed(report['machine'])}.", "", READING]
    lines += heading(
        "network",
        "precision",
        "weights",
        "maps: median / worst",
        "ρ: median / 10 % / worst",
        "same cuts",
        "worst ρ of these",
    )
    for row in report["rows"]:
        ranks = " / ".join(f"{row[key]:.4f}" for key in ("rho_median", "rho_tenth", "rho_worst"))
        alike = row["rho_worst_with_same_cuts"]
        cells = [row["network"], row["precision"], row["weights"]]
        cells += [f"{row['maps_median']:.4f} / {row['maps_largest']:.3f}", ranks, str(row["same_cuts"])]
        lines.append(f"| {' | '.join([*cells, '' if alike is None else f'{alike:.4f}'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
