"""The latency report as markdown, and the targets that it is held against."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.machine import heading

INTRODUCTION = """# Latency

How long one explanation takes, beside the network alone and beside torch. Written by
`python -m benchmarks.latency -o docs/latency.md`, about an hour on two cores for all models; the figures of every
block are in [latency.json](latency.json).
"""
METHOD = """**Bare** is `forward.onnx` in an ONNX Runtime session with the engine's own options, on as many images as
the engine scores masks, in batches of the same size. **Engine** is `Explainer.explain` on a prepared array, end to end:
tapped pass, selection, masks, scoring, fusion. Blocks of both alternate in one process. A ratio is that of one pair,
engine masks/s ÷ bare images/s; the table has the median and in brackets the smallest and the largest, with {pairs}
pairs a {confidence:.0%} interval of the median. *Score* is the same for the scoring phase alone.

**Torch** is the same method in eager PyTorch (`benchmarks/torch_eager.py`: forward hooks, one backward pass, inference
mode, batches of 32), end to end, with as many threads, after the pairs in the same process; the median of {repeats}.
Its default layout is what most code runs; *channels last* is the faster one; `torch.compile` takes the scoring pass of
the latter, and its compilation is not counted. ResNet-50 and VGG-16 are torchvision's modules with seeded random
weights; the others exist as ONNX, which torch runs node by node, with the weights channels last.

Before anything is timed, torch's selection is compared with the engine's, and for the engine's channels its scores and
its heatmap.

Memory is the peak of a process that loads the bundle and explains once, less the {start:.0f} MB with which the
interpreter starts; it knows nothing of torch. Load is `engine.load`, hashes included, in the same process, the median
of {loads}.
"""
EAGER, CHANNELS_LAST, COMPILED = "torch", "torch, channels last", "torch.compile"


def table(report: Mapping[str, Any]) -> str:
    """The report as markdown."""
    versions = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    options = ", ".join(f"{key} {value}" for key, value in report["options"].items())
    done = [row for row in report["models"] if "failure" not in row]
    lines = [INTRODUCTION, f"Measured with {versions}; {options}.", ""]
    if done:
        first = done[0]
        lines.append(
            METHOD.format(
                pairs=report["options"]["pairs"],
                confidence=first["ratio"]["total"]["confidence"],
                repeats=report["options"]["repeats"],
                start=first["footprint"]["start_mb"],
                loads=len(first["footprint"]["runs"]),
            )
        )
        lines += ["## Targets", "", *_targets(done), "", "## Speed", "", *_speed(done), ""]
        lines += ["## Phases", "", *_phases(done), "", "## Memory and loading", "", *_memory(done), ""]
        lines += ["## Agreement and noise", "", *_noise(done)]
    failed = [row for row in report["models"] if "failure" in row]
    if failed:
        lines += ["", "## Failed", "", *(f"* {row['name']}: {row['failure']}" for row in failed)]
    return "\n".join(lines) + "\n"


def memory_bound_mb(weights_mb: float) -> float:
    """The target for the peak: 2.5 times the weights of two sessions, and 600 MB."""
    return 2.5 * 2 * weights_mb + 600


def masks_per_s(row: Mapping[str, Any], way: str) -> float | None:
    """Masks a second of a way of torch, end to end; None where it was not measured."""
    figures = row["torch"].get(way, {})
    if "total_s" not in figures:
        return None
    return median(masks / seconds for masks, seconds in zip(figures["masks"], figures["total_s"], strict=True))


def engine_masks_per_s(row: Mapping[str, Any]) -> float:
    """Masks a second of the engine, end to end."""
    return float(row["masks"] / median(timings["total"] for timings in row["engine_ms"]) * 1e3)


def _targets(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each target whose model was measured."""
    lines = heading("target", "measured", "met")
    by_name = {row["name"]: row for row in rows}

    def add(target: str, measured: str, met: bool) -> None:
        lines.append(f"| {target} | {measured} | {'yes' if met else 'no'} |")

    for name, least in (("resnet50", 0.97), ("efficientnet-lite0", 0.94)):
        if name in by_name:
            ratio = by_name[name]["ratio"]["total"]
            add(f"{name}: engine ÷ bare at least {least}", _interval(ratio), ratio["median"] >= least)
    if "resnet50" in by_name:
        row = by_name["resnet50"]
        for way in (EAGER, CHANNELS_LAST):
            rate = masks_per_s(row, way)
            if rate is not None:
                times = engine_masks_per_s(row) / rate
                add(f"resnet50: at least 2 times {way}", f"{times:.2f}", times >= 2)
        load = row["footprint"]["load_s"]
        add("resnet50: loads in at most 1.5 s", f"{load:.2f} s", load <= 1.5)
    for row in rows:
        peak, bound = _peak_mb(row), memory_bound_mb(row["weights_mb"])
        target = f"{row['name']}: peak at most 2.5 × the weights of two sessions + 600 MB = {bound:.0f} MB"
        add(target, f"{peak:.0f} MB", peak <= bound)
    return lines


def _speed(rows: list[dict[str, Any]]) -> list[str]:
    lines = heading(
        "model", "masks", "bare images/s", "engine masks/s", "ratio, end to end", "ratio, score", "torch masks/s",
        "channels last", "torch.compile", "times faster than each",
    )  # fmt: skip
    for row in rows:
        bare = row["masks"] / median(row["bare_ms"]) * 1e3
        own = engine_masks_per_s(row)
        rates = [masks_per_s(row, way) for way in (EAGER, CHANNELS_LAST, COMPILED)]
        shown = " | ".join("–" if rate is None else f"{rate:.1f}" for rate in rates)
        times = " / ".join("–" if rate is None else f"{own / rate:.2f}" for rate in rates)
        ratios = f"{_interval(row['ratio']['total'])} | {_interval(row['ratio']['score'])}"
        lines.append(f"| {row['name']} | {row['masks']} | {bare:.1f} | {own:.1f} | {ratios} | {shown} | {times} |")
    reasons = [
        f"{row['name']}: {way} failed with {figures['failure']}"
        for row in rows
        for way, figures in row["torch"].items()
        if "failure" in figures
    ]
    return lines + [""] * bool(reasons) + reasons


def _phases(rows: list[dict[str, Any]]) -> list[str]:
    phases = list(rows[0]["engine_ms"][0])
    lines = [
        "Milliseconds, medians over the pairs; µs a mask is what an end-to-end mask costs beyond a bare image.",
        "",
    ]
    lines += heading("model", *phases, "µs a mask")
    for row in rows:
        figures = [median(timings[phase] for timings in row["engine_ms"]) for phase in phases]
        beyond = [own["total"] - bare for own, bare in zip(row["engine_ms"], row["bare_ms"], strict=True)]
        shown = " | ".join(f"{figure:.1f}" for figure in figures)
        lines.append(f"| {row['name']} | {shown} | {median(beyond) / row['masks'] * 1e3:.0f} |")
    return lines


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    lines = heading("model", "weights MB", "peak MB", "of it loaded", "load s", "import s")
    for row in rows:
        figures = row["footprint"]
        loaded = figures["loaded_mb"] - figures["start_mb"]
        sizes = f"{row['weights_mb']:.1f} | {_peak_mb(row):.0f} | {loaded:.0f}"
        lines.append(f"| {row['name']} | {sizes} | {figures['load_s']:.2f} | {figures['import_s']:.2f} |")
    return lines


def _noise(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Other masks: selected by one of engine and torch only. Bare spread: the range of the bare blocks as a share "
        "of their median. Load: the machine's load average over the minute before the model was measured.",
        "",
    ]
    lines += heading("model", "other masks", "scores", "heatmap, mean", "bare spread", "load")
    for row in rows:
        agreement = row["agreement"]
        figures = f"{agreement['other_masks']} | {agreement['scores']:.1e} | {agreement['heatmap_mean']:.1e}"
        lines.append(f"| {row['name']} | {figures} | {row['bare_spread']:.1%} | {row['load_average']:.2f} |")
    return lines


def _peak_mb(row: Mapping[str, Any]) -> float:
    return float(row["footprint"]["peak_mb"] - row["footprint"]["start_mb"])


def _interval(figures: Mapping[str, float]) -> str:
    return f"{figures['median']:.3f} ({figures['low']:.3f} … {figures['high']:.3f})"
