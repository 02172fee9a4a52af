"""The GPU report as markdown, and the goals that it is held against."""

from collections.abc import Mapping
from typing import Any

from benchmarks.machine import heading, listed

INTRODUCTION = """# On an NVIDIA GPU

Whether and how fast the engine explains on a GPU, beside torch on the same one. Written by
`python -m benchmarks.gpu -o docs/gpu.md`; the figures of every image are in [gpu.json](gpu.json).
"""
METHOD = """ResNet-50 with seeded random, normalised weights, rule `otsu-count`, all masks, at most {images} different
images with the spectrum of photos. **Engine** is `Explainer.explain` on a prepared array in the host's memory, the
heatmap in the host's memory again; precisions are those of the scorer, the tapped pass is float32. **Torch eager** is
the same method in PyTorch (`benchmarks/torch_eager.py`): the tapped pass in float32 by autograd, everything else on the
GPU too, masked images scored by the module in float16, channels last, its batch normalisation not folded, in full
batches of the size that is fastest, cuDNN's benchmark mode on. **torch.compile** is the same with the scorer compiled;
compiling is not counted. All ways take turns in one process, image by image, every other image backwards; a ratio is
taken within an image. Phases are from CUDA events, the total from the host's clock.
"""
TORCH, COMPILED = "torch eager float16", "torch.compile float16"
MASKS = 1290
"""Of ResNet-50 with trained weights, which the goal for an explanation speaks of."""
_P50_MS, _TIMES, _OF_GEMM, _OF_COPY, _OF_TOTAL = 100.0, 3.0, 0.3, 0.6, 0.05
_NOT_MEASURED = ("not measured", None)


def way_name(precision: str, *, cuda_graph: bool) -> str:
    """What the engine is called in a precision."""
    return f"engine {precision}, CUDA graph" if cuda_graph else f"engine {precision}"


def table(report: Mapping[str, Any]) -> str:
    """The report as markdown, of the parts that there are."""
    lines = [INTRODUCTION, f"Measured with {listed(report['machine'])}; {listed(report['options'])}.", ""]
    lines += [METHOD.format(images=report["options"]["images"])]
    lines += ["## Goals", "", *heading("goal", "measured", "met")]
    for goal, (measured, met) in goals(report).items():
        lines.append(f"| {goal} | {measured} | {'–' if met is None else 'yes' if met else 'no'} |")
    if report["failures"]:
        lines += ["", "## Failed", "", *(f"* {name}: {error}" for name, error in report["failures"].items())]
    parts = {
        "checks": ("Checks", _checks),
        "turns": ("End to end", _turns),
        "rates": ("The scorer", _rates),
        "kernels": ("Kernels", _kernels),
    }
    for part, (title, shown) in parts.items():
        if part in report:
            lines += ["", f"## {title}", "", *shown(report)]
    return "\n".join(lines) + "\n"


def goals(report: Mapping[str, Any]) -> dict[str, tuple[str, bool | None]]:
    """What was measured of each goal in words, and whether it is met; None where it was not measured."""
    name, own = _main_way(report)
    kernels, rates = report.get("kernels", {}).get("float16"), report.get("rates")
    found = dict.fromkeys(
        (
            f"float16, {MASKS} masks: p50 under {_P50_MS:.0f} ms",
            f"float16: at least {_TIMES:.0f} times torch eager float16",
            f"float16 scorer: at least {_OF_GEMM:.0%} of the GPU's rate for float16 matrices",
            f"mask preparation, float16: at least {_OF_COPY:.0%} of a copy's bytes a second",
            f"mask preparation: at most {_OF_TOTAL:.0%} of the time end to end",
        ),
        _NOT_MEASURED,
    )
    fast, times, of_gemm, of_copy, of_total = found
    if own is not None:
        masks = own["medians"]["masks"]
        scaled = own["p50"] * max(1.0, MASKS / masks)
        says = f"{own['p50']:.1f} ms for {masks:.0f} masks ({name})"
        says += f", which is {scaled:.1f} ms for {MASKS}, if all of it grows with them" if masks < MASKS else ""
        found[fast] = says, scaled < _P50_MS
        ratio = report["turns"]["ratios"].get(TORCH, {}).get(name)
        if ratio is not None:
            found[times] = _interval(ratio), ratio["median"] >= _TIMES
        if rates is not None:
            share = _tflops(rates["flops"], own) / rates["gemm_tflops"]
            found[of_gemm] = f"{share:.1%} over the phase `score`", share >= _OF_GEMM
    if kernels is not None:
        ms = sum(kernels["kernels"][kernel]["ms"] for kernel in ("find_ranges", "write_masks"))
        share = kernels["kernels"]["write_masks"]["bytes"] / ms / 1e6 / report["kernels"]["copy_gb_per_s"]
        found[of_copy] = f"{share:.1%}, `find_ranges` and `write_masks` together", share >= _OF_COPY
        if own is not None:
            part = ms * own["medians"]["masks"] / kernels["masks"] / own["p50"]
            found[of_total] = f"{part:.1%}", part <= _OF_TOTAL
    return found


def _main_way(report: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """The way that `engine.load` takes in float16; without CUDA graphs if they failed."""
    ways = report.get("turns", {}).get("ways", {})
    names = [way_name("float16", cuda_graph=cuda_graph) for cuda_graph in (True, False)]
    return next(((name, ways[name]) for name in names if name in ways), ("", None))


def _tflops(flops: int, way: Mapping[str, Any]) -> float:
    """The scorer's operations in the phase `score`, in 10¹² a second."""
    return float(flops * way["medians"]["masks"] / way["medians"]["score"] / 1e9)


def _checks(report: Mapping[str, Any]) -> list[str]:
    lines = ["Before anything was timed.", "", *heading("check", "found", "allowed", "met")]
    for own in report["checks"]:
        lines.append(f"| {own['what']} | {own['found']:.2g} | {own['allowed']:.2g} | {'yes' if own['met'] else 'no'} |")
    return lines


def _turns(report: Mapping[str, Any]) -> list[str]:
    turns = report["turns"]
    lines = [
        "Milliseconds an image. Masks: the median, and the fewest and most of an image. Noise: how far the quartiles "
        "of the time a mask are apart, as a share of its median.",
        "",
    ]
    lines += heading("way", "images", "masks", "p50", "p95", "p99", "noise")
    for name, own in turns["ways"].items():
        masks = f"{own['medians']['masks']:.0f} ({own['masks_least']:.0f} … {own['masks_most']:.0f})"
        times = " | ".join(f"{own[key]:.1f}" for key in ("p50", "p95", "p99"))
        lines.append(f"| {name} | {own['images']} | {masks} | {times} | {own['noise']:.1%} |")
    lines += ["", "Torch's time ÷ the engine's for the same image: the median, and 90 % of the images.", ""]
    rivals = [name for name in (TORCH, COMPILED) if name in turns["ratios"]]
    engines = [name for name in turns["ways"] if name not in (TORCH, COMPILED)]
    lines += heading("engine", *(f"of {name}, batches of {turns['torch_batch_size']}" for name in rivals))
    for name in engines:
        shown = (turns["ratios"][rival].get(name) for rival in rivals)
        lines.append(f"| {' | '.join([name, *('–' if own is None else _interval(own) for own in shown)])} |")
    phases = list(dict.fromkeys(key for name in engines for key in turns["ways"][name]["medians"] if key != "masks"))
    lines += ["", "The engine's phases, medians in milliseconds.", "", *heading("engine", *phases)]
    for name in engines:
        medians = turns["ways"][name]["medians"]
        shown_ms = (f"{medians[phase]:.2f}" if phase in medians else "–" for phase in phases)
        lines.append(f"| {' | '.join([name, *shown_ms])} |")
    return lines


def _rates(report: Mapping[str, Any]) -> list[str]:
    rates = report["rates"]
    lines = [
        f"A product of large float16 matrices: {rates['gemm_tflops']:.0f} TFLOP/s. The network: "
        f"{rates['flops'] / 1e9:.2f} GFLOP an image, a product and its sum being two.",
        "",
        *heading("float16", "TFLOP/s", "of the matrices' rate"),
    ]
    rows = {}
    for name, own in report.get("turns", {}).get("ways", {}).items():
        if "float16" in name:
            rows[f"{name}, phase `score`"] = _tflops(rates["flops"], own)
    for name, images in rates["scorer_images_per_s"].items():
        rows[f"scorer alone, {name}"] = images * rates["flops"] / 1e12
    return lines + [f"| {name} | {own:.0f} | {own / rates['gemm_tflops']:.1%} |" for name, own in rows.items()]


def _kernels(report: Mapping[str, Any]) -> list[str]:
    copy = report["kernels"]["copy_gb_per_s"]
    lines = [
        f"A copy within the device: {copy:.0f} GB/s, read and written. GB/s are of the bytes that a kernel must read "
        "or write (its file says which); kernels of some microseconds are bound by latency. Each is launched many "
        "times in a row; `write_masks` writes all masks, which no cache holds, or one batch of the engine's.",
    ]
    for precision in ("float32", "float16"):
        if precision in report["kernels"]:
            own = report["kernels"][precision]
            lines += ["", f"{precision}, {own['masks']} masks, batches of {own['batch_size']}:", ""]
            lines += heading("kernel", "µs", "MB", "GB/s", "of the copy")
            for name, figures in own["kernels"].items():
                sizes = f"{figures['ms'] * 1e3:.1f} | {figures['bytes'] / 1e6:.2f} | {figures['gb_per_s']:.0f}"
                lines.append(f"| {name} | {sizes} | {figures['gb_per_s'] / copy:.1%} |")
    return lines


def _interval(figures: Mapping[str, float]) -> str:
    return f"{figures['median']:.2f} ({figures['low']:.2f} … {figures['high']:.2f})"
