"""Whether explanations are there in time: requests with deadlines, while another program keeps a core busy.

`python -m benchmarks.deadlines -o docs/deadlines.md` exports the VOC-20 networks from ../shared/assets, sends each
1,000 requests a setting, and writes the tables into the page, between two lines that say so, and the figures beside it
as JSON. `--requests` and `--networks` make it shorter.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import engine
from benchmarks.machine import heading, in_own_process, listed, machine
from benchmarks.which_method import ASSETS, bundle_of

NETWORKS = ("efficientnet-lite0-voc20", "resnet50-thin-voc20")
LOWEST, HIGHEST = 1.2, 20.0
BETWEEN = ("<!-- written by benchmarks.deadlines -->", "<!-- end -->")
_WARM_UP = 20
_PHOTOS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the engine runs, and what else does.

    Attributes:
        threads: The engine's.
        burner: Whether another process keeps the last core busy.
    """

    threads: int
    burner: bool


SETTINGS = (Setting(threads=2, burner=True), Setting(threads=1, burner=True), Setting(threads=2, burner=False))


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="how many for each setting")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--images", type=int, default=24, help="how many are explained at a time, and one by one")
    parser.add_argument("-o", "--output", type=Path, help="the page; without, the tables are printed")
    asked = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "requests": asked.requests, "deadlines": [], "many": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.networks.split(","):
            bundle = bundle_of(name, Path(folder))
            tapped_ms = in_own_process(tapped_pass_ms, bundle)
            for setting in SETTINGS:
                with burner() if setting.burner else no_burner():
                    figures = in_own_process(serve, bundle, setting, tapped_ms, asked.requests)
                row = {"network": name, **asdict(setting), "tapped_ms": tapped_ms, **figures}
                report["deadlines"].append(row)
                print(json.dumps(row), flush=True)
            for masks in (25, 50):
                row = {"network": name, "masks": masks, **in_own_process(many, bundle, masks, asked.images)}
                report["many"].append(row)
                print(json.dumps(row), flush=True)
    text = tables(report)
    if asked.output is None:
        print(text)
        return
    before, _, rest = asked.output.read_text(encoding="utf-8").partition(BETWEEN[0])
    after = rest.partition(BETWEEN[1])[2]
    page = f"{before}{BETWEEN[0]}\n\n{text}\n{BETWEEN[1]}{after}"
    asked.output.write_text(page, encoding="utf-8")
    figures = json.dumps(report, indent=2) + "\n"
    asked.output.with_suffix(".json").write_text(figures, encoding="utf-8")


def photos() -> list[NDArray[np.uint8]]:
    """Decoded photos of COCO."""
    files = sorted((ASSETS / "images" / "coco").rglob("*.jpg"))[:_PHOTOS]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


@contextmanager
def no_burner() -> Iterator[None]:
    """Leave the machine alone."""
    yield


@contextmanager
def burner() -> Iterator[None]:
    """Keep the last core busy by another process."""
    process = multiprocessing.get_context("spawn").Process(target=burn, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def burn() -> None:
    """Compute, on the last core, until killed."""
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    number = 1
    while True:
        number = number * 5 % 1_000_003


def tapped_pass_ms(bundle: Path) -> float:
    """Return what the tapped pass takes when nothing else runs, in milliseconds."""
    explainer = engine.load(bundle)
    taken = [explainer.explain(photo, max_masks=1).timings_ms["tap"] for photo in photos() * 2]
    return median(taken[_PHOTOS // 2 :])


def serve(bundle: Path, setting: Setting, tapped_ms: float, requests: int) -> dict[str, float]:
    """Explain photos, each with a deadline between 1.2 and 20 tapped passes, evenly by its logarithm."""
    explainer, images = engine.load(bundle, threads=setting.threads), photos()
    free = [explainer.explain(image, max_masks=50) for image in images]
    mask_ms = median(result.timings_ms["score"] / result.scored for result in free)
    rest_ms = median(result.timings_ms["total"] - result.timings_ms["score"] for result in free)
    generator = np.random.default_rng(0)
    deadlines = tapped_ms * np.exp(generator.uniform(np.log(LOWEST), np.log(HIGHEST), _WARM_UP + requests))
    late, scored, bought, spare, worst = [], 0, 0.0, 0, 0.0
    for number, deadline in enumerate(deadlines.tolist()):
        began = time.perf_counter()
        result = explainer.explain(images[number % len(images)], deadline_ms=deadline)
        took = (time.perf_counter() - began) * 1e3
        if number < _WARM_UP:
            continue
        late.append(took - deadline)
        spare += result.method != "ada-sise"
        scored += result.scored
        if result.scorable:
            bought += min(max((deadline - rest_ms) / mask_ms, 0.0), result.scorable)
        worst = max(worst, took - deadline)
    beyond = np.maximum(late, 0.0)
    return {
        "in_time": float(np.mean(np.array(late) <= 0)),
        "late_p99_ms": float(np.quantile(beyond, 0.99)),
        "late_max_ms": float(beyond.max()),
        "unused_median_ms": float(-np.median(late)),
        "masks_of_possible": scored / bought if bought else float("nan"),
        "masks": scored / requests,
        "grad_cam": spare / requests,
        "rest_ms": rest_ms,
        "mask_ms": mask_ms,
    }


def many(bundle: Path, masks: int, count: int) -> dict[str, float]:
    """Explain photos one by one and several at a time, in turns; return the images per second of both."""
    explainer, files = engine.load(bundle), sorted((ASSETS / "images" / "coco").rglob("*.jpg"))[:count]
    rates: dict[str, list[float]] = {"one by one": [], "many": []}
    for _ in range(4):  # the first warms up
        for name in rates:
            began = time.perf_counter()
            if name == "many":
                list(explainer.explain_many(files, max_masks=masks))
            else:
                [explainer.explain(file, max_masks=masks) for file in files]
            rates[name].append(len(files) / (time.perf_counter() - began))
    return {name: median(values[1:]) for name, values in rates.items()}


def tables(report: dict[str, Any]) -> str:
    """Return the tables as markdown."""
    names = (
        "network",
        "threads",
        "other core",
        "in time",
        "late by: p99",
        "max",
        "masks",
        "of those the time could buy",
        "Grad-CAM",
    )
    lines = [
        f"Measured with {listed(report['machine'])}; {report['requests']:,} requests a setting.",
        "",
        *heading(*names),
    ]
    for row in report["deadlines"]:
        cells: Sequence[object] = (
            f"{row['network']} (tapped pass {row['tapped_ms']:.0f} ms)",
            row["threads"],
            "busy" if row["burner"] else "idle",
            f"{row['in_time']:.1%}",
            f"{row['late_p99_ms']:.1f} ms",
            f"{row['late_max_ms']:.1f} ms",
            f"{row['masks']:.0f}",
            f"{row['masks_of_possible']:.0%}",
            f"{row['grad_cam']:.1%}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", *heading("network", "masks", "`explain`, images/s", "`explain_many`", "ratio")]
    for row in report["many"]:
        one, several = row["one by one"], row["many"]
        lines.append(f"| {row['network']} | {row['masks']} | {one:.2f} | {several:.2f} | {several / one:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
