"""The latency report as markdown, and the targets that it is held against."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.machine import heading, listed

INTRODUCTION = """# Latency

How long one explanation takes, beside the network alone and beside torch. Written by
`python -m benchmarks.latency -o docs/latency.md`; the figures of every round are in [latency.json](latency.json).
"""
METHOD = """**Engine** is `Explainer.explain` on a prepared array, end to end: tapped pass, selection, masks, scoring,
fusion. The **bare** network is `forward.onnx` in ONNX Runtime, opened as the engine opens its sessions, on as many
images as the engine scores masks, in two forms. **One session** gives all threads to one run after another, in the
engine's batch size: how a network is usually served. **Lanes** is how the engine itself runs the network: one-thread
runs on smaller batches, as many at a time as there are threads.

**Torch** is the same method in eager PyTorch (`benchmarks/torch_eager.py`: forward hooks, one backward pass, inference
mode, batches of 32, weights channels last), end to end, with as many threads. **torch.compile** is the same with the
scoring pass compiled; compiling is not counted, and the last batch is filled up to 32. Both select masks themselves and
then score those that the engine scored. ResNet-50 and VGG-16 are torchvision's modules with seeded random weights; the
others exist as ONNX, which torch runs node by node.

All ways take turns in one process, {pairs} rounds, every other one backwards. A ratio is taken within a round: the
engine's masks/s ÷ the images/s or masks/s of the other. Tables have the median and in brackets the smallest and the
largest, for ratios a {confidence:.0%} interval of the median. An explanation has at most {masks} masks, the same for
all ways; the fewer they are, the more the tapped pass weighs.

Before anything is timed, torch's selection is compared with the engine's, and for the engine's masks its scores and
its heatmap.

Memory is the peak of a process that loads the bundle and explains once, less the {start:.0f} MB with which the
interpreter starts; it knows nothing of torch. Load is `engine.load`, hashes included, in the same process, the median
of {loads}.
"""
ENGINE, ONE_SESSION, LANES = "engine", "one session", "lanes"
TORCH, COMPILED = "torch", "torch.compile"
WAYS = (ENGINE, ONE_SESSION, LANES, TORCH, COMPILED)


def table(report: Mapping[str, Any]) -> str:
    """The report as markdown."""
    done = [row for row in report["models"] if "failure" not in row]
    lines = [INTRODUCTION, f"Measured with {listed(report['machine'])}; {listed(report['options'])}.", ""]
    if done:
        first = done[0]
        lines.append(
            METHOD.format(
                pairs=report["options"]["pairs"],
                confidence=first["score_ratio"]["confidence"],
                masks=report["options"]["masks"],
                start=first["footprint"]["start_mb"],
                loads=len(first["footprint"]["runs"]),
            )
        )
        lines += ["## Targets", "", *_targets(done), "", "## Speed", "", *_speed(done, report["options"]["masks"]), ""]
        lines += ["## Phases", "", *_phases(done), "", "## Memory and loading", "", *_memory(done), ""]
        lines += ["## Agreement and noise", "", *_noise(done)]
    failed = [row for row in report["models"] if "failure" in row]
    if failed:
        lines += ["", "## Failed", "", *(f"* {row['name']}: {row['failure']}" for row in failed)]
    return "\n".join(lines) + "\n"


def memory_bound_mb(weights_mb: float) -> float:
    """The target for the peak: 2.5 times the weights of two sessions, and 600 MB."""
    return 2.5 * 2 * weights_mb + 600


def masks_per_s(row: Mapping[str, Any], way: str) -> list[float]:
    """Masks or images a second in each round."""
    return [row["masks"] / each[way]["total"] * 1e3 for each in row["rounds"]]


def _targets(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each target whose model was measured."""
    lines = heading("target", "measured", "met")
    by_name = {row["name"]: row for row in rows}

    def add(target: str, measured: str, met: bool) -> None:
        lines.append(f"| {target} | {measured} | {'yes' if met else 'no'} |")

    for name, least in (("resnet50", 0.97), ("efficientnet-lite0", 0.94)):
        if name in by_name:
            ratio = by_name[name]["ratio"][ONE_SESSION]
            add(f"{name}: engine ÷ one session at least {least}", _interval(ratio), ratio["median"] >= least)
    if "resnet50" in by_name:
        row = by_name["resnet50"]
        times = row["ratio"][TORCH]
        add("resnet50: at least 2 times torch", _interval(times), times["median"] >= 2)
        load = row["footprint"]["load_s"]
        add("resnet50: loads in at most 1.5 s", f"{load:.2f} s", load <= 1.5)
    for row in rows:
        peak, bound = _peak_mb(row), memory_bound_mb(row["weights_mb"])
        target = f"{row['name']}: peak at most 2.5 × the weights of two sessions + 600 MB = {bound:.0f} MB"
        add(target, f"{peak:.0f} MB", peak <= bound)
    lines.append("")
    for row in rows:
        ratio = _interval(row["ratio"][LANES])
        lines.append(f"* {row['name']}: beside the bare network in the engine's own lanes the engine reaches {ratio}.")
    return lines


def _speed(rows: list[dict[str, Any]], most: int) -> list[str]:
    lines = ["Images/s of the bare forms, masks/s of the others.", "", *heading("model", "masks", *WAYS)]
    for row in rows:
        rates = [_rates(masks_per_s(row, way)) if way in row["rounds"][0] else "–" for way in WAYS]
        lines.append(f"| {row['name']} | {row['masks']} of {row['scorable']} masks | {' | '.join(rates)} |")
    lines += ["", "The engine's rate ÷ that of each; *score* is the same for the engine's scoring phase alone.", ""]
    lines += heading("model", ONE_SESSION, f"{ONE_SESSION}, score", LANES, TORCH, COMPILED)
    for row in rows:
        ratios = {way: _interval(figures) for way, figures in row["ratio"].items()}
        shown = [ratios[ONE_SESSION], _interval(row["score_ratio"]), *(ratios.get(way, "–") for way in WAYS[2:])]
        lines.append(f"| {row['name']} | {' | '.join(shown)} |")
    remarks = [
        f"{row['name']}: at most {row['most_masks']} masks, because a round of more would take minutes."
        for row in rows
        if row["most_masks"] < most
    ]
    remarks += [
        f"{row['name']}: {way} failed with {failure}" for row in rows for way, failure in row["failures"].items()
    ]
    return lines + [""] * bool(remarks) + [f"* {remark}" for remark in remarks]


def _phases(rows: list[dict[str, Any]]) -> list[str]:
    phases = list(rows[0]["rounds"][0][ENGINE])
    lines = [
        "The engine's milliseconds, medians over the rounds; µs a mask is what a mask costs end to end beyond an image "
        "of the one session.",
        "",
    ]
    lines += heading("model", *phases, "µs a mask")
    for row in rows:
        figures = [median(each[ENGINE][phase] for each in row["rounds"]) for phase in phases]
        beyond = [each[ENGINE]["total"] - each[ONE_SESSION]["total"] for each in row["rounds"]]
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
        "Other masks: selected by one of engine and torch only. Bare spread: the range of the one session's times "
        "as a share of their median. Load: the machine's load average over the minute before the model was measured.",
        "",
    ]
    lines += heading("model", "other masks", "scores", "heatmap, mean", "bare spread", "load")
    for row in rows:
        agreement = row["agreement"]
        heatmap = f"{agreement['heatmap_mean']:.1e}" if "heatmap_mean" in agreement else "budget"
        figures = f"{agreement['other_masks']} | {agreement['scores']:.1e} | {heatmap}"
        lines.append(f"| {row['name']} | {figures} | {row['bare_spread']:.1%} | {row['load_average']:.2f} |")
    return lines


def _peak_mb(row: Mapping[str, Any]) -> float:
    return float(row["footprint"]["peak_mb"] - row["footprint"]["start_mb"])


def _interval(figures: Mapping[str, float]) -> str:
    return f"{figures['median']:.3f} ({figures['low']:.3f} … {figures['high']:.3f})"


def _rates(rates: list[float]) -> str:
    return f"{median(rates):.1f} ({min(rates):.1f} … {max(rates):.1f})"
