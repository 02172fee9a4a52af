"""Ada-SISE in device memory against the CPU path, on an emulated GPU."""

import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

import engine
from engine.backends import OnnxRuntimeCpu
from engine.bundle import load_bundle
from engine.errors import DeviceMemoryError
from engine.explainer import Explainer
from engine.kernels.select import RULES
from tests.emulator import EmulatedBackend, EmulatedDevice, EmulatedGraph
from tests.models import PHOTOS, VOC, exported
from tests.reference import agreement
from tests.tiny_cnn import photo_pixels

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to run CUDA kernels without a GPU")


@pytest.fixture
def cpu(tiny_bundle: Path) -> Iterator[Explainer]:
    with Explainer(load_bundle(tiny_bundle), OnnxRuntimeCpu(threads=2)) as explainer:
        yield explainer


@pytest.fixture
def gpu(tiny_bundle: Path) -> Iterator[Explainer]:
    with Explainer(load_bundle(tiny_bundle), EmulatedBackend(), batch_size=4) as explainer:
        yield explainer


def check(found: engine.Explanation, expected: engine.Explanation) -> None:
    """As in design.md "Agreement"; scores and maps differ only by the order of sums here."""
    for own, other in zip(found.layers, expected.layers, strict=True):
        counts = [(layer.positive, layer.selected, layer.flat, layer.scored) for layer in (own, other)]
        assert counts[0] == counts[1]
        np.testing.assert_array_equal(own.selected_channels, other.selected_channels)
        np.testing.assert_allclose(own.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(own.estimated_scores, other.estimated_scores, atol=1e-5)
        assert own.threshold == pytest.approx(other.threshold, rel=1e-5)
    views, cuts = expected.visualization_maps, [layer.fusion_threshold for layer in expected.layers]
    assert views is not None
    assert found.visualization_maps is not None
    for view, other in zip(found.visualization_maps, views, strict=True):
        assert (view is None) == (other is None)
        if view is not None:
            np.testing.assert_allclose(view, other, atol=1e-4)
    agreement.assert_heatmap(found.heatmap, expected.heatmap, list(views), cuts)
    assert (found.target, found.label, found.scored, found.scorable) == (
        expected.target,
        expected.label,
        expected.scored,
        expected.scorable,
    )
    assert found.class_score == pytest.approx(expected.class_score, abs=1e-6)
    assert found.complete == expected.complete
    assert found.warnings == expected.warnings
    assert found.evaluations == expected.evaluations
    assert set(found.figures) == set(expected.figures)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fusion", ["hard", "soft"])
@pytest.mark.parametrize("baseline", ["zero", "blur", (10, 200, 30)])
def test_every_option(rule: str, fusion: str, baseline: object, cpu: Explainer, gpu: Explainer) -> None:
    options = {"rule": rule, "fusion": fusion, "baseline": baseline, "visualization_maps": True}
    for target in (None, 0, 3):
        check(gpu.explain(photo_pixels(), target, **options), cpu.explain(photo_pixels(), target, **options))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_activations(activation: str, cpu: Explainer, gpu: Explainer) -> None:
    options = {"activation": activation, "visualization_maps": True}
    check(gpu.explain(photo_pixels(), 2, **options), cpu.explain(photo_pixels(), 2, **options))


@pytest.mark.parametrize("targets", [[1], [0, None, 4], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
@pytest.mark.parametrize("max_masks", [None, 1, 7])
def test_several_classes_and_budgets(
    targets: list[int | None], max_masks: int | None, cpu: Explainer, gpu: Explainer
) -> None:
    options = {"max_masks": max_masks, "visualization_maps": True}
    for found, expected in zip(*(own.explain(photo_pixels(), targets, **options) for own in (gpu, cpu)), strict=True):
        check(found, expected)
        if expected.figures:
            assert found.figures["settled"] == pytest.approx(expected.figures["settled"], abs=1e-3)


def test_other_methods_run_as_on_the_cpu(cpu: Explainer, gpu: Explainer) -> None:
    for method in ("grad-cam", "rise", "score-cam"):
        options = {"masks": 20} if method == "rise" else {}
        found, expected = (own.explain(photo_pixels(), 1, method=method, **options) for own in (gpu, cpu))
        np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)


def test_a_pretrained_network(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    explainer = exported(assets, "efficientnet-lite0-voc20", tmp_path_factory.getbasetemp()).explainer
    photo = assets / "images" / PHOTOS[VOC][0]
    with Explainer(explainer.bundle, EmulatedBackend(), batch_size=16) as gpu:
        check(gpu.explain(photo, visualization_maps=True), explainer.explain(photo, visualization_maps=True))


def test_a_precision_whose_images_are_float32(tiny_bundle: Path, cpu: Explainer) -> None:
    with Explainer(load_bundle(tiny_bundle), EmulatedBackend(), "tf32", batch_size=4) as gpu:
        found, expected = gpu.explain(photo_pixels(), 1), cpu.explain(photo_pixels(), 1)
    assert found.precision == "tf32"
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)


def test_a_scorer_with_images_of_another_type(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = EmulatedBackend()
    monkeypatch.setattr(backend.gpu, "element", lambda _: np.float16)
    with pytest.raises(engine.BundleError, match=r"forward\.onnx: .*float16"):
        Explainer(load_bundle(tiny_bundle), backend)


def test_same_bytes_from_run_to_run_and_for_every_batch_size(gpu: Explainer) -> None:
    first = gpu.explain(photo_pixels(), 1)
    for batch_size in (4, 1, 7, 100):
        again = gpu.explain(photo_pixels(), 1, batch_size=batch_size)
        np.testing.assert_allclose(again.heatmap, first.heatmap, atol=1e-6)
    again = gpu.explain(photo_pixels(), 1)
    assert again.heatmap.tobytes() == first.heatmap.tobytes()


def test_several_threads(gpu: Explainer) -> None:
    expected = [gpu.explain(photo_pixels(), target).heatmap.tobytes() for target in range(5)]
    found: list[bytes] = [b""] * 5

    def work(target: int) -> None:
        for _ in range(3):
            found[target] = gpu.explain(photo_pixels(), target).heatmap.tobytes()

    threads = [Thread(target=work, args=(target,)) for target in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_forked_process(gpu: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -5)
    with pytest.raises(engine.BackendError, match=r"emulated: was opened by process .* into process -5; load"):
        gpu.explain(photo_pixels(), 1)


def test_many_images(cpu: Explainer, gpu: Explainer) -> None:
    photos = [photo_pixels(40 + 3 * number, 50) for number in range(4)]
    for found, expected in zip(gpu.explain_many(photos), cpu.explain_many(photos), strict=True):
        np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)


@pytest.mark.parametrize("fits", [1, 3, 5])
@pytest.mark.parametrize("later", [False, True])
def test_out_of_memory_halves_the_batch(later: bool, fits: int, tiny_bundle: Path, cpu: Explainer) -> None:
    backend = EmulatedBackend(None if later else fits)
    with Explainer(load_bundle(tiny_bundle), backend, batch_size=16) as gpu:
        backend.gpu.fits = fits
        found, expected = gpu.explain(photo_pixels(), 1), cpu.explain(photo_pixels(), 1)
        np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-6)
        left = {1: 1, 3: 2, 5: 4}[fits]
        assert found.warnings == (f"out of device memory: batches of {left} were scored, not of 16",)
        assert f"forward.onnx of {left}" in backend.gpu.runs
        backend.gpu.fits = None
        assert gpu.explain(photo_pixels(), 1, batch_size=8).warnings == ()


def test_batches_of_few_sizes_are_kept(gpu: Explainer) -> None:
    """Each has its buffers, and what was captured or built for it."""
    expected = gpu.explain(photo_pixels(), 1).heatmap
    for batch_size in (1, 2, 3, 5, 2, 7):
        np.testing.assert_allclose(gpu.explain(photo_pixels(), 1, batch_size=batch_size).heatmap, expected, atol=1e-6)
    assert sorted(gpu._opened().resident._batches) == [2, 7]


def alive_batches(monkeypatch: pytest.MonkeyPatch, most: int = 1 << 20) -> list[list[int]]:
    """Note of how many images the batches are that are there whenever one more is allocated; they have some room."""
    own_empty, noted = EmulatedDevice.empty, list[list[int]]()
    batches: list[weakref.ref[np.ndarray]] = []

    def empty(self: EmulatedDevice, shape: tuple[int, ...], dtype: object) -> np.ndarray:
        if len(shape) != 4 or shape[0] == 1:
            return own_empty(self, shape, dtype)
        noted.append([len(array) for array in (own() for own in batches) if array is not None])
        if sum(noted[-1]) + shape[0] > most:
            raise DeviceMemoryError("out of memory")
        array = own_empty(self, shape, dtype)
        batches.append(weakref.ref(array))
        return array

    monkeypatch.setattr(EmulatedDevice, "empty", empty)
    return noted


@pytest.mark.parametrize("later", [False, True])
def test_a_batch_that_is_given_up_is_free(later: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next is allocated: the error that says that there is no memory keeps none of it."""
    kept = alive_batches(monkeypatch)
    backend = EmulatedBackend(None if later else 4)
    with Explainer(load_bundle(tiny_bundle), backend, batch_size=16) as gpu:
        backend.gpu.fits = 4
        gpu.explain(photo_pixels(), 1)
    assert kept == [[], [], []]


def test_idle_batches_are_given_up_before_a_batch_is_halved(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = alive_batches(monkeypatch, most=20)
    with Explainer(load_bundle(tiny_bundle), EmulatedBackend(), batch_size=4) as gpu:
        for size in (18, 4, 16, 4):
            assert gpu.explain(photo_pixels(), 1, batch_size=size).warnings == ()
        text = "out of device memory: batches of 15 were scored, not of 30"
        assert gpu.explain(photo_pixels(), 1, batch_size=30).warnings == (text,)
    assert kept == [[], [4], [], [18], [], [4], [4, 16], [], []]


@pytest.mark.parametrize("later", [False, True])
def test_no_memory_at_all(later: bool, tiny_bundle: Path) -> None:
    backend = EmulatedBackend(None if later else 0)
    text = "emulated: has no memory for one masked image"
    if not later:
        with pytest.raises(engine.BackendError, match=text):
            Explainer(load_bundle(tiny_bundle), backend, batch_size=2)
        return
    with Explainer(load_bundle(tiny_bundle), backend, batch_size=2) as gpu:
        backend.gpu.fits = 0
        with pytest.raises(engine.BackendError, match=text):
            gpu.explain(photo_pixels(), 1)
        backend.gpu.fits = None
        assert gpu.explain(photo_pixels(), 1).complete


def test_loading_leaves_nothing_to_the_first_image(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both graphs have run, and all kernels are compiled."""
    ready: set[object] = set()
    used: set[object] = set()
    launch = EmulatedDevice.launch

    def note(self: EmulatedDevice, file: Path, *arguments: Any) -> None:
        used.add((file, arguments[-1]))
        launch(self, file, *arguments)

    monkeypatch.setattr(EmulatedDevice, "compile", lambda _, file, definitions=(): ready.add((file, definitions)))
    monkeypatch.setattr(EmulatedDevice, "launch", note)
    backend = EmulatedBackend()
    with Explainer(load_bundle(tiny_bundle), backend, batch_size=4) as gpu:
        assert backend.gpu.runs == ["tapped.onnx of 1", "forward.onnx of 4"]
        gpu.explain(photo_pixels(), 1)
        gpu.explain(photo_pixels(), 1, baseline="blur")
    assert used == ready


def test_a_batch_that_could_not_be_bound_is_tried_again(
    tiny_bundle: Path, cpu: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise engine.BackendError("refused")

    backend = EmulatedBackend()
    with Explainer(load_bundle(tiny_bundle), backend, batch_size=4) as gpu:
        with monkeypatch.context() as patch:
            patch.setattr(EmulatedGraph, "bind", refuse)
            for _ in range(2):
                with pytest.raises(engine.BackendError, match="refused"):
                    gpu.explain(photo_pixels(), 1, batch_size=8)
        found, expected = gpu.explain(photo_pixels(), 1, batch_size=8), cpu.explain(photo_pixels(), 1)
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-6)
    assert "forward.onnx of 8" in backend.gpu.runs


def test_deadlines(gpu: Explainer) -> None:
    for _ in range(3):
        found = gpu.explain(photo_pixels(), 1, deadline_ms=10_000)
    assert found.complete
    assert found.method == "ada-sise"
    short = gpu.explain(photo_pixels(), 1, deadline_ms=1e-3)
    assert short.method == "grad-cam"
    with pytest.raises(engine.DeadlineError):
        gpu.explain(photo_pixels(), 1, deadline_ms=1e-3, too_late="error")


def test_progress_and_cancel(gpu: Explainer) -> None:
    told: list[tuple[int, int]] = []
    result = gpu.explain(photo_pixels(), 1, progress=lambda done, planned: told.append((done, planned)))
    assert told[0] == (0, result.scored)
    assert told[-1] == (result.scored, result.scored)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    cancel = Event()

    def stop(done: int, planned: int) -> None:
        if 0 < done < planned:
            cancel.set()

    with pytest.raises(engine.CancelledError):
        gpu.explain(photo_pixels(), 1, progress=stop, cancel=cancel)
    assert gpu.explain(photo_pixels(), 1).complete  # the memory is free for the next


@pytest.mark.parametrize("targets", [1, [1, 2]])
def test_what_is_not_finite(targets: object, gpu: Explainer) -> None:
    image = np.full((1, 3, 24, 32), 3e38, np.float32)
    with pytest.raises(engine.ImageError, match="NaN or infinity"):
        gpu.explain(image, targets)
    assert gpu.explain(photo_pixels(), 1).complete


def test_phases(gpu: Explainer) -> None:
    timings = gpu.explain(photo_pixels(), 1).timings_ms
    assert {"prepare", "tap", "select", "score", "combine", "fuse", "total"} <= set(timings)
    assert all(ms >= 0 for ms in timings.values())
