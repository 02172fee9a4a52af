"""How fast the engine explains, beside the bare network and beside torch; writes a table.

`python -m benchmarks.latency -o docs/latency.md` measures all models and writes `docs/latency.json` beside the table;
a name or several measure only those. First the engine's explanation is compared with torch's. Then, in one process,
blocks of the bare ONNX Runtime session and of the engine alternate, and torch runs after them. Memory and loading are
measured in processes that know nothing of torch. The files are written again after each model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

import engine
from benchmarks import subjects, torch_eager
from benchmarks.latency_table import CHANNELS_LAST, COMPILED, EAGER, table
from benchmarks.machine import in_own_process, machine, write_report
from benchmarks.pairs import alternate, spread, summary
from engine.backends.onnxruntime_cpu import session_options

_LOADS = 3
_OTHER_MASKS = 0.01  # of the masks; measured: 1 of 827 of ResNet-50, whose average gradients differ by 1e-2
_SCORES = 1e-3
_HEATMAP_MEAN = 1e-3
_TORCH_BATCH = 32
_LAYOUTS = {EAGER: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


def main() -> None:
    """Measure the latency and write the table."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=main.__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--threads", type=int, default=cores, help=f"of every runtime; {cores}")
    parser.add_argument(
        "--batch", type=int, default=8, help="masked images a run, of the engine and the bare network; 8"
    )
    parser.add_argument("--pairs", type=int, default=7, help="blocks of each, at least 5; 7")
    parser.add_argument("--repeats", type=int, default=3, help="explanations by torch, in each way, at least 1; 3")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(subjects.NAMES)}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in subjects.NAMES]
    if unknown:
        parser.error(f"unknown model {', '.join(unknown)}; known are {', '.join(subjects.NAMES)}")
    least = {"threads": 1, "batch": 1, "pairs": 5, "repeats": 1}
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


def measure(name: str, *, threads: int, batch: int, pairs: int, repeats: int) -> dict[str, Any]:
    """Measure one model; return the figures, or what failed."""
    row: dict[str, Any] = {"name": name, "load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject = in_own_process(make, name, Path(folder))
            row["weights_mb"] = (subject.bundle / "weights.bin").stat().st_size / 1e6
            row |= in_own_process(compare_speed, subject, threads, batch, pairs, repeats)
            row["footprint"] = footprint(subject, row["target"], threads, batch)
        except Exception as err:  # one row fails, the others are measured all the same
            row["failure"] = f"{type(err).__name__}: {err}".splitlines()[0].replace(folder, "")
    return row


def make(name: str, folder: Path) -> subjects.Subject:
    """Write the model, in a process of its own."""
    warnings.simplefilter("ignore", FutureWarning)  # of torchvision, about its default weights
    return subjects.make(name, folder)


def footprint(subject: subjects.Subject, target: int, threads: int, batch: int) -> dict[str, Any]:
    """Memory and load time, each time in a new process without torch."""
    command = [sys.executable, "-m", "benchmarks.footprint", str(subject.bundle), str(subject.image)]
    command += [str(target), str(threads), str(batch)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(_LOADS)
    ]
    return {key: median(run[key] for run in runs) for key in runs[0]} | {"runs": runs}


def compare_speed(subject: subjects.Subject, threads: int, batch: int, pairs: int, repeats: int) -> dict[str, Any]:
    """Compare the results, then the engine's speed with the bare network's, then with torch's."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(subject.bundle.parent / "compiled")
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(threads)
    x = subject.x()
    explainer = engine.load(subject.bundle, threads=threads)

    def explain() -> engine.Explanation:
        return explainer.explain(x, subject.target, batch_size=batch)

    result = explain()
    row: dict[str, Any] = {"masks": result.scored, "target": result.target}
    row["layers"] = [{"channels": layer.channels, "scored": layer.scored} for layer in result.layers]
    network = subject.network(torch.channels_last)
    assert network is not None
    own = [torch.from_numpy(layer.selected_channels) for layer in result.layers]
    twin = torch_eager.explain(
        network, torch.from_numpy(x), result.target, activation=result.activation, batch=_TORCH_BATCH, channels=own
    )
    row["agreement"] = compare(result, twin)
    del network

    run = bare(subject.bundle / "forward.onnx", x.shape[1:], result.scored, batch, threads)
    run()
    blocks = alternate(lambda: {"total": run()}, lambda: dict(explain().timings_ms), pairs)
    row["bare_ms"] = [first["total"] for first, _ in blocks]
    row["engine_ms"] = [second for _, second in blocks]
    row["bare_spread"] = spread(row["bare_ms"])
    row["ratio"] = {
        phase: summary([first["total"] / second[phase] for first, second in blocks]) for phase in ("score", "total")
    }
    row["torch"] = rivals(subject, x, result, repeats)
    return row


def compare(result: engine.Explanation, twin: torch_eager.TorchExplanation) -> dict[str, float]:
    """How far the engine and torch differ; raises where that is not one method in two roundings.

    Args:
        result: What the engine found.
        twin: What torch found for the engine's channels. Its own may be others by a few: the float32 gradients of two
            runtimes flip single ReLUs, and one mask more in a shallow layer changes the whole heatmap.
    """
    others, differences = 0, [np.zeros(1)]
    for layer, selected, channels, scores in zip(result.layers, twin.selected, twin.channels, twin.scores, strict=True):
        others += len(set(layer.selected_channels.tolist()) ^ set(selected.tolist()))
        scored = ~np.isnan(layer.scores)
        if layer.selected_channels[scored].tolist() != channels.tolist():
            raise ValueError(f"layer {layer.name!r}: the engine and torch disagree on which maps are flat")
        differences.append(np.abs(layer.scores[scored] - scores.numpy()))
    mean = float(np.abs(result.heatmap - twin.heatmap.numpy()).mean())
    largest = float(np.concatenate(differences).max())
    if not (others <= _OTHER_MASKS * result.scored and largest <= _SCORES and mean <= _HEATMAP_MEAN):
        raise ValueError(
            f"the engine and torch disagree: {others} of {result.scored} masks selected by one and not the other "
            f"(allowed {_OTHER_MASKS:.0%}), scores by {largest:.1e} (allowed {_SCORES:.0e}), the heatmap by "
            f"{mean:.1e} in the mean (allowed {_HEATMAP_MEAN:.0e})"
        )
    return {"other_masks": others, "scores": largest, "heatmap_mean": mean}


def bare(graph: Path, shape: tuple[int, ...], images: int, batch: int, threads: int) -> Callable[[], float]:
    """The bare network on as many images as the engine scores, in the same batches; returns milliseconds."""
    session = ort.InferenceSession(graph, session_options(threads=threads), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    random = np.random.default_rng(20102)
    full: NDArray[np.float32] = random.standard_normal((min(batch, images), *shape), np.float32)
    sizes = [min(batch, images - start) for start in range(0, images, batch)]

    def run() -> float:
        began = time.perf_counter()
        for size in sizes:
            session.run(None, {name: full[:size]})
        return (time.perf_counter() - began) * 1e3

    return run


def rivals(
    subject: subjects.Subject, x: NDArray[np.float32], result: engine.Explanation, repeats: int
) -> dict[str, Any]:
    """Explain by torch: eager in both layouts, and compiled with the weights channels last, which is the faster one."""
    image, measured = torch.from_numpy(x), {}

    def timed(network: torch_eager.Network, forward: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
        began = time.perf_counter()
        with (
            torch.inference_mode()
        ):  # also for the batch: a compiled network is compiled again for another kind of tensor
            batch = image.repeat(_TORCH_BATCH, 1, 1, 1).contiguous(memory_format=network.memory_format)
            (network if forward is None else forward)(batch)
        warm_up_s = time.perf_counter() - began  # a compiled network compiles now
        options: dict[str, Any] = {"activation": result.activation, "batch": _TORCH_BATCH, "forward": forward}
        found = [torch_eager.explain(network, image, result.target, **options) for _ in range(repeats)]
        figures = {key: [getattr(entry, key) for entry in found] for key in ("masks", "total_s", "score_s")}
        return figures | {"warm_up_s": warm_up_s}

    for way, layout in _LAYOUTS.items():
        network = subject.network(layout)
        if network is not None:
            measured[way] = timed(network)
    try:
        measured[COMPILED] = timed(network, network.compiled(image.expand(_TORCH_BATCH, -1, -1, -1)))
    except Exception as err:  # whatever torch.compile raises is its result
        measured[COMPILED] = {"failure": f"{type(err).__name__}: {err}".splitlines()[0]}
    return measured


if __name__ == "__main__":
    main()
