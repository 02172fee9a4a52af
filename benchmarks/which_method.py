"""Which method explains best, and what it costs: every method by every measure on the photos of COCO.

`python -m benchmarks.which_method WORK -o docs/which-method.md` explains all photos of ../shared/assets with both
VOC-20 networks, and writes its tables into the page, between two lines that say so, and the figures beside it as JSON.
It takes hours, keeps what it has in the folder WORK, and goes on from there. `--time` measures only how long each
method takes, on a few photos, and should have the machine for itself.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import engine
from benchmarks.machine import heading, machine, write_between
from benchmarks.remembered import RememberingExplainer
from engine.backends import create_backend
from engine.bundle import load_bundle
from engine.evaluation import EVALUATED, Choice, Dataset, Store, Summary, evaluate, read_dataset, summarise
from engine.evaluation.summary import SUBSETS, Cell, Measure
from engine.export import export
from engine.spelling import parse_method

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
MODELS = ("efficientnet-lite0-voc20", "resnet50-thin-voc20")
REFERENCE = "sise"
RULES = ("ada-sise", "ada-sise:rule=otsu-count", "ada-sise:fusion=soft", "sise:fusion=soft")
ON_ALL = (
    REFERENCE,
    *RULES,
    "score-cam",
    "group-cam",
    "recipro-cam",
    "ablation-cam",
    "grad-cam",
    "grad-cam++",
    "xgrad-cam",
    "layer-cam",
    "gradient",
    "smooth-grad",
    "integrated-gradients",
    "full-grad",
    "centre",
    "grad-cam-otsu",
)
ON_SAMPLE = ("rise", "extremal-perturbation")
METRICS = (
    "ebpg",
    "bbox",
    "pointing",
    "drop",
    "increase",
    "soft-drop",
    "soft-increase",
    "gain",
)
OF_PAPER = ("ebpg", "bbox", "drop", "increase")
PAGE_MARKS = ("<!-- Tables by benchmarks.which_method begin here. -->", "<!-- They end here. -->")
_TIMED_PHOTOS = 3

Report = dict[str, Any]


def main() -> None:
    """Compare the methods, or time them, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.which_method", description=main.__doc__)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for bundles, scores and results")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md", help="page that has the tables")
    parser.add_argument("--sample", type=int, default=6, help=f"photos for {' and '.join(ON_SAMPLE)}; 6")
    parser.add_argument("--time", action="store_true", help="time the methods, and measure nothing else")
    parser.add_argument("--tables", action="store_true", help="write the tables from what the folder has")
    arguments = parser.parse_args()
    figures = arguments.output.with_suffix(".json")
    report: Report = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    for methods, sample in ((ON_ALL, None), (ON_SAMPLE, arguments.sample)):
        for name in MODELS:
            bundle = bundle_of(name, arguments.work)
            of_model = report.setdefault(name, {})
            if arguments.time:
                of_model.setdefault("milliseconds", {}).update(times(bundle, methods))
                of_model["timed on"] = machine()
            else:
                with Store(arguments.work / f"{name}.sqlite") as store:
                    if not arguments.tables:
                        compare(bundle, store, arguments.work / "scores", methods, sample)
                    of_model["summary"] = figures_of(summarise(store, REFERENCE))
            write(report, arguments.output)


def write(report: Report, output: Path) -> None:
    """Write the figures, and the tables into their place in the page."""
    text = json.dumps(report, ensure_ascii=False) + "\n"
    output.with_suffix(".json").write_text(text, encoding="utf-8")
    write_between(output, PAGE_MARKS, [line for model, entry in report.items() for line in tables_of(model, entry)])


def bundle_of(name: str, work: Path) -> Path:
    """Return the bundle of a model, which is exported once."""
    work.mkdir(parents=True, exist_ok=True)
    bundle, source = work / f"{name}.ada", ASSETS / "models" / name
    if not bundle.exists():
        export(
            source / "model.onnx",
            bundle,
            preprocess=source / "preprocess.json",
            labels=source / "labels.txt",
            activation="sigmoid",
        )
    return bundle


def photos() -> Dataset:
    """The photos, with boxes."""
    return read_dataset(ASSETS / "images" / "coco" / "val2017.json")


def compare(bundle: Path, store: Store, scores: Path, methods: Sequence[str], sample: int | None) -> None:
    """Measure by every method what the store does not have yet."""
    explainer = RememberingExplainer(load_bundle(bundle), create_backend("cpu"))
    explainer.folder = scores
    scores.mkdir(exist_ok=True)
    began = time.perf_counter()
    for method in methods:
        evaluate(explainer, photos(), [method], METRICS, store, Choice(sample=sample))
        print(f"{bundle.name}: {method} ({time.perf_counter() - began:.0f} s)", flush=True)


def times(bundle: Path, methods: Sequence[str]) -> dict[str, float]:
    """Return the median milliseconds of one explanation by each method, after a short one that nobody counts."""
    found = {}
    chosen = [sample.photo for sample in photos().samples[: 1 if methods is ON_SAMPLE else _TIMED_PHOTOS]]
    with engine.load(bundle) as explainer:
        for name in methods:
            method = parse_method(name, EVALUATED)
            explainer.explain(chosen[0], method=method, max_masks=16)
            taken = [explainer.explain(photo, method=method).timings_ms["total"] for photo in chosen]
            found[name] = median(taken)
            print(f"{bundle.name}: {name} {found[name]:.0f} ms", flush=True)
    return found


def figures_of(summary: Summary) -> Report:
    """Return in JSON's types what the tables show."""
    return {
        "pairs": dict(summary.pairs),
        "photos": summary.photos,
        "measures": [
            {"name": m.name, "title": m.title, "unit": m.unit, "higher_is_better": m.higher_is_better}
            for m in summary.measures
        ],
        "costs": {
            method: {"pairs": cost.pairs, "photos": cost.photos, "evaluations": dict(cost.evaluations)}
            for method, cost in summary.costs.items()
        },
        "cells": {
            subset: {
                method: {m.name: _numbers(summary.cells[subset, method, m.name]) for m in summary.measures}
                for method in summary.methods
            }
            for subset in SUBSETS
        },
    }


def _numbers(cell: Cell) -> Report:
    return {
        what: None if interval is None else [_rounded(end) for end in (interval.mean, interval.low, interval.high)]
        for what, interval in (("mean", cell.interval), ("difference", cell.difference))
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def tables_of(name: str, entry: Report) -> list[str]:
    """Return the tables of one model, in markdown."""
    if "summary" not in entry:
        return []
    summary = entry["summary"]
    measures = [Measure(**facts) for facts in summary["measures"]]
    cells, costs = summary["cells"], summary["costs"]
    pairs = ", ".join(f"{count} with {subset}" for subset, count in summary["pairs"].items() if subset != "all")
    lines = [
        f"## {name}",
        "",
        f"{summary['pairs']['all']} pairs of photo and class on {summary['photos']} photos; {pairs}.",
        "",
        "### Quality",
        "",
        *heading("method", "pairs", *(measure.heading for measure in measures)),
    ]
    for method, of_measures in cells["all"].items():
        lines.append(_row(method, str(costs[method]["pairs"]), *_cells(of_measures, measures, "mean")))
    papers = [measure for measure in measures if measure.name in OF_PAPER]
    for subset in SUBSETS[1:]:
        lines += ["", f"### {subset.capitalize()}", "", *heading("method", *(m.heading for m in papers))]
        lines += [_row(method, *_cells(row, papers, "mean")) for method, row in cells[subset].items()]
    lines += ["", f"### Differences from {REFERENCE}, pair by pair", ""]
    lines += heading("method", "masks, share", *(measure.heading for measure in papers))
    of_reference = costs[REFERENCE]["evaluations"]["forward"]
    for method, row in cells["all"].items():
        if method == REFERENCE:
            continue
        share = costs[method]["evaluations"].get("forward", 0.0) / of_reference
        lines.append(_row(method, f"{share:.0%}", *_cells(row, papers, "difference")))
    lines += ["", "### Cost", "", *heading("method", "images computed, by graph", "ms")]
    milliseconds: Mapping[str, float] = entry.get("milliseconds", {})
    for method, cost in costs.items():
        computed = ", ".join(f"{count:.0f} {graph}" for graph, count in cost["evaluations"].items())
        took = milliseconds.get(method)
        lines.append(_row(method, computed or "none", "" if took is None else f"{took:,.0f}"))
    return [*lines, ""]


def _cells(row: Mapping[str, Report], measures: Sequence[Measure], what: str) -> list[str]:
    """Return values with their intervals."""
    texts = []
    for measure in measures:
        values = row[measure.name][what]
        signed = what == "difference"
        texts.append("")
        if values is not None:
            mean, low, high = values
            texts[-1] = measure.text(mean, signed=signed)
            if low is not None and high is not None:
                texts[-1] += f" ({measure.text(low, signed=signed)} … {measure.text(high, signed=signed)})"
    return texts


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    main()
