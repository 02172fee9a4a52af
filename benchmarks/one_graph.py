"""How fast `explain.onnx` explains, beside the engine.

`python -m benchmarks.one_graph -o docs/hosts.md` exports EfficientNet-Lite0, the thin ResNet-50 and ResNet-50 (random
weights), lets the engine and ONNX Runtime with the one graph take turns, and writes the table into the page, between
two lines that say so, and the figures beside it as JSON.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import engine
from benchmarks import subjects
from benchmarks.latency import make
from benchmarks.machine import heading, in_own_process, listed, machine, write_between
from benchmarks.pairs import alternate, spread, summary
from engine.backends.onnxruntime_cpu import session_options

MARKS = ("<!-- python -m benchmarks.one_graph -->", "<!-- end -->")
MASKS = {"efficientnet-lite0": 0, "resnet50-thin-voc20": 0, "resnet50": 200}
"""How many each explanation scores at the most, 0 for all."""


def main() -> None:
    """Measure the models, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_graph", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--rounds", type=int, default=7, help="in which both have their turn; 7")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MASKS)}")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.names or MASKS:
        with tempfile.TemporaryDirectory() as folder:
            subject = in_own_process(make, name, Path(folder))
            rows.append(in_own_process(measure, subject, MASKS[name], arguments.rounds))
        print(json.dumps(rows[-1]), flush=True)
    report = {"machine": machine(), "rounds": arguments.rounds, "models": rows}
    figures = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    arguments.output.with_suffix(".json").write_text(figures, encoding="utf-8")
    write_between(arguments.output, MARKS, table(report))


def measure(subject: subjects.Subject, max_masks: int, rounds: int) -> dict[str, Any]:
    """Compare the two on one image."""
    threads = len(os.sched_getaffinity(0))
    x = subject.x()
    explainer = engine.load(subject.bundle, threads=threads)
    result = explainer.explain(x, subject.target, max_masks=max_masks or None)
    session = ort.InferenceSession(str(explainer.bundle.explain), session_options(threads=threads))
    asked = {"image": x, "target": np.array([result.target]), "max_masks": np.array([max_masks])}
    heatmap, _, _, _, _, scored = session.run(None, asked)
    if scored.tolist() != [layer.scored for layer in result.layers]:
        raise SystemExit(f"{subject.name}: explain.onnx scored {scored.tolist()} masks, the engine {result.layers}")

    def by_engine() -> float:
        began = time.perf_counter()
        explainer.explain(x, result.target, max_masks=max_masks or None)
        return time.perf_counter() - began

    def by_graph() -> float:
        began = time.perf_counter()
        session.run(None, asked)
        return time.perf_counter() - began

    found = alternate({"engine": by_engine, "graph": by_graph}, rounds)
    return {
        "name": subject.name,
        "masks": result.scored,
        "scorable": result.scorable,
        "heatmap_mean": float(np.abs(heatmap - result.heatmap).mean()),
        "seconds": found,
        "ratio": summary([each["engine"] / each["graph"] for each in found]),
        "engine_spread": spread([each["engine"] for each in found]),
    }


def table(report: dict[str, Any]) -> list[str]:
    """Write the lines of the table."""
    lines = [f"Measured on: {listed(report['machine'])}; {report['rounds']} rounds.", ""]
    lines += heading("model", "masks", "engine, s", "explain.onnx, s", "its rate ÷ the engine's", "mean difference")
    for row in report["models"]:
        times = [summary([each[way] for each in row["seconds"]])["median"] for way in ("engine", "graph")]
        ratio = row["ratio"]
        masks = f"{row['masks']} of {row['scorable']}"
        interval = f"{ratio['median']:.2f} ({ratio['low']:.2f} … {ratio['high']:.2f})"
        figures = [*(f"{seconds:.2f}" for seconds in times), interval, f"{row['heatmap_mean']:.1e}"]
        lines.append(f"| {' | '.join([row['name'], masks, *figures])} |")
    return lines


if __name__ == "__main__":
    main()
