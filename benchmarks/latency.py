"""How fast the engine explains, beside the bare network and beside torch; writes a table.

`python -m benchmarks.latency -o docs/latency.md` measures all models and writes `docs/latency.json` beside the table;
a name or several measure only those. First the engine's explanation is compared with torch's. Then, in one process, the
engine, the bare network in two forms and torch in two ways take turns. Memory and loading are measured in processes
that know nothing of torch. The files are written again after each model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

import engine
from benchmarks import subjects, torch_eager
from benchmarks.latency_table import COMPILED, ENGINE, LANES, ONE_SESSION, TORCH, table
from benchmarks.machine import in_own_process, machine, write_report
from benchmarks.pairs import alternate, spread, summary
from engine.backends.onnxruntime_cpu import session_options

_LOADS = 3
_OTHER_MASKS = 0.01  # of the masks; measured: 1 of 827 of ResNet-50, whose average gradients differ by 1e-2
# Ten times design.md's bound: of ResNet-50's 834 masks at least one differs by 3.4e-4, with random weights and torch in
# batches of 32, channels last. The engine lies within 2.8e-5 of the reference for all of them (docs/architectures.md).
_SCORES = 1e-3
_HEATMAP_MEAN = 1e-4
_TORCH_BATCH = 32
_FEWER_MASKS = {"vgg16": 96}  # a round of more would take minutes

Way = Callable[[], Mapping[str, float]]  # milliseconds: `total`, and of some ways `score`


def main() -> None:
    """Measure the latency and write the table."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=main.__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--threads", type=int, default=cores, help=f"of every runtime; {cores}")
    parser.add_argument(
        "--batch", type=int, default=8, help="masked images a run, of the engine and the bare network; 8"
    )
    parser.add_argument("--pairs", type=int, default=5, help="rounds in which each way has its turn, at least 5; 5")
    fewer = ", ".join(f"{name} at most {most}" for name, most in _FEWER_MASKS.items())
    parser.add_argument("--masks", type=int, default=400, help=f"the most masks an explanation; 400, {fewer}")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(subjects.NAMES)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in subjects.NAMES]
    if unknown:
        parser.error(f"unknown model {', '.join(unknown)}; known are {', '.join(subjects.NAMES)}")
    least = {"threads": 1, "batch": 1, "pairs": 5, "masks": 1}
    for option, smallest in least.items():
        if getattr(arguments, option) < smallest:
            parser.error(f"--{option} is {getattr(arguments, option)}; expected at least {smallest}")
    missing = subjects.missing()
    for name in missing:
        print(f"{name}: left out, its files are not in ../shared/assets", flush=True)
    options = {option: getattr(arguments, option) for option in least}
    report: dict[str, Any] = {"machine": machine(), "options": options, "models": []}
    for name in [name for name in arguments.names or subjects.NAMES if name not in missing]:
        began = time.perf_counter()
        report["models"].append(measure(name, **options))
        outcome = report["models"][-1].get("failure", "done")
        print(f"{name}: {outcome} ({time.perf_counter() - began:.0f} s)", flush=True)
        write_report(report, table(report), arguments.output)
    sys.exit(any("failure" in row for row in report["models"]))


def measure(name: str, *, threads: int, batch: int, pairs: int, masks: int) -> dict[str, Any]:
    """Measure one model; return the figures, or what failed."""
    masks = min(masks, _FEWER_MASKS.get(name, masks))
    row: dict[str, Any] = {"name": name, "load_average": os.getloadavg()[0], "most_masks": masks}
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject = in_own_process(make, name, Path(folder))
            row["weights_mb"] = (subject.bundle / "weights.bin").stat().st_size / 1e6
            row |= in_own_process(compare_speed, subject, threads, batch, pairs, masks)
            row["footprint"] = footprint(subject, row["target"], threads, batch, masks)
        except Exception as err:  # one row fails, the others are measured all the same
            row["failure"] = f"{type(err).__name__}: {err}".splitlines()[0].replace(folder, "")
    return row


def make(name: str, folder: Path) -> subjects.Subject:
    """Write the model, in a process of its own."""
    warnings.simplefilter("ignore", FutureWarning)  # of torchvision, about its default weights
    return subjects.make(name, folder)


def footprint(subject: subjects.Subject, target: int, threads: int, batch: int, masks: int) -> dict[str, Any]:
    """Memory and load time, each time in a new process without torch."""
    command = [sys.executable, "-m", "benchmarks.footprint", str(subject.bundle), str(subject.image)]
    command += [str(target), str(threads), str(batch), str(masks)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(_LOADS)
    ]
    return {key: median(run[key] for run in runs) for key in runs[0]} | {"runs": runs}


def compare_speed(subject: subjects.Subject, threads: int, batch: int, pairs: int, masks: int) -> dict[str, Any]:
    """Compare the results, then the speed of the engine, of the bare network and of torch."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(subject.bundle.parent / "compiled")
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(threads)
    x = subject.x()
    explainer = engine.load(subject.bundle, threads=threads)

    def explain() -> engine.Explanation:
        return explainer.explain(x, subject.target, batch_size=batch, max_masks=masks)

    result = explain()
    row: dict[str, Any] = {"masks": result.scored, "scorable": result.scorable, "target": result.target}
    row["layers"] = [
        {"channels": layer.channels, "selected": layer.selected, "scored": layer.scored} for layer in result.layers
    ]
    graph = subject.bundle / "forward.onnx"
    bare = {
        ONE_SESSION: one_session(graph, x.shape[1:], result.scored, batch, threads),
        LANES: in_lanes(graph, x.shape[1:], result.scored, batch, threads),
    }
    for way in bare.values():
        way()
    torch_ways, row["agreement"], row["failures"] = rivals(subject, x, result)
    ways: dict[str, Way] = {ENGINE: lambda: explain().timings_ms, **bare, **torch_ways}
    rounds = [{way: dict(found) for way, found in each.items()} for each in alternate(ways, pairs)]
    return row | {"rounds": rounds} | ratios(rounds)


def ratios(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The engine's rate ÷ that of each other way, end to end; the scoring phase's ÷ one session's; the latter's noise.

    All ways score as many masks, so that a ratio of rates is one of times, the other way round.
    """
    return {
        "ratio": {
            way: summary([each[way]["total"] / each[ENGINE]["total"] for each in rounds])
            for way in rounds[0]
            if way != ENGINE
        },
        "score_ratio": summary([each[ONE_SESSION]["total"] / each[ENGINE]["score"] for each in rounds]),
        "bare_spread": spread([each[ONE_SESSION]["total"] for each in rounds]),
    }


def own_channels(result: engine.Explanation) -> list[NDArray[np.int64]]:
    """The channels of each layer whose masks the engine scored."""
    return [layer.selected_channels[~np.isnan(layer.scores)] for layer in result.layers]


def compare(result: engine.Explanation, twin: torch_eager.TorchExplanation) -> dict[str, float]:
    """How far the engine and torch differ; raises where that is not one method in two roundings.

    Args:
        result: What the engine found.
        twin: What torch found for the channels that the engine scored. Those that it selects may be others by a few:
            the float32 gradients of two runtimes flip single ReLUs, and one mask more in a shallow layer changes the
            whole heatmap. With a budget the heatmaps are not compared: the engine estimates what was not scored.
    """
    others, selected, differences = 0, 0, [np.zeros(1)]
    for number, (layer, own) in enumerate(zip(result.layers, own_channels(result), strict=True)):
        others += len(set(layer.selected_channels.tolist()) ^ set(twin.selected[number].tolist()))
        selected += layer.selected
        if own.tolist() != twin.channels[number].tolist():
            raise ValueError(f"layer {layer.name!r}: the engine and torch disagree on which maps are flat")
        differences.append(np.abs(layer.scores[~np.isnan(layer.scores)] - twin.scores[number].numpy()))
    mean = float(np.abs(result.heatmap - twin.heatmap.numpy()).mean()) if result.complete else 0.0
    largest = float(np.concatenate(differences).max())
    if not (others <= _OTHER_MASKS * selected and largest <= _SCORES and mean <= _HEATMAP_MEAN):
        raise ValueError(
            f"the engine and torch disagree: {others} of {selected} masks selected by one and not the other "
            f"(allowed {_OTHER_MASKS:.0%}), scores by {largest:.1e} (allowed {_SCORES:.0e}), the heatmap by "
            f"{mean:.1e} in the mean (allowed {_HEATMAP_MEAN:.0e})"
        )
    return {"other_masks": others, "scores": largest} | ({"heatmap_mean": mean} if result.complete else {})


def one_session(graph: Path, shape: tuple[int, ...], images: int, batch: int, threads: int) -> Way:
    """The bare network on as many images as the engine scores, in batches of the same size, all threads on each."""
    run, full = _open(graph, shape, batch, threads)
    sizes = [min(batch, images - start) for start in range(0, images, batch)]

    def score() -> dict[str, float]:
        began = time.perf_counter()
        for size in sizes:
            run(full[:size])
        return {"total": (time.perf_counter() - began) * 1e3}

    return score


def in_lanes(graph: Path, shape: tuple[int, ...], images: int, batch: int, threads: int) -> Way:
    """The bare network on as many images, as the engine runs it: one-thread runs, as many at a time as threads."""
    rows = max(1, batch // threads)
    run, full = _open(graph, shape, rows, 1)

    def score() -> dict[str, float]:
        left, lock = images, Lock()

        def take() -> int:
            nonlocal left
            with lock:
                size = min(rows, left)
                left -= size
                return size

        def work() -> None:
            while size := take():
                run(full[:size])

        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            lanes = [pool.submit(work) for _ in range(threads)]
        total = (time.perf_counter() - began) * 1e3
        for lane in lanes:
            lane.result()  # raises what the lane raised
        return {"total": total}

    return score


def _open(
    graph: Path, shape: tuple[int, ...], rows: int, threads: int
) -> tuple[Callable[[NDArray[np.float32]], object], NDArray[np.float32]]:
    """A session, as a function of a batch, and a batch of random images."""
    session = ort.InferenceSession(graph, session_options(threads=threads), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    full = np.random.default_rng(20102).standard_normal((rows, *shape), np.float32)
    return lambda images: session.run(None, {name: images}), full


def rivals(
    subject: subjects.Subject, x: NDArray[np.float32], result: engine.Explanation
) -> tuple[dict[str, Way], dict[str, float], dict[str, str]]:
    """Torch's ways, eager and compiled, each run once; how far eager torch's result is off; and what failed.

    They select for themselves, which takes its time, and then score the masks that the engine scored.
    """
    network, image = subject.network(), torch.from_numpy(x)
    channels = [torch.from_numpy(own) for own in own_channels(result)]

    def explain(**options: Any) -> torch_eager.TorchExplanation:
        options |= {"activation": result.activation, "batch": _TORCH_BATCH, "channels": channels}
        return torch_eager.explain(network, image, result.target, **options)

    def timed(**options: Any) -> Way:
        def way() -> dict[str, float]:
            found = explain(**options)
            return {"total": found.total_s * 1e3, "score": found.score_s * 1e3}

        return way

    agreement = compare(result, explain())
    ways = {TORCH: timed()}
    try:
        forward = network.compiled(image.expand(_TORCH_BATCH, -1, -1, -1))
        compare(result, explain(forward=forward))  # it compiles now
    except Exception as err:  # whatever torch.compile raises is its result
        return ways, agreement, {COMPILED: f"{type(err).__name__}: {err}".splitlines()[0]}
    return ways | {COMPILED: timed(forward=forward)}, agreement, {}


if __name__ == "__main__":
    main()
