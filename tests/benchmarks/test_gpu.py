"""The GPU benchmark on an emulated GPU: all its parts, and what it makes of what fails."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import engine
from benchmarks import gpu, gpu_kernels
from benchmarks.gpu_figures import agreement, differences, flops, ratios, summarise
from benchmarks.gpu_hardware import Cuda
from benchmarks.gpu_table import COMPILED, MASKS, TORCH, goals, table, way_name
from benchmarks.torch_eager import HookedModule
from engine.backends import onnxruntime_cuda
from engine.backends.half import to_float16
from engine.backends.onnxruntime_cpu import session_options
from engine.bundle import load_bundle
from engine.errors import MissingRuntimeError
from engine.image import prepare
from tests.benchmarks.test_torch_eager import as_module
from tests.emulator import EmulatedBackend, EmulatedDevice, EmulatedGpu, EmulatedGraph
from tests.tiny_cnn import photo_pixels

needs_gxx = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to run CUDA kernels without a GPU")
GRAPH, PLAIN = (way_name("float16", cuda_graph=cuda_graph) for cuda_graph in (True, False))
PRECISIONS = ("float32", "float16")  # an emulated GPU has no TF32
ENGINES = [way_name(precision, cuda_graph=own) for precision in PRECISIONS for own in (True, False)]


class HalfGpu(EmulatedGpu):
    """An emulated GPU that scores in float16 too."""

    def open(self, graph: Path, *, precision: str = "float32", many_runs: bool = False) -> EmulatedGraph:
        if precision != "float16":
            return super().open(graph, many_runs=many_runs)
        session = ort.InferenceSession(to_float16(graph, images=True), session_options(threads=2))
        return EmulatedGraph(self, graph.name, session)

    def element(self, precision: str) -> type[np.generic]:
        return np.float16 if precision == "float16" else np.float32


class HalfBackend(EmulatedBackend):
    precisions = PRECISIONS

    def __init__(self) -> None:
        super().__init__()
        self.gpu = HalfGpu()


class EmulatedHardware:
    """What the benchmark asks of a GPU, with figures that are easy to recognise."""

    torch_device = "cpu"
    ballast_bytes = 64

    def __init__(self, *, graphs_fail: bool = False) -> None:
        self.graphs_fail = graphs_fail
        self.used = iter(range(1000))

    def facts(self) -> dict[str, str]:
        return {"GPU": "emulated"}

    def backend(self, *, cuda_graph: bool) -> EmulatedBackend:
        if cuda_graph and self.graphs_fail:
            raise engine.BackendError("cannot capture this")
        return HalfBackend()

    def tensorrt(self) -> EmulatedBackend:
        raise engine.MissingRuntimeError("no libnvinfer.so.10")

    def gpu_with(self, options: Mapping[str, str]) -> EmulatedGpu:
        if "prefer_nhwc" in options:
            raise engine.BackendError("no such option")
        return HalfGpu()

    def used_mb(self) -> float:
        return 100.0 * (next(self.used) == 1)

    def copy_gb_per_s(self) -> float:
        return 4000.0

    def gemm_tflops(self) -> float:
        return 700.0


@pytest.fixture(autouse=True)
def _precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", PRECISIONS)


@pytest.fixture(scope="module")
def images(tiny_bundle: Path) -> list[np.ndarray]:
    bundle = load_bundle(tiny_bundle)
    photos = (photo_pixels(40 + 20 * number, 90) for number in range(3))
    return [prepare(photo, bundle.preprocess, bundle.image_shape).array for photo in photos]


def run(
    tiny_bundle: Path, images: list[np.ndarray], hardware: EmulatedHardware, **options: Any
) -> tuple[dict[str, Any], bool, list[set[str]]]:
    """Run all parts; return the report, whether something failed, and what was there at each writing."""
    chosen = gpu.Options(
        **{"compared": 2, "loop": 20, "batch": 4, "seconds": 3600.0, "cuda_graph": True, "tensorrt": False, **options}
    )
    report: dict[str, Any] = {"machine": hardware.facts(), "options": {"images": len(images)}}
    written: list[set[str]] = []
    bench = gpu.Bench(tiny_bundle, as_module(), ("1", "4", "7"), images, 2, hardware, chosen, 1e9)
    failed = gpu.run(bench, report, lambda: written.append(set(report)))
    return report, failed, written


@needs_gxx
def test_all_parts(
    tiny_bundle: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: list[tuple[int, ...]] = []

    def compiled(network: HookedModule, _: torch.Tensor) -> Any:
        def forward(batch: torch.Tensor) -> torch.Tensor:
            sizes.append((*batch.shape, batch.dtype.itemsize))
            return network(batch)

        return forward

    monkeypatch.setattr(HookedModule, "compiled", compiled)
    report, failed, written = run(tiny_bundle, images, EmulatedHardware())
    assert set(sizes) == {(4, 3, 24, 32, 2)}  # full batches of float16
    assert len(sizes) >= 2 + 4
    assert list(report["failures"]) == ["scorer alone, prefer_nhwc", "scorer alone, prefer_nhwc, exhaustive search"]
    assert failed
    steps = [len(there) for there in written]
    assert [steps.count(parts) for parts in (4, 5, 6, 7, 8)] == [4 + 1, 1 + 4 + 1 + 1, 2 + 1, 2 + 1, 4 + 1]
    assert steps == sorted(steps)
    assert report["engines"] == {"batch_sizes": dict.fromkeys(PRECISIONS, 4)}
    unmet = {check["what"]: check["found"] for check in report["checks"] if not check["met"]}
    assert unmet == {"MB that 20 explanations add": 100.0}
    assert sum(check["what"].startswith("kernels beside") for check in report["checks"]) == 8
    assert sum("run twice" in check["what"] for check in report["checks"]) == len(ENGINES)

    turns = report["turns"]
    assert list(turns["ways"]) == [*ENGINES, TORCH, COMPILED]
    assert [len(each) for each in turns["rounds"]] == [6] * 4  # every other one backwards, so an even number
    masks = [{name: own["masks"] for name, own in each.items()} for each in turns["rounds"]]
    assert all(set(each.values()) == {each[PLAIN]} for each in masks)
    assert masks[0] == masks[3]  # the first image again
    assert {"tap", "select", "score", "combine", "fuse", "total"} < set(turns["ways"][GRAPH]["medians"])
    assert set(turns["ratios"]) == {TORCH, COMPILED}
    assert list(turns["ratios"][TORCH]) == ENGINES
    assert list(report["rates"]["scorer_images_per_s"]) == ["as the engine", "exhaustive search"]
    assert report["rates"]["gemm_tflops"] == 700.0
    for precision in ("float32", "float16"):
        assert all(own["ms"] > 0 for own in report["kernels"][precision]["kernels"].values())
    assert "turns: done" in capsys.readouterr().out
    text = table(report)
    for name in (*ENGINES, TORCH, COMPILED):
        assert re.search(rf"^\| {re.escape(name)} \| 4 \| ", text, re.MULTILINE)


@needs_gxx
def test_what_fails_is_reported_and_the_rest_goes_on(
    tiny_bundle: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: object) -> None:
        raise RuntimeError("no compiler\nhere")

    def compare(*_: object, **__: object) -> None:
        raise ValueError("unequal")

    monkeypatch.setattr(HookedModule, "compiled", compiled)
    monkeypatch.setattr(gpu_kernels, "compare", compare)
    monkeypatch.setattr(gpu_kernels, "time_kernels", compare)
    report, failed, _ = run(tiny_bundle, images[:2], EmulatedHardware(graphs_fail=True), tensorrt=True)
    assert failed
    captures = {name: "BackendError: cannot capture this" for name in ENGINES if "graph" in name}
    assert report["failures"].items() >= captures.items()
    assert report["failures"]["engine float16, TensorRT"] == "MissingRuntimeError: no libnvinfer.so.10"
    assert report["failures"]["kernels beside their twins"] == "ValueError: unequal"
    assert report["failures"]["kernels"] == "ValueError: unequal"
    assert report["failures"][COMPILED] == "RuntimeError: no compiler here"
    assert "kernels" not in report  # the first step failed
    assert list(report["turns"]["ways"]) == [*(name for name in ENGINES if "graph" not in name), TORCH]
    text = table(report)
    assert "* torch.compile float16: RuntimeError: no compiler here\n" in text
    assert f"({PLAIN})" in text  # the goals are of the way that there is
    assert "a copy's bytes a second | not measured | – |" in text


@needs_gxx
def test_a_way_that_fails_later(tiny_bundle: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HookedModule, "compiled", lambda network, _: network)
    explain, calls = gpu.Bench._rival, iter(range(1000))

    def rival(*arguments: Any) -> Any:
        if len(arguments) == 5 and next(calls) == 6:  # each was run before, three times and twice
            raise RuntimeError("late")
        return explain(*arguments)

    monkeypatch.setattr(gpu.Bench, "_rival", rival)
    report, _, _ = run(tiny_bundle, images[:2], EmulatedHardware())
    late = report["failures"].keys() & {TORCH, COMPILED}
    assert len(late) == 1
    assert {name: own["images"] for name, own in report["turns"]["ways"].items()}[late.pop()] == 1


@needs_gxx
def test_a_kernel_that_is_wrong(tiny_bundle: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    taps = gpu_kernels.tap(load_bundle(tiny_bundle), EmulatedGpu(), images[0])
    right = gpu_kernels.compare(EmulatedDevice(), taps)
    assert all(found <= allowed for found, allowed in right.values())
    launch = EmulatedDevice.launch

    def broken(kernel: str, place: int) -> Any:
        def launch_it(device: Any, file: Path, name: str, grid: Any, block: Any, arguments: Any, *more: Any) -> None:
            launch(device, file, name, grid, block, arguments, *more)
            if name == kernel:
                array = arguments[place].reshape(-1)
                array[0] = 1 - array[0]

        return launch_it

    wrong = {
        "find_flat": (2, ["find_flat: maps"]),
        "list_masks": (3, ["choose, list_masks: masks"]),
        "write_masks": (0, [f"find_ranges, write_masks in {own}: pixels" for own in ("float32", "float16")]),
        "activate": (5, ["activate: largest difference"]),
        "sum_maps": (5, ["weigh, sum_maps, make_views: largest difference"]),
        "fuse": (6, ["fuse: largest difference"]),
    }
    for kernel, (place, names) in wrong.items():
        monkeypatch.setattr(EmulatedDevice, "launch", broken(kernel, place))
        found = gpu_kernels.compare(EmulatedDevice(), taps)
        unmet = [name for name, (figure, allowed) in found.items() if not figure <= allowed]
        assert set(names) <= set(unmet), kernel


def test_bytes_of_kernels() -> None:
    """Two layers, of 2 maps of 3×4 and of 1 map of 2×2; masks of the first map of both; an image of 3×5×6."""
    found = gpu_kernels.kernel_bytes([(2, 3, 4), (1, 2, 2)], np.array([[0, 0], [1, 0]]), (3, 5, 6), 2, (2, 10))
    assert found == {
        "find_flat": 4 * (24 + 4) + 3,
        "choose": 4 * 3,
        "list_masks": 2 * 16,
        "find_ranges": 4 * (12 + 4),
        "write_masks": 2 * 90 * 2,
        "activate": 80,
        "weigh": 2 * 48,
        "sum_maps": 4 * (12 + 4),
        "make_views": 2 * 30 * 8,
        "fuse": 2 * 30 * 8 + 30 * 4,
    }


class SlowDevice:
    """A device on which a launch takes 3 ms, and the clearing of memory 1000 ms."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, list[str]()

    def empty(self, shape: tuple[int, ...], _: object) -> np.ndarray:
        return np.empty(shape)

    def clear(self, array: np.ndarray) -> None:
        self.now += 1000.0
        self.done.append(f"clear {array.size}")

    def launch(self, _: Path, kernel: str) -> None:
        self.now += 3.0
        self.done.append(kernel)

    def mark(self) -> Any:
        class Mark:
            def __init__(self, now: float) -> None:
                self.now, self.waited = now, False

            def wait(self) -> None:
                self.waited = True

            def ms_since(self, other: "Mark") -> float:
                assert self.waited
                assert other.waited
                return self.now - other.now

        return Mark(self.now)


def test_a_launch_is_timed_while_the_device_is_busy() -> None:
    device = SlowDevice()
    timer = gpu_kernels.LaunchTimer(device, 5, 7)
    timer.launch(Path("a.cu"), "a")
    assert device.done == ["a", "clear 7", *["a"] * 5]
    assert timer.times_ms == {"a": [3.0]}
    assert timer.now == device.now  # all else is the device's


def test_flops_of_the_tiny_network() -> None:
    """3×3 convolutions 3 → 8 at 24×32, 8 → 12 at 12×16, 12 → 16 at 6×8; a matrix 16 → 5."""
    expected = 2 * (9 * 3 * 8 * 768 + 9 * 8 * 12 * 192 + 9 * 12 * 16 * 48 + 16 * 5)
    assert flops(as_module(), np.zeros((1, 3, 24, 32), np.float32)) == expected


def test_percentiles_and_ratios() -> None:
    """Of 100 images, whose n-th takes the engine n ms for n masks, and torch 4·n; in one the engine failed."""
    rounds: list[dict[str, dict[str, float]]] = [
        {PLAIN: {"total": n, "score": n / 2, "masks": n}, TORCH: {"total": 4 * n, "score": n, "masks": n}}
        for n in map(float, range(1, 102))
    ]
    rounds[-1][PLAIN] = {}
    own = summarise(rounds)[PLAIN]
    assert own["images"] == 100
    assert [own[key] for key in ("p50", "p95", "p99")] == pytest.approx([50.5, 95.05, 99.01])
    assert own["noise"] == 0.0
    assert own["medians"] == {"total": 50.5, "score": 25.25, "masks": 50.5}
    assert (own["masks_least"], own["masks_most"]) == (1, 100)
    assert ratios(rounds) == {TORCH: {PLAIN: {"median": 4.0, "low": 4.0, "high": 4.0}}}
    rounds[0][PLAIN]["total"] = 2.0
    assert 0 < summarise(rounds[:4])[PLAIN]["noise"] < 1
    assert summarise([{PLAIN: {}}]) == {}


def test_differences_of_explanations(tiny_bundle: Path, images: list[np.ndarray]) -> None:
    with engine.load(tiny_bundle, threads=1) as explainer:
        few, same, many = (
            explainer.explain(images[0], 2, rule=rule, visualization_maps=True) for rule in ("otsu", "otsu", "positive")
        )
    zeros = dict.fromkeys(("other_masks", "scores", "views", "heatmap_mean", "apart"), 0.0)
    assert differences(same, few) == zeros
    found = differences(few, many)
    selected = [sum(layer.selected for layer in own.layers) for own in (few, many)]
    assert found["other_masks"] == pytest.approx(1 - selected[0] / selected[1])
    assert found["scores"] == 0.0
    assert found["apart"] > 0
    few.layers[1].scores[0] += 0.25
    assert few.visualization_maps is not None
    few.visualization_maps[2][0, 0] += 0.125
    few.heatmap[0, 0] += 0.5
    found = differences(few, same)
    assert (found["scores"], found["views"]) == pytest.approx((0.25, 0.125))
    assert found["heatmap_mean"] == pytest.approx(0.5 / few.heatmap.size)


def test_judgement_of_precisions() -> None:
    """Float32 is held to all bounds, the others to the order of the pixels."""
    found = {"other_masks": 0.02, "scores": 2e-4, "views": 6e-4, "heatmap_mean": 2e-4, "apart": 0.004}
    checks = agreement("way", "float16", [found])
    assert [(check["what"], check["met"]) for check in checks] == [("way beside the CPU path: 1 − Spearman's ρ", True)]
    assert not agreement("way", "tf32", [found, {**found, "apart": 0.006}])[0]["met"]
    assert [check["met"] for check in agreement("way", "float32", [found])] == [True, False, False, False, False]


def handmade() -> dict[str, Any]:
    """A report whose figures can be reckoned in the head."""

    def way(p50: float) -> dict[str, Any]:
        medians = {"tap": 4.0, "score": p50 / 2, "total": p50, "masks": 645.0}
        return {"images": 50, "p50": p50, "p95": p50 + 1, "p99": p50 + 2, "noise": 0.015, "medians": medians} | {
            "masks_least": 600,
            "masks_most": 700,
        }

    kernels = {
        "find_ranges": {"ms": 0.01, "bytes": 10**7, "gb_per_s": 1000.0},
        "write_masks": {"ms": 0.03, "bytes": 10**8, "gb_per_s": 3333.3},
    }
    return {
        "machine": {"GPU": "H200", "cores": 16},
        "options": {"images": 50, "batch": 0},
        "failures": {},
        "checks": [{"what": "heatmaps that differ", "found": 0.0, "allowed": 1e-4, "met": True}],
        "kernels": {"copy_gb_per_s": 4000.0, "float16": {"masks": 645, "batch_size": 128, "kernels": kernels}},
        "turns": {
            "torch_batch_size": 256,
            "ways": {GRAPH: way(40.0), PLAIN: way(60.0), TORCH: way(100.0)},
            "ratios": {TORCH: {GRAPH: {"median": 2.5, "low": 2.25, "high": 3.5}}},
            "rounds": [],
        },
        "rates": {"gemm_tflops": 800.0, "flops": 8 * 10**9, "scorer_images_per_s": {"prefer_nhwc": 50_000.0}},
    }


def test_table() -> None:
    text = table(handmade())
    lines = [
        "Measured with GPU H200, cores 16; images 50, batch 0.",
        "| float16, 1290 masks: p50 under 100 ms | 40.0 ms for 645 masks (engine float16, CUDA graph), which is 80.0 "
        "ms for 1290, if all of it grows with them | yes |",
        "| float16: at least 3 times torch eager float16 | 2.50 (2.25 … 3.50) | no |",
        "| float16 scorer: at least 30% of the GPU's rate for float16 matrices | 32.2% over the phase `score` | yes |",
        "| mask preparation, float16: at least 60% of a copy's bytes a second | 62.5%, `find_ranges` and `write_masks` "
        "together | yes |",
        "| mask preparation: at most 5% of the time end to end | 0.1% | yes |",
        "| heatmaps that differ | 0 | 0.0001 | yes |",
        "| engine float16 | 50 | 645 (600 … 700) | 60.0 | 61.0 | 62.0 | 1.5% |",
        "| engine | of torch eager float16, batches of 256 |",
        "| engine float16, CUDA graph | 2.50 (2.25 … 3.50) |",
        "| engine float16 | – |",
        "| engine float16, CUDA graph | 4.00 | 20.00 | 40.00 |",
        "| scorer alone, prefer_nhwc | 400 | 50.0% |",
        "| torch eager float16, phase `score` | 103 | 12.9% |",
        "float16, 645 masks, batches of 128:",
        "| write_masks | 30.0 | 100.00 | 3333 | 83.3% |",
    ]
    assert [line for line in lines if line not in text.splitlines()] == []
    assert "Failed" not in text


def test_goals_that_are_missed() -> None:
    report = handmade()
    report["turns"]["ways"][GRAPH]["p50"] = 50.5  # 101 for as many masks
    report["turns"]["ways"][GRAPH]["medians"]["score"] = 25.0
    report["turns"]["ratios"][TORCH][GRAPH]["median"] = 3.0
    for own in report["kernels"]["float16"]["kernels"].values():
        own["ms"] *= 100.0
    assert [met for _, met in goals(report).values()] == [False, True, False, False, False]
    report["turns"]["ways"][GRAPH]["medians"]["masks"] = 2.0 * MASKS  # more: nothing is scaled
    assert next(iter(goals(report).values())) == (f"50.5 ms for {2 * MASKS} masks ({GRAPH})", True)


def test_goals_that_were_not_measured() -> None:
    report = {key: value for key, value in handmade().items() if key in ("machine", "options", "failures")}
    assert {*goals(report).values()} == {("not measured", None)}
    assert table(report).count("| not measured | – |") == 5
    report["turns"] = handmade()["turns"]
    del report["turns"]["ways"][GRAPH]
    assert [met for _, met in goals(report).values()] == [False, None, None, None, None]  # 60 ms, twice the masks


def test_without_a_gpu_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise MissingRuntimeError("there is no GPU here")

    monkeypatch.setattr("engine.backends.onnxruntime_cuda.expect_cuda", missing)
    monkeypatch.setattr("sys.argv", ["gpu", "-o", str(tmp_path / "gpu.md")])
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "python -m benchmarks.gpu: there is no GPU here\n"
    assert not list(tmp_path.iterdir())


def test_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.backends.onnxruntime_cuda.expect_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(engine.BackendError, match=r"^torch .* finds no GPU; expected a build for CUDA$"):
        Cuda()


def test_other_options_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are added for the sessions of that GPU, and for no others."""
    monkeypatch.setattr(onnxruntime_cuda.CudaGpu, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(onnxruntime_cuda.CudaGpu, "session", lambda *_: onnxruntime_cuda.cuda_options(7, tf32=True))
    usual = onnxruntime_cuda.CudaGpu(cuda_graph=False).session()
    found = Cuda.gpu_with(Cuda.__new__(Cuda), {"prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"}).session()
    assert found == usual | {"prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    assert onnxruntime_cuda.CudaGpu(cuda_graph=False).session() == usual


def test_rates_of_copies_and_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that takes 0.5 ms for whatever is asked of it."""

    class Event:
        def __init__(self, **_: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = asked * 0.5

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    asked = 0

    def ask(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "matmul", ask)
    for name in ("zeros", "randn", "empty_like"):
        monkeypatch.setattr(torch, name, lambda *_, **__: SimpleNamespace(copy_=ask))
    cuda = Cuda.__new__(Cuda)
    assert cuda.copy_gb_per_s() == pytest.approx(2 * 2**30 / 0.5e-3 / 1e9)
    assert cuda.gemm_tflops() == pytest.approx(2 * 8192**3 / 0.5e-3 / 1e12)


@pytest.mark.parametrize(
    ("argument", "says"),
    [(["--images", "1"], "--images is 1; expected at least 2"), ([], "--output: there is no folder ")],
)
def test_arguments(
    argument: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / ("gpu.md" if argument else "missing/gpu.md")
    monkeypatch.setattr("sys.argv", ["gpu", "-o", str(output), *argument])
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


@needs_gxx
def test_without_cuda_graphs_and_without_time(tiny_bundle: Path, images: list[np.ndarray]) -> None:
    chosen = gpu.Options(compared=1, loop=20, batch=4, seconds=0.0, cuda_graph=False, tensorrt=False)
    bench = gpu.Bench(tiny_bundle, as_module(), ("1", "4", "7"), images, 2, EmulatedHardware(), chosen, 0.0)
    assert [found["batch_sizes"] for found in bench.open_engines()] == [{"float32": 4}, {"float32": 4, "float16": 4}]
    turns = list(bench.take_turns())
    assert len(turns) == 1  # not one for two of the three images
    assert list(turns[0]["ways"])[:2] == [name for name in ENGINES if "graph" not in name]
    assert not set(bench.failures) - {COMPILED}
