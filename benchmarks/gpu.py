"""Whether and how fast the engine explains on an NVIDIA GPU, beside torch on the same GPU; writes a table.

`python -m benchmarks.gpu -o docs/gpu.md` writes the table, and `docs/gpu.json` beside it. ResNet-50 with seeded random
weights is exported; kernels and heatmaps are compared with those of the CPU; then the kernels are timed alone, and the
engine in every precision, with and without CUDA graphs, takes turns with torch, image by image. A part that fails is
reported with its error, and the others go on. The files are written again after each part. Without a GPU it ends with
one line, and writes nothing.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import engine
from benchmarks import gpu_kernels, subjects, torch_eager
from benchmarks.gpu_figures import SPEARMAN, agreement, check, differences, flops, ratios, summarise
from benchmarks.gpu_hardware import Cuda, Hardware
from benchmarks.gpu_kernels import RULE
from benchmarks.gpu_table import COMPILED, TORCH, table, way_name
from benchmarks.latency import make
from benchmarks.machine import in_own_process, machine, write_report
from benchmarks.pairs import alternate
from engine.backends import Backend
from engine.bundle import load_bundle
from engine.explainer import Explainer
from engine.kernels.similarity import spearman
from engine.resident import BATCH_SIZES, USUAL_BATCH_SIZE, BatchStopwatch
from engine.tuning import Setup, sweep
from tests.architectures import SIZE, photo_like

MODEL = "resnet50"
PRECISIONS = ("float32", "tf32", "float16")
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxscript", "torch", "torchvision")
VARIANTS: dict[str, dict[str, str]] = {
    "as the engine": {},
    "prefer_nhwc": {"prefer_nhwc": "1"},
    "exhaustive search": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "prefer_nhwc, exhaustive search": {"prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"},
}
"""Options of the CUDA provider with which the bare scorer is timed."""
TORCH_BATCH_SIZES = (64, 128, 256)
_GROWTH_MB = 32.0
_REPEATS = 20  # of a kernel
_LAST_PART_S = 40.0
_SEED = 20102

Floats = NDArray[np.float32]
Way = Callable[[], dict[str, float]]  # milliseconds: `total`, and of the engine its phases; and `masks`


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured.

    Attributes:
        compared: Images whose heatmaps are compared with the CPU's.
        loop: Explanations over which memory must stay flat.
        batch: Masked images scored at a time; 0 for what is measured to be fastest, for the engine and for torch.
        seconds: When the turns end, even if not all images have been explained.
        cuda_graph: Whether CUDA graphs take part.
        tensorrt: Whether TensorRT takes part, which builds its engine in some minutes.
    """

    compared: int
    loop: int
    batch: int
    seconds: float
    cuda_graph: bool
    tensorrt: bool


def main() -> None:
    """Measure on the GPU, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--images", type=int, default=50, help="different images to explain; 50")
    parser.add_argument("--compared", type=int, default=2, help="of them compared with the CPU path; 2")
    parser.add_argument("--loop", type=int, default=100, help="explanations over which memory must stay flat; 100")
    parser.add_argument("--batch", type=int, default=0, help="masked images a run; the fastest, which is measured")
    parser.add_argument("--seconds", type=float, default=480.0, help="how long all of it may take, nearly; 480")
    parser.add_argument("--no-cuda-graph", action="store_false", dest="cuda_graph", help="leave CUDA graphs out")
    parser.add_argument("--tensorrt", action="store_true", help="TensorRT too, whose engine takes minutes to build")
    parser.add_argument("--commit", help="what is measured, where there is no git to say so")
    arguments = parser.parse_args()
    for option, smallest in {"images": 2, "compared": 1, "loop": 20, "batch": 0}.items():
        if getattr(arguments, option) < smallest:
            parser.error(f"--{option} is {getattr(arguments, option)}; expected at least {smallest}")
    if not arguments.output.parent.is_dir():
        parser.error(f"--output: there is no folder {arguments.output.parent}")
    try:
        hardware = Cuda()
    except engine.EngineError as err:
        print(f"python -m benchmarks.gpu: {err}", file=sys.stderr)
        sys.exit(2)
    options = Options(**{name: getattr(arguments, name) for name in Options.__slots__})
    facts = machine(PACKAGES) | hardware.facts()
    report: dict[str, Any] = {"machine": facts, "options": {"images": arguments.images, **_as_dict(options)}}
    if arguments.commit:
        report["machine"]["commit"] = arguments.commit
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subject = in_own_process(make, MODEL, Path(folder))
        print(f"{MODEL} exported ({time.perf_counter() - began:.0f} s)", flush=True)
        network = subject.module(), subjects.RANDOM[MODEL]
        images = [image[None] for image in photo_like(arguments.images, SIZE, _SEED + 3)]
        bench = Bench(subject.bundle, *network, images, subject.target, hardware, options, began)
        sys.exit(run(bench, report, lambda: write_report(report, table(report), arguments.output)))


def run(bench: "Bench", report: dict[str, Any], write: Callable[[], None]) -> bool:
    """Do all parts in their order, and write after each step of one; return whether something failed."""
    report["failures"] = bench.failures
    parts = {
        "engines": bench.open_engines,
        "checks": bench.check,
        "kernels": bench.time_kernels,
        "turns": bench.take_turns,
        "rates": bench.rates,
    }
    for name, part in parts.items():
        began = time.perf_counter()
        with bench.failing(name):
            for report[name] in part():
                write()
        outcome = "failed" if name in bench.failures else "done"
        print(f"{name}: {outcome} ({time.perf_counter() - began:.0f} s)", flush=True)
        write()
    return bool(bench.failures) or any(not check["met"] for check in report.get("checks", []))


class Bench:
    """What is measured. Every part yields what it has found so far, again and again: a crash loses the last step only.

    Args:
        bundle: The bundle.
        module: The same network in torch, on the CPU.
        layers: The names of its feature layers.
        images: Network inputs float32 [1, C, H, W].
        target: The class to explain.
        hardware: The GPU.
        options: How much is measured.
        began: When, on the clock of `time.perf_counter`.

    Attributes:
        failures: What failed, with its error.
    """

    def __init__(
        self,
        bundle: Path,
        module: nn.Module,
        layers: Sequence[str],
        images: Sequence[Floats],
        target: int,
        hardware: Hardware,
        options: Options,
        began: float,
    ) -> None:
        self.failures: dict[str, str] = {}
        self._bundle, self._module, self._layers = load_bundle(bundle), module, layers
        self._images, self._target = images, target
        self._hardware, self._options = hardware, options
        self._ends = began + options.seconds - _LAST_PART_S
        self._engines: dict[str, Explainer] = {}
        self._batches: dict[str, int] = {}

    @contextmanager
    def failing(self, name: str) -> Iterator[None]:
        """Note the error of a `with` block under this name, and go on."""
        try:
            yield
        except Exception as err:  # of torch, CuPy, ONNX Runtime or the engine: it is a result
            self.failures[name] = " ".join(f"{type(err).__name__}: {err}".split())[:400]
            print(f"  {name}: failed with {self.failures[name]}", flush=True)

    def open_engines(self) -> Iterator[dict[str, Any]]:
        """Open the engine in every precision, with and without CUDA graphs; the batch sizes that were taken."""
        for precision in PRECISIONS:
            for cuda_graph in (True, False) if self._options.cuda_graph else (False,):
                name = way_name(precision, cuda_graph=cuda_graph)
                with self.failing(name):
                    self._open(name, self._hardware.backend(cuda_graph=cuda_graph), precision)
                yield {"batch_sizes": dict(self._batches)}
        if self._options.tensorrt:
            name = "engine float16, TensorRT"
            with self.failing(name):
                self._open(name, self._hardware.tensorrt(), "float16")
            yield {"batch_sizes": dict(self._batches)}

    def _open(self, name: str, backend: Backend, precision: str) -> None:
        """Open the engine, and let it explain twice: then it has captured its runs."""
        began = time.perf_counter()
        size = self._options.batch or self._batches.get(precision, 0)
        if not size:
            assert backend.gpu is not None
            usual = Setup.of(backend.threads, USUAL_BATCH_SIZE)
            rate = BatchStopwatch(self._bundle, backend.gpu, precision)
            size = sweep(usual, ("threads", "lanes", "spinning"), False, rate, BATCH_SIZES).batch_size
        explainer = Explainer(self._bundle, backend, precision, size)
        for image in (self._images[0], self._images[-1]):
            explainer.explain(image, self._target, rule=RULE)
        self._batches[precision] = size
        self._engines[name] = explainer
        print(f"  {name}: batches of {size} ({time.perf_counter() - began:.0f} s)", flush=True)

    def check(self) -> Iterator[list[dict[str, Any]]]:
        """Compare kernels and heatmaps with those of the CPU, runs with each other, and the memory before and after."""
        checks: list[dict[str, Any]] = []
        gpu = self._gpu()
        with self.failing("kernels beside their twins"):
            figures = gpu_kernels.compare(gpu.memory, gpu_kernels.tap(self._bundle, gpu, self._images[0]))
            for name, (found, allowed) in figures.items():
                checks.append(check(f"kernels beside their NumPy twins: {name}", found, allowed))
        yield checks
        images = self._images[: self._options.compared]
        with engine.load(self._bundle.path, tune=False) as cpu:
            expected = [cpu.explain(x, self._target, rule=RULE, visualization_maps=True) for x in images]
        for name, explainer in self._engines.items():
            with self.failing(f"check of {name}"):
                found = [explainer.explain(x, self._target, rule=RULE, visualization_maps=True) for x in images]
                pairs = zip(found, expected, strict=True)
                checks += agreement(name, explainer.precision, [differences(*pair) for pair in pairs])
                again = [explainer.explain(x, self._target, rule=RULE) for x in images]
                others = sum(a.heatmap.tobytes() != b.heatmap.tobytes() for a, b in zip(again, found, strict=True))
                checks.append(check(f"{name}, run twice: heatmaps that differ", others, 0))
            yield checks
        with self.failing("check of torch"):
            network = self._torch()
            ranks = [
                spearman(self._rival(network, x, 8).heatmap.numpy(), e.heatmap)
                for x, e in zip(images, expected, strict=True)
            ]
            checks.append(check(f"{TORCH} beside the CPU path: 1 − Spearman's ρ", 1 - min(ranks), 1 - SPEARMAN))
        with self.failing("check of memory"):
            checks.append(check(f"MB that {self._options.loop} explanations add", self._growth(), _GROWTH_MB))
        yield checks

    def _growth(self) -> float:
        """How much more memory is taken than after the first ten explanations, in MB."""
        name = way_name("float16", cuda_graph=True)
        explainer = self._engines[name] if name in self._engines else list(self._engines.values())[-1]
        used, images = [], cycle(self._images)
        for number in range(1, 1 + self._options.loop):
            explainer.explain(next(images), self._target, rule=RULE)
            if number % 10 == 0:
                used.append(self._hardware.used_mb())
        return max(used[1:]) - used[0]

    def time_kernels(self) -> Iterator[dict[str, Any]]:
        """Time every kernel, and a copy within the device."""
        found: dict[str, Any] = {"copy_gb_per_s": self._hardware.copy_gb_per_s()}
        gpu = self._gpu()
        taps = gpu_kernels.tap(self._bundle, gpu, self._images[0])
        for precision in ("float32", "float16"):
            batch = self._batches.get(precision, USUAL_BATCH_SIZE)
            bounds = {"repeats": _REPEATS, "ballast_bytes": self._hardware.ballast_bytes}
            found[precision] = gpu_kernels.time_kernels(gpu.memory, taps, precision, batch, **bounds)
            yield found

    def take_turns(self) -> Iterator[dict[str, Any]]:
        """Explain every image in every way."""
        ways: dict[str, Way] = {name: self._engine_way(own) for name, own in self._engines.items()}
        batch = 0
        with self.failing(TORCH):
            network = self._torch()
            batch = self._fastest_batch(network)
            ways[TORCH] = self._torch_way(network, batch, network)
            with self.failing(COMPILED):
                forward = network.compiled(torch.from_numpy(self._images[0]))
                way = self._torch_way(network, batch, forward)
                for _ in range(2):  # it compiles now
                    way()
                ways[COMPILED] = way
        print(f"  {len(ways)} ways take turns; torch in batches of {batch}", flush=True)
        rounds: list[dict[str, dict[str, float]]] = []
        safe = {name: self._safely(name, way) for name, way in ways.items()}
        while len(rounds) < len(self._images) and (not rounds or time.perf_counter() < self._ends):
            rounds += alternate(safe, 2, settle_s=0.0)
            if len(rounds) % 10 == 0:
                print(f"  {len(rounds)} images", flush=True)
            yield {"torch_batch_size": batch, "ways": summarise(rounds), "ratios": ratios(rounds), "rounds": rounds}

    def rates(self) -> Iterator[dict[str, Any]]:
        """The GPU's rate for matrices, and that of the scorer alone."""
        found: dict[str, Any] = {
            "gemm_tflops": self._hardware.gemm_tflops(),
            "flops": flops(self._module, self._images[0]),
        }
        batch, found["scorer_images_per_s"] = self._batches.get("float16", USUAL_BATCH_SIZE), {}
        for name, options in VARIANTS.items():
            with self.failing(f"scorer alone, {name}"):
                rate = BatchStopwatch(self._bundle, self._hardware.gpu_with(options), "float16")
                setup = Setup(threads=1, lanes=1, spinning=False, batch_size=batch)
                images_per_s = rate(setup)
                if not images_per_s:
                    raise RuntimeError(f"batches of {batch} were not measured: too little time or memory")
                found["scorer_images_per_s"][name] = images_per_s
            yield found

    def _gpu(self) -> Any:
        gpu = self._hardware.backend(cuda_graph=False).gpu
        assert gpu is not None
        return gpu

    def _engine_way(self, explainer: Explainer) -> Way:
        images = cycle(self._images)

        def way() -> dict[str, float]:
            began = time.perf_counter()
            result = explainer.explain(next(images), self._target, rule=RULE)
            total = (time.perf_counter() - began) * 1e3  # `timings_ms` ends before the result is put together
            return {**result.timings_ms, "total": total, "masks": result.scored}

        return way

    def _torch(self) -> torch_eager.HookedModule:
        module = self._module.to(self._hardware.torch_device)
        return torch_eager.HookedModule(module, self._layers, torch.float16)

    def _rival(
        self, network: torch_eager.HookedModule, x: Floats, batch: int, forward: Any = None
    ) -> torch_eager.TorchExplanation:
        image = torch.from_numpy(x).to(self._hardware.torch_device)
        named = {"activation": self._bundle.activation, "rule": RULE, "batch": batch, "forward": forward}
        return torch_eager.explain(network, image, self._target, **named)

    def _torch_way(self, network: torch_eager.HookedModule, batch: int, forward: Any) -> Way:
        """Torch in full batches: for another size cuDNN would look for the fastest algorithms again."""
        images = cycle(self._images)

        def way() -> dict[str, float]:
            began = time.perf_counter()
            found = self._rival(network, next(images), batch, forward)
            total = (time.perf_counter() - began) * 1e3
            return {"total": total, "score": found.score_s * 1e3, "masks": found.masks}

        return way

    def _fastest_batch(self, network: torch_eager.HookedModule) -> int:
        """The batch size with which torch explains an image fastest, of those that are allowed."""
        took = {}
        for batch in [self._options.batch] if self._options.batch else TORCH_BATCH_SIZES:
            way = self._torch_way(network, batch, network)
            took[batch] = min(way()["total"] for _ in range(3))  # the first looks for algorithms
        return min(took, key=took.__getitem__)

    def _safely(self, name: str, way: Way) -> Way:
        def run() -> dict[str, float]:
            with self.failing(name):
                return way()
            return {}

        return run


def _as_dict(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in Options.__slots__}


if __name__ == "__main__":
    main()
