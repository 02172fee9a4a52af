"""Device `cuda` against the CPU path on real networks (design.md, "Agreement")."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import engine
from engine import interop
from engine.backends.onnxruntime_cuda import OnnxRuntimeCuda
from engine.backends.onnxruntime_tensorrt import load_tensorrt
from engine.explainer import Explainer
from engine.image import prepare
from engine.kernels.similarity import spearman
from tests.models import MODELS, PHOTOS, VOC, exported
from tests.reference import agreement
from tests.tiny_cnn import photo_pixels

pytestmark = pytest.mark.gpu

VIEWS = 5e-4


def photos(assets: Path) -> list[Path]:
    return sorted((assets / "images" / "voc" / "JPEGImages").glob("*.jpg"))[:8]


@pytest.fixture(params=["efficientnet-lite0-voc20", "resnet50-thin-voc20"])
def cpu(request: pytest.FixtureRequest, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    return exported(assets, request.param, tmp_path_factory.getbasetemp()).explainer


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("rule", ["otsu", "otsu-count"])
def test_float32(rule: str, cuda_graph: bool, cpu: Explainer, assets: Path) -> None:
    with Explainer(cpu.bundle, OnnxRuntimeCuda(cuda_graph=cuda_graph), batch_size=32) as gpu:
        for name in PHOTOS[VOC][:5]:
            options = {"rule": rule, "visualization_maps": True}
            found, expected = (own.explain(assets / "images" / name, **options) for own in (gpu, cpu))
            for own, other in zip(found.layers, expected.layers, strict=True):
                assert abs(own.selected - other.selected) <= 1
                if own.selected_channels.tolist() == other.selected_channels.tolist():
                    np.testing.assert_allclose(own.scores, other.scores, atol=1e-4)
            for view, other in zip(found.visualization_maps, expected.visualization_maps, strict=True):
                np.testing.assert_allclose(view, other, atol=VIEWS)
            cuts = [layer.fusion_threshold for layer in expected.layers]
            agreement.assert_heatmap(found.heatmap, expected.heatmap, list(expected.visualization_maps), cuts)


@pytest.mark.parametrize("precision", ["tf32", "float16"])
@pytest.mark.parametrize("model", MODELS)
def test_other_precisions(model: str, precision: str, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where Otsu's cuts are in the same bins: a cut in the next one moves many pixels, whatever the precision."""
    cpu = exported(assets, model, tmp_path_factory.getbasetemp()).explainer
    same_cuts = 0
    with Explainer(cpu.bundle, OnnxRuntimeCuda(), precision, 32) as gpu:
        for photo in photos(assets):
            expected = cpu.explain(photo, visualization_maps=True)
            found = gpu.explain(photo, expected.target, visualization_maps=True)
            assert found.precision == precision
            for view, other in zip(found.visualization_maps, expected.visualization_maps, strict=True):
                np.testing.assert_allclose(view, other, atol=0.06)
            if [own.fusion_threshold for own in found.layers] == [own.fusion_threshold for own in expected.layers]:
                same_cuts += 1
                assert spearman(*(one.heatmap.astype(np.float64) for one in (found, expected))) >= 0.995
    assert same_cuts >= 2


@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
def test_tensorrt(
    precision: str, assets: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks as TensorRT scores them, from an engine that is built and then from the same one out of the cache."""
    try:
        load_tensorrt()
    except engine.MissingRuntimeError as err:
        pytest.skip(str(err))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    cpu = exported(assets, "resnet50-thin-voc20", tmp_path_factory.getbasetemp()).explainer
    photo = photos(assets)[0]
    expected = cpu.explain(photo, visualization_maps=True)
    found = []
    for _ in range(2):
        with engine.load(cpu.bundle.path, device="tensorrt", precision=precision, batch_size=32) as gpu:
            found.append(gpu.explain(photo, expected.target, visualization_maps=True))
    assert found[0].heatmap.tobytes() == found[1].heatmap.tobytes()
    for view, other in zip(found[0].visualization_maps, expected.visualization_maps, strict=True):
        np.testing.assert_allclose(view, other, atol=0.2 if precision == "bfloat16" else 0.06)


def test_load_runs_the_whole_way(tiny_bundle: Path) -> None:
    with engine.load(tiny_bundle, device="cuda") as gpu, engine.load(tiny_bundle) as cpu:
        for options in ({}, {"max_masks": 5}, {"preset": "fast"}, {"baseline": "blur"}, {"method": "grad-cam"}):
            found, expected = (own.explain(photo_pixels(), 2, **options) for own in (gpu, cpu))
            assert np.abs(found.heatmap - expected.heatmap).mean() < 1e-3
        assert gpu.explain(photo_pixels(), 2, deadline_ms=5000).complete


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_same_bytes_run_to_run_and_among_threads(cuda_graph: bool, cpu: Explainer, assets: Path) -> None:
    photos = [assets / "images" / name for name in PHOTOS[VOC][:4]]
    with Explainer(cpu.bundle, OnnxRuntimeCuda(cuda_graph=cuda_graph), batch_size=32) as gpu:
        first = [gpu.explain(photo).heatmap.tobytes() for photo in photos]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda photo: gpu.explain(photo).heatmap.tobytes(), photos * 3)) == first * 3
    with Explainer(cpu.bundle, OnnxRuntimeCuda(cuda_graph=cuda_graph), batch_size=32) as again:
        assert [again.explain(photo).heatmap.tobytes() for photo in photos] == first


def test_memory_stays_flat(tiny_bundle: Path) -> None:
    import cupy

    with engine.load(tiny_bundle, device="cuda", tune=False) as gpu:
        used = []
        for number in range(1000):
            gpu.explain(photo_pixels(30 + number % 7, 40), number % 5)
            if number % 100 == 99:
                free, total = cupy.cuda.runtime.memGetInfo()
                used.append(total - free)
        assert max(used[2:]) - used[1] < 32 * 2**20


def test_interop(tiny_bundle: Path) -> None:
    """CuPy's array, an address with strides, and a heatmap that stays on the device, on a stream of the caller."""
    import cupy

    with engine.load(tiny_bundle, device="cuda", tune=False) as gpu:
        image = prepare(photo_pixels(), gpu.bundle.preprocess, gpu.bundle.image_shape).array
        expected = gpu.explain(image, 2).heatmap
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            placed = cupy.asarray(image)
            last = cupy.ascontiguousarray(placed[0].transpose(1, 2, 0))
        pointer = interop.DevicePointer(address=last.data.ptr, shape=(3, 24, 32), strides=(4, 4 * 32 * 3, 4 * 3))
        for given in (placed, pointer):
            found = interop.explain(gpu, given, 2, stream=stream.ptr)
            assert isinstance(found.heatmap, cupy.ndarray)
            np.testing.assert_array_equal(found.heatmap.get(stream=stream), expected)


@pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="needs compute-sanitizer")
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_under_compute_sanitizer(tool: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """Without CuPy's pool, in which an array has others beside it that may be read."""
    import subprocess
    import sys

    photo = tmp_path / "photo.npy"
    np.save(photo, photo_pixels())
    load = f"engine.load({str(tiny_bundle)!r}, device='cuda', tune=False)"
    code = f"import cupy, engine, numpy; cupy.cuda.set_allocator(None); {load}.explain(numpy.load({str(photo)!r}))"
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode=99", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
