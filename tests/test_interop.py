"""Images and heatmaps in device memory, on an emulated GPU."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import engine
from engine import interop
from engine.bundle import load_bundle
from engine.explainer import Explainer
from engine.image import prepare
from tests.emulator import EmulatedBackend, EmulatedDevice
from tests.tiny_cnn import photo_pixels

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to run CUDA kernels without a GPU")


@pytest.fixture
def gpu(tiny_bundle: Path) -> Iterator[Explainer]:
    with Explainer(load_bundle(tiny_bundle), EmulatedBackend(), batch_size=4) as explainer:
        yield explainer


@pytest.fixture
def image(gpu: Explainer) -> NDArray[np.float32]:
    return prepare(photo_pixels(), gpu.bundle.preprocess, gpu.bundle.image_shape).array


def forms(image: NDArray[np.float32]) -> dict[str, tuple[object, object]]:
    """Descriptions of the same image, each beside what owns its memory."""
    last = np.ascontiguousarray(image[0].transpose(1, 2, 0))  # channels last
    wide = np.zeros((*image.shape[:3], 2 * image.shape[3]), np.float32)
    wide[..., ::2] = image
    double = image.astype(np.float64)
    pointer = interop.DevicePointer
    return {
        "an array": (image, image),
        "without a batch": (image[0], image),
        "an address": (pointer(address=image.ctypes.data, shape=image.shape), image),
        "channels last": (
            pointer(address=last.ctypes.data, shape=image.shape[1:], strides=(4, 4 * 32 * 3, 4 * 3)),
            last,
        ),
        "gaps": (
            pointer(address=wide.ctypes.data, shape=image.shape, strides=wide[..., ::2].strides),
            wide,
        ),
        "float64": (pointer(address=double.ctypes.data, shape=image.shape, dtype="float64"), double),
    }


@pytest.mark.parametrize("form", forms(np.zeros((1, 3, 24, 32), np.float32)))
def test_every_form_of_an_image(form: str, image: NDArray[np.float32], gpu: Explainer) -> None:
    expected = gpu.explain(image, 2)
    given, _owner = forms(image)[form]
    found = interop.explain(gpu, given, 2, stream=77)
    assert found.heatmap.tobytes() == expected.heatmap.tobytes()
    assert found.explanation.heatmap.tobytes() == expected.heatmap.tobytes()
    assert found.explanation.class_score == expected.class_score
    assert found.explanation.picture.size == (32, 24)
    assert gpu.device_memory.waits == [("after", 77), ("before", 77)]


def test_several_classes_and_a_colour(image: NDArray[np.float32], gpu: Explainer) -> None:
    options = {"baseline": (9, 99, 199), "max_masks": 5, "rule": "otsu-count"}
    expected = gpu.explain(image, [0, None], **options)
    found = interop.explain(gpu, image, [0, None], **options)
    assert [one.heatmap.tobytes() for one in found] == [one.heatmap.tobytes() for one in expected]
    assert gpu.device_memory.waits == [("after", 0), ("before", 0)]


def test_heatmaps_are_the_callers(image: NDArray[np.float32], gpu: Explainer) -> None:
    first = interop.explain(gpu, image, 1).heatmap
    kept = first.copy()
    interop.explain(gpu, image, 3)
    assert first.tobytes() == kept.tobytes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((1, 3, 24, 33), np.float32), r"is float32 \[1, 3, 24, 33\]; expected floats \[1, 3, 24, 32\]"),
        (np.zeros((1, 3, 24, 32), np.uint8), r"is uint8 \[1, 3, 24, 32\]; expected floats"),
        ("photo.jpg", "the image is a str"),
    ],
)
def test_other_images(given: object, says: str, gpu: Explainer) -> None:
    with pytest.raises(engine.ImageError, match=says):
        interop.explain(gpu, given)


def test_the_callers_stream_waits_for_a_failure_too(image: NDArray[np.float32], gpu: Explainer) -> None:
    image[0, 0, 3, 3] = np.nan
    with pytest.raises(engine.ImageError, match="NaN"):
        interop.explain(gpu, image, stream=5)
    assert gpu.device_memory.waits == [("after", 5), ("before", 5)]


def test_the_device_is_used_in_turn(
    image: NDArray[np.float32], gpu: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while another thread of the explainer captures its runs."""
    resident = gpu._opened().resident
    for name in ("adopt", "copy", "come_after", "come_before"):
        own = getattr(EmulatedDevice, name)

        def within(self: EmulatedDevice, *arguments: object, own: Any = own) -> object:
            assert resident._lock.locked()
            return own(self, *arguments)

        monkeypatch.setattr(EmulatedDevice, name, within)
    interop.explain(gpu, image, 1)
    assert not resident._lock.locked()


def test_a_type_that_nobody_knows() -> None:
    with pytest.raises(engine.ImageError, match="dtype is 'bfloat17'; expected NumPy's name of a float type"):
        interop.DevicePointer(address=0, shape=(1,), dtype="bfloat17")


@pytest.mark.parametrize("options", [{"method": "grad-cam"}, {"baseline": "blur"}, {"deadline_ms": 100.0}])
def test_what_needs_the_image_on_the_host(
    options: dict[str, object], image: NDArray[np.float32], gpu: Explainer
) -> None:
    with pytest.raises(engine.OptionError, match="the image is in device memory, where only methods 'ada-sise'"):
        interop.explain(gpu, image, **options)


def test_an_explainer_on_the_cpu(tiny_bundle: Path, image: NDArray[np.float32]) -> None:
    with (
        engine.load(tiny_bundle, tune=False) as explainer,
        pytest.raises(
            engine.OptionError, match="device is 'cpu'; expected an explainer that was loaded with device='cuda'"
        ),
    ):
        interop.explain(explainer, image)


def test_sizes_of_pointers() -> None:
    pointer = interop.DevicePointer
    assert pointer(address=0, shape=(1, 3, 4, 5)).size_bytes == 240
    assert pointer(address=0, shape=(3, 4, 5), dtype="float16", strides=(2, 30, 6)).size_bytes == 120
