"""Exports every architecture of torchvision and compares its heatmap with the float64 reference; writes a table.

`python -m benchmarks.architectures -o docs/architectures.md` measures all of them, in about an hour on two cores, and
writes `docs/architectures.json` beside the table. A name or several measure only those. The files are written again
after each architecture, so that an interrupted run keeps what it has.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import heading, in_own_process, listed, machine, write_report
from engine.bundle import Bundle, load_bundle
from engine.export.evaluate import function
from tests.architectures import ALPHA, LAYERS, SIZE, build, make_case, write
from tests.reference import agreement

INTRODUCTION = f"""# Architectures

Each architecture of torchvision, at {SIZE}×{SIZE} and with random, normalised weights (`tests/architectures.py`):
exported by `engine.export.torch_module`, compiled, and explained; its heatmap compared with the float64 reference.
Written by `python -m benchmarks.architectures -o docs/architectures.md`.
"""


def main() -> None:
    """Measure the architectures and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=main.__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(LAYERS)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in LAYERS]
    if unknown:
        parser.error(f"unknown architecture {', '.join(unknown)}; known are {', '.join(LAYERS)}")
    rows: list[dict[str, Any]] = []
    for name in arguments.names or LAYERS:
        began = time.perf_counter()
        rows.append(measure(name))
        print(f"{name}: {rows[-1].get('failure', 'done')} ({time.perf_counter() - began:.0f} s)", flush=True)
        report = {"machine": machine(), "architectures": rows}
        write_report(report, table(report), arguments.output)
    sys.exit(any("failure" in row for row in rows))


def measure(name: str) -> dict[str, Any]:
    """Measure one architecture, each step in a process of its own; return the figures, or what failed."""
    row: dict[str, Any] = {"name": name}
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = in_own_process(write_source, name, Path(folder))
            row["onnx_mb"] = source.stat().st_size / 1e6
            bundle = source.with_suffix(".ada")
            row |= export(source, bundle)
            row |= describe(name, bundle)
            row |= in_own_process(compare, source, bundle)
        except Exception as err:  # one row fails, the others are measured all the same
            row["failure"] = f"{type(err).__name__}: {err}".splitlines()[0].replace(folder, "")
    return row


def write_source(name: str, folder: Path) -> Path:
    """Write the architecture as ONNX."""
    warnings.simplefilter("ignore", FutureWarning)  # of torchvision, about its default weights
    return write(name, build(name), folder)


def export(source: Path, bundle: Path, *options: str) -> dict[str, float]:
    """Run the command line of the exporter; its wall time and its peak of memory."""
    command = [sys.executable, "-m", "engine.export", str(source), "-o", str(bundle), "--activation", "softmax"]
    command += options
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(message.strip().splitlines()[-1])
    return {"export_s": time.perf_counter() - began, "export_peak_mb": usage.ru_maxrss * 1024 / 1e6}


def describe(name: str, path: Path) -> dict[str, Any]:
    """What the bundle's manifest says."""
    bundle = load_bundle(path)
    layers = [(layer.channels, layer.height) for layer in bundle.layers]
    if layers != list(LAYERS[name]):
        raise ValueError(f"feature layers {layers}; expected {list(LAYERS[name])}")
    return {
        "layers": layers,
        "nodes": sum(sum(block["ops"].values()) for block in bundle.manifest["graphs"]["blocks"]),
        "bundle_mb": sum(file.stat().st_size for file in path.iterdir()) / 1e6,
        **verification(bundle),
    }


def verification(bundle: Bundle) -> dict[str, float]:
    """The worst of each kind of figure that the export measured."""
    checks = bundle.manifest["verification"]
    return {
        "forward_error": max(checks["forward_error"], checks["blocks_error"]),
        "gradient_error": max(checks["gradient_errors"].values()),
        "average_gradient_error": max(checks["average_gradient_errors"].values()),
    }


def compare(source: Path, bundle: Path) -> dict[str, Any]:
    """The Agreement of design.md, section 3; raises where it is not reached."""
    case = make_case(source, bundle)
    result = case.model.explainer.explain(case.x, case.target, visualization_maps=True)
    scores = np.concatenate([layer.scores for layer in result.layers])
    alpha = [layer[0] for layer in case.alpha]
    agreement.assert_proves_something(case.logits, alpha, scores)
    figures = case.check(result, alpha, "otsu", "hard")
    return {
        "masks": result.scored,
        "agreement_a": case.check_companions(function),
        "agreement_b": case.check_average_gradients(ALPHA),
        "agreement_d_scores": figures.scores,
        "agreement_d_maps": figures.visualization_maps,
        "agreement_e_mean": figures.heatmap_mean,
        "agreement_e_largest": figures.heatmap_largest,
    }


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    done = [row for row in report["architectures"] if "failure" not in row]
    lines = [INTRODUCTION, f"Measured with {listed(report['machine'])}.", "", "## Export", ""]
    lines += heading(
        "architecture", "feature layers, channels×H", "nodes", "ONNX MB", "bundle MB", "export s", "peak MB"
    )
    for row in done:
        layers = ", ".join(f"{channels}×{height}" for channels, height in row["layers"])
        sizes = f"{row['onnx_mb']:.1f} | {row['bundle_mb']:.1f} | {row['export_s']:.1f} | {row['export_peak_mb']:.0f}"
        lines.append(f"| {row['name']} | {layers} | {row['nodes']} | {sizes} |")
    lines += ["", "## Verification at export", ""]
    lines += [
        "Forward: the largest difference to the source in ONNX Runtime, as a share of the largest logit. Gradient: the "
        "companions against central differences in float64, the worst block. Link: the average gradients of the tapped "
        "graph against the companions run one after the other, the worst layer.",
        "",
    ]
    lines += heading("architecture", "forward", "gradient", "link")
    for row in done:
        keys = ("forward_error", "gradient_error", "average_gradient_error")
        lines.append(f"| {row['name']} | {' | '.join(f'{row[key]:.1e}' for key in keys)} |")
    lines += ["", "## Agreement with the float64 reference", ""]
    lines += [
        "(a) float64 companions against float64 autograd, relative L2, at most 1e-8; (b) float32 average gradients, at "
        "most 3e-5; (d) scores and visualization maps, largest difference, at most 1e-4; (e) heatmap, mean difference "
        "at most 1e-4, and largest at most 1e-3 outside pixels near a threshold. (c) is yes or no, and yes for all.",
        "",
    ]
    lines += heading("architecture", "masks", "(a)", "(b)", "(d) scores", "(d) maps", "(e) mean", "(e) largest")
    for row in done:
        figures = " | ".join(f"{value:.1e}" for key, value in row.items() if key.startswith("agreement_"))
        lines.append(f"| {row['name']} | {row['masks']} | {figures} |")
    failed = [row for row in report["architectures"] if "failure" in row]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"* {row['name']}: {row['failure']}" for row in failed]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
